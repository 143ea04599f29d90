//! The way to a broker: `route` (which address first), `lookup` (names), `dial` (TCP to one of several),
//! `handshake` (TLS, WebSocket) with `tls`, `exchange` (packets) over `framing`; `words` says why it failed.
//!
//! Daemon, server and [`visit`], for their doctors, go it the same way, over rumqttc's codec and protocol
//! state; what they subscribe to, publish and conclude is theirs. A fresh socket and fresh state for every
//! connection: nothing outlives it, so no late acknowledgement can be taken for another.

mod dial;
mod exchange;
mod framing;
mod handshake;
mod lookup;
mod route;
mod tls;
pub mod visit;
mod words;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rumqttc::{MqttOptions, TlsConfiguration, Transport};

use crate::config::{Broker, Scheme};

pub use exchange::{Exchange, Happened, until};
pub use framing::{Avoid, TooLarge};
pub use route::{Route, Routes};
pub use words::LinkError;

/// Larger packets are passed over: an ack has at most 64 KB, a command 4.
pub const MAX_INCOMING: usize = 256 * 1024;
/// A clean goodbye may take so long.
pub const GOODBYE: Duration = Duration::from_millis(500);
/// A topic that a session leaves out is subscribed to after so long.
pub const LEAVE_OUT_FOR: Duration = Duration::from_secs(600);

/// How to reach a broker, for any client; the session's own settings are up to the caller.
///
/// # Errors
/// A file of the configuration cannot be read, in words.
pub fn options(broker: &Broker) -> Result<MqttOptions, String> {
    let Broker {
        scheme, host, port, ..
    } = broker;
    let address = match scheme {
        Scheme::Mqtt | Scheme::Mqtts => host.clone(),
        Scheme::Ws => format!("ws://{host}:{port}{}", broker.path),
        Scheme::Wss => format!("wss://{host}:{port}{}", broker.path),
    };
    let mut options = MqttOptions::new(broker.client_id.clone(), address, *port);
    options.set_transport(match scheme {
        Scheme::Mqtt => Transport::Tcp,
        Scheme::Ws => Transport::Ws,
        Scheme::Mqtts => Transport::tls_with_config(tls_client(broker)?),
        Scheme::Wss => Transport::wss_with_config(tls_client(broker)?),
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

fn tls_client(broker: &Broker) -> Result<TlsConfiguration, String> {
    Ok(TlsConfiguration::Rustls(tls::client(broker)?))
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

    /// The next session knows what this one was like.
    pub fn teach(self, routes: &mut Routes, avoid: &mut Avoid) {
        if let Some((address, stood)) = self.address {
            routes.ended(address, stood);
        }
        avoid.ended(self.unfinished);
    }
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}
