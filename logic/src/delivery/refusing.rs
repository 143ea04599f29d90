//! What the broker's reason for a publication does: nobody listens, or a refusal.
//!
//! ```text
//!   nobody listens (0x10) ----> confirmed; or, with `require_listener`, kept and sent again as history
//!   denied, quota, unclear ---> kept; its topic waits (`link::refusals`), the others go on
//!   payload, too large -------> several records: each is tried alone; one alone: a dead letter, told as lost
//! ```
//!
//! A record is given up for its payload or size only when the broker has taken another one in this session: a
//! broker that takes none at all has another trouble than this record, and its topic waits.

use std::time::Duration;

use super::unanswered::Contents;
use super::{Confirm, Delivery, InFlight, Topic};
use crate::link::{Offer, Refusal, Sent};
use crate::time::Clock;
use crate::timers::Timers;
use crate::{Entry, Key, Level, Output};

/// A record that the broker refuses so often without saying why, and takes others, is given up.
const UNCLEAR: u32 = 5;

impl Delivery {
    /// What the broker offers in the session that stands next.
    pub(crate) fn offered(&mut self, offer: Offer) {
        if offer.max_qos == 0 && self.settings.qos > 0 && self.settings.confirm == Confirm::Broker {
            let text = "the broker has QoS 0 alone, so it confirms nothing: readings go out as they are made, all records stay in the \
                        backlog, and history waits for a broker with QoS 1, or for delivery.confirm = \"server\"";
            self.orders.push_back(Output::Log(Level::Warn, text.into()));
        }
        let can_know = offer.tells_who_listens() && self.settings.qos == 1 && offer.max_qos > 0;
        if self.settings.require_listener && !can_know {
            let text = "delivery.require_listener has no effect in this session: only MQTT 5 at QoS 1 tells whether somebody listens";
            self.orders.push_back(Output::Log(Level::Warn, text.into()));
        }
        self.offer = Some(offer);
    }

    /// What the broker of this session offers; none without a session.
    pub(crate) fn offer(&self) -> Option<&Offer> {
        self.offer.as_ref().filter(|_| self.is_up())
    }

    /// Whether somebody listens to the readings; none while nobody can know.
    pub(crate) fn heard(&self) -> Option<bool> {
        self.hearing.heard().filter(|_| self.is_up())
    }

    /// Whether somebody listens to `state`; none while nobody can know.
    pub(crate) fn state_heard(&self) -> Option<bool> {
        self.state_heard
    }

    /// Whether somebody listens to `state` is to be seen anew.
    pub(crate) fn forget_state_heard(&mut self) {
        self.state_heard = None;
    }

    /// Whether the broker has taken what was last said to Home Assistant; none before it has answered, and once.
    pub(crate) fn take_discovery_answer(&mut self) -> Option<bool> {
        self.discovery_taken.take()
    }

    /// The broker has a message that is no record.
    pub(super) fn taken_control(&mut self, sent: Sent, is_heard: bool) {
        let knows = self.offer.as_ref().is_some_and(Offer::tells_who_listens);
        match sent {
            Sent::Publish(Topic::State) if knows => self.state_heard = Some(is_heard),
            Sent::Publish(Topic::Discovery) => self.discovery_taken = Some(true),
            _ => {}
        }
    }

    /// How many publications the broker has refused since the start, by its reason.
    pub(crate) fn refused_so_far(&self) -> impl Iterator<Item = (Refusal, u64)> {
        self.refused
            .iter()
            .map(|(refusal, count)| (*refusal, *count))
    }

    /// Whether no answer of this broker confirms a record.
    pub(super) fn confirms_nothing(&self) -> bool {
        let has_none = self.offer.as_ref().is_some_and(|offer| offer.max_qos == 0);
        has_none && self.settings.qos > 0
    }

    /// Whether history would go out in vain.
    pub(super) fn is_history_in_vain(&self) -> bool {
        self.confirms_nothing() && self.settings.confirm == Confirm::Broker
    }

    /// The largest payload that fits in a packet on any topic.
    pub(super) fn max_payload(&self) -> usize {
        let most = self.offer.as_ref().and_then(|offer| offer.max_payload);
        most.map_or(usize::MAX, |bytes| bytes as usize)
    }

    /// The broker has a publication, and says whether anybody listens where it can know.
    pub(super) fn hear(&mut self, sent: Sent, is_heard: bool, now: Duration) {
        let knows = self.offer.as_ref().is_some_and(Offer::tells_who_listens);
        if let (Sent::Publish(topic), true, 1) = (sent, knows, self.settings.qos) {
            self.hearing.answered(topic, is_heard, now);
            if is_heard {
                self.sessions.is_heard();
            }
        }
    }

