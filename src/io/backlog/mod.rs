//! The backlog: records on disk that are not yet confirmed, so that they outlive an outage, a crash
//! and a power cut. This file is the handle; the store has a thread of its own (`thread`), because a
//! card can take seconds for a write, and because sled may panic or hang where something is damaged.
//!
//! Nothing here decides what is stored or discarded: the daemon carries out `logic::Output::Append`,
//! `ReadAfter` and `Discard` with this, and hands the answers to the controller.
//!
//! # What is stored
//!
//! One form: an entry, under the number of its run and its first seq. It is a chunk of records (at most 7 KB,
//! compressed, checksummed) or a gap (`from`, `to`, `count`, `reason`). The newest chunk is open and written
//! anew by each commit until it is full. A loss is its gap: written in the batch that drops the records,
//! delivered in its place in the order, discarded like any entry.
//!
//! ```text
//!   append ---> chunk, gap, chunk, chunk (open)      read after ---> records and gaps, in order; pinned
//!                 |                                  discard    ---> whole entries, in any order
//!                 +--- full: the oldest chunk that is not pinned becomes a gap; neighbours join
//! ```
//!
//! # Where things live
//!
//! | what | where | why |
//! | --- | --- | --- |
//! | records and gaps | the sled store | survives power cuts, reads in order, removes in any order |
//! | per run: number, name, clock, last seq, what is held | a value of the store, in each batch | what is lost by damage can be counted |
//! | the same, command ids, "the store holds entries", what a full disk did not take | `checkpoint` | known while there is no store, and against it |
//! | confirmed records of a chunk that is not confirmed as a whole | memory | what a crash forgets comes again |
//!
//! The store exists only while there is something in it or to put in: without an outage there is no sled
//! and none of its threads, and after one the folder goes, so that the next begins small.
//!
//! # Reading order
//!
//! `format` and `chunk` (bytes), `run`, `checkpoint`, `store` (append), `entries` (read, discard), `gaps` (give up),
//! `tree` (everything particular to sled), `dir` (the folder), `salvage`, `opening`, `life`, `thread`. `inspect` is for people with
//! a stopped daemon.

mod checkpoint;
mod chunk;
mod dir;
mod entries;
mod format;
mod gaps;
pub mod inspect;
mod life;
mod opening;
mod run;
mod salvage;
mod store;
mod thread;
mod tree;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use crate::config;
use crate::logic::{Entry, Input, Key, KeyRange};

use self::thread::{Request, StoreThread};

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

/// What the thread counts for the watchdog, and for those who look.
#[derive(Debug, Default)]
struct Counts {
    progress: AtomicU64,
    waiting: AtomicU64,
    /// Bytes of the entries in the store, and whether it was ever looked at.
    bytes: AtomicU64,
    is_known: AtomicBool,
}

impl Backlog {
    /// Starts the thread, which opens the backlog in the folder `settings.path` (made when missing) and
    /// answers with `Input::BacklogOpened`. As long as it cannot be opened for a reason that must
    /// pass by itself or by a person's hand (full disk, lock, permissions), it is tried again every 2 s to
    /// 5 s; the first failure is reported by one `Input::StoreFailed` that nobody asked for.
    pub fn open(
        settings: &config::Backlog,
        run: Uuid,
        boot_id: Uuid,
        inputs: UnboundedSender<Input>,
    ) -> Backlog {
        let (requests, queue) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let store_thread = StoreThread::new(
            settings.clone(),
            run,
            boot_id,
            inputs.clone(),
            Arc::clone(&counts),
        );
        let thread = std::thread::Builder::new()
            .name("backlog".to_owned())
            .spawn(move || {
                let clean = store_thread.run(&queue);
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

    /// Appends records of this run and gaps, in order, and ids of commands, synced, and notes that the run
    /// has given numbers up to `last_seq`. Each call is answered by one `Input::Stored` or
    /// `Input::StoreFailed`, in the order of the calls.
    pub fn append(&self, entries: Vec<Entry>, command_ids: Vec<String>, last_seq: u64) {
        if !self.ask(Request::Append {
            entries,
            command_ids,
            last_seq,
        }) {
            let why = "the backlog's thread has ended; restart nightlight".to_owned();
            let _ = self.inputs.send(Input::StoreFailed(why));
        }
    }

    /// Discards confirmed records and reported gaps. Not answered; when it cannot be done now it is done
    /// later.
    pub fn discard(&self, ranges: Vec<KeyRange>) {
        self.ask(Request::Discard(ranges));
    }

    /// Reads about `limit` records and gaps after `after`. Answered by one `Input::Fetched`: while the
    /// store cannot be read, not before it can.
    pub fn read_after(&self, after: Option<Key>, limit: usize) {
        self.ask(Request::ReadAfter { after, limit });
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
    pub(crate) fn hangs_for(&mut self, now: Instant) -> Duration {
        let progress = self.counts.progress.load(Ordering::Relaxed);
        let waiting = self.counts.waiting.load(Ordering::Relaxed);
        self.moved.hangs_for(progress, waiting, now)
    }

    /// Bytes that the entries of the store take, compressed; none before it was opened.
    pub fn bytes(&self) -> Option<u64> {
        let is_known = self.counts.is_known.load(Ordering::Relaxed);
        is_known.then(|| self.counts.bytes.load(Ordering::Relaxed))
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

    /// The store, if there is one, has so much in it; without one there is nothing.
    fn weigh(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.is_known.store(true, Ordering::Relaxed);
    }

    fn done(&self, requests: u64) {
        self.bump();
        self.waiting.fetch_sub(requests, Ordering::Relaxed);
    }
}
