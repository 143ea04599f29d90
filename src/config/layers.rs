//! The layers of the configuration: defaults, the file, the environment; the later one wins.
//!
//! Reads values of the right kind out of the layers and collects every problem on the way, each
//! naming where the value came from. A bad value is replaced by the default so that checking goes
//! on. What values mean together is not judged here but in `check`, the only caller.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Environment, File, FileFormat, Source, Value, ValueKind};
use jiff::{Span, SpanRelativeTo};

use super::keys::{self, Default, Key};

/// Variables with this beginning are ours.
const PREFIX: &str = "NIGHTLIGHT_";
/// Ours, but not of the configuration.
const NOT_KEYS: [&str; 1] = ["NIGHTLIGHT_LOG"];
/// How alike two names are (0..=1) for one to be a likely slip for the other.
const ALIKE: f64 = 0.75;

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

    /// A text; may be empty.
    pub(super) fn text(&mut self, key: &Key) -> String {
        match self.value(key) {
            ValueKind::String(text) if text.contains(['\0', '\n', '\r']) => {
                self.refuse(key, "has a line break or a NUL in it; write it on one line")
            }
            ValueKind::String(text) => Some(text),
            other => self.refuse(
                key,
                format!("{} is not text; put it in quotes", shown(&other)),
            ),
        }
        .unwrap_or_else(|| match key.default {
            Default::Text(text) => text.to_string(),
            _ => String::new(),
        })
    }

    /// A text, or nothing when it is empty.
    pub(super) fn optional(&mut self, key: &Key) -> Option<String> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    /// A path; `${CREDENTIALS_DIRECTORY}` at its beginning is replaced. Nothing when it is empty.
    pub(super) fn path(&mut self, key: &Key) -> Option<PathBuf> {
        const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
        let text = self.optional(key)?;
        let Some((_, rest)) = text.split_once("${") else {
            return Some(PathBuf::from(text));
        };
        let Some(rest) = text.strip_prefix("${CREDENTIALS_DIRECTORY}/") else {
            let rest = rest.to_string();
            return self.refuse(
                key,
                format!("\"${{{rest}\" is not replaced; only ${{{CREDENTIALS}}}/NAME at the beginning is"),
            );
        };
        let folder = self
            .variable(CREDENTIALS)
            .map(|folder| Path::new(folder).join(rest));
        folder.or_else(|| {
            self.refuse(
                key,
                format!("${CREDENTIALS} is not set; start under systemd with LoadCredential={rest}:..., or write a plain path"),
            )
        })
    }

    /// A whole number in `range`.
    pub(super) fn whole(&mut self, key: &Key, range: RangeInclusive<i64>) -> i64 {
        let allowed = format!("{} to {}", range.start(), range.end());
        let number = match self.value(key) {
            ValueKind::I64(number) => Some(number),
            ValueKind::String(text) if self.is_from_environment(key) => whole(&text),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => number,
            Some(number) => self
                .refuse(key, format!("{number} is out of range; use {allowed}"))
                .unwrap_or_else(|| default_whole(key)),
            None => {
                let given = shown(&self.value(key));
                self.refuse(
                    key,
                    format!("{given} is not a whole number; use {allowed}, without quotes or decimal point"),
                )
                .unwrap_or_else(|| default_whole(key))
            }
        }
    }

    /// A finite number in `range`.
    pub(super) fn number(&mut self, key: &Key, range: RangeInclusive<f64>) -> f64 {
        let default = match key.default {
            Default::Number(number) => number,
            _ => 0.0,
        };
        let number = match self.value(key) {
            ValueKind::Float(number) => Some(number),
            ValueKind::I64(number) => Some(number as f64),
            ValueKind::String(text) if self.is_from_environment(key) => text.trim().parse().ok(),
            _ => None,
        };
        let given = shown(&self.value(key));
        match number {
            Some(number) if !number.is_finite() => self.refuse(
                key,
                format!("{given} is not a finite number; use one such as {default}"),
            ),
            Some(number) if !range.contains(&number) => {
                let what = if *range.end() == f64::MAX {
                    format!("{given} is out of range; use {} or more", range.start())
                } else {
                    let (least, most) = (range.start(), range.end());
                    format!("{given} is out of range; use {least} to {most}")
                };
                self.refuse(key, what)
            }
            None => self.refuse(
                key,
                format!("{given} is not a number; write it without quotes, such as {default}"),
            ),
            number => number,
        }
        .unwrap_or(default)
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &Key) -> bool {
        let flag = match self.value(key) {
            ValueKind::Boolean(flag) => Some(flag),
            ValueKind::String(text) if self.is_from_environment(key) => {
                match text.trim().to_ascii_lowercase().as_str() {
                    "true" | "yes" | "on" | "1" => Some(true),
                    "false" | "no" | "off" | "0" => Some(false),
                    _ => None,
                }
            }
            _ => None,
        };
        flag.or_else(|| {
            let given = shown(&self.value(key));
            self.refuse(
                key,
                format!("{given} is neither true nor false; write one of these without quotes"),
            )
        })
        .unwrap_or(key.default == Default::Flag(true))
    }

    /// A duration in `range`.
    pub(super) fn duration(&mut self, key: &Key, range: RangeInclusive<Duration>) -> Duration {
        let given = match self.value(key) {
            ValueKind::String(text) => duration(&text, &range),
            ValueKind::I64(number) => Err(unitless(&number.to_string())),
            ValueKind::Float(number) => Err(unitless(&number.to_string())),
            other => Err(format!("{} is not a duration; write \"5s\"", shown(&other))),
        };
        given.unwrap_or_else(|what| {
            self.problem(key, what);
            match key.default {
                Default::Text(text) => duration(text, &range).unwrap_or_default(),
                _ => Duration::ZERO,
            }
        })
    }

    /// A duration in `range`, or nothing for the one word that may stand in its place.
    pub(super) fn duration_or(
        &mut self,
        key: &Key,
        word: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        match self.value(key) {
            ValueKind::String(text) if text == word => None,
            ValueKind::String(text) => Some(duration(&text, &range).unwrap_or_else(|what| {
                self.problem(key, format!("{what}, or \"{word}\""));
                *range.start()
            })),
            _ => Some(self.duration(key, range)),
        }
    }

    /// A number of bytes in `range`: plain, or a text such as "512MB" or "512MiB".
    pub(super) fn bytes(&mut self, key: &Key, range: RangeInclusive<i64>) -> i64 {
        if let ValueKind::String(text) = self.value(key) {
            if let Some(number) = bytes(&text) {
                if range.contains(&number) {
                    return number;
                }
                let (least, most) = (range.start(), range.end());
                self.problem(
                    key,
                    format!("\"{text}\" is out of range; use {least} to {most} bytes"),
                );
            } else {
                self.problem(
                    key,
                    format!("\"{text}\" is not a size; write 536870912, \"512MB\" or \"512MiB\""),
                );
            }
            return default_whole(key);
        }
        self.whole(key, range)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &Key, words: &[(&str, T)], hint: &str) -> T {
        let text = self.text(key);
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
            return *meaning;
        }
        let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let what = match nearest(&text.to_lowercase(), all.iter().copied()) {
            Some(word) if hint.is_empty() => {
                format!(
                    "\"{text}\" is unknown; did you mean \"{word}\"? It can be: {}",
                    all.join(", ")
                )
            }
            _ if hint.is_empty() => format!("\"{text}\" is unknown; it can be: {}", all.join(", ")),
            _ => format!("{hint}; it has: {}", all.join(", ")),
        };
        self.problem(key, what);
        words
            .iter()
            .find(|(word, _)| matches!(key.default, Default::Text(default) if default == *word))
            .unwrap_or(&words[0])
            .1
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
    fn value(&self, key: &Key) -> ValueKind {
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

    fn is_from_environment(&self, key: &Key) -> bool {
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

    fn refuse<T>(&mut self, key: &Key, what: impl AsRef<str>) -> Option<T> {
        self.problem(key, what);
        None
    }
}

/// Reads "5s", "500ms", "1h30m", "1d". The error says what to write instead.
pub(super) fn duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    let text = text.trim();
    if text.parse::<f64>().is_ok() {
        return Err(unitless(text));
    }
    let signed = text
        .parse::<Span>()
        .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()))
        .map_err(|_| {
            format!(
                "\"{text}\" is not a duration; write one such as \"500ms\", \"5s\" or \"1h30m\""
            )
        })?;
    let given = Duration::try_from(signed)
        .map_err(|_| format!("\"{text}\" is negative; write a duration such as \"5s\""))?;
    if range.contains(&given) {
        Ok(given)
    } else {
        Err(format!(
            "\"{text}\" is out of range; use {} to {}",
            in_words(*range.start()),
            in_words(*range.end())
        ))
    }
}

