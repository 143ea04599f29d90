//! Packets out of bytes. One that is too large is read to its end and not kept: only what its head says,
//! so that it can be acknowledged and told.
//!
//! A broker keeps what it could not deliver and sends it again in the next session; to hang up on a large
//! packet would keep us away for as long as the broker has it.

use bytes::{Buf, BytesMut};
use rumqttc::QoS;
use rumqttc::mqttbytes::Error as PacketError;

use super::dialect;
use super::packet::Incoming;
use super::terms::Version;

/// Less than this is on its way in a moment, and says nothing about a packet that did not come to its end.
const SMALL: usize = 16 * 1024;

/// The bytes of one session that came in and are not a packet yet.
#[derive(Debug)]
pub(super) struct Framing {
    version: Version,
    inbound: BytesMut,
    /// Larger packets are not kept.
    limit: usize,
    passing: Option<Passing>,
}

/// What came.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    Packet(Incoming),
    TooLarge(TooLarge),
}

/// A publication that was too large to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// Where.
    pub topic: String,
    /// The broker had kept it.
    pub retain: bool,
    /// Its quality of service.
    pub qos: QoS,
    /// 0 at QoS 0.
    pub pkid: u16,
    /// Of the packet, without what only MQTT 5 says of it.
    pub bytes: usize,
}

/// One on its way.
#[derive(Debug)]
struct Passing {
    head: TooLarge,
    left: usize,
}

impl Framing {
    pub(super) fn new(version: Version, limit: usize) -> Self {
        Self {
            version,
            inbound: BytesMut::new(),
            limit,
            passing: None,
        }
    }

    /// What follows is in this version.
    pub(super) fn speak(&mut self, version: Version) {
        self.version = version;
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.inbound.extend_from_slice(bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inbound.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.inbound.clear();
        self.passing = None;
    }

    /// Whether a packet has begun that is not at its end.
    pub(super) fn is_within_packet(&self) -> bool {
        self.passing.is_some() || !self.inbound.is_empty()
    }

    /// The large publication that has begun and is not at its end, whether or not it would be kept.
    pub(super) fn unfinished(&self) -> Option<TooLarge> {
        match &self.passing {
            Some(passing) => Some(passing.head.clone()),
            None => Head::read(self.version, &self.inbound)
                .ok()?
                .map(|head| head.publication)
                .filter(|publication| publication.bytes > SMALL),
        }
    }

    /// The next packet of what was taken, if all of it is there.
    ///
    /// # Errors
    /// It is no packet.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, PacketError> {
        if self.passing.is_none() {
            let Some(head) = dialect::Head::read(&self.inbound)? else {
                return Ok(None);
            };
            if head.rest <= self.limit {
                if self.inbound.len() < head.whole() {
                    return Ok(None);
                }
                let frame = self.inbound.split_to(head.whole());
                return Ok(Some(Frame::Packet(self.version.read(frame, head)?)));
            }
            let left = head.whole();
            let Some(head) = Head::read(self.version, &self.inbound)? else {
                return Ok(None);
            };
            self.passing = Some(Passing {
                left,
                head: head.publication,
            });
        }
        if let Some(passing) = &mut self.passing {
            let there = passing.left.min(self.inbound.len());
            self.inbound.advance(there);
            passing.left -= there;
            if passing.left > 0 {
                return Ok(None);
            }
        }
        let passed = self.passing.take();
        Ok(passed.map(|passed| Frame::TooLarge(passed.head)))
    }
}

/// What stands before the payload of a publication.
struct Head {
    publication: TooLarge,
}

