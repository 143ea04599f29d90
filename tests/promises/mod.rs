//! What must hold whatever bytes come on the commands and acks topics, and from a broker (`packets`): told once, for the fuzzer
//! (`fuzz/`) and for `tests/hostile.rs`, which replays what the fuzzer found worth keeping.
//!
//! The first byte chooses settings, the rest are payloads, one a line. Before a payload, `~` says that
//! the broker kept it and `+` that half a second passes. The controller runs as in the daemon, with a
//! broker that confirms at once and a sensor that answers at once.
#![allow(dead_code, reason = "each user needs one half")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a broken promise panics, so that the fuzzer sees it"
)]

pub mod packets;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nightlight::logic::command::{self, Order, parse};
use nightlight::logic::counters::StoreLosses;
use nightlight::logic::delivery::{self, Confirm, Message, Topic};
use nightlight::logic::lighting::{self, FailSafe, Lease, Mode, Rules, RulesPatch};
use nightlight::logic::link::{DeviceInfo, Inbound, Offer, Sent};
use nightlight::logic::telemetry::{self, OutageReadings};
use nightlight::logic::time::Now;
use nightlight::logic::{Controller, Entry, Exit, Input, Key, Opened, Output, RunInfo, Settings};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

/// The run that acks have to name.
pub const RUN: u128 = 0x1001;
const BUILT_MS: i64 = 1_790_812_800_000;
const NOON_MS: i64 = 1_795_176_000_000;
const LIGHT: f64 = 400.0;
const MOST_PAYLOADS: usize = 12;
/// No input makes more orders than this.
const MOST_ORDERS: usize = 200;
const ACK_TIMEOUT: Duration = Duration::from_secs(8);
const READINGS: u64 = 12;

/// Each payload gets one result, a rejected one changes nothing, and nothing but the five instructions
/// does anything.
pub fn commands(data: &[u8]) {
    let Some((&flags, lines)) = data.split_first() else {
        return;
    };
    let settings = settings(flags);
    let mut device = Device::new(settings.clone(), flags & 16 == 0);
    if flags & 32 == 0 {
        device.wait(Duration::from_secs(2));
    }
    device.results.clear();
    let mut given = 0;
    for line in lines.split(|byte| *byte == b'\n').take(MOST_PAYLOADS) {
        let (line, passes) = prefixed(line, b'+');
        let (payload, retained) = prefixed(line, b'~');
        if passes {
            device.wait(Duration::from_millis(500));
        }
        if device.exit.is_some() || device.is_stopping {
            break;
        }
        judge(payload, &settings.commands);
        given += 1;
        obey(&mut device, payload, retained);
    }
    if !device.is_stopping {
        device.wait(Duration::from_secs(60));
        assert_eq!(device.results.len(), given, "{:?}", device.results);
    }
    for result in &device.results {
        fits(result);
    }
}

/// One payload: what its result says is what happened.
fn obey(device: &mut Device, payload: &[u8], retained: bool) {
    let before = device.picture();
    let told = device.results.len();
    device.give(Input::CommandReceived {
        payload: payload.to_vec(),
        retained,
        reply_to: None,
    });
    let after = device.picture();
    let results = &device.results[told..];
    let fresh = |result: &Value| result["result"] != "applied";
    if !results.is_empty() && results.iter().all(fresh) {
        assert_eq!(before, after, "refused, and yet: {results:?}");
    }
    after
        .rules
        .check(Duration::ZERO)
        .expect("rules that may be followed");
    device.is_stopping = device.exit.is_some()
        || results.iter().any(|result| result["result"] == "applied")
            && stops(payload, &device.commands);
}

fn stops(payload: &[u8], settings: &command::CommandSettings) -> bool {
    use command::Action::{Reboot, Restart};
    parse(payload, settings).is_ok_and(|command| matches!(command.action, Restart | Reboot))
}

fn judge(payload: &[u8], settings: &command::CommandSettings) {
    let id = match parse(payload, settings) {
        Ok(command) => {
            assert!(payload.len() <= 4_096);
            command.id
        }
        Err(unfit) => {
            assert!((1..=300).contains(&unfit.reason.len()), "{}", unfit.reason);
            unfit.id
        }
    };
    assert!(id.is_none_or(|id| (1..=64).contains(&id.chars().count())));
}

fn fits(result: &Value) {
    let fields = result.as_object().expect("an object");
    let known = ["id", "result", "reason", "led_on", "light"];
    assert!(fields.keys().all(|key| known.contains(&key.as_str())));
    assert!(result["led_on"].is_boolean());
    let reason = result["reason"].as_str().unwrap_or_default();
    match result["result"].as_str() {
        Some("applied") => assert_eq!(reason, ""),
        Some("duplicate" | "expired" | "superseded" | "rejected") => {
            assert!((1..=400).contains(&reason.len()), "{reason}");
        }
        other => panic!("no such result: {other:?}"),
    }
}

