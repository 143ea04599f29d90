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

mod confirming;
mod memory;
mod poison;
mod sending;
mod storing;

use std::collections::VecDeque;
use std::time::Duration;

use poison::Poison;

use super::telemetry::{Loss, Record};
use super::time::Clock;
use super::{Key, KeyRange, Output};
use serde::{Deserialize, Serialize};

/// Publications that are not records may exceed the window by this many.
pub const CONTROL_ROOM: usize = 32;
/// Records kept in memory when there is no disk for them.
pub const MEMORY_RECORDS: usize = 20_000;
/// Most results and the like that wait for room in the window.
const CONTROL_WAITING: usize = 256;
/// Removals are handed over when there are as many as fit in the window, but not more than this, or when
/// they are so old. What a crash finds not removed comes again.
const FORGET_RECORDS: u64 = 1_000;
const FORGET_AFTER: Duration = Duration::from_secs(1);
/// The wait between two tries to connect grows with the time since the last session, so that a link that
/// flaps is soon found up again: half of that time, within these. After a session shorter than `GOOD_LINK`
/// the first wait is longer, so that two clients of one name do not chase each other. The refused wait longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_AGAIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
const BACKOFF_REFUSED: Duration = Duration::from_secs(30);
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
    /// When the last session ended, or the run began, and the first wait since then.
    away: (Duration, Duration),
    flight: VecDeque<Flight>,
    next_token: u64,
    control: VecDeque<Control>,
    results_dropped: u64,
    live: VecDeque<Held>,
    /// The first record of the run is finished; none is published or stored before it.
    begun: bool,
    /// Records before this one have left the live lane.
    next_live: u64,
    /// No record before this one is history for memory to send.
    next_history: u64,
    /// With the server's word: no ack is late before this.
    acks_due: Option<Duration>,
    page: VecDeque<Replayed>,
    replay_at: Duration,
    disk: Disk,
    forget: Forget,
    lost: Option<Loss>,
    poison: Poison,
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
    lane: Sending,
    cargo: Cargo,
}

/// Each has its own room in the window, so that a flood of results holds up no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Control,
    Records,
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
    /// The last write failed.
    failed: bool,
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
            away: (now, BACKOFF_FIRST),
            flight: VecDeque::new(),
            next_token: 1,
            control: VecDeque::new(),
            results_dropped: 0,
            live: VecDeque::new(),
            begun: false,
            next_live: 0,
            next_history: 0,
            acks_due: None,
            page: VecDeque::new(),
            replay_at: now,
            disk: Disk::default(),
            forget: Forget::default(),
            lost: None,
            poison: Poison::default(),
            orders: VecDeque::new(),
        }
    }

    /// Something that is not a record is to be published; without a link it is dropped.
    pub fn tell(&mut self, topic: Topic, payload: Vec<u8>, retain: bool) {
        if !self.is_up() {
            return;
        }
        // Of `state` the newest counts alone; of too many results the newest are the useful ones.
        let control = &mut self.control;
        if topic == Topic::State {
            control.retain(|other| other.topic != Topic::State);
        } else if control.len() >= CONTROL_WAITING
            && let Some(oldest) = control
                .iter()
                .position(|other| other.topic == Topic::Results)
        {
            control.remove(oldest);
            self.results_dropped += 1;
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
        self.poison.hear_nothing();
        // A drop-out so short that nothing went to the disk is made good at once.
        let jitter = match self.disk.records {
            0 => Duration::ZERO,
            _ if self.is_cautious() => Duration::ZERO,
            _ => self.settings.replay_jitter.mul_f64(self.rng.f64()),
        };
        self.replay_at = now + jitter;
        self.next_live = self.live.back().map_or(0, |held| held.record.seq + 1);
        self.disk.end = false;
        self.disk.after = None;
    }

    /// The session is gone, or could not be made: what was in flight is history.
    pub fn link_down(&mut self, refused: bool, clock: &Clock, now: Duration) {
        if let Link::Up { since } = self.link {
            let first = match now >= since + GOOD_LINK {
                true => BACKOFF_FIRST,
                false => BACKOFF_AGAIN,
            };
            self.away = (now, first);
        }
        let (since, first) = self.away;
        let longest = match refused {
            true => BACKOFF_REFUSED,
            false => (now.saturating_sub(since) / 2).clamp(first, BACKOFF_MAX),
        };
        // Half of it is random, so that many Pis do not come back in step.
        let wait = longest.mul_f64(0.5 + self.rng.f64() / 2.0);
        self.link = Link::Down {
            retry_at: now + wait,
        };
        self.look_for_poison(clock, now);
        self.flight.clear();
        self.control.clear();
        self.page.clear();
        self.disk.stale = self.disk.fetching;
        self.next_history = 0;
        self.acks_due = None;
        self.live.retain(|held| held.copy != Copy::OnDisk);
        for held in &mut self.live {
            held.lane = Lane::History;
            held.phase = Phase::Waiting;
        }
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
            self.give_up_a_stalled_broker(clock, now);
        }
        if self.is_up() {
            self.time_out_acks(now);
            self.send_control(now);
            match (self.begun, self.is_cautious()) {
                (true, false) => {
                    self.send_live(clock, now);
                    self.send_history(clock, now);
                }
                // The suspects first: what they do shows best at the beginning of a session.
                (true, true) => {
                    self.send_history(clock, now);
                    self.send_live(clock, now);
                }
                (false, _) => {}
            }
        }
        let in_window = (self.settings.window * self.settings.batch) as u64;
        let many = self.forget.records >= in_window.min(FORGET_RECORDS);
        if many && !self.disk.fetching || self.forget_at().is_some_and(|due| now >= due) {
            self.hand_over_forgets();
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
        let replay = (self.is_up() && self.begun && self.has_room() && self.has_history())
            .then_some(self.replay_at);
        [
            link,
            replay,
            self.acks_due,
            self.commit_at(),
            self.forget_at(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Results that a flood of commands left no room for, since the start.
    pub fn results_dropped(&self) -> u64 {
        self.results_dropped
    }

    /// Whether a session stands.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// Whether the broker has confirmed all that was published.
    pub fn is_quiet(&self) -> bool {
        self.flight.is_empty() && self.control.is_empty()
    }

    /// Whether the backlog is open and took what it was given last.
    pub fn store_ok(&self) -> bool {
        self.disk.ordinal.is_some() && !self.disk.failed
    }

    /// Whether the backlog said last that it cannot be written.
    pub fn store_failed_last(&self) -> bool {
        self.disk.failed && !self.disk.storing
    }

    /// Whether a group of records is on its way to the disk.
    pub fn is_storing(&self) -> bool {
        self.disk.storing
    }
}
