//! The agent of the demonstration: the real program, `nightlight run`, as a process of its own with files as
//! sensor and LED.
//!
//! Starts it, takes its power away, stops it, and shows its picture of itself. Nothing here decides. Called by
//! `story`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{AgentFiles, INTERVAL, LEASE, MAX_RECORDS, OFF_ABOVE, ON_BELOW};
use crate::config::{Config, ConfigError};
use crate::io::web;
use crate::logic::View;

/// When the demonstration itself breaks off, the agent has so long to end.
const END_WITHIN: Duration = Duration::from_secs(6);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Files of the agent, in the demonstration's folder.
const LIGHT: &str = "light";
const LED: &str = "led";
const LOG: &str = "agent.log";
const BACKLOG: &str = "backlog";

/// The configuration of the agent as text: its broker is the cable at `port`, its files are in `folder`.
fn text(id: &str, port: u16, folder: &Path) -> String {
    let path = |name: &str| quoted(&folder.join(name));
    let (light, led, backlog) = (path(LIGHT), path(LED), path(BACKLOG));
    let (lease, interval) = (LEASE.as_millis(), INTERVAL.as_millis());
    // A silent link is noticed within keep_alive and twice that.
    format!(
        r#"
[device]
id = "{id}"
[broker]
url = "mqtt://127.0.0.1:{port}"
keep_alive = "3s"
[sensor]
driver = "iio"
path = {light}
interval = "{interval}ms"
[led]
driver = "sysfs"
path = {led}
[control]
on_below = {ON_BELOW:?}
off_above = {OFF_ABOVE:?}
hold = "1s"
lease = "{lease}ms"
[backlog]
path = {backlog}
max_records = {MAX_RECORDS}
[delivery]
# The server's word counts, so that a server that is killed takes nothing along.
confirm = "server"
ack_timeout = "4s"
# Slow enough to be seen.
replay_rate = 40.0
replay_jitter = "500ms"
"#
    )
}

/// The running program.
#[derive(Debug)]
pub(super) struct Agent {
    /// Its picture of itself; none before the first one, and the last one when it is gone.
    pub(super) views: watch::Receiver<Option<View>>,
    folder: PathBuf,
    child: Option<Child>,
    ended: Option<ExitStatus>,
    watching: JoinHandle<()>,
}

impl Agent {
    /// Writes what it needs into `folder`; it does not run yet. Gives its configuration too.
    ///
    /// # Errors
    /// Every problem that the configuration has, or a file that cannot be written.
    pub(super) fn prepare(id: &str, port: u16, folder: &Path) -> Result<(Self, Config), String> {
        let text = text(id, port, folder);
        let files = AgentFiles::of(folder);
        let cannot = |error: io::Error| format!("the agent's files: {error}");
        fs::write(&files.config, &text).map_err(cannot)?;
        fs::write(&files.clock, "0\n").map_err(cannot)?;
        set_light(folder, 0.0).map_err(cannot)?;
        fs::write(folder.join(LED), "0\n").map_err(cannot)?;
        let wrong = |error: ConfigError| format!("the agent's configuration: {error}");
        let config = Config::from_toml(&text, []).map_err(wrong)?;
        let (show, views) = watch::channel(None);
        let watching = tokio::spawn(watch_agent(folder.join(BACKLOG), show));
        let agent = Self {
            views,
            folder: folder.to_owned(),
            child: None,
            ended: None,
            watching,
        };
        Ok((agent, config))
    }

