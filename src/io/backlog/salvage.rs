//! What can be got back from a dead store: a raw scan of its files for our values, which describe
//! themselves and carry a checksum, and writing them into a new store in order.
//!
//! The scan takes everything that ever was a value and was not yet overwritten, so records that were
//! confirmed long ago can come back as duplicates; those below the lowest held seq are left out.
//! What the runs' accounts say was held, and is not found, becomes a loss. Only `opening` calls this.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sled::Batch;
use uuid::Uuid;

use crate::logic::telemetry::Loss;

use super::account::Account;
use super::disk::Fault;
use super::format::{self, HEADER, Header, Kind, Line, MAGIC, MAX_VALUE};
use super::keys;
use super::ledger::{DAMAGED, Run, State, pack_command};
use super::store::{Store, loss};

const BLOCK: usize = 1024 * 1024;
/// After a read error, what is skipped.
const SKIP: u64 = 64 * 1024;
/// So many entries, or twice those that were unlike, are sorted and rid of their copies.
const SORT_AT: usize = 65_536;
/// So many gaps are told one by one; more are told as one loss.
const MAX_GAPS: usize = 64;
/// Chunks in a batch.
const CHUNKS: usize = 16;
const DEPTH: usize = 3;

/// What a scan has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
    runs: BTreeMap<(u64, Uuid), Run>,
    losses: BTreeMap<u64, Loss>,
    commands: BTreeMap<u64, String>,
    state: State,
}

/// Where a value with records lies. The order is the order of the records, equal values together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    ordinal: u64,
    run: Uuid,
    first: u64,
    last: u64,
    crc: u32,
    length: u32,
    file: usize,
    at: u64,
}

/// The seqs of a run that are missing between those that were found.
#[derive(Debug, Default)]
struct Gaps {
    ranges: Vec<(u64, u64)>,
    missing: u64,
}

impl Found {
    /// Scans these files, and all files in these folders.
    pub(super) fn scan(dead: &[PathBuf], progress: &dyn Fn()) -> Found {
        let mut found = Found::default();
        for path in dead {
            // A descriptor of an open file looks like a link.
            match path.metadata() {
                Ok(meta) if meta.is_file() => found.files.push(path.clone()),
                _ => collect(path, DEPTH, &mut found.files),
            }
        }
        let mut sort_at = SORT_AT;
        for file in 0..found.files.len() {
            if let Ok(open) = File::open(&found.files[file]) {
                found.scan_file(file, &open, &mut sort_at, progress);
            }
        }
        found.sort();
        found
    }

