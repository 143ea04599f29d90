//! Names that do not exist, and what was probably meant.
//!
//! Only words: gives the text of the problem. Called by `layers` for keys and sections, by `values`
//! for the words a key can be.

use super::Schema;

/// How alike two names are (0..=1) for one to be a likely slip for the other.
const ALIKE: f64 = 0.75;

impl Schema {
    /// Whether there is such a section.
    pub(crate) fn is_section(&self, section: &str) -> bool {
        self.is_list(section) || self.keys.iter().any(|key| key.section() == section)
    }

    /// Whether people name the keys of this section.
    pub(crate) fn is_list(&self, section: &str) -> bool {
        self.lists.contains(&section)
    }

    /// Whether there is such a key, as `section.name`.
    pub fn is_key(&self, path: &str) -> bool {
        self.keys.iter().any(|key| key.path == path)
    }

    /// Whether a value can be given for this, as `section.name`.
    pub fn takes(&self, path: &str) -> bool {
        let section = path.split_once('.').map_or("", |(section, _)| section);
        self.is_key(path) || self.is_list(section)
    }
}

/// About a key that `section` does not have.
pub(crate) fn unknown_key(schema: &Schema, section: &str, key: &str) -> String {
    if key.contains("password") || key.contains("secret") || key.contains("token") {
        return "secrets do not belong into the configuration; put it in a file of its own and name that with broker.password_file".into();
    }
    let elsewhere: Vec<_> = schema
        .keys
        .iter()
        .filter(|other| other.name() == key)
        .map(|other| format!("[{}]", other.section()))
        .collect();
    if !elsewhere.is_empty() {
        return format!("unknown key here; it belongs in {}", elsewhere.join(" or "));
    }
    let names: Vec<_> = schema
        .keys
        .iter()
        .filter(|known| known.section() == section)
        .map(|known| known.name())
        .collect();
    match nearest(key, names.iter().copied()) {
        Some(name) => format!("unknown key; did you mean \"{name}\"?"),
        None => format!("unknown key; [{section}] has: {}", names.join(", ")),
    }
}

/// About a section that does not exist.
pub(crate) fn unknown_section(schema: &Schema, section: &str) -> String {
    let mut names: Vec<_> = schema.keys.iter().map(|key| key.section()).collect();
    names.extend(schema.lists);
    names.dedup();
    match nearest(section, names.iter().copied()) {
        Some(name) => format!("unknown section; did you mean [{name}]?"),
        None => format!("unknown section; there are: {}", names.join(", ")),
    }
}

/// About a value above the first section.
pub(crate) fn outside_of_sections(schema: &Schema, name: &str) -> String {
    if schema.is_section(name) {
        return format!("is a section; write [{name}] on a line of its own and the keys below it");
    }
    match schema.keys.iter().find(|key| key.name() == name) {
        Some(key) => format!(
            "stands outside of a section; write it below [{}]",
            key.section()
        ),
        None => match nearest(name, schema.keys.iter().map(|key| key.name())) {
            Some(name) => format!("unknown key outside of a section; did you mean \"{name}\"?"),
            None => "unknown key outside of a section; remove it".into(),
        },
    }
}

/// The known name that a person most likely meant, if one is near.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A swap or a slip of one letter is the likeliest, and in short names it looks unlike.
    let alike = |known| match strsim::damerau_levenshtein(name, known) {
        0 | 1 => 1.0,
        _ => strsim::jaro_winkler(name, known),
    };
    known
        .map(|known| (alike(known), known))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}
