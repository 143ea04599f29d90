//! An open store: loading it, and appending to it. `entries` reads and discards, `gaps` gives up what
//! does not fit or cannot be read.
//!
//! Invariants:
//! - An entry is a chunk of records or a gap. Its key is the number of its run and its first seq. Entries of a
//!   run do not overlap, so that their keys are the order of delivery; no undelivered record is in a gap.
//! - Each batch is whole by itself: after any of them the store is true. It is durable before the next.
//! - What is in memory here is changed before the batch is applied. After an error the store must be
//!   dropped and opened again, so the two never drift apart.
//! - The newest chunk of the current run is open: each commit writes it anew until it is full. A commit of
//!   many records makes whole chunks at once.
//!
//! Sled may panic in any call: the callers (`thread`, `opening`) catch that and drop the store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;

use sled::Batch;
use uuid::Uuid;

use crate::config::{self, OnFull};
use crate::logic::telemetry::{Loss, Record};
use crate::logic::{Entry, Key};

use super::checkpoint::Checkpoint;
use super::dir::{Fault, StoreDir};
use super::entries::Partly;
use super::format::{self, ENTRY, Header, Kind, Line, MAX_CHUNK, RUN};
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
    /// Chunks of which some records are confirmed, by first key.
    pub(super) partly: HashMap<Key, Partly>,
    /// The last entry that replay has read: those up to it are pinned.
    pub(super) read_to: Option<Key>,
    pub(super) open: Option<OpenChunk>,
    /// Records given up since `take_lost`.
    pub(super) lost: u64,
    /// The checkpoint is to be written: see there.
    pub(super) checkpoint_due: bool,
    /// The number of the current run.
    pub(super) current: u64,
    pub(super) generation: u64,
    synced: u64,
}

/// The newest chunk of the current run.
#[derive(Debug)]
pub(super) struct OpenChunk {
    pub(super) key: Key,
    lines: Vec<Line>,
    bytes: usize,
}

