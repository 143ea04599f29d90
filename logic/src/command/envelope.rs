//! The envelope of a command: what a payload says, and whether it says it well.
//!
//! Only reading: what may be obeyed is for the queue to decide.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CommandSettings;
use crate::lighting::{Mode, RulesPatch};
use crate::time::rfc3339;

/// Larger payloads are refused unread.
const MAX_PAYLOAD: usize = 4096;

/// A command, well-formed.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The sender's name for it, 1 to 64 characters.
    pub id: Option<String>,
    /// What is asked.
    pub action: Action,
    /// When it was given, in milliseconds since 1970.
    pub issued_at: Option<i64>,
    /// When it stops being good, in milliseconds since 1970.
    pub expires_at: Option<i64>,
    /// Its place among the sender's commands.
    pub seq: Option<i64>,
    /// How long it holds the LED.
    pub lease: Option<Duration>,
    /// Where its sender wants the answer too.
    pub reply_to: Option<ReplyTo>,
}

/// Where the sender of a command wants the answer, besides the results topic (MQTT 5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// A topic of this device's own.
    pub topic: String,
    /// What the answer has to carry.
    pub correlation: Option<Vec<u8>>,
}

/// Who is to hear what became of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sender {
    /// The sender's name for it.
    pub id: Option<String>,
    /// Where the answer is wanted too.
    pub reply_to: Option<ReplyTo>,
}

/// What a command asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// LED on or off.
    Led(bool),
    /// Read the sensor and answer with the reading.
    ReadNow,
    /// Change the rules.
    Set {
        /// Those that are to change.
        patch: RulesPatch,
        /// Whether they outlive a restart.
        persist: bool,
    },
    /// End the daemon, to be started again.
    Restart,
    /// Restart the machine.
    Reboot,
}

/// The place of the last obeyed LED command among those of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandOrder {
    pub(super) seq: Option<i64>,
    pub(super) issued_at: Option<i64>,
}

impl Command {
    /// Who is to hear what became of it.
    pub fn sender(&self) -> Sender {
        Sender {
            id: self.id.clone(),
            reply_to: self.reply_to.clone(),
        }
    }

    pub(super) fn order(&self) -> CommandOrder {
        CommandOrder {
            seq: self.seq,
            issued_at: self.issued_at,
        }
    }

    /// Whether the sender gave it before the one at `place`, as far as both say so.
    pub(super) fn is_before(&self, other: CommandOrder) -> bool {
        match (self.issued_at, other.issued_at, self.seq, other.seq) {
            (Some(own), Some(other), Some(seq), Some(other_seq)) if own == other => seq < other_seq,
            (Some(own), Some(other), ..) => own < other,
            (_, _, Some(own), Some(other)) => own < other,
            _ => false,
        }
    }
}

/// Why a payload is no command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidCommand {
    /// Its id, if it had a good one.
    pub id: Option<String>,
    /// What is wrong with it, in words.
    pub reason: String,
}

/// A payload of so many bytes that nobody kept it.
pub(super) fn too_large(bytes: usize) -> InvalidCommand {
    InvalidCommand {
        id: None,
        reason: format!("{bytes} bytes; at most {MAX_PAYLOAD}"),
    }
}

/// Reads a payload: the JSON envelope or one of the two plain payloads.
///
/// # Errors
/// [`InvalidCommand`] with the first thing that is wrong.
pub fn parse(payload: &[u8], settings: &CommandSettings) -> Result<Command, InvalidCommand> {
    if payload.len() > MAX_PAYLOAD {
        return Err(too_large(payload.len()));
    }
    for (plain, led_on) in [(&settings.on, true), (&settings.off, false)] {
        if !plain.is_empty() && payload == plain.as_bytes() {
            return Ok(Command {
                id: None,
                action: Action::Led(led_on),
                issued_at: None,
                expires_at: None,
                seq: None,
                lease: None,
                reply_to: None,
            });
        }
    }
    let unfit = |reason: String| InvalidCommand { id: None, reason };
    let value: Value =
        serde_json::from_slice(payload).map_err(|error| unfit(format!("not JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(unfit(
            "not a JSON object such as {\"led_on\": true}".to_string(),
        ));
    };
    let id = id(&fields).map_err(unfit)?;
    envelope(&fields, id.clone()).map_err(|reason| InvalidCommand { id, reason })
}

fn envelope(fields: &Map<String, Value>, id: Option<String>) -> Result<Command, String> {
    Ok(Command {
        id,
        action: action(fields)?,
        issued_at: time(fields, "issued_at")?,
        expires_at: time(fields, "expires_at")?,
        seq: match present(fields, "seq") {
            None => None,
            Some(value) => Some(value.as_i64().ok_or("seq is not an integer")?),
        },
        lease: match present(fields, "lease") {
            None => None,
            Some(value) => Some(duration(value).ok_or("lease is not a duration such as \"30s\"")?),
        },
        reply_to: None,
    })
}

