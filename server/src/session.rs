//! One MQTT session of the server, or the try to make one.
//!
//! Over the same exchange as the device's session (nightlight-common's `mqtt`), fresh for every connection. The
//! session at the broker is kept, and its messages are acknowledged by hand: only what is in the database, so
//! that whatever a killed server had not kept comes again. The shell decides when to connect.

use std::future::Future;
use std::pin::Pin;

use tokio::time::Instant;

use crate::outbox::Message;
use nightlight_common::config::Broker;
use nightlight_common::mqtt::{
    self, Ended, Exchange, GOODBYE, Happened, LEAVE_OUT_FOR, LinkError, Publication, QoS, TooLarge,
    Ways, Will, Wish,
};

/// Larger packets are passed over.
const MAX_PACKET: usize = 1024 * 1024;
/// Publications of the server that the broker has not confirmed.
const IN_FLIGHT: u16 = 500;
/// The broker says that the server is gone after so many seconds without it, not at each flap.
const WILL_DELAY: u32 = 5;

/// How to connect, and what earlier sessions learnt of it.
#[derive(Debug)]
pub(crate) struct Door {
    /// The broker.
    pub broker: Broker,
    plan: Plan,
    ways: Ways,
}

/// What sessions are for.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// What to subscribe to, with quality of service 1.
    pub filters: Vec<String>,
    /// Where `offline` is said when the session breaks.
    pub status_topic: Option<String>,
    /// The broker keeps nothing of it.
    pub clean: bool,
}

/// What a session tells.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It stands, and the subscriptions are on their way.
    Up,
    /// A message came.
    Message(Publication),
    /// A message came that is too large to be a device's; it has to be acknowledged like any.
    TooLarge(TooLarge),
    /// The broker has confirmed a publication.
    Confirmed,
    /// It is over.
    Down {
        /// Why, in words.
        why: String,
        /// The broker refused us: trying again soon is no use.
        refused: bool,
    },
    /// Nothing that matters, but there may be room for orders again.
    Nothing,
}

/// One session, or the try to make one.
pub(crate) struct Session {
    stage: Stage,
    filters: Vec<String>,
    /// What to subscribe to later.
    left_out: Vec<String>,
    subscribe_at: Option<Instant>,
    /// Something could not be said: why.
    failed: Option<LinkError>,
}

type Opening = dyn Future<Output = Result<Exchange, LinkError>> + Send;

enum Stage {
    Opening(Pin<Box<Opening>>),
    Open(Box<Exchange>),
}

impl Door {
    /// None is opened yet.
    pub(crate) fn new(broker: Broker, plan: Plan) -> Self {
        Self {
            ways: Ways::new(&broker),
            broker,
            plan,
        }
    }

    /// Begins a session.
    pub(crate) fn open(&mut self) -> Session {
        let will = self.plan.status_topic.as_ref();
        let wish = Wish {
            clean: self.plan.clean,
            session_expiry: (!self.plan.clean).then_some(self.broker.session_expiry),
            manual_acks: true,
            in_flight: IN_FLIGHT,
            max_incoming: MAX_PACKET,
            will: will.map(|topic| Will::new(topic, "offline", WILL_DELAY)),
            ..Wish::new(&self.broker.client_id, self.broker.keep_alive)
        };
        let (left_out, filters) = self
            .plan
            .filters
            .iter()
            .cloned()
            .partition(|filter| self.ways.leaves_out(filter));
        Session {
            stage: Stage::Opening(Box::pin(self.ways.open(wish))),
            filters,
            left_out,
            subscribe_at: None,
            failed: None,
        }
    }

    /// A session has ended: what it was like decides how the next one begins.
    pub(crate) fn ended(&mut self, session: &Session) {
        if let Stage::Open(exchange) = &session.stage {
            self.ways.ended(Ended::of(exchange));
        }
    }
}

