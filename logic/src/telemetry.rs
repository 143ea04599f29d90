//! Records: what they are, when a reading is worth one, and how they look on the wire.
//!
//! A [`Record`] is one thing worth telling, a reading or an event, with the key (`run`, `seq`) that is
//! never used twice. The `Recorder` numbers the records of this run. Publishing and keeping them is the
//! business of `delivery`; the shell stores them as they are here (serde) and never looks inside.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::command::Outcome;
use super::time::{Clock, ClockState, Stamp, rfc3339};

/// When a reading becomes a record.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetrySettings {
    /// Least time between two recorded readings; zero records each one.
    pub interval: Duration,
    /// A reading this close to the last recorded one is not recorded; zero records each one.
    pub deadband: f64,
    /// What an outage keeps.
    pub keep: OutageReadings,
}

/// What to keep of the readings of an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutageReadings {
    /// Every one.
    All,
    /// The newest alone; the others never become records.
    Latest,
}

/// One thing worth telling.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The life of the daemon that made it.
    pub run: Uuid,
    /// Its number in that run: 1, 2, 3 ...
    pub seq: u64,
    /// The start of the machine that `stamp.boot_ms` counts from.
    pub boot_id: Uuid,
    /// When it was made.
    pub stamp: Stamp,
    /// What it tells.
    pub body: Body,
}

/// What a record tells. Stored as JSON in this very form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Body {
    /// Something happened.
    Event(Event),
    /// One sensor result.
    Reading {
        /// In the sensor's unit; always finite.
        #[serde(serialize_with = "plain_number")]
        light: f64,
        /// The LED as last written or read back when the light was read; `None` if it never was.
        led_on: Option<bool>,
        /// Whether the LED can be written.
        #[serde(default = "yes", skip_serializing_if = "is_so")]
        led_ok: bool,
    },
}

/// A record that is not a reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The first record of a run.
    Started {
        /// The version of the program.
        version: String,
        /// The run before this one, if the store knows it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous_run: Option<Uuid>,
        /// The highest `seq` of that run known on disk.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous_seq: Option<u64>,
    },
    /// The LED was switched; or, with `led_ok`, it cannot be written, or can again.
    Led {
        /// As last written or read back; `None` if it never was.
        led_on: Option<bool>,
        /// Whether it can be written; only where that has changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        led_ok: Option<bool>,
        /// Who decides: `start`, `remote`, `fallback` or `fail-safe`.
        by: String,
        /// Why, in words.
        why: String,
    },
    /// An outage is over.
    Outage(Box<OutageReport>),
    /// An instruction to the device was carried out or refused.
    Command {
        /// Its id, if it had one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// What was asked.
        command: String,
        /// What became of it.
        result: Outcome,
        /// Why, in words.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// The sensor failed or works again.
    Sensor {
        /// Whether it gives readings.
        ok: bool,
        /// Why, in words.
        why: String,
    },
    /// Nobody listens to the readings, as the broker says; or somebody does again.
    Heard {
        /// Whether somebody does.
        heard: bool,
        /// Since when nobody did, RFC 3339.
        since: String,
    },
    /// The wall clock was set.
    Clock {
        /// How far it moved, in seconds; negative when it was set back.
        moved_s: f64,
        /// What it is worth now.
        state: ClockState,
    },
}

impl OutageReport {
    /// How many records were lost, for a person.
    pub fn lost_in_words(&self) -> String {
        match self.lost {
            Some(lost) => format!("{lost} lost"),
            None => "unknown how many lost (QoS 0)".into(),
        }
    }
}

/// The account of one outage. Times are of the same clock as the record's `ts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutageReport {
    /// What was away: `link` or `server`.
    pub cause: String,
    /// When it began, RFC 3339.
    pub began: String,
    /// When it ended, RFC 3339.
    pub ended: String,
    /// How long it was, in seconds on the boot clock.
    pub seconds: f64,
    /// Readings recorded meanwhile.
    pub readings: u64,
    /// Events recorded meanwhile.
    pub events: u64,
    /// LED changes meanwhile.
    pub led_changes: u64,
    /// Records given up meanwhile; `None` at QoS 0, where nobody can know.
    pub lost: Option<u64>,
    /// Sessions with the broker meanwhile that did not hold.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub short_sessions: u64,
    /// Why the link was lost, in words.
    pub why: String,
}

/// Records of one run that were given up. It is the gap itself, in its place in the order, and has no
/// `run` and `seq` of its own; nor a time, since nobody knows when damage was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The run they belonged to.
    pub of_run: Uuid,
    /// The first one.
    pub from_seq: u64,
    /// The last one.
    pub to_seq: u64,
    /// How many in that range were given up.
    pub count: u64,
    /// `backlog-full`, `memory-full`, `not-stored`, `damaged`, `unreadable`, `too-large` or `refused`.
    pub reason: String,
}

impl Loss {
    /// The loss as one JSON object. It always goes to the history topic.
    pub fn wire(&self) -> String {
        #[derive(Serialize)]
        struct Wire<'a> {
            event: &'a str,
            #[serde(flatten)]
            loss: &'a Loss,
            replayed: bool,
        }
        let wire = Wire {
            event: "loss",
            loss: self,
            replayed: true,
        };
        serde_json::to_string(&wire).unwrap_or_default()
    }
}

/// The form of records as they are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PayloadFormat {
    /// One flat object.
    #[default]
    Flat,
    /// ThingsBoard's: `{"ts":1795176000000,"values":{...}}`. A time that this machine could not know is not given to
    /// ThingsBoard as one: such a record is flat, and what it comes with tells that.
    ThingsBoard,
}

