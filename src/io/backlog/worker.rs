//! The thread that owns the store: it takes requests in order, makes one commit of the stores that
//! wait, keeps what cannot be done now, opens the store again after a failure, and tells losses.
//!
//! All of sled is called inside `opening::guard`; after any failure the store is dropped and opened
//! anew, and a store that fails twice as damaged is salvaged. `mod.rs` starts and feeds it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use crate::config;
use crate::logic::telemetry::Record;
use crate::logic::{Input, Key, KeyRange};

use super::Counts;
use super::account::Account;
use super::disk::{Fault, Place};
use super::opening::{Opening, discard, guard};
use super::store::{Displaced, Store};

/// Between two attempts to open, at the least.
const RETRY: Duration = Duration::from_secs(2);
/// Between two attempts that nobody asked for, at the most.
const MOST_RETRY: Duration = Duration::from_secs(5);
/// A store that failed so often as damaged is salvaged, even if it opens.
const STRIKES: u32 = 2;
/// Removals that wait for a store; beyond this the oldest are given up, which makes duplicates.
const MOST_FORGETS: usize = 10_000;
/// Between two notes of what could not be stored, at the least, unless the daemon is about to end.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// Records in one commit of several requests, at the most.
const MOST_COMMIT: usize = 4096;
/// The second loss of a run is told this long after the first, and so on, doubled: while records are
/// dropped, each told loss is a record that drops another one.
const TELL: Duration = Duration::from_secs(1);
const MOST_TELL: Duration = Duration::from_secs(600);

/// What the thread is asked.
#[derive(Debug)]
pub(super) enum Request {
    Store {
        records: Vec<Record>,
        command_ids: Vec<String>,
        last_seq: u64,
    },
    Forget(Vec<KeyRange>),
    ForgetLoss(u64),
    Fetch {
        after: Option<Key>,
        limit: usize,
    },
    Close,
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct Worker {
    settings: config::Backlog,
    run: Uuid,
    boot_id: Uuid,
    inputs: UnboundedSender<Input>,
    counts: Arc<Counts>,
    place: Place,
    store: Option<Store>,
    /// The log of a store that is no longer in its place: still to be salvaged.
    displaced: Option<Displaced>,
    /// Records that could not be stored, and when that was last noted beside the store.
    not_stored: Option<(Vec<Record>, Option<Instant>)>,
    /// Why there is no store.
    why: String,
    announced: bool,
    complained: bool,
    strikes: u32,
    tried: Option<Instant>,
    retry: Duration,
    forgets: Vec<KeyRange>,
    told_losses: Vec<u64>,
    fetches: VecDeque<(Option<Key>, usize)>,
    told: BTreeSet<u64>,
    telling: HashMap<Uuid, (Instant, Duration)>,
}

impl Worker {
    pub(super) fn new(
        settings: config::Backlog,
        run: Uuid,
        boot_id: Uuid,
        inputs: UnboundedSender<Input>,
        counts: Arc<Counts>,
    ) -> Worker {
        Worker {
            place: Place::new(&settings.path),
            settings,
            run,
            boot_id,
            inputs,
            counts,
            store: None,
            displaced: None,
            not_stored: None,
            why: String::new(),
            announced: false,
            complained: false,
            strikes: 0,
            tried: None,
            retry: RETRY,
            forgets: Vec::new(),
            told_losses: Vec::new(),
            fetches: VecDeque::new(),
            told: BTreeSet::new(),
            telling: HashMap::new(),
        }
    }

