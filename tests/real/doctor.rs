//! `nightlight doctor` on the real program: what it finds, what it exits with, and that it disturbs nobody.

#![allow(clippy::expect_used, reason = "test code")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::stage::{Agent, Broker, Listener, eventually, outcome};

/// The findings about one thing: state and what was seen.
fn about<'a>(report: &'a str, what: &str) -> Vec<(&'a str, &'a str)> {
    report
        .lines()
        .filter_map(|line| Some((line.get(..5)?.trim(), line.get(6..)?)))
        .filter(|(state, seen)| !state.is_empty() && seen.starts_with(what))
        .collect()
}

fn states<'a>(report: &'a str, what: &str) -> Vec<&'a str> {
    about(report, what).into_iter().map(|it| it.0).collect()
}

#[test]
fn a_good_machine_is_told_to_be_good() {
    let broker = Broker::start();
    let agent = Agent::prepare("doc-a", broker.port, "");
    let (code, report, why) = outcome(agent.other("doctor"));
    assert_eq!(code, Some(0), "{report}{why}");
    for what in [
        "configuration",
        "system",
        "sensor",
        "LED",
        "broker",
        "disk",
        "backlog",
    ] {
        assert!(states(&report, what).contains(&"ok"), "{what}: {report}");
    }
    assert!(about(&report, "sensor")[0].1.contains("500"), "{report}");
    assert!(!report.contains("fail "), "{report}");
}

#[test]
fn a_running_daemon_is_asked_and_not_disturbed() {
    let broker = Broker::start();
    let listener = Listener::start("doc-b", broker.port);
    eventually("the listener listens", || listener.listens());
    let agent = Agent::start("doc-b", broker.port, "");
    let linked = || {
        let status = agent.status();
        status.is_some_and(|status| status["link_up"] == true)
    };
    eventually("the link is up", linked);
    let heard = listener.on("telemetry").len();
    let (code, report, _) = outcome(agent.other("doctor"));
    assert_eq!(code, Some(0), "{report}");
    assert!(
        report.contains("read by the running nightlight"),
        "{report}"
    );
    assert!(report.contains("a running nightlight has it"), "{report}");
    eventually("readings go on", || {
        listener.on("telemetry").len() > heard + 5
    });
    assert!(linked());
    assert!(
        !agent.log().contains("closed the connection"),
        "{}",
        agent.log()
    );
    let outages = listener.on("events").into_iter();
    assert_eq!(
        outages.filter(|event| event["event"] == "outage").count(),
        0
    );
}

#[test]
fn a_broker_that_refuses_is_told_from_one_that_is_not_there() {
    let broker = Broker::start_with("allow_anonymous false\n");
    let agent = Agent::prepare("doc-c", broker.port, "");
    let (code, report, _) = outcome(agent.other("doctor"));
    assert_eq!(code, Some(77), "{report}");
    assert!(report.contains("refuses us"), "{report}");
    let agent = Agent::prepare("doc-d", Broker::absent().port, "");
    let (code, report, _) = outcome(agent.other("doctor"));
    assert_eq!(code, Some(70), "{report}");
    assert!(report.contains("nobody listens"), "{report}");
}

#[test]
fn a_broker_that_says_nothing_and_a_sensor_that_hangs_hold_nobody_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let agent = Agent::prepare("doc-e", port, "");
    fs::remove_file(agent.path("light")).expect("removed");
    let made = std::process::Command::new("mkfifo")
        .arg(agent.path("light"))
        .status();
    assert!(made.expect("mkfifo runs").success());
    let begun = Instant::now();
    let (code, report, _) = outcome(agent.other("doctor"));
    assert!(begun.elapsed() < Duration::from_secs(25));
    assert_eq!(code, Some(70), "{report}");
    assert_eq!(states(&report, "broker"), ["fail"], "{report}");
    assert_eq!(states(&report, "sensor"), ["fail"], "{report}");
    // What it is and what was seen of it: nothing, within a time.
    assert!(
        report.contains("no ordinary file and gave no number within"),
        "{report}"
    );
    // The others had their say.
    assert_eq!(states(&report, "LED"), ["ok"], "{report}");
}

