//! SIGKILL of the real program at random moments: on line, off line, in a replay, while it opens its
//! backlog. Afterwards the broker is back and everything is drained, and then: no run has a hole up to
//! its last durable record, no number has two contents, and there are few duplicates.
//!
//! `nightlight backlog export` after each kill is the witness of what was on the disk. The moments are
//! random but the same each time; `TEST_KILLS=n` makes n in each test, `TEST_SEED=n` others.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::filled;
use crate::stage::dialect::{Dialect, in_both_versions};
use crate::stage::{Agent, Broker, Listener, eventually, within};
use serde_json::Value;
use uuid::Uuid;

const DURABLE_WITHIN: Duration = Duration::from_millis(200);
/// What a busy machine may need on top, beside what its disk needs (see `Probe`).
const MARGIN: Duration = Duration::from_millis(1000);
/// In flight at the kill.
const WINDOW: usize = 16;
/// Confirmed, and not yet handed over to be removed: as many as fit in the window. The disk may have
/// as many more in hand.
const UNREMOVED: usize = 2 * WINDOW;
/// A packed chunk is removed when all of it is confirmed.
const CHUNK: usize = 128;

fn variable(name: &str, default: u64) -> u64 {
    let value = std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok());
    value.unwrap_or(default)
}

fn more(delivery: &str) -> String {
    format!(
        "[sensor]\ndriver = \"iio\"\npath = \"{{folder}}/light\"\ninterval = \"20ms\"\n\
         [backlog]\npath = \"{{folder}}/backlog\"\ndurable_within = \"{}ms\"\n\
         [delivery]\nreplay_jitter = \"0s\"\n{delivery}\n",
        DURABLE_WITHIN.as_millis()
    )
}

/// One device that is killed again and again, and everything known about its records.
struct Victim {
    broker: Broker,
    listener: Listener,
    agent: Agent,
    rng: fastrand::Rng,
    kills: usize,
    /// What was seen on the disk after a kill.
    durable: BTreeMap<(String, u64), Value>,
    /// Of each kill: its moment, and the one up to which everything must be safe; in ms since 1970.
    safe_until: Vec<(i64, i64)>,
}

impl Victim {
    fn new(dialect: Dialect, id: &str, delivery: &str) -> Self {
        let broker = Broker::start();
        let listener = Listener::start(id, broker.port);
        eventually("the listener listens", || listener.listens());
        let agent = dialect.prepare(id, broker.port, &more(delivery));
        Self {
            broker,
            listener,
            agent,
            rng: fastrand::Rng::with_seed(variable("TEST_SEED", 1)),
            kills: 0,
            durable: BTreeMap::new(),
            safe_until: Vec::new(),
        }
    }

    /// Lets it run for a random time (that is the story, so it is slept), kills it, looks at the disk.
    fn run_and_kill(&mut self, milliseconds: std::ops::Range<u64>) {
        let probe = Probe::start(&self.agent.path("probe"));
        self.agent.run();
        thread::sleep(Duration::from_millis(self.rng.u64(milliseconds)));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.expect("after 1970").as_millis() as i64;
        self.agent.kill();
        self.kills += 1;
        // A commit is a few syncs.
        let margin = DURABLE_WITHIN + MARGIN + 4 * probe.longest();
        self.safe_until.push((now, now - margin.as_millis() as i64));
        for record in self.agent.export() {
            if record["event"] == "loss" {
                continue;
            }
            let (key, record) = keyed(record);
            if let Some(before) = self.durable.insert(key.clone(), record.clone()) {
                assert_eq!(before, record, "{key:?} has two contents on the disk");
            }
        }
    }

