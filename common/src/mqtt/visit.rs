//! A guest at the broker: is it there, does it let us in, and what does its access list let us do?
//!
//! Another client id than the daemon's, which the broker would throw out; a clean session; no will. With
//! MQTT 3.1.1 an acknowledgement says nothing about rights: brokers confirm what they deny, and drop it.
//! So each topic gets a publication of ours, not retained, and what counts is whether it comes back.
//! `doctor` calls it and judges.

use std::time::{Duration, Instant};

use rumqttc::{
    Event, Incoming, PingReq, Publish, QoS, Request, Subscribe, SubscribeFilter,
    SubscribeReasonCode,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant as Deadline;
use uuid::Uuid;

use super::exchange::{Exchange, Happened};
use super::words::LinkError;
use super::{GOODBYE, Routes, options};
use crate::config::Broker;

/// After the last acknowledgement, publications have so long to come back.
const ECHO: Duration = Duration::from_secs(2);
/// Longer than any visit.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Larger ones are no probes.
const MAX_PROBE: usize = 256;

/// Why the broker did not let us in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// It is there and refuses us.
    Refused(String),
    /// There is none, or it does not answer.
    Unreachable(String),
    /// A file of the configuration cannot be used.
    Configured(String),
}

/// A topic to be tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// Its name.
    pub topic: String,
    /// For the topic of readings: the light to repeat, because a server may answer to any reading there.
    pub light: Option<f64>,
}

/// What became of the publication on a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trip {
    /// It came back.
    CameBack,
    /// Others' messages came on the topic, and ours did not.
    Dropped,
    /// Nothing came on the topic.
    Lost,
    /// The broker refused the subscription, so nobody can know.
    NotReadable,
    /// The broker ended the session when we subscribed.
    HungUpOnSubscribe,
    /// The broker ended the session when we published.
    HungUpOnPublish,
    /// There was no time left.
    NotTried,
}

/// What a guest saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// From the name to the CONNACK.
    pub took: Duration,
    /// In the order of what was asked.
    pub trips: Vec<Trip>,
}

/// What is published: consumers ignore it (docs/protocol.md).
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Probe {
    #[serde(skip_serializing_if = "Option::is_none")]
    light: Option<f64>,
    probe: Uuid,
}

/// Whether this is a probe of `doctor`, and nothing else.
pub fn is_probe(payload: &[u8]) -> bool {
    payload.len() <= MAX_PROBE && serde_json::from_slice::<Probe>(payload).is_ok()
}

/// Connects, tries the topics, and says goodbye; all of it has `patience`.
///
/// # Errors
/// [`Closed`], in words for a person.
pub async fn visit(broker: &Broker, topics: &[Ask], patience: Duration) -> Result<Visit, Closed> {
    let until = Deadline::now() + patience;
    let mut routes = Routes::new(broker);
    let begun = Instant::now();
    let exchange = enter(broker, &mut routes, until).await?;
    let took = begun.elapsed();
    let mut guest = Guest {
        exchange,
        until,
        tried: topics.iter().map(Tried::new).collect(),
    };
    for at in 0..topics.len() {
        if let Err(error) = guest.go(at).await {
            if matches!(error, Over::Time) {
                break;
            }
            let Ok(exchange) = enter(broker, &mut routes, until).await else {
                break;
            };
            guest.exchange = exchange;
        }
    }
    guest.listen().await;
    let trips = guest.tried.iter().map(Tried::trip).collect();
    // A broker that does not close after that is no worse for it.
    let _ = tokio::time::timeout(GOODBYE, guest.exchange.close()).await;
    Ok(Visit { took, trips })
}

async fn enter(broker: &Broker, routes: &mut Routes, until: Deadline) -> Result<Exchange, Closed> {
    let mut options = options(broker).map_err(Closed::Configured)?;
    options.set_client_id(format!("nl-doctor-{:08x}", fastrand::u32(..)));
    options.set_clean_session(true);
    // No ping but ours.
    options.set_keep_alive(KEEP_ALIVE);
    options.set_max_packet_size(super::MAX_INCOMING, super::MAX_INCOMING);
    let opening = Exchange::open(routes.next_one(), options);
    match tokio::time::timeout_at(until, opening).await {
        Ok(Ok(exchange)) => Ok(exchange),
        Ok(Err(error)) if error.is_refusal() => Err(Closed::Refused(error.to_string())),
        Ok(Err(error)) => Err(Closed::Unreachable(error.to_string())),
        Err(_) => Err(Closed::Unreachable("it does not answer in time".into())),
    }
}

struct Guest {
    exchange: Exchange,
    until: Deadline,
    tried: Vec<Tried>,
}

struct Tried {
    topic: String,
    payload: Vec<u8>,
    stage: Stage,
    came_back: bool,
    others_came: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Before,
    Subscribing,
    NotReadable,
    Publishing,
    Published,
    HungUpOnSubscribe,
    HungUpOnPublish,
}

