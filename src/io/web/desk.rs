//! The desk: asks the device for what visitors want to read, once however many of them ask at the same time.
//!
//! One task, one question at a time. An answer may be handed out again for a short while, so that a crowd of
//! visitors costs the loop no more than a few questions a second. It asks the loop of this process, or (in the
//! demonstration) another nightlight at its status socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Looker, fetch, frame, health, metrics};

/// Visitors who wait for an answer.
const MAX_WAITING: usize = 64;

/// What a visitor wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The device as it is, as JSON.
    Status,
    /// The device as it was, as JSON.
    Past,
    /// The numbers of the device, for Prometheus.
    Metrics,
    /// Whether it is healthy, in words.
    Health,
    /// What is new after the event with this number, as one line of JSON.
    Frame(u64),
}

impl Ask {
    fn path(self) -> String {
        match self {
            Ask::Status => "/status".into(),
            Ask::Past => "/past".into(),
            Ask::Metrics => "/metrics".into(),
            Ask::Health => "/healthz".into(),
            Ask::Frame(after) => format!("/frame?after={after}"),
        }
    }
}

/// What the device answers.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Whether it is well; only [`Ask::Health`] says no.
    pub is_good: bool,
    /// The text.
    pub text: Arc<str>,
}

/// Whom the desk asks.
#[derive(Debug)]
pub enum Source {
    /// The loop of this process.
    Loop(Looker),
    /// The nightlight whose backlog is in this folder.
    Folder(PathBuf),
}

/// The desk's other side: where visitors ask.
#[derive(Debug, Clone)]
pub struct Desk(mpsc::Sender<(Ask, oneshot::Sender<Answer>)>);

impl Desk {
    /// Opens it on the current runtime. An answer is handed out again for as long as `kept`.
    pub fn open(source: Source, kept: Duration) -> Self {
        let (sender, questions) = mpsc::channel(MAX_WAITING);
        tokio::spawn(serve(source, kept, questions));
        Self(sender)
    }

    /// The answer; none when the device has ended or does not answer.
    pub async fn ask(&self, ask: Ask) -> Option<Answer> {
        let (sender, answer) = oneshot::channel();
        self.0.send((ask, sender)).await.ok()?;
        answer.await.ok()
    }
}

async fn serve(
    source: Source,
    kept: Duration,
    mut questions: mpsc::Receiver<(Ask, oneshot::Sender<Answer>)>,
) {
    let mut answers: Vec<(Ask, Instant, Answer)> = Vec::new();
    while let Some((ask, reply)) = questions.recv().await {
        answers.retain(|(_, at, _)| at.elapsed() < kept);
        let known = answers.iter().find(|(known, ..)| *known == ask);
        let answer = match known {
            Some((.., answer)) => Some(answer.clone()),
            None => look(&source, ask).await,
        };
        let Some(answer) = answer else {
            // The visitor is told by the end of `reply`.
            continue;
        };
        if known.is_none() && !kept.is_zero() {
            answers.push((ask, Instant::now(), answer.clone()));
        }
        // He may have left.
        let _ = reply.send(answer);
    }
}

async fn look(source: &Source, ask: Ask) -> Option<Answer> {
    let looker = match source {
        Source::Loop(looker) => looker,
        Source::Folder(folder) => {
            let (is_good, text) = fetch(folder, &ask.path()).await.ok()?;
            return Some(Answer {
                is_good,
                text: text.into(),
            });
        }
    };
    let (is_good, text) = match ask {
        Ask::Status => {
            let view = looker.look().await?;
            let text = serde_json::to_string(&view).unwrap_or_default();
            (true, text + "\n")
        }
        Ask::Past => (true, looker.look_back().await?.to_json()),
        Ask::Metrics => (true, metrics::metrics(&looker.look().await?)),
        Ask::Health => health::health(&looker.look().await?),
        Ask::Frame(after) => {
            let (view, events, outages) = looker.look_since(after).await?;
            (true, frame::frame(&view, &events, outages))
        }
    };
    Some(Answer {
        is_good,
        text: text.into(),
    })
}
