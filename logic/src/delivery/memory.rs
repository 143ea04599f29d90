//! The records of this run that are not confirmed, in the order of their `seq`.
//!
//! Memory has a bound, for the case that there is neither a link nor a disk.

use std::time::Duration;

use super::{Copy, Delivery, Held, Lane, Link, MEMORY_RECORDS, Phase};
use crate::telemetry::{Body, Event, Loss, Record};

impl Delivery {
    /// A record was made. `tells_loss` is the store's name for the loss that it tells, if any.
    pub fn add(&mut self, record: Record, tells_loss: Option<u64>, now: Duration) {
        let lane = match self.link {
            Link::Up => Lane::Live,
            Link::Down { .. } | Link::Connecting => Lane::History,
        };
        let held = Held {
            record,
            made_at: now,
            lane,
            phase: Phase::Waiting,
            copy: Copy::None,
            tells_loss,
        };
        // The first record of a run may be finished after others: it names the run before.
        let place = self.place_of(held.record.seq);
        self.next_live = self.next_live.min(held.record.seq);
        self.next_history = self.next_history.min(held.record.seq);
        self.begun |= held.record.seq == 1;
        self.live.insert(place, held);
        self.bound_memory();
    }

    /// A record of the outage that has just ended, finished only now.
    pub fn add_replayed(&mut self, record: Record, made_at: Duration) {
        self.add(record, None, made_at);
        if let Some(held) = self.live.back_mut() {
            held.lane = Lane::History;
        }
    }

    /// Records that had to be given up, to be told; none while there is no room to tell it.
    pub fn take_lost(&mut self) -> Option<Loss> {
        if self.live.len() + 16 > MEMORY_RECORDS {
            return None;
        }
        self.take_refused().or_else(|| self.lost.take())
    }

    /// Whether memory has the record of this run with this number.
    pub(super) fn is_live(&self, seq: u64) -> bool {
        let held = self.live.get(self.place_of(seq));
        held.is_some_and(|held| held.record.seq == seq)
    }

    /// Where in memory the record of this run with this number is, or would be.
    pub(super) fn place_of(&self, seq: u64) -> usize {
        self.live.partition_point(|held| held.record.seq < seq)
    }

    /// Without a disk, memory has a bound: the oldest records that are not on their way are given up.
    pub(super) fn bound_memory(&mut self) {
        // Those just being stored cannot be given up; the others are newer and wait for the outcome.
        let bound = match self.disk.storing {
            true => 2 * MEMORY_RECORDS,
            false => MEMORY_RECORDS,
        };
        while self.live.len() > bound {
            let Some(held) = self
                .live
                .iter()
                .position(Held::may_be_given_up)
                .and_then(|place| self.live.remove(place))
            else {
                break;
            };
            let seq = held.record.seq;
            let loss = self.lost.get_or_insert_with(|| Loss {
                of_run: held.record.run,
                from_seq: seq,
                to_seq: seq,
                count: 0,
                reason: "memory-full".into(),
            });
            loss.from_seq = loss.from_seq.min(seq);
            loss.to_seq = loss.to_seq.max(seq);
            loss.count += 1;
        }
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
        let of = |record: &Record| record.stamp.wall_ms;
        let in_memory = self.live.iter().find(|held| held.lane == Lane::History);
        self.page
            .front()
            .map(|replayed| of(&replayed.record))
            .or(self.disk.oldest_ms.filter(|_| self.disk.records > 0))
            .or(in_memory.map(|held| of(&held.record)))
    }
}

impl Held {
    /// Whether it counts to the backlog, and not to what the disk says that it has.
    pub(super) fn is_backlog(&self) -> bool {
        self.lane == Lane::History && self.copy != Copy::OnDisk
    }

    /// Whether memory may lose it: it is not on its way, and is not itself the word about a loss.
    pub(super) fn may_be_given_up(&self) -> bool {
        let tells_loss = matches!(self.record.body, Body::Event(Event::Loss(_)));
        self.copy == Copy::None && self.phase != Phase::Sent && !tells_loss
    }

    /// Whether memory is to send it on the history lane.
    pub(super) fn is_history(&self) -> bool {
        let waits = matches!(self.phase, Phase::Waiting | Phase::Again);
        self.lane == Lane::History && waits && self.copy != Copy::Storing
    }
}
