use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use rumqttc::QoS;

use super::super::framing::{Frame, Framing};
use super::super::packet::{About, Greeting, Said, Will};
use super::super::terms::Terms;
use super::*;

const BOTH: [Version; 2] = [Version::V311, Version::V5];

/// What these bytes are, fed one by one: complete at the last one, and not before.
fn read(version: Version, bytes: &[u8]) -> Result<Incoming, Error> {
    let mut framing = Framing::new(version, 2_000);
    for (at, byte) in bytes.iter().enumerate() {
        framing.take(&[*byte]);
        match framing.next() {
            Ok(None) => assert!(at + 1 < bytes.len(), "complete, and more is waited for"),
            Ok(Some(Frame::Packet(packet))) => {
                assert_eq!(at + 1, bytes.len());
                return Ok(packet);
            }
            Ok(Some(other)) => panic!("{other:?}"),
            Err(error) => return Err(error),
        }
    }
    panic!("no bytes")
}

#[test]
fn a_short_greeting_is_one_of_3_1_1_and_a_refusal_is_known_at_once() {
    let greeting = |code, version| {
        Incoming::ConnAck(Greeting {
            said: Said::new(code),
            session_present: false,
            terms: Terms::new(version),
        })
    };
    for (wire, code) in [
        (0, 0),
        (1, 0x84),
        (2, 0x85),
        (3, 0x88),
        (4, 0x86),
        (5, 0x87),
    ] {
        for version in BOTH {
            let packet = read(version, &[0x20, 2, 0, wire]).unwrap();
            assert_eq!(packet, greeting(code, Version::V311), "{version} {wire}");
        }
    }
    // With the properties that MQTT 5 wants, empty or not.
    let refused = read(Version::V5, &[0x20, 3, 0, 0x87, 0]).unwrap();
    assert_eq!(refused, greeting(0x87, Version::V5));
    // A reason that is on no list is a refusal all the same.
    let refused = read(Version::V5, &[0x20, 3, 0, 0xee, 0]).unwrap();
    assert_eq!(refused, greeting(0xee, Version::V5));
    assert!(read(Version::V5, &[0x20, 2, 0, 9]).is_err());
    assert!(read(Version::V5, &[0x20, 1, 0]).is_err());
}

#[test]
fn what_a_broker_offers_is_read() {
    let packet = read(
        Version::V5,
        &[
            0x20, 28, 1, 0, 25, 0x11, 0, 0, 0, 60, 0x21, 0, 20, 0x24, 1, 0x25, 0, 0x27, 0, 0, 1, 0,
            0x28, 0, 0x2a, 0, 0x13, 0, 5, 0x22,
        ],
    );
    // Topic alias maximum, cut off: the frame is whole and says less than it promises.
    assert!(packet.is_err());
    let packet = read(
        Version::V5,
        &[
            0x20, 27, 1, 0, 24, 0x11, 0, 0, 0, 60, 0x21, 0, 20, 0x24, 1, 0x25, 0, 0x27, 0, 0, 1, 0,
            0x28, 0, 0x2a, 0, 0x13, 0, 5,
        ],
    );
    let Incoming::ConnAck(greeting) = packet.unwrap() else {
        panic!("not a greeting");
    };
    assert!(greeting.session_present);
    let seconds = |seconds| Some(std::time::Duration::from_secs(seconds));
    let expected = Terms {
        version: Version::V5,
        session_expiry: seconds(60),
        receive_max: 20,
        max_packet: Some(256),
        max_qos: 1,
        retain: false,
        wildcards: false,
        shared: false,
        keep_alive: seconds(5),
    };
    assert_eq!(greeting.terms, expected);
    // A broker that says a thing twice means neither; pairs of strings may come as often as it likes.
    for twice in [
        &[0x20, 9, 0, 0, 6, 0x21, 0, 9, 0x21, 0, 1][..],
        &[0x20, 7, 0, 0, 4, 0x24, 0, 0x24, 1],
    ] {
        assert!(read(Version::V5, twice).is_err());
    }
    let pairs = [0x26, 0, 0, 0, 0];
    let packet = [&[0x20, 13, 0, 0, 10][..], &pairs, &pairs].concat();
    assert!(read(Version::V5, &packet).is_ok());
    // A limit of nothing is none that the protocol has.
    assert!(read(Version::V5, &[0x20, 6, 0, 0, 3, 0x21, 0, 0]).is_err());
    assert!(read(Version::V5, &[0x20, 8, 0, 0, 5, 0x27, 0, 0, 0, 0]).is_err());
}

