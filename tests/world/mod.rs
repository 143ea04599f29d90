//! A simulated world for the pure half: sensor, LED, link, broker, server, disk and clocks.
//!
//! Time jumps to the next thing that happens; nothing sleeps and nothing is random beyond the seed.
//! A step limit turns a livelock into a failure. Stories play in it and read its log.
#![allow(dead_code, reason = "each test file uses a part of the world")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nightlight::logic::command::{self, Order};
use nightlight::logic::delivery::{self, Confirm, Message, Topic};
use nightlight::logic::lighting::{self, FailSafe, Lease, Mode};
use nightlight::logic::telemetry::{self, Keep, Record};
use nightlight::logic::time::Now;
use nightlight::logic::{Birth, Controller, Exit, Input, Key, Opened, Output, Settings, View};
use serde_json::Value;
use uuid::Uuid;

/// The program of the world was built then (2026-10-01).
pub const BUILT_MS: i64 = 1_790_812_800_000;
/// The stories begin then (2026-11-20T12:00:00Z).
pub const NOON_MS: i64 = 1_795_176_000_000;
const STEPS_A_SECOND: u64 = 5_000;

pub fn settings() -> Settings {
    Settings {
        lighting: lighting::Settings {
            mode: Mode::Auto,
            on_below: 300.0,
            off_above: 350.0,
            hold: Duration::from_secs(1),
            lease: Lease::For(Duration::from_secs(15)),
            fail_safe: FailSafe::Keep,
            interval: Duration::from_secs(1),
            frozen_after: Duration::ZERO,
        },
        telemetry: telemetry::Settings {
            interval: Duration::ZERO,
            deadband: 0.0,
            keep: Keep::All,
        },
        commands: command::Settings {
            order: Order::Latest,
            gap_wait: Duration::from_secs(5),
            on: String::new(),
            off: String::new(),
            allow_reboot: false,
            accept_retained: false,
        },
        delivery: delivery::Settings {
            qos: 1,
            confirm: Confirm::Broker,
            ack_timeout: Duration::from_secs(30),
            window: 16,
            replay_rate: 200.0,
            replay_jitter: Duration::from_secs(2),
            batch: 1,
            durable_within: Duration::from_secs(1),
            stalled_after: Duration::from_secs(10),
        },
    }
}

/// Something the server received.
#[derive(Debug, Clone)]
pub struct Received {
    pub at: Duration,
    pub topic: Topic,
    pub value: Value,
}

pub struct World {
    pub settings: Settings,
    pub controller: Controller,
    pub now: Duration,
    /// Wall clock minus boot clock.
    pub offset_ms: i64,
    pub synced: bool,
    pub boot_id: Uuid,
    pub run: Uuid,
    runs: u128,
    /// What the sensor would give; `None` is a failing sensor.
    pub light: Option<f64>,
    /// A sensor that does not answer at all.
    pub sensor_hangs: bool,
    pub led_on: bool,
    /// The cable.
    pub cable: bool,
    /// The broker takes publications but never confirms them.
    pub broker_mute: bool,
    session: bool,
    session_number: u64,
    pub latency: Duration,
    /// The lesson's server answers each live reading.
    pub server: bool,
    pub acks: bool,
    pub received: Vec<Received>,
    pub status: String,
    pub state: Value,
    /// The disk: what is synced on it.
    pub disk: BTreeMap<Key, Record>,
    pub disk_runs: Vec<(Uuid, u64)>,
    pub disk_ids: Vec<String>,
    pub disk_ok: bool,
    pub disk_latency: Duration,
    pub disk_writes: u64,
    ordinal: u64,
    agenda: BTreeMap<(Duration, u64), (u64, Input)>,
    scheduled: u64,
    life: u64,
    pub exit: Option<Exit>,
    /// One line for each change of LED, link and the like.
    pub log: Vec<String>,
    pub window_seen: usize,
    unconfirmed: BTreeSet<u64>,
}

