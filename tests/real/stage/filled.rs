//! Backlogs built with the library: thousands of records in a moment, as an earlier run would have left
//! them, and a reader for what a store gives back.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nightlight::config::{self, OnFull};
use nightlight::io::backlog::Backlog;
use nightlight::logic::telemetry::{Body, Loss, Record};
use nightlight::logic::time::Stamp;
use nightlight::logic::{Entry, Input, Key, KeyRange};
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError, unbounded_channel};
use uuid::Uuid;

/// A store of millions takes minutes to be salvaged on a busy machine.
const LIMIT: Duration = Duration::from_secs(600);

/// Bounds that drop nothing.
pub fn unbounded(path: &Path) -> config::Backlog {
    config::Backlog {
        path: path.to_owned(),
        max_records: u64::MAX,
        max_bytes: u64::MAX,
        on_full: OnFull::DropOldest,
    }
}

/// A reading of a run of long ago.
pub fn reading(run: Uuid, seq: u64) -> Record {
    Record {
        run,
        seq,
        boot_id: Uuid::from_u128(0xb007),
        stamp: Stamp {
            boot_ms: seq * 5000,
            wall_ms: 1_795_194_191_250 + seq as i64 * 5000,
            synced: true,
        },
        // With digits behind the point, as a sensor gives them: they hardly pack.
        body: Body::Reading {
            light: (seq.wrapping_mul(2_654_435_761) % 100_000) as f64 / 100.0,
            led_on: Some(seq.is_multiple_of(2)),
            led_ok: true,
        },
    }
}

/// Puts the records 1 to `last` of `run` into the backlog at `path`, and closes it. Each commit has 1000: the
/// next ones are given once these are stored, so that the file does not depend on how busy the machine is.
pub fn fill(path: &Path, run: Uuid, last: u64) {
    let (inputs, mut answers) = unbounded_channel();
    let backlog = Backlog::open(&unbounded(path), run, Uuid::from_u128(0xb007), inputs);
    let mut stored = 0;
    while stored < last {
        let end = last.min(stored + 1000);
        let entry = |seq| Entry::Record(reading(run, seq));
        backlog.append((stored + 1..=end).map(entry).collect(), Vec::new(), end);
        loop {
            match answer(&mut answers) {
                Input::Stored { .. } => break,
                Input::StoreFailed(why) => panic!("not stored: {why}"),
                _ => {}
            }
        }
        stored = end;
    }
    assert!(backlog.close(LIMIT), "not closed");
}

/// A store that has been in use for long: of the records 1 to `last` of `run` only the newest `kept` are
/// left, the others were confirmed in between, and sled has written over much of what they were.
pub fn wear(path: &Path, run: Uuid, last: u64, kept: u64) {
    let (inputs, mut answers) = unbounded_channel();
    let backlog = Backlog::open(&unbounded(path), run, Uuid::from_u128(0xb007), inputs);
    let Input::BacklogOpened(opened) = answer(&mut answers) else {
        panic!("not opened");
    };
    let run_number = opened.run_number;
    let mut forgotten = 0;
    for end in (500..=last).step_by(500) {
        let entry = |seq| Entry::Record(reading(run, seq));
        backlog.append((end - 499..=end).map(entry).collect(), Vec::new(), end);
        match answer(&mut answers) {
            Input::Stored { .. } => {}
            other => panic!("not stored: {other:?}"),
        }
        let to = end.saturating_sub(kept);
        if to > forgotten {
            let from = forgotten + 1;
            backlog.discard(vec![KeyRange {
                run_number,
                from,
                to,
            }]);
            forgotten = to;
        }
    }
    assert!(backlog.close(LIMIT), "not closed");
}

/// What a backlog gives back.
#[derive(Debug, Default)]
pub struct Drained {
    /// Of each run, the numbers.
    pub runs: BTreeMap<Uuid, BTreeSet<u64>>,
    pub losses: Vec<Loss>,
}

/// Opens the backlog at `path` as the daemon does, and reads all of it.
pub fn drain(path: &Path) -> Drained {
    let (inputs, mut answers) = unbounded_channel();
    let run = Uuid::new_v4();
    let backlog = Backlog::open(&unbounded(path), run, Uuid::from_u128(0xb007), inputs);
    let mut drained = Drained::default();
    let mut after: Option<Key> = None;
    backlog.read_after(None, 1000);
    loop {
        match answer(&mut answers) {
            Input::Fetched { entries, end } => {
                for (key, entry) in entries {
                    after = Some(key);
                    let record = match entry {
                        Entry::Record(record) => record,
                        Entry::Gap(gap) => {
                            drained.losses.push(gap);
                            continue;
                        }
                    };
                    let mut same = reading(record.run, record.seq);
                    same.stamp = record.stamp;
                    assert_eq!(record.body, same.body, "the record {key:?} has changed");
                    drained
                        .runs
                        .entry(record.run)
                        .or_default()
                        .insert(record.seq);
                }
                if end {
                    break;
                }
                backlog.read_after(after, 1000);
            }
            Input::StoreFailed(why) => panic!("not opened: {why}"),
            _ => {}
        }
    }
    assert!(backlog.close(LIMIT), "not closed");
    drained
}

fn answer(answers: &mut UnboundedReceiver<Input>) -> Input {
    let until = Instant::now() + LIMIT;
    loop {
        match answers.try_recv() {
            Ok(input) => return input,
            Err(TryRecvError::Empty) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("no answer: {error}"),
        }
    }
}

/// Copies a folder.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
