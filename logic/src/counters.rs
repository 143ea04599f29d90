//! What happened since the run began, counted once, where it happens.
//!
//! The controller and delivery count; `status` and `/metrics` show it, and nothing is decided by it. Each
//! number only grows. Every label is one of a few that are known here, so that what comes from outside cannot
//! make more of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command::Outcome;
use super::telemetry::{Body, Event, OutageReport};

/// What happened since the run began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Records made: readings.
    pub readings: u64,
    /// Records made: events.
    pub events: u64,
    /// Records published live, each time that one was.
    pub published: u64,
    /// Records and losses published as history, each time that one was.
    pub replayed: u64,
    /// Records and losses that were confirmed, and so left memory and store.
    pub confirmed: u64,
    /// Records given up, by reason: `memory-full`, `refused` (by the broker), or by the store `backlog-full`,
    /// `damaged`, `unreadable` or `too-large`.
    pub lost: BTreeMap<String, u64>,
    /// Outages that are over, by cause: `link` or `server`.
    pub outages: BTreeMap<String, Outages>,
    /// Sessions with the broker that began.
    pub sessions: u64,
    /// LED changes by who decided: `start`, `remote`, `fallback` or `fail-safe`.
    pub led_changes: BTreeMap<String, u64>,
    /// Readings that the sensor did not give.
    pub sensor_errors: u64,
    /// Times that the LED could not be written.
    pub led_errors: u64,
    /// Commands by result.
    pub commands: BTreeMap<Outcome, u64>,
    /// Groups of records that were put into the store.
    pub store_commits: u64,
    /// Groups that could not be.
    pub store_errors: u64,
}

/// Outages of one cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Outages {
    /// How many.
    pub count: u64,
    /// How long all of them were, in seconds.
    pub seconds: f64,
}

impl Counters {
    /// A record was made.
    pub(crate) fn record(&mut self, body: &Body) {
        match body {
            Body::Reading { .. } => self.readings += 1,
            Body::Event(event) => {
                self.events += 1;
                if let Event::Led {
                    led_ok: None, by, ..
                } = event
                {
                    *self.led_changes.entry(by.clone()).or_default() += 1;
                }
            }
        }
    }

    /// An outage is over.
    pub(crate) fn outage(&mut self, report: &OutageReport) {
        let outages = self.outages.entry(report.cause.clone()).or_default();
        outages.count += 1;
        outages.seconds += report.seconds;
    }

    /// Records were given up.
    pub(crate) fn lose(&mut self, reason: LostBy, count: u64) {
        if count > 0 {
            *self.lost.entry(reason.name().to_owned()).or_default() += count;
        }
    }

    /// Records given up, whatever gave them up.
    pub(crate) fn all_lost(&self) -> u64 {
        self.lost.values().sum()
    }

    /// Outages that are over, whatever their cause.
    pub(crate) fn all_outages(&self) -> u64 {
        self.outages.values().map(|outages| outages.count).sum()
    }

    /// The store gave records up.
    pub(crate) fn lose_stored(&mut self, lost: StoreLosses) {
        self.lose(LostBy::Full, lost.full);
        self.lose(LostBy::Damaged, lost.damaged);
        self.lose(LostBy::Unreadable, lost.unreadable);
        self.lose(LostBy::TooLarge, lost.too_large);
    }

    /// A command has its result.
    pub(crate) fn command(&mut self, result: Outcome) {
        *self.commands.entry(result).or_default() += 1;
    }
}

/// Records that the store gave up, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreLosses {
    /// There was no room.
    pub full: u64,
    /// Their bytes are damaged.
    pub damaged: u64,
    /// A later version wrote them.
    pub unreadable: u64,
    /// They fit into no chunk.
    pub too_large: u64,
}

impl StoreLosses {
    /// All of them.
    pub fn total(self) -> u64 {
        self.full + self.damaged + self.unreadable + self.too_large
    }
}

/// What gave records up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LostBy {
    /// Memory, with neither broker nor store.
    Memory,
    /// Us, because the broker does not take them.
    Refused,
    /// The store, by its bounds.
    Full,
    /// The store, whose bytes were damaged.
    Damaged,
    /// The store, which a later version wrote.
    Unreadable,
    /// The store, no chunk of which is so large.
    TooLarge,
}

impl LostBy {
    /// All of them.
    pub(crate) const ALL: [LostBy; 6] = [
        LostBy::Memory,
        LostBy::Refused,
        LostBy::Full,
        LostBy::Damaged,
        LostBy::Unreadable,
        LostBy::TooLarge,
    ];

    /// As `lost` has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            LostBy::Memory => "memory-full",
            LostBy::Refused => "refused",
            LostBy::Full => "backlog-full",
            LostBy::Damaged => "damaged",
            LostBy::Unreadable => "unreadable",
            LostBy::TooLarge => "too-large",
        }
    }
}

/// What delivery counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Deliveries {
    pub(crate) published: u64,
    pub(crate) replayed: u64,
    pub(crate) confirmed: u64,
    pub(crate) refused: u64,
}

/// The reasons of `lost`, for who shows each, also those that never were.
pub fn loss_reasons() -> impl Iterator<Item = &'static str> {
    LostBy::ALL.into_iter().map(LostBy::name)
}
