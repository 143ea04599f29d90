//! Every state of a record on its way, with everything that can happen, against a table written by hand.
//!
//! The diagrams are at the head of `memory` and `replay`. A record of this run is in memory, live or as history,
//! until it is confirmed or on the disk. On the disk it is nothing but there, unless it was published before
//! (ahead) or read back (page). A cell says what it is afterwards; `.` stands for what cannot happen then.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use uuid::Uuid;

use super::memory::{DeliveryState, Memory, Queue};
use super::replay::Replay;
use crate::telemetry::{Body, Record};
use crate::time::{Clock, Now, Stamp};
use crate::{Entry, Key};

const IN_MEMORY: [&str; 6] = [
    "live waiting",
    "live in flight",
    "live awaiting",
    "history waiting",
    "history in flight",
    "history awaiting",
];

const MEMORY: &str = "
    published         | live in flight  | .                 | .                | history in flight | .                 | .
    broker has it     | .               | live awaiting     | live awaiting    | .                 | history awaiting  | history awaiting
    confirmed         | gone            | gone              | gone             | gone              | gone              | gone
    server ack late   | live waiting    | live in flight    | history waiting  | history waiting   | history in flight | history waiting
    not late yet      | live waiting    | live in flight    | live awaiting    | history waiting   | history in flight | history awaiting
    topic held back   | history waiting | .                 | .                | history waiting   | .                 | .
    link down         | history waiting | history waiting   | history waiting  | history waiting   | history waiting   | history waiting
    link up           | live waiting    | .                 | .                | history waiting   | .                 | .
    given up          | gap             | gap               | gap              | gap               | gap               | gap
    is being stored   | live waiting    | live in flight    | live awaiting    | history waiting   | history in flight | history awaiting
    cannot be stored  | live waiting    | live in flight    | live awaiting    | history waiting   | history in flight | history awaiting
    stored            | on disk         | ahead in flight   | ahead awaiting   | on disk           | ahead in flight   | ahead awaiting
";

const ON_DISK: [&str; 6] = [
    "on disk",
    "page waiting",
    "page in flight",
    "page awaiting",
    "ahead in flight",
    "ahead awaiting",
];

const DISK: &str = "
    read              | page waiting    | .                 | .                | .                 | page in flight    | page awaiting
    published         | .               | page in flight    | .                | .                 | .                 | .
    broker has it     | .               | .                 | page awaiting    | page awaiting     | ahead awaiting    | ahead awaiting
    confirmed         | .               | gone              | gone             | gone              | on disk           | on disk
    server ack late   | on disk         | page waiting      | page in flight   | page waiting      | ahead in flight   | on disk
    not late yet      | on disk         | page waiting      | page in flight   | page awaiting     | ahead in flight   | ahead awaiting
    link down         | on disk         | on disk           | on disk          | on disk           | on disk           | on disk
";

#[test]
fn every_state_in_memory_with_everything_that_can_happen() {
    assert_table(IN_MEMORY, MEMORY);
}

#[test]
fn every_state_on_the_disk_with_everything_that_can_happen() {
    assert_table(ON_DISK, DISK);
}

