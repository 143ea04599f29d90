//! Whether anybody listens to the readings, as far as the broker says.
//!
//! A broker of MQTT 5 answers a publication at QoS 1 that matched no subscription with reason 0x10. What counts are
//! the two topics of readings: a device whose events nobody wants is heard all the same. Live readings and history
//! may have different listeners; while both are on their way, one that nobody hears is remembered for a moment, so
//! that they do not take turns.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Topic;

/// What was not heard on one topic counts for so long beside what is heard on the other.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Who listens.
#[derive(Debug, Clone, Default)]
pub(super) struct Hearing {
    heard: Option<bool>,
    /// When something was last not heard, by topic.
    unheard: BTreeMap<Topic, Duration>,
}

impl Hearing {
    /// A session ends or begins: nobody knows.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The broker has taken a publication, and says whether somebody listens.
    pub(super) fn answered(&mut self, topic: Topic, heard: bool, now: Duration) {
        if !matches!(topic, Topic::Telemetry | Topic::History) {
            return;
        }
        match heard {
            true => {
                self.unheard.remove(&topic);
                self.unheard.retain(|_, at| now < *at + REMEMBERED);
            }
            false => drop(self.unheard.insert(topic, now)),
        }
        self.heard = Some(self.unheard.is_empty());
    }

    /// None while nobody can know.
    pub(super) fn heard(&self) -> Option<bool> {
        self.heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_alone_count_and_two_topics_do_not_take_turns() {
        let mut hearing = Hearing::default();
        let at = Duration::from_secs;
        hearing.answered(Topic::Events, false, at(0));
        assert_eq!(hearing.heard(), None);
        hearing.answered(Topic::Telemetry, true, at(1));
        hearing.answered(Topic::Events, false, at(1));
        assert_eq!(hearing.heard(), Some(true));
        hearing.answered(Topic::History, false, at(2));
        hearing.answered(Topic::Telemetry, true, at(5));
        assert_eq!(hearing.heard(), Some(false));
        hearing.answered(Topic::Telemetry, true, at(32));
        assert_eq!(hearing.heard(), Some(true));
        hearing.answered(Topic::Telemetry, false, at(40));
        assert_eq!(hearing.heard(), Some(false));
        hearing.answered(Topic::Telemetry, true, at(41));
        assert_eq!(hearing.heard(), Some(true));
        hearing.forget();
        assert_eq!(hearing.heard(), None);
    }
}
