//! The real program and brokers that end its sessions: at every step of a session, again and again, because
//! of one topic, because of a second client, because of too much at once. Whatever can be delivered is, no
//! record is given up, the broker is not flooded, and the log names what the session died of.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::filled;
use crate::stage::dialect::{Dialect, in_both_versions};
use crate::stage::fake::{Act, FakeBroker, Packet};
use crate::stage::{Agent, Broker, Listener, eventually, within};

/// A broker that closes the connection at one step of each session.
struct Step {
    id: &'static str,
    qos: u8,
    closes: fn(&Packet) -> bool,
    /// What the log names.
    says: &'static str,
    /// Whether records can be delivered all the same.
    delivers: bool,
}

fn publishes(packet: &Packet, ending: &str) -> bool {
    matches!(packet, Packet::Publish(publish) if publish.topic.ends_with(ending))
}

fn subscribes(packet: &Packet, ending: &str) -> bool {
    matches!(packet, Packet::Subscribe { first, .. } if first.ends_with(ending))
}

const STEPS: [Step; 12] = [
    Step {
        id: "pi-connect",
        qos: 1,
        closes: |packet| matches!(packet, Packet::Connect { .. }),
        says: "before it answered CONNECT",
        delivers: false,
    },
    Step {
        id: "pi-any",
        qos: 1,
        closes: |packet| !matches!(packet, Packet::Connect { .. }),
        says: "before it answered anything",
        delivers: false,
    },
    Step {
        id: "pi-commands",
        qos: 1,
        closes: |packet| subscribes(packet, "/commands"),
        says: "the subscription to pi-commands/commands (no command comes)",
        delivers: true,
    },
    Step {
        id: "pi-acks",
        qos: 1,
        closes: |packet| subscribes(packet, "/acks"),
        says: "the subscription to pi-acks/acks (no ack of the server comes)",
        delivers: true,
    },
    Step {
        id: "pi-status",
        qos: 1,
        closes: |packet| publishes(packet, "/status"),
        says: "a publication to pi-status/status (online and offline are not published)",
        delivers: true,
    },
    Step {
        id: "pi-state",
        qos: 1,
        closes: |packet| publishes(packet, "/state"),
        says: "a publication to pi-state/state (state is not published)",
        delivers: true,
    },
    Step {
        id: "pi-telemetry",
        qos: 1,
        closes: |packet| publishes(packet, "/telemetry"),
        says: "a publication to pi-telemetry/telemetry (readings go to the history topic)",
        delivers: true,
    },
    Step {
        id: "pi-events",
        qos: 1,
        closes: |packet| publishes(packet, "/events"),
        says: "a publication to pi-events/events (events go to the history topic)",
        delivers: true,
    },
    Step {
        id: "pi-results",
        qos: 1,
        closes: |packet| publishes(packet, "/commands/result"),
        says: "a publication to pi-results/commands/result (nobody hears what became of commands)",
        delivers: true,
    },
    Step {
        id: "pi-history",
        qos: 1,
        closes: |packet| publishes(packet, "/telemetry/history"),
        says: "a publication to pi-history/telemetry/history (the backlog stays on this machine)",
        delivers: false,
    },
    Step {
        id: "pi-pubrec",
        qos: 2,
        closes: |packet| publishes(packet, "/telemetry"),
        says: "a publication to pi-pubrec/telemetry (readings go to the history topic)",
        delivers: true,
    },
    Step {
        id: "pi-pubrel",
        qos: 2,
        closes: |packet| matches!(packet, Packet::PubRel { .. }),
        says: "the first message without an answer was a publication to pi-pubrel/",
        delivers: false,
    },
];