#[test]
fn a_wrong_configuration_comes_first_and_the_machine_is_examined_all_the_same() {
    let agent = Agent::prepare("doc-f", 1, "[led]\npin = 99\n[web]\nlisten = \"here\"\n");
    let (code, report, _) = outcome(agent.other("doctor"));
    assert_eq!(code, Some(78), "{report}");
    assert!(report.starts_with("fail  configuration"), "{report}");
    assert_eq!(states(&report, "configuration").len(), 2, "{report}");
    assert_eq!(states(&report, "system"), ["ok"], "{report}");
    assert!(about(&report, "broker").is_empty(), "{report}");
}

#[test]
fn a_missing_right_is_told_with_its_remedy() {
    let broker = Broker::start();
    let agent = Agent::prepare("doc-g", broker.port, "");
    let own = fs::Permissions::from_mode(0o644);
    fs::set_permissions(agent.path("led"), own).expect("changed");
    let (code, report, _) = outcome(agent.other_as_nobody("doctor"));
    assert_eq!(code, Some(77), "{report}");
    assert_eq!(states(&report, "LED"), ["fail"], "{report}");
    assert!(report.contains("60-nightlight.rules"), "{report}");
}

#[test]
fn a_backlog_at_rest_is_counted() {
    let mut agent = Agent::start("doc-h", 1, "");
    eventually("records wait", || {
        agent
            .status()
            .is_some_and(|status| status["backlog"].as_u64() > Some(5))
    });
    assert_eq!(agent.stop().code(), Some(0));
    let (_, report, _) = outcome(agent.other("doctor"));
    let (state, seen) = about(&report, "backlog")[0];
    assert_eq!(state, "ok", "{report}");
    assert!(
        seen.contains("at rest: ") && !seen.contains(" 0 records"),
        "{report}"
    );
}

const TOPICS: [(&str, &str); 8] = [
    ("write", "telemetry"),
    ("write", "telemetry/history"),
    ("write", "events"),
    ("write", "commands/result"),
    ("write", "state"),
    ("write", "status"),
    ("read", "commands"),
    ("read", "acks"),
];

/// A broker with an access list.
fn guarded(lines: &str) -> (Broker, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("acl");
    fs::write(&file, lines).expect("written");
    // mosquitto reads it as the user that it runs as, and warns of a file that others may read.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("changed");
    let broker = Broker::start_with(&format!(
        "allow_anonymous true\nacl_file {}\n",
        file.display()
    ));
    (broker, folder)
}

#[test]
fn each_topic_that_the_access_list_lacks_is_named_with_the_line_to_add() {
    for (right, lacking) in TOPICS {
        let list: String = TOPICS
            .iter()
            .filter(|(_, name)| *name != lacking)
            .map(|(_, name)| format!("topic readwrite doc-i/{name}\n"))
            .collect();
        let (broker, _folder) = guarded(&list);
        let agent = Agent::prepare("doc-i", broker.port, "");
        let (code, report, _) = outcome(agent.other("doctor"));
        assert_eq!(code, Some(77), "{lacking}: {report}");
        let denied = about(&report, "access list");
        assert_eq!(denied.len(), 1, "{lacking}: {report}");
        assert_eq!(denied[0].0, "fail", "{lacking}: {report}");
        assert!(
            denied[0].1.contains(&format!("doc-i/{lacking}: ")),
            "{report}"
        );
        let line = format!("`topic {right} doc-i/{lacking}`");
        assert!(report.contains(&line), "{lacking}: {report}");
        assert_eq!(report.matches("`topic ").count(), 1, "{report}");
    }
}

#[test]
fn with_the_least_rights_doctor_says_what_it_cannot_know_and_fails_nothing() {
    let list: String = TOPICS
        .iter()
        .map(|(right, name)| format!("topic {right} doc-j/{name}\n"))
        .collect();
    let (broker, _folder) = guarded(&list);
    let agent = Agent::prepare("doc-j", broker.port, "");
    let (code, report, _) = outcome(agent.other("doctor"));
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(states(&report, "access list"), ["warn"], "{report}");
    assert!(report.contains("cannot know"), "{report}");
}