/// A duration as one would write it: `1h 30m`, `500ms`.
pub(super) fn in_words(duration: Duration) -> String {
    match jiff::SignedDuration::try_from(duration) {
        Ok(signed) => format!("{signed:#}"),
        Err(_) => format!("{duration:?}"),
    }
}

fn unitless(number: &str) -> String {
    format!("{number} has no unit; write \"{number}s\" for seconds, with the quotes in a file")
}

fn whole(text: &str) -> Option<i64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) if digits.starts_with(['+', '-']) => None,
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn bytes(text: &str) -> Option<i64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit: i64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return None,
    };
    digits.parse::<i64>().ok()?.checked_mul(unit)
}

fn default_whole(key: &Key) -> i64 {
    match key.default {
        Default::Whole(number) => number,
        _ => 0,
    }
}

/// A value in a problem; long ones cut.
fn shown(value: &ValueKind) -> String {
    match value {
        ValueKind::String(text) if text.chars().count() > 60 => {
            format!("\"{}...\"", text.chars().take(60).collect::<String>())
        }
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Float(number) => format!("{number:?}"),
        ValueKind::Table(_) => "a table".into(),
        ValueKind::Array(_) => "a list".into(),
        ValueKind::Nil => "nothing".into(),
        other => Value::new(None, other.clone()).to_string(),
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

fn is_section(section: &str) -> bool {
    keys::ALL.iter().any(|key| key.section() == section)
}

fn is_key(path: &str) -> bool {
    keys::ALL.iter().any(|key| key.path == path)
}

fn unknown_key(section: &str, key: &str) -> String {
    if key.contains("password") || key.contains("secret") || key.contains("token") {
        return "secrets do not belong into the configuration; put it in a file of its own and name that with broker.password_file".into();
    }
    let elsewhere: Vec<_> = keys::ALL
        .iter()
        .filter(|other| other.name() == key)
        .map(|other| format!("[{}]", other.section()))
        .collect();
    if !elsewhere.is_empty() {
        return format!("unknown key here; it belongs in {}", elsewhere.join(" or "));
    }
    let names: Vec<_> = keys::ALL
        .iter()
        .filter(|known| known.section() == section)
        .map(|known| known.name())
        .collect();
    match nearest(key, names.iter().copied()) {
        Some(name) => format!("unknown key; did you mean \"{name}\"?"),
        None => format!("unknown key; [{section}] has: {}", names.join(", ")),
    }
}

fn unknown_section(section: &str) -> String {
    let mut names: Vec<_> = keys::ALL.iter().map(|key| key.section()).collect();
    names.dedup();
    match nearest(section, names.iter().copied()) {
        Some(name) => format!("unknown section; did you mean [{name}]?"),
        None => format!("unknown section; there are: {}", names.join(", ")),
    }
}

fn outside_of_sections(name: &str) -> String {
    if is_section(name) {
        return format!("is a section; write [{name}] on a line of its own and the keys below it");
    }
    match keys::ALL.iter().find(|key| key.name() == name) {
        Some(key) => format!(
            "stands outside of a section; write it below [{}]",
            key.section()
        ),
        None => match nearest(name, keys::ALL.iter().map(|key| key.name())) {
            Some(name) => format!("unknown key outside of a section; did you mean \"{name}\"?"),
            None => "unknown key outside of a section; remove it".into(),
        },
    }
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
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
