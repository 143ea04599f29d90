//! A record that the broker will not take must not keep the others from it.
//!
//! A session that ends with records in flight makes the daemon cautious: from then on one record at a
//! time, until those are through. The one that was in flight alone when three sessions ended, each of
//! which the broker had otherwise answered, is given up: kept aside for a person, and told as lost.
//! A broker that answers nothing at all makes no record suspect, nor does one that is merely away. One
//! that goes away three times within the round trip of the same record does: that is rare, and told.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Cargo, Delivery, Phase};
use crate::telemetry::{Loss, Record};
use crate::time::Clock;
use crate::{Key, Level, Output};

/// So many sessions must end with the record alone in flight.
const SESSIONS: u32 = 3;
/// More are not suspected at a time.
const SUSPECTS: usize = 4_096;

/// What speaks against a record.
#[derive(Debug, Default)]
pub(super) struct Poison {
    /// Those in flight when a session ended: one record at a time until they are through.
    suspects: BTreeSet<Key>,
    /// The record that was alone in flight when the last session ended.
    head: Option<Key>,
    /// How many sessions in a row ended so.
    times: u32,
    /// Publications that the broker has confirmed in this session.
    answers: u64,
    /// Records given up and not yet told.
    refused: Vec<Loss>,
}

impl Poison {
    /// A session begins, or nothing is to be made of its end.
    pub(super) fn hear_nothing(&mut self) {
        self.answers = 0;
    }

    /// The broker confirmed a publication that carried the records with these keys.
    pub(super) fn hear(&mut self, keys: &[Key]) {
        self.answers += 1;
        for key in keys {
            self.suspects.remove(key);
            self.head.take_if(|head| head == key);
        }
    }
}

impl Delivery {
    /// Whether records go one at a time.
    pub(super) fn is_cautious(&self) -> bool {
        !self.poison.suspects.is_empty()
    }

    /// Most publications in flight: the window, or one.
    pub(super) fn window(&self) -> usize {
        match self.is_cautious() {
            true => 1,
            false => self.settings.window,
        }
    }

    /// Most replayed records in one message.
    pub(super) fn batch(&self) -> usize {
        match self.is_cautious() {
            true => 1,
            false => self.settings.batch,
        }
    }

    /// A session has ended; what was in flight is still known.
    pub(super) fn look_for_poison(&mut self, clock: &Clock, now: Duration) {
        let keys = self.keys_in_flight();
        let answered = std::mem::take(&mut self.poison.answers) > 0;
        let Poison {
            suspects,
            head,
            times,
            ..
        } = &mut self.poison;
        suspects.extend(&keys);
        while suspects.len() > SUSPECTS {
            suspects.pop_last();
        }
        // With one record at a time, everything before it was answered: only it can be the cause.
        let [alone] = keys[..] else {
            return;
        };
        if !answered {
            return;
        }
        *times = if *head == Some(alone) { *times + 1 } else { 1 };
        *head = Some(alone);
        if *times >= SESSIONS {
            suspects.remove(&alone);
            *head = None;
            self.give_up(alone, clock, now);
        }
    }

    /// The next record given up.
    pub(super) fn take_refused(&mut self) -> Option<Loss> {
        self.poison.refused.pop()
    }

    /// The keys of what `cargo` carries.
    pub(super) fn keys_of(&self, cargo: &Cargo) -> Vec<Key> {
        match cargo {
            Cargo::Control => Vec::new(),
            Cargo::Own(seq) => vec![Key {
                ordinal: self.disk.ordinal.unwrap_or(u64::MAX),
                seq: *seq,
            }],
            Cargo::Page(keys) => keys.clone(),
        }
    }

    fn keys_in_flight(&self) -> Vec<Key> {
        let unconfirmed = self.flight.iter().filter(|flight| !flight.confirmed);
        unconfirmed
            .flat_map(|flight| self.keys_of(&flight.cargo))
            .collect()
    }

    fn give_up(&mut self, key: Key, clock: &Clock, now: Duration) {
        let in_page = self.page.iter().find(|replayed| replayed.key == key);
        let in_memory = || self.live.get(self.place_of(key.seq));
        let found: Option<Record> = in_page
            .map(|replayed| replayed.record.clone())
            .or_else(|| in_memory().map(|held| held.record.clone()));
        let Some(record) = found.filter(|record| record.seq == key.seq) else {
            return;
        };
        let text = format!(
            "the broker ended {SESSIONS} sessions when it got record {} of run {}: it is kept aside and told as lost",
            record.seq, record.run
        );
        self.orders.push_back(Output::Log(Level::Warn, text));
        self.poison.refused.push(Loss {
            of_run: record.run,
            from_seq: record.seq,
            to_seq: record.seq,
            count: 1,
            reason: "refused".into(),
        });
        self.orders
            .push_back(Output::SetAside(record.wire(clock, true)));
        self.settle_page(|other, _| *other == key, Phase::Confirmed, now);
        if self.disk.ordinal.unwrap_or(u64::MAX) == key.ordinal {
            self.settle_own(key.seq, Phase::Confirmed, now);
        }
    }
}