/// Why a topic's turn ended early.
enum Over {
    Time,
    Session,
}

impl From<LinkError> for Over {
    fn from(_: LinkError) -> Self {
        Self::Session
    }
}

impl Tried {
    fn new(ask: &Ask) -> Self {
        let probe = Probe {
            light: ask.light,
            probe: Uuid::new_v4(),
        };
        Self {
            topic: ask.topic.clone(),
            // A number and a name always have a JSON form.
            payload: serde_json::to_vec(&probe).unwrap_or_default(),
            stage: Stage::Before,
            came_back: false,
            others_came: false,
        }
    }

    fn trip(&self) -> Trip {
        match self.stage {
            _ if self.came_back => Trip::CameBack,
            Stage::Published if self.others_came => Trip::Dropped,
            Stage::Published => Trip::Lost,
            Stage::NotReadable => Trip::NotReadable,
            Stage::HungUpOnSubscribe => Trip::HungUpOnSubscribe,
            Stage::HungUpOnPublish => Trip::HungUpOnPublish,
            Stage::Before | Stage::Subscribing | Stage::Publishing => Trip::NotTried,
        }
    }
}

impl Guest {
    /// One topic: subscribe, publish, and wait for both to be acknowledged.
    async fn go(&mut self, at: usize) -> Result<(), Over> {
        let done = self.subscribe_and_publish(at).await;
        if let Err(Over::Session) = done {
            self.tried[at].stage = match self.tried[at].stage {
                Stage::Publishing => Stage::HungUpOnPublish,
                _ => Stage::HungUpOnSubscribe,
            };
        }
        done
    }

    async fn subscribe_and_publish(&mut self, at: usize) -> Result<(), Over> {
        let topic = self.tried[at].topic.clone();
        self.tried[at].stage = Stage::Subscribing;
        let filter = SubscribeFilter::new(topic.clone(), QoS::AtLeastOnce);
        let subscribe = Subscribe::new_many([filter]);
        self.exchange.send(Request::Subscribe(subscribe))?;
        let granted = loop {
            if let Some(Incoming::SubAck(ack)) = self.next().await? {
                break !ack.return_codes.contains(&SubscribeReasonCode::Failure);
            }
        };
        if !granted {
            self.tried[at].stage = Stage::NotReadable;
            return Ok(());
        }
        self.tried[at].stage = Stage::Publishing;
        let payload = self.tried[at].payload.clone();
        let publish = Publish::new(topic, QoS::AtLeastOnce, payload);
        self.exchange.send(Request::Publish(publish))?;
        while !matches!(self.next().await?, Some(Incoming::PubAck(_))) {}
        // mosquitto may confirm what it denies and only then hang up: that is still about this topic.
        self.exchange.send(Request::PingReq(PingReq))?;
        while !matches!(self.next().await?, Some(Incoming::PingResp)) {}
        self.tried[at].stage = Stage::Published;
        Ok(())
    }

    /// Until everything has come back, or for a while.
    async fn listen(&mut self) {
        self.until = self.until.min(Deadline::now() + ECHO);
        let waits = |tried: &Tried| tried.stage == Stage::Published && !tried.came_back;
        while self.tried.iter().any(waits) {
            if self.next().await.is_err() {
                break;
            }
        }
    }

    /// The next packet; what came back is noted.
    async fn next(&mut self) -> Result<Option<Incoming>, Over> {
        let happened = tokio::time::timeout_at(self.until, self.exchange.next()).await;
        let Happened::Event(Event::Incoming(packet)) = happened.map_err(|_| Over::Time)?? else {
            return Ok(None);
        };
        if let Incoming::Publish(publish) = &packet
            && let Some(tried) = self.tried.iter_mut().find(|it| it.topic == publish.topic)
        {
            match publish.payload == tried.payload {
                true => tried.came_back = true,
                false => tried.others_came = true,
            }
        }
        Ok(Some(packet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_known_and_nothing_else_is_taken_for_one() {
        for light in [None, Some(243.5)] {
            let ask = Ask {
                topic: "t".into(),
                light,
            };
            assert!(is_probe(&Tried::new(&ask).payload));
        }
        let id = Uuid::new_v4();
        for other in [
            r#"{"probe":1}"#.to_owned(),
            r#"{"led_on":true}"#.to_owned(),
            format!(r#"{{"led_on":true,"probe":"{id}"}}"#),
            format!(r#"{{"probe":"{id}","run":"{id}"}}"#),
            String::new(),
            format!("{}{{\"probe\":\"{id}\"}}", " ".repeat(MAX_PROBE)),
        ] {
            assert!(!is_probe(other.as_bytes()), "{other}");
        }
    }
}