/// Chunks that records have been packed into, and records that fit into none.
#[derive(Debug, Default)]
struct Packed {
    chunks: Vec<(Header, Vec<u8>)>,
    too_large: Vec<u64>,
    /// The first chunk has the lines of the open one.
    replaces_open: bool,
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
            partly: HashMap::new(),
            read_to: None,
            open: None,
            lost: 0,
            checkpoint_due: false,
            current: 0,
            generation: 0,
            synced: 0,
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
        store.synced = store.generation;
        store.count()?;
        Ok(store)
    }

    /// Compares what is there with what should be, if that costs little.
    fn count(&self) -> Result<(), Fault> {
        if self.runs.values().map(|run| run.bytes).sum::<u64>() > MAX_COUNTED {
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
        self.synced = self.generation;
        let current = checkpoint.number_beside(run, &self.runs);
        self.current = current;
        let noted = |of: Uuid| checkpoint.not_stored.iter().any(|loss| loss.of_run == of);
        let previous = checkpoint.runs.range(..current).next_back();
        let previous = previous.map(|(number, _)| *number);
        for (number, known) in &checkpoint.runs {
            let recent = *number == current || Some(*number) == previous;
            if !recent && !noted(known.run) && !self.runs.contains_key(number) {
                continue;
            }
            let run = self.runs.entry(*number).or_insert(Run {
                held: 0,
                gaps: 0,
                bytes: 0,
                ..*known
            });
            run.last = run.last.max(known.last);
            run.offset_ms = known.offset_ms.or(run.offset_ms);
        }
        self.runs
            .entry(current)
            .or_insert_with(|| Run::new(run, boot_id));
        self.commit(Batch::default())
    }

    /// Entries that wait: records that are not confirmed, and gaps.
    pub(super) fn waiting(&self) -> u64 {
        let stored: u64 = self.runs.values().map(|run| run.held + run.gaps).sum();
        let confirmed: u64 = self.partly.values().map(Partly::confirmed).sum();
        stored.saturating_sub(confirmed)
    }

    /// Whether it has no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.values().all(Run::is_empty)
    }

    /// Records given up since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        mem::take(&mut self.lost)
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
        let mut records: Vec<&Record> = Vec::new();
        for entry in entries {
            match entry {
                Entry::Record(record) => {
                    if records.last().is_some_and(|last| last.run != record.run) {
                        self.append_records(&mem::take(&mut records))?;
                    }
                    records.push(record);
                }
                Entry::Gap(gap) => {
                    self.append_records(&mem::take(&mut records))?;
                    self.replace_with_gap(gap)?;
                }
            }
        }
        self.append_records(&records)?;
        self.checkpoint_due |= advanced && self.generation == before;
        Ok(())
    }

    /// Records of one run, ascending.
    fn append_records(&mut self, records: &[&Record]) -> Result<(), Fault> {
        let Some(first) = records.first() else {
            return Ok(());
        };
        let Some(number) = self.number_of(first.run) else {
            let why = format!("run {} has no number in this store", first.run);
            return Err(Fault::Blocked(why));
        };
        let of = Header {
            kind: Kind::Chunk,
            count: 0,
            run_number: number,
            run: first.run,
            boot_id: first.boot_id,
            first: 0,
            last: 0,
        };
        let high = self.runs.get(&number).map_or(0, |run| run.high);
        let mut new = Vec::with_capacity(records.len());
        for record in records {
            if let Some(run) = self.runs.get_mut(&number) {
                run.learn_clock(record);
            }
            match record.seq <= high {
                true => self.insert_late(&of, format::line(record))?,
                false => new.push(format::line(record)),
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let (packed, refused) = self.make_room(&of, &mut new)?;
        let Some(gap) = refused else {
            return self.put_new(&of, packed, &new);
        };
        self.lost += gap.count;
        // A gap closes the open chunk.
        if new.first().is_some_and(|line| line.seq > gap.to_seq) {
            self.put_gap(number, gap)?;
            return self.put_new(&of, packed, &new);
        }
        self.put_new(&of, packed, &new)?;
        self.put_gap(number, gap)
    }

    /// Packs new records, and gives up, as the settings say which, what is too much.
    fn make_room(
        &mut self,
        of: &Header,
        new: &mut Vec<Line>,
    ) -> Result<(Packed, Option<Loss>), Fault> {
        let mut refused = Vec::new();
        let mut packed = self.pack(of, new);
        while !self.fits(&packed, new.len()) && !new.is_empty() {
            let drop_oldest = self.bounds.on_full == OnFull::DropOldest;
            let open = self.open.as_ref().map(|open| open.key);
            if drop_oldest && self.drop_oldest()? {
                // The packed lines have those of the open chunk, unless just that was dropped.
                if open == self.open.as_ref().map(|open| open.key) {
                    continue;
                }
            } else {
                let some = (new.len() / CHUNKS_IN_BOUND as usize).max(1);
                match drop_oldest {
                    true => refused.extend(new.drain(..some)),
                    false => refused.extend(new.drain(new.len() - some..)),
                }
                if drop_oldest {
                    self.open = None;
                }
            }
            packed = self.pack(of, new);
        }
        refused.sort_by_key(|line: &Line| line.seq);
        let gap = match (refused.first(), refused.last()) {
            (Some(first), Some(last)) => {
                let count = refused.len() as u64;
                Some(loss(of.run, first.seq, last.seq, count, FULL))
            }
            _ => None,
        };
        Ok((packed, gap))
    }

    fn fits(&self, packed: &Packed, new: usize) -> bool {
        let replaced = match (&self.open, packed.replaces_open) {
            (Some(open), true) => open.bytes,
            _ => 0,
        };
        let held: u64 = self.runs.values().map(|run| run.held).sum();
        let bytes: u64 = self.runs.values().map(|run| run.bytes).sum();
        let more: usize = packed.chunks.iter().map(|(_, value)| value.len()).sum();
        held + new as u64 <= self.bounds.max_records
            && bytes + more as u64 <= self.bounds.max_bytes.saturating_add(replaced as u64)
    }

    /// Packs new records, together with those of the open chunk where that makes fewer chunks.
    fn pack(&self, of: &Header, new: &[Line]) -> Packed {
        let most = self.records_in_chunk();
        let open = self.open.as_ref();
        let open = open.filter(|open| {
            let same = open.key.run_number == of.run_number && open.lines.len() < most;
            // One that replay has begun to confirm stays as it is.
            same && !self.partly.contains_key(&open.key)
        });
        if let Some(open) = open {
            let mut all = open.lines.clone();
            all.extend_from_slice(new);
            let packed = pack_all(of, &all, most);
            let is_one = packed.chunks.len() == 1;
            if is_one || open.lines.len() * 2 < most {
                return Packed {
                    replaces_open: true,
                    ..packed
                };
            }
        }
        pack_all(of, new, most)
    }

    /// Writes what was packed; the last chunk is the open one now.
    fn put_new(&mut self, of: &Header, packed: Packed, new: &[Line]) -> Result<(), Fault> {
        let old = self.open.take();
        self.checkpoint_due |= old.is_some() && !packed.replaces_open;
        let old = old.filter(|_| packed.replaces_open);
        let mut batch = Batch::default();
        let mut size = 0;
        if let Some(old) = &old
            && let Some(run) = self.runs.get_mut(&of.run_number)
        {
            run.subtract(old.lines.len() as u16, old.bytes);
        }
        let mut lines = old.map(|old| old.lines).unwrap_or_default();
        lines.extend_from_slice(new);
        let most = self.records_in_chunk();
        let chunks = packed.chunks.len();
        for (n, (header, value)) in packed.chunks.into_iter().enumerate() {
            if size + value.len() > MAX_UNSYNCED {
                self.commit(mem::take(&mut batch))?;
                size = 0;
            }
            size += value.len();
            let bytes = value.len();
            let key = Key {
                run_number: header.run_number,
                seq: header.first,
            };
            let inside = |line: &&Line| (header.first..=header.last).contains(&line.seq);
            self.put_chunk(&mut batch, &header, value);
            let is_full = usize::from(header.count) >= most;
            self.checkpoint_due |= is_full || n + 1 < chunks;
            if n + 1 == chunks && !is_full {
                let lines = lines.iter().filter(inside).cloned().collect();
                self.open = Some(OpenChunk { key, lines, bytes });
            }
        }
        if chunks > 0 {
            self.commit(batch)?;
        }
        for seq in packed.too_large {
            self.lost += 1;
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
        let mut batch = Batch::default();
        let covering = self.entry_at(key)?.filter(|entry| entry.key <= key);
        let mut lines = Vec::new();
        if let Some(entry) = covering {
            // What was given up stays so; what is damaged is for the reader.
            let Ok((_, chunk)) = format::unpack_lines(&entry.value) else {
                return Ok(());
            };
            if chunk.nameless > 0 || chunk.lines.iter().any(|held| held.seq == line.seq) {
                return Ok(());
            }
            lines = chunk.lines;
            self.remove_entry(&mut batch, &entry);
        }
        let place = lines.partition_point(|held| held.seq < line.seq);
        lines.insert(place, line);
        for (header, value) in pack_all(of, &lines, self.records_in_chunk()).chunks {
            self.put_chunk(&mut batch, &header, value);
        }
        self.commit(batch)
    }

    /// Adds a chunk to a batch, and to the account of its run.
    pub(super) fn put_chunk(&mut self, batch: &mut Batch, header: &Header, value: Vec<u8>) {
        if let Some(run) = self.runs.get_mut(&header.run_number) {
            run.add(header, value.len());
            self.dirty.insert(header.run_number);
        }
        let key = Key {
            run_number: header.run_number,
            seq: header.first,
        };
        batch.insert(format::entry_key(key), value);
    }

    /// Packs lines of one run, ascending, into chunks, and adds these to a batch.
    pub(super) fn put_lines(&mut self, batch: &mut Batch, of: &Header, lines: &[Line]) {
        for (header, value) in pack_all(of, lines, MAX_CHUNK).chunks {
            self.put_chunk(batch, &header, value);
        }
    }

    /// Applies a batch together with the runs that have changed. It is durable when this returns.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<(), Fault> {
        self.apply(batch)?;
        self.sync()
    }

    /// As `commit`, but not synced: for a store that nobody opens before all of it is.
    pub(super) fn apply(&mut self, mut batch: Batch) -> Result<(), Fault> {
        self.generation += 1;
        // Some run has to say which batch was the last.
        self.dirty.insert(self.current);
        for number in mem::take(&mut self.dirty) {
            if let Some(run) = self.runs.get_mut(&number) {
                run.generation = self.generation;
                run.synced = self.synced;
                batch.insert(format::run_key(number), run.pack(number));
            }
        }
        self.tree.apply(batch)
    }

    /// Makes all that was applied survive a power cut.
    pub(super) fn sync(&mut self) -> Result<(), Fault> {
        self.tree.sync()?;
        self.synced = self.generation;
        Ok(())
    }

    /// The number of a run.
    pub(super) fn number_of(&self, run: Uuid) -> Option<u64> {
        let mut newest_first = self.runs.iter().rev();
        newest_first
            .find(|(_, known)| known.run == run)
            .map(|(number, _)| *number)
    }

    fn records_in_chunk(&self) -> usize {
        let part = (self.bounds.max_records / CHUNKS_IN_BOUND).clamp(1, MAX_CHUNK as u64);
        part as usize
    }
}

fn pack_all(of: &Header, lines: &[Line], most: usize) -> Packed {
    let mut packed = Packed::default();
    let mut rest = lines;
    while let Some(first) = rest.first() {
        match format::pack_chunk(of, rest, most) {
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