fn assert_table(states: [&str; 6], table: &str) {
    let mut wrong = Vec::new();
    for row in table.lines().filter(|row| !row.trim().is_empty()) {
        let mut cells = row.split('|').map(str::trim);
        let event = cells.next().unwrap_or_default();
        let expected: Vec<&str> = cells.collect();
        assert_eq!(expected.len(), states.len(), "{row}");
        for (state, expected) in states.into_iter().zip(expected) {
            if expected == "." {
                continue;
            }
            let mut record = OneRecord::new(state);
            assert_eq!(record.shown(), state);
            record.give(event);
            let shown = record.shown();
            if shown != expected {
                wrong.push(format!("{state}, {event}: {shown}, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// One record of this run, wherever it is.
struct OneRecord {
    memory: Memory,
    replay: Replay,
    is_on_disk: bool,
}

const KEY: Key = Key {
    run_number: 1,
    seq: 1,
};
const ACKED_AT: Duration = Duration::from_secs(1);

impl OneRecord {
    fn new(state: &str) -> Self {
        let queue = match state.starts_with("history") {
            true => Queue::History,
            false => Queue::Live,
        };
        let mut one = Self {
            memory: Memory::default(),
            replay: Replay::new(16),
            is_on_disk: false,
        };
        one.memory.add(record(), queue, Duration::ZERO);
        let steps: &[&str] = match state {
            "live waiting" | "history waiting" => &[],
            "live in flight" | "history in flight" => &["published"],
            "live awaiting" | "history awaiting" => &["published", "broker has it"],
            "on disk" => &["stored"],
            "page waiting" => &["stored", "read"],
            "page in flight" => &["stored", "read", "published"],
            "page awaiting" => &["stored", "read", "published", "broker has it"],
            "ahead in flight" => &["published", "stored"],
            "ahead awaiting" => &["published", "broker has it", "stored"],
            _ => panic!("no such state: {state}"),
        };
        for step in steps {
            one.give(step);
        }
        one
    }

    fn give(&mut self, event: &str) {
        match event {
            "published" if self.is_on_disk => {
                assert!(
                    self.replay
                        .next_batch(9, usize::MAX, &clock(), |_| false)
                        .is_some()
                );
            }
            "published" => self.memory.sent(1),
            "broker has it" => {
                if !self.memory.await_server_ack(1, ACKED_AT) {
                    self.replay.await_server_ack(KEY, ACKED_AT);
                }
            }
            "confirmed" => {
                if self.memory.remove(1).is_none() && self.replay.remove(KEY).is_none() {
                    self.replay.remove_ahead(KEY, 1);
                } else {
                    self.is_on_disk = false;
                }
            }
            "server ack late" => self.look_for_late_acks(ACKED_AT),
            "not late yet" => self.look_for_late_acks(Duration::ZERO),
            "topic held back" => self.memory.make_history(1),
            "link down" => {
                self.memory.link_down();
                self.replay.start_over();
            }
            "link up" => self.memory.link_up(),
            "given up" => assert!(self.memory.give_up(1, "refused")),
            "is being stored" => assert_eq!(self.memory.begin_writing().len(), 1),
            "cannot be stored" => {
                self.memory.begin_writing();
                self.memory.not_written();
            }
            "stored" => {
                self.memory.begin_writing();
                let published = self.memory.written().into_iter();
                self.replay
                    .more_on_disk(published.map(|(_, state)| (KEY, state)));
                self.is_on_disk = true;
            }
            "read" => {
                assert!(self.replay.read_on().is_some());
                let entries = vec![(KEY, Entry::Record(record()))];
                assert!(self.replay.read(entries, true, |_, _| false));
            }
            _ => panic!("no such event: {event}"),
        }
        let waits = usize::from(self.shown() == "page waiting");
        assert_eq!(self.replay.waiting(), waits, "{event}");
        let is_history = self.shown().starts_with("history") || self.shown() == "gap";
        assert_eq!(self.memory.backlog(), u64::from(is_history), "{event}");
    }

    fn look_for_late_acks(&mut self, before: Duration) {
        self.memory.send_again(before);
        self.replay.send_again(before);
    }

    fn shown(&self) -> String {
        let in_words = |state: DeliveryState| match state {
            DeliveryState::Waiting => "waiting",
            DeliveryState::InFlight => "in flight",
            DeliveryState::AwaitingServerAck(since) => {
                assert_eq!(since, ACKED_AT);
                "awaiting"
            }
        };
        if let Some(Entry::Gap(_)) = self.memory.get(1) {
            return "gap".into();
        }
        match (self.memory.state_of(1), self.replay.state_of(KEY)) {
            (Some((Queue::Live, state)), None) => format!("live {}", in_words(state)),
            (Some((Queue::History, state)), None) => format!("history {}", in_words(state)),
            (None, Some((place, state))) => format!("{place} {}", in_words(state)),
            (None, None) if self.is_on_disk => "on disk".into(),
            (None, None) => "gone".into(),
            (Some(_), Some(_)) => panic!("it is in memory and on the disk"),
        }
    }
}

fn record() -> Record {
    Record {
        run: Uuid::nil(),
        seq: 1,
        boot_id: Uuid::nil(),
        stamp: Stamp {
            boot_ms: 1,
            wall_ms: 1,
            synced: true,
        },
        body: Body::Reading {
            light: 1.0,
            led_on: Some(false),
            led_ok: true,
        },
    }
}

fn clock() -> Clock {
    let now = Now {
        boot: ACKED_AT,
        wall_ms: 1,
        synced: true,
    };
    Clock::new(Uuid::nil(), 0, now)
}
