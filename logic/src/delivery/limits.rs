//! What the broker takes at a time, of everything above QoS 0 together: as far as it says, and as far as it shows.
//!
//! The receive maximum of MQTT 5 counts records, results and state alike. A broker that ends the session with
//! "receive maximum exceeded" takes fewer than it said, or than 3.1.1 lets it say: half of what was in flight is the
//! new limit, and it recovers as the window does. "Packet too large" halves the batch. Where nothing is left to
//! make smaller, the session ended as any other that the broker closed.

use std::time::Duration;

use super::unanswered::Contents;
use super::window::Window;
use super::{Delivery, InFlight, MAX_CONTROL_IN_FLIGHT};
use crate::link::{Ending, Sent};
use crate::{Level, Output};

/// Everything above QoS 0 that may be in flight with this window.
pub(super) fn all_in_flight(window: usize) -> Window {
    Window::new(window + MAX_CONTROL_IN_FLIGHT)
}

impl Delivery {
    /// Whether the broker takes one more publication of any kind.
    pub(super) fn has_room_at_broker(&self) -> bool {
        self.unanswered.above_qos_0() < self.most_at_broker()
    }

    /// Whether records are to go before results and the like. Where the broker takes few at a time they take
    /// turns, so that a flood of commands holds up no record.
    pub(super) fn is_records_turn(&self) -> bool {
        let all = self.settings.window + MAX_CONTROL_IN_FLIGHT;
        self.was_control && self.most_at_broker() < all
    }

    /// Whether the broker has to answer a publication with these contents.
    pub(super) fn is_above_qos_0(&self, sent: Sent, contents: &Contents) -> bool {
        let has_none = self.offer.as_ref().is_some_and(|offer| offer.max_qos == 0);
        let is_record = !contents.is_control();
        matches!(sent, Sent::Publish(_)) && !has_none && !(is_record && self.settings.qos == 0)
    }

    /// A session has ended: what it says about the broker's limits. Gives how it ended as far as that does not
    /// explain it.
    pub(super) fn learn_limits(
        &mut self,
        ending: Ending,
        unanswered: &[InFlight],
        now: Duration,
    ) -> Ending {
        let text = match ending {
            Ending::TooMany if self.together.size() > 1 => {
                let publications = unanswered.iter();
                let count = publications
                    .filter(|message| self.is_above_qos_0(message.sent, &message.contents))
                    .count();
                self.together.cut(count, now);
                let most = self.together.size();
                format!("the broker takes fewer publications at a time; at most {most} now")
            }
            Ending::TooLarge if self.batch.size() > 1 && unanswered.iter().any(is_batch) => {
                self.batch.halve(now);
                let most = self.batch.size();
                format!("the broker takes smaller packets; at most {most} records in one now")
            }
            Ending::TooMany | Ending::TooLarge => return Ending::Closed,
            other => return other,
        };
        self.orders.push_back(Output::Log(Level::Info, text));
        ending
    }

    fn most_at_broker(&self) -> usize {
        let offered = self.offer.as_ref().map(|offer| offer.receive_max.into());
        self.together.size().min(offered.unwrap_or(usize::MAX))
    }
}

fn is_batch(message: &InFlight) -> bool {
    matches!(&message.contents, Contents::Page(keys) if keys.len() > 1)
}
