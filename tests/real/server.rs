//! The reference server with real devices and a real broker: what a device that waits for its acks
//! may rely on, whoever of the three dies.

#![allow(clippy::expect_used, reason = "test code")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::stage::{Agent, Broker, Listener, eventually, within};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The real server as a process. Its store outlives it.
pub struct Server {
    folder: TempDir,
    port: u16,
    more: Vec<String>,
    child: Option<Child>,
}

impl Server {
    pub fn prepare(port: u16, more: &[&str]) -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            port,
            more: more.iter().map(|text| (*text).to_owned()).collect(),
            child: None,
        }
    }

    pub fn start(port: u16, more: &[&str]) -> Self {
        let mut server = Self::prepare(port, more);
        server.run();
        server
    }

    pub fn run(&mut self) {
        let file = |name: &str| {
            fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.folder.path().join(name))
                .expect("a file")
        };
        let child = self
            .command()
            .arg("--broker")
            .arg(format!("mqtt://127.0.0.1:{}", self.port))
            .args(&self.more)
            .stdout(file("printed"))
            .stderr(file("log"))
            .spawn()
            .expect("the server starts");
        self.child = Some(child);
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightlight"));
        command
            .arg("server")
            .arg("--store")
            .arg(self.store())
            .stdin(Stdio::null());
        command
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("a process").id();
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(pid.to_string())
            .status();
        assert!(status.expect("kill runs").success());
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a process").id()
    }

    /// SIGKILL.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }

    /// SIGTERM; ends with 0 within 5 s.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let mut child = self.child.take().expect("a process");
        let mut status = None;
        let ended = within(Duration::from_secs(5), || {
            status = child.try_wait().expect("a status");
            status.is_some()
        });
        if !ended {
            let _ = child.kill();
        }
        let code = status.and_then(|status| status.code());
        assert_eq!(code, Some(0), "{}", self.read("log"));
    }

    /// What `--account` prints of the store at rest.
    pub fn account(&self) -> String {
        let output = self.command().arg("--account").output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the server\n{}", self.read("log"));
        }
    }
}

/// A device whose records count only when the server has acked them.
fn waiting_agent(id: &str, port: u16) -> Agent {
    let more = "[delivery]\nconfirm = \"server\"\nack_timeout = \"3s\"\nreplay_jitter = \"100ms\"\n\
                replay_rate = 0\n";
    Agent::prepare(id, port, more)
}

/// Hears what servers publish.
fn ear(port: u16) -> Listener {
    let listener = Listener::start("nightlight", port);
    eventually("the ear listens", || listener.listens());
    listener
}

fn status(ear: &Listener) -> String {
    ear.last_text("server/status")
}

/// The last published account of a device.
fn account(ear: &Listener, id: &str) -> Value {
    let accounts = ear.on(&format!("server/account/{id}"));
    accounts.last().cloned().unwrap_or(Value::Null)
}

#[test]
fn a_reading_is_answered_kept_and_acked() {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(broker.port, &[]);
    eventually("it is on line", || status(&ear) == "online");
    let listener = Listener::start("pi-a", broker.port);
    eventually("the listener listens", || listener.listens());
    let mut agent = waiting_agent("pi-a", broker.port);
    agent.set_light("100");
    agent.run();
    eventually("the LED is on", || agent.led_on());
    eventually("the server decides", || {
        let states = listener.on("state");
        states.last().is_some_and(|state| state["by"] == "remote")
    });
    agent.set_light("400");
    eventually("the LED is off", || !agent.led_on());
    let command = &listener.on("commands")[0];
    assert_eq!(command["led_on"], true);
    assert!(command["id"].is_string() && command["issued_at"].is_string());
    eventually("accounts are told", || {
        account(&ear, "pi-a")["received"].as_u64() > Some(20)
    });
    server.signal("USR1");
    eventually("it prints", || server.read("printed").contains("pi-a: "));
    assert_eq!(agent.stop().code(), Some(0));
    eventually("all is acked", || {
        let acked: u64 = listener
            .on("acks")
            .iter()
            .flat_map(|ack| ack["acked"].as_array().cloned().unwrap_or_default())
            .map(|range| range[1].as_u64().unwrap_or(0) - range[0].as_u64().unwrap_or(0) + 1)
            .sum();
        acked == listener.records().len() as u64
    });
    server.stop();
    eventually("it says offline", || status(&ear) == "offline");
    let text = server.account();
    assert!(text.contains(" 0 twice, 0 lost, 0 missing"), "{text}");
    let records = listener.records().len();
    assert!(
        text.starts_with(&format!("pi-a: {records} received")),
        "{text}"
    );
}

