//! Many cuts of one log, and their figures. The tests of `tests/power_cuts.rs` call it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::check::{Verdict, check, open_and_close};
use super::control;
use super::cuts::{Card, Replay, random};
use super::disk::{Logged, Mounted, folder, format};
use super::log::Log;
use super::notes::{Notes, Promise};
use super::tools::run;

/// Failures that are described, and kept as images.
const DESCRIBED: usize = 5;
/// One cut in so many is opened on a logged disk, and that opening is cut, too.
const SECOND: usize = 20;
const SECOND_CUTS: usize = 8;
/// The part of the story in which a store is salvaged.
pub const SALVAGE: &str = "a salvage";

/// What was cut, and what became of it.
#[derive(Debug, Default)]
pub struct Tally {
    /// Cuts in each part of the story.
    pub parts: BTreeMap<&'static str, u64>,
    pub cuts: u64,
    /// Of these, cuts in the middle of opening what an earlier cut had left.
    pub second: u64,
    pub writes: usize,
    /// Writes that the cuts made uncertain, all together.
    pub uncertain: u64,
    pub required: u64,
    pub early: u64,
    pub again: u64,
    pub salvaged: u64,
    /// File systems with a torn superblock.
    pub mended: u64,
    pub told: u64,
    pub lost: u64,
    /// Cuts after which something was lost.
    pub losing: u64,
    pub failed: u64,
    pub failures: Vec<String>,
    pub took: Duration,
}

impl Tally {
    /// Cuts the log of a writer so many times, and looks with `checker` at each disk.
    pub fn cut(
        notes: &Notes,
        base: &Path,
        card: Card,
        count: usize,
        rng: &mut fastrand::Rng,
        checker: Checker,
    ) -> Tally {
        let begun = Instant::now();
        let work = folder();
        let image = work.path().join("image");
        let entries = notes.log().entries.len();
        let given_up = notes.given_up();
        let mut tally = Tally {
            writes: entries,
            ..Tally::default()
        };
        let mut replay = Replay::new(notes.log(), base, card);
        for (n, cut) in random(rng, notes.log(), count).into_iter().enumerate() {
            tally.uncertain += replay.image(cut, &image) as u64;
            let promise = notes.promise(cut.at);
            if checker == Checker::Store && n % SECOND == SECOND - 1 && card == Card::Honest {
                let part = "opening after a cut";
                tally.cut_opening(&image, part, SECOND_CUTS, &promise, &given_up, rng);
                tally.uncertain += replay.image(cut, &image) as u64;
            }
            let kept = work.path().join("kept");
            copy(&image, &kept);
            let verdict = checker.look(&image, work.path(), &promise, &given_up);
            tally.add(&format!("{cut:?}"), promise.part, verdict, &kept);
        }
        tally.took = begun.elapsed();
        tally
    }

    /// Cuts the opening of an image so many times.
    pub fn cut_opening(
        &mut self,
        image: &Path,
        part: &'static str,
        cuts: usize,
        promise: &Promise,
        given_up: &BTreeSet<Uuid>,
        rng: &mut fastrand::Rng,
    ) {
        let folder = folder();
        let work = folder.path();
        let base = work.join("base");
        copy(image, &base);
        let disk = Logged::start(&base);
        let opened = open_and_close(&disk.mounted(), Uuid::from_u128(rng.u128(..)));
        let ended = disk.finish();
        if let Err(why) = opened {
            let verdict = Verdict::failed(promise, format!("it cannot be opened: {why}"));
            self.add("an opening", promise.part, verdict, &base);
            return;
        }
        let mut log = Log::open(&ended.log());
        log.verify(&ended.log());
        self.writes += log.entries.len();
        let mut replay = Replay::new(&log, &base, Card::Honest);
        let second = work.join("second");
        for cut in random(rng, &log, cuts) {
            self.uncertain += replay.image(cut, &second) as u64;
            let kept = work.join("kept");
            copy(&second, &kept);
            let mut verdict = Checker::Store.look(&second, work, promise, given_up);
            // The run that was being opened is not the writer's.
            verdict
                .failures
                .retain(|why| !why.contains("the run before"));
            self.second += 1;
            if part == SALVAGE {
                // Asked for, and not worth an image.
                self.salvaged += u64::from(std::mem::take(&mut verdict.salvaged));
            }
            self.add(&format!("second {cut:?}"), part, verdict, &kept);
        }
    }

