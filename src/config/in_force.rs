//! The rules for the LED that will be in force, and which of their sources gives each: the configuration's
//! layers, or what a command set for good. Shown by `check` and `doctor`.

use std::fmt;
use std::path::Path;

use super::Config;
use crate::logic::lighting::{Rules, RulesPatch};

/// Which layer each rule of the configuration is from: `default`, the file's name or the variable's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleOrigins {
    /// Of `control.mode`.
    pub mode: String,
    /// Of `control.on_below`.
    pub on_below: String,
    /// Of `control.off_above`.
    pub off_above: String,
    /// Of `sensor.interval`.
    pub interval: String,
}

/// The rules in force, and why each is as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct RulesInForce {
    /// As the daemon will follow them.
    pub rules: Rules,
    /// What was kept and is not followed, and why; in words.
    pub problem: Option<String>,
    lines: [String; 4],
}

impl Config {
    /// The rules that the daemon will follow; `kept` is what a command set for good, in the file at `place`.
    pub fn rules_in_force(&self, kept: Result<RulesPatch, String>, place: &Path) -> RulesInForce {
        let configured = self.lighting.rules();
        let place = place.display();
        let checked = kept.and_then(|patch| {
            let least = self.lighting.least_interval;
            match patch.over(configured).check(least) {
                Ok(()) => Ok(patch),
                Err(why) => Err(format!(
                    "{place}: {why}; correct the configuration, or remove the file"
                )),
            }
        });
        let (patch, problem) = match checked {
            Ok(patch) => (patch, None),
            Err(why) => (RulesPatch::default(), Some(why)),
        };
        let rules = patch.over(configured);
        let origins = &self.rule_origins;
        let line = |name: &str, now: String, was: String, is_kept: bool, origin: &str| match is_kept
        {
            true => format!("{name} {now} (kept by a command in {place}; {was} by {origin})"),
            false => format!("{name} {now} ({origin})"),
        };
        let mode = |rules: &Rules| rules.mode.name().to_owned();
        let interval = |rules: &Rules| format!("{:?}", rules.interval);
        let lines = [
            line(
                "mode",
                mode(&rules),
                mode(&configured),
                patch.mode.is_some(),
                &origins.mode,
            ),
            line(
                "on_below",
                rules.on_below.to_string(),
                configured.on_below.to_string(),
                patch.on_below.is_some(),
                &origins.on_below,
            ),
            line(
                "off_above",
                rules.off_above.to_string(),
                configured.off_above.to_string(),
                patch.off_above.is_some(),
                &origins.off_above,
            ),
            line(
                "interval",
                interval(&rules),
                interval(&configured),
                patch.interval.is_some(),
                &origins.interval,
            ),
        ];
        RulesInForce {
            rules,
            problem,
            lines,
        }
    }
}

impl RulesInForce {
    /// A line for each rule, with its source.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

/// Four lines, in the form of the summary.
impl fmt::Display for RulesInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, line) in ["rules", "", "", ""].iter().zip(&self.lines) {
            writeln!(f, "{name:<14} {line}")?;
        }
        Ok(())
    }
}
