//! The bytes that leave the Pi, written out. Consumers read exactly this: if one of these tests fails,
//! the change is wrong, not the test.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod world;

use std::time::Duration;

use nightlight::logic::command::Outcome;
use nightlight::logic::delivery::{Message, Topic};
use nightlight::logic::telemetry::{Body, Event, Loss, OutageReport, PayloadFormat, Record};
use nightlight::logic::time::{Clock, ClockState, Now, Stamp};
use nightlight::logic::{Controller, Entry, Input, Key, Opened, Output, RunInfo};
use uuid::Uuid;
use world::{schema, settings};

const RUN: Uuid = Uuid::from_u128(0x0b7e_c0de_0000_4000_8000_0000_0000_0001);
const EARLIER: Uuid = Uuid::from_u128(0x0a11_c0de_0000_4000_8000_0000_0000_0002);
const BOOT: Uuid = Uuid::from_u128(3);
const BUILT_MS: i64 = 1_790_812_800_000;
/// 2026-11-20T17:03:11.250Z
const READ_MS: i64 = 1_795_194_191_250;

fn now(boot_ms: u64, synced: bool) -> Now {
    Now {
        boot: Duration::from_millis(boot_ms),
        wall_ms: READ_MS - 60_000 + boot_ms as i64,
        synced,
    }
}

fn clock() -> Clock {
    Clock::new(BOOT, BUILT_MS, now(0, true))
}

fn record(seq: u64, body: Body) -> Record {
    Record {
        run: RUN,
        seq,
        boot_id: BOOT,
        stamp: Stamp {
            boot_ms: 60_000,
            wall_ms: READ_MS,
            synced: true,
        },
        body,
    }
}

/// The record live and replayed, as text.
fn both(body: Body) -> [String; 2] {
    let record = record(1234, body);
    [record.wire(&clock(), false), record.wire(&clock(), true)]
}

/// `head` is the part of the record's own; the rest is the same for all.
fn assert_wire(body: Body, head: &str) {
    let tail = r#""run":"0b7ec0de-0000-4000-8000-000000000001","seq":1234,"ts":"2026-11-20T17:03:11.250Z","clock":"synced""#;
    let [live, replayed] = both(body);
    assert_eq!(live, format!("{{{head},{tail}}}"));
    assert_eq!(replayed, format!("{{{head},{tail},\"replayed\":true}}"));
}

