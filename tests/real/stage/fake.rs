//! A scripted broker on loopback: it speaks as much of MQTT 3.1.1 as the program needs, and of 5 where a script
//! greets in it, and does to each packet what a script says, so that a broker can be wrong in an exact way at an
//! exact moment.
//!
//! The script gets each packet with the number of its connection (from 0) and gives acts; [`answer`] is
//! what a broker in order would do. Everything published is noted, whether or not it was confirmed.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A packet from the program.
#[derive(Debug, Clone, PartialEq)]
pub enum Packet {
    Connect {
        clean: bool,
        client_id: String,
        /// 4 is MQTT 3.1.1, 5 is 5.
        level: u8,
    },
    Publish(Publish),
    Subscribe {
        /// The first filter.
        first: String,
        pkid: u16,
        filters: usize,
    },
    PubRel {
        pkid: u16,
    },
    PingReq,
    Disconnect,
    /// Its type, 1 to 15.
    Other(u8),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub pkid: u16,
    /// Of MQTT 5, without their length.
    pub properties: Vec<u8>,
}

/// What the broker does.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    Send(Vec<u8>),
    /// Closes the connection.
    Close,
    /// Never reads again from this connection, and keeps it open.
    StopReading,
}

/// A publication that came, and the number of its connection.
#[derive(Debug, Clone)]
pub struct Came {
    pub connection: usize,
    pub publish: Publish,
    pub confirmed: bool,
}

type Script = dyn Fn(usize, &Packet) -> Vec<Act> + Send + Sync;

/// The broker; ended when dropped.
pub struct FakeBroker {
    pub port: u16,
    notes: Arc<Mutex<Notes>>,
    over: Arc<AtomicBool>,
}

#[derive(Default)]
struct Notes {
    connections: Vec<Instant>,
    came: Vec<Came>,
}

/// What a broker in order does.
pub fn answer(packet: &Packet) -> Vec<Act> {
    match packet {
        Packet::Connect { .. } => vec![connack(0)],
        Packet::Publish(publish) if publish.qos == 1 => vec![puback(publish.pkid)],
        Packet::Publish(publish) if publish.qos == 2 => vec![pubrec(publish.pkid)],
        Packet::PubRel { pkid } => vec![pubcomp(*pkid)],
        Packet::Subscribe { pkid, filters, .. } => {
            let [high, low] = pkid.to_be_bytes();
            let mut bytes = vec![0x90, 2 + *filters as u8, high, low];
            bytes.resize(4 + filters, 1);
            vec![Act::Send(bytes)]
        }
        Packet::PingReq => vec![Act::Send(vec![0xd0, 0])],
        Packet::Disconnect => vec![Act::Close],
        Packet::Publish(_) | Packet::Other(_) => vec![],
    }
}

/// A greeting of MQTT 5 with these properties.
pub fn connack5(present: bool, code: u8, properties: &[u8]) -> Act {
    let of = properties.len() as u8;
    let head = [0x20, of + 3, u8::from(present), code, of];
    Act::Send([&head, properties].concat())
}

/// What a broker of MQTT 5 in order does, when it has this to offer.
pub fn answer5(packet: &Packet, properties: &[u8]) -> Vec<Act> {
    match packet {
        Packet::Connect { .. } => vec![connack5(false, 0, properties)],
        Packet::Subscribe { pkid, filters, .. } => vec![suback5(*pkid, &vec![1; *filters])],
        other => answer(other),
    }
}

/// An answer of MQTT 5 to a subscription.
pub fn suback5(pkid: u16, codes: &[u8]) -> Act {
    let [high, low] = pkid.to_be_bytes();
    let head = [0x90, 3 + codes.len() as u8, high, low, 0];
    Act::Send([&head, codes].concat())
}

/// An answer of MQTT 5 to a publication at QoS 1, with a reason.
pub fn puback5(pkid: u16, code: u8) -> Act {
    let [high, low] = pkid.to_be_bytes();
    Act::Send(vec![0x40, 3, high, low, code])
}

/// 0 is yes; 4 is a bad user name or password, 5 is not authorised.
pub fn connack(code: u8) -> Act {
    Act::Send(vec![0x20, 2, 0, code])
}

pub fn puback(pkid: u16) -> Act {
    let [high, low] = pkid.to_be_bytes();
    Act::Send(vec![0x40, 2, high, low])
}

pub fn pubrec(pkid: u16) -> Act {
    let [high, low] = pkid.to_be_bytes();
    Act::Send(vec![0x50, 2, high, low])
}

pub fn pubcomp(pkid: u16) -> Act {
    let [high, low] = pkid.to_be_bytes();
    Act::Send(vec![0x70, 2, high, low])
}

