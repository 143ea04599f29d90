//! What changes, as it changes: lines of devices as server-sent events. One question to the database serves all
//! who look, and none is asked while nobody does.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper::{Response, StatusCode};
use nightlight_common::clock::Clock;
use nightlight_common::http::{self, Body, Bytes};
use tokio::sync::broadcast::{self, error::RecvError};

use super::readers::Readers;
use crate::fleet::Line;
use crate::store::Fault;
use crate::store::fleet;

const EVERY: Duration = Duration::from_secs(3);
/// What is committed now may carry the time of a little earlier.
const OVERLAP_MS: i64 = 2_000;
/// Rounds that a slow reader may lag behind.
const ROUNDS: usize = 4;
/// Lines in one event.
const LINES: usize = 200;
/// A proxy takes a silent connection for a dead one.
const BEAT: Duration = Duration::from_secs(15);
/// A visitor who takes nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells those who look.
#[derive(Debug, Clone)]
pub(super) struct Live(broadcast::Sender<Arc<Vec<Line>>>);

impl Live {
    /// Starts the task; it ends with the last of these.
    pub(super) fn start(readers: Readers) -> Self {
        let (sender, _) = broadcast::channel(ROUNDS);
        let weak = sender.downgrade();
        tokio::spawn(async move {
            let clock = Clock::new();
            let mut since_ms = clock.now().wall_ms;
            loop {
                tokio::time::sleep(EVERY).await;
                let Some(sender) = weak.upgrade() else { return };
                let now_ms = clock.now().wall_ms;
                if sender.receiver_count() > 0 {
                    match changed(&readers, since_ms - OVERLAP_MS, now_ms).await {
                        // Who has gone meanwhile needs nothing.
                        Ok(lines) if !lines.is_empty() => drop(sender.send(Arc::new(lines))),
                        Ok(_) => {}
                        Err(fault) => {
                            tracing::debug!("what changed cannot be read: {}", fault.words());
                            continue;
                        }
                    }
                }
                since_ms = now_ms;
            }
        });
        Self(sender)
    }

    /// The events of all devices, or of this one.
    pub(super) fn events(&self, device: Option<String>) -> Response<Body> {
        let mut changes = self.0.subscribe();
        let (mut sender, body) = Channel::<Bytes, io::Error>::new(4);
        tokio::spawn(async move {
            let mut text = String::from("retry: 3000\n\n");
            loop {
                let sent = sender.send_data(Bytes::from(std::mem::take(&mut text)));
                if !matches!(tokio::time::timeout(PATIENCE, sent).await, Ok(Ok(()))) {
                    return;
                }
                match tokio::time::timeout(BEAT, changes.recv()).await {
                    Ok(Ok(lines)) => text = event(&lines, device.as_deref()),
                    // What was missed comes with the whole list, which a page asks for now and then.
                    Ok(Err(RecvError::Lagged(_))) => {}
                    Ok(Err(RecvError::Closed)) => return,
                    Err(_) => text.push_str(": still here\n\n"),
                }
            }
        });
        let mut answer = http::answer(StatusCode::OK, "text/event-stream", Bytes::new());
        *answer.body_mut() = body.boxed_unsync();
        answer
    }
}

async fn changed(readers: &Readers, since_ms: i64, now_ms: i64) -> Result<Vec<Line>, Fault> {
    let mut reader = readers.one().await?;
    let mut lines: Vec<Line> = Vec::new();
    loop {
        let after = lines
            .last()
            .map_or_else(String::new, |line| line.device.clone());
        let page = fleet::devices(&mut reader.conn, &after, Some(since_ms));
        let page = readers.within(page).await?;
        if page.is_empty() {
            reader.keep();
            return Ok(lines);
        }
        lines.extend(page.into_iter().map(|seen| Line::of(seen, now_ms)));
    }
}

fn event(lines: &[Line], device: Option<&str>) -> String {
    let wanted: Vec<&Line> = lines
        .iter()
        .filter(|line| device.is_none_or(|device| line.device == device))
        .collect();
    wanted
        .chunks(LINES)
        .map(|lines| {
            // JSON has no line break outside of its texts, and escapes those inside.
            let json = serde_json::to_string(lines).unwrap_or_default();
            format!("event: devices\ndata: {json}\n\n")
        })
        .collect()
}
