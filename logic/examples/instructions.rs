//! Fixed work for counting instructions: the same inputs for the same answers, and nothing else in the process.
//!
//!     cargo run --release -p nightlight-logic --example instructions -- reading 1000
//!
//! `reading`: from the reading to its publication and its PUBACK; `offline`: from the reading to the order that
//! stores it; `replay`, `arrays`: from a page of the store to the last PUBACK, one by one or in arrays of 100;
//! `command`: from the payload to LED and result. `benches/instructions` counts and compares.

use std::collections::VecDeque;
use std::time::Duration;

use nightlight_logic::command::{CommandSettings, Order};
use nightlight_logic::delivery::{Confirm, DeliverySettings};
use nightlight_logic::lighting::{FailSafe, Lease, LightingSettings, Mode};
use nightlight_logic::link::{DeviceInfo, Ending};
use nightlight_logic::telemetry::{Body, OutageReadings, PayloadFormat, Record, TelemetrySettings};
use nightlight_logic::time::{Now, Stamp};
use nightlight_logic::{Controller, Entry, Input, Key, Opened, Output, RunInfo, Settings};
use uuid::Uuid;

const WALL_MS: i64 = 1_795_176_000_000;
const INTERVAL: Duration = Duration::from_secs(5);
const BEFORE: Uuid = Uuid::from_u128(1);
const RUN: Uuid = Uuid::from_u128(2);
const BOOT: Uuid = Uuid::from_u128(3);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [work, count] = &words[..] else {
        eprintln!("usage: instructions reading|offline|replay|arrays|command COUNT");
        std::process::exit(64);
    };
    let count: u64 = count.parse().unwrap_or(0);
    let done = match work.as_str() {
        "reading" => Device::new(1, 0, true).readings(count),
        "offline" => Device::new(1, 0, false).readings(count),
        "replay" => Device::new(1, count, true).replay(),
        "arrays" => Device::new(100, count, true).replay(),
        "command" => Device::new(1, 0, true).commands(count),
        _ => 0,
    };
    println!("{done}");
}

/// The controller with a world that answers at once.
struct Device {
    controller: Controller,
    boot: Duration,
    is_linked: bool,
    inputs: VecDeque<Input>,
    /// Records of an earlier run that the store holds.
    held: u64,
    light: f64,
    published: u64,
    stored: u64,
}

impl Device {
    fn new(batch: usize, held: u64, is_linked: bool) -> Device {
        let run_info = RunInfo {
            run: RUN,
            boot_id: BOOT,
            built_ms: WALL_MS - 86_400_000,
            seed: 1,
            led_on: Some(false),
            version: "fixed".into(),
            handover: None,
        };
        let mut device = Device {
            controller: Controller::new(settings(batch), run_info, now(Duration::ZERO)),
            boot: Duration::ZERO,
            is_linked,
            inputs: VecDeque::new(),
            held,
            light: 0.0,
            published: 0,
            stored: 0,
        };
        device.give(Input::BacklogOpened(Opened {
            run_number: 2,
            previous: (held > 0).then_some((BEFORE, held)),
            records: held,
            ..Opened::default()
        }));
        device
    }

    /// So many readings; how many messages or stored records they made.
    fn readings(mut self, count: u64) -> u64 {
        self.pass(INTERVAL * count as u32);
        self.published + self.stored
    }

    /// Until the store is empty.
    fn replay(mut self) -> u64 {
        self.pass(INTERVAL);
        while self.published < self.held {
            self.pass(INTERVAL);
        }
        self.published
    }

    /// So many commands, each with an id of its own.
    fn commands(mut self, count: u64) -> u64 {
        self.pass(INTERVAL);
        for number in 0..count {
            let led_on = number % 2 == 0;
            self.give(Input::CommandReceived {
                payload: format!("{{\"led_on\":{led_on},\"id\":\"c{number}\"}}").into_bytes(),
                retained: false,
                reply_to: None,
            });
            self.pass(Duration::from_millis(20));
        }
        self.published
    }

    fn pass(&mut self, time: Duration) {
        let end = self.boot + time;
        loop {
            let next = self.controller.next_deadline().max(self.boot);
            if next > end {
                break;
            }
            self.boot = next;
            self.give(Input::DeadlineReached);
        }
        self.boot = end;
    }

    fn give(&mut self, input: Input) {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            self.controller.handle(input, now(self.boot));
            while let Some(output) = self.controller.poll_output() {
                let answer = self.carry_out(output);
                self.inputs.extend(answer);
            }
        }
    }

    fn carry_out(&mut self, output: Output) -> Option<Input> {
        Some(match output {
            Output::ReadSensor => {
                self.light = (self.light + 7.0) % 1_000.0;
                Input::Read(self.light)
            }
            Output::SetLed(led_on) => Input::LedWritten { led_on, was: None },
            Output::Connect if self.is_linked => Input::LinkUp,
            Output::Connect => Input::LinkDown {
                why: "no route to host".into(),
                ending: Ending::Lost,
            },
            Output::Subscribe { token, .. } => Input::Acked(token),
            Output::Publish(message) => {
                let records = message.payload.iter().filter(|byte| **byte == b'{');
                self.published += records.count() as u64;
                Input::Acked(message.token)
            }
            Output::Append { entries, .. } => {
                self.stored += entries.len() as u64;
                Input::Stored {
                    records: self.held + self.stored,
                    lost: Default::default(),
                }
            }
            Output::ReadAfter { after, limit } => {
                let from = after.map_or(1, |key| key.seq + 1);
                let to = self.held.min(from + limit as u64 - 1);
                Input::Fetched {
                    entries: (from..=to).map(entry).collect(),
                    end: to == self.held,
                }
            }
            _ => return None,
        })
    }
}

fn entry(seq: u64) -> (Key, Entry) {
    let record = Record {
        run: BEFORE,
        seq,
        boot_id: BOOT,
        stamp: Stamp {
            boot_ms: seq,
            wall_ms: WALL_MS - 1_000_000 + seq as i64,
            synced: true,
        },
        body: Body::Reading {
            light: (seq % 1_000) as f64,
            led_on: Some(true),
            led_ok: true,
        },
    };
    let key = Key { run_number: 1, seq };
    (key, Entry::Record(record))
}

fn now(boot: Duration) -> Now {
    Now {
        boot,
        wall_ms: WALL_MS + boot.as_millis() as i64,
        synced: true,
    }
}

fn settings(batch: usize) -> Settings {
    Settings {
        lighting: LightingSettings {
            mode: Mode::Auto,
            on_below: 300.0,
            off_above: 350.0,
            hold: Duration::from_secs(1),
            lease: Lease::WhileLinked,
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
            gap_wait: Duration::from_secs(1),
            on: String::new(),
            off: String::new(),
            allow_reboot: false,
            accept_retained: false,
        },
        delivery: DeliverySettings {
            qos: 1,
            confirm: Confirm::Broker,
            ack_timeout: Duration::from_secs(30),
            window: 100,
            replay_rate: 0.0,
            replay_jitter: Duration::ZERO,
            batch,
            durable_within: Duration::from_secs(1),
            require_listener: false,
            stalled_after: Duration::from_secs(30),
            connect_spread: Duration::ZERO,
            format: PayloadFormat::Flat,
        },
        home_assistant: None,
        device: DeviceInfo::default(),
    }
}
