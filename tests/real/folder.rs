//! The backlog's folder is deleted, renamed or replaced while the daemon runs offline: a person cleans
//! up, a backup is put back, a card is mounted over it. The open file lives on without a name, and a
//! restart would find nothing of it. The daemon notices at the next commit, says so, and stores all of
//! it again under the path: received + lost = 1..last of each run, also after a kill.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use crate::filled;
use crate::stage::{Agent, Broker, Listener, eventually, free_port};
use serde_json::Value;
use uuid::Uuid;

/// Records of an earlier run.
const OLD: u64 = 2_000;

/// What became of the folder, in words of the log.
const SAID: &str = "was deleted, renamed or replaced";

/// A device with records of an earlier run, offline, that has stored some of its own.
struct Offline {
    broker: Broker,
    listener: Listener,
    agent: Agent,
    backlog: PathBuf,
    page: u16,
    old: Uuid,
}

impl Offline {
    fn start(id: &str) -> Self {
        let mut broker = Broker::start();
        let listener = Listener::start(id, broker.port);
        eventually("the listener listens", || listener.listens());
        broker.stop();
        // The socket of `nightlight status` is in the folder that goes.
        let page = free_port();
        let more = format!(
            "[web]\nlisten = \"127.0.0.1:{page}\"\n\
             [delivery]\nreplay_rate = 0\nreplay_jitter = \"0s\"\nbatch = 50\n"
        );
        let mut agent = Agent::prepare(id, broker.port, &more);
        let backlog = agent.path("backlog");
        let old = Uuid::new_v4();
        filled::fill(&backlog, old, OLD);
        agent.run();
        let offline = Self {
            broker,
            listener,
            agent,
            backlog,
            page,
            old,
        };
        offline.stores_up_to(OLD + 20);
        offline
    }

    fn status(&self) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.page)).ok()?;
        stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    }

    fn stores_up_to(&self, records: u64) {
        eventually("it stores", || {
            self.status()
                .is_some_and(|s| s["store_ok"] == true && s["backlog"].as_u64() > Some(records))
        });
    }

    fn said(&self) -> usize {
        self.agent.log().matches(SAID).count()
    }

    /// The broker is back: all of each run arrives, and nothing is lost.
    fn ends_well(mut self) {
        self.broker.restart();
        let listener = &self.listener;
        eventually("all of the earlier run is there", || {
            let account = listener.account();
            let of = account.get(&self.old.to_string());
            of.is_some_and(|of| of.len() as u64 == OLD)
        });
        eventually("nothing waits", || {
            let states = listener.on("state");
            states.last().is_some_and(|state| state["backlog"] == 0)
        });
        assert_eq!(self.agent.stop().code(), Some(0));
        eventually("all is heard", || listener.last_text("status") == "offline");
        let account = listener.account();
        assert_eq!(account.len(), 3, "three runs");
        let records = listener.records();
        for (run, numbers) in &account {
            // What the next run says was given is to be complete too.
            let mut previous = records.iter().filter(|r| r["previous_run"] == run.as_str());
            let given = previous.find_map(|record| record["previous_seq"].as_u64());
            let last = numbers.keys().next_back().copied().max(given).unwrap_or(0);
            let mut all = 1..=last;
            assert!(
                all.all(|seq| numbers.contains_key(&seq)),
                "run {run} to {last}"
            );
        }
        assert!(!records.iter().any(|record| record["event"] == "loss"));
    }
}

/// Does `harm` to the folder in an outage, and counts after a kill and a restart.
fn survives(id: &str, harm: impl FnOnce(&Path)) -> Vec<PathBuf> {
    let mut offline = Offline::start(id);
    harm(&offline.backlog);
    let before = offline.status().expect("a status")["backlog"].as_u64();
    eventually("it says so", || offline.said() > 0);
    offline.stores_up_to(before.expect("a number") + 20);
    assert_eq!(offline.said(), 1, "said once");
    offline.agent.kill();
    offline.agent.run();
    let entries = fs::read_dir(&offline.backlog).expect("a folder").flatten();
    let aside = entries.map(|entry| entry.path());
    let aside = aside.filter(|path| path.to_string_lossy().contains("store.damaged-"));
    let aside = aside.collect();
    offline.ends_well();
    aside
}

#[test]
fn a_deleted_folder_is_noticed_and_all_is_stored_again() {
    survives("pi-deleted", |backlog| {
        fs::remove_dir_all(backlog).expect("removed");
    });
}

#[test]
fn a_deleted_store_is_noticed_and_all_is_stored_again() {
    survives("pi-no-store", |backlog| {
        fs::remove_dir_all(backlog.join("store")).expect("removed");
    });
}

#[test]
fn a_renamed_folder_is_noticed_and_all_is_stored_again() {
    survives("pi-renamed", |backlog| {
        fs::rename(backlog, backlog.with_extension("old")).expect("renamed");
    });
}

#[test]
fn a_folder_replaced_by_a_copy_of_before_is_noticed_and_all_is_stored_again() {
    survives("pi-replaced", |backlog| {
        let copy = backlog.with_extension("copy");
        filled::copy_tree(&backlog.join("store"), &copy.join("store")).expect("copied");
        fs::copy(backlog.join("checkpoint"), copy.join("checkpoint")).expect("copied");
        fs::rename(backlog, backlog.with_extension("old")).expect("renamed");
        fs::rename(copy, backlog).expect("renamed");
    });
}

/// What lies in the way is somebody's: it is moved aside, not deleted.
#[test]
fn a_folder_replaced_by_that_of_another_device_is_kept_aside() {
    let aside = survives("pi-foreign", |backlog| {
        let other = backlog.with_extension("other");
        filled::fill(&other, Uuid::new_v4(), 300);
        fs::rename(backlog, backlog.with_extension("old")).expect("renamed");
        fs::rename(other, backlog).expect("renamed");
    });
    assert_eq!(aside.len(), 1, "{aside:?}");
}

/// A folder that cannot be made again: memory and the open file keep all, and the state says so.
#[test]
fn a_folder_that_cannot_be_made_again_is_waited_for() {
    let mut offline = Offline::start("pi-blocked");
    let backlog = offline.backlog.clone();
    fs::rename(&backlog, backlog.with_extension("old")).expect("renamed");
    fs::write(&backlog, "in the way").expect("written");
    eventually("the state says so", || {
        offline
            .status()
            .is_some_and(|status| status["store_ok"] == false)
    });
    fs::remove_file(&backlog).expect("removed");
    offline.stores_up_to(OLD + 40);
    assert_eq!(offline.agent.stop().code(), Some(0));
    offline.agent.run();
    offline.ends_well();
}
