//! The keeper: ledger and store, on a thread of their own, because a disk can take seconds.
//!
//! It takes messages in the order in which they came, gathers a few, writes what they bring as one
//! and only then says so; the shell acknowledges what the keeper has said, and nothing else. When the
//! store fails, whatever was under way is dropped without a word: the broker has it still, and the
//! devices too. The store is then opened again, with patience.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use super::account::Report;
use super::intervals::Intervals;
use super::ledger::{Fault, Ledger, Taken};
use super::opening::{OpenError, guard};
use super::store::Store;
use super::wire::Payload;

/// A batch is written when it has so many messages (brokers have few unacknowledged ones under way:
/// mosquitto 20), when nothing more came for a moment, and after a while in any case.
const BATCH_MESSAGES: usize = 10;
const BATCH_QUIET: Duration = Duration::from_millis(10);
const BATCH_LONGEST: Duration = Duration::from_millis(100);
/// Waits between tries to open the store again.
const REOPEN_FIRST: Duration = Duration::from_secs(2);
const REOPEN_LONGEST: Duration = Duration::from_secs(30);

/// One message of a device.
#[derive(Debug)]
pub struct Arrival {
    /// How the shell knows it.
    pub ticket: Ticket,
    /// Whose it is.
    pub device: String,
    /// What it has in it.
    pub payload: Payload,
}

/// A message of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Which session.
    pub session: u64,
    /// Its packet id there; 0 wants no acknowledgement.
    pub pkid: u16,
    /// Its size.
    pub bytes: usize,
}

/// What the keeper says.
#[derive(Debug)]
pub enum Word {
    /// These are written, or need not be.
    Kept(Kept),
    /// The store cannot be used now, and why. Nothing that is under way will be kept.
    Failed(Fault),
    /// It can be used again.
    Mended,
}

/// What was written.
#[derive(Debug, Default)]
pub struct Kept {
    /// The messages, in the order in which they came.
    pub tickets: Vec<Ticket>,
    /// The records in them, new or not: what to ack to whom.
    pub acked: Vec<(String, Uuid, Intervals)>,
    /// The devices that have changed.
    pub reports: Vec<Report>,
    /// Messages of devices for which there is no room.
    pub refused: u64,
}

/// The keeper's thread, seen from outside.
#[derive(Debug)]
pub struct Keeper {
    /// What there was at the start.
    pub reports: Vec<Report>,
    arrivals: Option<mpsc::Sender<Arrival>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Opens the store and starts the thread.
    ///
    /// # Errors
    /// When there is no store to begin with: a person has to look.
    pub fn start(path: &Path, words: UnboundedSender<Word>) -> Result<Self, OpenError> {
        let (store, ledger) = open(path)?;
        let reports = guard(|| reports(&store)).map_err(OpenError::Other)?;
        let (sender, arrivals) = mpsc::channel();
        let work = Work {
            path: path.to_owned(),
            open: Some((store, ledger)),
            words,
        };
        let thread = thread::Builder::new()
            .name("keeper".into())
            .spawn(move || work.run(&arrivals))
            .map_err(|error| OpenError::Other(format!("the store has no thread: {error}")))?;
        Ok(Self {
            reports,
            arrivals: Some(sender),
            thread: Some(thread),
        })
    }

    /// Hands a message over; never waits.
    pub fn take(&self, arrival: Arrival) {
        if let Some(arrivals) = &self.arrivals {
            // A thread that has ended answers nothing: the message stays with the broker.
            let _ = arrivals.send(arrival);
        }
    }

