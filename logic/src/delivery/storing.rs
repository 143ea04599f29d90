//! What goes to the disk and when, what is read back, and what is removed there.
//!
//! On a healthy link nothing goes there at all. Nothing here writes: all of it is orders.

use std::time::Duration;

use super::{Copy, Delivery, Disk, FORGET_AFTER, Forget, Held, Phase, Replayed};
use crate::{Entry, Key, KeyRange, Output};

/// Published records that await the server's ack in memory, beside their copy on the disk.
const LIVE_ON_DISK: usize = 1_024;
/// Records read from the backlog at a time.
const PAGE: usize = 256;
/// After a failed write, the next try.
const STORE_RETRY: Duration = Duration::from_secs(2);

impl Delivery {
    /// The backlog is open and this run has its run_number there.
    pub fn opened(&mut self, run_number: u64, records: u64, oldest_ms: Option<i64>) {
        self.disk.run_number = Some(run_number);
        self.disk.failed = false;
        self.disk.records = records;
        self.disk.oldest_ms = oldest_ms;
        self.disk.end = false;
    }

    /// What was handed over to be stored is on the disk, and `lost` records became gaps there.
    pub fn stored(&mut self, records: u64, lost: u64) {
        self.disk.storing = false;
        self.disk.failed = false;
        self.disk.storing_gaps.clear();
        if lost > 0 && self.disk.end {
            // A gap may be in front of all that was read.
            self.disk.end = false;
            self.disk.after = None;
            self.disk.stale = self.disk.fetching;
        }
        // What was handed over to be removed since then is still in that number.
        self.disk.records = records.saturating_sub(std::mem::take(&mut self.disk.removing));
        for held in &mut self.live {
            if held.copy == Copy::Storing {
                held.copy = Copy::OnDisk;
            }
        }
        // The disk has them now; those that could not be published in time come back as history.
        self.next_history = 0;
        let disk = &mut self.disk;
        let mut left = self.live.len();
        self.live.retain(|held| {
            let waits = held.phase == Phase::Waiting || left > LIVE_ON_DISK;
            let leaves = waits && held.phase != Phase::Sent && held.copy == Copy::OnDisk;
            if leaves {
                left -= 1;
                disk.read_again(held.entry.first());
            }
            !leaves
        });
    }

    /// It is not; memory keeps it until the next try.
    pub fn store_failed(&mut self, now: Duration) {
        self.disk.storing = false;
        self.disk.failed = true;
        let gaps = std::mem::take(&mut self.disk.storing_gaps);
        self.disk.gaps.splice(0..0, gaps);
        self.disk.removing = 0;
        self.disk.retry_at = Some(now + STORE_RETRY);
        self.next_history = 0;
        // What could not be sent live and was left to the disk: memory looks at it once more.
        self.next_live = 0;
        for held in &mut self.live {
            if held.copy == Copy::Storing {
                held.copy = Copy::None;
            }
        }
        self.bound_memory();
    }

    /// A page of the backlog came.
    pub fn fetched(&mut self, entries: Vec<(Key, Entry)>, end: bool) {
        self.disk.fetching = false;
        if std::mem::take(&mut self.disk.stale) || !self.is_up() {
            return;
        }
        self.disk.end = end;
        for (key, entry) in entries {
            self.disk.after = Some(key);
            // Memory cares for its own; and what was read again may be in the page already.
            let place = self.page.partition_point(|replayed| replayed.key < key);
            let in_page = self.page.get(place).is_some_and(|next| next.key == key);
            let own = self.disk.run_number == Some(key.run_number);
            // A gap is delivered though memory has, or had, what it counts as lost.
            let in_memory = own && self.is_live(key.seq) && matches!(entry, Entry::Record(_));
            if in_page || in_memory || self.forget.has(key, entry.last()) {
                continue;
            }
            let replayed = Replayed {
                key,
                entry,
                phase: Phase::Waiting,
            };
            self.page.insert(place, replayed);
        }
        if end {
            // All of the disk is known now: the page, copies of what memory has, what is to go.
            let on_disk = |held: &&Held| held.copy == Copy::OnDisk;
            let own = self.live.iter().filter(on_disk).count();
            self.disk.records = (self.page.len() + own) as u64 + self.forget.records;
        }
    }

    /// Whether records must go to the disk now; then [`Delivery::commit`] is to be called.
    pub fn commit_due(&self, now: Duration) -> bool {
        self.commit_at().is_some_and(|at| now >= at)
    }

