//! The thread that owns the store: it takes requests in order, makes one commit of the appends that
//! wait, keeps what cannot be done now, and opens the store again after a failure.
//!
//! A store is open only while there is something in it or to put in: it is made at the first append, and
//! removed when it has been drained for a while. All of sled is called inside `tree::guard`; after any
//! failure the store is dropped and opened again, and one that fails twice as damaged is salvaged.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use crate::config;
use crate::logic::{Entry, Input, Key, KeyRange, Opened};

use super::Counts;
use super::checkpoint::Checkpoint;
use super::dir::{Fault, StoreDir};
use super::entries::Page;
use super::opening::Opening;
use super::run::Run;
use super::store::Store;
use super::tree::{drop_failed, guard};

/// Between two attempts to open, at the least.
const RETRY: Duration = Duration::from_secs(2);
/// Between two attempts that nobody asked for, at the most.
const MAX_RETRY: Duration = Duration::from_secs(5);
/// A store that failed so often as damaged is salvaged, even if it opens.
const MAX_FAILURES: u32 = 2;
/// Discards that wait for a store; beyond this the oldest are given up, which makes duplicates.
const MAX_DISCARDS: usize = 10_000;
/// Between two notes of what could not be stored, at the least, unless the daemon is about to end.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// Entries in one commit of several requests, at the most.
const MAX_COMMIT: usize = 4096;
/// A drained store is removed after so long: with a server that is slow to confirm, or a link that flaps,
/// the next record may come soon, and a new store costs more than a record in an old one.
const LINGER: Duration = Duration::from_secs(20);

/// What the thread is asked.
#[derive(Debug)]
pub(super) enum Request {
    Append {
        entries: Vec<Entry>,
        command_ids: Vec<String>,
        last_seq: u64,
    },
    Discard(Vec<KeyRange>),
    ReadAfter {
        after: Option<Key>,
        limit: usize,
    },
    Close,
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct StoreThread {
    settings: config::Backlog,
    run: Uuid,
    boot_id: Uuid,
    inputs: UnboundedSender<Input>,
    counts: Arc<Counts>,
    dir: StoreDir,
    checkpoint: Checkpoint,
    /// The number of this run, once the backlog is open.
    current: Option<u64>,
    store: Option<Store>,
    /// The log of a store that is no longer in its place: still to be salvaged.
    displaced: Option<File>,
    /// Entries that could not be stored, and when that was last noted.
    not_stored: Option<(Vec<Entry>, Option<Instant>)>,
    /// Since when the store has been drained.
    drained: Option<Instant>,
    /// Why there is no store.
    why: String,
    complained: bool,
    failures: u32,
    tried: Option<Instant>,
    retry: Duration,
    discards: Vec<KeyRange>,
    reads: VecDeque<(Option<Key>, usize)>,
}

impl StoreThread {
    pub(super) fn new(
        settings: config::Backlog,
        run: Uuid,
        boot_id: Uuid,
        inputs: UnboundedSender<Input>,
        counts: Arc<Counts>,
    ) -> StoreThread {
        StoreThread {
            dir: StoreDir::new(&settings.path),
            settings,
            run,
            boot_id,
            inputs,
            counts,
            checkpoint: Checkpoint::default(),
            current: None,
            store: None,
            displaced: None,
            not_stored: None,
            drained: None,
            why: String::new(),
            complained: false,
            failures: 0,
            tried: None,
            retry: RETRY,
            discards: Vec::new(),
            reads: VecDeque::new(),
        }
    }

    /// Works until it is asked to close, or nobody can ask any more; whether all is on the disk.
    pub(super) fn run(mut self, queue: &Receiver<Request>) -> bool {
        let mut put_back = None;
        loop {
            self.open_if_due();
            self.catch_up();
            let request = match put_back.take() {
                Some(request) => Ok(request),
                None => self.wait(queue),
            };
            match request {
                Ok(Request::Append {
                    entries,
                    command_ids,
                    last_seq,
                }) => put_back = self.append(entries, command_ids, last_seq, queue),
                Ok(Request::Discard(ranges)) => {
                    self.discards.extend(ranges);
                    let over = self.discards.len().saturating_sub(MAX_DISCARDS);
                    self.discards.drain(..over);
                    self.counts.done(1);
                }
                Ok(Request::ReadAfter { after, limit }) => {
                    self.reads.push_back((after, limit));
                    self.counts.done(1);
                }
                Ok(Request::Close) => {
                    self.catch_up();
                    let clean = self.close();
                    self.counts.done(1);
                    return clean;
                }
                Err(RecvTimeoutError::Timeout) => self.counts.bump(),
                Err(RecvTimeoutError::Disconnected) => return self.close(),
            }
        }
    }

