//! The layers of the configuration: defaults, the file, the environment; the later one wins.
//!
//! Takes the layers apart, refuses names that do not exist, and keeps the problems, each naming the
//! place where a person mends it. Reading values of the right kind is the other half, in `values`;
//! what they may be is judged by the program.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use config::{Environment, File, FileFormat, Source, Value, ValueKind};

use super::unknown::{outside_of_sections, unknown_key, unknown_section};
use super::{Default, Key, Schema, on_one_line};

/// The values as they were given, with what was found wrong so far.
pub struct Layers {
    pub(super) schema: &'static Schema,
    /// Name of the file, for problems; none when there is no file.
    file: Option<String>,
    in_file: BTreeMap<String, ValueKind>,
    in_environment: BTreeMap<String, ValueKind>,
    /// The whole environment, for credentials and the state folder.
    environment: HashMap<String, String>,
    /// The file is no TOML: what it would have set is unknown.
    is_broken: bool,
    /// Keys whose value was refused and replaced by the default.
    bad: BTreeSet<&'static str>,
    /// What is wrong, a line each.
    pub problems: Vec<String>,
    /// What works but may not be meant, a line each.
    pub warnings: Vec<String>,
}

impl Layers {
    /// Takes the layers apart; `file` is its name and text. Syntax errors and unknown keys become
    /// problems.
    pub fn gather(
        schema: &'static Schema,
        file: Option<(&Path, &str)>,
        environment: HashMap<String, String>,
    ) -> Self {
        let mut layers = Self {
            schema,
            file: file.map(|(name, _)| name.display().to_string()),
            in_file: BTreeMap::new(),
            in_environment: BTreeMap::new(),
            environment,
            is_broken: false,
            bad: BTreeSet::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        if let Some((_, text)) = file {
            layers.gather_file(text);
        }
        layers.gather_environment();
        layers
    }

    /// A problem with the value of `key`.
    pub fn problem(&mut self, key: &Key, what: impl AsRef<str>) {
        self.bad.insert(key.path);
        if self.is_broken && !self.is_from_environment(key) {
            // The file may set it right; that cannot be known before its syntax is.
            return;
        }
        let line = format!("{}: {}", self.place(key), what.as_ref());
        self.problems.push(line);
    }

    /// Whether each of these has the value that somebody meant: only then can they be compared.
    pub fn are_good(&self, keys: &[&Key]) -> bool {
        !keys.iter().any(|key| self.bad.contains(key.path))
    }

    /// Something that works but may not be meant.
    pub fn warning(&mut self, key: &Key, what: impl AsRef<str>) {
        let line = format!("{}: {}", self.place(key), what.as_ref());
        self.warnings.push(line);
    }

    /// Whether somebody has set `key`.
    pub fn is_set(&self, key: &Key) -> bool {
        self.in_environment.contains_key(key.path) || self.in_file.contains_key(key.path)
    }

    /// What people named in a section of lists, with its texts; a text with commas counts as a list.
    pub fn lists(&mut self, section: &str) -> BTreeMap<String, Vec<String>> {
        let beginning = format!("{section}.");
        let mut given = BTreeMap::new();
        for (layer, values) in [
            ("file", &self.in_file),
            ("environment", &self.in_environment),
        ] {
            for (path, value) in values {
                if let Some(name) = path.strip_prefix(&beginning) {
                    given.insert(name.to_owned(), (layer, value.clone()));
                }
            }
        }
        let mut lists = BTreeMap::new();
        for (name, (layer, value)) in given {
            match texts(value) {
                Some(list) => drop(lists.insert(name, list)),
                None => {
                    let place = match layer {
                        "file" => self.file.clone().unwrap_or_default(),
                        layer => layer.to_owned(),
                    };
                    let line = format!(
                        "{place}: {section}.{name}: is no list of names; write one such as [\"pi-1\", \"pi-2\"]"
                    );
                    self.problems.push(on_one_line(&line));
                }
            }
        }
        lists
    }

    /// The tables of a section that people name, in the order of their names, each with its values: from the
    /// file (`[section.name]`), and key by key from the environment, which wins. What is no table, and a key
    /// that is not among `keys`, is a problem.
    pub fn tables(
        &mut self,
        section: &str,
        keys: &[&str],
    ) -> BTreeMap<String, BTreeMap<String, ValueKind>> {
        let beginning = format!("{section}.");
        let mut given = Vec::new();
        for (path, value) in &self.in_file {
            match (path.strip_prefix(&beginning), value) {
                (None, _) => {}
                (Some(name), ValueKind::Table(table)) => {
                    for (key, value) in BTreeMap::from_iter(table) {
                        given.push((false, name.to_owned(), key.clone(), value.kind.clone()));
                    }
                }
                (Some(name), _) => {
                    given.push((false, name.to_owned(), String::new(), ValueKind::Nil))
                }
            }
        }
        for (path, value) in &self.in_environment {
            if let Some(path) = path.strip_prefix(&beginning) {
                let (name, key) = path.rsplit_once('.').unwrap_or((path, ""));
                given.push((true, name.to_owned(), key.to_owned(), value.clone()));
            }
        }
        let mut tables: BTreeMap<String, BTreeMap<String, ValueKind>> = BTreeMap::new();
        for (is_environment, name, key, value) in given {
            if keys.contains(&key.as_str()) {
                tables.entry(name).or_default().insert(key, value);
                continue;
            }
            let place = match (is_environment, &self.file) {
                (false, Some(file)) => file.as_str(),
                _ => "environment",
            };
            let known = keys.join(", ");
            let line = match key.is_empty() {
                true => format!(
                    "{place}: {section}.{name}: is no table; write [{section}.{name}] and below it some of: {known}"
                ),
                false => {
                    format!("{place}: {section}.{name}.{key}: unknown key; there are: {known}")
                }
            };
            self.problems.push(on_one_line(&line));
        }
        tables
    }

    /// A variable of the environment that is not ours, unless empty.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let value = self.environment.get(name)?;
        (!value.is_empty()).then_some(value.as_str())
    }

