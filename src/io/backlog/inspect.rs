//! Looking into a backlog while no daemon runs: `nightlight backlog stats|list|export|verify`,
//! and `doctor`.
//!
//! Records, runs and totals are only read; sled itself may write a snapshot when it opens. Of a damaged
//! store a copy is opened, and salvaged as the daemon will do it at its next start, so that what is shown
//! is what will be delivered.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tracing::warn;
use uuid::Uuid;

use crate::config;
use crate::logic::time::Clock;
use crate::logic::{Key, KeyRange};

use super::account::Account;
use super::disk::{Fault, Place, finish_snapshots, tree_bytes};
use super::format::Line;
use super::opening::{Opening, discard, guard};
use super::pages::{chunk_end, next};
use super::store::Store;

/// The totals of a backlog.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Records held.
    pub records: u64,
    /// Bytes of their packed values.
    pub packed_bytes: u64,
    /// Bytes of the store's files.
    pub disk_bytes: u64,
    /// Free bytes on its file system.
    pub free_bytes: u64,
    /// Free bytes below which nothing is stored.
    pub floor_bytes: u64,
    /// Records not yet sealed into chunks.
    pub single: u64,
    /// Losses not yet told.
    pub losses: u64,
    /// Ids of commands remembered.
    pub command_ids: u64,
    /// The runs, oldest first.
    pub runs: Vec<RunStats>,
}

