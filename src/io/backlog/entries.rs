//! The entries of a store: finding, reading and discarding them. What cannot be read becomes a gap.
//!
//! A discard is synced at once: the caller gathers them (1,000 records or a second), and an unsynced one at
//! the end of a replay might otherwise wait for weeks, to be sent twice after a power cut then.

use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeMap, BTreeSet};

use sled::{Batch, IVec};

use crate::logic::{Entry, Key, KeyRange};

use super::dir::Fault;
use super::format::{self, Header, Kind, Line};
use super::run::{DAMAGED, UNREADABLE, loss};
use super::store::Store;

/// Entries discarded in a batch, at the most.
const MAX_DISCARDED: usize = 128;
/// The lowest key.
pub(super) const LOWEST: Key = Key {
    run_number: 0,
    seq: 0,
};

/// A chunk or a gap as it lies in the store. Its header need not be true where it is damaged, but it
/// covers what the key says, and nothing of the next entry.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) key: Key,
    pub(super) header: Header,
    pub(super) value: IVec,
}

/// A chunk of which some records are confirmed. A crash forgets that, and they come again.
#[derive(Debug)]
pub(super) struct Partly {
    /// Those that are not.
    left: BTreeSet<u64>,
    /// All of them.
    count: u64,
}

/// What `read_after` gives.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Records and gaps in order.
    pub(super) entries: Vec<(Key, Entry)>,
    /// Whether there is none after them.
    pub(super) end: bool,
}

impl Stored {
    /// Its last key.
    pub(super) fn end(&self) -> Key {
        Key {
            seq: self.header.last,
            ..self.key
        }
    }

    pub(super) fn is_gap(&self) -> bool {
        self.header.kind == Kind::Gap
    }
}

impl Partly {
    pub(super) fn confirmed(&self) -> u64 {
        self.count.saturating_sub(self.left.len() as u64)
    }
}