#[test]
fn thingsboards_form_has_the_time_beside_the_values_and_none_that_nobody_knew() {
    let body = || Body::Reading {
        light: 243.0,
        led_on: Some(true),
        led_ok: true,
    };
    let form = PayloadFormat::ThingsBoard;
    assert_eq!(
        record(1234, body()).published(form, &clock(), true),
        r#"{"ts":1795194191250,"values":{"light":243,"led_on":true,"run":"0b7ec0de-0000-4000-8000-000000000001","seq":1234,"clock":"synced","replayed":true}}"#
    );
    let unset = Clock::new(BOOT, BUILT_MS, now(0, false));
    let mut unknown = record(1234, body());
    unknown.stamp.synced = false;
    let flat = unknown.wire(&unset, false);
    assert!(flat.contains(r#""clock":"unsynced""#), "{flat}");
    assert_eq!(unknown.published(form, &unset, false), flat);
}

#[test]
fn a_reading_in_full() {
    let body = Body::Reading {
        light: 243.0,
        led_on: Some(true),
        led_ok: true,
    };
    let [live, replayed] = both(body);
    assert_eq!(
        live,
        r#"{"light":243,"led_on":true,"run":"0b7ec0de-0000-4000-8000-000000000001","seq":1234,"ts":"2026-11-20T17:03:11.250Z","clock":"synced"}"#
    );
    assert_eq!(
        replayed,
        r#"{"light":243,"led_on":true,"run":"0b7ec0de-0000-4000-8000-000000000001","seq":1234,"ts":"2026-11-20T17:03:11.250Z","clock":"synced","replayed":true}"#
    );
}

#[test]
fn lights_are_numbers_whole_where_they_are_whole() {
    for (light, text) in [
        (0.0, "0"),
        (-0.0, "0"),
        (-3.0, "-3"),
        (243.5, "243.5"),
        (0.1, "0.1"),
        (188_000.0, "188000"),
        (9_007_199_254_740_991.0, "9007199254740991"),
        (1e300, "1e+300"),
    ] {
        let body = Body::Reading {
            light,
            led_on: Some(false),
            led_ok: true,
        };
        assert_wire(body, &format!(r#""light":{text},"led_on":false"#));
    }
}

#[test]
fn started() {
    let started = |previous_run, previous_seq| {
        Body::Event(Event::Started {
            version: "1.2.3".into(),
            previous_run,
            previous_seq,
        })
    };
    assert_wire(
        started(None, None),
        r#""event":"started","version":"1.2.3""#,
    );
    assert_wire(
        started(Some(EARLIER), Some(812)),
        r#""event":"started","version":"1.2.3","previous_run":"0a11c0de-0000-4000-8000-000000000002","previous_seq":812"#,
    );
}

#[test]
fn led() {
    let body = Body::Event(Event::Led {
        led_on: Some(true),
        led_ok: None,
        by: "fallback".into(),
        why: "light 120 is below 300".into(),
    });
    assert_wire(
        body,
        r#""event":"led","led_on":true,"by":"fallback","why":"light 120 is below 300""#,
    );
}

#[test]
fn outage() {
    let body = Body::Event(Event::Outage(Box::new(OutageReport {
        cause: "link".into(),
        began: "2026-11-20T17:00:00.000Z".into(),
        ended: "2026-11-20T17:03:11.250Z".into(),
        seconds: 191.25,
        readings: 38,
        events: 2,
        led_changes: 1,
        lost: Some(0),
        short_sessions: 0,
        why: "connection reset".into(),
    })));
    assert_wire(
        body,
        r#""event":"outage","cause":"link","began":"2026-11-20T17:00:00.000Z","ended":"2026-11-20T17:03:11.250Z","seconds":191.25,"readings":38,"events":2,"led_changes":1,"lost":0,"why":"connection reset""#,
    );
}

#[test]
fn loss() {
    let loss = Loss {
        of_run: EARLIER,
        from_seq: 812,
        to_seq: 1034,
        count: 223,
        reason: "backlog-full".into(),
    };
    assert_eq!(
        loss.wire(),
        r#"{"event":"loss","of_run":"0a11c0de-0000-4000-8000-000000000002","from_seq":812,"to_seq":1034,"count":223,"reason":"backlog-full","replayed":true}"#
    );
}

#[test]
fn command() {
    let command = |id: Option<&str>, result, reason: &str| {
        Body::Event(Event::Command {
            id: id.map(str::to_owned),
            command: "set".into(),
            result,
            reason: reason.into(),
        })
    };
    assert_wire(
        command(None, Outcome::Applied, ""),
        r#""event":"command","command":"set","result":"applied""#,
    );
    assert_wire(
        command(Some("a \"1\""), Outcome::Rejected, "not allowed"),
        r#""event":"command","id":"a \"1\"","command":"set","result":"rejected","reason":"not allowed""#,
    );
    for (result, text) in [
        (Outcome::Duplicate, "duplicate"),
        (Outcome::Expired, "expired"),
        (Outcome::Superseded, "superseded"),
    ] {
        assert_wire(
            command(None, result, ""),
            &format!(r#""event":"command","command":"set","result":"{text}""#),
        );
    }
}

#[test]
fn sensor_and_clock() {
    let body = Body::Event(Event::Sensor {
        ok: false,
        why: "no answer".into(),
    });
    assert_wire(body, r#""event":"sensor","ok":false,"why":"no answer""#);
    for (state, text) in [
        (ClockState::Synced, "synced"),
        (ClockState::Corrected, "corrected"),
        (ClockState::Unsynced, "unsynced"),
    ] {
        let body = Body::Event(Event::Clock {
            moved_s: -3600.5,
            state,
        });
        assert_wire(
            body,
            &format!(r#""event":"clock","moved_s":-3600.5,"state":"{text}""#),
        );
    }
}

#[test]
fn times_of_each_worth() {
    let mut record = record(
        7,
        Body::Reading {
            light: 1.0,
            led_on: Some(false),
            led_ok: true,
        },
    );
    record.stamp.synced = false;
    record.stamp.wall_ms = 1_000;
    let set = clock();
    assert_eq!(
        record.wire(&set, true),
        r#"{"light":1,"led_on":false,"run":"0b7ec0de-0000-4000-8000-000000000001","seq":7,"ts":"2026-11-20T17:03:11.250Z","clock":"corrected","replayed":true}"#
    );
    let unset = Clock::new(BOOT, BUILT_MS, now(0, false));
    assert_eq!(
        record.wire(&unset, true),
        r#"{"light":1,"led_on":false,"run":"0b7ec0de-0000-4000-8000-000000000001","seq":7,"ts":"2026-10-01T00:00:00.000Z","clock":"unsynced","replayed":true}"#
    );
}

/// A controller with a session and a backlog, and what it publishes.
struct Pi {
    controller: Controller,
    boot_ms: u64,
    published: Vec<Message>,
    led: Option<bool>,
    fetched: Option<Vec<(Key, Entry)>>,
}

impl Pi {
    fn start(batch: usize, stored: Vec<(Key, Entry)>) -> Self {
        let mut settings = settings();
        settings.delivery.batch = batch;
        settings.delivery.replay_jitter = Duration::ZERO;
        let run_info = RunInfo {
            run: RUN,
            boot_id: BOOT,
            built_ms: BUILT_MS,
            seed: 1,
            led_on: Some(false),
            version: "1.2.3".into(),
            handover: None,
        };
        let records = stored.len() as u64;
        let mut pi = Self {
            controller: Controller::new(settings, run_info, now(60_000, true)),
            boot_ms: 60_000,
            published: Vec::new(),
            led: Some(false),
            fetched: Some(stored),
        };
        pi.input(Input::BacklogOpened(Opened {
            run_number: 2,
            previous: Some((EARLIER, 812)),
            records,
            oldest_ms: None,
            clocks: Vec::new(),
            command_ids: Vec::new(),
        }));
        pi.input(Input::LinkUp);
        pi
    }

    fn input(&mut self, input: Input) {
        self.controller.handle(input, now(self.boot_ms, true));
        while let Some(output) = self.controller.poll_output() {
            match output {
                Output::Publish(message) => self.published.push(message),
                Output::SetLed(led_on) => {
                    let was = self.led.replace(led_on);
                    let input = Input::LedWritten { led_on, was };
                    self.controller.handle(input, now(self.boot_ms, true));
                }
                Output::ReadAfter { .. } => {
                    let entries = self.fetched.take().unwrap_or_default();
                    let input = Input::Fetched { entries, end: true };
                    self.controller.handle(input, now(self.boot_ms, true));
                }
                _ => {}
            }
        }
    }

    fn command(&mut self, payload: &str) {
        self.input(Input::CommandReceived {
            payload: payload.into(),
            retained: false,
            reply_to: None,
        });
    }

    /// What was published on a topic since the last time: retain, QoS and payload.
    fn on(&mut self, topic: Topic) -> Vec<(bool, u8, String)> {
        self.published
            .extract_if(.., |message| message.topic == topic)
            .map(|message| {
                let text = String::from_utf8(message.payload).expect("text");
                (message.retain, message.qos, text)
            })
            .collect()
    }

    fn texts(&mut self, topic: Topic) -> Vec<String> {
        self.on(topic)
            .into_iter()
            .map(|(_, _, text)| text)
            .collect()
    }
}

#[test]
fn status_and_state() {
    let mut pi = Pi::start(1, Vec::new());
    assert_eq!(pi.on(Topic::Status), [(true, 1, "online".to_owned())]);
    assert_eq!(
        pi.on(Topic::State).pop(),
        Some((
            true,
            1,
            r#"{"led_on":false,"led_ok":true,"by":"start","why":"no reading yet","light":null,"sensor_ok":true,"mode":"auto","on_below":300,"off_above":350,"interval_s":1,"backlog":1,"store_ok":true,"heard":null,"clock":"synced","version":"1.2.3","backlog_oldest_age_s":0.0,"lost":0,"last_outage":null,"written_today_bytes":null}"#.to_owned()
        ))
    );
    pi.input(Input::Read(243.0));
    assert_eq!(
        pi.texts(Topic::State).pop().as_deref(),
        Some(
            r#"{"led_on":true,"led_ok":true,"by":"fallback","why":"light 243 is below 300","light":243,"sensor_ok":true,"mode":"auto","on_below":300,"off_above":350,"interval_s":1,"backlog":1,"store_ok":true,"heard":null,"clock":"synced","version":"1.2.3","backlog_oldest_age_s":0.0,"lost":0,"last_outage":null,"written_today_bytes":null}"#
        )
    );
    pi.input(Input::ShutdownAsked);
    assert_eq!(pi.on(Topic::Status), [(true, 1, "offline".to_owned())]);
}

#[test]
fn results() {
    let mut pi = Pi::start(1, Vec::new());
    pi.boot_ms += 1_000;
    pi.input(Input::DeadlineReached);
    pi.command(r#"{"led_on":true,"id":"a"}"#);
    pi.command(r#"{"led_on":true,"id":"a"}"#);
    pi.command(r#"{"led_on":false}"#);
    pi.command(r#"{"led_on":1,"id":"b"}"#);
    pi.command(r#"{"led_on":true,"id":"c","expires_at":"2026-11-20T17:00:00Z"}"#);
    pi.command(r#"{"command":"read-now","id":"d"}"#);
    pi.input(Input::Read(243.5));
    assert_eq!(
        pi.texts(Topic::Results),
        [
            r#"{"id":"a","result":"applied","led_on":true}"#,
            r#"{"id":"a","result":"duplicate","reason":"a command with this id has been seen","led_on":true}"#,
            r#"{"result":"applied","led_on":false}"#,
            r#"{"id":"b","result":"rejected","reason":"led_on is neither true nor false","led_on":false}"#,
            r#"{"id":"c","result":"expired","reason":"it was good until 2026-11-20T17:00:00.000Z, and it is 2026-11-20T17:03:12.250Z","led_on":false}"#,
            r#"{"id":"d","result":"applied","led_on":false,"light":243.5}"#,
        ]
    );
}

#[test]
fn a_batch_is_an_array_and_one_record_is_an_object() {
    let stored = |count: u64| {
        let reading = |seq| {
            let mut record = record(
                seq,
                Body::Reading {
                    light: 9.0,
                    led_on: Some(false),
                    led_ok: true,
                },
            );
            record.run = EARLIER;
            (Key { run_number: 1, seq }, Entry::Record(record))
        };
        (1..=count).map(reading).collect()
    };
    let object = |seq| {
        format!(
            r#"{{"light":9,"led_on":false,"run":"0a11c0de-0000-4000-8000-000000000002","seq":{seq},"ts":"2026-11-20T17:03:11.250Z","clock":"synced","replayed":true}}"#
        )
    };
    let mut pi = Pi::start(2, stored(3));
    pi.boot_ms += 100;
    pi.input(Input::DeadlineReached);
    let mut arrays = pi.on(Topic::History);
    let started = arrays.pop().map(|(.., text)| text);
    assert!(started.is_some_and(|text| text.starts_with(r#"{"event":"started","#)));
    let pair = format!("[{},{}]", object(1), object(2));
    assert_eq!(arrays, [(false, 1, pair), (false, 1, object(3))]);
}

#[test]
fn the_descriptions_of_messages_can_be_broken_and_fit_the_examples() {
    let reading = r#"{"light":1,"led_on":false,"run":"0b7ec0de-0000-4000-8000-000000000001","seq":7,"ts":"2026-11-20T17:03:11.250Z","clock":"synced"}"#;
    let loss = r#"{"event":"loss","of_run":"0b7ec0de-0000-4000-8000-000000000001","from_seq":3,"to_seq":4,"count":2,"reason":"backlog-full","replayed":true}"#;
    let faults = |name, text: &str| {
        schema::faults(schema::of(name), &serde_json::from_str(text).expect("JSON"))
    };
    for (name, good, broken) in [
        (
            "reading.json",
            reading,
            vec![
                ("\"seq\":7", "\"seq\":0"),
                ("synced", "right"),
                ("\"light\":1", "\"lux\":1"),
            ],
        ),
        (
            "history.json",
            loss,
            vec![
                ("loss", "gain"),
                ("\"count\":2,", ""),
                ("backlog-full", "lazy"),
            ],
        ),
        (
            "acks.json",
            r#"{"run":"0b7ec0de-0000-4000-8000-000000000001","acked":[[1,40],[43,43]]}"#,
            vec![
                ("[43,43]", "[43]"),
                ("[1,40]", "[0,40]"),
                ("acked", "taken"),
            ],
        ),
        (
            "command.json",
            r#"{"led_on":true,"id":"evening-17","issued_at":"2026-11-20T17:03:12Z","expires_at":"2026-11-20T17:04:12Z","lease":"5m"}"#,
            vec![("true", "1"), ("led_on", "led"), ("evening-17", "")],
        ),
        (
            "command.json",
            r#"{"state":"ON"}"#,
            vec![("ON", "on"), ("state", "led")],
        ),
        (
            "command.json",
            r#"{"command":"set","on_below":250,"off_above":300,"mode":"auto","interval":"5s","persist":true}"#,
            vec![
                ("\"set\"", "\"dance\""),
                ("250", "\"250\""),
                ("auto", "both"),
            ],
        ),
    ] {
        assert_eq!(faults(name, good), Vec::<String>::new(), "{name}");
        for (was, is) in broken {
            assert!(good.contains(was), "{was}");
            let text = good.replacen(was, is, 1);
            assert!(!faults(name, &text).is_empty(), "{name}: {text}");
        }
    }
    let several = format!("[{reading},{loss}]");
    assert_eq!(faults("history.json", &several), Vec::<String>::new());
    assert!(!faults("history.json", "[]").is_empty());
}
