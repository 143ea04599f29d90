//! No room: a disk that another program fills to the brim, a disk that turns read-only, and the bounds
//! that the configuration sets. The LED follows the light, memory takes over, nothing is taken for
//! damage, and when there is room again it goes on by itself: received + lost = 1..last of each run.
//!
//! The disks are small file systems in memory, mounted by the test: where it may not mount, it says so
//! and leaves those stories out.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::filled;
use crate::stage::{Agent, Broker, Listener, eventually, within};
use serde_json::Value;
use uuid::Uuid;

/// A file system of 12 MB; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None`, and a line about it, where the test may not mount.
    fn mount(path: &Path) -> Option<Disk> {
        fs::create_dir_all(path).expect("made");
        let options = ["-t", "tmpfs", "-o", "size=12m,mode=755", "nightlight-test"];
        let output = Command::new("mount").args(options).arg(path).output();
        if output.is_ok_and(|output| output.status.success()) {
            return Some(Disk(path.to_owned()));
        }
        println!("skipped: mounting a small disk needs root and the right to mount");
        None
    }

    fn remount(&self, how: &str) -> bool {
        let how = format!("remount,{how}");
        let status = Command::new("mount")
            .args(["-o", &how])
            .arg(&self.0)
            .status();
        status.is_ok_and(|status| status.success())
    }

    fn hog(&self) -> PathBuf {
        self.0.join("hog")
    }

    /// Fills it until not a byte is left.
    fn fill(&self) {
        let mut hog = File::create(self.hog()).expect("made");
        for size in [65_536, 4096, 1] {
            let block = vec![7; size];
            loop {
                match hog.write_all(&block) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("cannot fill: {error}"),
                }
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.hog()).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there does not keep it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn follows_the_light(agent: &Agent) {
    for (light, on) in [("100", true), ("800", false), ("100", true), ("800", false)] {
        agent.set_light(light);
        assert!(
            within(Duration::from_secs(5), || agent.led_on() == on),
            "the LED does not follow the light"
        );
    }
}

/// A listener that a broker, away at the moment, knows.
fn known_listener(id: &str) -> (Broker, Listener) {
    let mut broker = Broker::start();
    let listener = Listener::start(id, broker.port);
    eventually("the listener listens", || listener.listens());
    broker.stop();
    (broker, listener)
}

/// The broker is back: everything arrives or is told lost. Gives the records told lost.
/// An earlier run must be there up to its last record, if one is given.
fn ends_well(
    mut broker: Broker,
    listener: &Listener,
    agent: &mut Agent,
    earlier: Option<(Uuid, u64)>,
) -> u64 {
    broker.restart();
    eventually("link up", || agent.log().contains("link up"));
    if let Some((run, last)) = earlier {
        // The store is tried again every 2 to 30 s.
        let run = run.to_string();
        let all = within(Duration::from_secs(60), || {
            thread::sleep(Duration::from_millis(100));
            let account = listener.account();
            account.get(&run).is_some_and(|of| of.len() as u64 == last)
        });
        assert!(all, "the earlier run is not complete");
    }
    eventually("nothing waits", || {
        let states = listener.on("state");
        states.last().is_some_and(|state| state["backlog"] == 0)
    });
    // What the store gave up last is told a little later.
    let whole = |run: &String| listener.missing(run).is_empty();
    eventually("received + lost = 1..last", || {
        listener.account().keys().all(whole)
    });
    assert_eq!(agent.stop().code(), Some(0));
    eventually("all is heard", || listener.last_text("status") == "offline");
    for run in listener.account().keys() {
        assert_eq!(listener.missing(run), Vec::<u64>::new(), "run {run}");
    }
    let losses = distinct(listener.records()).into_iter();
    losses.filter_map(|loss| loss["count"].as_u64()).sum()
}

/// The losses among the records, each once: it may come again.
fn distinct(records: Vec<Value>) -> Vec<Value> {
    let mut names = BTreeSet::new();
    let is_new = |loss: &Value| {
        let (from, to) = (loss["from_seq"].as_u64(), loss["to_seq"].as_u64());
        loss["event"] == "loss" && names.insert((loss["of_run"].to_string(), from, to))
    };
    let mut is_new = is_new;
    records.into_iter().filter(|loss| is_new(loss)).collect()
}

fn nothing_was_moved_aside(agent: &Agent) {
    let entries = fs::read_dir(agent.path("backlog"))
        .expect("a folder")
        .flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    assert!(names.all(|name| !name.contains("damaged")));
}

/// Records of an earlier run.
const OLD: u64 = 2000;
const FAST: &str = "[delivery]\nreplay_rate = 0\nreplay_jitter = \"0s\"\nbatch = 50\n";

#[test]
fn a_disk_that_fills_up_in_an_outage_and_is_freed_loses_nothing() {
    let (broker, listener) = known_listener("pi-fills");
    let mut agent = Agent::prepare("pi-fills", broker.port, FAST);
    let Some(disk) = Disk::mount(&agent.path("backlog")) else {
        return;
    };
    agent.run();
    eventually("something is on the disk", || {
        agent.path("backlog/store/db").exists()
    });
    disk.fill();
    eventually("the log says what to do", || {
        agent.log().contains("delete something")
    });
    follows_the_light(&agent);
    let last_seq = || {
        agent
            .status()
            .and_then(|status| status["last_seq"].as_u64())
    };
    let full_at = last_seq().expect("a status");
    eventually("memory has some more", || last_seq() > Some(full_at + 60));
    follows_the_light(&agent);
    disk.free();
    // By itself: then a kill loses none of it, and the next run delivers it.
    eventually("the store takes records", || {
        agent
            .status()
            .is_some_and(|status| status["store_ok"] == true)
    });
    let freed_at = last_seq();
    eventually("it is written", || {
        last_seq() > freed_at.map(|seq| seq + 20)
    });
    agent.kill();
    let on_disk = agent.export().len() as u64;
    assert!(
        on_disk > full_at + 60,
        "{on_disk} records after the disk was freed"
    );
    nothing_was_moved_aside(&agent);
    agent.run();
    assert_eq!(
        ends_well(broker, &listener, &mut agent, None),
        0,
        "none was lost"
    );
    nothing_was_moved_aside(&agent);
}

/// What only memory has at a stop is gone. The file beside the store still takes a note of it.
#[test]
fn what_a_stop_on_a_full_disk_could_not_store_is_reported_as_lost() {
    let (mut broker, listener) = known_listener("pi-full-stop");
    let mut agent = Agent::prepare("pi-full-stop", broker.port, FAST);
    let Some(disk) = Disk::mount(&agent.path("backlog")) else {
        return;
    };
    agent.run();
    eventually("something is on the disk", || {
        agent.path("backlog/store/db").exists()
    });
    let backlog = || agent.status().and_then(|status| status["backlog"].as_u64());
    eventually("readings are stored", || backlog() > Some(10));
    disk.fill();
    eventually("the log says what to do", || {
        agent.log().contains("delete something")
    });
    let then = backlog();
    eventually("memory has some more", || backlog() > then.map(|n| n + 30));
    let status = agent.status().expect("a status");
    let run = status["run"].as_str().expect("a run").to_owned();
    let last = status["last_seq"].as_u64().expect("a number");
    // Twice: the note of a run outlives another one that cannot store either.
    assert_eq!(agent.stop().code(), Some(0));
    agent.run();
    eventually("it runs again", || {
        agent
            .status()
            .is_some_and(|status| status["run"] != run.as_str())
    });
    assert_eq!(agent.stop().code(), Some(0));
    disk.free();
    agent.run();
    broker.restart();
    eventually("nothing waits", || {
        let states = listener.on("state");
        states.last().is_some_and(|state| state["backlog"] == 0)
    });
    assert_eq!(agent.stop().code(), Some(0));
    eventually("all is heard", || listener.last_text("status") == "offline");
    let account = listener.account();
    let received = account.get(&run).map_or(0, |numbers| numbers.len() as u64);
    let losses = distinct(listener.records())
        .into_iter()
        .filter(|record| record["of_run"] == run.as_str());
    let losses: Vec<_> = losses.collect();
    let lost: u64 = losses
        .iter()
        .filter_map(|loss| loss["count"].as_u64())
        .sum();
    assert!(lost >= 30, "{losses:?}");
    assert!(losses.iter().all(|loss| loss["reason"] == "not-stored"));
    let to = losses
        .iter()
        .filter_map(|loss| loss["to_seq"].as_u64())
        .max();
    assert!(to >= Some(last), "{losses:?} of {last}");
    assert_eq!(Some(received + lost), to, "received + lost = 1..last");
    nothing_was_moved_aside(&agent);
}

#[test]
fn a_disk_that_is_full_at_the_start_is_waited_for_with_all_in_memory() {
    let (broker, listener) = known_listener("pi-full");
    let mut agent = Agent::prepare("pi-full", broker.port, FAST);
    let Some(disk) = Disk::mount(&agent.path("backlog")) else {
        return;
    };
    let run = Uuid::new_v4();
    filled::fill(&agent.path("backlog"), run, OLD);
    // The ballast too is gone to the hog.
    let _ = fs::remove_file(agent.path("backlog/ballast"));
    disk.fill();
    agent.set_light("100");
    agent.run();
    assert!(within(Duration::from_secs(5), || agent.led_on()));
    eventually("the log says what to do", || {
        agent.log().contains("delete something")
    });
    follows_the_light(&agent);
    disk.free();
    let lost = ends_well(broker, &listener, &mut agent, Some((run, OLD)));
    assert_eq!(lost, 0, "none was lost");
    nothing_was_moved_aside(&agent);
}

#[test]
fn a_full_disk_drains_when_the_link_is_back_first() {
    let (broker, listener) = known_listener("pi-drains");
    let mut agent = Agent::prepare("pi-drains", broker.port, FAST);
    let Some(disk) = Disk::mount(&agent.path("backlog")) else {
        return;
    };
    agent.run();
    eventually("something is on the disk", || {
        agent.path("backlog/store/db").exists()
    });
    disk.fill();
    eventually("the log says what to do", || {
        agent.log().contains("delete something")
    });
    let lost = ends_well(broker, &listener, &mut agent, None);
    assert_eq!(lost, 0, "none was lost");
    nothing_was_moved_aside(&agent);
    drop(disk);
}

/// What a kernel does to a card with errors.
#[test]
fn a_disk_that_turns_read_only_and_back_loses_nothing() {
    let (broker, listener) = known_listener("pi-read-only");
    let mut agent = Agent::prepare("pi-read-only", broker.port, FAST);
    let Some(disk) = Disk::mount(&agent.path("backlog")) else {
        return;
    };
    let run = Uuid::new_v4();
    filled::fill(&agent.path("backlog"), run, OLD);
    if !disk.remount("ro") {
        println!("skipped: it cannot be made read-only");
        return;
    }
    agent.set_light("100");
    agent.run();
    assert!(within(Duration::from_secs(5), || agent.led_on()));
    eventually("the log says what to do", || {
        agent.log().contains("read-only file system")
    });
    follows_the_light(&agent);
    assert!(disk.remount("rw"));
    let lost = ends_well(broker, &listener, &mut agent, Some((run, OLD)));
    assert_eq!(lost, 0, "none was lost");
    nothing_was_moved_aside(&agent);
}

/// A backlog of an earlier run that is larger than the bound, and an outage on top of it.
fn bounded(id: &str, bounds: &str, old: u64) {
    let (broker, listener) = known_listener(id);
    let more = format!(
        "{FAST}[sensor]\ndriver = \"iio\"\npath = \"{{folder}}/light\"\ninterval = \"20ms\"\n\
         [backlog]\npath = \"{{folder}}/backlog\"\ndurable_within = \"100ms\"\n{bounds}\n"
    );
    let mut agent = Agent::prepare(id, broker.port, &more);
    let run = Uuid::new_v4();
    filled::fill(&agent.path("backlog"), run, old);
    agent.run();
    // Readings while nobody listens, until the bound has cost more than a hundred records.
    let last_seq = || {
        agent
            .status()
            .and_then(|status| status["last_seq"].as_u64())
    };
    eventually("hundreds of readings", || last_seq() > Some(200));
    follows_the_light(&agent);
    let lost = ends_well(broker, &listener, &mut agent, None);
    let account = listener.account();
    let heard = account.values().map(|numbers| numbers.len()).sum::<usize>();
    println!("{id}: {heard} received, {lost} told lost");
    assert!(lost > 100, "the bound was reached");
    let own: u64 = account
        .iter()
        .filter(|(name, _)| **name != run.to_string())
        .filter_map(|(_, numbers)| numbers.keys().next_back())
        .sum();
    let losses: Vec<String> = listener
        .records()
        .iter()
        .filter(|record| record["event"] == "loss")
        .map(ToString::to_string)
        .collect();
    // It can be more: what was just being published when the store gave it up is told lost and arrives
    // all the same. It must not be less.
    let (accounted, made) = (heard as u64 + lost, old + own);
    println!("{id}: {accounted} accounted of {made} made");
    assert!(accounted >= made, "{accounted} of {made}: {losses:#?}");
    assert!(accounted - made < 100, "{accounted} of {made}: {losses:#?}");
    for name in account.keys() {
        assert_eq!(listener.missing(name), Vec::<u64>::new(), "{name}");
    }
    let old_heard = account
        .get(&run.to_string())
        .map_or(0, |numbers| numbers.len() as u64);
    let told: u64 = distinct(listener.records())
        .iter()
        .filter(|record| record["of_run"] == run.to_string())
        .filter_map(|loss| {
            let range = loss["from_seq"].as_u64()?..=loss["to_seq"].as_u64()?;
            assert_eq!(loss["reason"], "backlog-full");
            Some(range.count() as u64)
        })
        .sum();
    assert!(old_heard + told >= old, "{old_heard} + {told} of {old}");
    nothing_was_moved_aside(&agent);
}

#[test]
fn max_records_with_each_policy_accounts_for_every_record() {
    thread::scope(|scope| {
        for policy in ["drop-oldest", "drop-newest"] {
            scope.spawn(move || {
                let bounds = format!("max_records = 150\non_full = \"{policy}\"");
                bounded(&format!("pi-count-{policy}"), &bounds, 300);
            });
        }
    });
}

#[test]
fn max_bytes_with_each_policy_accounts_for_every_record() {
    thread::scope(|scope| {
        for policy in ["drop-oldest", "drop-newest"] {
            scope.spawn(move || {
                let bounds = format!("max_bytes = 65536\non_full = \"{policy}\"");
                bounded(&format!("pi-bytes-{policy}"), &bounds, 8000);
            });
        }
    });
}
