//! The entries of a store: finding, reading and discarding them. What cannot be read becomes a gap.
//!
//! A discard is synced at once: the caller gathers them (1,000 records or a second), and an unsynced one at
//! the end of a replay might otherwise wait for weeks, to be sent twice after a power cut then.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use sled::{Batch, IVec};

use crate::logic::telemetry::Loss;
use crate::logic::{Entry, Key, KeyRange};

use super::chunk::{self, Line};
use super::dir::Fault;
use super::format::{self, Header, Kind};
use super::run::{DAMAGED, Run, UNREADABLE, loss};
use super::store::Store;

/// Entries discarded in a batch, at the most.
const MAX_DISCARDED: usize = 128;
/// The lowest key, and the highest.
pub(super) const LOWEST: Key = Key {
    run_number: 0,
    seq: 0,
};
pub(super) const HIGHEST: Key = Key {
    run_number: u64::MAX,
    seq: u64::MAX,
};

/// A chunk or a gap as it lies in the store. Its header need not be true where it is damaged, but it
/// covers what the key says, and nothing of the next entry.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) key: Key,
    pub(super) header: Header,
    pub(super) value: IVec,
}

/// What `read_after` gives.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Records and gaps in order.
    pub(super) entries: Vec<(Key, Entry)>,
    /// Whether there is none after them.
    pub(super) end: bool,
}

impl Page {
    /// Of a backlog in which there is nothing.
    pub(super) fn at_end() -> Page {
        Page {
            entries: Vec::new(),
            end: true,
        }
    }
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

