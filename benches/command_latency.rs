//! From a command's publication to the change of the LED's file, beside a bare subscriber in the same run.
//!
//!     cargo bench --bench command_latency
//!
//! Both hear the same message from the same mosquitto; the difference is what nightlight adds.

#[path = "../tests/real/stage/mod.rs"]
mod stage;

use std::fs;
use std::time::{Duration, Instant};

use stage::{Agent, Broker, Listener, eventually};

const COMMANDS: usize = 1_000;

fn main() {
    let broker = Broker::start();
    let listener = Listener::start("bench", broker.port);
    eventually("the listener listens", || listener.listens());
    let more = "[control]\nlease = \"60s\"\n";
    let agent = Agent::start("bench", broker.port, more);
    eventually("readings arrive", || listener.on("telemetry").len() >= 20);
    let led = agent.path("led");
    let (mut to_led, mut to_subscriber, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..COMMANDS {
        let on = n % 2 == 0;
        let payload = format!("{{\"led_on\":{on},\"id\":\"c{n}\"}}");
        let wanted = if on { "1\n" } else { "0\n" };
        let sent = Instant::now();
        listener.publish("commands", payload.clone());
        let limit = sent + Duration::from_secs(5);
        while fs::read_to_string(&led).unwrap_or_default() != wanted {
            if Instant::now() > limit {
                println!("command {n} never moved the LED");
                return;
            }
            std::thread::yield_now();
        }
        let moved = Instant::now();
        let mut heard = None;
        eventually("the subscriber hears it", || {
            let all = listener.all();
            heard = all
                .iter()
                .rev()
                .take(50)
                .find(|heard| heard.payload == payload.as_bytes())
                .map(|heard| heard.at);
            heard.is_some()
        });
        let heard = heard.unwrap_or(moved);
        to_led.push((moved - sent).as_secs_f64() * 1e3);
        to_subscriber.push((heard - sent).as_secs_f64() * 1e3);
        let difference = match moved.checked_duration_since(heard) {
            Some(later) => later.as_secs_f64(),
            None => -(heard - moved).as_secs_f64(),
        };
        added.push(difference * 1e3);
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("{COMMANDS} commands, milliseconds      median      99 %       most");
    for (what, times) in [
        ("to the LED's file", &mut to_led),
        ("to a bare subscriber", &mut to_subscriber),
        ("what nightlight adds", &mut added),
    ] {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        println!(
            "{what:28} {:10.3} {:10.3} {:10.3}",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}