/// A record leaves when it was acked, and only then: what was not, comes again.
pub fn acks(data: &[u8]) {
    let Some((&flags, lines)) = data.split_first() else {
        return;
    };
    let mut settings = settings(flags);
    settings.delivery.confirm = Confirm::Server;
    let mut device = Device::new(settings, true);
    device.wait(Duration::from_secs(READINGS));
    let mut owed: BTreeSet<u64> = device.published.iter().copied().collect();
    assert!(owed.len() as u64 >= READINGS);
    for line in lines.split(|byte| *byte == b'\n').take(MOST_PAYLOADS) {
        let before = device.picture();
        device.give(Input::ServerAcked(line.to_vec()));
        assert_eq!(before, device.picture());
        for (from, to) in acked(line) {
            owed.retain(|seq| !(from..=to).contains(seq));
        }
    }
    let last = device.published.iter().copied().max().unwrap_or(0);
    device.published.clear();
    device.wait(ACK_TIMEOUT + Duration::from_secs(2));
    let again: BTreeSet<u64> = device
        .published
        .drain(..)
        .filter(|seq| *seq <= last)
        .collect();
    assert_eq!(again, owed);
    let run = Uuid::from_u128(RUN);
    let all = format!("{{\"run\":\"{run}\",\"acked\":[[0,{}]]}}", u64::MAX);
    device.give(Input::ServerAcked(all.into_bytes()));
    assert_eq!(device.controller.view(device.now()).backlog, 0);
}

/// The ranges that an ack means, told in another way than in `logic`.
fn acked(payload: &[u8]) -> Vec<(u64, u64)> {
    #[derive(Deserialize)]
    struct Ack {
        run: Uuid,
        acked: Vec<[u64; 2]>,
    }
    match serde_json::from_slice::<Ack>(payload) {
        Ok(ack) if ack.run == Uuid::from_u128(RUN) && payload.len() <= 64 * 1024 => {
            ack.acked.into_iter().map(|[from, to]| (from, to)).collect()
        }
        _ => Vec::new(),
    }
}

fn prefixed(line: &[u8], prefix: u8) -> (&[u8], bool) {
    match line.split_first() {
        Some((first, rest)) if *first == prefix => (rest, true),
        _ => (line, false),
    }
}

/// What a refused command may not change. (It may be told: a refused `set` is an event.)
#[derive(Debug, Clone, PartialEq)]
struct Picture {
    led_on: bool,
    by: String,
    rules: Rules,
    kept: Option<RulesPatch>,
    exit: Option<Exit>,
}

/// The pure half with a world that always works.
struct Device {
    controller: Controller,
    commands: command::CommandSettings,
    boot: Duration,
    synced: bool,
    inputs: VecDeque<Input>,
    led_on: bool,
    kept: Option<RulesPatch>,
    exit: Option<Exit>,
    is_stopping: bool,
    results: Vec<Value>,
    /// What is on its disk, by number.
    stored: BTreeMap<u64, Entry>,
    /// Numbers of the records published.
    published: Vec<u64>,
    /// What was published on a link that always works.
    delivered: Vec<Message>,
    /// Orders for a link that does not always work.
    line: Option<VecDeque<Output>>,
}

impl Device {
    fn new(settings: Settings, synced: bool) -> Self {
        Self::with(settings, synced, None)
    }

    /// What it orders of the link waits in `line`.
    fn on_line(settings: Settings) -> Self {
        Self::with(settings, true, Some(VecDeque::new()))
    }

    fn with(settings: Settings, synced: bool, line: Option<VecDeque<Output>>) -> Self {
        let boot = Duration::from_secs(100);
        let run_info = RunInfo {
            run: Uuid::from_u128(RUN),
            boot_id: Uuid::from_u128(2),
            built_ms: BUILT_MS,
            seed: 1,
            led_on: Some(false),
            version: "1.2.3".into(),
            handover: None,
        };
        let commands = settings.commands.clone();
        let mut device = Self {
            controller: Controller::new(settings, run_info, now(boot, synced)),
            commands,
            boot,
            synced,
            inputs: VecDeque::new(),
            led_on: false,
            kept: None,
            exit: None,
            is_stopping: false,
            results: Vec::new(),
            stored: BTreeMap::new(),
            published: Vec::new(),
            delivered: Vec::new(),
            line,
        };
        device.give(Input::BacklogOpened(Opened {
            run_number: 1,
            ..Opened::default()
        }));
        device
    }

    fn now(&self) -> Now {
        now(self.boot, self.synced)
    }

