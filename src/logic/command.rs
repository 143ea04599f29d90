//! draft
use std::time::Duration;

/// What a command may look like and do.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Which of several commands counts.
    pub order: Order,
    /// How long a hole in the sequence is waited for.
    pub gap_wait: Duration,
    /// A plain payload taken as "LED on"; empty for none.
    pub on: String,
    /// A plain payload taken as "LED off"; empty for none.
    pub off: String,
    /// Whether `reboot` is obeyed.
    pub allow_reboot: bool,
    /// Whether a command that the broker kept is obeyed.
    pub accept_retained: bool,
}

/// Which of several commands counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The newest.
    Latest,
    /// Each, in the order of `seq`.
    Sequence,
}
