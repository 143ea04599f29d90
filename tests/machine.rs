//! The lighting machine, every state with every input in every mode, against tables written by hand.
//!
//! The diagram is in `logic/src/lighting.rs`. A cell says who decides afterwards and what the LED is; a
//! changed transition fails here and nowhere more clearly. Light is in steps: low switches on, high
//! switches off, middle changes nothing. The fail-safe is on.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use nightlight::logic::lighting::{
    Change, FailSafe, Lease, Lighting, LightingSettings, Mode, Rules,
};
use nightlight::logic::timers::{Timer, Timers};

const LOW: f64 = 100.0;
const MIDDLE: f64 = 320.0;
const HIGH: f64 = 500.0;

const LEASE: Lease = Lease::For(Duration::from_secs(15));

const COLUMNS: [&str; 4] = ["Starting", "Fallback", "Remote", "SensorFault"];

/// Before: Starting off, Fallback off, Remote on, SensorFault on; the light is middle.
const AUTO: &str = "
    nothing                  | start off     | fallback off  | remote on     | fail-safe on
    read low                 | fallback on   | fallback on   | remote on     | fallback on
    read middle              | fallback off  | fallback off  | remote on     | fallback on
    read high                | fallback off  | fallback off  | remote on     | fallback off
    read failed              | start off     | fallback off  | remote on     | fail-safe on
    read failed twice        | start off     | fallback off  | remote on     | fail-safe on
    read failed three times  | fail-safe on  | fail-safe on  | remote on     | fail-safe on
    almost three intervals   | start off     | fallback off  | remote on     | fail-safe on
    three intervals          | fail-safe on  | fail-safe on  | remote on     | fail-safe on
    command on               | remote on     | remote on     | remote on     | remote on
    command off              | remote off    | remote off    | remote off    | remote off
    own lease runs           | remote off    | remote off    | remote off    | remote off
    own lease over           | start off     | fallback off  | fallback off  | fail-safe on
    lease almost over        | fail-safe on  | fail-safe on  | remote on     | fail-safe on
    lease over               | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    lease over, sensor good  | fallback off  | fallback off  | fallback on   | fallback on
    server alive             | start off     | fallback off  | remote on     | fail-safe on
    alive, first lease over  | fail-safe on  | fail-safe on  | remote on     | fail-safe on
    server gone              | start off     | fallback off  | fallback on   | fail-safe on
    link down                | start off     | fallback off  | remote on     | fail-safe on
    while linked             | remote off    | remote off    | remote off    | remote off
    while linked, link down  | start off     | fallback off  | fallback off  | fail-safe on
    while present            | remote off    | remote off    | remote off    | remote off
    while present, away      | remote off    | remote off    | remote off    | remote off
    while present, gone      | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    while present, back      | remote off    | remote off    | remote off    | remote off
    while present, goodbye   | remote off    | remote off    | remote off    | remote off
    while present, left      | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    set auto                 | start off     | fallback off  | remote on     | fail-safe on
    set local                | start off     | fallback off  | fallback on   | fail-safe on
    set remote               | start off     | start off     | remote on     | start on
    set thresholds up        | start off     | fallback on   | remote on     | fail-safe on
    frozen                   | fail-safe on  | fail-safe on  | remote on     | fail-safe on
    frozen, then moves       | fallback on   | fallback on   | remote on     | fallback on
";