/// One run in a backlog.
#[derive(Debug, Clone, PartialEq)]
pub struct RunStats {
    /// Its ordinal.
    pub ordinal: u64,
    /// Its name.
    pub run: Uuid,
    /// Records held.
    pub held: u64,
    /// The lowest and the highest seq, held and ever stored.
    pub range: KeyRange,
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
        writeln!(
            f,
            "records      {}, {} of them singly",
            self.records, self.single
        )?;
        writeln!(
            f,
            "bytes        {} packed, {} on disk",
            self.packed_bytes, self.disk_bytes
        )?;
        writeln!(
            f,
            "room         {} bytes free, {} are left to the system",
            self.free_bytes, self.floor_bytes
        )?;
        writeln!(f, "losses       {} to be told", self.losses)?;
        writeln!(f, "command ids  {}", self.command_ids)?;
        for run in &self.runs {
            let (from, to) = (run.range.from, run.range.to);
            write!(
                f,
                "run {}     {}: {} records",
                run.ordinal, run.run, run.held
            )?;
            match run.held {
                0 => writeln!(f)?,
                _ => writeln!(f, " within {from} to {to}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} of {} records can be read",
            self.readable, self.expected
        )?;
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// Bytes that are free where the backlog is, and those that are left to the system.
pub fn room(path: &Path) -> (u64, u64) {
    let space = Place::new(path).space();
    (space.free, space.floor)
}

/// The totals of the backlog in the settings folder `path`.
///
/// # Errors
/// In words, when there is none, it is held by a daemon, or it is damaged.
pub fn stats(path: &Path) -> Result<Stats, String> {
    with_store(path, |store| {
        let space = store.place.space();
        Ok(Stats {
            records: store.records(),
            packed_bytes: store.state.bytes,
            disk_bytes: tree_bytes(&store.place.store()),
            free_bytes: space.free,
            floor_bytes: space.floor,
            single: store.tail.len() as u64,
            losses: store.losses.all.len() as u64,
            command_ids: store.commands.len() as u64,
            runs: store
                .runs
                .iter()
                .map(|(ordinal, run)| RunStats {
                    ordinal: *ordinal,
                    run: run.run,
                    held: run.held,
                    range: KeyRange {
                        ordinal: *ordinal,
                        from: run.low,
                        to: run.high,
                    },
                })
                .collect(),
        })
    })
    .map_err(|fault| fault.why().to_owned())
}

/// Writes a line for each chunk and single record, oldest first: ordinal, first seq, last seq, count.
///
/// # Errors
/// As `stats`, and when `out` cannot be written.
pub fn list(path: &Path, out: &mut dyn Write) -> Result<(), String> {
    each(path, out, &mut |out, unit| {
        let count = unit.lines.len();
        let (first, last) = (unit.first, unit.last);
        writeln!(out, "{} {first} {last} {count}", unit.ordinal)
    })
}

/// Writes each record as a JSON line, as it would be replayed on the wire, oldest first. `clock` says what
/// times may be claimed.
///
/// # Errors
/// As `stats`, and when `out` cannot be written.
pub fn export(path: &Path, clock: &Clock, out: &mut dyn Write) -> Result<(), String> {
    each(path, out, &mut |out, unit| {
        for line in &unit.lines {
            match &line.record {
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
    let checked = in_place(path, &mut |store: &mut Store| {
        let mut readable = 0;
        let mut problems = Vec::new();
        let singles: Vec<Key> = store.tail.keys().copied().collect();
        for key in singles {
            match store.single(key)? {
                Some(_) => readable += 1,
                None => problems.push(format!(
                    "record {} of run {} is damaged",
                    key.seq, key.ordinal
                )),
            }
        }
        let mut at = super::pages::LOWEST;
        while let Some(chunk) = store.chunk_at(at)? {
            at = next(chunk_end(&chunk));
            match store.lines(&chunk)? {
                Ok((_, lines)) if lines.nameless == 0 => readable += lines.lines.len() as u64,
                _ => problems.push(format!(
                    "the chunk with records {} to {} of run {} is damaged",
                    chunk.first, chunk.last, chunk.ordinal
                )),
            }
        }
        Ok(Verified {
            readable,
            expected: store.state.records,
            problems,
        })
    });
    match checked {
        Ok(mut verified) => {
            if verified.readable != verified.expected && verified.problems.is_empty() {
                verified.problems.push(format!(
                    "{} records where {} should be",
                    verified.readable, verified.expected
                ));
            }
            Ok(verified)
        }
        Err(Fault::Damaged(why)) => in_copy(path, &mut |store: &mut Store| {
            let lost: u64 = store.losses.all.values().map(|loss| loss.count).sum();
            Ok(Verified {
                readable: store.state.records,
                expected: store.state.records + lost,
                problems: vec![format!(
                    "{why}; the next start of nightlight salvages what is readable"
                )],
            })
        })
        .map_err(|fault| fault.why().to_owned()),
        Err(fault) => Err(fault.why().to_owned()),
    }
}

/// Lines of one chunk or single record.
struct UnitLines {
    ordinal: u64,
    first: u64,
    last: u64,
    lines: Vec<Line>,
}

/// Gives `write` each chunk and single record, in the order of their first records.
fn each(
    path: &Path,
    out: &mut dyn Write,
    write: &mut dyn FnMut(&mut dyn Write, &UnitLines) -> io::Result<()>,
) -> Result<(), String> {
    let mut failed = None;
    with_store(path, |store| {
        let mut at = super::pages::LOWEST;
        while failed.is_none()
            && let Some(unit) = store.unit_at(at)?
        {
            at = next(unit.end());
            if let Some((header, lines)) = store.unit_lines(&unit)? {
                let lines = UnitLines {
                    ordinal: header.ordinal,
                    first: header.first,
                    last: header.last,
                    lines,
                };
                failed = write(out, &lines).err();
            }
        }
        Ok(())
    })
    .map_err(|fault| fault.why().to_owned())?;
    match failed {
        Some(error) => Err(format!("cannot write: {error}")),
        None => Ok(()),
    }
}

/// Opens the store and works on it: the store itself, or what can be salvaged of a copy.
fn with_store<T>(
    path: &Path,
    mut work: impl FnMut(&mut Store) -> Result<T, Fault>,
) -> Result<T, Fault> {
    match in_place(path, &mut work) {
        Err(Fault::Damaged(why)) => {
            warn!("the backlog is damaged ({why}): this is what can be salvaged of it");
            in_copy(path, &mut work)
        }
        other => other,
    }
}

fn in_place<T>(
    path: &Path,
    work: &mut impl FnMut(&mut Store) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let place = Place::new(path);
    let account = Account::read(&place.account());
    if !place.store().exists() && account.generation == 0 {
        let why = format!("there is no backlog in {}", path.display());
        return Err(Fault::Blocked(why));
    }
    if !place.store().join("db").is_file() {
        return Err(Fault::Damaged("the store is gone".into()));
    }
    let bounds = unbounded(path);
    place.not_held()?;
    finish_snapshots(&place.store()).map_err(|error| place.fault(&error))?;
    place.copy_before();
    let mut store = guard(&place, || Store::load(&place, &place.store(), &bounds))?;
    let done = if store.state.generation < account.generation {
        Err(Fault::Damaged("it opens, but records are missing".into()))
    } else {
        guard(&place, || work(&mut store))
    };
    discard(store);
    if done.is_ok() {
        place.drop_before();
    }
    done
}

fn in_copy<T>(
    path: &Path,
    work: &mut impl FnMut(&mut Store) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let copy = Copied::of(path)
        .map_err(|error| Fault::Blocked(format!("the damaged store cannot be copied: {error}")))?;
    let bounds = unbounded(&copy.0);
    let opening = Opening {
        bounds: &bounds,
        run: Uuid::new_v4(),
        boot_id: Uuid::nil(),
    };
    let place = Place::new(&copy.0);
    let mut store = guard(&place, || opening.open(false, None, &|| {}))?;
    for loss in store.losses.all.values() {
        warn!(
            "of run {}: {} records within {} to {} are lost: {}",
            loss.of_run, loss.count, loss.from_seq, loss.to_seq, loss.reason
        );
    }
    let done = guard(&place, || work(&mut store));
    discard(store);
    done
}

/// Bounds that drop nothing.
fn unbounded(path: &Path) -> config::Backlog {
    config::Backlog {
        path: path.to_owned(),
        max_records: u64::MAX,
        max_bytes: u64::MAX,
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
