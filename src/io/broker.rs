//! The link: one MQTT session with the broker.
//!
//! Each try to connect gets a fresh socket and fresh packet ids: nothing outlives a connection, so no late acknowledgement can be taken
//! for another. What was in flight when a session ends is the pure half's to publish again.
//! It does not wait or try again by itself; `daemon.rs` asks for a session and hands on what it says.
//!
//! The way to the broker is nightlight-common's `mqtt`, which the server goes too.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use nightlight_common::mqtt::visit::is_probe;
use nightlight_common::mqtt::{
    About, Ended, Exchange, GOODBYE, Happened, LEAVE_OUT_FOR, LinkError, Publication, QoS, Said,
    Terms, TooLarge, Version, Ways, Will, Wish, until,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::{Broker, Config, Topics};
use nightlight_logic::Input;
use nightlight_logic::command::ReplyTo;
use nightlight_logic::delivery::{MAX_CONTROL_IN_FLIGHT, Message, Topic};
use nightlight_logic::link::{Ending, Inbound, Offer, Refusal};

/// Room for subscriptions and the like beside the publications in flight.
const SPARE: usize = 48;
/// Longer topics for an answer are not taken.
const MAX_REPLY_TOPIC: usize = 1_024;
/// What a publication has beside topic and payload, in bytes: header, lengths, packet id, what it is.
const HEADERS: u32 = 5 + 2 + 2 + 1 + 32;
/// The token of a subscription that was left out at first; delivery counts from 1.
const LATE: u64 = 0;
/// The broker says `offline` after so many seconds without us, not at each flap.
const WILL_DELAY: u32 = 5;

/// Makes sessions.
#[derive(Debug)]
pub struct Link {
    broker: Broker,
    device_id: String,
    topics: Topics,
    server_status: Option<String>,
    home_assistant: HomeAssistantTopics,
    window: usize,
    qos: u8,
    ways: Ways,
}

impl Link {
    /// For the configured broker; nothing is opened yet.
    pub fn new(config: &Config) -> Self {
        Self {
            broker: config.broker.clone(),
            device_id: config.device_id.clone(),
            topics: config.topics.clone(),
            server_status: config.server_status.clone(),
            home_assistant: HomeAssistantTopics::new(config),
            window: config.delivery.window,
            qos: config.delivery.qos,
            ways: Ways::new(&config.broker),
        }
    }

    /// Begins a session; [`Session::next`] tells what becomes of it.
    pub fn connect(&mut self) -> Session {
        let opening = self.ways.open(self.wish());
        self.begin(opening)
    }

    /// The same over a stream that is open, in place of the way to the broker: what a test has at its other end.
    pub fn connect_over(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        version: Version,
    ) -> Session {
        let wish = self.wish();
        self.begin(async move { Exchange::over(stream, version, &wish).await })
    }

    fn begin(
        &mut self,
        opening: impl Future<Output = Result<Exchange, LinkError>> + Send + 'static,
    ) -> Session {
        let inbound = [&self.topics.commands, &self.topics.acks];
        let left_out = inbound
            .into_iter()
            .chain(&self.server_status)
            .chain(&self.home_assistant.status)
            .filter(|topic| self.ways.leaves_out(topic))
            .cloned()
            .collect();
        Session {
            stage: Stage::Opening(Box::pin(opening)),
            topics: self.topics.clone(),
            server_status: self.server_status.clone(),
            home_assistant: self.home_assistant.clone(),
            left_out,
            subscribe_at: None,
            subscribing: HashMap::new(),
            to_tell: VecDeque::new(),
            failed: None,
            below: format!("{}/", self.device_id),
            is_5: false,
            too_large: 0,
        }
    }

    /// A session has ended, however it did: what it was like decides how the next one begins.
    pub fn ended(&mut self, session: &Session) {
        let ended = match &session.stage {
            Stage::Opening(_) => return,
            Stage::Open(exchange) => Ended::of(exchange),
            Stage::Over(None) => return,
            Stage::Over(Some(ended)) => ended.clone(),
        };
        self.ways.ended(ended);
    }

    fn wish(&self) -> Wish {
        Wish {
            clean: false,
            session_expiry: Some(self.broker.session_expiry),
            will: Some(Will::new(&self.topics.status, "offline", WILL_DELAY)),
            in_flight: (self.window + MAX_CONTROL_IN_FLIGHT + SPARE) as u16,
            exactly_once: self.qos == 2,
            ..Wish::new(&self.broker.client_id, self.broker.keep_alive)
        }
    }
}

/// What is said to and by Home Assistant, where it is told of the device.
#[derive(Debug, Clone, Default)]
struct HomeAssistantTopics {
    discovery: String,
    status: Option<String>,
}

impl HomeAssistantTopics {
    fn new(config: &Config) -> Self {
        let home = config.home_assistant.as_ref();
        Self {
            discovery: home.map_or(String::new(), |home| home.topic.clone()),
            status: config.home_assistant_status().map(Into::into),
        }
    }
}

/// One session, or the try to make one.
pub struct Session {
    stage: Stage,
    topics: Topics,
    server_status: Option<String>,
    home_assistant: HomeAssistantTopics,
    /// What to subscribe to later.
    left_out: Vec<String>,
    subscribe_at: Option<Instant>,
    /// The topic that each subscription asked for.
    subscribing: HashMap<u64, String>,
    /// What is to be told before anything else.
    to_tell: VecDeque<Input>,
    failed: Option<String>,
    /// The device id and a slash.
    below: String,
    /// The broker speaks MQTT 5, which has reasons.
    is_5: bool,
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
        let (topic, correlation) = match message.reply_to {
            Some(ReplyTo { topic, correlation }) => (topic, correlation),
            None => (self.topic(message.topic).to_owned(), None),
        };
        let mut publication = Publication::new(topic, qos, message.payload);
        publication.about.correlation = correlation.map(Into::into);
        // An empty message takes a retained one back; it is no JSON.
        if message.topic != Topic::Status && !publication.payload.is_empty() {
            publication = publication.json();
        }
        publication.retain = message.retain;
        self.send("a publication was not taken", |exchange| {
            exchange.publish(message.token, publication)
        });
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
            Inbound::HomeAssistant => match &self.home_assistant.status {
                Some(topic) => topic.clone(),
                None => return,
            },
        };
        if self.left_out.contains(&topic) {
            // Answered for the broker: what is left out is nothing that it denies.
            self.to_tell.push_back(Input::Acked(token));
            return;
        }
        self.send_subscription(token, topic);
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
                        let offer = self.offer(exchange.terms());
                        self.stage = Stage::Open(Box::new(exchange));
                        self.subscribe_at = match self.left_out.is_empty() {
                            true => None,
                            false => Some(Instant::now() + LEAVE_OUT_FOR),
                        };
                        self.to_tell.push_back(Input::LinkUp);
                        return Input::Offered(offer);
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
                    if let Some(input) = self.to_tell.pop_front() {
                        return input;
                    }
                    tokio::select! {
                        biased;
                        happened = exchange.next() => happened,
                        () = until(self.subscribe_at) => {
                            self.subscribe_at = None;
                            for topic in std::mem::take(&mut self.left_out) {
                                self.send_subscription(LATE, topic);
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
                Ok(happened) => self.translate(happened),
                Err(error) => {
                    let ending = match error.ended_with() {
                        Some(0x93) => Ending::TooMany,
                        Some(0x95) => Ending::TooLarge,
                        _ if error.is_end() => Ending::Closed,
                        _ => Ending::Lost,
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

    fn translate(&mut self, happened: Happened) -> Option<Input> {
        match happened {
            Happened::Published(token, said) => Some(answer(token, &said)),
            Happened::Sent(token) => Some(Input::Acked(token)),
            Happened::Subscribed(token, said) => {
                let topic = self.subscribing.remove(&token);
                let refused = said.iter().find(|said| said.is_no());
                match refused {
                    Some(said) => {
                        debug!("the subscription to {topic:?} is refused: {said}");
                        let is_said = self.is_5;
                        let why = if is_said {
                            said.to_string()
                        } else {
                            String::new()
                        };
                        (token != LATE).then_some(Input::SubscriptionRefused { token, why })
                    }
                    None => {
                        debug!("subscribed to {topic:?}");
                        (token != LATE).then_some(Input::Acked(token))
                    }
                }
            }
            Happened::TooLarge(message) => self.pass_over(&message),
            // Whoever probes an access list is no server, and no sign of one.
            Happened::Message(message) if is_probe(&message.payload) => {
                debug!("a probe on {:?}", message.topic);
                None
            }
            Happened::Message(message) => {
                let payload = message.payload.to_vec();
                let retained = message.retain;
                if message.topic == self.topics.commands {
                    let reply_to = self.reply_to(message.about);
                    Some(Input::CommandReceived {
                        payload,
                        retained,
                        reply_to,
                    })
                } else if message.topic == self.topics.acks {
                    Some(Input::ServerAcked(payload))
                } else if self.server_status.as_ref() == Some(&message.topic) {
                    Some(Input::ServerStatus { payload, retained })
                } else if self.home_assistant.status.as_ref() == Some(&message.topic) {
                    Some(Input::HomeAssistantStatus { payload, retained })
                } else {
                    debug!(topic = message.topic, "not asked for");
                    None
                }
            }
            Happened::Pong | Happened::Written => None,
        }
    }

    /// Where the sender wants the answer: below the device's own id, and on no topic that has a use already, so
    /// that nobody has the device write what he may not write himself.
    fn reply_to(&self, about: About) -> Option<ReplyTo> {
        let topic = about.response_topic?;
        let is_own = topic
            .strip_prefix(&self.below)
            .is_some_and(|rest| !rest.is_empty());
        let is_plain = !topic.contains(['+', '#', '\0']) && topic.len() <= MAX_REPLY_TOPIC;
        if !is_own || !is_plain || self.topics.all().contains(&topic.as_str()) {
            debug!(
                "no answer on {topic:?}: only below {:?}, and without wildcards",
                self.below
            );
            return None;
        }
        let correlation = about.correlation.map(|data| data.to_vec());
        Some(ReplyTo { topic, correlation })
    }

    fn send_subscription(&mut self, token: u64, topic: String) {
        self.send("a subscription was not taken", |exchange| {
            exchange.subscribe(token, std::slice::from_ref(&topic))
        });
        self.subscribing.insert(token, topic);
    }

    fn send(&mut self, failed: &str, say: impl FnOnce(&mut Exchange) -> Result<(), LinkError>) {
        if let Stage::Open(exchange) = &mut self.stage
            && let Err(error) = say(exchange)
        {
            self.failed = Some(format!("{failed}: {error}"));
        }
    }

    /// What the broker offers, as far as it concerns what is published.
    fn offer(&mut self, terms: &Terms) -> Offer {
        self.is_5 = terms.version == Version::V5;
        let seconds = |time: Duration| time.as_secs();
        let Topics {
            telemetry,
            history,
            events,
            ..
        } = &self.topics;
        let longest = [telemetry, history, events]
            .map(String::len)
            .into_iter()
            .max();
        let overhead = HEADERS + longest.unwrap_or_default() as u32;
        Offer {
            version: terms.version.name().into(),
            session_expiry_s: terms.session_expiry.map(seconds),
            receive_max: terms.receive_max,
            max_packet: terms.max_packet,
            max_qos: terms.max_qos,
            retain: terms.retain,
            keep_alive_s: terms.keep_alive.map(seconds),
            max_payload: terms.max_packet.map(|bytes| bytes.saturating_sub(overhead)),
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
            Topic::Discovery => &self.home_assistant.discovery,
        }
    }
}

/// What the broker's reason for a publication is to the pure half.
fn answer(token: u64, said: &Said) -> Input {
    let refusal = match said.code {
        0x10 => return Input::Unheard(token),
        0x00..=0x7f => return Input::Acked(token),
        0x87 | 0x90 => Refusal::Denied,
        0x97 => Refusal::Quota,
        0x99 => Refusal::Payload,
        0x95 => Refusal::TooLarge,
        _ => Refusal::Unclear,
    };
    let why = said.to_string();
    Input::PublicationRefused {
        token,
        refusal,
        why,
    }
}