/// Before: Starting off, Fallback off, the command ignored and Fallback off, SensorFault on.
const LOCAL: &str = "
    nothing                  | start off     | fallback off  | fallback off  | fail-safe on
    read low                 | fallback on   | fallback on   | fallback on   | fallback on
    read middle              | fallback off  | fallback off  | fallback off  | fallback on
    read high                | fallback off  | fallback off  | fallback off  | fallback off
    read failed              | start off     | fallback off  | fallback off  | fail-safe on
    read failed twice        | start off     | fallback off  | fallback off  | fail-safe on
    read failed three times  | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    almost three intervals   | start off     | fallback off  | fallback off  | fail-safe on
    three intervals          | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    command on               | start off     | fallback off  | fallback off  | fail-safe on
    command off              | start off     | fallback off  | fallback off  | fail-safe on
    own lease runs           | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    own lease over           | start off     | fallback off  | fallback off  | fail-safe on
    lease almost over        | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    lease over               | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    lease over, sensor good  | fallback off  | fallback off  | fallback off  | fallback on
    server alive             | start off     | fallback off  | fallback off  | fail-safe on
    alive, first lease over  | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    server gone              | start off     | fallback off  | fallback off  | fail-safe on
    link down                | start off     | fallback off  | fallback off  | fail-safe on
    while linked             | start off     | fallback off  | fallback off  | fail-safe on
    while linked, link down  | start off     | fallback off  | fallback off  | fail-safe on
    while present            | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    while present, away      | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    while present, gone      | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    while present, back      | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    while present, goodbye   | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    while present, left      | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    set auto                 | start off     | fallback off  | remote on     | fail-safe on
    set local                | start off     | fallback off  | fallback off  | fail-safe on
    set remote               | start off     | start off     | remote on     | start on
    set thresholds up        | start off     | fallback on   | remote on     | fail-safe on
    frozen                   | fail-safe on  | fail-safe on  | fail-safe on  | fail-safe on
    frozen, then moves       | fallback on   | fallback on   | fallback on   | fallback on
";

/// Before: nobody decides and the LED is off, but for Remote, where it is on.
const REMOTE: &str = "
    nothing                  | start off     | start off     | remote on     | start off
    read low                 | start off     | start off     | remote on     | start off
    read middle              | start off     | start off     | remote on     | start off
    read high                | start off     | start off     | remote on     | start off
    read failed              | start off     | start off     | remote on     | start off
    read failed twice        | start off     | start off     | remote on     | start off
    read failed three times  | start off     | start off     | remote on     | start off
    almost three intervals   | start off     | start off     | remote on     | start off
    three intervals          | start off     | start off     | remote on     | start off
    command on               | remote on     | remote on     | remote on     | remote on
    command off              | remote off    | remote off    | remote off    | remote off
    own lease runs           | remote off    | remote off    | remote off    | remote off
    own lease over           | remote off    | remote off    | remote off    | remote off
    lease almost over        | start off     | start off     | remote on     | start off
    lease over               | start off     | start off     | remote on     | start off
    lease over, sensor good  | start off     | start off     | remote on     | start off
    server alive             | start off     | start off     | remote on     | start off
    alive, first lease over  | start off     | start off     | remote on     | start off
    server gone              | start off     | start off     | remote on     | start off
    link down                | start off     | start off     | remote on     | start off
    while linked             | remote off    | remote off    | remote off    | remote off
    while linked, link down  | remote off    | remote off    | remote off    | remote off
    while present            | remote off    | remote off    | remote off    | remote off
    while present, away      | remote off    | remote off    | remote off    | remote off
    while present, gone      | remote off    | remote off    | remote off    | remote off
    while present, back      | remote off    | remote off    | remote off    | remote off
    while present, goodbye   | remote off    | remote off    | remote off    | remote off
    while present, left      | remote off    | remote off    | remote off    | remote off
    set auto                 | start off     | fallback off  | remote on     | fail-safe on
    set local                | start off     | fallback off  | fallback on   | fail-safe on
    set remote               | start off     | start off     | remote on     | start off
    set thresholds up        | start off     | fallback on   | remote on     | fail-safe on
    frozen                   | start off     | start off     | remote on     | start off
    frozen, then moves       | start off     | start off     | remote on     | start off
";

#[test]
fn every_state_with_every_input_in_mode_auto() {
    assert_table(Mode::Auto, AUTO);
}

#[test]
fn every_state_with_every_input_in_mode_local() {
    assert_table(Mode::Local, LOCAL);
}

#[test]
fn every_state_with_every_input_in_mode_remote() {
    assert_table(Mode::Remote, REMOTE);
}

