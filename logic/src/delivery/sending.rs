//! What is published next: results and the like, then live records, then history, within the window.
//!
//! History comes from the page that was read from the disk, and behind the disk from memory.

use std::time::Duration;

use super::unanswered::Contents;
use super::{Control, Delivery, InFlight, MAX_CONTROL_IN_FLIGHT, Message, Topic};
use crate::link::Sent;
use crate::time::Clock;
use crate::timers::Timers;
use crate::{Key, Level, Output};

/// While both wait, one publication in so many is history.
const HISTORY_SHARE: u32 = 4;
/// No replay rate is so slow that the pause between two records is longer, in seconds.
const MAX_PAUSE: f64 = 86_400.0;

impl Delivery {
    pub(super) fn send_control(&mut self, now: Duration) {
        while self.unanswered.others() < MAX_CONTROL_IN_FLIGHT && self.has_room_at_broker() {
            let sessions = &self.sessions;
            let may_go = |waiting: &Control| match waiting.is_reply() {
                false => !sessions.must_wait(Sent::Publish(waiting.topic)),
                // What the broker refuses on our topics says nothing about this one.
                true => !sessions.is_suspect(Sent::Publish(waiting.topic)),
            };
            let next = self.control.iter().position(may_go);
            let Some(waiting) = next.and_then(|place| self.control.remove(place)) else {
                break;
            };
            let contents = match waiting.is_reply() {
                false => Contents::Control,
                true => Contents::Reply,
            };
            let Control {
                topic,
                payload,
                retain,
                reply_to,
            } = waiting;
            let token = self.take_off(Sent::Publish(topic), contents, now);
            self.orders.push_back(Output::Publish(Message {
                token,
                topic,
                payload,
                qos: 1,
                retain,
                reply_to,
            }));
        }
    }

    /// What is held back is subscribed to later in the session.
    pub(super) fn subscribe(&mut self, now: Duration) {
        let waiting = std::mem::take(&mut self.to_subscribe);
        for inbound in waiting {
            let sent = Sent::Subscribe(inbound);
            if self.sessions.must_wait(sent) {
                self.to_subscribe.push(inbound);
            } else {
                let token = self.take_off(sent, Contents::Control, now);
                self.orders.push_back(Output::Subscribe { token, inbound });
            }
        }
    }

    /// Fills the window: live records first, and history its share.
    pub(super) fn send_records(&mut self, clock: &Clock, now: Duration, timers: &mut Timers) {
        self.read_on(timers);
        while self.has_room() {
            // What ended a session shows best at the beginning of the next one.
            let is_historys_turn =
                self.live_in_a_row + 1 >= HISTORY_SHARE || self.is_on_probation();
            let sent = match is_historys_turn {
                true => self.send_history(clock, now, timers) || self.send_live(clock, now),
                false => self.send_live(clock, now) || self.send_history(clock, now, timers),
            };
            if !sent {
                break;
            }
        }
    }

    /// Whether one more message with records may be published.
    pub(super) fn has_room(&self) -> bool {
        self.unanswered.records() < self.max_in_flight()
            && (self.has_room_at_broker() || self.settings.qos == 0)
    }

    /// Whether there is history that may go out when its time has come.
    pub(super) fn may_replay(&self) -> bool {
        let is_held_back = self.sessions.must_wait(Sent::Publish(Topic::History));
        !is_held_back
            && !self.is_history_in_vain()
            && (self.replay.can_read()
                || self.page_waits()
                || self.is_disk_read() && self.memory_waits())
    }

    /// Whether a record of the page waits that is not set back.
    pub(super) fn page_waits(&self) -> bool {
        let waits = |key: &Key| self.replay.get_waiting(*key).is_some();
        self.replay.waiting() > self.poison.set_back().filter(waits).count()
    }

    pub(super) fn memory_waits(&self) -> bool {
        let is_free = |seq| !self.poison.is_set_back(self.own(seq));
        self.memory.next_history(is_free).is_some()
    }

    /// Whether memory may go on with history: the disk has none that is older.
    fn is_disk_read(&self) -> bool {
        self.disk.run_number.is_none() || self.replay.is_at_end() && !self.page_waits()
    }

