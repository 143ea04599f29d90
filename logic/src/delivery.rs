//! Delivery: what to publish next, what must go to the disk and when, and what may be discarded there.
//!
//! A record of this run begins in `memory` and is published at once while the link is up. What is not
//! confirmed in time goes to the disk and leaves memory; when the link is lost, all of it does. After an
//! outage it comes back from the disk in pages (`replay`), oldest first, on the history topic. A record
//! leaves memory and disk only when it is confirmed, or counted as lost.
//!
//! ```text
//!   add --> memory --publish--> window --confirmed--> gone
//!             |                   |
//!             | not confirmed in time, or link down
//!             v
//!           disk --read--> replay --publish--> window --confirmed--> discarded on the disk
//! ```
//!
//! The states of a record are drawn at the head of `memory` and `replay`. Live records go first, but one
//! publication in four is history as long as there is any: live readings that fill the link do not hold the
//! backlog up for ever. All I/O is orders; the controller drains `Delivery::poll`.

mod confirming;
mod discards;
mod hearing;
mod limits;
mod memory;
mod page;
mod poison;
mod refusing;
mod replay;
mod sending;
#[cfg(test)]
mod state_tests;
mod storing;
mod unanswered;
mod window;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use discards::Discards;
use hearing::Hearing;
use memory::{Memory, Queue};
use poison::Poison;
use replay::Replay;
use storing::Disk;
use unanswered::{InFlight, Unanswered};
use window::Window;

use super::command::ReplyTo;
use super::counters::Deliveries;
use super::link::{Ending, Inbound, Offer, Pattern, Refusal, SessionEnd, Sessions};
use super::telemetry::{PayloadFormat, Record};
use super::time::Clock;
use super::timers::{Timer, Timers};
use super::{Key, Output};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Messages without records may exceed the window by this many.
pub const MAX_CONTROL_IN_FLIGHT: usize = 32;
/// Most results and the like that wait for room in the window.
const MAX_CONTROL_WAITING: usize = 256;

/// How records reach the server.
#[derive(Debug, Clone, PartialEq)]
pub struct DeliverySettings {
    /// MQTT quality of service of records: 0, 1 or 2.
    pub qos: u8,
    /// Whose acknowledgement allows a record to be deleted.
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
    /// A record that nobody listens to is kept and sent again, where the broker says so.
    pub require_listener: bool,
    /// What is not confirmed for so long is on the disk.
    pub durable_within: Duration,
    /// The broker is given up when it has not confirmed a publication for so long.
    pub stalled_after: Duration,
    /// The form of records as they are published.
    pub format: PayloadFormat,
    /// Tries to connect are spread over so long, at least 0.5 s: see [`MIN_CONNECT_SPREAD`](super::link::MIN_CONNECT_SPREAD).
    pub connect_spread: Duration,
}

/// Whose acknowledgement allows a record to be deleted.
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
    /// On this topic in place of `topic`: the same result for whoever asked, or what was announced by another name.
    pub reply_to: Option<ReplyTo>,
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
    /// What Home Assistant is told of the device.
    Discovery,
}

/// Everything between a record's making and its confirmation.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    settings: DeliverySettings,
    rng: fastrand::Rng,
    link: LinkState,
    sessions: Sessions,
    /// What each session subscribes to, and what is still to be subscribed to in this one.
    inbound: Vec<Inbound>,
    to_subscribe: Vec<Inbound>,
    control: VecDeque<Control>,
    results_dropped: u64,
    unanswered: Unanswered,
    /// What the broker offers in this session.
    offer: Option<Offer>,
    hearing: Hearing,
    /// Whether somebody listens to `state`; none while nobody can know.
    state_heard: Option<bool>,
    /// Whether the broker has taken what was last said to Home Assistant.
    discovery_taken: Option<bool>,
    /// Publications that the broker refused since the start.
    refused: BTreeMap<Refusal, u64>,
    /// How many publications may be in flight, and records in one of them, as far as this broker lets us.
    window: Window,
    batch: Window,
    /// How much of everything above QoS 0 may be in flight.
    together: Window,
    /// What went out last carried no record.
    was_control: bool,
    memory: Memory,
    /// This run, once it has made a record.
    run: Option<Uuid>,
    /// The first record of the run is finished; none is published or stored before it.
    begun: bool,
    replay: Replay,
    /// No history is published before (boot clock).
    replay_at: Duration,
    /// Live records published since the last history.
    live_in_a_row: u32,
    disk: Disk,
    discards: Discards,
    poison: Poison,
    deliveries: Deliveries,
    /// A record is on trial, or waits for it: nothing else is sent.
    holds_trial: bool,
    orders: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Down,
    Connecting,
    Up,
}

/// A message without a record that waits to be published.
#[derive(Debug, Clone)]
struct Control {
    topic: Topic,
    payload: Vec<u8>,
    retain: bool,
    reply_to: Option<ReplyTo>,
}

