//! The whole program on the logged disk: a sensor file, an outage, a kill, a restart, the drain through
//! a real broker, another outage. What must survive follows from its promise alone: every record older
//! than `durable_within` at the moment of the cut is on the disk, or was with the broker.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use uuid::Uuid;

use super::check::open_and_read;
use super::cuts::{Card, Replay, random};
use super::disk::{Logged, Mounted, folder};
use super::log::Log;
use super::tally::empty_disk;
use super::tools::within;
use crate::stage::{Agent, Broker, Listener, eventually};

/// The program's setting.
const DURABLE_WITHIN: Duration = Duration::from_millis(200);
/// What a commit itself, and a busy machine, may take beyond it.
const SLACK: Duration = Duration::from_secs(2);

/// What the cuts of the program's life showed.
#[derive(Debug, Default)]
pub struct Outcome {
    pub cuts: u64,
    /// Records of the story that were older than `durable_within` at the cut, all cuts together.
    pub required: u64,
    /// Cuts after which the store held records.
    pub with_records: u64,
    /// How old the oldest record was that was lost, at the cut.
    pub oldest_lost: Duration,
    pub failures: Vec<String>,
}

/// When the log had how many entries.
type Times = Vec<(SystemTime, usize)>;

/// Lives, and cuts that life so many times.
pub fn cut_the_program(cuts: usize, rng: &mut fastrand::Rng) -> Outcome {
    let work = folder();
    let base = empty_disk(work.path());
    let disk = Logged::start(&base);
    let ended = AtomicBool::new(false);
    let (listener, times) = thread::scope(|scope| {
        let times = scope.spawn(|| follow(&disk.log(), &ended));
        let listener = live(&disk.mounted());
        ended.store(true, Ordering::Relaxed);
        (listener, times.join().expect("the times"))
    });
    let disk = disk.finish();
    let mut log = Log::open(&disk.log());
    log.verify(&disk.log());
    // Every record of the story, when it was made, and when the broker had it at the latest.
    let mut made: BTreeMap<(Uuid, u64), (SystemTime, Option<SystemTime>)> = BTreeMap::new();
    let now = SystemTime::now();
    for heard in listener.all() {
        let at = now - heard.at.elapsed();
        for record in heard.objects() {
            let run = record["run"].as_str().and_then(|run| run.parse().ok());
            let (Some(run), Some(seq)) = (run, record["seq"].as_u64()) else {
                continue;
            };
            let ts: Timestamp = record["ts"].as_str().unwrap().parse().expect("a time");
            let (_, first) = made.entry((run, seq)).or_insert((ts.into(), None));
            *first = Some(first.map_or(at, |first| first.min(at)));
        }
    }
    let mut outcome = Outcome::default();
    let mut replay = Replay::new(&log, &base, Card::Honest);
    let image = work.path().join("image");
    let mut cuts = random(rng, &log, cuts);
    // The whole of it is looked at, too: it has the records of the last outage.
    let end = cuts.last().map_or(0, |cut| cut.seed);
    cuts.push(super::cuts::Cut {
        at: log.entries.len(),
        seed: end,
    });
    let mut found = Vec::new();
    for cut in cuts {
        replay.image(cut, &image);
        let disk = Mounted::new(&image, &work.path().join("mounted")).expect("mounted");
        let read = open_and_read(disk.path(), Uuid::from_u128(rng.u128(..)), 0);
        match read {
            Ok(read) => {
                if !read.losses.is_empty() || read.salvaged {
                    let why = format!("{cut:?}: losses {:?}", read.losses);
                    outcome.failures.push(why);
                }
                found.push((cut, read.records));
            }
            Err(why) => outcome.failures.push(format!("{cut:?}: {why}")),
        }
        disk.end().expect("unmounted");
    }
    for (_, records) in &found {
        for (key, record) in records {
            let since = Duration::from_millis(record.stamp.wall_ms.unsigned_abs());
            let at = SystemTime::UNIX_EPOCH + since;
            made.entry(*key).or_insert((at, None));
        }
    }
    for (cut, records) in &found {
        outcome.cuts += 1;
        outcome.with_records += u64::from(!records.is_empty());
        // The latest moment at which the card had been given no more than this.
        let Some((power_off, _)) = times.iter().rfind(|(_, length)| *length <= cut.at) else {
            continue;
        };
        for (key, (at, heard)) in &made {
            let age = power_off.duration_since(*at).unwrap_or_default();
            if age > DURABLE_WITHIN {
                outcome.required += 1;
            }
            let delivered = heard.is_some_and(|heard| heard <= *power_off + SLACK);
            if records.contains_key(key) || delivered {
                continue;
            }
            outcome.oldest_lost = outcome.oldest_lost.max(age);
            if age > DURABLE_WITHIN + SLACK {
                outcome
                    .failures
                    .push(format!("{cut:?}: {key:?} of {age:?} before is lost"));
            }
        }
    }
    outcome
}

fn live(mounted: &Path) -> Listener {
    let mut broker = Broker::start();
    let listener = Listener::start("pi-cut", broker.port);
    eventually("the listener listens", || listener.listens());
    // Its session outlives the broker: it will miss nothing.
    broker.stop();
    let more = format!(
        "[backlog]\npath = \"{}/backlog\"\ndurable_within = \"{}ms\"\n\
         [sensor]\ndriver = \"iio\"\npath = \"{{folder}}/light\"\ninterval = \"20ms\"\n\
         [telemetry]\ninterval = \"0s\"\ndeadband = 0.0\n",
        mounted.display(),
        DURABLE_WITHIN.as_millis()
    );
    let mut agent = Agent::start("pi-cut", broker.port, &more);
    let outage = |agent: &Agent, time: Duration| {
        let end = SystemTime::now() + time;
        let mut light = 0;
        within(|| {
            light += 1;
            agent.set_light(&light.to_string());
            SystemTime::now() >= end
        });
    };
    outage(&agent, Duration::from_secs(6));
    agent.kill();
    agent.run();
    outage(&agent, Duration::from_secs(3));
    broker.restart();
    eventually("it is on line", || listener.last_text("status") == "online");
    eventually("it has drained", || {
        let state = listener.last_text("state");
        state.contains("\"backlog\":0")
    });
    outage(&agent, Duration::from_secs(1));
    broker.kill();
    outage(&agent, Duration::from_secs(3));
    agent.stop();
    listener
}

fn follow(log: &Path, ended: &AtomicBool) -> Times {
    let mut log = Log::open(log);
    let mut times = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        // The time first: what comes in between is then counted as later.
        let now = SystemTime::now();
        times.push((now, log.follow()));
        thread::sleep(Duration::from_millis(2));
    }
    times
}
