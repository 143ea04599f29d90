//! The program against a real broker that is killed, frozen and started again.

use std::time::Duration;

use crate::stage::dialect::in_both_versions;
use crate::stage::{Broker, Listener, eventually, within};

#[test]
fn on_line_readings_and_state_arrive_and_a_command_moves_the_led() {
    in_both_versions(|dialect| {
        let broker = Broker::start();
        let listener = Listener::start("pi-a", broker.port);
        eventually("the listener listens", || listener.listens());
        let agent = dialect.start("pi-a", broker.port, "");
        eventually("readings arrive", || listener.on("telemetry").len() >= 5);
        eventually("state arrives", || !listener.on("state").is_empty());
        eventually("it is on line", || listener.last_text("status") == "online");
        let reading = &listener.on("telemetry")[0];
        assert_eq!(reading["light"], 500);
        assert!(reading["seq"].is_u64() && reading["run"].is_string() && reading["ts"].is_string());
        listener.publish("commands", r#"{"led_on": true, "id": "c1"}"#);
        eventually("the LED is on", || agent.led_on());
        eventually("the result arrives", || {
            listener
                .on("commands/result")
                .iter()
                .any(|result| result["id"] == "c1" && result["result"] == "applied")
        });
        eventually("state says who decides", || {
            listener
                .on("state")
                .last()
                .is_some_and(|state| state["by"] == "remote")
        });
    });
}

#[test]
fn killed_broker_local_light_complete_history_one_report() {
    in_both_versions(|dialect| {
        let mut broker = Broker::start();
        let server = Listener::lesson_server("pi-b", broker.port);
        eventually("the server listens", || server.listens());
        let mut agent = dialect.start("pi-b", broker.port, "");
        eventually("the server decides", || {
            server
                .on("state")
                .last()
                .is_some_and(|state| state["by"] == "remote")
        });
        broker.stop();
        agent.set_light("100");
        assert!(
            within(Duration::from_secs(5), || agent.led_on()),
            "the LED follows the light when the lease is over"
        );
        agent.set_light("800");
        eventually("the LED goes off again", || !agent.led_on());
        // Long enough for the tail of the outage to be on the disk.
        std::thread::sleep(Duration::from_secs(4));
        broker.restart();
        eventually("the outage is reported", || {
            server
                .on("events")
                .iter()
                .any(|event| event["event"] == "outage")
        });
        eventually("the backlog is empty", || {
            server
                .on("state")
                .last()
                .is_some_and(|state| state["backlog"] == 0)
                && server.on("telemetry/history").len() > 30
        });
        eventually("a goodbye", || agent.stop().success());
        eventually("all is heard", || server.last_text("status") == "offline");

        let history = server.on("telemetry/history");
        let numbers: Vec<u64> = history
            .iter()
            .filter_map(|record| record["seq"].as_u64())
            .collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
        assert!(history.iter().all(|record| record["replayed"] == true));
        assert!(
            server
                .on("telemetry")
                .iter()
                .all(|record| record.get("replayed").is_none())
        );
        let reports = server
            .on("events")
            .iter()
            .filter(|event| event["event"] == "outage")
            .count();
        assert_eq!(reports, 1);
        let account = server.account();
        assert_eq!(account.len(), 1);
        for (run, numbers) in account {
            assert_eq!(server.missing(&run), Vec::<u64>::new());
            let twice = numbers.values().filter(|times| **times > 1).count();
            assert!(twice <= 16, "duplicates are at most the window: {twice}");
        }
    });
}

#[test]
fn a_silent_server_leaves_the_led_to_the_pi_when_the_lease_is_over() {
    in_both_versions(|dialect| {
        let broker = Broker::start();
        let listener = Listener::start("pi-c", broker.port);
        eventually("the listener listens", || listener.listens());
        let agent = dialect.start("pi-c", broker.port, "");
        eventually("readings arrive", || listener.on("telemetry").len() >= 2);
        agent.set_light("100");
        listener.publish("commands", r#"{"led_on": false}"#);
        eventually("the server decides", || {
            listener
                .on("state")
                .last()
                .is_some_and(|state| state["by"] == "remote")
        });
        assert!(!agent.led_on());
        assert!(within(Duration::from_secs(5), || agent.led_on()));
        eventually("state says so", || {
            listener
                .on("state")
                .last()
                .is_some_and(|state| state["by"] == "fallback")
        });
    });
}

/// A listener that a broker, away at the moment, knows.
fn known_listener(id: &str) -> (Broker, Listener) {
    let mut broker = Broker::start();
    let listener = Listener::start(id, broker.port);
    eventually("the listener listens", || listener.listens());
    broker.stop();
    (broker, listener)
}

fn nothing_waits(listener: &Listener) -> bool {
    let states = listener.on("state");
    states.last().is_some_and(|state| state["backlog"] == 0)
}

#[test]
fn no_broker_at_the_start_decides_at_once_and_replays_later() {
    in_both_versions(|dialect| {
        let (mut broker, listener) = known_listener("pi-d");
        let mut agent = dialect.prepare("pi-d", broker.port, "");
        agent.set_light("100");
        agent.run();
        assert!(within(Duration::from_secs(5), || agent.led_on()));
        std::thread::sleep(Duration::from_secs(3));
        broker.restart();
        eventually("nothing waits any more", || nothing_waits(&listener));
        assert_eq!(agent.stop().code(), Some(0));
        eventually("all is heard", || listener.last_text("status") == "offline");
        let history = listener.on("telemetry/history");
        assert_eq!(history[0]["event"], "started");
        assert!(history.len() > 20, "{}", history.len());
        for run in listener.account().keys() {
            assert_eq!(listener.missing(run), Vec::<u64>::new());
        }
    });
}

#[test]
fn sigterm_says_offline_and_ends_with_0() {
    in_both_versions(|dialect| {
        let broker = Broker::start();
        let listener = Listener::start("pi-e", broker.port);
        eventually("the listener listens", || listener.listens());
        let mut agent = dialect.start("pi-e", broker.port, "");
        eventually("it is on line", || listener.last_text("status") == "online");
        assert_eq!(agent.stop().code(), Some(0));
        eventually("it says offline", || {
            listener.last_text("status") == "offline"
        });

        let absent = Broker::absent();
        let mut agent = dialect.start("pi-e2", absent.port, "");
        eventually("it runs", || agent.log().contains("started"));
        assert_eq!(agent.stop().code(), Some(0));
    });
}

#[test]
fn kill_minus_9_in_an_outage_makes_no_hole_and_the_next_run_names_it() {
    in_both_versions(|dialect| {
        let (mut broker, listener) = known_listener("pi-f");
        let mut agent = dialect.start("pi-f", broker.port, "");
        std::thread::sleep(Duration::from_secs(3));
        agent.kill();
        agent.run();
        std::thread::sleep(Duration::from_secs(2));
        broker.restart();
        eventually("nothing waits any more", || nothing_waits(&listener));
        assert_eq!(agent.stop().code(), Some(0));
        eventually("all is heard", || listener.last_text("status") == "offline");
        let account = listener.account();
        assert_eq!(account.len(), 2, "two runs");
        for (run, numbers) in &account {
            assert_eq!(listener.missing(run), Vec::<u64>::new());
            assert!(numbers.len() > 15);
        }
        let records = listener.records();
        let second = records
            .iter()
            .find(|record| record["event"] == "started" && record["previous_run"].is_string())
            .expect("the second run names the first");
        assert!(account.contains_key(second["previous_run"].as_str().unwrap_or_default()));
    });
}

#[test]
fn a_frozen_broker_delays_nothing_and_loses_nothing() {
    in_both_versions(|dialect| {
        let broker = Broker::start();
        let listener = Listener::start("pi-g", broker.port);
        eventually("the listener listens", || listener.listens());
        let mut agent = dialect.start("pi-g", broker.port, "");
        eventually("readings arrive", || listener.on("telemetry").len() >= 5);
        broker.freeze();
        agent.set_light("100");
        assert!(within(Duration::from_secs(5), || agent.led_on()));
        std::thread::sleep(Duration::from_secs(3));
        let frozen = listener.records().len();
        broker.thaw();
        eventually("what was taken meanwhile arrives", || {
            let account = listener.account();
            let complete = account.keys().all(|run| listener.missing(run).is_empty());
            complete && listener.records().len() > frozen + 30
        });
        assert_eq!(agent.stop().code(), Some(0));
        eventually("all is heard", || listener.last_text("status") == "offline");
        for run in listener.account().keys() {
            assert_eq!(listener.missing(run), Vec::<u64>::new());
        }
    });
}
