//! Packet ids: what each is used for, and which are free.
//!
//! A session at the broker outlives its connection, and remembers of each publication at QoS 2 the id that it has
//! received and that was not released. A new client that used such an id again would lose its publication in
//! silence: the broker would take it for the old one. So in a session that the broker knows, every id is released
//! first, and used when the broker says that it is free (docs/decisions/0030).

use std::collections::BTreeSet;

use rumqttc::QoS;

use super::packet::Said;

/// What the broker has to answer under a packet id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// Nothing: it is free.
    No,
    /// PUBCOMP for an id of an earlier connection.
    Free,
    PubAck(u64),
    PubRec(u64),
    PubComp(u64),
    SubAck(u64),
}

/// The packet ids of one connection; those of our messages, and those of the broker's at QoS 2.
#[derive(Debug)]
pub(super) struct Ids {
    /// By packet id; the first is never used.
    ids: Vec<Waits>,
    last: u16,
    /// Ids in use.
    used: u16,
    /// Publications without an answer.
    publications: u16,
    /// Most of them at a time.
    most: u16,
    /// Ids of the broker's messages at QoS 2 that it has not released.
    received: BTreeSet<u16>,
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// PUBREL is to follow.
    Release,
    /// The publication with this token is answered.
    Published(u64, Said),
    /// The subscription with this token is.
    Subscribed(u64),
    /// An id of an earlier connection is free.
    Freed,
}

/// An answer to what was not asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unasked;

impl Ids {
    /// Ids up to `most`, and as many publications at a time as the broker takes; with `release` they are of use
    /// when the broker has freed them.
    pub(super) fn new(most: u16, receive_max: u16, release: bool) -> Self {
        let first = if release { Waits::Free } else { Waits::No };
        Self {
            ids: vec![first; usize::from(most) + 1],
            last: 0,
            used: if release { most } else { 0 },
            publications: 0,
            most: most.min(receive_max),
            received: BTreeSet::new(),
        }
    }

    /// The ids to be released.
    pub(super) fn to_release(&self) -> impl Iterator<Item = u16> {
        let ids = self.ids.iter().enumerate().skip(1);
        ids.filter(|(_, waits)| **waits == Waits::Free)
            .filter_map(|(pkid, _)| u16::try_from(pkid).ok())
    }

    /// Whether an id of an earlier connection is not free yet.
    pub(super) fn is_releasing(&self) -> bool {
        self.to_release().next().is_some()
    }

    /// Whether one more publication above QoS 0 may go out.
    pub(super) fn has_room(&self) -> bool {
        self.publications < self.most && usize::from(self.used) + 1 < self.ids.len()
    }

    /// The id for a publication above QoS 0; none when there is no room.
    pub(super) fn publish(&mut self, token: u64, qos: QoS) -> Option<u16> {
        if self.publications >= self.most {
            return None;
        }
        let waits = match qos {
            QoS::ExactlyOnce => Waits::PubRec(token),
            _ => Waits::PubAck(token),
        };
        let pkid = self.take(waits)?;
        self.publications += 1;
        Some(pkid)
    }

    /// The id for a subscription; none when there is no room.
    pub(super) fn subscribe(&mut self, token: u64) -> Option<u16> {
        self.take(Waits::SubAck(token))
    }

    fn take(&mut self, waits: Waits) -> Option<u16> {
        let most = self.ids.len() - 1;
        for _ in 0..most {
            self.last = match usize::from(self.last) {
                last if last >= most => 1,
                _ => self.last + 1,
            };
            if self.ids[usize::from(self.last)] == Waits::No {
                self.ids[usize::from(self.last)] = waits;
                self.used += 1;
                return Some(self.last);
            }
        }
        None
    }

    pub(super) fn pub_ack(&mut self, pkid: u16, said: Said) -> Result<Answer, Unasked> {
        match self.get(pkid)? {
            // RabbitMQ with MQTT 3.1.1 has no QoS 2, and answers such a publication as one of QoS 1.
            Waits::PubAck(token) | Waits::PubRec(token) => Ok(self.published(pkid, token, said)),
            _ => Err(Unasked),
        }
    }

    pub(super) fn pub_rec(&mut self, pkid: u16, said: Said) -> Result<Answer, Unasked> {
        match self.get(pkid)? {
            Waits::PubRec(token) if said.is_no() => Ok(self.published(pkid, token, said)),
            Waits::PubRec(token) | Waits::PubComp(token) => {
                self.ids[usize::from(pkid)] = Waits::PubComp(token);
                Ok(Answer::Release)
            }
            Waits::Free => Ok(Answer::Release),
            _ => Err(Unasked),
        }
    }

    pub(super) fn pub_comp(&mut self, pkid: u16) -> Result<Answer, Unasked> {
        match self.get(pkid)? {
            Waits::PubComp(token) => Ok(self.published(pkid, token, Said::new(0))),
            Waits::Free => {
                self.free(pkid);
                Ok(Answer::Freed)
            }
            _ => Err(Unasked),
        }
    }

