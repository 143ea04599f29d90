//! The pure half: everything that decides, and nothing that touches the world.
//!
//! The contract with the shell (`daemon.rs`): call [`Controller::handle`], or `handle_all`, with what happened
//! and the time, drain [`Controller::poll_output`] and carry each order out, then wait for the next input or
//! for [`Controller::next_deadline`], whichever is first. No I/O, no clock, no async, no channels:
//! `now` is an argument and effects are data, so that a test plays a day in a millisecond.
//!
//! Each decision has one home: [`lighting`] what the LED is to be, `led` how it is, [`command`] what a
//! command may do, [`telemetry`] what is recorded, [`delivery`] what is published, stored and discarded,
//! [`link`] what the ends of sessions mean, [`outage`] the account, [`time`] the clocks. The controller hands
//! each input to the part that it concerns, and what has expired of [`timers`]; start-up, polling the sensor, the
//! announcements of `state` and to Home Assistant, rules to keep, the handover and a stop each have a file beside it.

// `pub` means used from another crate: dead code shows itself.
#![warn(unreachable_pub)]
#![deny(clippy::disallowed_methods)]

pub mod account;
pub mod backoff;
pub mod command;
mod controller;
pub mod counters;
pub mod delivery;
pub mod handover;
pub mod home_assistant;
pub mod intervals;
mod led;
pub mod lighting;
pub mod link;
pub mod outage;
pub mod past;
pub mod telemetry;
pub mod time;
pub mod timers;
mod view;
pub mod words;

pub use controller::{Controller, RunInfo, Settings};
pub use view::View;

use uuid::Uuid;

use command::ReplyTo;
use delivery::Message;
use handover::Handover;
use lighting::RulesPatch;
use link::{Ending, Inbound, Offer, Refusal};
use telemetry::{Loss, PayloadFormat, Record};
use time::Clock;

/// The place of a record or gap in the backlog: runs in the order of their start, then by (first) `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Number of the run in the backlog, counting from 1.
    pub run_number: u64,
    /// The record's number in its run.
    pub seq: u64,
}

/// Records of one run, `from` to `to` inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange {
    /// Number of the run.
    pub run_number: u64,
    /// The first `seq`.
    pub from: u64,
    /// The last `seq`.
    pub to: u64,
}

/// What the backlog delivers in order: a record, or what is left of records that were given up.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A record.
    Record(Record),
    /// Records of one run that were given up. No record that is still to be delivered is in its range.
    Gap(Loss),
}

impl Entry {
    /// The run that it belongs to.
    pub fn run(&self) -> Uuid {
        match self {
            Entry::Record(record) => record.run,
            Entry::Gap(gap) => gap.of_run,
        }
    }

    /// The first `seq` of it.
    pub fn first(&self) -> u64 {
        match self {
            Entry::Record(record) => record.seq,
            Entry::Gap(gap) => gap.from_seq,
        }
    }

    /// The last `seq` of it.
    pub fn last(&self) -> u64 {
        match self {
            Entry::Record(record) => record.seq,
            Entry::Gap(gap) => gap.to_seq,
        }
    }

    /// When it was made, in milliseconds since 1970 on the clock of then; of a gap nobody knows.
    pub fn wall_ms(&self) -> Option<i64> {
        match self {
            Entry::Record(record) => Some(record.stamp.wall_ms),
            Entry::Gap(_) => None,
        }
    }

    /// As one JSON object on the history topic, or with `replayed` false as it was made.
    pub fn wire(&self, format: PayloadFormat, clock: &Clock, replayed: bool) -> String {
        match self {
            Entry::Record(record) => record.published(format, clock, replayed),
            Entry::Gap(gap) => gap.wire(),
        }
    }

    /// As one JSON object on the history topic, behind what `out` holds.
    pub(crate) fn write_wire(&self, format: PayloadFormat, clock: &Clock, out: &mut Vec<u8>) {
        match self {
            Entry::Record(record) => record.write_published(format, clock, true, out),
            Entry::Gap(gap) => out.extend_from_slice(gap.wire().as_bytes()),
        }
    }
}

/// What the store says when it has been opened.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Opened {
    /// Number of this run.
    pub run_number: u64,
    /// The run before this one and the highest `seq` of it known on disk.
    pub previous: Option<(Uuid, u64)>,
    /// Records and gaps in the store.
    pub records: u64,
    /// When the oldest of them was made, in milliseconds since 1970 on the clock of then.
    pub oldest_ms: Option<i64>,
    /// Boots whose time became known, and what makes a time on their boot clock a wall time, in
    /// milliseconds.
    pub clocks: Vec<(Uuid, i64)>,
    /// Ids of commands already obeyed, oldest first.
    pub command_ids: Vec<String>,
}

