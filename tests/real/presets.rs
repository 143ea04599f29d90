//! The presets as they are shipped, each with a broker of the same rules, through an outage: every record arrives.
//! What a preset leaves to the machine (its devices, folders, and where the broker is here) comes from the environment.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::stage::{Agent, Broker, Listener, eventually, free_port, outcome};

/// The password of each user, here.
const PASSWORD: &str = "open-sesame";

/// A preset, the user of its access list, and the topic below which its device speaks.
struct Preset {
    file: &'static str,
    rules: Option<(&'static str, &'static str)>,
    device: &'static str,
}

#[test]
fn mosquitto_with_passwords_and_an_access_list() {
    play(&Preset {
        file: "mosquitto.toml",
        rules: Some(("hallway", "mosquitto.acl")),
        device: "hallway",
    });
}

#[test]
fn home_assistants_broker() {
    play(&Preset {
        file: "home-assistant.toml",
        rules: Some(("hallway", "home-assistant.acl")),
        device: "hallway",
    });
}

#[test]
fn the_public_test_broker() {
    play(&Preset {
        file: "test.mosquitto.org.toml",
        rules: None,
        device: "my-own-nightlight-1234",
    });
}

#[test]
fn thingsboard() {
    play(&Preset {
        file: "thingsboard.toml",
        rules: Some(("ACCESS_TOKEN", "thingsboard.acl")),
        device: "v1/devices/me",
    });
}

#[test]
fn the_lesson() {
    play(&Preset {
        file: "lesson.toml",
        rules: None,
        device: "my-own-nightlight-1234",
    });
}

#[test]
fn plain_on_and_off() {
    let preset = Preset {
        file: "on-off.toml",
        rules: None,
        device: "hallway",
    };
    play(&preset);
}

/// `check` takes it; it connects, measures, is without its broker for a time, and brings everything afterwards.
fn play(preset: &Preset) {
    let folder = tempfile::tempdir().expect("a folder");
    let open = free_port();
    let mut broker = Broker::start_with(&rules(preset, open, folder.path()));
    // The first listener of the broker is everybody's, and the second keeps the preset's rules.
    let listener = Listener::start(preset.device, broker.port);
    eventually("the listener listens", || listener.listens());
    let mut agent = Agent::prepare(preset.file, open, "");
    agent.use_file(&presets().join(preset.file));
    for (name, value) in environment(&agent, preset, open, folder.path()) {
        agent.set_variable(name, value);
    }
    let (code, said, wrong) = outcome(agent.other("check"));
    assert_eq!(code, Some(0), "{said}{wrong}");
    agent.run();
    eventually("readings arrive", || {
        seqs(&listener, "telemetry").len() >= 5
    });
    broker.stop();
    let before = seqs(&listener, "telemetry").len();
    eventually("the backlog grows", || {
        agent
            .status()
            .is_some_and(|status| status["backlog"].as_u64() >= Some(5))
    });
    broker.restart();
    eventually("the backlog is empty", || {
        agent
            .status()
            .is_some_and(|status| status["link_up"] == true && status["backlog"] == 0)
    });
    eventually("live readings again", || {
        seqs(&listener, "telemetry").len() > before + 5
    });
    assert!(agent.stop().success());
    let last = *all(&listener).last().expect("records");
    let expected: Vec<u64> = (1..=last).collect();
    eventually("every record of it arrived", || all(&listener) == expected);
}

/// With its access list, and names and passwords; or for anybody.
fn rules(preset: &Preset, port: u16, folder: &Path) -> String {
    let second = match preset.rules {
        None => "allow_anonymous true\n".to_owned(),
        Some((user, list)) => {
            let passwords = folder.join("passwords");
            let made = Command::new("mosquitto_passwd")
                .args(["-b", "-c"])
                .arg(&passwords)
                .args([user, PASSWORD])
                .status();
            assert!(made.expect("mosquitto_passwd runs").success());
            let list = presets().join(list);
            let (passwords, list) = (passwords.display(), list.display());
            format!("allow_anonymous false\npassword_file {passwords}\nacl_file {list}\n")
        }
    };
    format!("per_listener_settings true\nallow_anonymous true\nlistener {port} 127.0.0.1\n{second}")
}

fn environment(
    agent: &Agent,
    preset: &Preset,
    port: u16,
    folder: &Path,
) -> Vec<(&'static str, String)> {
    let password = folder.join("nightlight-password");
    fs::write(&password, PASSWORD).expect("written");
    let path = |name: &str| agent.path(name).display().to_string();
    let mut variables = vec![
        ("NIGHTLIGHT_BROKER__URL", format!("mqtt://127.0.0.1:{port}")),
        ("NIGHTLIGHT_SENSOR__DRIVER", "iio".into()),
        ("NIGHTLIGHT_SENSOR__PATH", path("light")),
        ("NIGHTLIGHT_SENSOR__INTERVAL", "100ms".into()),
        ("NIGHTLIGHT_LED__DRIVER", "sysfs".into()),
        ("NIGHTLIGHT_LED__PATH", path("led")),
        ("NIGHTLIGHT_BACKLOG__PATH", path("backlog")),
        ("NIGHTLIGHT_DELIVERY__REPLAY_JITTER", "0s".into()),
        ("NIGHTLIGHT_DELIVERY__REPLAY_RATE", "0".into()),
        ("CREDENTIALS_DIRECTORY", folder.display().to_string()),
    ];
    if preset.rules.is_some_and(|(user, _)| user == "ACCESS_TOKEN") {
        // ThingsBoard looks at the name alone; a mosquitto wants a password with it.
        variables.push((
            "NIGHTLIGHT_BROKER__PASSWORD_FILE",
            password.display().to_string(),
        ));
    }
    variables
}

/// The numbers of the records on one topic, in whatever form they came.
fn seqs(listener: &Listener, name: &str) -> Vec<u64> {
    let seq = |object: &Value| {
        let values = object.get("values").unwrap_or(object);
        if object.get("values").is_some() {
            assert!(
                object["ts"].is_u64() && values.get("ts").is_none(),
                "{object}"
            );
        }
        values["seq"].as_u64()
    };
    listener.on(name).iter().filter_map(seq).collect()
}

fn all(listener: &Listener) -> Vec<u64> {
    let names = ["telemetry", "telemetry/history", "events"];
    let mut all: Vec<u64> = names.iter().flat_map(|name| seqs(listener, name)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn presets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/presets")
}
