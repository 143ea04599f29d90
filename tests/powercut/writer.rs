//! The writer: lives of the daemon as its backlog sees them, with the real store. Records come in
//! groups, are sealed, drained, forgotten in pieces, given up when there is no room; and every promise
//! of the store is noted. `tally` runs it on a logged disk.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use nightlight::config::{self, OnFull};
use nightlight::io::backlog::Backlog;
use nightlight::logic::telemetry::{Body, Event, Record};
use nightlight::logic::time::Stamp;
use nightlight::logic::{Entry, Input, Key, KeyRange};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use uuid::Uuid;

use super::notes::{Fact, Notes};

/// No answer of the store takes so long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Ids of commands that the store remembers.
pub const COMMANDS: usize = 256;

/// A store that answers here and now.
pub struct Asked {
    pub backlog: Backlog,
    inputs: UnboundedReceiver<Input>,
    runtime: Runtime,
}

impl Asked {
    pub fn open(settings: &config::Backlog, run: Uuid) -> Asked {
        let (sender, inputs) = unbounded_channel();
        let runtime = Builder::new_current_thread().enable_time().build();
        Asked {
            backlog: Backlog::open(settings, run, boot_of(run), sender),
            inputs,
            runtime: runtime.expect("a runtime"),
        }
    }

    /// The next thing that the store says.
    pub fn answer(&mut self) -> Result<Input, String> {
        let inputs = &mut self.inputs;
        let next = async { tokio::time::timeout(PATIENCE, inputs.recv()).await };
        match self.runtime.block_on(next) {
            Ok(Some(input)) => Ok(input),
            Ok(None) => Err("the store's thread has ended".into()),
            Err(_) => Err(format!("the store was silent for {PATIENCE:?}")),
        }
    }

    /// What it has said that was not waited for.
    pub fn waiting(&mut self) -> Option<Input> {
        self.inputs.try_recv().ok()
    }
}

/// The bounds that do not bind.
pub fn settings(folder: &Path) -> config::Backlog {
    config::Backlog {
        path: folder.join("backlog"),
        max_records: 1_000_000,
        max_bytes: 1 << 30,
        on_full: OnFull::DropOldest,
    }
}

/// The record with this name: always the same, and unlike any other.
pub fn record(run: Uuid, seq: u64) -> Record {
    let mut rng = fastrand::Rng::with_seed(run.as_u128() as u64 ^ (seq << 17));
    let body = match rng.u8(..20) {
        0 => Body::Event(Event::Led {
            led_on: Some(rng.bool()),
            led_ok: None,
            by: "fallback".into(),
            why: words(&mut rng, 60),
        }),
        1 => Body::Event(Event::Sensor {
            ok: rng.bool(),
            // Now and then a record is as large as a page.
            why: words(&mut rng, 2_000),
        }),
        _ => Body::Reading {
            light: rng.f64() * 1_000.0,
            led_on: Some(rng.bool()),
            led_ok: true,
        },
    };
    Record {
        run,
        seq,
        boot_id: boot_of(run),
        stamp: Stamp {
            boot_ms: 1_000 + seq * 100,
            wall_ms: 1_795_000_000_000 + seq as i64 * 100,
            synced: seq.is_multiple_of(3),
        },
        body,
    }
}

fn words(rng: &mut fastrand::Rng, most: usize) -> String {
    let length = rng.usize(1..=most);
    (0..length).map(|_| rng.alphanumeric()).collect()
}

fn boot_of(run: Uuid) -> Uuid {
    Uuid::from_u128(run.as_u128() ^ 0xb007)
}

/// One life of the daemon.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    pub part: &'static str,
    /// Groups of records.
    pub groups: usize,
    /// Records in a group, at the most.
    pub group: u64,
    /// Whether a page is fetched and forgotten after so many groups; 0 for never.
    pub drain_every: usize,
    /// Whether it drains to the last record at its end.
    pub drain_all: bool,
    /// Records in the store, at the most.
    pub most: u64,
}

/// The stories that are cut. They come by everything that the store does to its files.
pub const STORIES: [&[Life]; 2] = [
    &[
        life("an outage", 300, 6, 0, false),
        life("a restart in the outage", 60, 40, 0, false),
        life("the drain", 60, 4, 2, true),
        life("a second outage", 120, 20, 7, false),
        Life {
            most: 300,
            ..life("no room", 100, 12, 0, false)
        },
        life("the second drain", 20, 4, 1, true),
    ],
    &[
        life("a long outage", 40, 600, 0, false),
        life("the end of a large store", 6, 4, 1, true),
        life("a small store in its place", 40, 6, 0, false),
    ],
];

const fn life(
    part: &'static str,
    groups: usize,
    group: u64,
    drain_every: usize,
    drain_all: bool,
) -> Life {
    Life {
        part,
        groups,
        group,
        drain_every,
        drain_all,
        most: 1_000_000,
    }
}

