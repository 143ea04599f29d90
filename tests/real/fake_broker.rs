//! The real program on links that are wrong in an exact way: a broker that does not confirm, confirms
//! what was never sent, refuses, talks rubbish, hangs; a link that swallows packets. The LED follows the
//! light all the while, no record is missing afterwards, and the program ends when it is told to.
//! And on a healthy link: nothing is written to the card.
//!
//! Most stories are made of waiting, so several run at once in one test; `TEST_STORY=part of a name`
//! picks some.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::filled;
use crate::stage::dialect::{Dialect, in_both_versions};
use crate::stage::fake::{Act, FakeBroker, Packet, puback};
use crate::stage::{Agent, Broker, Listener, eventually, within};
use uuid::Uuid;

type Story = fn(Dialect);

/// Runs stories at once, in both versions of MQTT; each fails for itself, and all that failed are named.
fn together(stories: &[(&'static str, Story)]) {
    let picked = std::env::var("TEST_STORY").unwrap_or_default();
    let running: Vec<_> = stories
        .iter()
        .filter(|(name, _)| name.contains(&picked))
        .map(|&(name, story)| {
            let thread = thread::Builder::new().name(name.into());
            (
                name,
                thread
                    .spawn(move || in_both_versions(story))
                    .expect("a thread"),
            )
        })
        .collect();
    let failed: Vec<&str> = running
        .into_iter()
        .filter_map(|(name, story)| story.join().is_err().then_some(name))
        .collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn a_broker_that_breaks_the_protocol_loses_nothing_and_is_left() {
    together(&[
        ("confirms what was never sent", confirms_what_was_never_sent),
        ("confirms twice", confirms_twice),
        ("sends rubbish", sends_rubbish),
        (
            "closes after the greeting, then after the first record",
            closes_early,
        ),
    ]);
}

#[test]
fn a_record_that_the_broker_refuses_is_set_aside_and_blocks_nothing() {
    in_both_versions(|dialect| {
        let broker = FakeBroker::start(move |_, packet| match packet {
            Packet::Publish(publish)
                if String::from_utf8_lossy(&publish.payload).contains("\"seq\":7,") =>
            {
                vec![Act::Close]
            }
            _ => dialect.answer(packet),
        });
        let mut agent = dialect.start("pi-poison", broker.port, "");
        // A record is blamed only when sessions without it held.
        let reported = within(Duration::from_secs(120), || {
            let records = broker.records();
            records.iter().any(|record| {
                record["event"] == "loss"
                    && record["reason"] == "refused"
                    && record["from_seq"] == 7
            })
        });
        assert!(reported, "it is reported as lost");
        let aside =
            std::fs::read_to_string(agent.path("backlog/dead-letter.jsonl")).expect("kept aside");
        assert_eq!(aside.lines().count(), 1, "{aside}");
        assert!(aside.contains("\"seq\":7,"));
        let connection = broker.connections().len() - 1;
        let empty = within(Duration::from_secs(30), || broker.nothing_waits(connection));
        assert!(empty, "the others go on");
        assert_eq!(agent.stop().code(), Some(0));
        let numbers: BTreeSet<u64> = broker
            .records()
            .iter()
            .filter_map(|record| record["seq"].as_u64())
            .collect();
        let last = numbers.last().copied().unwrap_or(0);
        let missing: Vec<u64> = (1..=last).filter(|seq| !numbers.contains(seq)).collect();
        assert_eq!(missing, [7]);
    });
}

#[test]
fn a_broker_or_link_that_hangs_is_noticed_and_nothing_is_lost() {
    together(&[
        ("never confirms", never_confirms),
        ("refuses", refuses),
        ("never greets", never_greets),
        ("stops reading", stops_reading),
        ("a link that swallows packets", a_link_that_swallows_packets),
        (
            "nothing is written on a healthy link",
            nothing_is_written_on_a_healthy_link,
        ),
    ]);
}

fn is_record(packet: &Packet) -> bool {
    matches!(packet, Packet::Publish(publish)
        if publish.topic.ends_with("/telemetry") || publish.topic.ends_with("/history"))
}

/// Within the server's lease, if it has one, and a moment.
fn follows_the_light(agent: &Agent) {
    agent.set_light("100");
    assert!(
        within(Duration::from_secs(4), || agent.led_on()),
        "the LED does not go on"
    );
    agent.set_light("800");
    assert!(
        within(Duration::from_secs(4), || !agent.led_on()),
        "the LED does not go off"
    );
}

/// Waits until `connection` or a later one has brought everything, stops the program and looks at the
/// confirmed records: from 1 to the last of each run, no number with two contents.
fn all_arrives(broker: &FakeBroker, agent: &mut Agent, connection: usize) {
    let limit = Duration::from_secs(45);
    let empty = within(limit, || broker.nothing_waits(connection));
    assert!(empty, "the backlog does not get empty");
    assert_eq!(agent.stop().code(), Some(0));
    let mut runs: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
    for mut record in broker.records() {
        let (run, seq) = (record["run"].to_string(), record["seq"].as_u64());
        if let Some(object) = record.as_object_mut() {
            object.remove("replayed");
        }
        let (seq, text) = (seq.expect("a number"), record.to_string());
        let before = runs.entry(run).or_default().insert(seq, text.clone());
        assert!(before.is_none_or(|before| before == text), "two contents");
    }
    assert!(!runs.is_empty());
    for (run, records) in runs {
        let numbers: Vec<u64> = records.into_keys().collect();
        let whole: Vec<u64> = (1..=*numbers.last().expect("one")).collect();
        let missing: Vec<_> = whole.iter().filter(|seq| !numbers.contains(seq)).collect();
        assert!(missing.is_empty(), "run {run}: {missing:?} are missing");
    }
}

fn confirms_what_was_never_sent(dialect: Dialect) {
    let broker = FakeBroker::start(move |connection, packet| match packet {
        Packet::Publish(_) if connection < 2 && is_record(packet) => vec![puback(4242)],
        _ => dialect.answer(packet),
    });
    let mut agent = dialect.start("pi-never-sent", broker.port, "");
    eventually("a third connection", || broker.connections().len() > 2);
    follows_the_light(&agent);
    all_arrives(&broker, &mut agent, 2);
}

fn confirms_twice(dialect: Dialect) {
    let broker = FakeBroker::start(move |connection, packet| match packet {
        Packet::Publish(publish) if connection < 3 && is_record(packet) => {
            vec![puback(publish.pkid), puback(publish.pkid)]
        }
        _ => dialect.answer(packet),
    });
    let mut agent = dialect.start("pi-twice", broker.port, "");
    follows_the_light(&agent);
    eventually("readings", || broker.on("/telemetry").len() > 20);
    let connection = broker.connections().len() - 1;
    all_arrives(&broker, &mut agent, connection);
}

fn sends_rubbish(dialect: Dialect) {
    let broker = FakeBroker::start(move |connection, packet| match (connection, packet) {
        // In place of the greeting, behind it, and in place of a confirmation.
        (0, Packet::Connect { .. }) => vec![Act::Send(vec![0xff; 64])],
        (1, Packet::Connect { .. }) => vec![
            dialect.greeting(0),
            Act::Send(b"HTTP/1.1 400\r\n\r\n".into()),
        ],
        (2, Packet::Publish(_)) if is_record(packet) => vec![Act::Send(vec![0, 0x80, 7, 0xf0])],
        // A length that no packet has.
        (3, Packet::Connect { .. }) => {
            vec![
                dialect.greeting(0),
                Act::Send(vec![0x30, 0xff, 0xff, 0xff, 0x7f]),
            ]
        }
        _ => dialect.answer(packet),
    });
    let mut agent = dialect.start("pi-rubbish", broker.port, "");
    follows_the_light(&agent);
    eventually("a fifth connection", || broker.connections().len() > 4);
    all_arrives(&broker, &mut agent, 4);
}

fn closes_early(dialect: Dialect) {
    let broker = FakeBroker::start(move |connection, packet| match packet {
        Packet::Connect { .. } if connection < 2 => vec![Act::Close],
        Packet::Publish(_) if connection < 4 && is_record(packet) => vec![Act::Close],
        _ => dialect.answer(packet),
    });
    let mut agent = dialect.start("pi-closes", broker.port, "");
    follows_the_light(&agent);
    eventually("a fifth connection", || broker.connections().len() > 4);
    all_arrives(&broker, &mut agent, 4);
}

fn never_confirms(dialect: Dialect) {
    let broker = FakeBroker::start(move |connection, packet| match packet {
        Packet::Publish(_) if connection == 0 => vec![],
        _ => dialect.answer(packet),
    });
    let mut agent = dialect.start("pi-unconfirmed", broker.port, "");
    eventually("readings", || !broker.on("/telemetry").is_empty());
    follows_the_light(&agent);
    // Ten seconds without a confirmation are the story.
    eventually("a second connection", || broker.connections().len() > 1);
    let connections = broker.connections();
    let after = connections[1] - connections[0];
    assert!(
        (8..20).contains(&after.as_secs()),
        "given up after {after:?}"
    );
    assert!(
        agent.log().contains("has not confirmed"),
        "the log says why"
    );
    all_arrives(&broker, &mut agent, 1);
}

/// Bad password, then not authorised, then in order.
fn refuses(dialect: Dialect) {
    let refusals = Arc::new(AtomicUsize::new(0));
    let code = Arc::new(AtomicUsize::new(0x86));
    let (counted, current) = (Arc::clone(&refusals), Arc::clone(&code));
    let broker = FakeBroker::start(move |_, packet| match packet {
        Packet::Connect { .. } => {
            let code = current.load(Ordering::Relaxed) as u8;
            counted.fetch_add(usize::from(code > 0), Ordering::Relaxed);
            vec![dialect.greeting(code)]
        }
        _ => dialect.answer(packet),
    });
    let mut agent = dialect.start("pi-refused", broker.port, "");
    eventually("refused", || refusals.load(Ordering::Relaxed) == 1);
    follows_the_light(&agent);
    eventually("the log says what to mend", || {
        agent.log().contains("refused the user name or password")
    });
    code.store(0x87, Ordering::Relaxed);
    // A refusal is not tried again soon: 15 s to 30 s, by the clock.
    let again = within(Duration::from_secs(40), || {
        refusals.load(Ordering::Relaxed) == 2
    });
    assert!(again, "never tried again");
    let connections = broker.connections();
    assert!(
        connections[1] - connections[0] > Duration::from_secs(14),
        "tried again too soon"
    );
    eventually("the log says so", || agent.log().contains("not authorised"));
    follows_the_light(&agent);
    assert_eq!(agent.stop().code(), Some(0));
    // What was kept is delivered by the next run, which need not wait.
    code.store(0, Ordering::Relaxed);
    agent.run();
    all_arrives(&broker, &mut agent, 2);
}

fn never_greets(dialect: Dialect) {
    let broker = FakeBroker::start(move |connection, packet| match packet {
        Packet::Connect { .. } if connection == 0 => vec![],
        _ => dialect.answer(packet),
    });
    let mut agent = dialect.start("pi-ungreeted", broker.port, "");
    follows_the_light(&agent);
    // The time for name, TCP, TLS and greeting together is 20 s.
    eventually("a second connection", || broker.connections().len() > 1);
    follows_the_light(&agent);
    all_arrives(&broker, &mut agent, 1);
}

/// Half open: megabytes are on their way, the peer reads no more, the window of TCP fills.
fn stops_reading(dialect: Dialect) {
    let broker = FakeBroker::start(move |connection, packet| match packet {
        Packet::Publish(publish) if connection == 0 && publish.topic.ends_with("/history") => {
            vec![Act::StopReading]
        }
        _ => dialect.answer(packet),
    });
    let delivery =
        "[delivery]\nreplay_rate = 0\nreplay_jitter = \"0s\"\nbatch = 200\nwindow = 500\n";
    let mut agent = dialect.prepare("pi-half-open", broker.port, delivery);
    let run = Uuid::new_v4();
    filled::fill(&agent.path("backlog"), run, 20_000);
    agent.run();
    eventually("history", || !broker.on("/history").is_empty());
    follows_the_light(&agent);
    eventually("a second connection", || broker.connections().len() > 1);
    all_arrives(&broker, &mut agent, 1);
    let run = run.to_string();
    let old: BTreeSet<u64> = broker
        .records()
        .iter()
        .filter(|record| record["run"] == run.as_str())
        .filter_map(|record| record["seq"].as_u64())
        .collect();
    assert_eq!(old.len(), 20_000);
}

/// A link between program and broker; while it swallows, it takes everything and gives nothing.
struct Swallower {
    port: u16,
    swallows: Arc<AtomicBool>,
}

impl Swallower {
    fn before(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let swallows = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&swallows);
        // The threads end with the process.
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", broker)) else {
                    continue;
                };
                let pairs = [(&near, &far), (&far, &near)];
                for (from, to) in pairs {
                    let (from, to) = (from.try_clone(), to.try_clone());
                    let (Ok(mut from), Ok(mut to)) = (from, to) else {
                        continue;
                    };
                    let swallows = Arc::clone(&own);
                    thread::spawn(move || pass_on(&mut from, &mut to, &swallows));
                }
            }
        });
        Self { port, swallows }
    }
}

