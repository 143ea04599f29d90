//! Giving up records: what the bounds have no room for, what the daemon gives up, and what no run could
//! store. A loss is its gap, an entry like any other, written in the batch that drops the records.
//!
//! Drop-oldest begins behind the entries that replay has read, so that what is just being delivered is not
//! reported as lost. A gap that has been read does not grow any more. Only where everything has been read
//! does the oldest of it go all the same.

use sled::Batch;

use crate::logic::Key;
use crate::logic::telemetry::Loss;

use super::chunk;
use super::dir::Fault;
use super::entries::{HIGHEST, LOWEST, Stored, after, spread};
use super::format;
use super::run::{FULL, loss};
use super::store::Store;

impl Store {
    /// Drops the oldest chunk that may be dropped; `false` when there is none.
    pub(super) fn drop_oldest(&mut self) -> Result<bool, Fault> {
        let behind = match self.read_to {
            Some(read_to) => self.chunk_from(after(read_to))?,
            None => None,
        };
        let victim = match behind {
            None => self.chunk_from(LOWEST)?,
            behind => behind,
        };
        let Some(chunk) = victim else {
            return Ok(false);
        };
        let count = u64::from(chunk.header.count).saturating_sub(self.confirmed_of(&chunk));
        self.lost.full += count;
        let (first, last) = (chunk.header.first, chunk.header.last);
        let gap = loss(chunk.header.run, first, last, count.max(1), FULL);
        self.rewrite(&chunk, &[], vec![gap])?;
        Ok(true)
    }

    /// The first chunk whose key is `from` or greater.
    fn chunk_from(&self, from: Key) -> Result<Option<Stored>, Fault> {
        let is_it = |entry: &Stored| !entry.is_gap() && entry.key >= from;
        let mut entries = self.entries(from, HIGHEST);
        entries
            .find(|entry| entry.as_ref().map_or(true, is_it))
            .transpose()
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
        let number = self.number_of(gap.of_run)?;
        let (from, to) = (gap.from_seq, gap.to_seq);
        let reached = self.entries(key(number, from), key(number, to));
        for entry in reached.collect::<Result<Vec<_>, _>>()? {
            let Ok((_, mut lines)) = chunk::unpack_lines(&entry.value) else {
                continue;
            };
            let held = lines.len();
            lines.retain(|line| !(from..=to).contains(&line.seq));
            if lines.len() == held {
                continue;
            }
            if entry.key.seq <= from && to <= entry.header.last {
                // The whole of it, in one batch.
                return self.rewrite(&entry, &lines, vec![gap.clone()]);
            }
            self.rewrite(&entry, &lines, Vec::new())?;
        }
        self.put_gap(number, gap.clone())
    }

    /// What no entry covers of `from..=to`.
    fn free_ranges(&self, number: u64, from: u64, to: u64) -> Result<Vec<(u64, u64)>, Fault> {
        let mut free = Vec::new();
        let mut next = from;
        for entry in self.entries(key(number, from), key(number, to)) {
            let header = entry?.header;
            if header.first > next {
                free.push((next, header.first - 1));
            }
            next = header.last.saturating_add(1);
        }
        if next <= to {
            free.push((next, to));
        }
        Ok(free)
    }
}

fn key(run_number: u64, seq: u64) -> Key {
    Key { run_number, seq }
}
