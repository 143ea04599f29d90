//! What the real store makes of a disk after a cut, and whether that is what was promised: every
//! durable record that was not forgotten is there with its content, nothing is invented, and the store
//! works on. `tally` asks it for every cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use nightlight::logic::telemetry::{Loss, Record};
use nightlight::logic::{Entry, Input, Key, Opened};
use uuid::Uuid;

use super::notes::Promise;
use super::writer::{Asked, COMMANDS, record, settings};

const PAGE: usize = 1_000;
/// Records that are stored after a cut.
const MORE: u64 = 3;

/// What a store holds.
#[derive(Debug, Default)]
pub struct Found {
    pub opened: Opened,
    pub records: BTreeMap<(Uuid, u64), Record>,
    pub losses: Vec<Loss>,
    /// A damaged store lies beside it.
    pub salvaged: bool,
}

/// What became of the records of one cut.
#[derive(Debug, Default, Clone)]
pub struct Verdict {
    /// Durable, and not told to be forgotten.
    pub required: u64,
    /// Of these: neither there nor told as lost.
    pub lost: u64,
    /// Of these: not there, but the store says so.
    pub told: u64,
    /// There before the store had called them durable.
    pub early: u64,
    /// There though the store was told to forget them: they are sent twice.
    pub again: u64,
    pub salvaged: bool,
    /// The file system had to be mended first.
    pub mended: bool,
    /// What must not be.
    pub failures: Vec<String>,
}

/// Opens the store that lies in `folder` as the daemon does, reads it and stores more; then once more.
pub fn check(folder: &Path, promise: &Promise, given_up: &BTreeSet<Uuid>) -> Verdict {
    let mut rng = fastrand::Rng::with_seed(promise.required.len() as u64 ^ 0x0c4e);
    let (first, second) = (Uuid::from_u128(rng.u128(..)), Uuid::from_u128(rng.u128(..)));
    let found = match open_and_read(folder, first, MORE) {
        Ok(found) => found,
        Err(why) => return Verdict::failed(promise, format!("the store cannot be used: {why}")),
    };
    let mut verdict = compare(promise, &found, given_up);
    match open_and_read(folder, second, 0) {
        Ok(again) => {
            let mut expected = found.records;
            expected.extend((1..=MORE).map(|seq| ((first, seq), record(first, seq))));
            if again.losses != found.losses {
                let (had, has) = (&found.losses, &again.losses);
                let why = format!("opened once more it has the gaps {has:?}, not {had:?}");
                verdict.failures.push(why);
            }
            if again.records != expected {
                let (had, has) = (expected.len(), again.records.len());
                let why = format!("opened once more it holds {has} records, not {had}");
                verdict.failures.push(why);
            }
        }
        Err(why) => {
            let why = format!("the store cannot be used a second time: {why}");
            verdict.failures.push(why);
        }
    }
    verdict
}

/// Opens the store and closes it, as a daemon does that is asked to stop at once.
pub fn open_and_close(folder: &Path, run: Uuid) -> Result<(), String> {
    open_and_read(folder, run, 0).map(drop)
}

