//! From a command's publication to the change of the LED's file, beside a bare subscriber in the same run.
//!
//!     cargo bench --bench command_latency
//!
//! Both hear the same message from the same mosquitto (default settings, so with Nagle's algorithm); the
//! difference is what nightlight adds. Meanwhile readings go out and are confirmed, commands carry ids
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

/// For each kind of run.
const COMMANDS: usize = 300;
/// Time between two commands, in milliseconds.
const GAPS: std::ops::Range<u64> = 5..200;
const SETTLED: Duration = Duration::from_secs(2);
const LOST_AFTER: Duration = Duration::from_secs(5);

fn main() {
    println!("{COMMANDS} commands each, milliseconds           median       99 %       most");
    for interval in ["100ms", "300ms", "1s"] {
        for qos in [QoS::AtLeastOnce, QoS::AtMostOnce] {
            run(interval, qos);
        }
    }
}

fn run(interval: &str, qos: QoS) {
    let broker = Broker::start();
    let more = format!(
        "[control]\nlease = \"60s\"\n[sensor]\ndriver = \"iio\"\npath = \"{{folder}}/light\"\n\
         interval = \"{interval}\"\n"
    );
    let agent = Agent::start("bench", broker.port, &more);
    eventually("it is on line", || agent.log().contains("link up"));
    // What comes just after a connect may have waited at the broker, and is waited for.
    thread::sleep(SETTLED);
    let heard = subscriber(broker.port, qos);
    let moved = watcher(agent.path("led"));
    let publisher = publisher(broker.port);
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut to_led, mut to_subscriber, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..COMMANDS {
        thread::sleep(Duration::from_millis(rng.u64(GAPS)));
        let on = n % 2 == 0;
        let payload = format!("{{\"led_on\":{on},\"id\":\"c{n}\"}}");
        let sent = Instant::now();
        if publisher
            .publish("bench/commands", qos, false, payload.clone())
            .is_err()
        {
            return println!("the publisher is gone");
        }
        let wanted = if on { "1\n" } else { "0\n" };
        let led_at = arrival(&moved, wanted);
        let subscriber_at = arrival(&heard, &payload);
        let (Some(led_at), Some(subscriber_at)) = (led_at, subscriber_at) else {
            return println!("command {n} never arrived: {}", agent.log());
        };
        to_led.push(ms(sent, led_at));
        to_subscriber.push(ms(sent, subscriber_at));
        added.push(ms(subscriber_at, led_at));
    }
    println!("a reading each {interval}, {qos:?}");
    for (what, times) in [
        ("to the LED's file", &mut to_led),
        ("to a bare subscriber", &mut to_subscriber),
        ("what nightlight adds", &mut added),
    ] {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        println!(
            "    {what:28} {:10.3} {:10.3} {:10.3}",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
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
    let _ = client.subscribe("bench/commands", qos);
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