    fn gather_file(&mut self, text: &str) {
        let name = self.file.clone().unwrap_or_default();
        let sections = match File::from_str(text, FileFormat::Toml).collect() {
            Ok(sections) => BTreeMap::from_iter(sections),
            Err(error) => {
                self.problems.push(format!("{name}: {}", syntax(&error)));
                self.is_broken = true;
                return;
            }
        };
        for (section, Value { kind, .. }) in sections {
            match kind {
                ValueKind::Table(table) if self.schema.is_list(&section) => {
                    for (name, value) in BTreeMap::from_iter(table) {
                        self.in_file.insert(format!("{section}.{name}"), value.kind);
                    }
                }
                ValueKind::Table(table) if self.schema.is_section(&section) => {
                    for (key, value) in BTreeMap::from_iter(table) {
                        let path = format!("{section}.{key}");
                        if self.schema.is_key(&path) {
                            self.in_file.insert(path, value.kind);
                        } else {
                            let what = unknown_key(self.schema, &section, &key);
                            self.problems.push(format!("{name}: {path}: {what}"));
                        }
                    }
                }
                ValueKind::Table(_) => {
                    let what = unknown_section(self.schema, &section);
                    self.problems.push(format!("{name}: [{section}]: {what}"));
                }
                _ => {
                    let what = outside_of_sections(self.schema, &section);
                    self.problems.push(format!("{name}: {section}: {what}"));
                }
            }
        }
    }

