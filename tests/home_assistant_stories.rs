//! Stories of a Home Assistant that is told of the device, switches its light, goes away and comes back, in the
//! simulated world. The message itself is in `home_assistant_message.json`, byte for byte.

mod world;

use std::time::Duration;

use nightlight::logic::delivery::Topic;
use nightlight::logic::home_assistant::DiscoverySettings;
use nightlight::logic::lighting::Lease;
use nightlight::logic::link::{Ending, Inbound, Offer, Refusal, Sent};
use nightlight::logic::{Input, Settings};
use serde_json::Value;
use world::{World, settings};

const TOPIC: &str = "homeassistant/device/pi/config";

/// As `home_assistant.discovery = true` settles it.
fn discovered() -> Settings {
    let mut settings = settings();
    settings.lighting.lease = Lease::WhilePresent(Duration::from_secs(30));
    settings.home_assistant = Some(DiscoverySettings {
        node: "pi".into(),
        status_is_servers: true,
        light: "light",
    });
    let topics = &mut settings.device.topics;
    topics.insert(Sent::Publish(Topic::Discovery), TOPIC.into());
    topics.insert(
        Sent::Subscribe(Inbound::ServerStatus),
        "homeassistant/status".into(),
    );
    settings
}

/// At home: no server that answers readings, a broker that says who listens.
fn home() -> World {
    let mut world = World::new(discovered());
    world.server = false;
    world.input(Input::Offered(Offer {
        version: "5".into(),
        ..Offer::default()
    }));
    world.seconds(5);
    assert_eq!(world.view().by, "fallback");
    world
}

fn status(world: &mut World, text: &str, retained: bool) {
    world.input(Input::ServerStatus {
        payload: text.as_bytes().to_vec(),
        retained,
    });
}

/// What was announced, and what was taken back from which topic.
fn said(world: &World) -> Vec<&str> {
    world
        .discovery
        .iter()
        .map(|(other, text)| match other {
            Some(topic) => topic.as_str(),
            None if text.is_empty() => "empty",
            None => "device",
        })
        .collect()
}

#[test]
fn the_message_is_this_byte_for_byte() {
    let world = home();
    let (_, text) = world.discovery.first().expect("announced");
    let expected = include_str!("home_assistant_message.json");
    assert_eq!(text, expected.trim_end());
}

#[test]
fn lux_is_said_only_where_the_driver_measures_lux() {
    for (unit, class, name) in [
        (Some("lx"), "illuminance", "Illuminance"),
        (Some("tenths of a percent"), "", "Light"),
        (None, "", "Light"),
    ] {
        let mut settings = discovered();
        settings.device.unit = unit.map(Into::into);
        let mut world = World::new(settings);
        world.seconds(5);
        let (_, text) = world.discovery.first().expect("announced");
        let message: Value = serde_json::from_str(text).expect("JSON");
        let sensor = &message["cmps"]["illuminance"];
        assert_eq!(sensor["dev_cla"].as_str().unwrap_or(""), class);
        assert_eq!(sensor["name"], name);
        assert_eq!(sensor["stat_cla"], "measurement");
        let is_lux = unit == Some("lx");
        for entity in ["illuminance", "on_below", "off_above"] {
            let unit = &message["cmps"][entity]["unit_of_meas"];
            assert_eq!(unit.as_str(), is_lux.then_some("lx"), "{entity}");
        }
    }
}

#[test]
fn readings_that_are_left_out_in_steady_light_do_not_expire() {
    for (deadband, interval, expires) in [(0.0, 0, Some(13)), (0.0, 60, Some(190)), (5.0, 0, None)]
    {
        let mut settings = discovered();
        settings.telemetry.deadband = deadband;
        settings.telemetry.interval = Duration::from_secs(interval);
        let mut world = World::new(settings);
        world.seconds(5);
        let (_, text) = world.discovery.first().expect("announced");
        let message: Value = serde_json::from_str(text).expect("JSON");
        let after = &message["cmps"]["illuminance"]["exp_aft"];
        assert_eq!(after.as_u64(), expires, "{deadband} {interval}");
    }
}

