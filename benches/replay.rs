//! How fast a backlog leaves: the daemon's replay through a real mosquitto, beside a bare rumqttc client
//! of the same window that publishes payloads of the same kind, in the same run.
//!
//!     cargo bench --bench replay
//!
//! With and without 100 ms of round trip, which a proxy of ours makes. Each line is `ROUNDS` (5) turns of the daemon
//! in MQTT 5, the daemon in 3.1.1, and the bare client, which speaks 3.1.1. `WINDOWS=16,100,1000`, `BATCHES=1,100`,
//! `ROUND_TRIPS=0,100` and `LIMITS=1,0` choose lines; a limit of 1 has mosquitto take as many publications at a
//! time as the window has, 0 any number (`max_inflight_messages 0`). A run of the daemon
//! lasts from its `online` to the `state` that says that nothing waits; one of the bare client from the
//! CONNACK to the last PUBACK. Processor time of the daemon is counted until what was confirmed has been
//! removed as well; the store and its thread are in it. Each has a process of its own.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says so by failing"
)]

mod common;
#[path = "common/delay.rs"]
mod delay;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::filled::copy_tree;
use common::stage::{self, Agent, Broker, eventually};
use common::{Figure, fill, number, record, short, wire};
use delay::Line;
use rumqttc::{AsyncClient, Client, Event, Incoming, MqttOptions, NetworkOptions, QoS};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

/// What says to this program that it is the bare client: port, window, batch, messages.
const BARE: &str = "NIGHTLIGHT_BENCH_BARE";
/// Different messages of the bare client, which it sends again and again.
const RING: u64 = 100;
/// Longer than rumqttc's default, for arrays of 100 records.
const PACKET: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(600);
/// Until what was confirmed has been removed: the daemon gathers removals for a second.
const REMOVED: Duration = Duration::from_millis(1_500);

/// One line of the table.
#[derive(Clone, Copy)]
struct Case {
    window: u64,
    batch: u64,
    round_trip: Duration,
    /// The broker takes no more than the window has.
    is_limited: bool,
}

/// What one run took.
struct Run {
    seconds: f64,
    processor: f64,
    peak_kb: f64,
}