impl World {
    pub fn new(settings: Settings) -> Self {
        let now = Duration::from_secs(100);
        let birth = birth(1, false);
        let at = Now {
            boot: now,
            wall_ms: NOON_MS + 100_000,
            synced: true,
        };
        let run = birth.run;
        let boot_id = birth.boot_id;
        let controller = Controller::new(settings.clone(), birth, at);
        let mut world = Self {
            settings,
            controller,
            now,
            offset_ms: NOON_MS,
            synced: true,
            boot_id,
            run,
            runs: 1,
            light: Some(500.0),
            sensor_hangs: false,
            led_on: false,
            cable: true,
            broker_mute: false,
            session: false,
            session_number: 0,
            latency: Duration::from_millis(5),
            server: true,
            acks: false,
            received: Vec::new(),
            status: String::new(),
            state: Value::Null,
            disk: BTreeMap::new(),
            disk_runs: Vec::new(),
            disk_ids: Vec::new(),
            disk_ok: true,
            disk_latency: Duration::from_millis(20),
            disk_writes: 0,
            ordinal: 0,
            agenda: BTreeMap::new(),
            scheduled: 0,
            life: 1,
            exit: None,
            log: Vec::new(),
            window_seen: 0,
            unconfirmed: BTreeSet::new(),
        };
        world.open_disk();
        world
    }

