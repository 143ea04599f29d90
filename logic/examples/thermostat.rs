//! Another device with the same logic: a thermometer in place of the light sensor, a heater in place of the
//! LED, and a shell of a hundred lines in place of the daemon.
//!
//! The rule is the same (on below one number, off above another), and so are lease, outages, the backlog, and
//! commands. What a device brings is what this file has: something that measures, something that switches, a
//! broker, a store, and a clock. Here all five are in memory, and an hour takes a millisecond; a real shell
//! does the same with threads and sockets (`src/daemon.rs` of nightlight).
//!
//!     cargo run -p nightlight-logic --example thermostat

use std::collections::BTreeMap;
use std::time::Duration;

use nightlight_logic::command::{CommandSettings, Order};
use nightlight_logic::delivery::{Confirm, DeliverySettings, Topic};
use nightlight_logic::lighting::{FailSafe, Lease, LightingSettings, Mode};
use nightlight_logic::link::{DeviceInfo, Ending};
use nightlight_logic::telemetry::{OutageReadings, TelemetrySettings};
use nightlight_logic::time::Now;
use nightlight_logic::{Controller, Entry, Input, Key, Opened, Output, RunInfo, Settings};
use uuid::Uuid;

const SECOND: Duration = Duration::from_secs(1);
/// The cable is out from the tenth to the fortieth minute of the hour.
const CUT: std::ops::Range<u64> = 600..2400;
const NOON_MS: i64 = 1_795_176_000_000;

fn main() {
    let mut world = World::begin();
    for second in 0..3600 {
        world.pass(second);
    }
    println!(
        "{} records arrived, the highest number is {}; the room has {:.1} degrees",
        world.arrived.len(),
        world.arrived.keys().last().copied().unwrap_or_default(),
        world.celsius
    );
}

/// A room with a heater, and the controller of both.
struct World {
    controller: Controller,
    now: Now,
    celsius: f64,
    heater: bool,
    /// What the disk would hold.
    store: BTreeMap<Key, Entry>,
    /// By their number, the records that the broker got, and how often.
    arrived: BTreeMap<u64, u32>,
}

impl World {
    fn begin() -> Self {
        let now = Now {
            boot: SECOND,
            wall_ms: NOON_MS,
            synced: true,
        };
        let info = RunInfo {
            run: Uuid::from_u128(1),
            boot_id: Uuid::from_u128(2),
            built_ms: NOON_MS,
            seed: 3,
            led_on: Some(false),
            version: "1".into(),
            handover: None,
        };
        let mut world = Self {
            controller: Controller::new(settings(), info, now),
            now,
            celsius: 21.0,
            heater: false,
            store: BTreeMap::new(),
            arrived: BTreeMap::new(),
        };
        world.tell(Input::BacklogOpened(Opened {
            run_number: 1,
            ..Opened::default()
        }));
        world
    }

    /// One second: the room warms up or cools down, the cable is pulled or put back, deadlines come.
    fn pass(&mut self, second: u64) {
        self.now.boot += SECOND;
        self.now.wall_ms += 1000;
        self.celsius += if self.heater { 0.02 } else { -0.01 };
        if second == CUT.start {
            self.tell(Input::LinkDown {
                why: "the cable is out".into(),
                ending: Ending::Refused,
            });
        }
        while self.controller.next_deadline() <= self.now.boot {
            self.tell(Input::DeadlineReached);
        }
    }

    fn tell(&mut self, input: Input) {
        self.controller.handle(input, self.now);
        while let Some(order) = self.controller.poll_output() {
            if let Some(answer) = self.carry_out(order) {
                self.controller.handle(answer, self.now);
            }
        }
    }

    /// What the shell of a real device does on other threads, it answers at once.
    fn carry_out(&mut self, order: Output) -> Option<Input> {
        let is_cut = (CUT.start + 1..CUT.end + 1).contains(&(self.now.boot.as_secs() - 1));
        match order {
            Output::ReadSensor => Some(Input::Read(self.celsius)),
            Output::SetLed(on) => {
                let was = Some(std::mem::replace(&mut self.heater, on));
                Some(Input::LedWritten { led_on: on, was })
            }
            Output::Connect if is_cut => Some(Input::LinkDown {
                why: "nobody answers".into(),
                ending: Ending::Refused,
            }),
            Output::Connect => Some(Input::LinkUp),
            Output::Subscribe { token, .. } => Some(Input::Acked(token)),
            Output::Publish(message) => {
                let is_record = [Topic::Telemetry, Topic::Events, Topic::History];
                if is_record.contains(&message.topic) {
                    let record: serde_json::Value =
                        serde_json::from_slice(&message.payload).unwrap_or_default();
                    if let Some(seq) = record["seq"].as_u64() {
                        *self.arrived.entry(seq).or_default() += 1;
                    }
                }
                Some(Input::Acked(message.token))
            }
            Output::Append { entries, .. } => {
                for entry in entries {
                    let (run_number, seq) = (1, entry.first());
                    self.store.insert(Key { run_number, seq }, entry);
                }
                let records = self.store.len() as u64;
                Some(Input::Stored {
                    records,
                    lost: Default::default(),
                })
            }
            Output::Discard(ranges) => {
                self.store.retain(|key, _| {
                    let is_in = |range: &nightlight_logic::KeyRange| {
                        (range.from..=range.to).contains(&key.seq)
                    };
                    !ranges.iter().any(is_in)
                });
                None
            }
            Output::ReadAfter { after, limit } => {
                let waits = self.store.iter().filter(|(key, _)| Some(**key) > after);
                let entries: Vec<_> = waits
                    .take(limit)
                    .map(|(key, entry)| (*key, entry.clone()))
                    .collect();
                let end = entries.len() < limit;
                Some(Input::Fetched { entries, end })
            }
            Output::Log(_, text) => {
                println!("minute {:2}: {text}", self.now.boot.as_secs() / 60);
                None
            }
            _ => None,
        }
    }
}

fn settings() -> Settings {
    Settings {
        lighting: LightingSettings {
            mode: Mode::Auto,
            on_below: 18.0,
            off_above: 20.0,
            hold: Duration::from_secs(60),
            lease: Lease::For(Duration::from_secs(15)),
            fail_safe: FailSafe::Off,
            interval: Duration::from_secs(10),
            least_interval: SECOND,
            frozen_after: Duration::ZERO,
        },
        telemetry: TelemetrySettings {
            interval: Duration::ZERO,
            deadband: 0.0,
            keep: OutageReadings::All,
        },
        commands: CommandSettings {
            order: Order::Latest,
            gap_wait: SECOND,
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
            replay_rate: 50.0,
            replay_jitter: Duration::ZERO,
            batch: 1,
            durable_within: SECOND,
            require_listener: false,
            format: nightlight_logic::telemetry::PayloadFormat::Flat,
            stalled_after: Duration::from_secs(10),
            connect_spread: Duration::ZERO,
        },
        home_assistant: None,
        device: DeviceInfo {
            device: "room".into(),
            sensor: "thermometer".into(),
            unit: Some("degrees".into()),
            ..DeviceInfo::default()
        },
    }
}

/// Half an hour without a link: the heater follows the rule, and every record arrives.
#[test]
fn the_room_stays_warm_and_the_books_are_complete() {
    let mut world = World::begin();
    for second in 0..3600 {
        world.pass(second);
        assert!((17.5..=21.5).contains(&world.celsius), "{second}");
    }
    let last = world.arrived.len() as u64;
    assert!(last > 350, "{last} records");
    assert!(world.arrived.keys().copied().eq(1..=last));
    assert!(world.store.is_empty());
}
