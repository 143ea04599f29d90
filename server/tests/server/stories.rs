//! The server with real devices, a real broker and a real database: what a device that waits for its acks
//! may rely on, whoever of them dies. Each story is told with either database.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Server, Store};
use crate::stage::{Agent, Broker, Listener, eventually, outcome, program};

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

pub fn a_reading_is_answered_kept_and_acked(store: Store) {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(&store, broker.port, "");
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

pub fn without_the_server_the_backlog_stays_and_with_it_it_drains(store: Store) {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let listener = Listener::start("pi-b", broker.port);
    eventually("the listener listens", || listener.listens());
    let mut server = Server::start(&store, broker.port, "");
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
    let output = Command::new(program())
        .args(["status", "--json", "--config"])
        .arg(agent.path("nightlight.toml"))
        .output()
        .expect("it runs");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    status["backlog"].as_u64().unwrap_or(NOT_KNOWN)
}

pub fn a_server_killed_again_and_again_during_a_replay_loses_nothing(store: Store) {
    let mut broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(&store, broker.port, "");
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
    let output = server.command("export").output().expect("it runs");
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

pub fn a_restart_asks_for_nothing_twice(store: Store) {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(&store, broker.port, "");
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

pub fn one_covered_sensor_does_not_light_the_hall(store: Store) {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let _server = Server::start(
        &store,
        broker.port,
        "[groups]\nhall = [\"hall-1\", \"hall-2\", \"hall-3\"]\n",
    );
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

pub fn what_a_device_gave_up_is_lost_and_nothing_is_missing(store: Store) {
    let mut broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(&store, broker.port, "");
    eventually("it is on line", || status(&ear) == "online");
    broker.stop();
    let more = "[backlog]\npath = \"{folder}/backlog\"\nmax_records = 100\non_full = \"drop-oldest\"\n\
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

pub fn hostile_payloads_are_counted_and_do_nothing(store: Store) {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(&store, broker.port, "[devices]\nid = \"odd\"\n");
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

pub fn the_books_are_open_while_it_runs(store: Store) {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let nobody = Server::prepare(&store, broker.port, "");
    let output = nobody.command("account").output().expect("it runs");
    assert_eq!(output.status.code(), Some(70));
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        complaint.contains("no database") || complaint.contains("no tables"),
        "{complaint}"
    );
    let mut server = nobody;
    server.run();
    eventually("it is on line", || status(&ear) == "online");
    let device = Listener::start("pi-f", broker.port);
    eventually("the device listens", || device.listens());
    let run = "0b7e0000-0000-4000-8000-000000000001";
    let record = |seq: u64| json!({"light": seq, "run": run, "seq": seq, "ts": "2026-11-20T17:03:11.250Z", "clock": "synced"});
    for seq in [1, 2, 4] {
        device.publish("telemetry", record(seq).to_string());
    }
    eventually("they are kept", || account(&ear, "pi-f")["received"] == 3);
    let text = server.account();
    assert!(
        text.starts_with("pi-f: 3 received, 0 twice, 0 lost, 1 missing\n"),
        "{text}"
    );
    assert!(text.ends_with("1 missing (3)\n"), "{text}");
    let lines = server.print("export", &["--from", "2026-11-20T17:00:00Z"]);
    assert_eq!(lines.lines().count(), 3);
    let csv = server.print("export", &["--csv", "--device", "pi-f"]);
    assert!(
        csv.contains(",2,2026-11-20T17:03:11.250Z,synced,reading,2,,,\r\n"),
        "{csv}"
    );
    assert!(server.print("devices", &[]).contains("pi-f: 3 received"));
    let json: Value = serde_json::from_str(&server.print("devices", &["--json"])).expect("JSON");
    assert_eq!(
        (&json["device"], &json["run"]["missing"]),
        (&json!("pi-f"), &json!(1))
    );
    assert_eq!(server.print("forget", &["pi-f"]), "forgotten: 3 records\n");
    assert_eq!(server.print("devices", &[]), "");
    let file = server.path("lines");
    std::fs::write(&file, lines).expect("written");
    let file = file.display().to_string();
    assert_eq!(server.print("import", &[&file]), "imported: 3 records\n");
    assert!(
        server
            .account()
            .starts_with("pi-f: 3 received, 0 twice, 0 lost, 1 missing\n")
    );
    server.stop();
}

/// A switch by hand comes before threshold, majority and hours, at once and over a restart.
pub fn an_led_switched_by_hand_stays_until_told_otherwise(store: Store) {
    let broker = Broker::start();
    let ear = ear(broker.port);
    // Closed at every time but one minute of the day.
    let more = "[groups]\nyard = [\"pi-j\"]\n[rules.yard]\nfrom = \"03:00\"\nto = \"03:01\"\n\
                time_zone = \"UTC\"\n";
    let mut server = Server::start(&store, broker.port, more);
    eventually("it is on line", || status(&ear) == "online");
    let devices = ["pi-i", "pi-j"].map(|id| Listener::start(id, broker.port));
    let commanded = |n: usize, led_on: bool| {
        eventually("it is commanded", || {
            let reading = json!({"light": 5});
            devices[n].publish("telemetry", reading.to_string());
            std::thread::sleep(Duration::from_millis(50));
            let command = devices[n].on("commands").last().cloned();
            command.is_some_and(|command| command["led_on"] == led_on)
        });
    };
    eventually("they listen", || devices.iter().all(Listener::listens));
    commanded(0, true);
    commanded(1, false);
    let complaint = server.command("switch").args(["pi-x", "on"]).output();
    assert_eq!(complaint.expect("it runs").status.code(), Some(70));
    eventually("it is known", || {
        let output = server.command("switch").args(["pi-i", "off"]).output();
        output.expect("it runs").stdout == b"pi-i: off, by hand\n"
    });
    // Without another reading.
    eventually("it is told at once", || {
        devices[0].on("commands").last().expect("a command")["led_on"] == false
    });
    let printed = server.print("switch", &["--group", "yard", "on"]);
    assert_eq!(printed, "yard: on, by hand\n");
    commanded(1, true);
    server.stop();
    server.run();
    eventually("it is on line", || status(&ear) == "online");
    commanded(0, false);
    commanded(1, true);
    server.print("switch", &["--group", "yard", "auto"]);
    server.print("switch", &["pi-i", "auto"]);
    commanded(0, true);
    commanded(1, false);
    server.stop();
}

/// Records of long ago go while the server runs, and are neither missing nor taken again.
pub fn what_is_older_than_keep_is_deleted_beside_the_work(store: Store) {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(&store, broker.port, "keep = \"400d\"\n");
    eventually("it is on line", || status(&ear) == "online");
    let device = Listener::start("pi-h", broker.port);
    eventually("the device listens", || device.listens());
    let run = "0b7e0000-0000-4000-8000-000000000001";
    let tell = |seq: u64| {
        let record = json!({"light": seq, "run": run, "seq": seq});
        device.publish("telemetry", record.to_string());
    };
    (1..=5).for_each(tell);
    eventually("they are kept", || account(&ear, "pi-h")["received"] == 5);
    server.stop();
    server.sql("update records set received_at = '2020-01-01T00:00:00.000Z' where seq < 4");
    server.run();
    eventually("the old ones are gone", || {
        server.read("log").contains("deleted 3 records")
    });
    eventually("it is on line again", || status(&ear) == "online");
    (3..=6).for_each(tell);
    eventually("the account is right", || {
        let account = account(&ear, "pi-h");
        account["received"] == 3 && account["deleted"] == 3 && account["twice"] == 3
    });
    server.stop();
    let text = server.account();
    assert!(
        text.starts_with("pi-h: 3 received, 3 twice, 0 lost, 0 missing, 3 deleted\n"),
        "{text}"
    );
}

/// A loss that is told by itself is acked by its range, each time it comes; what was received all the same
/// counts as received.
pub fn a_loss_told_by_itself_is_acked_by_its_range(store: Store) {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(&store, broker.port, "");
    eventually("it is on line", || status(&ear) == "online");
    let device = Listener::start("pi-g", broker.port);
    eventually("the device listens", || device.listens());
    let run = "0b7e0000-0000-4000-8000-000000000001";
    let loss = json!({"event": "loss", "of_run": run, "from_seq": 1, "to_seq": 4, "count": 4, "reason": "backlog-full"});
    for times in 1..=2 {
        device.publish("telemetry/history", loss.to_string());
        eventually("it is acked", || {
            let acks = device.on("acks");
            acks.iter()
                .filter(|ack| ack["acked"] == json!([[1, 4]]))
                .count()
                == times
        });
    }
    device.publish(
        "telemetry",
        json!({"light": 1, "run": run, "seq": 3}).to_string(),
    );
    eventually("what came wins", || {
        let account = account(&ear, "pi-g");
        account["lost"] == 3 && account["received"] == 1 && account["missing"] == 0
    });
    server.stop();
}

/// Messages that are too large: read over, acknowledged and told, and what comes behind them arrives.
pub fn a_large_message_on_any_topic_ends_nothing(store: Store) {
    let broker = Broker::start();
    let topics = ["big-b/telemetry", "big-b/telemetry/history", "big-b/events"];
    let mut server = Server::start(&store, broker.port, "");
    eventually("it is there", || server.read("log").contains("connected"));
    let mut agent = Agent::start("big-b", broker.port, "[delivery]\nconfirm = \"server\"\n");
    let answered = |agent: &Agent| {
        let status = agent.status();
        status.is_some_and(|status| status["by"] == "remote" && status["backlog"] == 0)
    };
    eventually("it decides", || answered(&agent));
    for topic in topics {
        publish_large(broker.port, topic, 5_000_000, 1, true);
        publish_large(broker.port, topic, 1_100_000, 1, false);
    }
    eventually("they are told", || {
        server.read("log").contains("(4 so far)")
    });
    // Behind them.
    assert_eq!(agent.stop().code(), Some(0));
    agent.run();
    eventually("it decides again", || answered(&agent));
    assert!(
        !server.read("log").contains("no link"),
        "{}",
        server.read("log")
    );
    server.stop();
    let account = server.account();
    assert!(account.contains("6 rubbish"), "{account}");
    // What was passed over is acknowledged: only what is kept comes again.
    server.run();
    eventually("it is there again", || {
        server.read("log").matches("connected").count() == 2
    });
    publish_large(broker.port, topics[0], 1_100_000, 1, false);
    eventually("the kept ones and this one", || {
        server.read("log").matches("(4 so far)").count() == 2
    });
    server.stop();
    let account = server.account();
    assert!(account.contains("10 rubbish"), "{account}");
}

/// Signals that habit sends to a daemon.
pub fn signals_that_mean_nothing_here_do_no_harm(store: Store) {
    let broker = Broker::start();
    let ear = ear(broker.port);
    let mut server = Server::start(&store, broker.port, "");
    eventually("it is on line", || status(&ear) == "online");
    for _ in 0..3 {
        for name in ["HUP", "USR1", "USR2", "ALRM", "PIPE"] {
            server.signal(name);
        }
    }
    eventually("it says what it does with them", || {
        ["SIGHUP", "SIGUSR2"]
            .iter()
            .all(|name| server.read("log").contains(name))
    });
    assert!(
        !server.read("log").contains("no link"),
        "{}",
        server.read("log")
    );
    server.stop();
}

/// A publisher of a few lines, which sends what a client library would not.
fn publish_large(port: u16, topic: &str, bytes: usize, qos: u8, retain: bool) {
    let mut broker = TcpStream::connect(("127.0.0.1", port)).expect("a broker");
    let connect = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05large";
    broker.write_all(connect).expect("written");
    let mut ack = [0; 4];
    broker.read_exact(&mut ack).expect("a greeting");
    assert_eq!(ack, [0x20, 2, 0, 0]);
    broker
        .write_all(&publication(topic, bytes, qos, retain))
        .expect("written");
    if qos > 0 {
        broker.read_exact(&mut ack).expect("a receipt");
    }
    if qos == 2 {
        broker.write_all(b"\x62\x02\x00\x07").expect("written");
        broker.read_exact(&mut ack).expect("the end of it");
    }
    broker.write_all(b"\xe0\x00").expect("written");
}

/// A whole PUBLISH with packet id 7.
fn publication(topic: &str, bytes: usize, qos: u8, retain: bool) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend(topic.as_bytes());
    if qos > 0 {
        body.extend([0, 7]);
    }
    body.resize(body.len() + bytes, b'x');
    let mut packet = head(0x30 | qos << 1 | u8::from(retain), body.len());
    packet.extend(body);
    packet
}

/// First byte and length.
fn head(first: u8, mut length: usize) -> Vec<u8> {
    let mut head = vec![first];
    loop {
        let more = u8::from(length > 0x7f) << 7;
        head.push((length & 0x7f) as u8 | more);
        length >>= 7;
        if length == 0 {
            return head;
        }
    }
}

/// The list of docs/deploy.md, as it stands there, with device, server and doctor.
pub fn the_access_list_of_the_documentation_is_enough_for_all(store: Store) {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/deploy.md"))
        .expect("it is here");
    let (_, behind) = text.split_once("```acl\n").expect("a list to copy");
    let (list, _) = behind.split_once("```").expect("its end");
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::write(at("acl"), list).expect("written");
    for name in ["hallway", "nightlight-server"] {
        let status = Command::new("mosquitto_passwd")
            .args(if at("users").exists() {
                vec!["-b"]
            } else {
                vec!["-c", "-b"]
            })
            .arg(at("users"))
            .args([name, "secret"])
            .status();
        assert!(status.expect("mosquitto_passwd runs").success());
    }
    fs::write(at("password"), "secret\n").expect("written");
    for name in ["acl", "users", "password"] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o600)).expect("changed");
    }
    let broker = Broker::start_with(&format!(
        "allow_anonymous false\nacl_file {}\npassword_file {}\n",
        at("acl").display(),
        at("users").display()
    ));
    let password = at("password").display().to_string();
    let more = format!("username = \"nightlight-server\"\npassword_file = \"{password}\"\n");
    let mut server = Server::start_in_broker(&store, broker.port, &more);
    let output = server.command("doctor").output().expect("it runs");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{report}");
    let more = format!(
        "[broker]\nurl = \"mqtt://127.0.0.1:{}\"\nusername = \"hallway\"\npassword_file = \"{password}\"\n\
         [delivery]\nconfirm = \"server\"\n[control]\nserver_status = \"nightlight/server/status\"\n",
        broker.port
    );
    let mut agent = Agent::start("hallway", broker.port, &more);
    eventually("the server decides and acks", || {
        let status = agent.status();
        status.is_some_and(|status| status["by"] == "remote" && status["backlog"] == 0)
    });
    let refused = agent
        .status()
        .map(|status| status["commands_refused"].clone());
    let (code, report, _) = outcome(agent.other("doctor"));
    assert_eq!(code, Some(0), "{report}");
    // What the device may read alone is known where others publish meanwhile.
    for topic in ["state", "telemetry", "status"] {
        assert!(!report.contains(&format!("hallway/{topic}")), "{report}");
    }
    // The daemon took no notice of the probes, nor did the server.
    let after = agent
        .status()
        .map(|status| status["commands_refused"].clone());
    assert_eq!(after, refused);
    assert!(!agent.log().contains("link down"), "{}", agent.log());
    assert_eq!(agent.stop().code(), Some(0));
    server.stop();
    assert!(
        !server.account().contains("rubbish"),
        "{}",
        server.account()
    );
    assert!(!server.account().contains("plain"), "{}", server.account());
}

/// In the place of the system: a name server that never answers.
const HANGS: &str = r#"
#include <netdb.h>
#include <unistd.h>
int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    for (;;) pause();
}
"#;

pub fn it_stops_while_a_name_server_does_not_answer(store: Store) {
    let mut server = Server::prepare(&store, 1883, "");
    let (source, library) = (server.path("hangs.c"), server.path("hangs.so"));
    fs::write(&source, HANGS).expect("written");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source);
    assert!(compiler.status().expect("cc runs").success());
    let library = library.display().to_string();
    server.run_with(&[
        ("NIGHTLIGHT_SERVER_BROKER__URL", "mqtt://hang.test"),
        ("NIGHTLIGHT_SERVER_LOG", "debug"),
        ("LD_PRELOAD", &library),
    ]);
    eventually("it looks the name up", || {
        server.read("log").contains("looking up")
    });
    server.stop();
}
