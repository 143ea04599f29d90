//! A set of record numbers, kept as ranges that neither touch nor overlap.
//!
//! Pure data; knows nothing of runs and devices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Ranges of numbers, both ends inclusive, ascending, each apart from the next by at least one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Intervals {
    /// First number to last number.
    spans: BTreeMap<u64, u64>,
}

impl Intervals {
    /// Adds `from..=to`; gives back the parts of it that were not there before. A range the wrong way
    /// round is empty.
    pub fn insert(&mut self, from: u64, to: u64) -> Vec<(u64, u64)> {
        if from > to {
            return Vec::new();
        }
        let mut new = Vec::new();
        let (mut low, mut high) = (from, to);
        // The next number that is not known to be in the set; none behind the last number there is.
        let mut next = Some(from);
        let begins = self.spans.range(..from).next_back();
        let begins = begins
            .filter(|(_, end)| end.saturating_add(1) >= from)
            .map_or(from, |(begin, _)| *begin);
        let met: Vec<(u64, u64)> = self
            .spans
            .range(begins..=to.saturating_add(1))
            .map(|(begin, end)| (*begin, *end))
            .collect();
        for (begin, end) in met {
            if let Some(next) = next
                && next < begin
                && next <= to
            {
                new.push((next, to.min(begin - 1)));
            }
            next = next.and_then(|next| Some(next.max(end.checked_add(1)?)));
            low = low.min(begin);
            high = high.max(end);
            self.spans.remove(&begin);
        }
        if let Some(next) = next.filter(|next| *next <= to) {
            new.push((next, to));
        }
        self.spans.insert(low, high);
        new
    }

    /// Whether `number` is in it.
    pub fn contains(&self, number: u64) -> bool {
        self.spans
            .range(..=number)
            .next_back()
            .is_some_and(|(_, end)| *end >= number)
    }

    /// How many numbers of `from..=to` are in it.
    pub fn count_within(&self, (from, to): (u64, u64)) -> u64 {
        self.iter()
            .map(|(begin, end)| (begin.max(from), end.min(to)))
            .filter(|(begin, end)| begin <= end)
            .fold(0, |sum: u64, (begin, end)| {
                sum.saturating_add((end - begin).saturating_add(1))
            })
    }

    /// How many numbers are in it.
    pub fn count(&self) -> u64 {
        self.iter().fold(0, |sum: u64, (from, to)| {
            sum.saturating_add((to - from).saturating_add(1))
        })
    }

    /// How many ranges it takes.
    pub fn ranges(&self) -> usize {
        self.spans.len()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.spans.iter().map(|(from, to)| (*from, *to))
    }

    /// As JSON; numbers always have one.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The narrowest gap between two ranges.
    pub fn narrowest_gap(&self) -> Option<(u64, u64)> {
        self.iter()
            .zip(self.iter().skip(1))
            .map(|((_, end), (begin, _))| (end + 1, begin - 1))
            .min_by_key(|(from, to)| to - from)
    }
}

impl From<Vec<(u64, u64)>> for Intervals {
    fn from(ranges: Vec<(u64, u64)>) -> Self {
        let mut set = Self::default();
        for (from, to) in ranges {
            set.insert(from, to);
        }
        set
    }
}

impl From<Intervals> for Vec<(u64, u64)> {
    fn from(set: Intervals) -> Self {
        set.spans.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_become_one_and_the_new_part_is_told() {
        let mut set = Intervals::from(vec![(1, 10), (12, 20), (30, 40)]);
        assert_eq!(set.insert(11, 11), [(11, 11)]);
        assert_eq!(set.insert(15, 35), [(21, 29)]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(1, 40)]);
        assert_eq!(set.insert(5, 7), []);
        assert_eq!(set.clone().insert(1, 45), [(41, 45)]);
    }

    #[test]
    fn the_ends_of_the_numbers_are_no_trap() {
        let mut set = Intervals::default();
        set.insert(u64::MAX, u64::MAX);
        assert_eq!(set.insert(0, u64::MAX), [(0, u64::MAX - 1)]);
        assert_eq!(set.insert(0, u64::MAX), []);
        assert_eq!(set.insert(9, 3), []);
        assert_eq!(set.count(), u64::MAX);
    }

    proptest! {
        #[test]
        fn it_is_a_set(ranges in prop::collection::vec((0..60_u64, 0..8_u64), 0..40)) {
            let (mut set, mut model) = (Intervals::default(), BTreeSet::new());
            for (from, more) in ranges {
                let new: BTreeSet<u64> = set
                    .insert(from, from + more)
                    .into_iter()
                    .flat_map(|(from, to)| from..=to)
                    .collect();
                let expected: BTreeSet<u64> =
                    (from..=from + more).filter(|n| !model.contains(n)).collect();
                prop_assert_eq!(&new, &expected);
                model.extend(new);
            }
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert_eq!(set.count_within((10, 30)), model.range(10..=30).count() as u64);
            let there: BTreeSet<u64> = set.iter().flat_map(|(from, to)| from..=to).collect();
            prop_assert_eq!(&there, &model);
            for (from, to) in set.clone().insert(1, 70) {
                prop_assert!((from..=to).all(|n| !set.contains(n)));
            }
            prop_assert!(set.narrowest_gap().is_none_or(|(from, to)| from <= to));
        }
    }
}
