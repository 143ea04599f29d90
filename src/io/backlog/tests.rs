//! Tests of the backlog as the daemon sees it: through the handle and its answers. No sleeps; every
//! wait is for an answer, with a limit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
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
                self.lost += lost;
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

#[test]
fn what_is_stored_comes_back_in_order_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let mut first = Open::new(&settings, 1);
    assert_eq!(first.opened.run_number, 1);
    assert_eq!(first.opened.previous, None);
    assert_eq!(first.store([1, 2, 5]), 3);
    assert_eq!(first.append(Vec::new(), vec!["a".into(), "b".into()], 9), 3);
    first.close();

    let mut second = Open::new(&settings, 2);
    assert_eq!(second.opened.run_number, 2);
    assert_eq!(second.opened.previous, Some((Uuid::from_u128(1), 9)));
    assert_eq!(second.opened.records, 3);
    assert_eq!(second.opened.command_ids, ["a", "b"]);
    assert_eq!(second.opened.clocks, [(BOOT, 1_795_194_191_250)]);
    second.store([1, 2]);
    let keys = second.all();
    assert_eq!(seqs(&keys), [1, 2, 5, 1, 2]);
    assert_eq!(keys[4].run_number, 2);
    let (page, end) = second.fetch(Some(keys[4]), 10);
    assert!(page.is_empty() && end);
    second.close();
}

#[test]
fn sealing_keeps_order_and_count() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let mut open = Open::new(&settings, 1);
    let stored: Vec<u64> = (1..=2000).filter(|seq| seq % 7 != 0).collect();
    for some in stored.chunks(33) {
        open.store(some.iter().copied());
    }
    assert_eq!(open.seqs(), stored);
    open.close();
    let mut open = Open::new(&settings, 2);
    assert_eq!(open.opened.records, stored.len() as u64);
    assert_eq!(open.seqs(), stored);
    // Handed over again after an answer that got lost: not kept twice.
    open.run = Uuid::from_u128(1);
    assert_eq!(
        open.store(stored.iter().copied().take(40)),
        stored.len() as u64
    );
    assert_eq!(open.seqs(), stored);
    open.close();
}

#[test]
fn a_late_record_finds_its_place_between_sealed_ones() {
    let folder = tempfile::tempdir().unwrap();
    let mut open = Open::new(&settings(&folder), 1);
    let late = [50, 51, 130, 200];
    for some in (1..=600)
        .filter(|s| !late.contains(s))
        .collect::<Vec<_>>()
        .chunks(100)
    {
        open.store(some.iter().copied());
    }
    open.store(late);
    assert_eq!(open.seqs(), (1..=600).collect::<Vec<_>>());
    open.close();
}

#[test]
fn a_partly_confirmed_chunk_hides_its_records_and_a_crash_makes_duplicates_not_losses() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let mut open = Open::new(&settings, 1);
    for from in (1..=600).step_by(100) {
        open.store(from..from + 100);
    }
    open.discard(1, 250);
    assert_eq!(open.seqs(), (251..=600).collect::<Vec<_>>());
    assert_eq!(open.store([601]), 351);
    let copied = tempfile::tempdir().unwrap();
    copy(&settings.path, &copied.path().join("deep/down"));
    let mut crashed = Open::new(&self::settings(&copied), 2);
    let seqs = crashed.seqs();
    assert!(seqs.len() > 351 && seqs.len() < 601);
    assert!((251..=601).all(|seq| seqs.contains(&seq)));
    open.discard(251, 260);
    assert_eq!(open.seqs(), (261..=601).collect::<Vec<_>>());
    open.discard(1, u64::MAX);
    assert!(open.seqs().is_empty());
    assert_eq!(open.store([602]), 1);
    open.close();
    crashed.close();
}

