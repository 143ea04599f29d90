//! The exchange against a peer of a few lines, over a pipe in memory, in both versions.

use proptest::prelude::*;
use rumqttc::QoS;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

const BOTH: [Version; 2] = [Version::V311, Version::V5];
const PING: [u8; 2] = [0xc0, 0];
const GOODBYE: [u8; 2] = [0xe0, 0];

fn line() -> (Line, DuplexStream) {
    let (stream, peer) = duplex(4_096);
    let line = Line {
        stream: Box::new(stream),
        socket: None,
    };
    (line, peer)
}

fn wish() -> Wish {
    Wish {
        max_incoming: 10_000,
        ..Wish::new("pi", Duration::from_secs(60))
    }
}

/// An answer to a publication, with a packet id and nothing else.
fn ack(kind: u8, pkid: u16) -> [u8; 4] {
    let [high, low] = pkid.to_be_bytes();
    let flags = if kind == 6 { 2 } else { 0 };
    [kind << 4 | flags, 2, high, low]
}

fn bytes_of(version: Version, publication: &Publication) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    version.publish(publication.clone(), &mut bytes).unwrap();
    bytes.to_vec()
}

/// A greeting with these properties; 3.1.1 has none.
fn greeting(version: Version, present: bool, properties: &[u8]) -> Vec<u8> {
    let head = [u8::from(present), 0];
    match version {
        Version::V311 => [&[0x20, 2][..], &head].concat(),
        Version::V5 => {
            let of = properties.len() as u8;
            [&[0x20, of + 3][..], &head, &[of], properties].concat()
        }
    }
}

async fn greeted_as(version: Version, properties: &[u8], wish: &Wish) -> (Exchange, DuplexStream) {
    let (line, mut peer) = line();
    peer.write_all(&greeting(version, false, properties))
        .await
        .unwrap();
    let exchange = Exchange::greet(line, version, wish, None).await.unwrap();
    heard(&mut peer).await;
    (exchange, peer)
}

async fn greeted(version: Version) -> (Exchange, DuplexStream) {
    greeted_as(version, &[], &wish()).await
}

/// What the peer can read at once.
async fn heard(peer: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let read = peer.read(&mut bytes).await.unwrap();
    bytes.truncate(read);
    bytes
}

fn on_paused_time<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(future)
}

fn publish(qos: QoS, payload: &[u8]) -> Publication {
    Publication::new("pi/commands", qos, payload.to_vec())
}

#[test]
fn a_refusal_is_told_and_nothing_else_is_taken_for_a_welcome() {
    on_paused_time(async {
        for (version, refusal) in [
            (Version::V311, &[0x20, 2, 0, 5][..]),
            (Version::V5, &[0x20, 2, 0, 5]),
            (Version::V5, &[0x20, 3, 0, 0x87, 0]),
            (Version::V5, &[0xe0, 1, 0x87]),
        ] {
            let (line, mut peer) = line();
            peer.write_all(refusal).await.unwrap();
            let refused = Exchange::greet(line, version, &wish(), None).await;
            assert!(refused.err().unwrap().is_refusal());
            let (line, mut peer) = self::line();
            peer.write_all(&[0xd0, 0]).await.unwrap();
            let odd = Exchange::greet(line, version, &wish(), None).await;
            assert!(matches!(odd, Err(LinkError::NotABroker)));
            let (line, peer) = self::line();
            drop(peer);
            let none = Exchange::greet(line, version, &wish(), None).await;
            assert!(matches!(none, Err(LinkError::NoGreeting)));
        }
    });
}

#[test]
fn a_broker_that_greets_in_3_1_1_is_spoken_to_in_3_1_1() {
    on_paused_time(async {
        let (line, mut peer) = line();
        peer.write_all(&[0x20, 2, 0, 0]).await.unwrap();
        let mut exchange = Exchange::greet(line, Version::V5, &wish(), None)
            .await
            .unwrap();
        heard(&mut peer).await;
        assert_eq!(exchange.terms(), &Terms::new(Version::V311));
        let mut message = publish(QoS::AtLeastOnce, b"reading");
        exchange.publish(1, message.clone()).unwrap();
        assert_eq!(exchange.next().await.unwrap(), Happened::Written);
        message.pkid = 1;
        assert_eq!(heard(&mut peer).await, bytes_of(Version::V311, &message));
    });
}

