//! Stories of the LED and the sensor in the simulated world: what is said of them is what was observed.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod world;

use std::time::Duration;

use nightlight::logic::delivery::Topic;
use serde_json::Value;
use world::{World, settings};

/// A world in which the Pi decides alone.
fn alone() -> World {
    let mut world = World::new(settings());
    world.server = false;
    world.seconds(2);
    world
}

fn led_events(world: &World) -> Vec<(Value, Value)> {
    let events = world.on(Topic::Events);
    let led = events.iter().filter(|event| event["event"] == "led");
    led.map(|event| (event["led_on"].clone(), event["led_ok"].clone()))
        .collect()
}

fn warnings(world: &World, word: &str) -> usize {
    let warnings = world.warnings.iter();
    warnings.filter(|text| text.contains(word)).count()
}

#[test]
fn an_led_that_cannot_be_written_is_nowhere_said_to_be_on() {
    let mut world = alone();
    world.led_good = false;
    world.light = Some(100.0);
    world.seconds(20);
    assert!(!world.led_on);
    let view = world.view();
    assert_eq!(
        (view.led_on, view.led_wanted, view.led_ok),
        (Some(false), true, false)
    );
    assert_eq!(view.led_why, "no such pin");
    assert!(
        view.to_string().contains("LED       off; is to be on"),
        "{view}"
    );
    assert!(
        view.to_string().contains("cannot be written: no such pin"),
        "{view}"
    );
    assert_eq!(
        (&world.state["led_on"], &world.state["led_ok"]),
        (&false.into(), &false.into())
    );
    let reading = world.on(Topic::Telemetry).pop().expect("a reading").clone();
    assert_eq!(
        (&reading["led_on"], &reading["led_ok"]),
        (&false.into(), &false.into())
    );
    assert_eq!(led_events(&world), [(false.into(), false.into())]);
    assert_eq!(
        warnings(&world, "the LED cannot be written: no such pin"),
        1
    );
    world.led_good = true;
    world.seconds(3);
    assert!(world.led_on);
    let view = world.view();
    assert_eq!(
        (view.led_on, view.led_ok, view.led_why.as_str()),
        (Some(true), true, "")
    );
    let [_, works, on] = &led_events(&world)[..] else {
        unreachable!("{:?}", led_events(&world))
    };
    assert_eq!(works, &(true.into(), true.into()));
    assert_eq!(on, &(true.into(), Value::Null));
    assert_eq!(
        (&world.state["led_on"], &world.state["led_ok"]),
        (&true.into(), &true.into())
    );
    let reading = world.on(Topic::Telemetry).pop().expect("a reading").clone();
    assert_eq!(
        (&reading["led_on"], &reading["led_ok"]),
        (&true.into(), &Value::Null)
    );
}

#[test]
fn a_command_is_applied_when_the_led_was_written_and_not_before() {
    let mut world = alone();
    world.led_good = false;
    world.command(r#"{"led_on":true,"id":"a"}"#);
    world.seconds(1);
    world.led_good = true;
    world.command(r#"{"led_on":false,"id":"b"}"#);
    world.command(r#"{"led_on":true,"id":"c"}"#);
    world.seconds(1);
    let results: Vec<String> = world
        .on(Topic::Results)
        .iter()
        .map(|result| result.to_string())
        .collect();
    let field = |n: usize, field: &str| {
        let value: Value = serde_json::from_str(&results[n]).expect("JSON");
        value[field].clone()
    };
    assert_eq!(results.len(), 3, "{results:?}");
    assert_eq!(field(0, "id"), "a");
    assert_eq!(field(0, "result"), "rejected");
    assert_eq!(field(0, "reason"), "the LED cannot be written: no such pin");
    assert_eq!(
        (field(0, "led_on"), field(0, "led_ok")),
        (false.into(), false.into())
    );
    for (n, id, led_on) in [(1, "b", false), (2, "c", true)] {
        assert_eq!(
            (field(n, "id"), field(n, "result")),
            (id.into(), "applied".into())
        );
        assert_eq!(
            (field(n, "led_on"), field(n, "led_ok")),
            (led_on.into(), Value::Null)
        );
    }
}

#[test]
fn an_led_that_somebody_else_switched_is_set_right_at_the_next_reading() {
    let mut world = alone();
    world.light = Some(100.0);
    world.seconds(3);
    assert!(world.led_on);
    for _ in 0..5 {
        world.led_on = false;
        world.seconds(1);
        assert!(world.led_on);
    }
    assert_eq!(warnings(&world, "switched by something else"), 1);
    let told = led_events(&world);
    assert_eq!(
        told,
        [(true.into(), Value::Null), (true.into(), Value::Null)]
    );
}

#[test]
fn an_led_that_hangs_stops_neither_readings_nor_the_link_and_is_told() {
    let mut world = alone();
    world.led_hangs = true;
    world.light = Some(100.0);
    world.seconds(1);
    world.command(r#"{"led_on":true,"id":"a"}"#);
    let before = world.on(Topic::Telemetry).len();
    world.seconds(10);
    assert!(world.is_linked());
    assert!(world.on(Topic::Telemetry).len() >= before + 9);
    assert!(world.led_given_up >= 2, "{}", world.led_given_up);
    let view = world.view();
    assert_eq!((view.led_on, view.led_ok), (Some(false), false));
    assert_eq!(view.led_why, "the LED has not answered for 2 s");
    assert_eq!(world.on(Topic::Results)[0]["result"], "rejected");
    assert_eq!(warnings(&world, "has not answered"), 1);
    world.led_hangs = false;
    world.seconds(4);
    assert!(world.led_on);
    assert!(world.view().led_ok);
}

#[test]
fn a_stop_does_not_wait_for_an_led_that_hangs() {
    let mut world = alone();
    world.led_hangs = true;
    world.light = Some(100.0);
    world.seconds(1);
    world.input(nightlight::logic::Input::ShutdownAsked);
    world.run_for(Duration::from_millis(1_000));
    assert!(world.exit.is_some());
}

#[test]
fn a_change_and_a_result_just_before_a_stop_are_told() {
    let mut world = alone();
    let run = world.run;
    world.led_latency = Duration::from_millis(50);
    world.command(r#"{"led_on":true,"id":"a"}"#);
    world.input(nightlight::logic::Input::ShutdownAsked);
    world.run_for(Duration::from_millis(3_000));
    assert!(world.exit.is_some());
    assert!(world.led_on);
    assert_eq!(world.on(Topic::Results)[0]["result"], "applied");
    assert_eq!(led_events(&world), [(true.into(), Value::Null)]);
    assert!(world.missing(run, world.view().last_seq).is_empty());
}

#[test]
fn a_flood_of_commands_for_a_slow_led_ends_with_the_last_and_answers_each() {
    let mut world = alone();
    world.led_latency = Duration::from_millis(20);
    for n in 0..500 {
        world.command(&format!(r#"{{"led_on":{},"id":"f{n}"}}"#, n % 2 == 0));
    }
    world.command(r#"{"led_on":true,"id":"last"}"#);
    world.seconds(5);
    assert!(world.led_on);
    let results = world.on(Topic::Results);
    assert_eq!(results.last().expect("a result")["id"], "last");
    assert_eq!(results.last().expect("a result")["result"], "applied");
}
