//! The lesson's server in small: for each live reading it answers with a command, and it keeps
//! everything it hears for the account.
//!
//! It knows the broker and nothing of the agent. Replayed records get no answer: they are the past.
//! Runs on the demonstration's runtime; the story takes what it heard.

use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, Incoming, MqttOptions, Outgoing, QoS};
use rumqttc::{SubscribeFilter, SubscribeReasonCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::ON_BELOW;
use super::record::Lane;
use crate::config::Topics;

/// Connecting and saying goodbye may take so long.
const WITHIN: Duration = Duration::from_secs(10);
/// Publications that may wait for the client.
const ROOM: usize = 256;
/// Larger packets would end the connection; records are far smaller.
const MAX_PACKET: usize = 1024 * 1024;

/// What the server heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// A record, or several in an array.
    Records(Lane, Vec<u8>),
    /// What the device keeps at the broker: its picture of itself, or whether it is on line.
    Picture,
    /// The server lost its connection, so that its account would be worth nothing.
    Lost(String),
}

/// The server; gone when dropped.
#[derive(Debug)]
pub(super) struct Server {
    task: JoinHandle<()>,
}

impl Server {
    /// Connects to the broker directly, as `name`, and listens. What it hears goes into `heard`.
    ///
    /// # Errors
    /// In words: the broker is not there, refuses, or does not answer in time.
    pub(super) async fn start(
        (host, port): (&str, u16),
        name: &str,
        topics: Topics,
        heard: mpsc::UnboundedSender<Heard>,
    ) -> Result<Self, String> {
        let (client, mut events) = AsyncClient::new(options(name, host, port), ROOM);
        let listens = subscribed(&client, &mut events, &topics);
        match tokio::time::timeout(WITHIN, listens).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(format!("the broker at {host}:{port}: {why}")),
            Err(_) => return Err(format!("the broker at {host}:{port} does not answer")),
        }
        let task = tokio::spawn(listen(client, events, topics, heard));
        Ok(Self { task })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes back what the agent `name` has left at the broker: its session and its retained messages.
///
/// # Errors
/// In words: the broker is not there any more or does not answer in time.
pub(super) async fn leave_no_trace(
    (host, port): (&str, u16),
    name: &str,
    topics: &Topics,
) -> Result<(), String> {
    // A clean session under the agent's own name ends the one that was kept for it.
    let (client, mut events) = AsyncClient::new(options(name, host, port), ROOM);
    let retained = [&topics.state, &topics.status];
    for topic in retained {
        client
            .try_publish(topic.clone(), QoS::AtLeastOnce, true, "")
            .map_err(|error| error.to_string())?;
    }
    let mut confirmed = 0;
    let done = async {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::PubAck(_))) => confirmed += 1,
                Ok(Event::Outgoing(Outgoing::Disconnect)) => return Ok(()),
                Ok(_) => continue,
                Err(error) => return Err(error.to_string()),
            }
            if confirmed == retained.len() {
                client.try_disconnect().map_err(|error| error.to_string())?;
            }
        }
    };
    let in_time = tokio::time::timeout(WITHIN, done).await;
    in_time.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

fn options(name: &str, host: &str, port: u16) -> MqttOptions {
    let mut options = MqttOptions::new(name, host, port);
    options.set_clean_session(true);
    options.set_keep_alive(Duration::from_secs(30));
    options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
    options
}

async fn subscribed(
    client: &AsyncClient,
    events: &mut EventLoop,
    topics: &Topics,
) -> Result<(), String> {
    let all = [
        &topics.telemetry,
        &topics.history,
        &topics.events,
        &topics.state,
        &topics.status,
    ];
    let filters = all.map(|topic| SubscribeFilter::new(topic.clone(), QoS::AtLeastOnce));
    client
        .try_subscribe_many(filters)
        .map_err(|error| error.to_string())?;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Incoming::SubAck(ack))) => {
                return match ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                    true => Err("it refuses subscriptions".to_owned()),
                    false => Ok(()),
                };
            }
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

async fn listen(
    client: AsyncClient,
    mut events: EventLoop,
    topics: Topics,
    heard: mpsc::UnboundedSender<Heard>,
) {
    loop {
        let word = match events.poll().await {
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                let payload = publish.payload.to_vec();
                if publish.topic == topics.telemetry {
                    if let Some(led_on) = decision(&payload) {
                        let command = format!("{{\"led_on\": {led_on}}}");
                        let qos = QoS::AtLeastOnce;
                        // One that finds no room is made good by the next reading's.
                        let _ = client.try_publish(topics.commands.clone(), qos, false, command);
                    }
                    Heard::Records(Lane::Telemetry, payload)
                } else if publish.topic == topics.history {
                    Heard::Records(Lane::History, payload)
                } else if publish.topic == topics.events {
                    Heard::Records(Lane::Events, payload)
                } else {
                    Heard::Picture
                }
            }
            Ok(_) => continue,
            Err(error) => Heard::Lost(error.to_string()),
        };
        let over = matches!(word, Heard::Lost(_));
        if heard.send(word).is_err() || over {
            return;
        }
    }
}

/// The lesson's decision about a live reading: the LED is on below 300. What is no reading gets none.
fn decision(payload: &[u8]) -> Option<bool> {
    let reading: serde_json::Value = serde_json::from_slice(payload).ok()?;
    let light = reading.get("light")?.as_f64()?;
    Some(light < ON_BELOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lessons_device_gets_its_decision_too() {
        assert_eq!(decision(br#"{"light": 5}"#), Some(true));
        assert_eq!(decision(br#"{"light": 299.9}"#), Some(true));
        assert_eq!(decision(br#"{"light": 300}"#), Some(false));
        let ours =
            br#"{"light": 243, "led_on": false, "run": "0b7e", "seq": 12, "clock": "synced"}"#;
        assert_eq!(decision(ours), Some(true));
    }

    #[test]
    fn what_is_no_reading_gets_no_decision() {
        for payload in [
            "",
            "5",
            "{}",
            r#"{"light": "5"}"#,
            r#"{"event": "led"}"#,
            "[1]",
        ] {
            assert_eq!(decision(payload.as_bytes()), None, "{payload}");
        }
    }
}
