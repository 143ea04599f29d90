//! What a writer was promised, and when: each note carries the length of the log of writes at that
//! moment, taken so that an error can only ask less of the store. Writers make notes; `check` asks what
//! they mean for a cut.
//!
//! "Stored" is noted after the answer: a cut from then on must keep the records. "Given" and "forgotten"
//! are noted before the request: no cut up to then can show a trace of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nightlight::logic::telemetry::Loss;
use uuid::Uuid;

use super::log::Log;

/// Something that was asked or answered.
#[derive(Debug, Clone)]
pub enum Fact {
    /// The store is open for this run.
    Opened(Uuid),
    /// Records are handed to the store.
    Given { run: Uuid, from: u64, to: u64 },
    /// It said that they are durable.
    Stored { run: Uuid, from: u64, to: u64 },
    /// It said that these ids of commands are durable.
    Ids(Vec<String>),
    /// It is told to forget records.
    Forgotten { run: Uuid, from: u64, to: u64 },
    /// It gave records up, being full.
    Lost(Loss),
    /// It is told that this has been delivered.
    LossForgotten(Loss),
    /// A part of the writer's story begins.
    Part(&'static str),
}

/// The notes of a writer.
pub struct Notes {
    log: Log,
    notes: Vec<(usize, Fact)>,
}

/// What must, and what may be found after a cut.
#[derive(Debug, Default)]
pub struct Promise {
    /// Durable, and not told to be forgotten.
    pub required: BTreeSet<(Uuid, u64)>,
    /// The highest number of each run that was handed over.
    pub given: BTreeMap<Uuid, u64>,
    /// Records that it was told to forget.
    pub forgotten: BTreeSet<(Uuid, u64)>,
    /// Losses that it was told to forget.
    pub told: Vec<Loss>,
    /// Ids of commands that it said are durable.
    pub ids: Vec<String>,
    /// The newest run that the store was open for.
    pub run: Option<Uuid>,
    /// The part of the story the cut falls into.
    pub part: &'static str,
}

impl Notes {
    pub fn new(log: &Path) -> Notes {
        Notes {
            log: Log::open(log),
            notes: Vec::new(),
        }
    }

    /// Notes something, now.
    pub fn add(&mut self, fact: Fact) {
        let now = self.log.follow();
        self.notes.push((now, fact));
    }

    /// The log at the end.
    pub fn finish(&mut self, path: &Path) -> &Log {
        self.log.verify(path);
        &self.log
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Where each part of the story begins.
    pub fn parts(&self) -> Vec<(&'static str, usize)> {
        let part = |(at, fact): &(usize, Fact)| match fact {
            Fact::Part(part) => Some((*part, *at)),
            _ => None,
        };
        self.notes.iter().filter_map(part).collect()
    }

    /// What holds when the entries before `cut` were given to the disk.
    pub fn promise(&self, cut: usize) -> Promise {
        let mut promise = Promise {
            part: "the time before the store",
            ..Promise::default()
        };
        for (at, fact) in self.notes.iter().take_while(|(at, _)| *at <= cut) {
            match fact {
                Fact::Opened(run) => promise.run = Some(*run),
                Fact::Stored { run, from, to } => {
                    promise
                        .required
                        .extend((*from..=*to).map(|seq| (*run, seq)));
                }
                Fact::Ids(ids) => promise.ids.extend(ids.iter().cloned()),
                Fact::Part(part) => promise.part = part,
                // No entry before `at` can come of what was asked at `at`.
                _ if *at == cut => {}
                Fact::Given { run, to, .. } => {
                    promise.given.insert(*run, *to);
                }
                Fact::Forgotten { run, from, to } => {
                    let records = (*from..=*to).map(|seq| (*run, seq));
                    promise.forgotten.extend(records);
                }
                Fact::LossForgotten(loss) => promise.told.push(loss.clone()),
                Fact::Lost(_) => {}
            }
        }
        let forgotten = &promise.forgotten;
        promise.required.retain(|key| !forgotten.contains(key));
        promise
    }

    /// Runs of which records were ever given up for want of room.
    pub fn given_up(&self) -> BTreeSet<Uuid> {
        let runs = self.notes.iter().filter_map(|(_, fact)| match fact {
            Fact::Lost(loss) => Some(loss.of_run),
            _ => None,
        });
        runs.collect()
    }
}
