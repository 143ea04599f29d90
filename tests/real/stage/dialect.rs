//! A story of the link told in both versions of MQTT.

use std::thread;

use super::Agent;
use super::fake::{Act, Packet, answer, answer5, connack, connack5};

/// The version of MQTT in a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    V311,
    V5,
}

/// Tells a story in both versions at once: most of its time is waiting.
pub fn in_both_versions(story: impl Fn(Dialect) + Sync) {
    let story = &story;
    let failed: Vec<&str> = thread::scope(|scope| {
        let running = [Dialect::V311, Dialect::V5].map(|dialect| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            let thread = thread::Builder::new().name(format!("{name}, MQTT {}", dialect.name()));
            let told = thread.spawn_scoped(scope, move || story(dialect));
            (dialect, told.expect("a thread"))
        });
        let failed = running
            .into_iter()
            .filter_map(|(dialect, told)| told.join().is_err().then_some(dialect.name()));
        failed.collect()
    });
    assert!(failed.is_empty(), "failed with MQTT {failed:?}");
}

impl Dialect {
    /// As `broker.version` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V311 => "3.1.1",
            Self::V5 => "5",
        }
    }

    /// An agent that speaks it, not started yet.
    pub fn prepare(self, id: &str, port: u16, more: &str) -> Agent {
        let mut agent = Agent::prepare(id, port, more);
        agent.version = Some(self.name());
        agent
    }

    /// An agent that speaks it.
    pub fn start(self, id: &str, port: u16, more: &str) -> Agent {
        let mut agent = self.prepare(id, port, more);
        agent.run();
        agent
    }

    /// What a broker in order does.
    pub fn answer(self, packet: &Packet) -> Vec<Act> {
        match self {
            Self::V311 => answer(packet),
            Self::V5 => answer5(packet, &[]),
        }
    }

    /// A broker's answer to CONNECT; `refusal` is the code of MQTT 5, 0 for none, and the short one what 3.1.1 has
    /// for it.
    pub fn greeting(self, refusal: u8) -> Act {
        match (self, refusal) {
            (Self::V5, code) => connack5(false, code, &[]),
            (Self::V311, 0) => connack(0),
            (Self::V311, 0x84) => connack(1),
            (Self::V311, 0x85) => connack(2),
            (Self::V311, 0x88) => connack(3),
            (Self::V311, 0x86) => connack(4),
            (Self::V311, _) => connack(5),
        }
    }

    /// A message from the broker at QoS 0, short.
    pub fn message(self, topic: &str, payload: &str) -> Act {
        let mut body = vec![0, topic.len() as u8];
        body.extend(topic.as_bytes());
        if self == Self::V5 {
            body.push(0);
        }
        body.extend(payload.as_bytes());
        assert!(body.len() < 128, "one byte of length");
        Act::Send([&[0x30, body.len() as u8][..], &body].concat())
    }
}
