//! What the queue decides about commands, good and bad.

use super::*;
use crate::time::rfc3339;

fn settings() -> CommandSettings {
    CommandSettings {
        order: Order::Latest,
        gap_wait: Duration::from_secs(5),
        on: "ON".into(),
        off: "OFF".into(),
        allow_reboot: false,
        accept_retained: false,
    }
}

fn at(ms: u64) -> Now {
    Now {
        boot: Duration::from_millis(ms),
        wall_ms: 1_795_194_000_000 + ms as i64,
        synced: true,
    }
}

/// The queue with its timers.
struct Queue {
    queue: CommandQueue,
    timers: Timers,
}

impl Queue {
    fn new(settings: CommandSettings) -> Self {
        Self {
            queue: CommandQueue::new(settings),
            timers: Timers::default(),
        }
    }

    fn link_up(&mut self, now: Duration) {
        self.queue.link_up(now, &mut self.timers);
    }

    fn receive(&mut self, payload: &[u8], retained: bool, now: Now, clock_known: bool) {
        self.queue
            .receive(payload, retained, None, now, clock_known, &mut self.timers);
    }

    fn advance(&mut self, now: Now) {
        while let Some((timer, _)) = self.timers.expire(&Timer::ALL, now.boot) {
            match timer {
                Timer::CommandsSettled => self.queue.settled(now),
                _ => self.queue.give_up_missing(now, &mut self.timers),
            }
        }
    }
}

fn decisions(commands: &mut Queue) -> Vec<String> {
    std::iter::from_fn(|| commands.queue.poll())
        .map(|decision| match decision {
            Decision::Obey(command) => format!("obey {:?}", command.action),
            Decision::Refuse {
                sender: Sender { id, .. },
                result,
                ..
            } => {
                format!("{:?} {}", result, id.unwrap_or_default())
            }
            Decision::Missing { from, to } => format!("missing {from}..{to}"),
        })
        .collect()
}