    /// The broker has taken a publication, and nobody listens on its topic.
    pub(crate) fn unheard(&mut self, token: u64, now: Duration, timers: &mut Timers) {
        let Some(message) = self.unanswered.get(token) else {
            return;
        };
        let (sent, is_control) = (message.sent, message.contents.is_control());
        if !is_control {
            *self.refused.entry(Refusal::Unheard).or_default() += 1;
        }
        if is_control || !self.settings.require_listener {
            return self.answered(token, false, now, timers);
        }
        let contents = message.contents.clone();
        self.unanswered.answer(token);
        self.hear(sent, false, now);
        self.sessions.carry();
        self.take_back(&contents);
        let history = Sent::Publish(Topic::History);
        if sent != history {
            self.sessions.answer(sent);
        }
        self.sessions.refuse(history, Refusal::Unheard, "", now);
    }

    /// The broker has refused a publication; `why` is for a person.
    pub(crate) fn refused(
        &mut self,
        token: u64,
        refusal: Refusal,
        why: &str,
        clock: &Clock,
        now: Duration,
        timers: &mut Timers,
    ) {
        let Some(InFlight { sent, contents, .. }) = self.unanswered.answer(token) else {
            return;
        };
        *self.refused.entry(refusal).or_default() += 1;
        let keys = self.keys_of(&contents);
        self.poison.refused(&keys, now, timers);
        if contents == Contents::Reply {
            return;
        }
        let is_known_good = self.sessions.is_useful();
        let is_of_message = matches!(refusal, Refusal::Payload | Refusal::TooLarge);
        let has_others = match contents {
            Contents::Control => sent == Sent::Publish(Topic::Results),
            _ => is_known_good || keys.len() > 1,
        };
        match is_of_message && has_others {
            true => self.sessions.refuse_message(sent),
            false => self.sessions.refuse(sent, refusal, why, now),
        }
        if contents == Contents::Control {
            return self.refused_control(sent, refusal, why);
        }
        self.take_back(&contents);
        let [key] = keys[..] else {
            self.try_each_alone(&keys, refusal, now);
            return;
        };
        let is_to_blame = match refusal {
            Refusal::TooLarge | Refusal::Payload => is_known_good,
            Refusal::Unclear => is_known_good && self.poison.refused_without_reason(key) >= UNCLEAR,
            Refusal::Denied | Refusal::Quota | Refusal::Unheard => false,
        };
        if is_to_blame {
            let text = format!("the broker refuses it ({why})");
            self.give_up(key, &text, clock);
        } else if is_of_message {
            self.poison.set_aside(key);
        }
    }

    /// A message with several records was refused: too much for one, or one of them is to blame.
    fn try_each_alone(&mut self, keys: &[Key], refusal: Refusal, now: Duration) {
        match refusal {
            Refusal::TooLarge => self.batch.halve(now),
            Refusal::Payload | Refusal::Unclear => self.poison.suspect(keys),
            Refusal::Denied | Refusal::Quota | Refusal::Unheard => {}
        }
    }

    fn refused_control(&mut self, sent: Sent, refusal: Refusal, why: &str) {
        // What is refused of results is gone; state comes again by itself; that we are here must be said.
        if sent == Sent::Publish(Topic::Discovery) {
            self.discovery_taken = Some(false);
        }
        let waits = matches!(refusal, Refusal::Denied | Refusal::Quota | Refusal::Unclear);
        if sent == Sent::Publish(Topic::Status) && waits {
            self.publish_control(Topic::Status, b"online".to_vec(), true);
        } else if sent == Sent::Publish(Topic::Results) && !waits && self.is_told(refusal) {
            let text = format!("the broker refuses the result of a command: {why}");
            self.orders.push_back(Output::Log(Level::Warn, text));
        }
    }

    /// Whether so many refusals are worth a line: a flood of commands must not be one of the log.
    fn is_told(&self, refusal: Refusal) -> bool {
        let count = self.refused.get(&refusal);
        count.is_some_and(|count| count.is_power_of_two())
    }

    /// What was published waits again, as history.
    fn take_back(&mut self, contents: &Contents) {
        match contents {
            Contents::Control | Contents::Reply => {}
            Contents::Own(seq, _) => {
                if !self.memory.take_back(*seq) {
                    let key = self.own(*seq);
                    self.replay.take_back(key);
                }
            }
            Contents::Page(keys) => {
                for key in keys {
                    self.replay.take_back(*key);
                }
            }
        }
    }

    /// The record is a dead letter, and its place a gap; a gap that is refused stays.
    pub(super) fn give_up(&mut self, key: Key, why: &str, clock: &Clock) {
        let is_own = self.own(key.seq) == key;
        let in_memory = is_own.then(|| self.memory.get(key.seq)).flatten();
        let found = in_memory.or(self.replay.get(key)).cloned();
        let Some(Entry::Record(record)) = found else {
            return;
        };
        let text = format!(
            "record {} of run {} is kept as a dead letter and reported as lost: {why}",
            record.seq, record.run
        );
        self.orders.push_back(Output::Log(Level::Warn, text));
        self.orders
            .push_back(Output::KeepDeadLetter(record.wire(clock, true)));
        self.deliveries.refused += 1;
        self.poison.forget(key);
        if !is_own || !self.memory.give_up(key.seq, super::poison::REFUSED) {
            self.give_up_on_disk(&record, is_own);
            self.replay.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
