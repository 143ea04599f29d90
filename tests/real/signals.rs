//! Signals that habit sends to a daemon, and the stop at every stage of the way to the broker.

use std::process::Command;
use std::time::Duration;

use crate::server::Server;
use crate::stage::{Agent, Broker, Listener, eventually, signal};

#[test]
fn signals_that_mean_nothing_here_do_no_harm() {
    let broker = Broker::start();
    let listener = Listener::start("sig-a", broker.port);
    eventually("the listener listens", || listener.listens());
    let mut agent = Agent::start("sig-a", broker.port, "");
    let mut server = Server::start(broker.port, &[]);
    eventually("readings arrive", || listener.on("telemetry").len() >= 3);
    eventually("the server is there", || {
        server.read("log").contains("connected")
    });
    for _ in 0..3 {
        for name in ["HUP", "USR1", "USR2", "ALRM", "PIPE"] {
            signal(agent.pid(), name);
            server.signal(name);
        }
    }
    eventually("the daemon says what it does with them", || {
        ["SIGHUP", "SIGUSR1", "SIGUSR2"]
            .iter()
            .all(|name| agent.log().contains(name))
    });
    let readings = listener.on("telemetry").len();
    eventually("readings go on", || {
        listener.on("telemetry").len() > readings + 5
    });
    assert_eq!(agent.log().matches("SIGHUP").count(), 1, "{}", agent.log());
    assert!(!agent.log().contains("link down"), "{}", agent.log());
    assert_eq!(agent.stop().code(), Some(0));
    server.stop();
}

#[test]
fn the_help_of_the_server_names_a_command_that_finds_the_server_alone() {
    let help = Command::new(env!("CARGO_BIN_EXE_nightlight"))
        .args(["server", "--help"])
        .output()
        .expect("it runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let command = help
        .lines()
        .find_map(|line| line.trim().strip_prefix("pkill -USR1 "))
        .expect("the help says how");
    let broker = Broker::start();
    let agent = Agent::start("sig-b", broker.port, "");
    let mut server = Server::start(broker.port, &[]);
    eventually("the server is there", || {
        server.read("log").contains("connected")
    });
    // Others on this machine may have servers of their own: found, and not signalled.
    let found = Command::new("sh")
        .args(["-c", &format!("pgrep {command}")])
        .output()
        .expect("pgrep runs");
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    let found: Vec<u32> = found.lines().filter_map(|pid| pid.parse().ok()).collect();
    assert!(found.contains(&server.pid()), "{command}: {found:?}");
    assert!(!found.contains(&agent.pid()), "{command}: {found:?}");
    server.stop();
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let broker = Broker::start();
    let listener = Listener::start("sig-c", broker.port);
    eventually("the listener listens", || listener.listens());
    let agent = Agent::prepare("sig-c", broker.port, "");
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("there");
    let mut child = agent.other("run").stderr(full).spawn().expect("it starts");
    eventually("readings arrive", || listener.on("telemetry").len() >= 3);
    signal(child.id(), "TERM");
    let mut status = None;
    let ended = crate::stage::within(Duration::from_secs(2), || {
        status = child.try_wait().expect("a status");
        status.is_some()
    });
    if !ended {
        let _ = child.kill();
    }
    assert_eq!(status.and_then(|status| status.code()), Some(0));
}