#[test]
fn a_command_is_handed_on_before_its_receipt_is_written() {
    for version in BOTH {
        on_paused_time(async {
            let (mut exchange, mut peer) = greeted(version).await;
            let mut command = publish(QoS::AtLeastOnce, b"{}");
            command.pkid = 7;
            peer.write_all(&bytes_of(version, &command)).await.unwrap();
            let event = exchange.next().await.unwrap();
            assert_eq!(event, Happened::Message(command));
            assert!(!exchange.is_written());
            while !exchange.is_written() {
                exchange.next().await.unwrap();
            }
            assert_eq!(heard(&mut peer).await, ack(4, 7));
        });
    }
}

#[test]
fn what_is_taken_leaves_in_one_write_and_each_has_its_packet_id() {
    for version in BOTH {
        on_paused_time(async {
            let (mut exchange, mut peer) = greeted(version).await;
            let mut expected = Vec::new();
            for pkid in 1..=3 {
                let mut message = publish(QoS::AtLeastOnce, b"reading");
                exchange.publish(u64::from(pkid), message.clone()).unwrap();
                message.pkid = pkid;
                expected.extend(bytes_of(version, &message));
            }
            assert_eq!(exchange.next().await.unwrap(), Happened::Written);
            assert_eq!(heard(&mut peer).await, expected);
            // Answered out of order, each names its own.
            for pkid in [2, 3, 1] {
                peer.write_all(&ack(4, pkid)).await.unwrap();
                let answered = Happened::Published(pkid.into(), Said::new(0));
                assert_eq!(exchange.next().await.unwrap(), answered);
            }
        });
    }
}

#[test]
fn a_limit_of_the_broker_is_kept() {
    on_paused_time(async {
        // Receive maximum 2, maximum packet size 100, no retained messages, keep alive 5 s.
        let properties = [0x21, 0, 2, 0x27, 0, 0, 0, 100, 0x25, 0, 0x13, 0, 5];
        let (mut exchange, mut peer) = greeted_as(Version::V5, &properties, &wish()).await;
        let large = publish(QoS::AtLeastOnce, &[b'x'; 100]);
        exchange.publish(9, large).unwrap();
        let refused = Happened::Published(9, Said::new(PACKET_TOO_LARGE));
        assert_eq!(exchange.next().await.unwrap(), refused);
        for token in 1..=2 {
            assert!(exchange.has_room());
            let mut message = publish(QoS::ExactlyOnce, b"x");
            message.retain = true;
            exchange.publish(token, message).unwrap();
        }
        assert!(!exchange.has_room());
        // A third one waits until another is answered.
        exchange
            .publish(3, publish(QoS::AtLeastOnce, b"x"))
            .unwrap();
        // What is below the maximum QoS of no answer does not count.
        exchange.publish(4, publish(QoS::AtMostOnce, b"x")).unwrap();
        assert_eq!(exchange.next().await.unwrap(), Happened::Written);
        assert_eq!(exchange.next().await.unwrap(), Happened::Sent(4));
        let bytes = heard(&mut peer).await;
        assert_eq!(bytes[0], 0x34, "not retained");
        assert_eq!(bytes.last(), Some(&b'x'));
        assert_eq!(bytes.len(), 19 + 19 + 17, "the third one waits");
        peer.write_all(&[0x50, 3, 0, 1, 0x87]).await.unwrap();
        let denied = Happened::Published(1, Said::new(0x87));
        assert_eq!(exchange.next().await.unwrap(), denied);
        assert_eq!(exchange.next().await.unwrap(), Happened::Written);
        assert_eq!(heard(&mut peer).await[0], 0x32);
        let began = Instant::now();
        assert!(matches!(exchange.next().await, Ok(Happened::Written)));
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        assert_eq!(heard(&mut peer).await, PING);
    });
}

