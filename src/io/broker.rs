//! The link: one MQTT session with the broker, over rumqttc's codec.
//!
//! Each try to connect gets a fresh socket and protocol state, and each session its own pairing of
//! publications with packet ids: nothing outlives a connection, so no late acknowledgement can be taken
//! for another. What was in flight when a session ends is the pure half's to publish again.
//! It does not wait or try again by itself; `daemon.rs` asks for a session and hands on what it says.
//!
//! The way to the broker is nightlight-common's `mqtt`, which the server goes too.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;

use nightlight_common::mqtt::visit::is_probe;
use nightlight_common::mqtt::{
    Avoid, Ended, Exchange, GOODBYE, Happened, LEAVE_OUT_FOR, LinkError, MAX_INCOMING, Routes,
    TooLarge, options, until,
};
use rumqttc::{
    Event, Incoming, LastWill, MqttOptions, Outgoing, Publish, QoS, Request, Subscribe,
    SubscribeReasonCode,
};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::{Broker, Config, Topics};
use nightlight_logic::Input;
use nightlight_logic::delivery::{MAX_CONTROL_IN_FLIGHT, Message, Topic};
use nightlight_logic::link::{Ending, Inbound};

/// Room for subscriptions and the like beside the publications in flight.
const SPARE: usize = 48;

/// Makes sessions.
#[derive(Debug)]
pub struct Link {
    broker: Broker,
    topics: Topics,
    server_status: Option<String>,
    window: usize,
    qos: u8,
    routes: Routes,
    avoid: Avoid,
}

impl Link {
    /// For the configured broker; nothing is opened yet.
    pub fn new(config: &Config) -> Self {
        Self {
            broker: config.broker.clone(),
            topics: config.topics.clone(),
            server_status: config.server_status.clone(),
            window: config.delivery.window,
            qos: config.delivery.qos,
            routes: Routes::new(&config.broker),
            avoid: Avoid::default(),
        }
    }

    /// Begins a session; [`Session::next`] tells what becomes of it.
    ///
    /// # Errors
    /// A file of the configuration cannot be read, in words.
    pub fn connect(&mut self) -> Result<Session, String> {
        let options = self.options()?;
        let opening = Exchange::open(self.routes.next_one(), options);
        let inbound = [&self.topics.commands, &self.topics.acks];
        let left_out = inbound
            .into_iter()
            .chain(&self.server_status)
            .filter(|topic| self.avoid.leaves_out(topic))
            .cloned()
            .collect();
        Ok(Session {
            stage: Stage::Opening(Box::pin(opening)),
            topics: self.topics.clone(),
            server_status: self.server_status.clone(),
            left_out,
            subscribe_at: None,
            on_the_way: VecDeque::new(),
            subscribing: VecDeque::new(),
            subscribed: HashMap::new(),
            in_flight: HashMap::new(),
            unwritten: VecDeque::new(),
            failed: None,
            too_large: 0,
        })
    }

    /// A session has ended, however it did: what it was like decides how the next one begins.
    pub fn ended(&mut self, session: &Session) {
        let ended = match &session.stage {
            Stage::Opening(_) => return,
            Stage::Open(exchange) => Ended::of(exchange),
            Stage::Over(None) => return,
            Stage::Over(Some(ended)) => ended.clone(),
        };
        ended.teach(&mut self.routes, &mut self.avoid);
    }

    fn options(&self) -> Result<MqttOptions, String> {
        let mut options = options(&self.broker)?;
        // At QoS 2 a kept session would remember packet ids that a fresh client uses anew.
        options.set_clean_session(self.qos == 2 || self.avoid.starts_clean());
        options.set_max_packet_size(MAX_INCOMING, MAX_INCOMING);
        options.set_inflight((self.window + MAX_CONTROL_IN_FLIGHT + SPARE) as u16);
        options.set_last_will(LastWill::new(
            self.topics.status.clone(),
            "offline",
            QoS::AtLeastOnce,
            true,
        ));
        Ok(options)
    }
}

