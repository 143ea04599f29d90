//! draft
use std::time::Duration;

/// How records reach the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// MQTT quality of service of records: 0, 1 or 2.
    pub qos: u8,
    /// Whose word makes a record forgotten.
    pub confirm: Confirm,
    /// With `Confirm::Server`: not acked for so long, sent again.
    pub ack_timeout: Duration,
    /// Most publications not yet confirmed by the broker, counted from the oldest: 1..=1000.
    pub window: usize,
    /// Replayed records a second; 0 is as fast as acks allow.
    pub replay_rate: f64,
    /// The replay begins after a random time up to this.
    pub replay_jitter: Duration,
    /// Most replayed records in one message.
    pub batch: usize,
    /// What is not confirmed for so long is on the disk.
    pub durable_within: Duration,
    /// The broker is given up when it has not confirmed a publication for so long.
    pub stalled_after: Duration,
}

/// Whose word makes a record forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confirm {
    /// The broker's PUBACK (PUBCOMP at QoS 2).
    Broker,
    /// An ack of the server on the acks topic.
    Server,
}

/// A publication, ready but for the name of its topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Names it in `Acked`; ascending.
    pub token: u64,
    /// Where to.
    pub topic: Topic,
    /// The payload.
    pub payload: Vec<u8>,
    /// MQTT quality of service.
    pub qos: u8,
    /// Whether the broker keeps it.
    pub retain: bool,
}

/// The topics that are published to; their names are the configuration's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Live readings.
    Telemetry,
    /// Replayed records.
    History,
    /// Live events.
    Events,
    /// What became of commands.
    Results,
    /// The retained picture of the device.
    State,
    /// Availability.
    Status,
}