impl Store {
    /// The first entry that ends at `from` or later.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn entry_at(&self, from: Key) -> Result<Option<Stored>, Fault> {
        // Entries do not overlap: only the one that begins before `from` can reach into it.
        if let Some(found) = self.tree.last_at_or_before(from)? {
            let entry = self.stored(found)?;
            if entry.end() >= from {
                return Ok(Some(entry));
            }
        }
        match self.tree.first_at_or_after(from)? {
            Some(found) => self.stored(found).map(Some),
            None => Ok(None),
        }
    }

    fn stored(&self, (key, value): (Key, IVec)) -> Result<Stored, Fault> {
        let said = format::peek(&value).filter(|header| {
            header.run_number == key.run_number
                && header.first == key.seq
                && header.last >= key.seq
                && matches!(header.kind, Kind::Chunk | Kind::Gap)
        });
        if let Some(header) = said {
            return Ok(Stored { key, header, value });
        }
        // Nothing is left of it but its place.
        let run = self.runs.get(&key.run_number).copied().unwrap_or_default();
        let next = self.tree.first_at_or_after(after(key))?;
        let last = match next {
            Some((next, _)) if next.run_number == key.run_number => next.seq - 1,
            _ => run.high.max(key.seq),
        };
        let header = Header {
            kind: Kind::Chunk,
            count: (last - key.seq + 1).min(format::MAX_CHUNK as u64) as u16,
            run_number: key.run_number,
            run: run.run,
            boot_id: run.boot,
            first: key.seq,
            last,
        };
        Ok(Stored { key, header, value })
    }

    /// About `limit` records and gaps (at least one, at most a chunk more) after `after`, in order. From
    /// then on these entries are pinned, until the store is read from its beginning again.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn read_after(&mut self, from: Option<Key>, limit: usize) -> Result<Page, Fault> {
        let mut page = Page::default();
        let from = from.map_or(LOWEST, after);
        if from == LOWEST {
            self.read_to = None;
        }
        let mut at = from;
        while page.entries.len() < limit.max(1)
            && let Some(entry) = self.entry_at(at)?
        {
            if !self.read_entry(&entry, from, &mut page) && self.dir.has_room().is_ok() {
                self.repair(&entry)?;
                continue;
            }
            at = after(entry.end());
            self.read_to = self.read_to.max(Some(entry.key));
        }
        page.end = self.entry_at(at)?.is_none();
        if page.end && page.entries.is_empty() && from == LOWEST && self.report_what_lacks()? {
            return self.read_after(None, limit);
        }
        Ok(page)
    }

    /// Adds what an entry holds from `from` on; `false` when a part of it cannot be read.
    fn read_entry(&self, entry: &Stored, from: Key, page: &mut Page) -> bool {
        if entry.is_gap() {
            let gap = format::unpack_gap(&entry.value);
            if let Ok(gap) = gap {
                if entry.key >= from {
                    page.entries.push((entry.key, Entry::Gap(gap)));
                }
                return true;
            }
            return false;
        }
        let Ok((_, chunk)) = format::unpack_lines(&entry.value) else {
            return false;
        };
        if chunk.nameless > 0 || chunk.lines.iter().any(|line| line.record.is_none()) {
            return false;
        }
        let left = self.partly.get(&entry.key).map(|partly| &partly.left);
        for line in chunk.lines {
            let key = Key {
                seq: line.seq,
                ..entry.key
            };
            let waits = key >= from && left.is_none_or(|left| left.contains(&line.seq));
            if let Some(record) = line.record.filter(|_| waits) {
                page.entries.push((key, Entry::Record(record)));
            }
        }
        true
    }

    /// Puts gaps in the place of what cannot be read of an entry.
    fn repair(&mut self, entry: &Stored) -> Result<(), Fault> {
        let (lines, reason) = match format::unpack_lines(&entry.value) {
            Ok((_, chunk)) => (chunk.lines, UNREADABLE),
            Err(format::Broken::Unknown) => (Vec::new(), UNREADABLE),
            Err(format::Broken::Damaged) => (Vec::new(), DAMAGED),
        };
        let left = self.partly.get(&entry.key).map(|partly| &partly.left);
        let left = |seq: u64| left.is_none_or(|left| left.contains(&seq));
        let good: Vec<Line> = lines
            .into_iter()
            .filter(|line| line.record.is_some() && left(line.seq))
            .collect();
        let Header { first, last, .. } = entry.header;
        let lost = u64::from(entry.header.count).saturating_sub(good.len() as u64);
        let holes = holes(first, last, good.iter().map(|line| line.seq));
        let mut batch = Batch::default();
        self.remove_entry(&mut batch, entry);
        self.put_around(&mut batch, &entry.header, &good, &holes);
        for (from, to, count) in spread(&holes, lost) {
            self.lost += count;
            let gap = loss(entry.header.run, from, to, count, reason);
            self.add_gap(&mut batch, entry.key.run_number, gap)?;
        }
        self.commit(batch)
    }

    /// Packs lines into chunks that do not reach over any of `holes`.
    pub(super) fn put_around(
        &mut self,
        batch: &mut Batch,
        of: &Header,
        lines: &[Line],
        holes: &[(u64, u64)],
    ) {
        let mut rest = lines;
        for (from, _) in holes {
            let before = rest.partition_point(|line| line.seq < *from);
            self.put_lines(batch, of, &rest[..before]);
            rest = &rest[before..];
        }
        self.put_lines(batch, of, rest);
    }

    /// Discards confirmed records, synced. An entry goes when the last of its records does.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn discard(&mut self, ranges: &[KeyRange]) -> Result<(), Fault> {
        let mut done = BTreeMap::new();
        for range in ranges.iter().filter(|range| range.from <= range.to) {
            let mut at = Key {
                run_number: range.run_number,
                seq: range.from,
            };
            while let Some(entry) = self.entry_at(at)? {
                if entry.key.run_number != range.run_number || entry.key.seq > range.to {
                    break;
                }
                at = after(entry.end());
                if self.is_done(&entry, range) {
                    done.insert(entry.key, entry);
                }
            }
        }
        let done: Vec<Stored> = done.into_values().collect();
        for some in done.chunks(MAX_DISCARDED) {
            let mut batch = Batch::default();
            for entry in some {
                self.remove_entry(&mut batch, entry);
            }
            self.drop_done_runs(&mut batch);
            self.commit(batch)?;
            for entry in some {
                self.raise_low(entry.key)?;
            }
        }
        Ok(())
    }

    /// Notes that a range is confirmed; whether nothing of the entry is left.
    fn is_done(&mut self, entry: &Stored, range: &KeyRange) -> bool {
        let (from, to) = (range.from, range.to);
        if from <= entry.header.first && entry.header.last <= to {
            return true;
        }
        if entry.is_gap() {
            return false;
        }
        let partly = match self.partly.entry(entry.key) {
            Occupied(known) => known.into_mut(),
            Vacant(place) => {
                // What cannot be read becomes a gap when it is read.
                let Ok((_, chunk)) = format::unpack_lines(&entry.value) else {
                    return false;
                };
                place.insert(Partly {
                    left: chunk.lines.iter().map(|line| line.seq).collect(),
                    count: chunk.lines.len() as u64,
                })
            }
        };
        partly.left.retain(|seq| !(from..=to).contains(seq));
        partly.left.is_empty()
    }

    /// Takes an entry out, and off the account of its run.
    pub(super) fn remove_entry(&mut self, batch: &mut Batch, entry: &Stored) {
        batch.remove(format::entry_key(entry.key));
        self.partly.remove(&entry.key);
        if self.open.as_ref().is_some_and(|open| open.key == entry.key) {
            self.open = None;
        }
        if let Some(run) = self.runs.get_mut(&entry.key.run_number) {
            match entry.is_gap() {
                true => run.gaps = run.gaps.saturating_sub(1),
                false => run.subtract(entry.header.count, entry.value.len()),
            }
            self.dirty.insert(entry.key.run_number);
        }
    }

    /// An entry is gone; no record of its run below the next chunk is held. The next batch says so.
    pub(super) fn raise_low(&mut self, gone: Key) -> Result<(), Fault> {
        let Some(run) = self.runs.get(&gone.run_number).copied() else {
            return Ok(());
        };
        if gone.seq > run.low {
            return Ok(());
        }
        let mut at = gone;
        let mut low = run.high.saturating_add(1);
        while let Some(entry) = self.entry_at(at)? {
            if entry.key.run_number != gone.run_number {
                break;
            }
            if !entry.is_gap() {
                low = entry.key.seq;
                break;
            }
            at = after(entry.end());
        }
        if let Some(run) = self.runs.get_mut(&gone.run_number) {
            run.low = low;
            self.dirty.insert(gone.run_number);
        }
        Ok(())
    }

    /// Takes runs without entries out; this one and the one before stay.
    fn drop_done_runs(&mut self, batch: &mut Batch) {
        let previous = self.runs.range(..self.current).next_back().map(|(n, _)| *n);
        let current = self.current;
        let done: Vec<u64> = self
            .runs
            .iter()
            .filter(|(number, run)| {
                run.is_empty() && **number != current && Some(**number) != previous
            })
            .map(|(number, _)| *number)
            .collect();
        for number in done {
            self.runs.remove(&number);
            self.dirty.remove(&number);
            batch.remove(format::run_key(number));
        }
    }

    /// Nothing is left, though by the accounts of the runs there should be: a large store is not counted
    /// when it is opened, and this is where its lack shows.
    fn report_what_lacks(&mut self) -> Result<bool, Fault> {
        let mut lacking = false;
        for (number, run) in self.runs.clone() {
            if run.is_empty() {
                continue;
            }
            lacking = true;
            if let Some(run) = self.runs.get_mut(&number) {
                (run.held, run.gaps, run.bytes) = (0, 0, 0);
                run.low = run.high.saturating_add(1);
                self.dirty.insert(number);
            }
            let mut batch = Batch::default();
            if run.held > 0 {
                // Which of them it was, nobody knows any more.
                let (first, last) = (run.low.min(run.high).max(1), run.high.max(1));
                self.lost += run.held;
                let gap = loss(run.run, first, last, run.held, DAMAGED);
                self.add_gap(&mut batch, number, gap)?;
            }
            self.commit(batch)?;
        }
        Ok(lacking)
    }
}

