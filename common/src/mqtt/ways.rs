//! The ways to one broker, and one way gone to its end: name, TCP, TLS, WebSocket, and a greeting in the version
//! of MQTT that it speaks.
//!
//! What a session learns is kept for the next: which address is good, what to avoid, and that a broker does not
//! speak MQTT 5. Such a broker is spoken to in 3.1.1 at once, over a connection of its own, and for the rest of the
//! run; after an hour 5 is tried again with the next session.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::{debug, info};

use super::access::{Files, Keys};
use super::dial::{Race, attempt};
use super::exchange::{Exchange, TIMEOUT, Wish};
use super::framing::{Avoid, TooLarge};
use super::handshake::handshake;
use super::route::{Route, Routes};
use super::terms::Version;
use super::words::LinkError;
use crate::config::{Broker, Speak};

/// A broker that speaks 3.1.1 alone may have been renewed after so long.
const ASK_AGAIN: Duration = Duration::from_secs(3_600);

/// A broker that closed so many connections in a row for PUBREL does not know it.
const CLOSED_ON_RELEASE: u32 = 2;

/// The ways to one broker, from session to session.
#[derive(Debug)]
pub struct Ways {
    broker: Broker,
    routes: Routes,
    files: Files,
    avoid: Avoid,
    learnt: Arc<Mutex<Learnt>>,
}

/// What tries to connect learn.
#[derive(Debug, Default)]
struct Learnt {
    /// 3.1.1 is spoken until then.
    old_until: Option<Instant>,
    /// The broker said nothing to a CONNECT of MQTT 5: the next one is of 3.1.1.
    was_silent: bool,
    /// The broker does not free packet ids: the session there begins anew.
    starts_clean: bool,
    /// The broker closed so many connections in a row when it was to free packet ids.
    closed_on_release: u32,
}

/// What a session leaves behind for the next one.
#[derive(Debug, Clone)]
pub struct Ended {
    address: Option<(SocketAddr, Duration)>,
    unfinished: Option<TooLarge>,
}

impl Ended {
    /// Of a session that is over, or ends now.
    pub fn of(exchange: &Exchange) -> Self {
        Self {
            address: exchange.address(),
            unfinished: exchange.unfinished(),
        }
    }
}

impl Ways {
    /// Nothing is known of it yet.
    pub fn new(broker: &Broker) -> Self {
        Self {
            broker: broker.clone(),
            routes: Routes::new(broker),
            files: Files::default(),
            avoid: Avoid::default(),
            learnt: Arc::default(),
        }
    }

    /// Goes the whole way to the broker. An address of several that fails anywhere on it leaves the others their
    /// turn. Nothing is waited for before the future is.
    pub fn open(
        &mut self,
        mut wish: Wish,
    ) -> impl Future<Output = Result<Exchange, LinkError>> + Send + use<> {
        let route = self.routes.next_one();
        let pending = self.files.begin(&self.broker);
        let broker = self.broker.clone();
        let learnt = Arc::clone(&self.learnt);
        let version = {
            let mut learnt = lock(&learnt);
            wish.clean |= self.avoid.starts_clean() || learnt.starts_clean(wish.exactly_once);
            learnt.version(broker.speak)
        };
        async move {
            let keys = pending.keys(&broker).await;
            let keys = keys.map_err(LinkError::File)?;
            let way = Way {
                broker,
                keys,
                version,
            };
            let opened = way.go(route, wish).await;
            lock(&learnt).learn(way.broker.speak, version, &opened);
            opened
        }
    }

    /// A session has ended: the next one knows what it was like.
    pub fn ended(&mut self, ended: Ended) {
        if let Some((address, stood)) = ended.address {
            self.routes.ended(address, stood);
        }
        self.avoid.ended(ended.unfinished);
    }

    /// Whether the next session does not subscribe to this filter for now.
    pub fn leaves_out(&self, filter: &str) -> bool {
        self.avoid.leaves_out(filter)
    }
}

impl Learnt {
    /// Whether what the broker kept of the session is to be left. Once it closes the connection for PUBREL it is not
    /// asked again: a broker without QoS 2 does so.
    fn starts_clean(&mut self, exactly_once: bool) -> bool {
        let cannot_release = exactly_once && self.closed_on_release >= CLOSED_ON_RELEASE;
        std::mem::take(&mut self.starts_clean) || cannot_release
    }

    /// What to speak first.
    fn version(&mut self, speak: Speak) -> Version {
        self.old_until.take_if(|until| Instant::now() >= *until);
        let was_silent = std::mem::take(&mut self.was_silent);
        match speak {
            Speak::Only(version) => version,
            Speak::Auto if self.old_until.is_some() || was_silent => Version::V311,
            Speak::Auto => Version::V5,
        }
    }

