//! A simulated world for the pure half: sensor, LED, link, broker, server, disk and clocks.
//!
//! Time jumps to the next thing that happens; nothing sleeps and nothing is random beyond the seed.
//! A step limit turns a livelock into a failure. Stories play in it and read its log.
#![allow(dead_code, reason = "each test file uses a part of the world")]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../schema/mod.rs"]
pub mod schema;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nightlight::logic::account::Account;
use nightlight::logic::command::{self, Order};
use nightlight::logic::counters::StoreLosses;
use nightlight::logic::delivery::{self, Confirm, Message, Topic};
use nightlight::logic::handover::Handover;
use nightlight::logic::lighting::{self, FailSafe, Lease, Mode, RulesPatch};
use nightlight::logic::link::{DeviceInfo, Ending, Inbound, Sent};
use nightlight::logic::telemetry::{self, Loss, OutageReadings};
use nightlight::logic::time::{ClockState, Now};
use nightlight::logic::{
    Controller, Entry, Exit, Input, Key, KeyRange, Level, Opened, Output, RunInfo, Settings, View,
};
use serde_json::Value;
use uuid::Uuid;

/// The program of the world was built then (2026-10-01).
pub const BUILT_MS: i64 = 1_790_812_800_000;
/// The stories begin then (2026-11-20T12:00:00Z).
pub const NOON_MS: i64 = 1_795_176_000_000;
const STEPS_A_SECOND: u64 = 5_000;

pub fn settings() -> Settings {
    Settings {
        lighting: lighting::LightingSettings {
            mode: Mode::Auto,
            on_below: 300.0,
            off_above: 350.0,
            hold: Duration::from_secs(1),
            lease: Lease::For(Duration::from_secs(15)),
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
            order: Order::Latest,
            gap_wait: Duration::from_secs(5),
            on: String::new(),
            off: String::new(),
            allow_reboot: false,
            accept_retained: false,
        },
        delivery: delivery::DeliverySettings {
            qos: 1,
            confirm: Confirm::Broker,
            ack_timeout: Duration::from_secs(30),
            window: 16,
            replay_rate: 200.0,
            replay_jitter: Duration::from_secs(2),
            batch: 1,
            durable_within: Duration::from_secs(1),
            require_listener: false,
            format: telemetry::PayloadFormat::Flat,
            stalled_after: Duration::from_secs(10),
            connect_spread: Duration::ZERO,
        },
        home_assistant: None,
        device: device_info(),
    }
}

fn device_info() -> DeviceInfo {
    let topics = [
        (Sent::Subscribe(Inbound::Commands), "pi/commands"),
        (Sent::Subscribe(Inbound::Acks), "pi/acks"),
        (Sent::Publish(Topic::Telemetry), "pi/telemetry"),
        (Sent::Publish(Topic::History), "pi/telemetry/history"),
        (Sent::Publish(Topic::Events), "pi/events"),
        (Sent::Publish(Topic::Results), "pi/commands/result"),
        (Sent::Publish(Topic::State), "pi/state"),
        (Sent::Publish(Topic::Status), "pi/status"),
    ];
    DeviceInfo {
        device: "pi".into(),
        broker: "mqtt://broker".into(),
        sensor: "bh1750".into(),
        unit: Some("lx".into()),
        client_id: "pi".into(),
        topics: topics.map(|(sent, name)| (sent, name.into())).into(),
    }
}

/// Something the server received.
#[derive(Debug, Clone)]
pub struct Received {
    /// When, as [`World::elapsed`].
    pub at: Duration,
    pub session: u64,
    pub life: u64,
    pub token: u64,
    pub topic: Topic,
    pub value: Value,
}

/// One input as the controller got it, and what the LED was after it.
#[derive(Debug, Clone)]
pub struct Step {
    pub now: Now,
    /// `None` when a run begins.
    pub input: Option<Input>,
    pub led_wanted: bool,
    pub clock_known: bool,
    /// The daemon left a broker that confirms nothing.
    pub left_broker: bool,
    /// This start of the machine.
    pub boot_id: Uuid,
    /// The LED itself; when a run begins, as that run found it.
    pub led_on: bool,
    /// How often something was left for the next run, in all runs.
    pub handovers: u64,
}

/// A life of the daemon that is over.
#[derive(Debug, Clone)]
pub struct Ended {
    pub life: u64,
    pub run: Uuid,
    pub at: Duration,
    pub last_seq: u64,
    /// It was asked to stop.
    pub clean: bool,
    /// Its records that were on the disk.
    pub on_disk: BTreeSet<u64>,
    /// Records up to this one are older than the promise of durability.
    pub durable_to: u64,
}

/// What the disk is to do, one after the other.
#[derive(Debug, Clone)]
enum Work {
    Append(Vec<Entry>, Vec<String>, u64),
    Discard(Vec<KeyRange>),
    ReadAfter(Option<Key>, usize),
}

