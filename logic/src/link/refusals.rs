//! What the broker refuses with a reason, topic by topic: how long each is held back, and what is told of it.
//!
//! A refusal holds back the topic that it is about, and nothing else. How long depends on what it is: a denial waits
//! for a person, a quota for time. After the hold one message goes out alone, to see; an answer that is no refusal
//! ends it, and the next refusal makes the hold twice as long. A broker that was away is asked at once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Sent;

/// What a refusal of the broker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// An access list or a name forbids it: a person has to mend that.
    Denied,
    /// It was too much for now.
    Quota,
    /// The payload is not taken.
    Payload,
    /// The packet is larger than the broker takes.
    TooLarge,
    /// The broker does not say why.
    Unclear,
    /// Nobody listens, and somebody has to.
    Unheard,
}

impl Refusal {
    /// As status and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Quota => "quota",
            Self::Payload => "payload",
            Self::TooLarge => "too-large",
            Self::Unclear => "unclear",
            Self::Unheard => "unheard",
        }
    }

    /// The first hold of a topic, and the longest.
    fn holds(self) -> (Duration, Duration) {
        let seconds = Duration::from_secs;
        match self {
            Self::Denied => (seconds(30), seconds(3_600)),
            Self::Quota => (seconds(1), seconds(60)),
            Self::Unheard => (seconds(5), seconds(60)),
            Self::Payload | Self::TooLarge | Self::Unclear => (seconds(5), seconds(600)),
        }
    }
}

/// The topics that the broker refuses.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals {
    topics: BTreeMap<Sent, Refused>,
}

#[derive(Debug, Clone)]
struct Refused {
    refusal: Refusal,
    why: String,
    hold: Duration,
    /// Held back until then; after that one message may go out.
    opens_at: Option<Duration>,
    /// That one is on its way.
    is_tried: bool,
}

impl Refusals {
    /// A session begins. What the last one had no answer to is tried no sooner than what was refused: some brokers
    /// answer so late, or hang up instead.
    pub(super) fn begin(&mut self, now: Duration) {
        for refused in self.topics.values_mut() {
            if std::mem::take(&mut refused.is_tried) {
                refused.opens_at = Some(now + refused.hold);
            }
        }
    }

    /// The broker was away, and may have been mended meanwhile: each topic is tried with one message.
    pub(super) fn broker_was_away(&mut self) {
        for refused in self.topics.values_mut() {
            refused.opens_at = None;
            refused.is_tried = false;
        }
    }

    /// The broker has refused a message on this topic.
    pub(super) fn refuse(&mut self, sent: Sent, refusal: Refusal, why: &str, now: Duration) {
        let (first, longest) = refusal.holds();
        let refused = self.topics.entry(sent).or_insert_with(|| Refused {
            refusal,
            why: String::new(),
            hold: Duration::ZERO,
            opens_at: None,
            is_tried: false,
        });
        // Others of the same moment say nothing new.
        if refused.opens_at.is_none() {
            let is_same = refused.refusal == refusal;
            let doubled = if is_same { refused.hold * 2 } else { first };
            refused.hold = doubled.clamp(first, longest);
            refused.opens_at = Some(now + refused.hold);
        }
        refused.refusal = refusal;
        why.clone_into(&mut refused.why);
        refused.is_tried = false;
    }

    /// The broker has taken a message on this topic.
    pub(super) fn allow(&mut self, sent: Sent) {
        self.topics.remove(&sent);
    }

    /// Somebody listens again, it seems.
    pub(super) fn is_heard(&mut self) {
        let unheard = |refused: &&mut Refused| refused.refusal == Refusal::Unheard;
        for refused in self.topics.values_mut().filter(unheard) {
            refused.opens_at = None;
        }
    }

    /// A message goes out on this topic.
    pub(super) fn send(&mut self, sent: Sent) {
        if let Some(refused) = self.topics.get_mut(&sent) {
            refused.is_tried = true;
        }
    }

    /// Opens what was held back for long enough.
    pub(super) fn tick(&mut self, now: Duration) {
        for refused in self.topics.values_mut() {
            refused.opens_at.take_if(|at| now >= *at);
        }
    }

    /// Whether nothing is to go out on this topic for some time.
    pub(super) fn holds_back(&self, sent: Sent) -> bool {
        let refused = self.topics.get(&sent);
        refused.is_some_and(|refused| refused.opens_at.is_some() || refused.is_tried)
    }

    /// When the next topic may be tried.
    pub(super) fn next_opening(&self) -> Option<Duration> {
        let topics = self.topics.values();
        topics.filter_map(|refused| refused.opens_at).min()
    }

    /// What is refused, with the broker's reason in words; but what only nobody listens to.
    pub(super) fn in_force(&self) -> impl Iterator<Item = (Sent, Refusal, &str)> {
        let told = |(_, refused): &(&Sent, &Refused)| refused.refusal != Refusal::Unheard;
        let topics = self.topics.iter().filter(told);
        topics.map(|(sent, refused)| (*sent, refused.refusal, refused.why.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Topic;

    const TOPIC: Sent = Sent::Publish(Topic::History);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_refused_topic_is_tried_with_one_message_after_a_hold_that_grows() {
        let mut refusals = Refusals::default();
        assert!(!refusals.holds_back(TOPIC));
        let mut now = at(0);
        for hold in [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600] {
            // All that was in flight is refused at once.
            for _ in 0..16 {
                refusals.refuse(TOPIC, Refusal::Denied, "no", now);
            }
            assert_eq!(refusals.next_opening(), Some(now + at(hold)));
            refusals.tick(now + at(hold - 1));
            assert!(refusals.holds_back(TOPIC), "{hold}");
            now += at(hold);
            refusals.tick(now);
            assert!(!refusals.holds_back(TOPIC), "{hold}");
            refusals.send(TOPIC);
            assert!(refusals.holds_back(TOPIC), "one is on its way");
        }
        refusals.allow(TOPIC);
        assert!(!refusals.holds_back(TOPIC));
        assert_eq!(refusals.in_force().count(), 0);
    }

    #[test]
    fn a_broker_that_was_away_is_asked_and_a_listener_opens_what_waits_for_one() {
        let mut refusals = Refusals::default();
        refusals.refuse(TOPIC, Refusal::Unheard, "", at(0));
        assert!(refusals.holds_back(TOPIC));
        assert_eq!(refusals.in_force().count(), 0);
        refusals.is_heard();
        assert!(!refusals.holds_back(TOPIC));
        refusals.refuse(TOPIC, Refusal::Quota, "later", at(0));
        assert_eq!(refusals.next_opening(), Some(at(1)));
        refusals.is_heard();
        refusals.begin(at(0));
        assert!(refusals.holds_back(TOPIC));
        refusals.tick(at(1));
        refusals.send(TOPIC);
        refusals.begin(at(2));
        assert_eq!(refusals.next_opening(), Some(at(3)));
        refusals.broker_was_away();
        assert!(!refusals.holds_back(TOPIC));
        let in_force: Vec<_> = refusals.in_force().collect();
        assert_eq!(in_force, [(TOPIC, Refusal::Quota, "later")]);
    }
}