    fn gather_environment(&mut self) {
        let prefix = format!("{}_", self.schema.prefix);
        let other = |name: &str| {
            self.schema
                .not_keys
                .iter()
                .any(|other| name.starts_with(other))
        };
        let ours = self
            .environment
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix) && !other(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let source = Environment::with_prefix(self.schema.prefix)
            .prefix_separator("_")
            .separator("__")
            .source(Some(ours));
        let variables = match source.collect() {
            Ok(variables) => BTreeMap::from_iter(variables),
            Err(error) => {
                self.problems.push(format!("environment: {error}"));
                return;
            }
        };
        for (path, value) in variables {
            if self.schema.takes(&path) {
                self.in_environment.insert(path, value.kind);
                continue;
            }
            let name = self.schema.variable(&path);
            let Some((section, key)) = path.split_once('.') else {
                self.stray_variable(&name, &path);
                continue;
            };
            let what = if self.schema.is_section(section) {
                unknown_key(self.schema, section, key)
            } else {
                unknown_section(self.schema, section)
            };
            self.problems.push(format!("environment: {name}: {what}"));
        }
    }

    /// A variable of ours with no `__` in it: a slip if it nearly names a key, else somebody else's
    /// (container platforms make such as NIGHTLIGHT_PORT for a service of that name).
    fn stray_variable(&mut self, name: &str, path: &str) {
        let meant = self
            .schema
            .keys
            .iter()
            .find(|key| key.path.replace('.', "_") == path);
        match meant {
            Some(key) => self.problems.push(format!(
                "environment: {name}: section and key are separated by two underscores; write {}",
                self.schema.variable(key.path)
            )),
            None => self.warnings.push(format!(
                "environment: {name}: ignored; it names no key (keys look like {})",
                self.schema.variable("broker.url")
            )),
        }
    }

    /// The value in force.
    pub fn value(&self, key: &Key) -> ValueKind {
        self.in_environment
            .get(key.path)
            .or_else(|| self.in_file.get(key.path))
            .cloned()
            .unwrap_or_else(|| match key.default {
                Default::Text(text) => text.into(),
                Default::Whole(number) => number.into(),
                Default::Number(number) => number.into(),
                Default::Flag(flag) => flag.into(),
            })
    }

    /// Whether the environment sets `key`: then all its values are texts.
    pub(crate) fn is_from_environment(&self, key: &Key) -> bool {
        self.in_environment.contains_key(key.path)
    }

    /// Where the value is from: `default`, the file's name, or the variable's.
    pub fn origin(&self, key: &Key) -> String {
        match &self.file {
            _ if self.is_from_environment(key) => self.schema.variable(key.path),
            Some(file) if self.in_file.contains_key(key.path) => file.clone(),
            _ => "default".to_owned(),
        }
    }

    /// Where a person mends the value.
    fn place(&self, key: &Key) -> String {
        match (&self.file, self.is_from_environment(key)) {
            (_, true) => format!("environment: {}", self.schema.variable(key.path)),
            (Some(file), false) => format!("{file}: {}", key.path),
            (None, false) => format!("default: {}", key.path),
        }
    }
}

/// A list of texts, or one text with commas in it.
fn texts(value: ValueKind) -> Option<Vec<String>> {
    let trimmed = |text: &str| text.trim().to_owned();
    match value {
        ValueKind::String(text) => Some(text.split(',').map(trimmed).collect()),
        ValueKind::Array(values) => values
            .into_iter()
            .map(|value| match value.kind {
                ValueKind::String(text) => Some(text),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

/// The TOML parser's error on one line, without the line of the file: it may hold a secret.
fn syntax(error: &config::ConfigError) -> String {
    let text = match error {
        config::ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    let lines: Vec<_> = text
        .lines()
        .filter(|line| {
            !line
                .trim_start()
                .starts_with(|c: char| c == '|' || c.is_ascii_digit())
        })
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let what = lines.join(": ");
    if what.contains(" at line ") {
        format!("{what}; mend the TOML there")
    } else {
        // The numbers of TOML have no bounds; the parser does not say where it met its own.
        format!("a value cannot be read: {what}; look for a number of more than 18 digits")
    }
}
