//! The link: one MQTT session with the broker, over rumqttc.
//!
//! Each try to connect gets a fresh socket and protocol state, and each session its own pairing of
//! publications with packet ids: nothing outlives a connection, so no late acknowledgement can be taken
//! for another. What was in flight when a session ends is the pure half's to publish again.
//! It does not wait or try again by itself; `daemon.rs` asks for a session and hands on what it says.

mod dial;
mod exchange;
pub mod knock;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::future::Future;
use std::io::ErrorKind;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use exchange::Exchange;
use rumqttc::{
    ConnectReturnCode, ConnectionError, Event, Incoming, LastWill, MqttOptions, Outgoing, Publish,
    QoS, Request, StateError, Subscribe, SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::{Broker, Config, Scheme, Topics};
use crate::logic::Input;
use crate::logic::delivery::{CONTROL_ROOM, Message, Topic};
use crate::logic::link::{Ending, Inbound};

/// Name, TCP, TLS and CONNACK together may take so long; a Pi Zero needs seconds for TLS alone.
pub(crate) const CONNECT_TIMEOUT: u64 = 20;
/// Room for subscriptions and the like beside the publications in flight.
const SPARE: usize = 48;
/// Without any event for so many keep-alives the peer is dead, whatever TCP says.
const DEAD_AFTER: f64 = 2.5;
/// A clean goodbye may take so long.
const GOODBYE: Duration = Duration::from_millis(500);

/// Makes sessions.
#[derive(Debug)]
pub struct Link {
    broker: Broker,
    topics: Topics,
    server_status: Option<String>,
    window: usize,
    qos: u8,
    /// The last session died of a packet that the broker would send again.
    start_clean: bool,
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
            start_clean: false,
        }
    }

    /// Begins a session; [`Session::next`] tells what becomes of it.
    ///
    /// # Errors
    /// A file of the configuration cannot be read, in words.
    pub fn connect(&mut self) -> Result<Session, String> {
        let options = self.options()?;
        let host = bare_host(&self.broker).to_owned();
        let patience = Duration::from_secs(CONNECT_TIMEOUT);
        let opening = Exchange::open(host, self.broker.port, options, patience);
        Ok(Session {
            stage: Stage::Opening(Box::pin(opening)),
            topics: self.topics.clone(),
            server_status: self.server_status.clone(),
            on_the_way: VecDeque::new(),
            subscribing: VecDeque::new(),
            in_flight: HashMap::new(),
            unwritten: VecDeque::new(),
            last_event: Instant::now(),
            dead_after: self.broker.keep_alive.mul_f64(DEAD_AFTER) + patience,
            failed: None,
        })
    }

    /// A session has ended; `why` decides how the next one begins.
    pub fn ended(&mut self, session: &Session) {
        self.start_clean = session
            .failed
            .as_deref()
            .is_some_and(|why| why.contains(TOO_LARGE));
    }

    fn options(&self) -> Result<MqttOptions, String> {
        let mut options = options(&self.broker)?;
        // At QoS 2 a kept session would remember packet ids that a fresh client uses anew.
        options.set_clean_session(self.qos == 2 || self.start_clean);
        options.set_inflight((self.window + CONTROL_ROOM + SPARE) as u16);
        options.set_last_will(LastWill::new(
            self.topics.status.clone(),
            "offline",
            QoS::AtLeastOnce,
            true,
        ));
        Ok(options)
    }
}

/// How to reach a broker, for any client; the session's own settings are up to the caller.
///
/// # Errors
/// A file of the configuration cannot be read, in words.
pub(crate) fn options(broker: &Broker) -> Result<MqttOptions, String> {
    let Broker {
        scheme, host, port, ..
    } = broker;
    let address = match scheme {
        Scheme::Mqtt | Scheme::Mqtts => bare_host(broker).to_owned(),
        Scheme::Ws => format!("ws://{host}:{port}{}", broker.path),
        Scheme::Wss => format!("wss://{host}:{port}{}", broker.path),
    };
    let mut options = MqttOptions::new(broker.client_id.clone(), address, *port);
    options.set_transport(match scheme {
        Scheme::Mqtt => Transport::Tcp,
        Scheme::Ws => Transport::Ws,
        Scheme::Mqtts => Transport::tls_with_config(tls(broker)?),
        Scheme::Wss => Transport::wss_with_config(tls(broker)?),
    });
    options.set_keep_alive(broker.keep_alive);
    if let Some(username) = &broker.username {
        let password = match &broker.password_file {
            Some(file) => read(file)?.lines().next().unwrap_or_default().to_owned(),
            None => String::new(),
        };
        options.set_credentials(username.clone(), password);
    }
    Ok(options)
}

