//! The layers of the configuration: defaults, the file, the environment; the later one wins.
//!
//! Takes the layers apart, refuses names that do not exist, and keeps the problems, each naming the
//! place where a person mends it. Reading values of the right kind is the other half, in `values`;
//! what they may be is judged in `check`. Made by `Config::load` and `Config::from_toml` alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use config::{Environment, File, FileFormat, Source, Value, ValueKind};

use super::keys::{self, Default, Key};
use super::unknown::{is_key, is_section, outside_of_sections, unknown_key, unknown_section};

/// Variables with this beginning are ours.
const PREFIX: &str = "NIGHTLIGHT_";
/// Ours, but not of the configuration.
const NOT_KEYS: [&str; 1] = ["NIGHTLIGHT_LOG"];

/// The values as they were given, with what was found wrong so far.
pub(super) struct Layers {
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
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Layers {
    /// Takes the layers apart; `file` is its name and text. Syntax errors and unknown keys become
    /// problems.
    pub(super) fn gather(
        file: Option<(&Path, &str)>,
        environment: HashMap<String, String>,
    ) -> Self {
        let mut layers = Self {
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
    pub(super) fn problem(&mut self, key: &Key, what: impl AsRef<str>) {
        self.bad.insert(key.path);
        if self.is_broken && !self.is_from_environment(key) {
            // The file may set it right; that cannot be known before its syntax is.
            return;
        }
        let line = format!("{}: {}", self.place(key), what.as_ref());
        self.problems.push(line);
    }

    /// Whether each of these has the value that somebody meant: only then can they be compared.
    pub(super) fn are_good(&self, keys: &[&Key]) -> bool {
        !keys.iter().any(|key| self.bad.contains(key.path))
    }

    /// Something that works but may not be meant.
    pub(super) fn warning(&mut self, key: &Key, what: impl AsRef<str>) {
        let line = format!("{}: {}", self.place(key), what.as_ref());
        self.warnings.push(line);
    }

    /// Whether somebody has set `key`.
    pub(super) fn is_set(&self, key: &Key) -> bool {
        self.in_environment.contains_key(key.path) || self.in_file.contains_key(key.path)
    }

    /// A variable of the environment that is not ours, unless empty.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
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
                ValueKind::Table(table) if is_section(&section) => {
                    for (key, value) in BTreeMap::from_iter(table) {
                        let path = format!("{section}.{key}");
                        if is_key(&path) {
                            self.in_file.insert(path, value.kind);
                        } else {
                            let what = unknown_key(&section, &key);
                            self.problems.push(format!("{name}: {path}: {what}"));
                        }
                    }
                }
                ValueKind::Table(_) => {
                    let what = unknown_section(&section);
                    self.problems.push(format!("{name}: [{section}]: {what}"));
                }
                _ => {
                    let what = outside_of_sections(&section);
                    self.problems.push(format!("{name}: {section}: {what}"));
                }
            }
        }
    }

    fn gather_environment(&mut self) {
        let ours = self
            .environment
            .iter()
            .filter(|(name, _)| name.starts_with(PREFIX) && !NOT_KEYS.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let source = Environment::with_prefix("NIGHTLIGHT")
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
            if is_key(&path) {
                self.in_environment.insert(path, value.kind);
                continue;
            }
            let name = format!("{PREFIX}{}", path.replace('.', "__").to_uppercase());
            let Some((section, key)) = path.split_once('.') else {
                self.stray_variable(&name, &path);
                continue;
            };
            let what = if is_section(section) {
                unknown_key(section, key)
            } else {
                unknown_section(section)
            };
            self.problems.push(format!("environment: {name}: {what}"));
        }
    }

    /// A variable of ours with no `__` in it: a slip if it nearly names a key, else somebody else's
    /// (container platforms make such as NIGHTLIGHT_PORT for a service of that name).
    fn stray_variable(&mut self, name: &str, path: &str) {
        let meant = keys::ALL
            .iter()
            .find(|key| key.path.replace('.', "_") == path);
        match meant {
            Some(key) => self.problems.push(format!(
                "environment: {name}: section and key are separated by two underscores; write {}",
                key.variable()
            )),
            None => self.warnings.push(format!(
                "environment: {name}: ignored; it names no key (keys look like NIGHTLIGHT_BROKER__URL)"
            )),
        }
    }

    /// The value in force.
    pub(super) fn value(&self, key: &Key) -> ValueKind {
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
    pub(super) fn is_from_environment(&self, key: &Key) -> bool {
        self.in_environment.contains_key(key.path)
    }

    /// Where a person mends the value.
    fn place(&self, key: &Key) -> String {
        match (&self.file, self.is_from_environment(key)) {
            (_, true) => format!("environment: {}", key.variable()),
            (Some(file), false) => format!("{file}: {}", key.path),
            (None, false) => format!("default: {}", key.path),
        }
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