#[test]
fn reasons_are_read_whole_short_and_with_words() {
    let said = |code, words: &str| Said {
        code,
        words: (!words.is_empty()).then(|| words.to_owned()),
    };
    for (bytes, packet) in [
        (&[0x40, 2, 0, 7][..], Incoming::PubAck(7, said(0, ""))),
        (&[0x40, 3, 0, 7, 0x10], Incoming::PubAck(7, said(0x10, ""))),
        (
            &[0x40, 4, 0, 7, 0x87, 0],
            Incoming::PubAck(7, said(0x87, "")),
        ),
        (
            &[0x40, 11, 0, 7, 0x97, 7, 0x1f, 0, 4, b'l', 7, b't', b'e'],
            Incoming::PubAck(7, said(0x97, "l te")),
        ),
        (
            &[
                0x50, 16, 0, 7, 0x83, 12, 0x26, 0, 1, b'a', 0, 1, b'b', 0x1f, 0, 2, b'o', b'k',
            ],
            Incoming::PubRec(7, said(0x83, "ok")),
        ),
        (&[0x40, 3, 0, 7, 0xee], Incoming::PubAck(7, said(0xee, ""))),
        (&[0x62, 2, 0, 7], Incoming::PubRel(7)),
        (&[0x70, 3, 0, 7, 0x92], Incoming::PubComp(7)),
        (
            &[0x90, 5, 0, 7, 0, 1, 0x87],
            Incoming::SubAck(7, vec![said(1, ""), said(0x87, "")]),
        ),
        (&[0xe0, 0], Incoming::Disconnect(said(0, ""))),
        (&[0xe0, 1, 0x8e], Incoming::Disconnect(said(0x8e, ""))),
        (&[0xe0, 2, 0x8b, 0], Incoming::Disconnect(said(0x8b, ""))),
    ] {
        assert_eq!(read(Version::V5, bytes).unwrap(), packet);
    }
    for broken in [
        &[0x40, 1, 7][..],
        &[0x40, 0],
        &[0x40, 5, 0, 7, 0x87, 9, 0x1f],
        &[0x40, 7, 0, 7, 0x87, 3, 0x1f, 0, 9],
        &[0x90, 3, 0, 7, 0],
        &[0x90, 4, 0, 7, 0x80, 0x80],
        &[0xf0, 0],
        &[0x10, 2, 0, 0],
        &[0xe0, 2, 0x8b, 0x80],
    ] {
        assert!(read(Version::V5, broken).is_err(), "{broken:?}");
    }
}

#[test]
fn publications_come_back_as_they_were_and_have_the_size_that_is_told() {
    for version in BOTH {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            for length in [0, 1, 100, 200, 500] {
                let mut message = Publication::new("pi/events", qos, vec![b'x'; length]);
                message.retain = length == 1;
                message.pkid = if qos == QoS::AtMostOnce { 0 } else { 300 };
                if version == Version::V5 && length > 0 {
                    message.about = About {
                        expiry: Some(30),
                        content_type: Some("application/json".into()),
                        response_topic: Some("x".repeat(length)),
                        correlation: Some(Bytes::from_static(b"77")),
                    };
                }
                let mut bytes = BytesMut::new();
                version.publish(message.clone(), &mut bytes).unwrap();
                assert_eq!(version.size(&message), bytes.len(), "{version} {length}");
                assert_eq!(read(version, &bytes).unwrap(), Incoming::Publish(message));
            }
        }
    }
}

#[test]
fn a_publication_is_no_longer_than_it_says_and_what_its_sender_adds_does_no_harm() {
    let packet = |properties: &[u8], of: u8| {
        let head = [0x30, (4 + properties.len()) as u8, 0, 1, b't', of];
        read(Version::V5, &[&head, properties].concat())
    };
    let about = |packet: Result<Incoming, Error>| match packet {
        Ok(Incoming::Publish(message)) => (message.about, message.payload),
        other => panic!("{other:?}"),
    };
    // A response topic twice, then the payload: the first counts.
    let twice = [8, 0, 1, b'a', 8, 0, 1, b'b', b'!'];
    let (said, payload) = about(packet(&twice, 8));
    assert_eq!(said.response_topic.as_deref(), Some("a"));
    assert_eq!(payload, "!");
    // Not in UTF-8: not taken.
    let (said, _) = about(packet(&[8, 0, 1, 0xff, 3, 0, 1, 0xff], 8));
    assert_eq!(said, About::default());
    // Properties that end in the payload, or behind the packet; an unknown one; a topic alias for a topic.
    assert!(packet(&[8, 0, 9, b'a', b'b', b'c'], 4).is_err());
    assert!(packet(&[8, 0, 1, b'a'], 9).is_err());
    assert!(packet(&[0x7e, 0], 2).is_err());
    assert!(read(Version::V5, &[0x30, 6, 0, 0, 3, 0x23, 0, 1]).is_err());
}

#[test]
fn connect_says_what_each_version_can() {
    let login = ("anna".to_owned(), "x".to_owned());
    let will = Will::new("pi/status", "offline", 5);
    let connect = Connect {
        client_id: "pi",
        keep_alive: 30,
        clean: false,
        session_expiry: 60,
        login: Some(&login),
        will: Some(&will),
    };
    let mut bytes = BytesMut::new();
    // What waits in front of it stays as it is.
    bytes.extend_from_slice(b"..");
    Version::V5.connect(&connect, &mut bytes).unwrap();
    let expected = b"..\x10\x3a\x00\x04MQTT\x05\xec\x00\x1e\x05\x11\x00\x00\x00\x3c\x00\x02pi\
                     \x05\x18\x00\x00\x00\x05\x00\x09pi/status\x00\x07offline\x00\x04anna\x00\x01x";
    assert_eq!(bytes[4..], expected[4..], "{bytes:?}");
    assert_eq!(usize::from(bytes[3]), bytes.len() - 4);
    let mut bytes = BytesMut::new();
    Version::V311.connect(&connect, &mut bytes).unwrap();
    let expected = b"\x00\x04MQTT\x04\xec\x00\x1e\x00\x02pi\
                     \x00\x09pi/status\x00\x07offline\x00\x04anna\x00\x01x";
    assert_eq!(bytes[2..], expected[..], "{bytes:?}");
}

proptest! {
    #[test]
    fn no_frame_panics_and_a_whole_one_is_never_waited_for(
        first in any::<u8>(),
        body in prop::collection::vec(prop_oneof![0..4_u8, Just(0x1f), Just(0x26), any::<u8>()], 0..60),
    ) {
        for version in BOTH {
            let mut framing = Framing::new(version, 1_000);
            framing.take(&[first, body.len() as u8]);
            framing.take(&body);
            prop_assert!(!matches!(framing.next(), Ok(None)));
        }
    }
}
