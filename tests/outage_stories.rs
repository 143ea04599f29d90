//! Stories of outages, played in the simulated world. Each name is what must hold.

mod world;

use std::time::Duration;

use nightlight::logic::delivery::{Confirm, Topic};
use nightlight::logic::lighting::{FailSafe, Lease, Mode};
use nightlight::logic::link::{Inbound, Sent};
use nightlight::logic::telemetry::OutageReadings;
use nightlight::logic::{Exit, Input};
use world::{World, settings};

fn seqs(values: &[&serde_json::Value]) -> Vec<u64> {
    values
        .iter()
        .filter_map(|value| value["seq"].as_u64())
        .collect()
}

/// Every record of the current run came exactly once.
fn assert_complete_once(world: &World) {
    let run = world.run;
    let last = world.view().last_seq;
    assert_eq!(world.missing(run, last), Vec::<u64>::new());
    let twice: Vec<_> = world
        .account(run)
        .into_iter()
        .filter(|(_, times)| *times > 1)
        .collect();
    assert_eq!(twice, vec![]);
}

#[test]
fn the_nightlight_lives_through_an_outage() {
    let mut world = World::new(settings());
    world.light = Some(500.0);
    world.seconds(10);
    assert_eq!(world.status, "online");
    assert_eq!(world.state["by"], "remote");
    world.pull_cable();
    world.seconds(10);
    world.light = Some(100.0);
    world.seconds(20);
    assert!(world.led_on, "decides by itself");
    assert_eq!(world.view().by, "fallback");
    world.mend_cable();
    world.seconds(30);
    assert_eq!(world.view().by, "remote");
    assert_eq!(world.view().backlog, 0);
    assert!(world.disk.is_empty());
    assert_complete_once(&world);

    let history = world.on(Topic::History);
    let numbers = seqs(&history);
    assert!(numbers.len() >= 30);
    assert!(numbers.is_sorted(), "oldest first: {numbers:?}");
    assert!(history.iter().all(|value| value["replayed"] == true));
    let live = world.on(Topic::Telemetry);
    assert!(live.iter().all(|value| value.get("replayed").is_none()));
    let outages: Vec<_> = world
        .received
        .iter()
        .filter(|received| received.value["event"] == "outage")
        .collect();
    assert_eq!(outages.len(), 1, "one report for one outage");
    assert_eq!(outages[0].topic, Topic::Events);
    assert_eq!(outages[0].value["cause"], "link");
    assert_eq!(outages[0].value["led_changes"], 1);
    let changes: Vec<_> = world
        .log
        .iter()
        .filter(|line| line.contains("LED"))
        .collect();
    assert_eq!(changes.len(), 1, "no flap, no flash: {changes:?}");
}

#[test]
fn nothing_is_written_on_a_healthy_link() {
    let mut world = World::new(settings());
    world.seconds(3_600);
    assert_eq!(world.disk_writes, 0, "{:?}", world.log);
    assert_complete_once(&world);
}

#[test]
fn the_led_follows_the_light_within_an_interval_of_the_end_of_the_lease() {
    let mut settings = settings();
    settings.lighting.interval = Duration::from_millis(200);
    settings.lighting.lease = Lease::For(Duration::from_secs(3));
    let mut world = World::new(settings);
    world.seconds(5);
    world.pull_cable();
    world.light = Some(100.0);
    world.run_for(Duration::from_millis(3_300));
    assert!(world.led_on, "{:?}", world.log);
}

#[test]
fn a_silent_server_is_an_outage_while_the_broker_is_up() {
    let mut world = World::new(settings());
    world.seconds(5);
    world.server = false;
    world.light = Some(100.0);
    world.seconds(20);
    assert!(world.led_on);
    assert_eq!(world.view().by, "fallback");
    world.server = true;
    world.seconds(5);
    assert_eq!(world.view().by, "remote");
    let reports: Vec<_> = world
        .on(Topic::Events)
        .into_iter()
        .filter(|value| value["event"] == "outage")
        .collect();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0]["cause"], "server");
}

#[test]
fn without_a_broker_at_the_start_it_decides_at_once_and_replays_later() {
    let mut world = World::new(settings());
    world.cable = false;
    world.light = Some(100.0);
    world.run_for(Duration::from_millis(100));
    assert!(world.led_on);
    world.seconds(60);
    world.cable = true;
    world.seconds(60);
    assert_complete_once(&world);
    assert!(world.disk.is_empty());
    let first = &world.on(Topic::History)[0];
    assert_eq!(first["event"], "started");
    assert_eq!(first["seq"], 1);
}

#[test]
fn a_short_drop_out_changes_nothing_and_flips_no_rule() {
    let mut world = World::new(settings());
    world.light = Some(100.0);
    world.seconds(5);
    for _ in 0..20 {
        world.pull_cable();
        world.run_for(Duration::from_millis(700));
        world.mend_cable();
        world.run_for(Duration::from_millis(11_000));
        assert_eq!(world.view().by, "remote");
    }
    world.seconds(10);
    let changes = world.log.iter().filter(|line| line.contains("LED")).count();
    assert_eq!(changes, 1);
    assert_complete_once(&world);
}

#[test]
fn the_first_seconds_of_an_outage_are_kept_though_the_loss_is_noticed_late() {
    let mut world = World::new(settings());
    world.seconds(5);
    world.broker_mute = true;
    world.seconds(8);
    assert!(
        !world.disk.is_empty(),
        "unconfirmed records are on the disk"
    );
    world.seconds(4);
    world.broker_mute = false;
    world.seconds(40);
    let run = world.run;
    assert_eq!(world.missing(run, world.view().last_seq), Vec::<u64>::new());
    assert!(world.disk.is_empty());
}

#[test]
fn a_crash_in_an_outage_loses_only_what_is_younger_than_durable_within() {
    let mut world = World::new(settings());
    world.seconds(5);
    world.pull_cable();
    world.seconds(60);
    let (run, last) = (world.run, world.view().last_seq);
    world.crash();
    world.seconds(10);
    world.mend_cable();
    world.seconds(60);
    let missing = world.missing(run, last);
    assert!(
        missing.len() <= 2 && missing.iter().all(|seq| *seq + 2 > last),
        "{missing:?} of {last}"
    );
    assert_complete_once(&world);
    let started = world
        .received
        .iter()
        .find(|received| {
            received.value["event"] == "started" && received.value["run"] == world.run.to_string()
        })
        .expect("the new run says that it started");
    assert_eq!(started.value["previous_run"], run.to_string());
}

