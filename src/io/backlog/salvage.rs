//! What can be got back from a dead store: a raw scan of its files for our values, which describe
//! themselves and carry a checksum, and writing them into a new store in order.
//!
//! The scan takes everything that ever was a value and was not yet overwritten, so records that were
//! confirmed long ago can come back as duplicates; those below the lowest held seq, and those in a gap, are
//! left out. What the runs' accounts say was held, and is not found, becomes a gap. Only `opening` calls this.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sled::Batch;
use uuid::Uuid;

use crate::logic::telemetry::Loss;

use super::checkpoint::Checkpoint;
use super::dir::Fault;
use super::entries::spread;
use super::format::{self, HEADER, Header, Kind, Line, MAGIC, MAX_VALUE};
use super::run::{DAMAGED, Run, loss};
use super::store::Store;

const BLOCK: usize = 1024 * 1024;
/// After a read error, what is skipped.
const SKIP: u64 = 64 * 1024;
/// So many entries, or twice those that were unlike, are sorted and rid of their copies.
const SORT_AT: usize = 65_536;
/// Chunks in a batch.
const CHUNKS: usize = 16;
const DEPTH: usize = 3;

/// What a scan has found.
#[derive(Debug, Default)]
pub(super) struct SalvageScan {
    files: Vec<PathBuf>,
    entries: Vec<Found>,
    runs: BTreeMap<(u64, Uuid), Run>,
    gaps: BTreeMap<(u64, Uuid, u64), Loss>,
    synced: u64,
}

/// Where a value with records lies. The order is the order of the records, equal values together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    run_number: u64,
    run: Uuid,
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
        let mut sort_at = SORT_AT;
        for file in 0..scan.files.len() {
            if let Ok(open) = File::open(&scan.files[file]) {
                scan.scan_file(file, &open, &mut sort_at, progress);
            }
        }
        scan.sort();
        scan
    }

    /// Whether nothing at all was found.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.runs.is_empty()
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
            let known = self.runs.entry((*number, run.run)).or_insert(*run);
            if known.generation < run.generation {
                *known = *run;
            }
        }
        let newest = self.runs.values().map(|run| run.generation).max();
        store.generation = newest.unwrap_or(0).max(checkpoint.generation);
        let mut names: BTreeSet<(u64, Uuid)> = self.runs.keys().copied().collect();
        names.extend(
            self.entries
                .iter()
                .map(|entry| (entry.run_number, entry.run)),
        );
        names.extend(self.gaps.keys().map(|(number, run, _)| (*number, *run)));
        let (mut records, mut gaps) = (0, 0);
        let mut number = 0;
        for name in names {
            // Two runs with one number can only come of stores that were mixed by hand.
            number = name.0.max(number + 1);
            let mut writer = Writer::new(store, number, name.1, self.runs.get(&name).copied());
            let found = self
                .gaps
                .range((name.0, name.1, 0)..=(name.0, name.1, u64::MAX));
            writer.gaps = found.map(|(_, gap)| gap.clone()).collect();
            self.refill_run(name, &mut writer, progress)?;
            let (more, made) = writer.finish()?;
            records += more;
            gaps += made;
        }
        Ok((records, gaps))
    }

    /// Merges the values of a run: they come by their first seq, so what lies below that is complete.
    fn refill_run(
        &self,
        name: (u64, Uuid),
        writer: &mut Writer<'_>,
        progress: &dyn Fn(),
    ) -> Result<(), Fault> {
        let begin = self
            .entries
            .partition_point(|e| (e.run_number, e.run) < name);
        let end = self
            .entries
            .partition_point(|e| (e.run_number, e.run) <= name);
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
                kind: Kind::Chunk,
                run_number: writer.number,
                ..header
            });
            for line in lines.lines {
                if line.seq >= writer.low && !writer.is_given_up(line.seq) {
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
            Kind::Single | Kind::Chunk => self.entries.push(Found {
                run_number: header.run_number,
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
                self.synced = self.synced.max(run.synced);
                let known = self.runs.entry((header.run_number, run.run)).or_insert(run);
                if known.generation < run.generation {
                    *known = run;
                }
            }
            Kind::Gap => {
                let gap = format::unpack_gap(value).ok()?;
                let name = (header.run_number, gap.of_run, gap.from_seq);
                let known = self.gaps.entry(name).or_insert_with(|| gap.clone());
                // It only ever grows.
                if known.to_seq < gap.to_seq {
                    *known = gap;
                }
            }
        }
        Some(length)
    }

    fn sort(&mut self) {
        self.entries.sort_unstable();
        self.entries
            .dedup_by_key(|e| (e.run_number, e.run, e.first, e.last, e.crc, e.length));
    }
}

