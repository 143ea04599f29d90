//! Those who stay: each second one frame for all of them, as server-sent events.
//!
//! One task asks the desk and hands the frame to every viewer. A viewer who does not take what he was handed is
//! dropped, and his browser comes again by itself; nobody waits for him. Without viewers nothing is asked.

use std::time::Duration;

use hyper::body::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::desk::{Ask, Desk};

/// Viewers at a time; one more is told to come later.
const MAX_VIEWERS: usize = 32;
/// Frames that wait for a viewer before he is dropped.
const MAX_BEHIND: usize = 8;
/// How often there is a frame.
const EVERY: Duration = Duration::from_secs(1);
/// The browser's pause before it comes again, and the first thing that it hears.
const HELLO: &str = "retry: 1000\n\n";

/// Where viewers come in.
#[derive(Debug, Clone)]
pub struct Live(mpsc::Sender<mpsc::Sender<Bytes>>);

impl Live {
    /// Starts the task on the current runtime.
    pub fn start(desk: Desk) -> Self {
        let (sender, viewers) = mpsc::channel(1);
        tokio::spawn(show(desk, viewers));
        Self(sender)
    }

    /// The frames from now on; none when there are too many viewers.
    pub async fn watch(&self) -> Option<mpsc::Receiver<Bytes>> {
        let (sender, mut frames) = mpsc::channel(MAX_BEHIND);
        self.0.send(sender).await.ok()?;
        // The first word says whether there is a place.
        let hello = frames.recv().await?;
        debug_assert_eq!(hello, HELLO);
        Some(frames)
    }
}

/// The beginning of a stream.
pub(super) fn hello() -> Bytes {
    Bytes::from_static(HELLO.as_bytes())
}

async fn show(desk: Desk, mut newcomers: mpsc::Receiver<mpsc::Sender<Bytes>>) {
    let mut viewers: Vec<mpsc::Sender<Bytes>> = Vec::new();
    let mut beat = tokio::time::interval(EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut after = 0;
    loop {
        tokio::select! {
            newcomer = newcomers.recv() => {
                let Some(newcomer) = newcomer else { return };
                viewers.retain(|viewer| !viewer.is_closed());
                if viewers.len() < MAX_VIEWERS && newcomer.try_send(hello()).is_ok() {
                    viewers.push(newcomer);
                }
            }
            _ = beat.tick(), if !viewers.is_empty() => {
                let frame = next_frame(&desk, &mut after).await;
                viewers.retain(|viewer| viewer.try_send(frame.clone()).is_ok());
            }
        }
    }
}

/// The next frame; of a device that does not answer, that.
async fn next_frame(desk: &Desk, after: &mut u64) -> Bytes {
    #[derive(Deserialize)]
    struct Told {
        #[serde(default)]
        events: Vec<Number>,
    }
    #[derive(Deserialize)]
    struct Number {
        number: u64,
    }
    match desk.ask(Ask::Frame(*after)).await {
        Some(answer) if answer.is_good => {
            let told = serde_json::from_str::<Told>(&answer.text).ok();
            let newest = told.and_then(|told| told.events.last().map(|event| event.number));
            *after = newest.unwrap_or(*after);
            format!("data: {}\n\n", answer.text.trim_end()).into()
        }
        _ => {
            // Another run counts from the beginning.
            *after = 0;
            Bytes::from_static(b"event: lost\ndata: {}\n\n")
        }
    }
}
