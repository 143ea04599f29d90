//! What is to be told to the broker, and waits for room in the client: commands and status first, then
//! acks and the acknowledgements that they allow, in order. `shell` fills it, a session empties it.

use std::collections::VecDeque;

use crate::session::Session;

/// With more than this to tell, the broker is not listening.
const MOST: usize = 200_000;

/// What waits.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    urgent: VecDeque<Out>,
    rest: VecDeque<Out>,
    /// Publications handed over that the broker has not confirmed.
    unconfirmed: usize,
}

#[derive(Debug)]
enum Out {
    Publish(Message),
    Acknowledge(u16),
}

/// A publication of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Where to.
    pub topic: String,
    /// The broker keeps it.
    pub retain: bool,
    /// What.
    pub payload: String,
    /// With MQTT 5 the broker drops it when nobody has taken it after so many seconds.
    pub expiry: Option<u32>,
}

impl Outbox {
    /// For acks and accounts, which have time.
    pub(crate) fn publish(&mut self, message: Message) {
        self.rest.push_back(Out::Publish(message));
    }

    /// For commands and status, which have none.
    pub(crate) fn publish_first(&mut self, message: Message) {
        self.urgent.push_back(Out::Publish(message));
    }

    /// The message with this packet id is kept. After the acks of what was in it.
    pub(crate) fn acknowledge(&mut self, pkid: u16) {
        self.rest.push_back(Out::Acknowledge(pkid));
    }

    /// Hands over what there is room for.
    pub(crate) fn flush(&mut self, session: &mut Session) {
        while let Some(out) = self.urgent.front().or(self.rest.front()) {
            let taken = match out {
                Out::Publish(message) => {
                    let taken = session.publish(message);
                    self.unconfirmed += usize::from(taken);
                    taken
                }
                Out::Acknowledge(pkid) => session.acknowledge(*pkid),
            };
            if !taken {
                break;
            }
            if self.urgent.pop_front().is_none() {
                self.rest.pop_front();
            }
        }
    }

    /// The broker has confirmed a publication.
    pub(crate) fn confirmed(&mut self) {
        self.unconfirmed = self.unconfirmed.saturating_sub(1);
    }

    /// Whether a command would have to wait behind others.
    pub(crate) fn is_pressed(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// Whether the broker has long stopped to take anything.
    pub(crate) fn is_stuck(&self) -> bool {
        self.rest.len() > MOST
    }

    /// Whether something waits for room.
    pub(crate) fn waits(&self) -> bool {
        !self.urgent.is_empty() || !self.rest.is_empty()
    }

    /// Whether all is told and confirmed.
    pub(crate) fn is_done(&self) -> bool {
        !self.waits() && self.unconfirmed == 0
    }
}
