//! Start, stop, a second start, and visitors: what an operator does to the process.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::stage::{Agent, Broker, Listener, eventually, free_port, outcome, read, signal};

/// One request, answered within `limit`; what came back.
fn visit(stream: &mut (impl Read + Write), path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut answer = String::new();
    let sent = stream.write_all(request.as_bytes());
    sent.and_then(|()| stream.read_to_string(&mut answer)).ok();
    answer
}

#[test]
fn a_second_run_on_one_state_folder_is_refused_and_touches_nothing() {
    let broker = Broker::start();
    let listener = Listener::start("life-a", broker.port);
    eventually("the listener listens", || listener.listens());
    let mut agent = Agent::start("life-a", broker.port, "");
    eventually("it answers", || agent.status().is_some());
    eventually("it is online", || listener.last_text("status") == "online");
    let before = agent.status().expect("a status");
    // Would be switched on by a run that came so far.
    let led = fs::metadata(agent.path("led"))
        .expect("there")
        .modified()
        .ok();
    let began = Instant::now();
    let (code, _, why) = outcome(agent.other("run"));
    assert_eq!(code, Some(75), "{why}");
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(why.contains(&format!("process {}", agent.pid())), "{why}");
    assert!(why.contains("systemctl stop nightlight"), "{why}");
    assert_eq!(
        fs::metadata(agent.path("led"))
            .expect("there")
            .modified()
            .ok(),
        led
    );
    let after = agent.status().expect("still answers");
    assert_eq!(after["run"], before["run"]);
    let backlog = agent.other_without_config(&["backlog", "stats", "--path", "{folder}/backlog"]);
    let (code, _, why) = outcome(backlog);
    assert_eq!(code, Some(75), "{why}");
    assert!(why.contains(&format!("process {}", agent.pid())), "{why}");
    assert_eq!(after["link_up"], true);
    assert!(!agent.log().contains("link down"), "{}", agent.log());
    assert_eq!(agent.stop().code(), Some(0));
    // A killed one leaves nothing that would keep the next one out.
    agent.run();
    eventually("it answers", || agent.status().is_some());
    agent.kill();
    agent.run();
    eventually("it answers", || agent.status().is_some());
}