/// Stored, kept and lost must be the same records, in every policy.
fn accounts_for_every_record(on_full: OnFull, max_records: u64, max_bytes: u64) -> Vec<u64> {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(&folder);
    settings.on_full = on_full;
    settings.max_records = max_records;
    settings.max_bytes = max_bytes;
    let mut open = Open::new(&settings, 1);
    for from in (1..=3000).step_by(20) {
        open.store(from..from + 20);
    }
    let kept = open.seqs();
    assert!(kept.len() as u64 <= max_records);
    let losses = open.losses();
    let said = open.lost;
    open.close();
    let mut again = Open::new(&settings, 2);
    assert_eq!(losses, again.losses(), "a gap is an entry like any other");
    assert_eq!(kept, again.seqs());
    again.close();
    let lost: u64 = losses.iter().map(|loss| loss.count).sum();
    assert_eq!(lost + kept.len() as u64, 3000, "{losses:?}");
    assert_eq!(lost, said);
    for loss in &losses {
        assert_eq!(loss.reason, "backlog-full");
        assert_eq!(loss.count, loss.to_seq - loss.from_seq + 1);
        let mut inside = kept
            .iter()
            .filter(|seq| (loss.from_seq..=loss.to_seq).contains(seq));
        assert_eq!(inside.next(), None, "an undelivered record lies in a gap");
    }
    assert_eq!(losses.len(), 1, "neighbours join: {losses:?}");
    kept
}

#[test]
fn drop_oldest_accounts_for_every_record() {
    let kept = accounts_for_every_record(OnFull::DropOldest, 1000, 1 << 30);
    assert_eq!(kept.last(), Some(&3000));
    assert!(kept.len() > 800);
    assert!(kept.windows(2).all(|w| w[0] + 1 == w[1]));
    let tiny = accounts_for_every_record(OnFull::DropOldest, 7, 1 << 30);
    assert_eq!(tiny, (2994..=3000).collect::<Vec<_>>());
    let bytes = accounts_for_every_record(OnFull::DropOldest, 1_000_000, 12_000);
    assert_eq!(bytes.last(), Some(&3000));
    assert!(bytes.len() > 500, "{}", bytes.len());
}

#[test]
fn drop_newest_accounts_for_every_record() {
    let kept = accounts_for_every_record(OnFull::DropNewest, 1000, 1 << 30);
    assert_eq!(kept, (1..=1000).collect::<Vec<_>>());
    let bytes = accounts_for_every_record(OnFull::DropNewest, 1_000_000, 12_000);
    assert_eq!(bytes, (1..=bytes.len() as u64).collect::<Vec<_>>());
}

#[test]
fn drop_newest_takes_new_records_behind_the_gap_when_there_is_room_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(&folder);
    settings.on_full = OnFull::DropNewest;
    settings.max_records = 10;
    let mut open = Open::new(&settings, 1);
    for seq in 1..=15 {
        open.store([seq]);
    }
    open.discard(1, 10);
    open.store(16..=18);
    let entries = open
        .entries()
        .into_iter()
        .map(|(key, entry)| (key.seq, entry.last()));
    let entries: Vec<_> = entries.collect();
    assert_eq!(entries, [(11, 15), (16, 16), (17, 17), (18, 18)]);
    assert_eq!(open.losses()[0].count, 5);
    // A gap goes as a whole.
    open.discard(11, 14);
    assert_eq!(open.entries().len(), 4);
    open.discard(11, 15);
    assert_eq!(open.entries().len(), 3);
    open.close();
}

/// What replay has read is just being delivered: it is not reported as lost.
#[test]
fn drop_oldest_begins_behind_what_was_read_and_a_gap_that_was_read_grows_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(&folder);
    settings.max_records = 80;
    let mut open = Open::new(&settings, 1);
    for from in (1..=80).step_by(10) {
        open.store(from..from + 10);
    }
    let (page, _) = open.fetch(None, 20);
    let pinned = page.last().unwrap().0.seq;
    assert_eq!(pinned, 20);
    open.store(81..=100);
    let (page, _) = open.fetch(Some(page.last().unwrap().0), 1);
    let Entry::Gap(told) = &page[0].1 else {
        panic!("{page:?}");
    };
    let losses = [told.clone()];
    assert_eq!((losses[0].from_seq, losses[0].to_seq), (21, 40));
    // Read, and so told: the next one is another.
    open.store(101..=110);
    let all: Vec<_> = open.losses();
    let ranges: Vec<_> = all
        .iter()
        .map(|loss| (loss.from_seq, loss.to_seq))
        .collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert_eq!(ranges[0], (21, 40));
    // From the beginning again, nothing is pinned.
    assert_eq!(open.seqs()[0], 1);
    open.fetch(None, 1);
    open.close();
}

