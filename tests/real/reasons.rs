//! The real program with brokers of MQTT 5 that give reasons and have limits: scripted ones, and mosquitto with an
//! access list and limits of its own.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::filled;
use crate::stage::fake::{
    Act, FakeBroker, Packet, Publish, answer, answer5, connack, connack5, puback5, suback5,
};
use crate::stage::{Agent, Broker, Listener, eventually, within};

/// A minute that only a failure needs.
const LONG: Duration = Duration::from_secs(90);

fn is_on(packet: &Packet, ending: &str) -> Option<u16> {
    match packet {
        Packet::Publish(Publish { topic, pkid, .. }) if topic.ends_with(ending) => Some(*pkid),
        _ => None,
    }
}

fn in_time(what: &str, agent: &Agent, is_so: impl Fn() -> bool) {
    assert!(within(LONG, is_so), "never: {what}\n{}", agent.log());
}

fn status(agent: &Agent, key: &str) -> Value {
    agent
        .status()
        .map_or(Value::Null, |status| status[key].clone())
}

/// Readings that were confirmed, by their number.
fn confirmed(broker: &FakeBroker) -> BTreeSet<u64> {
    let records = broker.records();
    records
        .iter()
        .filter_map(|record| record["seq"].as_u64())
        .collect()
}

fn nothing_is_missing(broker: &FakeBroker) -> bool {
    let confirmed = confirmed(broker);
    let last = confirmed.last().copied().unwrap_or(0);
    last > 3 && (1..=last).all(|seq| confirmed.contains(&seq))
}

