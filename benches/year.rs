//! A year of outages as people have them: the whole logic over the real store on a disk that counts its bytes.
//!
//!     sudo -E cargo bench --bench year
//!
//! Time is simulated, bytes are real. A reading every 5 s; the link is down for an hour each evening, for a week
//! in spring, and for 20 s of each 40 on Saturday evenings; 24 crashes at any moment, after each of which the
//! clock is set only after two minutes; a disk that is full for a day. `DAYS` (365) makes it shorter. A crash is
//! the store as it lies there while nothing is being written; what a power cut takes of writes under way is
//! the subject of tests/power_cuts.rs. Ends with the account of what a consumer received.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says so by failing"
)]

mod common;
#[path = "common/disk.rs"]
mod disk;
#[path = "common/plan.rs"]
mod plan;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::filled::{copy_tree, unbounded};
use common::number;
use disk::Disk;
use nightlight::io::backlog::Backlog;
use nightlight::logic::command::{CommandSettings, Order};
use nightlight::logic::delivery::{Confirm, DeliverySettings, Topic};
use nightlight::logic::intervals::Intervals;
use nightlight::logic::lighting::{FailSafe, Lease, LightingSettings, Mode};
use nightlight::logic::link::{DeviceInfo, Ending};
use nightlight::logic::telemetry::{OutageReadings, PayloadFormat, TelemetrySettings};
use nightlight::logic::time::Now;
use nightlight::logic::{Controller, Input, Output, RunInfo, Settings};
use plan::{Event, Plan};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(86_400);
const NEW_YEAR_MS: i64 = 1_798_761_600_000;
const BUILT_MS: i64 = NEW_YEAR_MS - 86_400_000;
const INTERVAL: Duration = Duration::from_secs(5);
/// After a start the clock is set.
const CLOCK_SET_AFTER: Duration = Duration::from_secs(120);
/// A drained store is removed after so long; the real one sees the real clock, which is hours ahead here.
const LINGER: Duration = Duration::from_secs(20);
/// What is left of the disk while it is full.
const LEFT: u64 = 200 * 1024;
/// The store looks at a disk that was full again after so long at the most, by the real clock.
const RETRIED: Duration = Duration::from_secs(6);
const BOOT: Uuid = Uuid::from_u128(7);

fn main() {
    if let Err(why) = disk::own_mounts() {
        println!("year: LEFT OUT, {}", why.trim());
        return;
    }
    let days = number("DAYS", 365);
    let began = Instant::now();
    let mut house = House::new(Disk::start().expect("a disk"), days);
    println!("  day     written MB   resident MB   outages   received      twice       lost");
    for day in 1..=days {
        house.day();
        if day % 30 == 0 || day == days {
            house.line(day);
        }
    }
    house.settle();
    house.report(days, began.elapsed());
}

/// The machine and what is around it.
struct House {
    disk: Disk,
    plan: Plan,
    is_cable_in: bool,
    is_full: bool,
    state: PathBuf,
    controller: Controller,
    store: Option<Store>,
    inputs: VecDeque<Input>,
    /// The runs so far and the last number that each has given; the last one is under way.
    runs: Vec<(Uuid, u64)>,
    /// Since the first day.
    now: Duration,
    started: Duration,
    is_up: bool,
    drained_at: Option<Duration>,
    account: BTreeMap<Uuid, Told>,
    twice: u64,
    start_ms: Vec<f64>,
    /// Bytes that do not count: those before the first day, and the copies that stand for crashes.
    before: u64,
}

/// The real store and its answers.
struct Store {
    backlog: Backlog,
    answers: UnboundedReceiver<Input>,
    /// Pages that were asked for and have not come.
    asked: u32,
}

/// What a consumer knows of a run.
#[derive(Default)]
struct Told {
    received: Intervals,
    lost: Intervals,
}