/// A record that nobody confirms must hold up nothing behind it.
#[test]
fn entries_are_discarded_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut open = Open::new(&settings(&folder), 1);
    for from in (1..=1280).step_by(128) {
        open.store(from..from + 128);
    }
    open.discard(2, 1152);
    let left: Vec<u64> = [1].into_iter().chain(1153..=1280).collect();
    assert_eq!(open.seqs(), left);
    open.close();
    let mut open = Open::new(&settings(&folder), 2);
    // The chunk of the first record comes again, the others are gone.
    let left: Vec<u64> = (1..=128).chain(1153..=1280).collect();
    assert_eq!(open.seqs(), left);
    open.close();
}

/// Given up by memory, or refused by the broker: a gap takes the place of records that the store has.
#[test]
fn a_gap_takes_the_place_of_records() {
    let folder = tempfile::tempdir().unwrap();
    let mut open = Open::new(&settings(&folder), 1);
    open.store(1..=100);
    let refused = Loss {
        of_run: open.run,
        from_seq: 50,
        to_seq: 50,
        count: 1,
        reason: "refused".into(),
    };
    open.append(vec![Entry::Gap(refused.clone())], Vec::new(), 100);
    open.store(101..=110);
    // Once more, after an answer that got lost.
    open.append(vec![Entry::Gap(refused.clone())], Vec::new(), 110);
    let given_up = Loss {
        from_seq: 111,
        to_seq: 120,
        count: 10,
        reason: "memory-full".into(),
        ..refused.clone()
    };
    let record = Entry::Record(reading(open.run, 121));
    open.append(vec![Entry::Gap(given_up.clone()), record], Vec::new(), 121);
    for _ in 0..2 {
        assert_eq!(open.losses(), [refused.clone(), given_up.clone()]);
        let kept: Vec<u64> = (1..=49).chain(51..=110).chain([121]).collect();
        assert_eq!(open.seqs(), kept);
        open.close();
        open = Open::new(&settings(&folder), 2);
    }
    open.close();
}

/// Large stores are not counted when they are opened.
#[test]
fn what_is_not_there_when_all_is_discarded_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let dir = StoreDir::new(&settings.path);
    dir.prepare().unwrap();
    let tree = Tree::open(&dir, &dir.store()).unwrap();
    let mut store = Store::load(tree, &dir, &settings).unwrap();
    let run = Uuid::from_u128(1);
    store.begin(run, BOOT, &Checkpoint::default()).unwrap();
    let records: Vec<Entry> = (1..=1000)
        .map(|seq| Entry::Record(reading(run, seq)))
        .collect();
    store.append(&records, 1000).unwrap();
    let run_number = 1;
    let gone = store
        .entry_at(Key {
            run_number,
            seq: 400,
        })
        .unwrap()
        .unwrap();
    let mut batch = sled::Batch::default();
    batch.remove(format::entry_key(gone.key));
    store.tree.commit(batch).unwrap();
    let all = KeyRange {
        run_number,
        from: 1,
        to: 1000,
    };
    assert_eq!(store.read_after(None, 1000).unwrap().entries.len(), 872);
    store.discard(&[all]).unwrap();
    let page = store.read_after(None, 1000).unwrap();
    let (_, Entry::Gap(gap)) = &page.entries[0] else {
        panic!("{page:?}");
    };
    assert_eq!((page.entries.len(), gap.of_run, gap.count), (1, run, 128));
    store.discard(&[all]).unwrap();
    assert!(store.is_empty());
    assert!(
        store.read_after(None, 1000).unwrap().entries.is_empty(),
        "once"
    );
}