impl Head {
    /// None, when not all of it is there.
    ///
    /// # Errors
    /// This is no publication.
    fn read(version: Version, bytes: &[u8]) -> Result<Option<Self>, PacketError> {
        if let Some(first) = bytes.first().filter(|first| *first >> 4 != 3) {
            return Err(PacketError::InvalidPacketType(first >> 4));
        }
        let Some(head) = dialect::Head::read(bytes)? else {
            return Ok(None);
        };
        let (first, length) = (head.first, head.rest);
        let mut body = &bytes[head.bytes..];
        let qos = match first >> 1 & 3 {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            2 => QoS::ExactlyOnce,
            other => return Err(PacketError::InvalidQoS(other)),
        };
        let Some(of_topic) = number(&mut body) else {
            return Ok(None);
        };
        let of_pkid = if qos == QoS::AtMostOnce { 0 } else { 2 };
        if 2 + usize::from(of_topic) + of_pkid > length {
            return Err(PacketError::MalformedPacket);
        }
        let Some((topic, mut body)) = body.split_at_checked(of_topic.into()) else {
            return Ok(None);
        };
        let pkid = match of_pkid {
            0 => 0,
            _ => match number(&mut body) {
                None => return Ok(None),
                Some(0) => return Err(PacketError::PacketIdZero),
                Some(pkid) => pkid,
            },
        };
        let mut properties = 0;
        if version == Version::V5 {
            let Some((of_length, length)) = dialect::length(body)? else {
                return Ok(None);
            };
            properties = of_length + length;
        }
        let publication = TooLarge {
            topic: String::from_utf8_lossy(topic).into_owned(),
            retain: first & 1 == 1,
            qos,
            pkid,
            bytes: head.whole().saturating_sub(properties),
        };
        Ok(Some(Self { publication }))
    }
}

fn number(bytes: &mut &[u8]) -> Option<u16> {
    let (number, rest) = bytes.split_first_chunk::<2>()?;
    *bytes = rest;
    Some(u16::from_be_bytes(*number))
}

/// What sessions that ended within one large publication teach the next one: the broker would send it
/// again, first thing, for ever. The second time in a row the session at the broker begins anew, and when
/// the publication is one that the broker keeps (retained), its topic is left out for a while.
#[derive(Debug, Default)]
pub(super) struct Avoid {
    in_a_row: u32,
    topic: Option<String>,
}

impl Avoid {
    /// A session has ended, within this publication or within none.
    pub(super) fn ended(&mut self, unfinished: Option<TooLarge>) {
        self.topic = None;
        let Some(unfinished) = unfinished else {
            self.in_a_row = 0;
            return;
        };
        self.in_a_row += 1;
        let TooLarge {
            topic,
            bytes,
            retain,
            ..
        } = unfinished;
        tracing::warn!(
            "the session ended within a message of {bytes} bytes on {topic:?}, which the link is too slow for{}",
            match (self.starts_clean(), retain) {
                (false, _) => "",
                (true, false) =>
                    ": the broker is told to forget it, with all else that waits for us there",
                (true, true) =>
                    ": the broker keeps it (retained), so this topic is not subscribed to for some minutes; \
                     whoever sent it can remove it with an empty retained message",
            }
        );
        if self.starts_clean() && retain {
            self.topic = Some(topic);
        }
    }

    /// Whether the next session has to begin without what the broker kept of the last.
    pub(super) fn starts_clean(&self) -> bool {
        self.in_a_row >= 2
    }

    /// Whether the next session does not subscribe to this filter for now.
    pub(super) fn leaves_out(&self, filter: &str) -> bool {
        self.topic
            .as_ref()
            .is_some_and(|topic| rumqttc::matches(topic, filter))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packet::Publication;
    use super::*;

    const VERSION: Version = Version::V5;

    const LIMIT: usize = 1_000;

    fn bytes_of(version: Version, publish: &Publication) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        version.publish(publish.clone(), &mut bytes).unwrap();
        bytes.to_vec()
    }

    fn publish(qos: QoS, length: usize) -> Publication {
        let mut publish = Publication::new("pi/commands", qos, vec![b'x'; length]);
        publish.pkid = if qos == QoS::AtMostOnce { 0 } else { 77 };
        publish
    }