    pub(super) fn sub_ack(&mut self, pkid: u16) -> Result<Answer, Unasked> {
        match self.get(pkid)? {
            Waits::SubAck(token) => {
                self.free(pkid);
                Ok(Answer::Subscribed(token))
            }
            _ => Err(Unasked),
        }
    }

    /// A message of the broker's at QoS 2 came in. False, when it came before.
    pub(super) fn received(&mut self, pkid: u16) -> bool {
        self.received.insert(pkid)
    }

    /// Whether a message of the broker's is at QoS 2.
    pub(super) fn is_received(&self, pkid: u16) -> bool {
        self.received.contains(&pkid)
    }

    /// The broker has released a message of its own.
    pub(super) fn released(&mut self, pkid: u16) {
        self.received.remove(&pkid);
    }

    fn published(&mut self, pkid: u16, token: u64, said: Said) -> Answer {
        self.free(pkid);
        self.publications -= 1;
        Answer::Published(token, said)
    }

    fn free(&mut self, pkid: u16) {
        self.ids[usize::from(pkid)] = Waits::No;
        self.used -= 1;
    }

    fn get(&self, pkid: u16) -> Result<Waits, Unasked> {
        self.ids.get(usize::from(pkid)).copied().ok_or(Unasked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yes() -> Said {
        Said::new(0)
    }

    #[test]
    fn every_answer_in_every_state() {
        let publish = |qos| {
            let mut ids = Ids::new(1, 9, false);
            assert_eq!(ids.publish(7, qos), Some(1));
            assert_eq!(ids.publish(8, qos), None);
            ids
        };
        let answered = |code| Ok(Answer::Published(7, Said::new(code)));
        let mut ids = publish(QoS::AtLeastOnce);
        assert_eq!(ids.pub_rec(1, yes()), Err(Unasked));
        assert_eq!(ids.pub_comp(1), Err(Unasked));
        assert_eq!(ids.sub_ack(1), Err(Unasked));
        assert_eq!(ids.pub_ack(1, Said::new(0x10)), answered(0x10));
        assert_eq!(ids.pub_ack(1, yes()), Err(Unasked));
        assert_eq!(ids.pub_ack(2, yes()), Err(Unasked));
        assert_eq!(ids.pub_ack(0, yes()), Err(Unasked));
        // A denied PUBREC frees the id and its place in the window.
        let mut ids = publish(QoS::ExactlyOnce);
        assert_eq!(ids.pub_rec(1, Said::new(0x87)), answered(0x87));
        assert_eq!(ids.publish(9, QoS::ExactlyOnce), Some(1));
        let mut ids = publish(QoS::ExactlyOnce);
        for _ in 0..2 {
            assert_eq!(ids.pub_rec(1, yes()), Ok(Answer::Release));
            assert!(!ids.has_room());
        }
        assert_eq!(ids.pub_comp(1), answered(0));
        assert!(ids.has_room());
        // A broker without QoS 2 answers as at QoS 1; after PUBREC it is too late for that.
        let mut at_qos_1 = publish(QoS::ExactlyOnce);
        assert_eq!(at_qos_1.pub_ack(1, yes()), answered(0));
        let mut late = publish(QoS::ExactlyOnce);
        assert_eq!(late.pub_rec(1, yes()), Ok(Answer::Release));
        assert_eq!(late.pub_ack(1, yes()), Err(Unasked));
        assert_eq!(ids.subscribe(5), Some(1));
        assert_eq!(ids.pub_ack(1, yes()), Err(Unasked));
        assert_eq!(ids.sub_ack(1), Ok(Answer::Subscribed(5)));
    }

    #[test]
    fn the_brokers_receive_maximum_counts_publications_alone() {
        let mut ids = Ids::new(10, 2, false);
        for token in 0..3 {
            assert!(ids.subscribe(token).is_some());
        }
        assert_eq!(ids.publish(3, QoS::AtLeastOnce), Some(4));
        assert_eq!(ids.publish(4, QoS::ExactlyOnce), Some(5));
        assert!(!ids.has_room());
        assert_eq!(ids.publish(5, QoS::AtLeastOnce), None);
    }

    #[test]
    fn an_id_of_an_earlier_connection_is_used_when_the_broker_has_freed_it() {
        let mut ids = Ids::new(3, 9, true);
        assert_eq!(ids.to_release().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(!ids.has_room());
        assert_eq!(ids.publish(1, QoS::ExactlyOnce), None);
        assert_eq!(ids.pub_comp(2), Ok(Answer::Freed));
        assert!(ids.is_releasing());
        assert_eq!(ids.publish(1, QoS::ExactlyOnce), Some(2));
        assert_eq!(ids.publish(2, QoS::ExactlyOnce), None);
        assert_eq!(ids.pub_comp(2), Err(Unasked));
    }
}
