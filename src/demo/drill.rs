//! The drill: an outage on a machine where the service runs, caused by a real fault, watched, mended, and accounted for.
//!
//! The service is not touched and does not know: `cut` takes its packets away, the status socket shows what it does,
//! and `observer`, a client of its own at the broker, hears what arrives. Said in lines, and kept in a file that an owner
//! can send: it says what the machine is, and holds no name, address or secret. Called by `main`.

mod cut;
mod observer;
mod paper;
mod watch;

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;
use uuid::Uuid;

use super::account::{Claim, Expected};
use super::act::Act;
use super::plot;
use super::screen::Screen;
use crate::cli::{self, Exit};
use crate::config::Config;
use crate::manual;
use cut::{Cut, Target, local_ports};
use observer::Observer;
use paper::Times;
use watch::Watch;

/// A silent link is found dead within two and a half keep-alives; and some.
const NOTICED_WITHIN: f64 = 4.0;
/// Limits for what must happen.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);
const LEASE_WITHIN: Duration = Duration::from_secs(300);
const BACK_WITHIN: Duration = Duration::from_secs(120);
const REPLAY_WITHIN: Duration = Duration::from_secs(600);
const REPORT_WITHIN: Duration = Duration::from_secs(30);
/// How long somebody has for the light.
const LIGHT_WITHIN: Duration = Duration::from_secs(60);
/// What a power cut may take, beside the readings of a second and a half.
const MAX_CUT_EVENTS: f64 = 6.0;
/// The kernel mends the way by itself so long after the drill should have.
const SPARE: Duration = Duration::from_secs(600);

/// Plays it. Blocks for some minutes; prints to standard output and writes the file.
pub fn run(how: &cli::Drill, config: &Config) -> Exit {
    let screen = Screen::new();
    if !rustix::process::geteuid().is_root() {
        return failed(
            "only root can cut the way to the broker: sudo nightlight drill",
            Exit::Permission,
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("no event loop: {error}"), Exit::Software),
    };
    let played = runtime.block_on(async {
        let stop = nightlight_common::signals::stop(None)
            .map_err(|error| format!("signals cannot be heard: {error}"))?;
        tokio::select! {
            played = play(how, config, &screen) => played,
            () = stop => Err("stopped; the way to the broker is mended".to_owned()),
        }
    });
    match played {
        Ok(true) => Exit::Done,
        Ok(false) => Exit::Software,
        Err(why) => failed(&why, Exit::Software),
    }
}

fn failed(why: &str, exit: Exit) -> Exit {
    use std::io::Write;
    // The exit code says it too.
    let _ = writeln!(std::io::stderr(), "nightlight drill: {why}");
    exit
}