pub fn open_and_read(folder: &Path, run: Uuid, more: u64) -> Result<Found, String> {
    let settings = settings(folder);
    let mut asked = Asked::open(&settings, run);
    let mut found = Found::default();
    match asked.answer()? {
        Input::BacklogOpened(opened) => found.opened = opened,
        other => return Err(format!("it does not open: {other:?}")),
    }
    let mut run_numbers: BTreeMap<u64, Uuid> = BTreeMap::new();
    let mut after: Option<Key> = None;
    loop {
        asked.backlog.read_after(after, PAGE);
        let (entries, end) = match asked.answer()? {
            Input::Fetched { entries, end } => (entries, end),
            other => return Err(format!("it cannot be read: {other:?}")),
        };
        for (key, entry) in entries {
            if after.is_some_and(|after| after >= key) {
                return Err(format!("{key:?} comes after {after:?}"));
            }
            after = Some(key);
            let record = match entry {
                Entry::Record(record) => record,
                Entry::Gap(gap) => {
                    found.losses.push(gap);
                    continue;
                }
            };
            let name = (record.run, record.seq);
            let same_run = *run_numbers.entry(key.run_number).or_insert(record.run) == record.run;
            if !same_run || key.seq != record.seq {
                return Err(format!("{key:?} is record {name:?}"));
            }
            if found.records.insert(name, record).is_some() {
                return Err(format!("{name:?} is there twice"));
            }
        }
        if end {
            break;
        }
    }
    let has = found.records.len() + found.losses.len();
    if found.opened.records != has as u64 {
        let said = found.opened.records;
        return Err(format!(
            "it says that it holds {said} records and gaps, and holds {has}"
        ));
    }
    for gap in &found.losses {
        let inside = |(run, seq): &(Uuid, u64)| {
            *run == gap.of_run && (gap.from_seq..=gap.to_seq).contains(seq)
        };
        if found.records.keys().any(inside) {
            return Err(format!("a record lies in {gap:?}"));
        }
    }
    if more > 0 {
        let entries = (1..=more).map(|seq| Entry::Record(record(run, seq)));
        asked.backlog.append(entries.collect(), Vec::new(), more);
        match asked.answer()? {
            Input::Stored { lost, .. } if lost.total() == 0 => {}
            other => return Err(format!("it takes nothing new: {other:?}")),
        }
    }
    if !asked.backlog.close(Duration::from_secs(30)) {
        return Err("it cannot be closed".into());
    }
    let names = fs::read_dir(&settings.path).map_err(|error| error.to_string())?;
    found.salvaged = names
        .filter_map(Result::ok)
        .any(|entry| entry.file_name().to_string_lossy().contains("damaged"));
    Ok(found)
}

fn compare(promise: &Promise, found: &Found, given_up: &BTreeSet<Uuid>) -> Verdict {
    let mut verdict = Verdict {
        required: promise.required.len() as u64,
        salvaged: found.salvaged,
        ..Verdict::default()
    };
    let told: Vec<&Loss> = found.losses.iter().chain(&promise.told).collect();
    let mut missing = Vec::new();
    for key in &promise.required {
        if found.records.contains_key(key) {
            continue;
        }
        let in_loss =
            |loss: &&&Loss| loss.of_run == key.0 && (loss.from_seq..=loss.to_seq).contains(&key.1);
        if told.iter().any(|loss| in_loss(&loss)) {
            verdict.told += 1;
        } else {
            verdict.lost += 1;
            missing.push(*key);
        }
    }
    if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
        let count = missing.len();
        verdict
            .failures
            .push(format!("{count} records lost, {first:?} to {last:?}"));
    }
    for (key, found) in &found.records {
        let (run, seq) = *key;
        if promise.given.get(&run).is_none_or(|given| seq > *given) || seq == 0 {
            verdict.failures.push(format!("{key:?} is invented"));
        } else if *found != record(run, seq) {
            verdict
                .failures
                .push(format!("{key:?} has another content"));
        }
        if promise.forgotten.contains(key) {
            verdict.again += 1;
        } else if !promise.required.contains(key) {
            verdict.early += 1;
        }
    }
    // With bounds that do not bind, and a card that does what it is told, there is nothing to give up.
    for loss in &found.losses {
        if !given_up.contains(&loss.of_run) {
            verdict.failures.push(format!("a loss is told: {loss:?}"));
        }
    }
    verdict.failures.extend(memory(promise, &found.opened));
    verdict
}

/// What the store must know beside the records.
fn memory(promise: &Promise, opened: &Opened) -> Option<String> {
    let newest = promise.ids.iter().rev().take(COMMANDS / 2);
    for id in newest {
        if !opened.command_ids.contains(id) {
            return Some(format!("the command {id} is not remembered"));
        }
    }
    let run = promise.run?;
    // A later run may have begun just before the cut.
    match opened.previous {
        None => Some("it does not know the run before".into()),
        Some((previous, seq)) if previous == run => {
            let durable = promise.required.range((run, 0)..=(run, u64::MAX)).last();
            let (_, durable) = durable?;
            (seq < *durable).then(|| format!("it knows the run before up to {seq}, not {durable}"))
        }
        Some(_) => None,
    }
}

impl Verdict {
    pub fn failed(promise: &Promise, why: String) -> Verdict {
        let required = promise.required.len() as u64;
        Verdict {
            required,
            lost: required,
            failures: vec![why],
            ..Verdict::default()
        }
    }
}
