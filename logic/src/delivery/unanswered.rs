//! What was sent to the broker and is not answered yet.
//!
//! How much that is counts as a span, from the oldest unanswered message to the newest, so that packet ids
//! never collide; `window` says how much it may be. Records and everything else have room of their own: a flood of results holds up no
//! record. An answer costs the same however many messages wait. Used by `delivery` alone.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Key;
use crate::link::Sent;

/// What waits for the broker's answer.
#[derive(Debug, Clone)]
pub(super) struct Unanswered {
    /// Oldest first. One that is answered out of turn stays, without contents, until all before it are.
    slots: VecDeque<Slot>,
    /// The token of the first slot.
    first: u64,
    /// Slots with records, and without.
    records: usize,
    others: usize,
    /// Messages that count for the broker's receive maximum; not a span.
    above_qos_0: usize,
}

#[derive(Debug, Clone)]
struct Slot {
    is_record: bool,
    is_above_qos_0: bool,
    waits: Option<InFlight>,
}

/// A message without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InFlight {
    /// What it is, for the words about a session that ends.
    pub(super) sent: Sent,
    /// When it was sent (boot clock).
    pub(super) at: Duration,
    /// What it carries.
    pub(super) contents: Contents,
}

/// What a message carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Contents {
    /// No record: a result, the state, a subscription.
    Control,
    /// A result on the topic that its sender named: what becomes of it says nothing about any topic of ours.
    Reply,
    /// A record or gap of this run, sent from memory: its first and last `seq`. Meanwhile the store may have
    /// made a larger gap of it, which this does not confirm.
    Own(u64, u64),
    /// Entries of the backlog, sent from the page.
    Page(Vec<Key>),
}

impl Contents {
    /// Whether it carries no record.
    pub(super) fn is_control(&self) -> bool {
        matches!(self, Self::Control | Self::Reply)
    }
}

impl Unanswered {
    /// Nothing is in flight; tokens ascend from 1 for as long as this exists.
    pub(super) fn new() -> Self {
        Self {
            slots: VecDeque::new(),
            first: 1,
            records: 0,
            others: 0,
            above_qos_0: 0,
        }
    }

    /// A message goes out, above QoS 0 or not; gives its token.
    pub(super) fn push(&mut self, message: InFlight, is_above_qos_0: bool) -> u64 {
        let is_record = !message.contents.is_control();
        *self.count(is_record) += 1;
        self.above_qos_0 += usize::from(is_above_qos_0);
        self.slots.push_back(Slot {
            is_record,
            is_above_qos_0,
            waits: Some(message),
        });
        self.first + self.slots.len() as u64 - 1
    }

    /// The broker has answered; none for a token that is not waiting, as one of an earlier session.
    pub(super) fn answer(&mut self, token: u64) -> Option<InFlight> {
        let place = usize::try_from(token.checked_sub(self.first)?).ok()?;
        let slot = self.slots.get_mut(place)?;
        let answered = slot.waits.take();
        self.above_qos_0 -= usize::from(answered.is_some() && slot.is_above_qos_0);
        while let Some(Slot {
            waits: None,
            is_record,
            ..
        }) = self.slots.front()
        {
            let is_record = *is_record;
            self.slots.pop_front();
            self.first += 1;
            *self.count(is_record) -= 1;
        }
        answered
    }

    /// The session is over: gives everything that was not answered, oldest first.
    pub(super) fn clear(&mut self) -> Vec<InFlight> {
        self.first += self.slots.len() as u64;
        (self.records, self.others, self.above_qos_0) = (0, 0, 0);
        let slots = std::mem::take(&mut self.slots);
        slots.into_iter().filter_map(|slot| slot.waits).collect()
    }

    /// What is not answered, oldest first, with its token.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (u64, &InFlight)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(place, slot)| {
            let message = slot.waits.as_ref()?;
            Some((self.first + place as u64, message))
        })
    }

    /// The message with this token, if it waits.
    pub(super) fn get(&self, token: u64) -> Option<&InFlight> {
        let place = usize::try_from(token.checked_sub(self.first)?).ok()?;
        self.slots.get(place)?.waits.as_ref()
    }

    /// The oldest message without an answer, with its token.
    pub(super) fn oldest(&self) -> Option<(u64, &InFlight)> {
        self.waiting().next()
    }

    /// The span of messages with records.
    pub(super) fn records(&self) -> usize {
        self.records
    }

    /// The span of messages without.
    pub(super) fn others(&self) -> usize {
        self.others
    }

    /// Messages above QoS 0 without an answer, of any kind.
    pub(super) fn above_qos_0(&self) -> usize {
        self.above_qos_0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn count(&mut self, is_record: bool) -> &mut usize {
        match is_record {
            true => &mut self.records,
            false => &mut self.others,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Topic;

    fn message(contents: Contents) -> InFlight {
        InFlight {
            sent: Sent::Publish(Topic::Telemetry),
            at: Duration::ZERO,
            contents,
        }
    }

    #[test]
    fn the_span_shrinks_when_the_oldest_is_answered_and_each_answer_counts_once() {
        let mut unanswered = Unanswered::new();
        let tokens: Vec<u64> = (1..=4)
            .map(|seq| match seq {
                2 => unanswered.push(message(Contents::Control), true),
                seq => unanswered.push(message(Contents::Own(seq, seq)), true),
            })
            .collect();
        assert_eq!((unanswered.records(), unanswered.others()), (3, 1));
        let third = unanswered
            .answer(tokens[2])
            .map(|answered| answered.contents);
        assert_eq!(third, Some(Contents::Own(3, 3)));
        assert_eq!(unanswered.answer(tokens[2]), None);
        assert_eq!((unanswered.records(), unanswered.others()), (3, 1));
        assert_eq!(unanswered.above_qos_0(), 3);
        assert!(unanswered.answer(tokens[0]).is_some());
        assert_eq!((unanswered.records(), unanswered.others()), (2, 1));
        assert!(unanswered.answer(tokens[1]).is_some());
        assert_eq!((unanswered.records(), unanswered.others()), (1, 0));
    }

    #[test]
    fn tokens_of_an_earlier_session_answer_nothing() {
        let mut unanswered = Unanswered::new();
        let old = unanswered.push(message(Contents::Own(1, 1)), true);
        assert_eq!(unanswered.clear().len(), 1);
        let new = unanswered.push(message(Contents::Own(1, 1)), true);
        assert!(new > old);
        for token in [0, old, new + 1, u64::MAX] {
            assert_eq!(unanswered.answer(token), None, "{token}");
        }
        assert!(unanswered.answer(new).is_some());
        assert!(unanswered.is_empty());
    }
}