/// Writes the records of one run, ascending, and its gaps.
struct Writer<'a> {
    store: &'a mut Store,
    of: Option<Header>,
    number: u64,
    run: Uuid,
    /// Records that its account says were held.
    held: u64,
    low: u64,
    high: u64,
    gaps: Vec<Loss>,
    lines: Vec<Line>,
    batch: Batch,
    chunks: usize,
    /// The next seq that is expected.
    next: u64,
    missing: Vec<(u64, u64)>,
    inside: u64,
    records: u64,
}

impl<'a> Writer<'a> {
    fn new(store: &'a mut Store, number: u64, run: Uuid, known: Option<Run>) -> Writer<'a> {
        let fresh = Run {
            held: 0,
            gaps: 0,
            bytes: 0,
            ..known.unwrap_or_else(|| Run::new(run, Uuid::nil()))
        };
        store.runs.insert(number, fresh);
        store.dirty.insert(number);
        let low = known.map_or(0, |known| known.low);
        Writer {
            store,
            of: None,
            number,
            run,
            held: known.map_or(0, |known| known.held),
            low,
            high: known.map_or(0, |known| known.high),
            gaps: Vec::new(),
            lines: Vec::new(),
            batch: Batch::default(),
            chunks: 0,
            next: low.max(1),
            missing: Vec::new(),
            inside: 0,
            records: 0,
        }
    }

    fn is_given_up(&self, seq: u64) -> bool {
        let before = self.gaps.partition_point(|gap| gap.from_seq <= seq);
        before > 0 && self.gaps[before - 1].to_seq >= seq
    }

    fn push(&mut self, line: Line) -> Result<(), Fault> {
        if line.seq <= self.high {
            if line.seq > self.next {
                let (from, to) = (self.next, line.seq - 1);
                // Chunks must not reach over a hole: there will be a gap.
                self.seal()?;
                self.missing.push((from, to));
            }
            self.next = line.seq + 1;
            self.inside += 1;
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
        if let Some(run) = self.store.runs.get_mut(&self.number) {
            run.boot = of.boot_id;
        }
        let lines = std::mem::take(&mut self.lines);
        self.store.put_lines(&mut self.batch, &of, &lines);
        self.chunks += 1;
        if self.chunks.is_multiple_of(CHUNKS) {
            self.store.dir.has_room()?;
            self.store.apply(std::mem::take(&mut self.batch))?;
            self.store.sync()?;
        }
        Ok(())
    }

    /// Writes the rest and puts gaps where something is missing; gives the records and gaps written.
    fn finish(mut self) -> Result<(u64, u64), Fault> {
        self.seal()?;
        if self.next <= self.high {
            self.missing.push((self.next, self.high));
        }
        if self.records == 0
            && let Some(run) = self.store.runs.get_mut(&self.number)
        {
            run.low = run.high.saturating_add(1);
        }
        self.store.apply(std::mem::take(&mut self.batch))?;
        self.store.sync()?;
        let lost = self.held.saturating_sub(self.inside);
        let mut gaps = std::mem::take(&mut self.gaps);
        if lost > 0 {
            let given_up = gaps.iter().map(|gap| (gap.from_seq, gap.to_seq));
            let missing = without(&self.missing, &given_up.collect::<Vec<_>>());
            for (from, to, count) in spread(&missing, lost) {
                gaps.push(loss(self.run, from, to, count, DAMAGED));
            }
        }
        gaps.sort_by_key(|gap| gap.from_seq);
        let made = gaps.len() as u64;
        for gap in gaps {
            self.store.put_gap(self.number, gap)?;
        }
        Ok((self.records, made))
    }
}

/// `ranges` without what is in `taken`; both ascending.
fn without(ranges: &[(u64, u64)], taken: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    for (from, to) in ranges {
        let mut next = *from;
        for (begin, end) in taken
            .iter()
            .filter(|(begin, end)| end >= from && begin <= to)
        {
            if *begin > next {
                left.push((next, begin - 1));
            }
            next = next.max(end.saturating_add(1));
        }
        if next <= *to {
            left.push((next, *to));
        }
    }
    left
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
