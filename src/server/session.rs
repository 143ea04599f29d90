//! One MQTT session of the server, or the try to make one.
//!
//! A fresh client for every connection, as on the device's side (`io::broker`). The session at the
//! broker is kept, and its messages are acknowledged by hand: only what is on the server's disk, so
//! that whatever a killed server had not kept comes again. The shell decides when to connect.

use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectionError, Event, Incoming, LastWill, NetworkOptions, Outgoing, Publish,
    QoS, SubscribeFilter, SubscribeReasonCode,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::Broker;
use crate::io::broker;

/// Larger packets end the session, in and out.
const MAX_PACKET: usize = 1024 * 1024;
/// Publications of the server that the broker has not confirmed.
const IN_FLIGHT: u16 = 500;
/// Orders that wait in the client: few, so that a command has no long queue before it.
const ORDERS: usize = 64;
/// Without any event for so many keep-alives the broker is dead, whatever TCP says.
const DEAD_AFTER: f64 = 2.5;
/// A clean goodbye may take so long.
const GOODBYE: Duration = Duration::from_millis(500);

/// How to connect.
#[derive(Debug, Clone)]
pub struct Door {
    /// The broker.
    pub broker: Broker,
    /// What to listen to.
    pub filters: Vec<String>,
    /// Where the server says whether it is there.
    pub status_topic: String,
}

/// What a session tells.
#[derive(Debug)]
pub enum Heard {
    /// It stands, and the subscriptions are on their way.
    Up,
    /// A message came.
    Message(Publish),
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
#[derive(Debug)]
pub struct Session {
    client: AsyncClient,
    events: mpsc::Receiver<Result<Event, ConnectionError>>,
    task: JoinHandle<()>,
    filters: Vec<String>,
    dead_after: Duration,
    last_event: Instant,
}

impl Session {
    /// Begins a session.
    ///
    /// # Errors
    /// A file that is needed cannot be read, in words.
    pub fn begin(door: &Door) -> Result<Self, String> {
        let mut options = broker::options(&door.broker)?;
        options.set_clean_session(false);
        options.set_manual_acks(true);
        options.set_inflight(IN_FLIGHT);
        options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
        options.set_last_will(LastWill::new(
            door.status_topic.clone(),
            "offline",
            QoS::AtLeastOnce,
            true,
        ));
        let (client, mut event_loop) = AsyncClient::new(options, ORDERS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(broker::CONNECT_TIMEOUT);
        event_loop.set_network_options(network);
        let (sender, events) = mpsc::channel(64);
        // Polling is not cancel-safe: the event loop lives and dies in a task of its own.
        let task = tokio::spawn(async move {
            loop {
                let event = event_loop.poll().await;
                let over = event.is_err();
                if sender.send(event).await.is_err() || over {
                    break;
                }
            }
        });
        Ok(Self {
            client,
            events,
            task,
            filters: door.filters.clone(),
            dead_after: door.broker.keep_alive.mul_f64(DEAD_AFTER)
                + Duration::from_secs(broker::CONNECT_TIMEOUT),
            last_event: Instant::now(),
        })
    }

    /// What happens next. Cancel-safe. After `Down` the session is over.
    pub async fn next(&mut self) -> Heard {
        let dead_at = self.last_event + self.dead_after;
        let event = match tokio::time::timeout_at(dead_at, self.events.recv()).await {
            Err(_) => return down("nothing was heard from the broker".into(), false),
            Ok(None) => return down("the session ended".into(), false),
            Ok(Some(Err(error))) => {
                return down(broker::in_words(&error), broker::is_refusal(&error));
            }
            Ok(Some(Ok(event))) => event,
        };
        self.last_event = Instant::now();
        match event {
            Event::Incoming(Incoming::ConnAck(_)) => self.subscribe(),
            Event::Incoming(Incoming::Publish(publish)) => Heard::Message(publish),
            Event::Incoming(Incoming::PubAck(_)) => Heard::Confirmed,
            Event::Incoming(Incoming::SubAck(ack)) => {
                if ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                    tracing::warn!(
                        "the broker refused a subscription: records will not come; check its access list"
                    );
                }
                Heard::Nothing
            }
            _ => Heard::Nothing,
        }
    }

    /// Whether nothing more has come so far.
    pub fn is_idle(&self) -> bool {
        self.events.is_empty()
    }

    /// Publishes with quality of service 1. False when there is no room now.
    pub fn publish(&self, topic: &str, retain: bool, payload: &str) -> bool {
        self.client
            .try_publish(topic, QoS::AtLeastOnce, retain, payload)
            .is_ok()
    }

    /// Tells the broker that a message is kept. False when there is no room now.
    pub fn acknowledge(&self, pkid: u16) -> bool {
        let mut publish = Publish::new("", QoS::AtLeastOnce, Vec::new());
        publish.pkid = pkid;
        pkid == 0 || self.client.try_ack(&publish).is_ok()
    }

    /// Says goodbye, so that the broker does not publish the last will, and ends.
    pub async fn close(mut self) {
        if self.client.try_disconnect().is_ok() {
            let farewell = async {
                while let Some(Ok(event)) = self.events.recv().await {
                    if event == Event::Outgoing(Outgoing::Disconnect) {
                        break;
                    }
                }
            };
            // The broker is about to be left; whether it heard so makes no difference here.
            let _ = tokio::time::timeout(GOODBYE, farewell).await;
        }
    }

    fn subscribe(&mut self) -> Heard {
        let filters = self
            .filters
            .iter()
            .map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce));
        match self.client.try_subscribe_many(filters) {
            Ok(()) => Heard::Up,
            Err(error) => down(format!("cannot subscribe: {error}"), false),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn down(why: String, refused: bool) -> Heard {
    Heard::Down { why, refused }
}