impl Record {
    /// The record as one JSON object, the fields in the documented order.
    pub fn wire(&self, clock: &Clock, replayed: bool) -> String {
        let mut json = Vec::new();
        self.write_flat(clock, replayed, true, &mut json);
        String::from_utf8(json).unwrap_or_default()
    }

    /// The record in this form.
    pub fn published(&self, format: PayloadFormat, clock: &Clock, replayed: bool) -> String {
        let mut json = Vec::new();
        self.write_published(format, clock, replayed, &mut json);
        String::from_utf8(json).unwrap_or_default()
    }

    /// The same, behind what `out` holds.
    pub(crate) fn write_published(
        &self,
        format: PayloadFormat,
        clock: &Clock,
        replayed: bool,
        out: &mut Vec<u8>,
    ) {
        match (format, clock.claim(self.stamp, self.boot_id)) {
            (PayloadFormat::ThingsBoard, (wall_ms, ClockState::Synced | ClockState::Corrected)) => {
                out.extend_from_slice(format!("{{\"ts\":{wall_ms},\"values\":").as_bytes());
                self.write_flat(clock, replayed, false, out);
                out.push(b'}');
            }
            _ => self.write_flat(clock, replayed, true, out),
        }
    }

    /// As one flat object, with its time in it or without.
    fn write_flat(&self, clock: &Clock, replayed: bool, has_time: bool, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Rest {
            run: Uuid,
            seq: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            ts: Option<String>,
            clock: ClockState,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            replayed: bool,
        }
        let (wall_ms, state) = clock.claim(self.stamp, self.boot_id);
        let rest = Rest {
            run: self.run,
            seq: self.seq,
            ts: has_time.then(|| rfc3339(wall_ms)),
            clock: state,
            replayed,
        };
        // Two objects made one: serde's own way to flatten costs several times as much, and each record of a
        // replay comes through here. Plain structs into memory: no way to fail.
        out.reserve(256);
        let _ = serde_json::to_writer(&mut *out, &self.body);
        out.pop();
        let joint = out.len();
        let _ = serde_json::to_writer(&mut *out, &rest);
        out[joint] = b',';
    }

    /// Whether it is a reading.
    pub(crate) fn is_reading(&self) -> bool {
        matches!(self.body, Body::Reading { .. })
    }
}

/// Numbers the records of this run and decides which readings become one.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    settings: TelemetrySettings,
    run: Uuid,
    boot_id: Uuid,
    last_seq: u64,
    recorded: Option<(Duration, f64)>,
    /// The newest reading of an outage, with `keep = "latest"`.
    kept: Option<(Body, Stamp)>,
}

impl Recorder {
    /// A new run. Its first number is taken: it belongs to the event `started`.
    pub(crate) fn new(settings: TelemetrySettings, run: Uuid, boot_id: Uuid) -> Self {
        Self {
            settings,
            run,
            boot_id,
            last_seq: 1,
            recorded: None,
            kept: None,
        }
    }

    /// Whether an outage keeps only the newest reading.
    pub(crate) fn keeps_latest(&self) -> bool {
        self.settings.keep == OutageReadings::Latest
    }

    /// Keeps a reading, in place of the one before, until it becomes a record.
    pub(crate) fn keep(&mut self, body: Body, stamp: Stamp) {
        self.kept = Some((body, stamp));
    }

    /// Makes a record of the reading that was kept.
    pub(crate) fn take_kept(&mut self) -> Option<Record> {
        let (body, stamp) = self.kept.take()?;
        Some(self.record(body, stamp))
    }

    /// The number of the newest record.
    pub(crate) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Makes the first record, which is finished only when the store has named the run before.
    pub(crate) fn first(&self, body: Body, stamp: Stamp) -> Record {
        Record {
            run: self.run,
            seq: 1,
            boot_id: self.boot_id,
            stamp,
            body,
        }
    }

    /// Makes the next record.
    pub(crate) fn record(&mut self, body: Body, stamp: Stamp) -> Record {
        self.last_seq += 1;
        Record {
            run: self.run,
            seq: self.last_seq,
            boot_id: self.boot_id,
            stamp,
            body,
        }
    }

    /// Whether a reading of `light` is worth a record now; if so it counts as the last recorded one.
    pub(crate) fn should_record(&mut self, light: f64, now: Duration) -> bool {
        let Some((at, last)) = self.recorded else {
            self.recorded = Some((now, light));
            return true;
        };
        let interval = self.settings.interval;
        // A tick may come a little early or late: half of a tenth of the interval is not a skipped one.
        let due = now + interval / 20 >= at + interval;
        let moved = self.settings.deadband <= 0.0 || (light - last).abs() >= self.settings.deadband;
        if due && moved {
            // Keep the beat of the interval instead of drifting by each tick's lateness.
            let beat = at + interval;
            let next = if now < beat + interval { beat } else { now };
            self.recorded = Some((next, light));
        }
        due && moved
    }
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_so(is: &bool) -> bool {
    *is
}

/// A number outside of a record, written as those inside are.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct PlainNumber(#[serde(serialize_with = "plain_number")] pub(super) f64);

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// 243.0 is written as 243, as the lesson's device does.
fn plain_number<S: serde::Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < EXACT {
        serializer.serialize_i64(*number as i64)
    } else {
        serializer.serialize_f64(*number)
    }
}
