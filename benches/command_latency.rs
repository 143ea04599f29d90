//! From a command's publication to the change of the LED's file, beside a bare subscriber in the same run.
//!
//!     cargo bench --bench command_latency
//!
//! Both hear the same message from the same mosquitto (with Nagle's algorithm, as it comes); the
//! difference is what nightlight adds. Two nightlights take turns, one in MQTT 5 and one in 3.1.1, and so do two
//! kinds of broker: as it comes, and with `max_inflight_messages 0`. `COMMANDS` (300) is how many each gets. Meanwhile readings go out and are confirmed, commands carry ids
//! and come at random intervals, and each is answered with a result and an event: all of that shares the
//! connection with the commands, and may hold them up. The file is watched with inotify.

#[path = "../tests/real/stage/mod.rs"]
mod stage;

use std::fs;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rumqttc::{Client, Event, Incoming, MqttOptions, NetworkOptions, Outgoing, QoS};
use rustix::fs::inotify;
use stage::{Agent, Broker, eventually};

/// Time between two commands, in milliseconds.
const GAPS: std::ops::Range<u64> = 5..200;
const SETTLED: Duration = Duration::from_secs(2);
const LOST_AFTER: Duration = Duration::from_secs(5);

fn main() {
    let commands = std::env::var("COMMANDS").ok();
    let commands = commands.and_then(|text| text.parse().ok()).unwrap_or(300);
    println!(
        "{commands} commands each, milliseconds                  median       99 %       most"
    );
    for interval in ["100ms", "300ms", "1s"] {
        for qos in [QoS::AtLeastOnce, QoS::AtMostOnce] {
            for limit in ["", "max_inflight_messages 0\n"] {
                println!("a reading each {interval}, {qos:?}, {limit:?}");
                run(interval, qos, limit, commands);
            }
        }
    }
}

/// A nightlight that speaks one version of MQTT, and what its commands took.
struct Side {
    id: String,
    agent: Agent,
    moved: Receiver<(String, Instant)>,
    to_led: Vec<f64>,
    to_subscriber: Vec<f64>,
    added: Vec<f64>,
}

impl Side {
    fn new(version: &str, interval: &str, port: u16) -> Side {
        let id = format!("bench-{}", version.replace('.', ""));
        let more = format!(
            "[control]\nlease = \"60s\"\n[sensor]\ndriver = \"iio\"\npath = \"{{folder}}/light\"\n\
             interval = \"{interval}\"\n\
             [broker]\nurl = \"mqtt://127.0.0.1:{port}\"\nversion = \"{version}\"\n"
        );
        let agent = Agent::start(&id, port, &more);
        eventually("it is on line", || agent.log().contains("link up"));
        let moved = watcher(agent.path("led"));
        Side {
            id,
            agent,
            moved,
            to_led: Vec::new(),
            to_subscriber: Vec::new(),
            added: Vec::new(),
        }
    }

    /// Sends one command and waits for it; false when it never arrives.
    fn command(
        &mut self,
        n: usize,
        qos: QoS,
        publisher: &Client,
        heard: &Receiver<(String, Instant)>,
    ) -> bool {
        let on = n.is_multiple_of(2);
        let payload = format!("{{\"led_on\":{on},\"id\":\"{}-{n}\"}}", self.id);
        let topic = format!("{}/commands", self.id);
        let sent = Instant::now();
        let published = publisher.publish(topic, qos, false, payload.clone());
        let wanted = if on { "1\n" } else { "0\n" };
        let led_at = published.ok().and_then(|()| arrival(&self.moved, wanted));
        let (Some(led_at), Some(subscriber_at)) = (led_at, arrival(heard, &payload)) else {
            println!("command {n} never arrived: {}", self.agent.log());
            return false;
        };
        self.to_led.push(ms(sent, led_at));
        self.to_subscriber.push(ms(sent, subscriber_at));
        self.added.push(ms(subscriber_at, led_at));
        true
    }
}

