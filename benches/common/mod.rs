//! What the benchmarks share: records like real ones, a backlog that is written and emptied by hand,
//! and how several runs become one figure.
#![allow(dead_code, reason = "each benchmark uses a part of it")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says so by failing"
)]

#[path = "../../tests/real/stage/filled.rs"]
pub mod filled;
#[path = "../../tests/real/stage/mod.rs"]
pub mod stage;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use nightlight::io::backlog::Backlog;
use nightlight::logic::telemetry::{Body, Record};
use nightlight::logic::time::{Clock, Now, Stamp};
use nightlight::logic::{Entry, Input, KeyRange};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use uuid::Uuid;

/// The run that all records of the benchmarks belong to.
pub const RUN: Uuid = Uuid::from_u128(1);
const BOOT: Uuid = Uuid::from_u128(2);

/// A reading: as restless as a real recording, some noise on a slow change.
pub fn record(seq: u64) -> Record {
    Record {
        run: RUN,
        seq,
        boot_id: BOOT,
        stamp: Stamp {
            boot_ms: seq * 5_003,
            wall_ms: 1_795_194_191_250 + seq as i64 * 5_003,
            synced: true,
        },
        body: Body::Reading {
            light: ((seq / 50 * 7 + seq * 2_654_435_761 % 11) % 1_000) as f64,
            led_on: Some((seq / 1_000).is_multiple_of(2)),
            led_ok: true,
        },
    }
}

/// The record as history has it on the wire.
pub fn wire(record: &Record) -> String {
    let now = Now {
        boot: Duration::ZERO,
        wall_ms: 0,
        synced: true,
    };
    record.wire(&Clock::new(Uuid::nil(), 0, now), true)
}

/// The real backlog, without the daemon around it. Each call returns when the thread has done it.
pub struct Store {
    backlog: Backlog,
    answers: UnboundedReceiver<Input>,
    run_number: u64,
}

impl Store {
    pub fn open(path: &Path) -> Store {
        let (inputs, mut answers) = unbounded_channel();
        let settings = filled::unbounded(path);
        let backlog = Backlog::open(&settings, RUN, BOOT, inputs);
        let run_number = loop {
            match answers.blocking_recv() {
                Some(Input::BacklogOpened(opened)) => break opened.run_number,
                Some(Input::StoreFailed(why)) => panic!("not opened: {why}"),
                Some(_) => {}
                None => panic!("the backlog has ended"),
            }
        };
        Store {
            backlog,
            answers,
            run_number,
        }
    }

    /// One commit of the records `from..=to`, synced.
    pub fn append(&mut self, from: u64, to: u64) {
        let entries = (from..=to).map(|seq| Entry::Record(record(seq)));
        self.backlog.append(entries.collect(), Vec::new(), to);
        self.wait("stored", |input| matches!(input, Input::Stored { .. }));
    }

    /// Discards the records `from..=to`, as confirmed ones are.
    pub fn discard(&mut self, from: u64, to: u64) {
        let run_number = self.run_number;
        self.backlog.discard(vec![KeyRange {
            run_number,
            from,
            to,
        }]);
        // A discard is not answered, but what is asked after it is.
        self.backlog.read_after(None, 1);
        self.wait("read", |input| matches!(input, Input::Fetched { .. }));
    }

    pub fn close(self) {
        let closed = self.backlog.close(Duration::from_secs(60));
        assert!(closed, "the backlog did not close");
    }

    fn wait(&mut self, what: &str, wanted: impl Fn(&Input) -> bool) {
        loop {
            match self.answers.blocking_recv() {
                Some(Input::StoreFailed(why)) => panic!("not {what}: {why}"),
                Some(input) if wanted(&input) => return,
                Some(_) => {}
                None => panic!("the backlog has ended"),
            }
        }
    }
}

/// A backlog at `path` that holds the records 1 to `count`, committed by `group`.
pub fn fill(path: &Path, count: u64, group: u64) {
    let mut store = Store::open(path);
    for from in (1..=count).step_by(group as usize) {
        store.append(from, count.min(from + group - 1));
    }
    store.close();
}

/// What several runs gave: printed as the median, with the least and the most.
#[derive(Debug, Clone)]
pub struct Figure(Vec<f64>);

impl Figure {
    pub fn new(runs: impl IntoIterator<Item = f64>) -> Figure {
        let mut runs: Vec<f64> = runs.into_iter().collect();
        runs.sort_by(f64::total_cmp);
        Figure(runs)
    }

    /// The same in another unit.
    pub fn map(self, unit: impl Fn(f64) -> f64) -> Figure {
        Figure::new(self.0.into_iter().map(unit))
    }

    /// NaN when there was no run.
    pub fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(least), Some(most)) = (self.0.first(), self.0.last()) else {
            return f.pad("-");
        };
        let text = format!(
            "{} ({} to {})",
            short(self.median()),
            short(*least),
            short(*most)
        );
        f.pad(&text)
    }
}

/// Three digits that mean something: 0.953, 12.4, 81,234.
pub fn short(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (place, digit) in digits.chars().enumerate() {
                if place > 0 && (digits.len() - place).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
    }
}

/// A number from the environment, or `default`.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}