#[test]
fn a_stop_says_offline_and_leaves_nothing_in_memory() {
    let mut world = World::new(settings());
    world.seconds(10);
    let run = world.run;
    let last = world.view().last_seq;
    world.input(Input::ShutdownAsked);
    world.seconds(4);
    assert_eq!(world.exit, Some(Exit::Stopped));
    assert_eq!(world.status, "offline");
    assert_eq!(world.missing(run, last), Vec::<u64>::new());

    let mut world = World::new(settings());
    world.cable = false;
    world.seconds(10);
    let run = world.run;
    world.input(Input::ShutdownAsked);
    world.seconds(4);
    assert_eq!(world.exit, Some(Exit::Stopped));
    let last = world.view().last_seq;
    world.crash();
    world.mend_cable();
    world.seconds(60);
    assert_eq!(
        world.missing(run, last),
        Vec::<u64>::new(),
        "{:?}",
        world.log
    );
}

/// A full disk, and no link: what only memory has is gone with the stop, and the next run says so.
#[test]
fn what_a_stop_could_not_store_is_reported_as_lost_by_the_next_run() {
    let mut world = World::new(settings());
    world.cable = false;
    world.seconds(20);
    world.disk_good(false);
    world.seconds(250);
    let (run, last) = (world.run, world.view().last_seq);
    world.input(Input::ShutdownAsked);
    world.run_for(Duration::from_millis(3_500));
    assert_eq!(world.exit, Some(Exit::Stopped));
    world.disk_good(true);
    world.crash();
    world.mend_cable();
    world.seconds(60);
    assert_eq!(
        world.missing(run, last),
        Vec::<u64>::new(),
        "{:?}",
        world.log
    );
    let lost = world.lost(run).len();
    assert!((245..=255).contains(&lost), "{lost}");
}

/// The store was never open in this run: it cannot have been asked before.
#[test]
fn what_a_store_that_never_opened_did_not_get_is_reported_as_lost_too() {
    let mut world = World::new(settings());
    world.cable = false;
    world.opening = Duration::from_secs(1_000);
    world.disk_good(false);
    world.crash();
    world.input(Input::StoreFailed("disk full".into()));
    world.seconds(100);
    let (run, last) = (world.run, world.view().last_seq);
    world.input(Input::ShutdownAsked);
    world.seconds(2);
    assert_eq!(world.exit, Some(Exit::Stopped), "at once");
    world.opening = Duration::from_millis(30);
    world.disk_good(true);
    world.crash();
    world.mend_cable();
    world.seconds(60);
    assert_eq!(
        world.missing(run, last),
        Vec::<u64>::new(),
        "{:?}",
        world.log
    );
}

#[test]
fn the_window_is_kept_and_the_replay_is_paced() {
    let mut settings = settings();
    settings.delivery.replay_rate = 50.0;
    let mut world = World::new(settings);
    world.cable = false;
    world.seconds(600);
    world.latency = Duration::from_millis(100);
    world.mend_cable();
    world.seconds(5 + 12);
    let history = world.on(Topic::History).len();
    assert!((200..=750).contains(&history), "{history}");
    world.seconds(60);
    assert_complete_once(&world);
    assert!(world.window_seen <= 16 + 32, "{}", world.window_seen);
}

#[test]
fn replayed_readings_do_not_go_where_the_server_answers_with_commands() {
    let mut world = World::new(settings());
    world.cable = false;
    world.light = Some(100.0);
    world.seconds(300);
    world.light = Some(500.0);
    world.seconds(10);
    world.mend_cable();
    world.seconds(60);
    assert!(!world.led_on);
    let changes: Vec<_> = world
        .log
        .iter()
        .filter(|line| line.contains("LED"))
        .collect();
    assert_eq!(changes.len(), 2, "{changes:?}");
}

#[test]
fn batches_are_arrays_in_order() {
    let mut settings = settings();
    settings.delivery.batch = 50;
    let mut world = World::new(settings);
    world.cable = false;
    world.seconds(300);
    world.mend_cable();
    world.seconds(30);
    assert_complete_once(&world);
    assert!(seqs(&world.on(Topic::History)).is_sorted());
}

#[test]
fn a_full_disk_stops_nothing_and_memory_takes_over() {
    let mut world = World::new(settings());
    world.cable = false;
    world.disk_ok = false;
    world.seconds(600);
    world.disk_ok = true;
    world.seconds(10);
    assert!(world.disk.len() > 500);
    world.mend_cable();
    world.seconds(60);
    assert_complete_once(&world);
}

#[test]
fn without_any_disk_the_outage_is_told_from_memory_in_order() {
    let mut world = World::new(settings());
    world.disk_ok = false;
    world.seconds(5);
    world.pull_cable();
    world.seconds(100);
    world.mend_cable();
    world.seconds(60);
    assert_complete_once(&world);
    assert!(seqs(&world.on(Topic::History)).is_sorted());
}

#[test]
fn what_memory_gives_up_is_told() {
    let mut settings = settings();
    settings.lighting.interval = Duration::from_millis(10);
    let mut world = World::new(settings);
    world.cable = false;
    world.disk_ok = false;
    world.seconds(250);
    let last = world.view().last_seq;
    world.mend_cable();
    world.seconds(200);
    let run = world.run;
    let lost = world.lost(run);
    assert!(!lost.is_empty());
    assert_eq!(world.missing(run, last), Vec::<u64>::new());
}

#[test]
fn with_the_servers_word_a_record_is_sent_again_until_it_is_acked() {
    let mut settings = settings();
    settings.delivery.confirm = Confirm::Server;
    settings.delivery.ack_timeout = Duration::from_secs(10);
    let mut world = World::new(settings);
    world.acks = true;
    world.seconds(20);
    assert_eq!(world.disk_writes, 0, "acked in time: nothing is written");
    world.acks = false;
    world.seconds(30);
    let times = world.account(world.run).into_values().max();
    assert!(times > Some(1), "sent again");
    assert!(!world.disk.is_empty(), "not forgotten");
    world.acks = true;
    world.seconds(60);
    assert!(world.disk.is_empty());
    assert_eq!(
        world.missing(world.run, world.view().last_seq),
        Vec::<u64>::new()
    );
}