/// The key after this one.
pub(super) fn after(key: Key) -> Key {
    match key.seq.checked_add(1) {
        Some(seq) => Key { seq, ..key },
        None => Key {
            run_number: key.run_number.saturating_add(1),
            seq: 0,
        },
    }
}

/// The seqs from `first` to `last` that are not among `held` (ascending), as ranges.
pub(super) fn holes(first: u64, last: u64, held: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut holes = Vec::new();
    let mut next = first;
    for seq in held.filter(|seq| (first..=last).contains(seq)) {
        if seq > next {
            holes.push((next, seq - 1));
        }
        next = seq.saturating_add(1);
    }
    if next <= last {
        holes.push((next, last));
    }
    holes
}

/// The gaps that `lost` records make when they are somewhere in `holes`: each has at least one, so that none
/// is passed over in silence, and all of them no more than they can have.
pub(super) fn spread(holes: &[(u64, u64)], lost: u64) -> Vec<(u64, u64, u64)> {
    let mut left = lost;
    let mut gaps = Vec::with_capacity(holes.len());
    for (n, (from, to)) in holes.iter().enumerate() {
        let behind = (holes.len() - n - 1) as u64;
        let count = (to - from + 1).min(left.saturating_sub(behind)).max(1);
        left = left.saturating_sub(count);
        gaps.push((*from, *to, count));
    }
    gaps
}