#[test]
fn a_state_folder_without_a_lock_stops_no_light() {
    let mut agent = Agent::prepare("life-b", 1, "");
    fs::create_dir_all(agent.path("backlog/lock")).expect("made");
    agent.set_light("100");
    agent.run();
    eventually("the light works", || agent.led_on());
    assert!(
        agent.log().contains("would not be noticed"),
        "{}",
        agent.log()
    );
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn another_user_who_may_not_enter_the_state_folder_is_refused_too() {
    let mut agent = Agent::start("life-c", 1, "");
    eventually("it answers", || agent.status().is_some());
    let secret = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(agent.path("backlog"), secret).expect("changed");
    let (code, _, why) = outcome(agent.other_as_nobody("run"));
    assert_eq!(code, Some(75), "{why}");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(agent.path("led"), open).expect("changed");
    let (_, _, why) = outcome(agent.other_as_nobody("led on"));
    assert!(why.contains("decides about the LED"), "{why}");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let mut agent = Agent::prepare("life-d", 1, "");
    fs::create_dir(agent.path("backlog")).expect("made");
    let path = agent.path("backlog").join("status.sock");
    drop(UnixListener::bind(&path).expect("bound"));
    agent.run();
    eventually("it answers", || agent.status().is_some());
    assert_eq!(agent.stop().code(), Some(0));
    assert!(!path.exists());
    let live = UnixListener::bind(&path).expect("bound");
    agent.run();
    eventually("it says so", || {
        agent.log().contains("another nightlight listens")
    });
    agent.set_light("100");
    eventually("the light works", || agent.led_on());
    assert_eq!(agent.stop().code(), Some(0));
    live.set_nonblocking(false).expect("set");
    let (mut here, _) = (
        UnixStream::connect(&path).expect("still there"),
        live.accept(),
    );
    here.write_all(b"x").expect("heard");
}

#[test]
fn slow_visitors_hold_up_nobody() {
    let broker = Broker::start();
    let port = free_port();
    let more = format!("[web]\nlisten = \"127.0.0.1:{port}\"\n");
    let agent = Agent::start("life-e", broker.port, &more);
    eventually("it answers", || agent.status().is_some());
    let connect = || TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    eventually("the page is there", || {
        TcpStream::connect(("127.0.0.1", port))
            .is_ok_and(|mut visitor| visit(&mut visitor, "/healthz").starts_with("HTTP/1.1 200"))
    });
    let memory_before = agent.memory_kb();
    let path = agent.path("backlog").join("status.sock");
    let mut slow: Vec<_> = (0..200).map(|_| connect()).collect();
    let mut slow_here: Vec<_> = (0..50)
        .map(|_| UnixStream::connect(&path).expect("a connection"))
        .collect();
    let began = Instant::now();
    for n in 0..50 {
        for visitor in slow.iter_mut().step_by(2) {
            // Closed for it by now, perhaps.
            let _ = visitor.write_all(b"G");
        }
        for visitor in slow_here.iter_mut().step_by(2) {
            let _ = visitor.write_all(b"G");
        }
        let answer = visit(&mut connect(), "/healthz");
        assert!(
            answer.starts_with("HTTP/1.1 200"),
            "visitor {n}: {answer:?}"
        );
        let mut here = UnixStream::connect(&path).expect("a connection");
        assert!(visit(&mut here, "/status").starts_with("HTTP/1.1 200"));
    }
    // One after the other they would have had to wait for 250 visitors of 2 s each.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    agent.set_light("100");
    eventually("the light works", || agent.led_on());
    assert!(agent.status().is_some());
    let grown = agent.memory_kb() - memory_before;
    assert!(grown < 8_000, "{grown} kB");
}

#[test]
fn a_stop_asked_for_again_and_again_is_one_stop() {
    let broker = Broker::start();
    let listener = Listener::start("life-f", broker.port);
    let mut agent = Agent::start("life-f", broker.port, "");
    eventually("it is online", || listener.last_text("status") == "online");
    for name in ["TERM", "INT", "TERM"] {
        signal(agent.pid(), name);
    }
    assert_eq!(agent.stop().code(), Some(0));
    eventually("it said goodbye", || {
        listener.last_text("status") == "offline"
    });
    assert_eq!(read(&agent.path("log")).matches("stopping").count(), 1);
}

/// The records of this kind of event that the listener has.
fn led_events(listener: &Listener) -> usize {
    let events = listener.on("events");
    events
        .iter()
        .filter(|event| event["event"] == "led")
        .count()
}

#[test]
fn a_kill_and_a_restart_within_the_lease_move_no_led_and_obey_no_command_twice() {
    let broker = Broker::start();
    let listener = Listener::start("life-g", broker.port);
    eventually("the listener listens", || listener.listens());
    let runtime = tempfile::tempdir().expect("a folder");
    let mut agent = Agent::prepare("life-g", broker.port, "[control]\nlease = \"60s\"\n");
    agent.variable = Some(("RUNTIME_DIRECTORY", runtime.path().into()));
    // Bright: the local rule switches it off, so a run without the lease would.
    agent.set_light("900");
    agent.run();
    eventually("it is online", || listener.last_text("status") == "online");
    let command = r#"{"led_on":true,"id":"evening"}"#;
    listener.publish("commands", command);
    eventually("it is on", || agent.led_on());
    let by_remote = |agent: &Agent| {
        let status = agent.status().unwrap_or_default();
        status["by"] == "remote" && status["why"] == "command evening"
    };
    eventually("by the server", || by_remote(&agent));
    eventually("it is told", || led_events(&listener) > 0);
    let events = led_events(&listener);
    // The moment by which what changed is kept.
    eventually("it is kept", || {
        fs::read_dir(runtime.path())
            .expect("there")
            .any(|file| read(&file.expect("readable").path()).contains("command evening"))
    });
    let changes = super::commands::changes_of(agent.path("led"));
    for ends_cleanly in [false, true, false] {
        let run = agent.status().expect("a status")["run"].clone();
        match ends_cleanly {
            true => assert_eq!(agent.stop().code(), Some(0)),
            false => agent.kill(),
        }
        agent.run();
        eventually("it answers", || {
            agent
                .status()
                .is_some_and(|status| status["run"] != run && status["link_up"] == true)
        });
        assert!(by_remote(&agent), "{:?}", agent.status());
        let told = |listener: &Listener| {
            let results = listener.on("commands/result");
            results
                .iter()
                .filter(|result| result["result"] == "duplicate")
                .count()
        };
        let before = told(&listener);
        eventually("the same command is known", || {
            listener.publish("commands", command);
            told(&listener) > before
        });
    }
    eventually("readings of the last run came", || {
        let run = agent.status().unwrap_or_default()["run"].clone();
        listener
            .on("telemetry")
            .iter()
            .filter(|reading| reading["run"] == run)
            .count()
            > 5
    });
    assert_eq!(changes(), 0);
    assert_eq!(led_events(&listener), events);
    let applied = listener.on("commands/result");
    let applied = applied
        .iter()
        .filter(|result| result["result"] == "applied")
        .count();
    assert_eq!(applied, 1);
}