    /// A last life with the broker, until nothing waits; then the whole account. Only of a run whose
    /// store was damaged may records be lost, and told so; gives how many.
    fn ends_well(mut self, damaged: Option<Uuid>) -> u64 {
        let before = self.agent.log().len();
        self.agent.run();
        let started = || {
            let log = self.agent.log().split_off(before);
            let at = log.find("run=")? + 4;
            log.get(at..at + 36).map(str::to_owned)
        };
        eventually("it starts", || started().is_some());
        let run = started().unwrap_or_default();
        let drained = within(Duration::from_secs(60), || {
            thread::sleep(Duration::from_millis(100));
            // The state has no run: it counts when this run has been heard and all is told since.
            let heard = self.listener.all();
            let begins = heard.iter().position(|heard| {
                heard
                    .objects()
                    .iter()
                    .any(|object| object["run"] == run.as_str())
            });
            let last = heard
                .iter()
                .rposition(|heard| heard.topic.ends_with("/state"));
            begins.is_some()
                && begins < last
                && last.is_some_and(|last| {
                    heard[last]
                        .objects()
                        .iter()
                        .any(|state| state["backlog"] == 0)
                })
        });
        assert!(drained, "not drained");
        assert_eq!(self.agent.stop().code(), Some(0));
        eventually("all is heard", || {
            self.listener.last_text("status") == "offline"
        });
        let records = self.listener.records();
        let mut heard: BTreeMap<(String, u64), Value> = BTreeMap::new();
        let mut times = BTreeMap::new();
        let mut duplicates = 0;
        let mut lost = Vec::new();
        for record in records {
            if record["event"] == "loss" {
                lost.push(record);
                continue;
            }
            let ts = record["ts"].as_str().unwrap_or_default();
            let at = ts.parse::<jiff::Timestamp>().expect("a time");
            let (key, record) = keyed(record);
            times.insert(key.clone(), at.as_millisecond());
            if let Some(before) = heard.insert(key.clone(), record.clone()) {
                assert_eq!(before, record, "{key:?} has two contents");
                duplicates += 1;
            }
        }
        let damaged = damaged.map(|run| run.to_string());
        assert!(
            lost.iter()
                .all(|loss| loss["of_run"].as_str() == damaged.as_deref()),
            "a kill is no reason to lose: {lost:?}"
        );
        let told: BTreeSet<u64> = lost.iter().flat_map(range_of).collect();
        for (key, record) in &self.durable {
            let heard = heard.get(key);
            assert_eq!(heard, Some(record), "{key:?} was on the disk");
        }
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for ((run, seq), record) in &heard {
            last.insert(run, *seq);
            // What the next run says was given is to be complete too.
            if let (Some(run), Some(seq)) = (
                record["previous_run"].as_str(),
                record["previous_seq"].as_u64(),
            ) {
                let highest = last.entry(run).or_default();
                *highest = seq.max(*highest);
            }
        }
        for (run, last) in &last {
            let missing: Vec<u64> = (1..=*last)
                .filter(|seq| !heard.contains_key(&((*run).to_owned(), *seq)))
                .filter(|seq| damaged.as_deref() != Some(*run) || !told.contains(seq))
                .collect();
            assert!(missing.is_empty(), "run {run} to {last}: {missing:?}");
        }
        self.nothing_old_is_missing(&times);
        let most = self.kills * (WINDOW + UNREMOVED + CHUNK);
        println!(
            "{}: {} kills, {} runs, {} records, {duplicates} duplicates",
            self.agent.id,
            self.kills,
            last.len(),
            heard.len()
        );
        assert!(duplicates <= most, "{duplicates} duplicates");
        told.len() as u64
    }

    /// A run that lived up to a kill has a record between then and the margin before it: whatever
    /// came after its last one was younger than the promise.
    fn nothing_old_is_missing(&self, times: &BTreeMap<(String, u64), i64>) {
        let mut newest: BTreeMap<&str, i64> = BTreeMap::new();
        let mut first: BTreeMap<&str, i64> = BTreeMap::new();
        for ((run, _), &at) in times {
            let newest = newest.entry(run).or_insert(at);
            *newest = at.max(*newest);
            let first = first.entry(run).or_insert(at);
            *first = at.min(*first);
        }
        // Not the backlog that lay there before, whatever the time in its records.
        let log = self.agent.log();
        first.retain(|run, _| log.contains(&format!("run={run}")));
        let mut judged = 0;
        for (kill, safe) in &self.safe_until {
            // The run that lived then: the last to begin before, unless it was killed before, too.
            let begun = first.iter().filter(|(_, first)| *first < safe);
            let Some((run, first)) = begun.max_by_key(|(_, first)| **first) else {
                continue;
            };
            let mut kills = self.safe_until.iter().map(|(kill, _)| kill);
            if kills.any(|other| other < kill && other > first) {
                continue;
            }
            judged += 1;
            let missing = safe - newest[run];
            assert!(
                missing < 100,
                "run {run} has nothing of the {missing} ms before what may be lost"
            );
        }
        println!(
            "{}: {judged} lives were long enough to judge",
            self.agent.id
        );
    }
}