/// Nothing is known, so nothing can be reported; and nothing is made up.
#[test]
fn a_folder_that_is_gone_with_its_checkpoint_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, true);
    fs::remove_dir_all(&settings.path).unwrap();
    let mut open = Open::new(&settings, 2);
    assert_eq!((open.opened.run_number, open.opened.previous), (1, None));
    assert_eq!(open.losses(), []);
    assert_eq!(open.store([1]), 1);
    assert_eq!(open.seqs(), [1]);
    open.close();
    assert_eq!(quarantined(&settings), 0);
}

/// Without an outage there is no store; after one it goes.
#[test]
fn a_store_exists_only_while_there_is_something_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let store = settings.path.join("store");
    let mut open = Open::new(&settings, 1);
    assert_eq!(open.append(Vec::new(), vec!["id".into()], 7), 0);
    let (page, end) = open.fetch(None, 10);
    assert!(page.is_empty() && end && !store.exists());
    open.store([8]);
    assert!(store.exists());
    open.discard(8, 8);
    open.close();
    assert!(!store.exists());
    let open = Open::new(&settings, 2);
    assert!(!store.exists());
    assert_eq!(open.opened.run_number, 2);
    assert_eq!(open.opened.previous, Some((Uuid::from_u128(1), 8)));
    assert_eq!(open.opened.command_ids, ["id"]);
    assert_eq!(open.opened.clocks, [(BOOT, 1_795_194_191_250)]);
    open.close();
}

/// What version 1 has left is moved aside, and its records are delivered all the same.
#[test]
fn a_store_of_an_earlier_version_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let store = settings.path.join("store");
    fs::create_dir_all(&store).unwrap();
    let db = sled::open(&store).unwrap();
    db.insert(b"s", b"whatever version 1 kept here").unwrap();
    let run = Uuid::from_u128(9);
    let of = format::Header::of_chunks(4, run, BOOT);
    let lines: Vec<_> = (1..=5)
        .map(|seq| format::line(&reading(run, seq)))
        .collect();
    let (_, mut value) = format::pack_chunk(&of, &lines, 128).unwrap();
    value[4] = 1;
    let crc = [&value[..68], &value[72..]].concat();
    let crc = crc32fast::hash(&crc).to_be_bytes();
    value[68..72].copy_from_slice(&crc);
    db.insert(b"c whatever", value).unwrap();
    db.flush().unwrap();
    drop(db);
    let mut open = Open::new(&settings, 1);
    assert_eq!(open.seqs(), [1, 2, 3, 4, 5]);
    assert_eq!(open.opened.run_number, 5);
    open.close();
    assert_eq!(quarantined(&settings), 1);
}

#[test]
fn a_store_killed_while_open_has_everything_that_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let mut open = Open::new(&settings, 1);
    for from in (1..=900).step_by(30) {
        open.store(from..from + 30);
        let copied = tempfile::tempdir().unwrap();
        copy(&settings.path, &copied.path().join("deep/down"));
        if from % 9 == 1 {
            let mut crashed = Open::new(&self::settings(&copied), 2);
            assert_eq!(crashed.seqs(), (1..from + 30).collect::<Vec<_>>());
            assert_eq!(crashed.opened.previous, Some((open.run, from + 29)));
            crashed.close();
        }
    }
    open.close();
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

#[test]
fn flipped_bytes_and_zeroed_pages_are_salvaged() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut kept = 0;
    let mut moved = 0;
    for round in 0..24 {
        let folder = tempfile::tempdir().unwrap();
        let settings = filled(&folder, round % 2 == 0);
        let db = settings.path.join("store/db");
        let mut bytes = fs::read(&db).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).unwrap();
        let at = random.usize(..used);
        if round % 4 < 2 {
            bytes[at] ^= 1 << random.u8(..8);
        } else {
            let at = at & !4095;
            let end = (at + 4096).min(bytes.len());
            bytes[at..end].fill(0);
        }
        fs::write(&db, &bytes).unwrap();
        kept += opens_and_accounts(&settings);
        moved += quarantined(&settings);
    }
    assert!(moved > 5, "{moved}");
    println!("{kept} of 24000 kept, {moved} moved aside");
    assert!(kept > 24 * 900, "{kept}");
}

