//! One small world: a controller, and around it a sensor, an LED, a broker and a disk that answer when the
//! search says so. It checks the promises after each event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nightlight_logic::command::{CommandSettings, Order};
use nightlight_logic::delivery::{
    Confirm, DeliverySettings, MAX_CONTROL_IN_FLIGHT, Message, Topic,
};
use nightlight_logic::handover::Handover;
use nightlight_logic::lighting::{FailSafe, Lease, LightingSettings, Mode};
use nightlight_logic::link::{DeviceInfo, Ending};
use nightlight_logic::telemetry::{OutageReadings, TelemetrySettings};
use nightlight_logic::time::Now;
use nightlight_logic::{
    Controller, Entry, Input, Key, KeyRange, Opened, Output, RunInfo, Settings,
};
use serde_json::Value;
use uuid::Uuid;

use super::value::{self, BOOT};

const NOON_MS: i64 = 1_795_176_000_000;
const DARK: f64 = 100.0;
const BRIGHT: f64 = 800.0;
const WINDOW: usize = 2;
const DURABLE_WITHIN: Duration = Duration::from_secs(1);
/// What is due at one moment needs no more turns than this.
const MAX_TURNS: u32 = 100;
/// Without faults everything is delivered in fewer events.
const MAX_EVENTS: u32 = 3000;

/// How often what may happen.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    /// An established link is lost.
    pub losses: u32,
    /// No link can be established.
    pub failed_connects: u32,
    /// A confirmation comes twice.
    pub acks_again: u32,
    /// The daemon dies and starts again.
    pub crashes: u32,
    /// The disk refuses a commit.
    pub failed_commits: u32,
    /// It becomes dark, or bright.
    pub lights: u32,
    /// The sensor gives no reading.
    pub failed_readings: u32,
    /// The LED cannot be written.
    pub failed_leds: u32,
    /// Commands, each with an id of its own.
    pub commands: u32,
    /// The last command comes once more.
    pub commands_again: u32,
    /// A command whose time is over.
    pub stale_commands: u32,
    /// The wall clock is set.
    pub clocks: u32,
}

/// What differs between worlds beside the budget.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    pub confirm: Confirm,
    pub batch: usize,
}

impl Default for Variant {
    fn default() -> Self {
        Self {
            confirm: Confirm::Broker,
            batch: 1,
        }
    }
}

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time passes until the next deadline.
    Tick,
    Read,
    /// It is dark where it was bright, or bright where it was dark.
    ReadOther,
    ReadFails,
    LedDone,
    LedFails,
    Connected,
    NotConnected,
    /// The link is lost, with what is in flight delivered, or not.
    Lost {
        delivered: bool,
    },
    AckOldest,
    AckNewest,
    AckAgain,
    /// The server confirms all that it has.
    ServerAcks,
    DiskDone,
    DiskFails,
    Crash,
    Command,
    CommandAgain,
    StaleCommand,
    ClockSet,
}

