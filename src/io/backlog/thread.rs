//! The thread that owns the store: it takes requests in order, keeps what cannot be done now, and sees to it
//! that there is a store when one is wanted (`life`).

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use crate::config;
use crate::logic::counters::StoreLosses;
use crate::logic::{Entry, Input, Key, KeyRange};

use super::Counts;
use super::dir::Fault;
use super::entries::Page;
use super::life::{Life, MAX_FAILURES};
use super::store::Store;

/// Between two attempts to open, at the least.
const RETRY: Duration = Duration::from_secs(2);
/// Between two attempts that nobody asked for, at the most.
const MAX_RETRY: Duration = Duration::from_secs(5);
/// Discards that wait for a store; beyond this the oldest are given up, which makes duplicates.
const MAX_DISCARDS: usize = 10_000;
/// Between two notes of what could not be stored, at the least, unless the daemon is about to end.
const NOTE_EVERY: Duration = Duration::from_secs(10);
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
    life: Life,
    inputs: UnboundedSender<Input>,
    counts: Arc<Counts>,
    /// When opening was last tried, and how long after that it is tried again.
    tried: Option<Instant>,
    retry: Duration,
    complained: bool,
    /// Since when the store has been drained.
    drained: Option<Instant>,
    /// Entries that could not be stored, and when that was last noted.
    not_stored: Option<(Vec<Entry>, Option<Instant>)>,
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
            life: Life::new(settings, run, boot_id),
            inputs,
            counts,
            tried: None,
            retry: RETRY,
            complained: false,
            drained: None,
            not_stored: None,
            discards: Vec::new(),
            reads: VecDeque::new(),
        }
    }

    /// Works until it is asked to close, or nobody can ask any more; whether all is on the disk.
    pub(super) fn run(mut self, queue: &Receiver<Request>) -> bool {
        loop {
            self.open_after(self.retry);
            self.catch_up();
            if !self.life.wants_store() {
                self.counts.weigh(self.life.bytes());
            }
            match self.wait(queue) {
                Ok(Request::Append {
                    entries,
                    command_ids,
                    last_seq,
                }) => self.append(entries, &command_ids, last_seq),
                Ok(Request::Discard(ranges)) => {
                    self.discards.extend(ranges);
                    let over = self.discards.len().saturating_sub(MAX_DISCARDS);
                    self.discards.drain(..over);
                }
                Ok(Request::ReadAfter { after, limit }) => self.reads.push_back((after, limit)),
                Ok(Request::Close) => {
                    self.catch_up();
                    let clean = self.close();
                    self.counts.done(1);
                    return clean;
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.counts.bump();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return self.close(),
            }
            self.counts.done(1);
        }
    }

    /// The next request, or a timeout when the store is to be opened or removed.
    fn wait(&self, queue: &Receiver<Request>) -> Result<Request, RecvTimeoutError> {
        let retry_at = |tried| tried + self.retry;
        let due = match self.life.wants_store() {
            true => Some(self.tried.map_or_else(Instant::now, retry_at)),
            false => self.drained.map(|since| since + LINGER),
        };
        match due {
            Some(due) => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn append(&mut self, entries: Vec<Entry>, ids: &[String], last_seq: u64) {
        let stored = self.commit(&entries, ids, last_seq);
        self.note_not_stored(entries, stored.is_err());
        self.send(stored.unwrap_or_else(Input::StoreFailed));
    }

    fn commit(
        &mut self,
        entries: &[Entry],
        ids: &[String],
        last_seq: u64,
    ) -> Result<Input, String> {
        let told = |fault: Fault| fault.why().to_owned();
        self.open_after(RETRY);
        if self.life.wants_store() {
            return Err(self.life.why());
        }
        self.life.checkpoint.remember(ids);
        let is_new = !self.life.has_store();
        if is_new && entries.is_empty() {
            // Nothing to put into a store: none is made for it.
            self.life.remember_last(last_seq).map_err(told)?;
            return Ok(Input::Stored {
                records: 0,
                lost: StoreLosses::default(),
            });
        }
        // Not a failure of the store: it stays open, to be read.
        self.life.dir.above_floor().map_err(told)?;
        if is_new {
            self.open(true);
        }
        let append = |store: &mut Store| {
            store.append(entries, last_seq)?;
            store.dir.lay_ballast();
            let stored = Input::Stored {
                records: store.waiting(),
                lost: mem::take(&mut store.lost),
            };
            Ok((stored, mem::take(&mut store.checkpoint_due)))
        };
        let mut stored = self.with_store(append);
        if self.life.is_displaced() {
            // It went into a file that no restart would find. What that has is salvaged, and then this
            // again, which is not kept twice.
            self.open_after(Duration::ZERO);
            stored = self.with_store(append);
        }
        let (stored, due) = stored.ok_or_else(|| self.life.why())?;
        if due || is_new || !ids.is_empty() {
            self.life.write_checkpoint().map_err(told)?;
        }
        Ok(stored)
    }

    /// Sees to it that the next run knows what could not be stored. Not at each try: the note costs a block.
    fn note_not_stored(&mut self, entries: Vec<Entry>, failed: bool) {
        let noted = self.not_stored.take().and_then(|(_, noted)| noted);
        if failed {
            self.not_stored = Some((entries, noted));
            if noted.is_none_or(|noted| noted.elapsed() >= NOTE_EVERY) {
                self.write_note();
            }
        } else if noted.is_some() {
            self.life.take_note_back();
        }
    }

    fn write_note(&mut self) {
        if let Some((entries, noted)) = &mut self.not_stored
            && self.life.note_not_stored(entries)
        {
            *noted = Some(Instant::now());
        }
    }

    /// Does what was asked and could not be done at once.
    fn catch_up(&mut self) {
        if !self.discards.is_empty() && self.life.dir.has_room().is_ok() {
            let ranges = mem::take(&mut self.discards);
            let done = self.with_store(|store| store.discard(&ranges));
            if done.is_none() && self.life.wants_store() {
                self.discards = ranges;
            }
        }
        for _ in 0..=MAX_FAILURES {
            let Some((after, limit)) = self.reads.front().copied() else {
                break;
            };
            self.open_after(self.retry);
            let page = match self.life.has_store() || self.life.wants_store() {
                true => self.with_store(|store| store.read_after(after, limit)),
                false => Some(Page::at_end()),
            };
            if let Some(Page { entries, end }) = page {
                self.reads.pop_front();
                self.send(Input::Fetched { entries, end });
            }
        }
        self.drained = match self.life.is_drained() {
            true => Some(self.drained.unwrap_or_else(Instant::now)),
            false => None,
        };
        if self.drained.is_some_and(|since| since.elapsed() >= LINGER) {
            self.drained = None;
            self.life.remove_drained();
        }
    }

    /// Opens what is to be open, if that was not tried for so long.
    fn open_after(&mut self, pause: Duration) {
        if self.life.wants_store() && self.tried.is_none_or(|tried| tried.elapsed() >= pause) {
            self.open(false);
        }
    }

    fn open(&mut self, make: bool) {
        self.tried = Some(Instant::now());
        let counts = Arc::clone(&self.counts);
        match self.life.open(make, &|| counts.bump()) {
            Ok(opened) => {
                self.retry = RETRY;
                if let Some(opened) = opened {
                    self.send(Input::BacklogOpened(opened));
                }
            }
            Err(fault) => {
                self.retry = (self.retry * 2).min(MAX_RETRY);
                if !self.complained && !self.life.is_known() {
                    self.complained = true;
                    self.send(Input::StoreFailed(fault.why().to_owned()));
                }
            }
        }
    }

    /// Runs something on the store. After a failure there is none, and it may be opened again at once.
    fn with_store<T>(&mut self, work: impl FnOnce(&mut Store) -> Result<T, Fault>) -> Option<T> {
        let had_store = self.life.has_store();
        let done = self.life.with_store(work);
        if had_store && !self.life.has_store() {
            self.tried = None;
        }
        done
    }

    fn close(&mut self) -> bool {
        if self.life.is_displaced() {
            self.open_after(Duration::ZERO);
        }
        let clean = self.life.close();
        self.write_note();
        clean
    }

    fn send(&self, input: Input) {
        // The daemon has ended when nobody listens; the records are safe all the same.
        let _ = self.inputs.send(input);
    }
}