/// A store that was killed, with 20 records of run 2, of which the commit of the tenth is damaged: sled
/// takes it for the end of its log, and would forget the ten after it.
fn damaged_in_its_end(folder: &TempDir) -> config::Backlog {
    let source = tempfile::tempdir().unwrap();
    let settings = filled(&source, false);
    let mut open = Open::new(&settings, 2);
    for seq in 1..=20 {
        open.store([seq]);
    }
    let other = self::settings(folder);
    copy(&settings.path, &other.path);
    open.close();
    let checkpoint = Checkpoint::read(&other.path.join("checkpoint"));
    assert!(checkpoint.runs[&2].high < 10);
    let db = other.path.join("store/db");
    let mut bytes = fs::read(&db).unwrap();
    // The chunk as it was when it had ten records.
    let mut key = b"nL\xB5\x10\x02\x02\x00\x0a".to_vec();
    key.extend_from_slice(&2_u64.to_be_bytes());
    let mut damaged = 0;
    for at in 0..bytes.len() - 80 {
        if bytes[at..].starts_with(&key) && bytes[at + 56..at + 64] == 10_u64.to_be_bytes() {
            bytes[at + 75] ^= 1;
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    fs::write(&db, &bytes).unwrap();
    other
}

/// What is left and what is lost of run 2, and the stores moved aside.
fn left_of_run_2(settings: &config::Backlog) -> (usize, u64, usize) {
    let mut open = Open::new(settings, 3);
    let left = open.all().iter().filter(|key| key.run_number == 2).count();
    let lost: u64 = open.losses().iter().map(|loss| loss.count).sum();
    open.close();
    (left, lost, quarantined(settings))
}

#[test]
fn a_store_rolled_back_by_less_than_its_checkpoint_knows_is_noticed_by_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let settings = damaged_in_its_end(&folder);
    // Each commit wrote the chunk anew, so that the later ones have it all.
    assert_eq!(left_of_run_2(&settings), (20, 0, 1));
}

/// Found by cutting the power while a store was opened: nothing of the copy was on the disk.
#[test]
fn a_part_of_a_copy_of_the_log_is_not_taken_for_the_copy() {
    for part in [0, 3, 10_000] {
        let folder = tempfile::tempdir().unwrap();
        let settings = damaged_in_its_end(&folder);
        let log = fs::read(settings.path.join("store/db")).unwrap();
        fs::write(settings.path.join("store.before"), &log[..part]).unwrap();
        assert_eq!(left_of_run_2(&settings), (20, 0, 1), "{part} bytes");
    }
}

#[test]
fn a_truncated_file_is_salvaged() {
    for part in [2, 3, 10] {
        let folder = tempfile::tempdir().unwrap();
        let settings = filled(&folder, part == 3);
        let db = settings.path.join("store/db");
        let bytes = fs::read(&db).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).unwrap();
        fs::write(&db, &bytes[..used - used / part]).unwrap();
        opens_and_accounts(&settings);
    }
}

#[test]
fn rubbish_in_any_file_of_the_store_is_survived() {
    for closed in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let settings = filled(&folder, closed);
        for name in files(&settings.path.join("store")).into_keys() {
            let again = tempfile::tempdir().unwrap();
            let other = self::settings(&again);
            copy(&settings.path, &other.path);
            let name = other.path.join(name.strip_prefix(&settings.path).unwrap());
            fs::write(&name, b"rubbish and nothing but rubbish").unwrap();
            opens_and_accounts(&other);
        }
    }
}

#[test]
fn a_file_in_the_place_of_the_store_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    fs::create_dir_all(&settings.path).unwrap();
    fs::write(settings.path.join("store"), b"rubbish").unwrap();
    let mut open = Open::new(&settings, 1);
    assert_eq!(open.opened.records, 0);
    assert_eq!(open.store([1]), 1);
    open.close();
    assert_eq!(quarantined(&settings), 1);
}

