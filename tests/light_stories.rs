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

#[test]
fn a_reading_that_hangs_is_given_up_and_made_anew_and_no_old_light_is_shown_as_new() {
    let mut world = alone();
    world.light = Some(200.0);
    world.seconds(2);
    world.sensor_hangs = true;
    world.seconds(60);
    assert!(
        (4..=6).contains(&world.readings_given_up),
        "{}",
        world.readings_given_up
    );
    let view = world.view();
    assert_eq!((view.light, view.sensor_ok), (None, false));
    assert_eq!(view.sensor_why, "the sensor has not answered for 10 s");
    assert!(
        view.light_age_s
            .is_some_and(|age| (59.0..63.0).contains(&age)),
        "{view:?}"
    );
    assert!(
        view.to_string()
            .contains("light     not known; the last reading was "),
        "{view}"
    );
    assert_eq!(
        (&world.state["light"], &world.state["sensor_ok"]),
        (&Value::Null, &false.into())
    );
    assert_eq!(warnings(&world, "sensor: "), 1);
    world.sensor_hangs = false;
    world.forget_reading();
    world.seconds(12);
    let view = world.view();
    assert_eq!((view.light, view.sensor_ok), (Some(200.0), true));
    assert_eq!(view.sensor_why, "");
}

#[test]
fn an_interval_that_the_sensor_cannot_keep_is_refused() {
    let mut settings = settings();
    settings.lighting.least_interval = Duration::from_millis(150);
    let mut world = World::new(settings);
    world.seconds(2);
    for (id, interval, result) in [("a", "100ms", "rejected"), ("b", "150ms", "applied")] {
        world.command(&format!(
            r#"{{"command":"set","interval":"{interval}","id":"{id}"}}"#
        ));
        world.seconds(1);
        let results = world.on(Topic::Results);
        let found = results
            .iter()
            .find(|found| found["id"] == id)
            .expect("a result");
        assert_eq!(found["result"], result, "{found}");
    }
    let results = world.on(Topic::Results);
    let refused = results
        .iter()
        .find(|found| found["id"] == "a")
        .expect("a result");
    let why = "interval 100 ms is shorter than a measurement of the sensor; use 150 ms or more";
    assert_eq!(refused["reason"], why);
}

/// The process was stopped, or the machine slept.
fn sleep(world: &mut World, seconds: u64) {
    world.now += Duration::from_secs(seconds);
}

#[test]
fn after_a_long_pause_the_first_fresh_reading_decides() {
    for (before, after) in [(100.0, 500.0), (500.0, 100.0), (100.0, 100.0)] {
        for server in [true, false] {
            let mut settings = settings();
            settings.lighting.fail_safe = match before < 300.0 {
                true => nightlight::logic::lighting::FailSafe::Off,
                false => nightlight::logic::lighting::FailSafe::On,
            };
            let mut world = World::new(settings);
            world.server = server;
            world.light = Some(before);
            world.seconds(5);
            let changes = world.led_changes.len();
            sleep(&mut world, 60);
            world.light = Some(after);
            world.server = false;
            world.run_for(Duration::from_millis(1_500));
            let changed = usize::from((before < 300.0) != (after < 300.0));
            assert_eq!(
                world.led_changes.len(),
                changes + changed,
                "{:#?}",
                world.log
            );
            assert_eq!(world.led_on, after < 300.0);
            assert_eq!(warnings(&world, "sensor: "), 0);
            assert_eq!(warnings(&world, "LED"), 0);
        }
    }
}

#[test]
fn an_answer_from_before_a_pause_decides_nothing_and_the_reading_is_made_again() {
    let mut world = alone();
    world.light = Some(100.0);
    world.seconds(2);
    assert!(world.led_on);
    let changes = world.led_changes.len();
    // A reading is under way when the machine falls asleep by day, and it wakes up by night.
    world.light = Some(900.0);
    world.run_for(Duration::from_millis(999));
    while world.reads_under_way() == 0 {
        world.run_for(Duration::from_millis(1));
    }
    world.light = Some(100.0);
    sleep(&mut world, 60);
    world.seconds(2);
    assert!(world.led_on);
    assert_eq!(world.led_changes.len(), changes, "{:#?}", world.log);
}

#[test]
fn after_a_pause_a_sensor_that_fails_is_found_out_all_the_same() {
    let mut world = alone();
    sleep(&mut world, 60);
    world.sensor_hangs = true;
    world.seconds(5);
    assert!(!world.view().sensor_ok);
}

#[test]
fn what_is_kept_is_what_was_set_and_the_configuration_shows_for_the_rest() {
    let mut world = alone();
    world.command(r#"{"command":"set","off_above":900,"id":"a"}"#);
    world.command(r#"{"command":"set","on_below":200,"persist":true,"id":"b"}"#);
    world.command(r#"{"command":"set","mode":"local","persist":true,"id":"c"}"#);
    world.seconds(10);
    assert_eq!(world.kept.to_string(), "mode local, on_below 200");
    assert_eq!(world.view().kept_rules, world.kept);
    world.settings.lighting.off_above = 444.0;
    world.settings.lighting.interval = Duration::from_secs(2);
    world.stop_and_start();
    world.seconds(1);
    let rules = world.view().rules;
    assert_eq!((rules.on_below, rules.off_above), (200.0, 444.0));
    assert_eq!(
        (rules.mode.name(), rules.interval),
        ("local", Duration::from_secs(2))
    );
    assert!(
        world
            .view()
            .to_string()
            .contains("kept by a command: mode local, on_below 200")
    );
    assert_eq!(
        warnings(
            &world,
            "kept by a command, over the configuration: mode local, on_below 200"
        ),
        1
    );
}

#[test]
fn what_would_contradict_the_configuration_after_a_restart_is_not_kept() {
    let mut world = alone();
    world.command(r#"{"command":"set","off_above":900,"id":"a"}"#);
    world.command(r#"{"command":"set","on_below":600,"persist":true,"id":"b"}"#);
    world.seconds(1);
    let results = world.on(Topic::Results);
    let refused = results
        .iter()
        .find(|found| found["id"] == "b")
        .expect("a result");
    assert_eq!(refused["result"], "rejected");
    let why = refused["reason"].as_str().expect("a reason");
    assert!(
        why.contains("after a restart on_below 600 would be above off_above 350"),
        "{why}"
    );
    assert_eq!(world.view().rules.on_below, 300.0);
    // A file that contradicts a configuration changed since is not followed, and that is told.
    world.command(r#"{"command":"set","on_below":340,"persist":true}"#);
    world.seconds(1);
    world.settings.lighting.off_above = 320.0;
    world.stop_and_start();
    world.seconds(1);
    assert_eq!(world.view().rules.on_below, 300.0);
    assert_eq!(warnings(&world, "rules.json is not followed"), 1);
}

/// Between two readings, only `state` has to go out now and then; with or without a store.
#[test]
fn with_nothing_to_do_the_logic_rests() {
    let hour = Duration::from_secs(3_600);
    for opening in [Duration::from_millis(30), 24 * hour] {
        let mut settings = settings();
        settings.lighting.interval = 2 * hour;
        let mut world = World::new(settings);
        world.server = false;
        world.opening = opening;
        world.crash();
        world.seconds(300);
        assert!(world.is_linked());
        let before = world.wakes;
        world.run_for(hour);
        let wakes = world.wakes - before;
        assert!(
            (1..=60).contains(&wakes),
            "{wakes} with a store after {opening:?}"
        );
    }
}
