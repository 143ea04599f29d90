//! The lesson's server in small: for each live reading it answers with a command, it acks every record, and it
//! keeps everything it hears for the account.
//!
//! It knows the broker and nothing of the agent. Replayed records get no command: they are the past.
//! Runs on the demonstration's runtime; the story takes what it heard, kills it and starts it again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, Outgoing, QoS};
use rumqttc::{SubscribeFilter, SubscribeReasonCode};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::ON_BELOW;
use super::record::Lane;
use crate::config::Topics;
use crate::logic::account::Account;

/// Connecting and saying goodbye may take so long.
const WITHIN: Duration = Duration::from_secs(10);
/// Publications that may wait for the client, and those of a flood.
const ROOM: usize = 1024;
const HAND_ROOM: usize = 4096;
/// A broker that is away is asked again after so long.
const RETRY: Duration = Duration::from_millis(200);
/// Larger packets would end the connection; records are far smaller.
const MAX_PACKET: usize = 1024 * 1024;

/// What the server heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// A record, or several in an array.
    Records(Lane, Vec<u8>),
    /// What became of a command.
    Result(Vec<u8>),
}

/// What the server has written down; it outlives a server that is killed, as a disk does.
pub(super) type Books = Arc<Mutex<Account>>;

/// All that a server needs to start.
#[derive(Debug, Clone)]
pub(super) struct Post {
    /// The broker's host and port.
    pub(super) address: (String, u16),
    /// Its name at the broker.
    pub(super) name: String,
    /// The agent's topics.
    pub(super) topics: Topics,
    /// Where what it hears goes.
    pub(super) heard: mpsc::UnboundedSender<Heard>,
    /// Its books.
    pub(super) books: Books,
}

/// The server; gone when dropped.
#[derive(Debug)]
pub(super) struct Server {
    task: JoinHandle<()>,
}

impl Post {
    /// Starts the server, which listens when this returns.
    ///
    /// # Errors
    /// In words: the broker is not there, refuses, or does not answer in time.
    pub(super) async fn start(&self) -> Result<Server, String> {
        let (first, listens) = oneshot::channel();
        let server = Server {
            task: tokio::spawn(listen(self.clone(), Some(first))),
        };
        let (host, port) = &self.address;
        match tokio::time::timeout(WITHIN, listens).await {
            Ok(Ok(Ok(()))) => Ok(server),
            Ok(Ok(Err(why))) => Err(format!("the broker at {host}:{port}: {why}")),
            Ok(Err(_)) | Err(_) => Err(format!("the broker at {host}:{port} does not answer")),
        }
    }