#[test]
fn without_any_quality_of_service_nothing_is_confirmed() {
    on_paused_time(async {
        let (mut exchange, mut peer) = greeted_as(Version::V5, &[0x24, 0], &wish()).await;
        exchange
            .publish(1, publish(QoS::ExactlyOnce, b"x"))
            .unwrap();
        assert_eq!(exchange.next().await.unwrap(), Happened::Written);
        assert_eq!(exchange.next().await.unwrap(), Happened::Sent(1));
        assert_eq!(heard(&mut peer).await[0], 0x30);
    });
}

#[test]
fn packet_ids_of_an_earlier_connection_are_released_first() {
    for version in BOTH {
        on_paused_time(async {
            let (line, mut peer) = line();
            let wish = Wish {
                exactly_once: true,
                clean: false,
                in_flight: 3,
                ..wish()
            };
            let broker = async {
                let connect = heard(&mut peer).await;
                peer.write_all(&greeting(version, true, &[])).await.unwrap();
                let released = heard(&mut peer).await;
                let expected: Vec<u8> = (1..=3).flat_map(|pkid| ack(6, pkid)).collect();
                assert_eq!(released, expected);
                // A command that had waited comes between.
                let mut command = publish(QoS::AtLeastOnce, b"{}");
                command.pkid = 2;
                peer.write_all(&ack(7, 1)).await.unwrap();
                peer.write_all(&bytes_of(version, &command)).await.unwrap();
                for pkid in [3, 2] {
                    peer.write_all(&ack(7, pkid)).await.unwrap();
                }
                connect
            };
            let greet = Exchange::greet(line, version, &wish, None);
            let (exchange, connect) = tokio::join!(greet, broker);
            let mut exchange = exchange.unwrap();
            assert_eq!(connect[9] & 2, 0, "the session of before is asked for");
            let command = exchange.next().await.unwrap();
            assert!(matches!(command, Happened::Message(_)), "{command:?}");
            exchange
                .publish(1, publish(QoS::ExactlyOnce, b"x"))
                .unwrap();
            assert_eq!(exchange.next().await.unwrap(), Happened::Written);
            let bytes = heard(&mut peer).await;
            assert_eq!(bytes[..4], ack(4, 2), "its receipt, after it was handed on");
            // PUBREC, PUBREL, PUBCOMP.
            peer.write_all(&ack(5, 1)).await.unwrap();
            assert_eq!(exchange.next().await.unwrap(), Happened::Written);
            assert_eq!(heard(&mut peer).await, ack(6, 1));
            peer.write_all(&ack(7, 1)).await.unwrap();
            let done = Happened::Published(1, Said::new(0));
            assert_eq!(exchange.next().await.unwrap(), done);
        });
    }
}

#[test]
fn a_broker_that_frees_no_packet_id_is_left() {
    on_paused_time(async {
        let (line, mut peer) = line();
        let mut wish = Wish {
            exactly_once: true,
            clean: false,
            ..wish()
        };
        peer.write_all(&greeting(Version::V5, true, &[]))
            .await
            .unwrap();
        let began = Instant::now();
        let left = Exchange::greet(line, Version::V5, &wish, None).await;
        assert!(left.err().unwrap().is_unreleased());
        assert_eq!(began.elapsed(), RELEASE_WITHIN);
        // A session that begins clean does not wait for it, whatever the broker says.
        wish.clean = true;
        let (line, mut peer) = self::line();
        peer.write_all(&greeting(Version::V5, true, &[]))
            .await
            .unwrap();
        let opened = Exchange::greet(line, Version::V5, &wish, None).await;
        assert!(opened.is_ok());
    });
}

