//! What a large backlog costs: bytes on the disk, memory, and time from start to the first decision.
//!
//!     RECORDS=3000000 cargo bench --bench backlog
//!
//! Each figure stands beside that of an empty backlog in the same run. Nothing is asserted.

#![expect(
    clippy::expect_used,
    reason = "a benchmark that cannot run says so by failing"
)]

#[path = "../tests/real/stage/mod.rs"]
mod stage;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nightlight::config::{self, OnFull};
use nightlight::io::backlog::Backlog;
use nightlight::logic::Input;
use nightlight::logic::telemetry::{Body, Record};
use nightlight::logic::time::{Clock, Now, Stamp};
use stage::{Agent, eventually};
use tokio::sync::mpsc::unbounded_channel;
use uuid::Uuid;

const STARTS: usize = 7;
const COMMIT: u64 = 5_000;

fn main() {
    let count = std::env::var("RECORDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(1_000_000);
    let folder = tempfile::tempdir().expect("a folder");
    let full = folder.path().join("full");
    let began = Instant::now();
    fill(&full, count);
    let seconds = began.elapsed().as_secs_f64();
    let bytes = tree_bytes(&full);
    println!("{count} records of {} bytes on the wire", wire_bytes());
    println!(
        "stored in {seconds:.1} s, {:.0} a second, in groups of {COMMIT}",
        count as f64 / seconds
    );
    println!(
        "{bytes} bytes on disk, {:.1} a record",
        bytes as f64 / count as f64
    );

    let (mut empty_ms, mut full_ms) = (Vec::new(), Vec::new());
    let (mut empty_kb, mut full_kb) = (0, 0);
    for _ in 0..STARTS {
        let empty = folder.path().join("empty");
        let _ = fs::remove_dir_all(&empty);
        let (ms, kb) = start(&empty, 0);
        empty_ms.push(ms);
        empty_kb = kb;
        let (ms, kb) = start(&full, count);
        full_ms.push(ms);
        full_kb = kb;
    }
    let (empty, full) = (median(&mut empty_ms), median(&mut full_ms));
    println!(
        "start to the first decision, median of {STARTS}: empty {empty:.1} ms, full {full:.1} ms, ratio {:.2}",
        full / empty
    );
    println!(
        "resident memory with the backlog open: empty {empty_kb} kB, full {full_kb} kB, more by {} kB",
        full_kb - empty_kb
    );
}

/// Starts the program in the dark without a broker; milliseconds until the LED is on, and its memory
/// when the backlog is open.
fn start(backlog: &Path, count: u64) -> (f64, i64) {
    let more = format!("[backlog]\npath = \"{}\"\n", backlog.display());
    let mut agent = Agent::prepare("bench", stage::free_port(), &more);
    agent.set_light("100");
    let began = Instant::now();
    agent.run();
    while !agent.led_on() {
        assert!(began.elapsed() < Duration::from_secs(30), "never decided");
        std::thread::yield_now();
    }
    let ms = began.elapsed().as_secs_f64() * 1e3;
    eventually("the backlog is open", || {
        agent
            .status()
            .is_some_and(|status| status["backlog"].as_u64() >= Some(count.max(5)))
    });
    let kb = agent.memory_kb();
    agent.kill();
    (ms, kb)
}

fn fill(path: &Path, count: u64) {
    let settings = config::Backlog {
        path: path.to_owned(),
        max_records: u64::MAX,
        max_bytes: u64::MAX,
        on_full: OnFull::DropOldest,
    };
    let (sender, mut inputs) = unbounded_channel();
    let run = Uuid::from_u128(1);
    let backlog = Backlog::open(&settings, run, Uuid::from_u128(2), sender);
    let mut next = 1;
    while next <= count {
        let last = (next + COMMIT - 1).min(count);
        backlog.store((next..=last).map(record).collect(), Vec::new(), last);
        loop {
            match inputs.blocking_recv() {
                Some(Input::Stored { .. }) => break,
                Some(Input::StoreFailed(why)) => return println!("cannot store: {why}"),
                Some(_) => {}
                None => return println!("the backlog has ended"),
            }
        }
        next = last + 1;
    }
    backlog.close(Duration::from_secs(60));
}

fn record(seq: u64) -> Record {
    Record {
        run: Uuid::from_u128(1),
        seq,
        boot_id: Uuid::from_u128(2),
        stamp: Stamp {
            boot_ms: seq * 5_003,
            wall_ms: 1_795_194_191_250 + seq as i64 * 5_003,
            synced: true,
        },
        body: Body::Reading {
            // As restless as a real recording: some noise on a slow change.
            light: ((seq / 50 * 7 + seq * 2_654_435_761 % 11) % 1_000) as f64,
            led_on: (seq / 1_000).is_multiple_of(2),
        },
    }
}

fn wire_bytes() -> usize {
    let now = Now {
        boot: Duration::ZERO,
        wall_ms: 0,
        synced: true,
    };
    record(123_456)
        .wire(&Clock::new(Uuid::nil(), 0, now), true)
        .len()
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn tree_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return fs::metadata(path).map_or(0, |file| file.len());
    };
    entries
        .flatten()
        .map(|entry| tree_bytes(&entry.path()))
        .sum()
}