/// An IPv6 address without its brackets.
fn bare_host(broker: &Broker) -> &str {
    broker.host.trim_start_matches('[').trim_end_matches(']')
}

/// What rumqttc says of a packet over the limit, in its own words.
const TOO_LARGE: &str = "ayload size limit exceeded";

/// One session, or the try to make one.
pub struct Session {
    stage: Stage,
    topics: Topics,
    server_status: Option<String>,
    /// Tokens of publications that have no packet id yet, in order.
    on_the_way: VecDeque<u64>,
    /// Tokens of subscriptions that have none, in order.
    subscribing: VecDeque<u64>,
    in_flight: HashMap<u16, u64>,
    /// Tokens at QoS 0, confirmed when the network has what was taken.
    unwritten: VecDeque<u64>,
    last_event: Instant,
    dead_after: Duration,
    failed: Option<String>,
}

enum Stage {
    Opening(Pin<Box<dyn Future<Output = Result<Exchange, ConnectionError>> + Send>>),
    Open(Box<Exchange>),
    Over,
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
            Inbound::Commands => &self.topics.commands,
            Inbound::Acks => &self.topics.acks,
            Inbound::ServerStatus => match &self.server_status {
                Some(topic) => topic,
                None => return,
            },
        };
        let subscribe = Subscribe::new(topic.clone(), QoS::AtLeastOnce);
        self.subscribing.push_back(token);
        self.send(
            Request::Subscribe(subscribe),
            "a subscription was not taken",
        );
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
            let dead_at = self.last_event + self.dead_after;
            let event = match &mut self.stage {
                Stage::Opening(opening) => match opening.await {
                    Ok(exchange) => {
                        self.stage = Stage::Open(Box::new(exchange));
                        self.last_event = Instant::now();
                        return Input::LinkUp;
                    }
                    Err(error) => return self.over(before_connack(&error), opening_ending(&error)),
                },
                Stage::Open(exchange) => {
                    if exchange.is_written()
                        && let Some(token) = self.unwritten.pop_front()
                    {
                        return Input::Acked(token);
                    }
                    match tokio::time::timeout_at(dead_at, exchange.next()).await {
                        Err(_) => {
                            let why = "nothing was heard from the broker".into();
                            return self.over(why, Ending::Lost);
                        }
                        Ok(Err(error)) => return self.over(in_words(&error), ending(&error)),
                        Ok(Ok(event)) => event,
                    }
                }
                Stage::Over => return self.over("the session ended".into(), Ending::Lost),
            };
            if let Some(input) = event.and_then(|event| self.translate(event)) {
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

    fn over(&mut self, why: String, ending: Ending) -> Input {
        self.failed = Some(why.clone());
        self.stage = Stage::Over;
        Input::LinkDown { why, ending }
    }

    fn translate(&mut self, event: Event) -> Option<Input> {
        if let Event::Incoming(_) = event {
            self.last_event = Instant::now();
        }
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
                let token = self.subscribing.pop_front()?;
                self.in_flight.insert(pkid, token);
                None
            }
            Event::Incoming(Incoming::PubAck(ack)) => {
                self.in_flight.remove(&ack.pkid).map(Input::Acked)
            }
            Event::Incoming(Incoming::PubComp(ack)) => {
                self.in_flight.remove(&ack.pkid).map(Input::Acked)
            }
            Event::Incoming(Incoming::SubAck(ack)) => {
                if ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                    warn!(
                        "the broker refused a subscription: commands or acks will not come; check its access list"
                    );
                }
                self.in_flight.remove(&ack.pkid).map(Input::Acked)
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

/// How a session ended.
fn ending(error: &ConnectionError) -> Ending {
    let closed = |error: &std::io::Error| {
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
        )
    };
    match error {
        ConnectionError::MqttState(StateError::ConnectionAborted) => Ending::Closed,
        ConnectionError::MqttState(StateError::Io(error)) if closed(error) => Ending::Closed,
        _ => Ending::Lost,
    }
}