    /// The entries that reach into `from..=to`, in order. An error is the last.
    pub(super) fn entries(
        &self,
        from: Key,
        to: Key,
    ) -> impl Iterator<Item = Result<Stored, Fault>> + '_ {
        let mut at = Some(from);
        iter::from_fn(move || {
            let entry = self.entry_at(at?).transpose()?;
            at = entry.as_ref().ok().map(|entry| after(entry.end()));
            Some(entry)
        })
        .take_while(move |entry| entry.as_ref().map_or(true, |entry| entry.key <= to))
    }

    fn stored(&self, (key, value): (Key, IVec)) -> Result<Stored, Fault> {
        let said = format::peek(&value).filter(|header| {
            header.key() == key
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
            count: (last - key.seq + 1).min(chunk::MAX_CHUNK as u64) as u16,
            first: key.seq,
            last,
            ..Header::of_chunks(key.run_number, run.run, run.boot)
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
            let gap = format::unpack_gap(&entry.value).map(|gap| (entry.key, Entry::Gap(gap)));
            let is_good = gap.is_ok();
            page.entries.extend(gap.ok().filter(|_| entry.key >= from));
            return is_good;
        }
        let Ok(records) = chunk::unpack_records(&entry.value) else {
            return false;
        };
        let some_confirmed = self.confirmed_of(entry) > 0;
        for record in records {
            let seq = record.seq;
            let key = Key { seq, ..entry.key };
            if key >= from && !(some_confirmed && self.confirmed.contains(&key)) {
                page.entries.push((key, Entry::Record(record)));
            }
        }
        true
    }

    /// Puts gaps in the place of what cannot be read of an entry.
    fn repair(&mut self, entry: &Stored) -> Result<(), Fault> {
        let (mut lines, reason) = match chunk::unpack_lines(&entry.value) {
            Ok((_, lines)) => (lines, UNREADABLE),
            Err(format::Broken::Unknown) => (Vec::new(), UNREADABLE),
            Err(format::Broken::Damaged) => (Vec::new(), DAMAGED),
        };
        lines.retain(|line| {
            let seq = line.seq;
            let is_confirmed = self.confirmed.contains(&Key { seq, ..entry.key });
            !is_confirmed && line.record(&entry.header).is_some()
        });
        let Header { first, last, .. } = entry.header;
        let lost = u64::from(entry.header.count).saturating_sub(lines.len() as u64);
        let holes = holes(first, last, lines.iter().map(|line| line.seq));
        let gap = |(from, to, count)| loss(entry.header.run, from, to, count, reason);
        let gaps: Vec<Loss> = spread(&holes, lost).into_iter().map(gap).collect();
        let lost = gaps.iter().map(|gap| gap.count).sum::<u64>();
        match reason {
            UNREADABLE => self.lost.unreadable += lost,
            _ => self.lost.damaged += lost,
        }
        self.rewrite(entry, &lines, gaps)
    }

    /// Puts lines and gaps, both ascending, in the place of an entry, in one batch.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn rewrite(
        &mut self,
        entry: &Stored,
        lines: &[Line],
        gaps: Vec<Loss>,
    ) -> Result<(), Fault> {
        let mut batch = Batch::default();
        self.remove_entry(&mut batch, entry);
        let mut rest = lines;
        for gap in gaps {
            // A chunk must not reach over a gap.
            let before = rest.partition_point(|line| line.seq < gap.from_seq);
            self.put_lines(&mut batch, &entry.header, &rest[..before]);
            rest = &rest[before..];
            self.add_gap(&mut batch, entry.key.run_number, gap)?;
        }
        self.put_lines(&mut batch, &entry.header, rest);
        self.commit(batch)?;
        self.raise_low(entry.key.run_number)
    }

    /// Discards confirmed records, synced. An entry goes when the last of its records does.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn discard(&mut self, ranges: &[KeyRange]) -> Result<(), Fault> {
        let mut done = BTreeMap::new();
        for range in ranges {
            let at = |seq| Key {
                run_number: range.run_number,
                seq,
            };
            let reached = self.entries(at(range.from), at(range.to));
            for entry in reached.collect::<Result<Vec<_>, _>>()? {
                if self.confirm(&entry, range) {
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
        }
        let runs: BTreeSet<u64> = done.iter().map(|entry| entry.key.run_number).collect();
        runs.into_iter().try_for_each(|run| self.raise_low(run))
    }

    /// Notes that a range is confirmed; whether nothing of the entry is left.
    fn confirm(&mut self, entry: &Stored, range: &KeyRange) -> bool {
        let Header { first, last, .. } = entry.header;
        if range.from <= first && last <= range.to {
            return true;
        }
        if entry.is_gap() {
            return false;
        }
        // What cannot be read becomes a gap when it is read.
        let Ok((_, lines)) = chunk::unpack_lines(&entry.value) else {
            return false;
        };
        let seqs = lines.iter().map(|line| line.seq);
        let confirmed = seqs.filter(|seq| (range.from..=range.to).contains(seq));
        self.confirmed
            .extend(confirmed.map(|seq| Key { seq, ..entry.key }));
        self.confirmed_of(entry) == lines.len() as u64
    }

    /// How many records of an entry are confirmed.
    pub(super) fn confirmed_of(&self, entry: &Stored) -> u64 {
        self.confirmed.range(entry.key..=entry.end()).count() as u64
    }

    /// Takes an entry out, and off the account of its run.
    pub(super) fn remove_entry(&mut self, batch: &mut Batch, entry: &Stored) {
        batch.remove(format::entry_key(entry.key));
        let confirmed = self.confirmed.range(entry.key..=entry.end());
        for key in confirmed.copied().collect::<Vec<_>>() {
            self.confirmed.remove(&key);
        }
        if let Some(run) = self.runs.get_mut(&entry.key.run_number) {
            match entry.is_gap() {
                true => run.gaps = run.gaps.saturating_sub(1),
                false => run.subtract(entry.header.count, entry.value.len()),
            }
            self.dirty.insert(entry.key.run_number);
        }
    }

    /// Entries of a run are gone: nothing below the first that is left is held. The next batch says so.
    fn raise_low(&mut self, run_number: u64) -> Result<(), Fault> {
        let first = self.tree.first_at_or_after(Key { run_number, seq: 0 })?;
        let first = first.filter(|(key, _)| key.run_number == run_number);
        if let Some(run) = self.runs.get_mut(&run_number) {
            run.low = first.map_or(run.high.saturating_add(1), |(key, _)| key.seq);
            self.dirty.insert(run_number);
        }
        Ok(())
    }

    /// Takes runs without entries out; this one and the one before stay.
    fn drop_done_runs(&mut self, batch: &mut Batch) {
        let previous = self.runs.range(..self.current).next_back().map(|(n, _)| *n);
        let (current, dirty) = (self.current, &mut self.dirty);
        self.runs.retain(|number, run| {
            let stays = !run.is_empty() || *number == current || Some(*number) == previous;
            if !stays {
                dirty.remove(number);
                batch.remove(format::run_key(*number));
            }
            stays
        });
    }

    /// Nothing is left, though by the accounts of the runs there should be: a large store is not counted
    /// when it is opened, and this is where its lack shows.
    fn report_what_lacks(&mut self) -> Result<bool, Fault> {
        let lacking: Vec<(u64, Run)> = self
            .runs
            .iter()
            .filter(|(_, run)| !run.is_empty())
            .map(|(number, run)| (*number, *run))
            .collect();
        for (number, run) in &lacking {
            self.runs.insert(*number, run.emptied());
            self.dirty.insert(*number);
            let mut batch = Batch::default();
            if run.held > 0 {
                // Which of them it was, nobody knows any more.
                let (first, last) = (run.low.min(run.high).max(1), run.high.max(1));
                self.lost.damaged += run.held;
                let gap = loss(run.run, first, last, run.held, DAMAGED);
                self.add_gap(&mut batch, *number, gap)?;
            }
            self.commit(batch)?;
        }
        Ok(!lacking.is_empty())
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