/// How long the disk takes for a synced write meanwhile: it is shared, and no promise is kept on a disk
/// that stands still.
struct Probe {
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<Duration>,
}

impl Probe {
    fn start(path: &Path) -> Self {
        let mut file = fs::File::create(path).expect("made");
        let over = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !own.load(Ordering::Relaxed) {
                let began = Instant::now();
                file.write_all(&[7; 512]).expect("written");
                file.sync_data().expect("synced");
                longest = longest.max(began.elapsed());
                // A probe, and not a load.
                thread::sleep(Duration::from_millis(50));
            }
            longest
        });
        Self { over, thread }
    }

    fn longest(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("a time")
    }
}

/// The numbers that a loss tells of.
fn range_of(loss: &Value) -> std::ops::RangeInclusive<u64> {
    loss["from_seq"].as_u64().expect("a number")..=loss["to_seq"].as_u64().expect("a number")
}

/// The key of a record and what of it never changes: not how it came, nor what is known of its time.
fn keyed(mut record: Value) -> ((String, u64), Value) {
    let run = record["run"].as_str().expect("a run").to_owned();
    let seq = record["seq"].as_u64().expect("a number");
    let synced = record["clock"] == "synced";
    if let Some(object) = record.as_object_mut() {
        object.remove("replayed");
        if !synced {
            object.remove("clock");
            object.remove("ts");
        }
    }
    ((run, seq), record)
}

#[test]
fn killed_on_line_at_random_moments() {
    in_both_versions(|dialect| {
        let mut victim = Victim::new(dialect, "pi-on-line", "");
        for _ in 0..variable("TEST_KILLS", 6) {
            victim.run_and_kill(200..2500);
        }
        victim.ends_well(None);
    });
}

#[test]
fn killed_off_line_at_random_moments() {
    let mut victim = Victim::new(Dialect::V5, "pi-off-line", "replay_rate = 0\nbatch = 50");
    victim.broker.stop();
    for _ in 0..variable("TEST_KILLS", 6) {
        victim.run_and_kill(300..3000);
    }
    victim.broker.restart();
    victim.ends_well(None);
}

#[test]
fn killed_in_a_replay_at_random_moments() {
    in_both_versions(|dialect| {
        let mut victim = Victim::new(dialect, "pi-replay", "replay_rate = 1000");
        let run = Uuid::new_v4();
        filled::fill(&victim.agent.path("backlog"), run, 6000);
        for _ in 0..variable("TEST_KILLS", 6) {
            victim.run_and_kill(300..1800);
        }
        victim.ends_well(None);
    });
}

#[test]
fn killed_while_it_opens_its_backlog() {
    let mut victim = Victim::new(Dialect::V5, "pi-opening", "replay_rate = 0\nbatch = 50");
    victim.broker.stop();
    let run = Uuid::new_v4();
    filled::fill(&victim.agent.path("backlog"), run, 3000);
    for _ in 0..variable("TEST_KILLS", 12) {
        victim.run_and_kill(1..250);
    }
    victim.broker.restart();
    victim.ends_well(None);
}

/// A power cut while it mends what the power cut before has broken.
#[test]
fn killed_while_it_salvages_a_damaged_store() {
    let mut victim = Victim::new(Dialect::V5, "pi-salvage", "replay_rate = 0\nbatch = 50");
    victim.broker.stop();
    let run = Uuid::new_v4();
    let backlog = victim.agent.path("backlog");
    filled::fill(&backlog, run, 10_000);
    let log = backlog.join("store/db");
    let mut bytes = fs::read(&log).expect("read");
    let middle = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) / 2;
    bytes[middle..middle + 4096].fill(0);
    fs::write(&log, bytes).expect("written");
    for _ in 0..variable("TEST_KILLS", 8) {
        victim.run_and_kill(10..400);
    }
    victim.broker.restart();
    let lost = victim.ends_well(Some(run));
    println!("{lost} of 10000 lost by the damage");
    assert!(lost <= 2 * CHUNK as u64);
}
