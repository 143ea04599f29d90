//! The configuration from outside: what loads, what is refused and in which words, and `check`
//! through the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nightlight::config::{AtExit, Config, LedDriver, OnFull, Scheme, SensorDriver};
use nightlight::logic::{command, delivery, lighting, telemetry};
use proptest::prelude::*;

fn load(toml: &str) -> Result<Config, Vec<String>> {
    load_with(toml, &[])
}

fn load_with(toml: &str, env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let env = env
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()));
    Config::from_toml(toml, env).map_err(|error| error.problems)
}

/// Asserts that `toml` has exactly one problem, with all of `parts` in it.
#[track_caller]
fn refused(toml: &str, parts: &[&str]) {
    refused_with(toml, &[], parts);
}

#[track_caller]
fn refused_with(toml: &str, env: &[(&str, &str)], parts: &[&str]) {
    let problems = load_with(toml, env).expect_err(toml);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    for part in parts {
        assert!(
            problems[0].contains(part),
            "no {part:?} in {:?}",
            problems[0]
        );
    }
}

#[track_caller]
fn warned(toml: &str, part: &str) {
    let config = load(toml).expect(toml);
    assert_eq!(config.warnings.len(), 1, "{:#?}", config.warnings);
    assert!(config.warnings[0].contains(part), "{}", config.warnings[0]);
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn config_defaults_are_those_of_the_contract() {
    let config = load("").unwrap();
    assert_eq!(config.device_id, "nightlight");
    assert_eq!(config.broker.url(), "mqtt://localhost:1883");
    assert_eq!(config.broker.scheme, Scheme::Mqtt);
    assert_eq!(config.broker.client_id, "nightlight");
    assert_eq!(config.broker.username, None);
    assert_eq!(config.broker.keep_alive, 30 * SECOND);
    assert_eq!(config.topics.telemetry, "nightlight/telemetry");
    assert_eq!(config.topics.history, "nightlight/telemetry/history");
    assert_eq!(config.topics.events, "nightlight/events");
    assert_eq!(config.topics.commands, "nightlight/commands");
    assert_eq!(config.topics.results, "nightlight/commands/result");
    assert_eq!(config.topics.acks, "nightlight/acks");
    assert_eq!(config.topics.state, "nightlight/state");
    assert_eq!(config.topics.status, "nightlight/status");
    assert_eq!(config.sensor.driver, SensorDriver::GroveHat);
    assert_eq!(
        (
            config.sensor.bus,
            config.sensor.address,
            config.sensor.channel
        ),
        (1, None, 0)
    );
    assert_eq!(config.sensor.speed, 1.0);
    assert_eq!(config.led.driver, LedDriver::Gpio);
    assert_eq!((config.led.pin, config.led.active_low), (5, false));
    assert_eq!(config.led.at_exit, AtExit::Keep);
    assert_eq!(
        config.lighting,
        lighting::LightingSettings {
            mode: lighting::Mode::Auto,
            on_below: 300.0,
            off_above: 350.0,
            hold: SECOND,
            lease: lighting::Lease::For(15 * SECOND),
            fail_safe: lighting::FailSafe::Keep,
            interval: 5 * SECOND,
            least_interval: Duration::ZERO,
            frozen_after: Duration::ZERO,
        }
    );
    assert_eq!(config.server_status, None);
    assert_eq!(
        config.telemetry,
        telemetry::TelemetrySettings {
            interval: Duration::ZERO,
            deadband: 0.0,
            keep: telemetry::OutageReadings::All,
        }
    );
    assert_eq!(
        config.commands,
        command::CommandSettings {
            order: command::Order::Latest,
            gap_wait: 5 * SECOND,
            on: String::new(),
            off: String::new(),
            allow_reboot: false,
            accept_retained: false,
        }
    );
    assert_eq!(config.backlog.path, PathBuf::from("/var/lib/nightlight"));
    assert_eq!(config.backlog.max_records, 10_000_000);
    assert_eq!(config.backlog.max_bytes, 512 << 20);
    assert_eq!(config.backlog.on_full, OnFull::DropOldest);
    assert_eq!(
        config.delivery,
        delivery::DeliverySettings {
            qos: 1,
            confirm: delivery::Confirm::Broker,
            ack_timeout: 30 * SECOND,
            window: 16,
            replay_rate: 200.0,
            replay_jitter: 2 * SECOND,
            batch: 1,
            durable_within: SECOND,
            require_listener: false,
            format: telemetry::PayloadFormat::Flat,
            stalled_after: 10 * SECOND,
            connect_spread: SECOND / 2,
        }
    );
    assert_eq!(config.web, None);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn config_shipped_file_gives_the_defaults() {
    let shipped = include_str!("../config/nightlight.toml");
    let mut shipped = load(shipped).unwrap();
    assert_eq!(shipped.rule_origins.mode, "configuration");
    shipped.rule_origins = load("").unwrap().rule_origins;
    assert_eq!(shipped, load("").unwrap());
}

#[test]
fn config_unknown_names_are_refused_with_the_nearest_known_one() {
    refused(
        "[broker]\nulr = \"mqtt://x\"",
        &["configuration: broker.ulr", "\"url\"?"],
    );
    refused(
        "[led]\nactive_lo = true",
        &["led.active_lo", "\"active_low\""],
    );
    refused("[sensors]\nbus = 1", &["[sensors]", "[sensor]?"]);
    refused(
        "[zzz]\nx = 1",
        &["unknown section", "device, broker, topics"],
    );
    refused(
        "[led]\nqqq = 1",
        &["unknown key", "driver, pin, active_low"],
    );
    refused("[sensor]\nfail_safe = \"on\"", &["it belongs in [led]"]);
    refused("[control]\ninterval = \"5s\"", &["[sensor] or [telemetry]"]);
    refused("url = \"mqtt://x\"", &["outside of a section", "[broker]"]);
    refused("broker = \"mqtt://x\"", &["is a section"]);
    refused("[Broker]\nurl = \"mqtt://x\"", &["[Broker]", "[broker]?"]);
    refused("[broker.tls]\nca = \"x\"", &["broker.tls", "unknown key"]);
    refused_with(
        "",
        &[("NIGHTLIGHT_BROKER__ULR", "x")],
        &["NIGHTLIGHT_BROKER__ULR", "\"url\""],
    );
    refused_with(
        "",
        &[("NIGHTLIGHT_BROKERS__URL", "x")],
        &["NIGHTLIGHT_BROKERS__URL", "[broker]"],
    );
    refused_with(
        "",
        &[("NIGHTLIGHT_BROKER_KEEP_ALIVE", "5s")],
        &["two underscores", "NIGHTLIGHT_BROKER__KEEP_ALIVE"],
    );
}

#[test]
fn config_passwords_are_sent_to_a_file_and_never_shown() {
    refused("[broker]\npassword = \"hunter2\"", &["password_file"]);
    for (toml, env) in [
        ("[broker]\npassword = \"hunter2\"", None),
        ("[broker]\npassword = hunter2", None),
        ("[broker]\nurl = \"mqtt://me:hunter2@host\"", None),
        ("", Some(("NIGHTLIGHT_BROKER__PASSWORD", "hunter2"))),
        (
            "",
            Some(("NIGHTLIGHT_BROKER__URL", "mqtt://me:hunter2@host")),
        ),
    ] {
        let problems = load_with(toml, env.as_slice()).unwrap_err();
        assert!(!problems.join("").contains("hunter2"), "{problems:?}");
    }
}

#[test]
fn config_every_problem_is_told_at_once_and_on_a_line_each() {
    let toml = r#"
        [device]
        id = "a b"
        [broker]
        url = "tcp://x"
        keep_alive = "0s"
        [sensor]
        driver = "bh170"
        interval = 5
        [control]
        on_below = 400
        [led]
        pin = 18.9
        colour = "red\nand\u001b[31m"
        [delivery]
        window = 0
    "#;
    let problems = load_with(toml, &[("NIGHTLIGHT_DELIVERY__QOS", "3")]).unwrap_err();
    for key in [
        "device.id",
        "broker.url",
        "broker.keep_alive",
        "sensor.driver",
        "sensor.interval",
        "control.off_above",
        "led.pin",
        "led.colour",
        "delivery.window",
        "NIGHTLIGHT_DELIVERY__QOS",
    ] {
        let named = problems
            .iter()
            .filter(|line| line.contains(&format!("{key}: ")))
            .count();
        assert_eq!(named, 1, "{key} in {problems:#?}");
    }
    assert_eq!(problems.len(), 10, "{problems:#?}");
    assert!(problems.iter().all(|line| !line.contains(char::is_control)));
}

#[test]
fn config_syntax_errors_name_file_and_line() {
    refused(
        "[broker]\nurl = \"mqtt://x",
        &["configuration: ", "line 2", "mend the TOML"],
    );
    refused("[led]\npin = 5\npin = 6", &["line 3", "duplicate key"]);
    refused("[led]\npin = 99999999999999999999", &["configuration: "]);
}

#[test]
fn config_one_slip_is_one_problem() {
    refused(
        "[control]\non_below = \"x\"\noff_above = 200",
        &["control.on_below"],
    );
    refused(
        "[sensor]\ndriver = \"x\"\n[led]\npin = 2",
        &["sensor.driver"],
    );
    refused("[device]\nid = \"\"", &["device.id"]);
    refused_with(
        "[led\npath = \"/x\"",
        &[("NIGHTLIGHT_LED__DRIVER", "sysfs")],
        &["line 1"],
    );
    refused("[led]\npin = 99999999999999999999", &["18 digits"]);
}

#[test]
fn config_environment_wins_over_the_file() {
    let toml = "[broker]\nurl = \"mqtt://file\"\n[led]\npin = 6";
    let env = [
        ("NIGHTLIGHT_BROKER__URL", "mqtts://env"),
        ("NIGHTLIGHT_LED__ACTIVE_LOW", "TRUE"),
        ("NIGHTLIGHT_CONTROL__ON_BELOW", "12.5"),
        ("NIGHTLIGHT_SENSOR__ADDRESS", "0x08"),
        ("NIGHTLIGHT_BACKLOG__MAX_BYTES", "1000000"),
        ("NIGHTLIGHT_LOG", "debug"),
        ("NIGHT", "1"),
    ];
    let config = load_with(toml, &env).unwrap();
    assert_eq!(config.broker.host, "env");
    assert_eq!(config.broker.port, 8883);
    assert_eq!((config.led.pin, config.led.active_low), (6, true));
    assert_eq!(config.lighting.on_below, 12.5);
    assert_eq!(config.sensor.address, Some(8));
    assert_eq!(config.backlog.max_bytes, 1_000_000);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn config_a_bad_value_in_the_file_does_not_matter_when_the_environment_mends_it() {
    let env = [("NIGHTLIGHT_LED__PIN", "7")];
    assert_eq!(load_with("[led]\npin = 99", &env).unwrap().led.pin, 7);
}

#[test]
fn config_variables_of_other_programs_are_told_and_ignored() {
    let env = [("NIGHTLIGHT_PORT", "tcp://10.0.0.1:80")];
    let config = load_with("", &env).unwrap();
    assert!(
        config.warnings[0].contains("NIGHTLIGHT_PORT"),
        "{:?}",
        config.warnings
    );
}

#[test]
fn config_text_that_looks_like_a_number_stays_text() {
    let env = [
        ("NIGHTLIGHT_BROKER__USERNAME", "00123"),
        ("NIGHTLIGHT_DEVICE__ID", "1e5"),
    ];
    let config = load_with("", &env).unwrap();
    assert_eq!(config.broker.username.as_deref(), Some("00123"));
    assert_eq!(config.device_id, "1e5");
    assert_eq!(config.topics.acks, "1e5/acks");
    refused("[broker]\nusername = 123", &["123 is not text", "quotes"]);
}

#[test]
fn config_kinds_are_not_bent() {
    refused(
        "[led]\npin = 18.9",
        &["led.pin", "18.9 is not a whole number"],
    );
    refused("[led]\npin = 5.0", &["5.0 is not a whole number"]);
    refused(
        "[led]\npin = \"5\"",
        &["\"5\" is not a whole number", "without quotes"],
    );
    refused("[led]\npin = [5]", &["a list"]);
    refused("[led.pin]\nx = 5", &["led.pin", "a table"]);
    refused("[led]\nactive_low = 1", &["true nor false"]);
    refused("[led]\nactive_low = \"true\"", &["without quotes"]);
    refused("[control]\non_below = \"12\"", &["not a number"]);
    refused("[control]\non_below = nan", &["not a finite number"]);
    refused("[control]\noff_above = inf", &["not a finite number"]);
    refused_with("", &[("NIGHTLIGHT_CONTROL__ON_BELOW", "NaN")], &["finite"]);
    refused_with("", &[("NIGHTLIGHT_LED__PIN", "5.0")], &["whole number"]);
    refused_with("", &[("NIGHTLIGHT_LED__PIN", "")], &["whole number"]);
    refused_with(
        "",
        &[("NIGHTLIGHT_LED__ACTIVE_LOW", "maybe")],
        &["true nor false"],
    );
    assert_eq!(
        load("[control]\non_below = 12").unwrap().lighting.on_below,
        12.0
    );
}

#[test]
fn config_durations_are_texts_with_a_unit() {
    for (text, millis) in [
        ("500ms", 500),
        ("5s", 5_000),
        ("1.5s", 1_500),
        ("10m", 600_000),
        ("1h30m", 5_400_000),
        ("1h 30m", 5_400_000),
        ("1d", 86_400_000),
        ("2 seconds", 2_000),
    ] {
        let config = load(&format!("[telemetry]\ninterval = \"{text}\"")).unwrap();
        assert_eq!(
            config.telemetry.interval,
            Duration::from_millis(millis),
            "{text}"
        );
    }
    let refused_interval = |value: &str, part: &str| {
        refused(
            &format!("[sensor]\ninterval = {value}"),
            &["sensor.interval", part],
        );
    };
    refused_interval("5", "write \"5s\"");
    refused_interval("2.5", "write \"2.5s\"");
    refused_interval("\"5\"", "write \"5s\"");
    refused_interval("\"-5s\"", "negative");
    refused_interval("\"5s ago\"", "negative");
    refused_interval("\"5 bananas\"", "not a duration");
    refused_interval("\"\"", "not a duration");
    refused_interval("\"1mo\"", "not a duration");
    refused_interval("\"9ms\"", "use 10ms to 24h");
    refused_interval("\"25h\"", "out of range");
    refused_interval("true", "not a duration");
    refused(
        "[telemetry]\ninterval = \"1ms\"",
        &["telemetry.interval", "too short"],
    );
    refused(
        "[broker]\nkeep_alive = \"999ms\"",
        &["use 1s to 18h 12m 15s"],
    );
    refused("[broker]\nkeep_alive = \"18h12m16s\"", &["out of range"]);
    refused("[backlog]\ndurable_within = \"0s\"", &["use 10ms to 1h"]);
}

#[test]
fn config_numbers_have_bounds() {
    for (toml, part) in [
        ("[delivery]\nwindow = 0", "1 to 1000"),
        ("[delivery]\nwindow = 1001", "1 to 1000"),
        ("[delivery]\nbatch = 0", "1 to 1000"),
        ("[delivery]\nqos = 3", "0 to 2"),
        ("[delivery]\nreplay_rate = -1", "0 to 1000000"),
        ("[sensor]\nchannel = 8", "0 to 7"),
        ("[sensor]\nbus = -1", "0 to 255"),
        ("[sensor]\naddress = 0x78", "0 to 119"),
        ("[sensor]\naddress = 2", "0x03 to 0x77"),
        ("[sensor]\nspeed = 0", "out of range"),
        ("[led]\npin = 28", "0 to 27"),
        ("[telemetry]\ndeadband = -0.5", "use 0 or more"),
        ("[backlog]\nmax_records = 0", "out of range"),
        ("[backlog]\nmax_bytes = 10", "out of range"),
    ] {
        refused(toml, &[part]);
    }
}

#[test]
fn config_sizes_can_be_texts() {
    for (value, bytes) in [
        ("\"512MB\"", 512_000_000),
        ("\"512 MiB\"", 512 << 20),
        ("\"1gb\"", 1_000_000_000),
        ("\"65536\"", 65_536),
        ("70000", 70_000),
    ] {
        let config = load(&format!("[backlog]\nmax_bytes = {value}")).unwrap();
        assert_eq!(config.backlog.max_bytes, bytes, "{value}");
    }
    refused("[backlog]\nmax_bytes = \"much\"", &["not a size", "512MB"]);
    refused("[backlog]\nmax_bytes = \"1kB\"", &["out of range"]);
    refused("[backlog]\nmax_bytes = \"9999999999GB\"", &["not a size"]);
    refused("[backlog]\nmax_bytes = 1.5", &["whole number"]);
}

#[test]
fn config_an_address_that_the_sensor_cannot_have_is_warned_of() {
    for (toml, parts) in [
        ("driver = \"bh1750\"\naddress = 0x44", "0x23 or 0x5c"),
        ("address = 0x23", "0x04 or 0x08"),
    ] {
        let warnings = load(&format!("[sensor]\n{toml}")).unwrap().warnings;
        assert!(
            warnings.iter().any(|line| line.contains(parts)),
            "{warnings:?}"
        );
    }
    for toml in [
        "driver = \"bh1750\"\naddress = 0x5C",
        "driver = \"bh1750\"",
        "address = 8",
    ] {
        let config = load(&format!("[sensor]\n{toml}")).unwrap();
        assert_eq!(config.warnings, Vec::<String>::new());
    }
}

#[test]
fn config_a_sensor_is_not_asked_faster_than_it_measures() {
    let hurried = "[sensor]\ndriver = \"bh1750\"\ninterval = \"50ms\"";
    refused(hurried, &["sensor.interval", "bh1750", "200ms"]);
    // How often a reading is recorded does not make the sensor be read faster.
    let recorded = "[sensor]\ndriver = \"bh1750\"\n[telemetry]\ninterval = \"100ms\"";
    let config = load(recorded).unwrap();
    assert_eq!(config.sensor.interval, Duration::from_secs(5));
    assert_eq!(config.lighting.interval, Duration::from_secs(5));
    assert_eq!(config.lighting.least_interval, Duration::from_millis(200));
    let warned = |text: &&String| text.contains("telemetry.interval") && text.contains("5s");
    assert!(config.warnings.iter().any(|text| warned(&text)));
    let config = load("[sensor]\ndriver = \"bh1750\"\ninterval = \"200ms\"").unwrap();
    assert_eq!(config.sensor.interval, Duration::from_millis(200));
    load("[sensor]\ninterval = \"10ms\"").unwrap();
}

#[test]
fn config_rules_in_force_say_where_each_is_from() {
    let text = "[control]\non_below = 100.0\noff_above = 200.0";
    let env = [("NIGHTLIGHT_CONTROL__MODE", "local")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    let config = Config::from_toml(text, env).unwrap();
    let place = Path::new("/x/rules.json");
    let patch = lighting::RulesPatch {
        on_below: Some(150.0),
        ..Default::default()
    };
    let in_force = config.rules_in_force(Ok(patch), place);
    assert_eq!(
        (in_force.rules.on_below, in_force.rules.off_above),
        (150.0, 200.0)
    );
    assert_eq!(in_force.problem, None);
    let lines: Vec<_> = in_force.lines().collect();
    assert_eq!(
        lines,
        [
            "mode local (NIGHTLIGHT_CONTROL__MODE)",
            "on_below 150 (kept by a command in /x/rules.json; 100 by configuration)",
            "off_above 200 (configuration)",
            "interval 5s (default)",
        ]
    );
    let patch = lighting::RulesPatch {
        on_below: Some(250.0),
        ..Default::default()
    };
    let in_force = config.rules_in_force(Ok(patch), place);
    assert_eq!(in_force.rules.on_below, 100.0);
    assert!(
        in_force
            .problem
            .is_some_and(|why| why.contains("above off_above 200"))
    );
}

#[test]
fn config_words_are_refused_with_those_that_exist() {
    refused(
        "[control]\nmode = \"atuo\"",
        &["did you mean \"auto\"?", "local, remote"],
    );
    refused("[led]\nfail_safe = \"blink\"", &["keep, on, off"]);
    refused("[led]\nfail_safe = false", &["not text"]);
    refused(
        "[sensor]\ndriver = \"grovehat\"",
        &["did you mean \"grove-hat\"?"],
    );
    refused(
        "[control]\nlease = \"while_linked\"",
        &["control.lease", "while-linked"],
    );
    let lease = load("[control]\nlease = \"while-linked\"")
        .unwrap()
        .lighting
        .lease;
    assert_eq!(lease, lighting::Lease::WhileLinked);
}

#[test]
fn config_names_are_linted() {
    for (id, part) in [
        ("", "is empty"),
        ("a b", "space"),
        ("a+", "wildcards"),
        ("a#", "wildcards"),
        ("$SYS", "begins with \"$\""),
        ("/a", "begins with \"/\""),
        ("a//b", "empty level"),
        ("a/", "empty level"),
        ("küche", "printable ASCII"),
        ("{id}", "brace"),
    ] {
        refused(&format!("[device]\nid = {id:?}"), &["device.id", part]);
    }
    refused(
        &format!("[device]\nid = \"{}\"", "a".repeat(201)),
        &["200 bytes"],
    );
    refused("[topics]\nstate = \"{id}/a b\"", &["topics.state", "space"]);
    refused("[topics]\nstate = \"{di}/nightlight\"", &["brace"]);
    refused("[topics]\nstate = \"state\"", &["put {id} in it"]);
    refused(
        "[topics]\nstate = \"xnightlight/state\"",
        &["put {id} in it"],
    );
    refused(
        "[topics]\nevents = \"{id}/telemetry\"",
        &["topics.telemetry too"],
    );
    refused(
        "[topics]\ncommands = \"{id}/state\"",
        &["topics.commands too"],
    );
    refused(
        "[control]\nserver_status = \"homeassistant/+\"",
        &["server_status", "wildcards"],
    );
    refused(
        "[control]\nserver_status = \"{id}/acks\"",
        &["server_status", "topics.acks too"],
    );
    refused("[broker]\nclient_id = \"a b\"", &["client_id"]);
    let toml = "[device]\nid = \"a/b\"\n[topics]\nstate = \"x/a/b/state\"\n[control]\nserver_status = \"homeassistant/status\"";
    let config = load(toml).unwrap();
    assert_eq!(config.topics.state, "x/a/b/state");
    assert_eq!(config.topics.status, "a/b/status");
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    let warning = &config.warnings[0];
    assert!(
        warning.contains("device.id") && warning.contains("\"+/telemetry\""),
        "{warning}"
    );
    let dotted = load("[device]\nid = \"pi.local\"").unwrap().warnings;
    assert!(
        dotted
            .iter()
            .any(|warning| warning.contains("Home Assistant")),
        "{dotted:?}"
    );
    let plain = load("[device]\nid = \"Hall_way-2\"").unwrap().warnings;
    assert_eq!(plain, Vec::<String>::new());
    assert_eq!(
        config.server_status.as_deref(),
        Some("homeassistant/status")
    );
}

#[test]
fn config_values_must_fit_together() {
    refused(
        "[control]\non_below = 300\noff_above = 299",
        &["off_above", "on_below"],
    );
    refused("[commands]\non = \"X\"\noff = \"X\"", &["commands.off"]);
    refused(
        "[sensor]\ndriver = \"iio\"",
        &["sensor.path", "is empty", "iio"],
    );
    refused("[sensor]\ndriver = \"trace\"", &["sensor.path", "is empty"]);
    refused(
        "[sensor]\ndriver = \"trace\"\npath = \"/no/such\"",
        &["cannot be read"],
    );
    refused("[led]\ndriver = \"sysfs\"", &["led.path", "is empty"]);
    refused("[led]\npin = 2", &["I2C bus 1"]);
    assert!(load("[led]\npin = 2\n[sensor]\ndriver = \"simulated\"").is_ok());
    refused("[backlog]\npath = \"\"", &["backlog.path", "is empty"]);
    refused("[backlog]\npath = \"/etc/passwd\"", &["is a file"]);
    refused("[web]\nlisten = \"8080\"", &["127.0.0.1:8080"]);
    refused("[web]\nlisten = \"localhost:9000\"", &["127.0.0.1:9000"]);
}

#[test]
fn config_the_sensor_is_read_as_often_as_its_own_interval_says() {
    let interval = |toml: &str| load(toml).unwrap().lighting.interval;
    assert_eq!(interval("[telemetry]\ninterval = \"2s\""), 5 * SECOND);
    warned("[telemetry]\ninterval = \"2s\"", "read no faster");
    assert_eq!(interval("[telemetry]\ninterval = \"6s\""), 5 * SECOND);
    assert_eq!(interval("[sensor]\ninterval = \"1s\""), SECOND);
}

#[test]
fn config_doubtful_values_are_warned_of() {
    warned("[control]\nlease = \"9s\"", "two readings");
    assert!(
        load("[control]\nlease = \"9s\"\nmode = \"local\"")
            .unwrap()
            .warnings
            .is_empty()
    );
    warned("[telemetry]\ninterval = \"1m\"", "two readings");
    warned("[control]\noff_above = 300", "leave a gap");
    warned("[telemetry]\ndeadband = 5", "steady light");
    warned("[delivery]\nqos = 0", "confirms nothing");
    warned("[commands]\non = \"ON\"", "no counterpart");
    warned("[backlog]\npath = \"store\"", "relative");
    warned(
        "[sensor]\ndriver = \"iio\"\npath = \"/no/such\"",
        "not there",
    );
    warned("[sensor]\npath = \"/no/such\"", "not used");
    let config = load("[web]\nlisten = \"[::1]:8080\"").unwrap();
    let listen = config.web.clone().map(|page| page.listen);
    assert_eq!(listen, "[::1]:8080".parse().ok());
    assert!(config.warnings.is_empty());
}

#[test]
fn config_state_directory_is_the_default_of_the_backlog() {
    let env = [("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")];
    let path = |toml: &str, env| load_with(toml, env).unwrap().backlog.path;
    assert_eq!(path("", &env), PathBuf::from("/var/lib/a"));
    assert_eq!(path("[backlog]\npath = \"/x\"", &env), PathBuf::from("/x"));
    let env = [
        ("STATE_DIRECTORY", "/a"),
        ("NIGHTLIGHT_BACKLOG__PATH", "/y"),
    ];
    assert_eq!(path("", &env), PathBuf::from("/y"));
    assert_eq!(
        path("", &[("STATE_DIRECTORY", "")]),
        PathBuf::from("/var/lib/nightlight")
    );
}

#[test]
fn config_secret_files_must_be_good() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let password = file("password", "hunter2\n");
    let empty = file("empty", "\nhunter2\n");
    let cert = file(
        "cert",
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    );
    let key = file(
        "key",
        "-----BEGIN EC PRIVATE KEY-----\n-----END EC PRIVATE KEY-----\n",
    );
    let broker = |rest: &str| format!("[broker]\nurl = \"mqtts://h\"\n{rest}");

    let toml = broker(&format!(
        "username = \"me\"\npassword_file = \"{password}\"\nca_file = \"{cert}\"\ncert_file = \"{cert}\"\nkey_file = \"{key}\""
    ));
    let config = load(&toml).unwrap();
    assert_eq!(config.broker.password_file, Some(PathBuf::from(&password)));
    assert_eq!(config.warnings, Vec::<String>::new());
    assert!(!config.summary().to_string().contains("hunter2"));

    let refused = |rest: &str, parts: &[&str]| refused(&broker(rest), parts);
    refused(
        &format!("password_file = \"{password}\""),
        &["broker.username"],
    );
    refused(
        &format!("username = \"me\"\npassword_file = \"{empty}\""),
        &["first line", "empty"],
    );
    refused(
        "username = \"me\"\npassword_file = \"/no/such\"",
        &["/no/such cannot be read"],
    );
    refused("ca_file = \"/etc\"", &["not a file"]);
    refused(&format!("ca_file = \"{password}\""), &["BEGIN", "PEM"]);
    refused(&format!("cert_file = \"{cert}\""), &["broker.key_file"]);
    refused(&format!("key_file = \"{key}\""), &["broker.cert_file"]);
    refused("ca_file = \"${HOME}/x\"", &["is not replaced"]);
    refused(
        "ca_file = \"${CREDENTIALS_DIRECTORY}/x\"",
        &["LoadCredential=x"],
    );

    let toml = broker("username = \"me\"\npassword_file = \"${CREDENTIALS_DIRECTORY}/password\"");
    let folder = folder.path().display().to_string();
    let config = load_with(&toml, &[("CREDENTIALS_DIRECTORY", &folder)]).unwrap();
    assert_eq!(config.broker.password_file, Some(PathBuf::from(password)));

    warned(&format!("[broker]\nca_file = \"{cert}\""), "not encrypted");
    let clear = format!(
        "[broker]\nurl = \"mqtt://h\"\nusername = \"me\"\npassword_file = \"{folder}/password\""
    );
    warned(&clear, "unencrypted");
}

#[test]
fn config_a_named_file_must_exist() {
    let problems = Config::load(Some(Path::new("/no/such.toml")), [])
        .unwrap_err()
        .problems;
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("/no/such.toml: cannot be read"),
        "{problems:?}"
    );
    assert!(Config::load(Some(Path::new("/etc")), []).is_err());
}

/// The program, without the variables of whoever runs the tests.
fn nightlight(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nightlight"))
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn config_check_says_what_will_happen() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/nightlight.toml");
    let env = [
        ("NIGHTLIGHT_DEVICE__ID", "hall"),
        ("NIGHTLIGHT_CONTROL__LEASE", "6s"),
    ];
    let output = nightlight(&["check", "--config", shipped], &env);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        shipped,
        "hall/telemetry",
        "mqtt://localhost:1883",
        "Grove Base HAT",
        "GPIO 5",
        "on below 300, off above 350",
        "/var/lib/nightlight",
        "warning: environment: NIGHTLIGHT_CONTROL__LEASE",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn config_check_exits_with_78_and_every_problem() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "[led]\npin = 99\npni = 1\n").unwrap();
    let file = file.display().to_string();
    for command in ["check", "run"] {
        let output = nightlight(&[command, "--config", &file], &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains("2 problems"), "{text}");
        assert!(
            text.contains(&format!("{file}: led.pin: 99 is out of range")),
            "{text}"
        );
        assert!(
            text.contains(&format!("{file}: led.pni: unknown key")),
            "{text}"
        );
    }
    let output = nightlight(&["check", "--config", "/no/such.toml"], &[]);
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn config_command_line_exit_codes() {
    for (arguments, code) in [
        (&["--version"][..], 0),
        (&["--help"], 0),
        (&["check", "--help"], 0),
        (&[], 64),
        (&["dance"], 64),
        (&["check", "--confg", "x"], 64),
        (&["demo", "--broker", "localhost"], 64),
    ] {
        let output = nightlight(arguments, &[]);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
    let version = nightlight(&["--version"], &[]).stdout;
    assert_eq!(
        version,
        concat!("nightlight ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()
    );
}

#[test]
fn config_log_lines_suit_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("n.toml");
    std::fs::write(&file, "[control]\noff_above = 300\n").unwrap();
    let file = file.display().to_string();
    let env = [("JOURNAL_STREAM", "8:1"), ("NIGHTLIGHT_LOG", "loud")];
    let text = nightlight(&["check", "--config", &file], &env).stderr;
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("<4>"), "{text}");
    assert!(
        text.contains("NIGHTLIGHT_LOG=\"loud\" is unknown"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
}

proptest! {
    #[test]
    fn config_no_text_panics(text in "\\PC{0,200}", lines in prop::collection::vec(line(), 0..20)) {
        let _ = load(&text);
        let _ = load(&lines.join("\n"));
    }

    #[test]
    fn config_no_variable_panics(name in "NIGHTLIGHT_[A-Z_\\[\\].]{0,20}", value in "\\PC{0,40}") {
        let _ = load_with("", &[(&name, &value)]);
    }

    #[test]
    fn config_no_value_of_a_known_key_panics(index in 0..1000usize, value in value()) {
        let shipped = include_str!("../config/nightlight.toml");
        let is_key = |line: &&str| !line.starts_with('#') && line.contains(" = ");
        let keys = shipped.lines().filter(is_key).count();
        let mut seen = 0;
        let toml: Vec<_> = shipped
            .lines()
            .map(|line| match line.split_once(" = ") {
                Some((name, _)) if is_key(&line) => {
                    seen += 1;
                    if seen - 1 == index % keys { format!("{name} = {value}") } else { line.into() }
                }
                _ => line.to_string(),
            })
            .collect();
        if let Err(problems) = load(&toml.join("\n")) {
            prop_assert!(!problems.is_empty());
            prop_assert!(problems.iter().all(|line| !line.contains(char::is_control)));
        }
    }
}

/// A line that is nearly TOML.
fn line() -> impl Strategy<Value = String> {
    let name = "(broker|led|sensor|url|pin|interval|path|[a-z.\"]{0,8})";
    prop_oneof![
        name.prop_map(|name| format!("[{name}]")),
        (name, value()).prop_map(|(name, value)| format!("{name} = {value}")),
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        any::<bool>().prop_map(|flag| flag.to_string()),
        "\\PC{0,30}".prop_map(|text| format!("{text:?}")),
        "(-|P|PT)?[0-9]{1,20}(ms|s|m|h|d|w|y|MB|GiB)?".prop_map(|text| format!("{text:?}")),
        "(mqtt|wss)://[a-z0-9\\[\\]:@/?#]{0,20}".prop_map(|text| format!("{text:?}")),
        Just("[1, [2]]".to_string()),
        Just("{ a = 1 }".to_string()),
        Just("1979-05-27".to_string()),
    ]
}

#[test]
fn a_page_that_others_can_reach_wants_a_token_that_cannot_be_guessed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let toml = |address: &str| {
        format!(
            "[web]\nlisten = \"{address}:8080\"\ntoken_file = {:?}",
            file.display().to_string()
        )
    };
    refused(
        "[web]\nlisten = \"0.0.0.0:8080\"",
        &["web.listen", "web.token_file"],
    );
    refused(&toml("0.0.0.0"), &["web.token_file", "cannot be read"]);
    std::fs::write(&file, "short\n").unwrap();
    refused(&toml("127.0.0.1"), &["shorter than 16"]);
    std::fs::write(&file, "0123456789abcdef\nmore\n").unwrap();
    let config = load(&toml("0.0.0.0")).unwrap();
    let page = config.web.clone().unwrap();
    assert_eq!(page.token.as_deref(), Some("0123456789abcdef"));
    assert!(
        !format!("{config:?}").contains("0123456789abcdef"),
        "shown in logs"
    );
}

#[test]
fn one_key_settles_everything_for_home_assistant_but_what_the_owner_has_set() {
    let present = lighting::Lease::WhilePresent(30 * SECOND);
    let off = load("").unwrap();
    assert_eq!(off.home_assistant, None);
    let on = "[device]\nid = \"hall\"\n[home_assistant]\ndiscovery = true\n";
    let config = load(on).unwrap();
    let home = config.home_assistant.as_ref().expect("on");
    assert_eq!(home.topic, "homeassistant/device/hall/config");
    assert_eq!(
        config.server_status.as_deref(),
        Some("homeassistant/status")
    );
    assert_eq!(config.home_assistant_status(), None);
    assert_eq!(config.lighting.lease, present);
    assert_eq!(config.warnings, Vec::<String>::new());
    let summary = config.summary().to_string();
    for words in [
        "homeassistant/device/hall/config",
        "as long as Home Assistant is there",
    ] {
        assert!(summary.contains(words), "{summary}");
    }

    let own = load(&format!(
        "{on}[control]\nlease = \"while-linked\"\nserver_status = \"mine\""
    ))
    .unwrap();
    assert_eq!(own.lighting.lease, lighting::Lease::WhileLinked);
    assert_eq!(own.server_status.as_deref(), Some("mine"));
    assert_eq!(own.home_assistant_status(), Some("homeassistant/status"));
    let short = load(&format!("{on}[control]\nlease = \"30s\"")).unwrap();
    assert!(
        short
            .warnings
            .iter()
            .any(|text| text.contains("control.lease"))
    );
    let alone = load("[control]\nlease = \"while-present\"").unwrap();
    assert_eq!(alone.lighting.lease, present);

    let other = "[home_assistant]\ndiscovery = true\nprefix = \"ha\"\nstatus_topic = \"ha/status\"";
    let config = load(other).unwrap();
    assert_eq!(config.server_status.as_deref(), Some("ha/status"));
    assert_eq!(
        config.home_assistant.expect("on").topic,
        "ha/device/nightlight/config"
    );
    refused(
        "[home_assistant]\nprefix = \"ha/#\"",
        &["home_assistant.prefix", "wildcards"],
    );
    refused(
        "[home_assistant]\ndiscovery = true\nstatus_topic = \"nightlight/status\"",
        &["control.server_status", "topics.status"],
    );
    refused(
        "[device]\nid = \"a.b\"\n[home_assistant]\ndiscovery = true",
        &["device.id", "Home Assistant"],
    );
    refused("[control]\nlease = 15", &["control.lease"]);
}

#[test]
fn the_form_of_thingsboard_lets_records_share_a_topic_that_names_no_device() {
    let telemetry = "v1/devices/me/telemetry";
    let shared = format!(
        "[topics]\ntelemetry = \"{telemetry}\"\nhistory = \"{telemetry}\"\nevents = \"{telemetry}\"\n"
    );
    let config = load(&format!("{shared}[payload]\nformat = \"thingsboard\"")).unwrap();
    assert_eq!(
        config.delivery.format,
        telemetry::PayloadFormat::ThingsBoard
    );
    assert_eq!(config.topics.history, telemetry);
    let problems = load(&shared).unwrap_err();
    let named = problems
        .iter()
        .filter(|line| line.contains("does not name the device"));
    assert_eq!((named.count(), problems.len()), (3, 5), "{problems:#?}");
    refused(
        &format!("{shared}state = \"{telemetry}\"\n[payload]\nformat = \"thingsboard\""),
        &["topics.state", "topics.telemetry too"],
    );
    refused(
        "[payload]\nformat = \"xml\"",
        &["payload.format", "nightlight, thingsboard"],
    );
}
