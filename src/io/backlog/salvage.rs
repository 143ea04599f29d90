//! What can be got back from a dead store: a raw scan of its files for our values, which describe
//! themselves and carry a checksum, and writing them into a new store in order.
//!
//! The scan takes everything that ever was a value and was not yet overwritten, so records that were
//! confirmed long ago can come back as duplicates; those below the lowest held seq, and those in a gap, are
//! left out. What the runs' accounts say was held, and is not found, becomes a gap. Only `opening` calls this.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::mem;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sled::Batch;
use uuid::Uuid;

use crate::logic::telemetry::Loss;

use super::checkpoint::Checkpoint;
use super::chunk::{self, Line, MAX_CHUNK};
use super::dir::Fault;
use super::format::{self, HEADER, Header, Kind, MAGIC, MAX_VALUE};
use super::run::{DAMAGED, Run, loss};
use super::store::Store;

const BLOCK: usize = 1024 * 1024;
/// After a read error, what is skipped.
const SKIP: u64 = 64 * 1024;
/// So many chunks, or twice those that were unlike, are sorted and rid of their copies.
const SORT_AT: usize = 65_536;
/// Records written in a batch.
const MAX_BATCH: usize = 16 * MAX_CHUNK;
const DEPTH: usize = 3;

/// A run by its number and its name: stores that were mixed by hand may have two of one number.
type Name = (u64, Uuid);

/// What a scan has found.
#[derive(Debug, Default)]
pub(super) struct SalvageScan {
    files: Vec<PathBuf>,
    chunks: Vec<Found>,
    /// Every run of which something was found, by the newest account of it.
    runs: BTreeMap<Name, Run>,
    gaps: BTreeMap<(Name, u64), Loss>,
    synced: u64,
}

/// Where a chunk lies. The order is the order of the records, equal chunks together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    name: Name,
    first: u64,
    last: u64,
    crc: u32,
    length: u32,
    file: usize,
    at: u64,
}

impl SalvageScan {
    /// Scans these files, and all files in these folders.
    pub(super) fn of(dead: &[PathBuf], progress: &dyn Fn()) -> SalvageScan {
        let mut scan = SalvageScan::default();
        for path in dead {
            // A descriptor of an open file looks like a link.
            match path.metadata() {
                Ok(meta) if meta.is_file() => scan.files.push(path.clone()),
                _ => collect(path, DEPTH, &mut scan.files),
            }
        }
        for file in 0..scan.files.len() {
            if let Ok(open) = File::open(&scan.files[file]) {
                scan.scan_file(file, &open, progress);
            }
        }
        scan.sort();
        scan
    }

