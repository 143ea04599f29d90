//! The records of this run that are not confirmed, in the order of their `seq`.
//!
//! Memory has a bound, for the case that there is neither a link nor a disk.

use std::time::Duration;

use super::{Copy, Delivery, Held, Lane, Link, MEMORY_RECORDS, Phase};
use crate::Entry;
use crate::telemetry::{Loss, Record};

impl Delivery {
    /// A record was made.
    pub fn add(&mut self, record: Record, now: Duration) {
        let lane = match self.link {
            Link::Up => Lane::Live,
            Link::Down { .. } | Link::Connecting => Lane::History,
        };
        let seq = record.seq;
        let held = Held {
            entry: Entry::Record(record),
            made_at: now,
            lane,
            phase: Phase::Waiting,
            copy: Copy::None,
        };
        // The first record of a run may be finished after others: it names the run before.
        let place = self.place_of(seq);
        self.next_live = self.next_live.min(seq);
        self.next_history = self.next_history.min(seq);
        self.begun |= seq == 1;
        self.live.insert(place, held);
        self.bound_memory();
    }

    /// A record of the outage that has just ended, finished only now.
    pub fn add_replayed(&mut self, record: Record, made_at: Duration) {
        self.add(record, made_at);
        if let Some(held) = self.live.back_mut() {
            held.lane = Lane::History;
        }
    }

    /// Records that memory gave up since the last call; gaps say which.
    pub fn take_given_up(&mut self) -> u64 {
        std::mem::take(&mut self.given_up)
    }

    /// Whether memory has the record of this run with this number, or a gap that begins with it.
    pub(super) fn is_live(&self, seq: u64) -> bool {
        let held = self.live.get(self.place_of(seq));
        held.is_some_and(|held| held.entry.first() == seq)
    }

    /// Where in memory the record of this run with this number is, or would be.
    pub(super) fn place_of(&self, seq: u64) -> usize {
        self.live.partition_point(|held| held.entry.first() < seq)
    }

    /// Without a disk, memory has a bound: the oldest records that are not on their way are given up.
    pub(super) fn bound_memory(&mut self) {
        // Those just being stored cannot be given up; the others are newer and wait for the outcome.
        let bound = match self.disk.storing {
            true => 2 * MEMORY_RECORDS,
            false => MEMORY_RECORDS,
        };
        while self.live.len() > bound {
            let Some(place) = self.live.iter().position(Held::may_be_given_up) else {
                break;
            };
            self.give_up_at(place, "memory-full");
        }
    }

    /// A gap takes the place of a record; neighbours of one kind join.
    pub(super) fn give_up_at(&mut self, place: usize, reason: &str) {
        let Some(held) = self.live.get(place) else {
            return;
        };
        let (run, seq) = (held.entry.run(), held.entry.first());
        self.given_up += 1;
        if let Some(before) = place.checked_sub(1).and_then(|at| self.live.get_mut(at))
            && before.may_grow()
            && let Entry::Gap(gap) = &mut before.entry
            && gap.reason == reason
            && gap.to_seq + 1 == seq
        {
            gap.to_seq = seq;
            gap.count += 1;
            self.live.remove(place);
            return;
        }
        let gap = Loss {
            of_run: run,
            from_seq: seq,
            to_seq: seq,
            count: 1,
            reason: reason.into(),
        };
        if let Some(held) = self.live.get_mut(place) {
            held.entry = Entry::Gap(gap);
            held.lane = Lane::History;
            held.phase = Phase::Waiting;
            held.copy = Copy::None;
        }
        self.next_history = self.next_history.min(seq);
    }

    /// Records that are not confirmed and not just being delivered live.
    pub fn backlog(&self) -> u64 {
        let in_memory = self.live.iter().filter(|held| held.is_backlog()).count();
        self.on_disk() + in_memory as u64
    }

    /// Whether there are such records.
    pub fn has_backlog(&self) -> bool {
        self.on_disk() > 0 || self.live.iter().any(Held::is_backlog)
    }

    /// When the oldest record of the backlog was made, in milliseconds since 1970 on the clock of then.
    pub fn oldest_ms(&self) -> Option<i64> {
        let mut in_memory = self.live.iter().filter(|held| held.lane == Lane::History);
        self.page
            .iter()
            .find_map(|replayed| replayed.entry.wall_ms())
            .or(self.disk.oldest_ms.filter(|_| self.disk.records > 0))
            .or_else(|| in_memory.find_map(|held| held.entry.wall_ms()))
    }
}

impl Held {
    /// Whether it counts to the backlog, and not to what the disk says that it has.
    pub(super) fn is_backlog(&self) -> bool {
        self.lane == Lane::History && self.copy != Copy::OnDisk
    }

    /// Whether memory may lose it: it is a record that is not on its way.
    pub(super) fn may_be_given_up(&self) -> bool {
        matches!(self.entry, Entry::Record(_)) && self.may_grow()
    }

    /// Whether nobody has been told of it: neither the disk nor the broker.
    fn may_grow(&self) -> bool {
        self.copy == Copy::None && self.phase != Phase::Sent
    }

    /// Whether memory is to send it on the history lane.
    pub(super) fn is_history(&self) -> bool {
        let waits = matches!(self.phase, Phase::Waiting | Phase::Again);
        self.lane == Lane::History && waits && self.copy != Copy::Storing
    }
}
