//! The account of one run, as its row has it: what was received, told as lost, deleted, and is missing.
//!
//! Pure data; `ingest` changes it in the transaction that changes the records.

use serde::{Deserialize, Serialize};

use nightlight_logic::intervals::Intervals;

/// Ranges kept in a row. Beyond it the two nearest become one: the account stays right, because what
/// is in them is counted apart from where they are.
const MOST_RANGES: usize = 128;

/// What is known of one run of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// The how manieth run of the device here: 1, 2, 3 ...
    pub ordinal: u64,
    /// The highest number known to have been used.
    pub last: u64,
    /// Rows of records.
    pub received: u64,
    /// Arrivals of a record that was there already.
    pub twice: u64,
    /// How many records were told as lost. A thinned backlog loses every second record of a range.
    pub lost_told: u64,
    /// Where.
    pub losses: Intervals,
    /// How many of those in `losses` were received all the same.
    pub lost_received: u64,
    /// Received, and deleted since.
    pub deleted: u64,
    /// Where; the numbers in it are taken as known.
    pub deletions: Intervals,
}

/// received + lost + missing + deleted = 1..=last, for each run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Different records.
    pub received: u64,
    /// Arrivals of a record that was there already.
    pub twice: u64,
    /// Records that the device gave up and told so.
    pub lost: u64,
    /// The rest: not received, not told as lost; perhaps still on their way.
    pub missing: u64,
    /// Records that were received, kept as long as wanted, and deleted.
    pub deleted: u64,
}

impl Run {
    /// The account of the run.
    pub(super) fn counts(&self) -> Counts {
        let gone = self.losses.count().saturating_sub(self.lost_received);
        let lost = gone.min(self.lost_told);
        let known = self.received + self.deleted + lost;
        Counts {
            received: self.received,
            twice: self.twice,
            lost,
            missing: self.last.saturating_sub(known),
            deleted: self.deleted,
        }
    }

    /// A new record came.
    pub(super) fn receive(&mut self, seq: u64) {
        self.received += 1;
        self.lost_received += u64::from(self.losses.contains(seq));
        self.last = self.last.max(seq);
    }

    /// Records `from..=to` hold `count` losses; gives back those parts of the run in which it was not
    /// known that there are losses: how many of them were received is then to be added to `lost_received`.
    pub(super) fn lose(&mut self, (from, to): (u64, u64), count: u64) -> Vec<(u64, u64)> {
        let mut new = Vec::new();
        let mut wider = Some((from, to));
        while let Some((from, to)) = wider {
            new.extend(self.losses.insert(from, to));
            wider = narrowest(&self.losses);
        }
        self.lost_told = self.lost_told.saturating_add(count);
        self.last = self.last.max(to);
        new
    }

    /// Records `from..=to`, of which there were `count`, were deleted.
    pub(super) fn delete(&mut self, (from, to): (u64, u64), count: u64) {
        let mut wider = Some((from, to));
        while let Some((from, to)) = wider {
            self.deletions.insert(from, to);
            wider = narrowest(&self.deletions);
        }
        self.received = self.received.saturating_sub(count);
        self.deleted += count;
    }
}

fn narrowest(ranges: &Intervals) -> Option<(u64, u64)> {
    (ranges.ranges() > MOST_RANGES)
        .then(|| ranges.narrowest_gap())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thinned_range_counts_what_was_told_and_no_more() {
        let mut run = Run {
            last: 10,
            ..Run::default()
        };
        assert_eq!(run.lose((1, 9), 5), [(1, 9)]);
        assert_eq!(run.counts().lost, 5);
        assert_eq!(run.counts().missing, 5);
        for seq in [2, 4, 6, 8, 10] {
            run.receive(seq);
        }
        assert_eq!((run.counts().lost, run.counts().missing), (5, 0));
    }

    #[test]
    fn many_ranges_become_fewer_and_the_account_stays() {
        let mut run = Run::default();
        for n in 1..=1_000 {
            run.lose((n * 10, n * 10), 1);
        }
        assert!(run.losses.ranges() <= MOST_RANGES);
        assert_eq!(run.counts().lost, 1_000);
        assert_eq!(run.counts().missing, 9_000);
    }

    #[test]
    fn what_was_deleted_is_neither_missing_nor_received() {
        let mut run = Run::default();
        for seq in 1..=10 {
            run.receive(seq);
        }
        run.delete((1, 6), 6);
        let counts = run.counts();
        assert_eq!((counts.received, counts.deleted, counts.missing), (4, 6, 0));
    }
}