#[test]
fn a_broker_that_does_not_know_pubrel_is_known_by_its_goodbye() {
    on_paused_time(async {
        let wish = Wish {
            exactly_once: true,
            clean: false,
            ..wish()
        };
        let (line, mut peer) = line();
        let broker = async move {
            let hello = greeting(Version::V311, true, &[]);
            peer.write_all(&hello).await.unwrap();
            heard(&mut peer).await;
            // CONNECT is read, PUBREL may be: gone.
        };
        let greet = Exchange::greet(line, Version::V311, &wish, None);
        let (left, ()) = tokio::join!(greet, broker);
        assert!(left.err().unwrap().is_closed_on_release());
        // One that offers no QoS 2 is not asked: property 0x24, and the session is there at once.
        let (line, mut peer) = self::line();
        let hello = greeting(Version::V5, true, &[0x24, 1]);
        peer.write_all(&hello).await.unwrap();
        let opened = Exchange::greet(line, Version::V5, &wish, None).await;
        assert!(opened.is_ok(), "{:?}", opened.err());
    });
}

#[test]
fn what_comes_before_the_packet_ids_are_free_is_bounded() {
    on_paused_time(async {
        let (line, mut peer) = line();
        let wish = Wish {
            exactly_once: true,
            clean: false,
            max_incoming: 1 << 20,
            ..wish()
        };
        let broker = async {
            let hello = greeting(Version::V5, true, &[]);
            let mut sent = peer.write_all(&hello).await;
            let large = bytes_of(Version::V5, &publish(QoS::AtMostOnce, &[b'x'; 500_000]));
            let mut bytes = 0;
            while sent.is_ok() {
                sent = peer.write_all(&large).await;
                bytes += large.len();
            }
            bytes
        };
        let greet = Exchange::greet(line, Version::V5, &wish, None);
        let (left, bytes) = tokio::join!(greet, broker);
        assert!(left.err().unwrap().is_unreleased());
        assert!(bytes < 2 * MOST_BYTES_MEANWHILE, "{bytes}");
    });
}

#[test]
fn a_subscription_that_is_too_large_for_the_broker_is_refused_for_it() {
    on_paused_time(async {
        let properties = [0x27, 0, 0, 0, 20];
        let (mut exchange, _peer) = greeted_as(Version::V5, &properties, &wish()).await;
        for (filter, is_small) in [("pi/commands", true), ("a/longer/one/commands", false)] {
            exchange.subscribe(7, &[filter.to_owned()]).unwrap();
            let happened = exchange.next().await.unwrap();
            let expected = match is_small {
                true => Happened::Written,
                false => Happened::Subscribed(7, vec![Said::new(PACKET_TOO_LARGE)]),
            };
            assert_eq!(happened, expected);
        }
    });
}

#[test]
fn every_reason_for_a_goodbye_and_packets_that_nobody_asked_for_end_it_in_words() {
    on_paused_time(async {
        for code in 0..=255 {
            let (mut exchange, mut peer) = greeted(Version::V5).await;
            peer.write_all(&[0xe0, 1, code]).await.unwrap();
            let over = exchange.next().await.unwrap_err();
            assert_eq!(over.ended_with(), Some(code));
            assert!(over.to_string().len() > 40, "{over}");
        }
        // AUTH, CONNACK, CONNECT, SUBSCRIBE, PINGREQ, UNSUBACK, and half a packet.
        for bytes in [
            &[0xf0, 2, 0x18, 0][..],
            &[0x20, 3, 0, 0, 0],
            &[0x10, 2, 0, 0],
            &[0x82, 2, 0, 1],
            &[0xc0, 0],
            &[0xb0, 4, 0, 1, 0, 0],
            &[0x40, 2, 0],
        ] {
            let (mut exchange, mut peer) = greeted(Version::V5).await;
            peer.write_all(bytes).await.unwrap();
            drop(peer);
            let over = loop {
                if let Err(error) = exchange.next().await {
                    break error;
                }
            };
            let is_told = matches!(over, LinkError::Protocol(_) | LinkError::Closed);
            assert!(is_told, "{over}");
        }
    });
}

#[test]
fn a_broker_that_says_why_it_ends_the_session_is_heard() {
    on_paused_time(async {
        for (goodbye, is_our_doing, word) in [
            (&[0xe0, 1, 0x8e][..], true, "another client"),
            (&[0xe0, 0], false, "0x00"),
            (&[0xe0, 2, 0x8b, 0], false, "shuts down"),
            (
                &[0xe0, 6, 0x97, 4, 0x1f, 0, 1, b'!'],
                true,
                "in its words: \"!\"",
            ),
        ] {
            let (mut exchange, mut peer) = greeted(Version::V5).await;
            peer.write_all(goodbye).await.unwrap();
            let over = exchange.next().await.unwrap_err();
            assert_eq!(over.is_end(), is_our_doing, "{over}");
            assert!(over.to_string().contains(word), "{over}");
        }
    });
}