impl FakeBroker {
    pub fn start(
        script: impl Fn(usize, &Packet) -> Vec<Act> + Send + Sync + 'static,
    ) -> FakeBroker {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let notes = Arc::new(Mutex::new(Notes::default()));
        let over = Arc::new(AtomicBool::new(false));
        let (own, ended) = (Arc::clone(&notes), Arc::clone(&over));
        let script: Arc<Script> = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let connection = {
                    let mut notes = own.lock().expect("sound");
                    notes.connections.push(Instant::now());
                    notes.connections.len() - 1
                };
                let (notes, script) = (Arc::clone(&own), Arc::clone(&script));
                let ended = Arc::clone(&ended);
                thread::spawn(move || serve(connection, stream, &*script, &notes, &ended));
            }
        });
        FakeBroker { port, notes, over }
    }

    /// When each connection was made.
    pub fn connections(&self) -> Vec<Instant> {
        self.notes.lock().expect("sound").connections.clone()
    }

    /// Everything published so far.
    pub fn came(&self) -> Vec<Came> {
        self.notes.lock().expect("sound").came.clone()
    }

    /// The objects published on topics that end so, of all connections, in order.
    pub fn on(&self, ending: &str) -> Vec<Value> {
        self.came()
            .iter()
            .filter(|came| came.publish.topic.ends_with(ending))
            .flat_map(|came| objects(&came.publish.payload))
            .collect()
    }

    /// The records that were confirmed: readings and events, live and replayed.
    pub fn records(&self) -> Vec<Value> {
        self.came()
            .iter()
            .filter(|came| came.confirmed)
            .flat_map(|came| objects(&came.publish.payload))
            .filter(|object| {
                let is_record = object["run"].is_string() && object["seq"].is_u64();
                is_record || object["event"] == "loss"
            })
            .collect()
    }

    /// Whether the program said that nothing waits, in what `connection` or a later one brought.
    pub fn nothing_waits(&self, connection: usize) -> bool {
        self.came()
            .iter()
            .rfind(|came| came.connection >= connection && came.publish.topic.ends_with("/state"))
            .is_some_and(|came| {
                objects(&came.publish.payload)
                    .iter()
                    .any(|state| state["backlog"] == 0)
            })
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // The accepting thread sees it with the next connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn objects(payload: &[u8]) -> Vec<Value> {
    match serde_json::from_slice(payload) {
        Ok(Value::Array(objects)) => objects,
        Ok(object) => vec![object],
        Err(_) => vec![],
    }
}

fn serve(
    connection: usize,
    mut stream: TcpStream,
    script: &Script,
    notes: &Mutex<Notes>,
    over: &AtomicBool,
) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
    let mut is_5 = false;
    while let Some(packet) = next_packet(&mut stream, is_5, over) {
        let acts = script(connection, &packet);
        if let (Packet::Connect { level: 5, .. }, Some(Act::Send(greeting))) =
            (&packet, acts.first())
        {
            // The short greeting is one of 3.1.1, and so is what follows.
            is_5 = greeting.get(1).is_some_and(|length| *length > 2);
        }
        if let Packet::Publish(publish) = &packet {
            let pkid = publish.pkid;
            let answers = [
                puback(pkid),
                pubrec(pkid),
                puback5(pkid, 0),
                puback5(pkid, 0x10),
            ];
            let confirmed = publish.qos == 0 || answers.iter().any(|answer| acts.contains(answer));
            notes.lock().expect("sound").came.push(Came {
                connection,
                publish: publish.clone(),
                confirmed,
            });
        }
        for act in acts {
            match act {
                Act::Send(bytes) => {
                    if stream.write_all(&bytes).is_err() {
                        return;
                    }
                }
                Act::Close => {
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
                Act::StopReading => {
                    while !over.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(100));
                    }
                    return;
                }
            }
        }
    }
}

/// The next packet; `None` when the connection or the broker is over.
fn next_packet(stream: &mut TcpStream, is_5: bool, over: &AtomicBool) -> Option<Packet> {
    let mut first = [0];
    fill(stream, &mut first, over)?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let mut byte = [0];
        fill(stream, &mut byte, over)?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    fill(stream, &mut body, over)?;
    parse(first[0], &body, is_5)
}

fn parse(first: u8, body: &[u8], is_5: bool) -> Option<Packet> {
    Some(match first >> 4 {
        1 => {
            let level = *body.get(6)?;
            let at = if level == 5 {
                behind_properties(body, 10)?
            } else {
                10
            };
            Packet::Connect {
                clean: body.get(7)? & 2 != 0,
                client_id: text(body, at)?.0,
                level,
            }
        }
        3 => {
            let qos = first >> 1 & 3;
            let (topic, mut at) = text(body, 0)?;
            let mut pkid = 0;
            if qos > 0 {
                pkid = number(body, at)?;
                at += 2;
            }
            let mut properties = Vec::new();
            if is_5 {
                let behind = behind_properties(body, at)?;
                properties = body.get(at + 1..behind)?.to_vec();
                at = behind;
            }
            Packet::Publish(Publish {
                topic,
                payload: body.get(at..)?.to_vec(),
                qos,
                retain: first & 1 != 0,
                pkid,
                properties,
            })
        }
        6 => Packet::PubRel {
            pkid: number(body, 0)?,
        },
        8 => {
            let begin = if is_5 { behind_properties(body, 2)? } else { 2 };
            let (mut at, mut filters) = (begin, 0);
            while at < body.len() {
                at = text(body, at)?.1 + 1;
                filters += 1;
            }
            let pkid = number(body, 0)?;
            let first = text(body, begin)?.0;
            Packet::Subscribe {
                first,
                pkid,
                filters,
            }
        }
        12 => Packet::PingReq,
        14 => Packet::Disconnect,
        other => Packet::Other(other),
    })
}

/// Ours are shorter than 128 bytes.
fn behind_properties(body: &[u8], at: usize) -> Option<usize> {
    Some(at + 1 + usize::from(*body.get(at)?))
}

fn number(body: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?))
}

/// A text with its length before it, and where it ends.
fn text(body: &[u8], at: usize) -> Option<(String, usize)> {
    let end = at + 2 + usize::from(number(body, at)?);
    let text = String::from_utf8_lossy(body.get(at + 2..end)?).into_owned();
    Some((text, end))
}

fn fill(stream: &mut TcpStream, buffer: &mut [u8], over: &AtomicBool) -> Option<()> {
    let mut at = 0;
    while at < buffer.len() {
        match stream.read(&mut buffer[at..]) {
            Ok(0) => return None,
            Ok(count) => at += count,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
                    && !over.load(Ordering::Relaxed) => {}
            Err(_) => return None,
        }
    }
    Some(())
}