    /// Lets so much time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        let limit = STEPS_A_SECOND * (time.as_secs() + 1);
        loop {
            self.carry_out();
            if self.exit.is_some() {
                self.now = end;
                return;
            }
            let deadline = self.controller.next_deadline().max(self.now);
            let event = self.agenda.keys().next().copied();
            let next = event.map_or(deadline, |(at, _)| at.min(deadline));
            if next > end {
                self.now = end;
                return;
            }
            steps += 1;
            assert!(
                steps < limit,
                "livelock: {:?} {:?}",
                self.log,
                self.controller.next_deadline()
            );
            self.now = next;
            match event {
                Some(key) if key.0 <= next => {
                    if let Some((life, input)) = self.agenda.remove(&key)
                        && life == self.life
                    {
                        self.hand_over(input);
                    }
                }
                _ => self.hand_over(Input::DeadlineReached),
            }
        }
    }

    pub fn seconds(&mut self, seconds: u64) {
        self.run_for(Duration::from_secs(seconds));
    }

    pub fn pull_cable(&mut self) {
        self.note("cable pulled".into());
        self.cable = false;
        if self.session {
            self.end_session("connection reset");
        }
    }

    pub fn mend_cable(&mut self) {
        self.note("cable back".into());
        self.cable = true;
    }

    /// The daemon dies without warning; only the disk is left. It starts again at once.
    pub fn crash(&mut self) {
        self.note("crash".into());
        self.start_anew();
    }

    /// The whole machine starts again: the boot clock begins anew, with a wrong wall clock.
    pub fn power_cut(&mut self, wall_ms: i64) {
        self.note("power cut".into());
        self.now = Duration::from_secs(5);
        self.offset_ms = wall_ms - 5_000;
        self.synced = false;
        self.boot_id = Uuid::from_u128(self.boot_id.as_u128() + 1);
        self.start_anew();
    }

    pub fn command(&mut self, payload: &str) {
        self.command_bytes(payload.as_bytes().to_vec(), false);
    }

    pub fn command_bytes(&mut self, payload: Vec<u8>, retained: bool) {
        if self.session {
            self.hand_over(Input::CommandReceived { payload, retained });
            self.carry_out();
        }
    }

    pub fn input(&mut self, input: Input) {
        self.hand_over(input);
        self.carry_out();
    }

    pub fn view(&self) -> View {
        self.controller.view(self.clocks())
    }

    pub fn clocks(&self) -> Now {
        Now {
            boot: self.now,
            wall_ms: self.now.as_millis() as i64 + self.offset_ms,
            synced: self.synced,
        }
    }

    pub fn on(&self, topic: Topic) -> Vec<&Value> {
        self.received
            .iter()
            .filter(|received| received.topic == topic)
            .map(|received| &received.value)
            .collect()
    }

    /// Received records of a run, by `seq`, with how often each came.
    pub fn account(&self, run: Uuid) -> BTreeMap<u64, u64> {
        let mut account = BTreeMap::new();
        for received in &self.received {
            let of_run = received.value["run"].as_str() == Some(&run.to_string());
            if let (true, Some(seq)) = (of_run, received.value["seq"].as_u64()) {
                *account.entry(seq).or_default() += 1;
            }
        }
        account
    }

    /// Numbers of the loss records received about a run.
    pub fn lost(&self, run: Uuid) -> BTreeSet<u64> {
        self.received
            .iter()
            .map(|received| &received.value)
            .filter(|value| value["event"] == "loss" && value["of_run"] == run.to_string())
            .flat_map(|value| {
                value["from_seq"].as_u64().unwrap_or(1)..=value["to_seq"].as_u64().unwrap_or(0)
            })
            .collect()
    }

    /// Numbers of a run, up to `last`, that were neither received nor told as lost.
    pub fn missing(&self, run: Uuid, last: u64) -> Vec<u64> {
        let account = self.account(run);
        let lost = self.lost(run);
        (1..=last)
            .filter(|seq| !account.contains_key(seq) && !lost.contains(seq))
            .collect()
    }

    fn start_anew(&mut self) {
        self.life += 1;
        self.runs += 1;
        self.session = false;
        self.unconfirmed.clear();
        self.exit = None;
        let mut birth = birth(self.runs, self.led_on);
        birth.boot_id = self.boot_id;
        self.run = birth.run;
        self.controller = Controller::new(self.settings.clone(), birth, self.clocks());
        self.agenda.clear();
        self.open_disk();
    }

    fn open_disk(&mut self) {
        self.ordinal += 1;
        let opened = Opened {
            ordinal: self.ordinal,
            previous: self.disk_runs.last().copied(),
            records: self.disk.len() as u64,
            oldest_ms: self.disk.values().next().map(|record| record.stamp.wall_ms),
            command_ids: self.disk_ids.clone(),
        };
        self.disk_runs.push((self.run, 0));
        self.schedule(Duration::from_millis(30), Input::BacklogOpened(opened));
    }

    fn schedule(&mut self, after: Duration, input: Input) {
        self.scheduled += 1;
        let key = (self.now + after, self.scheduled);
        self.agenda.insert(key, (self.life, input));
    }

    fn hand_over(&mut self, input: Input) {
        match &input {
            Input::LinkUp if !self.cable => return,
            Input::LinkUp => {
                self.session = true;
                self.note("link up".into());
            }
            Input::Acked(token) => {
                if !self.unconfirmed.remove(token) {
                    return;
                }
            }
            _ => {}
        }
        self.controller.handle(input, self.clocks());
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.controller.poll_output() {
            match output {
                Output::ReadSensor if self.sensor_hangs => {}
                Output::ReadSensor => {
                    let input = match self.light {
                        Some(light) => Input::Read(light),
                        None => Input::ReadFailed("no answer".into()),
                    };
                    self.schedule(Duration::from_millis(2), input);
                }
                Output::SetLed(on) => {
                    self.led_on = on;
                    self.note(format!("LED {}", if on { "on" } else { "off" }));
                }
                Output::Connect => self.connect(),
                Output::Disconnect => {
                    self.session = false;
                    self.unconfirmed.clear();
                }
                Output::Publish(message) => self.publish(message),
                Output::Store {
                    records,
                    command_ids,
                    last_seq,
                } => self.store(records, command_ids, last_seq),
                Output::Forget(ranges) => {
                    for range in ranges {
                        let (ordinal, from, to) = (range.ordinal, range.from, range.to);
                        self.disk.retain(|key, _| {
                            key.ordinal != ordinal || key.seq < from || key.seq > to
                        });
                    }
                }
                Output::ForgetLoss(_) | Output::Log(..) => {}
                Output::KeepRules(rules) => self.settings.lighting.set_rules(rules),
                Output::Fetch { after, limit } => {
                    let mut records: Vec<(Key, Record)> = self
                        .disk
                        .iter()
                        .filter(|(key, _)| after.is_none_or(|after| **key > after))
                        .map(|(key, record)| (*key, record.clone()))
                        .take(limit + 1)
                        .collect();
                    let end = records.len() <= limit;
                    records.truncate(limit);
                    self.schedule(Duration::from_millis(1), Input::Fetched { records, end });
                }
                Output::Exit(exit) => self.exit = Some(exit),
            }
        }
    }

    fn connect(&mut self) {
        assert!(!self.session, "a second session");
        self.session_number += 1;
        self.unconfirmed.clear();
        let input = match self.cable {
            true => Input::LinkUp,
            false => Input::LinkDown {
                why: "connection refused".into(),
                refused: false,
            },
        };
        self.schedule(self.latency, input);
    }

    fn end_session(&mut self, why: &str) {
        self.session = false;
        self.unconfirmed.clear();
        let why = why.to_owned();
        self.hand_over(Input::LinkDown {
            why,
            refused: false,
        });
    }

    fn publish(&mut self, message: Message) {
        assert!(self.session, "published without a session");
        assert!(message.payload.len() < 256 * 1024);
        self.unconfirmed.insert(message.token);
        let span = message.token - self.unconfirmed.first().copied().unwrap_or(message.token) + 1;
        self.window_seen = self.window_seen.max(span as usize);
        match message.topic {
            Topic::Status => self.status = String::from_utf8(message.payload).expect("text"),
            Topic::State => self.state = serde_json::from_slice(&message.payload).expect("JSON"),
            topic => {
                let value: Value = serde_json::from_slice(&message.payload).expect("JSON");
                let values = match value {
                    Value::Array(values) => values,
                    value => vec![value],
                };
                for value in values {
                    self.receive(topic, value);
                }
            }
        }
        if !self.broker_mute {
            self.schedule(self.latency * 2, Input::Acked(message.token));
        }
    }

    fn receive(&mut self, topic: Topic, value: Value) {
        if self.server && topic == Topic::Telemetry {
            let led_on = value["light"].as_f64().is_some_and(|light| light < 300.0);
            let payload = format!("{{\"led_on\": {led_on}}}").into_bytes();
            let command = Input::CommandReceived {
                payload,
                retained: false,
            };
            self.schedule(self.latency * 2, command);
        }
        if self.acks
            && let (Some(run), Some(seq)) = (value["run"].as_str(), value["seq"].as_u64())
        {
            let ack = format!("{{\"run\":\"{run}\",\"acked\":[[{seq},{seq}]]}}");
            self.schedule(self.latency * 2, Input::ServerAcked(ack.into_bytes()));
        }
        self.received.push(Received {
            at: self.now,
            topic,
            value,
        });
    }

    fn store(&mut self, records: Vec<Record>, ids: Vec<String>, last_seq: u64) {
        if !self.disk_ok {
            let input = Input::StoreFailed("disk full".into());
            self.schedule(self.disk_latency, input);
            return;
        }
        self.disk_writes += 1;
        self.note(format!(
            "stored {:?}",
            records.iter().map(|r| r.seq).collect::<Vec<_>>()
        ));
        for record in records {
            let key = Key {
                ordinal: self.ordinal,
                seq: record.seq,
            };
            assert_eq!(record.run, self.run);
            self.disk.insert(key, record);
        }
        self.disk_ids.extend(ids);
        if let Some(run) = self.disk_runs.last_mut() {
            run.1 = last_seq;
        }
        let records = self.disk.len() as u64;
        self.schedule(self.disk_latency, Input::Stored { records });
    }

    pub fn note(&mut self, text: String) {
        let seconds = self.now.as_secs_f64() - 100.0;
        self.log.push(format!("{seconds:6.1} {text}"));
    }
}

fn birth(run: u128, led_on: bool) -> Birth {
    Birth {
        run: Uuid::from_u128(0x1000 + run),
        boot_id: Uuid::from_u128(0x2000),
        built_ms: BUILT_MS,
        seed: run as u64,
        led_on,
        version: "1.2.3".into(),
    }
}
