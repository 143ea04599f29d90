//! What must hold whatever bytes a broker sends, in both versions of MQTT: codec, session and the pure half together.
//!
//! The first byte chooses version, quality of service, greeting and whether the broker knows the session. Then each
//! byte up to 250 is followed by so many bytes of the broker, 0 ends the session and begins the next, and more than
//! 250 lets time pass. At the end there is a broker in order, and nothing is missing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nightlight::config::Config;
use nightlight::io::broker::{Link, Session};
use nightlight::logic::delivery::Message;
use nightlight::logic::link::Ending;
use nightlight::logic::{Input, Output};
use nightlight_common::mqtt::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

use super::{Device, settings};

/// No script has more sessions, or more steps.
const MOST_SESSIONS: usize = 8;
const MOST_STEPS: usize = 64;
/// Whatever comes, no more is written for a byte of it, and none for nothing.
const MOST_ANSWERED: usize = 200;
const MOST_UNASKED: usize = 200_000;
/// With a broker in order everything arrives within this, after topics that were held back.
const SETTLED: Duration = Duration::from_secs(150);

/// Bytes of a broker break nothing: no panic, no growth, no record missing.
pub fn packets(data: &[u8]) {
    let Some((&flags, script)) = data.split_first() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(play(flags, script));
}

async fn play(flags: u8, mut script: &[u8]) {
    let mut line = Line::new(flags);
    for _ in 0..MOST_STEPS {
        let Some((&step, rest)) = script.split_first() else {
            break;
        };
        script = rest;
        match step {
            0 if line.sessions == MOST_SESSIONS => break,
            0 => {
                line.hang_up().await;
                line.wait(Duration::from_secs(31)).await;
            }
            251.. => line.wait(Duration::from_millis(500 << (step - 251))).await,
            length => {
                let (bytes, rest) = script.split_at(usize::from(length).min(script.len()));
                script = rest;
                line.say(bytes).await;
            }
        }
        if line.is_over() {
            return;
        }
    }
    line.hang_up().await;
    line.ends_well();
}

/// The device, and the end of its line where the broker is.
struct Line {
    device: Device,
    link: Link,
    version: Version,
    greets: bool,
    present: bool,
    session: Option<Session>,
    peer: Option<DuplexStream>,
    sessions: usize,
    /// What each publication of this session carries.
    sent: BTreeMap<u64, Contents>,
    arrived: Arrived,
    said: usize,
    answered: usize,
}

/// Numbers of records, and of those that are told as lost.
#[derive(Default)]
struct Arrived {
    records: BTreeSet<u64>,
    lost: Vec<(u64, u64)>,
}

/// A record's number, or the range of a loss.
type Contents = (Option<u64>, Option<(u64, u64)>);

fn contents(message: &Message) -> Contents {
    let value: serde_json::Value = serde_json::from_slice(&message.payload).unwrap_or_default();
    let range = value["from_seq"].as_u64().zip(value["to_seq"].as_u64());
    (value["seq"].as_u64(), range)
}

impl Arrived {
    fn add(&mut self, (seq, lost): Contents) {
        self.records.extend(seq);
        self.lost.extend(lost);
    }
}

impl Line {
    fn new(flags: u8) -> Self {
        let (version, name) = match flags & 1 {
            0 => (Version::V5, "5"),
            _ => (Version::V311, "3.1.1"),
        };
        let qos = if flags & 2 == 0 { 1 } else { 2 };
        let text = format!(
            "[device]\nid = \"pi\"\n[broker]\nurl = \"mqtt://127.0.0.1\"\nversion = \"{name}\"\n\
             [delivery]\nqos = {qos}\n[control]\nserver_status = \"server/status\"\n"
        );
        let config = Config::from_toml(&text, []).expect("in order");
        let mut settings = settings(0);
        settings.delivery.qos = qos;
        settings.delivery.require_listener = flags & 16 != 0;
        Self {
            device: Device::on_line(settings),
            link: Link::new(&config),
            version,
            greets: flags & 4 == 0,
            present: flags & 8 != 0,
            session: None,
            peer: None,
            sessions: 0,
            sent: BTreeMap::new(),
            arrived: Arrived::default(),
            said: 0,
            answered: 0,
        }
    }

    fn is_over(&self) -> bool {
        self.device.exit.is_some() || self.device.is_stopping
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.settle().await;
        self.said += bytes.len();
        if let Some(peer) = &mut self.peer {
            // It takes more than any step has; a session that is over hears nothing.
            let _ = timeout(Duration::ZERO, peer.write_all(bytes)).await;
        }
        self.settle().await;
    }