    /// Whether nothing at all was found.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The last batch that was surely on the disk.
    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    /// Writes what was found into a new, empty store; gives the records and the gaps.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn refill(
        &mut self,
        store: &mut Store,
        checkpoint: &Checkpoint,
        progress: &dyn Fn(),
    ) -> Result<(u64, u64), Fault> {
        for (number, run) in &checkpoint.runs {
            self.learn(*number, *run);
        }
        let newest = self.runs.values().map(|run| run.generation).max();
        store.generation = newest.unwrap_or(0).max(checkpoint.generation);
        let mut number = 0;
        for (name, known) in &self.runs {
            number = name.0.max(number + 1);
            self.refill_run(*name, known, store, number, progress)?;
        }
        let sum = |of: fn(&Run) -> u64| store.runs.values().map(of).sum();
        Ok((sum(|run| run.held), sum(|run| run.gaps)))
    }

    /// Merges the chunks of a run: they come by their first seq, so what lies below that is complete.
    fn refill_run(
        &self,
        name: Name,
        known: &Run,
        store: &mut Store,
        number: u64,
        progress: &dyn Fn(),
    ) -> Result<(), Fault> {
        store.runs.insert(number, known.emptied());
        store.dirty.insert(number);
        let of = Header::of_chunks(number, name.1, known.boot);
        let gaps: Vec<&Loss> = self
            .gaps
            .range((name, 0)..=(name, u64::MAX))
            .map(|(_, gap)| gap)
            .collect();
        let is_wanted = |seq| {
            let before = gaps.partition_point(|gap| gap.from_seq <= seq);
            seq >= known.low && (before == 0 || gaps[before - 1].to_seq < seq)
        };
        let begin = self.chunks.partition_point(|chunk| chunk.name < name);
        let chunks = self.chunks[begin..].iter();
        let mut merging: BTreeMap<u64, Line> = BTreeMap::new();
        let mut complete: Vec<Line> = Vec::new();
        let mut found = 0;
        for chunk in chunks.take_while(|chunk| chunk.name == name) {
            progress();
            let rest = merging.split_off(&chunk.first);
            complete.extend(mem::replace(&mut merging, rest).into_values());
            if complete.len() >= MAX_BATCH {
                found += write(store, &of, known.high, &mem::take(&mut complete))?;
            }
            for line in self.lines(chunk) {
                if is_wanted(line.seq) {
                    merging.entry(line.seq).or_insert(line);
                }
            }
        }
        complete.extend(merging.into_values());
        found += write(store, &of, known.high, &complete)?;
        for gap in gaps {
            store.put_gap(number, gap.clone())?;
        }
        // The rest is somewhere in the holes.
        match known.held.saturating_sub(found) {
            0 => Ok(()),
            lost => {
                let gap = loss(name.1, known.low.max(1), known.high, lost, DAMAGED);
                store.put_gap(number, gap)
            }
        }
    }

    /// What a chunk holds; nothing, when it cannot be read any more.
    fn lines(&self, chunk: &Found) -> Vec<Line> {
        let mut bytes = vec![0; chunk.length as usize];
        let read = File::open(&self.files[chunk.file])
            .and_then(|file| file.read_exact_at(&mut bytes, chunk.at));
        let lines = read.ok().and_then(|()| chunk::unpack_lines(&bytes).ok());
        lines.map(|(_, lines)| lines).unwrap_or_default()
    }

    fn scan_file(&mut self, file: usize, open: &File, progress: &dyn Fn()) {
        let size = open.metadata().map_or(0, |meta| meta.len());
        let mut block = vec![0; BLOCK + MAX_VALUE];
        let mut sort_at = SORT_AT;
        let mut at = 0;
        while at < size {
            progress();
            let length = match read_up_to(open, &mut block, at) {
                Ok(0) => break,
                Ok(length) => length,
                Err(_) => {
                    at += SKIP;
                    continue;
                }
            };
            // What begins in the overlap is read with the next block, unless this is the last.
            let end = if length == block.len() { BLOCK } else { length };
            let mut inside = 0;
            while let Some(step) = block[inside..length]
                .windows(MAGIC.len())
                .position(|bytes| bytes == MAGIC)
                && inside + step < end
            {
                inside += step;
                let taken = self.take(file, at + inside as u64, &block[inside..length]);
                inside += taken.unwrap_or(MAGIC.len());
            }
            at += inside.max(end) as u64;
            if self.chunks.len() >= sort_at {
                self.sort();
                sort_at = SORT_AT.max(2 * self.chunks.len());
            }
        }
    }

    /// Takes the value at the start of `bytes`, if there is one; gives its length.
    fn take(&mut self, file: usize, at: u64, bytes: &[u8]) -> Option<usize> {
        let length = format::claimed_length(bytes)?;
        let value = bytes.get(..length)?;
        let (header, payload) = format::unpack(value).ok()?;
        match header.kind {
            Kind::Single | Kind::Chunk => {
                self.learn(header.run_number, Run::new(header.run, header.boot_id));
                self.chunks.push(Found {
                    name: (header.run_number, header.run),
                    first: header.first,
                    last: header.last,
                    crc: u32::from_be_bytes(value[HEADER - 4..HEADER].try_into().ok()?),
                    length: length as u32,
                    file,
                    at,
                });
            }
            Kind::Run => {
                let run: Run = serde_json::from_slice(payload).ok()?;
                self.synced = self.synced.max(run.synced);
                self.learn(header.run_number, run);
            }
            Kind::Gap => {
                let gap = format::unpack_gap(value).ok()?;
                self.learn(header.run_number, Run::new(gap.of_run, Uuid::nil()));
                let name = (header.run_number, gap.of_run);
                let known = self.gaps.entry((name, gap.from_seq)).or_insert(gap.clone());
                // It only ever grows.
                if known.to_seq < gap.to_seq {
                    *known = gap;
                }
            }
        }
        Some(length)
    }

    /// Of two accounts of a run the later counts; none is the first of all.
    fn learn(&mut self, number: u64, run: Run) {
        let known = self.runs.entry((number, run.run)).or_insert(run);
        if known.generation < run.generation {
            *known = run;
        } else if known.boot.is_nil() {
            known.boot = run.boot;
        }
    }

    fn sort(&mut self) {
        self.chunks.sort_unstable();
        self.chunks
            .dedup_by_key(|c| (c.name, c.first, c.last, c.crc, c.length));
    }
}

/// Writes records, ascending, in one batch; gives how many of them are not above `high`.
fn write(store: &mut Store, of: &Header, high: u64, lines: &[Line]) -> Result<u64, Fault> {
    store.dir.has_room()?;
    let mut batch = Batch::default();
    // Chunks must not reach over a hole: there may be a gap.
    for some in lines.chunk_by(|line, next| line.seq + 1 == next.seq) {
        store.put_lines(&mut batch, of, some);
    }
    store.commit(batch)?;
    Ok(lines.iter().filter(|line| line.seq <= high).count() as u64)
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