#[test]
fn it_is_announced_in_each_session_and_a_while_after_home_assistant_has_started() {
    let mut world = home();
    assert_eq!(said(&world), ["device"]);
    assert_eq!(world.announced.as_deref(), Some(TOPIC));
    world.pull_cable();
    world.seconds(5);
    world.mend_cable();
    world.seconds(30);
    assert_eq!(said(&world), ["device"; 2]);
    // What the broker kept is not about now, and what is said now is heard by all devices at once.
    status(&mut world, "online", true);
    world.seconds(10);
    assert_eq!(said(&world), ["device"; 2]);
    status(&mut world, "online", false);
    world.run_for(Duration::from_millis(999));
    assert_eq!(said(&world), ["device"; 2]);
    world.seconds(5);
    assert_eq!(said(&world), ["device"; 3]);
    // Another interval makes another message.
    world.command(r#"{"command":"set","interval":"2s"}"#);
    world.seconds(5);
    assert_eq!(said(&world), ["device"; 4]);
    world.seconds(3_600);
    assert_eq!(said(&world), ["device"; 4]);
    assert!(
        world.warnings.iter().all(|text| text.contains("link down")),
        "{:?}",
        world.warnings
    );
}

#[test]
fn devices_do_not_answer_home_assistants_start_in_step() {
    let mut moments = std::collections::BTreeSet::new();
    for boot in 0..8 {
        let mut world = home();
        for _ in 0..boot {
            world.crash();
        }
        world.seconds(5);
        let (before, began) = (world.discovery.len(), world.elapsed());
        status(&mut world, "online", false);
        while world.discovery.len() == before {
            world.run_for(Duration::from_millis(50));
            assert!(world.elapsed() < began + Duration::from_secs(6));
        }
        moments.insert((world.elapsed() - began).as_millis() / 100);
    }
    assert!(moments.len() >= 4, "{moments:?}");
}

#[test]
fn switched_off_it_is_taken_back_once_and_where_it_never_was_on_nothing_is_touched() {
    let mut world = World::new(settings());
    world.seconds(60);
    assert_eq!(said(&world), [""; 0]);
    let mut world = home();
    assert_eq!(said(&world), ["device"]);
    world.settings = settings();
    for _ in 0..3 {
        world.stop_and_start();
        world.seconds(30);
        assert_eq!(said(&world), ["device", TOPIC]);
        assert_eq!(world.discovery[1].1, "");
        assert_eq!(world.announced, None);
    }
    let told = world
        .told
        .iter()
        .any(|(_, text)| text.contains("taken back from Home Assistant"));
    assert!(told);
}

#[test]
fn switched_off_while_the_broker_is_away_it_is_taken_back_when_that_is_back() {
    let mut world = home();
    world.settings = settings();
    world.pull_cable();
    world.stop_and_start();
    world.seconds(60);
    assert_eq!(
        (said(&world), world.announced.as_deref()),
        (vec!["device"], Some(TOPIC))
    );
    // The broker is back, and lost before it answers.
    world.broker_mute = true;
    world.mend_cable();
    world.seconds(9);
    world.crash();
    world.broker_mute = false;
    world.seconds(60);
    assert_eq!(said(&world), ["device", TOPIC, TOPIC]);
    assert_eq!(world.announced, None);
}

#[test]
fn by_another_name_the_old_announcement_goes_before_the_new_one_comes() {
    let mut world = home();
    let topics = &mut world.settings.device.topics;
    topics.insert(
        Sent::Publish(Topic::Discovery),
        "ha/device/pi/config".into(),
    );
    world.stop_and_start();
    world.seconds(30);
    assert_eq!(said(&world), ["device", TOPIC, "device"]);
    assert_eq!(world.announced.as_deref(), Some("ha/device/pi/config"));
}

#[test]
fn a_broker_that_refuses_it_is_asked_once_a_session_and_everything_else_goes_on() {
    let mut world = World::new(discovered());
    world.server = false;
    world.broker_mute = true;
    world.seconds(2);
    world.broker_mute = false;
    world.crash();
    world.denied.insert(Sent::Publish(Topic::Discovery));
    world.seconds(120);
    let sessions = world.sessions;
    world.seconds(3_600);
    // A broker that closes the connection for it (3.1.1) is asked now and then, and keeps its session in between.
    assert!(
        world.sessions - sessions < 12,
        "{}",
        world.sessions - sessions
    );
    assert!(world.view().link_up);
    assert!(world.view().backlog < 3, "{}", world.view().backlog);
}

#[test]
fn a_light_switched_by_hand_stays_so_for_hours_of_silence() {
    let mut world = home();
    world.light = Some(10.0);
    world.seconds(5);
    assert!(world.led_on, "it is dark");
    world.command(r#"{"led_on":false}"#);
    world.seconds(5 * 3_600);
    assert_eq!((world.led_on, world.view().by.as_str()), (false, "remote"));
    assert_eq!(world.view().lease_left_s, None);
    // It dies: its last will.
    status(&mut world, "offline", false);
    world.seconds(3);
    assert_eq!((world.led_on, world.view().by.as_str()), (true, "fallback"));
    // It is back: nothing changes until somebody switches.
    let changes = world.led_changes.len();
    status(&mut world, "online", false);
    world.seconds(600);
    assert_eq!(world.led_changes.len(), changes, "{:#?}", world.log);
    world.command(r#"{"state":"OFF"}"#);
    world.seconds(600);
    assert!(!world.led_on);
}

#[test]
fn a_broker_that_restarts_takes_no_light_from_the_hand_and_one_that_stays_away_does() {
    let mut world = home();
    world.light = Some(10.0);
    world.seconds(5);
    world.command(r#"{"led_on":false}"#);
    world.seconds(60);
    let changes = world.led_changes.len();
    for _ in 0..3 {
        world.restart_broker(Duration::from_secs(3));
        world.seconds(60);
    }
    world.seconds(600);
    assert_eq!(world.led_changes.len(), changes, "{:#?}", world.log);
    assert_eq!(world.view().by, "remote");
    world.pull_cable();
    world.seconds(29);
    assert!(!world.led_on, "the lease of 30 s runs");
    assert!(world.view().lease_left_s.is_some_and(|left| left <= 2.0));
    world.seconds(2);
    assert_eq!((world.led_on, world.view().by.as_str()), (true, "fallback"));
    world.mend_cable();
    world.seconds(60);
    assert!(world.led_on, "its return changes nothing");
}

#[test]
fn a_broker_that_stops_says_goodbye_for_everybody_and_home_assistant_needs_a_while_to_be_back() {
    let mut world = home();
    world.light = Some(10.0);
    world.seconds(5);
    world.command(r#"{"led_on":false}"#);
    world.seconds(60);
    let changes = world.led_changes.len();
    // Its last will goes out first, then our own connection goes; we are back before it.
    status(&mut world, "offline", false);
    world.run_for(Duration::from_millis(100));
    world.state_unheard = true;
    world.restart_broker(Duration::from_secs(2));
    world.seconds(14);
    assert!(world.is_linked());
    world.state_unheard = false;
    status(&mut world, "online", false);
    world.seconds(600);
    assert_eq!(world.led_changes.len(), changes, "{:#?}", world.log);
    assert_eq!(
        (world.view().by.as_str(), world.view().lease_left_s),
        ("remote", None)
    );
}

#[test]
fn a_home_assistant_that_died_while_nobody_could_hear_it_is_missed_at_the_broker() {
    let mut world = home();
    world.light = Some(10.0);
    world.command(r#"{"led_on":false}"#);
    world.seconds(60);
    // Its last will goes to no one.
    world.pull_cable();
    world.seconds(3);
    world.state_unheard = true;
    world.mend_cable();
    world.seconds(10);
    assert_eq!(world.view().by, "remote");
    world.seconds(30);
    assert_eq!((world.led_on, world.view().by.as_str()), (true, "fallback"));
}

#[test]
fn what_the_broker_kept_of_its_status_counts_for_nothing() {
    let mut world = home();
    world.light = Some(10.0);
    world.command(r#"{"led_on":false}"#);
    world.seconds(60);
    status(&mut world, "offline", true);
    world.seconds(60);
    assert_eq!(world.view().by, "remote");
    status(&mut world, "offline", false);
    status(&mut world, "online", true);
    world.seconds(60);
    assert_eq!(world.view().by, "fallback");
}

#[test]
fn a_restart_goes_on_with_the_hand_and_a_long_absence_does_not() {
    let mut world = home();
    world.light = Some(10.0);
    world.command(r#"{"led_on":false}"#);
    world.seconds(60);
    let changes = world.led_changes.len();
    world.stop_and_start();
    world.seconds(600);
    world.crash();
    world.seconds(600);
    assert_eq!(world.led_changes.len(), changes, "{:#?}", world.log);
    assert_eq!(world.view().by, "remote");
    // Started while the broker is away: nobody there.
    world.pull_cable();
    world.crash();
    world.seconds(40);
    assert_eq!((world.led_on, world.view().by.as_str()), (true, "fallback"));
}

#[test]
fn a_refused_withdrawal_is_tried_in_the_next_session() {
    let mut world = home();
    world.settings = settings();
    world.stop_and_start();
    while world.discovery.len() < 2 {
        world.run_for(Duration::from_millis(1));
    }
    // Its answer, before the broker's other one.
    let token = world.last_discovery_token;
    world.input(Input::PublicationRefused {
        token,
        refusal: Refusal::Denied,
        why: "not authorised".into(),
    });
    world.seconds(60);
    assert_eq!(world.discovery.len(), 2);
    assert_eq!(world.announced.as_deref(), Some(TOPIC));
    world.input(Input::LinkDown {
        why: "the broker closed the connection".into(),
        ending: Ending::Lost,
    });
    world.seconds(60);
    assert_eq!(world.discovery.len(), 3);
    assert_eq!(world.announced, None);
}

#[test]
fn state_has_what_home_assistant_shows() {
    let mut world = home();
    world.input(Input::WrittenCounted(Some(4_096)));
    world.seconds(61);
    assert_eq!(world.state["written_today_bytes"], 4_096);
    assert_eq!(world.state["lost"], 0);
    assert_eq!(world.state["last_outage"], Value::Null);
    assert_eq!(world.state["backlog_oldest_age_s"], Value::Null);
    world.pull_cable();
    world.seconds(30);
    world.mend_cable();
    world.seconds(30);
    let outage = &world.state["last_outage"];
    assert_eq!(outage["cause"], "link");
    let took = outage["seconds"].as_f64().expect("a length");
    assert!((28.0..45.0).contains(&took), "{took}");
    assert_eq!(outage["lost"], 0);
}
