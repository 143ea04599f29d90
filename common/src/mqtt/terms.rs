//! What a broker offers in a session: the version of MQTT and its limits.

use std::fmt;
use std::time::Duration;

/// A version of MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.
    V5,
}

impl Version {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V311 => "3.1.1",
            Self::V5 => "5",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a broker offers. With 3.1.1 it cannot say, and nothing is limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// What is spoken.
    pub version: Version,
    /// How long the broker keeps the session when we are gone; none when it did not say.
    pub session_expiry: Option<Duration>,
    /// Most publications above QoS 0 that the broker has not answered: 1..=65535.
    pub receive_max: u16,
    /// No packet may be larger than so many bytes.
    pub max_packet: Option<u32>,
    /// The highest quality of service: 0, 1 or 2.
    pub max_qos: u8,
    /// The broker keeps retained messages.
    pub retain: bool,
    /// It takes filters with wildcards.
    pub wildcards: bool,
    /// It has shared subscriptions.
    pub shared: bool,
    /// It wants to be spoken to so often, whatever we asked for.
    pub keep_alive: Option<Duration>,
}

impl Terms {
    /// No limit is known.
    pub fn new(version: Version) -> Self {
        Self {
            version,
            session_expiry: None,
            receive_max: u16::MAX,
            max_packet: None,
            max_qos: 2,
            retain: true,
            wildcards: true,
            shared: version == Version::V5,
            keep_alive: None,
        }
    }
}
