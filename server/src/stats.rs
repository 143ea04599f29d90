//! What this server counts of its own work, for `/metrics`. Counted where it happens, read whenever somebody
//! asks; from the start of the program.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets of a histogram, in milliseconds.
const BOUNDS_MS: [u64; 13] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000,
];

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Messages of devices.
    pub messages: AtomicU64,
    /// Records in them, new or not.
    pub records: AtomicU64,
    /// Commands published.
    pub commands: AtomicU64,
    /// Transactions that were committed, by how long they took.
    pub commits: Histogram,
    /// Messages, by how long after their arrival they were acked.
    pub acks: Histogram,
    /// Times that the database failed.
    pub database_errors: AtomicU64,
    /// Whether it is in use.
    pub database_up: AtomicBool,
    /// Whether the broker is connected.
    pub connected: AtomicBool,
}

/// How often something took how long.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_MS.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    /// It took this long once more.
    pub(crate) fn took(&self, duration: Duration) {
        let ms = duration.as_secs_f64() * 1_000.0;
        let bounds = BOUNDS_MS.iter().zip(&self.buckets);
        if let Some((_, bucket)) = bounds.into_iter().find(|(bound, _)| ms <= **bound as f64) {
            bucket.fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Relaxed);
    }
}

impl Stats {
    /// In the text format of Prometheus.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        for (name, help, value) in [
            (
                "messages_total",
                "Messages of devices.",
                count(&self.messages),
            ),
            (
                "records_total",
                "Records in them, new or not.",
                count(&self.records),
            ),
            (
                "commands_total",
                "Commands published.",
                count(&self.commands),
            ),
            (
                "commits_total",
                "Transactions committed.",
                count(&self.commits.count),
            ),
            (
                "database_errors_total",
                "Times that the database failed.",
                count(&self.database_errors),
            ),
        ] {
            one(&mut text, name, "counter", help, value);
        }
        let truth = |flag: &AtomicBool| u64::from(flag.load(Relaxed));
        one(
            &mut text,
            "database_up",
            "gauge",
            "Whether the database is in use.",
            truth(&self.database_up),
        );
        one(
            &mut text,
            "broker_connected",
            "gauge",
            "Whether the broker is connected.",
            truth(&self.connected),
        );
        histogram(
            &mut text,
            "commit_seconds",
            "How long a transaction took.",
            &self.commits,
        );
        histogram(
            &mut text,
            "ack_delay_seconds",
            "How long after its arrival a message was acked.",
            &self.acks,
        );
        text
    }
}

// Writing into memory has no way to fail.

fn one(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    let _ = write!(
        text,
        "# HELP nightlight_server_{name} {help}\n# TYPE nightlight_server_{name} {kind}\nnightlight_server_{name} {value}\n"
    );
}

fn histogram(text: &mut String, name: &str, help: &str, histogram: &Histogram) {
    let name = format!("nightlight_server_{name}");
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
    // Read first, so that no bucket has more than all of them.
    let buckets: Vec<u64> = histogram
        .buckets
        .iter()
        .map(|bucket| bucket.load(Relaxed))
        .collect();
    let mut sum = 0;
    for (bound, bucket) in BOUNDS_MS.iter().zip(buckets) {
        sum += bucket;
        let _ = writeln!(
            text,
            "{name}_bucket{{le=\"{}\"}} {sum}",
            *bound as f64 / 1_000.0
        );
    }
    let count = histogram.count.load(Relaxed).max(sum);
    let seconds = histogram.sum_us.load(Relaxed) as f64 / 1e6;
    let _ = write!(
        text,
        "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {seconds}\n{name}_count {count}\n"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_below_their_bound() {
        let stats = Stats::default();
        for ms in [0, 1, 3, 700, 60_000] {
            stats.commits.took(Duration::from_millis(ms));
        }
        let text = stats.metrics();
        for line in [
            "nightlight_server_commits_total 5\n",
            "nightlight_server_commit_seconds_bucket{le=\"0.001\"} 2\n",
            "nightlight_server_commit_seconds_bucket{le=\"0.005\"} 3\n",
            "nightlight_server_commit_seconds_bucket{le=\"10\"} 4\n",
            "nightlight_server_commit_seconds_bucket{le=\"+Inf\"} 5\n",
            "nightlight_server_commit_seconds_sum 60.704\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
