//! The sled store: loading it, committing records, sealing the tail into chunks, losses, syncing.
//! Reading and forgetting are in `pages`, the bounds in `room`, making and mending in `opening`.
//!
//! Invariants:
//! - Every batch is whole by itself: after any of them the store is true, only perhaps not on the disk.
//!   Each is synced before the next: see `write`.
//! - What is in memory here is changed before the batch is applied. After an error the store must be
//!   dropped and opened again, so the two never drift apart.
//! - The chunks of a run do not overlap, and ascend. A record that comes late stays in the tail.
//! - Values are at most `format::MAX_VALUE` bytes, and `flush` is never trusted without `fdatasync`.
//!
//! Sled may panic in any call: the caller (`worker`, `opening`) catches that and drops the store.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sled::Batch;
use uuid::Uuid;

use crate::config::{self, OnFull};
use crate::logic::telemetry::{Loss, Record};
use crate::logic::{Key, Opened};

use super::account::Account;
use super::disk::{Fault, Place, sync_tree};
use super::format::{self, Line, MAX_CHUNK, MAX_VALUE};
use super::keys::{self, Chunk};
use super::ledger::{self, Losses, Run, State, pack_command, pack_loss};
use super::room::{New, Round};

/// Ids of commands that are remembered.
pub(super) const COMMANDS: usize = 256;
/// A tail of so many records of a run is sealed, the oldest `MAX_CHUNK` at a time.
const SEAL_AT: usize = 2 * MAX_CHUNK;
/// Fewer records of an earlier run than this stay single: a chunk would save nothing.
const SEAL_RUN_AT: usize = 8;
/// A commit of more bytes than this is made in parts, each of them synced.
const MOST_UNSYNCED: u64 = 16 * 1024;
/// Stores of at most so many bytes are counted when they are opened. Counting reads every page, and sled
/// keeps what it has read once; a greater one is counted by what is left when all of it is forgotten.
const COUNTED: u64 = 6 * 1024 * 1024;
/// Room that a record about a loss needs, in bytes, with something to spare.
const LOSS_ROOM: u64 = 1024;
const CACHE: u64 = 2 * 1024 * 1024;

/// An open store.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) db: sled::Db,
    pub(super) place: Place,
    pub(super) bounds: config::Backlog,
    pub(super) state: State,
    pub(super) runs: BTreeMap<u64, Run>,
    /// Runs whose value must be part of the next batch.
    pub(super) dirty: BTreeSet<u64>,
    /// Single records and the bytes of their values.
    pub(super) tail: BTreeMap<Key, u64>,
    /// Chunks of which some records are forgotten, and the seqs that are not.
    pub(super) partly: HashMap<Chunk, BTreeSet<u64>>,
    pub(super) losses: Losses,
    pub(super) round: Round,
    /// Ids of commands and their numbers, oldest first.
    pub(super) commands: VecDeque<(u64, String)>,
    ordinal: u64,
    /// A second descriptor of sled's log: see `sync`.
    log: File,
    /// The folder it was opened in, as device and inode.
    folder: (u64, u64),
    account_due: bool,
}

/// An open log that is no longer in its place.
#[derive(Debug)]
pub(super) struct Displaced {
    /// Deleted or moved away, but whole.
    pub(super) log: File,
    /// What it must at least hold.
    pub(super) account: Account,
}

