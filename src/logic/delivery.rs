//! Delivery: what to publish next, what must go to the disk and when, and what may be forgotten.
//!
//! A record is in one of two places. Those of this run begin in `live` (memory); they are published at
//! once while the link is up. Whatever is not confirmed in time goes to the disk, and when the link is
//! lost the disk alone keeps it: after the outage it comes back in pages, oldest first, on the history
//! lane, behind everything live. A record leaves memory and disk only when it is confirmed, or counted
//! as lost.
//!
//! ```text
//!   add --> live --publish--> in flight --confirmed--> gone
//!             |                   |
//!             | not confirmed in time, or link down
//!             v                   v
//!           disk --fetch--> page --publish--> in flight --confirmed--> forgotten
//! ```
//!
//! The window is counted as a span, from the oldest publication not yet confirmed to the newest, because
//! the client library reuses packet ids. All I/O is orders; the controller drains [`Delivery::poll`].

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::telemetry::{Body, Event, Loss, Record};
use super::time::Clock;
use super::{Key, KeyRange, Level, Output};

/// Publications that are not records may exceed the window by this many.
pub const CONTROL_ROOM: usize = 32;
/// Records kept in memory when there is no disk for them.
pub const MEMORY_RECORDS: usize = 20_000;
/// Published records that await the server's ack in memory, beside their copy on the disk.
const LIVE_ON_DISK: usize = 1_024;
/// Most results and the like that wait for room in the window.
const CONTROL_WAITING: usize = 256;
/// Records read from the backlog at a time.
const PAGE: usize = 256;
/// A batch ends before it is larger than this many bytes; brokers refuse large packets.
const BATCH_BYTES: usize = 32 * 1024;
/// Removals are handed over when there are so many, or so old.
const FORGET_RECORDS: u64 = 1_000;
const FORGET_AFTER: Duration = Duration::from_secs(1);
/// After a failed write, the next try.
const STORE_RETRY: Duration = Duration::from_secs(2);
/// No replay rate is so slow that the pause between two records is longer, in seconds.
const LONGEST_PAUSE: f64 = 86_400.0;
/// First and longest wait between two tries to connect; the refused wait longer.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
const BACKOFF_REFUSED: Duration = Duration::from_secs(30);
/// A link that stood for so long was a good one: the backoff begins anew.
const GOOD_LINK: Duration = Duration::from_secs(5);

/// How records reach the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// MQTT quality of service of records: 0, 1 or 2.
    pub qos: u8,
    /// Whose word makes a record forgotten.
    pub confirm: Confirm,
    /// With `Confirm::Server`: not acked for so long, sent again.
    pub ack_timeout: Duration,
    /// Most publications not yet confirmed by the broker, counted from the oldest: 1..=1000.
    pub window: usize,
    /// Replayed records a second; 0 is as fast as acks allow.
    pub replay_rate: f64,
    /// The replay begins after a random time up to this.
    pub replay_jitter: Duration,
    /// Most replayed records in one message.
    pub batch: usize,
    /// What is not confirmed for so long is on the disk.
    pub durable_within: Duration,
    /// The broker is given up when it has not confirmed a publication for so long.
    pub stalled_after: Duration,
}

/// Whose word makes a record forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confirm {
    /// The broker's PUBACK (PUBCOMP at QoS 2).
    Broker,
    /// An ack of the server on the acks topic.
    Server,
}

/// A publication, ready but for the name of its topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Names it in `Acked`; ascending.
    pub token: u64,
    /// Where to.
    pub topic: Topic,
    /// The payload.
    pub payload: Vec<u8>,
    /// MQTT quality of service.
    pub qos: u8,
    /// Whether the broker keeps it.
    pub retain: bool,
}

/// The topics that are published to; their names are the configuration's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Live readings.
    Telemetry,
    /// Replayed records.
    History,
    /// Live events.
    Events,
    /// What became of commands.
    Results,
    /// The retained picture of the device.
    State,
    /// Availability.
    Status,
}

