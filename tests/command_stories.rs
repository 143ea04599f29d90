//! Stories of commands and of the server that sends them, in the simulated world. Each name is what must
//! hold. What one payload may do is in `logic/src/command/tests.rs` and `promises/mod.rs`.

mod world;

use std::time::Duration;

use nightlight::logic::Input;
use nightlight::logic::command::Order;
use nightlight::logic::delivery::Topic;
use nightlight::logic::handover::Handover;
use nightlight::logic::lighting::Lease;
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

/// `led` events that the server has received.
fn led_events(world: &World) -> usize {
    let events = world.on(Topic::Events);
    let is_led = |event: &&&serde_json::Value| event["event"] == "led";
    events.iter().filter(is_led).count()
}

#[test]
fn a_restart_within_the_lease_moves_no_led_and_says_the_same() {
    let mut settings = settings();
    settings.lighting.lease = Lease::For(Duration::from_secs(60));
    for ends_cleanly in [false, true] {
        let mut world = World::new(settings.clone());
        world.server = false;
        // Bright: the local rule would switch it off.
        world.light = Some(900.0);
        world.seconds(5);
        world.command(r#"{"led_on":true,"id":"evening"}"#);
        world.seconds(3);
        let (before, events) = (world.view(), led_events(&world));
        assert_eq!((before.led_on, before.by.as_str()), (Some(true), "remote"));
        match ends_cleanly {
            true => world.stop_and_start(),
            false => world.crash(),
        }
        let after = world.view();
        assert!(after.led_on == Some(true) && world.led_on);
        assert_eq!((&after.by, &after.why), (&before.by, &before.why));
        assert!(
            after.led_since_s >= before.led_since_s && after.lease_left_s <= before.lease_left_s
        );
        world.seconds(20);
        assert!(world.led_on);
        assert_eq!(world.view().by, "remote");
        assert_eq!(led_events(&world), events, "no flash is told");
        // The lease is that of the command, not a new one.
        world.seconds(60);
        assert!(!world.led_on);
        assert_eq!(led_events(&world), events + 1);
    }
}

#[test]
fn a_lease_that_ended_during_a_restart_holds_nothing() {
    let mut world = World::new(settings());
    world.server = false;
    world.light = Some(900.0);
    world.seconds(5);
    world.command(r#"{"led_on":true,"lease":"5s"}"#);
    world.seconds(1);
    let handover = world.handover.clone();
    world.seconds(30);
    world.handover = handover;
    world.crash();
    assert_eq!(world.view().lease_left_s, None);
    world.seconds(2);
    assert_eq!(world.view().by, "fallback");
}

#[test]
fn until_the_first_reading_of_a_restart_the_led_is_by_whom_it_was() {
    let mut world = World::new(settings());
    world.server = false;
    world.light = Some(100.0);
    world.seconds(5);
    let before = world.view();
    assert_eq!(
        (before.led_on, before.by.as_str()),
        (Some(true), "fallback")
    );
    world.sensor_hangs = true;
    world.crash();
    let after = world.view();
    assert_eq!((&after.by, &after.why), (&before.by, &before.why));
    assert_eq!(after.light, None, "an old light is no light");
    // Switched by somebody while nightlight was away: nobody knows by whom.
    world.led_on = false;
    world.crash();
    assert_eq!(world.view().by, "start");
}

#[test]
fn a_reboot_takes_over_nothing() {
    let mut world = World::new(settings());
    world.server = false;
    world.light = Some(900.0);
    world.seconds(5);
    world.command(r#"{"led_on":true,"lease":"1h"}"#);
    world.seconds(1);
    world.power_cut(world::NOON_MS);
    assert_eq!(world.view().lease_left_s, None);
    world.seconds(3);
    assert_eq!(world.view().by, "fallback");
    assert!(!world.led_on);
}

#[test]
fn a_command_id_that_no_disk_has_is_known_after_a_crash() {
    let mut world = World::new(settings());
    world.server = false;
    world.seconds(5);
    world.command(r#"{"led_on":true,"id":"once","seq":7}"#);
    world.run_for(Duration::from_millis(300));
    world.crash();
    world.seconds(5);
    world.command(r#"{"led_on":false,"id":"once"}"#);
    world.command(r#"{"led_on":false,"id":"old","seq":6}"#);
    world.seconds(1);
    let results = world.on(Topic::Results);
    let last_two: Vec<_> = results.iter().rev().take(2).collect();
    assert_eq!(last_two[1]["result"], "duplicate");
    assert_eq!(last_two[0]["result"], "superseded");
    assert!(world.led_on);
}

#[test]
fn a_command_that_holds_while_linked_outlives_a_restart_until_the_link_fails() {
    let mut settings = settings();
    settings.lighting.lease = Lease::WhileLinked;
    let mut world = World::new(settings);
    world.server = false;
    world.light = Some(900.0);
    world.seconds(5);
    world.command(r#"{"led_on":true}"#);
    world.seconds(60);
    let events = led_events(&world);
    world.crash();
    world.seconds(30);
    assert_eq!((world.view().by.as_str(), world.led_on), ("remote", true));
    assert_eq!(led_events(&world), events);
    // Too long ago: nobody knows what the server did meanwhile.
    let handover = world.handover.clone();
    world.seconds(40);
    world.handover = handover;
    world.crash();
    assert_eq!(world.view().by, "start");
    world.command(r#"{"led_on":true}"#);
    world.seconds(5);
    world.pull_cable();
    world.crash();
    world.seconds(60);
    assert_eq!(world.view().by, "fallback");
}

#[test]
fn what_is_kept_for_a_restart_is_written_when_it_changes_and_seldom_in_a_flood() {
    let mut world = World::new(settings());
    world.server = false;
    world.seconds(60);
    let written = world.handovers_written;
    world.seconds(600);
    assert_eq!(
        world.handovers_written, written,
        "an idle one writes nothing"
    );
    for n in 0..1_000 {
        world.command(&format!(r#"{{"led_on":{},"id":"f{n}"}}"#, n % 2 == 0));
        world.run_for(Duration::from_millis(1));
    }
    world.seconds(1);
    let more = world.handovers_written - written;
    assert!((2..=8).contains(&more), "{more} writes");
}

#[test]
fn what_could_not_have_been_written_is_not_taken_over() {
    let mut world = World::new(settings());
    world.server = false;
    world.light = Some(900.0);
    world.seconds(5);
    world.command(r#"{"led_on":true,"id":"a"}"#);
    world.seconds(1);
    let good = world.handover.clone().expect("written");
    let damages: [fn(&mut Handover); 6] = [
        |it| it.written += Duration::from_secs(1_000),
        |it| it.decision.by = "nobody".into(),
        |it| it.decision.since += Duration::from_secs(1_000),
        |it| it.commands.fresh = 2,
        |it| it.commands.ids = vec!["i".repeat(65)],
        |it| {
            let command = it.decision.command.as_mut().expect("it holds");
            command.until = Some(Duration::MAX);
        },
    ];
    for damage in damages {
        let mut handover = good.clone();
        damage(&mut handover);
        world.handover = Some(handover);
        world.crash();
        assert_eq!(world.view().by, "start");
    }
    world.handover = Some(good);
    world.crash();
    assert_eq!(world.view().by, "remote");
}

#[test]
fn a_command_that_still_waited_when_the_daemon_died_is_obeyed_when_it_comes_again() {
    let mut world = World::new(settings());
    world.server = false;
    world.light = Some(900.0);
    world.seconds(5);
    world.crash();
    world.run_for(Duration::from_millis(100));
    assert!(world.is_linked());
    let command = r#"{"led_on":true,"id":"early"}"#;
    world.command(command);
    assert!(!world.led_on, "it settles first");
    world.run_for(Duration::from_millis(50));
    world.crash();
    world.seconds(5);
    world.command(command);
    world.seconds(1);
    assert!(world.led_on);
}

/// The disk learns the ids of commands with each group of records. One that still waits was obeyed by nobody.
#[test]
fn a_command_that_waits_while_records_are_stored_is_obeyed_when_it_comes_again() {
    let mut settings = settings();
    settings.commands.order = Order::Sequence;
    settings.commands.gap_wait = Duration::from_secs(60);
    for is_reboot in [false, true] {
        let mut world = World::new(settings.clone());
        world.server = false;
        world.light = Some(900.0);
        world.seconds(5);
        world.command(r#"{"led_on":false,"seq":1,"id":"one"}"#);
        let third = r#"{"led_on":true,"seq":3,"id":"three"}"#;
        world.command(third);
        world.broker_mute = true;
        world.seconds(5);
        assert!(
            world.disk_ids.contains(&"one".to_owned()),
            "records are stored"
        );
        assert!(!world.led_on, "three waits for two");
        match is_reboot {
            true => world.power_cut(world::NOON_MS),
            false => world.crash(),
        }
        world.broker_mute = false;
        world.seconds(5);
        if !is_reboot {
            world.command(r#"{"led_on":false,"seq":2,"id":"two"}"#);
        }
        world.command(third);
        world.seconds(1);
        assert!(world.led_on, "reboot: {is_reboot}");
        world.command(r#"{"led_on":false,"seq":4,"id":"one"}"#);
        assert!(world.led_on, "one was obeyed before");
    }
}

/// Light says off, and the server has spoken with a lease that is over soon.
fn alone_by_day() -> World {
    let mut world = World::new(settings());
    world.server = false;
    world.light = Some(900.0);
    world.seconds(5);
    world
}

#[test]
fn in_a_mode_that_was_kept_a_command_without_an_end_outlives_a_restart() {
    let mut world = alone_by_day();
    world.command(r#"{"command":"set","mode":"remote","persist":true}"#);
    world.command(r#"{"led_on":true,"id":"a","seq":7,"lease":"2s"}"#);
    world.seconds(10);
    // Switched by somebody while nightlight was away: the command still counts.
    world.led_on = false;
    world.crash();
    world.seconds(1);
    let view = world.view();
    assert_eq!(
        (view.by.as_str(), view.why.as_str()),
        ("remote", "command a")
    );
    assert!(world.led_on);
    world.command(r#"{"led_on":false,"id":"late","seq":6}"#);
    world.seconds(1);
    assert!(world.led_on, "it is older than the one that holds");
}

#[test]
fn a_command_that_does_not_count_in_mode_local_flashes_no_led_at_a_restart() {
    let mut world = alone_by_day();
    world.command(r#"{"led_on":true,"lease":"1h"}"#);
    world.seconds(1);
    world.command(r#"{"command":"set","mode":"local","persist":true}"#);
    world.seconds(10);
    assert!(!world.led_on);
    let changes = world.led_changes.len();
    world.crash();
    world.seconds(10);
    assert_eq!(world.led_changes.len(), changes, "{:#?}", world.log);
    // It is still there when it counts again.
    world.command(r#"{"command":"set","mode":"auto"}"#);
    world.seconds(1);
    assert_eq!((world.view().by.as_str(), world.led_on), ("remote", true));
}

#[test]
fn the_reason_of_the_newest_command_is_left_to_the_next_run() {
    let mut settings = settings();
    settings.lighting.lease = Lease::WhileLinked;
    let mut world = World::new(settings);
    world.server = false;
    world.seconds(5);
    world.command(r#"{"led_on":true,"id":"first"}"#);
    world.seconds(1);
    world.command(r#"{"led_on":true}"#);
    world.seconds(1);
    world.crash();
    assert_eq!(world.view().why, "command");
}

#[test]
fn a_command_overtaken_while_it_waited_is_not_obeyed_after_a_restart() {
    let mut world = alone_by_day();
    world.crash();
    world.run_for(Duration::from_millis(300));
    // Linked anew, so that what comes settles first, after the last of the start was written.
    world.pull_cable();
    world.run_for(Duration::from_millis(10));
    world.mend_cable();
    while !world.is_linked() {
        world.run_for(Duration::from_millis(10));
    }
    // No disk knows the id.
    world.disk_good(false);
    world.command(r#"{"led_on":true,"id":"overtaken"}"#);
    world.run_for(Duration::from_millis(249));
    world.command(r#"{"led_on":false}"#);
    world.run_for(Duration::from_millis(249));
    world.crash();
    world.seconds(5);
    world.command(r#"{"led_on":true,"id":"overtaken"}"#);
    world.seconds(1);
    let result = world.on(Topic::Results).pop().cloned().unwrap_or_default();
    assert_eq!(result["result"], "duplicate");
    assert!(!world.led_on);
}
