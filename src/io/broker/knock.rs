//! One connection to the broker that changes nothing: is it there, and does it let us in? Another client
//! id than the daemon's, a clean session, no will, no subscription, no publication. `doctor` calls it.

use std::time::{Duration, Instant};

use super::exchange::Exchange;
use super::{GOODBYE, Routes, options};
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
    let begun = Instant::now();
    let opening = Exchange::open(Routes::new(broker).next(), options);
    let opened = tokio::time::timeout(patience, opening).await;
    let took = begun.elapsed();
    let exchange = match opened {
        Ok(Ok(exchange)) => exchange,
        Ok(Err(error)) if error.is_refusal() => return Err(Closed::Refused(error.to_string())),
        Ok(Err(error)) => return Err(Closed::Unreachable(error.to_string())),
        Err(_) => return Err(Closed::Unreachable("it does not answer in time".into())),
    };
    // A broker that does not close after that is no worse for it.
    let _ = tokio::time::timeout(GOODBYE, exchange.close()).await;
    Ok(took)
}