    /// Starts it again; it connects as soon as there is a broker.
    pub(super) fn start_again(&self) -> Server {
        Server {
            task: tokio::spawn(listen(self.clone(), None)),
        }
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
    let retained = [&topics.state, &topics.status, &topics.commands];
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

/// Connects, listens, answers and acks, and connects again, for ever. The first word about how that goes is
/// for `first`, if anybody waits for it.
async fn listen(post: Post, mut first: Option<oneshot::Sender<Result<(), String>>>) {
    let (host, port) = (post.address.0.as_str(), post.address.1);
    let (client, mut events) = AsyncClient::new(options(&post.name, host, port), ROOM);
    loop {
        let went = match events.poll().await {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                let topics = &post.topics;
                let all = [
                    &topics.telemetry,
                    &topics.history,
                    &topics.events,
                    &topics.results,
                ];
                let filters =
                    all.map(|topic| SubscribeFilter::new(topic.clone(), QoS::AtLeastOnce));
                client
                    .try_subscribe_many(filters)
                    .map_err(|error| error.to_string())
            }
            Ok(Event::Incoming(Incoming::SubAck(ack))) => {
                let went = match ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                    true => Err("it refuses subscriptions".to_owned()),
                    false => Ok(()),
                };
                if went.is_ok()
                    && let Some(first) = first.take()
                {
                    let _ = first.send(Ok(()));
                }
                went
            }
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                take(&post, &client, &publish.topic, &publish.payload);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = went {
            if let Some(first) = first.take() {
                let _ = first.send(Err(why));
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Takes a message down, then answers it: a live reading with a command, every record with an ack.
fn take(post: &Post, client: &AsyncClient, topic: &str, payload: &[u8]) {
    let topics = &post.topics;
    let lane = match topic {
        _ if topic == topics.telemetry => Lane::Telemetry,
        _ if topic == topics.history => Lane::History,
        _ if topic == topics.events => Lane::Events,
        _ => return drop(post.heard.send(Heard::Result(payload.to_vec()))),
    };
    if post
        .heard
        .send(Heard::Records(lane, payload.to_vec()))
        .is_err()
    {
        return;
    }
    // What finds no room is made good: a command by the next reading's, a record by coming again.
    let say = |topic: &str, text: String| {
        let _ = client.try_publish(topic, QoS::AtLeastOnce, false, text);
    };
    if lane == Lane::Telemetry
        && let Some(led_on) = decision(payload)
    {
        say(&topics.commands, format!("{{\"led_on\": {led_on}}}"));
    }
    let mut books = post.books.lock().unwrap_or_else(PoisonError::into_inner);
    for ack in acks(payload, &mut books) {
        say(&topics.acks, ack);
    }
}

/// The acks for a message, when it is in the books. A loss is acked when all of its range is accounted for.
fn acks(payload: &[u8], books: &mut Account) -> Vec<String> {
    #[derive(Deserialize)]
    struct Numbers {
        run: Option<Uuid>,
        seq: Option<u64>,
        of_run: Option<Uuid>,
        from_seq: Option<u64>,
        to_seq: Option<u64>,
        #[serde(default)]
        count: u64,
    }
    let records = match serde_json::from_slice(payload) {
        Ok(Value::Array(records)) => records,
        Ok(record) => vec![record],
        Err(_) => Vec::new(),
    };
    let mut acks = Vec::new();
    for record in records {
        books.take(&record);
        let Ok(numbers) = Numbers::deserialize(&record) else {
            continue;
        };
        let of = |run: Uuid, from: u64, to: u64| {
            serde_json::json!({"run": run, "acked": [[from, to]]}).to_string()
        };
        match (numbers.run, numbers.seq) {
            (Some(run), Some(seq)) => acks.push(of(run, seq, seq)),
            _ => {
                if let (Some(run), Some(from), Some(to)) =
                    (numbers.of_run, numbers.from_seq, numbers.to_seq)
                {
                    let others = (to + 1).saturating_sub(from + numbers.count);
                    let received = books.run(run).received().range(from..=to).count();
                    if received as u64 >= others {
                        acks.push(of(run, from, to));
                    }
                }
            }
        }
    }
    acks
}

/// A hand of its own at the broker, for commands that the server would not send.
#[derive(Debug)]
pub(super) struct Hand {
    client: AsyncClient,
    confirmed: watch::Receiver<usize>,
    sent: usize,
    task: JoinHandle<()>,
}

impl Hand {
    /// Connects as `name`, as soon as there is a broker.
    pub(super) fn new((host, port): (&str, u16), name: &str) -> Self {
        let (client, mut events) = AsyncClient::new(options(name, host, port), HAND_ROOM);
        let (count, confirmed) = watch::channel(0);
        let task = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Incoming::PubAck(_))) => count.send_modify(|n| *n += 1),
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
        });
        Self {
            client,
            confirmed,
            sent: 0,
            task,
        }
    }

    /// Publishes, now or when there is a broker.
    ///
    /// # Errors
    /// Too much waits already.
    pub(super) fn publish(
        &mut self,
        topic: &str,
        is_retained: bool,
        text: String,
    ) -> Result<(), String> {
        let qos = QoS::AtLeastOnce;
        let sent = self.client.try_publish(topic, qos, is_retained, text);
        sent.map_err(|_| "too much waits for the broker already".to_owned())?;
        self.sent += 1;
        Ok(())
    }

    /// Whether the broker has taken everything.
    pub(super) fn is_done(&self) -> bool {
        *self.confirmed.borrow() >= self.sent
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.task.abort();
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
    fn a_loss_is_acked_when_its_range_is_accounted_for() {
        let (run, mut books) = (Uuid::from_u128(7), Account::default());
        let record = |seq: u64| format!(r#"{{"run":"{run}","seq":{seq},"light":1}}"#);
        let of = |from: u64, to: u64| format!(r#"{{"acked":[[{from},{to}]],"run":"{run}"}}"#);
        assert_eq!(acks(record(1).as_bytes(), &mut books), [of(1, 1)]);
        let loss = |from: u64, to: u64, count: u64| {
            format!(
                r#"{{"event":"loss","of_run":"{run}","from_seq":{from},"to_seq":{to},"count":{count}}}"#
            )
        };
        assert_eq!(acks(loss(2, 3, 2).as_bytes(), &mut books), [of(2, 3)]);
        // One of three comes yet, and the ack covers it too.
        assert_eq!(acks(loss(4, 6, 2).as_bytes(), &mut books), [""; 0]);
        let both = format!("[{},{}]", record(5), record(5));
        assert_eq!(acks(both.as_bytes(), &mut books), [of(5, 5), of(5, 5)]);
        assert_eq!(acks(loss(4, 6, 2).as_bytes(), &mut books), [of(4, 6)]);
        assert_eq!(acks(b"no record", &mut books), [""; 0]);
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
