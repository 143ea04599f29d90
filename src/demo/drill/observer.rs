//! An independent client of the broker: it hears what the device publishes, and keeps it for the account.
//!
//! The broker, the credentials and the versions of the configuration, a client id of its own. It publishes nothing.
//! Called by the parent module.

use std::time::Duration;

use nightlight_common::mqtt::{Exchange, Happened, Said, Ways, Wish};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::record::Lane;
use crate::config::{Broker, Topics};

const WITHIN: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const SUBSCRIPTION: u64 = 1;

/// The client; gone when dropped.
#[derive(Debug)]
pub(super) struct Observer {
    /// What it heard; an error when it hears no more.
    pub(super) heard: mpsc::UnboundedReceiver<Result<(Lane, Vec<u8>), String>>,
    task: JoinHandle<()>,
}

impl Observer {
    /// Connects and subscribes.
    ///
    /// # Errors
    /// In words, with what to do.
    pub(super) async fn start(broker: &Broker, topics: &Topics) -> Result<Self, String> {
        let name = format!("nl-drill-{:08x}", fastrand::u32(..));
        let mut ways = Ways::new(broker);
        let filters = [&topics.telemetry, &topics.history, &topics.events].map(String::clone);
        let entering = async {
            let opened = ways.open(Wish::new(name, KEEP_ALIVE)).await;
            let mut exchange = opened.map_err(|error| error.to_string())?;
            let asked = exchange.subscribe(SUBSCRIPTION, &filters);
            asked.map_err(|error| error.to_string())?;
            loop {
                match exchange.next().await.map_err(|error| error.to_string())? {
                    Happened::Subscribed(_, said) if said.iter().any(Said::is_no) => {
                        return Err("its access list does not let this account read the device's topics; let it read them for the drill".to_owned());
                    }
                    Happened::Subscribed(..) => return Ok(exchange),
                    _ => {}
                }
            }
        };
        let exchange = match tokio::time::timeout(WITHIN, entering).await {
            Ok(entered) => {
                entered.map_err(|why| format!("the broker, as a client of its own: {why}"))?
            }
            Err(_) => return Err("the broker does not answer a client of its own".to_owned()),
        };
        let (sender, heard) = mpsc::unbounded_channel();
        let task = tokio::spawn(listen(exchange, filters, sender));
        Ok(Self { heard, task })
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(
    mut exchange: Exchange,
    [telemetry, history, events]: [String; 3],
    heard: mpsc::UnboundedSender<Result<(Lane, Vec<u8>), String>>,
) {
    loop {
        let word = match exchange.next().await {
            Ok(Happened::Message(message)) => {
                let lane = match &message.topic {
                    topic if *topic == telemetry => Lane::Telemetry,
                    topic if *topic == history => Lane::History,
                    topic if *topic == events => Lane::Events,
                    _ => continue,
                };
                Ok((lane, message.payload.to_vec()))
            }
            Ok(_) => continue,
            Err(error) => Err(error.to_string()),
        };
        let is_over = word.is_err();
        if heard.send(word).is_err() || is_over {
            return;
        }
    }
}