    /// No more messages will come; whether the thread has ended since.
    pub fn end(&mut self) -> bool {
        self.arrivals = None;
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

struct Work {
    path: PathBuf,
    open: Option<(Store, Ledger)>,
    words: UnboundedSender<Word>,
}

impl Work {
    fn run(mut self, arrivals: &mpsc::Receiver<Arrival>) {
        while let Ok(first) = arrivals.recv() {
            let batch = gather(first, arrivals);
            let Some((store, ledger)) = &mut self.open else {
                continue;
            };
            match guard(|| keep(store, ledger, batch)) {
                Ok(kept) => self.say(Word::Kept(kept)),
                Err(why) => {
                    self.say(Word::Failed(why));
                    self.close();
                    if !self.reopen(arrivals) {
                        return;
                    }
                }
            }
        }
        self.last_counts();
        self.close();
    }

    /// Opens the store again; false when the server ends meanwhile.
    fn reopen(&mut self, arrivals: &mpsc::Receiver<Arrival>) -> bool {
        let mut wait = REOPEN_FIRST;
        loop {
            let until = Instant::now() + wait;
            loop {
                match arrivals.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    // Of a session that is over.
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return false,
                }
            }
            // Opened on a full disk it would fail again at once, and so would the session.
            let opened = open(&self.path).and_then(|open| {
                open.0.above_floor().map_err(OpenError::Other)?;
                Ok(open)
            });
            match opened {
                Ok(open) => {
                    self.open = Some(open);
                    self.say(Word::Mended);
                    return true;
                }
                Err(OpenError::Permission(why) | OpenError::Other(why)) => {
                    tracing::warn!("{why}");
                    wait = (wait * 2).min(REOPEN_LONGEST);
                }
            }
        }
    }

    /// What nobody waited for.
    fn last_counts(&mut self) {
        if let Some((store, ledger)) = &mut self.open
            && let Err(why) = guard(|| store.write(ledger.changes()))
        {
            tracing::warn!("the last counts could not be written: {why}");
        }
    }

    fn close(&mut self) {
        let open = self.open.take();
        // Sled may panic here too, after a failure.
        let _ = guard(|| {
            drop(open);
            Ok(())
        });
    }

    fn say(&self, word: Word) {
        // Nobody may be listening any more.
        let _ = self.words.send(word);
    }
}

fn open(path: &Path) -> Result<(Store, Ledger), OpenError> {
    let store = Store::open(path)?;
    let devices = guard(|| store.devices()).map_err(OpenError::Other)?;
    Ok((store, Ledger::new(devices)))
}

/// What the store knows of each device.
fn reports(store: &Store) -> Result<Vec<Report>, Fault> {
    use super::ledger::Shelf;
    let mut reports = Vec::new();
    for (device, totals) in store.devices()? {
        let run = match totals.latest {
            Some(run) => store.run(&device, run)?.map(|head| head.report(run)),
            None => None,
        };
        reports.push(Report {
            device,
            totals,
            run,
        });
    }
    Ok(reports)
}

fn gather(first: Arrival, arrivals: &mpsc::Receiver<Arrival>) -> Vec<Arrival> {
    let end = Instant::now() + BATCH_LONGEST;
    let mut batch = vec![first];
    while batch.len() < BATCH_MESSAGES {
        let left = end.saturating_duration_since(Instant::now());
        match arrivals.recv_timeout(left.min(BATCH_QUIET)) {
            Ok(arrival) => batch.push(arrival),
            Err(_) => break,
        }
    }
    batch
}

fn keep(store: &Store, ledger: &mut Ledger, batch: Vec<Arrival>) -> Result<Kept, Fault> {
    let mut kept = Kept::default();
    let mut acked: BTreeMap<(String, Uuid), Intervals> = BTreeMap::new();
    for arrival in batch {
        let Arrival {
            ticket,
            device,
            payload,
        } = arrival;
        kept.tickets.push(ticket);
        for record in payload.records {
            let (run, seq) = (record.run, record.seq);
            match ledger.take(store, &device, record)? {
                Taken::New | Taken::Again => {
                    let acked = acked.entry((device.clone(), run)).or_default();
                    acked.insert(seq, seq);
                }
                Taken::Refused => kept.refused += 1,
            }
        }
        for _ in 0..payload.plain {
            kept.refused += u64::from(!ledger.take_plain(&device));
        }
        ledger.take_rubbish(&device, payload.rubbish);
    }
    kept.reports = ledger.reports();
    if ledger.is_weighty() {
        store.write(ledger.changes())?;
        ledger.committed();
    }
    kept.acked = acked
        .into_iter()
        .map(|((device, run), acked)| (device, run, acked))
        .collect();
    Ok(kept)
}