impl Session {
    /// What happens next. Cancel-safe. After `Down` the session is over.
    pub(crate) async fn next(&mut self) -> Heard {
        if let Some(error) = &self.failed {
            return down(error);
        }
        let exchange = match &mut self.stage {
            Stage::Open(exchange) => exchange,
            Stage::Opening(opening) => {
                return match opening.await {
                    Ok(exchange) => {
                        self.stage = Stage::Open(Box::new(exchange));
                        self.subscribe();
                        self.subscribe_at = match self.left_out.is_empty() {
                            true => None,
                            false => Some(Instant::now() + LEAVE_OUT_FOR),
                        };
                        Heard::Up
                    }
                    Err(error) => {
                        let heard = down(&error);
                        self.failed = Some(error);
                        heard
                    }
                };
            }
        };
        let happened = tokio::select! {
            biased;
            happened = exchange.next() => happened,
            () = mqtt::until(self.subscribe_at) => {
                self.subscribe_at = None;
                self.filters.append(&mut self.left_out);
                self.subscribe();
                return Heard::Nothing;
            }
        };
        match happened {
            Ok(Happened::Message(message)) => Heard::Message(message),
            Ok(Happened::Published(_, said)) => {
                if said.is_no() {
                    tracing::warn!("the broker refused a message of the server: {said}");
                }
                Heard::Confirmed
            }
            Ok(Happened::Sent(_)) => Heard::Confirmed,
            Ok(Happened::Subscribed(_, each)) => {
                for (filter, said) in self.filters.iter().zip(&each) {
                    match said.is_no() {
                        true => tracing::warn!(
                            "the broker refused the subscription to {filter:?}, so no records will come on it: {said}"
                        ),
                        false => tracing::debug!("subscribed to {filter:?}"),
                    }
                }
                Heard::Nothing
            }
            Ok(Happened::TooLarge(message)) => Heard::TooLarge(message),
            Ok(Happened::Pong | Happened::Written) => Heard::Nothing,
            Err(error) => {
                let heard = down(&error);
                self.failed = Some(error);
                heard
            }
        }
    }

    /// Whether nothing more has come so far.
    pub(crate) fn is_idle(&self) -> bool {
        match &self.stage {
            Stage::Open(exchange) => exchange.is_idle(),
            Stage::Opening(_) => true,
        }
    }

    /// Publishes with quality of service 1. False when there is no room now.
    pub(crate) fn publish(&mut self, message: &Message) -> bool {
        let Message {
            topic,
            retain,
            payload,
            expiry,
        } = message;
        let mut publication = Publication::new(topic, QoS::AtLeastOnce, payload.clone());
        publication.retain = *retain;
        if payload.starts_with('{') {
            publication = publication.json();
        }
        publication.about.expiry = *expiry;
        self.send(|exchange| exchange.publish(0, publication))
    }

    /// Tells the broker that a message is kept. False when there is no room now.
    pub(crate) fn acknowledge(&mut self, pkid: u16) -> bool {
        pkid == 0 || self.send(|exchange| exchange.acknowledge(pkid))
    }

    /// Says goodbye, so that the broker does not publish the last will, and ends.
    pub(crate) async fn close(self) {
        if let Stage::Open(exchange) = self.stage {
            // The broker is about to be left; whether it heard so makes no difference here.
            let _ = tokio::time::timeout(GOODBYE, exchange.close()).await;
        }
    }

    fn subscribe(&mut self) {
        let filters = self.filters.clone();
        if !filters.is_empty() {
            self.send(|exchange| exchange.subscribe(0, &filters));
        }
    }

    fn send(&mut self, say: impl FnOnce(&mut Exchange) -> Result<(), LinkError>) -> bool {
        let Stage::Open(exchange) = &mut self.stage else {
            return false;
        };
        if !exchange.has_room() {
            return false;
        }
        // Taken, or never to be: told by `next`.
        self.failed = say(exchange).err().or(self.failed.take());
        true
    }
}

fn down(error: &LinkError) -> Heard {
    Heard::Down {
        why: error.to_string(),
        refused: error.is_refusal(),
    }
}
