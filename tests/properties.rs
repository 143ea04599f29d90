//! What must hold whatever happens: random schedules of faults in the simulated world.
//!
//! Each case plays a schedule (cable, broker, server, disk, sensor, clocks, crashes, commands), then heals
//! everything, lets the backlog drain, and checks the promises one by one. A failure found here is told
//! again as a story in `outage_stories.rs`. Run by `cargo test`; `PROPTEST_CASES=20000` for a long look.
#![allow(
    clippy::collapsible_match,
    reason = "as a guard, the condition would let a later arm have the input"
)]

mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use nightlight::logic::Settings;
use nightlight::logic::command::Order;
use nightlight::logic::delivery::{Confirm, MAX_CONTROL_IN_FLIGHT, Topic};
use nightlight::logic::lighting::{FailSafe, Lease, Mode};
use nightlight::logic::link as mqtt;
use nightlight::logic::telemetry::OutageReadings;
use nightlight::logic::words;
use nightlight::logic::{Exit, Input};
use proptest::prelude::*;
use serde_json::Value;
use world::{NOON_MS, Step, World, settings};

const BUILT: &str = "2026-10-01T00:00:00.000Z";
/// An ack of the server counts as late after this, where it counts at all.
const ACK_TIMEOUT: Duration = Duration::from_secs(8);
/// The store may learn so late that a record is confirmed.
const FORGOTTEN_BY: Duration = Duration::from_secs(30);

/// One thing that happens to the nightlight.
#[derive(Debug, Clone)]
enum Happening {
    Light(f64),
    SensorFails,
    SensorHangs,
    SensorHeals,
    LedFails,
    LedHeals,
    CablePulled,
    CableBack,
    Flaps { times: u32, ms: u64 },
    BrokerMute(bool),
    BrokerCloses,
    BrokerClosesAfter(Option<u64>),
    BrokerDenies(mqtt::Sent),
    Latency(u64),
    DiskFull,
    DiskGood,
    DiskLatency(u64),
    DiskDropsOldest(usize),
    Crash,
    Stop,
    PowerCut { wall_ms: i64 },
    ClockMoved { ms: i64 },
    ClockSynced,
    Server(bool),
    Acks(bool),
    ServerStatus { alive: bool, retained: bool },
    Command(Sent),
}

