//! An open store: loading it, and appending to it. `entries` reads and discards, `gaps` gives up what
//! does not fit or cannot be read.
//!
//! Invariants:
//! - An entry is a chunk of records or a gap. Its key is the number of its run and its first seq. Entries of a
//!   run do not overlap, so that their keys are the order of delivery; no undelivered record is in a gap.
//! - Each batch is whole by itself: after any of them the store is true. It is durable before the next.
//! - What is in memory here is changed before the batch is applied. After an error the store must be
//!   dropped and opened again, so the two never drift apart.
//! - The newest chunk of a run is open: each commit writes it anew until it is full, unless something of it is
//!   confirmed. A commit of many records makes whole chunks at once.
//!
//! Sled may panic in any call: the callers (`thread`, `opening`) catch that and drop the store.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use sled::Batch;
use uuid::Uuid;

use crate::config::{self, OnFull};
use crate::logic::counters::StoreLosses;
use crate::logic::telemetry::Record;
use crate::logic::{Entry, Key};

use super::checkpoint::Checkpoint;
use super::chunk::{self, Line, MAX_CHUNK};
use super::dir::{Fault, StoreDir};
use super::entries::Stored;
use super::format::{self, ENTRY, Header, Kind, RUN};
use super::run::{FULL, Run, TOO_LARGE, loss};
use super::tree::{MAX_UNSYNCED, Tree};

/// Stores of at most so many bytes are counted when they are opened. Counting reads every page, and sled
/// keeps what it has read once; what a larger one lacks shows when all that is left of it is discarded.
const MAX_COUNTED: u64 = 6 * 1024 * 1024;
/// A chunk has no more than this part of `max_records`: dropping one must not empty a small store.
const CHUNKS_IN_BOUND: u64 = 8;

/// An open store.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) tree: Tree,
    pub(super) dir: StoreDir,
    pub(super) bounds: config::Backlog,
    pub(super) runs: BTreeMap<u64, Run>,
    /// Runs whose value must be part of the next batch.
    pub(super) dirty: BTreeSet<u64>,
    /// Confirmed records in chunks that are not confirmed as a whole. A crash forgets this, and they come again.
    pub(super) confirmed: BTreeSet<Key>,
    /// The last entry that replay has read: those up to it are pinned.
    pub(super) read_to: Option<Key>,
    /// Records given up, and the daemon has not been told.
    pub(super) lost: StoreLosses,
    /// The checkpoint is to be written: see there.
    pub(super) checkpoint_due: bool,
    /// The number of the current run.
    pub(super) current: u64,
    /// Batches so far. Each is durable before the next, so this is also the last one that is.
    pub(super) generation: u64,
}

/// Chunks that records have been packed into.
#[derive(Debug, Default)]
struct Packed {
    chunks: Vec<(Header, Vec<u8>)>,
    /// Records that fit into none.
    too_large: Vec<u64>,
    /// The open chunk, whose records are in the first of these.
    replaces: Option<Stored>,
}

impl Store {
    /// Reads what the store knows of itself.
    ///
    /// # Errors
    /// `Damaged` when it does not hold what it says it holds, or was made by another version.
    pub(super) fn load(
        tree: Tree,
        dir: &StoreDir,
        bounds: &config::Backlog,
    ) -> Result<Store, Fault> {
        let mut store = Store {
            tree,
            dir: dir.clone(),
            bounds: bounds.clone(),
            runs: BTreeMap::new(),
            dirty: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            read_to: None,
            lost: StoreLosses::default(),
            checkpoint_due: false,
            current: 0,
            generation: 0,
        };
        // The key under which version 1 kept its totals.
        if store.tree.get(b"s")?.is_some() {
            let why = "the store was made by an earlier version of nightlight";
            return Err(Fault::Damaged(why.into()));
        }
        for item in store.tree.all(RUN) {
            let (_, value) = item?;
            let run = format::unpack_json::<Run>(&value);
            let (header, run) =
                run.map_err(|_| Fault::Damaged("a run of the store cannot be read".into()))?;
            store.runs.insert(header.run_number, run);
            store.generation = store.generation.max(run.generation);
        }
        store.count()?;
        Ok(store)
    }