#[derive(Debug, Clone)]
enum Event {
    /// Something for the controller, of this session if it came over the link.
    Input(Option<u64>, Input),
    /// The broker closes this session.
    Closes(u64),
    /// The disk is done with the first of its work.
    DiskDone,
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
    /// What the daemon left in the runtime directory.
    pub handover: Option<Box<Handover>>,
    pub handovers_written: u64,
    runs: u128,
    /// What the sensor would give; `None` is a failing sensor.
    pub light: Option<f64>,
    /// A sensor that does not answer at all.
    pub sensor_hangs: bool,
    /// As the LED is; what the controller wants it to be is `led_wanted`.
    pub led_on: bool,
    pub led_wanted: bool,
    /// The LED can be switched.
    pub led_good: bool,
    /// An LED that does not answer at all.
    pub led_hangs: bool,
    /// How long it takes to switch it.
    pub led_latency: Duration,
    pub led_orders: u64,
    pub led_given_up: u64,
    pub readings_given_up: u64,
    /// Runs in which the LED could not be switched for a time.
    pub led_faults: BTreeSet<Uuid>,
    /// The rules on the disk.
    pub kept: RulesPatch,
    /// How often rules were written to the disk.
    pub rules_kept: u64,
    /// The cable.
    pub cable: bool,
    /// The broker takes publications but never confirms them.
    pub broker_mute: bool,
    /// The broker ends the session when it gets the record with this number.
    pub poison: Option<u64>,
    /// The broker closes the connection when it gets one of these.
    pub denied: BTreeSet<Sent>,
    /// The broker closes each session so long after it began.
    pub closes_after: Option<Duration>,
    /// The broker closes the connection when more QoS 2 publications than this are not finished.
    pub in_flight_limit: usize,
    at_qos_2: BTreeSet<u64>,
    left_broker: bool,
    /// Records as they were sent first, whether or not the broker read them: topic, run, number.
    pub offered: Vec<(Topic, String, u64)>,
    pub refuses_subscriptions: bool,
    /// The broker closes the connection when a payload is larger.
    pub largest: usize,
    /// It has closed, and we do not know yet.
    closing: bool,
    /// Sessions that began.
    pub sessions: u64,
    /// What the operator was told.
    pub told: Vec<(Duration, String)>,
    pub dead_letters: Vec<String>,
    /// How often a deadline woke the logic.
    pub wakes: u64,
    session: bool,
    session_number: u64,
    pub latency: Duration,
    /// The lesson's server answers each live reading.
    pub server: bool,
    pub acks: bool,
    /// Records that the server never acks.
    pub never_acked: BTreeSet<u64>,
    pub received: Vec<Received>,
    pub status: String,
    pub state: Value,
    /// Nobody listens to `state`, and the broker says so.
    pub state_unheard: bool,
    /// What was said on discovery topics: another one than the configured, and the text.
    pub discovery: Vec<(Option<String>, String)>,
    pub last_discovery_token: u64,
    /// The topic of an announcement that the disk remembers.
    pub announced: Option<String>,
    /// The disk: what is synced on it.
    pub disk: BTreeMap<Key, Entry>,
    /// The last entry that was read: those up to it are not given up.
    disk_read_to: Option<Key>,
    /// Records to be given up with the next commit, and given up since the last answer.
    disk_to_drop: usize,
    disk_lost: u64,
    pub disk_runs: Vec<(Uuid, u64)>,
    pub disk_ids: Vec<String>,
    pub disk_clocks: BTreeMap<Uuid, i64>,
    pub disk_ok: bool,
    /// How long it takes to sync a group of records.
    pub disk_latency: Duration,
    /// How long it takes to open the backlog.
    pub opening: Duration,
    pub disk_writes: u64,
    disk_work: VecDeque<Work>,
    disk_free_at: Duration,
    /// Since when the disk has been good, as [`World::elapsed`].
    disk_good_since: Duration,
    /// The slowest it has been since then.
    disk_slowest: Duration,
    /// What could not be stored, noted beside the store.
    not_stored: Vec<Loss>,
    run_number: u64,
    agenda: BTreeMap<(Duration, u64), (u64, Event)>,
    scheduled: u64,
    life: u64,
    /// Time that passed before this start of the machine.
    earlier: Duration,
    read_unanswered: bool,
    pub exit: Option<Exit>,
    /// What the controller got, when `keep_trace` is set.
    pub trace: Vec<Step>,
    pub keep_trace: bool,
    /// When the records of this run were made: up to this number, at that time (with `keep_trace`).
    made: Vec<(Duration, u64)>,
    pub ended: Vec<Ended>,
    /// Publications that the daemon knows to be confirmed, by life and token, and since when.
    pub confirmed: BTreeMap<(u64, u64), Duration>,
    /// Changes of the LED, by run.
    pub led_changes: Vec<(Uuid, bool)>,
    /// One line for each change of LED, link and the like.
    pub log: Vec<String>,
    /// What the operator was warned of.
    pub warnings: Vec<String>,
    pub window_seen: usize,
    published: u64,
    unconfirmed: BTreeSet<u64>,
}