/// What happened; always in the past tense.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The sensor gave a reading, finite and in its unit.
    Read(f64),
    /// The sensor gave none, and why.
    ReadFailed(String),
    /// The LED is `led_on`, read back after it was written if it had to be.
    LedWritten {
        /// As it is.
        led_on: bool,
        /// As it was found before, where that can be told.
        was: Option<bool>,
    },
    /// The LED could not be written.
    LedFailed {
        /// Why, in words.
        why: String,
        /// As it was found, where it could be read.
        seen: Option<bool>,
    },
    /// What the broker offers in the session that stands next.
    Offered(Offer),
    /// A session with the broker stands.
    LinkUp,
    /// It does not, or could not be made.
    LinkDown {
        /// Why, in words.
        why: String,
        /// How it ended.
        ending: Ending,
    },
    /// The broker has answered the publication or subscription with this token.
    Acked(u64),
    /// The broker has taken the publication with this token, and nobody listens on its topic.
    Unheard(u64),
    /// The broker has refused the publication with this token.
    PublicationRefused {
        /// Which.
        token: u64,
        /// What kind of refusal it is.
        refusal: Refusal,
        /// The broker's reason, for a person.
        why: String,
    },
    /// The broker has refused the subscription with this token.
    SubscriptionRefused {
        /// Which.
        token: u64,
        /// The broker's reason, for a person; empty where it gave none.
        why: String,
    },
    /// Something came in on the commands topic.
    CommandReceived {
        /// As it came.
        payload: Vec<u8>,
        /// It was not sent now but kept by the broker.
        retained: bool,
        /// Where the answer is wanted too: a topic of this device, and none of those that it has a use for.
        reply_to: Option<ReplyTo>,
    },
    /// Something came in on the commands topic that was too large to be kept.
    CommandTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Something came in on the acks topic.
    ServerAcked(Vec<u8>),
    /// Something came in on the server's status topic.
    ServerStatus {
        /// As it came.
        payload: Vec<u8>,
        /// It was not sent now but kept by the broker.
        retained: bool,
    },
    /// Something came in on Home Assistant's status topic, where that is not the server's.
    HomeAssistantStatus {
        /// As it came.
        payload: Vec<u8>,
        /// It was not sent now but kept by the broker.
        retained: bool,
    },
    /// The topic on which an earlier run has announced the device to Home Assistant, if one has.
    AnnouncedFound(Option<String>),
    /// Bytes that the program has had the system write to storage today; none where that is not counted.
    WrittenCounted(Option<u64>),
    /// What commands of earlier runs set with `persist`.
    RulesFound {
        /// What they set; empty when they set nothing.
        patch: RulesPatch,
        /// Where it was kept, for a person.
        place: String,
    },
    /// What they set cannot be known, and why.
    RulesUnusable(String),
    /// The backlog is open.
    BacklogOpened(Opened),
    /// The entries handed over with the last `Append` are on the disk, synced.
    Stored {
        /// Records and gaps in the store now.
        records: u64,
        /// Records that the store gave up since the last time: gaps say which.
        lost: counters::StoreLosses,
    },
    /// They are not; they must be handed over again.
    StoreFailed(String),
    /// A page of the backlog, oldest first.
    Fetched {
        /// The entries that follow the key asked for.
        entries: Vec<(Key, Entry)>,
        /// Whether the store has none after these.
        end: bool,
    },
    /// A deadline has come.
    DeadlineReached,
    /// The daemon was asked to stop.
    ShutdownAsked,
}

/// What is to be done; always an order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Read the sensor once and answer with `Read` or `ReadFailed`.
    ReadSensor,
    /// The reading under way hangs: what it still answers does not count, and it must not keep the next one
    /// waiting.
    GiveUpReading,
    /// Make the LED so, if it is not, and answer with `LedWritten` or `LedFailed`.
    SetLed(bool),
    /// The last `SetLed` hangs: what it still answers does not count, and it must not keep the next one waiting.
    GiveUpLed,
    /// Make a session with the broker and answer with `LinkUp` or `LinkDown`.
    Connect,
    /// Give the session up; no `LinkDown` follows.
    Disconnect,
    /// Publish on the session.
    Publish(Message),
    /// Subscribe on the session; answer with `Acked` or `SubscriptionRefused`.
    Subscribe {
        /// Names it in `Acked`.
        token: u64,
        /// To what.
        inbound: Inbound,
    },
    /// Put entries on the disk, synced as one; answer with `Stored` or `StoreFailed`. A gap takes the place
    /// of the records in its range.
    Append {
        /// Records of this run and gaps, in order.
        entries: Vec<Entry>,
        /// Ids of commands obeyed since the last time, to be known after a restart.
        command_ids: Vec<String>,
        /// The highest `seq` of this run so far, stored or not.
        last_seq: u64,
    },
    /// Remove confirmed records and gaps from the disk; no answer.
    Discard(Vec<KeyRange>),
    /// Keep a record that the broker refuses, as it was published, where a person finds it; no answer.
    KeepDeadLetter(String),
    /// Read the backlog; answer with `Fetched`.
    ReadAfter {
        /// The last entry already read; none to begin at the oldest.
        after: Option<Key>,
        /// At most about this many.
        limit: usize,
    },
    /// Keep what commands set with `persist` for the next runs, in place of what was kept.
    KeepRules(RulesPatch),
    /// Remember this topic as the one on which the device is announced to Home Assistant, or that there is none;
    /// no answer.
    KeepAnnounced(Option<String>),
    /// Keep this in memory for a run that begins within this boot; no answer.
    HandOver(Box<Handover>),
    /// Tell the operator.
    Log(Level, String),
    /// End the daemon; everything is told or stored.
    Exit(Exit),
}

/// How much an operator wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// A normal turn of things.
    Info,
    /// Something that a person may have to repair.
    Warn,
}

/// How the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As it was asked to.
    Stopped,
    /// To be started again.
    Restart,
    /// To have the machine restarted.
    Reboot,
}