fn pass_on(from: &mut TcpStream, to: &mut TcpStream, swallows: &AtomicBool) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if !swallows.load(Ordering::Relaxed) && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // Not while it swallows: the end of a connection would be a sign of life.
    if !swallows.load(Ordering::Relaxed) {
        let _ = to.shutdown(std::net::Shutdown::Both);
    }
}

fn a_link_that_swallows_packets(dialect: Dialect) {
    let broker = Broker::start();
    let link = Swallower::before(broker.port);
    let server = Listener::lesson_server("pi-swallow", broker.port);
    eventually("the server listens", || server.listens());
    let mut agent = dialect.prepare("pi-swallow", link.port, "");
    agent.run();
    eventually("the server decides", || {
        let states = server.on("state");
        states.last().is_some_and(|state| state["by"] == "remote")
    });
    link.swallows.store(true, Ordering::Relaxed);
    follows_the_light(&agent);
    // Longer than 2.5 times keep_alive (5 s): the time is the story.
    thread::sleep(Duration::from_millis(13_500));
    assert!(agent.log().contains("link down"), "noticed");
    link.swallows.store(false, Ordering::Relaxed);
    let back = within(Duration::from_secs(45), || {
        let reported = server
            .on("events")
            .iter()
            .any(|event| event["event"] == "outage");
        let states = server.on("state");
        reported && states.last().is_some_and(|state| state["backlog"] == 0)
    });
    assert!(back, "it does not come back");
    assert_eq!(agent.stop().code(), Some(0));
    eventually("all is heard", || server.last_text("status") == "offline");
    for run in server.account().keys() {
        assert_eq!(server.missing(run), Vec::<u64>::new());
    }
}