    /// Whether nothing at all was found.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.runs.is_empty()
    }

    /// The last write that was surely on the disk.
    pub(super) fn synced(&self) -> u64 {
        self.state.synced
    }

    /// Writes what was found into a new, empty store; gives the records and the losses it made.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn refill(
        &mut self,
        store: &mut Store,
        account: &Account,
        progress: &dyn Fn(),
    ) -> Result<u64, Fault> {
        if let Some(run) = account.run {
            let known = self.runs.entry((account.ordinal, run.run)).or_insert(run);
            if known.generation < run.generation {
                *known = run;
            }
        }
        store.state.generation = self.state.generation.max(account.generation);
        store.state.synced = store.state.generation;
        let last_loss = self.losses.keys().next_back().copied().unwrap_or(0);
        store.state.last_loss = self.state.last_loss.max(last_loss);
        let oldest = self.state.oldest_loss;
        let mut batch = Batch::default();
        for (id, loss) in self.losses.range(oldest..) {
            batch.insert(
                keys::numbered(keys::LOSS, *id),
                super::ledger::pack_loss(*id, loss),
            );
            store.losses.all.insert(*id, loss.clone());
        }
        let last = self.commands.keys().next_back().copied().unwrap_or(0);
        store.state.last_command = self.state.last_command.max(last);
        let skip = self.commands.len().saturating_sub(super::store::COMMANDS);
        for (number, id) in self.commands.iter().skip(skip) {
            batch.insert(
                keys::numbered(keys::COMMAND, *number),
                pack_command(*number, id),
            );
            store.commands.push_back((*number, id.clone()));
        }
        store.apply(batch)?;
        self.refill_runs(store, progress)
    }

    fn refill_runs(&self, store: &mut Store, progress: &dyn Fn()) -> Result<u64, Fault> {
        let mut names: Vec<(u64, Uuid)> = self.runs.keys().copied().collect();
        names.extend(self.entries.iter().map(|entry| (entry.ordinal, entry.run)));
        names.sort_unstable();
        names.dedup();
        let mut records = 0;
        let mut ordinal = 0;
        for (was, run) in names {
            // Two runs with one ordinal can only come of stores that were mixed by hand.
            ordinal = was.max(ordinal + 1);
            let known = self.runs.get(&(was, run)).copied();
            let low = known.map_or(0, |known| known.low);
            let high = known.map_or(0, |known| known.high);
            let mut fresh = known.unwrap_or_else(|| Run::new(run, Uuid::nil()));
            fresh.held = 0;
            store.runs.insert(ordinal, fresh);
            store.dirty.insert(ordinal);
            let mut writer = Writer {
                store,
                of: None,
                ordinal,
                lines: Vec::new(),
                batch: Batch::default(),
                chunks: 0,
                gaps: Gaps::default(),
                low,
                high,
                next: low,
                inside: 0,
                records: 0,
            };
            self.refill_run((was, run), &mut writer, progress)?;
            records += writer.finish(run, known)?;
        }
        Ok(records)
    }

    /// Merges the values of a run: they come by their first seq, so what lies below that is complete.
    fn refill_run(
        &self,
        name: (u64, Uuid),
        writer: &mut Writer<'_>,
        progress: &dyn Fn(),
    ) -> Result<(), Fault> {
        let begin = self.entries.partition_point(|e| (e.ordinal, e.run) < name);
        let end = self.entries.partition_point(|e| (e.ordinal, e.run) <= name);
        let mut waiting: BTreeMap<u64, Line> = BTreeMap::new();
        let mut open: Option<(usize, File)> = None;
        for entry in &self.entries[begin..end] {
            progress();
            while let Some(first) = waiting.first_entry()
                && *first.key() < entry.first
            {
                writer.push(first.remove())?;
            }
            if open.as_ref().is_none_or(|(file, _)| *file != entry.file) {
                open = File::open(&self.files[entry.file])
                    .ok()
                    .map(|file| (entry.file, file));
            }
            let mut bytes = vec![0; entry.length as usize];
            let Some((_, file)) = &open else { continue };
            if file.read_exact_at(&mut bytes, entry.at).is_err() {
                continue;
            }
            let Ok((header, lines)) = format::unpack_lines(&bytes) else {
                continue;
            };
            writer.of.get_or_insert(Header {
                ordinal: writer.ordinal,
                ..header
            });
            for line in lines.lines {
                if line.seq >= writer.low {
                    waiting.entry(line.seq).or_insert(line);
                }
            }
        }
        for (_, line) in waiting {
            writer.push(line)?;
        }
        Ok(())
    }

    fn scan_file(&mut self, file: usize, open: &File, sort_at: &mut usize, progress: &dyn Fn()) {
        let size = open.metadata().map_or(0, |meta| meta.len());
        let mut block = vec![0; BLOCK + MAX_VALUE];
        let mut at = 0;
        while at < size {
            progress();
            let length = match read_up_to(open, &mut block, at) {
                Ok(length) => length,
                Err(_) => {
                    at += SKIP;
                    continue;
                }
            };
            let mut inside = 0;
            // What begins in the overlap is read with the next block, unless this is the last.
            let end = if length == block.len() { BLOCK } else { length };
            while inside < end {
                let Some(step) = find(&block[inside..length]) else {
                    inside = end;
                    break;
                };
                inside += step;
                if inside >= end {
                    break;
                }
                match self.take(file, at + inside as u64, &block[inside..length]) {
                    Some(taken) => inside += taken,
                    None => inside += MAGIC.len(),
                }
            }
            if length == 0 {
                break;
            }
            at += inside.max(1) as u64;
            if self.entries.len() >= *sort_at {
                self.sort();
                *sort_at = SORT_AT.max(2 * self.entries.len());
            }
        }
    }

    /// Takes the value at the start of `bytes`, if there is one; gives its length.
    fn take(&mut self, file: usize, at: u64, bytes: &[u8]) -> Option<usize> {
        let length = format::claimed_length(bytes)?;
        let value = bytes.get(..length)?;
        let (header, payload) = format::unpack(value).ok()?;
        match header.kind {
            Kind::Single | Kind::Chunk => self.entries.push(Entry {
                ordinal: header.ordinal,
                run: header.run,
                first: header.first,
                last: header.last,
                crc: u32::from_be_bytes(value[HEADER - 4..HEADER].try_into().ok()?),
                length: length as u32,
                file,
                at,
            }),
            Kind::Run => {
                let run: Run = serde_json::from_slice(payload).ok()?;
                let known = self.runs.entry((header.ordinal, run.run)).or_insert(run);
                if known.generation < run.generation {
                    *known = run;
                }
            }
            Kind::Loss => {
                let loss: Loss = serde_json::from_slice(payload).ok()?;
                let known = self
                    .losses
                    .entry(header.ordinal)
                    .or_insert_with(|| loss.clone());
                if known.count < loss.count {
                    *known = loss;
                }
            }
            Kind::Command => {
                let id = serde_json::from_slice(payload).ok()?;
                self.commands.insert(header.ordinal, id);
            }
            Kind::State => {
                let state: State = serde_json::from_slice(payload).ok()?;
                if state.generation > self.state.generation {
                    self.state = state;
                }
            }
        }
        Some(length)
    }

    fn sort(&mut self) {
        self.entries.sort_unstable();
        self.entries
            .dedup_by_key(|e| (e.ordinal, e.run, e.first, e.last, e.crc, e.length));
    }
}