impl House {
    fn new(disk: Disk, days: u64) -> House {
        let state = disk.path().join("state-1");
        let run = Uuid::from_u128(1);
        let mut house = House {
            plan: Plan::of(days),
            is_cable_in: true,
            is_full: false,
            controller: controller(run),
            store: Some(Store::open(&state, run)),
            state,
            inputs: VecDeque::new(),
            runs: vec![(run, 0)],
            now: Duration::ZERO,
            started: Duration::ZERO,
            is_up: false,
            drained_at: None,
            account: BTreeMap::new(),
            twice: 0,
            start_ms: Vec::new(),
            before: disk.written(),
            disk,
        };
        house.wait_for(|input| matches!(input, Input::BacklogOpened(_)));
        house.work();
        house
    }

    fn day(&mut self) {
        let end = self.now + DAY;
        while let Some((at, event)) = self.plan.next_before(end) {
            self.advance(at);
            match event {
                Event::Cable(is_in) => self.cable(is_in),
                Event::Crash => self.crash(),
                Event::Full(is_full) => self.fill(is_full),
            }
        }
        self.advance(end);
    }

    /// A last day without faults, for what still waits.
    fn settle(&mut self) {
        self.cable(true);
        self.advance(self.now + DAY);
        self.note_last();
    }

    fn line(&self, day: u64) {
        let sum = |what: fn(&Told) -> u64| self.account.values().map(what).sum::<u64>();
        println!(
            "{day:>5} {:>14.1} {:>13.1} {:>9} {:>10} {:>10} {:>10}",
            self.written() as f64 / 1e6,
            resident_mb(),
            self.plan.outages(),
            sum(|told| told.received.count()),
            self.twice,
            sum(|told| told.lost.count()),
        );
    }

    fn report(&self, days: u64, took: Duration) {
        let (mut made, mut missing, mut young) = (0, 0, 0);
        for (place, (run, last)) in self.runs.iter().enumerate() {
            made += last;
            let mut known = Intervals::default();
            if let Some(told) = self.account.get(run) {
                for (from, to) in told.received.iter().chain(told.lost.iter()) {
                    known.insert(from, to);
                }
            }
            let crashed = place + 1 < self.runs.len();
            // The one exception of the promise: made within `durable_within` before the crash.
            let lost_young = u64::from(crashed && !known.contains(*last));
            young += lost_young;
            missing += last - known.count_within((1, *last)) - lost_young;
        }
        let mut starts = self.start_ms.clone();
        starts.sort_by(f64::total_cmp);
        let start = |place: usize| starts.get(place).copied().unwrap_or(f64::NAN);
        println!(
            "{days} days in {:.0} s; {made} records of {} runs, {missing} missing, and {young} less than a second old at a \
             crash",
            took.as_secs_f64(),
            self.runs.len()
        );
        let written = self.written() as f64 / 1e9;
        println!(
            "{written:.2} GB written, {:.2} GB a year; the store answers {:.1} ms after a start in the median, {:.1} at \
             the most",
            written * 365.0 / days as f64,
            start(starts.len() / 2),
            start(starts.len().saturating_sub(1))
        );
        assert_eq!(missing, 0, "records are missing");
    }

    fn written(&self) -> u64 {
        self.disk.written() - self.before
    }

    fn note_last(&mut self) {
        let last = self.controller.view(self.wall()).last_seq;
        self.runs.last_mut().expect("a run").1 = last;
    }

    fn cable(&mut self, is_in: bool) {
        self.is_cable_in = is_in;
        if !is_in && self.is_up {
            self.is_up = false;
            self.give(Input::LinkDown {
                why: "connection reset".into(),
                ending: Ending::Lost,
            });
        }
    }

    /// The machine stops, and starts again at once with what lies on its disk.
    fn crash(&mut self) {
        self.note_last();
        let run = Uuid::from_u128(self.runs.len() as u128 + 1);
        self.runs.push((run, 0));
        let before = self.state.clone();
        self.state = before.with_file_name(format!("state-{}", self.runs.len()));
        let written = self.disk.written();
        if before.exists() {
            copy_tree(&before, &self.state).expect("a copy of the store");
        }
        if let Some(ended) = self.store.take() {
            ended.backlog.close(Duration::from_secs(60));
        }
        let _ = fs::remove_dir_all(before);
        self.before += self.disk.written() - written;
        (self.is_up, self.started, self.drained_at) = (false, self.now, None);
        self.inputs.clear();
        self.controller = controller(run);
        let began = Instant::now();
        self.store = Some(Store::open(&self.state, run));
        self.wait_for(|input| matches!(input, Input::BacklogOpened(_)));
        self.start_ms.push(began.elapsed().as_secs_f64() * 1e3);
        self.work();
    }

