//! The exchange against a peer of a few lines, over a pipe in memory.

use proptest::prelude::*;
use rumqttc::{ConnAck, Incoming, Outgoing, PubAck, Publish, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

const PATIENCE: Duration = Duration::from_secs(3);

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
    let exchange = Exchange::greet(line, &options(), PATIENCE).await.unwrap();
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
        let refused = Exchange::greet(line, &options(), PATIENCE).await;
        assert!(matches!(
            refused,
            Err(ConnectionError::ConnectionRefused(
                ConnectReturnCode::NotAuthorized
            ))
        ));
        let (line, mut peer) = self::line();
        peer.write_all(&bytes_of(&Packet::PingResp)).await.unwrap();
        let odd = Exchange::greet(line, &options(), PATIENCE).await;
        assert!(matches!(odd, Err(ConnectionError::NotConnAck(_))));
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
        assert!(matches!(event, Some(Event::Incoming(Incoming::Publish(_)))));
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
            assert_eq!(event, Some(Event::Outgoing(Outgoing::Publish(pkid))));
        }
        assert_eq!(exchange.next().await.unwrap(), None, "all is written");
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
        assert!(matches!(over, ConnectionError::FlushTimeout), "{over}");
        assert!((PATIENCE..PATIENCE * 2).contains(&began.elapsed()));
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
        let silent = ConnectionError::MqttState(StateError::AwaitPingResp);
        assert_eq!(over.to_string(), silent.to_string());
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
        assert!(matches!(
            over,
            ConnectionError::MqttState(StateError::ConnectionAborted)
        ));
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
