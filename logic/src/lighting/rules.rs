//! What the decision about the LED goes by: settings, and the rules in them that a command may change.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::words;

/// The rules for the LED.
#[derive(Debug, Clone, PartialEq)]
pub struct LightingSettings {
    /// Who may decide.
    pub mode: Mode,
    /// The local rule switches on below this light, in the sensor's unit.
    pub on_below: f64,
    /// The local rule switches off above this light; not less than `on_below`.
    pub off_above: f64,
    /// Least time between a change of the LED and the next one by the local rule.
    pub hold: Duration,
    /// How long a command holds the LED without a sign of life from the server.
    pub lease: Lease,
    /// The LED when neither the server nor the sensor can be trusted.
    pub fail_safe: FailSafe,
    /// How often the sensor is read.
    pub interval: Duration,
    /// The sensor cannot be read more often than this.
    pub least_interval: Duration,
    /// A sensor that gives the very same number for so long is not believed; zero believes it.
    pub frozen_after: Duration,
}

/// The rules that a command may change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Who may decide.
    pub mode: Mode,
    /// The local rule switches on below this light, in the sensor's unit.
    pub on_below: f64,
    /// The local rule switches off above this light; not less than `on_below`.
    pub off_above: f64,
    /// How often the sensor is read; 10 ms to 1 day.
    #[serde(rename = "interval_s", with = "in_seconds")]
    pub interval: Duration,
}

/// A duration as a number of seconds.
mod in_seconds {
    use super::Duration;
    use crate::words::seconds;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(
        time: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(seconds(*time))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds).map_err(D::Error::custom)
    }
}

/// Some of the rules: those that a command sets; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RulesPatch {
    /// See [`Rules::mode`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// See [`Rules::on_below`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_below: Option<f64>,
    /// See [`Rules::off_above`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off_above: Option<f64>,
    /// See [`Rules::interval`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
}

impl RulesPatch {
    /// The rules that come of it.
    pub fn over(&self, rules: Rules) -> Rules {
        Rules {
            mode: self.mode.unwrap_or(rules.mode),
            on_below: self.on_below.unwrap_or(rules.on_below),
            off_above: self.off_above.unwrap_or(rules.off_above),
            interval: self.interval.unwrap_or(rules.interval),
        }
    }

    /// This patch with a newer one over it.
    pub fn then(&self, newer: &Self) -> Self {
        Self {
            mode: newer.mode.or(self.mode),
            on_below: newer.on_below.or(self.on_below),
            off_above: newer.off_above.or(self.off_above),
            interval: newer.interval.or(self.interval),
        }
    }

    /// Whether it sets nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What it sets, such as `on_below 250, interval 5s`.
impl fmt::Display for RulesPatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.mode.map(|mode| format!("mode {}", mode.name())),
            self.on_below.map(|light| format!("on_below {light}")),
            self.off_above.map(|light| format!("off_above {light}")),
            self.interval
                .map(|interval| format!("interval {}", words::span(interval))),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

impl Rules {
    /// What is wrong with them, in words, for a sensor that cannot be read more often than each
    /// `least_interval`.
    ///
    /// # Errors
    /// The first rule that the configuration would not take either.
    pub fn check(&self, least_interval: Duration) -> Result<(), String> {
        let Self {
            on_below,
            off_above,
            interval,
            ..
        } = *self;
        if !on_below.is_finite() || !off_above.is_finite() {
            return Err("on_below and off_above must be numbers".into());
        }
        if on_below > off_above {
            return Err(format!(
                "on_below {on_below} would be above off_above {off_above}"
            ));
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(86_400)).contains(&interval) {
            return Err("interval is not within 10ms and 1 day".into());
        }
        if interval < least_interval {
            return Err(format!(
                "interval {} is shorter than a measurement of the sensor; use {} or more",
                words::span(interval),
                words::span(least_interval)
            ));
        }
        Ok(())
    }
}

impl LightingSettings {
    /// The rules in them.
    pub fn rules(&self) -> Rules {
        Rules {
            mode: self.mode,
            on_below: self.on_below,
            off_above: self.off_above,
            interval: self.interval,
        }
    }

    /// Takes rules that are already checked.
    pub fn set_rules(&mut self, rules: Rules) {
        let Rules {
            mode,
            on_below,
            off_above,
            interval,
        } = rules;
        self.mode = mode;
        self.on_below = on_below;
        self.off_above = off_above;
        self.interval = interval;
    }
}

/// Who may decide about the LED.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The server while its lease lasts, else the local rule.
    Auto,
    /// The local rule alone.
    Local,
    /// The server alone: without it the LED stays as it is.
    Remote,
}

impl Mode {
    /// Its name in configuration and commands.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Auto => "auto",
            Mode::Local => "local",
            Mode::Remote => "remote",
        }
    }
}

/// How long a command holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// So long after the last sign of life.
    For(Duration),
    /// As long as the link is up.
    WhileLinked,
    /// As long as the server is there, and so long after: the link is up, the server has not said that it goes
    /// away, and the broker does not say that nobody listens to `state`.
    WhilePresent(Duration),
}

/// The LED when nothing is to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailSafe {
    /// On.
    On,
    /// Off.
    Off,
    /// As it is.
    Keep,
}

impl Lease {
    /// When it ends if it begins now; with it whether the server is there.
    pub(super) fn end(self, now: Duration, is_there: bool) -> Option<Duration> {
        match self {
            Lease::For(lease) => Some(now + lease),
            Lease::WhilePresent(lease) if !is_there => Some(now + lease),
            Lease::WhileLinked | Lease::WhilePresent(_) => None,
        }
    }
}
