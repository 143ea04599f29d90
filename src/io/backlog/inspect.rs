//! Looking into a backlog while no daemon runs: `nightlight backlog stats|list|export|verify`,
//! and `doctor`.
//!
//! Records, runs and totals are only read; sled itself may write a snapshot when it opens. Of a damaged
//! store a copy is opened, and salvaged as the daemon will do it at its next start, so that what is shown
//! is what will be delivered.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tracing::warn;
use uuid::Uuid;

use crate::config;
use crate::logic::time::Clock;

use super::checkpoint::Checkpoint;
use super::chunk;
use super::dir::{Fault, StoreDir, tree_bytes};
use super::entries::{HIGHEST, LOWEST, Stored};
use super::format::{self, Header};
use super::opening::Opening;
use super::run::Run;
use super::store::Store;
use super::tree::{self, Tree, drop_failed, finish_snapshots, guard};

/// The totals of a backlog.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Records held.
    pub records: u64,
    /// Records that were given up, and this is not reported yet.
    pub lost: u64,
    /// By number, oldest first.
    pub(super) runs: BTreeMap<u64, Run>,
    disk_bytes: u64,
    free_bytes: u64,
    floor_bytes: u64,
    command_ids: usize,
}

/// What `verify` found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// Records that can be read.
    pub readable: u64,
    /// Records that should be there.
    pub expected: u64,
    /// What is wrong, a line each; empty when nothing is.
    pub problems: Vec<String>,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |of: fn(&Run) -> u64| -> u64 { self.runs.values().map(of).sum() };
        let (packed, disk) = (sum(|run| run.bytes), self.disk_bytes);
        let (free, floor) = (self.free_bytes, self.floor_bytes);
        let (lost, gaps) = (self.lost, sum(|run| run.gaps));
        writeln!(f, "records      {}", self.records)?;
        writeln!(f, "bytes        {packed} packed, {disk} on disk")?;
        writeln!(
            f,
            "disk         {free} bytes free, {floor} are left to the system"
        )?;
        writeln!(
            f,
            "lost         {lost} records in {gaps} gaps, not reported yet"
        )?;
        writeln!(f, "command ids  {}", self.command_ids)?;
        for (number, run) in &self.runs {
            let (name, held) = (run.run, run.held);
            write!(f, "run {number}     {name}: {held} records")?;
            match held {
                0 => writeln!(f)?,
                _ => writeln!(f, " within {} to {}", run.low, run.high)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (readable, expected) = (self.readable, self.expected);
        writeln!(f, "{readable} of {expected} records can be read")?;
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// Bytes that are free where the backlog is, and those that are left to the system.
pub fn room(path: &Path) -> (u64, u64) {
    let space = StoreDir::new(path).space();
    (space.free, space.floor)
}

/// The totals of the backlog in the folder `path`.
///
/// # Errors
/// In words, when there is none, it is held by a daemon, or it is damaged.
pub fn stats(path: &Path) -> Result<Stats, String> {
    let dir = StoreDir::new(path);
    let checkpoint = Checkpoint::read(&dir.checkpoint());
    let mut stats = with_store(path, |store| {
        Ok(Stats {
            records: held(store),
            lost: lost(store)?,
            runs: store.runs.clone(),
            disk_bytes: tree_bytes(&store.dir.store()),
            free_bytes: dir.space().free,
            floor_bytes: dir.space().floor,
            command_ids: checkpoint.commands.len(),
        })
    })?;
    if stats.runs.is_empty() {
        stats.runs = checkpoint.runs;
    }
    Ok(stats)
}

fn held(store: &Store) -> u64 {
    store.runs.values().map(|run| run.held).sum()
}

fn lost(store: &Store) -> Result<u64, Fault> {
    let count = |entry: Result<Stored, Fault>| {
        let gap = format::unpack_gap(&entry?.value);
        Ok(gap.map_or(0, |gap| gap.count))
    };
    store.entries(LOWEST, HIGHEST).map(count).sum()
}

/// Writes a line for each entry, oldest first: number of the run, first seq, last seq, and the number of
/// records, or of a gap the number lost and why.
///
/// # Errors
/// As `stats`, and when `out` cannot be written.
pub fn list(path: &Path, out: &mut dyn Write) -> Result<(), String> {
    each(path, out, &mut |out, entry| {
        let (number, header) = (entry.key.run_number, &entry.header);
        let (first, last, count) = (header.first, header.last, header.count);
        match format::unpack_gap(&entry.value) {
            Ok(gap) => writeln!(
                out,
                "{number} {first} {last} lost {} {}",
                gap.count, gap.reason
            ),
            Err(_) => writeln!(out, "{number} {first} {last} {count}"),
        }
    })
}

/// Writes each record as a JSON line, as it would be replayed on the wire, oldest first. `clock` says what
/// times may be claimed.
///
/// # Errors
/// As `stats`, and when `out` cannot be written.
pub fn export(path: &Path, clock: &Clock, out: &mut dyn Write) -> Result<(), String> {
    each(path, out, &mut |out, entry| {
        if let Ok(gap) = format::unpack_gap(&entry.value) {
            return writeln!(out, "{}", gap.wire());
        }
        let lines = chunk::unpack_lines(&entry.value);
        for line in lines.map(|(_, lines)| lines).unwrap_or_default() {
            match line.record(&entry.header) {
                Some(record) => writeln!(out, "{}", record.wire(clock, true))?,
                // A later version wrote it: as it is stored.
                None => writeln!(out, "{}", line.json)?,
            }
        }
        Ok(())
    })
}

/// Reads every record and compares it with the totals. A store that sled cannot open is scanned raw.
///
/// # Errors
/// In words, when there is none or it is held by a daemon.
pub fn verify(path: &Path) -> Result<Verified, String> {
    let checked = in_place(path, &mut check);
    let verified = match checked {
        Err(Fault::Damaged(why)) => in_copy(path, &mut |store: &mut Store| {
            let readable = held(store);
            let why = format!("{why}; the next start of nightlight salvages what is readable");
            Ok(Verified {
                readable,
                expected: readable + lost(store)?,
                problems: vec![why],
            })
        }),
        other => other,
    };
    verified.map_err(|fault| fault.why().to_owned())
}

fn check(store: &mut Store) -> Result<Verified, Fault> {
    let (mut readable, expected) = (0, held(store));
    let mut problems = Vec::new();
    for entry in store.entries(LOWEST, HIGHEST) {
        let entry = entry?;
        let Header {
            first, last, count, ..
        } = entry.header;
        match chunk::unpack_lines(&entry.value) {
            _ if entry.is_gap() && format::unpack_gap(&entry.value).is_ok() => {}
            Ok((_, lines)) if lines.len() == usize::from(count) => readable += u64::from(count),
            _ => problems.push(format!(
                "the entry with records {first} to {last} of run {} is damaged",
                entry.key.run_number
            )),
        }
    }
    if readable != expected && problems.is_empty() {
        problems.push(format!("{readable} records where {expected} should be"));
    }
    Ok(Verified {
        readable,
        expected,
        problems,
    })
}

/// Writes something of each entry, in order.
fn each(
    path: &Path,
    out: &mut dyn Write,
    write: &mut dyn FnMut(&mut dyn Write, &Stored) -> io::Result<()>,
) -> Result<(), String> {
    let written = with_store(path, |store| {
        for entry in store.entries(LOWEST, HIGHEST) {
            if let Err(error) = write(out, &entry?) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    })?;
    written.map_err(|error| format!("cannot write: {error}"))
}

/// Opens the store and works on it: the store itself, what can be salvaged of a copy, or an empty one
/// where there is none because nothing waits.
fn with_store<T>(
    path: &Path,
    mut work: impl FnMut(&mut Store) -> Result<T, Fault>,
) -> Result<T, String> {
    let worked = match in_place(path, &mut work) {
        Err(Fault::Damaged(why)) => {
            warn!("the backlog is damaged ({why}): this is what can be salvaged of it");
            in_copy(path, &mut work)
        }
        other => other,
    };
    worked.map_err(|fault| fault.why().to_owned())
}

fn in_place<T>(
    path: &Path,
    work: &mut impl FnMut(&mut Store) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let dir = StoreDir::new(path);
    let checkpoint = Checkpoint::read(&dir.checkpoint());
    if !dir.store().exists() {
        if !checkpoint.is_known() {
            let why = format!("there is no backlog in {}", path.display());
            return Err(Fault::Blocked(why));
        }
        if !checkpoint.holds {
            return in_copy(path, work);
        }
    }
    if !dir.store().join("db").is_file() {
        return Err(Fault::Damaged("the store is gone".into()));
    }
    tree::not_held(&dir)?;
    finish_snapshots(&dir.store()).map_err(|error| dir.fault(&error))?;
    tree::copy_before(&dir);
    let bounds = unbounded(path);
    let tree = Tree::open(&dir, &dir.store())?;
    let mut store = guard(&dir, || Store::load(tree, &dir, &bounds))?;
    let done = if store.generation < checkpoint.least {
        Err(Fault::Damaged("it opens, but records are missing".into()))
    } else {
        guard(&dir, || work(&mut store))
    };
    drop_failed(store);
    if done.is_ok() {
        tree::drop_before(&dir);
    }
    done
}

fn in_copy<T>(
    path: &Path,
    work: &mut impl FnMut(&mut Store) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let copy = Copied::of(path)
        .map_err(|error| Fault::Blocked(format!("the damaged store cannot be copied: {error}")))?;
    let dir = StoreDir::new(&copy.0);
    dir.prepare()?;
    let checkpoint = Checkpoint::read(&dir.checkpoint());
    let bounds = unbounded(&copy.0);
    let opening = Opening {
        dir: &dir,
        bounds: &bounds,
        checkpoint: &checkpoint,
        run: (Uuid::nil(), Uuid::nil()),
        suspect: false,
        displaced: None,
    };
    let mut store = guard(&dir, || opening.open(&|| {}))?;
    for entry in store.entries(LOWEST, HIGHEST) {
        if let Ok(gap) = format::unpack_gap(&entry?.value) {
            warn!(
                "of run {}: {} records within {} to {} are lost: {}",
                gap.of_run, gap.count, gap.from_seq, gap.to_seq, gap.reason
            );
        }
    }
    let done = guard(&dir, || work(&mut store));
    drop_failed(store);
    done
}

/// Bounds that drop nothing.
fn unbounded(path: &Path) -> config::Backlog {
    config::Backlog {
        path: path.to_owned(),
        max_records: u64::MAX,
        max_bytes: u64::MAX / 2,
        on_full: config::OnFull::DropOldest,
    }
}

/// A copy of a backlog's folder in the system's folder for temporary files; removed when dropped.
struct Copied(PathBuf);

impl Copied {
    fn of(path: &Path) -> io::Result<Self> {
        let copy = Self(std::env::temp_dir().join(format!("nightlight-{}", Uuid::new_v4())));
        copy_tree(path, &copy.0)?;
        Ok(copy)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Files and folders alone; what an earlier start has moved aside stays behind.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        if name.to_string_lossy().starts_with("store.damaged") {
            continue;
        }
        if kind.is_dir() {
            copy_tree(&entry.path(), &to.join(name))?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}