    /// Works until it is asked to close, or nobody can ask any more; whether all is on the disk.
    pub(super) fn run(mut self, queue: &Receiver<Request>) -> bool {
        let mut put_back = None;
        loop {
            self.open_if_due(Instant::now());
            self.catch_up();
            self.tell(Instant::now());
            let request = match put_back.take() {
                Some(request) => Ok(request),
                None => self.wait(queue),
            };
            match request {
                Ok(Request::Store {
                    records,
                    command_ids,
                    last_seq,
                }) => put_back = self.store(records, command_ids, last_seq, queue),
                Ok(Request::Forget(ranges)) => {
                    self.forgets.extend(ranges);
                    let over = self.forgets.len().saturating_sub(MOST_FORGETS);
                    self.forgets.drain(..over);
                    self.counts.done(1);
                }
                Ok(Request::ForgetLoss(id)) => {
                    self.told_losses.push(id);
                    self.counts.done(1);
                }
                Ok(Request::Fetch { after, limit }) => {
                    self.fetches.push_back((after, limit));
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

    /// The next request, or a timeout when the store is to be opened or a loss to be told.
    fn wait(&self, queue: &Receiver<Request>) -> Result<Request, RecvTimeoutError> {
        let due = match (&self.store, self.tried) {
            (None, Some(tried)) => Some(tried + self.retry),
            (None, None) => Some(Instant::now()),
            (Some(_), _) => self.next_tell(),
        };
        match due {
            Some(due) => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// Commits the records together with those of further stores that wait; gives back the request
    /// after them.
    fn store(
        &mut self,
        mut records: Vec<Record>,
        mut ids: Vec<String>,
        mut last_seq: u64,
        queue: &Receiver<Request>,
    ) -> Option<Request> {
        let mut answers = 1;
        let mut next = None;
        while records.len() < MOST_COMMIT {
            match queue.try_recv() {
                Ok(Request::Store {
                    records: more,
                    command_ids,
                    last_seq: later,
                }) => {
                    last_seq = last_seq.max(later);
                    records.extend(more);
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
        let stored = self.commit(&records, &ids, last_seq);
        self.note_not_stored(records, stored.is_err());
        for _ in 0..answers {
            self.send(match &stored {
                Ok(records) => Input::Stored { records: *records },
                Err(why) => Input::StoreFailed(why.clone()),
            });
        }
        self.counts.done(answers);
        next
    }

    fn commit(&mut self, records: &[Record], ids: &[String], last_seq: u64) -> Result<u64, String> {
        if self.tried.is_none_or(|tried| tried.elapsed() >= RETRY) {
            self.open();
        }
        if self.store.is_none() {
            return Err(self.why.clone());
        }
        // Not a failure of the store: it stays open, to be read.
        self.place
            .above_floor()
            .map_err(|fault| fault.why().to_owned())?;
        let commit = |store: &mut Store| {
            store.commit(records, ids, last_seq)?;
            store.place.lay_ballast();
            Ok(store.records())
        };
        let mut stored = self.with_store(commit);
        if self.displaced.is_some() {
            // It went into a file that no restart would find. What that has is salvaged, and then this
            // again, which is not kept twice.
            self.open();
            stored = self.with_store(commit);
        }
        stored.ok_or_else(|| self.why.clone())
    }

    /// Notes beside the store what could not be stored, so that the next run reports it if this one
    /// does not live to store it. Not at each try: the note costs a block.
    fn note_not_stored(&mut self, records: Vec<Record>, failed: bool) {
        let noted = self.not_stored.take().and_then(|(_, noted)| noted);
        if failed {
            let due = noted.is_none_or(|noted| noted.elapsed() >= NOTE_EVERY);
            self.not_stored = Some((records, noted));
            if due {
                self.write_note();
            }
        } else if noted.is_some() {
            // With this the store takes the note away.
            self.with_store(Store::write_account);
        }
    }

    fn write_note(&mut self) {
        let Some((records, noted)) = &mut self.not_stored else {
            return;
        };
        let path = self.place.account();
        let mut account = Account::read(&path);
        account.note_not_stored(records);
        match account.write(&path) {
            Ok(()) => *noted = Some(Instant::now()),
            Err(error) => tracing::warn!(
                "backlog: {} records are in memory only, and if they are lost nobody will know: {error}",
                records.len()
            ),
        }
    }

    /// Does what was asked and could not be done at once.
    fn catch_up(&mut self) {
        if self.store.is_some() && !self.told_losses.is_empty() && self.place.has_room().is_ok() {
            let ids = self.told_losses.clone();
            if self
                .with_store(|store| ids.iter().try_for_each(|id| store.forget_loss(*id)))
                .is_some()
            {
                self.told_losses.clear();
            }
        }
        if self.store.is_some() && !self.forgets.is_empty() && self.place.has_room().is_ok() {
            let ranges = self.forgets.clone();
            let forgotten = self.with_store(|store| {
                let before = store.records();
                store.forget(&ranges)?;
                Ok((before != store.records(), store.records() == 0))
            });
            if let Some((some, empty)) = forgotten {
                self.forgets.clear();
                if some {
                    self.telling.clear();
                }
                if some && empty {
                    self.renew();
                }
            }
        }
        for _ in 0..=STRIKES {
            let Some((after, limit)) = self.fetches.front().copied() else {
                return;
            };
            self.open_if_due(Instant::now());
            if let Some(page) = self.with_store(|store| store.fetch(after, limit)) {
                self.fetches.pop_front();
                self.send(Input::Fetched {
                    records: page.records,
                    end: page.end,
                });
                self.telling.clear();
            }
        }
    }

    fn renew(&mut self) {
        let Some(store) = self.store.take() else {
            return;
        };
        let place = self.place.clone();
        match guard(&place, || self.opening().renew(store)) {
            Ok(store) => self.store = Some(store),
            Err(fault) => self.failed(&fault),
        }
    }

    /// Tells the losses whose time has come.
    fn tell(&mut self, now: Instant) {
        let Some(store) = self.store.as_mut().filter(|store| store.may_tell()) else {
            return;
        };
        let mut due = Vec::new();
        for (id, loss) in &store.losses.all {
            let waits = self.telling.get(&loss.of_run);
            if !self.told.contains(id) && waits.is_none_or(|(at, _)| *at <= now) {
                due.push((*id, loss.clone()));
            }
        }
        let mut runs: Vec<Uuid> = due.iter().map(|(_, loss)| loss.of_run).collect();
        runs.dedup();
        for (id, loss) in due {
            store.losses.close(id);
            self.told.insert(id);
            // The daemon has ended when nobody listens; then there is nothing to tell.
            let _ = self.inputs.send(Input::Lost { id, loss });
        }
        runs.sort_unstable();
        runs.dedup();
        for run in runs {
            let wait = self.telling.get(&run).map_or(TELL, |(_, wait)| *wait * 2);
            let wait = wait.min(MOST_TELL);
            self.telling.insert(run, (now + wait, wait));
        }
    }

    fn next_tell(&self) -> Option<Instant> {
        let store = self.store.as_ref().filter(|store| store.may_tell())?;
        store
            .losses
            .all
            .iter()
            .filter(|(id, _)| !self.told.contains(id))
            .map(|(_, loss)| {
                self.telling
                    .get(&loss.of_run)
                    .map_or_else(Instant::now, |(at, _)| *at)
            })
            .min()
    }

    fn open_if_due(&mut self, now: Instant) {
        if self.tried.is_none_or(|tried| now >= tried + self.retry) {
            self.open();
        }
    }

    fn open(&mut self) {
        if self.store.is_some() {
            return;
        }
        self.tried = Some(Instant::now());
        let suspect = self.strikes >= STRIKES;
        let counts = Arc::clone(&self.counts);
        let place = self.place.clone();
        let opened = guard(&place, || {
            let displaced = self.displaced.as_ref();
            let mut store = self.opening().open(suspect, displaced, &|| counts.bump())?;
            let opened = store.opened()?;
            Ok((store, opened))
        });
        match opened {
            Ok((store, opened)) => {
                if suspect {
                    self.strikes = 0;
                }
                self.retry = RETRY;
                self.displaced = None;
                if !self.announced {
                    self.announced = true;
                    self.send(Input::BacklogOpened(opened));
                }
                self.store = Some(store);
            }
            Err(fault) => {
                self.failed(&fault);
                self.retry = (self.retry * 2).min(MOST_RETRY);
                if !self.complained && !self.announced {
                    self.complained = true;
                    self.send(Input::StoreFailed(self.why.clone()));
                }
            }
        }
    }

    /// Runs something on the store; after a failure there is none any more.
    fn with_store<T>(&mut self, work: impl FnOnce(&mut Store) -> Result<T, Fault>) -> Option<T> {
        let place = self.place.clone();
        let store = self.store.as_mut()?;
        let done = guard(&place, || work(store));
        if !store.is_in_place()
            && let Some(displaced) = store.displaced()
        {
            self.displaced = Some(displaced);
            if let Some(store) = self.store.take() {
                discard(store);
            }
            self.tried = None;
            self.why = format!(
                "the folder of the backlog in {} was deleted, renamed or replaced",
                self.settings.path.display()
            );
            return done.ok();
        }
        match done {
            Ok(done) => Some(done),
            Err(fault) => {
                if let Some(store) = self.store.take() {
                    discard(store);
                }
                // The next attempt to open may be at once.
                self.tried = None;
                self.failed(&fault);
                None
            }
        }
    }

    fn failed(&mut self, fault: &Fault) {
        match fault {
            Fault::Full(_) => self.place.release_ballast(),
            Fault::Damaged(_) => self.strikes += 1,
            Fault::Blocked(_) => {}
        }
        if fault.why() != self.why {
            tracing::warn!("backlog: {}", fault.why());
        }
        fault.why().clone_into(&mut self.why);
    }

    fn close(&mut self) -> bool {
        self.open_if_displaced();
        let closed = match self.store.take() {
            Some(store) => {
                let place = self.place.clone();
                guard(&place, || store.close()).is_ok()
            }
            None => true,
        };
        // Last: a store that is closed writes the account anew.
        self.write_note();
        closed
    }

    fn open_if_displaced(&mut self) {
        if self.displaced.is_some() {
            self.open();
        }
    }

    fn opening(&self) -> Opening<'_> {
        Opening {
            bounds: &self.settings,
            run: self.run,
            boot_id: self.boot_id,
        }
    }

    fn send(&self, input: Input) {
        // The daemon has ended when nobody listens; the records are safe all the same.
        let _ = self.inputs.send(input);
    }
}
