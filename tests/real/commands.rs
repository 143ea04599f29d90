//! Commands from outside, good and hostile, against the real program and a real broker.

use std::time::{Duration, Instant};

use crate::stage::{Agent, Broker, Listener, eventually};
use serde_json::Value;

fn on_stage(id: &str, more: &str) -> (Broker, Listener, Agent) {
    let broker = Broker::start();
    let listener = Listener::start(id, broker.port);
    eventually("the listener listens", || listener.listens());
    let agent = Agent::start(id, broker.port, more);
    eventually("readings arrive", || listener.on("telemetry").len() >= 3);
    (broker, listener, agent)
}

fn result_of(listener: &Listener, id: &str) -> Option<Value> {
    let results = listener.on("commands/result");
    results.into_iter().rfind(|result| result["id"] == id)
}

#[track_caller]
fn expect_result(listener: &Listener, id: &str, result: &str) {
    eventually(&format!("{id} is {result}"), || {
        result_of(listener, id).is_some_and(|answer| answer["result"] == result)
    });
}

#[test]
fn repeated_expired_and_malformed_commands_do_nothing_and_are_answered() {
    let (_broker, listener, agent) = on_stage("cmd-a", "[control]\nlease = \"60s\"\n");
    listener.publish("commands", r#"{"led_on":true,"id":"one"}"#);
    expect_result(&listener, "one", "applied");
    listener.publish("commands", r#"{"led_on":false,"id":"two"}"#);
    expect_result(&listener, "two", "applied");
    listener.publish("commands", r#"{"led_on":true,"id":"one"}"#);
    expect_result(&listener, "one", "duplicate");
    listener.publish("commands", r#"{"led_on":true,"id":"x\n<0>y\u001b[2J"}"#);
    expect_result(&listener, "x\n<0>y\u{1b}[2J", "applied");
    listener.publish("commands", r#"{"led_on":false,"id":"three"}"#);
    expect_result(&listener, "three", "applied");
    assert!(!agent.log().contains("\n<0>y") && !agent.log().contains('\u{1b}'));
    let old = r#"{"led_on":true,"id":"old","expires_at":"2020-01-01T00:00:00Z"}"#;
    listener.publish("commands", old);
    expect_result(&listener, "old", "expired");
    let before = listener.on("commands/result").len();
    let hostile: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"true".to_vec(),
        b"{}".to_vec(),
        b"ON".to_vec(),
        b"{\"led_on\":null}".to_vec(),
        b"{\"led_on\":true} x".to_vec(),
        b"{\"led_on\":true,\"id\":7}".to_vec(),
        b"{\"led_on\":true,\"id\":\"\"}".to_vec(),
        b"{\"led_on\":true,\"seq\":1.5}".to_vec(),
        b"{\"led_on\":true,\"seq\":99999999999999999999}".to_vec(),
        b"{\"led_on\":true,\"expires_at\":\"tomorrow\"}".to_vec(),
        b"{\"led_on\":true,\"expires_at\":1795176000}".to_vec(),
        b"{\"led_on\":true,\"command\":\"set\"}".to_vec(),
        b"{\"command\":\"set\"}".to_vec(),
        b"{\"command\":\"set\",\"on_below\":900,\"off_above\":1}".to_vec(),
        b"{\"command\":\"set\",\"interval\":\"1us\"}".to_vec(),
        b"{\"command\":\"set\",\"mode\":\"off\"}".to_vec(),
        b"\0\0\0".to_vec(),
        b"{\"led_on\":true,\"id\":\"\xc3\x28\"}".to_vec(),
        format!("{{\"led_on\":true,\"id\":\"{}\"}}", "i".repeat(65)).into_bytes(),
        b"[1,2".to_vec(),
        b"\xff\xfe\xfd".to_vec(),
        b"{\"led_on\":\"yes\"}".to_vec(),
        b"{\"led_on\":1e400}".to_vec(),
        b"{\"led_on\":true,\"seq\":1e400}".to_vec(),
        b"{\"led_on\":true,\"lease\":\"forever\"}".to_vec(),
        b"{\"command\":\"set\",\"on_below\":1e400}".to_vec(),
        b"{\"command\":\"format\"}".to_vec(),
        b"{\"command\":\"reboot\"}".to_vec(),
        vec![b'['; 4_000],
        vec![b'x'; 200_000],
        format!("{{\"led_on\":true,\"x\":\"{}\"}}", "y".repeat(5_000)).into_bytes(),
    ];
    let count = hostile.len();
    for payload in hostile {
        listener.publish("commands", payload);
    }
    eventually("each is answered", || {
        listener.on("commands/result").len() >= before + count
    });
    let answers = listener.on("commands/result").split_off(before);
    assert!(
        answers.iter().all(|answer| answer["result"] == "rejected"),
        "{answers:?}"
    );
    assert!(!agent.led_on());
    let readings = listener.on("telemetry").len();
    eventually("telemetry goes on", || {
        listener.on("telemetry").len() > readings + 3
    });
}

#[test]
fn a_retained_command_moves_nothing_at_any_connect() {
    let mut broker = Broker::start();
    let listener = Listener::start("cmd-b", broker.port);
    eventually("the listener listens", || listener.listens());
    listener.publish_retained("commands", r#"{"led_on":true,"id":"kept"}"#);
    let mut agent = Agent::start("cmd-b", broker.port, "");
    expect_result(&listener, "kept", "rejected");
    assert!(!agent.led_on());
    broker.stop();
    broker.restart();
    eventually("refused again", || {
        let results = listener.on("commands/result");
        results
            .iter()
            .filter(|result| result["id"] == "kept")
            .count()
            >= 2
    });
    assert!(!agent.led_on());
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_burst_that_waited_at_the_broker_moves_the_led_once() {
    let (_broker, listener, mut agent) = on_stage("cmd-c", "[control]\nlease = \"60s\"\n");
    assert_eq!(agent.stop().code(), Some(0));
    for n in 0..20 {
        let payload = format!(r#"{{"led_on":{},"id":"b{n}"}}"#, n % 2 == 1);
        listener.publish("commands", payload);
    }
    let events = listener.on("events").len();
    agent.run();
    expect_result(&listener, "b19", "applied");
    assert!(agent.led_on());
    for n in 0..19 {
        expect_result(&listener, &format!("b{n}"), "superseded");
    }
    let changes = |listener: &Listener| {
        let events = listener.on("events").split_off(events);
        events
            .into_iter()
            .filter(|event| event["event"] == "led")
            .count()
    };
    eventually("the change is told", || changes(&listener) == 1);
    let readings = listener.on("telemetry").len();
    eventually("time passes", || {
        listener.on("telemetry").len() > readings + 5
    });
    assert_eq!(changes(&listener), 1);
}

#[test]
fn an_id_is_known_after_a_clean_restart() {
    let (_broker, listener, mut agent) = on_stage("cmd-d", "");
    listener.publish("commands", r#"{"led_on":true,"id":"once"}"#);
    expect_result(&listener, "once", "applied");
    assert_eq!(agent.stop().code(), Some(0));
    agent.run();
    eventually("it is back", || listener.last_text("status") == "online");
    let readings = listener.on("telemetry").len();
    eventually("it reads", || listener.on("telemetry").len() > readings);
    listener.publish("commands", r#"{"led_on":true,"id":"once"}"#);
    expect_result(&listener, "once", "duplicate");
}

#[test]
fn plain_payloads_read_now_set_and_the_servers_goodbye() {
    let more = "[commands]\non = \"ON\"\noff = \"OFF\"\n\
        [control]\nlease = \"60s\"\nhold = \"0s\"\nserver_status = \"cmd-e/server\"\n";
    let (_broker, listener, mut agent) = on_stage("cmd-e", more);
    listener.publish("commands", "ON");
    eventually("on", || agent.led_on());
    listener.publish("commands", "OFF");
    eventually("off", || !agent.led_on());
    listener.publish("commands", "on");
    listener.publish("commands", r#"{"command":"read-now","id":"r"}"#);
    expect_result(&listener, "r", "applied");
    assert_eq!(result_of(&listener, "r").unwrap_or_default()["light"], 500);
    // Dark by the rule that is set now, but the server's lease holds, until it says goodbye.
    let set = r#"{"command":"set","id":"s","on_below":600,"off_above":700,"persist":true}"#;
    listener.publish("commands", set);
    expect_result(&listener, "s", "applied");
    assert!(!agent.led_on());
    listener.publish("server", "offline");
    eventually("the Pi decides", || agent.led_on());
    assert_eq!(agent.stop().code(), Some(0));
    agent.run();
    eventually("kept", || {
        listener
            .on("state")
            .last()
            .is_some_and(|state| state["on_below"] == 600)
    });
}

#[test]
fn a_flood_starves_nothing_and_the_last_one_wins() {
    let (_broker, listener, agent) = on_stage("cmd-f", "[control]\nlease = \"60s\"\n");
    let before = listener.on("telemetry").len();
    let began = Instant::now();
    for n in 0..20_000 {
        listener.publish("commands", format!(r#"{{"led_on":{}}}"#, n % 2 == 0));
    }
    listener.publish("commands", r#"{"led_on":true,"id":"last"}"#);
    eventually("the last one is obeyed", || {
        result_of(&listener, "last").is_some() && agent.led_on()
    });
    let took = began.elapsed();
    // At one reading each 100 ms, half of them at the least; what the flood made goes out before them.
    eventually("readings went on", || {
        let readings = listener.on("telemetry").len() - before;
        readings as u128 >= took.as_millis() / 200
    });
    eventually("the LED stays", || agent.led_on());
    expect_result(&listener, "last", "applied");
}

#[test]
fn a_broker_that_flaps_flips_nothing() {
    let mut broker = Broker::start();
    let server = Listener::lesson_server("cmd-g", broker.port);
    eventually("the server listens", || server.listens());
    let mut agent = Agent::start("cmd-g", broker.port, "[control]\nlease = \"20s\"\n");
    agent.set_light("100");
    eventually("the server decides", || {
        let states = server.on("state");
        states.last().is_some_and(|state| state["by"] == "remote") && agent.led_on()
    });
    for n in 0..8 {
        broker.stop();
        // The light crosses the threshold and back while the link is away.
        agent.set_light(if n % 2 == 0 { "800" } else { "100" });
        std::thread::sleep(Duration::from_millis(300));
        agent.set_light("100");
        assert!(agent.led_on(), "a short drop-out changes nothing");
        broker.restart();
        std::thread::sleep(Duration::from_millis(300));
    }
    eventually("it comes back", || {
        server
            .on("state")
            .last()
            .is_some_and(|state| state["backlog"] == 0)
    });
    assert_eq!(agent.stop().code(), Some(0));
}

/// The LED's file, read every 2 ms: how often it changed.
pub fn changes_of(led: std::path::PathBuf) -> impl FnOnce() -> usize {
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = std::sync::Arc::clone(&over);
    let watching = std::thread::spawn(move || {
        let read = || std::fs::read_to_string(&led).unwrap_or_default();
        let (mut last, mut changes) = (read(), 0);
        while !told.load(std::sync::atomic::Ordering::Relaxed) {
            let next = read();
            changes += usize::from(next != last);
            last = next;
            std::thread::sleep(Duration::from_millis(2));
        }
        changes
    });
    move || {
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        watching.join().unwrap_or(usize::MAX)
    }
}

#[test]
#[ignore = "a minute"]
fn a_minute_of_a_broker_that_flaps_each_second_moves_no_led() {
    let mut broker = Broker::start();
    let server = Listener::start("cmd-h", broker.port);
    eventually("the server listens", || server.listens());
    let more = "[control]\nlease = \"15s\"\nhold = \"0s\"\n";
    let agent = Agent::start("cmd-h", broker.port, more);
    eventually("it is on line", || server.last_text("status") == "online");
    let mut answered = 0;
    let mut decide = || {
        let readings = server.on("telemetry").len();
        if readings > answered && server.listens() {
            answered = readings;
            server.publish("commands", r#"{"led_on":true}"#);
        }
    };
    eventually("the server decides", || {
        decide();
        agent.led_on()
    });
    let changes = changes_of(agent.path("led"));
    for n in 0..60 {
        broker.stop();
        agent.set_light(if n % 2 == 0 { "800" } else { "100" });
        std::thread::sleep(Duration::from_millis(500));
        broker.restart();
        for _ in 0..25 {
            decide();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert_eq!(changes(), 0, "{}", agent.log());
}