#[derive(Debug, Clone)]
enum Work {
    Open,
    Append(Vec<Entry>, Vec<String>),
    Discard(Vec<KeyRange>),
    ReadAfter(Option<Key>, usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    Down,
    Connecting,
    Up,
}

/// A run of the daemon.
#[derive(Debug, Clone)]
struct Life {
    run: Uuid,
    /// When each of its records was made; the first is number 1.
    made: Vec<Duration>,
    /// Records that a crash may have cost.
    excused: BTreeSet<u64>,
}

#[derive(Clone)]
pub struct World {
    controller: Controller,
    settings: Settings,
    now: Now,
    budget: Budget,
    light: f64,
    reading: bool,
    led_on: bool,
    led_order: Option<bool>,
    link: Link,
    in_flight: VecDeque<Message>,
    last_ack: Option<u64>,
    command: u32,
    disk: BTreeMap<Key, Entry>,
    disk_runs: Vec<(Uuid, u64)>,
    disk_ids: Vec<String>,
    work: VecDeque<Work>,
    /// The disk has failed, or an answer of it is still to come, since the last commit was ordered.
    disk_is_behind: bool,
    handover: Option<Box<Handover>>,
    lives: Vec<Life>,
    /// What the server has, by run: numbers received, and numbers told lost.
    received: BTreeMap<String, BTreeSet<u64>>,
    told_lost: BTreeMap<String, BTreeSet<u64>>,
    /// Received since the server confirmed last.
    unconfirmed: BTreeMap<String, BTreeSet<u64>>,
    /// How often each command was obeyed.
    applied: BTreeMap<String, u32>,
}

impl World {
    pub fn begin(budget: &Budget, variant: Variant) -> Self {
        let now = Now {
            boot: BOOT,
            wall_ms: NOON_MS,
            synced: true,
        };
        let settings = settings(variant);
        let life = Life {
            run: Uuid::from_u128(1),
            made: Vec::new(),
            excused: BTreeSet::new(),
        };
        let info = run_info(life.run, false, None);
        let mut world = Self {
            controller: Controller::new(settings.clone(), info, now),
            settings,
            now,
            budget: budget.clone(),
            light: BRIGHT,
            reading: false,
            led_on: false,
            led_order: None,
            link: Link::Down,
            in_flight: VecDeque::new(),
            last_ack: None,
            command: 0,
            disk: BTreeMap::new(),
            disk_runs: Vec::new(),
            disk_ids: Vec::new(),
            work: VecDeque::from([Work::Open]),
            disk_is_behind: false,
            handover: None,
            lives: vec![life],
            received: BTreeMap::new(),
            told_lost: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            applied: BTreeMap::new(),
        };
        world.settle();
        world
    }

    /// By what the state is recognised again.
    pub fn value(&self) -> u64 {
        let shown = format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            self.controller,
            self.budget,
            self.light,
            (self.reading, self.led_on, self.led_order),
            self.link,
            self.in_flight
                .iter()
                .map(|message| (message.topic, &message.payload))
                .collect::<Vec<_>>(),
            self.last_ack.is_some(),
            self.command,
            self.disk,
            self.disk_runs,
            self.disk_ids,
            self.work,
            self.handover.is_some(),
            self.received,
            self.told_lost,
            self.applied,
        );
        value::of(&shown, self.now.boot)
    }

    /// All that can happen next.
    pub fn events(&self) -> Vec<Event> {
        let budget = &self.budget;
        let in_flight = self.in_flight.len();
        let is_up = self.link == Link::Up;
        let all = [
            (Event::Crash, budget.crashes > 0),
            (Event::ClockSet, budget.clocks > 0),
            (Event::StaleCommand, is_up && budget.stale_commands > 0),
            (
                Event::CommandAgain,
                is_up && budget.commands_again > 0 && self.command > 0,
            ),
            (Event::Command, is_up && budget.commands > 0),
            (
                Event::DiskFails,
                budget.failed_commits > 0 && matches!(self.work.front(), Some(Work::Append(..))),
            ),
            (Event::DiskDone, !self.work.is_empty()),
            (
                Event::ServerAcks,
                is_up && self.confirms() && !self.unconfirmed.is_empty(),
            ),
            (
                Event::AckAgain,
                is_up && budget.acks_again > 0 && self.last_ack.is_some(),
            ),
            (Event::AckNewest, in_flight > 1),
            (Event::AckOldest, in_flight > 0),
            (
                Event::Lost { delivered: true },
                is_up && budget.losses > 0 && in_flight > 0,
            ),
            (Event::Lost { delivered: false }, is_up && budget.losses > 0),
            (
                Event::NotConnected,
                self.link == Link::Connecting && budget.failed_connects > 0,
            ),
            (Event::Connected, self.link == Link::Connecting),
            (
                Event::LedFails,
                self.led_order.is_some() && budget.failed_leds > 0,
            ),
            (Event::LedDone, self.led_order.is_some()),
            (Event::ReadFails, self.reading && budget.failed_readings > 0),
            (Event::ReadOther, self.reading && budget.lights > 0),
            (Event::Read, self.reading),
            (Event::Tick, true),
        ];
        let can = all.into_iter().filter(|(_, can)| *can);
        can.map(|(event, _)| event).collect()
    }

