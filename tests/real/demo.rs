//! The demonstration as a user runs it: the real program, a real broker, about a minute each.
//!
//! Needs mosquitto; where it is missing these tests say so and do nothing, because a test does not
//! install packages.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rumqttc::{Client, Event, Incoming, MqttOptions, QoS};

/// Limits are generous: a slow machine is no fault.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn the_demonstration_comes_out_right() {
    if mosquitto().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = demo(folder.path(), &[]).output().unwrap();
    let text = right(&output);
    for line in [
        "1. On line: the server decides",
        "2. The cable is pulled",
        "the LED is ON, by the Pi's own decision",
        "4. The power is cut, too",
        "-> power is back: the LED is ON",
        "5. The cable is back",
        "switched on by the Pi itself",
    ] {
        assert!(text.contains(line), "no \"{line}\" in:\n{text}");
    }
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
        assert!(
            !line.contains(" INFO ") && !line.contains(" WARN "),
            "{line}"
        );
    }
    assert!(number(&text, "lost to the power cut") <= 10, "{text}");
    let replayed: u32 = number(&text, "received by replay");
    assert!(replayed > 50, "{text}");
    let all = number(&text, "received live") + replayed;
    assert_eq!(all, number(&text, "taken by the Pi"), "{text}");
    assert!(!text.contains('\u{1b}'), "colour is for terminals");
    assert!(is_empty(folder.path()), "files were left behind");
}