fn main() {
    if let Ok(order) = std::env::var(BARE) {
        let numbers: Vec<u64> = order.split(' ').flat_map(str::parse).collect();
        let [port, window, batch, messages] = numbers[..] else {
            panic!("{BARE}: {order}")
        };
        return bare_client(port as u16, window as u16, batch, messages);
    }
    let cases = cases();
    for millis in list("ROUND_TRIPS", "0,100")
        .into_iter()
        .filter(|&millis| millis > 0)
    {
        let (round_trip, rate) = delay::alone(Duration::from_millis(millis) / 2);
        println!(
            "the line of {millis} ms alone: round trip {:.1} ms, {} MB a second",
            round_trip.as_secs_f64() * 1e3,
            short(rate / 1e6)
        );
    }
    let rounds = number("ROUNDS", 5);
    println!(
        "records of {} bytes, through mosquitto, QoS 1; median of {rounds} (least to most); \
         processor in us a record, peak of resident memory in MB",
        wire(&record(5_000)).len()
    );
    println!(
        "{:>10} {:>6} {:>5} {:>5} {:>7}  {:34}{:34}{:22}{:36}{:22}{:22}{:22}{:>6} {:>6}",
        "round trip",
        "window",
        "limit",
        "batch",
        "records",
        "MQTT 5, records/s",
        "MQTT 3.1.1, records/s",
        "5 to 3.1.1",
        "bare, records/s",
        "5 to bare",
        "MQTT 5, processor",
        "bare, processor",
        "peak",
        "bare"
    );
    let mut stores = Stores::new();
    for case in cases {
        let count = case.records();
        let store = stores.with(count);
        let turns: Vec<[Run; 3]> = (0..rounds).map(|n| turn(n, case, count, &store)).collect();
        let count = count as f64;
        let of = |who: usize, what: fn(&Run) -> f64| {
            Figure::new(turns.iter().map(|runs| what(&runs[who])))
        };
        let own = |what| of(0, what);
        let bare = |what| of(2, what);
        let ratio =
            |to: usize| Figure::new(turns.iter().map(|runs| runs[to].seconds / runs[0].seconds));
        let rate = |figure: Figure| figure.map(|seconds| count / seconds);
        let micros = |figure: Figure| figure.map(|seconds| seconds * 1e6 / count);
        println!(
            "{:>7} ms {:>6} {:>5} {:>5} {:>7}  {:34}{:34}{:22}{:36}{:22}{:22}{:22}{:>6.1} {:>6.1}",
            case.round_trip.as_millis(),
            case.window,
            if case.is_limited { "own" } else { "none" },
            case.batch,
            count,
            rate(own(|run| run.seconds)),
            rate(of(1, |run| run.seconds)),
            ratio(1),
            rate(bare(|run| run.seconds)),
            ratio(2),
            micros(own(|run| run.processor)),
            micros(bare(|run| run.processor)),
            own(|run| run.peak_kb).median() / 1e3,
            bare(|run| run.peak_kb).median() / 1e3,
        );
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for millis in list("ROUND_TRIPS", "0,100") {
        for batch in list("BATCHES", "1,100") {
            for window in list("WINDOWS", "16,100,1000") {
                for limit in list("LIMITS", "1") {
                    cases.push(Case {
                        window,
                        batch,
                        round_trip: Duration::from_millis(millis),
                        is_limited: limit != 0,
                    });
                }
            }
        }
    }
    cases
}

impl Case {
    /// Enough for some seconds at the best rate that the window allows, within what memory and patience
    /// allow; whole messages.
    fn records(self) -> u64 {
        let flight = self.window * self.batch;
        let most = if self.batch == 1 { 200_000 } else { 500_000 };
        let seconds = self.round_trip.as_secs_f64();
        if seconds == 0.0 {
            return most;
        }
        // Two seconds, and no less than a few windows.
        ((2.0 / seconds) as u64 * flight).min(most)
    }

    /// The port to connect to, for a broker at `port`.
    fn line(self, port: u16) -> u16 {
        match self.round_trip {
            Duration::ZERO => port,
            round_trip => Line::to(port, round_trip / 2).port,
        }
    }

    fn broker(self) -> Broker {
        let most = if self.is_limited { self.window } else { 0 };
        Broker::start_with(&format!(
            "allow_anonymous true\nmax_inflight_messages {most}\n"
        ))
    }
}

/// Backlogs by the number of their records, made once and copied for each run.
struct Stores {
    folder: TempDir,
    made: BTreeMap<u64, PathBuf>,
}

impl Stores {
    fn new() -> Stores {
        Stores {
            folder: tempfile::tempdir().expect("a folder"),
            made: BTreeMap::new(),
        }
    }

    fn with(&mut self, count: u64) -> PathBuf {
        let path = self.folder.path().join(count.to_string());
        let made = self.made.entry(count).or_insert_with(|| {
            fill(&path, count, 5_000);
            path
        });
        made.clone()
    }
}

/// One run of each: MQTT 5, 3.1.1, bare. Who of the first two begins changes from turn to turn.
fn turn(number: u64, case: Case, count: u64, store: &Path) -> [Run; 3] {
    let (new, old) = match number % 2 {
        0 => {
            let new = daemon(case, count, store, "5");
            (new, daemon(case, count, store, "3.1.1"))
        }
        _ => {
            let old = daemon(case, count, store, "3.1.1");
            (daemon(case, count, store, "5"), old)
        }
    };
    [new, old, bare(case, count)]
}

fn daemon(case: Case, count: u64, store: &Path, version: &str) -> Run {
    let broker = case.broker();
    let heard = subscriber(broker.port);
    let more = format!(
        "[delivery]\nwindow = {}\nbatch = {}\nreplay_rate = 0.0\nreplay_jitter = \"0s\"\n\
         [sensor]\ndriver = \"iio\"\npath = \"{{folder}}/light\"\ninterval = \"1h\"\n\
         [broker]\nurl = \"mqtt://127.0.0.1:{}\"\nkeep_alive = \"60s\"\nversion = \"{version}\"\n\
         [backlog]\npath = \"{{folder}}/backlog\"\nmax_bytes = \"8GB\"\n",
        case.window,
        case.batch,
        case.line(broker.port)
    );
    let mut agent = Agent::prepare("bench", broker.port, &more);
    copy_tree(store, &agent.path("backlog")).expect("a copy of the backlog");
    // Nobody answers before the backlog is open: what is measured is the replay, not the start.
    broker.freeze();
    agent.run();
    eventually("the backlog is open", || {
        let status = agent.status();
        status.is_some_and(|status| status["backlog"].as_u64() >= Some(count))
    });
    let processor = processor_of(agent.pid());
    broker.thaw();
    let began = arrival(&heard, |text| text == "online");
    let ended = arrival(&heard, |text| text.contains("\"backlog\":0,"));
    thread::sleep(REMOVED);
    let run = Run {
        seconds: (ended - began).as_secs_f64(),
        processor: processor_of(agent.pid()) - processor,
        peak_kb: peak_kb(agent.pid()),
    };
    let status = agent.status().expect("it answers");
    assert_eq!(status["backlog"], 0, "{}", agent.log());
    assert_eq!(agent.stop().code(), Some(0));
    run
}

/// When the daemon says something that is `wanted` on `status` or `state`.
fn arrival(heard: &Receiver<(Instant, String)>, wanted: impl Fn(&str) -> bool) -> Instant {
    let limit = Instant::now() + LIMIT;
    loop {
        let left = limit.saturating_duration_since(Instant::now());
        let (at, text) = heard.recv_timeout(left).expect("the replay ends in time");
        if wanted(&text) {
            return at;
        }
    }
}

/// Hears little: what is replayed does not come to it.
fn subscriber(port: u16) -> Receiver<(Instant, String)> {
    let (client, mut connection) = Client::new(MqttOptions::new("ear", "127.0.0.1", port), 10);
    let (sender, heard) = channel();
    let (up, is_up) = channel();
    for topic in ["bench/status", "bench/state"] {
        client.subscribe(topic, QoS::AtLeastOnce).expect("asked");
    }
    thread::spawn(move || {
        for event in connection.iter() {
            match event {
                Ok(Event::Incoming(Incoming::SubAck(_))) => drop(up.send(())),
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    let text = String::from_utf8_lossy(&publish.payload).into_owned();
                    if sender.send((Instant::now(), text)).is_err() {
                        break;
                    }
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        drop(client);
    });
    for _ in 0..2 {
        is_up.recv_timeout(LIMIT).expect("subscribed");
    }
    heard
}

/// The bare client in a process of its own.
fn bare(case: Case, count: u64) -> Run {
    let broker = case.broker();
    let order = format!(
        "{} {} {} {}",
        case.line(broker.port),
        case.window,
        case.batch,
        count / case.batch
    );
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program).env(BARE, order).output();
    let output = output.expect("the bare client runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = said.split_whitespace().flat_map(str::parse).collect();
    let [seconds, processor, peak_kb] = numbers[..] else {
        panic!(
            "the bare client: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    Run {
        seconds,
        processor,
        peak_kb,
    }
}

/// Publishes, and prints seconds, processor seconds and the peak of its memory.
fn bare_client(port: u16, window: u16, batch: u64, messages: u64) {
    let payloads: Vec<Vec<u8>> = (0..RING)
        .map(|place| payload(place * batch + 1, batch))
        .collect();
    let mut options = MqttOptions::new("bare", "127.0.0.1", port);
    options
        .set_inflight(window)
        .set_keep_alive(Duration::from_secs(60))
        .set_max_packet_size(PACKET, PACKET);
    let (client, mut connection) = AsyncClient::new(options, usize::from(window));
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    connection.set_network_options(network);
    let publish = async {
        for payload in payloads.iter().cycle().take(messages as usize) {
            let topic = "bench/telemetry/history";
            let sent = client.publish(topic, QoS::AtLeastOnce, false, payload.clone());
            sent.await.expect("the client lives");
        }
    };
    let drive = async {
        let mut began = (Instant::now(), 0.0);
        let mut left = messages;
        while left > 0 {
            match connection.poll().await.expect("the link lasts") {
                Event::Incoming(Incoming::ConnAck(_)) => began = (Instant::now(), own_processor()),
                Event::Incoming(Incoming::PubAck(_)) => left -= 1,
                _ => {}
            }
        }
        println!(
            "{} {} {}",
            began.0.elapsed().as_secs_f64(),
            own_processor() - began.1,
            peak_kb(std::process::id())
        );
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async { tokio::join!(publish, drive) });
}

/// A message of `batch` records, as the daemon writes it.
fn payload(first: u64, batch: u64) -> Vec<u8> {
    let records: Vec<String> = (first..first + batch)
        .map(|seq| wire(&record(seq)))
        .collect();
    match &records[..] {
        [one] => one.clone().into_bytes(),
        many => format!("[{}]", many.join(",")).into_bytes(),
    }
}

/// Processor seconds of this process so far.
fn own_processor() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Processor seconds of a process so far, with all its threads; in steps of 10 ms.
fn processor_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    // proc_pid_stat(5): behind the name, which may hold blanks, utime and stime are 12th and 13th.
    let (_, behind) = stat.rsplit_once(')').expect("a name");
    let ticks = behind.split_whitespace().skip(11).take(2);
    ticks.flat_map(str::parse::<f64>).sum::<f64>() / 100.0
}

/// The most resident memory that a process had, in kB.
fn peak_kb(pid: u32) -> f64 {
    let status = stage::read(Path::new(&format!("/proc/{pid}/status")));
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(f64::NAN)
}

fn list(name: &str, default: &str) -> Vec<u64> {
    let text = std::env::var(name).unwrap_or_else(|_| default.to_owned());
    text.split(',').flat_map(str::parse).collect()
}