#[test]
fn the_lessons_command_and_plain_payloads_are_understood() {
    let action = |payload: &str| parse(payload.as_bytes(), &settings()).map(|c| c.action);
    assert_eq!(action(r#"{"led_on": true}"#), Ok(Action::Led(true)));
    assert_eq!(action("OFF"), Ok(Action::Led(false)));
    assert_eq!(action(r#"{"command":"read-now"}"#), Ok(Action::ReadNow));
}

#[test]
fn malformed_payloads_are_refused_with_a_reason() {
    let long_id = format!(r#"{{"led_on":true,"id":"{}"}}"#, "x".repeat(65));
    let large = format!(r#"{{"led_on":true,"x":"{}"}}"#, "x".repeat(200_000));
    let deep = "[".repeat(4_000);
    for payload in [
        "",
        "null",
        "[]",
        "true",
        "on",
        "{",
        "{}",
        r#"{"led_on": 1}"#,
        r#"{"led_on": "true"}"#,
        r#"{"led_on": null}"#,
        r#"{"led_on":true,"seq":1e400}"#,
        r#"{"led_on":true,"seq":1.5}"#,
        r#"{"led_on":true,"lease":5}"#,
        r#"{"led_on":true,"lease":"-5s"}"#,
        r#"{"led_on":true,"expires_at":"yesterday"}"#,
        r#"{"led_on":true,"id":""}"#,
        r#"{"led_on":true,"id":7}"#,
        r#"{"led_on":true,"command":"set"}"#,
        r#"{"command":"explode"}"#,
        r#"{"command":"set"}"#,
        r#"{"command":"set","on_below":"x"}"#,
        r#"{"command":"set","mode":"party"}"#,
        r#"{"command":"set","on_belov":3}"#,
        &long_id,
        &large,
        &deep,
    ] {
        let unfit = parse(payload.as_bytes(), &settings());
        assert!(
            unfit.is_err_and(|unfit| !unfit.reason.is_empty() && unfit.reason.len() < 200),
            "{payload:.40}"
        );
    }
    assert!(parse(&[0xff, 0xfe, b'{'], &settings()).is_err());
}

#[test]
fn a_burst_that_waited_at_the_broker_moves_the_led_once() {
    let mut commands = Queue::new(settings());
    commands.link_up(at(0).boot);
    for n in 0..20 {
        let payload = format!(r#"{{"led_on":{},"id":"c{n}"}}"#, n % 2 == 1);
        commands.receive(payload.as_bytes(), false, at(n), true);
    }
    assert_eq!(decisions(&mut commands).len(), 19);
    commands.advance(at(1_000));
    assert_eq!(decisions(&mut commands), ["obey Led(true)"]);
}

#[test]
fn retained_repeated_and_expired_commands_are_refused() {
    let mut commands = Queue::new(settings());
    let command = br#"{"led_on":true,"id":"a"}"#;
    commands.receive(command, true, at(0), true);
    commands.receive(command, false, at(0), true);
    commands.receive(command, false, at(1), true);
    let old = br#"{"led_on":true,"id":"b","expires_at":"2020-01-01T00:00:00Z"}"#;
    commands.receive(old, false, at(2), true);
    assert_eq!(
        decisions(&mut commands),
        ["Rejected a", "obey Led(true)", "Duplicate a", "Expired b"]
    );
}

#[test]
fn an_id_of_an_earlier_run_is_known() {
    let mut commands = Queue::new(settings());
    commands.queue.remember(vec!["a".into(), "b".into()]);
    commands.receive(br#"{"led_on":true,"id":"b"}"#, false, at(0), true);
    assert_eq!(decisions(&mut commands), ["Duplicate b"]);
}

#[test]
fn with_the_clock_not_set_an_expiry_counts_only_for_what_comes_at_once() {
    let command = br#"{"led_on":true,"expires_at":"2030-01-01T00:00:00Z"}"#;
    let mut commands = Queue::new(settings());
    commands.receive(command, false, at(0), false);
    commands.link_up(at(1).boot);
    commands.receive(command, false, at(2), false);
    assert_eq!(decisions(&mut commands), ["obey Led(true)", "Rejected "]);
}

#[test]
fn a_sequence_waits_for_a_hole_and_passes_it() {
    let mut commands = Queue::new(CommandSettings {
        order: Order::Sequence,
        ..settings()
    });
    let send = |commands: &mut Queue, seq: i64, ms: u64| {
        let payload = format!(r#"{{"led_on":{},"seq":{seq}}}"#, seq % 2 == 0);
        commands.receive(payload.as_bytes(), false, at(ms), true);
    };
    send(&mut commands, 1, 0);
    send(&mut commands, 3, 1);
    assert_eq!(decisions(&mut commands), ["obey Led(false)"]);
    send(&mut commands, 2, 2);
    assert_eq!(
        decisions(&mut commands),
        ["obey Led(true)", "obey Led(false)"]
    );
    send(&mut commands, 7, 10);
    send(&mut commands, 6, 11);
    assert_eq!(commands.timers.next(), Some(Duration::from_millis(5_010)));
    commands.advance(at(5_010));
    assert_eq!(
        decisions(&mut commands),
        ["missing 4..5", "obey Led(true)", "obey Led(false)"]
    );
    send(&mut commands, 2, 5_011);
    assert_eq!(decisions(&mut commands), ["Superseded "]);
}

#[test]
fn each_hole_in_a_sequence_is_passed_in_its_turn() {
    let mut commands = Queue::new(CommandSettings {
        order: Order::Sequence,
        ..settings()
    });
    for seq in [1, 3, 5] {
        let payload = format!(r#"{{"led_on":true,"seq":{seq}}}"#);
        commands.receive(payload.as_bytes(), false, at(0), true);
    }
    for ms in [5_000, 10_000] {
        assert_eq!(commands.timers.next(), Some(at(ms).boot));
        commands.advance(at(ms));
    }
    assert_eq!(commands.timers.next(), None);
    let passed = [
        "obey Led(true)",
        "missing 2..2",
        "obey Led(true)",
        "missing 4..4",
        "obey Led(true)",
    ];
    assert_eq!(decisions(&mut commands), passed);
}

#[test]
fn a_command_behind_a_hole_is_not_forgotten_when_the_server_was_silent() {
    let mut commands = Queue::new(CommandSettings {
        order: Order::Sequence,
        ..settings()
    });
    for seq in [1, 3] {
        let payload = format!(r#"{{"led_on":true,"seq":{seq}}}"#);
        commands.receive(payload.as_bytes(), false, at(0), true);
    }
    commands.queue.reset_order();
    commands.advance(at(5_000));
    assert_eq!(
        decisions(&mut commands),
        ["obey Led(true)", "obey Led(true)"]
    );
    assert_eq!(commands.timers.next(), None);
}

#[test]
fn a_command_that_waited_at_the_broker_is_too_late_after_a_newer_one() {
    let mut commands = Queue::new(settings());
    let newer = br#"{"led_on":true,"issued_at":"2026-11-20T12:00:01Z"}"#;
    let older = br#"{"led_on":false,"issued_at":"2026-11-20T12:00:00Z"}"#;
    commands.receive(newer, false, at(0), true);
    commands.link_up(at(1).boot);
    commands.receive(older, false, at(2), true);
    commands.advance(at(2_000));
    assert_eq!(decisions(&mut commands), ["obey Led(true)", "Superseded "]);
}

#[test]
fn a_command_overtaken_by_a_newer_one_does_nothing() {
    let mut commands = Queue::new(settings());
    let newer = br#"{"led_on":true,"issued_at":"2026-11-20T12:00:01Z"}"#;
    let older = br#"{"led_on":false,"issued_at":"2026-11-20T12:00:00Z"}"#;
    commands.receive(newer, false, at(0), true);
    commands.receive(older, false, at(1), true);
    assert_eq!(decisions(&mut commands), ["obey Led(true)", "Superseded "]);
}

#[test]
fn a_sender_whose_clock_is_ahead_silences_nobody_for_long() {
    let mut commands = Queue::new(settings());
    let ahead = br#"{"led_on":true,"issued_at":"9998-12-31T23:59:59Z"}"#;
    commands.receive(ahead, false, at(0), true);
    let right = |ms: u64| {
        let issued_at = rfc3339(at(ms).wall_ms);
        format!(r#"{{"led_on":false,"issued_at":"{issued_at}"}}"#)
    };
    commands.receive(right(30_000).as_bytes(), false, at(30_000), true);
    commands.receive(right(61_000).as_bytes(), false, at(61_000), true);
    assert_eq!(
        decisions(&mut commands),
        ["obey Led(true)", "Superseded ", "obey Led(false)"]
    );
}