    /// Switches it on.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(super) fn start(&mut self) -> Result<(), String> {
        let cannot = |error: io::Error| format!("the agent does not start: {error}");
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.folder.join(LOG))
            .map_err(cannot)?;
        let mut command = program().map_err(cannot)?;
        // What is set for the user's own nightlight is not for this one.
        for (name, _) in std::env::vars_os() {
            let is_ours = name.to_string_lossy().starts_with("NIGHTLIGHT_");
            // A power cut leaves nothing in memory, where the runtime directory is.
            let is_folder = name == "STATE_DIRECTORY"
                || name == "RUNTIME_DIRECTORY"
                || name == "XDG_RUNTIME_DIR";
            if is_ours || is_folder {
                command.env_remove(name);
            }
        }
        let child = command
            .args(["demo", "--agent"])
            .arg(&self.folder)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(cannot)?;
        self.child = Some(child);
        self.ended = None;
        Ok(())
    }

    /// Takes the power away: the process is gone between two instructions, and the LED is dark.
    ///
    /// # Errors
    /// It cannot be killed.
    pub(super) fn cut_power(&mut self) -> Result<(), String> {
        if let Some(child) = &mut self.child {
            child
                .kill()
                .and_then(|()| child.wait().map(|_| ()))
                .map_err(|error| format!("the agent cannot be killed: {error}"))?;
        }
        self.child = None;
        fs::write(self.folder.join(LED), "0\n").map_err(|error| format!("the LED: {error}"))
    }

    /// Where its backlog is, and its status socket.
    pub(super) fn backlog(&self) -> PathBuf {
        self.folder.join(BACKLOG)
    }

    /// Moves its wall clock, by so many milliseconds from the machine's.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn move_clock(&self, by_ms: i64) -> Result<(), String> {
        let file = AgentFiles::of(&self.folder).clock;
        let next = self.folder.join("clock.next");
        let moved = fs::write(&next, format!("{by_ms}\n")).and_then(|()| fs::rename(next, file));
        moved.map_err(|error| format!("the clock: {error}"))
    }

    /// What the sensor sees from now on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn set_light(&self, light: f64) -> Result<(), String> {
        set_light(&self.folder, light).map_err(|error| format!("the light: {error}"))
    }

    /// Looks whether it still runs; to be called now and then.
    pub(super) fn look_after(&mut self) {
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            self.ended = Some(status);
            self.child = None;
        }
    }

    /// Whether it has power.
    pub(super) fn has_power(&self) -> bool {
        self.child.is_some()
    }

    /// Whether it has ended by itself, or because it was asked to.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Asks it to stop; [`Agent::has_ended`] tells when it has.
    pub(super) fn ask_to_stop(&mut self) {
        if let Some(child) = &self.child
            && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        {
            // It may have ended by itself already.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// How it ended.
    ///
    /// # Errors
    /// In words: not as it should, with its last word.
    pub(super) fn outcome(&self) -> Result<(), String> {
        match self.ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                let log = fs::read_to_string(self.folder.join(LOG)).unwrap_or_default();
                let last = log.lines().next_back().unwrap_or("it said nothing");
                Err(format!("it ended with {status}: {last}"))
            }
            None => Err("it still runs".to_owned()),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.watching.abort();
        self.ask_to_stop();
        // Its backlog lies in a folder that is removed next.
        let over = std::time::Instant::now() + END_WITHIN;
        while self.has_power() && std::time::Instant::now() < over {
            std::thread::sleep(LOOK_EVERY);
            self.look_after();
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// In one step, so that no reading finds half a number.
fn set_light(folder: &Path, light: f64) -> io::Result<()> {
    let next = folder.join("light.next");
    fs::write(&next, format!("{light:.2}\n"))?;
    fs::rename(next, folder.join(LIGHT))
}

/// Keeps the picture fresh, for as long as somebody wants it.
async fn watch_agent(backlog: PathBuf, show: watch::Sender<Option<View>>) {
    loop {
        if let Ok(text) = web::ask(&backlog).await
            && let Ok(view) = serde_json::from_str(&text)
            && show.send(Some(view)).is_err()
        {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A path as TOML text: what JSON escapes, TOML reads.
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// This program. `DEMO_RUNNER` names what it is run by, as an emulator and its options: a system that cannot start
/// the program by itself could not start a second one either.
fn program() -> io::Result<Command> {
    let itself = std::env::current_exe()?;
    let runner = std::env::var("DEMO_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(runner) = words.next() else {
        return Ok(Command::new(itself));
    };
    let mut command = Command::new(runner);
    command.args(words).arg(itself);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_configuration_is_good_wherever_its_files_are() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("a \"day\"");
        fs::create_dir(&folder).unwrap();
        let (agent, config) = Agent::prepare("nightlight-demo-1", 1883, &folder).unwrap();
        assert_eq!(config.topics.history, "nightlight-demo-1/telemetry/history");
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert_eq!(config.sensor.path, folder.join(LIGHT));
        assert!(!agent.has_power() && !agent.has_ended());
    }
}
