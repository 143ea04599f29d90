//! The keeper: everything that is written goes through this one task, because a database can take seconds.
//!
//! It takes messages in the order in which they came, writes as one what has gathered while the last
//! transaction ran, and only then says so; the shell acknowledges what the keeper has said, and nothing
//! else. When the database fails, whatever was under way is dropped without a word: the broker has it
//! still, and the devices too. The database is then opened again, with patience.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;
use uuid::Uuid;

use nightlight_common::clock::Clock;
use nightlight_logic::backoff::Backoff;

use crate::account::Report;
use crate::room;
use crate::stats::Stats;
use crate::store::ingest::{Batch, FromDevice, ingest};
use crate::store::{Address, Conn, Database, Fault, Value, read};
use crate::wire::{MOST_BYTES, Payload};
use nightlight_logic::intervals::Intervals;

/// One transaction has so many records at most, and a message more.
const BATCH_RECORDS: usize = 4_000;
/// Counts that nobody waits for are written with something else, or after this time.
const COUNTS_WITHIN: Duration = Duration::from_secs(10);
/// Waits between tries to open the database again: devices wait for it.
const REOPEN_FIRST: Duration = Duration::from_millis(500);
const REOPEN_LONGEST: Duration = Duration::from_secs(5);
/// Good for so long, and the waits begin anew.
const GOOD: Duration = Duration::from_secs(60);

/// One message of a device.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// How the shell knows it.
    pub ticket: Ticket,
    /// Whose it is.
    pub device: String,
    /// What it is.
    pub word: Told,
}

/// What a device says.
#[derive(Debug)]
pub(crate) enum Told {
    /// Records and the like.
    Records(Payload),
    /// Its status.
    Online(bool),
    /// Its state, as it came.
    State(String),
}

/// A message of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// Which session.
    pub session: u64,
    /// Its packet id there; 0 wants no acknowledgement.
    pub pkid: u16,
    /// Its size.
    pub bytes: usize,
    /// When it came.
    pub at: Instant,
}

/// What the keeper says.
#[derive(Debug)]
pub(crate) enum Word {
    /// These are written, or need not be.
    Kept(Kept),
    /// The accounts that were asked for; none for a device that has none.
    Reports(Vec<(String, Option<Report>)>),
    /// The accounts of these devices cannot be told now.
    NoReports(BTreeSet<String>),
    /// The database cannot be used now, and why. Nothing that is under way will be kept.
    Failed(String),
    /// It can be used again.
    Mended,
    /// The keeper has said all.
    Ended,
}

/// What was written.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The messages, in the order in which they came.
    pub tickets: Vec<Ticket>,
    /// The records in them, new or not: what to ack to whom.
    pub acked: Vec<(String, Uuid, Intervals)>,
    /// The devices that have changed.
    pub changed: BTreeSet<String>,
    /// Messages of devices for which there is no room.
    pub refused: u64,
}

/// The keeper's task, seen from outside.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// What there was at the start.
    pub reports: Vec<Report>,
    arrivals: Option<UnboundedSender<Arrival>>,
    asked: UnboundedSender<BTreeSet<String>>,
}

impl Keeper {
    /// Opens the database and starts the task.
    ///
    /// # Errors
    /// When there is no database to begin with: a person has to look.
    pub(crate) async fn start(
        database: Database,
        most_devices: usize,
        words: UnboundedSender<Word>,
        stats: Arc<Stats>,
    ) -> Result<Self, Fault> {
        let mut conn = database.open().await?;
        let reports = all_reports(&mut conn).await?;
        let known = reports.iter().map(|report| report.device.clone()).collect();
        let (sender, arrivals) = mpsc::unbounded_channel();
        let (asked, asks) = mpsc::unbounded_channel();
        tokio::spawn(tell(database.clone(), asks, words.clone()));
        let work = Work {
            database,
            most_devices,
            known,
            words,
            stats,
            clock: Clock::new(),
            counts: BTreeMap::new(),
            unheard: HashMap::new(),
            counts_since: None,
            backoff: Backoff::new(REOPEN_FIRST, REOPEN_LONGEST),
        };
        work.stats.database_up.store(true, Relaxed);
        tokio::spawn(work.run(conn, arrivals));
        Ok(Self {
            reports,
            arrivals: Some(sender),
            asked,
        })
    }

    /// Hands a message over; never waits.
    pub(crate) fn take(&self, arrival: Arrival) {
        if let Some(arrivals) = &self.arrivals {
            // A task that has ended answers nothing: the message stays with the broker.
            let _ = arrivals.send(arrival);
        }
    }

    /// Asks for the accounts of these devices; never waits.
    pub(crate) fn ask(&self, devices: BTreeSet<String>) {
        // Without the task the server is at its end.
        let _ = self.asked.send(devices);
    }

    /// No more messages will come: what is under way is written, then the keeper says that it has ended.
    pub(crate) fn end(&mut self) {
        self.arrivals = None;
    }
}

