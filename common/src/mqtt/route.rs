//! Which address of the broker is tried first: what earlier sessions learnt.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::dial::order;
use super::lookup::{Lookup, Pending};
use crate::config::Broker;

/// A session that stood for so long says that its address is a good one.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// The way to one broker, from session to session.
pub(super) struct Routes {
    host: String,
    source: Source,
    /// The address of the last session that stood.
    worked: Option<SocketAddr>,
    /// The address of a session that ended soon.
    failed: Option<SocketAddr>,
}

enum Source {
    Address(SocketAddr),
    Name(Lookup),
}

/// The way to the broker for one session.
pub(super) struct Route {
    /// The name or address, for its certificate.
    pub host: String,
    source: RouteSource,
    worked: Option<SocketAddr>,
    failed: Option<SocketAddr>,
}

enum RouteSource {
    Address(SocketAddr),
    Name(Pending),
}

impl Routes {
    /// Nothing is known of it yet.
    pub(super) fn new(broker: &Broker) -> Self {
        let host = bare_host(broker).to_owned();
        let source = match host.parse::<IpAddr>() {
            Ok(address) => Source::Address((address, broker.port).into()),
            Err(_) => Source::Name(Lookup::new(&host, broker.port)),
        };
        Self {
            host,
            source,
            worked: None,
            failed: None,
        }
    }

    /// For the next session.
    pub(super) fn next_one(&mut self) -> Route {
        Route {
            host: self.host.clone(),
            source: match &mut self.source {
                Source::Address(address) => RouteSource::Address(*address),
                Source::Name(lookup) => RouteSource::Name(lookup.begin()),
            },
            worked: self.worked,
            failed: self.failed,
        }
    }

    /// A session has ended that stood for so long at this address.
    pub(super) fn ended(&mut self, address: SocketAddr, stood: Duration) {
        if stood >= GOOD_SESSION {
            self.worked = Some(address);
            self.failed = self.failed.filter(|failed| *failed != address);
        } else {
            self.failed = Some(address);
            self.worked = self.worked.filter(|worked| *worked != address);
        }
    }
}

impl Route {
    /// The addresses in the order in which they are to be tried; at least one.
    ///
    /// # Errors
    /// The name has none, in words.
    pub(super) async fn addresses(self) -> Result<Vec<SocketAddr>, String> {
        let addresses = match self.source {
            RouteSource::Address(address) => vec![address],
            RouteSource::Name(pending) => pending.addresses().await?,
        };
        Ok(order(addresses, self.worked, self.failed))
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").field("host", &self.host).finish()
    }
}

/// An IPv6 address without its brackets.
fn bare_host(broker: &Broker) -> &str {
    broker.host.trim_start_matches('[').trim_end_matches(']')
}