#[test]
fn each_table_has_a_row_for_each_input() {
    let inputs = |table: &str| -> Vec<String> {
        let rows = table.lines().filter_map(|row| row.split_once('|'));
        rows.map(|(input, _)| input.trim().to_owned()).collect()
    };
    assert_eq!(inputs(AUTO), inputs(LOCAL));
    assert_eq!(inputs(AUTO), inputs(REMOTE));
    // What can be told to the machine: each public method that takes the time moves it.
    let source = include_str!("../logic/src/lighting.rs");
    let moving: Vec<&str> = source
        .split("    pub fn ")
        .skip(1)
        .filter_map(|method| method.split_once('('))
        .filter(|(_, rest)| {
            let head = rest.split('{').next().unwrap_or_default();
            head.contains("&mut self") && head.contains("now: Duration")
        })
        .map(|(name, _)| name)
        .collect();
    let known = [
        "read",
        "read_failed",
        "command",
        "server_alive",
        "server_gone",
        "server_may_be_there",
        "link_down",
        "set_rules",
        "expired",
    ];
    assert_eq!(moving, known, "a new input wants its rows");
}

#[test]
fn the_diagram_in_the_docs_is_that_of_the_code() {
    let fenced = |text: &str| -> Vec<String> {
        let block = text
            .split("```text\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next());
        let lines = block.unwrap_or_default().lines();
        lines.map(|line| line.trim_end().to_owned()).collect()
    };
    let code: String = include_str!("../logic/src/lighting.rs")
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    let docs = fenced(include_str!("../docs/authority.md"));
    assert!(docs.len() > 8, "{docs:?}");
    assert_eq!(docs, fenced(&code));
}

#[test]
fn a_command_is_not_kept_beyond_its_time_for_another_mode() {
    let mut machine = Machine::new(Mode::Auto, FailSafe::Keep, Duration::ZERO);
    machine.read(HIGH);
    machine.command(true, None);
    machine.set(Mode::Local);
    assert_eq!(machine.shown(), "fallback off");
    machine.wait_ms(60_000);
    machine.read(HIGH);
    machine.set(Mode::Remote);
    assert_eq!(machine.shown(), "start off");
}

#[test]
fn the_fail_safe_is_as_configured() {
    for (fail_safe, found, shown) in [
        (FailSafe::On, false, "fail-safe on"),
        (FailSafe::Off, true, "fail-safe off"),
        (FailSafe::Keep, true, "fail-safe on"),
        (FailSafe::Keep, false, "fail-safe off"),
    ] {
        let mut machine = Machine::new(Mode::Auto, fail_safe, Duration::ZERO);
        machine.read(if found { LOW } else { HIGH });
        machine.wait_ms(3_000);
        assert_eq!(machine.shown(), shown);
    }
}

#[test]
fn the_local_rule_holds_and_the_server_and_the_fail_safe_do_not_wait_for_it() {
    let hold = Duration::from_millis(700);
    let mut machine = Machine::new(Mode::Auto, FailSafe::Off, hold);
    machine.read(LOW);
    machine.wait_ms(100);
    machine.read(HIGH);
    assert_eq!(machine.shown(), "fallback on");
    machine.wait_ms(599);
    assert_eq!(machine.shown(), "fallback on");
    assert_eq!(machine.timers.next(), Some(machine.now + ms(1)));
    assert!(machine.timers.is_set(Timer::Hold));
    machine.wait_ms(1);
    assert_eq!(machine.shown(), "fallback off");

    machine.command(true, None);
    assert_eq!(machine.shown(), "remote on");
    machine.command(false, None);
    assert_eq!(machine.shown(), "remote off");
    machine.command(true, None);
    machine.server_gone();
    assert_eq!(
        machine.shown(),
        "fallback on",
        "the hold began with the last change"
    );
    for _ in 0..3 {
        machine.read_failed();
    }
    assert_eq!(machine.shown(), "fail-safe off");
}

#[test]
fn own_leases_are_bounded() {
    for (lease, holds, over) in [
        (Duration::ZERO, 999, 1_000),
        (Duration::MAX, 86_399_999, 86_400_000),
    ] {
        let mut machine = Machine::new(Mode::Auto, FailSafe::Keep, Duration::ZERO);
        machine.read(HIGH);
        machine.command(true, Some(lease));
        machine.wait_ms(holds);
        assert_eq!(machine.shown(), "remote on");
        machine.wait_ms(over - holds);
        assert_ne!(machine.lighting.authority().by(), "remote", "{lease:?}");
    }
}

fn assert_table(mode: Mode, table: &str) {
    let mut wrong = Vec::new();
    for row in table.lines().filter(|row| !row.trim().is_empty()) {
        let mut cells = row.split('|').map(str::trim);
        let input = cells.next().unwrap_or_default();
        let expected: Vec<&str> = cells.collect();
        assert_eq!(expected.len(), COLUMNS.len(), "{row}");
        for (state, expected) in COLUMNS.into_iter().zip(expected) {
            let mut machine = Machine::new(mode, FailSafe::On, Duration::ZERO);
            if input.starts_with("while linked") {
                machine = Machine::linked(mode);
            } else if input.starts_with("while present") {
                machine = Machine::present(mode);
            } else if input.starts_with("frozen") {
                machine = Machine::doubting(mode);
            }
            machine.bring_to(state);
            machine.give(input);
            if machine.shown() != expected {
                let shown = machine.shown();
                wrong.push(format!("{state}, {input}: {shown}, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "in mode {mode:?}: {wrong:#?}");
}

/// The machine with a clock; it checks that every change of the LED, and nothing else, is told.
struct Machine {
    lighting: Lighting,
    timers: Timers,
    now: Duration,
    led_on: bool,
}

impl Machine {
    fn new(mode: Mode, fail_safe: FailSafe, hold: Duration) -> Self {
        Self::with(mode, fail_safe, hold, LEASE, Duration::ZERO)
    }

    /// Believes no reading that stays the same for 10 s.
    fn doubting(mode: Mode) -> Self {
        let frozen_after = Duration::from_secs(10);
        Self::with(mode, FailSafe::On, Duration::ZERO, LEASE, frozen_after)
    }

    fn linked(mode: Mode) -> Self {
        let (fail_safe, hold) = (FailSafe::On, Duration::ZERO);
        Self::with(mode, fail_safe, hold, Lease::WhileLinked, Duration::ZERO)
    }

    fn present(mode: Mode) -> Self {
        let lease = Lease::WhilePresent(Duration::from_secs(15));
        Self::with(mode, FailSafe::On, Duration::ZERO, lease, Duration::ZERO)
    }

    fn with(
        mode: Mode,
        fail_safe: FailSafe,
        hold: Duration,
        lease: Lease,
        frozen_after: Duration,
    ) -> Self {
        let settings = LightingSettings {
            mode,
            on_below: 300.0,
            off_above: 350.0,
            hold,
            lease,
            fail_safe,
            interval: Duration::from_secs(1),
            least_interval: Duration::ZERO,
            frozen_after,
        };
        let now = Duration::from_secs(50);
        let mut timers = Timers::default();
        Self {
            lighting: Lighting::new(settings, false, now, &mut timers),
            timers,
            now,
            led_on: false,
        }
    }

    /// Brings it to a state of mode `auto`; the other modes make of it what they make of it.
    fn bring_to(&mut self, state: &str) {
        if state != "Starting" {
            self.read(MIDDLE);
        }
        match state {
            "Remote" => self.command(true, None),
            "SensorFault" => {
                for _ in 0..3 {
                    self.read_failed();
                }
            }
            _ => {}
        }
    }

    fn give(&mut self, input: &str) {
        match input {
            "nothing" => {}
            "read low" => self.read(LOW),
            "read middle" => self.read(MIDDLE),
            "read high" => self.read(HIGH),
            "read failed" => self.read_failed(),
            "read failed twice" => {
                self.read_failed();
                self.read_failed();
            }
            "read failed three times" => {
                for _ in 0..3 {
                    self.read_failed();
                }
            }
            "almost three intervals" => self.wait_ms(2_999),
            "three intervals" => self.wait_ms(3_000),
            "command on" => self.command(true, None),
            "command off" => self.command(false, None),
            "own lease runs" => {
                self.command(false, Some(Duration::from_secs(30)));
                self.wait_ms(29_999);
            }
            "own lease over" => {
                self.command(false, Some(Duration::from_secs(2)));
                self.wait_ms(2_000);
            }
            "lease almost over" => self.wait_ms(14_999),
            "lease over" => self.wait_ms(15_000),
            "lease over, sensor good" => {
                for _ in 0..15 {
                    self.wait_ms(1_000);
                    self.read(MIDDLE);
                }
            }
            "server alive" => self.lighting.server_alive(self.now, &mut self.timers),
            "alive, first lease over" => {
                self.wait_ms(14_000);
                self.lighting.server_alive(self.now, &mut self.timers);
                self.wait_ms(14_999);
            }
            "server gone" => self.server_gone(),
            "link down" => self.link_down(),
            "while linked" => {
                self.command(false, None);
                self.lighting.server_alive(self.now, &mut self.timers);
            }
            "while linked, link down" => {
                self.command(false, None);
                self.link_down();
            }
            "while present" => {
                self.is_there(true);
                self.command(false, None);
                self.wait_ms(60_000);
            }
            "while present, away" => self.leave(14_999),
            "while present, gone" => self.leave(15_000),
            "while present, goodbye" => self.say_goodbye(1_999),
            "while present, left" => self.say_goodbye(2_000),
            "while present, back" => {
                self.leave(14_999);
                self.is_there(true);
                self.wait_ms(60_000);
            }
            "frozen" => self.freeze(),
            "frozen, then moves" => {
                self.freeze();
                self.read(MIDDLE + 1.0);
            }
            "set auto" => self.set(Mode::Auto),
            "set local" => self.set(Mode::Local),
            "set remote" => self.set(Mode::Remote),
            "set thresholds up" => self.set_rules(Mode::Auto, 330.0, 340.0),
            _ => panic!("no such input: {input}"),
        }
    }

    fn read(&mut self, light: f64) {
        let change = self.lighting.read(light, self.now, &mut self.timers);
        self.check(change);
    }

    /// The very same reading for 10 s and more.
    fn freeze(&mut self) {
        for _ in 0..11 {
            self.wait_ms(1_000);
            self.read(MIDDLE);
        }
    }

    fn read_failed(&mut self) {
        let change = self
            .lighting
            .read_failed("no answer", self.now, &mut self.timers);
        self.check(change);
    }

    fn command(&mut self, led_on: bool, lease: Option<Duration>) {
        let why = "command".to_owned();
        let (now, timers) = (self.now, &mut self.timers);
        let change = self.lighting.command(led_on, lease, why, now, timers);
        self.check(change);
    }

    fn server_gone(&mut self) {
        let change = self.lighting.server_gone(self.now, &mut self.timers);
        self.check(change);
    }

    fn is_there(&mut self, is_there: bool) {
        self.lighting
            .server_may_be_there(is_there, self.now, &mut self.timers);
    }

    /// Commands, and is away for so long after that.
    fn leave(&mut self, time_ms: u64) {
        self.is_there(true);
        self.command(false, None);
        self.wait_ms(60_000);
        self.is_there(false);
        self.wait_ms(time_ms);
    }

    fn say_goodbye(&mut self, time_ms: u64) {
        self.is_there(true);
        self.command(false, None);
        self.wait_ms(60_000);
        self.server_gone();
        self.wait_ms(time_ms);
    }

    fn link_down(&mut self) {
        let change = self.lighting.link_down(self.now, &mut self.timers);
        self.check(change);
    }

    fn set(&mut self, mode: Mode) {
        self.set_rules(mode, 300.0, 350.0);
    }

    fn set_rules(&mut self, mode: Mode, on_below: f64, off_above: f64) {
        let rules = Rules {
            mode,
            on_below,
            off_above,
            interval: Duration::from_secs(1),
        };
        let change = self.lighting.set_rules(rules, self.now, &mut self.timers);
        self.check(change);
    }

    fn wait_ms(&mut self, time: u64) {
        self.now += ms(time);
        while let Some((timer, _)) = self.timers.expire(&Timer::DECIDING, self.now) {
            let change = self.lighting.expired(timer, self.now, &mut self.timers);
            self.check(change);
        }
    }

    /// A change is told when there is one, with the one who decided.
    fn check(&mut self, change: Option<Change>) {
        let led_on = self.lighting.led_on();
        match change {
            Some(change) => {
                assert_ne!(change.led_on, self.led_on);
                assert_eq!(change.led_on, led_on);
                assert_eq!(change.by, self.lighting.authority().by());
                assert!(!change.why.is_empty());
            }
            None => assert_eq!(led_on, self.led_on),
        }
        self.led_on = led_on;
    }

    fn shown(&self) -> String {
        let led = if self.led_on { "on" } else { "off" };
        format!("{} {led}", self.lighting.authority().by())
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
