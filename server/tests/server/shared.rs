//! Several servers of one database: a shared subscription, one decider at a time, whoever dies or freezes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::postgres::Cluster;
use crate::server::{Server, Store};
use crate::stage::{Agent, Broker, Listener, eventually, within};

const PATIENCE: Duration = Duration::from_secs(120);

/// A server of the three.
fn one_of(store: &Store, port: u16, name: &str) -> Server {
    // The devices follow the server alone: by themselves they would switch the other way.
    let broker = format!("client_id = \"{name}\"\nshared = \"lights\"\nkeep_alive = \"5s\"\n");
    Server::start_in_broker(store, port, &broker)
}

/// Devices whose own rule is the opposite of the server's: off where it says on.
fn device(id: &str, port: u16) -> Agent {
    let more = "[control]\non_below = 1.0\noff_above = 2.0\n[sensor]\ndriver = \"iio\"\npath = \"{folder}/light\"\n\
                interval = \"50ms\"\n[delivery]\nconfirm = \"server\"\nack_timeout = \"3s\"\nreplay_jitter = \"0s\"\n\
                replay_rate = 0\nbatch = 20\n";
    let agent = Agent::prepare(id, port, more);
    agent.set_light("100");
    agent
}

fn status(ear: &Listener, name: &str) -> String {
    ear.last_text(&format!("server/status/{name}"))
}

#[test]
#[ignore = "long"]
fn three_servers_one_killed_and_one_frozen() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let name = cluster.database();
    let store = Store::At(cluster.url(&name));
    let broker = Broker::start();
    let ear = Listener::start("nightlight", broker.port);
    eventually("the ear listens", || ear.listens());
    let mut servers = ["a", "b", "c"].map(|name| one_of(&store, broker.port, name));
    for name in ["a", "b", "c"] {
        eventually("each has a status of its own", || {
            status(&ear, name) == "online"
        });
    }
    let parts = |server: &str| {
        let sql =
            format!("select count(*) from deciders where server = '{server}' and until > now()");
        cluster
            .sql(&name, &sql)
            .and_then(|count| count.parse::<u32>().ok())
            .unwrap_or(0)
    };
    eventually("they share the decisions", || {
        ["a", "b", "c"]
            .iter()
            .all(|server| (20..=22).contains(&parts(server)))
    });
    let ids: Vec<String> = (0..6).map(|n| format!("pi-{n}")).collect();
    let ears: Vec<Listener> = ids
        .iter()
        .map(|id| Listener::start(id, broker.port))
        .collect();
    eventually("all listen", || ears.iter().all(Listener::listens));
    let mut devices: Vec<Agent> = ids.iter().map(|id| device(id, broker.port)).collect();
    devices.iter_mut().for_each(Agent::run);
    eventually("all LEDs are on", || devices.iter().all(Agent::led_on));
    let counts: Vec<usize> = ears.iter().map(|ear| ear.on("telemetry").len()).collect();
    let come = |more: usize| {
        let has = |(ear, before): (&Listener, &usize)| ear.on("telemetry").len() >= before + more;
        assert!(
            within(PATIENCE, || ears.iter().zip(&counts).all(has)),
            "readings stop"
        );
    };
    come(60);
    servers[0].kill();
    eventually("the broker tells", || status(&ear, "a") == "offline");
    come(120);
    servers[1].signal("STOP");
    assert!(
        within(PATIENCE, || parts("c") == 64),
        "c has {}",
        parts("c")
    );
    come(300);
    servers[1].signal("CONT");
    servers[0].run();
    assert!(
        within(PATIENCE, || ["a", "b", "c"]
            .iter()
            .all(|server| (20..=22).contains(&parts(server)))),
        "they do not share again"
    );
    come(600);
    // All that was made is kept, whoever had it in hand.
    assert!(
        within(PATIENCE, || devices.iter().all(|device| {
            device
                .status()
                .is_some_and(|status| status["backlog"].as_u64() < Some(40))
        })),
        "the backlogs stay"
    );
    for device in &mut devices {
        assert_eq!(device.stop().code(), Some(0));
        device.run();
    }
    assert!(
        within(PATIENCE, || {
            let sql = "select coalesce(sum(missing), 0) from account";
            cluster.sql(&name, sql).as_deref() == Some("0")
        }),
        "something is missing"
    );
    for device in &mut devices {
        assert_eq!(device.stop().code(), Some(0));
    }
    let of_run = "select count(*) from runs r where r.received <> (select count(*) from records k \
                  where k.device = r.device and k.run = r.run) or r.lost <> 0";
    assert_eq!(
        cluster.sql(&name, of_run).as_deref(),
        Some("0"),
        "the accounts are not right"
    );
    let sum = cluster.sql(
        &name,
        "select sum(received), sum(twice), sum(lost), sum(missing) from account",
    );
    println!("received, twice, lost, missing: {sum:?}");
    // Once a server had decided nobody else did, and nothing flapped, until the device was stopped.
    let mut flaps: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (id, ear) in ids.iter().zip(&ears) {
        let mut led: Vec<Value> = ear
            .on("events")
            .into_iter()
            .filter(|event| event["event"] == "led")
            .collect();
        let first_run = led.first().map(|event| event["run"].clone());
        led.retain(|event| Some(&event["run"]) == first_run.as_ref());
        let decided = led.iter().position(|event| event["by"] == "remote");
        let after: Vec<Value> = led.split_off(decided.map_or(0, |at| at + 1));
        if !after.is_empty() {
            flaps.insert(id, after);
        }
    }
    assert!(flaps.is_empty(), "{flaps:?}");
    for server in &mut servers {
        server.stop();
    }
}

/// Two that do not share: each keeps all, and still only one decides about a device.
#[test]
fn two_servers_of_one_database_do_not_decide_at_once() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let name = cluster.database();
    let store = Store::At(cluster.url(&name));
    let broker = Broker::start();
    let ear = Listener::start("nightlight", broker.port);
    eventually("the ear listens", || ear.listens());
    let rule = |name: &str, on_below: &str| {
        let broker_keys = format!("client_id = \"{name}\"\n");
        let more =
            format!("{broker_keys}[control]\non_below = {on_below}\noff_above = {on_below}\n");
        Server::start_in_broker(&store, broker.port, &more)
    };
    // They would disagree about this light.
    let mut servers = [rule("dark", "1000.0"), rule("light", "1.0")];
    let parts = |server: &str| {
        let sql =
            format!("select count(*) from deciders where server = '{server}' and until > now()");
        cluster
            .sql(&name, &sql)
            .and_then(|count| count.parse::<u32>().ok())
    };
    eventually("they share", || {
        parts("dark") == Some(32) && parts("light") == Some(32)
    });
    let device = Listener::start("pi-1", broker.port);
    eventually("the device listens", || device.listens());
    for n in 0..40 {
        device.publish("telemetry", serde_json::json!({"light": 100}).to_string());
        eventually("one answers", || device.on("commands").len() > n);
    }
    let answers = device.on("commands");
    let first = answers[0]["led_on"].clone();
    assert!(
        answers.iter().all(|command| command["led_on"] == first),
        "{answers:?}"
    );
    assert_eq!(answers.len(), 40);
    for server in &mut servers {
        server.stop();
    }
}
