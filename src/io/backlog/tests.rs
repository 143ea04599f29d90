//! Tests of the backlog as the daemon sees it: through the handle and its answers. No sleeps; every
//! wait is for an answer, with a limit.

mod bounds;
mod bytes;
mod damage;
mod entries;
mod life;
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError, unbounded_channel};

use super::checkpoint::Checkpoint;
use super::dir::{StoreDir, tree_bytes};
use super::store::Store;
use super::tree::{Tree, finish_snapshots};
use super::*;
use crate::config::OnFull;
use crate::logic::Opened;
use crate::logic::telemetry::{Body, Loss, Record};
use crate::logic::time::{Clock, Now, Stamp};

const LIMIT: Duration = Duration::from_secs(30);

const BOOT: Uuid = Uuid::from_u128(0xb007);

/// A backlog and its answers.
struct Open {
    backlog: Backlog,
    answers: UnboundedReceiver<Input>,
    opened: Opened,
    run: Uuid,
    /// Records that it said it gave up.
    lost: u64,
}

impl Open {
    fn new(settings: &config::Backlog, run: u128) -> Open {
        let (inputs, answers) = unbounded_channel();
        let run = Uuid::from_u128(run);
        let mut open = Open {
            backlog: Backlog::open(settings, run, BOOT, inputs),
            answers,
            opened: Opened::default(),
            run,
            lost: 0,
        };
        open.opened = match open.answer() {
            Input::BacklogOpened(opened) => opened,
            other => panic!("not opened: {other:?}"),
        };
        open
    }

    /// The next answer.
    fn answer(&mut self) -> Input {
        let until = Instant::now() + LIMIT;
        loop {
            match self.answers.try_recv() {
                Ok(input) => return input,
                Err(TryRecvError::Empty) if Instant::now() < until => std::thread::yield_now(),
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    fn append(&mut self, entries: Vec<Entry>, ids: Vec<String>, last_seq: u64) -> u64 {
        self.backlog.append(entries, ids, last_seq);
        match self.answer() {
            Input::Stored { records, lost } => {
                self.lost += lost.total();
                records
            }
            other => panic!("not stored: {other:?}"),
        }
    }

    fn store(&mut self, seqs: impl IntoIterator<Item = u64>) -> u64 {
        let record = |seq| Entry::Record(reading(self.run, seq));
        self.append(seqs.into_iter().map(record).collect(), Vec::new(), 0)
    }

    fn fetch(&mut self, after: Option<Key>, limit: usize) -> (Vec<(Key, Entry)>, bool) {
        self.backlog.read_after(after, limit);
        match self.answer() {
            Input::Fetched { entries, end } => (entries, end),
            other => panic!("not read: {other:?}"),
        }
    }

    /// All entries, read in pages.
    fn entries(&mut self) -> Vec<(Key, Entry)> {
        let mut all: Vec<(Key, Entry)> = Vec::new();
        let mut last = None;
        loop {
            let (page, end) = self.fetch(all.last().map(|(key, _)| *key), 50);
            for (key, entry) in page {
                assert_eq!(key.seq, entry.first());
                assert!(last < Some(key), "out of order");
                last = Some(Key {
                    seq: entry.last(),
                    ..key
                });
                if let Entry::Record(record) = &entry {
                    assert_eq!(record.body, reading(record.run, record.seq).body);
                }
                all.push((key, entry));
            }
            if end {
                return all;
            }
        }
    }

    /// The keys of all records.
    fn all(&mut self) -> Vec<Key> {
        let entries = self.entries().into_iter();
        let records = entries.filter(|(_, entry)| matches!(entry, Entry::Record(_)));
        records.map(|(key, _)| key).collect()
    }

    fn seqs(&mut self) -> Vec<u64> {
        self.all().into_iter().map(|key| key.seq).collect()
    }

    fn losses(&mut self) -> Vec<Loss> {
        let gap = |(_, entry)| match entry {
            Entry::Gap(gap) => Some(gap),
            Entry::Record(_) => None,
        };
        self.entries().into_iter().filter_map(gap).collect()
    }

    fn discard(&mut self, from: u64, to: u64) {
        let run_number = self.opened.run_number;
        self.backlog.discard(vec![KeyRange {
            run_number,
            from,
            to,
        }]);
    }

    fn close(self) {
        assert!(self.backlog.close(LIMIT));
    }
}

fn reading(run: Uuid, seq: u64) -> Record {
    Record {
        run,
        seq,
        boot_id: BOOT,
        stamp: Stamp {
            boot_ms: seq * 5000,
            wall_ms: 1_795_194_191_250 + seq as i64 * 5000,
            synced: true,
        },
        body: Body::Reading {
            light: (seq % 1000) as f64,
            led_on: Some(seq.is_multiple_of(2)),
            led_ok: true,
        },
    }
}

fn settings(folder: &TempDir) -> config::Backlog {
    config::Backlog {
        path: folder.path().join("deep/down"),
        max_records: 1_000_000,
        max_bytes: 1 << 30,
        on_full: OnFull::DropOldest,
    }
}

fn seqs(keys: &[Key]) -> Vec<u64> {
    keys.iter().map(|key| key.seq).collect()
}

fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    all
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in files(from) {
        let path = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn quarantined(settings: &config::Backlog) -> usize {
    fs::read_dir(&settings.path)
        .unwrap()
        .filter(|e| {
            let name = e.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("store.damaged-")
        })
        .count()
}

/// A store with 1,000 records of run 1, closed or killed.
fn filled(folder: &TempDir, closed: bool) -> config::Backlog {
    let settings = settings(folder);
    let source = tempfile::tempdir().unwrap();
    let mut open = Open::new(&self::settings(&source), 1);
    for from in (1..=1000).step_by(50) {
        open.store(from..from + 50);
    }
    if closed {
        open.close();
        copy(&self::settings(&source).path, &settings.path);
    } else {
        copy(&self::settings(&source).path, &settings.path);
        open.close();
    }
    settings
}

/// Opens and counts: everything is there, or is told as lost, but for what was stored after the last
/// account of a store that was killed. Gives the number that was kept.
fn opens_and_accounts(settings: &config::Backlog) -> usize {
    let checkpoint = Checkpoint::read(&settings.path.join("checkpoint"));
    let known = checkpoint.runs.get(&1).map_or(0, |run| run.high);
    assert!(known == 0 || known > 1000 - 256);
    let mut open = Open::new(settings, 2);
    let current = open.opened.run_number;
    let kept: BTreeSet<Key> = open
        .all()
        .into_iter()
        .filter(|k| k.run_number < current)
        .collect();
    let losses = open.losses();
    let lost: u64 = losses.iter().map(|loss| loss.count).sum();
    assert!(
        kept.len() as u64 + lost >= known,
        "{} kept, {lost} lost: {losses:?}",
        kept.len()
    );
    let next = open.store(1..=10);
    assert_eq!(next, kept.len() as u64 + losses.len() as u64 + 10);
    open.close();
    kept.len()
}
