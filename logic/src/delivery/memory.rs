//! The records of this run that are neither confirmed nor on the disk, in the order of their `seq`. Where
//! records had to be given up, a gap stands in their place.
//!
//! ```text
//!        +---- link down, or the server's ack is late: queue History ----+
//!        v                                                               |
//!   Waiting --publish--> InFlight --PUBACK--> AwaitingServerAck --ack--> gone
//!                           |                 (confirm = "server")
//!                           +------PUBACK (confirm = "broker")---------> gone
//! ```
//!
//! A commit hands all of them over to the store as one group. When the group is on the disk its records
//! leave memory, whatever their state; `replay` goes on with those that were published. Memory has a
//! bound, for the case that there is neither a link nor a disk. Used by `delivery` alone.

use std::collections::VecDeque;
use std::time::Duration;

use uuid::Uuid;

use crate::Entry;
use crate::telemetry::{Loss, Record};

/// Records kept in memory when there is no disk for them.
const MAX_MEMORY_RECORDS: usize = 20_000;

/// Why memory gives records up.
const MEMORY_FULL: &str = "memory-full";

/// The records of this run that are neither confirmed nor on the disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    pending: VecDeque<Pending>,
    /// Every record up to this one is in the group that the store is writing.
    writing_to: Option<u64>,
    /// No record before these waits in the queue.
    next_live: u64,
    next_history: u64,
    /// Records and gaps of the history queue.
    backlog: u64,
    /// Records that were given up since somebody asked.
    given_up: u64,
}

/// A record of this run, or a gap.
#[derive(Debug, Clone)]
struct Pending {
    entry: Entry,
    /// When it was made (boot clock).
    made_at: Duration,
    /// Where it is to be published, or was.
    queue: Queue,
    state: DeliveryState,
}

/// Where a record is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// On its own topic: it was made while the link was up, which it has been since.
    Live,
    /// On the history topic, behind the backlog on the disk.
    History,
}

/// Where a record is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeliveryState {
    /// To be published.
    Waiting,
    /// Published; the broker has not answered.
    InFlight,
    /// The broker has it since then (boot clock); the server has not acked it.
    AwaitingServerAck(Duration),
}

impl Memory {
    /// A record was made, at `made_at` on the boot clock.
    pub(super) fn add(&mut self, record: Record, queue: Queue, made_at: Duration) {
        // The first record of a run may be finished after others: it names the run before.
        let place = self.place_of(record.seq);
        self.next_live = self.next_live.min(record.seq);
        self.next_history = self.next_history.min(record.seq);
        self.backlog += u64::from(queue == Queue::History);
        let pending = Pending {
            entry: Entry::Record(record),
            made_at,
            queue,
            state: DeliveryState::Waiting,
        };
        self.pending.insert(place, pending);
        self.bound();
    }

    /// The next record to be published live.
    pub(super) fn next_live(&mut self) -> Option<&Record> {
        let place = self.place_of(self.next_live);
        let place = self.waiting_from(place, Queue::Live);
        self.next_live = self.seq_at(place);
        match &self.pending.get(place)?.entry {
            Entry::Record(record) => Some(record),
            Entry::Gap(_) => None,
        }
    }

    /// The next entry to be published as history, of those that are free to go. Those being written wait for
    /// the outcome: from the disk they come in order.
    pub(super) fn next_history(&self, is_free: impl Fn(u64) -> bool) -> Option<&Entry> {
        let written = self.writing_to.map_or(0, |to| to + 1);
        let place = self.place_of(self.next_history.max(written));
        let waiting = self.pending.range(place..);
        waiting
            .filter(|pending| {
                pending.queue == Queue::History && pending.state == DeliveryState::Waiting
            })
            .map(|pending| &pending.entry)
            .find(|entry| is_free(entry.first()))
    }

    /// The record was published.
    pub(super) fn sent(&mut self, seq: u64) {
        if let Some(pending) = self.get_mut(seq) {
            pending.state = DeliveryState::InFlight;
        }
        let place = self.place_of(self.next_history);
        let place = self.waiting_from(place, Queue::History);
        self.next_history = self.seq_at(place);
    }

    /// The record is not to be published live: it waits for the disk.
    pub(super) fn pass_over_live(&mut self, seq: u64) {
        self.next_live = seq + 1;
    }