struct Work {
    database: Database,
    most_devices: usize,
    known: HashSet<String>,
    words: UnboundedSender<Word>,
    stats: Arc<Stats>,
    clock: Clock,
    /// Plain readings and rubbish, not yet written.
    counts: BTreeMap<String, (u64, u64)>,
    /// What the broker kept of devices that have sent nothing yet: not each is one of ours.
    unheard: HashMap<String, FromDevice>,
    counts_since: Option<Instant>,
    backoff: Backoff,
}

impl Work {
    async fn run(mut self, conn: Conn, mut arrivals: UnboundedReceiver<Arrival>) {
        let mut conn = Some(conn);
        let mut good_since = Instant::now();
        while let Some(gathered) = self.gather(&mut arrivals).await {
            let Some(open) = &mut conn else { continue };
            match self.keep(open, gathered).await {
                Ok(kept) => {
                    if good_since.elapsed() >= GOOD {
                        self.backoff.reset();
                    }
                    self.say(Word::Kept(kept));
                }
                Err(fault) => {
                    self.stats.database_errors.fetch_add(1, Relaxed);
                    self.stats.database_up.store(false, Relaxed);
                    self.say(Word::Failed(fault.words().to_owned()));
                    if let Some(conn) = conn.take() {
                        conn.close().await;
                    }
                    conn = self.reopen(&mut arrivals).await;
                    good_since = Instant::now();
                }
            }
        }
        if let Some(mut conn) = conn {
            self.last_counts(&mut conn).await;
            conn.close().await;
        }
        self.say(Word::Ended);
    }

    /// What there is, once there is something; none at the end.
    async fn gather(&mut self, arrivals: &mut UnboundedReceiver<Arrival>) -> Option<Vec<Arrival>> {
        let first = match self.counts_since {
            None => arrivals.recv().await,
            Some(since) => {
                match tokio::time::timeout_at(since + COUNTS_WITHIN, arrivals.recv()).await {
                    Ok(first) => first,
                    Err(_) => return Some(Vec::new()),
                }
            }
        };
        let mut gathered = vec![first?];
        let mut records = 0;
        while records < BATCH_RECORDS {
            let Ok(arrival) = arrivals.try_recv() else {
                break;
            };
            if let Told::Records(payload) = &arrival.word {
                records += payload.records.len();
            }
            gathered.push(arrival);
        }
        Some(gathered)
    }

    async fn keep(&mut self, conn: &mut Conn, gathered: Vec<Arrival>) -> Result<Kept, Fault> {
        let mut kept = Kept::default();
        let mut batch = Batch {
            now_ms: self.clock.now().wall_ms,
            ..Batch::default()
        };
        for Arrival {
            ticket,
            device,
            word,
        } in gathered
        {
            kept.tickets.push(ticket);
            let is_known = self.known.contains(&device)
                || batch.devices.contains_key(&device)
                || self.counts.contains_key(&device);
            let makes_known = match &word {
                Told::Records(payload) => {
                    !payload.records.is_empty() || !payload.losses.is_empty() || payload.plain > 0
                }
                Told::Online(_) | Told::State(_) => {
                    if !is_known {
                        self.remember(device, word);
                        continue;
                    }
                    true
                }
            };
            if !is_known && !makes_known {
                // Rubbish alone makes no device known.
                continue;
            }
            let devices = self.known.len() + batch.devices.len() + self.counts.len();
            if !is_known && devices >= self.most_devices {
                kept.refused += 1;
                continue;
            }
            match word {
                Told::Records(payload)
                    if payload.records.is_empty() && payload.losses.is_empty() =>
                {
                    // Else whoever sends rubbish decides how busy the disk is.
                    let counts = self.counts.entry(device).or_default();
                    counts.0 += payload.plain;
                    counts.1 += payload.rubbish;
                    self.counts_since.get_or_insert_with(Instant::now);
                }
                Told::Records(payload) => {
                    let from = batch.devices.entry(device).or_default();
                    from.records.extend(payload.records);
                    from.losses.extend(payload.losses);
                    from.plain += payload.plain;
                    from.rubbish += payload.rubbish;
                }
                word => batch.devices.entry(device).or_default().note(word),
            }
        }
        let counts_due = self
            .counts_since
            .is_some_and(|since| since.elapsed() >= COUNTS_WITHIN);
        if batch.devices.is_empty() && !counts_due {
            return Ok(kept);
        }
        self.write(conn, batch, &mut kept).await?;
        Ok(kept)
    }

