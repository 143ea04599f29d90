//! LED and sensor that misbehave under the real program: the light goes on, and what is said is so.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::stage::{Agent, Broker, Listener, eventually, outcome, signal};

fn fifo(path: &Path) {
    let _ = fs::remove_file(path);
    let made = Command::new("mkfifo").arg(path).status().expect("mkfifo");
    assert!(made.success());
}

fn result_of(listener: &Listener, id: &str) -> Value {
    let find = || {
        let results = listener.on("commands/result");
        results.into_iter().find(|result| result["id"] == id)
    };
    eventually("a result", || find().is_some());
    find().unwrap_or_default()
}

#[test]
fn an_led_whose_file_is_gone_or_a_pipe_is_not_said_to_be_on_and_works_when_it_is_back() {
    let broker = Broker::start();
    let listener = Listener::start("light-a", broker.port);
    eventually("the server listens", || listener.listens());
    let agent = Agent::start("light-a", broker.port, "");
    eventually("it reads", || !listener.on("telemetry").is_empty());
    let led = agent.path("led");
    for (nth, broken) in ["gone", "folder", "pipe"].into_iter().enumerate() {
        fs::remove_file(&led).expect("removed");
        match broken {
            "folder" => fs::create_dir(&led).expect("a folder"),
            "pipe" => fifo(&led),
            _ => {}
        }
        eventually("it is told", || {
            agent.status().is_some_and(|view| view["led_ok"] == false)
        });
        let id = format!("on-{broken}");
        listener.publish(
            "commands",
            format!(r#"{{"led_on":true,"id":"{id}","lease":"1s"}}"#),
        );
        let result = result_of(&listener, &id);
        assert_eq!(result["result"], "rejected", "{result}");
        assert_eq!(result["led_on"], false, "{result}");
        let view = agent.status().expect("a status");
        assert_eq!(
            (&view["led_on"], &view["led_ok"]),
            (&false.into(), &false.into())
        );
        let readings = listener.on("telemetry").len();
        eventually("it reads on", || {
            listener.on("telemetry").len() > readings + 3
        });
        let state = listener.on("state").pop().expect("a state");
        assert_eq!(
            (&state["led_on"], &state["led_ok"]),
            (&false.into(), &false.into())
        );
        if broken == "folder" {
            fs::remove_dir(&led).expect("removed");
        } else {
            let _ = fs::remove_file(&led);
        }
        fs::write(&led, "0\n").expect("written");
        eventually("it works again", || {
            agent.status().is_some_and(|view| view["led_ok"] == true)
        });
        let events = listener.on("events");
        let fails = events
            .iter()
            .filter(|event| event["led_ok"] == false)
            .count();
        assert_eq!(fails, nth + 1);
        eventually("and the light is off by the rule", || !agent.led_on());
    }
    assert_eq!(
        agent.log().matches("the LED cannot be written").count(),
        3,
        "{}",
        agent.log()
    );
    assert_eq!(agent.log().matches("can be written again").count(), 3);
}

#[test]
fn an_led_that_another_program_switched_is_set_right() {
    let broker = Broker::start();
    let agent = Agent::start("light-b", broker.port, "");
    eventually("it runs", || agent.status().is_some());
    for _ in 0..3 {
        fs::write(agent.path("led"), "1\n").expect("written");
        eventually("off again", || !agent.led_on());
    }
}

#[test]
fn a_sensor_that_is_a_pipe_for_a_while_is_a_fault_and_comes_back() {
    let agent = Agent::start("light-c", 1, "[led]\ndriver = \"simulated\"\n");
    let status = |field: &str| agent.status().map(|view| view[field].clone());
    eventually("it reads", || status("light") == Some(500.0.into()));
    fifo(&agent.path("light"));
    eventually("it is told", || status("sensor_ok") == Some(false.into()));
    assert_eq!(status("light"), Some(Value::Null));
    eventually("and why", || {
        status("sensor_why").is_some_and(|why| why.to_string().contains("no ordinary file"))
    });
    agent.set_light("300");
    eventually("it reads again", || status("light") == Some(300.0.into()));
    assert_eq!(status("sensor_why"), Some("".into()));
}

#[test]
fn a_process_that_was_stopped_for_a_while_makes_no_wrong_light() {
    let more = "[led]\ndriver = \"sysfs\"\npath = \"{folder}/led\"\nfail_safe = \"off\"\n";
    let agent = Agent::start("light-d", 1, more);
    agent.set_light("100");
    eventually("on", || agent.led_on());
    signal(agent.pid(), "STOP");
    // Longer than three intervals, and than a short pause.
    std::thread::sleep(std::time::Duration::from_secs(3));
    signal(agent.pid(), "CONT");
    let log = || agent.log();
    eventually("the pause is seen", || {
        log().contains("the next reading decides")
    });
    eventually("it reads", || {
        agent
            .status()
            .is_some_and(|view| view["light_age_s"].as_f64().is_some_and(|age| age < 1.0))
    });
    assert!(!log().contains("LED off"), "{}", log());
    assert!(!log().contains("sensor: "), "{}", log());
}

#[test]
fn rules_that_are_a_pipe_do_not_stop_the_light_and_what_was_set_alone_is_kept() {
    let broker = Broker::start();
    let listener = Listener::start("light-e", broker.port);
    eventually("the server listens", || listener.listens());
    let mut agent = Agent::prepare("light-e", broker.port, "");
    let rules = agent.path("backlog").join("rules.json");
    fs::create_dir_all(agent.path("backlog")).expect("a folder");
    fifo(&rules);
    agent.set_light("100");
    agent.run();
    eventually("on", || agent.led_on());
    assert!(
        agent
            .log()
            .contains("rules.json cannot be read: it is no ordinary file")
    );
    eventually("it is on line", || listener.last_text("status") == "online");
    let set = r#"{"command":"set","on_below":222,"persist":true,"id":"s"}"#;
    listener.publish("commands", set);
    assert_eq!(result_of(&listener, "s")["result"], "applied");
    eventually("kept", || {
        fs::read_to_string(&rules).is_ok_and(|text| text == r#"{"on_below":222.0}"#)
    });
    agent.stop();
    let (code, out, _) = outcome(agent.other("check"));
    assert_eq!(code, Some(0));
    assert!(out.contains("on_below 222 (kept by a command in"), "{out}");
    assert!(out.contains("off_above 350 (default)"), "{out}");
    assert!(out.contains("on below 222, off above 350"), "{out}");
}