    pub fn add(&mut self, cut: &str, part: &'static str, verdict: Verdict, image: &Path) {
        self.cuts += 1;
        *self.parts.entry(part).or_default() += 1;
        self.required += verdict.required;
        self.early += verdict.early;
        self.again += verdict.again;
        self.mended += u64::from(verdict.mended);
        self.told += verdict.told;
        self.lost += verdict.lost;
        self.losing += u64::from(verdict.lost > 0);
        self.salvaged += u64::from(verdict.salvaged);
        if verdict.failures.is_empty() && !verdict.salvaged {
            return;
        }
        self.failed += u64::from(!verdict.failures.is_empty());
        if self.failures.len() < DESCRIBED {
            let kept = keep(image);
            let mut why = verdict.failures.join("; ");
            if verdict.salvaged {
                why.push_str(" (salvaged)");
            }
            let why: String = why.chars().take(2_000).collect();
            self.failures
                .push(format!("{part}, {cut}: {why} (image: {})", kept.display()));
        }
    }

    /// Adds the figures of another story.
    pub fn join(&mut self, other: Tally) {
        for (part, count) in other.parts {
            *self.parts.entry(part).or_default() += count;
        }
        self.cuts += other.cuts;
        self.second += other.second;
        self.writes += other.writes;
        self.uncertain += other.uncertain;
        self.required += other.required;
        self.early += other.early;
        self.again += other.again;
        self.salvaged += other.salvaged;
        self.mended += other.mended;
        self.told += other.told;
        self.lost += other.lost;
        self.losing += other.losing;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.took += other.took;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |what: &str, count: u64| writeln!(f, "  {what:<44} {count:>12}");
        line("cuts", self.cuts)?;
        for (part, count) in &self.parts {
            line(&format!("  in {part}"), *count)?;
        }
        line("writes and flushes in the log", self.writes as u64)?;
        line("writes that the cuts made uncertain", self.uncertain)?;
        line("records called durable, all cuts", self.required)?;
        line("  lost", self.lost)?;
        line("  given up, and told (no room)", self.told)?;
        line("cuts that lost something", self.losing)?;
        line("records found though not yet called durable", self.early)?;
        line("records found though forgotten (duplicates)", self.again)?;
        line("stores that had to be salvaged", self.salvaged)?;
        line("file systems mended by e2fsck first", self.mended)?;
        line("cuts with a failure of any kind", self.failed)?;
        line("seconds of work", self.took.as_secs())?;
        for failure in &self.failures {
            writeln!(f, "  {failure}")?;
        }
        Ok(())
    }
}

/// An empty disk.
pub fn empty_disk(folder: &Path) -> PathBuf {
    let base = folder.join("base");
    format(&base);
    base
}

/// Who looks at a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checker {
    /// The real store.
    Store,
    /// Sled without the store.
    Sled,
}

impl Checker {
    fn look(
        self,
        image: &Path,
        work: &Path,
        promise: &Promise,
        given_up: &BTreeSet<Uuid>,
    ) -> Verdict {
        let disk = match Mounted::new(image, &work.join("mounted")) {
            Ok(disk) => disk,
            Err(why) => return Verdict::failed(promise, why),
        };
        let mut verdict = match self {
            Checker::Store => check(disk.path(), promise, given_up),
            Checker::Sled => control::check(disk.path(), promise),
        };
        verdict.mended = disk.mended;
        match disk.end() {
            Ok(()) => verdict,
            Err(why) => Verdict::failed(promise, why),
        }
    }
}

fn keep(image: &Path) -> PathBuf {
    static KEPT: AtomicUsize = AtomicUsize::new(0);
    let n = KEPT.fetch_add(1, Ordering::Relaxed);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("power-cut-{n}.img"));
    copy(image, &kept);
    kept
}

/// With its holes.
fn copy(from: &Path, to: &Path) {
    let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
    run("cp", &["--sparse=always", &from, &to]).expect("a copy");
}
