//! What goes to the disk and when, what is read back, and what is discarded there.
//!
//! On a healthy link nothing goes there at all. Nothing here writes: all of it is orders.

use std::time::Duration;

use super::Delivery;
use crate::telemetry::Loss;
use crate::timers::{Timer, Timers};
use crate::{Entry, Key, Output};

/// After a failed write, the next try.
const STORE_RETRY: Duration = Duration::from_secs(2);

/// What is known of the backlog on disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    /// The number of this run, once the backlog is open.
    pub(super) run_number: Option<u64>,
    /// Records on it, as it said last.
    pub(super) records: u64,
    /// When the oldest of them was made, as far as is known.
    pub(super) oldest_ms: Option<i64>,
    /// A group of records is on its way there.
    pub(super) is_writing: bool,
    /// The last write failed.
    pub(super) failed: bool,
    /// Gaps that are to take the place of records on it, and those of them that are on their way.
    pub(super) gaps: Vec<Loss>,
    writing_gaps: Vec<Loss>,
    /// Records that were given up there since somebody asked.
    pub(super) given_up: u64,
    /// Records handed over to be discarded since then.
    discarding: u64,
}

impl Delivery {
    /// The backlog is open and this run has its number there.
    pub(crate) fn opened(&mut self, run_number: u64, records: u64, oldest_ms: Option<i64>) {
        self.disk.run_number = Some(run_number);
        self.disk.failed = false;
        self.disk.records = records;
        self.disk.oldest_ms = oldest_ms;
        self.replay.more_on_disk([]);
    }

    /// Whether records must go to the disk now; then [`Delivery::commit`] is to be called.
    pub(crate) fn commit_due(&self, now: Duration, timers: &Timers) -> bool {
        self.commit_at(timers).is_some_and(|at| now >= at)
    }

    /// Hands every record that the disk does not have over to it, as one group, with the ids of
    /// commands obeyed. False when that cannot be done now.
    pub(crate) fn commit(
        &mut self,
        command_ids: Vec<String>,
        last_seq: u64,
        timers: &mut Timers,
    ) -> bool {
        let waits = timers.is_set(Timer::StoreRetry);
        if self.disk.run_number.is_none() || self.disk.is_writing || waits {
            return false;
        }
        self.disk.writing_gaps = std::mem::take(&mut self.disk.gaps);
        let gaps = self.disk.writing_gaps.iter().cloned();
        let mut entries: Vec<Entry> = gaps.map(Entry::Gap).collect();
        entries.append(&mut self.memory.begin_writing());
        if self.disk.records == 0 {
            self.disk.oldest_ms = entries.iter().find_map(Entry::wall_ms);
        }
        self.disk.is_writing = true;
        self.disk.discarding = 0;
        timers.stop(Timer::Commit);
        self.orders.push_back(Output::Append {
            entries,
            command_ids,
            last_seq,
        });
        true
    }

    /// The group is on the disk, and `lost` records became gaps there. What waits to be published comes back from there as history.
    pub(crate) fn stored(&mut self, records: u64, lost: u64) {
        self.disk.is_writing = false;
        self.disk.failed = false;
        if !self.disk.writing_gaps.is_empty() {
            self.disk.writing_gaps.clear();
            self.replay.look_back();
        }
        // What was handed over to be discarded since then is still in that number.
        self.disk.records = records.saturating_sub(std::mem::take(&mut self.disk.discarding));
        if lost > 0 {
            self.replay.read_again();
        }
        let published = self.memory.written().into_iter();
        let published: Vec<_> = published
            .map(|(seq, state)| (self.own(seq), state))
            .collect();
        self.replay.more_on_disk(published);
    }

    /// It is not; memory keeps it until the next try.
    pub(crate) fn store_failed(&mut self, now: Duration, timers: &mut Timers) {
        self.disk.is_writing = false;
        self.disk.failed = true;
        let gaps = std::mem::take(&mut self.disk.writing_gaps);
        self.disk.gaps.splice(0..0, gaps);
        self.disk.discarding = 0;
        timers.set(Timer::StoreRetry, now + STORE_RETRY);
        self.memory.not_written();
    }

    /// The run ends: all that is not on the disk is handed over once more, whatever is known of the disk.
    /// What cannot be stored the store notes, and the next run reports it as lost. Gives the number.
    pub(crate) fn hand_over_the_rest(&mut self, command_ids: Vec<String>, last_seq: u64) -> usize {
        let Disk {
            gaps, writing_gaps, ..
        } = &mut self.disk;
        let gaps = writing_gaps.drain(..).chain(gaps.drain(..));
        let mut entries: Vec<Entry> = gaps.map(Entry::Gap).collect();
        entries.append(&mut self.memory.begin_writing());
        let left = entries.len();
        if left > 0 {
            self.orders.push_back(Output::Append {
                entries,
                command_ids,
                last_seq,
            });
        }
        left
    }

    /// Discards that wait are handed over at once.
    pub(crate) fn hand_over_discards(&mut self, timers: &mut Timers) {
        let records = self.discards.records();
        if records > 0 {
            self.disk.records = self.disk.records.saturating_sub(records);
            self.disk.discarding += records;
            let ranges = self.discards.take(timers);
            self.orders.push_back(Output::Discard(ranges));
        }
    }

    /// Reads on when the page runs low. What is confirmed is discarded first where it would be read again, and
    /// where a batch of it is together: the store syncs it, which a reader has to wait for.
    pub(super) fn read_on(&mut self, timers: &mut Timers) {
        self.replay.read_passed_over();
        self.replay.plan(self.disk.records);
        if self.disk.run_number.is_some()
            && let Some((after, limit)) = self.replay.read_on()
        {
            if after.is_none() || self.discards.is_due(timers) {
                self.hand_over_discards(timers);
            }
            self.orders.push_back(Output::ReadAfter { after, limit });
        }
    }

    /// A part of the backlog came.
    pub(crate) fn fetched(&mut self, entries: Vec<(Key, Entry)>, end: bool) {
        let Self {
            replay,
            discards,
            memory,
            disk,
            ..
        } = self;
        let is_gone = |key: Key, entry: &Entry| {
            // A gap is delivered though memory has, or had, what it counts as lost.
            let is_own = disk.run_number == Some(key.run_number);
            let is_record = matches!(entry, Entry::Record(_));
            let in_memory = is_own && is_record && memory.get(key.seq).is_some();
            in_memory || discards.contains(key, entry.last())
        };
        if replay.read(entries, end, is_gone) && replay.is_whole() {
            // All of the disk is known now.
            disk.records = replay.len() + discards.records();
        }
    }

    pub(super) fn commit_at(&self, timers: &Timers) -> Option<Duration> {
        let waits = self.disk.is_writing || timers.is_set(Timer::StoreRetry);
        if self.disk.run_number.is_none() || waits || !self.begun {
            return None;
        }
        if !self.disk.gaps.is_empty() {
            return Some(Duration::ZERO);
        }
        // Half of the time is for the disk, so that the promise holds when the time is over.
        Some(self.memory.oldest_unwritten()? + self.settings.durable_within / 2)
    }

    /// Records on the disk that are not confirmed.
    pub(super) fn on_disk(&self) -> u64 {
        self.disk.records.saturating_sub(self.discards.records())
    }
}