impl Control {
    /// Whether it goes where a sender wants it, and not where the configuration says.
    fn is_reply(&self) -> bool {
        self.topic == Topic::Results && self.reply_to.is_some()
    }
}

impl Delivery {
    /// Nothing to deliver, no link; the first try to connect is due at once, or with more than the least spread
    /// at a random moment of the rest. Each session subscribes to `inbound`.
    pub(crate) fn new(
        settings: DeliverySettings,
        inbound: Vec<Inbound>,
        seed: u64,
        now: Duration,
        timers: &mut Timers,
    ) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let sessions = Sessions::new(settings.connect_spread, now);
        timers.set(Timer::Connect, now + sessions.first_wait(|| rng.f64()));
        let in_window = settings.window * settings.batch;
        Self {
            rng,
            link: LinkState::Down,
            sessions,
            inbound,
            to_subscribe: Vec::new(),
            control: VecDeque::new(),
            results_dropped: 0,
            unanswered: Unanswered::new(),
            offer: None,
            hearing: Hearing::default(),
            state_heard: None,
            discovery_taken: None,
            refused: BTreeMap::new(),
            window: Window::new(settings.window),
            batch: Window::new(settings.batch),
            together: limits::all_in_flight(settings.window),
            was_control: false,
            memory: Memory::default(),
            run: None,
            begun: false,
            replay: Replay::new(in_window).in_format(settings.format),
            replay_at: now,
            live_in_a_row: 0,
            disk: Disk::default(),
            discards: Discards::new(in_window),
            poison: Poison::default(),
            deliveries: Deliveries::default(),
            holds_trial: false,
            orders: VecDeque::new(),
            settings,
        }
    }

    /// A record was made.
    pub(crate) fn add(&mut self, record: Record, now: Duration) {
        self.run = Some(record.run);
        self.begun |= record.seq == 1;
        let queue = match self.link {
            LinkState::Up => Queue::Live,
            LinkState::Down | LinkState::Connecting => Queue::History,
        };
        self.memory.add(record, queue, now);
    }

    /// A record of the outage that has just ended, finished only now.
    pub(crate) fn add_replayed(&mut self, record: Record, made_at: Duration) {
        self.memory.add(record, Queue::History, made_at);
    }

    /// Records that were given up since the last call; gaps say which.
    pub(crate) fn take_given_up(&mut self) -> u64 {
        self.memory.take_given_up() + std::mem::take(&mut self.disk.given_up)
    }

    /// Those among them that the broker does not take.
    pub(crate) fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.deliveries.refused)
    }

    /// What was delivered since the start.
    pub(crate) fn deliveries(&self) -> Deliveries {
        self.deliveries
    }

    /// Something that is not a record is to be published; without a link it is dropped.
    pub(crate) fn publish_control(&mut self, topic: Topic, payload: Vec<u8>, retain: bool) {
        self.publish_or_drop(topic, payload, retain, None);
    }

    /// A result for whoever asked, where it wants it; without a link it is dropped.
    pub(crate) fn publish_reply(&mut self, reply_to: ReplyTo, payload: Vec<u8>) {
        self.publish_or_drop(Topic::Results, payload, false, Some(reply_to));
    }

    /// An empty message in the place of what was announced to Home Assistant on `topic`.
    pub(crate) fn withdraw_discovery(&mut self, topic: String) {
        let place = ReplyTo {
            topic,
            correlation: None,
        };
        self.publish_or_drop(Topic::Discovery, Vec::new(), true, Some(place));
    }

    fn publish_or_drop(
        &mut self,
        topic: Topic,
        payload: Vec<u8>,
        retain: bool,
        reply_to: Option<ReplyTo>,
    ) {
        if !self.is_up() {
            return;
        }
        // Of `state` the newest counts alone; of too many results the newest are the useful ones.
        let control = &mut self.control;
        if topic == Topic::State {
            control.retain(|other| other.topic != Topic::State);
        } else if control.len() >= MAX_CONTROL_WAITING
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
            reply_to,
        });
    }

    /// The session is up.
    pub(crate) fn link_up(&mut self, now: Duration, timers: &mut Timers) {
        timers.stop(Timer::Connect);
        self.link = LinkState::Up;
        self.sessions.begin(self.rng.f64(), now);
        self.poison.begin(self.rng.f64(), now, timers);
        self.to_subscribe.clone_from(&self.inbound);
        // A drop-out so short that nothing went to the disk is made good at once.
        let jitter = match self.disk.records {
            0 => Duration::ZERO,
            _ if self.is_on_probation() || self.sessions.is_flapping() => Duration::ZERO,
            _ => self.settings.replay_jitter.mul_f64(self.rng.f64()),
        };
        self.replay_at = now + jitter;
        self.memory.link_up();
    }

    /// The session is gone, or could not be made: what was in flight is history.
    pub(crate) fn link_down(
        &mut self,
        ending: Ending,
        clock: &Clock,
        now: Duration,
        timers: &mut Timers,
    ) -> Option<SessionEnd> {
        let unanswered = self.unanswered.clear();
        let ending = self.learn_limits(ending, &unanswered, now);
        self.hearing.forget();
        (self.state_heard, self.discovery_taken) = (None, None);
        let session = self.is_up().then(|| {
            let knows = self.settings.qos > 0;
            let oldest = unanswered.first().map(|message| message.sent);
            let on_trial = self.poison.is_on_trial();
            self.sessions.end(ending, oldest, knows, on_trial, now)
        });
        if session.is_none() {
            self.sessions.fail(ending);
        }
        let wait = self.sessions.wait(ending, self.rng.f64(), now);
        self.link = LinkState::Down;
        timers.set(Timer::Connect, now + wait);
        if session.is_some() {
            self.look_for_poison(ending, &unanswered, clock, now);
        }
        if ending == Ending::Closed {
            self.shrink_window(&unanswered, now);
        }
        self.control.clear();
        self.replay.start_over();
        self.memory.link_down();
        timers.stop(Timer::LateAcks);
        session
    }

    /// The next try to connect is due.
    pub(crate) fn connect(&mut self) {
        self.link = LinkState::Connecting;
        self.orders.push_back(Output::Connect);
    }

    /// Does what can be done now, and sets the timers for what cannot.
    pub(crate) fn pump(&mut self, now: Duration, clock: &Clock, timers: &mut Timers) {
        if self.is_up() {
            self.sessions.tick(now);
            self.give_up_unanswered_subscriptions(now);
            self.window.tick(now);
            self.batch.tick(now);
            self.together.tick(now);
            self.holds_trial = self.is_trial_due(timers);
            match self.holds_trial {
                true => self.hold_trial(clock, now, timers),
                false => self.send(clock, now, timers),
            }
        }
        if self.discards.is_due(timers) && !self.replay.is_reading() {
            self.hand_over_discards(timers);
        }
        self.set_timers(now, timers);
    }

    /// Sends what may go out.
    fn send(&mut self, clock: &Clock, now: Duration, timers: &mut Timers) {
        self.subscribe(now);
        if self.begun && self.is_records_turn() {
            self.send_records(clock, now, timers);
        }
        self.send_control(now);
        if self.begun {
            self.send_records(clock, now, timers);
        }
    }

    /// Those that follow from what is in flight and what waits.
    fn set_timers(&self, now: Duration, timers: &mut Timers) {
        let up = |at: Option<Duration>| at.filter(|_| self.is_up());
        timers.set_or_stop(Timer::Stalled, up(self.stalled_at()));
        timers.set_or_stop(Timer::TopicOpens, up(self.sessions.next_opening()));
        let may_send = self.begun && !self.holds_trial && self.has_room() && self.may_replay();
        let replay_at = (may_send && self.replay_at > now).then_some(self.replay_at);
        timers.set_or_stop(Timer::Replay, up(replay_at));
        timers.set_or_stop(Timer::Commit, self.commit_at(timers));
    }

    /// The next order.
    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.orders.pop_front()
    }

    /// Results that a flood of commands left no room for, since the start.
    pub(crate) fn results_dropped(&self) -> u64 {
        self.results_dropped
    }

    /// Whether a session is up.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.link, LinkState::Up)
    }

    /// What the last sessions have in common, if anything.
    pub(crate) fn pattern(&self) -> Option<Pattern> {
        self.sessions.pattern()
    }

    /// Whether the broker has confirmed all that was published.
    pub(crate) fn is_quiet(&self) -> bool {
        self.unanswered.is_empty() && self.control.is_empty()
    }

    /// Whether the backlog is open and took what it was given last.
    pub(crate) fn store_ok(&self) -> bool {
        self.disk.run_number.is_some() && !self.disk.failed
    }

    /// Whether the backlog said last that it cannot be written.
    pub(crate) fn store_failed_last(&self) -> bool {
        self.disk.failed && !self.disk.is_writing
    }

    /// Records that are not confirmed and not just being delivered live.
    pub(crate) fn backlog(&self) -> u64 {
        self.on_disk() + self.memory.backlog()
    }

    /// When the oldest record of the backlog was made, in milliseconds since 1970 on the clock of then.
    pub(crate) fn oldest_ms(&self) -> Option<i64> {
        let on_disk = self.disk.oldest_ms.filter(|_| self.disk.records > 0);
        let read = self.replay.oldest_ms();
        read.or(on_disk).or_else(|| self.memory.oldest_ms())
    }

    /// The name of a record of this run; before the store has given the run its number, nothing of an earlier
    /// run can be in flight.
    fn own(&self, seq: u64) -> Key {
        let run_number = self.disk.run_number.unwrap_or(u64::MAX);
        Key { run_number, seq }
    }
}