#[test]
fn records_that_the_server_never_acks_hold_up_nothing_behind_them() {
    let mut settings = settings();
    settings.delivery.confirm = Confirm::Server;
    settings.delivery.ack_timeout = Duration::from_secs(5);
    settings.delivery.replay_rate = 0.0;
    let mut world = World::new(settings);
    world.acks = true;
    world.seconds(5);
    world.pull_cable();
    world.seconds(1_000);
    // More than a page of them, at the head of the backlog.
    world.never_acked = (10..400).collect();
    world.mend_cable();
    world.seconds(120);
    let left: Vec<u64> = world.disk.keys().map(|key| key.seq).collect();
    assert_eq!(left, (10..400).collect::<Vec<_>>());
    world.never_acked.clear();
    world.seconds(60);
    assert!(world.disk.is_empty());
    let last = world.view().last_seq;
    assert_eq!(world.missing(world.run, last), Vec::<u64>::new());
}

#[test]
fn live_readings_that_fill_the_link_leave_history_its_share() {
    let mut settings = settings();
    settings.delivery.window = 1;
    settings.delivery.replay_rate = 0.0;
    settings.lighting.interval = Duration::from_millis(200);
    let mut world = World::new(settings);
    world.server = false;
    world.seconds(5);
    world.pull_cable();
    world.seconds(120);
    // The broker confirms 200 ms after it was sent: one publication at a time just keeps up with the sensor.
    world.latency = Duration::from_millis(100);
    world.mend_cable();
    world.seconds(300);
    let live = world.on(Topic::Telemetry).len();
    let history = world.on(Topic::History).len();
    assert!(history > 250, "{history} of history, {live} live");
    assert!(live > history, "{history} of history, {live} live");
}

#[test]
fn keep_latest_tells_the_newest_reading_of_an_outage_alone() {
    let mut settings = settings();
    settings.telemetry.keep = OutageReadings::Latest;
    let mut world = World::new(settings);
    world.seconds(5);
    world.pull_cable();
    world.seconds(100);
    world.mend_cable();
    world.seconds(30);
    let readings: Vec<_> = world
        .on(Topic::History)
        .into_iter()
        .filter(|value| value["light"].is_number())
        .collect();
    assert!(readings.len() <= 2, "{readings:?}");
    assert_complete_once(&world);
}

#[test]
fn a_failing_sensor_leaves_the_led_to_the_lease_and_then_to_the_fail_safe() {
    let mut settings = settings();
    settings.lighting.fail_safe = FailSafe::On;
    let mut world = World::new(settings);
    world.seconds(10);
    world.light = None;
    world.seconds(5);
    assert_eq!(world.view().by, "remote");
    assert!(!world.led_on);
    world.seconds(15);
    assert_eq!(world.view().by, "fail-safe");
    assert!(world.led_on);
    world.light = Some(500.0);
    world.server = false;
    world.seconds(5);
    assert_eq!(world.view().by, "fallback");
    assert!(!world.led_on);
    let events: Vec<_> = world
        .on(Topic::Events)
        .into_iter()
        .filter(|value| value["event"] == "sensor")
        .map(|value| value["ok"].clone())
        .collect();
    assert_eq!(events, [false, true], "told on the change alone");
}

#[test]
fn a_hanging_sensor_is_a_fault_after_three_intervals() {
    let mut settings = settings();
    settings.lighting.fail_safe = FailSafe::On;
    let mut world = World::new(settings);
    world.server = false;
    world.seconds(5);
    world.sensor_hangs = true;
    world.seconds(4);
    assert_eq!(world.view().by, "fail-safe");
    assert!(world.led_on);
}