#[test]
fn without_the_server_the_backlog_stays_and_with_it_it_drains() {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let listener = Listener::start("pi-b", broker.port);
    eventually("the listener listens", || listener.listens());
    let mut server = Server::start(broker.port, &[]);
    eventually("it is on line", || status(&ear) == "online");
    server.stop();
    let mut agent = waiting_agent("pi-b", broker.port);
    agent.run();
    eventually("readings arrive", || listener.on("telemetry").len() >= 40);
    assert!(listener.on("acks").is_empty());
    // Whoever restarts has only the disk.
    assert_eq!(agent.stop().code(), Some(0));
    agent.run();
    eventually("the backlog is known", || {
        (40..NOT_KNOWN).contains(&backlog(&agent))
    });
    std::thread::sleep(Duration::from_secs(4));
    assert!(
        (40..NOT_KNOWN).contains(&backlog(&agent)),
        "nothing leaves without an ack"
    );
    server.run();
    eventually("the backlog drains", || {
        account(&ear, "pi-b")["received"].as_u64() > Some(60) && backlog(&agent) == 0
    });
    assert_eq!(agent.stop().code(), Some(0));
    server.stop();
    let text = server.account();
    assert!(text.contains(" 0 lost, 0 missing, in 2 runs"), "{text}");
}

const NOT_KNOWN: u64 = u64::MAX;

/// The backlog as the device itself tells it, by asking it.
fn backlog(agent: &Agent) -> u64 {
    let output = Command::new(env!("CARGO_BIN_EXE_nightlight"))
        .args(["status", "--json", "--config"])
        .arg(agent.path("nightlight.toml"))
        .output()
        .expect("it runs");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    status["backlog"].as_u64().unwrap_or(NOT_KNOWN)
}

#[test]
fn a_server_killed_again_and_again_during_a_replay_loses_nothing() {
    let mut broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(broker.port, &[]);
    eventually("it is on line", || status(&ear) == "online");
    broker.stop();
    // 100 records a second, replayed for about as long as the kills take.
    let more = "[sensor]\ndriver = \"iio\"\npath = \"{folder}/light\"\ninterval = \"10ms\"\n\
                [delivery]\nconfirm = \"server\"\nack_timeout = \"2s\"\nreplay_rate = 300\n\
                replay_jitter = \"0s\"\n";
    let mut agent = Agent::start("pi-c", broker.port, more);
    std::thread::sleep(Duration::from_secs(15));
    server.kill();
    broker.restart();
    for round in 0..8 {
        server.run();
        std::thread::sleep(Duration::from_millis(250 + 90 * round));
        server.kill();
    }
    server.run();
    eventually("the backlog drains", || backlog(&agent) == 0);
    eventually("nothing is missing", || {
        let account = account(&ear, "pi-c");
        account["missing"] == 0 && account["received"].as_u64() > Some(1_200)
    });
    assert_eq!(agent.stop().code(), Some(0));
    server.stop();
    let text = server.account();
    assert!(text.contains(" 0 lost, 0 missing"), "{text}");
    println!("{text}");
    let output = server.command().arg("--export").output().expect("it runs");
    let seqs: Vec<u64> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["record"]["seq"].as_u64())
        .collect();
    let all: Vec<u64> = (1..=seqs.len() as u64).collect();
    assert_eq!(seqs, all, "each record once, in order");
    assert!(
        text.starts_with(&format!("pi-c: {} received", all.len())),
        "{text}"
    );
}

