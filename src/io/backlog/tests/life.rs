//! When there is a store, who may open it, and what is known without it.

use super::*;

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