impl Store {
    /// Opens the sled store in `folder` (of `place`) and reads its account; makes it when missing.
    ///
    /// # Errors
    /// `Damaged` when it does not hold what it says it holds; others as the disk gives them.
    pub(super) fn load(
        place: &Place,
        folder: &Path,
        bounds: &config::Backlog,
    ) -> Result<Store, Fault> {
        let fresh = !folder.join("db").exists();
        let db = sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE)
            .flush_every_ms(None)
            .open()
            .map_err(|error| place.sled_fault(error))?;
        let log = File::open(folder.join("db")).map_err(|error| place.fault(&error))?;
        if fresh {
            sync_tree(folder).map_err(|error| place.fault(&error))?;
        }
        let meta = folder.metadata().map_err(|error| place.fault(&error))?;
        let mut store = Store {
            folder: (meta.dev(), meta.ino()),
            db,
            place: place.clone(),
            bounds: bounds.clone(),
            state: State::default(),
            runs: BTreeMap::new(),
            dirty: BTreeSet::new(),
            tail: BTreeMap::new(),
            partly: HashMap::new(),
            losses: Losses::default(),
            round: Round::default(),
            commands: VecDeque::new(),
            ordinal: 0,
            log,
            account_due: false,
        };
        store.read()?;
        Ok(store)
    }

    /// Makes `run` the current one, under the ordinal it has or the next that is free, and puts what
    /// earlier runs left in their tails in order.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn begin(&mut self, run: Uuid, boot_id: Uuid, least: u64) -> Result<(), Fault> {
        let known = self.runs.iter().find(|(_, known)| known.run == run);
        if let Some((ordinal, _)) = known {
            self.ordinal = *ordinal;
        } else {
            let highest = self.runs.keys().next_back().copied().unwrap_or(0);
            self.ordinal = highest.saturating_add(1).max(least);
            self.runs.insert(self.ordinal, Run::new(run, boot_id));
            self.dirty.insert(self.ordinal);
        }
        let earlier: Vec<u64> = self.runs.range(..self.ordinal).map(|(o, _)| *o).collect();
        for ordinal in earlier {
            while self.seal(ordinal, SEAL_RUN_AT)? {}
        }
        let mut batch = Batch::default();
        self.drop_done_runs(&mut batch);
        if !self.dirty.is_empty() {
            self.write(batch)?;
        }
        self.sync()?;
        self.write_account()
    }

    /// Whether the log on the path is the log that is open. A person or a script may delete, rename or
    /// replace the folder of a running daemon: sled writes on into a file that no restart will find.
    pub(super) fn is_in_place(&self) -> bool {
        let same = |meta: std::io::Result<std::fs::Metadata>, id: (u64, u64)| {
            meta.is_ok_and(|meta| (meta.dev(), meta.ino()) == id)
        };
        let folder = self.place.store();
        let log = self.log.metadata().map(|meta| (meta.dev(), meta.ino()));
        same(folder.metadata(), self.folder)
            && log.is_ok_and(|log| same(folder.join("db").metadata(), log))
    }

    /// The log and what it must hold, to be salvaged when it is no longer in its place.
    pub(super) fn displaced(&self) -> Option<Displaced> {
        Some(Displaced {
            log: self.log.try_clone().ok()?,
            account: self.account(),
        })
    }

    /// What the daemon is told of it.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn opened(&mut self) -> Result<Opened, Fault> {
        let oldest = self.fetch(None, 1)?.records.into_iter().next();
        Ok(Opened {
            oldest_ms: oldest.map(|(_, record)| record.stamp.wall_ms),
            ordinal: self.ordinal,
            previous: self
                .runs
                .range(..self.ordinal)
                .next_back()
                .map(|(_, run)| (run.run, run.high.max(run.last))),
            records: self.records(),
            clocks: self
                .runs
                .values()
                .filter_map(|run| Some((run.boot, run.offset_ms?)))
                .collect(),
            command_ids: self.commands.iter().map(|(_, id)| id.clone()).collect(),
        })
    }

    /// Records that are held and not forgotten.
    pub(super) fn records(&self) -> u64 {
        let forgotten: u64 = self
            .partly
            .iter()
            .map(|(chunk, left)| u64::from(chunk.count).saturating_sub(left.len() as u64))
            .sum();
        self.state.records.saturating_sub(forgotten)
    }

    /// Whether a record that tells of a loss would be kept. While new records are refused it would not,
    /// and what it tells would be told twice.
    pub(super) fn may_tell(&self) -> bool {
        self.bounds.on_full != OnFull::DropNewest
            || self.state.records < self.bounds.max_records
                && self.state.bytes + LOSS_ROOM <= self.bounds.max_bytes
    }

    /// Puts records (of this run, ascending) and command ids on the disk, and that the run has given
    /// numbers up to `last_seq`. When it returns they survive
    /// a power cut, or a loss does that counts those for which there was no room.
    ///
    /// # Errors
    /// As sled and the disk give them; then nothing is promised of the records.
    pub(super) fn commit(
        &mut self,
        records: &[Record],
        ids: &[String],
        last_seq: u64,
    ) -> Result<(), Fault> {
        let first = self.state.records == 0;
        let mut new = VecDeque::with_capacity(records.len());
        for record in records {
            if let Some(run) = self.runs.get_mut(&self.ordinal) {
                run.learns(record.stamp);
            }
            if let Some(single) = self.pack(record)? {
                new.push_back(single);
            }
        }
        self.make_room(&mut new)?;
        if new.len() >= SEAL_AT {
            // What was in the tail before comes before it in the chunks too.
            while self.seal(self.ordinal, SEAL_RUN_AT)? {}
            self.pack_in_bulk(&mut new)?;
        }
        while self.seal(self.ordinal, SEAL_AT)? {}
        let mut further = false;
        if let Some(run) = self.runs.get_mut(&self.ordinal)
            && run.last < last_seq
        {
            run.last = last_seq;
            self.dirty.insert(self.ordinal);
            further = true;
        }
        let mut ids = ids;
        while !new.is_empty() || !ids.is_empty() || further {
            let mut batch = Batch::default();
            let mut size = 0;
            while size < MOST_UNSYNCED
                && let Some((key, _, value)) = new.pop_front()
            {
                let bytes = value.len() as u64;
                size += bytes;
                batch.insert(keys::tail(key), value);
                self.tail.insert(key, bytes);
                self.state.records += 1;
                self.state.bytes += bytes;
                self.dirty.insert(key.ordinal);
                if let Some(run) = self.runs.get_mut(&key.ordinal) {
                    run.gains(key.seq);
                }
            }
            self.remember(&mut batch, ids);
            ids = &[];
            further = false;
            self.write(batch)?;
        }
        self.sync()?;
        if self.account_due || (first && self.state.records > 0) {
            self.write_account()?;
        }
        Ok(())
    }

    /// Packs so many new records that they need not be singles first: those would only leave holes in
    /// sled's log. What is less than a chunk stays in `new`.
    fn pack_in_bulk(&mut self, new: &mut VecDeque<New>) -> Result<(), Fault> {
        while new.len() >= MAX_CHUNK {
            let mut of = None;
            let mut lines = Vec::with_capacity(MAX_CHUNK);
            for (_, _, value) in new.iter().take(MAX_CHUNK) {
                let Ok((header, single)) = format::unpack_lines(value) else {
                    return Ok(());
                };
                of = Some(header);
                lines.extend(single.lines);
            }
            let Some(of) = of else {
                return Ok(());
            };
            let Some((header, value)) = format::pack_chunk(&of, &lines) else {
                return Ok(());
            };
            for (key, ..) in new.drain(..usize::from(header.count)) {
                self.state.records += 1;
                self.dirty.insert(key.ordinal);
                if let Some(run) = self.runs.get_mut(&key.ordinal) {
                    run.gains(key.seq);
                }
            }
            self.state.bytes += value.len() as u64;
            let chunk = Chunk {
                ordinal: header.ordinal,
                first: header.first,
                last: header.last,
                count: header.count,
            };
            let mut batch = Batch::default();
            batch.insert(chunk.bytes(), value);
            self.account_due = true;
            self.write(batch)?;
        }
        Ok(())
    }

    /// Notes that the loss with this id has been told and need not be told again.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn forget_loss(&mut self, id: u64) -> Result<(), Fault> {
        if self.losses.remove(id) {
            let mut batch = Batch::default();
            batch.remove(keys::numbered(keys::LOSS, id));
            self.write(batch)?;
            self.sync()?;
        }
        Ok(())
    }

    /// Notes a loss in `batch`; the last one grows instead, when no record lies between the two.
    pub(super) fn add_loss(&mut self, batch: &mut Batch, mut loss: Loss) -> Result<(), Fault> {
        let open = self
            .losses
            .open_for(&loss)
            .map(|(id, old)| (id, old.clone()));
        let id = match open {
            Some((id, old)) if self.continues(&old, &loss)? => {
                loss.from_seq = old.from_seq;
                loss.count += old.count;
                id
            }
            _ => {
                self.state.last_loss += 1;
                self.state.last_loss
            }
        };
        batch.insert(keys::numbered(keys::LOSS, id), pack_loss(id, &loss));
        self.losses.put(id, loss);
        Ok(())
    }

    /// Notes as lost what earlier runs could not store. What `run` could not, memory still has.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn note_losses(&mut self, losses: &[Loss], run: Uuid) -> Result<(), Fault> {
        for loss in losses.iter().filter(|loss| loss.of_run != run) {
            let known = self.losses.all.values().any(|old| old == loss);
            if !known {
                let mut batch = Batch::default();
                self.repeat_loss(&mut batch, loss.clone());
                self.write(batch)?;
            }
        }
        Ok(())
    }

    /// Notes a loss in `batch` as it is: one that was told before, in a record that is now given up.
    pub(super) fn repeat_loss(&mut self, batch: &mut Batch, loss: Loss) {
        self.state.last_loss += 1;
        let id = self.state.last_loss;
        batch.insert(keys::numbered(keys::LOSS, id), pack_loss(id, &loss));
        self.losses.all.insert(id, loss);
    }

    /// Applies a batch together with the totals and the runs that have changed, synced. Sled relies on
    /// the order of its writes, and a card keeps it at a sync alone: of several batches, or a large one,
    /// a power cut can leave the later part without the earlier, and then nothing opens.
    pub(super) fn write(&mut self, batch: Batch) -> Result<(), Fault> {
        self.apply(batch)?;
        self.sync()
    }

    /// As `write`, but not synced: for a store that nobody opens before all of it is.
    pub(super) fn apply(&mut self, mut batch: Batch) -> Result<(), Fault> {
        self.state.generation += 1;
        let oldest = self.losses.all.keys().next().copied();
        self.state.oldest_loss = oldest.unwrap_or(self.state.last_loss + 1);
        for ordinal in std::mem::take(&mut self.dirty) {
            if let Some(run) = self.runs.get_mut(&ordinal) {
                run.generation = self.state.generation;
                batch.insert(keys::numbered(keys::RUN, ordinal), run.pack(ordinal));
            }
        }
        batch.insert(&keys::STATE, self.state.pack());
        self.db
            .apply_batch(batch)
            .map_err(|error| self.place.sled_fault(error))
    }

    /// Makes all that was written survive a power cut. Sled's `flush` alone does not: on Linux it is
    /// `sync_file_range`, which neither waits for the drive nor writes the file's metadata.
    pub(super) fn sync(&mut self) -> Result<(), Fault> {
        let flushed = self
            .db
            .flush()
            .map_err(|error| self.place.sled_fault(error))?;
        if flushed > 0 {
            self.log
                .sync_data()
                .map_err(|error| self.place.fault(&error))?;
        }
        self.state.synced = self.state.generation;
        Ok(())
    }

    /// Writes the account; only after a `sync`, so that it never says more than the disk holds.
    pub(super) fn write_account(&mut self) -> Result<(), Fault> {
        self.account_due = false;
        self.account()
            .write(&self.place.account())
            .map_err(|error| self.place.fault(&error))
    }

    fn account(&self) -> Account {
        Account {
            generation: self.state.generation,
            ordinal: self.ordinal,
            records: self.state.records > 0,
            run: self.runs.get(&self.ordinal).copied(),
            not_stored: Vec::new(),
        }
    }

    /// Sets the lowest held seq of a run, `gone` being removed with the next batch.
    pub(super) fn refresh_low(
        &mut self,
        ordinal: u64,
        gone: &BTreeSet<Chunk>,
    ) -> Result<(), Fault> {
        let Some(run) = self.runs.get(&ordinal).copied() else {
            return Ok(());
        };
        let from = Key { ordinal, seq: 0 };
        let mut low = run.high.saturating_add(1);
        if run.held > 0 {
            let end = keys::chunks_from(Key {
                ordinal: ordinal.saturating_add(1),
                seq: 0,
            });
            for item in self.db.range(keys::chunks_from(from)..end) {
                let (key, _) = item.map_err(|error| self.place.sled_fault(error))?;
                if let Some(chunk) = Chunk::parse(&key).filter(|chunk| !gone.contains(chunk)) {
                    low = chunk.first;
                    break;
                }
            }
            if let Some((key, _)) = self.tail.range(from..).next()
                && key.ordinal == ordinal
            {
                low = low.min(key.seq);
            }
        }
        if let Some(run) = self.runs.get_mut(&ordinal) {
            run.low = low;
            self.dirty.insert(ordinal);
        }
        Ok(())
    }

    /// Takes records off the totals.
    pub(super) fn lose_count(&mut self, ordinal: u64, records: u64, bytes: u64) {
        self.state.records = self.state.records.saturating_sub(records);
        self.state.bytes = self.state.bytes.saturating_sub(bytes);
        if let Some(run) = self.runs.get_mut(&ordinal) {
            run.held = run.held.saturating_sub(records);
        }
        self.dirty.insert(ordinal);
    }

    /// Puts the account of runs without records out of `batch`; this one and the one before stay.
    pub(super) fn drop_done_runs(&mut self, batch: &mut Batch) {
        let previous = self.runs.range(..self.ordinal).next_back().map(|(o, _)| *o);
        let done: Vec<u64> = self
            .runs
            .iter()
            .filter(|(ordinal, run)| {
                run.held == 0 && **ordinal != self.ordinal && Some(**ordinal) != previous
            })
            .map(|(ordinal, _)| *ordinal)
            .collect();
        for ordinal in done {
            self.runs.remove(&ordinal);
            self.dirty.remove(&ordinal);
            batch.remove(keys::numbered(keys::RUN, ordinal));
        }
    }

    /// Writes what is left to write and shuts sled down; panics in it are the caller's to catch.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn close(mut self) -> Result<(), Fault> {
        self.sync()?;
        self.write_account()
    }

    /// The ordinal and the value of a record that is to be stored; none when it is there already,
    /// or can never be stored, which is noted as a loss.
    fn pack(&mut self, record: &Record) -> Result<Option<(Key, Line, Vec<u8>)>, Fault> {
        let ordinal = self
            .runs
            .iter()
            .rev()
            .find(|(_, run)| run.run == record.run)
            .map(|(ordinal, _)| *ordinal);
        let value = format::pack_single(ordinal.unwrap_or(0), record);
        let key = match ordinal {
            Some(ordinal) if value.len() <= MAX_VALUE => Key {
                ordinal,
                seq: record.seq,
            },
            _ => {
                let mut batch = Batch::default();
                self.add_loss(
                    &mut batch,
                    loss(record.run, record.seq, record.seq, 1, ledger::REFUSED),
                )?;
                self.write(batch)?;
                return Ok(None);
            }
        };
        if self.holds(key)? {
            return Ok(None);
        }
        let line = Line {
            seq: record.seq,
            json: String::new(),
            record: Some(record.clone()),
        };
        Ok(Some((key, line, value)))
    }

    /// Seals the oldest records of a run's tail when it has `at` or more; whether it did.
    fn seal(&mut self, ordinal: u64, at: usize) -> Result<bool, Fault> {
        let sealed = self.last_chunk(ordinal)?.map_or(0, |chunk| chunk.last);
        let from = Key {
            ordinal,
            seq: sealed.saturating_add(1),
        };
        let to = Key {
            ordinal,
            seq: u64::MAX,
        };
        if sealed == u64::MAX || self.tail.range(from..=to).take(at).count() < at {
            return Ok(false);
        }
        let keys: Vec<Key> = self
            .tail
            .range(from..=to)
            .take(MAX_CHUNK)
            .map(|(key, _)| *key)
            .collect();
        let mut batch = Batch::default();
        let mut of = None;
        let mut lines = Vec::with_capacity(keys.len());
        for key in &keys {
            match self.single(*key)? {
                Some((header, line)) => {
                    of = Some(header);
                    lines.push(line);
                }
                None => self.drop_damaged_single(&mut batch, *key)?,
            }
        }
        let packed = of.and_then(|of| format::pack_chunk(&of, &lines));
        if let Some((header, value)) = packed {
            for line in lines.iter().take(usize::from(header.count)) {
                let key = Key {
                    ordinal,
                    seq: line.seq,
                };
                batch.remove(keys::tail(key));
                let bytes = self.tail.remove(&key).unwrap_or(0);
                self.state.bytes = self.state.bytes.saturating_sub(bytes);
            }
            self.state.bytes += value.len() as u64;
            let chunk = Chunk {
                ordinal,
                first: header.first,
                last: header.last,
                count: header.count,
            };
            batch.insert(chunk.bytes(), value);
            self.account_due = true;
            self.write(batch)?;
            return Ok(true);
        }
        self.write(batch)?;
        Ok(false)
    }

    /// Reads everything but the chunks, and compares what is there with what should be.
    fn read(&mut self) -> Result<(), Fault> {
        let fault = |error| self.place.sled_fault(error);
        let wrong = |what: &str| Fault::Damaged(format!("{what} of the store cannot be read"));
        if let Some(bytes) = self.db.get(keys::STATE).map_err(fault)? {
            (_, self.state) = format::unpack_json(&bytes).map_err(|_| wrong("the account"))?;
        } else if !self.db.is_empty() {
            return Err(wrong("the account"));
        }
        for item in self.db.scan_prefix([keys::RUN]) {
            let (_, bytes) = item.map_err(fault)?;
            let (header, run): (_, Run) =
                format::unpack_json(&bytes).map_err(|_| wrong("a run"))?;
            self.runs.insert(header.ordinal, run);
        }
        let mut losses = BTreeMap::new();
        for item in self.db.scan_prefix([keys::LOSS]) {
            let (_, bytes) = item.map_err(fault)?;
            let (header, loss) = format::unpack_json(&bytes).map_err(|_| wrong("a loss"))?;
            losses.insert(header.ordinal, loss);
        }
        self.losses = Losses::new(losses);
        for item in self.db.scan_prefix([keys::COMMAND]) {
            let (key, bytes) = item.map_err(fault)?;
            let (_, id) = format::unpack_json(&bytes).map_err(|_| wrong("a command id"))?;
            let number = keys::parse_numbered(&key).ok_or_else(|| wrong("a command id"))?;
            self.commands.push_back((number, id));
        }
        for item in self.db.scan_prefix([keys::TAIL]) {
            let (key, bytes) = item.map_err(fault)?;
            let key = keys::parse_tail(&key).ok_or_else(|| wrong("a key"))?;
            self.tail.insert(key, bytes.len() as u64);
        }
        if self.state.bytes <= COUNTED {
            let mut counted = self.tail.len() as u64;
            for item in self.db.scan_prefix([keys::CHUNK]) {
                let (key, _) = item.map_err(fault)?;
                let chunk = Chunk::parse(&key).ok_or_else(|| wrong("a key"))?;
                counted += u64::from(chunk.count);
            }
            if counted != self.state.records {
                return Err(Fault::Damaged(format!(
                    "the store holds {counted} records where it should hold {}",
                    self.state.records
                )));
            }
        }
        Ok(())
    }

    fn remember(&mut self, batch: &mut Batch, ids: &[String]) {
        for id in ids {
            self.state.last_command += 1;
            let number = self.state.last_command;
            batch.insert(
                keys::numbered(keys::COMMAND, number),
                pack_command(number, id),
            );
            self.commands.push_back((number, id.clone()));
        }
        while self.commands.len() > COMMANDS {
            if let Some((number, _)) = self.commands.pop_front() {
                batch.remove(keys::numbered(keys::COMMAND, number));
            }
        }
    }
}

/// A loss.
pub(super) fn loss(of_run: Uuid, from_seq: u64, to_seq: u64, count: u64, reason: &str) -> Loss {
    Loss {
        of_run,
        from_seq,
        to_seq,
        count,
        reason: reason.to_owned(),
    }
}