    fn learn(&mut self, speak: Speak, tried: Version, opened: &Result<Exchange, LinkError>) {
        match opened {
            Ok(exchange) if speak == Speak::Auto && exchange.terms().version == Version::V311 => {
                if self.old_until.is_none() {
                    info!("the broker speaks MQTT 3.1.1 and not 5; so do we, for an hour at least");
                    self.old_until = Some(Instant::now() + ASK_AGAIN);
                }
            }
            Ok(_) => {}
            Err(error) => {
                self.was_silent = tried == Version::V5 && error.is_silent_greeting();
                self.starts_clean = error.is_unreleased();
                self.closed_on_release = match self.closed_on_release {
                    count if error.is_closed_on_release() => count.saturating_add(1),
                    // Once is chance, and what the broker kept for us is worth another try.
                    count if count < CLOSED_ON_RELEASE => 0,
                    count => count,
                };
            }
        }
    }
}

fn lock(learnt: &Mutex<Learnt>) -> std::sync::MutexGuard<'_, Learnt> {
    learnt.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One way, with all that it needs.
struct Way {
    broker: Broker,
    keys: Keys,
    version: Version,
}

impl Way {
    async fn go(&self, route: Route, wish: Wish) -> Result<Exchange, LinkError> {
        let host = route.host.clone();
        let addresses = route.addresses().await.map_err(LinkError::Configured)?;
        let mut race = Race::new(addresses);
        while let Some((address, tcp)) = race.next().await {
            match self.enter(address, tcp, &host, wish.clone()).await {
                Ok(mut exchange) => {
                    exchange.is_at(address);
                    return Ok(exchange);
                }
                Err(error @ (LinkError::Refused(_) | LinkError::NotSpoken(..))) => {
                    return Err(error);
                }
                Err(error) => {
                    debug!("{address}: {error}");
                    race.failed.push((address, error));
                }
            }
        }
        Err(LinkError::Unreachable(race.failed))
    }

    /// At one address, with what it does not take left out.
    async fn enter(
        &self,
        address: SocketAddr,
        mut tcp: TcpStream,
        host: &str,
        mut wish: Wish,
    ) -> Result<Exchange, LinkError> {
        let mut version = self.version;
        loop {
            let greeted = self.greet(address, tcp, host, version, &wish).await;
            let error = match greeted {
                // The short greeting of 3.1.1, to a CONNECT of MQTT 5.
                Ok(exchange)
                    if self.broker.speak == Speak::Only(Version::V5)
                        && exchange.terms().version != version =>
                {
                    return Err(LinkError::NotSpoken(version, false));
                }
                Ok(exchange) => return Ok(exchange),
                Err(error) => error,
            };
            let refused = error.refused_with();
            match &mut wish.will {
                Some(will) if refused == Some(0x9a) && will.retain => will.retain = false,
                Some(will) if refused == Some(0x9b) && will.is_sure => will.is_sure = false,
                _ if self.broker.speak == Speak::Auto
                    && version == Version::V5
                    && error.may_be_the_version() =>
                {
                    debug!("{address}: {error}; trying MQTT 3.1.1");
                    version = Version::V311;
                }
                _ if refused == Some(0x84) => {
                    return Err(LinkError::NotSpoken(version, version != self.version));
                }
                _ => return Err(error),
            }
            tcp = attempt(address).await.1?;
        }
    }

    async fn greet(
        &self,
        address: SocketAddr,
        tcp: TcpStream,
        host: &str,
        version: Version,
        wish: &Wish,
    ) -> Result<Exchange, LinkError> {
        let (broker, keys) = (&self.broker, &self.keys);
        let line = handshake(address, tcp, host, broker, keys.tls.as_ref());
        let line = tokio::time::timeout(TIMEOUT, line).await;
        let line = line.map_err(|_| match broker.scheme {
            crate::config::Scheme::Ws => LinkError::Timeout("WebSocket"),
            _ => LinkError::Timeout("TLS"),
        })??;
        debug!("{address}: CONNECT as {:?}, MQTT {version}", wish.client_id);
        Exchange::greet(line, version, wish, keys.login.as_ref()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_left_when_the_broker_closes_twice_for_the_release_of_ids() {
        let mut learnt = Learnt::default();
        let closed = || {
            Err(LinkError::Unreachable(vec![(
                "127.0.0.1:1".parse().unwrap(),
                LinkError::ClosedOnRelease,
            )]))
        };
        let learn = |learnt: &mut Learnt, opened| learnt.learn(Speak::Auto, Version::V5, &opened);
        learn(&mut learnt, closed());
        assert!(!learnt.starts_clean(true), "once is chance");
        learn(&mut learnt, Err(LinkError::Closed));
        learn(&mut learnt, closed());
        assert!(!learnt.starts_clean(true), "not in a row");
        learn(&mut learnt, closed());
        for _ in 0..3 {
            assert!(learnt.starts_clean(true));
            assert!(
                !learnt.starts_clean(false),
                "below QoS 2 nothing is released"
            );
            learn(&mut learnt, Err(LinkError::Closed));
        }
    }
}
