//! draft
use std::time::Duration;

/// The rules for the LED.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
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
}

/// Who may decide about the LED.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The server while its lease lasts, else the local rule.
    Auto,
    /// The local rule alone.
    Local,
    /// The server alone: without it the LED stays as it is.
    Remote,
}

/// How long a command holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// So long after the last sign of life.
    For(Duration),
    /// As long as the link stands.
    WhileLinked,
}

/// The LED when nothing is to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailSafe {
    /// On.
    On,
    /// Off.
    Off,
    /// As it is.
    Keep,
}