#[test]
fn a_recording_that_never_crosses_is_told_so_and_a_foreign_broker_is_left_clean() {
    let Some(broker) = Broker::start() else {
        return;
    };
    let recording = tempfile::tempdir().unwrap();
    let file = recording.path().join("cellar.csv");
    std::fs::write(&file, "time,lux\n0,20\n60,21\n120,19\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let arguments = ["--broker", &url, "--trace", file.to_str().unwrap()];
    let output = demo(folder.path(), &arguments).output().unwrap();
    let text = right(&output);
    assert!(text.contains("does not cross the threshold"), "{text}");
    assert!(text.contains("not switched"), "{text}");
    assert_eq!(broker.retained(), [""; 0]);
    assert!(is_empty(folder.path()), "files were left behind");
}

#[test]
fn an_interrupt_ends_it_and_leaves_nothing_behind() {
    if mosquitto().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut child = demo(folder.path(), &[]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = |wanted: &str| {
        let line = lines.find(|line| line.as_ref().unwrap().contains(wanted));
        line.unwrap().unwrap()
    };
    let port = next("broker   a mosquitto of its own");
    let port: u16 = port.rsplit(':').next().unwrap().parse().unwrap();
    next("by server");
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(70));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(is_empty(folder.path()), "files were left behind");
    let mut told = String::new();
    child.stderr.unwrap().read_to_string(&mut told).unwrap();
    assert!(told.contains("stopped before its end"), "{told}");
}

#[test]
fn stale_commands_move_nothing_and_the_report_needs_no_other_file() {
    if mosquitto().is_none() {
        return;
    }
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = out.path().join("report.html");
    let arguments = [
        "--scenario",
        "stale-commands",
        "--report",
        file.to_str().unwrap(),
    ];
    let output = demo(folder.path(), &arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{stderr}");
    for line in [
        "-> expired: expired",
        "-> done-once: duplicate",
        "-> burst-1: superseded",
    ] {
        assert!(text.contains(line), "no \"{line}\" in:\n{text}");
    }
    assert!(!text.contains("LED ●"), "{text}");
    let report = std::fs::read_to_string(&file).unwrap();
    for part in ["<svg", "The account is right", "The cable is pulled"] {
        assert!(report.contains(part), "no {part} in:\n{report}");
    }
    for foreign in ["http://", "https://", "<script", "src=", "url("] {
        assert!(!report.contains(foreign), "{foreign}");
    }
    assert!(is_empty(folder.path()), "files were left behind");
}

/// Every fault of the panel, by POST as the page does it, and a good end.
#[test]
fn in_somebodys_hands_each_fault_is_real_and_the_account_is_right() {
    if mosquitto().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--scenario", "hands-on"];
    let mut child = demo(folder.path(), &arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = loop {
        let line = lines.next().unwrap().unwrap();
        if let Some(url) = line.strip_prefix("page     http://127.0.0.1:") {
            break url.trim_end_matches('/').parse::<u16>().unwrap();
        }
    };
    // Nobody may block because the story is not read.
    let told = std::thread::spawn(move || {
        let lines = lines.map_while(Result::ok);
        lines.collect::<Vec<_>>().join("\n")
    });
    let panel = Panel { port: url };
    let token = panel.get("/");
    let token = token.split("data-token=\"").nth(1).unwrap();
    let token = token.split('"').next().unwrap();
    assert_eq!(panel.ask("0123456789abcdef0123456789abcdef", "pull"), 403);
    let act = |name: &str| assert_eq!(panel.ask(token, name), 202, "{name}");
    let status = |wanted: &str| panel.until("/status", wanted);
    status("\"by\":\"remote\"");
    act("light=600");
    status("\"led_on\":false");
    act("cover");
    status("\"led_on\":true");
    act("old-command");
    panel.until("/panel", "ten minutes ago");
    act("set-clock");
    act("pull");
    status("\"by\":\"fallback\"");
    act("cut-power");
    panel.until("/panel", "\"has_power\":false");
    panel.until("/status", "nightlight does not answer");
    act("give-power");
    status("\"by\":\"fallback\"");
    act("plug");
    status("\"by\":\"remote\"");
    act("kill-server");
    status("\"by\":\"fallback\"");
    act("kill-broker");
    status("\"link_up\":false");
    // It puts in order whatever is not.
    act("finish");
    let told = told.join().unwrap();
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{told}\n{stderr}");
    assert!(told.contains("answers the old command: expired"), "{told}");
    assert!(told.contains("The account is right"), "{told}");
    assert!(is_empty(folder.path()), "files were left behind");
}

#[test]
#[ignore = "some three minutes; scenarios are run by hand after a change of the demonstration"]
fn every_scenario_comes_out_right() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(folder.path(), &["--scenario", "all"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

/// The whole of it needs a network of its own: tests/drill/run.
#[test]
fn a_drill_without_a_service_says_so_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nightlight.toml");
    let state = folder.path().join("state");
    std::fs::write(&file, format!("[backlog]\npath = {state:?}\n")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_nightlight"))
        .args(["drill", "--config"])
        .arg(&file)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let is_told = match output.status.code() {
        Some(77) => told.contains("only root"),
        Some(70) => told.contains("needs the service running"),
        _ => false,
    };
    assert!(is_told, "{:?} {told}", output.status);
    assert!(!folder.path().join("report.json").exists() && !state.exists());
}

/// The page, as a browser asks it.
struct Panel {
    port: u16,
}

impl Panel {
    fn send(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(&self, path: &str) -> String {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:{}\r\n\r\n",
            self.port
        ))
    }

    fn ask(&self, token: &str, act: &str) -> u16 {
        let (port, length) = (self.port, act.len());
        let answer = self.send(&format!(
            "POST /panel HTTP/1.1\r\nHost: localhost:{port}\r\nOrigin: http://localhost:{port}\r\n\
             X-Panel-Token: {token}\r\nContent-Length: {length}\r\n\r\n{act}"
        ));
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn until(&self, path: &str, wanted: &str) {
        let over = Instant::now() + LIMIT * 2;
        loop {
            let answer = self.get(path);
            if answer.contains(wanted) {
                return;
            }
            assert!(Instant::now() < over, "never {wanted} in {answer}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn what_cannot_be_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let unused = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = unused.local_addr().unwrap().port();
    drop(unused);
    let nobody = format!("mqtt://127.0.0.1:{port}");
    for (arguments, told) in [
        (["--broker", "mqtts://hub.local"], "plain mqtt://"),
        (["--broker", &nobody], "the broker at 127.0.0.1"),
        (["--trace", "/no/such.csv"], "/no/such.csv"),
    ] {
        let output = demo(folder.path(), &arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(70), "{stderr}");
        assert!(stderr.contains(told), "{stderr}");
        assert!(is_empty(folder.path()), "files were left behind");
    }
}

/// The command; its temporary files go into `folder`.
fn demo(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nightlight"));
    command
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", folder)
        .env_remove("NIGHTLIGHT_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The output of a demonstration, which must have come out right.
fn right(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{stderr}");
    assert_eq!(number(&text, "missing"), 0, "{text}");
    assert_eq!(number(&text, "twice"), 0, "{text}");
    assert!(text.contains("The account is right"), "{text}");
    text
}

/// The number in the line of the account that begins with `name`.
fn number(text: &str, name: &str) -> u32 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no number for {name} in:\n{text}"))
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

fn mosquitto() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join("mosquitto"))
        .find(|program| program.is_file());
    if found.is_none() {
        eprintln!("not tried: mosquitto is not installed");
    }
    found
}

/// A broker that is not the demonstration's.
struct Broker {
    port: u16,
    child: Child,
}

impl Broker {
    fn start() -> Option<Self> {
        let program = mosquitto()?;
        let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        // Without a configuration it listens on this machine alone and lets everybody in.
        let child = Command::new(program)
            .args(["-p", &port.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let over = Instant::now() + LIMIT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < over, "mosquitto does not listen");
            std::thread::yield_now();
        }
        Some(Self { port, child })
    }

    /// The topics of which the broker keeps a message.
    fn retained(&self) -> Vec<String> {
        let mut options = MqttOptions::new("looks-after", "127.0.0.1", self.port);
        options.set_max_packet_size(1024 * 1024, 1024 * 1024);
        let (client, mut events) = Client::new(options, 16);
        client.subscribe("#", QoS::AtLeastOnce).unwrap();
        // What comes back after the retained messages tells that these were all.
        client
            .publish("end", QoS::AtLeastOnce, false, "end")
            .unwrap();
        let mut kept = Vec::new();
        loop {
            match events.recv_timeout(LIMIT).unwrap().unwrap() {
                Event::Incoming(Incoming::Publish(publish)) if publish.topic == "end" => break,
                Event::Incoming(Incoming::Publish(publish)) => kept.push(publish.topic),
                _ => {}
            }
        }
        kept
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