#[test]
fn nobody_listens_is_told_once_and_that_it_is_over() {
    let code = Arc::new(AtomicUsize::new(0x10));
    let current = Arc::clone(&code);
    let broker = FakeBroker::start(move |_, packet| match packet {
        Packet::Publish(publish) if publish.qos == 1 => {
            vec![puback5(publish.pkid, current.load(Ordering::Relaxed) as u8)]
        }
        _ => answer5(packet, &[]),
    });
    let mut agent = Agent::start("pi-unheard", broker.port, "");
    let state = || {
        broker
            .on("/state")
            .last()
            .map(|state| state["heard"].clone())
    };
    in_time("state says so", &agent, || state() == Some(false.into()));
    in_time("status says so", &agent, || {
        status(&agent, "heard") == false
    });
    assert_eq!(
        status(&agent, "backlog"),
        0,
        "what was taken counts as confirmed"
    );
    code.store(0, Ordering::Relaxed);
    in_time("it is over", &agent, || state() == Some(true.into()));
    let told = |heard: bool| {
        let events = broker.on("/events");
        let is_it = |event: &&Value| event["event"] == "heard" && event["heard"] == heard;
        events.iter().filter(is_it).count()
    };
    in_time("an event says so", &agent, || told(true) == 1);
    assert_eq!(told(false), 1);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn with_require_listener_nothing_is_forgotten_that_nobody_heard() {
    let code = Arc::new(AtomicUsize::new(0x10));
    let current = Arc::clone(&code);
    let broker = FakeBroker::start(move |_, packet| match packet {
        Packet::Publish(publish) if publish.qos == 1 => {
            vec![puback5(publish.pkid, current.load(Ordering::Relaxed) as u8)]
        }
        _ => answer5(packet, &[]),
    });
    let more = "[delivery]\nrequire_listener = true\n";
    let mut agent = Agent::start("pi-require", broker.port, more);
    in_time("it is kept", &agent, || {
        status(&agent, "backlog").as_u64() > Some(5)
    });
    code.store(0, Ordering::Relaxed);
    let heard_from = broker.came().len();
    in_time("it is sent again", &agent, || {
        status(&agent, "backlog") == 0
    });
    let again: BTreeSet<u64> = broker.came()[heard_from..]
        .iter()
        .filter_map(|came| serde_json::from_slice::<Value>(&came.publish.payload).ok())
        .filter_map(|record| record["seq"].as_u64())
        .collect();
    assert!((1..=5).all(|seq| again.contains(&seq)), "{again:?}");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn each_refusal_is_what_it_is_and_holds_up_no_other_topic() {
    let table: [(u8, &str); 6] = [
        (0x87, "not authorised"),
        (0x90, "topic name"),
        (0x97, "quota"),
        (0x83, "reasons of its own"),
        (0x80, "does not say why"),
        (0x99, ""),
    ];
    let running = table.map(|(code, says)| {
        thread::spawn(move || {
            let broker = FakeBroker::start(move |_, packet| match is_on(packet, "/telemetry") {
                Some(pkid) => vec![puback5(pkid, code)],
                None => answer5(packet, &[]),
            });
            let mut agent = Agent::start(&format!("pi-refuse-{code:x}"), broker.port, "");
            if !says.is_empty() {
                in_time("status names it", &agent, || {
                    let why = status(&agent, "link_why").to_string();
                    why.contains(says) && why.contains("/telemetry")
                });
                in_time("the log names it", &agent, || agent.log().contains(says));
                in_time("the rest goes on", &agent, || nothing_is_missing(&broker));
            }
            in_time("it is counted", &agent, || {
                agent.status().is_some_and(|status| {
                    let refused = status["refused"].as_object();
                    refused.is_some_and(|refused| !refused.is_empty())
                })
            });
            assert_eq!(broker.connections().len(), 1, "{}", agent.log());
            assert_eq!(agent.stop().code(), Some(0));
        })
    });
    for story in running {
        story.join().expect("as it should be");
    }
}

#[test]
fn a_payload_that_is_not_taken_is_a_dead_letter_at_once() {
    let broker = FakeBroker::start(|_, packet| match packet {
        Packet::Publish(publish)
            if String::from_utf8_lossy(&publish.payload).contains("\"seq\":7,") =>
        {
            vec![puback5(publish.pkid, 0x99)]
        }
        _ => answer5(packet, &[]),
    });
    let mut agent = Agent::start("pi-payload", broker.port, "");
    in_time("it is told as lost", &agent, || {
        let records = broker.records();
        records.iter().any(|record| {
            record["event"] == "loss" && record["reason"] == "refused" && record["from_seq"] == 7
        })
    });
    let letters = || fs::read_to_string(agent.path("backlog/dead-letter.jsonl"));
    in_time("it is kept", &agent, || {
        letters().is_ok_and(|kept| kept.ends_with('\n'))
    });
    let kept = letters().expect("kept");
    assert_eq!(kept.lines().count(), 1, "{kept}");
    assert!(kept.contains("\"seq\":7,"));
    assert_eq!(broker.connections().len(), 1, "{}", agent.log());
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn the_limits_of_a_broker_are_kept() {
    // Receive maximum 2, packets of 400 bytes, QoS 1, no retained messages, keep alive 2 s.
    let properties = [0x21, 0, 2, 0x27, 0, 0, 1, 144, 0x24, 1, 0x25, 0, 0x13, 0, 2];
    let in_flight = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let pings = Arc::new(AtomicUsize::new(0));
    let (now, peak, pinged) = (
        Arc::clone(&in_flight),
        Arc::clone(&most),
        Arc::clone(&pings),
    );
    let waiting = std::sync::Mutex::new(Vec::new());
    let broker = FakeBroker::start(move |_, packet| match packet {
        // Answered by twos, so that as many wait as may.
        Packet::Publish(publish) if publish.qos > 0 => {
            let count = now.fetch_add(1, Ordering::Relaxed) + 1;
            peak.fetch_max(count, Ordering::Relaxed);
            let mut waiting = waiting.lock().expect("sound");
            waiting.push(publish.pkid);
            let size = publish.topic.len() + publish.payload.len();
            assert!(
                size < 400 && !publish.retain && publish.qos == 1,
                "{publish:?}"
            );
            if waiting.len() < 2 && publish.topic.ends_with("/history") {
                return vec![];
            }
            now.store(0, Ordering::Relaxed);
            waiting.drain(..).map(|pkid| puback5(pkid, 0)).collect()
        }
        Packet::PingReq => {
            pinged.fetch_add(1, Ordering::Relaxed);
            answer(packet)
        }
        _ => answer5(packet, &properties),
    });
    let more = "[delivery]\nqos = 2\nbatch = 100\nreplay_jitter = \"0s\"\n";
    let mut agent = Agent::start("pi-limits", broker.port, more);
    in_time("it is pinged as it wants", &agent, || {
        pings.load(Ordering::Relaxed) >= 2
    });
    in_time("status shows them", &agent, || {
        let mqtt = status(&agent, "mqtt");
        mqtt["version"] == "5" && mqtt["receive_max"] == 2 && mqtt["max_packet"] == 400
    });
    assert!(most.load(Ordering::Relaxed) <= 2);
    assert_eq!(broker.connections().len(), 1, "{}", agent.log());
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_broker_that_takes_less_than_it_says_gets_less_and_nothing_is_lost() {
    const LAST: u64 = 2_000;
    type Breaks = fn(&Publish, usize) -> bool;
    let table: [(u8, &str, Breaks); 2] = [
        (0x93, "fewer publications at a time", |_, nth| nth > 4),
        (0x95, "smaller packets", |publish, _| {
            publish.payload.len() > 2_000
        }),
    ];
    let running = table.map(|(code, says, breaks)| {
        thread::spawn(move || {
            let history = std::sync::Mutex::new((0, 0));
            let broker = FakeBroker::start(move |connection, packet| match packet {
                Packet::Publish(publish) if publish.topic.ends_with("/history") => {
                    let mut history = history.lock().expect("sound");
                    history.0 = if history.1 == connection {
                        history.0 + 1
                    } else {
                        1
                    };
                    history.1 = connection;
                    // The answers to the first ones are on their way when it breaks off; twice is enough for the number.
                    let is_over = breaks(publish, history.0) && (code == 0x95 || connection < 2);
                    match is_over {
                        true => vec![Act::Send(vec![0xe0, 1, code]), Act::Close],
                        false if code == 0x93 && connection < 2 => vec![],
                        false => answer5(packet, &[]),
                    }
                }
                _ => answer5(packet, &[]),
            });
            let id = format!("pi-less-{code:x}");
            let more = "[delivery]\nbatch = 100\nreplay_rate = 0\nreplay_jitter = \"0s\"\n";
            let mut agent = Agent::prepare(&id, broker.port, more);
            let run = Uuid::new_v4();
            filled::fill(&agent.path("backlog"), run, LAST);
            agent.run();
            let run = run.to_string();
            in_time("all arrives", &agent, || {
                let records = broker.records();
                let of_run = records
                    .iter()
                    .filter(|record| record["run"] == run.as_str());
                let numbers: BTreeSet<u64> =
                    of_run.filter_map(|record| record["seq"].as_u64()).collect();
                numbers.len() as u64 == LAST
            });
            let log = agent.log();
            assert!(log.contains(says), "{log}");
            assert!(!log.contains("access list"), "no topic is blamed: {log}");
            assert!(!agent.path("backlog/dead-letter.jsonl").exists());
            assert!(broker.connections().len() < 10, "{log}");
            assert_eq!(agent.stop().code(), Some(0));
        })
    });
    for story in running {
        story.join().expect("as it should be");
    }
}

#[test]
fn a_broker_whose_packets_are_too_small_for_any_record_gets_none_and_loses_none() {
    // Packets of 30 bytes, keep alive 1 s, receive maximum 1.
    let properties = [0x27, 0, 0, 0, 30, 0x13, 0, 1, 0x21, 0, 1];
    let largest = Arc::new(AtomicUsize::new(0));
    let most = Arc::clone(&largest);
    let broker = FakeBroker::start(move |_, packet| {
        if let Packet::Publish(publish) = packet {
            most.fetch_max(
                publish.topic.len() + publish.payload.len(),
                Ordering::Relaxed,
            );
        }
        answer5(packet, &properties)
    });
    let mut agent = Agent::start("pi-30", broker.port, "");
    in_time("status names it", &agent, || {
        let why = status(&agent, "link_why").to_string();
        why.contains("larger than it takes") && status(&agent, "backlog").as_u64() > Some(20)
    });
    agent.set_light("100");
    in_time("the LED follows the light", &agent, || agent.led_on());
    assert!(largest.load(Ordering::Relaxed) < 30);
    assert!(!agent.path("backlog/dead-letter.jsonl").exists());
    assert_eq!(broker.connections().len(), 1, "{}", agent.log());
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_broker_without_quality_of_service_confirms_nothing_and_it_says_so() {
    let broker = FakeBroker::start(|_, packet| answer5(packet, &[0x24, 0]));
    let mut agent = Agent::start("pi-qos0", broker.port, "");
    in_time("readings come", &agent, || {
        broker.on("/telemetry").len() > 5
    });
    assert!(broker.came().iter().all(|came| came.publish.qos == 0));
    in_time("all stays", &agent, || {
        status(&agent, "backlog").as_u64() > Some(5)
    });
    assert!(agent.log().contains("confirms nothing"), "{}", agent.log());
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_broker_of_3_1_1_is_spoken_to_in_3_1_1_from_then_on() {
    // Some say so, some hang up, some answer in their own words.
    for (name, refusal) in [
        ("says", vec![connack(1), Act::Close]),
        ("says-5", vec![connack5(false, 0x84, &[]), Act::Close]),
        ("closes", vec![Act::Close]),
    ] {
        let refusals = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&refusals);
        let broker = FakeBroker::start(move |connection, packet| match packet {
            Packet::Connect { level: 5, .. } => {
                counted.fetch_add(1, Ordering::Relaxed);
                refusal.clone()
            }
            // The second session ends soon, so that there is a third.
            Packet::Publish(_) if connection == 1 => vec![Act::Close],
            _ => answer(packet),
        });
        let mut agent = Agent::start(&format!("pi-old-{name}"), broker.port, "");
        in_time("all arrives", &agent, || nothing_is_missing(&broker));
        assert_eq!(refusals.load(Ordering::Relaxed), 1, "{name}: asked once");
        assert_eq!(status(&agent, "mqtt")["version"], "3.1.1");
        assert_eq!(status(&agent, "heard"), Value::Null);
        assert_eq!(agent.stop().code(), Some(0));
    }
}

#[test]
fn a_broker_that_says_why_it_hangs_up_is_quoted() {
    let broker = FakeBroker::start(|connection, packet| match packet {
        Packet::Publish(_) if connection == 0 => {
            vec![Act::Send(vec![0xe0, 1, 0x8e]), Act::Close]
        }
        _ => answer5(packet, &[]),
    });
    let mut agent = Agent::start("pi-taken", broker.port, "");
    in_time("the log says so", &agent, || {
        agent
            .log()
            .contains("another client has connected with our client id")
    });
    in_time("all arrives", &agent, || nothing_is_missing(&broker));
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_refused_subscription_is_named_with_its_reason() {
    let broker = FakeBroker::start(|_, packet| match packet {
        Packet::Subscribe { first, pkid, .. } if first.ends_with("/commands") => {
            vec![suback5(*pkid, &[0x87])]
        }
        _ => answer5(packet, &[]),
    });
    let mut agent = Agent::start("pi-nosub", broker.port, "");
    in_time("status names it", &agent, || {
        let why = status(&agent, "link_why").to_string();
        why.contains("pi-nosub/commands") && why.contains("not authorised")
    });
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn at_qos_2_commands_of_an_outage_arrive_and_nothing_is_lost_in_silence() {
    for version in ["5", "3.1.1"] {
        let mut broker = Broker::start();
        let name = format!("pi-kept-{}", version.replace('.', ""));
        let listener = Listener::start(&name, broker.port);
        eventually("the listener listens", || listener.listens());
        let more = format!(
            "[broker]\nurl = \"mqtt://127.0.0.1:{}\"\nversion = \"{version}\"\n\
             [delivery]\nqos = 2\nreplay_jitter = \"0s\"\n[control]\nlease = \"60s\"\n",
            broker.port
        );
        let mut agent = Agent::start(&name, broker.port, &more);
        eventually("readings come", || !listener.on("telemetry").is_empty());
        agent.kill();
        listener.publish("commands", r#"{"led_on": true, "id": "waited"}"#);
        agent.run();
        eventually("the command of the outage is answered", || {
            let results = listener.on("commands/result");
            results.iter().any(|result| result["id"] == "waited")
        });
        broker.stop();
        broker.restart();
        eventually("all arrives", || {
            let account = listener.account();
            let run = status(&agent, "run");
            let run = run.as_str().unwrap_or_default().to_owned();
            account.contains_key(&run) && status(&agent, "backlog") == 0
        });
        let run = status(&agent, "run")
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert_eq!(agent.stop().code(), Some(0));
        eventually("none is missing", || listener.missing(&run).is_empty());
    }
}

#[test]
fn a_real_broker_says_that_nobody_listens_and_a_listener_ends_it() {
    let broker = Broker::start();
    let mut agent = Agent::start("pi-alone", broker.port, "");
    in_time("status says so", &agent, || {
        status(&agent, "heard") == false && status(&agent, "backlog") == 0
    });
    let listener = Listener::start("pi-alone", broker.port);
    eventually("the listener listens", || listener.listens());
    in_time("it is over", &agent, || status(&agent, "heard") == true);
    assert_eq!(status(&agent, "mqtt")["version"], "5");
    eventually("an event says since when", || {
        let events = listener.on("events");
        let is_it = |event: &Value| event["event"] == "heard" && event["since"].is_string();
        events
            .iter()
            .any(|event| is_it(event) && event["heard"] == true)
    });
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn with_mosquitto_a_denied_topic_is_named_and_its_limits_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("acl");
    let list: String = [
        "telemetry/history",
        "events",
        "commands/result",
        "state",
        "status",
    ]
    .map(|name| format!("topic readwrite pi-acl/{name}\n"))
    .concat();
    fs::write(
        &file,
        list + "topic read pi-acl/commands\ntopic read pi-acl/acks\n",
    )
    .expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("changed");
    let broker = Broker::start_with(&format!(
        "allow_anonymous true\nacl_file {}\nmax_packet_size 1000\nmax_keepalive 10\n",
        file.display()
    ));
    let listener = Listener::start("pi-acl", broker.port);
    eventually("the listener listens", || listener.listens());
    let more = format!(
        "[broker]\nurl = \"mqtt://127.0.0.1:{}\"\nkeep_alive = \"60s\"\n\
         [delivery]\nbatch = 100\nreplay_jitter = \"0s\"\n",
        broker.port
    );
    let mut agent = Agent::start("pi-acl", broker.port, &more);
    in_time("status names it", &agent, || {
        let why = status(&agent, "link_why").to_string();
        why.contains("pi-acl/telemetry ") && why.contains("not authorised")
    });
    in_time("readings come as history", &agent, || {
        listener.on("telemetry/history").len() > 20
    });
    // It ends the session now and then, after a denial.
    in_time("status shows its limits", &agent, || {
        let mqtt = status(&agent, "mqtt");
        mqtt["version"] == "5" && mqtt["keep_alive_s"] == 10 && mqtt["max_packet"] == 1000
    });
    assert_eq!(agent.stop().code(), Some(0));
}

/// A command of MQTT 5 at QoS 0, with a response topic and correlation data.
fn asking(topic: &str, payload: &str, response: &str, correlation: &[u8]) -> Act {
    let text = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let properties = [
        &[8][..],
        &text(response.as_bytes()),
        &[9],
        &text(correlation),
    ]
    .concat();
    let of = [properties.len() as u8];
    let body = [
        &text(topic.as_bytes()),
        &of[..],
        &properties,
        payload.as_bytes(),
    ]
    .concat();
    assert!(body.len() < 128, "one byte of length");
    Act::Send([&[0x30, body.len() as u8][..], &body].concat())
}

#[test]
fn a_command_is_answered_where_its_sender_asks_for_it_and_nowhere_else() {
    let broker = FakeBroker::start(|_, packet| {
        let mut acts = answer5(packet, &[]);
        if matches!(packet, Packet::Subscribe { first, .. } if first == "pi-asked/commands") {
            for (id, response) in [
                ("a", "pi-asked/answers/7"),
                ("b", "pi-other/answers"),
                ("c", "pi-asked/+"),
                ("d", "pi-asked/state"),
            ] {
                let payload = format!("{{\"command\":\"read-now\",\"id\":\"{id}\"}}");
                acts.push(asking("pi-asked/commands", &payload, response, b"77"));
            }
            acts.push(asking(
                "pi-asked/commands",
                "nonsense",
                "pi-asked/answers/8",
                b"78",
            ));
        }
        acts
    });
    let mut agent = Agent::start("pi-asked", broker.port, "");
    in_time("each is answered", &agent, || {
        broker.on("pi-asked/commands/result").len() == 5
    });
    let came = broker.came();
    let answers: Vec<_> = came
        .iter()
        .filter(|came| !came.publish.topic.starts_with("pi-asked/commands"))
        .filter(|came| String::from_utf8_lossy(&came.publish.payload).contains("\"result\":\""))
        .filter(|came| !came.publish.topic.ends_with("/events"))
        .map(|came| &came.publish)
        .collect();
    let topics: Vec<&str> = answers.iter().map(|answer| answer.topic.as_str()).collect();
    assert_eq!(topics.len(), 2, "{topics:?}");
    for (topic, correlation) in [("pi-asked/answers/7", b"77"), ("pi-asked/answers/8", b"78")] {
        let answer = answers
            .iter()
            .find(|answer| answer.topic == topic)
            .expect("answered");
        let carries = [&[9, 0, 2][..], correlation].concat();
        let properties = &answer.properties;
        assert!(
            properties.windows(5).any(|part| part == carries),
            "{answer:?}"
        );
        let json = b"application/json";
        assert!(
            properties.windows(json.len()).any(|part| part == json),
            "{answer:?}"
        );
    }
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_password_file_that_hangs_delays_the_link_and_not_the_light() {
    let mut broker = Broker::start();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    fs::write(&file, "secret\n").expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("changed");
    let more = format!(
        "[broker]\nurl = \"mqtt://127.0.0.1:{}\"\nusername = \"anna\"\npassword_file = {file:?}\n",
        broker.port
    );
    let mut agent = Agent::start("pi-fifo", broker.port, &more);
    in_time("it is connected", &agent, || {
        status(&agent, "link_up") == true
    });
    // A FIFO without a writer: opening it takes for ever.
    fs::remove_file(&file).expect("removed");
    let made = std::process::Command::new("mkfifo")
        .arg(&file)
        .status()
        .expect("mkfifo");
    assert!(made.success());
    broker.kill();
    in_time("its file is being read", &agent, || {
        agent.threads().iter().any(|name| name == "files")
    });
    broker.restart();
    for (light, is_on) in [("100", true), ("900", false), ("100", true)] {
        agent.set_light(light);
        in_time("the LED follows the light", &agent, || {
            agent.led_on() == is_on
        });
    }
    in_time("the log says why", &agent, || {
        agent.log().contains("do not answer within")
    });
    // One reading hangs, not one for each try.
    let hanging = agent
        .threads()
        .iter()
        .filter(|name| *name == "files")
        .count();
    assert_eq!(hanging, 1);
    // The disk comes back.
    let mut fifo = fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .expect("a reader");
    std::io::Write::write_all(&mut fifo, b"secret\n").expect("written");
    drop(fifo);
    fs::remove_file(&file).expect("removed");
    fs::write(&file, "secret\n").expect("written");
    in_time("it is connected again", &agent, || {
        status(&agent, "link_up") == true
    });
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_ca_file_that_hangs_delays_the_link_and_not_the_light() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    let none = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(&file, none).expect("written");
    let more = format!("[broker]\nurl = \"mqtts://127.0.0.1:1\"\nca_file = {file:?}\n");
    let mut agent = Agent::start("pi-ca", 1, &more);
    in_time("it is read", &agent, || {
        agent.log().contains("no usable certificate")
    });
    // Each try reads it anew: a FIFO without a writer takes for ever.
    fs::remove_file(&file).expect("removed");
    let made = std::process::Command::new("mkfifo")
        .arg(&file)
        .status()
        .expect("mkfifo");
    assert!(made.success());
    in_time("it is being read", &agent, || {
        agent.threads().iter().any(|name| name == "files")
    });
    for (light, is_on) in [("100", true), ("900", false), ("100", true)] {
        agent.set_light(light);
        in_time("the LED follows the light", &agent, || {
            agent.led_on() == is_on
        });
    }
    in_time("the log says why", &agent, || {
        let log = agent.log();
        log.contains("do not answer within") && log.contains("ca_file")
    });
    // The doctor does not begin to read what is no file.
    let (_, out, told) = crate::stage::outcome(agent.other("doctor"));
    assert!((out + &told).contains("it is not a file"), "{told}");
    assert_eq!(agent.stop().code(), Some(0));
}