/// Everything between a record's making and its confirmation.
#[derive(Debug)]
pub struct Delivery {
    settings: Settings,
    rng: fastrand::Rng,
    link: Link,
    attempts: u32,
    flight: VecDeque<Flight>,
    next_token: u64,
    control: VecDeque<Control>,
    controls_dropped: u64,
    live: VecDeque<Held>,
    /// The first record of the run is finished; none is published or stored before it.
    begun: bool,
    /// Records before this one have left the live lane.
    next_live: u64,
    page: VecDeque<Replayed>,
    replay_at: Duration,
    disk: Disk,
    forget: Forget,
    lost: Option<Loss>,
    orders: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down { retry_at: Duration },
    Connecting,
    Up { since: Duration },
}

/// A publication that the broker has not confirmed.
#[derive(Debug)]
struct Flight {
    token: u64,
    at: Duration,
    confirmed: bool,
    cargo: Cargo,
}

#[derive(Debug)]
enum Cargo {
    Control,
    /// A record of this run, published live or from memory.
    Own(u64),
    /// Records of the page.
    Page(Vec<Key>),
}

#[derive(Debug)]
struct Control {
    topic: Topic,
    payload: Vec<u8>,
    retain: bool,
}

/// A record of this run that is not confirmed.
#[derive(Debug)]
struct Held {
    record: Record,
    made_at: Duration,
    lane: Lane,
    phase: Phase,
    copy: Copy,
    /// The store's note of a loss, to be dropped when this record is safe.
    tells_loss: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// Made while the link was up, and it has been since.
    Live,
    /// Made in an outage, or caught by one.
    History,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    /// In flight.
    Sent,
    /// Confirmed by the broker; the server's ack is awaited since then.
    Published(Duration),
    /// The server's ack did not come; waits to be sent again, as history.
    Again,
    Confirmed,
}

/// Whether the disk has it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    None,
    Storing,
    OnDisk,
}

/// A record read back from the disk.
#[derive(Debug)]
struct Replayed {
    key: Key,
    record: Record,
    phase: Phase,
}

/// What is known of the backlog on disk.
#[derive(Debug, Default)]
struct Disk {
    /// The ordinal of this run, once the backlog is open.
    ordinal: Option<u64>,
    /// Records on it, as it said last.
    records: u64,
    /// When the oldest of them was made, as far as is known.
    oldest_ms: Option<i64>,
    /// The last record read back in this session.
    after: Option<Key>,
    /// There is nothing behind that.
    end: bool,
    fetching: bool,
    /// The page under way is of no use: its session is over, or it does not begin where it should.
    stale: bool,
    storing: bool,
    /// Removals handed over behind the group that is being stored.
    removing: u64,
    retry_at: Option<Duration>,
}

/// Confirmed records that are still on the disk.
#[derive(Debug, Default)]
struct Forget {
    ranges: Vec<KeyRange>,
    records: u64,
    due: Option<Duration>,
}

impl Delivery {
    /// Nothing to deliver, no link; the first try to connect is due at once.
    pub fn new(settings: Settings, seed: u64, now: Duration) -> Self {
        Self {
            settings,
            rng: fastrand::Rng::with_seed(seed),
            link: Link::Down { retry_at: now },
            attempts: 0,
            flight: VecDeque::new(),
            next_token: 1,
            control: VecDeque::new(),
            controls_dropped: 0,
            live: VecDeque::new(),
            begun: false,
            next_live: 0,
            page: VecDeque::new(),
            replay_at: now,
            disk: Disk::default(),
            forget: Forget::default(),
            lost: None,
            orders: VecDeque::new(),
        }
    }

    /// A record was made. `tells_loss` is the store's name for the loss that it tells, if any.
    pub fn add(&mut self, record: Record, tells_loss: Option<u64>, now: Duration) {
        let lane = match self.link {
            Link::Up { .. } => Lane::Live,
            Link::Down { .. } | Link::Connecting => Lane::History,
        };
        let held = Held {
            record,
            made_at: now,
            lane,
            phase: Phase::Waiting,
            copy: Copy::None,
            tells_loss,
        };
        // The first record of a run may be finished after others: it names the run before.
        let place = self.place_of(held.record.seq);
        self.next_live = self.next_live.min(held.record.seq);
        self.begun |= held.record.seq == 1;
        self.live.insert(place, held);
        self.bound_memory();
    }

