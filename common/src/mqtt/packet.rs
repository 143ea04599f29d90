//! Packets as a session knows them, whatever the version of MQTT; `dialect` makes bytes of them.

use std::borrow::Cow;

use bytes::Bytes;
use rumqttc::QoS;

use super::terms::Terms;

/// A message on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    /// Where to.
    pub topic: String,
    /// What.
    pub payload: Bytes,
    /// How surely it gets there.
    pub qos: QoS,
    /// The broker keeps it for those who subscribe later; of one that came in: it was kept.
    pub retain: bool,
    /// 0 at QoS 0, and before it is sent.
    pub pkid: u16,
    /// What only MQTT 5 can say of it; 3.1.1 leaves it out.
    pub about: About,
}

/// What a message says about itself, with MQTT 5.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// The broker drops it when nobody has taken it for so many seconds.
    pub expiry: Option<u32>,
    /// What the payload is, as a media type.
    pub content_type: Option<Cow<'static, str>>,
    /// Where an answer is wanted.
    pub response_topic: Option<String>,
    /// What an answer has to carry.
    pub correlation: Option<Bytes>,
}

impl Publication {
    /// Not retained, and without anything about it.
    pub fn new(topic: impl Into<String>, qos: QoS, payload: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            qos,
            retain: false,
            pkid: 0,
            about: About::default(),
        }
    }

    /// The payload is JSON, and says so where the version of MQTT can.
    pub fn json(mut self) -> Self {
        self.about.content_type = Some(Cow::Borrowed("application/json"));
        self
    }
}

/// The answer of a broker: a reason code of MQTT 5, and what it says with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// 0x80 and above is a no. A no of 3.1.1, which gives no reason, is 0x80.
    pub code: u8,
    /// The broker's own words: to be shown, not to be believed.
    pub words: Option<String>,
}

impl Said {
    /// A bare code.
    pub fn new(code: u8) -> Self {
        Self { code, words: None }
    }

    /// Whether it is a no.
    pub fn is_no(&self) -> bool {
        self.code >= 0x80
    }
}

/// What a broker sends.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    ConnAck(Greeting),
    Publish(Publication),
    PubAck(u16, Said),
    PubRec(u16, Said),
    PubRel(u16),
    PubComp(u16),
    SubAck(u16, Vec<Said>),
    PingResp,
    Disconnect(Said),
}

/// The answer to CONNECT.
#[derive(Debug, PartialEq)]
pub(super) struct Greeting {
    pub(super) said: Said,
    /// The broker knows our session.
    pub(super) session_present: bool,
    pub(super) terms: Terms,
}

/// What is sent to a broker, but for CONNECT and PUBLISH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outgoing<'a> {
    PubAck(u16),
    PubRec(u16),
    PubRel(u16),
    PubComp(u16),
    Subscribe(u16, &'a [String]),
    PingReq,
    Disconnect,
}

/// The first packet.
#[derive(Debug)]
pub(super) struct Connect<'a> {
    pub(super) client_id: &'a str,
    /// In seconds.
    pub(super) keep_alive: u16,
    pub(super) clean: bool,
    /// In seconds; 3.1.1 has only for ever.
    pub(super) session_expiry: u32,
    pub(super) login: Option<&'a (String, String)>,
    pub(super) will: Option<&'a Will>,
}

/// What the broker publishes when we are gone without a goodbye: retained, at QoS 1 where it can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Where to.
    pub topic: String,
    /// What.
    pub payload: String,
    /// After so many seconds, where the version of MQTT can say so.
    pub delay: u32,
    /// The broker is asked to keep it.
    pub retain: bool,
    /// At QoS 1.
    pub is_sure: bool,
}

impl Will {
    /// Retained, at QoS 1.
    pub fn new(topic: impl Into<String>, payload: impl Into<String>, delay: u32) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            delay,
            retain: true,
            is_sure: true,
        }
    }
}