/// Of every file in a folder: its size, when it was changed, and its contents.
fn picture(folder: &Path) -> BTreeMap<PathBuf, (u64, SystemTime, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let meta = path.symlink_metadata().expect("its data");
        let changed = meta.modified().expect("a time");
        if meta.is_dir() {
            all.insert(path.clone(), (0, changed, vec![]));
            all.extend(picture(&path));
        } else {
            let contents = match meta.is_file() {
                true => fs::read(&path).expect("read"),
                false => vec![],
            };
            all.insert(path, (meta.len(), changed, contents));
        }
    }
    all
}

fn nothing_is_written_on_a_healthy_link(dialect: Dialect) {
    let broker = Broker::start();
    let server = Listener::lesson_server("pi-healthy", broker.port);
    eventually("the server listens", || server.listens());
    // An unconfirmed reading goes to the card after half of `durable_within`. Here that is 5 s, so that
    // it is the program that is tested and not how busy this machine is.
    let more = "[backlog]\npath = \"{folder}/backlog\"\ndurable_within = \"10s\"\n";
    let mut agent = dialect.start("pi-healthy", broker.port, more);
    eventually("readings", || server.on("telemetry").len() > 20);
    eventually("nothing waits", || {
        let states = server.on("state");
        states.last().is_some_and(|state| state["backlog"] == 0)
    });
    let before = picture(&agent.path("backlog"));
    assert!(!agent.path("backlog/store").exists(), "there is no outage");
    assert!(agent.path("backlog/checkpoint").exists());
    // Sled's threads never end, so they must not begin without need.
    let names = agent.threads();
    assert!(names.iter().all(|name| !name.contains("sled")), "{names:?}");
    let began = Instant::now();
    let mut number = 0;
    // Twenty seconds of readings every 100 ms, and a command with an id every half second.
    while began.elapsed() < Duration::from_secs(20) {
        number += 1;
        server.publish(
            "commands",
            format!(r#"{{"led_on": {}, "id": "c{number}"}}"#, number % 2 == 0),
        );
        thread::sleep(Duration::from_millis(500));
    }
    eventually("the last command is answered", || {
        let last = format!("c{number}");
        let results = server.on("commands/result");
        results.iter().any(|result| result["id"] == last.as_str())
    });
    let after = picture(&agent.path("backlog"));
    let changed: Vec<_> = before
        .keys()
        .chain(after.keys())
        .filter(|path| before.get(*path) != after.get(*path))
        .collect();
    assert!(changed.is_empty(), "written: {changed:?}");
    assert!(server.on("telemetry").len() > 100);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_backlog_of_100_000_records_is_drained_at_full_speed_complete_in_order_and_once() {
    in_both_versions(|dialect| {
        const LAST: u64 = 100_000;
        let mut broker = Broker::start();
        let listener = Listener::start("pi-fast", broker.port);
        eventually("the listener listens", || listener.listens());
        let delivery = "[delivery]\nreplay_rate = 0\nreplay_jitter = \"0s\"\nbatch = 100\n";
        let mut agent = dialect.prepare("pi-fast", broker.port, delivery);
        let run = Uuid::new_v4();
        filled::fill(&agent.path("backlog"), run, LAST);
        let began = Instant::now();
        agent.run();
        let run = run.to_string();
        let limit = Duration::from_secs(90);
        let drained = within(limit, || {
            thread::sleep(Duration::from_millis(200));
            // Before the store is open, state says 0 too.
            let states = listener.on("state");
            listener.on("telemetry/history").len() as u64 >= LAST
                && states.last().is_some_and(|state| state["backlog"] == 0)
        });
        println!("{LAST} records in {:?}", began.elapsed());
        assert!(drained, "not drained in {limit:?}");
        assert_eq!(agent.stop().code(), Some(0));
        eventually("all is heard", || listener.last_text("status") == "offline");
        let numbers: Vec<u64> = listener
            .on("telemetry/history")
            .iter()
            .filter(|record| record["run"] == run.as_str())
            .filter_map(|record| record["seq"].as_u64())
            .collect();
        assert!(
            numbers.iter().copied().eq(1..=LAST),
            "complete, in order, once"
        );
        broker.stop();
    });
}