    /// The record is to be published as history after all.
    pub(super) fn make_history(&mut self, seq: u64) {
        if let Some(pending) = self.get_mut(seq)
            && pending.queue == Queue::Live
        {
            pending.queue = Queue::History;
            self.backlog += 1;
            self.next_history = self.next_history.min(seq);
        }
    }

    /// The broker has refused the entry: it waits again, as history. False when it is not here.
    pub(super) fn take_back(&mut self, seq: u64) -> bool {
        self.make_history(seq);
        let Some(pending) = self.get_mut(seq) else {
            return false;
        };
        pending.state = DeliveryState::Waiting;
        self.next_history = self.next_history.min(seq);
        true
    }

    /// The broker has the record since `now`, and the server is to ack it. False when it is not here.
    pub(super) fn await_server_ack(&mut self, seq: u64, now: Duration) -> bool {
        let pending = self.get_mut(seq);
        pending
            .map(|pending| pending.state = DeliveryState::AwaitingServerAck(now))
            .is_some()
    }

    /// The entry is confirmed, or cannot stay: it leaves.
    pub(super) fn remove(&mut self, seq: u64) -> Option<Removed> {
        let place = self.place_of(seq);
        self.pending
            .get(place)
            .filter(|pending| pending.entry.first() == seq)?;
        let is_written = self.is_written(seq);
        let pending = self.pending.remove(place)?;
        self.backlog -= u64::from(pending.queue == Queue::History);
        Some(Removed { is_written })
    }

    /// The entries of `run` that lie in `from..=to`, by their first and last `seq`.
    pub(super) fn within(&self, run: Uuid, from: u64, to: u64) -> Vec<(u64, u64)> {
        let first = self.pending.front();
        if first.is_none_or(|first| first.entry.run() != run) {
            return Vec::new();
        }
        let behind = self.pending.range(self.place_of(from)..);
        behind
            .take_while(|pending| pending.entry.last() <= to)
            .map(|pending| (pending.entry.first(), pending.entry.last()))
            .collect()
    }

    /// What the server has not acked since `before` (boot clock) is history, to be published again.
    pub(super) fn send_again(&mut self, before: Duration) {
        for pending in &mut self.pending {
            if matches!(pending.state, DeliveryState::AwaitingServerAck(since) if since <= before) {
                pending.state = DeliveryState::Waiting;
                self.backlog += u64::from(pending.queue == Queue::Live);
                pending.queue = Queue::History;
                self.next_history = self.next_history.min(pending.entry.first());
            }
        }
    }

    /// The session is over: all of it is history.
    pub(super) fn link_down(&mut self) {
        for pending in &mut self.pending {
            pending.queue = Queue::History;
            pending.state = DeliveryState::Waiting;
        }
        self.backlog = self.pending.len() as u64;
        self.next_history = 0;
    }

    /// A session begins: what is here now is not live.
    pub(super) fn link_up(&mut self) {
        self.next_live = self.seq_at(self.pending.len());
    }

    /// Hands all of them over to be written; none while the group before is under way.
    pub(super) fn begin_writing(&mut self) -> Vec<Entry> {
        self.writing_to = self.pending.back().map(|last| last.entry.first());
        let entries = self.pending.iter();
        entries.map(|pending| pending.entry.clone()).collect()
    }

    /// The group is on the disk: it leaves. Gives its records that were published, with their state; a gap may
    /// come again.
    pub(super) fn written(&mut self) -> Vec<(u64, DeliveryState)> {
        let mut published = Vec::new();
        let group = self.writing_to.take().map_or(0, |to| self.place_of(to + 1));
        for pending in self.pending.drain(..group) {
            self.backlog -= u64::from(pending.queue == Queue::History);
            let is_record = matches!(pending.entry, Entry::Record(_));
            if is_record && pending.state != DeliveryState::Waiting {
                published.push((pending.entry.first(), pending.state));
            }
        }
        published
    }

    /// The group is not on the disk.
    pub(super) fn not_written(&mut self) {
        self.writing_to = None;
        // What could not be published live and was left to the disk is looked at once more.
        self.next_live = 0;
        self.bound();
    }

    /// Records that were given up since the last call; gaps say which.
    pub(super) fn take_given_up(&mut self) -> u64 {
        std::mem::take(&mut self.given_up)
    }

