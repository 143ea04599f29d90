//! Devices as small as they can be, so that it is the server that is measured: bytes of MQTT 3.1.1 on a
//! socket, history in batches, sent until each record is acked by the server.

use nightlight_logic::intervals::Intervals;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Connections at the most; more devices share one.
const MAX_CONNECTIONS: u64 = 100;

/// Devices, each with a run of its own.
pub struct Fleet {
    connections: Vec<Connection>,
    batch: u64,
}

struct Connection {
    socket: TcpStream,
    read: Vec<u8>,
    devices: Vec<Device>,
    pkid: u16,
}

struct Device {
    name: String,
    run: Uuid,
    sent: u64,
    acked: Intervals,
}

#[derive(Deserialize)]
struct Acks {
    run: Uuid,
    acked: Vec<(u64, u64)>,
}

/// A record as history has it, without its run.
pub fn record(seq: u64) -> String {
    let light = (seq / 50 * 7 + seq * 2_654_435_761 % 11) % 1_000;
    let (minute, second, ms) = (seq / 60_000 % 60, seq / 1_000 % 60, seq % 1_000);
    let hour = seq / 3_600_000 % 24;
    format!(
        "{{\"light\":{light},\"led_on\":true,\"led_ok\":true,\"run\":\"{}\",\"seq\":{seq},\
         \"ts\":\"2026-11-20T{hour:02}:{minute:02}:{second:02}.{ms:03}Z\",\"clock\":\"synced\",\"replayed\":true}}",
        Uuid::nil()
    )
}

impl Fleet {
    /// So many devices are there and hear their acks.
    pub async fn connect(port: u16, devices: u64, batch: u64) -> Self {
        let mut connections = Vec::new();
        let some = devices.min(MAX_CONNECTIONS);
        for number in 0..some {
            let of = (number..devices).step_by(some as usize);
            let devices = of.map(|number| Device {
                name: format!("d{number:05}"),
                run: Uuid::new_v4(),
                sent: 0,
                acked: Intervals::default(),
            });
            connections.push(Connection::open(port, number, devices.collect()).await);
        }
        Self { connections, batch }
    }

    /// Each device sends so many more records, with so many messages under way, until all are acked.
    pub async fn send(&mut self, records: u64, window: u64) {
        let mut tasks = JoinSet::new();
        let batch = self.batch;
        for mut connection in self.connections.drain(..) {
            tasks.spawn(async move {
                connection.send(records, window * batch, batch).await;
                connection
            });
        }
        while let Some(done) = tasks.join_next().await {
            self.connections.push(done.expect("a device"));
        }
    }
}

impl Connection {
    async fn open(port: u16, number: u64, devices: Vec<Device>) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("a broker");
        socket.set_nodelay(true).expect("nodelay");
        let mut connection = Self {
            socket,
            read: Vec::new(),
            devices,
            pkid: 0,
        };
        let mut connect = b"\x00\x04MQTT\x04\x02\x00\x3c".to_vec();
        text(&mut connect, &format!("bench-{number}"));
        connection.write(0x10, &connect).await;
        assert_eq!(connection.packet().await.0, 0x20);
        for at in 0..connection.devices.len() {
            let mut subscribe = vec![0, 1];
            text(
                &mut subscribe,
                &format!("{}/acks", connection.devices[at].name),
            );
            subscribe.push(1);
            connection.write(0x82, &subscribe).await;
            assert_eq!(connection.packet().await.0, 0x90);
        }
        connection
    }

    async fn send(&mut self, records: u64, most_unacked: u64, batch: u64) {
        let until: Vec<u64> = self
            .devices
            .iter()
            .map(|device| device.sent + records)
            .collect();
        loop {
            let mut out = Vec::new();
            for (device, until) in self.devices.iter_mut().zip(&until) {
                while device.sent < *until && device.sent - device.acked.count() < most_unacked {
                    let to = (device.sent + batch).min(*until);
                    self.pkid = self.pkid.checked_add(1).unwrap_or(1);
                    publish(&mut out, self.pkid, device, to);
                    device.sent = to;
                }
            }
            self.socket.write_all(&out).await.expect("sent");
            if self
                .devices
                .iter()
                .all(|device| device.acked.count() == device.sent)
            {
                return;
            }
            loop {
                let (kind, body) = self.packet().await;
                self.take(kind, &body).await;
                if !self.has_packet() {
                    break;
                }
            }
        }
    }

    async fn take(&mut self, kind: u8, body: &[u8]) {
        if kind & 0xf0 != 0x30 {
            return;
        }
        let topic_end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
        let pkid = [body[topic_end], body[topic_end + 1]];
        let acks: Acks = serde_json::from_slice(&body[topic_end + 2..]).expect("acks");
        let mut devices = self.devices.iter_mut();
        if let Some(device) = devices.find(|device| device.run == acks.run) {
            for (from, to) in acks.acked {
                device.acked.insert(from, to);
            }
        }
        self.write(0x40, &pkid).await;
    }

    async fn write(&mut self, kind: u8, body: &[u8]) {
        let mut out = Vec::new();
        packet(&mut out, kind, body);
        self.socket.write_all(&out).await.expect("sent");
    }

    /// The next packet: its first byte, and what follows its length.
    async fn packet(&mut self) -> (u8, Vec<u8>) {
        while !self.has_packet() {
            let read = self.socket.read_buf(&mut self.read).await.expect("read");
            assert!(read > 0, "the broker has gone");
        }
        let (head, length) = self.length().expect("a packet");
        let kind = self.read[0];
        let body = self.read[head..head + length].to_vec();
        self.read.drain(..head + length);
        (kind, body)
    }

    fn has_packet(&self) -> bool {
        self.length()
            .is_some_and(|(head, length)| self.read.len() >= head + length)
    }

    /// Bytes of the head of a packet, and of the rest.
    fn length(&self) -> Option<(usize, usize)> {
        let mut length = 0;
        for (place, byte) in self.read.iter().skip(1).enumerate() {
            length |= usize::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Some((place + 2, length));
            }
        }
        None
    }
}

fn publish(out: &mut Vec<u8>, pkid: u16, device: &Device, to: u64) {
    let mut body = Vec::new();
    text(&mut body, &format!("{}/telemetry/history", device.name));
    body.extend(pkid.to_be_bytes());
    let run = device.run.to_string();
    let nil = Uuid::nil().to_string();
    let records: Vec<String> = (device.sent + 1..=to)
        .map(|seq| record(seq).replace(&nil, &run))
        .collect();
    match records.as_slice() {
        [one] => body.extend(one.as_bytes()),
        all => body.extend(format!("[{}]", all.join(",")).as_bytes()),
    }
    packet(out, 0x32, &body);
}

fn packet(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.push(kind);
    let mut length = body.len();
    while length >= 128 {
        out.push((length % 128) as u8 | 0x80);
        length /= 128;
    }
    out.push(length as u8);
    out.extend(body);
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}