#[test]
fn modes_give_the_led_to_one_side_alone() {
    let mut local = settings();
    local.lighting.mode = Mode::Local;
    let mut world = World::new(local);
    world.light = Some(100.0);
    world.seconds(5);
    world.command(r#"{"led_on":false,"id":"x"}"#);
    world.seconds(2);
    assert!(world.led_on);
    let refused = world
        .on(Topic::Results)
        .into_iter()
        .any(|value| value["id"] == "x" && value["result"] == "rejected");
    assert!(refused);

    let mut remote = settings();
    remote.lighting.mode = Mode::Remote;
    let mut world = World::new(remote);
    world.light = Some(100.0);
    world.seconds(5);
    assert!(world.led_on, "by the server");
    world.pull_cable();
    world.light = Some(900.0);
    world.seconds(100);
    assert!(world.led_on, "as the server left it");
}

#[test]
fn times_are_corrected_when_the_clock_is_set_and_never_before_the_program_was_built() {
    let mut world = World::new(settings());
    world.cable = false;
    world.power_cut(0);
    world.seconds(30);
    world.offset_ms = world::NOON_MS;
    world.synced = true;
    world.seconds(5);
    world.mend_cable();
    world.seconds(30);
    let history = world.on(Topic::History);
    let own: Vec<_> = history
        .iter()
        .filter(|value| value["run"] == world.run.to_string())
        .collect();
    assert_eq!(own[3]["clock"], "corrected");
    assert!(
        own[3]["ts"]
            .as_str()
            .is_some_and(|ts| ts.starts_with("2026-11-20T12:00:0")),
        "{}",
        own[3]
    );
    let times: Vec<_> = own.iter().map(|value| value["ts"].to_string()).collect();
    assert!(times.is_sorted());
    let other: Vec<_> = history
        .iter()
        .filter(|value| value["run"] != world.run.to_string())
        .collect();
    assert!(
        other
            .iter()
            .all(|value| value["ts"].as_str() >= Some("2026-10-01"))
    );
}

#[test]
fn a_power_cut_after_the_clock_was_set_leaves_the_times_of_before_correctable() {
    let mut world = World::new(settings());
    world.cable = false;
    world.power_cut(0);
    world.seconds(30);
    world.offset_ms = world::NOON_MS;
    world.synced = true;
    world.seconds(10);
    let before = world.run.to_string();
    world.power_cut(0);
    world.seconds(5);
    world.mend_cable();
    world.seconds(30);
    let history = world.on(Topic::History);
    let of_before: Vec<_> = history
        .iter()
        .filter(|value| value["run"] == before)
        .collect();
    assert!(of_before.len() > 5);
    for value in of_before {
        assert_ne!(value["clock"], "unsynced", "{value}");
        assert!(
            value["ts"].as_str() >= Some("2026-11-20T12:00:0"),
            "{value}"
        );
    }
    // This boot has not been told the time, and borrows none.
    let own = world.run.to_string();
    assert!(
        history
            .iter()
            .filter(|value| value["run"] == own)
            .all(|value| value["clock"] == "unsynced")
    );
}

#[test]
fn jumps_of_the_wall_clock_move_no_deadline() {
    let mut world = World::new(settings());
    world.seconds(10);
    let day = 86_400_000;
    for jump in [day, -2 * day, day] {
        world.offset_ms += jump;
        world.seconds(10);
        assert_eq!(world.view().by, "remote");
    }
    world.pull_cable();
    world.offset_ms += day;
    world.seconds(14);
    assert_eq!(world.view().by, "remote");
    world.seconds(2);
    assert_eq!(world.view().by, "fallback");
}

#[test]
fn read_now_and_set_are_answered() {
    let mut world = World::new(settings());
    world.seconds(3);
    world.command(r#"{"command":"read-now","id":"r"}"#);
    world.command(r#"{"command":"set","id":"s","on_below":600,"off_above":700}"#);
    world.command(r#"{"command":"set","id":"t","on_below":900,"off_above":700}"#);
    world.command(r#"{"command":"reboot","id":"u"}"#);
    world.seconds(1);
    let results: Vec<_> = world
        .on(Topic::Results)
        .into_iter()
        .filter_map(|value| Some((value["id"].as_str()?, value["result"].as_str()?)))
        .collect();
    assert_eq!(
        results,
        [
            ("s", "applied"),
            ("t", "rejected"),
            ("u", "rejected"),
            ("r", "applied")
        ]
    );
    let answer = world
        .on(Topic::Results)
        .into_iter()
        .find(|value| value["id"] == "r")
        .expect("answered");
    assert_eq!(answer["light"], 500);
}

#[test]
fn a_command_id_is_known_after_a_restart() {
    let mut world = World::new(settings());
    world.server = false;
    world.seconds(3);
    world.command(r#"{"led_on":true,"id":"once"}"#);
    world.seconds(2);
    world.input(Input::ShutdownAsked);
    world.seconds(4);
    // Without a runtime directory the disk alone knows.
    world.handover = None;
    world.crash();
    world.light = Some(500.0);
    world.seconds(3);
    world.command(r#"{"led_on":true,"id":"once"}"#);
    world.seconds(1);
    let last = world
        .on(Topic::Results)
        .last()
        .map(|value| value["result"].clone());
    assert_eq!(last, Some("duplicate".into()));
    assert!(!world.led_on);
}

#[test]
fn a_frozen_sensor_is_not_believed_and_recovers_by_itself() {
    let mut settings = settings();
    settings.lighting.fail_safe = FailSafe::On;
    settings.lighting.frozen_after = Duration::from_secs(60);
    let mut world = World::new(settings);
    world.server = false;
    world.seconds(70);
    assert_eq!(world.view().by, "fail-safe");
    assert!(world.led_on);
    world.light = Some(501.0);
    world.seconds(2);
    assert_eq!(world.view().by, "fallback");
    let events = world.on(Topic::Events);
    let told: Vec<_> = events
        .iter()
        .filter(|value| value["event"] == "sensor")
        .collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0]["why"], "the same reading 500 for 60 s");
}

#[test]
fn the_leds_own_light_does_not_make_it_oscillate() {
    let mut world = World::new(settings());
    world.server = false;
    let mut changes = 0;
    // Dusk, with a sensor that sees the LED: it adds 40 to what there is.
    for second in 0..600 {
        let before = world.led_on;
        let daylight = 400.0 - f64::from(second) * 0.5;
        world.light = Some(daylight + if world.led_on { 40.0 } else { 0.0 });
        world.seconds(1);
        changes += usize::from(world.led_on != before);
    }
    assert!(world.led_on);
    assert_eq!(changes, 1, "one dusk, one change");
}

#[test]
fn hold_bounds_the_flicker_when_the_led_outshines_the_thresholds() {
    let mut settings = settings();
    settings.lighting.hold = Duration::from_secs(10);
    settings.lighting.interval = Duration::from_millis(100);
    let mut world = World::new(settings);
    world.server = false;
    let mut changes = 0;
    for _ in 0..600 {
        let before = world.led_on;
        world.light = Some(if world.led_on { 900.0 } else { 100.0 });
        world.run_for(Duration::from_millis(100));
        changes += usize::from(world.led_on != before);
    }
    assert!(
        changes <= 6,
        "{changes} changes in a minute with a hold of 10 s"
    );
}

#[test]
fn rules_set_for_good_outlive_a_restart_and_others_do_not() {
    let mut world = World::new(settings());
    world.seconds(2);
    world.command(r#"{"command":"set","on_below":10,"off_above":20,"persist":true}"#);
    world.command(r#"{"command":"set","mode":"local","interval":"2s"}"#);
    world.seconds(2);
    assert_eq!(world.state["mode"], "local");
    assert_eq!(world.state["on_below"], 10);
    world.crash();
    world.seconds(5);
    assert_eq!(world.state["mode"], "auto");
    assert_eq!(world.state["off_above"], 20);
}

#[test]
fn what_memory_has_in_flight_hides_nothing_that_the_disk_has() {
    // The disk fails in the outage, and works again while memory tells what it has.
    let mut settings = settings();
    settings.delivery.replay_rate = 5.0;
    let mut world = World::new(settings);
    world.disk_good(false);
    world.seconds(5);
    world.pull_cable();
    world.seconds(60);
    world.mend_cable();
    world.seconds(12);
    world.latency = Duration::from_millis(1_500);
    world.disk_good(true);
    world.seconds(2);
    world.latency = Duration::from_millis(5);
    world.seconds(120);
    assert_complete_once(&world);
    assert!(world.disk.is_empty(), "{:?}", world.disk.keys());
    assert_eq!(world.view().backlog, 0);
}

#[test]
fn a_live_reading_that_cannot_be_sent_in_time_is_history() {
    // The lesson's server answers each live reading: an old one must not come on the live topic.
    let mut settings = settings();
    settings.delivery.window = 1;
    let mut world = World::new(settings);
    world.seconds(5);
    world.latency = Duration::from_secs(2);
    world.seconds(120);
    world.latency = Duration::from_millis(5);
    world.seconds(60);
    for received in &world.received {
        let at = world::NOON_MS + received.at.as_millis() as i64;
        let read: jiff::Timestamp = match received.value["ts"].as_str() {
            Some(ts) if received.topic == Topic::Telemetry => ts.parse().expect("a time"),
            _ => continue,
        };
        assert!(at - read.as_millisecond() < 3_000, "{received:?}");
    }
    assert_complete_once(&world);
}

#[test]
fn removals_behind_a_slow_write_are_counted() {
    let mut world = World::new(settings());
    world.seconds(5);
    world.disk_latency = Duration::from_secs(4);
    world.latency = Duration::from_millis(700);
    world.seconds(5);
    world.latency = Duration::from_millis(5);
    world.seconds(30);
    assert!(world.disk.is_empty());
    assert_eq!(world.view().backlog, 0);
}

#[test]
fn what_the_store_gives_up_is_told_and_is_no_backlog() {
    let mut world = World::new(settings());
    world.cable = false;
    world.seconds(30);
    world.disk_drops_oldest(20);
    let run = world.run;
    world.mend_cable();
    world.seconds(30);
    assert_eq!(world.lost(run), (1..=20).collect());
    assert_complete_once(&world);
    assert_eq!(world.view().backlog, 0);
}

#[test]
fn at_a_stop_no_record_is_made_that_nobody_can_keep() {
    let mut world = World::new(settings());
    world.cable = false;
    world.disk_latency = Duration::from_millis(900);
    world.seconds(10);
    world.input(Input::ShutdownAsked);
    world.run_for(Duration::from_millis(600));
    world.offset_ms += 3_600_000;
    world.seconds(4);
    assert_eq!(world.exit, Some(Exit::Stopped));
    let (run, last) = (world.run, world.view().last_seq);
    world.crash();
    world.mend_cable();
    world.seconds(60);
    assert_eq!(world.missing(run, last), Vec::<u64>::new());
}

#[test]
fn a_hanging_sensor_is_told_once_and_so_is_its_return() {
    let mut world = World::new(settings());
    world.seconds(5);
    world.sensor_hangs = true;
    world.seconds(10);
    world.sensor_hangs = false;
    world.seconds(5);
    let events: Vec<_> = world
        .on(Topic::Events)
        .into_iter()
        .filter(|value| value["event"] == "sensor")
        .map(|value| value["ok"].clone())
        .collect();
    assert_eq!(events, [false, true]);
}

#[test]
fn read_now_does_not_pile_up_behind_a_hanging_sensor() {
    let mut world = World::new(settings());
    world.seconds(5);
    world.sensor_hangs = true;
    world.seconds(2);
    for _ in 0..100 {
        world.command(r#"{"command":"read-now"}"#);
        world.run_for(Duration::from_millis(50));
    }
    let refused = world
        .on(Topic::Results)
        .into_iter()
        .filter(|value| value["result"] == "rejected")
        .count();
    assert_eq!(refused, 100 - 16);
}

#[test]
fn a_command_id_is_known_after_a_restart_though_its_first_write_failed() {
    let mut world = World::new(settings());
    world.server = false;
    world.seconds(3);
    world.disk_good(false);
    world.command(r#"{"led_on":true,"id":"once"}"#);
    world.pull_cable();
    world.seconds(5);
    world.disk_good(true);
    world.seconds(5);
    world.crash();
    world.light = Some(500.0);
    world.mend_cable();
    world.seconds(12);
    world.command(r#"{"led_on":true,"id":"once"}"#);
    world.seconds(1);
    let results = world.on(Topic::Results);
    assert_eq!(
        results.last().map(|value| &value["result"]),
        Some(&"duplicate".into())
    );
}

#[test]
fn memory_is_bounded_though_neither_the_server_nor_the_disk_answers() {
    let mut settings = settings();
    settings.delivery.confirm = Confirm::Server;
    settings.lighting.interval = Duration::from_millis(10);
    let mut world = World::new(settings);
    world.disk_good(false);
    world.server = false;
    world.latency = Duration::from_millis(1);
    world.seconds(230);
    let backlog = world.view().backlog;
    assert!(backlog <= 20_000, "{backlog}");
}

#[test]
fn the_end_of_the_lease_is_an_outage_though_a_reading_comes_at_that_moment() {
    let mut world = World::new(settings());
    world.server = false;
    world.seconds(3);
    world.command(r#"{"led_on":false}"#);
    let end = world.now + Duration::from_secs(15);
    let step = Duration::from_millis(10);
    world.run_for(end - world.now - step);
    world.now = end;
    world.input(Input::Read(500.0));
    assert_eq!(world.view().by, "fallback");
    assert!(world.view().outage_s.is_some());
}

#[test]
fn the_slowest_replay_and_the_wildest_clock_are_survived() {
    let mut settings = settings();
    settings.delivery.replay_rate = f64::MIN_POSITIVE;
    let mut world = World::new(settings);
    world.cable = false;
    world.seconds(10);
    world.mend_cable();
    world.seconds(10);
    for wall_ms in [i64::MAX, i64::MIN, 0] {
        let now = nightlight::logic::time::Now {
            wall_ms,
            ..world.clocks()
        };
        world.controller.handle(Input::DeadlineReached, now);
    }
    world.seconds(10);
    assert!(world.view().link_up);
}

#[test]
fn a_record_that_kills_each_session_is_set_aside_and_blocks_nothing() {
    for batch in [1, 20] {
        let mut settings = settings();
        settings.delivery.batch = batch;
        let mut world = World::new(settings);
        world.seconds(5);
        world.pull_cable();
        world.seconds(60);
        world.poison = Some(40);
        world.mend_cable();
        world.seconds(300);
        assert_eq!(world.dead_letters.len(), 1, "batch {batch}");
        assert!(world.dead_letters[0].contains("\"seq\":40,"));
        let last = world.view().last_seq;
        assert_eq!(world.missing(world.run, last), Vec::<u64>::new());
        assert_eq!(world.lost(world.run).into_iter().collect::<Vec<_>>(), [40]);
        assert!(world.disk.is_empty());
    }
}

#[test]
fn a_live_record_that_kills_each_session_is_set_aside_too() {
    let mut world = World::new(settings());
    world.poison = Some(8);
    world.seconds(120);
    assert_eq!(world.dead_letters.len(), 1);
    let last = world.view().last_seq;
    assert_eq!(world.missing(world.run, last), Vec::<u64>::new());
}

#[test]
fn a_broker_that_comes_and_goes_makes_no_record_suspect() {
    let mut world = World::new(settings());
    world.latency = Duration::from_millis(20);
    for _ in 0..60 {
        world.mend_cable();
        world.run_for(Duration::from_millis(1_700));
        world.pull_cable();
        world.run_for(Duration::from_millis(300));
    }
    world.mend_cable();
    world.seconds(120);
    assert_eq!(world.dead_letters, Vec::<String>::new());
    let last = world.view().last_seq;
    assert_eq!(world.missing(world.run, last), Vec::<u64>::new());
}

#[test]
fn a_mute_broker_makes_no_record_suspect() {
    let mut world = World::new(settings());
    world.seconds(5);
    world.broker_mute = true;
    world.seconds(300);
    world.broker_mute = false;
    world.seconds(60);
    assert_eq!(world.dead_letters, Vec::<String>::new());
}

#[test]
fn a_disk_that_takes_nothing_is_told_and_so_is_its_recovery() {
    let mut world = World::new(settings());
    world.seconds(5);
    assert_eq!(world.state["store_ok"], true);
    world.disk_ok = false;
    world.broker_mute = true;
    world.seconds(5);
    assert!(!world.view().store_ok);
    world.disk_ok = true;
    world.broker_mute = false;
    world.seconds(60);
    assert_eq!(world.state["store_ok"], true);
}

/// What a broker without `{id}/state` in its access list does: it closes the connection.
fn world_that_denies(denied: Sent) -> World {
    let mut world = World::new(settings());
    world.denied.insert(denied);
    world
}

fn reports(world: &World) -> Vec<&serde_json::Value> {
    let events = world.received.iter().map(|received| &received.value);
    events.filter(|value| value["event"] == "outage").collect()
}

#[test]
fn whatever_topic_the_broker_closes_for_the_rest_goes_on_and_the_operator_is_told_which() {
    use Inbound::{Acks, Commands};
    let table = [
        (Sent::Subscribe(Commands), "subscription to pi/commands"),
        (Sent::Subscribe(Acks), "subscription to pi/acks"),
        (
            Sent::Publish(Topic::Telemetry),
            "publication to pi/telemetry",
        ),
        (Sent::Publish(Topic::Events), "publication to pi/events"),
        (
            Sent::Publish(Topic::Results),
            "publication to pi/commands/result",
        ),
        (Sent::Publish(Topic::State), "publication to pi/state"),
        (Sent::Publish(Topic::Status), "publication to pi/status"),
        (
            Sent::Publish(Topic::History),
            "publication to pi/telemetry/history",
        ),
    ];
    for (denied, name) in table {
        let mut world = world_that_denies(denied);
        world.seconds(5);
        world.pull_cable();
        world.seconds(5);
        world.mend_cable();
        world.seconds(600);
        let view = world.view();
        assert!(view.link_up, "{name}: {:#?}", world.told);
        assert!(view.link_why.contains(name), "{name}: {}", view.link_why);
        assert!(view.link_why.contains("access list"), "{}", view.link_why);
        assert!(
            world.dead_letters.is_empty(),
            "{name}: no record is to blame"
        );
        assert!(world.sessions < 40, "{name}: {} sessions", world.sessions);
        assert!(world.told.len() < 60, "{name}: {:#?}", world.told);
        assert!(reports(&world).len() < 10, "{name}");
        // Live, or as history: but for a history that is denied, all of it arrives.
        if denied == Sent::Publish(Topic::History) {
            assert!(world.on(Topic::Telemetry).len() > 400);
            world.denied.clear();
            world.seconds(3_700);
        }
        let last = world.view().last_seq;
        let missing = world.missing(world.run, last);
        assert!(
            missing.iter().all(|seq| seq + 5 > last),
            "{name}: {missing:?} of {last}"
        );
        world.denied.clear();
        world.seconds(3_700);
        // Something for each topic.
        world.pull_cable();
        world.seconds(5);
        world.mend_cable();
        world.seconds(90);
        world.command(r#"{"command":"read-now","id":"r"}"#);
        world.seconds(90);
        assert_eq!(world.view().link_why, "", "{name}");
        world.seconds(30);
        assert!(world.disk.is_empty(), "{name}");
    }
}

#[test]
fn a_broker_that_closes_at_once_is_asked_seldom_and_makes_one_outage() {
    let mut world = World::new(settings());
    world.seconds(30);
    world.closes_after = Some(Duration::ZERO);
    world.pull_cable();
    world.mend_cable();
    world.seconds(600);
    assert!(
        world.sessions < 60,
        "{} sessions in ten minutes",
        world.sessions
    );
    assert!(world.told.len() < 30, "{:#?}", world.told);
    let why = world.view().link_why;
    assert!(why.contains("before it answered anything"), "{why}");
    world.closes_after = None;
    let began = world.elapsed();
    world.seconds(120);
    let reports = reports(&world);
    assert_eq!(reports.len(), 1, "{reports:#?}");
    let seconds = reports[0]["seconds"].as_f64().unwrap_or_default();
    assert!((590.0..640.0).contains(&seconds), "{}", reports[0]);
    assert!(reports[0]["short_sessions"].as_u64() > Some(5));
    let at = world
        .received
        .iter()
        .find(|received| received.value["event"] == "outage")
        .map(|received| received.at);
    assert!(
        at >= Some(began + Duration::from_secs(9)),
        "when it has held"
    );
    assert_eq!(
        world.missing(world.run, world.view().last_seq),
        Vec::<u64>::new()
    );
}

#[test]
fn a_broker_that_restarts_each_second_is_found_within_the_lease() {
    for away_ms in [300, 500, 600] {
        for seed in 0..12 {
            let mut settings = settings();
            // Not in step with the restarts.
            settings.lighting.interval = Duration::from_millis(190);
            let mut world = World::new(settings);
            world.light = Some(100.0);
            // Another phase of everything that is random.
            world.run_for(Duration::from_secs(20) + Duration::from_millis(37) * seed);
            for n in 0..120 {
                // The server alone keeps the LED on.
                world.light = Some(if n % 2 == 0 { 800.0 } else { 100.0 });
                world.restart_broker(Duration::from_millis(away_ms));
                world.run_for(Duration::from_millis(1_000 - away_ms));
                let view = world.view();
                assert_eq!(
                    view.by, "remote",
                    "{away_ms} {seed} {n}: {:#?} {:#?}",
                    world.log, world.told
                );
            }
            assert!(world.sessions > 24, "{} sessions", world.sessions);
            world.seconds(180);
            let missing = world.missing(world.run, world.view().last_seq);
            assert!(missing.len() < 5, "{missing:?}");
        }
    }
}

#[test]
fn a_broker_that_ends_each_session_after_three_seconds_gets_everything() {
    let mut world = World::new(settings());
    world.seconds(30);
    world.pull_cable();
    world.seconds(300);
    world.mend_cable();
    world.closes_after = Some(Duration::from_secs(3));
    world.seconds(1_200);
    let last = world.view().last_seq;
    let missing = world.missing(world.run, last);
    assert!(
        missing.iter().all(|seq| seq + 15 > last),
        "{missing:?} of {last}"
    );
    assert_eq!(world.dead_letters, Vec::<String>::new());
    let why = world.view().link_why;
    assert!(
        why.contains("another client uses the client id \"pi\""),
        "{why}"
    );
    assert!(world.sessions < 200, "{} sessions", world.sessions);
    world.closes_after = None;
    world.seconds(90);
    assert_eq!(world.view().link_why, "", "{:#?}", world.told);
    assert_eq!(reports(&world).len(), 1);
}

#[test]
fn a_stop_while_the_link_is_just_back_tells_the_outage_with_its_true_end() {
    let mut world = World::new(settings());
    world.seconds(30);
    world.pull_cable();
    world.seconds(60);
    world.mend_cable();
    for _ in 0..200 {
        world.run_for(Duration::from_millis(100));
        if world.is_linked() {
            break;
        }
    }
    world.seconds(4);
    assert_eq!(reports(&world).len(), 0);
    world.input(Input::ShutdownAsked);
    world.seconds(4);
    let reports = reports(&world);
    assert_eq!(reports.len(), 1);
    let seconds = reports[0]["seconds"].as_f64().unwrap_or_default();
    assert!((60.0..71.0).contains(&seconds), "{}", reports[0]);
    let readings = reports[0]["readings"].as_f64().unwrap_or_default();
    assert!((readings - seconds).abs() < 2.0, "{}", reports[0]);
}

#[test]
fn a_server_that_falls_silent_just_after_the_link_is_back_has_an_outage_of_its_own() {
    let mut settings = settings();
    settings.lighting.lease = Lease::For(Duration::from_secs(5));
    let mut world = World::new(settings);
    world.seconds(30);
    world.pull_cable();
    world.seconds(2);
    world.mend_cable();
    world.seconds(2);
    world.server = false;
    world.seconds(30);
    assert!(world.view().outage_s.is_some(), "{:#?}", world.told);
    world.server = true;
    world.seconds(5);
    let causes: Vec<_> = reports(&world)
        .iter()
        .map(|report| report["cause"].clone())
        .collect();
    assert_eq!(causes, ["link", "server"]);
}

#[test]
fn a_broker_that_confirms_nothing_is_an_outage_and_status_says_so() {
    let mut world = World::new(settings());
    world.seconds(30);
    world.broker_mute = true;
    world.seconds(300);
    assert!(world.view().outage_s.is_some());
    if !world.view().link_up {
        assert!(world.view().link_why.contains("not confirmed"));
    }
    assert!(world.sessions < 25, "{}", world.sessions);
    world.broker_mute = false;
    world.seconds(120);
    assert_eq!(reports(&world).len(), 1, "{:?}", reports(&world));
    assert!(
        reports(&world)[0]["why"]
            .as_str()
            .is_some_and(|why| why.contains("not confirmed"))
    );
}

/// Cuts that look as if the broker closed: the worst for a record that happens to be on its way.
#[test]
fn a_far_link_that_is_cut_at_random_makes_no_record_guilty() {
    for (seed, qos, mean_ms) in [(1, 1, 2_000), (2, 1, 5_000), (3, 2, 4_000), (4, 1, 12_000)] {
        let mut settings = settings();
        settings.delivery.qos = qos;
        let mut world = World::new(settings);
        world.latency = Duration::from_millis(300);
        let mut rng = fastrand::Rng::with_seed(seed);
        world.pull_cable();
        world.seconds(60);
        world.mend_cable();
        for _ in 0..600 {
            let up = -rng.f64().max(1e-9).ln() * f64::from(mean_ms);
            world.closes_after = Some(Duration::from_millis(up as u64 + 1));
            let was = world.sessions;
            while world.sessions == was {
                world.run_for(Duration::from_millis(100));
            }
        }
        assert_eq!(world.dead_letters, Vec::<String>::new(), "seed {seed}");
        let last = world.view().last_seq;
        let late = world.missing(world.run, last).len() as u64;
        assert!(
            late * 4 < last,
            "seed {seed}: {late} of {last} have not come yet"
        );
        world.closes_after = None;
        world.seconds(900);
        let last = world.view().last_seq;
        let missing = world.missing(world.run, last);
        assert!(
            missing.iter().all(|seq| seq + 3 > last),
            "{missing:?} of {last}"
        );
        assert!(
            world.view().link_why.is_empty(),
            "{}",
            world.view().link_why
        );
    }
}

#[test]
fn a_window_above_the_brokers_limit_is_halved_until_it_fits() {
    for (window, batch) in [(100, 1), (1_000, 1), (64, 20)] {
        let mut settings = settings();
        settings.delivery.qos = 2;
        settings.delivery.window = window;
        settings.delivery.batch = batch;
        settings.delivery.replay_rate = 0.0;
        let mut world = World::new(settings);
        world.in_flight_limit = 20;
        world.latency = Duration::from_millis(20);
        world.cable = false;
        world.seconds(7_200);
        world.mend_cable();
        world.seconds(600);
        assert!(world.disk.is_empty(), "{}", world.disk.len());
        assert!(
            world.sessions < 20,
            "{window}: {} sessions: {:#?}",
            world.sessions,
            world.told
        );
        assert_eq!(world.dead_letters, Vec::<String>::new());
        assert_complete_once_or_more(&world);
        assert!(reports(&world).len() < 6, "{:?}", reports(&world));
    }
}

fn assert_complete_once_or_more(world: &World) {
    let last = world.view().last_seq;
    let missing = world.missing(world.run, last);
    assert!(
        missing.iter().all(|seq| seq + 2 > last),
        "{missing:?} of {last}"
    );
}

/// A broker with a small limit for packets: an array of records is too large, a record is not.
#[test]
fn arrays_that_the_broker_does_not_take_become_smaller() {
    let mut settings = settings();
    settings.delivery.batch = 100;
    let mut world = World::new(settings);
    world.largest = 2_000;
    world.cable = false;
    world.seconds(3_600);
    world.mend_cable();
    world.seconds(600);
    assert!(world.disk.is_empty(), "{}", world.disk.len());
    assert!(world.sessions < 40, "{} sessions", world.sessions);
    assert_eq!(world.dead_letters, Vec::<String>::new());
    assert_complete_once_or_more(&world);
}

#[test]
fn a_refused_subscription_is_told_once_and_status_names_it() {
    let mut world = World::new(settings());
    world.refuses_subscriptions = true;
    for _ in 0..5 {
        world.seconds(20);
        world.pull_cable();
        world.seconds(1);
        world.mend_cable();
    }
    world.seconds(20);
    let why = "the broker refuses the subscription to pi/commands (no command comes)";
    assert!(
        world.view().link_why.starts_with(why),
        "{}",
        world.view().link_why
    );
    let told = world.told.iter().filter(|(_, text)| text.starts_with(why));
    // Once for the first subscription, once for both.
    assert!(told.count() <= 2, "{:#?}", world.told);
    world.refuses_subscriptions = false;
    world.pull_cable();
    world.seconds(1);
    world.mend_cable();
    world.seconds(20);
    assert_eq!(world.view().link_why, "");
}

#[test]
fn at_qos_0_nobody_knows_what_an_outage_lost() {
    for (qos, lost) in [(0, serde_json::Value::Null), (1, serde_json::json!(0))] {
        let mut settings = settings();
        settings.delivery.qos = qos;
        let mut world = World::new(settings);
        world.seconds(20);
        world.pull_cable();
        world.seconds(20);
        world.mend_cable();
        world.seconds(60);
        let events = world.on(Topic::Events);
        let report = events.iter().find(|event| event["event"] == "outage");
        let report = report.expect("the outage is over and told");
        assert_eq!(report["lost"], lost);
        let status = world.view().to_string();
        assert_eq!(
            status.contains("unknown how many lost"),
            qos == 0,
            "{status}"
        );
    }
}

/// How the run ended in the middle of an outage takes nothing from the report of it: a crash while the link has
/// still to hold, a crash while it is away, or a stop.
#[test]
fn the_report_of_an_outage_outlives_the_run() {
    type Ends = fn(&mut World);
    let ends: [(&str, u64, Ends); 3] = [
        ("a crash while the link has still to hold", 1, |world| {
            world.mend_cable();
            // Found again within 15 s; it holds only after 10 s more.
            while !world.is_linked() {
                world.seconds(1);
            }
            world.seconds(2);
            world.crash();
        }),
        ("a crash while it is away", 0, |world| {
            world.crash();
            world.seconds(15);
            world.mend_cable();
        }),
        ("a stop while it is away", 0, |world| {
            world.stop_and_start();
            world.seconds(15);
            world.mend_cable();
        }),
    ];
    for (name, short_sessions, end) in ends {
        let mut settings = settings();
        settings.lighting.interval = Duration::from_secs(1);
        let mut world = World::new(settings);
        world.seconds(20);
        world.pull_cable();
        let began = world.elapsed();
        world.light = Some(100.0);
        world.seconds(30);
        end(&mut world);
        world.seconds(60);
        let reports = reports(&world);
        assert_eq!(reports.len(), 1, "{name}: {:?}", world.log);
        let report = reports[0];
        let seconds = report["seconds"].as_f64().unwrap_or_default();
        assert!(seconds > 30.0, "{name}: {report}");
        assert!(
            seconds < (world.elapsed() - began).as_secs_f64() - 9.0,
            "{name}: {report}"
        );
        assert!(report["readings"].as_u64() > Some(28), "{name}: {report}");
        assert_eq!(report["led_changes"], 1, "{name}: {report}");
        let short = report["short_sessions"].as_u64().unwrap_or_default();
        assert_eq!(short, short_sessions, "{name}: {report}");
    }
}

/// A large store on a slow card: the loop waits meanwhile, and does not ask for it again and again.
#[test]
fn a_store_that_opens_only_after_the_first_record_is_out_costs_no_turns() {
    let mut world = World::new(settings());
    world.opening = Duration::from_secs(40);
    world.crash();
    world.keep_trace = true;
    world.seconds(30);
    assert!(world.trace.len() < 2_000, "{} inputs", world.trace.len());
    world.seconds(60);
    assert_eq!(world.view().backlog, 0);
}
