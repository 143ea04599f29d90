//! The replay: the part of the backlog that was read from the disk and is being published, oldest first.
//!
//! ```text
//!              +-- the server's ack is late --+
//!              v                              |
//!   read --> Waiting --publish--> InFlight --PUBACK--> AwaitingServerAck --ack--> gone
//!                                     |                (confirm = "server")
//!                                     +--PUBACK (confirm = "broker")--> gone
//! ```
//!
//! Records of this run that were published before they went to the disk are known here as well, until they
//! are read back: they go on in the state that they have, and are not published a second time. A session
//! that ends takes all of this with it; the next one begins at the oldest entry of the disk.
//! Used by `delivery` alone, which gives the orders to read.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::memory::DeliveryState;
use super::page::Page;
use crate::telemetry::PayloadFormat;
use crate::time::Clock;
use crate::{Entry, Key};

/// A message ends before it is larger than this many bytes; brokers refuse large packets.
const MAX_BATCH_BYTES: usize = 32 * 1024;
/// The page holds this many records at least and at most. At about 200 bytes each the most are 2 MB, beyond
/// which the window yields.
const MIN_PAGE_RECORDS: usize = 256;
const MAX_PAGE_RECORDS: usize = 10_000;
/// A page that lasts while the store syncs something, if the disk has four times as many.
const LASTING_PAGE_RECORDS: usize = 1_024;
/// With a quarter of the page free it is read on, or with room for so many records.
const READ_ON_AT: usize = 1_024;
/// Records published ahead that are remembered; of more, the oldest are published again.
const MAX_AHEAD: usize = 1_024;

const FIRST: Key = Key {
    run_number: 0,
    seq: 0,
};
const LAST: Key = Key {
    run_number: u64::MAX,
    seq: u64::MAX,
};

/// What was read from the disk and is not confirmed.
#[derive(Debug, Clone)]
pub(super) struct Replay {
    page: Page<Replayed>,
    /// No record before this one waits.
    next: Key,
    /// Records that wait.
    waiting: usize,
    /// Records on the disk, not read back, that were published from memory in this session.
    ahead: BTreeMap<Key, DeliveryState>,
    /// Records that can be in flight at a time.
    in_window: usize,
    format: PayloadFormat,
    /// How many records the page is to hold.
    target: usize,
    /// The last record read in this session.
    after: Option<Key>,
    /// There is nothing behind that.
    at_end: bool,
    reading: bool,
    /// The records that are being read are of no use: their session is over.
    is_stale: bool,
    /// The server has acked something since acks were last found late.
    server_acks: bool,
    /// Entries left the page without an ack: they are read again when all others are through.
    passed_over: bool,
}

#[derive(Debug, Clone)]
struct Replayed {
    entry: Entry,
    state: DeliveryState,
}

/// Records in one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) keys: Vec<Key>,
    /// One record is an object, several are an array.
    pub(super) payload: Vec<u8>,
}

impl Replay {
    /// Nothing is read yet. `in_window` records can be in flight at a time; the page holds twice as many.
    pub(super) fn new(in_window: usize) -> Self {
        Self {
            page: Page::new(),
            next: FIRST,
            waiting: 0,
            ahead: BTreeMap::new(),
            in_window,
            format: PayloadFormat::default(),
            target: MIN_PAGE_RECORDS.max(2 * in_window).min(MAX_PAGE_RECORDS),
            after: None,
            at_end: false,
            reading: false,
            is_stale: false,
            server_acks: false,
            passed_over: false,
        }
    }

    /// The same, with records published in this form.
    pub(super) fn in_format(self, format: PayloadFormat) -> Self {
        Self { format, ..self }
    }

    /// A session has ended: what it published counts for nothing.
    pub(super) fn start_over(&mut self) {
        self.page.clear();
        self.ahead.clear();
        self.next = FIRST;
        self.waiting = 0;
        self.after = None;
        self.at_end = false;
        self.is_stale = self.reading;
        self.passed_over = false;
    }

    /// There are so many records on the disk: of many, a page is to last while the store syncs something.
    pub(super) fn plan(&mut self, on_disk: u64) {
        let quarter = usize::try_from(on_disk / 4).unwrap_or(usize::MAX);
        let least = quarter.clamp(MIN_PAGE_RECORDS, LASTING_PAGE_RECORDS);
        self.target = least.max(2 * self.in_window).min(MAX_PAGE_RECORDS);
    }

    /// What to read next, and how much: well before the page has run out, so that nobody waits for the disk.
    pub(super) fn read_on(&mut self) -> Option<(Option<Key>, usize)> {
        if !self.can_read() {
            return None;
        }
        self.reading = true;
        Some((self.after, self.room()))
    }

