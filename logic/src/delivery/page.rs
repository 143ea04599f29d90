//! The page: values in the order of their keys. The newest come at one end, and mostly the oldest leave at the
//! other; whichever leaves, it costs the same however many there are. Used by `replay` alone.

use std::collections::VecDeque;

use crate::Key;

/// Empty slots beyond this and beyond the number of values are cleared away.
const MAX_EMPTY: usize = 64;

/// Values in the order of their keys.
#[derive(Debug, Clone)]
pub(super) struct Page<T> {
    /// Ascending. A value that has left leaves its slot behind, until all before it have left.
    slots: VecDeque<(Key, Option<T>)>,
    /// Slots with a value.
    len: usize,
}

impl<T> Page<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: VecDeque::new(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let place = self.place_of(key).ok()?;
        self.slots.get(place)?.1.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.place_of(key).ok()?;
        self.slots.get_mut(place)?.1.as_mut()
    }

    /// Adds a value; false when there is one with this key, which stays.
    pub(super) fn insert(&mut self, key: Key, value: T) -> bool {
        let is_newest = self.slots.back().is_none_or(|(newest, _)| *newest < key);
        if is_newest {
            self.slots.push_back((key, Some(value)));
        } else {
            match self.place_of(key) {
                Err(place) => self.slots.insert(place, (key, Some(value))),
                Ok(place) => match self.slots.get_mut(place) {
                    Some((_, slot @ None)) => *slot = Some(value),
                    _ => return false,
                },
            }
        }
        self.len += 1;
        true
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.place_of(key).ok()?;
        let value = self.slots.get_mut(place)?.1.take()?;
        self.len -= 1;
        while let Some((_, None)) = self.slots.front() {
            self.slots.pop_front();
        }
        if self.slots.len() > 2 * self.len + MAX_EMPTY {
            self.slots.retain(|(_, value)| value.is_some());
        }
        Some(value)
    }

    /// Keeps the values of which `keep` says so.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(Key, &mut T) -> bool) {
        self.slots.retain_mut(|(key, slot)| {
            let key = *key;
            slot.as_mut().is_some_and(|value| keep(key, value))
        });
        self.len = self.slots.len();
    }

    /// Takes all of them out, and gives the memory back.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }

    /// The values, ascending, from `key` on.
    pub(super) fn from(&self, key: Key) -> impl Iterator<Item = (Key, &T)> {
        let place = self.place_of(key).unwrap_or_else(|place| place);
        let slots = self.slots.range(place..);
        slots.filter_map(|(key, value)| Some((*key, value.as_ref()?)))
    }

    /// The same, to be changed.
    pub(super) fn mut_from(&mut self, key: Key) -> impl Iterator<Item = (Key, &mut T)> {
        let place = self.place_of(key).unwrap_or_else(|place| place);
        let slots = self.slots.range_mut(place..);
        slots.filter_map(|(key, value)| Some((*key, value.as_mut()?)))
    }

    /// The slot with this key, or where it would be.
    fn place_of(&self, key: Key) -> Result<usize, usize> {
        // The numbers of a run seldom have holes.
        if let Some((first, _)) = self.slots.front()
            && let Some(ahead) = key.seq.checked_sub(first.seq)
            && let Ok(place) = usize::try_from(ahead)
            && self.slots.get(place).is_some_and(|(at, _)| *at == key)
        {
            return Ok(place);
        }
        self.slots.binary_search_by_key(&key, |(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_behaves_as_a_sorted_map() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut page = Page::new();
        let mut model = BTreeMap::new();
        for step in 0..20_000_u32 {
            let key = Key {
                run_number: random.u64(1..=2),
                seq: u64::from(step / 40) + random.u64(..60),
            };
            match random.u8(..10) {
                0..5 => {
                    let is_new = !model.contains_key(&key);
                    assert_eq!(page.insert(key, step), is_new);
                    model.entry(key).or_insert(step);
                }
                5..9 => assert_eq!(page.remove(key), model.remove(&key)),
                _ => {
                    page.retain(|key, value| key.seq % 50 != u64::from(*value % 50));
                    model.retain(|key, value| key.seq % 50 != u64::from(*value % 50));
                }
            }
            assert_eq!(page.len(), model.len());
            assert_eq!(page.is_empty(), model.is_empty());
            assert_eq!(page.get(key), model.get(&key));
            assert_eq!(page.get_mut(key), model.get_mut(&key));
            assert!(page.slots.len() <= 2 * page.len + MAX_EMPTY);
            let expected = model.range(key..).map(|(key, value)| (*key, value));
            assert!(page.from(key).eq(expected));
            assert_eq!(page.mut_from(key).count(), model.range(key..).count());
        }
        page.clear();
        assert!(page.is_empty() && page.slots.capacity() == 0);
    }
}
