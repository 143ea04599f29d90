//! Damage of the backlog at rest, as power cuts, worn cards and people make it. Whatever is found in the
//! store's place, the real program starts, decides about the LED at once, moves the dead store aside,
//! delivers what can be salvaged and tells the rest as lost (`damaged`): received + lost = 1..last.
//!
//! The sweep does the same at many places of a store through the library. `TEST_PLACES=n` sets how
//! many, `TEST_SEED=n` takes others, `TEST_RECORDS=n` makes the store larger: one whose log has more than
//! 64 MB is opened without a copy of it.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::filled;
use crate::stage::{Agent, Broker, Listener, eventually, within};
use uuid::Uuid;

const LAST: u64 = 3000;
/// A chunk, and the loss of one more where damage lies across two.
const TWO_CHUNKS: u64 = 256;

/// What a damage may cost.
struct Cost {
    /// Records, at the most.
    lost: u64,
    /// Dead stores kept aside.
    aside: usize,
}

const NOTHING: Cost = Cost { lost: 0, aside: 0 };
const SOME: Cost = Cost {
    lost: TWO_CHUNKS,
    aside: 1,
};
const ALL: Cost = Cost {
    lost: LAST,
    aside: 1,
};

fn aside(backlog: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(backlog).expect("a folder").flatten();
    let mut aside: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains("store.damaged-20"))
        .collect();
    aside.sort();
    aside
}

/// Fills a store, damages it (the store's folder is given), starts the program and counts.
fn survives(id: &str, cost: &Cost, damage: impl FnOnce(&Path)) {
    let broker = Broker::start();
    let listener = Listener::start(id, broker.port);
    eventually("the listener listens", || listener.listens());
    let delivery = "[delivery]\nreplay_rate = 0\nreplay_jitter = \"0s\"\nbatch = 100\n";
    let mut agent = Agent::prepare(id, broker.port, delivery);
    let run = Uuid::new_v4();
    let backlog = agent.path("backlog");
    filled::fill(&backlog, run, LAST);
    damage(&backlog.join("store"));

    // A person looks first: nothing may become worse by that, and it shows what will be delivered.
    let (whole, said, log) = agent.backlog("verify");
    assert_eq!(
        whole,
        cost.aside == 0 && cost.lost == 0,
        "{id}: {said}{log}"
    );
    let is_record = |line: &&serde_json::Value| line["event"] != "loss";
    let shown = agent.export().iter().filter(is_record).count() as u64;

    agent.set_light("100");
    agent.run();
    let began = Instant::now();
    assert!(
        within(Duration::from_secs(5), || agent.led_on()),
        "the LED waits"
    );
    let decided = began.elapsed();
    eventually("readings", || !listener.on("telemetry").is_empty());
    let read = began.elapsed();
    eventually("nothing waits", || {
        let states = listener.on("state");
        states.last().is_some_and(|state| state["backlog"] == 0) && agent.log().contains("link up")
    });
    assert_eq!(agent.stop().code(), Some(0));
    eventually("all is heard", || listener.last_text("status") == "offline");
    let name = run.to_string();
    let account = listener.account();
    let received: BTreeSet<u64> = account
        .get(&name)
        .map(|numbers| numbers.keys().copied().collect())
        .unwrap_or_default();
    let mut lost = 0;
    let mut told: BTreeSet<u64> = BTreeSet::new();
    for event in listener
        .on("events")
        .iter()
        .chain(&listener.on("telemetry/history"))
    {
        if event["event"] == "loss" && event["of_run"] == name.as_str() {
            assert_eq!(event["reason"], "damaged");
            let (from, to) = (event["from_seq"].as_u64(), event["to_seq"].as_u64());
            let range = from.expect("a number")..=to.expect("a number");
            // A loss that came twice is one loss.
            if !range.clone().all(|seq| told.contains(&seq)) {
                lost += event["count"].as_u64().expect("a number");
            }
            told.extend(range);
        }
    }
    println!(
        "{id}: {} received, {lost} lost; LED after {decided:?}, a reading arrived after {read:?}",
        received.len()
    );
    assert_eq!(received.len() as u64 + lost, LAST, "received + lost");
    assert!((1..=LAST).all(|seq| received.contains(&seq) || told.contains(&seq)));
    assert!(lost <= cost.lost, "{lost} lost");
    assert_eq!(
        received.len() as u64,
        shown,
        "export showed what is delivered"
    );
    for run in account.keys() {
        assert_eq!(listener.missing(run), Vec::<u64>::new(), "run {run}");
    }
    assert_eq!(aside(&backlog).len(), cost.aside, "{:?}", aside(&backlog));
}

fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).expect("read");
    change(&mut bytes);
    fs::write(file, bytes).expect("written");
}