    /// Bytes of all entries, compressed.
    pub(super) fn bytes(&self) -> u64 {
        self.runs.values().map(|run| run.bytes).sum()
    }

    /// Compares what is there with what should be, if that costs little.
    fn count(&self) -> Result<(), Fault> {
        if self.bytes() > MAX_COUNTED {
            return Ok(());
        }
        let mut counted: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for item in self.tree.all(ENTRY) {
            let (key, value) = item?;
            let header = format::peek(&value).filter(|header| {
                format::parse_entry_key(&key).is_some_and(|key| key.run_number == header.run_number)
            });
            let header =
                header.ok_or_else(|| Fault::Damaged("a key of the store cannot be read".into()))?;
            let (records, gaps) = counted.entry(header.run_number).or_default();
            *records += u64::from(header.count);
            *gaps += u64::from(header.kind == Kind::Gap);
        }
        for (number, run) in &self.runs {
            let (records, gaps) = counted.remove(number).unwrap_or_default();
            if (records, gaps) != (run.held, run.gaps) {
                return Err(Fault::Damaged(format!(
                    "the store holds {records} records of run {number} where it should hold {}",
                    run.held
                )));
            }
        }
        match counted.is_empty() {
            true => Ok(()),
            false => Err(Fault::Damaged(
                "the store holds records of unknown runs".into(),
            )),
        }
    }