    /// It happens.
    pub fn happen(&mut self, event: Event) {
        match event {
            Event::Tick => {
                self.now_is(self.controller.next_deadline());
                self.tell(Input::DeadlineReached);
            }
            Event::Read => self.read(),
            Event::ReadOther => {
                self.budget.lights -= 1;
                self.light = if self.light == DARK { BRIGHT } else { DARK };
                self.read();
            }
            Event::ReadFails => {
                self.budget.failed_readings -= 1;
                self.reading = false;
                self.tell(Input::ReadFailed("no answer".into()));
            }
            Event::LedDone => {
                let led_on = self.led_order.take().expect("an order");
                let was = Some(std::mem::replace(&mut self.led_on, led_on));
                self.tell(Input::LedWritten { led_on, was });
            }
            Event::LedFails => {
                self.budget.failed_leds -= 1;
                self.led_order = None;
                let (why, seen) = ("read-only".into(), Some(self.led_on));
                self.tell(Input::LedFailed { why, seen });
            }
            Event::Connected => {
                self.link = Link::Up;
                self.tell(Input::LinkUp);
            }
            Event::NotConnected => {
                self.budget.failed_connects -= 1;
                self.down(Ending::Refused);
            }
            Event::Lost { delivered } => {
                self.budget.losses -= 1;
                let in_flight = std::mem::take(&mut self.in_flight);
                for message in in_flight.iter().filter(|_| delivered) {
                    self.take_in(message);
                }
                self.down(Ending::Closed);
            }
            Event::AckOldest => self.ack(0),
            Event::AckNewest => self.ack(self.in_flight.len() - 1),
            Event::AckAgain => {
                self.budget.acks_again -= 1;
                let token = self.last_ack.expect("an ack");
                self.tell(Input::Acked(token));
            }
            Event::ServerAcks => self.server_acks(),
            Event::DiskDone => self.disk_done(),
            Event::DiskFails => {
                self.budget.failed_commits -= 1;
                self.work.pop_front();
                self.disk_is_behind = true;
                self.tell(Input::StoreFailed("no space left".into()));
            }
            Event::Crash => self.crash(),
            Event::Command => {
                self.budget.commands -= 1;
                self.command += 1;
                self.command();
            }
            Event::CommandAgain => {
                self.budget.commands_again -= 1;
                self.command();
            }
            Event::StaleCommand => {
                self.budget.stale_commands -= 1;
                let payload =
                    br#"{"led_on":true,"id":"stale","expires_at":"2026-01-01T00:00:00Z"}"#;
                self.receive(payload);
            }
            Event::ClockSet => {
                self.budget.clocks -= 1;
                self.now.wall_ms += 3_600_000;
                self.tell(Input::DeadlineReached);
            }
        }
    }

    /// What comes next when nothing is late and nothing fails.
    pub fn plain(&self) -> Event {
        match () {
            () if !self.work.is_empty() => Event::DiskDone,
            () if self.led_order.is_some() => Event::LedDone,
            () if self.reading => Event::Read,
            () if self.link == Link::Connecting => Event::Connected,
            () if !self.in_flight.is_empty() => Event::AckOldest,
            () if self.confirms() && !self.unconfirmed.is_empty() => Event::ServerAcks,
            () => Event::Tick,
        }
    }

    /// Without a further detour it comes to rest, and the books are right.
    pub fn play_to_the_end(mut self) {
        for _ in 0..MAX_EVENTS {
            if self.is_at_rest() {
                return self.compare_the_books();
            }
            self.happen(self.plain());
        }
        panic!("no rest after {MAX_EVENTS} events without a fault");
    }

    /// Everything is delivered and nothing waits but time.
    pub fn is_at_rest(&self) -> bool {
        let view = self.controller.view(self.now);
        let waits = self.reading || self.led_order.is_some() || !self.work.is_empty();
        self.link == Link::Up
            && !waits
            && self.in_flight.is_empty()
            && self.unconfirmed.is_empty()
            && view.backlog == 0
            && self.disk.is_empty()
            && !self.is_any_young()
    }

    /// Received, told lost, or excused: 1 to the last number of each run, and nothing else.
    pub fn compare_the_books(&self) {
        for life in &self.lives {
            let name = life.run.to_string();
            let last = life.made.len() as u64;
            let none = BTreeSet::new();
            let received = self.received.get(&name).unwrap_or(&none);
            let told = self.told_lost.get(&name).unwrap_or(&none);
            for seq in 1..=last {
                let is_known = received.contains(&seq) || told.contains(&seq);
                assert!(
                    is_known || life.excused.contains(&seq),
                    "record {seq} of {last} of the run {name} is lost without a word"
                );
            }
            let beyond = received.iter().chain(told).find(|seq| **seq > last);
            assert_eq!(beyond, None, "a number that was never given");
        }
    }

