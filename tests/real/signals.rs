//! Signals that habit sends to a daemon, and the stop at every stage of the way to the broker.

use std::time::Duration;

use crate::stage::{Agent, Broker, Listener, eventually, signal};

#[test]
fn signals_that_mean_nothing_here_do_no_harm() {
    let broker = Broker::start();
    let listener = Listener::start("sig-a", broker.port);
    eventually("the listener listens", || listener.listens());
    let mut agent = Agent::start("sig-a", broker.port, "");
    eventually("readings arrive", || listener.on("telemetry").len() >= 3);
    for _ in 0..3 {
        for name in ["HUP", "USR1", "USR2", "ALRM", "PIPE"] {
            signal(agent.pid(), name);
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
