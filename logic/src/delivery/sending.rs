//! What is published next: results and the like, then live records, then history, within the window.
//!
//! History comes from the page that was read from the disk, and behind the disk from memory.

use std::time::Duration;

use super::{
    CONTROL_ROOM, Cargo, Control, Delivery, Flight, Lane, Message, Phase, Replayed, Sending, Topic,
};
use crate::link::Sent;
use crate::time::Clock;
use crate::{Entry, Level, Output};

/// A batch ends before it is larger than this many bytes; brokers refuse large packets.
const BATCH_BYTES: usize = 32 * 1024;
/// No replay rate is so slow that the pause between two records is longer, in seconds.
const LONGEST_PAUSE: f64 = 86_400.0;

impl Delivery {
    pub(super) fn send_control(&mut self, now: Duration) {
        while self.in_flight(Sending::Control) < CONTROL_ROOM {
            let sessions = &self.sessions;
            let may_go = |waiting: &Control| !sessions.must_wait(Sent::Publish(waiting.topic));
            let Some(Control {
                topic,
                payload,
                retain,
            }) = self
                .control
                .iter()
                .position(may_go)
                .and_then(|place| self.control.remove(place))
            else {
                break;
            };
            self.publish(topic, payload, 1, retain, Cargo::Control, now);
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
                let token = self.take_off(sent, Sending::Control, Cargo::Control, now);
                self.orders.push_back(Output::Subscribe { token, inbound });
            }
        }
    }

    pub(super) fn send_live(&mut self, clock: &Clock, now: Duration) {
        while self.has_room() {
            let place = self.place_of(self.next_live);
            let Some(held) = self.live.get_mut(place) else {
                break;
            };
            let topic = match &held.entry {
                Entry::Record(record) if record.is_reading() => Topic::Telemetry,
                _ => Topic::Events,
            };
            let is_live = held.lane == Lane::Live && held.phase == Phase::Waiting;
            if is_live && self.sessions.holds_back(Sent::Publish(topic)) {
                held.lane = Lane::History;
            } else if is_live && self.sessions.must_wait(Sent::Publish(topic)) {
                break;
            }
            self.next_live = held.entry.last() + 1;
            if held.lane != Lane::Live || held.phase != Phase::Waiting {
                continue;
            }
            held.phase = Phase::Sent;
            let payload = held.entry.wire(clock, false).into_bytes();
            let cargo = Cargo::Own(held.entry.first());
            self.publish(topic, payload, self.settings.qos, false, cargo, now);
        }
    }

    pub(super) fn send_history(&mut self, clock: &Clock, now: Duration) {
        while now >= self.replay_at && self.has_room() && self.may_replay() {
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
    pub(super) fn send_page(&mut self, clock: &Clock, now: Duration) -> usize {
        let (mut keys, mut objects, mut bytes) = (Vec::new(), Vec::new(), 0);
        let batch = self.batch();
        for replayed in &mut self.page {
            if replayed.phase != Phase::Waiting || self.poison.is_set_back(replayed.key) {
                continue;
            }
            if keys.len() >= batch || bytes >= BATCH_BYTES {
                break;
            }
            let object = replayed.entry.wire(clock, true);
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
    pub(super) fn send_memory(&mut self, clock: &Clock, now: Duration) -> usize {
        if self.disk_first() {
            return 0;
        }
        let place = self.place_of(self.next_history);
        let rest = self.live.range(place..);
        let found = rest
            .enumerate()
            .find_map(|(at, held)| self.is_free_history(held).then_some(place + at));
        let Some(held) = found.and_then(|place| self.live.get_mut(place)) else {
            self.next_history = self.live.back().map_or(0, |held| held.entry.last() + 1);
            return 0;
        };
        self.next_history = held.entry.last() + 1;
        held.phase = Phase::Sent;
        let payload = held.entry.wire(clock, true).into_bytes();
        let cargo = Cargo::Own(held.entry.first());
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

    pub(super) fn publish(
        &mut self,
        topic: Topic,
        payload: Vec<u8>,
        qos: u8,
        retain: bool,
        cargo: Cargo,
        at: Duration,
    ) {
        let lane = match cargo {
            Cargo::Control => Sending::Control,
            Cargo::Own(_) | Cargo::Page(_) => Sending::Records,
        };
        if lane == Sending::Records {
            self.sent_history = topic == Topic::History;
        }
        let token = self.take_off(Sent::Publish(topic), lane, cargo, at);
        self.orders.push_back(Output::Publish(Message {
            token,
            topic,
            payload,
            qos,
            retain,
        }));
    }

    fn take_off(&mut self, sent: Sent, lane: Sending, cargo: Cargo, at: Duration) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.sessions.send(sent);
        self.flight.push_back(Flight {
            token,
            sent,
            at,
            confirmed: false,
            lane,
            cargo,
        });
        token
    }

    /// A session was closed; if too many were in flight for the broker, there will be fewer.
    pub(super) fn shrink_window(&mut self, now: Duration) {
        let in_flight = self.flight.iter().filter(|flight| !flight.confirmed);
        let records = in_flight.filter(|flight| flight.lane == Sending::Records);
        if self.settings.qos == 2 && self.window.closed_with(records.count(), now) {
            let text = format!(
                "the broker closed the connection with many records unanswered; at most {} at a time now",
                self.window.size()
            );
            self.orders.push_back(Output::Log(Level::Info, text));
        }
    }

    /// Whether one more record may be published.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight(Sending::Records) < self.window()
    }

    /// Publications of a lane since the oldest that is not confirmed.
    fn in_flight(&self, lane: Sending) -> usize {
        let of_lane = |flight: &&Flight| flight.lane == lane;
        self.flight.iter().filter(of_lane).count()
    }

    /// Whether there is history, and it may go out.
    pub(super) fn may_replay(&self) -> bool {
        !self.sessions.must_wait(Sent::Publish(Topic::History)) && self.has_history()
    }

    pub(super) fn has_history(&self) -> bool {
        let is_free = |replayed: &Replayed| {
            replayed.phase == Phase::Waiting && !self.poison.is_set_back(replayed.key)
        };
        self.can_fetch()
            || self.page.iter().any(is_free)
            || !self.disk_first() && self.memory_has_history()
    }

    pub(super) fn memory_has_history(&self) -> bool {
        let place = self.place_of(self.next_history);
        self.live
            .range(place..)
            .any(|held| self.is_free_history(held))
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
