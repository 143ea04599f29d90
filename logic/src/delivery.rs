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
mod window;

use std::collections::VecDeque;
use std::time::Duration;

use poison::Poison;
use window::Window;

use super::link::{Ending, Inbound, Pattern, Sent, SessionEnd, Sessions};
use super::telemetry::Loss;
use super::time::Clock;
use super::{Entry, Key, KeyRange, Output};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    sessions: Sessions,
    /// What each session subscribes to, and what is still to be subscribed to in this one.
    inbound: Vec<Inbound>,
    to_subscribe: Vec<Inbound>,
    flight: VecDeque<Flight>,
    next_token: u64,
    /// The last record went out as history.
    sent_history: bool,
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
    /// Records that memory gave up, and that the operator does not know of yet.
    given_up: u64,
    poison: Poison,
    /// A record is on trial, or waits for it: nothing else is sent.
    holds_trial: bool,
    window: Window,
    batch: Window,
    orders: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down { retry_at: Duration },
    Connecting,
    Up,
}

/// A publication or subscription that the broker has not answered.
#[derive(Debug)]
struct Flight {
    token: u64,
    sent: Sent,
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

/// A record of this run that is not confirmed, or a gap where records were given up.
#[derive(Debug)]
struct Held {
    entry: Entry,
    made_at: Duration,
    lane: Lane,
    phase: Phase,
    copy: Copy,
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

/// A record or gap read back from the disk.
#[derive(Debug)]
struct Replayed {
    key: Key,
    entry: Entry,
    phase: Phase,
}

/// What is known of the backlog on disk.
#[derive(Debug, Default)]
struct Disk {
    /// The run_number of this run, once the backlog is open.
    run_number: Option<u64>,
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
    /// Gaps to be put in the place of records that are on it.
    gaps: Vec<Loss>,
    /// Of these, those on their way.
    storing_gaps: Vec<Loss>,
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
    /// Nothing to deliver, no link; the first try to connect is due at once. Each session subscribes to
    /// `inbound`.
    pub fn new(settings: Settings, inbound: Vec<Inbound>, seed: u64, now: Duration) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            link: Link::Down { retry_at: now },
            sessions: Sessions::new(now),
            inbound,
            to_subscribe: Vec::new(),
            flight: VecDeque::new(),
            next_token: 1,
            sent_history: false,
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
            given_up: 0,
            poison: Poison::default(),
            holds_trial: false,
            window: Window::new(settings.window),
            batch: Window::new(settings.batch),
            orders: VecDeque::new(),
            settings,
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
        self.link = Link::Up;
        self.sessions.begin(self.rng.f64(), now);
        self.poison.begin(self.rng.f64(), now);
        self.to_subscribe.clone_from(&self.inbound);
        // A drop-out so short that nothing went to the disk is made good at once.
        let jitter = match self.disk.records {
            0 => Duration::ZERO,
            _ if self.is_cautious() || self.sessions.is_flapping() => Duration::ZERO,
            _ => self.settings.replay_jitter.mul_f64(self.rng.f64()),
        };
        self.replay_at = now + jitter;
        self.next_live = self.live.back().map_or(0, |held| held.entry.last() + 1);
        self.disk.end = false;
        self.disk.after = None;
    }

    /// The session is gone, or could not be made: what was in flight is history.
    pub fn link_down(
        &mut self,
        ending: Ending,
        clock: &Clock,
        now: Duration,
    ) -> Option<SessionEnd> {
        let session = self.is_up().then(|| {
            let unanswered = self.flight.iter().find(|flight| !flight.confirmed);
            let knows = self.settings.qos > 0;
            let unanswered = unanswered.map(|flight| flight.sent);
            self.sessions.end(ending, unanswered, knows, now)
        });
        if session.is_none() {
            self.sessions.fail(ending);
        }
        let wait = self.sessions.wait(ending, self.rng.f64(), now);
        self.link = Link::Down {
            retry_at: now + wait,
        };
        if session.is_some() {
            self.look_for_poison(ending, clock, now);
        }
        if ending == Ending::Closed {
            self.shrink_window(now);
        }
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
        session
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
            self.sessions.tick(now);
            self.time_out_acks(now);
            self.give_up_unanswered_subscriptions(now);
            self.window.tick(now);
            self.batch.tick(now);
            self.holds_trial = self.is_trial_due(now);
            match self.holds_trial {
                true => self.hold_trial(clock, now),
                false => self.send(clock, now),
            }
        }
        let in_window = (self.settings.window * self.settings.batch) as u64;
        let many = self.forget.records >= in_window.min(FORGET_RECORDS);
        if many && !self.disk.fetching || self.forget_at().is_some_and(|due| now >= due) {
            self.hand_over_forgets();
        }
    }

    /// Sends what may go out.
    fn send(&mut self, clock: &Clock, now: Duration) {
        self.subscribe(now);
        self.send_control(now);
        if !self.begun {
            return;
        }
        // One at a time, live records alone could fill the line, and the suspects would never get through.
        if self.is_cautious() && !self.sent_history {
            self.send_history(clock, now);
        }
        self.send_live(clock, now);
        self.send_history(clock, now);
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
            Link::Up => self
                .stalled_at()
                .into_iter()
                .chain(self.sessions.next_opening())
                .min(),
        };
        let replay = (self.is_up()
            && self.begun
            && !self.holds_trial
            && self.has_room()
            && self.may_replay())
        .then_some(self.replay_at);
        [
            link,
            replay,
            self.acks_due,
            self.commit_at(),
            self.forget_at(),
            self.trial_at(),
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
        matches!(self.link, Link::Up)
    }

    /// What the last sessions have in common, if anything.
    pub fn pattern(&self) -> Option<Pattern> {
        self.sessions.pattern()
    }

    /// Whether the broker has confirmed all that was published.
    pub fn is_quiet(&self) -> bool {
        self.flight.is_empty() && self.control.is_empty()
    }

    /// Whether the backlog is open and took what it was given last.
    pub fn store_ok(&self) -> bool {
        self.disk.run_number.is_some() && !self.disk.failed
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