#[test]
fn a_store_that_is_gone_is_a_loss_and_ordinals_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, true);
    fs::remove_dir_all(settings.path.join("store")).unwrap();
    let mut open = Open::new(&settings, 2);
    assert_eq!(open.opened.run_number, 2);
    assert_eq!(open.opened.previous, Some((Uuid::from_u128(1), 1000)));
    let losses = open.losses();
    assert_eq!(losses.len(), 1);
    assert_eq!(
        (losses[0].from_seq, losses[0].to_seq, losses[0].count),
        (1, 1000, 1000)
    );
    assert_eq!(losses[0].reason, "damaged");
    open.close();
}

#[test]
fn a_half_written_snapshot_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, false);
    let half = settings.path.join("store/snap.0000000000000123.generating");
    fs::write(&half, b"half").unwrap();
    assert_eq!(opens_and_accounts(&settings), 1000);
    assert_eq!(quarantined(&settings), 0);
}

/// Found by cutting the power while a store was opened: the new snapshot had not got its name yet, but
/// sled had already zeroed what the older one needs, and nothing opened with that.
#[test]
fn a_whole_snapshot_that_has_not_got_its_name_yet_is_not_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, true);
    Open::new(&settings, 2).close();
    let store = settings.path.join("store");
    let entries = fs::read_dir(&store).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let named = paths
        .find(|path| path.to_string_lossy().contains("/snap."))
        .unwrap();
    let bytes = fs::read(&named).unwrap();
    let unnamed = PathBuf::from(format!("{}.generating", named.display()));
    fs::rename(&named, &unnamed).unwrap();
    finish_snapshots(&store).unwrap();
    assert_eq!(fs::read(&named).unwrap(), bytes);
    assert!(!unnamed.exists());
    fs::write(&unnamed, &bytes[..bytes.len() - 1]).unwrap();
    finish_snapshots(&store).unwrap();
    assert_eq!(fs::read(&named).unwrap(), bytes);
    assert!(!unnamed.exists());
    assert_eq!(opens_and_accounts(&settings), 1000);
    assert_eq!(quarantined(&settings), 0);
}

#[test]
fn a_store_rolled_back_to_nothing_is_noticed_by_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, true);
    let empty = tempfile::tempdir().unwrap();
    let mut other = Open::new(&self::settings(&empty), 1);
    other.store([1]);
    let store = settings.path.join("store");
    let kept_db = fs::read(store.join("db")).unwrap();
    fs::remove_dir_all(&store).unwrap();
    copy(&self::settings(&empty).path.join("store"), &store);
    other.close();
    // The records lie in a file that sled does not look at.
    fs::write(store.join("stray"), kept_db).unwrap();
    assert_eq!(opens_and_accounts(&settings), 1000);
    assert_eq!(quarantined(&settings), 1);
}

#[test]
fn a_salvage_interrupted_by_a_power_cut_is_begun_again_or_ended() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, true);
    let store = settings.path.join("store");
    // Cut while the new one was written: it is thrown away.
    copy(&store, &settings.path.join("store.new"));
    fs::write(settings.path.join("store.new/db"), b"half").unwrap();
    assert_eq!(opens_and_accounts(&settings), 1000);
    // Cut between the two renames: the new one is taken.
    fs::rename(&store, settings.path.join("store.new")).unwrap();
    let mut open = Open::new(&settings, 3);
    assert_eq!(open.opened.records, 1010);
    open.store([1]);
    open.close();
    assert!(!settings.path.join("store.new").exists());
}

#[test]
fn a_lock_is_waited_for_and_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let mut first = Open::new(&settings, 1);
    first.store([1, 2]);
    let (inputs, answers) = unbounded_channel();
    let backlog = Backlog::open(&settings, Uuid::from_u128(2), BOOT, inputs);
    let mut second = Open {
        backlog,
        answers,
        opened: Opened::default(),
        run: Uuid::from_u128(2),
        lost: 0,
    };
    match second.answer() {
        Input::StoreFailed(why) => assert!(why.contains("held by a running nightlight"), "{why}"),
        other => panic!("{other:?}"),
    }
    // A fetch waits for the store.
    second.backlog.read_after(None, 10);
    first.close();
    match second.answer() {
        Input::BacklogOpened(opened) => assert_eq!(opened.records, 2),
        other => panic!("{other:?}"),
    }
    match second.answer() {
        Input::Fetched { entries, end } => assert!(entries.len() == 2 && end),
        other => panic!("{other:?}"),
    }
    second.close();
    assert_eq!(quarantined(&settings), 0);
}