/// Writes the records of one run, ascending.
struct Writer<'a> {
    store: &'a mut Store,
    of: Option<Header>,
    ordinal: u64,
    lines: Vec<Line>,
    batch: Batch,
    chunks: usize,
    gaps: Gaps,
    low: u64,
    high: u64,
    next: u64,
    inside: u64,
    records: u64,
}

impl Writer<'_> {
    fn push(&mut self, line: Line) -> Result<(), Fault> {
        if line.seq <= self.high {
            if line.seq > self.next {
                self.gaps.add(self.next, line.seq - 1);
            }
            self.next = line.seq + 1;
            self.inside += 1;
        }
        if let Some(run) = self.store.runs.get_mut(&self.ordinal) {
            if self.records == 0 {
                run.low = line.seq;
            }
            run.high = run.high.max(line.seq);
        }
        self.records += 1;
        self.lines.push(line);
        if self.lines.len() >= format::MAX_CHUNK {
            self.seal()?;
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<(), Fault> {
        let Some(of) = self.of else { return Ok(()) };
        if let Some(run) = self.store.runs.get_mut(&self.ordinal) {
            run.boot = of.boot_id;
        }
        let lines = std::mem::take(&mut self.lines);
        self.store.insert_lines(&mut self.batch, &of, &lines);
        self.chunks += 1;
        if self.chunks.is_multiple_of(CHUNKS) {
            self.store.place.has_room()?;
            self.store.write(std::mem::take(&mut self.batch))?;
        }
        Ok(())
    }

    /// Writes the rest and notes what is missing; gives the records written.
    fn finish(mut self, run: Uuid, known: Option<Run>) -> Result<u64, Fault> {
        self.seal()?;
        if self.records == 0
            && let Some(run) = self.store.runs.get_mut(&self.ordinal)
        {
            run.low = run.high.saturating_add(1);
        }
        if self.next <= self.high {
            self.gaps.add(self.next, self.high);
        }
        let held = known.map_or(0, |known| known.held);
        let lost = held.saturating_sub(self.inside);
        let mut batch = std::mem::take(&mut self.batch);
        for (from, to, count) in self.gaps.told(lost) {
            self.store
                .repeat_loss(&mut batch, loss(run, from, to, count, DAMAGED));
        }
        self.store.dirty.insert(self.ordinal);
        self.store.apply(batch)?;
        Ok(self.records)
    }
}

impl Gaps {
    fn add(&mut self, from: u64, to: u64) {
        self.missing += to - from + 1;
        if self.ranges.len() < MAX_GAPS {
            self.ranges.push((from, to));
        } else if let Some(last) = self.ranges.last_mut() {
            last.1 = to;
        }
    }

    /// The losses (from, to, count) that `lost` missing records make. When there are more gaps than
    /// lost records, some were never stored or were confirmed, and nobody knows which.
    fn told(&self, lost: u64) -> Vec<(u64, u64, u64)> {
        let (Some(first), Some(last)) = (self.ranges.first(), self.ranges.last()) else {
            return Vec::new();
        };
        if lost == 0 {
            return Vec::new();
        }
        let exact: u64 = self.ranges.iter().map(|(from, to)| to - from + 1).sum();
        if exact == lost && self.missing == lost {
            return self
                .ranges
                .iter()
                .map(|(from, to)| (*from, *to, to - from + 1))
                .collect();
        }
        vec![(first.0, last.1, lost)]
    }
}

fn collect(path: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    let Ok(meta) = path.symlink_metadata() else {
        return;
    };
    if meta.is_file() {
        files.push(path.to_owned());
    } else if meta.is_dir()
        && depth > 0
        && let Ok(entries) = fs::read_dir(path)
    {
        let mut inside: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        inside.sort();
        for path in inside {
            collect(&path, depth - 1, files);
        }
    }
}

fn read_up_to(file: &File, block: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match file.read_at(&mut block[length..], at + length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// Where the next magic begins.
fn find(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(step) = bytes[from..].iter().position(|byte| *byte == MAGIC[0]) {
        from += step;
        if bytes[from..].starts_with(&MAGIC) {
            return Some(from);
        }
        from += 1;
    }
    None
}