    /// A record of the outage that has just ended, finished only now.
    pub fn add_replayed(&mut self, record: Record, made_at: Duration) {
        self.add(record, None, made_at);
        if let Some(held) = self.live.back_mut() {
            held.lane = Lane::History;
        }
    }

    /// Something that is not a record is to be published; without a link it is dropped.
    pub fn tell(&mut self, topic: Topic, payload: Vec<u8>, retain: bool) {
        if !self.is_up() {
            return;
        }
        // Availability is told whatever else waits.
        if self.control.len() >= CONTROL_WAITING && topic != Topic::Status {
            self.controls_dropped += 1;
            return;
        }
        self.control.push_back(Control {
            topic,
            payload,
            retain,
        });
    }

    /// The session stands.
    pub fn link_up(&mut self, now: Duration) {
        self.link = Link::Up { since: now };
        // A drop-out so short that nothing went to the disk is made good at once.
        let jitter = match self.disk.records {
            0 => Duration::ZERO,
            _ => self.settings.replay_jitter.mul_f64(self.rng.f64()),
        };
        self.replay_at = now + jitter;
        self.next_live = self.live.back().map_or(0, |held| held.record.seq + 1);
        self.disk.end = false;
        self.disk.after = None;
    }

    /// The session is gone, or could not be made: what was in flight is history.
    pub fn link_down(&mut self, refused: bool, now: Duration) {
        if let Link::Up { since } = self.link
            && now >= since + GOOD_LINK
        {
            self.attempts = 0;
        }
        let longest = match refused {
            true => BACKOFF_REFUSED,
            false => (BACKOFF_FIRST * 2u32.pow(self.attempts.min(10))).min(BACKOFF_MAX),
        };
        // Half of it is random, so that many Pis do not come back in step.
        let wait = longest.mul_f64(0.5 + self.rng.f64() / 2.0);
        self.attempts = self.attempts.saturating_add(1);
        self.link = Link::Down {
            retry_at: now + wait,
        };
        self.flight.clear();
        self.control.clear();
        self.page.clear();
        self.disk.stale = self.disk.fetching;
        self.live.retain(|held| held.copy != Copy::OnDisk);
        for held in &mut self.live {
            held.lane = Lane::History;
            held.phase = Phase::Waiting;
        }
    }

    /// The broker has confirmed a publication; tokens of an earlier session are unknown and ignored.
    pub fn acked(&mut self, token: u64, now: Duration) {
        let Some(oldest) = self.flight.front().map(|flight| flight.token) else {
            return;
        };
        let Some(flight) = token
            .checked_sub(oldest)
            .and_then(|place| self.flight.get_mut(place as usize))
        else {
            return;
        };
        flight.confirmed = true;
        let cargo = std::mem::replace(&mut flight.cargo, Cargo::Control);
        while self.flight.front().is_some_and(|flight| flight.confirmed) {
            self.flight.pop_front();
        }
        let phase = match self.settings.confirm {
            Confirm::Broker => Phase::Confirmed,
            Confirm::Server => Phase::Published(now),
        };
        match cargo {
            Cargo::Control => {}
            Cargo::Own(seq) => self.settle_own(seq, phase, now),
            Cargo::Page(keys) => self.settle_page(|key, _| keys.contains(key), phase, now),
        }
    }

    /// The server has acked records of `run`, as inclusive ranges of `seq`.
    pub fn server_acked(&mut self, run: Uuid, ranges: &[(u64, u64)], now: Duration) {
        if self.settings.confirm != Confirm::Server {
            return;
        }
        let covers = |seq: u64| ranges.iter().any(|&(from, to)| (from..=to).contains(&seq));
        if self.live.front().is_some_and(|held| held.record.run == run) {
            for &(from, to) in ranges {
                let behind = self.live.iter().skip(self.place_of(from));
                let acked: Vec<u64> = behind
                    .map(|held| held.record.seq)
                    .take_while(|seq| *seq <= to)
                    .collect();
                for seq in acked {
                    self.settle_own(seq, Phase::Confirmed, now);
                }
            }
        }
        let acked = |_: &Key, record: &Record| record.run == run && covers(record.seq);
        self.settle_page(acked, Phase::Confirmed, now);
    }

