//! What a large backlog costs: bytes on the disk, memory, and time from start to the first decision.
//!
//!     RECORDS=3000000 cargo bench --bench backlog
//!
//! Each figure stands beside that of an empty backlog in the same run. Nothing is asserted.

#![expect(
    clippy::expect_used,
    reason = "a benchmark that cannot run says so by failing"
)]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::stage::{self, Agent, eventually};
use common::{Figure, fill, number, record, wire};

const STARTS: usize = 7;
const COMMIT: u64 = 5_000;

fn main() {
    let count = number("RECORDS", 1_000_000);
    let folder = tempfile::tempdir().expect("a folder");
    let full = folder.path().join("full");
    let began = Instant::now();
    fill(&full, count, COMMIT);
    let seconds = began.elapsed().as_secs_f64();
    let bytes = tree_bytes(&full);
    println!(
        "{count} records of {} bytes on the wire",
        wire(&record(123_456)).len()
    );
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
    let (empty, full) = (
        Figure::new(empty_ms).median(),
        Figure::new(full_ms).median(),
    );
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

fn tree_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return fs::metadata(path).map_or(0, |file| file.len());
    };
    entries
        .flatten()
        .map(|entry| tree_bytes(&entry.path()))
        .sum()
}
