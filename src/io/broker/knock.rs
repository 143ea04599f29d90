//! One connection to the broker that changes nothing: is it there, and does it let us in? Another client
//! id than the daemon's, a clean session, no will, no subscription, no publication. `doctor` calls it.

use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Event, EventLoop, Incoming, NetworkOptions};

use super::{in_words, is_refusal, options};
use crate::config::Broker;

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

/// Connects, says goodbye, and tells how long the connection took. Name, TCP, TLS and the broker's answer
/// have `patience` together.
///
/// # Errors
/// [`Closed`], in words for a person.
pub async fn knock(broker: &Broker, patience: Duration) -> Result<Duration, Closed> {
    let mut options = options(broker).map_err(Closed::Configured)?;
    // The daemon may be connected under its own name, and the broker would throw it out.
    options.set_client_id(format!("nl-doctor-{:08x}", fastrand::u32(..)));
    options.set_clean_session(true);
    let (client, mut link) = AsyncClient::new(options, 4);
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(patience.as_secs().max(1));
    link.set_network_options(network);
    let begun = Instant::now();
    let entered = tokio::time::timeout(patience, enter(&mut link)).await;
    let took = begun.elapsed();
    entered.unwrap_or_else(|_| Err(Closed::Unreachable("it does not answer in time".into())))?;
    let goodbye = async {
        let _ = client.disconnect().await;
        while link.poll().await.is_ok() {}
    };
    // A broker that does not close after that is no worse for it.
    let _ = tokio::time::timeout(Duration::from_millis(500), goodbye).await;
    Ok(took)
}

async fn enter(link: &mut EventLoop) -> Result<(), Closed> {
    loop {
        match link.poll().await {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => return Ok(()),
            Ok(_) => {}
            Err(error) if is_refusal(&error) => return Err(Closed::Refused(in_words(&error))),
            Err(error) => return Err(Closed::Unreachable(in_words(&error))),
        }
    }
}
