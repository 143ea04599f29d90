//! What the broker offers in a session: the version of MQTT and its limits.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the broker offers. MQTT 3.1.1 has no words for limits: there none is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// `3.1.1` or `5`.
    pub version: String,
    /// How long it keeps the session when we are gone, in seconds; none where it did not say.
    pub session_expiry_s: Option<u64>,
    /// Most publications above QoS 0 that it has not answered.
    pub receive_max: u16,
    /// The largest packet in bytes; none where any is taken.
    pub max_packet: Option<u32>,
    /// The highest quality of service.
    pub max_qos: u8,
    /// Whether it keeps retained messages.
    pub retain: bool,
    /// How often it wants to be spoken to, in seconds; none where it takes what we ask for.
    pub keep_alive_s: Option<u64>,
    /// The largest payload that fits into a packet on any topic of ours; none where any does.
    #[serde(skip)]
    pub max_payload: Option<u32>,
}

impl Default for Offer {
    /// That of MQTT 3.1.1.
    fn default() -> Self {
        Self {
            version: "3.1.1".into(),
            session_expiry_s: None,
            receive_max: u16::MAX,
            max_packet: None,
            max_qos: 2,
            retain: true,
            keep_alive_s: None,
            max_payload: None,
        }
    }
}

impl Offer {
    /// Whether the broker says of a publication at QoS 1 if anybody listens.
    pub(crate) fn tells_who_listens(&self) -> bool {
        self.version == "5"
    }
}

/// In a few words, with the limits that are there.
impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MQTT {}", self.version)?;
        if self.receive_max < u16::MAX {
            write!(f, ", {} publications at a time", self.receive_max)?;
        }
        if let Some(bytes) = self.max_packet {
            write!(f, ", packets of {bytes} bytes")?;
        }
        match self.max_qos {
            0 => write!(f, ", QoS 0 alone: nothing is ever confirmed")?,
            1 => write!(f, ", QoS up to 1")?,
            _ => {}
        }
        if !self.retain {
            write!(f, ", no retained messages")?;
        }
        if let Some(seconds) = self.session_expiry_s {
            write!(f, ", a session kept for {seconds} s")?;
        }
        if let Some(seconds) = self.keep_alive_s {
            write!(f, ", keep alive {seconds} s")?;
        }
        Ok(())
    }
}