    /// Makes `run` the one whose records are appended, under the number that it has or the next that is
    /// free, and takes over what the checkpoint knows.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn begin(
        &mut self,
        run: Uuid,
        boot_id: Uuid,
        checkpoint: &Checkpoint,
    ) -> Result<(), Fault> {
        self.generation = self.generation.max(checkpoint.generation);
        self.current = checkpoint.number_beside(run, &self.runs);
        for (number, known) in &checkpoint.runs {
            let run = self.runs.entry(*number).or_insert(known.emptied());
            run.last = run.last.max(known.last);
            run.offset_ms = known.offset_ms.or(run.offset_ms);
        }
        self.runs
            .entry(self.current)
            .or_insert_with(|| Run::new(run, boot_id));
        self.commit(Batch::default())
    }

    /// Entries that wait: records that are not confirmed, and gaps.
    pub(super) fn waiting(&self) -> u64 {
        let stored: u64 = self.runs.values().map(|run| run.held + run.gaps).sum();
        stored.saturating_sub(self.confirmed.len() as u64)
    }

    /// Whether it has no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.values().all(Run::is_empty)
    }

    /// Appends entries in order, and notes that the run has given numbers up to `last_seq`. When it
    /// returns they survive a power cut, or a gap does that counts those for which there was no room.
    ///
    /// # Errors
    /// As sled and the disk give them; then nothing is promised of the entries.
    pub(super) fn append(&mut self, entries: &[Entry], last_seq: u64) -> Result<(), Fault> {
        let before = self.generation;
        let run = self.runs.get_mut(&self.current);
        let advanced = run.filter(|run| run.last < last_seq);
        let advanced = advanced.map(|run| run.last = last_seq).is_some();
        let are_of_one_run = |a: &Entry, b: &Entry| match (a, b) {
            (Entry::Record(a), Entry::Record(b)) => a.run == b.run,
            _ => false,
        };
        for some in entries.chunk_by(are_of_one_run) {
            match some {
                [Entry::Gap(gap), ..] => self.replace_with_gap(gap)?,
                records => self.append_records(records)?,
            }
        }
        self.checkpoint_due |= advanced && self.generation == before;
        Ok(())
    }

    /// Records of one run, ascending.
    fn append_records(&mut self, entries: &[Entry]) -> Result<(), Fault> {
        let records = entries.iter().filter_map(|entry| match entry {
            Entry::Record(record) => Some(record),
            Entry::Gap(_) => None,
        });
        let records: Vec<&Record> = records.collect();
        let Some(first) = records.first() else {
            return Ok(());
        };
        let number = self.number_of(first.run)?;
        let of = Header::of_chunks(number, first.run, first.boot_id);
        let high = self.runs.get(&number).map_or(0, |run| run.high);
        let mut new = Vec::with_capacity(records.len());
        for record in records {
            if let Some(run) = self.runs.get_mut(&number) {
                run.learn_clock(record);
            }
            match record.seq <= high {
                true => self.insert_late(&of, chunk::line(record))?,
                false => new.push(chunk::line(record)),
            }
        }
        self.append_new(&of, &new)
    }

    /// Lines behind all others of their run. What is too much is given up, as the settings say which.
    fn append_new(&mut self, of: &Header, new: &[Line]) -> Result<(), Fault> {
        let drop_oldest = self.bounds.on_full == OnFull::DropOldest;
        let (mut from, mut to) = (0, new.len());
        let packed = loop {
            // A chunk must not reach over those that were given up.
            let open = match from {
                0 => self.open_chunk(of.run_number)?,
                _ => None,
            };
            let packed = self.pack(of, open, &new[from..to]);
            if from == to || self.fits(&packed, to - from) {
                break packed;
            }
            if drop_oldest && self.drop_oldest()? {
                continue;
            }
            let some = ((to - from) / CHUNKS_IN_BOUND as usize).max(1);
            match drop_oldest {
                true => from += some,
                false => to -= some,
            }
        };
        let give_up = |store: &mut Store, refused: &[Line]| match refused {
            [] => Ok(()),
            [first, ..] => {
                let (last, count) = (&refused[refused.len() - 1], refused.len() as u64);
                store.lost.full += count;
                store.put_gap(
                    of.run_number,
                    loss(of.run, first.seq, last.seq, count, FULL),
                )
            }
        };
        give_up(self, &new[..from])?;
        self.put(of, packed)?;
        give_up(self, &new[to..])
    }

    /// The newest chunk of a run with its lines, when it may be written anew.
    fn open_chunk(&self, run_number: u64) -> Result<Option<(Stored, Vec<Line>)>, Fault> {
        let seq = self.runs.get(&run_number).map_or(0, |run| run.high);
        let newest = self.entry_at(Key { run_number, seq })?.filter(|entry| {
            let count = usize::from(entry.header.count);
            entry.key.run_number == run_number && !entry.is_gap() && count < self.max_in_chunk()
        });
        let Some(entry) = newest.filter(|entry| self.confirmed_of(entry) == 0) else {
            return Ok(None);
        };
        let whole = |lines: &Vec<Line>| lines.len() == usize::from(entry.header.count);
        let lines = chunk::unpack_lines(&entry.value).map(|(_, lines)| lines);
        Ok(lines.ok().filter(whole).map(|lines| (entry, lines)))
    }

    fn fits(&self, packed: &Packed, new: usize) -> bool {
        let replaced = packed.replaces.as_ref().map_or(0, |open| open.value.len());
        let held: u64 = self.runs.values().map(|run| run.held).sum();
        let bytes = self.bytes();
        let more: usize = packed.chunks.iter().map(|(_, value)| value.len()).sum();
        held + new as u64 <= self.bounds.max_records
            && bytes + more as u64 <= self.bounds.max_bytes.saturating_add(replaced as u64)
    }

    /// Packs new records, together with those of the open chunk where that makes fewer chunks.
    fn pack(&self, of: &Header, open: Option<(Stored, Vec<Line>)>, new: &[Line]) -> Packed {
        let most = self.max_in_chunk();
        if let Some((open, mut lines)) = open.filter(|_| !new.is_empty()) {
            let held = lines.len();
            lines.extend_from_slice(new);
            let packed = pack_all(of, &lines, most);
            if packed.chunks.len() == 1 || held * 2 < most {
                return Packed {
                    replaces: Some(open),
                    ..packed
                };
            }
        }
        pack_all(of, new, most)
    }

    /// Writes what was packed; the last chunk is the open one now.
    fn put(&mut self, of: &Header, packed: Packed) -> Result<(), Fault> {
        let mut batch = Batch::default();
        if let Some(open) = &packed.replaces {
            self.remove_entry(&mut batch, open);
        }
        let full =
            |(header, _): &(Header, Vec<u8>)| usize::from(header.count) >= self.max_in_chunk();
        let seals = packed.chunks.len() > 1 || packed.chunks.iter().any(full);
        let begins = packed.replaces.is_none() && !packed.chunks.is_empty();
        self.checkpoint_due |= seals || begins;
        let mut size = 0;
        for (header, value) in packed.chunks {
            if size + value.len() > MAX_UNSYNCED {
                self.commit(mem::take(&mut batch))?;
                size = 0;
            }
            size += value.len();
            self.put_chunk(&mut batch, &header, value);
        }
        if size > 0 {
            self.commit(batch)?;
        }
        for seq in packed.too_large {
            self.lost.too_large += 1;
            self.put_gap(of.run_number, loss(of.run, seq, seq, 1, TOO_LARGE))?;
        }
        Ok(())
    }

    /// A record that comes after those with higher seqs, or that is there already.
    fn insert_late(&mut self, of: &Header, line: Line) -> Result<(), Fault> {
        let key = Key {
            run_number: of.run_number,
            seq: line.seq,
        };
        let Some(entry) = self.entry_at(key)?.filter(|entry| entry.key <= key) else {
            let mut batch = Batch::default();
            self.put_lines(&mut batch, of, &[line]);
            return self.commit(batch);
        };
        // What was given up stays so; what is damaged is for the reader.
        let Ok((header, mut lines)) = chunk::unpack_lines(&entry.value) else {
            return Ok(());
        };
        let place = lines.binary_search_by_key(&line.seq, |held| held.seq);
        match place {
            Err(place) if lines.len() == usize::from(header.count) => lines.insert(place, line),
            _ => return Ok(()),
        }
        self.rewrite(&entry, &lines, Vec::new())
    }

    /// Adds a chunk to a batch, and to the account of its run.
    fn put_chunk(&mut self, batch: &mut Batch, header: &Header, value: Vec<u8>) {
        if let Some(run) = self.runs.get_mut(&header.run_number) {
            run.add(header, value.len());
            self.dirty.insert(header.run_number);
        }
        batch.insert(format::entry_key(header.key()), value);
    }

    /// Packs lines of one run, ascending, into chunks, and adds these to a batch.
    pub(super) fn put_lines(&mut self, batch: &mut Batch, of: &Header, lines: &[Line]) {
        for (header, value) in pack_all(of, lines, self.max_in_chunk()).chunks {
            self.put_chunk(batch, &header, value);
        }
    }

    /// Applies a batch together with the runs that have changed. It is durable when this returns.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn commit(&mut self, mut batch: Batch) -> Result<(), Fault> {
        let synced = self.generation;
        self.generation += 1;
        // Some run has to say which batch was the last.
        self.dirty.insert(self.current);
        for number in mem::take(&mut self.dirty) {
            if let Some(run) = self.runs.get_mut(&number) {
                run.generation = self.generation;
                run.synced = synced;
                batch.insert(format::run_key(number), run.pack(number));
            }
        }
        self.tree.commit(batch)
    }

    /// The number of a run.
    ///
    /// # Errors
    /// `Blocked` when this store does not know it.
    pub(super) fn number_of(&self, run: Uuid) -> Result<u64, Fault> {
        let mut newest_first = self.runs.iter().rev();
        let found = newest_first.find(|(_, known)| known.run == run);
        let why = || Fault::Blocked(format!("run {run} has no number in this store"));
        found.map(|(number, _)| *number).ok_or_else(why)
    }

    fn max_in_chunk(&self) -> usize {
        let part = (self.bounds.max_records / CHUNKS_IN_BOUND).clamp(1, MAX_CHUNK as u64);
        part as usize
    }
}

fn pack_all(of: &Header, lines: &[Line], most: usize) -> Packed {
    let mut packed = Packed::default();
    let mut rest = lines;
    while let Some(first) = rest.first() {
        match chunk::pack_chunk(of, rest, most) {
            Some((header, value)) => {
                rest = &rest[usize::from(header.count)..];
                packed.chunks.push((header, value));
            }
            None => {
                packed.too_large.push(first.seq);
                rest = &rest[1..];
            }
        }
    }
    packed
}
