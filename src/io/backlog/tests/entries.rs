//! Appending, reading and discarding.

use super::*;

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
