//! The announcement to Home Assistant through a real broker: retained, with all that follows from the one key, and
//! taken back once. A real Home Assistant plays in tests/home-assistant, outside of the suite.

use std::collections::BTreeSet;

use crate::stage::{Agent, Broker, Heard, Listener, eventually, read};

const ON: &str = "[control]\nhold = \"0s\"\n[home_assistant]\ndiscovery = true\n";
const OFF: &str = "[control]\nhold = \"0s\"\n";

#[test]
fn announced_by_one_key_obeyed_until_its_will_and_taken_back_once() {
    let mut broker = Broker::start();
    let home = Listener::start("homeassistant", broker.port);
    let pi = Listener::start("pi-ha", broker.port);
    eventually("both listen", || home.listens() && pi.listens());
    let mut agent = Agent::prepare("pi-ha", broker.port, OFF);
    let run = |agent: &mut Agent, more: &str, runs: usize| {
        agent.configure(more);
        agent.run();
        eventually("the run is heard", || {
            let records = pi.records();
            let started = records.iter().filter(|one| one["event"] == "started");
            let heard: BTreeSet<String> = started.map(|one| one["run"].to_string()).collect();
            heard.len() == runs
        });
    };
    run(&mut agent, OFF, 1);
    assert!(agent.stop().success());
    assert_eq!(home.all().len(), 0, "never tried where it is not on");

    run(&mut agent, ON, 2);
    let topic = "device/pi-ha/config";
    eventually("announced", || home.last_text(topic).contains("\"cmps\""));
    let late = Listener::start("homeassistant/device", broker.port);
    eventually("who comes later finds it with the broker", || {
        late.all().iter().any(|heard| heard.retained)
    });
    let file = agent.path("backlog").join("home-assistant.topic");
    eventually("the disk remembers it", || {
        read(&file) == "homeassistant/device/pi-ha/config\n"
    });

    // A light's JSON, as Home Assistant has it. It is bright: by itself the Pi would have the LED off.
    let decider = |agent: &Agent| agent.status().map(|status| status["by"].clone());
    pi.publish("commands", r#"{"state":"ON"}"#);
    eventually("on by hand", || agent.led_on());
    broker.stop();
    eventually("the broker is missed", || {
        agent
            .status()
            .is_some_and(|status| status["link_up"] == false)
    });
    broker.restart();
    eventually("it is back", || {
        agent
            .status()
            .is_some_and(|status| status["link_up"] == true && status["lease_left_s"].is_null())
    });
    assert_eq!(decider(&agent), Some("remote".into()));
    assert!(agent.led_on());
    eventually("home listens again", || home.listens());
    home.publish("status", "offline");
    eventually("its will: the Pi decides", || !agent.led_on());
    assert_eq!(decider(&agent), Some("fallback".into()));

    let said = |home: &Listener| {
        let all = home.all().into_iter();
        let of = all.filter(|heard: &Heard| heard.topic == format!("homeassistant/{topic}"));
        of.map(|heard| heard.payload.len()).collect::<Vec<_>>()
    };
    assert!(agent.stop().success());
    run(&mut agent, OFF, 3);
    eventually("taken back", || said(&home).last() == Some(&0));
    eventually("and forgotten", || !file.exists());
    assert!(agent.stop().success());
    let times = said(&home).len();
    run(&mut agent, OFF, 4);
    eventually("it is online", || pi.last_text("status") == "online");
    assert!(agent.stop().success());
    assert_eq!(said(&home).len(), times, "once");
    assert_eq!(said(&home).iter().filter(|bytes| **bytes == 0).count(), 1);
}