    fn confirms(&self) -> bool {
        self.settings.delivery.confirm == Confirm::Server
    }

    fn now_is(&mut self, boot: Duration) {
        let boot = boot.max(self.now.boot);
        self.now.wall_ms += (boot - self.now.boot).as_millis() as i64;
        self.now.boot = boot;
    }

    fn read(&mut self) {
        self.reading = false;
        self.tell(Input::Read(self.light));
    }

    fn down(&mut self, ending: Ending) {
        self.link = Link::Down;
        self.in_flight.clear();
        self.last_ack = None;
        let why = "connection reset".into();
        self.tell(Input::LinkDown { why, ending });
    }

    fn command(&mut self) {
        let (on, id) = (self.command % 2 == 1, self.command);
        let payload = format!(r#"{{"led_on":{on},"id":"{id}"}}"#);
        self.receive(payload.as_bytes());
    }

    fn receive(&mut self, payload: &[u8]) {
        self.tell(Input::CommandReceived {
            payload: payload.to_vec(),
            retained: false,
            reply_to: None,
        });
    }

    fn ack(&mut self, place: usize) {
        let message = self.in_flight.remove(place).expect("in flight");
        self.take_in(&message);
        self.last_ack = Some(message.token);
        self.tell(Input::Acked(message.token));
    }

    /// The broker has it, and so has the server.
    fn take_in(&mut self, message: &Message) {
        let value: Value = serde_json::from_slice(&message.payload).expect("JSON");
        let records = match value {
            Value::Array(records) => records,
            one => vec![one],
        };
        for record in records {
            if record["event"] == "loss" {
                let run = record["of_run"].as_str().expect("a run").to_owned();
                let range = record["from_seq"].as_u64()..=record["to_seq"].as_u64();
                let (from, to) = (range.start().expect("from"), range.end().expect("to"));
                self.told_lost.entry(run).or_default().extend(from..=to);
                continue;
            }
            let run = record["run"].as_str().expect("a run").to_owned();
            let seq = record["seq"].as_u64().expect("a number");
            if self.confirms() {
                let waits = self.unconfirmed.entry(run.clone()).or_default();
                waits.insert(seq);
            }
            self.received.entry(run).or_default().insert(seq);
        }
    }

    fn server_acks(&mut self) {
        for (run, numbers) in std::mem::take(&mut self.unconfirmed) {
            for seq in numbers {
                let ack = format!(r#"{{"run":"{run}","acked":[[{seq},{seq}]]}}"#);
                self.tell(Input::ServerAcked(ack.into_bytes()));
            }
        }
    }

    fn disk_done(&mut self) {
        let work = self.work.pop_front().expect("work");
        let number = self.lives.len() as u64;
        let answer = match work {
            Work::Open => {
                // The first record names the run before, so none can be stored earlier.
                let made = &mut self.lives.last_mut().expect("a life").made;
                made.fill(self.now.boot);
                let previous = self.disk_runs.last().copied();
                Input::BacklogOpened(Opened {
                    run_number: number,
                    previous,
                    records: self.disk.len() as u64,
                    oldest_ms: self.disk.values().next().and_then(Entry::wall_ms),
                    clocks: Vec::new(),
                    command_ids: self.disk_ids.clone(),
                })
            }
            Work::Append(entries, ids) => {
                for entry in entries {
                    let key = self.key(&entry);
                    self.disk.insert(key, entry);
                }
                self.disk_ids.extend(ids);
                self.disk_is_behind = false;
                Input::Stored {
                    records: self.disk.len() as u64,
                    lost: Default::default(),
                }
            }
            Work::Discard(ranges) => {
                let is_in = |key: &Key, range: &KeyRange| {
                    key.run_number == range.run_number && (range.from..=range.to).contains(&key.seq)
                };
                self.disk
                    .retain(|key, _| !ranges.iter().any(|range| is_in(key, range)));
                return;
            }
            Work::ReadAfter(after, limit) => {
                let waits = self.disk.iter().filter(|(key, _)| Some(**key) > after);
                let entries: Vec<_> = waits
                    .take(limit)
                    .map(|(key, entry)| (*key, entry.clone()))
                    .collect();
                let last = entries.last().map(|(key, _)| *key).or(after);
                let end = self.disk.keys().next_back().copied() <= last;
                Input::Fetched { entries, end }
            }
        };
        self.tell(answer);
    }

    fn key(&self, entry: &Entry) -> Key {
        let place = self.lives.iter().position(|life| life.run == entry.run());
        Key {
            run_number: place.expect("a known run") as u64 + 1,
            seq: entry.first(),
        }
    }

    /// The daemon dies; disk and runtime directory stay. What it may cost: records younger than the promise,
    /// and those for which the disk was not ready.
    fn crash(&mut self) {
        self.budget.crashes -= 1;
        let now = self.now.boot;
        let number = self.lives.len() as u64;
        let (run, last) = {
            let life = self.lives.last_mut().expect("a life");
            let is_behind = self.disk_is_behind || !self.work.is_empty();
            let disk = &self.disk;
            life.excused = (1..)
                .zip(&life.made)
                .filter(|(seq, made)| {
                    let key = Key {
                        run_number: number,
                        seq: *seq,
                    };
                    let is_young = now.saturating_sub(**made) <= DURABLE_WITHIN;
                    !disk.contains_key(&key) && (is_young || is_behind)
                })
                .map(|(seq, _)| seq)
                .collect();
            (life.run, life.made.len() as u64)
        };
        self.disk_runs.push((run, last));
        let run = Uuid::from_u128(u128::from(number) + 1);
        self.lives.push(Life {
            run,
            made: Vec::new(),
            excused: BTreeSet::new(),
        });
        self.work = VecDeque::from([Work::Open]);
        self.disk_is_behind = false;
        self.reading = false;
        self.led_order = None;
        self.link = Link::Down;
        self.in_flight.clear();
        self.last_ack = None;
        self.unconfirmed.clear();
        let info = run_info(run, self.led_on, self.handover.take());
        self.controller = Controller::new(self.settings.clone(), info, self.now);
        self.settle();
    }

    fn tell(&mut self, input: Input) {
        self.controller.handle(input, self.now);
        self.settle();
    }

    /// Carries out the orders, lets everything happen that is due now, and checks the promises.
    fn settle(&mut self) {
        for _ in 0..MAX_TURNS {
            while let Some(output) = self.controller.poll_output() {
                self.carry_out(output);
            }
            self.note_records();
            if self.controller.next_deadline() > self.now.boot {
                return self.check();
            }
            self.controller.handle(Input::DeadlineReached, self.now);
        }
        panic!("a deadline is in the past, and stays there");
    }

    fn note_records(&mut self) {
        let last = self.controller.view(self.now).last_seq as usize;
        let now = self.now.boot;
        let made = &mut self.lives.last_mut().expect("a life").made;
        assert!(made.len() <= last, "numbers only grow");
        made.resize(last, now);
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::ReadSensor => self.reading = true,
            Output::GiveUpReading => self.reading = false,
            Output::SetLed(on) => {
                let view = self.controller.view(self.now);
                assert!(
                    !view.by.is_empty() && !view.why.is_empty(),
                    "the LED is switched without who and why"
                );
                assert!(!view.why.contains("stale"), "a stale command is obeyed");
                self.led_order = Some(on);
            }
            Output::GiveUpLed => self.led_order = None,
            Output::Connect => {
                assert_eq!(self.link, Link::Down, "one link at a time");
                self.link = Link::Connecting;
            }
            Output::Disconnect => {
                self.link = Link::Down;
                self.in_flight.clear();
                self.last_ack = None;
            }
            Output::Publish(message) => self.publish(message),
            Output::Subscribe { token, .. } => {
                self.controller.handle(Input::Acked(token), self.now)
            }
            Output::Append {
                entries,
                command_ids,
                ..
            } => {
                let pending = self
                    .work
                    .iter()
                    .any(|work| matches!(work, Work::Append(..)));
                assert!(!pending, "one group at a time goes to the disk");
                self.work.push_back(Work::Append(entries, command_ids));
            }
            Output::Discard(ranges) => self.work.push_back(Work::Discard(ranges)),
            Output::ReadAfter { after, limit } => {
                self.work.push_back(Work::ReadAfter(after, limit));
            }
            Output::HandOver(handover) => self.handover = Some(handover),
            Output::KeepDeadLetter(_) => panic!("a good record was taken for a bad one"),
            Output::Exit(_) => panic!("nobody asked for an end"),
            Output::KeepRules(_) | Output::KeepAnnounced(_) | Output::Log(..) => {}
        }
    }

    /// Records wait for their confirmation; what is none is confirmed at once.
    fn publish(&mut self, message: Message) {
        assert_eq!(self.link, Link::Up, "published without a link");
        match message.topic {
            Topic::Telemetry | Topic::History | Topic::Events => {
                self.in_flight.push_back(message);
            }
            Topic::Results => {
                let result: Value = serde_json::from_slice(&message.payload).expect("JSON");
                if result["result"] == "applied" {
                    let id = result["id"].as_str().unwrap_or_default().to_owned();
                    *self.applied.entry(id).or_default() += 1;
                }
                self.controller
                    .handle(Input::Acked(message.token), self.now);
            }
            Topic::State | Topic::Status | Topic::Discovery => {
                self.controller
                    .handle(Input::Acked(message.token), self.now);
            }
        }
    }

    /// The promises that hold at every moment.
    fn check(&self) {
        let limit = WINDOW + MAX_CONTROL_IN_FLIGHT;
        assert!(
            self.in_flight.len() <= limit.min(WINDOW),
            "the window is kept"
        );
        for (id, times) in &self.applied {
            assert!(*times <= 1, "the command {id} was obeyed {times} times");
            assert_ne!(id, "stale", "a stale command is obeyed");
        }
        assert!(!self.is_any_lost(), "a record is nowhere");
    }

    /// A record may wait in memory as long as it need not be on the disk.
    fn is_any_young(&self) -> bool {
        let newest = self.lives.last().and_then(|life| life.made.last());
        newest.is_some_and(|made| self.now.boot <= *made + DURABLE_WITHIN)
    }

    /// Whether a record that is older than the promise would be gone if the power went now, though the disk
    /// has done all that it was asked.
    fn is_any_lost(&self) -> bool {
        if self.disk_is_behind || !self.work.is_empty() {
            return false;
        }
        let number = self.lives.len() as u64;
        let life = self.lives.last().expect("a life");
        let received = self.received.get(&life.run.to_string());
        (1..).zip(&life.made).any(|(seq, made)| {
            let is_old = self.now.boot.saturating_sub(*made) > DURABLE_WITHIN;
            let key = Key {
                run_number: number,
                seq,
            };
            is_old
                && !self.disk.contains_key(&key)
                && !received.is_some_and(|numbers| numbers.contains(&seq))
        })
    }
}

fn run_info(run: Uuid, led_on: bool, handover: Option<Box<Handover>>) -> RunInfo {
    RunInfo {
        run,
        boot_id: Uuid::from_u128(0xb007),
        built_ms: NOON_MS,
        seed: 1,
        led_on: Some(led_on),
        version: "1".into(),
        handover,
    }
}

fn settings(variant: Variant) -> Settings {
    Settings {
        lighting: LightingSettings {
            mode: Mode::Auto,
            on_below: 300.0,
            off_above: 350.0,
            hold: Duration::from_secs(1),
            lease: Lease::For(Duration::from_secs(15)),
            fail_safe: FailSafe::On,
            interval: Duration::from_secs(20),
            least_interval: Duration::ZERO,
            frozen_after: Duration::ZERO,
        },
        telemetry: TelemetrySettings {
            interval: Duration::ZERO,
            // The first reading alone: events are enough.
            deadband: 1e9,
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
            confirm: variant.confirm,
            ack_timeout: Duration::from_secs(30),
            window: WINDOW,
            replay_rate: 0.0,
            replay_jitter: Duration::ZERO,
            batch: variant.batch,
            durable_within: DURABLE_WITHIN,
            format: nightlight_logic::telemetry::PayloadFormat::Flat,
            stalled_after: Duration::from_secs(10),
            connect_spread: Duration::ZERO,
            require_listener: false,
        },
        home_assistant: None,
        device: DeviceInfo {
            device: "pi".into(),
            ..DeviceInfo::default()
        },
    }
}