    /// The next request, or a timeout when the store is to be opened or removed.
    fn wait(&self, queue: &Receiver<Request>) -> Result<Request, RecvTimeoutError> {
        let due = match self.wants_store() {
            true => Some(
                self.tried
                    .map_or_else(Instant::now, |tried| tried + self.retry),
            ),
            false => self.drained.map(|since| since + LINGER),
        };
        match due {
            Some(due) => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// Whether there is no store and should be one, or it is not known.
    fn wants_store(&self) -> bool {
        self.store.is_none()
            && (self.current.is_none() || self.checkpoint.holds || self.displaced.is_some())
    }

    /// Appends the entries together with those of further requests that wait; gives back the request
    /// after them.
    fn append(
        &mut self,
        mut entries: Vec<Entry>,
        mut ids: Vec<String>,
        mut last_seq: u64,
        queue: &Receiver<Request>,
    ) -> Option<Request> {
        let mut answers = 1;
        let mut next = None;
        while entries.len() < MAX_COMMIT {
            match queue.try_recv() {
                Ok(Request::Append {
                    entries: more,
                    command_ids,
                    last_seq: later,
                }) => {
                    last_seq = last_seq.max(later);
                    entries.extend(more);
                    ids.extend(command_ids);
                    answers += 1;
                }
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let stored = self.commit(&entries, &ids, last_seq);
        self.note_not_stored(entries, stored.is_err());
        let mut lost = self.store.as_mut().map_or(0, Store::take_lost);
        for _ in 0..answers {
            self.send(match &stored {
                Ok(records) => Input::Stored {
                    records: *records,
                    lost: std::mem::take(&mut lost),
                },
                Err(why) => Input::StoreFailed(why.clone()),
            });
        }
        self.counts.done(answers);
        next
    }

    fn commit(&mut self, entries: &[Entry], ids: &[String], last_seq: u64) -> Result<u64, String> {
        if self.tried.is_none_or(|tried| tried.elapsed() >= RETRY) {
            self.open_wanted();
        }
        if self.wants_store() {
            return Err(self.why.clone());
        }
        self.checkpoint.remember(ids);
        if self.store.is_none() && entries.is_empty() {
            // Nothing to put into a store: none is made for it.
            if let Some(run) = self.current.and_then(|n| self.checkpoint.runs.get_mut(&n)) {
                run.last = run.last.max(last_seq);
            }
            return self
                .write_checkpoint()
                .map(|()| 0)
                .map_err(|fault| fault.why().to_owned());
        }
        // Not a failure of the store: it stays open, to be read.
        self.dir
            .above_floor()
            .map_err(|fault| fault.why().to_owned())?;
        let is_new = self.store.is_none();
        if is_new {
            self.try_open(true);
        }
        let append = |store: &mut Store| {
            store.append(entries, last_seq)?;
            store.dir.lay_ballast();
            Ok(store.waiting())
        };
        let mut stored = self.with_store(append);
        if self.displaced.is_some() {
            // It went into a file that no restart would find. What that has is salvaged, and then this
            // again, which is not kept twice.
            self.open_wanted();
            stored = self.with_store(append);
        }
        let stored = stored.ok_or_else(|| self.why.clone())?;
        let due = |store: &mut Store| std::mem::take(&mut store.checkpoint_due);
        let due = self.store.as_mut().is_some_and(due);
        if due || is_new || !ids.is_empty() {
            self.write_checkpoint()
                .map_err(|fault| fault.why().to_owned())?;
        }
        Ok(stored)
    }

    /// Notes in the checkpoint what could not be stored, so that the next run reports it if this one does
    /// not live to store it. Not at each try: the note costs a block.
    fn note_not_stored(&mut self, entries: Vec<Entry>, failed: bool) {
        let noted = self.not_stored.take().and_then(|(_, noted)| noted);
        if failed {
            let due = noted.is_none_or(|noted| noted.elapsed() >= NOTE_EVERY);
            self.not_stored = Some((entries, noted));
            if due {
                self.write_note();
            }
        } else if noted.is_some() {
            self.checkpoint.note_not_stored(self.run, &[]);
            if let Err(fault) = self.write_checkpoint() {
                self.failed(&fault);
            }
        }
    }

    fn write_note(&mut self) {
        let Some((entries, noted)) = &mut self.not_stored else {
            return;
        };
        if self.current.is_none() {
            // Of a backlog that could not be opened at all.
            self.checkpoint = Checkpoint::read(&self.dir.checkpoint());
        }
        let number = self.checkpoint.number(self.run);
        let run = Run::new(self.run, self.boot_id);
        self.checkpoint.runs.entry(number).or_insert(run);
        self.checkpoint.note_not_stored(self.run, entries);
        match self.checkpoint.write(&self.dir.checkpoint()) {
            Ok(()) => *noted = Some(Instant::now()),
            Err(error) => tracing::warn!(
                "backlog: {} records are in memory only, and if they are lost nobody will know: {error}",
                entries.len()
            ),
        }
    }

    /// Does what was asked and could not be done at once.
    fn catch_up(&mut self) {
        if !self.discards.is_empty() && self.dir.has_room().is_ok() {
            let ranges = self.discards.clone();
            let done = self.with_store(|store| store.discard(&ranges));
            if done.is_some() || !self.wants_store() {
                self.discards.clear();
            }
        }
        for _ in 0..=MAX_FAILURES {
            let Some((after, limit)) = self.reads.front().copied() else {
                break;
            };
            self.open_if_due();
            let page = match self.wants_store() || self.store.is_some() {
                true => self.with_store(|store| store.read_after(after, limit)),
                false => Some(Page {
                    entries: Vec::new(),
                    end: true,
                }),
            };
            if let Some(Page { entries, end }) = page {
                self.reads.pop_front();
                self.send(Input::Fetched { entries, end });
            }
        }
        match self.store.as_ref().is_some_and(Store::is_empty) {
            false => self.drained = None,
            true if self.drained.is_none_or(|since| since.elapsed() < LINGER) => {
                self.drained.get_or_insert_with(Instant::now);
            }
            true => self.remove_drained(),
        }
    }

    /// Removes the store: nothing is in it. The next outage begins with a new one.
    fn remove_drained(&mut self) {
        self.drained = None;
        let Some(store) = self.store.take() else {
            return;
        };
        self.checkpoint.generation = store.generation;
        self.checkpoint.runs = store.runs.clone();
        drop_failed(store);
        self.checkpoint.holds = false;
        self.checkpoint.least = 0;
        // In this order: a store that the checkpoint misses would be reported as lost.
        let removed = self
            .write_checkpoint()
            .and_then(|()| self.dir.remove_store());
        if let Err(fault) = removed {
            self.checkpoint.holds = true;
            self.failed(&fault);
        }
    }

    fn open_if_due(&mut self) {
        if self.tried.is_none_or(|tried| tried.elapsed() >= self.retry) {
            self.open_wanted();
        }
    }

    /// Opens what is to be open: the backlog, and its store if that holds something.
    fn open_wanted(&mut self) {
        if self.wants_store() {
            self.try_open(false);
        }
    }

    fn try_open(&mut self, make: bool) {
        self.tried = Some(Instant::now());
        let suspect = self.failures >= MAX_FAILURES;
        let counts = Arc::clone(&self.counts);
        let dir = self.dir.clone();
        let opened = guard(&dir, || self.open(make, &|| counts.bump()));
        match opened {
            Ok(opened) => {
                if suspect {
                    self.failures = 0;
                }
                self.retry = RETRY;
                self.displaced = None;
                if let Some(opened) = opened {
                    self.send(Input::BacklogOpened(opened));
                }
            }
            Err(fault) => {
                self.failed(&fault);
                self.retry = (self.retry * 2).min(MAX_RETRY);
                if !self.complained && self.current.is_none() {
                    self.complained = true;
                    self.send(Input::StoreFailed(self.why.clone()));
                }
            }
        }
    }

    /// Opens the store if it may hold something, or is to be made. Gives what the daemon is told, when that
    /// is new.
    fn open(&mut self, make: bool, progress: &dyn Fn()) -> Result<Option<Opened>, Fault> {
        self.dir.prepare()?;
        // What is in memory knows more, and the file may be gone with its folder.
        let mut checkpoint = match self.current {
            Some(_) => self.checkpoint.clone(),
            None => Checkpoint::read(&self.dir.checkpoint()),
        };
        let mut current = checkpoint.number(self.run);
        let notes: Vec<_> = checkpoint
            .not_stored
            .iter()
            .filter(|loss| loss.of_run != self.run)
            .cloned()
            .collect();
        let there = self.dir.store().symlink_metadata().is_ok();
        let needed = make || there || checkpoint.holds || !notes.is_empty();
        let mut oldest_ms = None;
        if needed || self.displaced.is_some() {
            let opening = Opening {
                dir: &self.dir,
                bounds: &self.settings,
                checkpoint: &checkpoint,
                run: (self.run, self.boot_id),
                suspect: self.failures >= MAX_FAILURES,
                displaced: self.displaced.as_ref(),
            };
            let mut store = opening.open(progress)?;
            if self.current.is_none() {
                for note in &notes {
                    match store.number_of(note.of_run) {
                        Some(number) => store.put_gap(number, note.clone())?,
                        None => tracing::warn!("backlog: a loss of an unknown run: {note:?}"),
                    }
                }
                checkpoint.not_stored.retain(|loss| loss.of_run == self.run);
                let oldest = store.read_after(None, 1)?.entries.into_iter();
                oldest_ms = oldest.filter_map(|(_, entry)| entry.wall_ms()).next();
                store.read_to = None;
            }
            checkpoint.holds = true;
            current = store.current;
            self.store = Some(store);
        }
        let run = Run::new(self.run, self.boot_id);
        checkpoint.runs.entry(current).or_insert(run);
        self.checkpoint = checkpoint;
        let is_new = self.current.is_none();
        self.current = Some(current);
        let written = self.write_checkpoint();
        if let (Err(fault), true) = (written, is_new) {
            self.current = None;
            if let Some(store) = self.store.take() {
                drop_failed(store);
            }
            return Err(fault);
        }
        Ok(is_new.then(|| self.opened(current, oldest_ms)))
    }

    fn opened(&self, current: u64, oldest_ms: Option<i64>) -> Opened {
        let runs = match &self.store {
            Some(store) => &store.runs,
            None => &self.checkpoint.runs,
        };
        Opened {
            oldest_ms,
            run_number: current,
            previous: runs
                .range(..current)
                .next_back()
                .map(|(_, run)| (run.run, run.high.max(run.last))),
            records: self.store.as_ref().map_or(0, Store::waiting),
            clocks: runs
                .values()
                .filter_map(|run| Some((run.boot, run.offset_ms?)))
                .collect(),
            command_ids: self.checkpoint.commands.iter().cloned().collect(),
        }
    }

    /// Runs something on the store; after a failure there is none any more.
    fn with_store<T>(&mut self, work: impl FnOnce(&mut Store) -> Result<T, Fault>) -> Option<T> {
        let dir = self.dir.clone();
        let store = self.store.as_mut()?;
        let done = guard(&dir, || work(store));
        if !store.tree.is_in_place()
            && let Some(log) = store.tree.log()
        {
            self.displaced = Some(log);
            self.drop_store(done.is_ok());
            self.why = format!(
                "the folder of the backlog in {} was deleted, renamed or replaced",
                self.settings.path.display()
            );
            return done.ok();
        }
        match done {
            Ok(done) => Some(done),
            Err(fault) => {
                self.drop_store(false);
                self.failed(&fault);
                None
            }
        }
    }

    /// The next attempt to open may be at once. After a failure, memory may be ahead of the disk.
    fn drop_store(&mut self, is_true: bool) {
        if let Some(store) = self.store.take() {
            self.checkpoint.generation = self.checkpoint.generation.max(store.generation);
            if is_true {
                self.checkpoint.runs.clone_from(&store.runs);
            }
            drop_failed(store);
        }
        self.tried = None;
    }

    fn failed(&mut self, fault: &Fault) {
        match fault {
            Fault::Full(_) => self.dir.release_ballast(),
            Fault::Damaged(_) => self.failures += 1,
            Fault::Blocked(_) => {}
        }
        if fault.why() != self.why {
            tracing::warn!("backlog: {}", fault.why());
        }
        fault.why().clone_into(&mut self.why);
    }

    /// Writes the checkpoint; only after a commit, so that it never says more than the disk holds.
    fn write_checkpoint(&mut self) -> Result<(), Fault> {
        if let Some(store) = &self.store {
            self.checkpoint.runs.clone_from(&store.runs);
            self.checkpoint.generation = store.generation;
            self.checkpoint.least = store.generation;
        }
        if let Some(current) = self.current {
            self.checkpoint.drop_done_runs(current);
        }
        if !self.dir.path().is_dir() {
            self.dir.prepare()?;
        }
        self.checkpoint
            .write(&self.dir.checkpoint())
            .map_err(|error| self.dir.fault(&error))
    }

    fn close(&mut self) -> bool {
        if self.displaced.is_some() {
            self.open_wanted();
        }
        let mut clean = true;
        if self.store.as_ref().is_some_and(Store::is_empty) {
            self.remove_drained();
        } else if self.store.is_some() {
            clean = self.with_store(Store::sync).is_some() && self.write_checkpoint().is_ok();
        }
        if self.not_stored.is_some() {
            self.write_note();
        }
        let dir = self.dir.clone();
        let store = self.store.take();
        clean
            && guard(&dir, || {
                drop(store);
                Ok(())
            })
            .is_ok()
    }

    fn send(&self, input: Input) {
        // The daemon has ended when nobody listens; the records are safe all the same.
        let _ = self.inputs.send(input);
    }
}