    /// Records that follow on those read before; `at_end` when none follow on these. `is_gone` tells which of
    /// them are not to be published: confirmed, or in memory. False when they are of no use.
    pub(super) fn read(
        &mut self,
        entries: Vec<(Key, Entry)>,
        at_end: bool,
        is_gone: impl Fn(Key, &Entry) -> bool,
    ) -> bool {
        self.reading = false;
        if std::mem::take(&mut self.is_stale) {
            return false;
        }
        self.at_end = at_end;
        for (key, entry) in entries {
            self.after = Some(key);
            let ahead = self.ahead.remove(&key);
            if is_gone(key, &entry) {
                continue;
            }
            // A gap was published, if at all, when it was smaller.
            let state = match entry {
                Entry::Record(_) => ahead.unwrap_or(DeliveryState::Waiting),
                Entry::Gap(_) => DeliveryState::Waiting,
            };
            let is_new = self.page.insert(key, Replayed { entry, state });
            if is_new && state == DeliveryState::Waiting {
                self.waiting += 1;
                self.next = self.next.min(key);
            }
        }
        if at_end {
            // What is not on the disk any more was given up there, and is in a gap.
            self.ahead.clear();
        }
        true
    }

    /// The oldest records that wait, as one message: at most `most` of them. They are in flight from now on.
    /// Those that are set back are passed over.
    pub(super) fn next_batch(
        &mut self,
        most: usize,
        most_bytes: usize,
        clock: &Clock,
        is_set_back: impl Fn(Key) -> bool,
    ) -> Option<Batch> {
        let format = self.format;
        let mut batch = Batch::default();
        let mut next = LAST;
        for (key, replayed) in self.page.mut_from(self.next) {
            if replayed.state != DeliveryState::Waiting || is_set_back(key) {
                continue;
            }
            if batch.keys.len() >= most || batch.payload.len() >= MAX_BATCH_BYTES {
                next = key;
                break;
            }
            if most_bytes < usize::MAX && !batch.keys.is_empty() {
                let mut object = Vec::new();
                replayed.entry.write_wire(format, clock, &mut object);
                // With the comma and the brackets of an array.
                if batch.payload.len() + object.len() + 3 > most_bytes {
                    next = key;
                    break;
                }
            }
            batch.add(key, &replayed.entry, format, clock);
            replayed.state = DeliveryState::InFlight;
        }
        self.next = next;
        self.waiting -= batch.keys.len();
        batch.close();
        (!batch.keys.is_empty()).then_some(batch)
    }

    /// The broker has the record since `now`, and the server is to ack it.
    pub(super) fn await_server_ack(&mut self, key: Key, now: Duration) {
        let awaits = DeliveryState::AwaitingServerAck(now);
        if let Some(replayed) = self.page.get_mut(key) {
            if replayed.state == DeliveryState::InFlight {
                replayed.state = awaits;
            }
        } else if let Some(state) = self.ahead.get_mut(&key) {
            *state = awaits;
        }
    }

    /// An entry up to `last` that was published from memory is confirmed. What the store has made of it since
    /// stays.
    pub(super) fn remove_ahead(&mut self, key: Key, last: u64) {
        self.ahead.remove(&key);
        if self.get(key).is_some_and(|entry| entry.last() == last) {
            self.remove(key);
        }
    }

    /// The entry is confirmed: it leaves the page.
    pub(super) fn remove(&mut self, key: Key) -> Option<Entry> {
        let replayed = self.page.remove(key)?;
        self.waiting -= usize::from(replayed.state == DeliveryState::Waiting);
        Some(replayed.entry)
    }

    /// The keys of records of `run` with numbers in `from..=to` that the server may ack.
    pub(super) fn within(&self, run: Uuid, from: u64, to: u64) -> Vec<Key> {
        let mut found = Vec::new();
        // The records of a run lie together: one look finds its place, or the next run's.
        let mut at = FIRST;
        while let Some((Key { run_number, .. }, replayed)) = self.page.from(at).next() {
            if replayed.entry.run() == run {
                let begin = Key {
                    run_number,
                    seq: from,
                };
                let inside = self.page.from(begin).take_while(|(key, replayed)| {
                    key.run_number == run_number && replayed.entry.last() <= to
                });
                found.extend(inside.map(|(key, _)| key));
            }
            let Some(run_number) = run_number.checked_add(1) else {
                break;
            };
            at = Key { run_number, seq: 0 };
        }
        found
    }

    /// The records of this run in `from..=to` that were published ahead.
    pub(super) fn ahead_within(&self, from: Key, to: Key) -> Vec<Key> {
        let range = (from <= to).then(|| self.ahead.range(from..=to));
        range.into_iter().flatten().map(|(key, _)| *key).collect()
    }