    fn send_live(&mut self, clock: &Clock, now: Duration) -> bool {
        while let Some(record) = self.memory.next_live() {
            let seq = record.seq;
            let topic = match record.is_reading() {
                true => Topic::Telemetry,
                false => Topic::Events,
            };
            if self.sessions.holds_back(Sent::Publish(topic)) {
                // It goes to the disk in time, and comes back from there as history.
                match self.disk.failed {
                    true => self.memory.make_history(seq),
                    false => self.memory.pass_over_live(seq),
                }
                continue;
            }
            if self.sessions.must_wait(Sent::Publish(topic)) {
                return false;
            }
            let payload = record
                .published(self.settings.format, clock, false)
                .into_bytes();
            self.memory.sent(seq);
            self.live_in_a_row = self.live_in_a_row.saturating_add(1);
            self.publish_records(topic, payload, Contents::Own(seq, seq), now);
            return true;
        }
        false
    }

    fn send_history(&mut self, clock: &Clock, now: Duration, timers: &mut Timers) -> bool {
        let is_held_back = self.sessions.must_wait(Sent::Publish(Topic::History));
        if now < self.replay_at || is_held_back {
            return false;
        }
        let sent = match self.send_page(clock, now, timers) {
            0 => self.send_memory(clock, now),
            sent => sent,
        };
        if sent == 0 {
            return false;
        }
        self.live_in_a_row = 0;
        if self.settings.replay_rate > 0.0 {
            let seconds = (sent as f64 / self.settings.replay_rate).min(MAX_PAUSE);
            let pause = Duration::from_secs_f64(seconds);
            // The beat is kept, but what was missed while the window was full is not caught up.
            self.replay_at = self.replay_at.max(now.saturating_sub(pause)) + pause;
        }
        true
    }

    /// Publishes the oldest waiting records of the page, up to a batch; gives how many.
    fn send_page(&mut self, clock: &Clock, now: Duration, timers: &mut Timers) -> usize {
        let poison = &self.poison;
        let is_set_back = |key: Key| poison.is_set_back(key);
        let most = self.max_batch();
        let most_bytes = self.max_payload();
        let batch = self.replay.next_batch(most, most_bytes, clock, is_set_back);
        self.read_on(timers);
        let Some(batch) = batch else {
            return 0;
        };
        let sent = batch.keys.len();
        let contents = Contents::Page(batch.keys);
        self.publish_records(Topic::History, batch.payload, contents, now);
        sent
    }

    /// Behind the disk: the oldest record of an outage that only memory has. One at a time, since
    /// there are only as many as fit between two commits.
    fn send_memory(&mut self, clock: &Clock, now: Duration) -> usize {
        if !self.is_disk_read() {
            return 0;
        }
        let is_free = |seq| !self.poison.is_set_back(self.own(seq));
        let Some(entry) = self.memory.next_history(is_free) else {
            return 0;
        };
        let (seq, last) = (entry.first(), entry.last());
        let payload = entry.wire(self.settings.format, clock, true).into_bytes();
        self.memory.sent(seq);
        self.publish_records(Topic::History, payload, Contents::Own(seq, last), now);
        1
    }

    /// A session was closed; if too many were in flight for the broker, there will be fewer.
    pub(super) fn shrink_window(&mut self, unanswered: &[InFlight], now: Duration) {
        let carries_record = |message: &&InFlight| !message.contents.is_control();
        let records = unanswered.iter().filter(carries_record).count();
        if self.settings.qos == 2 && self.window.closed_with(records, now) {
            let text = format!(
                "the broker closed the connection with many records unanswered; at most {} at a time now",
                self.window.size()
            );
            self.orders.push_back(Output::Log(Level::Info, text));
        }
    }

    pub(super) fn publish_records(
        &mut self,
        topic: Topic,
        payload: Vec<u8>,
        contents: Contents,
        now: Duration,
    ) {
        let records = match &contents {
            Contents::Control | Contents::Reply => 0,
            Contents::Own(..) => 1,
            Contents::Page(keys) => keys.len() as u64,
        };
        match topic {
            Topic::History => self.deliveries.replayed += records,
            _ => self.deliveries.published += records,
        }
        let token = self.take_off(Sent::Publish(topic), contents, now);
        self.orders.push_back(Output::Publish(Message {
            token,
            topic,
            payload,
            qos: self.settings.qos,
            retain: false,
            reply_to: None,
        }));
    }

    fn take_off(&mut self, sent: Sent, contents: Contents, at: Duration) -> u64 {
        match contents {
            Contents::Reply => self.sessions.send_reply(sent),
            _ => self.sessions.send(sent),
        }
        if let Sent::Publish(_) = sent {
            self.was_control = contents.is_control();
        }
        let is_above_qos_0 = self.is_above_qos_0(sent, &contents);
        let message = InFlight { sent, at, contents };
        self.unanswered.push(message, is_above_qos_0)
    }
}
