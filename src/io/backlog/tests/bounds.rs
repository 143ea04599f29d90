//! What happens when the backlog is full: stored, kept and lost are the same records.

use super::*;

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