impl World {
    pub fn new(settings: Settings) -> Self {
        let now = Duration::from_secs(100);
        let run_info = run_info(1, false);
        let at = Now {
            boot: now,
            wall_ms: NOON_MS + 100_000,
            synced: true,
        };
        let run = run_info.run;
        let boot_id = run_info.boot_id;
        let controller = Controller::new(settings.clone(), run_info, at);
        let mut world = Self {
            settings,
            controller,
            now,
            offset_ms: NOON_MS,
            synced: true,
            boot_id,
            handover: None,
            handovers_written: 0,
            run,
            runs: 1,
            light: Some(500.0),
            sensor_hangs: false,
            led_on: false,
            led_wanted: false,
            led_good: true,
            led_hangs: false,
            led_latency: Duration::ZERO,
            led_orders: 0,
            led_given_up: 0,
            readings_given_up: 0,
            led_faults: BTreeSet::new(),
            rules_kept: 0,
            kept: RulesPatch::default(),
            cable: true,
            broker_mute: false,
            poison: None,
            denied: BTreeSet::new(),
            left_broker: false,
            offered: Vec::new(),
            refuses_subscriptions: false,
            largest: usize::MAX,
            closes_after: None,
            in_flight_limit: usize::MAX,
            at_qos_2: BTreeSet::new(),
            closing: false,
            sessions: 0,
            told: Vec::new(),
            dead_letters: Vec::new(),
            wakes: 0,
            session: false,
            session_number: 0,
            latency: Duration::from_millis(5),
            server: true,
            acks: false,
            never_acked: BTreeSet::new(),
            received: Vec::new(),
            status: String::new(),
            state: Value::Null,
            state_unheard: false,
            discovery: Vec::new(),
            last_discovery_token: 0,
            announced: None,
            disk: BTreeMap::new(),
            disk_read_to: None,
            disk_to_drop: 0,
            disk_lost: 0,
            disk_runs: Vec::new(),
            disk_ids: Vec::new(),
            disk_clocks: BTreeMap::new(),
            disk_ok: true,
            disk_latency: Duration::from_millis(20),
            opening: Duration::from_millis(30),
            disk_writes: 0,
            disk_work: VecDeque::new(),
            disk_free_at: Duration::ZERO,
            disk_good_since: now,
            disk_slowest: Duration::ZERO,
            not_stored: Vec::new(),
            run_number: 0,
            agenda: BTreeMap::new(),
            scheduled: 0,
            life: 1,
            earlier: Duration::ZERO,
            read_unanswered: false,
            exit: None,
            trace: Vec::new(),
            keep_trace: false,
            made: Vec::new(),
            ended: Vec::new(),
            confirmed: BTreeMap::new(),
            led_changes: Vec::new(),
            log: Vec::new(),
            warnings: Vec::new(),
            window_seen: 0,
            published: 0,
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
        if !self.sensor_hangs && std::mem::take(&mut self.read_unanswered) {
            self.answer_read();
        }
        loop {
            self.carry_out();
            if self.exit.is_some() {
                self.now = end;
                return;
            }
            // A deadline that passed while the program did not run is noticed after that.
            let deadline = self.controller.next_deadline().max(self.now);
            let event = self.agenda.keys().next().copied();
            // What fell into a pause of the program happens after it.
            let next = event.map_or(deadline, |(at, _)| at.min(deadline).max(self.now));
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
                    if let Some((life, event)) = self.agenda.remove(&key)
                        && life == self.life
                    {
                        self.happen(event);
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

    /// The daemon dies without warning; the disk and the runtime directory are left. It starts again at once.
    pub fn crash(&mut self) {
        self.note("crash".into());
        self.start_anew();
    }

    /// The daemon is asked to stop, has its time for it, and starts again.
    pub fn stop_and_start(&mut self) {
        self.note("stop".into());
        self.input(Input::ShutdownAsked);
        self.run_for(Duration::from_millis(3_500));
        assert!(self.exit.is_some(), "it stops in time");
        self.start_anew();
    }

    /// The disk is full, or has room again.
    pub fn disk_good(&mut self, good: bool) {
        self.note(format!("disk {}", if good { "good" } else { "full" }));
        self.disk_ok = good;
        self.disk_good_since = self.elapsed();
        self.disk_slowest = Duration::ZERO;
    }

    /// The store is over its bound: with the next commit it gives up its oldest records.
    pub fn disk_drops_oldest(&mut self, count: usize) {
        self.disk_to_drop += count;
    }

    /// Behind those that were just read.
    fn drop_oldest(&mut self) {
        let count = std::mem::take(&mut self.disk_to_drop);
        let read_to = self.disk_read_to;
        let keys: Vec<(Key, Uuid)> = self
            .disk
            .iter()
            .filter(|(key, entry)| {
                matches!(entry, Entry::Record(_)) && read_to.is_none_or(|read_to| **key > read_to)
            })
            .map(|(key, entry)| (*key, entry.run()))
            .take(count)
            .collect();
        for (key, of_run) in keys {
            self.note(format!("the store gives up {}", key.seq));
            self.disk_lost += 1;
            let gap = Loss {
                of_run,
                from_seq: key.seq,
                to_seq: key.seq,
                count: 1,
                reason: "backlog-full".into(),
            };
            self.put_gap(key, gap);
        }
    }

    /// Neighbouring gaps of one kind join, unless the first has been read.
    fn put_gap(&mut self, key: Key, gap: Loss) {
        self.disk.remove(&key);
        let read_to = self.disk_read_to;
        if let Some((before, Entry::Gap(old))) = self.disk.range_mut(..key).next_back()
            && read_to.is_none_or(|read_to| *before > read_to)
            && before.run_number == key.run_number
            && old.to_seq + 1 == gap.from_seq
            && old.reason == gap.reason
        {
            old.to_seq = gap.to_seq;
            old.count += gap.count;
            return;
        }
        self.disk.insert(key, Entry::Gap(gap));
    }

    fn number_of(&self, run: Uuid) -> u64 {
        let place = self.disk_runs.iter().position(|(known, _)| *known == run);
        place.map_or(0, |place| place as u64 + 1)
    }

    /// The whole machine starts again: the boot clock begins anew, with a wrong wall clock.
    pub fn power_cut(&mut self, wall_ms: i64) {
        self.note("power cut".into());
        self.end_life();
        self.earlier += self.now;
        self.now = Duration::from_secs(5);
        self.disk_free_at = Duration::ZERO;
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
            self.hand_over(Input::CommandReceived {
                payload,
                retained,
                reply_to: None,
            });
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

    /// Time since the story began, whatever the machine's clocks say.
    pub fn elapsed(&self) -> Duration {
        self.earlier + self.now
    }

    /// Whether a session is up.
    pub fn is_linked(&self) -> bool {
        self.session
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
        self.accounts().run(run).received().clone()
    }

    /// Numbers of the loss records received about a run.
    pub fn lost(&self, run: Uuid) -> BTreeSet<u64> {
        let account = self.accounts().run(run);
        account
            .lost()
            .iter()
            .flat_map(|(from, to)| from..=to)
            .collect()
    }

    /// Numbers of a run, up to `last`, that were neither received nor told as lost.
    pub fn missing(&self, run: Uuid, last: u64) -> Vec<u64> {
        self.accounts().run(run).missing(last)
    }

    fn accounts(&self) -> Account {
        let mut account = Account::default();
        for received in &self.received {
            account.take(&received.value);
        }
        account
    }

    /// Writes down what the life that is over owes.
    fn end_life(&mut self) {
        if self
            .ended
            .last()
            .is_some_and(|ended| ended.life == self.life)
        {
            return;
        }
        let promise =
            self.settings.delivery.durable_within + 2 * self.disk_slowest.max(self.disk_latency);
        // A failed write is tried again after 2 s; what is older than all of that is on the disk.
        let steady = self.disk_ok
            && self.elapsed() > self.disk_good_since + promise + Duration::from_secs(8);
        let durable_to = match steady {
            true => self
                .made
                .iter()
                .rev()
                .find(|(at, _)| *at + promise + self.opening < self.elapsed())
                .map_or(0, |(_, seq)| *seq),
            false => 0,
        };
        let run = self.run;
        self.ended.push(Ended {
            life: self.life,
            run,
            at: self.elapsed(),
            last_seq: self.view().last_seq,
            clean: self.exit.is_some(),
            on_disk: self
                .disk
                .values()
                .filter(|entry| entry.run() == run && matches!(entry, Entry::Record(_)))
                .map(Entry::first)
                .collect(),
            durable_to,
        });
    }

    fn start_anew(&mut self) {
        self.end_life();
        self.life += 1;
        self.runs += 1;
        self.session = false;
        self.unconfirmed.clear();
        self.exit = None;
        self.read_unanswered = false;
        self.made.clear();
        self.disk_work.clear();
        self.disk_free_at = self.now;
        self.led_wanted = self.led_on;
        let mut run_info = run_info(self.runs, self.led_on);
        run_info.boot_id = self.boot_id;
        run_info.handover = self.handover.clone();
        self.run = run_info.run;
        self.controller = Controller::new(self.settings.clone(), run_info, self.clocks());
        let found = Input::RulesFound {
            patch: self.kept,
            place: "rules.json".into(),
        };
        self.controller.handle(found, self.clocks());
        self.agenda.clear();
        self.trace_step(None);
        self.open_disk();
    }

    fn open_disk(&mut self) {
        self.run_number += 1;
        self.take_notes();
        let opened = Opened {
            run_number: self.run_number,
            previous: self.disk_runs.last().copied(),
            records: self.disk.len() as u64,
            oldest_ms: self.disk.values().find_map(Entry::wall_ms),
            clocks: self.disk_clocks.clone().into_iter().collect(),
            command_ids: self.disk_ids.clone(),
        };
        self.disk_runs.push((self.run, 0));
        self.schedule(
            self.opening,
            Event::Input(None, Input::BacklogOpened(opened)),
        );
        self.disk_read_to = None;
        if self.settings.home_assistant.is_some() || self.announced.is_some() {
            let found = Input::AnnouncedFound(self.announced.clone());
            self.schedule(self.opening, Event::Input(None, found));
        }
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.scheduled += 1;
        let key = (self.now + after, self.scheduled);
        self.agenda.insert(key, (self.life, event));
    }

    /// What comes over the link comes only while this session is up.
    fn schedule_on_link(&mut self, after: Duration, input: Input) {
        let session = Some(self.session_number);
        self.schedule(after, Event::Input(session, input));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Input(None, input) => self.hand_over(input),
            Event::Input(Some(session), input) => {
                if self.session && session == self.session_number {
                    self.hand_over(input);
                }
            }
            Event::Closes(session) => {
                if self.session && session == self.session_number {
                    self.close_by_broker();
                }
            }
            Event::DiskDone => {
                if let Some(work) = self.disk_work.pop_front() {
                    self.finish_disk_work(work);
                }
            }
        }
    }

    fn hand_over(&mut self, mut input: Input) {
        match &input {
            Input::LinkUp if !self.cable => {
                input = Input::LinkDown {
                    why: "connection timed out".into(),
                    ending: Ending::Lost,
                }
            }
            Input::LinkUp => {
                self.session = true;
                self.closing = false;
                self.at_qos_2.clear();
                self.sessions += 1;
                if self.closes_after == Some(Duration::ZERO) {
                    self.close_by_broker();
                } else if let Some(after) = self.closes_after {
                    self.schedule(after, Event::Closes(self.session_number));
                }
                self.note("link up".into());
            }
            Input::Acked(token) | Input::Unheard(token) => {
                if !self.unconfirmed.remove(token) {
                    return;
                }
                self.at_qos_2.remove(token);
                self.confirmed.insert((self.life, *token), self.elapsed());
            }
            Input::LinkDown { .. } => {
                self.session = false;
                self.unconfirmed.clear();
            }
            _ => {}
        }
        let step = self.keep_trace.then(|| input.clone());
        let was = self.controller.next_deadline();
        self.wakes += u64::from(input == Input::DeadlineReached);
        self.controller.handle(input, self.clocks());
        let next = self.controller.next_deadline();
        assert!(
            next > self.now,
            "due at {next:?}, now {:?}, was {was:?}: {:?}",
            self.now,
            self.log
        );
        self.carry_out();
        if let Some(input) = step {
            self.trace_step(Some(input));
        }
    }

    fn trace_step(&mut self, input: Option<Input>) {
        if !self.keep_trace {
            return;
        }
        let View {
            last_seq,
            clock,
            led_wanted,
            ..
        } = self.view();
        self.led_wanted = led_wanted;
        if self.made.last().is_none_or(|(_, seq)| *seq < last_seq) {
            self.made.push((self.elapsed(), last_seq));
        }
        self.trace.push(Step {
            now: self.clocks(),
            input,
            led_wanted: self.led_wanted,
            clock_known: clock == ClockState::Synced,
            left_broker: std::mem::take(&mut self.left_broker),
            boot_id: self.boot_id,
            led_on: self.led_on,
            handovers: self.handovers_written,
        });
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.controller.poll_output() {
            match output {
                Output::ReadSensor if self.sensor_hangs => self.read_unanswered = true,
                Output::ReadSensor => self.answer_read(),
                Output::SetLed(_) if self.led_hangs => {}
                Output::SetLed(on) => self.set_led(on),
                Output::GiveUpLed => self.led_given_up += 1,
                Output::GiveUpReading => self.readings_given_up += 1,
                Output::Connect => self.connect(),
                Output::Disconnect => {
                    self.left_broker = true;
                    self.session = false;
                    self.unconfirmed.clear();
                }
                Output::Publish(message) => self.publish(message),
                Output::Subscribe { token, inbound } => self.subscribe(token, inbound),
                Output::Append {
                    entries,
                    command_ids,
                    last_seq,
                } => self.give_disk(Work::Append(entries, command_ids, last_seq)),
                Output::Discard(ranges) => self.give_disk(Work::Discard(ranges)),
                Output::ReadAfter { after, limit } => {
                    self.give_disk(Work::ReadAfter(after, limit));
                }
                Output::Log(level, text) => {
                    if level == Level::Warn {
                        self.warnings.push(text.clone());
                    }
                    self.told.push((self.elapsed(), text));
                }
                Output::Exit(exit) => {
                    // At its end the store finishes what it was told.
                    while let Some(work) = self.disk_work.pop_front() {
                        self.do_disk_work(work);
                    }
                    self.exit = Some(exit);
                }
                Output::HandOver(handover) => {
                    self.handovers_written += 1;
                    self.handover = Some(handover);
                }
                Output::KeepDeadLetter(line) => self.dead_letters.push(line),
                Output::KeepAnnounced(topic) => self.announced = topic,
                Output::KeepRules(rules) => {
                    self.rules_kept += 1;
                    self.kept = rules;
                }
            }
        }
    }

    /// The answer that a hanging sensor owes will never come.
    pub fn forget_reading(&mut self) {
        self.read_unanswered = false;
    }

    /// Readings whose answer is on its way.
    pub fn reads_under_way(&self) -> usize {
        let is_read = |event: &&(u64, Event)| matches!(event.1, Event::Input(None, Input::Read(_)));
        self.agenda.values().filter(is_read).count()
    }

    fn set_led(&mut self, on: bool) {
        self.led_orders += 1;
        let was = Some(self.led_on);
        let led = if on { "on" } else { "off" };
        let answer = if self.led_good {
            if was != Some(on) {
                self.led_changes.push((self.run, on));
                self.note(format!("LED {led}"));
            }
            self.led_on = on;
            Input::LedWritten { led_on: on, was }
        } else {
            self.led_faults.insert(self.run);
            let why = "no such pin".into();
            Input::LedFailed { why, seen: was }
        };
        if self.led_latency.is_zero() {
            self.controller.handle(answer, self.clocks());
        } else {
            self.schedule(self.led_latency, Event::Input(None, answer));
        }
    }

    fn answer_read(&mut self) {
        let input = match self.light {
            Some(light) => Input::Read(light),
            None => Input::ReadFailed("no answer".into()),
        };
        self.schedule(Duration::from_millis(2), Event::Input(None, input));
    }

    fn connect(&mut self) {
        assert!(!self.session, "a second session");
        self.session_number += 1;
        self.unconfirmed.clear();
        let input = match self.cable {
            true => Input::LinkUp,
            false => Input::LinkDown {
                why: "connection refused".into(),
                ending: Ending::Lost,
            },
        };
        self.schedule(self.latency, Event::Input(None, input));
    }

    fn end_session(&mut self, why: &str) {
        self.session = false;
        self.unconfirmed.clear();
        let why = why.to_owned();
        self.hand_over(Input::LinkDown {
            why,
            ending: Ending::Lost,
        });
    }

    fn subscribe(&mut self, token: u64, inbound: Inbound) {
        assert!(self.session, "subscribed without a session");
        self.unconfirmed.insert(token);
        if self.closing || self.denies(Sent::Subscribe(inbound)) {
            return;
        }
        let answer = match self.refuses_subscriptions {
            true => Input::SubscriptionRefused {
                token,
                why: String::new(),
            },
            false => Input::Acked(token),
        };
        if !self.broker_mute {
            self.schedule_on_link(self.latency * 2, answer);
        }
    }

    /// The broker closes the connection when it gets what its access list denies.
    fn denies(&mut self, sent: Sent) -> bool {
        let denied = self.denied.contains(&sent);
        if denied {
            self.close_by_broker();
        }
        denied
    }

    /// A broker that restarts once: it closes the session, and is not there for some time.
    pub fn restart_broker(&mut self, away: Duration) {
        if self.session {
            self.session = false;
            self.unconfirmed.clear();
            let why = "the broker closed the connection".to_owned();
            let ending = Ending::Closed;
            self.hand_over(Input::LinkDown { why, ending });
        }
        self.cable = false;
        self.run_for(away);
        self.cable = true;
    }

    /// The broker closes the connection; what it had answered comes before that.
    pub fn close_by_broker(&mut self) {
        let why = "the broker closed the connection".to_owned();
        let ending = Ending::Closed;
        self.closing = true;
        self.schedule_on_link(self.latency * 2, Input::LinkDown { why, ending });
    }

    fn publish(&mut self, message: Message) {
        assert!(self.session, "published without a session");
        self.published += 1;
        // Of very many in one story a part is enough, and keeps the stories fast.
        if self.published < 100 || self.published.is_multiple_of(64) {
            as_described(&message);
        }
        assert!(message.payload.len() < 256 * 1024);
        self.unconfirmed.insert(message.token);
        self.offer(&message);
        // What was on its way when the broker closed is read by nobody.
        if self.closing || self.denies(Sent::Publish(message.topic)) {
            return;
        }
        if message.payload.len() > self.largest {
            self.close_by_broker();
            return;
        }
        if message.qos == 2 {
            self.at_qos_2.insert(message.token);
            if self.at_qos_2.len() > self.in_flight_limit {
                self.close_by_broker();
                return;
            }
        }
        let span = message.token - self.unconfirmed.first().copied().unwrap_or(message.token) + 1;
        self.window_seen = self.window_seen.max(span as usize);
        match message.topic {
            Topic::Status => self.status = String::from_utf8(message.payload).expect("text"),
            Topic::State => self.state = serde_json::from_slice(&message.payload).expect("JSON"),
            Topic::Discovery => {
                assert!(message.retain, "discovery is retained");
                let text = String::from_utf8(message.payload).expect("text");
                self.last_discovery_token = message.token;
                let other = message.reply_to.map(|place| place.topic);
                self.discovery.push((other, text));
            }
            topic => {
                let value: Value = serde_json::from_slice(&message.payload).expect("JSON");
                let values = match value {
                    Value::Array(values) => values,
                    value => vec![value],
                };
                if self.poison.is_some()
                    && values
                        .iter()
                        .any(|value| value["seq"].as_u64() == self.poison)
                {
                    self.close_by_broker();
                    return;
                }
                for value in values {
                    self.receive(topic, message.token, value);
                }
            }
        }
        if !self.broker_mute {
            let answer = match message.topic {
                Topic::State if self.state_unheard => Input::Unheard(message.token),
                _ => Input::Acked(message.token),
            };
            self.schedule_on_link(self.latency * 2, answer);
        }
    }

    fn offer(&mut self, message: &Message) {
        let values = match serde_json::from_slice(&message.payload) {
            Ok(Value::Array(values)) => values,
            Ok(value) => vec![value],
            Err(_) => return,
        };
        for value in values {
            if let (Some(run), Some(seq)) = (value["run"].as_str(), value["seq"].as_u64()) {
                self.offered.push((message.topic, run.to_owned(), seq));
            }
        }
    }

    fn receive(&mut self, topic: Topic, token: u64, value: Value) {
        if self.server && topic == Topic::Telemetry {
            let led_on = value["light"].as_f64().is_some_and(|light| light < 300.0);
            let payload = format!("{{\"led_on\": {led_on}}}").into_bytes();
            let command = Input::CommandReceived {
                payload,
                retained: false,
                reply_to: None,
            };
            self.schedule_on_link(self.latency * 2, command);
        }
        let record = (&value["run"], &value["seq"], &value["seq"]);
        let gap = (&value["of_run"], &value["from_seq"], &value["to_seq"]);
        let (run, from, to) = if value["event"] == "loss" {
            gap
        } else {
            record
        };
        if self.acks
            && let (Some(run), Some(from), Some(to)) = (run.as_str(), from.as_u64(), to.as_u64())
            && !self.never_acked.contains(&from)
        {
            let ack = format!("{{\"run\":\"{run}\",\"acked\":[[{from},{to}]]}}");
            self.schedule_on_link(self.latency * 2, Input::ServerAcked(ack.into_bytes()));
        }
        self.received.push(Received {
            at: self.elapsed(),
            session: self.session_number,
            life: self.life,
            token,
            topic,
            value,
        });
    }

    /// The disk does one thing after the other; syncing is what takes time.
    fn give_disk(&mut self, work: Work) {
        let time = match &work {
            Work::Append(..) => self.disk_latency,
            Work::Discard(_) | Work::ReadAfter(..) => Duration::from_millis(1),
        };
        self.disk_slowest = self.disk_slowest.max(time);
        self.disk_work.push_back(work);
        self.disk_free_at = self.disk_free_at.max(self.now) + time;
        self.schedule(self.disk_free_at - self.now, Event::DiskDone);
    }

    fn finish_disk_work(&mut self, work: Work) {
        if let Some(input) = self.do_disk_work(work) {
            self.hand_over(input);
        }
    }

    fn do_disk_work(&mut self, work: Work) -> Option<Input> {
        match work {
            Work::Append(entries, ..) if !self.disk_ok => {
                self.note_not_stored(&entries);
                Some(Input::StoreFailed("disk full".into()))
            }
            Work::Append(entries, ids, last_seq) => {
                self.not_stored.retain(|loss| loss.of_run != self.run);
                self.disk_writes += 1;
                let seqs: Vec<u64> = entries.iter().map(Entry::first).collect();
                self.note(format!("stored {seqs:?}"));
                for entry in entries {
                    self.append(entry);
                }
                self.drop_oldest();
                self.disk_ids.extend(ids);
                if let Some(run) = self.disk_runs.last_mut() {
                    run.1 = last_seq;
                }
                Some(Input::Stored {
                    records: self.disk.len() as u64,
                    lost: StoreLosses {
                        full: std::mem::take(&mut self.disk_lost),
                        ..StoreLosses::default()
                    },
                })
            }
            Work::Discard(ranges) => {
                for range in ranges {
                    let (run_number, from, to) = (range.run_number, range.from, range.to);
                    let (first, last) = (
                        Key {
                            run_number,
                            seq: from,
                        },
                        Key {
                            run_number,
                            seq: to,
                        },
                    );
                    let confirmed: Vec<Key> = self
                        .disk
                        .range(first..=last)
                        .filter(|(_, entry)| entry.last() <= to)
                        .map(|(key, _)| *key)
                        .collect();
                    for key in confirmed {
                        self.disk.remove(&key);
                    }
                }
                None
            }
            Work::ReadAfter(after, limit) => {
                let mut entries: Vec<(Key, Entry)> = self
                    .disk
                    .iter()
                    .filter(|(key, _)| after.is_none_or(|after| **key > after))
                    .map(|(key, entry)| (*key, entry.clone()))
                    .take(limit + 1)
                    .collect();
                let end = entries.len() <= limit;
                entries.truncate(limit);
                if after.is_none() {
                    self.disk_read_to = None;
                }
                self.disk_read_to = entries.last().map(|(key, _)| *key).max(self.disk_read_to);
                Some(Input::Fetched { entries, end })
            }
        }
    }

    fn append(&mut self, entry: Entry) {
        let key = Key {
            run_number: self.number_of(entry.run()),
            seq: entry.first(),
        };
        match entry {
            Entry::Record(record) => {
                assert_eq!(record.run, self.run);
                let stamp = record.stamp;
                if stamp.synced {
                    let offset_ms = stamp.wall_ms - stamp.boot_ms as i64;
                    self.disk_clocks.insert(record.boot_id, offset_ms);
                }
                self.disk.insert(key, Entry::Record(record));
            }
            Entry::Gap(gap) => {
                let inside = |seq: u64| (gap.from_seq..=gap.to_seq).contains(&seq);
                let number = key.run_number;
                self.disk
                    .retain(|key, _| key.run_number != number || !inside(key.seq));
                self.put_gap(key, gap);
            }
        }
    }

    /// What the store notes beside itself, for the next run.
    fn note_not_stored(&mut self, entries: &[Entry]) {
        self.not_stored.retain(|loss| loss.of_run != self.run);
        let is_record = |entry: &&Entry| matches!(entry, Entry::Record(_));
        let records: Vec<u64> = entries.iter().filter(is_record).map(Entry::first).collect();
        if let (Some(first), Some(last)) = (records.first(), records.last()) {
            self.not_stored.push(Loss {
                of_run: self.run,
                from_seq: *first,
                to_seq: *last,
                count: records.len() as u64,
                reason: "not-stored".into(),
            });
        }
        for entry in entries {
            if let Entry::Gap(gap) = entry {
                self.not_stored.push(gap.clone());
            }
        }
    }

    /// What earlier runs could not store becomes gaps.
    fn take_notes(&mut self) {
        let (own, others): (Vec<Loss>, Vec<Loss>) = std::mem::take(&mut self.not_stored)
            .into_iter()
            .partition(|loss| loss.of_run == self.run);
        self.not_stored = own;
        for gap in others {
            let run_number = self.number_of(gap.of_run);
            self.put_gap(
                Key {
                    run_number,
                    seq: gap.from_seq,
                },
                gap,
            );
        }
    }

    pub fn note(&mut self, text: String) {
        let seconds = self.now.as_secs_f64() - 100.0;
        self.log.push(format!("{seconds:6.1} {text}"));
    }
}

fn run_info(run: u128, led_on: bool) -> RunInfo {
    RunInfo {
        run: Uuid::from_u128(0x1000 + run),
        boot_id: Uuid::from_u128(0x2000),
        built_ms: BUILT_MS,
        seed: run as u64,
        led_on: Some(led_on),
        version: "1.2.3".into(),
        handover: None,
    }
}

/// Whatever is published is as docs/schemas says.
fn as_described(message: &Message) {
    let payload = &message.payload;
    match message.topic {
        Topic::Telemetry => schema::assert_is("reading.json", payload),
        Topic::Events => schema::assert_is("event.json", payload),
        Topic::History => schema::assert_is("history.json", payload),
        Topic::Results => schema::assert_is("result.json", payload),
        Topic::State => schema::assert_is("state.json", payload),
        Topic::Status => assert!(payload == b"online" || payload == b"offline"),
        // The form is Home Assistant's own; an empty one takes it back.
        Topic::Discovery => assert!(
            payload.is_empty()
                || serde_json::from_slice::<Value>(payload).is_ok_and(|it| it.is_object())
        ),
    }
}
