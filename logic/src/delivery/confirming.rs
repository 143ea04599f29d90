//! What a confirmation does: of the broker, of the server, or none in time.
//!
//! The window moves on the broker's word; a record is forgotten on the word that `confirm` asks for.

use std::time::Duration;

use uuid::Uuid;

use super::{Cargo, Confirm, Copy, Delivery, Flight, Lane, Phase, Sending};
use crate::link::Sent;
use crate::{Entry, Key, Level, Output};

/// Late acks are looked for so often within `ack_timeout`.
const ACK_LOOKS: u32 = 16;
/// A publication that waits for so long is no sign of a link that holds.
const LATE: Duration = Duration::from_secs(5);

impl Delivery {
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
        let (sent, is_record) = (flight.sent, flight.lane == Sending::Records);
        let cargo = std::mem::replace(&mut flight.cargo, Cargo::Control);
        while self.flight.front().is_some_and(|flight| flight.confirmed) {
            self.flight.pop_front();
        }
        let phase = match self.settings.confirm {
            Confirm::Broker => Phase::Confirmed,
            Confirm::Server => {
                let due = now + self.settings.ack_timeout;
                self.acks_due.get_or_insert(due);
                Phase::Published(now)
            }
        };
        if is_record {
            self.sessions.carry();
        }
        // At QoS 0 it says no more than that the network has it.
        if !is_record || self.settings.qos > 0 {
            self.sessions.answer(sent);
        }
        let keys = self.keys_of(&cargo);
        self.poison.confirmed(&keys, sent, now);
        match cargo {
            Cargo::Control => {}
            Cargo::Own(seq) => self.settle_own(seq, phase, now),
            Cargo::Page(keys) => self.settle_page(|key, _| keys.contains(key), phase, now),
        }
    }

    /// The broker has answered a subscription, and will send nothing for it.
    pub fn subscription_refused(&mut self, token: u64, now: Duration) {
        let subscription = self.flight.iter().find(|flight| flight.token == token);
        if let Some(Sent::Subscribe(inbound)) = subscription.map(|flight| flight.sent) {
            self.acked(token, now);
            self.sessions.refuse(inbound);
        }
    }

    /// The server has acked records of `run`, as inclusive ranges of `seq`.
    pub fn server_acked(&mut self, run: Uuid, ranges: &[(u64, u64)], now: Duration) {
        if self.settings.confirm != Confirm::Server {
            return;
        }
        if self
            .live
            .front()
            .is_some_and(|held| held.entry.run() == run)
        {
            for &(from, to) in ranges {
                let behind = self.live.iter().skip(self.place_of(from));
                let acked: Vec<u64> = behind
                    .take_while(|held| held.entry.last() <= to)
                    .map(|held| held.entry.first())
                    .collect();
                for seq in acked {
                    self.settle_own(seq, Phase::Confirmed, now);
                }
            }
        }
        // A gap is acked as a whole.
        let covers = |entry: &Entry| {
            let (first, last) = (entry.first(), entry.last());
            ranges.iter().any(|&(from, to)| from <= first && last <= to)
        };
        let acked = |_: &Key, entry: &Entry| entry.run() == run && covers(entry);
        self.settle_page(acked, Phase::Confirmed, now);
    }

    /// What the server has not acked in time is sent again, or a little later: all of memory is looked
    /// at for it, so not too often.
    pub(super) fn time_out_acks(&mut self, now: Duration) {
        if self.acks_due.is_none_or(|due| now < due) {
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
        self.next_history = 0;
        let next = self.oldest_published().map(|at| at + timeout);
        self.acks_due = next.map(|at| at.max(now + timeout / ACK_LOOKS));
    }

    pub(super) fn oldest_published(&self) -> Option<Duration> {
        let live = self.live.iter().map(|held| held.phase);
        let page = self.page.iter().map(|replayed| replayed.phase);
        live.chain(page)
            .filter_map(|phase| match phase {
                Phase::Published(at) => Some(at),
                _ => None,
            })
            .min()
    }

    /// Whether the broker has not confirmed a publication for so long that it is to be left.
    pub fn is_stalled(&self, now: Duration) -> bool {
        self.is_up() && self.stalled_at().is_some_and(|at| now >= at)
    }

    /// Whether the broker answers: nothing waits for an answer for long.
    pub fn is_answered(&self, now: Duration) -> bool {
        let late = |flight: &Flight| now >= flight.at + LATE;
        self.is_up() && !self.oldest_publication().is_some_and(late)
    }

    pub(super) fn stalled_at(&self) -> Option<Duration> {
        self.oldest_publication()
            .map(|flight| flight.at + self.settings.stalled_after)
    }

    fn oldest_publication(&self) -> Option<&Flight> {
        let is_publication = |flight: &&Flight| matches!(flight.sent, Sent::Publish(_));
        let mut waiting = self.flight.iter().filter(|flight| !flight.confirmed);
        waiting.find(is_publication)
    }

    /// A broker that never answers a subscription is no reason to leave it: records can be delivered.
    pub(super) fn give_up_unanswered_subscriptions(&mut self, now: Duration) {
        let patience = self.settings.stalled_after;
        while let Some(oldest) = self.flight.front()
            && (oldest.confirmed
                || matches!(oldest.sent, Sent::Subscribe(_)) && now >= oldest.at + patience)
        {
            if !oldest.confirmed {
                let text = format!(
                    "the broker has not answered a subscription for {} s: commands or acks may not come",
                    patience.as_secs()
                );
                self.orders.push_back(Output::Log(Level::Warn, text));
            }
            self.flight.pop_front();
        }
    }

    /// A record of this run reaches `phase`; a confirmed one leaves.
    pub(super) fn settle_own(&mut self, seq: u64, phase: Phase, now: Duration) {
        let place = self.place_of(seq);
        let held = self
            .live
            .get_mut(place)
            .filter(|held| held.entry.first() == seq);
        let mut on_disk = true;
        let mut last = seq;
        if let Some(held) = held {
            held.phase = phase;
            if phase != Phase::Confirmed {
                return;
            }
            on_disk = held.copy != Copy::None;
            last = held.entry.last();
            self.live.remove(place);
        }
        // A record that is not in memory was left to the disk before the broker answered.
        if phase == Phase::Confirmed
            && on_disk
            && let Some(run_number) = self.disk.run_number
        {
            let key = Key { run_number, seq };
            self.page
                .retain(|replayed| replayed.key != key || replayed.entry.last() != last);
            self.forget.push(key, last, now);
        }
    }

    /// Records of the page reach `phase`; the confirmed ones leave.
    pub(super) fn settle_page(
        &mut self,
        which: impl Fn(&Key, &Entry) -> bool,
        phase: Phase,
        now: Duration,
    ) {
        let Self { page, forget, .. } = self;
        page.retain_mut(|replayed| {
            if which(&replayed.key, &replayed.entry) {
                replayed.phase = phase;
            }
            if replayed.phase == Phase::Confirmed {
                forget.push(replayed.key, replayed.entry.last(), now);
            }
            replayed.phase != Phase::Confirmed
        });
    }
}
