//! The broker: is it there, and does it let us in with the configured credentials?

use std::time::Duration;

use super::Finding;
use crate::cli::Exit;
use crate::config::Broker;
use crate::io::broker::knock::{Closed, knock};

/// Shorter than the doctor's own patience, so that the broker's line says more.
const PATIENCE: Duration = Duration::from_secs(10);

/// A real connection with the configured credentials, under another client id.
pub fn broker(broker: &Broker) -> Vec<Finding> {
    let url = broker.url();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let knocked = match runtime {
        Ok(runtime) => runtime.block_on(knock(broker, PATIENCE)),
        Err(error) => Err(Closed::Unreachable(error.to_string())),
    };
    let who = broker
        .username
        .as_ref()
        .map_or("without a user name".to_owned(), |user| {
            format!("as {user}")
        });
    vec![match knocked {
        Ok(took) => {
            let ms = took.as_millis();
            Finding::ok("broker", format!("{url} lets us in {who}, after {ms} ms"))
        }
        Err(Closed::Refused(why)) => Finding::fail(
            "broker",
            Exit::Permission,
            format!("{url} is there and refuses us {who}"),
            why,
        ),
        Err(Closed::Configured(why)) => Finding::fail(
            "broker",
            Exit::Configuration,
            format!("{url} was not tried"),
            why,
        ),
        Err(Closed::Unreachable(why)) => Finding::fail(
            "broker",
            Exit::Software,
            format!("{url} cannot be reached: {why}"),
            "the Pi decides by itself meanwhile; check the broker, the network, and `broker.url`",
        ),
    }]
}