/// Whether the account is right.
async fn play(how: &cli::Drill, config: &Config, screen: &Screen) -> Result<bool, String> {
    let begun = manual::running(config).await.ok_or_else(|| {
        format!(
            "no daemon answers in {}: the drill needs the service running (sudo systemctl start nightlight)",
            config.backlog.path.display()
        )
    })?;
    let pid = pid(config)?;
    let uid = std::fs::metadata(format!("/proc/{pid}"))
        .map(|process| std::os::unix::fs::MetadataExt::uid(&process))
        .map_err(|error| format!("the service's process {pid} cannot be looked at: {error}"))?;
    let observer = Observer::start(&config.broker, &config.topics).await?;
    let mut watch = Watch::new(screen, config, observer);
    screen.say(&format!(
        "This takes the link of the running service away for {} s, as a pulled cable does,\nand counts what arrives afterwards. Ctrl-C mends it at once.",
        how.seconds
    ));
    screen.head(
        "1. On line",
        "The service goes on as it is. A client of the drill's own listens at the broker.",
    );
    watch
        .must(
            BEGINS_WITHIN,
            "the service is not on line with an empty backlog, and it must be before the drill",
            |watch| {
                watch
                    .view()
                    .is_some_and(|view| view.link_up && view.backlog == 0)
            },
        )
        .await?;
    let first = watch.view().map_or(1, |view| view.last_seq + 1);
    watch
        .must(
            BEGINS_WITHIN + config.sensor.interval * 3 + config.telemetry.interval * 3,
            "nothing is heard of the device at the broker",
            |watch| watch.account.received() > 0,
        )
        .await?;

    screen.head(
        "2. The way to the broker is cut",
        &Act::Pull.watch().replace("the lease of 3 s", "the lease"),
    );
    let target = Target {
        uid,
        broker: config.broker.port,
        theirs: local_ports(pid, config.broker.port),
        ours: local_ports(std::process::id(), config.broker.port),
    };
    let wanted = Duration::from_secs(how.seconds);
    let limit = wanted + config.broker.keep_alive.mul_f64(NOTICED_WITHIN) + LEASE_WITHIN + SPARE;
    let mut times = Times::default();
    let cut = Cut::make(&target, limit)?;
    let cut_at = Instant::now();
    watch.is_cut = true;
    let noticed = config
        .broker
        .keep_alive
        .mul_f64(NOTICED_WITHIN)
        .max(BEGINS_WITHIN);
    watch
        .must(
            noticed,
            "the service does not notice that its link is gone",
            |watch| watch.view().is_some_and(|view| !view.link_up),
        )
        .await?;
    times.noticed_s = Some(cut_at.elapsed().as_secs_f64());
    watch.note("the service has noticed that its link is gone");
    let decides = |watch: &Watch| watch.view().is_some_and(|view| view.by != "remote");
    if watch.until(LEASE_WITHIN, decides).await? {
        times.decided_s = Some(cut_at.elapsed().as_secs_f64());
        watch.note("the Pi decides by itself");
    }

    let was_on = watch.view().and_then(|view| view.led_on) == Some(true);
    let (do_it, led) = match was_on {
        true => ("Shine a light on the sensor", "off"),
        false => ("Darken the sensor: cover it with your hand", "on"),
    };
    screen.head(
        &format!("3. {do_it}, NOW"),
        &format!("No server can say so: the Pi switches the LED {led} by itself."),
    );
    let asked = Instant::now();
    let changed = |watch: &Watch| {
        watch
            .view()
            .is_some_and(|view| view.led_on == Some(!was_on) && view.by == "fallback")
    };
    match watch.until(LIGHT_WITHIN, changed).await? {
        true => {
            times.led_changed_s = Some(asked.elapsed().as_secs_f64());
            watch.note(&format!(
                "the LED is {}, by the Pi's own decision",
                led.to_uppercase()
            ));
        }
        false => watch.note("the LED did not change: the light did not cross the threshold"),
    }

    let mut claims = Vec::new();
    let mut begins_at = (begun.run, first);
    if how.kill {
        screen.head(
            "4. The service is killed",
            "SIGKILL, as a power cut does it to the program. systemd starts it again.",
        );
        let before = watch.view().ok_or("the service does not show itself")?;
        kill(pid)?;
        let a_second = 1.0 / before.rules.interval.as_secs_f64().max(0.001);
        claims.push(Claim {
            run: before.run,
            first,
            last: before.last_seq,
            off_line: Vec::new(),
            may_cut: Some(
                (a_second * config.delivery.durable_within.as_secs_f64() * 1.5 + MAX_CUT_EVENTS)
                    as u64,
            ),
        });
        let killed = Instant::now();
        watch
            .must(BACK_WITHIN, "nobody starts the service again", |watch| {
                watch
                    .view()
                    .is_some_and(|view| view.run != before.run && view.light.is_some())
            })
            .await?;
        times.back_s = Some(killed.elapsed().as_secs_f64());
        watch.note("the service is back, and what it kept is still there");
        begins_at = (watch.view().map_or(Uuid::nil(), |view| view.run), 1);
    }
    watch
        .until(wanted.saturating_sub(cut_at.elapsed()), |_| false)
        .await?;

    screen.head("5. The way is mended", &Act::Plug.watch());
    times.cut_s = Some(cut_at.elapsed().as_secs_f64());
    drop(cut);
    watch.is_cut = false;
    let mended = Instant::now();
    watch
        .must(BACK_WITHIN, "the service does not connect again", |watch| {
            watch.view().is_some_and(|view| view.link_up)
        })
        .await?;
    times.connected_s = Some(mended.elapsed().as_secs_f64());
    watch
        .must(REPLAY_WITHIN, "the backlog does not arrive", |watch| {
            watch.view().is_some_and(|view| view.backlog == 0) && watch.is_complete(begins_at)
        })
        .await?;
    times.delivered_s = Some(mended.elapsed().as_secs_f64());
    // It is told when the link has held.
    watch
        .until(REPORT_WITHIN, |watch| watch.account.has_outage("link"))
        .await?;
    watch
        .must(BACK_WITHIN, "the newest records do not arrive", |watch| {
            watch.is_complete(begins_at)
        })
        .await?;
    let last = watch.view().map_or(0, |view| view.last_seq);
    let (run, first) = begins_at;
    let last = watch
        .account
        .highest(run)
        .max(last.min(watch.account.highest(run)));
    claims.push(Claim {
        run,
        first,
        last,
        off_line: Vec::new(),
        may_cut: None,
    });
    let expected = Expected {
        // A confirmation may have been cut off on its way.
        may_repeat: true,
        may_lose: true,
        wants_outage: Some("link"),
        ..Expected::default()
    };
    let verdict = watch.account.close(&claims, &expected);
    screen.head(
        "What happened",
        &plot::plot_at(&watch.moments, begun.rules.on_below),
    );
    screen.head("The account", &verdict.in_words(screen));
    let report = paper::report(config, &begun, &watch, &times, &verdict);
    write(&how.report, &report)?;
    screen.say(&format!(
        "\nThe report is {}. It has no name, address or secret in it.",
        how.report.display()
    ));
    Ok(verdict.is_right())
}

fn write(file: &Path, report: &str) -> Result<(), String> {
    std::fs::write(file, report)
        .map_err(|error| format!("{} cannot be written: {error}", file.display()))
}

fn pid(config: &Config) -> Result<u32, String> {
    let holder = manual::holder(config);
    holder
        .and_then(|holder| holder.pid)
        .ok_or_else(|| "which process the service is cannot be told".to_owned())
}

fn kill(pid: u32) -> Result<(), String> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or("which process the service is cannot be told")?;
    kill_process(pid, Signal::KILL)
        .map_err(|error| format!("the service cannot be killed: {error}"))
}
