//! Looking into a backlog while no daemon runs: `nightlight backlog stats|list|export|verify`.
//!
//! Records, runs and totals are only read; sled itself may write a snapshot when it opens. A damaged
//! store is left as it is: the daemon salvages it at its next start, and `verify` says how much.

use std::io::{self, Write};
use std::path::Path;

use uuid::Uuid;

use crate::config;
use crate::logic::{Key, KeyRange};

use super::disk::{Fault, Place, finish_snapshots, tree_bytes};
use super::opening::{discard, guard};
use super::pages::{chunk_end, next};
use super::salvage::Found;
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

/// Writes each record as a JSON line `{"run":..,"boot":..,"q":seq,"t":stamp,"d":body}`, oldest first.
///
/// # Errors
/// As `stats`, and when `out` cannot be written.
pub fn export(path: &Path, out: &mut dyn Write) -> Result<(), String> {
    each(path, out, &mut |out, unit| {
        for json in &unit.lines {
            let rest = json.strip_prefix('{').unwrap_or(json);
            writeln!(
                out,
                r#"{{"run":"{}","boot":"{}",{rest}"#,
                unit.run, unit.boot_id
            )?;
        }
        Ok(())
    })
}

/// Reads every record and compares it with the totals. A store that sled cannot open is scanned raw.
///
/// # Errors
/// In words, when there is none or it is held by a daemon.
pub fn verify(path: &Path) -> Result<Verified, String> {
    let checked = with_store(path, |store| {
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
        Err(Fault::Damaged(why)) => {
            let place = Place::new(path);
            let found = Found::scan(&[place.store(), place.before()], &|| {});
            // Sled may have made the store worse: the copy stays for the next start.
            Ok(Verified {
                readable: 0,
                expected: found.held(),
                problems: vec![format!(
                    "{why}; a raw scan finds {} values with records: the next start of nightlight salvages them",
                    found.values()
                )],
            })
        }
        Err(fault) => Err(fault.why().to_owned()),
    }
}

/// Lines of one chunk or single record.
struct UnitLines {
    ordinal: u64,
    run: Uuid,
    boot_id: Uuid,
    first: u64,
    last: u64,
    lines: Vec<String>,
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
                    run: header.run,
                    boot_id: header.boot_id,
                    first: header.first,
                    last: header.last,
                    lines: lines.into_iter().map(|line| line.json).collect(),
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

fn with_store<T>(
    path: &Path,
    work: impl FnOnce(&mut Store) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let place = Place::new(path);
    if !place.store().join("db").is_file() {
        return Err(Fault::Blocked(format!(
            "there is no backlog in {}",
            path.display()
        )));
    }
    // Of no effect on a store that is only looked at.
    let bounds = config::Backlog {
        path: path.to_owned(),
        max_records: u64::MAX,
        max_bytes: u64::MAX,
        on_full: config::OnFull::DropOldest,
    };
    place.not_held()?;
    finish_snapshots(&place.store()).map_err(|error| place.fault(&error))?;
    place.copy_before();
    let mut store = guard(&place, || Store::load(&place, &place.store(), &bounds))?;
    let done = guard(&place, || work(&mut store));
    discard(store);
    if done.is_ok() {
        place.drop_before();
    }
    done
}
