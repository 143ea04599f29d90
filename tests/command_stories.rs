//! Stories of commands and of the server that sends them, in the simulated world. Each name is what must
//! hold. What one payload may do is in `logic/src/command/tests.rs` and `promises/mod.rs`.

mod world;

use std::time::Duration;

use nightlight::logic::Input;
use nightlight::logic::command::Order;
use nightlight::logic::delivery::Topic;
use world::{World, settings};

fn status(world: &mut World, text: &str, retained: bool) {
    world.input(Input::ServerStatus {
        payload: text.as_bytes().to_vec(),
        retained,
    });
}

#[test]
fn the_results_of_a_flood_hold_up_no_reading() {
    let mut world = World::new(settings());
    world.server = false;
    world.seconds(5);
    // Far fewer results can be confirmed than commands come: 10,000 a second.
    world.latency = Duration::from_millis(50);
    let began = world.elapsed();
    let readings = world.on(Topic::Telemetry).len();
    let mut sent = 0_usize;
    for _ in 0..500 {
        for _ in 0..200 {
            sent += 1;
            world.command(&format!(r#"{{"led_on":true,"id":"f{sent}"}}"#));
        }
        world.run_for(Duration::from_millis(20));
    }
    assert!(world.on(Topic::Telemetry).len() >= readings + 9);
    let late = world.received.iter().filter(|received| {
        let made = received.value["ts"].as_str().and_then(|ts| ts.parse().ok());
        let made = made.map(|made: jiff::Timestamp| made.as_millisecond() - world::NOON_MS);
        let arrived = received.at.as_millis() as i64;
        received.at > began
            && received.topic == Topic::Telemetry
            && made.is_none_or(|made| arrived - made > 300)
    });
    assert_eq!(late.count(), 0, "readings are not late");
    world.command(r#"{"led_on":false,"id":"last"}"#);
    assert!(!world.led_on, "the last one wins");
    world.seconds(10);
    let results = world.on(Topic::Results).len();
    assert_eq!(
        results as u64 + world.view().results_dropped,
        sent as u64 + 1,
        "each is answered, or counted"
    );
    let last = world.on(Topic::Results).pop().cloned().unwrap_or_default();
    assert_eq!(last["id"], "last");
}

#[test]
fn what_the_broker_kept_of_the_servers_status_says_nothing_about_now() {
    let mut world = World::new(settings());
    world.server = false;
    world.light = Some(100.0);
    world.seconds(2);
    world.command(r#"{"led_on":false}"#);
    // A dead server, and a broker that says its old "online" at each of our connects.
    for _ in 0..4 {
        world.seconds(5);
        world.pull_cable();
        world.run_for(Duration::from_millis(100));
        world.mend_cable();
        world.seconds(2);
        status(&mut world, "online", true);
    }
    assert_eq!(world.view().by, "fallback", "the lease was not extended");
    assert!(world.led_on);
    // The other way round: an old "offline" takes nothing from a server that lives.
    world.command(r#"{"led_on":false}"#);
    status(&mut world, "offline", true);
    assert_eq!(world.view().by, "remote");
    status(&mut world, "offline", false);
    assert_eq!(world.view().by, "fallback");
}

#[test]
fn a_live_word_of_the_server_extends_its_lease() {
    let mut world = World::new(settings());
    world.server = false;
    world.light = Some(100.0);
    world.seconds(2);
    world.command(r#"{"led_on":false}"#);
    for _ in 0..5 {
        world.seconds(10);
        status(&mut world, "online", false);
    }
    assert_eq!(world.view().by, "remote");
    world.seconds(16);
    assert_eq!(world.view().by, "fallback");
}

#[test]
fn a_sequence_waits_for_a_hole_reports_it_and_goes_on() {
    let mut settings = settings();
    settings.commands.order = Order::Sequence;
    let mut world = World::new(settings);
    world.server = false;
    world.seconds(2);
    world.command(r#"{"led_on":true,"seq":1,"id":"s1"}"#);
    assert!(world.led_on);
    world.command(r#"{"led_on":true,"seq":3,"id":"s3"}"#);
    world.command(r#"{"led_on":false,"seq":2,"id":"s2"}"#);
    assert!(world.led_on, "2, then 3");
    assert_eq!(world.led_changes.len(), 3);
    world.command(r#"{"led_on":false,"seq":6,"id":"s6"}"#);
    world.seconds(4);
    assert!(world.led_on, "it waits for 4 and 5");
    world.seconds(2);
    assert!(!world.led_on, "and not for ever");
    world.command(r#"{"led_on":true,"seq":5,"id":"s5"}"#);
    assert!(!world.led_on, "what comes behind is too late");
    world.seconds(1);
    let holes: Vec<_> = world
        .on(Topic::Events)
        .into_iter()
        .filter(|event| event["event"] == "command")
        .map(|event| event["reason"].clone())
        .collect();
    assert_eq!(holes, ["commands 4 to 5 never came"]);
    let outcome = |id: &str| {
        let results = world.on(Topic::Results);
        let of_it = results.into_iter().find(|result| result["id"] == id);
        of_it.map(|result| result["result"].clone())
    };
    assert_eq!(outcome("s6"), Some("applied".into()));
    assert_eq!(outcome("s5"), Some("superseded".into()));
}

#[test]
fn a_link_that_flaps_each_second_is_found_up_within_the_lease() {
    let mut settings = settings();
    settings.lighting.interval = Duration::from_millis(200);
    settings.lighting.hold = Duration::ZERO;
    let mut world = World::new(settings);
    world.server = true;
    world.light = Some(100.0);
    world.seconds(3);
    assert!(world.led_on);
    // The server says "on" to each reading that it gets, and gets none of the bright ones.
    for _ in 0..300 {
        world.pull_cable();
        world.light = Some(800.0);
        world.run_for(Duration::from_millis(500));
        world.light = Some(100.0);
        world.run_for(Duration::from_millis(20));
        world.mend_cable();
        world.run_for(Duration::from_millis(480));
    }
    assert!(world.led_on);
    assert_eq!(world.led_changes.len(), 1, "{:#?}", world.log);
}

#[test]
fn a_flood_of_rules_to_keep_is_written_seldom_and_the_last_ones_are_kept() {
    let mut world = World::new(settings());
    world.server = false;
    world.seconds(2);
    for n in 0..2_000 {
        let on_below = 100 + n % 100;
        world.command(&format!(
            r#"{{"command":"set","on_below":{on_below},"persist":true}}"#
        ));
        world.run_for(Duration::from_millis(5));
    }
    world.seconds(5);
    assert_eq!(world.kept.on_below, Some(199.0));
    assert!(world.rules_kept <= 4, "{} writes", world.rules_kept);
    world.command(r#"{"command":"set","on_below":50,"persist":true}"#);
    world.command(r#"{"command":"set","on_below":60,"persist":true}"#);
    world.stop_and_start();
    assert_eq!(
        world.view().rules.on_below,
        60.0,
        "a stop waits for nothing"
    );
}
