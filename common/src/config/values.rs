//! Values of the right kind, read out of the layers.
//!
//! In a file the kinds are TOML's and are not bent: `"5"` is no number, 18.9 no whole one. In the
//! environment all is text, so numbers and flags are read from it here. A value that is refused
//! becomes a problem and is replaced by the default, so that checking goes on.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Value, ValueKind};
use jiff::{Span, SpanRelativeTo};

use super::unknown::nearest;
use super::{Default, Key, Layers};

impl Layers {
    /// A text; may be empty.
    pub fn text(&mut self, key: &Key) -> String {
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
    pub fn optional(&mut self, key: &Key) -> Option<String> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    /// Whether the value is this word.
    pub fn is_word(&self, key: &Key, word: &str) -> bool {
        matches!(self.value(key), ValueKind::String(text) if text == word)
    }

    /// A path; `${CREDENTIALS_DIRECTORY}` at its beginning is replaced. Nothing when it is empty.
    pub fn path(&mut self, key: &Key) -> Option<PathBuf> {
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
    pub fn whole(&mut self, key: &Key, range: RangeInclusive<i64>) -> i64 {
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
    pub fn number(&mut self, key: &Key, range: RangeInclusive<f64>) -> f64 {
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
    pub fn flag(&mut self, key: &Key) -> bool {
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
    pub fn duration(&mut self, key: &Key, range: RangeInclusive<Duration>) -> Duration {
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
    pub fn duration_or(
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
    pub fn bytes(&mut self, key: &Key, range: RangeInclusive<i64>) -> i64 {
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
    pub fn choice<T: Copy>(&mut self, key: &Key, words: &[(&str, T)], hint: &str) -> T {
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

    fn refuse<T>(&mut self, key: &Key, what: impl AsRef<str>) -> Option<T> {
        self.problem(key, what);
        None
    }
}

/// Reads "5s", "500ms", "1h30m", "1d". The error says what to write instead.
fn duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
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
pub fn in_words(duration: Duration) -> String {
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