    fn picture(&self) -> Picture {
        let view = self.controller.view(self.now());
        Picture {
            led_on: self.led_on,
            by: view.by,
            rules: view.rules,
            kept: self.kept,
            exit: self.exit,
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.boot + time;
        for _ in 0..100_000 {
            let next = self.controller.next_deadline().max(self.boot);
            if self.exit.is_some() || next > end {
                self.boot = end;
                return;
            }
            self.boot = next;
            self.give(Input::DeadlineReached);
        }
        panic!("a livelock");
    }

    fn give(&mut self, input: Input) {
        self.inputs.push_back(input);
        for _ in 0..10_000 {
            let Some(input) = self.inputs.pop_front() else {
                return;
            };
            self.controller.handle(input, self.now());
            let mut orders = 0;
            while let Some(output) = self.controller.poll_output() {
                orders += 1;
                assert!(orders <= MOST_ORDERS, "too many orders: {output:?}");
                self.carry_out(output);
            }
        }
        panic!("it never comes to rest");
    }

    fn carry_out(&mut self, output: Output) {
        let answer = match output {
            Output::SetLed(on) => {
                let was = Some(std::mem::replace(&mut self.led_on, on));
                Input::LedWritten { led_on: on, was }
            }
            Output::ReadSensor => Input::Read(LIGHT),
            order @ (Output::Connect
            | Output::Disconnect
            | Output::Subscribe { .. }
            | Output::Publish(_))
                if self.line.is_some() =>
            {
                if let Output::Publish(message) = &order {
                    self.read(message);
                }
                self.line.as_mut().expect("a line").push_back(order);
                return;
            }
            Output::Connect => {
                self.inputs.push_back(Input::Offered(Offer::default()));
                Input::LinkUp
            }
            Output::Subscribe { token, .. } => Input::Acked(token),
            Output::Publish(message) => {
                self.read(&message);
                let token = message.token;
                self.delivered.push(message);
                Input::Acked(token)
            }
            Output::Append { entries, .. } => {
                let stored = entries.into_iter().map(|entry| (entry.first(), entry));
                self.stored.extend(stored);
                Input::Stored {
                    records: self.stored.len() as u64,
                    lost: StoreLosses::default(),
                }
            }
            Output::ReadAfter { after, limit } => {
                let from = after.map_or(0, |key| key.seq + 1);
                let behind = self.stored.range(from..);
                let key = |seq: &u64| Key {
                    run_number: 1,
                    seq: *seq,
                };
                let entries: Vec<_> = behind
                    .map(|(seq, entry)| (key(seq), entry.clone()))
                    .take(limit)
                    .collect();
                let end = entries.len() < limit;
                Input::Fetched { entries, end }
            }
            Output::Discard(ranges) => {
                for range in ranges {
                    self.stored
                        .retain(|seq, _| !(range.from..=range.to).contains(seq));
                }
                return;
            }
            Output::KeepRules(rules) => {
                self.kept = Some(rules);
                return;
            }
            Output::Exit(exit) => {
                self.exit = Some(exit);
                return;
            }
            _ => return,
        };
        self.inputs.push_back(answer);
    }

    fn read(&mut self, message: &Message) {
        assert!(message.payload.len() <= 2_048, "{:?}", message.topic);
        if let Topic::Status | Topic::State = message.topic {
            return;
        }
        let value: Value = serde_json::from_slice(&message.payload).expect("JSON");
        match message.topic {
            Topic::Results => self.results.push(value),
            _ => self.published.extend(value["seq"].as_u64()),
        }
    }
}

fn now(boot: Duration, synced: bool) -> Now {
    Now {
        boot,
        wall_ms: NOON_MS + boot.as_millis() as i64,
        synced,
    }
}

fn settings(flags: u8) -> Settings {
    let plain = |text: &str| match flags & 8 {
        0 => String::new(),
        _ => text.to_owned(),
    };
    Settings {
        home_assistant: None,
        lighting: lighting::LightingSettings {
            mode: match flags & 64 {
                0 => Mode::Auto,
                _ => Mode::Local,
            },
            on_below: 300.0,
            off_above: 350.0,
            hold: Duration::from_secs(1),
            lease: match flags & 128 {
                0 => Lease::For(Duration::from_secs(15)),
                _ => Lease::WhileLinked,
            },
            fail_safe: FailSafe::Keep,
            interval: Duration::from_secs(1),
            least_interval: Duration::ZERO,
            frozen_after: Duration::ZERO,
        },
        telemetry: telemetry::TelemetrySettings {
            interval: Duration::ZERO,
            deadband: 0.0,
            keep: OutageReadings::All,
        },
        commands: command::CommandSettings {
            order: match flags & 1 {
                0 => Order::Latest,
                _ => Order::Sequence,
            },
            gap_wait: Duration::from_secs(5),
            on: plain("ON"),
            off: plain("OFF"),
            allow_reboot: flags & 4 != 0,
            accept_retained: flags & 2 != 0,
        },
        delivery: delivery::DeliverySettings {
            qos: 1,
            confirm: Confirm::Broker,
            ack_timeout: ACK_TIMEOUT,
            window: 16,
            replay_rate: 0.0,
            replay_jitter: Duration::ZERO,
            batch: 1,
            durable_within: Duration::from_secs(1),
            require_listener: false,
            format: telemetry::PayloadFormat::Flat,
            stalled_after: Duration::from_secs(10),
            connect_spread: Duration::ZERO,
        },
        device: DeviceInfo {
            topics: [Inbound::Commands, Inbound::Acks, Inbound::ServerStatus]
                .map(|inbound| (Sent::Subscribe(inbound), "t".to_owned()))
                .into(),
            ..DeviceInfo::default()
        },
    }
}
