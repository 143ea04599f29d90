//! LED and sensor that misbehave under the real program: the light goes on, and what is said is so.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::stage::{Agent, Broker, Listener, eventually};

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
