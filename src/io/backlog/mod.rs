//! The backlog: records on disk that are not yet confirmed, so that they outlive an outage, a crash
//! and a power cut. This file is the handle; the store has a thread of its own (`worker`), because a
//! card can take seconds for a write, and because sled may panic or hang where something is damaged.
//!
//! Nothing here decides what is stored or forgotten: the daemon carries out `logic::Output::Store`,
//! `Forget`, `ForgetLoss` and `Fetch` with this, and hands the answers to the controller.
//!
//! Reading order: `format` (bytes), `keys`, `ledger` (what the store knows of itself), `store`
//! (commit, seal, sync), `pages` (fetch, forget), `room` (bounds), `disk`, `account`, `salvage`,
//! `opening`, `worker`. `lock` lets one daemon in; `inspect` is for people with a stopped daemon.

mod account;
mod disk;
mod format;
pub mod inspect;
mod keys;
mod ledger;
pub mod lock;
mod opening;
mod pages;
mod room;
mod salvage;
mod store;
mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use crate::config;
use crate::logic::telemetry::Record;
use crate::logic::{Input, Key, KeyRange};

use worker::{Request, Worker};

/// The backlog's thread, seen from outside. Every method returns at once, except `close`.
#[derive(Debug)]
pub struct Backlog {
    requests: mpsc::Sender<Request>,
    ended: mpsc::Receiver<bool>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
    moved: Moved,
    inputs: UnboundedSender<Input>,
}

/// What the thread counts for the watchdog.
#[derive(Debug, Default)]
struct Counts {
    progress: AtomicU64,
    waiting: AtomicU64,
}

impl Backlog {
    /// Starts the thread, which opens the store in the folder `settings.path` (made when missing) and
    /// answers with `Input::BacklogOpened`. As long as it cannot be opened for a reason that must
    /// pass by itself or by a person's hand (full disk, lock, rights), it is tried again every 2 s to
    /// 5 s; the first failure is told by one `Input::StoreFailed` that nobody asked for.
    pub fn open(
        settings: &config::Backlog,
        run: Uuid,
        boot_id: Uuid,
        inputs: UnboundedSender<Input>,
    ) -> Backlog {
        let (requests, queue) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let worker = Worker::new(
            settings.clone(),
            run,
            boot_id,
            inputs.clone(),
            Arc::clone(&counts),
        );
        let thread = thread::Builder::new()
            .name("backlog".to_owned())
            .spawn(move || {
                let clean = worker.run(&queue);
                // Nobody may be waiting any more.
                let _ = end.send(clean);
            });
        if let Err(error) = &thread {
            let _ = inputs.send(Input::StoreFailed(format!(
                "the backlog has no thread: {error}"
            )));
        }
        Backlog {
            requests,
            ended,
            thread: thread.ok(),
            counts,
            moved: Moved::default(),
            inputs,
        }
    }

    /// Puts records of this run and ids of commands on the disk, synced, and that the run has given
    /// numbers up to `last_seq`. Each call is answered by one
    /// `Input::Stored` or `Input::StoreFailed`, in the order of the calls.
    pub fn store(&self, records: Vec<Record>, command_ids: Vec<String>, last_seq: u64) {
        if !self.ask(Request::Store {
            records,
            command_ids,
            last_seq,
        }) {
            let why = "the backlog's thread has ended; restart nightlight".to_owned();
            let _ = self.inputs.send(Input::StoreFailed(why));
        }
    }

    /// Removes confirmed records. Not answered; when it cannot be done now it is done later.
    pub fn forget(&self, ranges: Vec<KeyRange>) {
        self.ask(Request::Forget(ranges));
    }

    /// Notes that a loss has been told. Not answered.
    pub fn forget_loss(&self, id: u64) {
        self.ask(Request::ForgetLoss(id));
    }

    /// Reads about `limit` records after `after`. Answered by one `Input::Fetched`: while there is no
    /// store, not before there is one.
    pub fn fetch(&self, after: Option<Key>, limit: usize) {
        self.ask(Request::Fetch { after, limit });
    }

    /// Does what was asked, syncs, and ends the thread; `false` when that failed or took longer than
    /// `within` (the thread then goes on by itself, until the process ends).
    pub fn close(mut self, within: Duration) -> bool {
        let asked = self.ask(Request::Close);
        let clean = asked && self.ended.recv_timeout(within) == Ok(true);
        if clean && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        clean
    }

    /// For how long the thread has had work and has not moved, as far as the calls of this have seen;
    /// zero for one that has nothing to do.
    pub fn hangs_for(&mut self, now: Instant) -> Duration {
        let progress = self.counts.progress.load(Ordering::Relaxed);
        let waiting = self.counts.waiting.load(Ordering::Relaxed);
        self.moved.hangs_for(progress, waiting, now)
    }

    fn ask(&self, request: Request) -> bool {
        self.counts.waiting.fetch_add(1, Ordering::Relaxed);
        let sent = self.requests.send(request).is_ok();
        if !sent {
            self.counts.done(1);
        }
        sent
    }
}

/// When the thread was last seen to move.
#[derive(Debug, Default)]
struct Moved(Option<(u64, Instant)>);

impl Moved {
    fn hangs_for(&mut self, progress: u64, waiting: u64, now: Instant) -> Duration {
        match self.0 {
            Some((seen, since)) if seen == progress && waiting > 0 => now.duration_since(since),
            _ => {
                self.0 = Some((progress, now));
                Duration::ZERO
            }
        }
    }
}

impl Counts {
    fn bump(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    fn done(&self, requests: u64) {
        self.bump();
        self.waiting.fetch_sub(requests, Ordering::Relaxed);
    }
}