/// The middle of the part of a file that is in use.
fn middle(bytes: &[u8]) -> usize {
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    end / 2
}

fn snapshot(store: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(store).expect("a folder").flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths.find(|path| path.to_string_lossy().contains("snap."))
}

#[test]
fn one_flipped_bit_costs_at_most_the_chunk_it_is_in() {
    survives("pi-bit", &SOME, |store| {
        change(&store.join("db"), |bytes| {
            let at = middle(bytes);
            bytes[at] ^= 8;
        });
    });
}

#[test]
fn one_page_of_zeros_costs_at_most_the_chunks_it_is_in() {
    survives("pi-page", &SOME, |store| {
        change(&store.join("db"), |bytes| {
            let at = middle(bytes) / 4096 * 4096;
            bytes[at..at + 4096].fill(0);
        });
    });
}

#[test]
fn a_log_of_nul_bytes_is_told_as_lost() {
    survives("pi-nul", &ALL, |store| {
        change(&store.join("db"), |bytes| bytes.fill(0));
        if let Some(snapshot) = snapshot(store) {
            change(&snapshot, |bytes| bytes.fill(0));
        }
    });
}

#[test]
fn an_empty_log_is_told_as_lost() {
    survives("pi-empty", &ALL, |store| {
        change(&store.join("db"), Vec::clear);
    });
}

#[test]
fn a_truncated_log_gives_what_is_left_of_it() {
    survives("pi-truncated", &ALL, |store| {
        change(&store.join("db"), |bytes| bytes.truncate(middle(bytes)));
    });
}

#[test]
fn rubbish_in_place_of_the_log_is_told_as_lost() {
    survives("pi-rubbish", &ALL, |store| {
        let mut rng = fastrand::Rng::with_seed(7);
        change(&store.join("db"), |bytes| {
            bytes.iter_mut().for_each(|byte| *byte = rng.u8(..));
        });
    });
}

/// For root no file is unreadable; a folder is for everybody.
#[test]
fn a_folder_in_place_of_the_log_is_told_as_lost() {
    survives("pi-folder", &ALL, |store| {
        fs::remove_file(store.join("db")).expect("removed");
        fs::create_dir(store.join("db")).expect("made");
    });
}

#[test]
fn a_file_in_place_of_the_store_is_moved_aside() {
    survives("pi-file", &ALL, |store| {
        fs::remove_dir_all(store).expect("removed");
        fs::write(store, "not a store").expect("written");
    });
}

#[test]
fn a_store_that_is_gone_is_reported_as_lost_by_its_checkpoint() {
    let cost = Cost { aside: 0, ..ALL };
    survives("pi-gone", &cost, |store| {
        fs::remove_dir_all(store).expect("removed");
    });
}

#[test]
fn a_half_written_snapshot_costs_nothing() {
    survives("pi-snapshot", &NOTHING, |store| {
        fs::write(store.join("snap.0000000000000ABC.generating"), [7; 300]).expect("written");
    });
}

#[test]
fn a_checkpoint_of_rubbish_costs_nothing() {
    survives("pi-checkpoint", &NOTHING, |store| {
        fs::write(store.with_file_name("checkpoint"), [0; 512]).expect("written");
    });
}

#[test]
fn a_broken_snapshot_costs_at_most_two_chunks() {
    survives("pi-broken", &SOME, |store| {
        // The next start makes one.
        filled::drain(store.parent().expect("a backlog"));
        let snapshot = snapshot(store).expect("a snapshot");
        change(&snapshot, |bytes| {
            let at = bytes.len() / 2;
            bytes[at] ^= 8;
        });
    });
}

#[test]
fn of_many_dead_stores_two_are_kept_and_the_newest_is_one_of_them() {
    let absent = Broker::absent();
    let mut agent = Agent::prepare("pi-again", absent.port, "");
    let backlog = agent.path("backlog");
    let mut kept = Vec::new();
    for time in 1..=4 {
        filled::fill(&backlog, Uuid::new_v4(), 200);
        change(&backlog.join("store/db"), |bytes| bytes.fill(time));
        agent.run();
        eventually("it is moved aside", || {
            agent.log().matches("kept at").count() == usize::from(time)
        });
        assert_eq!(agent.stop().code(), Some(0));
        kept = aside(&backlog);
        assert_eq!(kept.len(), 2.min(usize::from(time)), "{kept:?}");
    }
    let of = |path: &PathBuf| fs::read(path.join("db")).expect("read")[0];
    let mut times: Vec<u8> = kept.iter().map(of).collect();
    times.sort_unstable();
    assert_eq!(times, [3, 4]);
}