    /// Hands every record that the disk does not have over to it, as one group, with the ids of
    /// commands obeyed. False when that cannot be done now.
    pub fn commit(&mut self, command_ids: Vec<String>, last_seq: u64, now: Duration) -> bool {
        let waits = self.disk.retry_at.is_some_and(|at| now < at);
        if self.disk.run_number.is_none() || self.disk.storing || waits {
            return false;
        }
        self.disk.storing_gaps = std::mem::take(&mut self.disk.gaps);
        let gaps = self.disk.storing_gaps.iter().cloned();
        let mut entries: Vec<Entry> = gaps.map(Entry::Gap).collect();
        for held in &mut self.live {
            if held.copy == Copy::None && held.phase != Phase::Confirmed {
                held.copy = Copy::Storing;
                entries.push(held.entry.clone());
            }
        }
        if self.disk.records == 0 {
            self.disk.oldest_ms = entries.iter().find_map(Entry::wall_ms);
        }
        self.disk.storing = true;
        self.disk.removing = 0;
        self.disk.retry_at = None;
        self.orders.push_back(Output::Append {
            entries,
            command_ids,
            last_seq,
        });
        true
    }

    /// The run ends: all that is not on the disk is handed over once more, whatever is known of the disk.
    /// What cannot be stored the store notes, and the next run reports it as lost. Gives the number.
    pub fn hand_over_the_rest(&mut self, command_ids: Vec<String>, last_seq: u64) -> usize {
        let entries: Vec<Entry> = self
            .live
            .iter()
            .filter(|held| held.copy != Copy::OnDisk && held.phase != Phase::Confirmed)
            .map(|held| held.entry.clone())
            .collect();
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

    /// Removals that wait are handed over at once; the daemon is about to end.
    pub fn hand_over_forgets(&mut self) {
        let Forget {
            ranges, records, ..
        } = std::mem::take(&mut self.forget);
        if !ranges.is_empty() {
            self.disk.records = self.disk.records.saturating_sub(records);
            self.disk.removing += records;
            self.orders.push_back(Output::Discard(ranges));
        }
    }

    pub(super) fn commit_at(&self) -> Option<Duration> {
        if self.disk.run_number.is_none() || self.disk.storing || !self.begun {
            return None;
        }
        if !self.disk.gaps.is_empty() {
            return Some(self.disk.retry_at.unwrap_or_default());
        }
        // Half of the time is for the disk, so that the promise holds when the time is over.
        let oldest = self
            .live
            .iter()
            .find(|held| held.copy == Copy::None)?
            .made_at;
        let due = oldest + self.settings.durable_within / 2;
        Some(self.disk.retry_at.map_or(due, |at| due.max(at)))
    }

    /// While a page is read, what was confirmed is remembered, since it may be in that page.
    pub(super) fn forget_at(&self) -> Option<Duration> {
        self.forget.due.filter(|_| !self.disk.fetching)
    }

    /// Reads on when the page runs low. What is confirmed is removed first, so that it is not read.
    pub(super) fn fetch(&mut self) {
        if self.can_fetch() {
            self.hand_over_forgets();
            self.disk.fetching = true;
            self.orders.push_back(Output::ReadAfter {
                after: self.disk.after,
                limit: self.page_size(),
            });
        }
    }

    /// Whether the disk may have history that is older than what memory has.
    pub(super) fn disk_first(&self) -> bool {
        self.disk.run_number.is_some() && !self.disk.end
    }

    pub(super) fn can_fetch(&self) -> bool {
        self.disk_first() && !self.disk.fetching && self.page.len() < self.page_size()
    }

    pub(super) fn page_size(&self) -> usize {
        PAGE.max(self.settings.batch)
    }

    pub(super) fn on_disk(&self) -> u64 {
        self.disk.records.saturating_sub(self.forget.records)
    }
}

impl Disk {
    /// A record of this run is left to the disk; if it was passed over, it is to be read after all.
    pub(super) fn read_again(&mut self, seq: u64) {
        self.end = false;
        if let (Some(run_number), Some(after)) = (self.run_number, self.after)
            && after >= (Key { run_number, seq })
        {
            let seq = seq.saturating_sub(1);
            self.after = Some(Key { run_number, seq });
            self.stale = self.fetching;
        }
    }
}

impl Forget {
    /// A record, or a gap up to `last`.
    pub(super) fn push(&mut self, key: Key, last: u64, now: Duration) {
        let (Key { run_number, seq }, to) = (key, last);
        match self.ranges.last_mut() {
            Some(last) if last.run_number == run_number && last.to + 1 == seq => last.to = to,
            _ => self.ranges.push(KeyRange {
                run_number,
                from: seq,
                to,
            }),
        }
        self.records += 1;
        self.due.get_or_insert(now + FORGET_AFTER);
    }

    /// Whether a record, or a gap up to `last`, is to be removed as a whole.
    pub(super) fn has(&self, key: Key, last: u64) -> bool {
        let covers = |range: &KeyRange| range.from <= key.seq && last <= range.to;
        self.ranges
            .iter()
            .any(|range| range.run_number == key.run_number && covers(range))
    }
}