/// Lives one life on the disk at `folder`.
pub fn live(life: Life, folder: &Path, rng: &mut fastrand::Rng, notes: &mut Notes) {
    notes.add(Fact::Part(life.part));
    let run = Uuid::from_u128(rng.u128(..));
    let mut settings = settings(folder);
    settings.max_records = life.most;
    let mut writer = Writer {
        asked: Asked::open(&settings, run),
        run,
        seq: 0,
        given: VecDeque::new(),
        seen: 0,
        cursor: None,
        notes,
    };
    writer.wait(|input| matches!(input, Input::BacklogOpened(_)));
    writer.notes.add(Fact::Opened(run));
    for n in 1..=life.groups {
        writer.give(rng.u64(1..=life.group), rng);
        // Up to three groups wait for their answers: they may become one commit.
        while writer.given.len() > rng.usize(..3) {
            writer.step();
        }
        if life.drain_every > 0 && n % life.drain_every == 0 {
            writer.drain(rng);
        }
    }
    while !writer.given.is_empty() {
        writer.step();
    }
    while life.drain_all && !writer.drain(rng) {}
    // Every gap is noted, also those that nobody was told of.
    let mut after = None;
    loop {
        let (entries, end) = writer.read(after, 1_000);
        after = entries.last().map(|(key, _)| *key);
        if end {
            break;
        }
    }
    assert!(writer.asked.backlog.close(PATIENCE), "closed");
}

struct Writer<'a> {
    asked: Asked,
    run: Uuid,
    seq: u64,
    /// Handed over and not answered.
    given: VecDeque<(u64, u64, Vec<String>)>,
    /// Records fetched since the last time from the start.
    seen: usize,
    cursor: Option<Key>,
    notes: &'a mut Notes,
}

impl Writer<'_> {
    fn give(&mut self, count: u64, rng: &mut fastrand::Rng) {
        let (run, from, to) = (self.run, self.seq + 1, self.seq + count);
        self.seq = to;
        let ids: Vec<String> = match rng.u8(..8) {
            0 => vec![format!("{run}-{to}")],
            _ => Vec::new(),
        };
        self.notes.add(Fact::Given { run, from, to });
        let entries = (from..=to).map(|seq| Entry::Record(record(run, seq)));
        self.asked
            .backlog
            .append(entries.collect(), ids.clone(), to);
        self.given.push_back((from, to, ids));
    }

    /// Takes one answer.
    fn step(&mut self) -> Input {
        let input = self.asked.answer().expect("an answer");
        match &input {
            Input::Stored { .. } => {
                let (from, to, ids) = self.given.pop_front().expect("a group");
                let run = self.run;
                self.notes.add(Fact::Stored { run, from, to });
                if !ids.is_empty() {
                    self.notes.add(Fact::Ids(ids));
                }
            }
            Input::StoreFailed(why) => panic!("not stored: {why}"),
            _ => {}
        }
        input
    }

    /// Reads a page, and notes the gaps in it.
    fn read(&mut self, after: Option<Key>, limit: usize) -> (Vec<(Key, Entry)>, bool) {
        self.asked.backlog.read_after(after, limit);
        let fetched = self.wait(|input| matches!(input, Input::Fetched { .. }));
        let Input::Fetched { entries, end } = fetched else {
            unreachable!()
        };
        for (_, entry) in &entries {
            if let Entry::Gap(gap) = entry {
                self.notes.add(Fact::Lost(gap.clone()));
            }
        }
        (entries, end)
    }

    fn wait(&mut self, met: impl Fn(&Input) -> bool) -> Input {
        loop {
            let input = self.step();
            if met(&input) {
                return input;
            }
        }
    }

    /// Fetches a page and confirms it in pieces; whether a round through the store met no record.
    fn drain(&mut self, rng: &mut fastrand::Rng) -> bool {
        let (entries, end) = self.read(self.cursor, rng.usize(1..200));
        let mut runs = HashMap::new();
        let mut pieces: Vec<KeyRange> = Vec::new();
        let mut reported: Vec<KeyRange> = Vec::new();
        for (key, entry) in &entries {
            runs.insert(key.run_number, entry.run());
            if let Entry::Gap(gap) = entry {
                // Now and then it is passed over.
                if rng.u8(..10) > 0 {
                    self.notes.add(Fact::LossForgotten(gap.clone()));
                    reported.push(KeyRange {
                        run_number: key.run_number,
                        from: gap.from_seq,
                        to: gap.to_seq,
                    });
                }
                continue;
            }
            match pieces.last_mut() {
                Some(piece)
                    if piece.run_number == key.run_number
                        && piece.to + 1 == key.seq
                        && rng.u8(..40) > 0 =>
                {
                    piece.to = key.seq;
                }
                _ => pieces.push(KeyRange {
                    run_number: key.run_number,
                    from: key.seq,
                    to: key.seq,
                }),
            }
        }
        // Some are passed over, and come again with the next round.
        pieces.retain(|_| rng.u8(..10) > 0);
        for piece in &pieces {
            self.notes.add(Fact::Forgotten {
                run: runs[&piece.run_number],
                from: piece.from,
                to: piece.to,
            });
        }
        pieces.extend(reported);
        self.asked.backlog.discard(pieces);
        self.seen += entries.len();
        self.cursor = entries.last().map(|(key, _)| *key);
        if !end {
            return false;
        }
        self.cursor = None;
        std::mem::take(&mut self.seen) == 0
    }
}