    /// Somebody's log takes all of the disk, and a day later it is deleted.
    fn fill(&mut self, is_full: bool) {
        self.is_full = is_full;
        let ballast = self.disk.path().join("ballast");
        if !is_full {
            fs::remove_file(ballast).expect("removed");
            thread::sleep(RETRIED);
            return;
        }
        let room = rustix::fs::statvfs(self.disk.path()).expect("the disk");
        let bytes = (room.f_bavail * room.f_frsize).saturating_sub(LEFT);
        let file = fs::File::create(ballast).expect("a file");
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, bytes).expect("filled");
    }

    /// Everything that is due until `end`.
    fn advance(&mut self, end: Duration) {
        loop {
            let next = self.started + self.controller.next_deadline();
            if next > end {
                break;
            }
            self.now = next.max(self.now);
            self.give(Input::DeadlineReached);
            self.remove_drained();
        }
        self.now = end;
    }

    /// As the store does by itself, by the clock of this year.
    fn remove_drained(&mut self) {
        if self.drained_at.is_none_or(|at| self.now < at + LINGER) {
            return;
        }
        self.drained_at = None;
        if let Some(drained) = self.store.take() {
            drained.backlog.close(Duration::from_secs(60));
        }
        let run = self.runs.last().expect("a run").0;
        let mut store = Store::open(&self.state, run);
        // The controller knows that it is open.
        store.answers.blocking_recv().expect("it opens");
        self.store = Some(store);
    }

    fn give(&mut self, input: Input) {
        self.inputs.push_back(input);
        self.work();
    }

    fn work(&mut self) {
        self.hear_store();
        while let Some(input) = self.inputs.pop_front() {
            self.controller.handle(input, self.wall());
            while let Some(output) = self.controller.poll_output() {
                self.carry_out(output);
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        let answer = match output {
            Output::SetLed(led_on) => Input::LedWritten { led_on, was: None },
            Output::ReadSensor => Input::Read(light(self.now)),
            Output::Connect if self.is_cable_in => {
                self.is_up = true;
                Input::LinkUp
            }
            Output::Connect => Input::LinkDown {
                why: "no route to host".into(),
                ending: Ending::Lost,
            },
            Output::Publish(message) if self.is_up => {
                if let Topic::Telemetry | Topic::Events | Topic::History = message.topic {
                    self.receive(&message.payload);
                }
                Input::Acked(message.token)
            }
            Output::Subscribe { token, .. } if self.is_up => Input::Acked(token),
            Output::Append {
                entries,
                command_ids,
                last_seq,
            } => {
                let store = self.store.as_ref().expect("a store");
                store.backlog.append(entries, command_ids, last_seq);
                let is_answer =
                    |input: &Input| matches!(input, Input::Stored { .. } | Input::StoreFailed(_));
                return self.wait_for(is_answer);
            }
            Output::ReadAfter { after, limit } => {
                let store = self.store.as_mut().expect("a store");
                store.backlog.read_after(after, limit);
                store.asked += 1;
                return;
            }
            Output::Discard(ranges) => {
                let store = self.store.as_ref().expect("a store");
                return store.backlog.discard(ranges);
            }
            Output::Exit(exit) => panic!("it ends: {exit:?}"),
            _ => return,
        };
        self.inputs.push_back(answer);
    }

    /// Pages come at once, but for a store that cannot be opened on a full disk.
    fn hear_store(&mut self) {
        while let Some(store) = &mut self.store
            && store.asked > 0
        {
            let answer = match self.is_full {
                false => store.answers.blocking_recv(),
                true => store.answers.try_recv().ok(),
            };
            match answer {
                Some(answer) => self.note(answer),
                None => return,
            }
        }
    }

    /// Takes what the store says until something is `wanted`.
    fn wait_for(&mut self, wanted: impl Fn(&Input) -> bool) {
        loop {
            let store = self.store.as_mut().expect("a store");
            let answer = store.answers.blocking_recv().expect("the store lives");
            let is_wanted = wanted(&answer);
            self.note(answer);
            if is_wanted {
                return;
            }
        }
    }

    fn note(&mut self, answer: Input) {
        match &answer {
            Input::Stored { .. } => self.drained_at = None,
            Input::Fetched { entries, end } => {
                self.store.as_mut().expect("a store").asked -= 1;
                if *end && entries.is_empty() {
                    self.drained_at.get_or_insert(self.now);
                }
            }
            _ => {}
        }
        self.inputs.push_back(answer);
    }

    fn receive(&mut self, payload: &[u8]) {
        let value: Value = serde_json::from_slice(payload).expect("JSON");
        let number = |name: &str| value[name].as_u64().expect("a number");
        let run = |name: &str| {
            value[name]
                .as_str()
                .and_then(|run| run.parse().ok())
                .expect("a run")
        };
        if value["event"] == "loss" {
            let told = self.account.entry(run("of_run")).or_default();
            told.lost.insert(number("from_seq"), number("to_seq"));
            return;
        }
        let told = self.account.entry(run("run")).or_default();
        let seq = number("seq");
        self.twice += u64::from(told.received.contains(seq));
        told.received.insert(seq, seq);
    }

    fn wall(&self) -> Now {
        let boot = self.now - self.started;
        Now {
            boot,
            wall_ms: NEW_YEAR_MS + self.now.as_millis() as i64,
            synced: boot >= CLOCK_SET_AFTER,
        }
    }
}

impl Store {
    fn open(state: &Path, run: Uuid) -> Store {
        let (inputs, answers) = unbounded_channel();
        Store {
            backlog: Backlog::open(&unbounded(state), run, BOOT, inputs),
            answers,
            asked: 0,
        }
    }
}

fn controller(run: Uuid) -> Controller {
    let run_info = RunInfo {
        run,
        boot_id: BOOT,
        built_ms: BUILT_MS,
        seed: run.as_u128() as u64,
        led_on: Some(false),
        version: "year".into(),
        handover: None,
    };
    let start = Now {
        boot: Duration::ZERO,
        wall_ms: BUILT_MS,
        synced: false,
    };
    Controller::new(settings(), run_info, start)
}

/// The defaults of the program, with arrays.
fn settings() -> Settings {
    Settings {
        home_assistant: None,
        lighting: LightingSettings {
            mode: Mode::Auto,
            on_below: 300.0,
            off_above: 350.0,
            hold: Duration::from_secs(1),
            lease: Lease::For(Duration::from_secs(60)),
            fail_safe: FailSafe::Keep,
            interval: INTERVAL,
            least_interval: Duration::ZERO,
            frozen_after: Duration::ZERO,
        },
        telemetry: TelemetrySettings {
            interval: Duration::ZERO,
            deadband: 0.0,
            keep: OutageReadings::All,
        },
        commands: CommandSettings {
            order: Order::Latest,
            gap_wait: Duration::from_secs(5),
            on: String::new(),
            off: String::new(),
            allow_reboot: false,
            accept_retained: false,
        },
        delivery: DeliverySettings {
            qos: 1,
            confirm: Confirm::Broker,
            ack_timeout: Duration::from_secs(30),
            window: 16,
            replay_rate: 200.0,
            replay_jitter: Duration::from_secs(2),
            batch: 1,
            require_listener: false,
            durable_within: Duration::from_secs(1),
            stalled_after: Duration::from_secs(30),
            connect_spread: Duration::from_millis(500),
            format: PayloadFormat::Flat,
        },
        device: DeviceInfo::default(),
    }
}

/// Day and night, with the noise of a sensor.
fn light(now: Duration) -> f64 {
    let seconds = now.as_secs() % 86_400;
    let sun = (std::f64::consts::PI * (seconds as f64 - 21_600.0) / 43_200.0)
        .sin()
        .max(0.0);
    (900.0 * sun + (now.as_secs() / 5 * 2_654_435_761 % 11) as f64).round()
}

/// Memory of this process, which is the agent's and the account's.
fn resident_mb() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kb.unwrap_or(f64::NAN) / 1_024.0
}