    async fn write(
        &mut self,
        conn: &mut Conn,
        mut batch: Batch,
        kept: &mut Kept,
    ) -> Result<(), Fault> {
        for (device, (plain, rubbish)) in &self.counts {
            let from = batch.devices.entry(device.clone()).or_default();
            from.plain += plain;
            from.rubbish += rubbish;
        }
        for (device, from) in &mut batch.devices {
            if let Some(before) = self.unheard.get(device) {
                from.online = from.online.or(before.online);
                from.state = from.state.take().or_else(|| before.state.clone());
            }
        }
        let began = Instant::now();
        let acked = self.database.within(ingest(conn, &batch)).await?;
        self.stats.commits.took(began.elapsed());
        (self.counts, self.counts_since) = (BTreeMap::new(), None);
        for device in batch.devices.into_keys() {
            self.unheard.remove(&device);
            self.known.insert(device.clone());
            kept.changed.insert(device);
        }
        kept.acked = acked
            .into_iter()
            .map(|((device, run), acked)| (device, run, acked))
            .collect();
        Ok(())
    }

    /// Keeps what came of a device that has sent no record, until it does.
    fn remember(&mut self, device: String, word: Told) {
        if self.unheard.len() < self.most_devices || self.unheard.contains_key(&device) {
            self.unheard.entry(device).or_default().note(word);
        }
    }

    /// Opens the database again; none when the server ends meanwhile.
    async fn reopen(&mut self, arrivals: &mut UnboundedReceiver<Arrival>) -> Option<Conn> {
        loop {
            let wait = self.backoff.next(fastrand::f64());
            let until = Instant::now() + wait;
            loop {
                match tokio::time::timeout_at(until, arrivals.recv()).await {
                    // Of a session that is over.
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(_) => break,
                }
            }
            match self.usable().await {
                Ok(conn) => {
                    self.stats.database_up.store(true, Relaxed);
                    self.say(Word::Mended);
                    return Some(conn);
                }
                Err(fault) => tracing::warn!("no database: {}", fault.words()),
            }
        }
    }

    /// A database that can be written: what fails only at the next record would be told as good, again and
    /// again.
    async fn usable(&self) -> Result<Conn, Fault> {
        if let Address::Sqlite(path) = &self.database.address {
            room::above_floor(path).map_err(Fault::Other)?;
        }
        let mut conn = self.database.open().await?;
        let large: String = (0..MOST_BYTES).map(|_| fastrand::alphanumeric()).collect();
        let write = async {
            conn.begin().await?;
            conn.execute(
                "update devices set last_seen = last_seen where device = $1",
                &["".into()],
            )
            .await?;
            // A disk that is full takes what fits into its pages, and no more.
            let values = [
                Value::Run(Some(Uuid::nil())),
                Value::Time(Some(0)),
                Value::Text(Some(&large)),
            ];
            conn.execute(
                "insert into records (device, run, seq, kind, received_at, payload) \
                 values ('', $1, 0, 'probe', $2, $3)",
                &values,
            )
            .await?;
            conn.rollback().await?;
            Ok(())
        };
        self.database.within(write).await?;
        Ok(conn)
    }

    /// What nobody waited for.
    async fn last_counts(&mut self, conn: &mut Conn) {
        if self.counts.is_empty() {
            return;
        }
        let batch = Batch {
            now_ms: self.clock.now().wall_ms,
            ..Batch::default()
        };
        let written = self.write(conn, batch, &mut Kept::default()).await;
        if let Err(fault) = written {
            tracing::warn!("the last counts could not be written: {}", fault.words());
        }
    }

    fn say(&self, word: Word) {
        // Nobody may be listening any more.
        let _ = self.words.send(word);
    }
}

impl FromDevice {
    fn note(&mut self, word: Told) {
        match word {
            Told::Online(online) => self.online = Some(online),
            Told::State(state) => self.state = Some(state),
            Told::Records(_) => {}
        }
    }
}

/// Tells the accounts that are asked for, over a connection of its own: nothing waits for it.
async fn tell(
    database: Database,
    mut asks: UnboundedReceiver<BTreeSet<String>>,
    words: UnboundedSender<Word>,
) {
    let mut conn = None;
    while let Some(devices) = asks.recv().await {
        let told = database.within(look(&database, &mut conn, &devices)).await;
        let word = match told {
            Ok(reports) => Word::Reports(reports),
            Err(fault) => {
                tracing::debug!("accounts cannot be read: {}", fault.words());
                conn = None;
                Word::NoReports(devices)
            }
        };
        if words.send(word).is_err() {
            return;
        }
    }
}

async fn look(
    database: &Database,
    conn: &mut Option<Conn>,
    devices: &BTreeSet<String>,
) -> Result<Vec<(String, Option<Report>)>, Fault> {
    let conn = match conn {
        Some(conn) => conn,
        None => conn.insert(database.look().await?),
    };
    let mut reports = Vec::with_capacity(devices.len());
    for device in devices {
        reports.push((device.clone(), read::report(conn, device).await?));
    }
    Ok(reports)
}

async fn all_reports(conn: &mut Conn) -> Result<Vec<Report>, Fault> {
    let mut all: Vec<Report> = Vec::new();
    loop {
        let after = all
            .last()
            .map_or("", |report| report.device.as_str())
            .to_owned();
        let page = read::reports(conn, &after).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}
