//! Giving up records: what the bounds have no room for, what the daemon gives up, and what no run could
//! store. A loss is its gap, an entry like any other, written in the batch that drops the records.
//!
//! Drop-oldest begins behind the entries that replay has read, so that what is just being delivered is not
//! reported as lost. A gap that has been read does not grow any more. Only where everything has been read
//! does the oldest of it go all the same.

use sled::Batch;

use crate::logic::Key;
use crate::logic::telemetry::Loss;

use super::dir::Fault;
use super::entries::{LOWEST, Stored, after, spread};
use super::format;
use super::run::{FULL, loss};
use super::store::Store;

impl Store {
    /// Drops the oldest chunk that may be dropped; `false` when there is none.
    pub(super) fn drop_oldest(&mut self) -> Result<bool, Fault> {
        let behind = self.read_to.map(after);
        let mut victim = match behind {
            Some(from) => self.chunk_from(from)?,
            None => None,
        };
        if victim.is_none() {
            victim = self.chunk_from(LOWEST)?;
        }
        let Some(chunk) = victim else {
            return Ok(false);
        };
        let number = chunk.key.run_number;
        let confirmed = self.partly.get(&chunk.key).map_or(0, |p| p.confirmed());
        let count = u64::from(chunk.header.count).saturating_sub(confirmed);
        let mut batch = Batch::default();
        self.remove_entry(&mut batch, &chunk);
        self.lost += count;
        let (first, last) = (chunk.header.first, chunk.header.last);
        let gap = loss(chunk.header.run, first, last, count.max(1), FULL);
        self.add_gap(&mut batch, number, gap)?;
        self.commit(batch)?;
        self.raise_low(chunk.key)?;
        Ok(true)
    }

    /// Adds a gap to a batch. It joins the one before it where they are of one kind and nothing is between.
    pub(super) fn add_gap(
        &mut self,
        batch: &mut Batch,
        number: u64,
        mut gap: Loss,
    ) -> Result<(), Fault> {
        let mut key = Key {
            run_number: number,
            seq: gap.from_seq,
        };
        let mut joined = false;
        if let Some(seq) = gap.from_seq.checked_sub(1)
            && let Some((before, value)) = self.tree.last_at_or_before(Key { seq, ..key })?
            && self.read_to.is_none_or(|read_to| before > read_to)
            && let Ok(old) = format::unpack_gap(&value)
            && old.reason == gap.reason
            && old.to_seq == seq
        {
            key = before;
            gap.from_seq = old.from_seq;
            gap.count += old.count;
            joined = true;
        }
        if let Some(run) = self.runs.get_mut(&number) {
            run.gaps += u64::from(!joined);
            run.high = run.high.max(gap.to_seq);
            run.last = run.last.max(gap.to_seq);
            self.dirty.insert(number);
        }
        batch.insert(format::entry_key(key), format::pack_gap(number, &gap));
        Ok(())
    }

    /// Puts a gap where there is no entry; what is held stays.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn put_gap(&mut self, number: u64, gap: Loss) -> Result<(), Fault> {
        // A chunk must not reach over it.
        self.open = None;
        let free = self.free_ranges(number, gap.from_seq, gap.to_seq)?;
        for (from_seq, to_seq, count) in spread(&free, gap.count) {
            let mut batch = Batch::default();
            let part = Loss {
                from_seq,
                to_seq,
                count,
                ..gap.clone()
            };
            self.add_gap(&mut batch, number, part)?;
            self.commit(batch)?;
        }
        Ok(())
    }

    /// The daemon gives records up: a gap takes the place of those that the store has.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn replace_with_gap(&mut self, gap: &Loss) -> Result<(), Fault> {
        let Some(number) = self.number_of(gap.of_run) else {
            let why = format!("run {} has no number in this store", gap.of_run);
            return Err(Fault::Blocked(why));
        };
        let mut at = Key {
            run_number: number,
            seq: gap.from_seq,
        };
        while let Some(entry) = self.entry_at(at)? {
            if entry.key.run_number != number || entry.key.seq > gap.to_seq {
                break;
            }
            at = after(entry.end());
            let lines = format::unpack_lines(&entry.value).ok();
            let Some((header, chunk)) = lines.filter(|_| !entry.is_gap()) else {
                continue;
            };
            let (inside, mut kept): (Vec<_>, Vec<_>) = chunk
                .lines
                .into_iter()
                .partition(|line| (gap.from_seq..=gap.to_seq).contains(&line.seq));
            if inside.is_empty() {
                continue;
            }
            kept.sort_by_key(|line| line.seq);
            let mut batch = Batch::default();
            self.remove_entry(&mut batch, &entry);
            let hole = (gap.from_seq, gap.to_seq);
            self.put_around(&mut batch, &header, &kept, &[hole]);
            if entry.key.seq <= gap.from_seq && gap.to_seq <= entry.header.last {
                // The whole of it, in one batch.
                self.add_gap(&mut batch, number, gap.clone())?;
                self.commit(batch)?;
                return self.raise_low(entry.key);
            }
            self.commit(batch)?;
        }
        self.put_gap(number, gap.clone())
    }

    /// What no entry covers of `from..=to`.
    fn free_ranges(&self, number: u64, from: u64, to: u64) -> Result<Vec<(u64, u64)>, Fault> {
        let mut free = Vec::new();
        let mut next = from;
        while next <= to
            && let Some(entry) = self.entry_at(Key {
                run_number: number,
                seq: next,
            })?
            && entry.key.run_number == number
            && entry.key.seq <= to
        {
            if entry.key.seq > next {
                free.push((next, entry.key.seq - 1));
            }
            next = entry.header.last.saturating_add(1);
        }
        if next <= to {
            free.push((next, to));
        }
        Ok(free)
    }

    /// The first chunk whose key is `from` or greater.
    fn chunk_from(&self, from: Key) -> Result<Option<Stored>, Fault> {
        let mut at = from;
        while let Some(entry) = self.entry_at(at)? {
            if !entry.is_gap() && entry.key >= from {
                return Ok(Some(entry));
            }
            at = after(entry.end());
        }
        Ok(None)
    }
}
