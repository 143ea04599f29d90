//! `sensor read` and `led on|off|blink` on the real program, with files as sensor and LED.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::stage::{Agent, Broker, eventually, outcome, read, signal};

fn alone(id: &str, more: &str) -> Agent {
    Agent::prepare(id, 1, more)
}

#[test]
fn a_light_is_printed_with_the_time_it_took() {
    let agent = alone("hand-a", "");
    agent.set_light("243\n");
    let (code, out, _) = outcome(agent.other("sensor read"));
    assert_eq!(code, Some(0));
    assert!(
        out.starts_with("243, in ") && out.ends_with(" ms\n"),
        "{out}"
    );
}

#[test]
fn a_sensor_that_cannot_be_read_exits_by_the_kind_of_the_fault() {
    let agent = alone("hand-b", "");
    let code_and_why = |command| {
        let (code, out, why) = outcome(command);
        assert_eq!(out, "");
        (code, why)
    };
    agent.set_light("bright\n");
    let (code, why) = code_and_why(agent.other("sensor read"));
    assert_eq!(code, Some(70), "{why}");
    fs::remove_file(agent.path("light")).expect("removed");
    let (code, why) = code_and_why(agent.other("sensor read"));
    assert_eq!(code, Some(78), "{why}");
    assert!(why.contains("`sensor.path`"), "{why}");
    agent.set_light("5\n");
    let secret = fs::Permissions::from_mode(0o600);
    fs::set_permissions(agent.path("light"), secret).expect("changed");
    let (code, why) = code_and_why(agent.other_as_nobody("sensor read"));
    assert_eq!(code, Some(77), "{why}");
    let no_bus = alone("hand-c", "[sensor]\ndriver = \"bh1750\"\nbus = 250\n");
    let (code, why) = code_and_why(no_bus.other("sensor read"));
    assert_eq!(code, Some(70), "{why}");
    assert!(why.contains("dtparam=i2c_arm=on"), "{why}");
    let wrong = alone("hand-d", "[sensor]\ndriver = \"eye\"\n");
    assert_eq!(outcome(wrong.other("sensor read")).0, Some(78));
}

#[test]
fn watching_goes_on_through_a_fault_until_it_is_stopped() {
    let agent = alone("hand-e", "");
    agent.set_light("1\n");
    let mut watching = agent
        .other("sensor read --watch")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nightlight starts");
    let faults = watching.stderr.take().expect("its faults");
    let mut faults = BufReader::new(faults).lines().map_while(Result::ok);
    let out = watching.stdout.take().expect("its output");
    let mut lines = BufReader::new(out).lines().map_while(Result::ok);
    let mut comes = |light: &str| lines.any(|line| line.starts_with(&format!("{light}, in ")));
    assert!(comes("1"));
    agent.set_light("gone\n");
    assert!(faults.any(|line| line.contains("gone")));
    agent.set_light("2\n");
    assert!(comes("2"));
    signal(watching.id(), "INT");
    let ended = watching.wait().expect("its end");
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn the_led_is_switched_and_stays_so() {
    let agent = alone("hand-f", "");
    for (words, after) in [("led on", "1\n"), ("led on", "1\n"), ("led off", "0\n")] {
        let (code, out, why) = outcome(agent.other(words));
        assert_eq!((code, why.as_str()), (Some(0), ""));
        assert!(out.contains(&words.replace("led", "the LED is")), "{out}");
        assert_eq!(read(&agent.path("led")), after);
    }
}

#[test]
fn blinking_shows_both_and_leaves_the_led_as_it_was_even_when_stopped() {
    let agent = alone("hand-g", "");
    fs::write(agent.path("led"), "1\n").expect("written");
    let mut blinking = agent
        .other("led blink")
        .stdout(Stdio::null())
        .spawn()
        .expect("nightlight starts");
    for on in [false, true, false] {
        eventually("the LED blinks", || agent.led_on() == on);
    }
    signal(blinking.id(), "TERM");
    assert_eq!(blinking.wait().expect("its end").code(), Some(0));
    assert_eq!(read(&agent.path("led")), "1\n");
}

#[test]
fn an_led_that_cannot_be_switched_exits_by_the_kind_of_the_fault() {
    let agent = alone("hand-h", "");
    let own = fs::Permissions::from_mode(0o644);
    fs::set_permissions(agent.path("led"), own).expect("changed");
    let (code, _, why) = outcome(agent.other_as_nobody("led on"));
    assert_eq!(code, Some(77), "{why}");
    fs::remove_file(agent.path("led")).expect("removed");
    let (code, _, why) = outcome(agent.other("led on"));
    assert_eq!(code, Some(78), "{why}");
    assert!(why.contains("/sys/class/leds"), "{why}");
    let no_chip = alone(
        "hand-i",
        "[led]\ndriver = \"gpiochip\"\npath = \"/dev/null\"\n",
    );
    let (code, _, why) = outcome(no_chip.other("led on"));
    assert_eq!(code, Some(70), "{why}");
    assert!(why.contains("/dev/null"), "{why}");
}

#[test]
fn a_running_daemon_is_named_before_its_led_is_switched() {
    let broker = Broker::start();
    let agent = Agent::start("hand-j", broker.port, "");
    eventually("it answers", || agent.status().is_some());
    let (code, _, why) = outcome(agent.other("led on"));
    assert_eq!(code, Some(0));
    assert!(why.contains("decides about the LED"), "{why}");
}
