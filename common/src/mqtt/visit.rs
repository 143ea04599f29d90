//! A guest at the broker: is it there, does it let us in, and what does its access list let us do?
//!
//! Another client id than the daemon's, which the broker would throw out; a clean session; no will. With MQTT 5
//! a broker says what it denies. With 3.1.1 an acknowledgement says nothing about rights: brokers confirm what they
//! deny, and drop it. So each topic gets a publication of ours, not retained, and what counts is whether it comes back.
//! `doctor` calls it and judges.

use std::time::{Duration, Instant};

use rumqttc::QoS;
use serde::{Deserialize, Serialize};
use tokio::time::Instant as Deadline;
use uuid::Uuid;

use super::GOODBYE;
use super::exchange::{Exchange, Happened, Wish};
use super::packet::{Publication, Said};
use super::terms::{Terms, Version};
use super::ways::Ways;
use super::words::LinkError;
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
    /// The broker refused the publication, with a reason.
    Denied,
    /// The broker refused the subscription, and says that it takes what we publish.
    Taken,
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
    /// Why the broker refused it, where it did and said so; in the same order.
    pub refusals: Vec<Option<String>>,
    /// What the broker offers.
    pub terms: Terms,
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
    let mut ways = Ways::new(broker);
    let begun = Instant::now();
    let exchange = enter(&mut ways, until).await?;
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
            let Ok(exchange) = enter(&mut ways, until).await else {
                break;
            };
            guest.exchange = exchange;
        }
    }
    guest.listen().await;
    let trips = guest.tried.iter().map(Tried::trip).collect();
    let said = |tried: &Tried| tried.said.as_ref().map(Said::to_string);
    let refusals = guest.tried.iter().map(said).collect();
    let terms = guest.exchange.terms().clone();
    // A broker that does not close after that is no worse for it.
    let _ = tokio::time::timeout(GOODBYE, guest.exchange.close()).await;
    Ok(Visit {
        took,
        trips,
        refusals,
        terms,
    })
}

async fn enter(ways: &mut Ways, until: Deadline) -> Result<Exchange, Closed> {
    let client_id = format!("nl-doctor-{:08x}", fastrand::u32(..));
    // No ping but ours.
    let opening = ways.open(Wish::new(client_id, KEEP_ALIVE));
    match tokio::time::timeout_at(until, opening).await {
        Ok(Ok(exchange)) => Ok(exchange),
        Ok(Err(LinkError::File(why))) => Err(Closed::Configured(why)),
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
    /// Why the broker refused it.
    said: Option<Said>,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Before,
    Subscribing,
    NotReadable,
    Denied,
    Taken,
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
            said: None,
        }
    }

    fn trip(&self) -> Trip {
        match self.stage {
            _ if self.came_back => Trip::CameBack,
            Stage::Published if self.others_came => Trip::Dropped,
            Stage::Published => Trip::Lost,
            Stage::NotReadable => Trip::NotReadable,
            Stage::Denied => Trip::Denied,
            Stage::Taken => Trip::Taken,
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
                Stage::Denied => Stage::Denied,
                _ => Stage::HungUpOnSubscribe,
            };
        }
        done
    }

    async fn subscribe_and_publish(&mut self, at: usize) -> Result<(), Over> {
        let topic = self.tried[at].topic.clone();
        self.tried[at].stage = Stage::Subscribing;
        let token = at as u64;
        self.exchange
            .subscribe(token, std::slice::from_ref(&topic))?;
        let refused = loop {
            if let Happened::Subscribed(_, said) = self.next().await? {
                break said.into_iter().find(Said::is_no);
            }
        };
        let is_readable = refused.is_none();
        if !is_readable {
            self.tried[at].stage = Stage::NotReadable;
            self.tried[at].said = refused;
            if self.exchange.terms().version == Version::V311 {
                return Ok(());
            }
        }
        if is_readable {
            self.tried[at].stage = Stage::Publishing;
        }
        let payload = self.tried[at].payload.clone();
        let publication = Publication::new(topic, QoS::AtLeastOnce, payload);
        self.exchange.publish(token, publication)?;
        loop {
            match self.next().await? {
                Happened::Published(_, said) if said.is_no() => {
                    self.tried[at].stage = Stage::Denied;
                    self.tried[at].said = Some(said);
                    break;
                }
                // With MQTT 5 the broker's word is enough where we cannot read it.
                Happened::Published(..) if !is_readable => {
                    self.tried[at].stage = Stage::Taken;
                    return Ok(());
                }
                Happened::Published(..) | Happened::Sent(_) => break,
                _ => {}
            }
        }
        // mosquitto may answer what it denies and only then hang up: that is still about this topic.
        self.exchange.ping()?;
        while self.next().await? != Happened::Pong {}
        if self.tried[at].stage == Stage::Publishing {
            self.tried[at].stage = Stage::Published;
        }
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

    /// What happens next; what came back is noted.
    async fn next(&mut self) -> Result<Happened, Over> {
        let happened = tokio::time::timeout_at(self.until, self.exchange.next()).await;
        let happened = happened.map_err(|_| Over::Time)??;
        if let Happened::Message(message) = &happened
            && let Some(tried) = self.tried.iter_mut().find(|it| it.topic == message.topic)
        {
            match message.payload == tried.payload {
                true => tried.came_back = true,
                false => tried.others_came = true,
            }
        }
        Ok(happened)
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