    /// The backlog is open and this run has its ordinal there.
    pub fn opened(&mut self, ordinal: u64, records: u64, oldest_ms: Option<i64>) {
        self.disk.ordinal = Some(ordinal);
        self.disk.records = records;
        self.disk.oldest_ms = oldest_ms;
        self.disk.end = false;
    }

    /// What was handed over to be stored is on the disk.
    pub fn stored(&mut self, records: u64) {
        self.disk.storing = false;
        // What was handed over to be removed since then is still in that number.
        self.disk.records = records.saturating_sub(std::mem::take(&mut self.disk.removing));
        for held in &mut self.live {
            if held.copy == Copy::Storing {
                held.copy = Copy::OnDisk;
                self.orders
                    .extend(held.tells_loss.take().map(Output::ForgetLoss));
            }
        }
        // The disk has them now; those that could not be published in time come back as history.
        let disk = &mut self.disk;
        let mut left = self.live.len();
        self.live.retain(|held| {
            let waits = held.phase == Phase::Waiting || left > LIVE_ON_DISK;
            let leaves = waits && held.phase != Phase::Sent && held.copy == Copy::OnDisk;
            if leaves {
                left -= 1;
                disk.read_again(held.record.seq);
            }
            !leaves
        });
    }

    /// It is not; memory keeps it until the next try.
    pub fn store_failed(&mut self, now: Duration) {
        self.disk.storing = false;
        self.disk.removing = 0;
        self.disk.retry_at = Some(now + STORE_RETRY);
        for held in &mut self.live {
            if held.copy == Copy::Storing {
                held.copy = Copy::None;
            }
        }
        self.bound_memory();
    }

    /// A page of the backlog came.
    pub fn fetched(&mut self, records: Vec<(Key, Record)>, end: bool) {
        self.disk.fetching = false;
        if std::mem::take(&mut self.disk.stale) || !self.is_up() {
            return;
        }
        self.disk.end = end;
        for (key, record) in records {
            self.disk.after = Some(key);
            // Memory cares for its own; and what was read again may be in the page already.
            let place = self.page.partition_point(|replayed| replayed.key < key);
            let in_page = self.page.get(place).is_some_and(|next| next.key == key);
            let own = self.disk.ordinal == Some(key.ordinal);
            if in_page || self.forget.has(key) || own && self.is_live(key.seq) {
                continue;
            }
            let replayed = Replayed {
                key,
                record,
                phase: Phase::Waiting,
            };
            self.page.insert(place, replayed);
        }
        if end {
            // All of the disk is known now: the page, copies of what memory has, what is to go.
            let on_disk = |held: &&Held| held.copy == Copy::OnDisk;
            let own = self.live.iter().filter(on_disk).count();
            self.disk.records = (self.page.len() + own) as u64 + self.forget.records;
        }
    }

    /// Records that memory had to give up, to be told; none while there is no room to tell it.
    pub fn take_lost(&mut self) -> Option<Loss> {
        if self.live.len() + 16 > MEMORY_RECORDS {
            return None;
        }
        self.lost.take()
    }

    /// Does what is due.
    pub fn pump(&mut self, now: Duration, clock: &Clock) {
        if let Link::Down { retry_at } = self.link
            && now >= retry_at
        {
            self.link = Link::Connecting;
            self.orders.push_back(Output::Connect);
        }
        if self.is_up() {
            self.give_up_a_stalled_broker(now);
        }
        if self.is_up() {
            self.time_out_acks(now);
            self.send_control(now);
            if self.begun {
                self.send_live(clock, now);
                self.send_history(clock, now);
            }
        }
        let many = self.forget.records >= FORGET_RECORDS;
        if many && !self.disk.fetching || self.forget_at().is_some_and(|due| now >= due) {
            self.hand_over_forgets();
        }
    }

