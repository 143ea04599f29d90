//! What a confirmation does: of the broker, of the server, or none in time.
//!
//! The window moves on the broker's answer; a record leaves on the answer that `confirm` asks for.

use std::time::Duration;

use uuid::Uuid;

use super::unanswered::Contents;
use super::{Confirm, Delivery, InFlight};
use crate::link::{Refusal, Sent};
use crate::timers::{Timer, Timers};
use crate::{Key, Level, Output};

/// Late acks are looked for so often within `ack_timeout`: all of memory and page is looked at for it.
const ACK_LOOKS: u32 = 16;
/// A publication that waits for so long is no sign of a link that holds.
const LATE: Duration = Duration::from_secs(5);

impl Delivery {
    /// The broker has confirmed a publication; tokens of an earlier session are unknown and ignored.
    pub(crate) fn acked(&mut self, token: u64, now: Duration, timers: &mut Timers) {
        self.answered(token, true, now, timers);
    }

    /// The same, with what it says about listeners.
    pub(super) fn answered(
        &mut self,
        token: u64,
        is_heard: bool,
        now: Duration,
        timers: &mut Timers,
    ) {
        let Some(InFlight { sent, contents, .. }) = self.unanswered.answer(token) else {
            return;
        };
        let is_record = !contents.is_control();
        if is_record {
            self.sessions.carry();
        }
        if is_record && self.is_history_in_vain() {
            // The network has it, no more; the disk keeps it.
            return;
        }
        // At QoS 0 it says no more than that the network has it.
        let tells = !is_record || self.settings.qos > 0 && !self.confirms_nothing();
        if tells && contents != Contents::Reply {
            self.sessions.answer(sent);
            if is_record {
                self.hear(sent, is_heard, now);
            }
        }
        self.poison
            .confirmed(&self.keys_of(&contents), sent, now, timers);
        match contents {
            Contents::Control => self.taken_control(sent, is_heard),
            Contents::Reply => {}
            Contents::Own(seq, last) => self.published_own(seq, last, now, timers),
            Contents::Page(keys) => self.published_page(keys, now, timers),
        }
    }

    /// The broker has answered a subscription, and will send nothing for it.
    pub(crate) fn subscription_refused(&mut self, token: u64, why: &str, now: Duration) {
        let subscription = self.unanswered.get(token).map(|message| message.sent);
        if let Some(Sent::Subscribe(inbound)) = subscription {
            self.unanswered.answer(token);
            let sent = Sent::Subscribe(inbound);
            self.sessions.refuse(sent, Refusal::Denied, why, now);
            // To be tried again, in its time.
            self.to_subscribe.push(inbound);
        }
    }

    /// The server has acked records of `run`, as inclusive ranges of `seq`.
    pub(crate) fn server_acked(
        &mut self,
        run: Uuid,
        ranges: &[(u64, u64)],
        now: Duration,
        timers: &mut Timers,
    ) {
        if self.settings.confirm != Confirm::Server {
            return;
        }
        self.replay.server_acked();
        for &(from, to) in ranges {
            for (seq, last) in self.memory.within(run, from, to) {
                self.confirm_own(seq, last, now, timers);
            }
            if self.run == Some(run) {
                for key in self.replay.ahead_within(self.own(from), self.own(to)) {
                    self.confirm_own(key.seq, key.seq, now, timers);
                }
            }
            for key in self.replay.within(run, from, to) {
                self.confirm(key, now, timers);
            }
        }
    }

    /// What the server has not acked in time is sent again, or a little later.
    pub(crate) fn time_out_acks(&mut self, now: Duration, timers: &mut Timers) {
        let timeout = self.settings.ack_timeout;
        if let Some(late) = now.checked_sub(timeout) {
            self.memory.send_again(late);
            self.replay.send_again(late);
        }
        let awaiting = [self.memory.oldest_awaiting(), self.replay.oldest_awaiting()];
        let oldest = awaiting.into_iter().flatten().min();
        let next = oldest.map(|at| (at + timeout).max(now + timeout / ACK_LOOKS));
        timers.set_or_stop(Timer::LateAcks, next);
    }