/// A command as somebody may send it.
#[derive(Debug, Clone)]
enum Sent {
    Fresh {
        led_on: bool,
        lease: Option<u64>,
        seq: Option<i64>,
    },
    Named {
        led_on: bool,
        name: u8,
    },
    Expiring {
        led_on: bool,
        in_ms: i64,
    },
    Retained {
        led_on: bool,
    },
    Rules {
        mode: Option<&'static str>,
        on_below: Option<i32>,
        interval_ms: Option<u64>,
        persist: bool,
    },
    ReadNow,
    Garbage(Vec<u8>),
    Odd(&'static str),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        6 => prop_oneof![Just(100.0), Just(320.0), Just(500.0), 0.0..1000.0].prop_map(Light),
        1 => Just(SensorFails),
        1 => Just(SensorHangs),
        2 => Just(SensorHeals),
        1 => Just(LedFails),
        2 => Just(LedHeals),
        5 => Just(CablePulled),
        5 => Just(CableBack),
        1 => (1..12_u32, 1..900_u64).prop_map(|(times, ms)| Flaps { times, ms }),
        2 => any::<bool>().prop_map(BrokerMute),
        2 => Just(BrokerCloses),
        1 => proptest::option::of(0..4_000_u64).prop_map(BrokerClosesAfter),
        1 => proptest::sample::select(vec![
            mqtt::Sent::Subscribe(mqtt::Inbound::Commands),
            mqtt::Sent::Publish(Topic::Status),
            mqtt::Sent::Publish(Topic::State),
            mqtt::Sent::Publish(Topic::Results),
            mqtt::Sent::Publish(Topic::Events),
            mqtt::Sent::Publish(Topic::Telemetry),
            mqtt::Sent::Publish(Topic::History),
        ])
        .prop_map(BrokerDenies),
        3 => prop_oneof![Just(5), 1..100_u64, 1..3_000_u64].prop_map(Latency),
        1 => Just(DiskFull),
        2 => Just(DiskGood),
        2 => prop_oneof![Just(20), 1..5_000_u64].prop_map(DiskLatency),
        1 => (1..40_usize).prop_map(DiskDropsOldest),
        2 => Just(Crash),
        2 => Just(Stop),
        1 => prop_oneof![Just(0), Just(NOON_MS), 0..2 * NOON_MS]
            .prop_map(|wall_ms| PowerCut { wall_ms }),
        1 => prop_oneof![-90_000_000..90_000_000_i64, -3_000..3_000_i64]
            .prop_map(|ms| ClockMoved { ms }),
        1 => Just(ClockSynced),
        3 => any::<bool>().prop_map(Server),
        3 => any::<bool>().prop_map(Acks),
        1 => any::<[bool; 2]>()
            .prop_map(|[alive, retained]| ServerStatus { alive, retained }),
        8 => sent().prop_map(Command),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    use Sent::*;
    prop_oneof![
        6 => (any::<bool>(), proptest::option::of(1..60_u64), proptest::option::of(1..12_i64))
            .prop_map(|(led_on, lease, seq)| Fresh { led_on, lease, seq }),
        3 => (any::<bool>(), 0..4_u8).prop_map(|(led_on, name)| Named { led_on, name }),
        2 => (any::<bool>(), -5_000..5_000_i64)
            .prop_map(|(led_on, in_ms)| Expiring { led_on, in_ms }),
        2 => any::<bool>().prop_map(|led_on| Retained { led_on }),
        2 => (
            proptest::option::of(prop_oneof![Just("auto"), Just("local"), Just("remote")]),
            proptest::option::of(0..700),
            // Below 10 ms it is refused. From there to 200 ms a window of one message may never carry
            // what is read: live readings go first, and no history is ever done.
            proptest::option::of(prop_oneof![200..3_000_u64, 0..10_u64]),
            any::<bool>(),
        )
            .prop_map(|(mode, on_below, interval_ms, persist)| Rules {
                mode,
                on_below,
                interval_ms,
                persist,
            }),
        1 => Just(ReadNow),
        1 => proptest::collection::vec(any::<u8>(), 0..5_000).prop_map(Garbage),
        1 => prop_oneof![
            Just(r#"{"led_on":1}"#),
            Just(r#"{"led_on":true,"id":""}"#),
            Just(r#"{"led_on":true,"lease":"-1s"}"#),
            Just(r#"{"led_on":true,"command":"set"}"#),
            Just(r#"{"command":"reboot"}"#),
            Just(r#"{"command":"set","on_below":800,"off_above":1}"#),
        ]
        .prop_map(Odd),
    ]
}

fn rules() -> impl Strategy<Value = Settings> {
    let lighting = (
        prop_oneof![6 => Just(Mode::Auto), 1 => Just(Mode::Local), 1 => Just(Mode::Remote)],
        prop_oneof![Just(0_u64), Just(1_000), 0..5_000_u64],
        prop_oneof![
            4 => (2..20_u64).prop_map(|lease| Lease::For(Duration::from_secs(lease))),
            1 => Just(Lease::WhileLinked)
        ],
        prop_oneof![
            Just(FailSafe::Keep),
            Just(FailSafe::On),
            Just(FailSafe::Off)
        ],
        prop_oneof![Just(1_000_u64), 200..3_000_u64],
        prop_oneof![3 => Just(0_u64), 1 => 1_000..20_000_u64],
    );
    let commands = (
        prop_oneof![2 => Just(Order::Latest), 1 => Just(Order::Sequence)],
        0..8_000_u64,
        prop_oneof![3 => Just(false), 1 => Just(true)],
    );
    let delivery = (
        0..=2_u8,
        prop_oneof![Just(Confirm::Broker), Just(Confirm::Server)],
        1..=40_usize,
        prop_oneof![Just(0.0), Just(200.0), 10.0..1_000.0],
        prop_oneof![Just(1_usize), 1..=100_usize],
        prop_oneof![Just(0_u64), 0..3_000_u64],
        prop_oneof![Just(1_000_u64), 100..3_000_u64],
    );
    let keep = prop_oneof![3 => Just(OutageReadings::All), 1 => Just(OutageReadings::Latest)];
    (lighting, commands, delivery, keep).prop_map(|(lighting, commands, delivery, keep)| {
        let mut settings = settings();
        let (mode, hold, lease, fail_safe, interval, frozen) = lighting;
        settings.lighting.mode = mode;
        settings.lighting.hold = Duration::from_millis(hold);
        settings.lighting.lease = lease;
        settings.lighting.fail_safe = fail_safe;
        settings.lighting.interval = Duration::from_millis(interval);
        settings.lighting.frozen_after = Duration::from_millis(frozen);
        let (qos, confirm, window, replay_rate, batch, jitter, durable) = delivery;
        settings.delivery.qos = qos;
        settings.delivery.confirm = confirm;
        settings.delivery.ack_timeout = ACK_TIMEOUT;
        settings.delivery.window = window;
        settings.delivery.replay_rate = replay_rate;
        settings.delivery.batch = batch;
        settings.delivery.replay_jitter = Duration::from_millis(jitter);
        settings.delivery.durable_within = Duration::from_millis(durable);
        settings.telemetry.keep = keep;
        let (order, gap_wait, accept_retained) = commands;
        settings.commands.order = order;
        settings.commands.gap_wait = Duration::from_millis(gap_wait);
        settings.commands.accept_retained = accept_retained;
        settings
    })
}

fn schedule() -> impl Strategy<Value = Vec<(u64, Happening)>> {
    let pause = prop_oneof![1..50_u64, 1..1_500_u64, 1_000..12_000_u64];
    proptest::collection::vec((pause, happening()), 1..40)
}

/// Plays one schedule; what is sent under a name is sent again under the same.
fn play(settings: &Settings, schedule: &[(u64, Happening)]) -> World {
    let mut world = World::new(settings.clone());
    world.keep_trace = true;
    world.acks = true;
    let mut fresh = 0;
    for (pause, happening) in schedule {
        world.run_for(Duration::from_millis(*pause));
        happen(&mut world, happening, &mut fresh);
    }
    world
}

fn happen(world: &mut World, happening: &Happening, fresh: &mut u64) {
    match happening {
        Happening::Light(light) => world.light = Some(*light),
        Happening::SensorFails => world.light = None,
        Happening::SensorHangs => world.sensor_hangs = true,
        Happening::SensorHeals => {
            world.sensor_hangs = false;
            world.light = world.light.or(Some(400.0));
        }
        Happening::LedFails => world.led_good = false,
        Happening::LedHeals => world.led_good = true,
        Happening::CablePulled => world.pull_cable(),
        Happening::CableBack => world.mend_cable(),
        Happening::Flaps { times, ms } => {
            for _ in 0..*times {
                world.pull_cable();
                world.run_for(Duration::from_millis(*ms));
                world.mend_cable();
                world.run_for(Duration::from_millis(*ms));
            }
        }
        Happening::BrokerMute(mute) => world.broker_mute = *mute,
        Happening::BrokerCloses if world.is_linked() => world.close_by_broker(),
        Happening::BrokerCloses => {}
        Happening::BrokerClosesAfter(ms) => world.closes_after = ms.map(Duration::from_millis),
        Happening::BrokerDenies(sent) => drop(world.denied.insert(*sent)),
        Happening::Latency(ms) => world.latency = Duration::from_millis(*ms),
        Happening::DiskFull => world.disk_good(false),
        Happening::DiskGood => world.disk_good(true),
        Happening::DiskLatency(ms) => world.disk_latency = Duration::from_millis(*ms),
        Happening::DiskDropsOldest(count) => world.disk_drops_oldest(*count),
        Happening::Crash => world.crash(),
        Happening::Stop => world.stop_and_start(),
        Happening::PowerCut { wall_ms } => world.power_cut(*wall_ms),
        Happening::ClockMoved { ms } => world.offset_ms += ms,
        Happening::ClockSynced => {
            world.offset_ms =
                NOON_MS + world.elapsed().as_millis() as i64 - world.now.as_millis() as i64;
            world.synced = true;
        }
        Happening::Server(alive) => world.server = *alive,
        Happening::Acks(acks) => world.acks = *acks,
        Happening::ServerStatus { alive, retained } => {
            let text: &[u8] = if *alive { b"online" } else { b"offline" };
            if world.is_linked() {
                world.input(Input::ServerStatus {
                    payload: text.to_vec(),
                    retained: *retained,
                });
            }
        }
        Happening::Command(sent) => {
            *fresh += 1;
            send(world, sent, *fresh);
        }
    }
}

fn send(world: &mut World, sent: &Sent, fresh: u64) {
    match sent {
        Sent::Fresh { led_on, lease, seq } => {
            let lease = lease.map_or(String::new(), |lease| format!(r#","lease":"{lease}s""#));
            let seq = seq.map_or(String::new(), |seq| format!(r#","seq":{seq}"#));
            world.command(&format!(
                r#"{{"led_on":{led_on},"id":"f{fresh}"{lease}{seq}}}"#
            ));
        }
        Sent::Named { led_on, name } => {
            world.command(&format!(r#"{{"led_on":{led_on},"id":"n{name}"}}"#));
        }
        Sent::Expiring { led_on, in_ms } => {
            let at = nightlight::logic::time::rfc3339(world.clocks().wall_ms + in_ms);
            world.command(&format!(r#"{{"led_on":{led_on},"expires_at":"{at}"}}"#));
        }
        Sent::Retained { led_on } => {
            let payload = format!(r#"{{"led_on":{led_on}}}"#);
            world.command_bytes(payload.into_bytes(), true);
        }
        Sent::Rules {
            mode,
            on_below,
            interval_ms,
            persist,
        } => {
            let mut set = serde_json::json!({"command": "set", "persist": persist});
            if let Some(mode) = mode {
                set["mode"] = (*mode).into();
            }
            if let Some(on_below) = on_below {
                set["on_below"] = (*on_below).into();
                set["off_above"] = (on_below + 50).into();
            }
            if let Some(ms) = interval_ms {
                set["interval"] = format!("{ms}ms").into();
            }
            world.command(&set.to_string());
        }
        Sent::ReadNow => world.command(r#"{"command":"read-now"}"#),
        Sent::Garbage(bytes) => world.command_bytes(bytes.clone(), false),
        Sent::Odd(payload) => world.command(payload),
    }
}

/// Everything works again, and there is time to tell the rest.
fn heal(world: &mut World) {
    world.light = world.light.or(Some(400.0));
    world.sensor_hangs = false;
    world.led_good = true;
    world.broker_mute = false;
    world.closes_after = None;
    world.denied.clear();
    world.latency = Duration::from_millis(5);
    world.disk_good(true);
    world.disk_latency = Duration::from_millis(20);
    world.acks = true;
    world.mend_cable();
    world.seconds(60);
    for _ in 0..60 {
        if world.disk.is_empty() && world.view().backlog == 0 {
            break;
        }
        world.seconds(20);
    }
}

fn check(world: &World, settings: &Settings) -> Result<(), TestCaseError> {
    drained(world)?;
    nothing_is_missing(world)?;
    window_is_kept(world)?;
    lanes_are_kept(world)?;
    history_is_in_order(world)?;
    duplicates_are_explained(world)?;
    times_are_possible(world)?;
    led_is_as_wanted(world)?;
    let changes = led_never_waits(world, settings)?;
    led_changes_are_told(world, &changes)
}

/// One that could not be switched is switched when it can be.
fn led_is_as_wanted(world: &World) -> Result<(), TestCaseError> {
    prop_assert_eq!(world.led_on, world.led_wanted);
    Ok(())
}

fn drained(world: &World) -> Result<(), TestCaseError> {
    prop_assert!(
        world.disk.is_empty(),
        "left on the disk: {:?}",
        world.disk.keys()
    );
    prop_assert_eq!(world.view().backlog, 0);
    Ok(())
}

fn nothing_is_missing(world: &World) -> Result<(), TestCaseError> {
    for ended in &world.ended {
        let missing = world.missing(ended.run, ended.last_seq);
        let owed: Vec<u64> = missing
            .into_iter()
            .filter(|seq| ended.clean || ended.on_disk.contains(seq) || *seq <= ended.durable_to)
            .collect();
        prop_assert!(owed.is_empty(), "{:?} missing of {:?}", owed, ended);
    }
    let missing = world.missing(world.run, world.view().last_seq);
    prop_assert!(missing.is_empty(), "missing of the last run: {:?}", missing);
    Ok(())
}

fn window_is_kept(world: &World) -> Result<(), TestCaseError> {
    let bound = world.settings.delivery.window + MAX_CONTROL_IN_FLIGHT;
    prop_assert!(
        world.window_seen <= bound,
        "{} of {}",
        world.window_seen,
        bound
    );
    Ok(())
}

/// Nothing replayed goes to the live topics, and nothing but readings to the first of them.
fn lanes_are_kept(world: &World) -> Result<(), TestCaseError> {
    for received in &world.received {
        let Value::Object(fields) = &received.value else {
            return Err(TestCaseError::fail("not an object"));
        };
        let replayed = fields.get("replayed") == Some(&Value::Bool(true));
        match received.topic {
            Topic::History => prop_assert!(replayed, "{:?}", received),
            Topic::Telemetry => {
                prop_assert!(!replayed && fields.contains_key("light"), "{:?}", received);
            }
            Topic::Events => prop_assert!(!replayed && fields.contains_key("event")),
            _ => {}
        }
    }
    Ok(())
}

fn keys(world: &World) -> impl Iterator<Item = ((&str, u64), &world::Received)> {
    world.received.iter().filter_map(|received| {
        let run = received.value["run"].as_str()?;
        Some(((run, received.value["seq"].as_u64()?), received))
    })
}

/// Oldest first, where a record is sent for the first time.
fn history_is_in_order(world: &World) -> Result<(), TestCaseError> {
    let mut seen = BTreeSet::new();
    let mut newest: HashMap<&str, u64> = HashMap::new();
    for (topic, run, seq) in &world.offered {
        if seen.insert((run, *seq)) && *topic == Topic::History {
            let newest = newest.entry(run).or_default();
            prop_assert!(*newest < *seq, "{} after {} of {}", seq, newest, run);
            *newest = *seq;
        }
    }
    Ok(())
}

/// A record comes twice only if it was in flight when its session or its life ended, or when the
/// server's ack was late.
fn duplicates_are_explained(world: &World) -> Result<(), TestCaseError> {
    let mut last: BTreeMap<(&str, u64), &world::Received> = BTreeMap::new();
    for (key, received) in keys(world) {
        let Some(before) = last.insert(key, received) else {
            continue;
        };
        let confirmed = world.confirmed.get(&(before.life, before.token));
        let by_server = world.settings.delivery.confirm == Confirm::Server;
        let explained = if before.life != received.life {
            let ended = &world.ended[before.life as usize - 1];
            by_server || confirmed.is_none_or(|at| *at + FORGOTTEN_BY > ended.at)
        } else if before.session != received.session {
            by_server || confirmed.is_none()
        } else {
            by_server && received.at >= before.at + ACK_TIMEOUT
        };
        prop_assert!(explained, "{:?} again as {:?}", before, received);
    }
    Ok(())
}

fn times_are_possible(world: &World) -> Result<(), TestCaseError> {
    for (_, received) in keys(world) {
        for field in ["ts", "began", "ended"] {
            let time = received.value[field].as_str().unwrap_or(BUILT);
            prop_assert!(time >= BUILT && time.len() == BUILT.len(), "{:?}", received);
        }
    }
    Ok(())
}

/// A change of the LED: what it became, who decided, why.
type Told = (bool, &'static str, String);

/// After every input the LED is what the model says, whatever else went on. Gives back the changes of
/// each life.
fn led_never_waits(world: &World, settings: &Settings) -> Result<Vec<Vec<Told>>, TestCaseError> {
    let mut model = Model::new(settings, false, Duration::from_secs(100), Value::Null);
    let mut lives = Vec::new();
    let mut boot_id = None;
    for (place, step) in world.trace.iter().enumerate() {
        let same_boot = boot_id.replace(step.boot_id) == Some(step.boot_id);
        if step.input.is_none() {
            lives.push(std::mem::take(&mut model.changes));
            let left = model.left.take().filter(|_| same_boot);
            let (kept, now) = (model.kept.take(), step.now.boot);
            model = Model::new(settings, step.led_on, now, kept);
            model.go_on(left, step, settings);
        } else {
            model.step(step, settings);
            model.leave(step);
        }
        prop_assert!(
            model.leaves_in_time(step.now.boot),
            "not left to the next run at step {}: {:?} {:?}",
            place,
            step,
            model
        );
        prop_assert_eq!(
            model.led_on,
            step.led_wanted,
            "at step {}: {:?} {:?}\n{:#?}",
            place,
            step,
            model,
            &world.trace[place.saturating_sub(6)..place]
        );
    }
    lives.push(model.changes);
    Ok(lives)
}

/// Each change of the LED is told by one event, in order, with who decided and why. While it cannot be
/// switched, the changes told are those that were made.
fn led_changes_are_told(world: &World, lives: &[Vec<Told>]) -> Result<(), TestCaseError> {
    let mut told: BTreeMap<(&str, u64), &Value> = BTreeMap::new();
    for (key, received) in keys(world) {
        if received.value["event"] == "led" {
            told.insert(key, &received.value);
        }
    }
    let runs = world.ended.iter().map(|ended| (ended.run, ended.clean));
    for ((run, clean), changes) in runs.chain([(world.run, true)]).zip(lives) {
        if !clean || !world.lost(run).is_empty() {
            continue;
        }
        let name = run.to_string();
        let told: Vec<Value> = told
            .iter()
            .filter(|((of, _), event)| *of == name && event["led_ok"].is_null())
            .map(|(_, event)| serde_json::json!([event["led_on"], event["by"], event["why"]]))
            .collect();
        let changes: Vec<Value> = changes
            .iter()
            .map(|(led_on, by, why)| serde_json::json!([led_on, by, why]))
            .collect();
        if !world.led_faults.contains(&run) {
            prop_assert_eq!(told, changes, "LED changes of {}", name);
            continue;
        }
        let told: Vec<bool> = told.iter().map(|event| event[0] == true).collect();
        let made = world.led_changes.iter().filter(|(of, _)| *of == run);
        let made: Vec<bool> = made.map(|(_, led_on)| *led_on).collect();
        prop_assert_eq!(told, made, "LED changes made in {}", name);
    }
    Ok(())
}

/// What a `set` may change: mode, thresholds, interval.
#[derive(Debug, Clone, Copy)]
struct Rules {
    mode: Mode,
    on_below: f64,
    off_above: f64,
    interval: Duration,
}

impl Rules {
    /// With those that `value` has.
    fn with(self, value: &Value) -> Self {
        Self {
            mode: match value["mode"].as_str() {
                Some("auto") => Mode::Auto,
                Some("local") => Mode::Local,
                Some("remote") => Mode::Remote,
                _ => self.mode,
            },
            on_below: value["on_below"].as_f64().unwrap_or(self.on_below),
            off_above: value["off_above"].as_f64().unwrap_or(self.off_above),
            interval: value["interval"]
                .as_str()
                .and_then(|text| text.strip_suffix("ms")?.parse().ok())
                .map_or(self.interval, ms),
        }
    }
}

/// What a restart within the same boot goes on with.
#[derive(Debug, Clone, PartialEq)]
struct Left {
    word: Option<Word>,
    changed_at: Option<Duration>,
    ids: BTreeSet<String>,
    last: Option<i64>,
}

/// The server's word: what, why, its lease, and until when it holds.
#[derive(Debug, Clone, PartialEq)]
struct Word {
    led_on: bool,
    why: String,
    lease: Lease,
    until: Option<Duration>,
}

/// The rules for the LED, told a second time and in another way.
#[derive(Debug)]
struct Model {
    led_on: bool,
    changes: Vec<Told>,
    changed_at: Option<Duration>,
    rules: Rules,
    /// What `set` with `persist` gave, by key: on the disk, and here.
    kept: Value,
    keeps: Value,
    /// Whether that is on its way to the disk, and not before when.
    to_keep: bool,
    keep_at: Duration,
    word: Option<Word>,
    light: Option<f64>,
    moved_at: Duration,
    failures: u32,
    last_good: Duration,
    faulty: bool,
    ids: BTreeSet<String>,
    settling: Option<(Duration, Duration)>,
    /// Commands that wait: the newest while settling, or those behind a hole.
    waiting: Vec<Value>,
    hole_until: Option<Duration>,
    /// The number of the last one obeyed.
    last: Option<i64>,
    stopping: bool,
    /// What the next run gets, when that was written, and how often in all runs.
    left: Option<Left>,
    left_at: Duration,
    handovers: u64,
}

impl Model {
    fn new(settings: &Settings, led_on: bool, now: Duration, kept: Value) -> Self {
        let lighting = &settings.lighting;
        let configured = Rules {
            mode: lighting.mode,
            on_below: lighting.on_below,
            off_above: lighting.off_above,
            interval: lighting.interval,
        };
        let mut model = Self {
            led_on,
            changes: Vec::new(),
            changed_at: None,
            rules: configured.with(&kept),
            keeps: kept.clone(),
            kept,
            to_keep: false,
            keep_at: now,
            word: None,
            light: None,
            moved_at: now,
            failures: 0,
            last_good: now,
            faulty: false,
            ids: BTreeSet::new(),
            settling: None,
            waiting: Vec::new(),
            hole_until: None,
            last: None,
            stopping: false,
            left: None,
            left_at: now,
            handovers: 1,
        };
        model.left = Some(model.leaves());
        model
    }

    /// Begins where the run before stopped. Until the first try to connect fails, a word that holds while
    /// linked goes on holding.
    fn go_on(&mut self, left: Option<Left>, step: &Step, settings: &Settings) {
        let now = step.now.boot;
        if let Some(left) = left {
            self.changed_at = left.changed_at;
            self.ids = left.ids;
            let remote = self.rules.mode == Mode::Remote;
            let holds = |word: &Word| remote || word.until.is_none_or(|until| now < until);
            self.word = left.word.filter(holds);
            // Without its lease the server counts again from anywhere.
            self.last = left.last.filter(|_| self.word.is_some());
        }
        self.decide(now, settings);
        self.left = Some(self.leaves());
        // A run leaves something as soon as it begins; the world sees that with its next step.
        self.handovers = step.handovers + 1;
    }

    /// What is to be left: not the ids of commands that wait, which nobody has obeyed.
    fn leaves(&self) -> Left {
        let waits = |id: &str| self.waiting.iter().any(|waiting| waiting["id"] == id);
        Left {
            word: self.word.clone(),
            changed_at: self.changed_at,
            ids: self.ids.iter().filter(|id| !waits(id)).cloned().collect(),
            last: self.last,
        }
    }

    /// Something was left for the next run in this step.
    fn leave(&mut self, step: &Step) {
        if step.handovers > self.handovers {
            self.handovers = step.handovers;
            self.left = Some(self.leaves());
            self.left_at = step.now.boot;
        }
    }

    /// What changes is left at most 250 ms later, and at a stop at once.
    fn leaves_in_time(&self, now: Duration) -> bool {
        let soon = !self.stopping && now < self.left_at + ms(250);
        soon || self.left.as_ref() == Some(&self.leaves())
    }

    fn step(&mut self, step: &Step, settings: &Settings) {
        let now = step.now.boot;
        if let Some(Input::BacklogOpened(opened)) = &step.input {
            self.ids.extend(opened.command_ids.iter().cloned());
        }
        let Some(input) = step.input.as_ref().filter(|_| !self.stopping) else {
            return;
        };
        self.decide(now, settings);
        match input {
            Input::Read(light) => self.read(*light, now, settings),
            Input::ReadFailed(_) => self.failures += 1,
            Input::LinkUp => {
                self.settling = Some((now + ms(250), now + ms(1_000)));
            }
            Input::LinkDown { .. } => self.link_down(),
            Input::ServerAcked(_) => self.server_alive(now),
            Input::ServerStatus { retained: true, .. } => {}
            Input::ServerStatus { payload, .. } if payload == b"offline" => self.let_go(),
            Input::ServerStatus { .. } => self.server_alive(now),
            Input::CommandReceived {
                payload, retained, ..
            } => {
                self.command(payload, *retained, step, settings);
            }
            Input::ShutdownAsked => self.stopping = true,
            _ => {}
        }
        if step.left_broker {
            self.link_down();
        }
        if (now >= self.keep_at || self.stopping) && std::mem::take(&mut self.to_keep) {
            self.kept = self.keeps.clone();
            self.keep_at = now + Duration::from_secs(5);
        }
        if !self.stopping {
            self.decide(now, settings);
            self.settle(step, settings);
            self.decide(now, settings);
        }
    }

    fn link_down(&mut self) {
        let linked = |word: &Word| word.lease == Lease::WhileLinked;
        if self.word.as_ref().is_some_and(linked) {
            self.let_go();
        }
    }

    fn read(&mut self, light: f64, now: Duration, settings: &Settings) {
        if self.light != Some(light) {
            self.moved_at = now;
        }
        self.light = Some(light);
        self.failures = 0;
        self.last_good = now;
        let frozen_after = settings.lighting.frozen_after;
        self.faulty = frozen_after > Duration::ZERO && now - self.moved_at >= frozen_after;
    }

    fn command(&mut self, payload: &[u8], retained: bool, step: &Step, settings: &Settings) {
        let Ok(value) = serde_json::from_slice::<Value>(payload) else {
            return;
        };
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let odd = value["lease"] == "-1s" || value["id"] == "";
        let refused = retained && !settings.commands.accept_retained;
        let id = text("id");
        if odd || refused || id.as_ref().is_some_and(|id| self.ids.contains(id)) {
            return;
        }
        if expired(&value, step) {
            return;
        }
        let waited = retained || self.settling.is_some();
        if text("expires_at").is_some() && !step.clock_known && waited {
            return;
        }
        let is_command = value["led_on"].is_boolean() && value["command"].is_null();
        if is_command {
            self.ids.extend(id);
            match settings.commands.order {
                Order::Latest => self.latest(value, step, settings),
                Order::Sequence => self.sequence(value, step, settings),
            }
        } else if value["led_on"].is_null() {
            match value["command"].as_str() {
                Some("set") => self.set(&value, step.now.boot),
                Some("read-now" | "reboot") => self.server_alive(step.now.boot),
                _ => {}
            }
        }
    }

    fn set(&mut self, value: &Value, now: Duration) {
        let wishes = ["mode", "on_below", "off_above", "interval"];
        if wishes.iter().all(|wish| value[wish].is_null()) {
            return;
        }
        self.server_alive(now);
        let old = self.rules;
        let new = old.with(value);
        if new.on_below > new.off_above || new.interval < ms(10) {
            return;
        }
        if new.interval != old.interval {
            self.last_good = now;
        }
        self.rules = new;
        if value["persist"] == true {
            for key in wishes.iter().filter(|key| !value[**key].is_null()) {
                self.keeps[*key] = value[*key].clone();
            }
            self.to_keep = true;
        }
    }

    fn latest(&mut self, value: Value, step: &Step, settings: &Settings) {
        let now = step.now.boot;
        let Some((until, by)) = &mut self.settling else {
            return self.obey_unless_late(&value, step, settings);
        };
        if now < *until {
            *until = (now + ms(250)).min(*by);
        }
        match self.waiting.pop() {
            Some(other) if is_before(&value, other["seq"].as_i64()) => self.waiting.push(other),
            _ => self.waiting.push(value),
        }
    }

    fn obey_unless_late(&mut self, value: &Value, step: &Step, settings: &Settings) {
        if !is_before(value, self.last) && !expired(value, step) {
            self.last = value["seq"].as_i64();
            self.obey(value, step.now.boot, settings);
        }
    }

    fn sequence(&mut self, value: Value, step: &Step, settings: &Settings) {
        let now = step.now.boot;
        let Some(seq) = value["seq"].as_i64() else {
            return self.obey(&value, now, settings);
        };
        let next = self.last.map_or(seq, |last| last + 1);
        if seq < next || self.waiting.iter().any(|other| other["seq"] == seq) {
            return;
        }
        self.waiting.push(value);
        self.waiting.sort_by_key(|other| other["seq"].as_i64());
        if seq == next {
            self.obey_run(step, settings);
        }
        if !self.waiting.is_empty() {
            let gap = settings.commands.gap_wait;
            self.hole_until = self.hole_until.or(Some(now + gap));
        }
    }

    fn obey_run(&mut self, step: &Step, settings: &Settings) {
        while let Some(seq) = self.waiting.first().and_then(|first| first["seq"].as_i64()) {
            if self.last.is_some_and(|last| last + 1 != seq) {
                return;
            }
            let value = self.waiting.remove(0);
            self.last = Some(seq);
            if !expired(&value, step) {
                self.obey(&value, step.now.boot, settings);
            }
        }
        self.hole_until = None;
    }

    /// What waited at the broker settles: the newest counts. A hole that stays is passed.
    fn settle(&mut self, step: &Step, settings: &Settings) {
        let now = step.now.boot;
        if self.settling.is_some_and(|(until, _)| now >= until) {
            self.settling = None;
            if settings.commands.order == Order::Latest
                && let Some(value) = self.waiting.pop()
            {
                self.obey_unless_late(&value, step, settings);
            }
        }
        if self.hole_until.is_some_and(|until| now >= until) {
            self.hole_until = None;
            let first = self.waiting.first().and_then(|first| first["seq"].as_i64());
            if self.last.is_some() {
                self.last = first.map(|first| first - 1);
            }
            self.obey_run(step, settings);
            if !self.waiting.is_empty() {
                self.hole_until = Some(now + settings.commands.gap_wait);
            }
        }
    }

    fn obey(&mut self, value: &Value, now: Duration, settings: &Settings) {
        self.server_alive(now);
        if self.rules.mode == Mode::Local {
            return;
        }
        let own = value["lease"]
            .as_str()
            .and_then(|lease| lease.strip_suffix('s')?.parse().ok())
            .map(|seconds| Lease::For(Duration::from_secs(seconds)));
        let lease = own.unwrap_or(settings.lighting.lease);
        self.word = Some(Word {
            led_on: value["led_on"] == true,
            why: match value["id"].as_str() {
                Some(id) => format!("command {id}"),
                None => "command".into(),
            },
            lease,
            until: end(lease, now),
        });
        self.decide(now, settings);
    }

    /// The server's word holds no more, but in mode `remote`, where nobody else decides.
    fn let_go(&mut self) {
        if self.rules.mode == Mode::Remote {
            return;
        }
        if self.word.take().is_some() && self.rules.mode == Mode::Auto {
            self.last = None;
        }
    }

    fn server_alive(&mut self, now: Duration) {
        if let Some(Word { lease, until, .. }) = &mut self.word
            && until.is_none_or(|until| now < until)
        {
            *until = end(*lease, now);
        }
    }

    fn decide(&mut self, now: Duration, settings: &Settings) {
        let until = self.word.as_ref().and_then(|word| word.until);
        if until.is_some_and(|until| now >= until) {
            self.let_go();
        }
        let silent = now >= self.last_good + 3 * self.rules.interval;
        self.faulty |= self.failures >= 3 || silent;
        let Some((led_on, by, why)) = self.wanted(now, settings) else {
            return;
        };
        if led_on != self.led_on {
            self.led_on = led_on;
            self.changed_at = Some(now);
            self.changes.push((led_on, by, why));
        }
    }

    fn wanted(&self, now: Duration, settings: &Settings) -> Option<Told> {
        let Rules {
            mode,
            on_below,
            off_above,
            ..
        } = self.rules;
        if mode != Mode::Local
            && let Some(word) = &self.word
        {
            return Some((word.led_on, "remote", word.why.clone()));
        }
        if mode == Mode::Remote {
            return None;
        }
        if self.faulty {
            let led_on = match settings.lighting.fail_safe {
                FailSafe::On => true,
                FailSafe::Off => false,
                FailSafe::Keep => self.led_on,
            };
            let why = "the sensor is not to be trusted and no command holds";
            return Some((led_on, "fail-safe", why.into()));
        }
        let hold = settings.lighting.hold;
        let light = self.light?;
        if self.changed_at.is_some_and(|at| now < at + hold) {
            return None;
        }
        let shown = words::light_beside(light, &[on_below, off_above]);
        if light < on_below {
            let why = format!("light {shown} is below {on_below}");
            return Some((true, "fallback", why));
        }
        let why = format!("light {shown} is above {off_above}");
        (light > off_above).then_some((false, "fallback", why))
    }
}

fn is_before(value: &Value, other: Option<i64>) -> bool {
    matches!((value["seq"].as_i64(), other), (Some(own), Some(other)) if own < other)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn end(lease: Lease, now: Duration) -> Option<Duration> {
    match lease {
        Lease::For(lease) => Some(now + lease),
        Lease::WhileLinked | Lease::WhilePresent(_) => None,
    }
}

fn expired(value: &Value, step: &Step) -> bool {
    let at = value["expires_at"].as_str();
    at.and_then(|at| at.parse::<jiff::Timestamp>().ok())
        .is_some_and(|at| at.as_millisecond() <= step.now.wall_ms)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(600),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_promise_holds_whatever_happens(settings in rules(), schedule in schedule()) {
        let mut world = play(&settings, &schedule);
        heal(&mut world);
        check(&world, &settings)?;
    }

    #[test]
    fn it_always_stops_in_time(settings in rules(), schedule in schedule()) {
        let mut world = play(&settings, &schedule);
        world.input(Input::ShutdownAsked);
        world.run_for(Duration::from_millis(3_100));
        prop_assert_eq!(world.exit, Some(Exit::Stopped));
    }
}