#[test]
fn a_call_that_is_dropped_loses_nothing() {
    on_paused_time(async {
        let (mut exchange, mut peer) = greeted(Version::V5).await;
        let (mut read, mut sent) = (Vec::new(), Vec::new());
        for n in 0..200_u16 {
            let mut message = publish(QoS::AtLeastOnce, &[b'x'; 100]);
            exchange.publish(n.into(), message.clone()).unwrap();
            message.pkid = n % 100 + 1;
            sent.extend(bytes_of(Version::V5, &message));
            // Dropped at once wherever it waits; the pipe is full now and then.
            for _ in 0..3 {
                let _ = tokio::time::timeout(Duration::ZERO, exchange.next()).await;
            }
            if n % 30 == 29 {
                read.extend(heard(&mut peer).await);
            }
            if n >= 50 {
                peer.write_all(&ack(4, (n - 50) % 100 + 1)).await.unwrap();
            }
        }
        while read.len() < sent.len() {
            let _ = tokio::time::timeout(Duration::ZERO, exchange.next()).await;
            read.extend(heard(&mut peer).await);
        }
        assert!(read == sent);
    });
}

#[test]
fn a_peer_that_takes_nothing_is_given_up() {
    on_paused_time(async {
        let (mut exchange, _peer) = greeted(Version::V5).await;
        let message = publish(QoS::AtLeastOnce, &[b'x'; 9_000]);
        exchange.publish(1, message).unwrap();
        let began = Instant::now();
        let over = loop {
            if let Err(error) = exchange.next().await {
                break error;
            }
        };
        assert!(matches!(over, LinkError::Stuck), "{over}");
        assert!((TIMEOUT..TIMEOUT * 2).contains(&began.elapsed()));
    });
}

#[test]
fn a_peer_that_is_silent_is_asked_and_given_up() {
    on_paused_time(async {
        let (mut exchange, mut peer) = greeted(Version::V5).await;
        let began = Instant::now();
        let over = loop {
            if let Err(error) = exchange.next().await {
                break error;
            }
        };
        assert!(matches!(over, LinkError::Silent), "{over}");
        assert_eq!(began.elapsed(), Duration::from_secs(120));
        assert_eq!(heard(&mut peer).await, PING);
    });
}

#[test]
fn a_peer_that_hangs_up_ends_it_and_close_waits_for_that() {
    on_paused_time(async {
        let (mut exchange, peer) = greeted(Version::V5).await;
        drop(peer);
        let over = exchange.next().await.unwrap_err();
        assert!(matches!(over, LinkError::Closed), "{over}");
        let (exchange, mut peer) = greeted(Version::V5).await;
        let broker = async {
            let goodbye = heard(&mut peer).await;
            drop(peer);
            goodbye
        };
        let (_, goodbye) = tokio::join!(exchange.close(), broker);
        assert_eq!(goodbye, GOODBYE);
    });
}

/// A publication that is too large for [`wish`].
fn large(version: Version, qos: QoS) -> (Vec<u8>, u16) {
    let mut large = publish(qos, &[b'x'; 100_000]);
    large.pkid = if qos == QoS::AtMostOnce { 0 } else { 9 };
    (bytes_of(version, &large), large.pkid)
}