#[test]
fn a_restart_asks_for_nothing_twice() {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(broker.port, &[]);
    eventually("it is on line", || status(&ear) == "online");
    let mut agent = waiting_agent("pi-d", broker.port);
    agent.run();
    for _ in 0..3 {
        eventually("records come", || {
            account(&ear, "pi-d")["received"].as_u64() > Some(10)
        });
        server.stop();
        eventually("it says offline", || status(&ear) == "offline");
        std::thread::sleep(Duration::from_millis(700));
        server.run();
        eventually("it is on line", || status(&ear) == "online");
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(agent.stop().code(), Some(0));
    server.stop();
    let text = server.account();
    assert!(text.contains(" 0 twice, 0 lost, 0 missing"), "{text}");
}

#[test]
fn one_covered_sensor_does_not_light_the_hall() {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let _server = Server::start(broker.port, &["--group", "hall=hall-1,hall-2,hall-3"]);
    eventually("it is on line", || status(&ear) == "online");
    let agents = ["hall-1", "hall-2", "hall-3"].map(|id| Agent::start(id, broker.port, ""));
    let listener = Listener::start("hall-1", broker.port);
    eventually("the listener listens", || listener.listens());
    for agent in &agents {
        agent.set_light("800");
    }
    eventually("the server decides", || {
        let states = listener.on("state");
        states.last().is_some_and(|state| state["by"] == "remote")
    });
    agents[0].set_light("3");
    eventually("the covered one has told", || {
        let readings = listener.on("telemetry");
        readings
            .iter()
            .filter(|reading| reading["light"] == 3)
            .count()
            > 5
    });
    assert!(agents.iter().all(|agent| !agent.led_on()));
    agents[2].set_light("10");
    eventually("two of three are dark", || agents.iter().all(Agent::led_on));
    agents[0].set_light("800");
    eventually("one of three is dark", || !agents.iter().any(Agent::led_on));
}

#[test]
fn what_a_device_gave_up_is_lost_and_nothing_is_missing() {
    let mut broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(broker.port, &[]);
    eventually("it is on line", || status(&ear) == "online");
    broker.stop();
    let more = "[backlog]\npath = \"{folder}/backlog\"\nmax_records = 100\non_full = \"thin\"\n\
                [sensor]\ndriver = \"iio\"\npath = \"{folder}/light\"\ninterval = \"10ms\"\n\
                [delivery]\nconfirm = \"server\"\nack_timeout = \"2s\"\nreplay_jitter = \"0s\"\n\
                batch = 20\n";
    let mut agent = Agent::start("pi-e", broker.port, more);
    std::thread::sleep(Duration::from_secs(6));
    broker.restart();
    eventually("the loss is told and all is there", || {
        let account = account(&ear, "pi-e");
        backlog(&agent) == 0 && account["missing"] == 0 && account["lost"].as_u64() > Some(100)
    });
    assert_eq!(agent.stop().code(), Some(0));
    server.stop();
    let text = server.account();
    println!("{text}");
    assert!(text.contains(" 0 missing"), "{text}");
}

#[test]
fn hostile_payloads_are_counted_and_do_nothing() {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(broker.port, &["--device", "odd"]);
    eventually("it is on line", || status(&ear) == "online");
    let device = Listener::start("odd", broker.port);
    eventually("the device listens", || device.listens());
    let run = "0b7e0000-0000-4000-8000-000000000001";
    device.publish("telemetry", json!({"light": 5}).to_string());
    eventually("it is answered", || {
        device
            .on("commands")
            .last()
            .is_some_and(|c| c["led_on"] == true)
    });
    let huge = u64::MAX;
    for rubbish in [
        "".to_owned(),
        "[[[[".to_owned(),
        "x".repeat(200_000),
        format!(r#"{{"light":"dark","run":"{run}","seq":1}}"#),
        format!(r#"{{"light":1,"run":"{run}","seq":{huge}}}"#),
        format!(r#"[{{"light":1,"run":"{run}","seq":2}},{{"light":1,"run":7,"seq":3}}]"#),
        format!(
            r#"{{"event":"loss","of_run":"{run}","from_seq":3,"to_seq":{huge},"run":"{run}","seq":3}}"#
        ),
    ] {
        device.publish("events", rubbish);
    }
    let many: Vec<Value> = (0..4_000)
        .map(|n| json!({"light": n, "run": run, "seq": 10 + 2 * n}))
        .collect();
    device.publish("telemetry/history", json!(many).to_string());
    eventually("all is counted", || {
        let account = account(&ear, "odd");
        account["rubbish"] == 6 && account["received"] == 4_002 && account["plain"] == 1
    });
    eventually("every range is acked", || {
        let acks = device.on("acks");
        let ranges = acks.iter().filter_map(|ack| ack["acked"].as_array());
        ranges.map(Vec::len).sum::<usize>() >= 4_001
    });
    assert_eq!(device.on("commands").len(), 1);
    server.stop();
    assert!(server.account().contains("6 rubbish"));
}

#[test]
fn a_store_in_use_or_absent_is_told_in_a_line() {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let server = Server::start(broker.port, &[]);
    eventually("it is on line", || status(&ear) == "online");
    let output = server.command().arg("--account").output().expect("it runs");
    assert_eq!(output.status.code(), Some(70));
    assert!(String::from_utf8_lossy(&output.stderr).contains("running server"));
    let nobody = Server::prepare(broker.port, &[]);
    let output = nobody.command().arg("--account").output().expect("it runs");
    assert_eq!(output.status.code(), Some(70));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no store"));
    assert!(!nobody.store().exists());
}
