//! Records as the server receives them.
//!
//! Reads them from the wire, a second time and apart from `logic::telemetry` that wrote them, as any
//! consumer would. Judges nothing. Used by `server` (the topics) and `account`.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::logic::telemetry::OutageReport;

/// The topic on which a record came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Live readings.
    Telemetry,
    /// Live events.
    Events,
    /// What an outage held back.
    History,
}

/// One record as the server received it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Received {
    /// On which topic.
    pub(super) lane: Lane,
    /// Its number in its run.
    pub(super) seq: u64,
    /// When it was made, in milliseconds since 1970 on the agent's clock.
    pub(super) at_ms: i64,
    /// What it tells.
    pub(super) tells: Tells,
}

/// What a record tells, as far as the account needs it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tells {
    /// The light, and the LED when it was read.
    Reading { light: f64, led_on: bool },
    /// The LED changed.
    Led { led_on: bool, by: String },
    /// An outage is over.
    Outage(OutageReport),
    /// A run began; the run before it, and its highest number known on the disk.
    Started { previous: Option<(Uuid, u64)> },
    /// Another event.
    Other,
}

/// A record of an agent: its run, whether it says that it is replayed, and itself. None for what is
/// no such record.
pub(super) fn read(lane: Lane, record: &Value) -> Option<(Uuid, bool, Received)> {
    #[derive(Deserialize)]
    struct Wire {
        run: Uuid,
        seq: u64,
        ts: String,
        #[serde(default)]
        replayed: bool,
        light: Option<f64>,
        led_on: Option<bool>,
        event: Option<String>,
        #[serde(default)]
        by: String,
        previous_run: Option<Uuid>,
        previous_seq: Option<u64>,
    }
    let wire = Wire::deserialize(record).ok()?;
    let tells = match (wire.event.as_deref(), wire.light, wire.led_on) {
        (None, Some(light), Some(led_on)) => Tells::Reading { light, led_on },
        (Some("led"), _, Some(led_on)) => Tells::Led {
            led_on,
            by: wire.by,
        },
        // An LED whose state nobody knows is of no account.
        (None, Some(_), None) => Tells::Other,
        (Some("started"), ..) => Tells::Started {
            previous: wire.previous_run.zip(wire.previous_seq),
        },
        (Some("outage"), ..) => Tells::Outage(OutageReport::deserialize(record).ok()?),
        (Some(_), ..) => Tells::Other,
        (None, ..) => return None,
    };
    let received = Received {
        lane,
        seq: wire.seq,
        at_ms: ms(&wire.ts)?,
        tells,
    };
    Some((wire.run, wire.replayed, received))
}

/// An RFC 3339 time in milliseconds since 1970.
pub(super) fn ms(time: &str) -> Option<i64> {
    time.parse().ok().map(Timestamp::as_millisecond)
}