fn action(fields: &Map<String, Value>) -> Result<Action, String> {
    match (led_on(fields)?, present(fields, "command")) {
        (Some(led_on), None) => Ok(Action::Led(led_on)),
        (None, None) => Err("neither led_on nor command in it".into()),
        (Some(_), Some(_)) => Err("both led_on and command in it".into()),
        (None, Some(Value::String(command))) => match command.as_str() {
            "read-now" => Ok(Action::ReadNow),
            "set" => set(fields),
            "restart" => Ok(Action::Restart),
            "reboot" => Ok(Action::Reboot),
            _ => Err("unknown command; there are read-now, set, restart and reboot".into()),
        },
        (None, Some(_)) => Err("command is not a text".into()),
    }
}

/// `led_on`, or `state` as Home Assistant's lights have it.
fn led_on(fields: &Map<String, Value>) -> Result<Option<bool>, String> {
    match (present(fields, "led_on"), present(fields, "state")) {
        (None, None) => Ok(None),
        (Some(Value::Bool(led_on)), None) => Ok(Some(*led_on)),
        (Some(_), None) => Err("led_on is neither true nor false".into()),
        (None, Some(Value::String(state))) if state == "ON" => Ok(Some(true)),
        (None, Some(Value::String(state))) if state == "OFF" => Ok(Some(false)),
        (None, Some(_)) => Err("state is neither \"ON\" nor \"OFF\"".into()),
        (Some(_), Some(_)) => Err("both led_on and state in it".into()),
    }
}

fn set(fields: &Map<String, Value>) -> Result<Action, String> {
    const ENVELOPE: [&str; 6] = ["command", "id", "issued_at", "expires_at", "seq", "lease"];
    const RULES: [&str; 4] = ["on_below", "off_above", "mode", "interval"];
    const TAKES: &str = "set takes on_below, off_above, mode, interval and persist";
    let known = |key: &&String| {
        let key = key.as_str();
        ENVELOPE.contains(&key) || RULES.contains(&key) || key == "persist"
    };
    if let Some(key) = fields.keys().find(|key| !known(key)) {
        let key: String = key.chars().take(40).collect();
        return Err(format!("unknown key {key}; {TAKES}"));
    }
    if RULES.iter().all(|key| present(fields, key).is_none()) {
        return Err(format!("nothing to set; {TAKES}"));
    }
    let number = |key: &str| match present(fields, key) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(format!("{key} is not a number")),
        },
    };
    let patch = RulesPatch {
        on_below: number("on_below")?,
        off_above: number("off_above")?,
        mode: match present(fields, "mode") {
            None => None,
            Some(value) => Some(
                Mode::deserialize(value).map_err(|_| "mode is none of auto, local and remote")?,
            ),
        },
        interval: match present(fields, "interval") {
            None => None,
            Some(value) => {
                Some(duration(value).ok_or("interval is not a duration such as \"5s\"")?)
            }
        },
    };
    let persist = match present(fields, "persist") {
        None => false,
        Some(value) => value.as_bool().ok_or("persist is neither true nor false")?,
    };
    Ok(Action::Set { patch, persist })
}

fn id(fields: &Map<String, Value>) -> Result<Option<String>, String> {
    match present(fields, "id") {
        None => Ok(None),
        Some(Value::String(id)) if (1..=64).contains(&id.chars().count()) => Ok(Some(id.clone())),
        Some(_) => Err("id is not a text of 1 to 64 characters".into()),
    }
}

fn time(fields: &Map<String, Value>, key: &str) -> Result<Option<i64>, String> {
    match present(fields, key) {
        None => Ok(None),
        Some(Value::String(text)) => match text.parse::<jiff::Timestamp>() {
            Ok(timestamp) => Ok(Some(timestamp.as_millisecond())),
            Err(_) => Err(format!(
                "{key} is not an RFC 3339 time such as \"2026-11-20T17:03:11Z\""
            )),
        },
        Some(_) => Err(format!("{key} is not a text")),
    }
}

/// JSON's null means absent.
fn present<'a>(fields: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    fields.get(key).filter(|value| !value.is_null())
}

/// A duration such as "30s", not negative.
fn duration(value: &Value) -> Option<Duration> {
    let text = value.as_str()?;
    let duration: jiff::SignedDuration = text.parse().ok()?;
    Duration::try_from(duration).ok()
}

pub(super) fn expired(command: &Command, wall_ms: i64) -> Option<String> {
    let expires_at = command.expires_at?;
    // A clock that is not set is behind, not ahead: what it calls expired is expired.
    (expires_at <= wall_ms).then(|| {
        format!(
            "it was good until {}, and it is {}",
            rfc3339(expires_at),
            rfc3339(wall_ms)
        )
    })
}