    /// Whether records must go to the disk now; then [`Delivery::commit`] is to be called.
    pub fn commit_due(&self, now: Duration) -> bool {
        self.commit_at().is_some_and(|at| now >= at)
    }

    /// Hands every record that the disk does not have over to it, as one group, with the ids of
    /// commands obeyed. False when that cannot be done now.
    pub fn commit(&mut self, command_ids: Vec<String>, last_seq: u64, now: Duration) -> bool {
        let waits = self.disk.retry_at.is_some_and(|at| now < at);
        if self.disk.ordinal.is_none() || self.disk.storing || waits {
            return false;
        }
        let mut records = Vec::new();
        for held in &mut self.live {
            if held.copy == Copy::None && held.phase != Phase::Confirmed {
                held.copy = Copy::Storing;
                records.push(held.record.clone());
            }
        }
        if self.disk.records == 0 {
            self.disk.oldest_ms = records.first().map(|record| record.stamp.wall_ms);
        }
        self.disk.storing = true;
        self.disk.removing = 0;
        self.disk.retry_at = None;
        self.orders.push_back(Output::Store {
            records,
            command_ids,
            last_seq,
        });
        true
    }

    /// Removals that wait are handed over at once; the daemon is about to end.
    pub fn hand_over_forgets(&mut self) {
        let Forget {
            ranges, records, ..
        } = std::mem::take(&mut self.forget);
        if !ranges.is_empty() {
            self.disk.records = self.disk.records.saturating_sub(records);
            self.disk.removing += records;
            self.orders.push_back(Output::Forget(ranges));
        }
    }

    /// The next order.
    pub fn poll(&mut self) -> Option<Output> {
        self.orders.pop_front()
    }