#[test]
fn a_packet_too_large_is_answered_and_the_command_behind_it_arrives() {
    let all = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
    let all = BOTH.map(|version| all.map(|qos| (version, qos)));
    for (version, qos) in all.into_iter().flatten() {
        on_paused_time(async {
            let (mut exchange, mut peer) = greeted(version).await;
            let (bytes, pkid) = large(version, qos);
            let broker = async {
                peer.write_all(&bytes).await.unwrap();
                match qos {
                    QoS::AtMostOnce => {}
                    QoS::AtLeastOnce => {
                        assert_eq!(heard(&mut peer).await, ack(4, pkid));
                    }
                    QoS::ExactlyOnce => {
                        assert_eq!(heard(&mut peer).await, ack(5, pkid));
                        peer.write_all(&ack(6, pkid)).await.unwrap();
                        assert_eq!(heard(&mut peer).await, ack(7, pkid));
                    }
                }
                let command = publish(QoS::AtMostOnce, b"{}");
                peer.write_all(&bytes_of(version, &command)).await.unwrap();
            };
            let session = async {
                let mut passed = 0;
                loop {
                    match exchange.next().await.unwrap() {
                        Happened::TooLarge(it) => {
                            assert_eq!(
                                (it.topic.as_str(), it.bytes),
                                (
                                    "pi/commands",
                                    bytes.len() - usize::from(version == Version::V5)
                                )
                            );
                            passed += 1;
                        }
                        Happened::Message(it) => {
                            assert_eq!(it.payload.as_ref(), b"{}");
                            return passed;
                        }
                        _ => {}
                    }
                }
            };
            let (passed, ()) = tokio::join!(session, broker);
            assert_eq!(passed, 1);
        });
    }
}

#[test]
fn a_packet_that_comes_slowly_has_the_time_of_a_silent_peer_and_no_more() {
    on_paused_time(async {
        // So much a second, and after how many seconds it is over.
        for (rate, limits) in [(1, 100..=121), (5_000, 165..=175)] {
            let (mut exchange, mut peer) = greeted(Version::V5).await;
            let began = Instant::now();
            let broker = async {
                // 256 MB, which never come.
                let head = [0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1, b't'];
                let mut sent = peer.write_all(&head).await;
                while sent.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    sent = peer.write_all(&vec![b'x'; rate]).await;
                    // Pings are heard; the answers to them have to wait.
                    let mut bytes = [0; 100];
                    let _ = tokio::time::timeout(Duration::ZERO, peer.read(&mut bytes)).await;
                }
            };
            let session = async {
                loop {
                    if let Err(error) = exchange.next().await {
                        break (error, exchange.unfinished());
                    }
                }
            };
            let (over, unfinished) = tokio::select! {
                over = session => over,
                () = broker => panic!("the session has not ended"),
            };
            assert!(matches!(over, LinkError::Silent), "{over}");
            let after = began.elapsed().as_secs();
            assert!(limits.contains(&after), "{rate} bytes a second: {after} s");
            assert_eq!(unfinished.unwrap().topic, "t");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(2_000)
    })]

    #[test]
    fn no_bytes_of_a_broker_panic(
        is_v5 in any::<bool>(),
        kind in 0..16_u8,
        flags in 0..16_u8,
        body in proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..24),
        rest in proptest::collection::vec(any::<u8>(), 0..24),
    ) {
        on_paused_time(async {
            let (mut exchange, mut peer) = greeted(BOTH[usize::from(is_v5)]).await;
            for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
                exchange.publish(1, publish(qos, b"x")).unwrap();
            }
            peer.write_all(&[kind << 4 | flags, body.len() as u8]).await.unwrap();
            peer.write_all(&body).await.unwrap();
            peer.write_all(&rest).await.unwrap();
            drop(peer);
            while exchange.next().await.is_ok() {}
        });
    }
}

#[test]
fn what_a_broker_said_before_it_hung_up_is_read_though_nothing_can_be_written() {
    on_paused_time(async {
        for last in [&[0xe0, 1, 0x8e][..], &[]] {
            let (mut exchange, mut peer) = greeted(Version::V5).await;
            peer.write_all(last).await.unwrap();
            drop(peer);
            exchange
                .publish(1, publish(QoS::AtLeastOnce, b"1"))
                .unwrap();
            let ended = exchange.next().await.unwrap_err();
            let is_said = matches!(&ended, LinkError::Ended(said) if said.code == 0x8e);
            assert_eq!(is_said, !last.is_empty(), "{ended}");
        }
    });
}
