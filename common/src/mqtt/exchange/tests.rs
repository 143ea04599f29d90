//! The exchange against a peer of a few lines, over a pipe in memory.

use proptest::prelude::*;
use rumqttc::{ConnAck, Incoming, Outgoing, PubAck, PubComp, PubRec, PubRel, Publish, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

fn line() -> (Line, DuplexStream) {
    let (stream, peer) = duplex(4_096);
    let socket = std::fs::File::open("/dev/null").unwrap().into();
    let stream = Box::new(stream);
    (Line { stream, socket }, peer)
}

fn options() -> MqttOptions {
    let mut options = MqttOptions::new("pi", "nowhere", 1);
    options.set_keep_alive(Duration::from_secs(60));
    options
}

fn bytes_of(packet: &Packet) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, MAX_OUTGOING).unwrap();
    bytes.to_vec()
}

async fn greeted() -> (Exchange, DuplexStream) {
    let (line, mut peer) = line();
    let ack = ConnAck::new(ConnectReturnCode::Success, false);
    peer.write_all(&bytes_of(&Packet::ConnAck(ack)))
        .await
        .unwrap();
    let exchange = Exchange::greet(line, &options()).await.unwrap();
    heard(&mut peer).await;
    (exchange, peer)
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

fn publish(qos: QoS, payload: &[u8]) -> Publish {
    Publish::new("pi/commands", qos, payload)
}

#[test]
fn a_refusal_is_told_and_nothing_else_is_taken_for_a_welcome() {
    on_paused_time(async {
        let (line, mut peer) = line();
        let refusal = ConnAck::new(ConnectReturnCode::NotAuthorized, false);
        peer.write_all(&bytes_of(&Packet::ConnAck(refusal)))
            .await
            .unwrap();
        let refused = Exchange::greet(line, &options()).await;
        assert!(refused.err().unwrap().is_refusal());
        let (line, mut peer) = self::line();
        peer.write_all(&bytes_of(&Packet::PingResp)).await.unwrap();
        let odd = Exchange::greet(line, &options()).await;
        assert!(matches!(odd, Err(LinkError::Protocol(_))));
        let (line, peer) = self::line();
        drop(peer);
        let none = Exchange::greet(line, &options()).await;
        assert!(matches!(none, Err(LinkError::NoGreeting)));
    });
}

#[test]
fn a_command_is_handed_on_before_its_receipt_is_written() {
    on_paused_time(async {
        let (mut exchange, mut peer) = greeted().await;
        let mut command = publish(QoS::AtLeastOnce, b"{}");
        command.pkid = 7;
        peer.write_all(&bytes_of(&Packet::Publish(command)))
            .await
            .unwrap();
        let event = exchange.next().await.unwrap();
        assert!(matches!(
            event,
            Happened::Event(Event::Incoming(Incoming::Publish(_)))
        ));
        assert!(!exchange.is_written());
        let receipt = bytes_of(&Packet::PubAck(PubAck::new(7)));
        while !exchange.is_written() {
            exchange.next().await.unwrap();
        }
        assert_eq!(heard(&mut peer).await, receipt);
    });
}

#[test]
fn what_is_taken_leaves_in_one_write_and_each_has_its_packet_id() {
    on_paused_time(async {
        let (mut exchange, mut peer) = greeted().await;
        let mut expected = Vec::new();
        for pkid in 1..=3 {
            let mut message = publish(QoS::AtLeastOnce, b"reading");
            exchange.send(Request::Publish(message.clone())).unwrap();
            message.pkid = pkid;
            expected.extend(bytes_of(&Packet::Publish(message)));
            let event = exchange.next().await.unwrap();
            let taken = Event::Outgoing(Outgoing::Publish(pkid));
            assert_eq!(event, Happened::Event(taken));
        }
        assert_eq!(exchange.next().await.unwrap(), Happened::Written);
        assert_eq!(heard(&mut peer).await, expected);
    });
}

#[test]
fn a_call_that_is_dropped_loses_nothing() {
    on_paused_time(async {
        let (mut exchange, mut peer) = greeted().await;
        let (mut read, mut sent) = (Vec::new(), Vec::new());
        for n in 0..200_u16 {
            let mut message = publish(QoS::AtLeastOnce, &[b'x'; 100]);
            exchange.send(Request::Publish(message.clone())).unwrap();
            message.pkid = n % 100 + 1;
            sent.extend(bytes_of(&Packet::Publish(message)));
            // Dropped at once wherever it waits; the pipe is full now and then.
            for _ in 0..3 {
                let _ = tokio::time::timeout(Duration::ZERO, exchange.next()).await;
            }
            if n % 30 == 29 {
                read.extend(heard(&mut peer).await);
            }
            if n >= 50 {
                let ack = PubAck::new((n - 50) % 100 + 1);
                peer.write_all(&bytes_of(&Packet::PubAck(ack)))
                    .await
                    .unwrap();
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
        let (mut exchange, _peer) = greeted().await;
        let message = publish(QoS::AtLeastOnce, &[b'x'; 9_000]);
        exchange.send(Request::Publish(message)).unwrap();
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
        let (mut exchange, mut peer) = greeted().await;
        let began = Instant::now();
        let over = loop {
            if let Err(error) = exchange.next().await {
                break error;
            }
        };
        assert!(matches!(over, LinkError::Silent), "{over}");
        assert_eq!(began.elapsed(), Duration::from_secs(120));
        assert_eq!(heard(&mut peer).await, bytes_of(&Packet::PingReq));
    });
}

#[test]
fn a_peer_that_hangs_up_ends_it_and_close_waits_for_that() {
    on_paused_time(async {
        let (mut exchange, peer) = greeted().await;
        drop(peer);
        let over = exchange.next().await.unwrap_err();
        assert!(matches!(over, LinkError::Closed), "{over}");
        let (exchange, mut peer) = greeted().await;
        let broker = async {
            let goodbye = heard(&mut peer).await;
            drop(peer);
            goodbye
        };
        let (_, goodbye) = tokio::join!(exchange.close(), broker);
        assert_eq!(goodbye, bytes_of(&Packet::Disconnect));
    });
}

/// A publication that is too large for [`options`].
fn large(qos: QoS) -> (Vec<u8>, u16) {
    let mut large = publish(qos, &[b'x'; 100_000]);
    large.pkid = if qos == QoS::AtMostOnce { 0 } else { 9 };
    let pkid = large.pkid;
    (bytes_of(&Packet::Publish(large)), pkid)
}

#[test]
fn a_packet_too_large_is_answered_and_the_command_behind_it_arrives() {
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        on_paused_time(async {
            let (mut exchange, mut peer) = greeted().await;
            let (bytes, pkid) = large(qos);
            let broker = async {
                peer.write_all(&bytes).await.unwrap();
                match qos {
                    QoS::AtMostOnce => {}
                    QoS::AtLeastOnce => {
                        let receipt = bytes_of(&Packet::PubAck(PubAck::new(pkid)));
                        assert_eq!(heard(&mut peer).await, receipt);
                    }
                    QoS::ExactlyOnce => {
                        let receipt = bytes_of(&Packet::PubRec(PubRec::new(pkid)));
                        assert_eq!(heard(&mut peer).await, receipt);
                        let release = bytes_of(&Packet::PubRel(PubRel::new(pkid)));
                        peer.write_all(&release).await.unwrap();
                        let done = bytes_of(&Packet::PubComp(PubComp::new(pkid)));
                        assert_eq!(heard(&mut peer).await, done);
                    }
                }
                let command = publish(QoS::AtMostOnce, b"{}");
                peer.write_all(&bytes_of(&Packet::Publish(command)))
                    .await
                    .unwrap();
            };
            let session = async {
                let mut passed = 0;
                loop {
                    match exchange.next().await.unwrap() {
                        Happened::TooLarge(it) => {
                            assert_eq!((it.topic.as_str(), it.bytes), ("pi/commands", bytes.len()));
                            passed += 1;
                        }
                        Happened::Event(Event::Incoming(Incoming::Publish(it))) => {
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
            let (mut exchange, mut peer) = greeted().await;
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
        kind in 0..16_u8,
        flags in 0..16_u8,
        body in proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..24),
        rest in proptest::collection::vec(any::<u8>(), 0..24),
    ) {
        on_paused_time(async {
            let (mut exchange, mut peer) = greeted().await;
            for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
                exchange.send(Request::Publish(publish(qos, b"x"))).unwrap();
            }
            peer.write_all(&[kind << 4 | flags, body.len() as u8]).await.unwrap();
            peer.write_all(&body).await.unwrap();
            peer.write_all(&rest).await.unwrap();
            drop(peer);
            while exchange.next().await.is_ok() {}
        });
    }
}