    #[test]
    fn a_large_packet_is_passed_over_and_the_one_behind_it_is_whole() {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            for (version, step) in [Version::V311, Version::V5]
                .into_iter()
                .flat_map(|version| [1, 7, 4_096, 100_000].map(|step| (version, step)))
            {
                let mut large = publish(qos, 50_000);
                large.retain = true;
                let good = publish(QoS::AtLeastOnce, 10);
                let mut all = bytes_of(version, &large);
                let bytes = all.len() - usize::from(version == Version::V5);
                all.extend(bytes_of(version, &good));
                let mut framing = Framing::new(version, LIMIT);
                let (mut frames, mut most) = (Vec::new(), 0);
                for part in all.chunks(step) {
                    framing.take(part);
                    while let Some(frame) = framing.next().unwrap() {
                        frames.push(frame);
                    }
                    most = most.max(framing.inbound.len());
                }
                let expected = TooLarge {
                    topic: "pi/commands".into(),
                    retain: true,
                    qos,
                    pkid: large.pkid,
                    bytes,
                };
                assert_eq!(
                    frames,
                    [
                        Frame::TooLarge(expected),
                        Frame::Packet(Incoming::Publish(good))
                    ]
                );
                assert!(most <= LIMIT, "{most} bytes kept");
                assert!(!framing.is_within_packet());
            }
        }
    }

    #[test]
    fn what_is_not_at_its_end_is_known_by_its_head() {
        let mut framing = Framing::new(VERSION, LIMIT);
        let large = bytes_of(VERSION, &publish(QoS::AtLeastOnce, 50_000));
        framing.take(&large[..3]);
        assert_eq!(framing.next().unwrap(), None);
        assert_eq!(framing.unfinished(), None);
        framing.take(&large[3..100]);
        assert_eq!(framing.next().unwrap(), None);
        assert_eq!(framing.unfinished().unwrap().topic, "pi/commands");
        framing.take(&large[100..]);
        assert!(framing.next().unwrap().is_some());
        assert_eq!(framing.unfinished(), None);
    }

    #[test]
    fn only_publications_may_be_large() {
        for first in [0x40, 0x90, 0x20, 0xd0] {
            let mut framing = Framing::new(VERSION, LIMIT);
            framing.take(&[first, 0xff, 0xff, 0xff, 0x7f]);
            assert!(framing.next().is_err());
        }
        for body in [
            [0x36, 0xff, 0xff, 0xff, 0x7f, 0, 1, b't', 0, 1],
            [0x32, 0xff, 0xff, 0xff, 0x7f, 0, 1, b't', 0, 0],
        ] {
            let mut framing = Framing::new(VERSION, LIMIT);
            framing.take(&body);
            assert!(framing.next().is_err());
        }
    }

    #[test]
    fn a_publication_that_never_ends_is_avoided_the_second_time() {
        let kept = |retain| TooLarge {
            topic: "pi/commands".into(),
            retain,
            qos: QoS::AtLeastOnce,
            pkid: 1,
            bytes: 5_000_000,
        };
        let mut avoid = Avoid::default();
        avoid.ended(Some(kept(true)));
        assert!(!avoid.starts_clean() && !avoid.leaves_out("pi/commands"));
        avoid.ended(Some(kept(true)));
        assert!(avoid.starts_clean() && avoid.leaves_out("pi/commands"));
        assert!(avoid.leaves_out("+/commands") && !avoid.leaves_out("pi/acks"));
        avoid.ended(Some(kept(false)));
        assert!(avoid.starts_clean() && !avoid.leaves_out("pi/commands"));
        avoid.ended(None);
        assert!(!avoid.starts_clean());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_pile_up(parts in prop::collection::vec(
            prop::collection::vec(prop_oneof![Just(0x30), Just(0xff), Just(0x7f), any::<u8>()], 0..40), 0..20,
        )) {
            let mut framing = Framing::new(VERSION, LIMIT);
            for part in parts {
                framing.take(&part);
                let _ = framing.unfinished();
                while let Ok(Some(_)) = framing.next() {}
                prop_assert!(framing.inbound.len() <= 800);
            }
        }
    }
}
