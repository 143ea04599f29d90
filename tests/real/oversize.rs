//! Messages that are too large, on every topic that device and server listen to: read over, acknowledged
//! and told, and what comes behind them arrives.

#![allow(clippy::expect_used, reason = "test code")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use crate::stage::fake::{Act, FakeBroker, Packet, answer};
use crate::stage::{Agent, Broker, Listener, eventually, within};

/// A publisher of a few lines, which sends what a client library would not.
fn publish_large(port: u16, topic: &str, bytes: usize, qos: u8, retain: bool) {
    let mut broker = TcpStream::connect(("127.0.0.1", port)).expect("a broker");
    let connect = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05large";
    broker.write_all(connect).expect("written");
    let mut ack = [0; 4];
    broker.read_exact(&mut ack).expect("a greeting");
    assert_eq!(ack, [0x20, 2, 0, 0]);
    broker
        .write_all(&publication(topic, bytes, qos, retain))
        .expect("written");
    if qos > 0 {
        broker.read_exact(&mut ack).expect("a receipt");
    }
    if qos == 2 {
        broker.write_all(b"\x62\x02\x00\x07").expect("written");
        broker.read_exact(&mut ack).expect("the end of it");
    }
    broker.write_all(b"\xe0\x00").expect("written");
}

/// A whole PUBLISH with packet id 7.
fn publication(topic: &str, bytes: usize, qos: u8, retain: bool) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend(topic.as_bytes());
    if qos > 0 {
        body.extend([0, 7]);
    }
    body.resize(body.len() + bytes, b'x');
    let mut packet = head(0x30 | qos << 1 | u8::from(retain), body.len());
    packet.extend(body);
    packet
}

/// First byte and length.
fn head(first: u8, mut length: usize) -> Vec<u8> {
    let mut head = vec![first];
    loop {
        let more = u8::from(length > 0x7f) << 7;
        head.push((length & 0x7f) as u8 | more);
        length >>= 7;
        if length == 0 {
            return head;
        }
    }
}

#[test]
fn a_large_message_on_any_topic_of_the_device_ends_nothing() {
    let broker = Broker::start();
    let listener = Listener::start("big-a", broker.port);
    let more = "[control]\nlease = \"60s\"\nhold = \"0s\"\nserver_status = \"server/status\"\n";
    // Kept ones are there before the device is.
    for topic in ["big-a/commands", "big-a/acks", "server/status"] {
        publish_large(broker.port, topic, 5_000_000, 1, true);
    }
    let agent = Agent::start("big-a", broker.port, more);
    let rejected = || {
        let results = listener.on("commands/result").into_iter();
        results
            .filter(|result| {
                let reason = result["reason"].as_str().unwrap_or_default();
                result["result"] == "rejected" && reason.contains("at most 4096")
            })
            .count()
    };
    eventually("the kept one is rejected", || rejected() == 1);
    for qos in 0..=2 {
        for topic in ["big-a/acks", "server/status", "big-a/commands"] {
            publish_large(broker.port, topic, 300_000, qos, false);
        }
    }
    listener.publish("commands", r#"{"led_on": true, "id": "behind"}"#);
    eventually("the command behind them arrives", || agent.led_on());
    eventually("each is rejected", || rejected() == 4);
    let refused = || {
        agent
            .status()
            .map(|status| status["commands_refused"].clone())
    };
    eventually("they are counted", || refused() == Some(4.into()));
    assert!(agent.log().contains("5000023 bytes"), "{}", agent.log());
    assert!(!agent.log().contains("link down"), "{}", agent.log());
    assert!(agent.memory_kb() < 60_000, "{} kB", agent.memory_kb());
}

/// Kept at the broker, and the link is too slow for it: the same message at the start of each session.
#[test]
fn a_kept_message_that_never_ends_is_left_out_in_the_end() {
    let broker = FakeBroker::start(|connection, packet| match packet {
        Packet::Subscribe { first, .. } if first == "big-c/commands" => {
            assert!(connection < 2, "subscribed to the commands again");
            let mut endless = head(0x33, 200_000_000);
            endless.extend(b"\x00\x0ebig-c/commands\x00\x07xxxxx");
            let mut acts = answer(packet);
            acts.push(Act::Send(endless));
            acts
        }
        _ => answer(packet),
    });
    let broker_of = format!(
        "[broker]\nurl = \"mqtt://127.0.0.1:{}\"\nkeep_alive = \"2s\"\n",
        broker.port
    );
    let mut agent = Agent::start("big-c", broker.port, &broker_of);
    let again = within(Duration::from_secs(60), || broker.connections().len() > 2);
    assert!(again, "{}", agent.log());
    eventually("it says so", || {
        agent.log().contains("200000004 bytes") || agent.log().contains("big-c/commands")
    });
    let delivered = within(Duration::from_secs(40), || broker.nothing_waits(2));
    assert!(delivered, "{}", agent.log());
    let connections = broker.connections().len();
    thread::sleep(Duration::from_secs(6));
    assert_eq!(broker.connections().len(), connections, "the session stays");
    assert_eq!(agent.stop().code(), Some(0));
}