/// Why there is no session.
fn opening_ending(error: &ConnectionError) -> Ending {
    match is_refusal(error) {
        true => Ending::Refused,
        false => Ending::Lost,
    }
}

/// What went wrong before the broker let us in, in words.
fn before_connack(error: &ConnectionError) -> String {
    match ending(error) {
        Ending::Closed => {
            "the broker closed the connection before it answered CONNECT: are the port and the scheme of broker.url \
             right, and what does its log say?"
                .into()
        }
        _ => in_words(error),
    }
}

pub(crate) fn is_refusal(error: &ConnectionError) -> bool {
    matches!(
        error,
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword
                | ConnectReturnCode::NotAuthorized
                | ConnectReturnCode::BadClientId
                | ConnectReturnCode::RefusedProtocolVersion
        )
    )
}

pub(crate) fn in_words(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(ConnectReturnCode::BadUserNamePassword) => {
            "the broker refused the user name or password: check broker.username and broker.password_file".into()
        }
        ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized) => {
            "the broker says: not authorised; check broker.username, broker.password_file and its access list".into()
        }
        ConnectionError::ConnectionRefused(ConnectReturnCode::BadClientId) => {
            "the broker refused the client id: check broker.client_id".into()
        }
        ConnectionError::ConnectionRefused(ConnectReturnCode::RefusedProtocolVersion) => {
            "the broker does not speak MQTT 3.1.1".into()
        }
        ConnectionError::ConnectionRefused(ConnectReturnCode::ServiceUnavailable) => {
            "the broker is there but says that it takes nobody now".into()
        }
        ConnectionError::NetworkTimeout => "the broker did not answer in time".into(),
        ConnectionError::FlushTimeout => "the broker takes nothing".into(),
        ConnectionError::MqttState(StateError::AwaitPingResp) => {
            "the broker does not answer any more".into()
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => {
            "the broker closed the connection".into()
        }
        ConnectionError::Io(error) | ConnectionError::MqttState(StateError::Io(error)) => {
            match error.kind() {
                ErrorKind::ConnectionRefused => {
                    "nobody listens at the broker's address: does it run, and is broker.url right?"
                        .into()
                }
                ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof => {
                    "the broker closed the connection".into()
                }
                _ => error.to_string(),
            }
        }
        ConnectionError::Tls(error) => {
            let why = error.to_string();
            match why.contains("NotValidYet") || why.contains("not valid yet") {
                true => format!("{why}; is the clock of this machine set?"),
                false => why,
            }
        }
        other => {
            // Inside a packet rumqttc calls the same thing a bad packet.
            let why = other.to_string();
            match why.contains("Connection reset") {
                true => "the broker closed the connection".into(),
                false => why,
            }
        }
    }
}

fn tls(broker: &Broker) -> Result<TlsConfiguration, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .with_root_certificates(roots(broker.ca_file.as_deref())?);
    let config = match (&broker.cert_file, &broker.key_file) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("no private key in {}: {error}", key.display()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("the client certificate does not work: {error}"))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(TlsConfiguration::Rustls(Arc::new(config)))
}

fn roots(ca_file: Option<&Path>) -> Result<rustls::RootCertStore, String> {
    let mut roots = rustls::RootCertStore::empty();
    let (certificates, from) = match ca_file {
        Some(file) => (certificates(file)?, file.display().to_string()),
        None => (
            rustls_native_certs::load_native_certs().certs,
            "the system's certificates".to_owned(),
        ),
    };
    // Single bad certificates in a system store are common and harmless.
    let (added, _) = roots.add_parsable_certificates(certificates);
    match added {
        0 => Err(format!("no usable certificate in {from}")),
        _ => Ok(roots),
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| format!("no certificate in {}: {error}", file.display()))
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}