fn run(interval: &str, qos: QoS, limit: &str, commands: usize) {
    let broker = Broker::start_with(&format!("allow_anonymous true\n{limit}"));
    let mut sides = ["5", "3.1.1"].map(|version| Side::new(version, interval, broker.port));
    // What comes just after a connect may have waited at the broker, and is waited for.
    thread::sleep(SETTLED);
    let heard = subscriber(broker.port, qos);
    let publisher = publisher(broker.port);
    let mut rng = fastrand::Rng::with_seed(7);
    for n in 0..commands {
        // Who is first changes, and the LED of each with every second command.
        for at in [n / 2 % 2, 1 - n / 2 % 2] {
            thread::sleep(Duration::from_millis(rng.u64(GAPS)));
            if !sides[at].command(n, qos, &publisher, &heard) {
                return;
            }
        }
    }
    let [new, old] = sides;
    for (what, new, old) in [
        ("to the LED's file", new.to_led, old.to_led),
        ("to a bare subscriber", new.to_subscriber, old.to_subscriber),
        ("what nightlight adds", new.added, old.added),
    ] {
        let new = figures(what, "5", new);
        let old = figures(what, "3.1.1", old);
        println!("    {what:28} 5 to 3.1.1 {:10.3}", new / old);
    }
}

/// Prints median, 99 % and most; gives the median.
fn figures(what: &str, version: &str, mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let (median, late, most) = (at(0.5), at(0.99), at(1.0));
    println!("    {what:28} MQTT {version:5} {median:10.3} {late:10.3} {most:10.3}");
    median
}

/// When `text` arrives; what arrived before it and is something else, is skipped.
fn arrival(arrivals: &Receiver<(String, Instant)>, text: &str) -> Option<Instant> {
    let limit = Instant::now() + LOST_AFTER;
    loop {
        let left = limit.saturating_duration_since(Instant::now());
        let (arrived, at) = arrivals.recv_timeout(left).ok()?;
        if arrived == text {
            return Some(at);
        }
    }
}

/// Hears the commands as the program does, and does nothing else.
fn subscriber(port: u16, qos: QoS) -> Receiver<(String, Instant)> {
    let (client, mut connection) = client("bare", port);
    let (sender, arrivals) = channel();
    let (up, is_up) = channel();
    let _ = client.subscribe("+/commands", qos);
    thread::spawn(move || {
        for event in connection.iter() {
            let at = Instant::now();
            match event {
                Ok(Event::Incoming(Incoming::SubAck(_))) => drop(up.send(())),
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    let text = String::from_utf8_lossy(&publish.payload).into_owned();
                    if sender.send((text, at)).is_err() {
                        break;
                    }
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        drop(client);
    });
    let _ = is_up.recv_timeout(LOST_AFTER);
    arrivals
}

fn publisher(port: u16) -> Client {
    let (client, mut connection) = client("publisher", port);
    let (up, is_up) = channel();
    thread::spawn(move || {
        for event in connection.iter() {
            match event {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => drop(up.send(())),
                Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_) => break,
                Ok(_) => {}
            }
        }
    });
    let _ = is_up.recv_timeout(LOST_AFTER);
    client
}

fn client(id: &str, port: u16) -> (Client, rumqttc::Connection) {
    let options = MqttOptions::new(id, "127.0.0.1", port);
    let (client, mut connection) = Client::new(options, 100);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    connection.eventloop.set_network_options(network);
    (client, connection)
}

/// Tells what the file says, each time that it is written.
fn watcher(led: PathBuf) -> Receiver<(String, Instant)> {
    let (sender, arrivals) = channel();
    let (up, is_up) = channel();
    thread::spawn(move || watch(&led, &sender, &up));
    let _ = is_up.recv_timeout(LOST_AFTER);
    arrivals
}

fn watch(led: &PathBuf, sender: &Sender<(String, Instant)>, up: &Sender<()>) -> Option<()> {
    let watching = inotify::init(inotify::CreateFlags::CLOEXEC).ok()?;
    inotify::add_watch(&watching, led, inotify::WatchFlags::MODIFY).ok()?;
    up.send(()).ok()?;
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut events = inotify::Reader::new(&watching, &mut buffer);
    loop {
        events.next().ok()?;
        let at = Instant::now();
        sender.send((fs::read_to_string(led).ok()?, at)).ok()?;
    }
}

/// From one moment to another, in milliseconds; negative when the other was first.
fn ms(from: Instant, to: Instant) -> f64 {
    match to.checked_duration_since(from) {
        Some(later) => later.as_secs_f64() * 1e3,
        None => -(from - to).as_secs_f64() * 1e3,
    }
}