#[test]
fn at_whatever_step_the_broker_ends_sessions_the_log_names_it_and_the_rest_goes_on() {
    let running: Vec<_> = STEPS
        .iter()
        .map(|step| {
            let thread = thread::Builder::new().name(step.id.into());
            (
                step.id,
                thread
                    .spawn(|| in_both_versions(|dialect| play(step, dialect)))
                    .expect("a thread"),
            )
        })
        .collect();
    let failed: Vec<&str> = running
        .into_iter()
        .filter_map(|(id, story)| story.join().is_err().then_some(id))
        .collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn play(step: &'static Step, dialect: Dialect) {
    let broker = FakeBroker::start(move |connection, packet| {
        // History needs an outage: what is in flight when the first session ends.
        let makes_history = step.id == "pi-history" && connection == 1;
        if (step.closes)(packet) || makes_history && publishes(packet, "/telemetry") {
            // What comes behind CONNECT is closed on as a whole.
            return vec![Act::Close];
        }
        let mut acts = dialect.answer(packet);
        if subscribes(packet, "/commands") {
            let topic = format!("{}/commands", step.id);
            acts.push(dialect.message(&topic, r#"{"command":"read-now"}"#));
        }
        acts
    });
    let more = format!(
        "[sensor]\ndriver = \"iio\"\npath = \"{{folder}}/light\"\ninterval = \"500ms\"\n\
         [delivery]\nreplay_jitter = \"200ms\"\nqos = {}\n",
        step.qos
    );
    let mut agent = dialect.start(step.id, broker.port, &more);
    let limit = Duration::from_secs(120);
    let began = Instant::now();
    let named = within(limit, || {
        // Each change of the LED is an event.
        let is_dark = step.id == "pi-events" && began.elapsed().as_secs() / 3 % 2 == 1;
        agent.set_light(if is_dark { "100" } else { "800" });
        agent.log().contains(step.says)
    });
    assert!(named, "the log does not say {:?}", step.says);
    agent.set_light("100");
    assert!(
        within(Duration::from_secs(6), || agent.led_on()),
        "the LED follows the light"
    );
    if step.delivers {
        let told = agent.status().expect("a status")["link_why"].to_string();
        assert!(told.contains("access list"), "{told}");
        // The store is open and all of it has been delivered, live or as history.
        let sent = || {
            broker
                .records()
                .iter()
                .filter_map(|r| r["seq"].as_u64())
                .max()
        };
        let complete = within(limit, || {
            let last = sent().unwrap_or(0);
            let records = broker.records();
            let has = |seq| records.iter().any(|record| record["seq"] == seq);
            last > 20 && (1..last.saturating_sub(4)).all(has)
        });
        assert!(complete, "not all is delivered");
    }
    assert!(
        !agent.path("backlog/dead-letter.jsonl").exists(),
        "no record is to blame"
    );
    let connections = broker.connections();
    let (first, last) = (connections[0], *connections.last().expect("one"));
    let minutes = (last - first).as_secs_f64() / 60.0;
    let most = 8.0 + 20.0 * minutes;
    assert!(
        (connections.len() as f64) < most,
        "{} connections in {minutes} min",
        connections.len()
    );
    let outages = broker
        .records()
        .iter()
        .filter(|record| record["event"] == "outage")
        .count();
    assert!(outages < 6, "{outages} outages");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn each_refusal_of_connect_is_named_and_is_not_tried_again_at_once() {
    in_both_versions(|dialect| {
        let version = match dialect {
            Dialect::V311 => "does not speak MQTT 3.1.1",
            Dialect::V5 => "does not speak MQTT 5",
        };
        let table = [
            (0x84, version),
            (0x85, "refused the client id"),
            (0x88, "takes nobody now"),
            (0x86, "refused the user name or password"),
            (0x87, "not authorised"),
            // 3.1.1 has no other words.
            (0x8a, "has banned this client"),
            (0x9d, "the broker has moved"),
        ];
        let of_3_1_1 = |(code, _): &(u8, &str)| *code <= 0x88;
        let known = table
            .into_iter()
            .filter(|it| dialect == Dialect::V5 || of_3_1_1(it));
        let running: Vec<_> = known
            .map(|(code, says)| thread::spawn(move || is_refused(dialect, code, says)))
            .collect();
        for story in running {
            story.join().expect("as it should be");
        }
    });
}

fn is_refused(dialect: Dialect, code: u8, says: &str) {
    let broker = FakeBroker::start(move |_, packet| match packet {
        Packet::Connect { .. } => vec![dialect.greeting(code)],
        _ => dialect.answer(packet),
    });
    let mut agent = dialect.start(&format!("pi-code-{code:x}"), broker.port, "");
    eventually("the log names it", || agent.log().contains(says));
    let status = || agent.status().map(|status| status["link_why"].to_string());
    eventually("status names it", || {
        status().is_some_and(|why| why.contains(says))
    });
    // Ten seconds are the story.
    thread::sleep(Duration::from_secs(10));
    let most = if code == 0x88 { 20 } else { 1 };
    let connections = broker.connections().len();
    assert!(connections <= most, "{code:x}: {connections}");
    assert_eq!(agent.log().matches(says).count(), 1, "told once");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn two_clients_of_one_id_are_told_so_slow_down_and_both_deliver() {
    in_both_versions(|dialect| {
        let broker = Broker::start();
        let listener = Listener::start("pi-twin", broker.port);
        eventually("the listener listens", || listener.listens());
        let mut twins = [(); 2].map(|()| dialect.start("pi-twin", broker.port, ""));
        for twin in &twins {
            let says = "another client uses the client id \"pi-twin\"";
            let told = within(Duration::from_secs(120), || twin.log().contains(says));
            assert!(told, "{}", twin.log());
            let status = || twin.status().map(|status| status["link_why"].to_string());
            eventually("status says so", || {
                status().is_some_and(|why| why.contains("client id"))
            });
        }
        let outages = listener
            .on("events")
            .iter()
            .filter(|event| event["event"] == "outage")
            .count();
        assert!(outages < 8, "{outages}");
        for twin in &mut twins {
            assert_eq!(twin.log().matches("another client").count(), 1);
            assert_eq!(twin.stop().code(), Some(0));
        }
        let runs = listener.account().len();
        assert_eq!(runs, 2, "both deliver");
    });
}

#[test]
fn at_qos_2_a_window_above_mosquittos_limit_is_found_out_or_known_and_all_arrives_once() {
    // With 3.1.1 the limit shows by the end of a session; with 5 the broker tells it.
    let limits = [("3.1.1", true), ("5", false)];
    let running = limits.map(|(version, is_halved)| {
        thread::spawn(move || a_window_above_mosquittos_limit(version, is_halved))
    });
    for story in running {
        story.join().expect("as it should be");
    }
}

fn a_window_above_mosquittos_limit(version: &str, is_halved: bool) {
    const LAST: u64 = 3_000;
    let broker = Broker::start();
    let listener = Listener::start("pi-window", broker.port);
    eventually("the listener listens", || listener.listens());
    let delivery = "[delivery]\nqos = 2\nwindow = 200\nreplay_rate = 0\nreplay_jitter = \"0s\"\n";
    let more = format!(
        "[broker]\nurl = \"mqtt://127.0.0.1:{}\"\nversion = \"{version}\"\n{delivery}",
        broker.port
    );
    let mut agent = Agent::prepare("pi-window", broker.port, &more);
    let run = Uuid::new_v4();
    filled::fill(&agent.path("backlog"), run, LAST);
    agent.run();
    let run = run.to_string();
    let arrived = || {
        let history = listener.on("telemetry/history");
        history
            .iter()
            .filter(|record| record["run"] == run.as_str())
            .count() as u64
    };
    let all = within(Duration::from_secs(120), || {
        thread::sleep(Duration::from_millis(200));
        arrived() >= LAST
    });
    assert!(all, "{} of {LAST}", arrived());
    let log = agent.log();
    assert_eq!(
        log.contains("records unanswered; at most"),
        is_halved,
        "{log}"
    );
    assert_eq!(log.contains("link down"), is_halved, "{log}");
    assert!(!agent.path("backlog/dead-letter.jsonl").exists());
    eventually("nothing waits", || {
        let states = listener.on("state");
        states.last().is_some_and(|state| state["backlog"] == 0)
    });
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(listener.missing(&run), Vec::<u64>::new());
}