/// Root is never refused, so this needs another user's rights for the program.
#[test]
fn a_folder_without_permission_leaves_the_nightlight_and_says_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let mut broker = Broker::absent();
    let mut agent = Agent::prepare("pi-denied", broker.port, "");
    let backlog = agent.path("backlog");
    filled::fill(&backlog, Uuid::new_v4(), 100);
    let allow = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("allowed");
    };
    allow(agent.folder.path(), 0o755);
    allow(&agent.path("led"), 0o666);
    allow(&backlog, 0o000);
    agent.set_light("100");
    if !agent.run_as_nobody() {
        println!("skipped: only root can start the program as another user");
        return;
    }
    eventually("the LED is decided", || agent.led_on());
    eventually("the log says what to do", || agent.log().contains("chown"));
    agent.set_light("800");
    eventually("it goes on", || !agent.led_on());
    broker.restart();
    let listener = Listener::start("pi-denied", broker.port);
    eventually("the listener listens", || listener.listens());
    eventually("it delivers from memory", || {
        listener.on("telemetry").len() > 3
    });
    assert!(aside(&backlog).is_empty(), "nothing is damaged");
    agent.stop();
}

#[test]
fn sweep_one_flipped_bit_or_one_page_of_zeros_anywhere() {
    const BEFORE: u64 = 12_000;
    let variable = |name: &str, default: u64| {
        let value = std::env::var(name).ok();
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or(default)
    };
    let places = variable("TEST_PLACES", 200);
    let count = variable("TEST_RECORDS", 3000);
    let mut rng = fastrand::Rng::with_seed(variable("TEST_SEED", 1));
    // One store is fresh: much in it is there twice. The other one has been in use for long.
    let originals = [(), ()].map(|()| tempfile::tempdir().expect("a folder"));
    let run = Uuid::new_v4();
    filled::fill(originals[0].path(), run, count);
    filled::wear(originals[1].path(), run, BEFORE + count, count);
    // Another start, and there is a snapshot too. This is what they hold; of the worn one that includes
    // the confirmed part of a chunk.
    let held = [0, 1].map(|which| filled::drain(originals[which].path()).runs[&run].clone());
    assert!(held.iter().all(|held| held.len() as u64 >= count));
    let mut table = [Row::default(); 4];
    for place in 0..places {
        let (which, kind) = ((place % 2) as usize, (place / 2 % 2) as usize);
        let original = originals[which].path();
        let folder = tempfile::tempdir().expect("a folder");
        filled::copy_tree(original, folder.path()).expect("copied");
        let store = folder.path().join("store");
        // One in ten in the snapshot, which is far smaller than the log.
        let in_snapshot = snapshot(&store).filter(|_| rng.u8(0..10) == 0);
        let file = in_snapshot.unwrap_or_else(|| store.join("db"));
        let mut at = 0;
        change(&file, |bytes| {
            let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            at = rng.usize(0..=end);
            if kind == 0 {
                bytes[at] ^= 1 << rng.u8(0..8);
            } else {
                at = at / 4096 * 4096;
                let end = bytes.len().min(at + 4096);
                bytes[at..end].fill(0);
            }
        });
        let drained = filled::drain(folder.path());
        let held = &held[which];
        let old = drained.runs.get(&run).cloned().unwrap_or_default();
        let got = old.intersection(held).count() as u64;
        // What was confirmed long ago may come again: a duplicate, no loss.
        let again = old.difference(held).count() as u64;
        let losses = drained.losses.iter().filter(|loss| loss.of_run == run);
        let lost: u64 = losses.map(|loss| loss.count).sum();
        let name = file.display();
        let all = held.len() as u64;
        assert_eq!(got + lost, all, "{name} at {at}: {:?}", drained.losses);
        table[2 * which + kind].add(got, lost, again, !aside(folder.path()).is_empty());
    }
    println!("damage                 places  salvaged  delivered  most lost  again");
    let names = [
        "a bit",
        "a page",
        "a bit, long in use",
        "a page, long in use",
    ];
    for (name, row) in names.iter().zip(table) {
        let share = 100.0 * row.got as f64 / (row.got + row.lost).max(1) as f64;
        println!(
            "{name:22} {:6} {:9} {share:9.3}% {:10} {:6}",
            row.places, row.salvaged, row.most_lost, row.again
        );
    }
    let got: u64 = table.iter().map(|row| row.got).sum();
    assert!(
        got as f64 >= 0.999 * (places * count) as f64,
        "{got} delivered"
    );
}

/// A line of the sweep's table.
#[derive(Debug, Clone, Copy, Default)]
struct Row {
    places: u64,
    salvaged: u64,
    got: u64,
    lost: u64,
    most_lost: u64,
    again: u64,
}

impl Row {
    fn add(&mut self, got: u64, lost: u64, again: u64, salvaged: bool) {
        self.places += 1;
        self.salvaged += u64::from(salvaged);
        self.got += got;
        self.lost += lost;
        self.most_lost = self.most_lost.max(lost);
        self.again += again;
    }
}