    /// The record is given up: a gap takes its place, or joins the one before. False when it is not here, or
    /// is being written: then the gap belongs on the disk.
    pub(super) fn give_up(&mut self, seq: u64, reason: &str) -> bool {
        let place = self.place_of(seq);
        let is_here = self.get(seq).is_some() && !self.is_written(seq);
        if is_here {
            self.give_up_at(place, reason);
        }
        is_here
    }

    /// When the oldest record that no group has was made (boot clock).
    pub(super) fn oldest_unwritten(&self) -> Option<Duration> {
        let place = self.writing_to.map_or(0, |to| self.place_of(to + 1));
        self.pending.get(place).map(|pending| pending.made_at)
    }

    /// When the server's ack of the oldest record that waits for it began to be awaited.
    pub(super) fn oldest_awaiting(&self) -> Option<Duration> {
        let since = |pending: &Pending| match pending.state {
            DeliveryState::AwaitingServerAck(since) => Some(since),
            DeliveryState::Waiting | DeliveryState::InFlight => None,
        };
        self.pending.iter().filter_map(since).min()
    }

    /// Records that are history.
    pub(super) fn backlog(&self) -> u64 {
        self.backlog
    }

    /// When the oldest record that is history was made, in milliseconds since 1970 on the clock of then.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        let history = self.pending.iter();
        history
            .filter(|pending| pending.queue == Queue::History)
            .find_map(|pending| pending.entry.wall_ms())
    }

    pub(super) fn get(&self, seq: u64) -> Option<&Entry> {
        let pending = self.pending.get(self.place_of(seq))?;
        (pending.entry.first() == seq).then_some(&pending.entry)
    }

    #[cfg(test)]
    pub(super) fn state_of(&self, seq: u64) -> Option<(Queue, DeliveryState)> {
        let pending = self.pending.get(self.place_of(seq))?;
        Some((pending.queue, pending.state))
    }

    /// The oldest records are given up that nobody has been told of: neither the broker nor the disk.
    fn bound(&mut self) {
        // Those being written cannot be given up; the others are newer and wait for the outcome.
        let bound = match self.writing_to {
            Some(_) => 2 * MAX_MEMORY_RECORDS,
            None => MAX_MEMORY_RECORDS,
        };
        while self.pending.len() > bound {
            let may_go = |pending: &Pending| {
                matches!(pending.entry, Entry::Record(_)) && self.may_change(pending)
            };
            let Some(place) = self.pending.iter().position(may_go) else {
                return;
            };
            self.give_up_at(place, MEMORY_FULL);
        }
    }

    fn give_up_at(&mut self, place: usize, reason: &str) {
        let seq = self.seq_at(place);
        self.given_up += 1;
        let before = place.checked_sub(1).and_then(|at| self.pending.get(at));
        let joins = before.is_some_and(|before| {
            let is_next = |gap: &Loss| gap.reason == reason && gap.to_seq + 1 == seq;
            matches!(&before.entry, Entry::Gap(gap) if is_next(gap)) && self.may_change(before)
        });
        if joins {
            self.remove(seq);
            if let Some(Entry::Gap(gap)) = self.pending.get_mut(place - 1).map(|at| &mut at.entry) {
                gap.to_seq = seq;
                gap.count += 1;
            }
            return;
        }
        self.make_history(seq);
        if let Some(pending) = self.pending.get_mut(place) {
            pending.state = DeliveryState::Waiting;
            pending.entry = Entry::Gap(Loss {
                of_run: pending.entry.run(),
                from_seq: seq,
                to_seq: seq,
                count: 1,
                reason: reason.to_owned(),
            });
            self.next_history = self.next_history.min(seq);
        }
    }

    /// Whether nobody has been told of it: neither the broker nor the disk.
    fn may_change(&self, pending: &Pending) -> bool {
        pending.state != DeliveryState::InFlight && !self.is_written(pending.entry.first())
    }

    fn is_written(&self, seq: u64) -> bool {
        self.writing_to.is_some_and(|to| seq <= to)
    }

    /// The first place from `place` on with a record that waits in `queue`; else the end.
    fn waiting_from(&self, place: usize, queue: Queue) -> usize {
        let waits =
            |pending: &Pending| pending.queue == queue && pending.state == DeliveryState::Waiting;
        let found = self.pending.range(place..).position(waits);
        found.map_or(self.pending.len(), |behind| place + behind)
    }

    /// The number of the record at `place`; behind the last, the number that none has yet.
    fn seq_at(&self, place: usize) -> u64 {
        let end = || self.pending.back().map_or(0, |last| last.entry.last() + 1);
        let pending = self.pending.get(place);
        pending.map_or_else(end, |pending| pending.entry.first())
    }

    /// Where the record with this number is, or would be.
    fn place_of(&self, seq: u64) -> usize {
        self.pending
            .partition_point(|pending| pending.entry.first() < seq)
    }

    fn get_mut(&mut self, seq: u64) -> Option<&mut Pending> {
        let place = self.place_of(seq);
        let pending = self.pending.get_mut(place);
        pending.filter(|pending| pending.entry.first() == seq)
    }
}