/// One session, or the try to make one.
pub struct Session {
    stage: Stage,
    topics: Topics,
    server_status: Option<String>,
    /// What to subscribe to later.
    left_out: Vec<String>,
    subscribe_at: Option<Instant>,
    /// Tokens of publications that have no packet id yet, in order.
    on_the_way: VecDeque<u64>,
    /// Subscriptions that have none, in order: the token of one that was asked for, and the topic.
    subscribing: VecDeque<(Option<u64>, String)>,
    subscribed: HashMap<u16, (Option<u64>, String)>,
    in_flight: HashMap<u16, u64>,
    /// Tokens at QoS 0, confirmed when the network has what was taken.
    unwritten: VecDeque<u64>,
    failed: Option<String>,
    /// Messages that were passed over.
    too_large: u64,
}

enum Stage {
    Opening(Pin<Box<dyn Future<Output = Result<Exchange, LinkError>> + Send>>),
    Open(Box<Exchange>),
    Over(Option<Ended>),
}

impl Session {
    /// Takes a publication; it goes out with the next [`Session::next`].
    pub fn publish(&mut self, message: Message) {
        let qos = match message.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        };
        let mut publish = Publish::new(self.topic(message.topic), qos, message.payload);
        publish.retain = message.retain;
        self.on_the_way.push_back(message.token);
        self.send(Request::Publish(publish), "a publication was not taken");
    }

    /// Takes a subscription; it goes out with the next [`Session::next`].
    pub fn subscribe(&mut self, token: u64, inbound: Inbound) {
        let topic = match inbound {
            Inbound::Commands => self.topics.commands.clone(),
            Inbound::Acks => self.topics.acks.clone(),
            Inbound::ServerStatus => match &self.server_status {
                Some(topic) => topic.clone(),
                None => return,
            },
        };
        if self.left_out.contains(&topic) {
            // Answered for the broker: what is left out is nothing that it denies.
            self.unwritten.push_back(token);
            return;
        }
        self.send_subscription(Some(token), topic);
    }

    /// What happens next on the link. Cancel-safe. After a `LinkDown` the session is over.
    pub async fn next(&mut self) -> Input {
        loop {
            if let Some(why) = self.failed.clone() {
                return Input::LinkDown {
                    why,
                    ending: Ending::Lost,
                };
            }
            let happened = match &mut self.stage {
                Stage::Opening(opening) => match opening.await {
                    Ok(exchange) => {
                        self.stage = Stage::Open(Box::new(exchange));
                        self.subscribe_at = match self.left_out.is_empty() {
                            true => None,
                            false => Some(Instant::now() + LEAVE_OUT_FOR),
                        };
                        return Input::LinkUp;
                    }
                    Err(error) => {
                        let ending = match error.is_refusal() {
                            true => Ending::Refused,
                            false => Ending::Lost,
                        };
                        return self.over(&error, ending);
                    }
                },
                Stage::Open(exchange) => {
                    if exchange.is_written()
                        && let Some(token) = self.unwritten.pop_front()
                    {
                        return Input::Acked(token);
                    }
                    tokio::select! {
                        biased;
                        happened = exchange.next() => happened,
                        () = until(self.subscribe_at) => {
                            self.subscribe_at = None;
                            for topic in std::mem::take(&mut self.left_out) {
                                self.send_subscription(None, topic);
                            }
                            continue;
                        }
                    }
                }
                Stage::Over(_) => {
                    let why = LinkError::Protocol("the session ended".into());
                    return self.over(&why, Ending::Lost);
                }
            };
            let input = match happened {
                Ok(Happened::Event(event)) => self.translate(event),
                Ok(Happened::TooLarge(message)) => self.pass_over(&message),
                Ok(Happened::Written) => None,
                Err(error) => {
                    let ending = match error.is_end() {
                        true => Ending::Closed,
                        false => Ending::Lost,
                    };
                    return self.over(&error, ending);
                }
            };
            if let Some(input) = input {
                return input;
            }
        }
    }

    /// Says goodbye, so that the broker does not publish the last will, and ends.
    pub async fn close(self) {
        if let Stage::Open(exchange) = self.stage {
            // The broker is about to be left; whether it heard so makes no difference here.
            let _ = tokio::time::timeout(GOODBYE, exchange.close()).await;
        }
    }

    fn over(&mut self, error: &LinkError, ending: Ending) -> Input {
        let why = error.to_string();
        self.failed = Some(why.clone());
        if let Stage::Open(exchange) = &self.stage {
            self.stage = Stage::Over(Some(Ended::of(exchange)));
        } else if let Stage::Opening(_) = self.stage {
            self.stage = Stage::Over(None);
        }
        Input::LinkDown { why, ending }
    }

    /// A message that was too large to be kept: one of the server's is answered, the others are told.
    fn pass_over(&mut self, message: &TooLarge) -> Option<Input> {
        let TooLarge { topic, bytes, .. } = message;
        self.too_large += 1;
        // A flood of them must not be one of the log.
        if self.too_large.is_power_of_two() {
            warn!(
                "a message of {bytes} bytes on {topic:?} was not read ({} in this session)",
                self.too_large
            );
        }
        (*topic == self.topics.commands).then_some(Input::CommandTooLarge { bytes: *bytes })
    }

    fn translate(&mut self, event: Event) -> Option<Input> {
        match event {
            Event::Outgoing(Outgoing::Publish(pkid)) => {
                let token = self.on_the_way.pop_front()?;
                match pkid {
                    0 => self.unwritten.push_back(token),
                    _ => drop(self.in_flight.insert(pkid, token)),
                }
                None
            }
            Event::Outgoing(Outgoing::Subscribe(pkid)) => {
                let subscription = self.subscribing.pop_front()?;
                self.subscribed.insert(pkid, subscription);
                None
            }
            Event::Incoming(Incoming::PubAck(ack)) => {
                self.in_flight.remove(&ack.pkid).map(Input::Acked)
            }
            Event::Incoming(Incoming::PubComp(ack)) => {
                self.in_flight.remove(&ack.pkid).map(Input::Acked)
            }
            Event::Incoming(Incoming::SubAck(ack)) => {
                let (token, topic) = self.subscribed.remove(&ack.pkid)?;
                match ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                    true => token.map(Input::SubscriptionRefused),
                    false => {
                        debug!("subscribed to {topic:?}");
                        token.map(Input::Acked)
                    }
                }
            }
            // Whoever probes an access list is no server, and no sign of one.
            Event::Incoming(Incoming::Publish(publish)) if is_probe(&publish.payload) => {
                debug!("a probe on {:?}", publish.topic);
                None
            }
            Event::Incoming(Incoming::Publish(publish)) => {
                let payload = publish.payload.to_vec();
                let retained = publish.retain;
                if publish.topic == self.topics.commands {
                    Some(Input::CommandReceived { payload, retained })
                } else if publish.topic == self.topics.acks {
                    Some(Input::ServerAcked(payload))
                } else if self.server_status.as_ref() == Some(&publish.topic) {
                    Some(Input::ServerStatus { payload, retained })
                } else {
                    debug!(topic = publish.topic, "not asked for");
                    None
                }
            }
            _ => None,
        }
    }

    fn send_subscription(&mut self, token: Option<u64>, topic: String) {
        let subscribe = Subscribe::new(topic.clone(), QoS::AtLeastOnce);
        self.subscribing.push_back((token, topic));
        self.send(
            Request::Subscribe(subscribe),
            "a subscription was not taken",
        );
    }

    fn send(&mut self, request: Request, failed: &str) {
        if let Stage::Open(exchange) = &mut self.stage
            && let Err(error) = exchange.send(request)
        {
            self.failed = Some(format!("{failed}: {error}"));
        }
    }

    fn topic(&self, topic: Topic) -> &str {
        match topic {
            Topic::Telemetry => &self.topics.telemetry,
            Topic::History => &self.topics.history,
            Topic::Events => &self.topics.events,
            Topic::Results => &self.topics.results,
            Topic::State => &self.topics.state,
            Topic::Status => &self.topics.status,
        }
    }
}