    /// What the server has not acked since `before` (boot clock) waits to be published again. Where it fills
    /// the page while the server acks others, it is passed over: it must not hold up what lies behind.
    pub(super) fn send_again(&mut self, before: Duration) {
        let is_late = |state: DeliveryState| matches!(state, DeliveryState::AwaitingServerAck(since) if since <= before);
        let is_crowded = self.room() < self.target / 4;
        let passes_over = std::mem::take(&mut self.server_acks) && is_crowded && !self.at_end;
        self.passed_over |= passes_over;
        let (next, waiting) = (&mut self.next, &mut self.waiting);
        self.page.retain(|key, replayed| {
            let late = is_late(replayed.state);
            if late && !passes_over {
                replayed.state = DeliveryState::Waiting;
                *waiting += 1;
                *next = (*next).min(key);
            }
            !(late && passes_over)
        });
        // They are still to be read, and wait then.
        self.ahead.retain(|_, state| !is_late(*state));
    }

    /// There is more on the disk now, perhaps in front of all that was read.
    pub(super) fn read_again(&mut self) {
        if self.at_end {
            self.at_end = false;
            self.after = None;
            self.is_stale = self.reading;
        }
    }

    /// The server has acked an entry.
    pub(super) fn server_acked(&mut self) {
        self.server_acks = true;
    }

    /// All of the disk is read, and nothing of it is left here: what was passed over has its turn.
    pub(super) fn read_passed_over(&mut self) {
        if self.passed_over && self.at_end && self.page.is_empty() && !self.reading {
            self.passed_over = false;
            self.at_end = false;
            self.after = None;
        }
    }

    /// There is more on the disk now; of it, these records were published from memory.
    pub(super) fn more_on_disk(
        &mut self,
        published: impl IntoIterator<Item = (Key, DeliveryState)>,
    ) {
        self.at_end = false;
        self.ahead.extend(published);
        while self.ahead.len() > MAX_AHEAD {
            self.ahead.pop_first();
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<&Entry> {
        self.page.get(key).map(|replayed| &replayed.entry)
    }

    /// The record, if it waits.
    pub(super) fn get_waiting(&self, key: Key) -> Option<&Entry> {
        let replayed = self.page.get(key)?;
        (replayed.state == DeliveryState::Waiting).then_some(&replayed.entry)
    }

    /// The broker has refused the record: it waits again. One that is not read back waits when it is.
    pub(super) fn take_back(&mut self, key: Key) {
        self.ahead.remove(&key);
        if let Some(replayed) = self.page.get_mut(key)
            && replayed.state == DeliveryState::InFlight
        {
            replayed.state = DeliveryState::Waiting;
            self.waiting += 1;
            self.next = self.next.min(key);
        }
    }

    /// A gap is on the disk, perhaps in front of all that was read: it is read when the rest is through.
    pub(super) fn look_back(&mut self) {
        self.passed_over = true;
    }

    /// The record was published alone.
    pub(super) fn sent(&mut self, key: Key) {
        if let Some(replayed) = self.page.get_mut(key)
            && replayed.state == DeliveryState::Waiting
        {
            replayed.state = DeliveryState::InFlight;
            self.waiting -= 1;
        }
    }

    /// Whether there is more to be read, and room for it.
    pub(super) fn can_read(&self) -> bool {
        !self.at_end && !self.reading && self.room() >= (self.target / 4).min(READ_ON_AT)
    }

    #[cfg(test)]
    pub(super) fn state_of(&self, key: Key) -> Option<(&'static str, DeliveryState)> {
        let in_page = self.page.get(key).map(|at| ("page", at.state));
        in_page.or_else(|| self.ahead.get(&key).map(|state| ("ahead", *state)))
    }

    fn room(&self) -> usize {
        self.target.saturating_sub(self.page.len())
    }

    /// How many records wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether all of the disk has been read in this session.
    pub(super) fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Whether every entry of the disk is known here.
    pub(super) fn is_whole(&self) -> bool {
        self.at_end && !self.passed_over
    }

    /// Whether the store has been asked for records and has not answered.
    pub(super) fn is_reading(&self) -> bool {
        self.reading
    }

    /// Records on the disk that are known here.
    pub(super) fn len(&self) -> u64 {
        (self.page.len() + self.ahead.len()) as u64
    }

    /// When the oldest record that is not confirmed was made, in milliseconds since 1970 on the clock of then.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        let mut page = self.page.from(FIRST);
        page.find_map(|(_, replayed)| replayed.entry.wall_ms())
    }

    /// When the server's ack of the oldest record that waits for it began to be awaited.
    pub(super) fn oldest_awaiting(&self) -> Option<Duration> {
        let in_page = self.page.from(FIRST).map(|(_, replayed)| replayed.state);
        let since = |state: DeliveryState| match state {
            DeliveryState::AwaitingServerAck(since) => Some(since),
            DeliveryState::Waiting | DeliveryState::InFlight => None,
        };
        in_page
            .chain(self.ahead.values().copied())
            .filter_map(since)
            .min()
    }
}

impl Batch {
    fn add(&mut self, key: Key, entry: &Entry, format: PayloadFormat, clock: &Clock) {
        match self.keys.len() {
            0 => {}
            1 => {
                self.payload.insert(0, b'[');
                self.payload.push(b',');
            }
            _ => self.payload.push(b','),
        }
        entry.write_wire(format, clock, &mut self.payload);
        self.keys.push(key);
    }

