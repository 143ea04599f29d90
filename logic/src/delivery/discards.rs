//! Confirmed records that are still on the disk.
//!
//! They are handed over to the store in batches of 1,000, or after 1 s: a batch costs the store a sync. A crash
//! before that sends them again, so that where the window is small, which keeps duplicates few, one window of
//! them makes a batch. While the store is reading, they stay here, because they may be among what
//! it is about to give. Used by `delivery` alone.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::timers::{Timer, Timers};
use crate::{Key, KeyRange};

/// More never wait for company.
const MAX_BATCH: u64 = 1_000;
/// A window of so many records is small.
const SMALL_WINDOW: usize = 64;
/// Nor for longer than this.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Confirmed records that are still on the disk.
#[derive(Debug, Clone)]
pub(super) struct Discards {
    /// First record of a range to its last `seq`; neighbours are one range.
    ranges: BTreeMap<Key, u64>,
    records: u64,
    /// So many make a batch.
    batch: u64,
}

impl Discards {
    /// None yet. `in_window` records can be in flight at a time.
    pub(super) fn new(in_window: usize) -> Self {
        Self {
            ranges: BTreeMap::new(),
            records: 0,
            batch: match in_window {
                ..=SMALL_WINDOW => in_window as u64,
                _ => MAX_BATCH,
            },
        }
    }

    /// A record on the disk is confirmed, or a gap up to `last`.
    pub(super) fn add(&mut self, key: Key, last: u64, now: Duration, timers: &mut Timers) {
        if self.contains(key, last) {
            return;
        }
        let Key { run_number, seq } = key;
        let after = Key {
            run_number,
            seq: last.saturating_add(1),
        };
        let to = self.ranges.remove(&after).unwrap_or(last);
        match self.ranges.range_mut(..key).next_back() {
            Some((from, last)) if from.run_number == run_number && *last + 1 == seq => *last = to,
            _ => drop(self.ranges.insert(key, to)),
        }
        if self.records == 0 {
            timers.set(Timer::Discard, now + MAX_WAIT);
        }
        self.records += 1;
    }

    /// Whether the record, or the gap up to `last`, is here as a whole.
    pub(super) fn contains(&self, key: Key, last: u64) -> bool {
        let before = self.ranges.range(..=key).next_back();
        before.is_some_and(|(from, to)| from.run_number == key.run_number && last <= *to)
    }

    /// Hands all of them over.
    pub(super) fn take(&mut self, timers: &mut Timers) -> Vec<KeyRange> {
        self.records = 0;
        timers.stop(Timer::Discard);
        let ranges = std::mem::take(&mut self.ranges).into_iter();
        ranges
            .map(
                |(
                    Key {
                        run_number,
                        seq: from,
                    },
                    to,
                )| KeyRange {
                    run_number,
                    from,
                    to,
                },
            )
            .collect()
    }

    /// How many records are here.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Whether there are enough for a batch, or they have waited long enough.
    pub(super) fn is_due(&self, timers: &Timers) -> bool {
        self.records >= self.batch || self.records > 0 && !timers.is_set(Timer::Discard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range_and_runs_stay_apart() {
        let (mut discards, mut timers) = (Discards::new(4), Timers::default());
        assert!(!discards.is_due(&timers));
        for (run_number, seq) in [(1, 5), (1, 7), (1, 6), (2, 8), (1, 6), (1, 1)] {
            discards.add(Key { run_number, seq }, seq, Duration::ZERO, &mut timers);
        }
        assert_eq!(discards.records(), 5);
        assert!(timers.is_set(Timer::Discard) && discards.is_due(&timers));
        for (run_number, seq, is_here) in [(1, 6, true), (1, 8, false), (2, 7, false), (2, 8, true)]
        {
            assert_eq!(discards.contains(Key { run_number, seq }, seq), is_here);
        }
        let ranges = discards.take(&mut timers);
        let range = |run_number, from, to| KeyRange {
            run_number,
            from,
            to,
        };
        assert_eq!(ranges, [range(1, 1, 1), range(1, 5, 7), range(2, 8, 8)]);
        assert!(!timers.is_set(Timer::Discard) && !discards.is_due(&timers));
    }
}