#[test]
fn a_healthy_link_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let mut open = Open::new(&settings, 1);
    let before = files(&settings.path);
    for from in 1..200 {
        open.discard(from, from);
        open.fetch(None, 100);
    }
    assert!(files(&settings.path) == before, "something was written");
    open.close();
}

#[test]
fn the_last_256_command_ids_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let mut open = Open::new(&settings, 1);
    for from in [0, 200] {
        let ids = (from..from + 200).map(|n| format!("id{n}")).collect();
        open.append(Vec::new(), ids, 0);
    }
    open.close();
    let open = Open::new(&settings, 2);
    assert_eq!(open.opened.command_ids.len(), 256);
    assert_eq!(open.opened.command_ids[0], "id144");
    assert_eq!(open.opened.command_ids[255], "id399");
    open.close();
}

#[test]
fn a_stopped_backlog_can_be_looked_into() {
    let folder = tempfile::tempdir().unwrap();
    assert!(
        inspect::stats(folder.path())
            .unwrap_err()
            .contains("no backlog")
    );
    let settings = filled(&folder, true);
    let stats = inspect::stats(&settings.path).unwrap();
    assert_eq!(
        (stats.records, stats.runs.len(), stats.runs[&1].held),
        (1000, 1, 1000)
    );
    let mut out = Vec::new();
    let now = Now {
        boot: Duration::ZERO,
        wall_ms: 0,
        synced: false,
    };
    let clock = Clock::new(Uuid::nil(), 0, now);
    inspect::export(&settings.path, &clock, &mut out).unwrap();
    let seqs: Vec<u64> = String::from_utf8(out)
        .unwrap()
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(seqs, (1..=1000).collect::<Vec<_>>());
    let mut out = Vec::new();
    inspect::list(&settings.path, &mut out).unwrap();
    assert!(String::from_utf8(out).unwrap().starts_with("1 1 100 100\n"));
    let verified = inspect::verify(&settings.path).unwrap();
    assert_eq!((verified.readable, verified.expected), (1000, 1000));
    assert!(verified.problems.is_empty());
    fs::write(
        settings.path.join("store/conf"),
        b"rubbish and nothing else",
    )
    .unwrap();
    let verified = inspect::verify(&settings.path).unwrap();
    assert_eq!(verified.problems.len(), 1);
    assert_eq!(opens_and_accounts(&settings), 1000);
    assert!(inspect::verify(&settings.path).unwrap().problems.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Store(u8, u8),
    Discard(u16, u16),
    Fetch(u16, u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..4_u8, 1..200_u8).prop_map(|(hole, count)| Step::Store(hole, count)),
        3 => (0..1500_u16, 0..300_u16).prop_map(|(from, more)| Step::Discard(from, more)),
        2 => (0..1500_u16, 1..200_u8).prop_map(|(after, limit)| Step::Fetch(after, limit)),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_as_a_sorted_map(steps in proptest::collection::vec(step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(&folder);
        let mut run = 1;
        let mut open = Open::new(&settings, run);
        let mut model: BTreeSet<Key> = BTreeSet::new();
        // Forgotten, but perhaps still on the disk: may come back after a restart.
        let mut ghosts: BTreeSet<Key> = BTreeSet::new();
        let mut seq = 0;
        for step in steps {
            let run_number = open.opened.run_number;
            match step {
                Step::Store(hole, count) => {
                    let from = seq + 1 + u64::from(hole);
                    seq = from + u64::from(count) - 1;
                    let records = open.store(from..=seq);
                    model.extend((from..=seq).map(|seq| Key { run_number, seq }));
                    prop_assert_eq!(records, model.len() as u64);
                }
                Step::Discard(from, more) => {
                    let of = 1 + u64::from(from) % run_number;
                    let (from, to) = (u64::from(from), u64::from(from + more));
                    open.backlog.discard(vec![KeyRange { run_number: of, from, to }]);
                    let range = Key { run_number: of, seq: from }..=Key { run_number: of, seq: to };
                    let gone: Vec<Key> = model.range(range).copied().collect();
                    for key in gone {
                        model.remove(&key);
                        ghosts.insert(key);
                    }
                }
                Step::Fetch(after, limit) => {
                    let after = Key { run_number: 1 + u64::from(after) % run_number, seq: u64::from(after) };
                    let (page, end) = open.fetch(Some(after), usize::from(limit));
                    let page: Vec<Key> = page.into_iter().map(|(key, _)| key).collect();
                    let expected: Vec<Key> = model.range(after..).filter(|k| **k != after).copied().collect();
                    prop_assert!(expected.starts_with(&page));
                    prop_assert_eq!(end, page.len() == expected.len());
                    prop_assert!(end || page.len() >= usize::from(limit));
                }
                Step::Reopen => {
                    open.close();
                    run += 1;
                    seq = 0;
                    open = Open::new(&settings, run);
                    prop_assert_eq!(open.opened.run_number, run as u64);
                    let all: BTreeSet<Key> = open.all().into_iter().collect();
                    prop_assert!(all.is_superset(&model));
                    prop_assert!(all.iter().all(|key| model.contains(key) || ghosts.contains(key)));
                    model = all;
                }
            }
        }
        let all: Vec<Key> = model.iter().copied().collect();
        prop_assert_eq!(open.all(), all);
        prop_assert_eq!(open.lost, 0);
        open.close();
    }
}

/// The stated factor: three times the bound, and 6 MB for the ballast and sled's own segments.
#[test]
fn a_hundred_fills_and_drains_stay_within_the_stated_size() {
    let folder = tempfile::tempdir().unwrap();
    let settings = config::Backlog {
        max_bytes: 60_000,
        ..settings(&folder)
    };
    let mut open = Open::new(&settings, 1);
    let mut largest = 0;
    let mut next = 1;
    for _ in 0..100 {
        open.store(next..next + 4_000);
        next += 4_000;
        largest = largest.max(tree_bytes(&settings.path));
        let run_number = 1;
        let all = KeyRange {
            run_number,
            from: 1,
            to: next,
        };
        open.backlog.discard(vec![all]);
        let (rest, end) = open.fetch(None, 1);
        assert!(rest.is_empty() && end);
    }
    println!(
        "at most {largest} bytes for a bound of {}",
        settings.max_bytes
    );
    assert!(largest <= 3 * settings.max_bytes + 6_000_000, "{largest}");
    open.close();
}

#[test]
fn records_stored_in_bulk_are_packed_at_once_and_read_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let mut open = Open::new(&settings, 1);
    open.store(1..=7);
    assert_eq!(open.store(8..=5_000), 5_000);
    open.close();
    let mut out = Vec::new();
    inspect::list(&settings.path, &mut out).unwrap();
    let entries = String::from_utf8(out).unwrap().lines().count();
    assert!(entries <= 41, "{entries}");
    let mut open = Open::new(&settings, 2);
    let mut after = None;
    let mut seen = 0;
    loop {
        let (page, end) = open.fetch(after, 256);
        for (key, entry) in page {
            seen += 1;
            assert_eq!(key.seq, seen);
            assert_eq!(entry, Entry::Record(reading(Uuid::from_u128(1), seen)));
            after = Some(key);
        }
        if end {
            break;
        }
    }
    assert_eq!(seen, 5_000);
    open.close();
}

#[test]
fn only_a_thread_that_has_work_and_stands_still_hangs() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut moved = super::Moved::default();
    assert_eq!(moved.hangs_for(5, 1, at(0)), Duration::ZERO);
    assert_eq!(moved.hangs_for(5, 1, at(15)), Duration::from_secs(15));
    assert_eq!(moved.hangs_for(5, 3, at(600)), Duration::from_secs(600));
    assert_eq!(moved.hangs_for(6, 3, at(615)), Duration::ZERO, "it moved");
    assert_eq!(moved.hangs_for(6, 0, at(900)), Duration::ZERO, "no work");
    assert_eq!(moved.hangs_for(6, 1, at(915)), Duration::from_secs(15));
}