    /// Whether the broker has not confirmed a publication for so long that it is to be left.
    pub(crate) fn is_stalled(&self, now: Duration) -> bool {
        self.is_up() && self.stalled_at().is_some_and(|at| now >= at)
    }

    /// Whether the broker answers: nothing waits for an answer for long.
    pub(crate) fn is_answered(&self, now: Duration) -> bool {
        let late = |message: &InFlight| now >= message.at + LATE;
        self.is_up() && !self.oldest_publication().is_some_and(late)
    }

    pub(super) fn stalled_at(&self) -> Option<Duration> {
        self.oldest_publication()
            .map(|message| message.at + self.settings.stalled_after)
    }

    fn oldest_publication(&self) -> Option<&InFlight> {
        let mut waiting = self.unanswered.waiting().map(|(_, message)| message);
        waiting.find(|message| matches!(message.sent, Sent::Publish(_)))
    }

    /// A broker that never answers a subscription is no reason to leave it: records can be delivered.
    pub(super) fn give_up_unanswered_subscriptions(&mut self, now: Duration) {
        let timeout = self.settings.stalled_after;
        let is_late = |message: &InFlight| {
            matches!(message.sent, Sent::Subscribe(_)) && now >= message.at + timeout
        };
        while let Some((token, message)) = self.unanswered.oldest()
            && is_late(message)
        {
            self.unanswered.answer(token);
            let text = format!(
                "the broker has not answered a subscription for {} s: commands or acks may not come",
                timeout.as_secs()
            );
            self.orders.push_back(Output::Log(Level::Warn, text));
        }
    }

    /// An entry of the page is confirmed: it leaves the disk.
    fn confirm(&mut self, key: Key, now: Duration, timers: &mut Timers) {
        if let Some(entry) = self.replay.remove(key) {
            self.deliveries.confirmed += 1;
            self.discards.add(key, entry.last(), now, timers);
        }
    }

    /// An entry that was published from memory is confirmed: it leaves memory and disk.
    fn confirm_own(&mut self, seq: u64, last: u64, now: Duration, timers: &mut Timers) {
        let key = self.own(seq);
        let removed = self.memory.remove(seq);
        self.deliveries.confirmed += 1;
        if removed.is_none() {
            self.replay.remove_ahead(key, last);
        }
        // One that is not in memory went to the disk before it was confirmed.
        let is_on_disk = removed.is_none_or(|removed| removed.is_written);
        if is_on_disk && self.disk.run_number.is_some() {
            self.discards.add(key, last, now, timers);
        }
    }

    /// The broker has an entry that was published from memory.
    fn published_own(&mut self, seq: u64, last: u64, now: Duration, timers: &mut Timers) {
        match self.settings.confirm {
            Confirm::Broker => self.confirm_own(seq, last, now, timers),
            Confirm::Server => {
                self.await_acks(now, timers);
                if !self.memory.await_server_ack(seq, now) {
                    self.replay.await_server_ack(self.own(seq), now);
                }
            }
        }
    }

    /// The broker has records of the page.
    fn published_page(&mut self, keys: Vec<Key>, now: Duration, timers: &mut Timers) {
        match self.settings.confirm {
            Confirm::Broker => {
                for key in keys {
                    self.confirm(key, now, timers);
                }
            }
            Confirm::Server => {
                self.await_acks(now, timers);
                for key in keys {
                    self.replay.await_server_ack(key, now);
                }
            }
        }
    }

    fn await_acks(&self, now: Duration, timers: &mut Timers) {
        if !timers.is_set(Timer::LateAcks) {
            timers.set(Timer::LateAcks, now + self.settings.ack_timeout);
        }
    }
}
