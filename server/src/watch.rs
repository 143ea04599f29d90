//! What each of several servers hears, apart from the subscription that they share: live readings and events, so
//! that whoever decides knows all of them, and the retained states and statuses, which a shared subscription does
//! not get. A second session at the broker, made again whenever it ends; nothing of it is kept there.

use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use nightlight_common::config::Broker;
use nightlight_common::mqtt::Publication;

use crate::session::{Door, Heard, Plan};

/// Messages that wait for the shell; then the broker waits.
const MAX_WAITING: usize = 10_000;
const RETRY: Duration = Duration::from_secs(2);

/// Starts the task; it ends when the receiver is dropped.
pub(crate) fn start(mut broker: Broker, plan: Plan) -> Receiver<Publication> {
    let (heard, messages) = channel(MAX_WAITING);
    broker.client_id.push_str("-watch");
    tokio::spawn(watch(Door::new(broker, plan), heard));
    messages
}

async fn watch(mut door: Door, heard: Sender<Publication>) {
    while !heard.is_closed() {
        let mut session = door.open();
        loop {
            match session.next().await {
                Heard::Message(publish) => {
                    // Lost, it comes again with the next state; there is always room for an answer.
                    session.acknowledge(publish.pkid);
                    if heard.send(publish).await.is_err() {
                        return session.close().await;
                    }
                }
                Heard::TooLarge(message) => drop(session.acknowledge(message.pkid)),
                Heard::Down { why, .. } => {
                    tracing::warn!("the session that watches has ended: {why}");
                    break;
                }
                Heard::Up | Heard::Confirmed | Heard::Nothing => {}
            }
        }
        door.ended(&session);
        tokio::time::sleep(RETRY.mul_f64(0.5 + fastrand::f64())).await;
    }
}
