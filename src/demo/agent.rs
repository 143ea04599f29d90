//! The agent of the demonstration: the daemon itself, on a thread and a runtime of its own, as in a
//! process of its own.
//!
//! Starts it, shows its picture of itself, stops it. Nothing here decides. Called by `story`.

use std::io;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::light::Light;
use super::{LEASE, OFF_ABOVE, ON_BELOW};
use crate::config::{Config, ConfigError};
use crate::daemon;
use crate::io::web::Looker;
use crate::logic::{Exit, View};

/// When the demonstration itself breaks off, the agent has so long to end.
const END_WITHIN: Duration = Duration::from_secs(6);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The configuration of the agent: its broker is the cable at `port`, its backlog in `folder`.
///
/// # Errors
/// Every problem that the configuration has.
pub(super) fn config(
    id: &str,
    port: u16,
    light: &Light,
    folder: &Path,
) -> Result<Config, ConfigError> {
    let backlog = text(&folder.join("backlog"));
    let sensor = match &light.recording {
        Some(recording) => format!("driver = \"trace\"\npath = {}", text(recording)),
        None => "driver = \"simulated\"".to_owned(),
    };
    let speed = light.speed;
    let lease = LEASE.as_millis();
    // A silent link is noticed within keep_alive and twice that.
    let toml = format!(
        r#"
[device]
id = "{id}"
[broker]
url = "mqtt://127.0.0.1:{port}"
keep_alive = "3s"
[sensor]
{sensor}
speed = {speed:?}
interval = "250ms"
[led]
driver = "simulated"
[control]
on_below = {ON_BELOW:?}
off_above = {OFF_ABOVE:?}
hold = "1s"
lease = "{lease}ms"
[backlog]
path = {backlog}
[delivery]
# Slow enough to be seen.
replay_rate = 25.0
replay_jitter = "500ms"
"#
    );
    Config::from_toml(&toml, [])
}

/// The running daemon.
#[derive(Debug)]
pub(super) struct Agent {
    /// Its picture of itself; none before the first one.
    pub(super) views: watch::Receiver<Option<View>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<Exit, String>>>,
}

impl Agent {
    /// Starts the daemon.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub(super) fn start(config: Config) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (show, views) = watch::channel(None);
        let thread = std::thread::Builder::new()
            .name("agent".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| format!("there is no runtime for it: {error}"))?;
                // A sender that is dropped is a wish to stop, too.
                let stop = async move {
                    let _ = stopped.await;
                };
                let (looker, looks) = Looker::new();
                let ended = runtime.block_on(async {
                    let watching = tokio::spawn(watch_agent(looker.clone(), show.clone()));
                    let ended = daemon::run(config, stop, (looker, looks)).await;
                    watching.abort();
                    ended
                });
                show.send_replace(Some(ended.last));
                Ok(ended.exit)
            })?;
        Ok(Self {
            views,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Asks it to stop; [`Agent::has_ended`] tells when it has.
    pub(super) fn ask_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself already.
            let _ = stop.send(());
        }
    }

    /// How it ended. Waits until it has.
    ///
    /// # Errors
    /// In words: it had no runtime, it broke down, or this was asked before.
    pub(super) fn outcome(&mut self) -> Result<Exit, String> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err("it broke down; the lines above say where".to_owned()),
            None => Err("it has been asked before".to_owned()),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.ask_to_stop();
        // Its backlog lies in a folder that is removed next.
        let over = std::time::Instant::now() + END_WITHIN;
        while !self.has_ended() && std::time::Instant::now() < over {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Keeps the picture fresh, for as long as somebody wants it.
async fn watch_agent(looker: Looker, show: watch::Sender<Option<View>>) {
    while let Some(view) = looker.look().await {
        if show.send(Some(view)).is_err() {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A path as TOML text: what JSON escapes, TOML reads.
fn text(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_good_for_both_kinds_of_light() {
        let folder = tempfile::tempdir().unwrap();
        let recording = folder.path().join("a \"day\".csv");
        std::fs::write(&recording, "0,1\n").unwrap();
        let mut light = Light::of_a_day();
        let day = config("nightlight-demo-1", 1883, &light, folder.path()).unwrap();
        assert_eq!(day.topics.history, "nightlight-demo-1/telemetry/history");
        assert!(day.warnings.is_empty(), "{:?}", day.warnings);
        light.recording = Some(recording.clone());
        let played = config("nightlight-demo-1", 1883, &light, folder.path()).unwrap();
        assert_eq!(played.sensor.path, recording);
    }
}