    /// When to call [`Delivery::pump`] next.
    pub fn next_deadline(&self) -> Option<Duration> {
        let link = match self.link {
            Link::Down { retry_at } => Some(retry_at),
            Link::Connecting => None,
            Link::Up { .. } => self.stalled_at(),
        };
        let replay = (self.is_up()
            && self.begun
            && self.flight.len() < self.settings.window
            && self.has_history())
        .then_some(self.replay_at);
        let ack = match (self.is_up(), self.settings.confirm) {
            (true, Confirm::Server) => self
                .oldest_published()
                .map(|at| at + self.settings.ack_timeout),
            _ => None,
        };
        [link, replay, ack, self.commit_at(), self.forget_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a session stands.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// Whether the broker has confirmed all that was published.
    pub fn is_quiet(&self) -> bool {
        self.flight.is_empty() && self.control.is_empty()
    }

    /// Whether a group of records is on its way to the disk.
    pub fn is_storing(&self) -> bool {
        self.disk.storing
    }

    /// Records that are not confirmed and not just being delivered live.
    pub fn backlog(&self) -> u64 {
        let in_memory = self.live.iter().filter(|held| held.is_backlog()).count();
        self.on_disk() + in_memory as u64
    }

    /// Whether there are such records.
    pub fn has_backlog(&self) -> bool {
        self.on_disk() > 0 || self.live.iter().any(Held::is_backlog)
    }

    /// When the oldest record of the backlog was made, in milliseconds since 1970 on the clock of then.
    pub fn oldest_ms(&self) -> Option<i64> {
        let of = |record: &Record| record.stamp.wall_ms;
        let in_memory = self.live.iter().find(|held| held.lane == Lane::History);
        self.page
            .front()
            .map(|replayed| of(&replayed.record))
            .or(self.disk.oldest_ms.filter(|_| self.disk.records > 0))
            .or(in_memory.map(|held| of(&held.record)))
    }

    /// Records of this run that are neither confirmed nor on the disk.
    pub fn only_in_memory(&self) -> usize {
        self.live
            .iter()
            .filter(|held| held.copy != Copy::OnDisk && held.phase != Phase::Confirmed)
            .count()
    }

    fn on_disk(&self) -> u64 {
        self.disk.records.saturating_sub(self.forget.records)
    }

    fn commit_at(&self) -> Option<Duration> {
        if self.disk.ordinal.is_none() || self.disk.storing || !self.begun {
            return None;
        }
        // Half of the time is for the disk, so that the promise holds when the time is over.
        let oldest = self
            .live
            .iter()
            .find(|held| held.copy == Copy::None)?
            .made_at;
        let due = oldest + self.settings.durable_within / 2;
        Some(self.disk.retry_at.map_or(due, |at| due.max(at)))
    }

    /// While a page is read, what was confirmed is remembered, since it may be in that page.
    fn forget_at(&self) -> Option<Duration> {
        self.forget.due.filter(|_| !self.disk.fetching)
    }

    fn stalled_at(&self) -> Option<Duration> {
        self.flight
            .front()
            .map(|flight| flight.at + self.settings.stalled_after)
    }

    fn oldest_published(&self) -> Option<Duration> {
        let live = self.live.iter().map(|held| held.phase);
        let page = self.page.iter().map(|replayed| replayed.phase);
        live.chain(page)
            .filter_map(|phase| match phase {
                Phase::Published(at) => Some(at),
                _ => None,
            })
            .min()
    }

    fn give_up_a_stalled_broker(&mut self, now: Duration) {
        if self.stalled_at().is_some_and(|at| now >= at) {
            let seconds = self.settings.stalled_after.as_secs();
            let text = format!(
                "the broker has not confirmed a publication for {seconds} s: connecting anew"
            );
            self.orders.push_back(Output::Log(Level::Warn, text));
            self.orders.push_back(Output::Disconnect);
            self.link_down(false, now);
        }
    }

    /// What the server has not acked in time is sent again.
    fn time_out_acks(&mut self, now: Duration) {
        if self.settings.confirm != Confirm::Server {
            return;
        }
        let timeout = self.settings.ack_timeout;
        let late = |phase: Phase| matches!(phase, Phase::Published(at) if now >= at + timeout);
        for held in &mut self.live {
            if late(held.phase) {
                held.phase = Phase::Again;
                held.lane = Lane::History;
            }
        }
        for replayed in &mut self.page {
            if late(replayed.phase) {
                replayed.phase = Phase::Waiting;
            }
        }
    }

    fn send_control(&mut self, now: Duration) {
        while self.flight.len() < self.settings.window + CONTROL_ROOM {
            let Some(Control {
                topic,
                payload,
                retain,
            }) = self.control.pop_front()
            else {
                break;
            };
            self.publish(topic, payload, 1, retain, Cargo::Control, now);
        }
    }

    fn send_live(&mut self, clock: &Clock, now: Duration) {
        while self.flight.len() < self.settings.window {
            let place = self.place_of(self.next_live);
            let Some(held) = self.live.get_mut(place) else {
                break;
            };
            self.next_live = held.record.seq + 1;
            if held.lane != Lane::Live || held.phase != Phase::Waiting {
                continue;
            }
            held.phase = Phase::Sent;
            let topic = match held.record.is_reading() {
                true => Topic::Telemetry,
                false => Topic::Events,
            };
            let payload = held.record.wire(clock, false).into_bytes();
            let cargo = Cargo::Own(held.record.seq);
            self.publish(topic, payload, self.settings.qos, false, cargo, now);
        }
    }

    fn send_history(&mut self, clock: &Clock, now: Duration) {
        while now >= self.replay_at && self.flight.len() < self.settings.window {
            self.fetch();
            let sent = match self.send_page(clock, now) {
                0 => self.send_memory(clock, now),
                sent => sent,
            };
            if sent == 0 {
                break;
            }
            if self.settings.replay_rate > 0.0 {
                let seconds = (sent as f64 / self.settings.replay_rate).min(LONGEST_PAUSE);
                let pause = Duration::from_secs_f64(seconds);
                // The beat is kept, but what was missed while the window was full is not caught up.
                self.replay_at = self.replay_at.max(now.saturating_sub(pause)) + pause;
            }
        }
    }

    /// Publishes the oldest waiting records of the page, up to a batch; tells how many.
    fn send_page(&mut self, clock: &Clock, now: Duration) -> usize {
        let (mut keys, mut objects, mut bytes) = (Vec::new(), Vec::new(), 0);
        for replayed in &mut self.page {
            if replayed.phase != Phase::Waiting {
                continue;
            }
            if keys.len() >= self.settings.batch || bytes >= BATCH_BYTES {
                break;
            }
            let object = replayed.record.wire(clock, true);
            bytes += object.len() + 1;
            replayed.phase = Phase::Sent;
            keys.push(replayed.key);
            objects.push(object);
        }
        let sent = keys.len();
        if let Some(payload) = in_one_message(&objects) {
            self.publish(
                Topic::History,
                payload,
                self.settings.qos,
                false,
                Cargo::Page(keys),
                now,
            );
        }
        sent
    }

    /// Behind the disk: the oldest record of an outage that only memory has. One at a time, since
    /// there are only as many as fit between two commits.
    fn send_memory(&mut self, clock: &Clock, now: Duration) -> usize {
        if self.disk_first() {
            return 0;
        }
        let Some(held) = self.live.iter_mut().find(|held| held.is_history()) else {
            return 0;
        };
        held.phase = Phase::Sent;
        let payload = held.record.wire(clock, true).into_bytes();
        let cargo = Cargo::Own(held.record.seq);
        self.publish(
            Topic::History,
            payload,
            self.settings.qos,
            false,
            cargo,
            now,
        );
        1
    }

    fn publish(
        &mut self,
        topic: Topic,
        payload: Vec<u8>,
        qos: u8,
        retain: bool,
        cargo: Cargo,
        at: Duration,
    ) {
        let token = self.next_token;
        self.next_token += 1;
        self.flight.push_back(Flight {
            token,
            at,
            confirmed: false,
            cargo,
        });
        self.orders.push_back(Output::Publish(Message {
            token,
            topic,
            payload,
            qos,
            retain,
        }));
    }

    /// Reads on when the page runs low. What is confirmed is removed first, so that it is not read.
    fn fetch(&mut self) {
        if self.can_fetch() {
            self.hand_over_forgets();
            self.disk.fetching = true;
            self.orders.push_back(Output::Fetch {
                after: self.disk.after,
                limit: self.page_size(),
            });
        }
    }

    fn has_history(&self) -> bool {
        let in_page = |phase: Phase| self.page.iter().any(|replayed| replayed.phase == phase);
        self.can_fetch()
            || in_page(Phase::Waiting)
            || !self.disk_first() && self.live.iter().any(Held::is_history)
    }

    /// Whether the disk may have history that is older than what memory has.
    fn disk_first(&self) -> bool {
        self.disk.ordinal.is_some() && !self.disk.end
    }

    fn can_fetch(&self) -> bool {
        self.disk_first() && !self.disk.fetching && self.page.len() < self.page_size()
    }

    fn page_size(&self) -> usize {
        PAGE.max(self.settings.batch)
    }

    /// A record of this run reaches `phase`; a confirmed one leaves.
    fn settle_own(&mut self, seq: u64, phase: Phase, now: Duration) {
        let place = self.place_of(seq);
        let held = self
            .live
            .get_mut(place)
            .filter(|held| held.record.seq == seq);
        let mut on_disk = true;
        if let Some(held) = held {
            held.phase = phase;
            if phase != Phase::Confirmed {
                return;
            }
            on_disk = held.copy != Copy::None;
            self.orders
                .extend(held.tells_loss.take().map(Output::ForgetLoss));
            self.live.remove(place);
        }
        // A record that is not in memory was left to the disk before the broker answered.
        if phase == Phase::Confirmed
            && on_disk
            && let Some(ordinal) = self.disk.ordinal
        {
            let key = Key { ordinal, seq };
            self.page.retain(|replayed| replayed.key != key);
            self.forget.push(key, now);
        }
    }

    /// Whether memory has the record of this run with this number.
    fn is_live(&self, seq: u64) -> bool {
        let held = self.live.get(self.place_of(seq));
        held.is_some_and(|held| held.record.seq == seq)
    }

    /// Where in memory the record of this run with this number is, or would be.
    fn place_of(&self, seq: u64) -> usize {
        self.live.partition_point(|held| held.record.seq < seq)
    }

    /// Records of the page reach `phase`; the confirmed ones leave.
    fn settle_page(&mut self, which: impl Fn(&Key, &Record) -> bool, phase: Phase, now: Duration) {
        let Self { page, forget, .. } = self;
        page.retain_mut(|replayed| {
            if which(&replayed.key, &replayed.record) {
                replayed.phase = phase;
            }
            if replayed.phase == Phase::Confirmed {
                forget.push(replayed.key, now);
            }
            replayed.phase != Phase::Confirmed
        });
    }

    /// Without a disk, memory has a bound: the oldest records that are not on their way are given up.
    fn bound_memory(&mut self) {
        // Those just being stored cannot be given up; the others are newer and wait for the outcome.
        let bound = match self.disk.storing {
            true => 2 * MEMORY_RECORDS,
            false => MEMORY_RECORDS,
        };
        while self.live.len() > bound {
            let Some(held) = self
                .live
                .iter()
                .position(Held::may_be_given_up)
                .and_then(|place| self.live.remove(place))
            else {
                break;
            };
            let seq = held.record.seq;
            let loss = self.lost.get_or_insert_with(|| Loss {
                of_run: held.record.run,
                from_seq: seq,
                to_seq: seq,
                count: 0,
                reason: "memory-full".into(),
            });
            loss.from_seq = loss.from_seq.min(seq);
            loss.to_seq = loss.to_seq.max(seq);
            loss.count += 1;
        }
    }
}

impl Held {
    /// Whether it counts to the backlog, and not to what the disk says that it has.
    fn is_backlog(&self) -> bool {
        self.lane == Lane::History && self.copy != Copy::OnDisk
    }

    /// Whether memory may lose it: it is not on its way, and is not itself the word about a loss.
    fn may_be_given_up(&self) -> bool {
        let tells_loss = matches!(self.record.body, Body::Event(Event::Loss(_)));
        self.copy == Copy::None && self.phase != Phase::Sent && !tells_loss
    }

    /// Whether memory is to send it on the history lane.
    fn is_history(&self) -> bool {
        let waits = matches!(self.phase, Phase::Waiting | Phase::Again);
        self.lane == Lane::History && waits && self.copy != Copy::Storing
    }
}

impl Disk {
    /// A record of this run is left to the disk; if it was passed over, it is to be read after all.
    fn read_again(&mut self, seq: u64) {
        self.end = false;
        if let (Some(ordinal), Some(after)) = (self.ordinal, self.after)
            && after >= (Key { ordinal, seq })
        {
            let seq = seq.saturating_sub(1);
            self.after = Some(Key { ordinal, seq });
            self.stale = self.fetching;
        }
    }
}

impl Forget {
    fn push(&mut self, key: Key, now: Duration) {
        let Key { ordinal, seq } = key;
        match self.ranges.last_mut() {
            Some(last) if last.ordinal == ordinal && last.to + 1 == seq => last.to = seq,
            _ => self.ranges.push(KeyRange {
                ordinal,
                from: seq,
                to: seq,
            }),
        }
        self.records += 1;
        self.due.get_or_insert(now + FORGET_AFTER);
    }

    fn has(&self, key: Key) -> bool {
        let covers = |range: &KeyRange| (range.from..=range.to).contains(&key.seq);
        self.ranges
            .iter()
            .any(|range| range.ordinal == key.ordinal && covers(range))
    }
}

/// One record is an object, several are an array.
fn in_one_message(objects: &[String]) -> Option<Vec<u8>> {
    match objects {
        [] => None,
        [object] => Some(object.clone().into_bytes()),
        _ => Some(format!("[{}]", objects.join(",")).into_bytes()),
    }
}