    fn close(&mut self) {
        if self.keys.len() > 1 {
            self.payload.push(b']');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Body, Record};
    use crate::time::{Now, Stamp};

    const RUN: Uuid = Uuid::from_u128(7);

    fn key(run_number: u64, seq: u64) -> Key {
        Key { run_number, seq }
    }

    fn entry(seq: u64) -> Entry {
        Entry::Record(Record {
            run: RUN,
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
        })
    }

    fn clock() -> Clock {
        let now = Now {
            boot: Duration::from_secs(1),
            wall_ms: 1,
            synced: true,
        };
        Clock::new(Uuid::nil(), 0, now)
    }

    /// A page with the records 1 to `last` of run 1, and nothing behind them on the disk.
    fn page(last: u64) -> Replay {
        let mut replay = Replay::new(16);
        assert!(replay.read_on().is_some());
        let entries = (1..=last).map(|seq| (key(1, seq), entry(seq)));
        assert!(replay.read(entries.collect(), true, |_, _| false));
        replay
    }

    fn keys(batch: Option<Batch>) -> Vec<u64> {
        let keys = batch.map(|batch| batch.keys).unwrap_or_default();
        keys.into_iter().map(|key| key.seq).collect()
    }

    #[test]
    fn batches_are_in_order_and_pass_over_what_is_set_back() {
        let mut replay = page(10);
        let set_back = |key: Key| key.seq == 2;
        let mut next = |most| keys(replay.next_batch(most, usize::MAX, &clock(), set_back));
        assert_eq!(next(4), [1, 3, 4, 5]);
        assert_eq!(next(1), [6]);
        assert_eq!(next(99), [7, 8, 9, 10]);
        assert_eq!(next(99), Vec::<u64>::new());
        assert_eq!(replay.waiting(), 1);
        assert!(replay.get_waiting(key(1, 2)).is_some());
    }

    #[test]
    fn what_was_published_before_it_was_stored_is_not_published_again() {
        let mut replay = page(2);
        let since = Duration::from_secs(5);
        let ahead = [
            (key(1, 3), DeliveryState::InFlight),
            (key(1, 4), DeliveryState::AwaitingServerAck(since)),
        ];
        replay.more_on_disk(ahead);
        replay.await_server_ack(key(1, 3), since);
        assert_eq!(replay.oldest_awaiting(), Some(since));
        assert_eq!(replay.read_on(), Some((Some(key(1, 2)), 254)));
        let entries = (3..=5).map(|seq| (key(1, seq), entry(seq))).collect();
        assert!(replay.read(entries, true, |_, _| false));
        assert_eq!(
            keys(replay.next_batch(99, usize::MAX, &clock(), |_| false)),
            [1, 2, 5]
        );
        replay.send_again(since);
        assert_eq!(
            keys(replay.next_batch(99, usize::MAX, &clock(), |_| false)),
            [3, 4]
        );
    }

    #[test]
    fn it_reads_on_before_the_page_has_run_out_and_drops_what_a_former_session_asked_for() {
        let mut replay = page(200);
        replay.more_on_disk([]);
        assert_eq!(replay.read_on(), None, "the page is full enough");
        for seq in 1..=100 {
            replay.remove(key(1, seq));
        }
        assert_eq!(replay.read_on(), Some((Some(key(1, 200)), 156)));
        assert_eq!(replay.read_on(), None, "it is being read");
        replay.start_over();
        assert!(!replay.read(vec![(key(1, 201), entry(201))], true, |_, _| false));
        assert_eq!(replay.read_on(), Some((None, 256)));
    }

    #[test]
    fn acks_find_the_records_of_their_run() {
        let mut replay = page(5);
        replay.more_on_disk([]);
        replay.read_on();
        let other = Entry::Gap(crate::telemetry::Loss {
            of_run: Uuid::from_u128(8),
            from_seq: 2,
            to_seq: 9,
            count: 8,
            reason: "backlog-full".into(),
        });
        replay.read(vec![(key(2, 2), other)], true, |_, _| false);
        assert_eq!(replay.within(RUN, 4, 99), [key(1, 4), key(1, 5)]);
        let gap = |from, to| replay.within(Uuid::from_u128(8), from, to);
        assert_eq!(gap(1, 9), [key(2, 2)]);
        assert_eq!(gap(1, 8), [], "a gap is acked as a whole");
        assert_eq!(gap(9, 1), []);
    }
}