/// An entry that has left memory.
#[derive(Debug, Clone)]
pub(super) struct Removed {
    /// The store is writing it.
    pub(super) is_written: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Body;
    use crate::time::Stamp;

    const LATER: Duration = Duration::from_secs(9);

    fn record(seq: u64) -> Record {
        Record {
            run: Uuid::nil(),
            seq,
            boot_id: Uuid::nil(),
            stamp: Stamp {
                boot_ms: seq,
                wall_ms: seq as i64,
                synced: true,
            },
            body: Body::Reading {
                light: 1.0,
                led_on: Some(false),
                led_ok: true,
            },
        }
    }

    #[test]
    fn what_is_published_when_it_goes_to_the_disk_is_handed_on() {
        let mut memory = Memory::default();
        for seq in 1..=4 {
            memory.add(record(seq), Queue::Live, Duration::ZERO);
        }
        memory.sent(1);
        memory.sent(2);
        memory.await_server_ack(2, LATER);
        assert_eq!(memory.begin_writing().len(), 4);
        memory.add(record(5), Queue::Live, LATER);
        assert_eq!(memory.oldest_unwritten(), Some(LATER));
        let published = [
            (1, DeliveryState::InFlight),
            (2, DeliveryState::AwaitingServerAck(LATER)),
        ];
        assert_eq!(memory.written(), published);
        assert_eq!(memory.next_live().map(|record| record.seq), Some(5));
        assert_eq!(memory.pending.len(), 1);
    }

    #[test]
    fn history_that_is_being_written_waits_for_the_outcome() {
        let mut memory = Memory::default();
        for seq in 1..=2 {
            memory.add(record(seq), Queue::History, Duration::ZERO);
        }
        let next = |memory: &Memory| memory.next_history(|_| true).map(Entry::first);
        assert_eq!(next(&memory), Some(1));
        memory.begin_writing();
        memory.add(record(3), Queue::History, Duration::ZERO);
        assert_eq!(next(&memory), Some(3));
        memory.not_written();
        assert_eq!(next(&memory), Some(1));
        assert_eq!(
            memory.next_history(|seq| seq > 1).map(Entry::first),
            Some(2)
        );
        memory.sent(1);
        assert_eq!(next(&memory), Some(2));
    }

    #[test]
    fn what_is_given_up_leaves_one_gap_and_nothing_on_its_way_is_touched() {
        let mut memory = Memory::default();
        memory.add(record(1), Queue::Live, Duration::ZERO);
        memory.sent(1);
        for seq in 2..=MAX_MEMORY_RECORDS as u64 + 100 {
            memory.add(record(seq), Queue::History, Duration::ZERO);
        }
        assert_eq!(memory.pending.len(), MAX_MEMORY_RECORDS);
        let gap = Entry::Gap(Loss {
            of_run: Uuid::nil(),
            from_seq: 2,
            to_seq: 102,
            count: 101,
            reason: MEMORY_FULL.to_owned(),
        });
        assert_eq!(memory.get(2), Some(&gap));
        assert_eq!(memory.get(103), Some(&Entry::Record(record(103))));
        assert_eq!(memory.take_given_up(), 101);
        assert_eq!(memory.within(Uuid::nil(), 2, 101), []);
        assert_eq!(memory.within(Uuid::nil(), 2, 103), [(2, 102), (103, 103)]);
    }
}
