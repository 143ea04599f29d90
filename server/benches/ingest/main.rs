//! What the server keeps a second, through a real broker, beside bare inserts of the same rows.
//!
//!     cargo bench -p nightlight-server --bench ingest
//!
//! Devices with `confirm = "server"` (`device`) send records until each is acked; then the same rows go into an
//! empty table of the same database, with the same key and index, in transactions of the same size (`bare`).
//! RECORDS (200,000), ROUNDS (3) and ONLY (sqlite, postgres) change what is run; PAGE=1 measures the page of
//! the fleet, SCALE=1 the memory with 10,000 devices and 10 million records.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says so by failing"
)]

mod bare;
mod device;
#[path = "../../tests/server/postgres.rs"]
mod postgres;
mod program;
#[path = "../../../tests/real/stage/mod.rs"]
mod stage;

use std::sync::Arc;
use std::time::Instant;

use crate::device::Fleet;
use crate::postgres::Cluster;
use crate::program::Program;
use crate::stage::Broker;

/// Messages under way of all devices together.
const WINDOW: u64 = 1_000;
/// Devices, and records in a message.
const CASES: [(u64, u64); 4] = [(1, 1), (1, 100), (100, 1), (100, 100)];

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut stores = vec![None];
    if only != "sqlite" {
        stores.extend(postgres::shared().map(Some));
    }
    if only == "postgres" {
        stores.retain(Option::is_some);
    }
    for cluster in stores {
        if std::env::var_os("PAGE").is_some() {
            runtime.block_on(page(cluster.as_ref()));
        } else if std::env::var_os("SCALE").is_some() {
            runtime.block_on(scale(cluster.as_ref()));
        } else {
            runtime.block_on(rates(cluster.as_ref()));
        }
    }
}

async fn rates(cluster: Option<&Arc<Cluster>>) {
    let (records, rounds) = (number("RECORDS", 200_000), number("ROUNDS", 3));
    println!(
        "\n{}: {records} records of {} bytes; records a second, median of {rounds} (least to most)",
        name(cluster),
        device::record(1).len()
    );
    println!(
        "devices  batch  server                    bare insert               ratio   rows a transaction"
    );
    for (devices, batch) in CASES {
        // One acked at a time takes its time; the figure is as good.
        let records = if devices * batch == 1 {
            records / 10
        } else {
            records
        };
        let (mut server, mut bare, mut ratio, mut sizes) = (vec![], vec![], vec![], vec![]);
        for _ in 0..rounds {
            let broker = Broker::start();
            let program = Program::start(cluster, broker.port).await;
            let mut fleet = Fleet::connect(broker.port, devices, batch).await;
            let began = Instant::now();
            fleet
                .send(records / devices, (WINDOW / devices).max(1))
                .await;
            server.push(records as f64 / began.elapsed().as_secs_f64());
            let commits = program.metric("nightlight_server_commits_total").await;
            let size = (records / commits.max(1)).max(1);
            sizes.push(size as f64);
            bare.push(bare::rate(program.url(), records, size).await);
            ratio.push(server[server.len() - 1] / bare[bare.len() - 1]);
        }
        println!(
            "{devices:>7}  {batch:>5}  {:<24}  {:<24}  {:<6.2}  {:.0}",
            spread(&mut server),
            spread(&mut bare),
            median(&mut ratio),
            median(&mut sizes)
        );
    }
}

/// The page of 1,000 devices with a day behind each, beside a query that counts their records.
async fn page(cluster: Option<&Arc<Cluster>>) {
    let broker = Broker::start();
    let program = Program::start(cluster, broker.port).await;
    let mut fleet = Fleet::connect(broker.port, 1_000, 100).await;
    fleet.send(number("RECORDS", 200_000) / 1_000, 1).await;
    let (mut pages, mut counts, mut bytes) = (vec![], vec![], 0);
    for _ in 0..11 {
        let began = Instant::now();
        bytes = program.get("/").await.len();
        pages.push(began.elapsed().as_secs_f64() * 1_000.0);
        counts.push(bare::count(program.url()).await.as_secs_f64() * 1_000.0);
    }
    let (page, count) = (median(&mut pages), median(&mut counts));
    println!(
        "{}: page of 1,000 devices: {bytes} bytes in {page:.1} ms; to count the records of each takes {count:.1} ms; \
         ratio {:.2}",
        name(cluster),
        page / count
    );
}

/// Does the server's memory grow with what it keeps?
async fn scale(cluster: Option<&Arc<Cluster>>) {
    let (devices, records) = (number("DEVICES", 10_000), number("RECORDS", 10_000_000));
    let broker = Broker::start();
    let program = Program::start(cluster, broker.port).await;
    let mut fleet = Fleet::connect(broker.port, devices, 100).await;
    println!(
        "{}: {devices} devices\n   records  resident MB  records a second",
        name(cluster)
    );
    for step in 1..=10 {
        let began = Instant::now();
        fleet.send(records / devices / 10, 1).await;
        println!(
            "{:>10}  {:>11.1}  {:>16.0}",
            records / 10 * step,
            program.resident_mb(),
            (records / 10) as f64 / began.elapsed().as_secs_f64()
        );
    }
}

fn name(cluster: Option<&Arc<Cluster>>) -> &'static str {
    match cluster {
        None => "SQLite",
        Some(_) => "PostgreSQL",
    }
}

fn spread(values: &mut [f64]) -> String {
    let median = median(values);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{median:.0} ({least:.0} to {most:.0})")
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}