    async fn wait(&mut self, time: Duration) {
        self.settle().await;
        tokio::time::advance(time).await;
        self.device.wait(time);
        self.settle().await;
    }

    async fn hang_up(&mut self) {
        self.settle().await;
        self.peer = None;
        self.settle().await;
        assert!(self.session.is_none() || self.is_over(), "it has ended");
    }

    /// Until nothing happens any more.
    async fn settle(&mut self) {
        let mut idle = 0;
        for _ in 0..10_000 {
            self.carry_out().await;
            self.read().await;
            let Some(session) = &mut self.session else {
                if self.orders().is_empty() {
                    return;
                }
                continue;
            };
            match timeout(Duration::ZERO, session.next()).await {
                Ok(input) => {
                    idle = 0;
                    self.happened(input);
                }
                Err(_) if idle > 0 && self.orders().is_empty() => return,
                // A task that has done much is made to wait, as if nothing more were there.
                Err(_) => {
                    idle += 1;
                    tokio::task::yield_now().await;
                }
            }
        }
        panic!("it never comes to rest");
    }

    fn orders(&mut self) -> &mut VecDeque<Output> {
        self.device.line.as_mut().expect("a line")
    }

    fn happened(&mut self, input: Input) {
        match &input {
            Input::Acked(token) | Input::Unheard(token) => {
                if let Some(contents) = self.sent.remove(token) {
                    self.arrived.add(contents);
                }
            }
            Input::LinkDown { .. } => self.end(),
            _ => {}
        }
        self.device.give(input);
    }

    fn end(&mut self) {
        if let Some(session) = self.session.take() {
            self.link.ended(&session);
        }
        self.peer = None;
        self.sent.clear();
    }

    async fn carry_out(&mut self) {
        while let Some(order) = self.orders().pop_front() {
            match (order, &mut self.session) {
                (Output::Connect, _) => self.connect().await,
                (Output::Disconnect, _) => self.end(),
                (Output::Publish(message), Some(session)) => {
                    self.sent.insert(message.token, contents(&message));
                    session.publish(message);
                }
                (Output::Subscribe { token, inbound }, Some(session)) => {
                    session.subscribe(token, inbound);
                }
                _ => {}
            }
        }
    }

    async fn connect(&mut self) {
        self.sessions += 1;
        let (near, mut peer) = duplex(1 << 20);
        if self.greets {
            let present = u8::from(self.present);
            let greeting: &[u8] = match self.version {
                Version::V5 => &[0x20, 3, present, 0, 0],
                Version::V311 => &[0x20, 2, present, 0],
            };
            let _ = peer.write_all(greeting).await;
        }
        self.session = Some(self.link.connect_over(near, self.version));
        self.peer = Some(peer);
    }

    /// What the session has written.
    async fn read(&mut self) {
        let mut bytes = [0; 4_096];
        while let Some(peer) = &mut self.peer {
            match timeout(Duration::ZERO, peer.read(&mut bytes)).await {
                Ok(Ok(count @ 1..)) => self.answered += count,
                _ => break,
            }
        }
        let most = self.said * MOST_ANSWERED + self.sessions * MOST_UNASKED;
        assert!(self.answered <= most, "{} for {}", self.answered, self.said);
    }

    /// Once more nobody is there, then a broker in order: each record arrives or is told as lost.
    fn ends_well(&mut self) {
        self.device.line = None;
        self.device.give(Input::LinkDown {
            why: "away".into(),
            ending: Ending::Lost,
        });
        self.device.wait(SETTLED);
        let delivered = std::mem::take(&mut self.device.delivered);
        delivered
            .iter()
            .for_each(|message| self.arrived.add(contents(message)));
        let view = self.device.controller.view(self.device.now());
        assert_eq!(view.backlog, 0, "{:?}", view.link_why);
        let Arrived { records, lost } = &self.arrived;
        let last = records.last().copied().unwrap_or(0);
        let is_there = |seq: &u64| {
            records.contains(seq) || lost.iter().any(|(from, to)| (from..=to).contains(&seq))
        };
        let missing: Vec<u64> = (1..=last).filter(|seq| !is_there(seq)).collect();
        assert!(missing.is_empty(), "{missing:?} of {last} are missing");
    }
}
