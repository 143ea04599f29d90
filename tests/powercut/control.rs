//! The control: the same records in sled with `flush` alone, as sled's documentation asks for, and no
//! `fdatasync`. The rig must see these being lost, or it would prove nothing.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use uuid::Uuid;

use super::check::Verdict;
use super::notes::{Fact, Notes, Promise};
use super::writer::record;

/// Groups of records, so many.
pub const GROUPS: usize = 300;

/// Whether the writer of the control leaves `fdatasync` out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    FlushAlone,
    FlushAndFdatasync,
}

fn open(folder: &Path) -> sled::Result<sled::Db> {
    sled::Config::new()
        .path(folder.join("sled"))
        .cache_capacity(2 * 1024 * 1024)
        .flush_every_ms(None)
        .open()
}

fn value(run: Uuid, seq: u64) -> Vec<u8> {
    format!("{:?}", record(run, seq)).into_bytes()
}

/// Writes.
pub fn write(folder: &Path, sync: Sync, rng: &mut fastrand::Rng, notes: &mut Notes) {
    let run = Uuid::from_u128(rng.u128(..));
    let db = open(folder).expect("a store");
    let log = fs::File::open(folder.join("sled/db")).expect("sled's log");
    for path in [folder.join("sled"), folder.to_owned()] {
        let folder = fs::File::open(path).expect("a folder");
        folder.sync_all().expect("synced");
    }
    notes.add(Fact::Part("an outage"));
    let mut seq = 0;
    for _ in 0..GROUPS {
        let (from, to) = (seq + 1, seq + rng.u64(1..=6));
        seq = to;
        notes.add(Fact::Given { run, from, to });
        for seq in from..=to {
            db.insert(seq.to_be_bytes(), value(run, seq))
                .expect("inserted");
        }
        db.flush().expect("flushed");
        if sync == Sync::FlushAndFdatasync {
            log.sync_data().expect("synced");
        }
        notes.add(Fact::Stored { run, from, to });
    }
}

/// Looks for what was called durable.
pub fn check(folder: &Path, promise: &Promise) -> Verdict {
    let read = || -> Result<Verdict, String> {
        // Known of sled, and of no matter here: half a snapshot, with which it never opens again.
        for entry in fs::read_dir(folder.join("sled")).into_iter().flatten() {
            let path = entry.map_err(|error| error.to_string())?.path();
            if path.to_string_lossy().ends_with(".generating") {
                fs::remove_file(path).map_err(|error| error.to_string())?;
            }
        }
        let db = open(folder).map_err(|error| error.to_string())?;
        let mut verdict = Verdict {
            required: promise.required.len() as u64,
            ..Verdict::default()
        };
        for (run, seq) in &promise.required {
            let found = db
                .get(seq.to_be_bytes())
                .map_err(|error| error.to_string())?;
            if found.is_none_or(|found| found != value(*run, *seq)) {
                verdict.lost += 1;
            }
        }
        Ok(verdict)
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(mut verdict)) => {
            if verdict.lost > 0 {
                verdict
                    .failures
                    .push(format!("{} records lost", verdict.lost));
            }
            verdict
        }
        Ok(Err(why)) => Verdict::failed(promise, format!("it cannot be opened: {why}")),
        Err(_) => Verdict::failed(promise, "sled panics".into()),
    }
}
