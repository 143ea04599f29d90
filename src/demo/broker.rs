//! The demonstration's broker: a mosquitto of its own on a free port of this machine, or the one that
//! the user named.
//!
//! Finds mosquitto, installs it where it is missing (and says so with `say`), starts it and ends it. A mosquitto that runs as
//! a service is left alone. Called by `demo::run`; blocks, so before there is a runtime.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::free_port;
use crate::config::Scheme;
use crate::config::url::BrokerUrl;

/// A mosquitto that does not listen after so long will not.
const STARTS_WITHIN: Duration = Duration::from_secs(15);
const NOT_OURS: &str = "this broker is yours: only one of the demonstration's own is killed";
/// How often to look whether it listens.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Somebody else may take the free port before mosquitto does: then another one is tried.
const TRIES: u32 = 3;
/// Where mosquitto is on systems that keep it off the path of ordinary users.
const OFF_THE_PATH: [&str; 3] = [
    "/usr/sbin/mosquitto",
    "/usr/local/sbin/mosquitto",
    "/opt/homebrew/sbin/mosquitto",
];

/// Where the broker is; a mosquitto of our own ends when this is dropped.
#[derive(Debug)]
pub(super) struct Broker {
    /// Host name or address.
    pub(super) host: String,
    /// Port.
    pub(super) port: u16,
    /// Whether it was started here and nobody else uses it.
    pub(super) is_own: bool,
    own: Option<Own>,
}

/// A mosquitto of our own, which can be killed and started again.
#[derive(Debug)]
struct Own {
    program: PathBuf,
    folder: PathBuf,
    process: Option<Process>,
}

impl Broker {
    /// The broker of the user.
    ///
    /// # Errors
    /// A scheme that the demonstration's cable does not speak.
    pub(super) fn at(url: &str) -> Result<Self, String> {
        let parts = BrokerUrl::parse(url).map_err(|what| format!("the broker's URL {what}"))?;
        if parts.scheme != Scheme::Mqtt {
            return Err(format!(
                "the demonstration speaks plain mqtt:// alone, and this is {}://; \
                 leave --broker out and it starts a broker of its own",
                parts.scheme.name()
            ));
        }
        Ok(Self {
            host: parts.host,
            port: parts.port,
            is_own: false,
            own: None,
        })
    }

    /// A mosquitto of our own, which listens when this returns. Its files go into `folder`; what is
    /// done to the system is told with `say`.
    ///
    /// # Errors
    /// mosquitto is missing and cannot be installed, or does not start; in words, with what to do.
    pub(super) fn of_our_own(folder: &Path, say: impl Fn(&str)) -> Result<Self, String> {
        let program = match find() {
            Some(program) => program,
            None => install(say)?,
        };
        let mut why = String::new();
        for _ in 0..TRIES {
            let port = free_port()?;
            match Process::start(&program, port, folder) {
                Ok(process) => {
                    return Ok(Self {
                        host: "127.0.0.1".to_owned(),
                        port,
                        is_own: true,
                        own: Some(Own {
                            program,
                            folder: folder.to_owned(),
                            process: Some(process),
                        }),
                    });
                }
                Err(error) => why = error,
            }
        }
        Err(format!("{} does not start: {why}", program.display()))
    }

    /// Whether it runs, as far as that is ours to know.
    pub(super) fn is_up(&self) -> bool {
        self.own.as_ref().is_none_or(|own| own.process.is_some())
    }

    /// Kills it; it has kept nothing.
    ///
    /// # Errors
    /// It is not ours.
    pub(super) fn kill(&mut self) -> Result<(), String> {
        let own = self.own.as_mut().ok_or(NOT_OURS)?;
        own.process = None;
        Ok(())
    }

    /// Starts it again, on the same port. Blocks until it listens.
    ///
    /// # Errors
    /// It is not ours, or does not start.
    pub(super) fn start_again(&mut self) -> Result<(), String> {
        let own = self.own.as_mut().ok_or(NOT_OURS)?;
        if own.process.is_none() {
            own.process = Some(Process::start(&own.program, self.port, &own.folder)?);
        }
        Ok(())
    }
}

/// A child that does not outlive this value.
#[derive(Debug)]
struct Process {
    child: Child,
}

impl Process {
    fn start(program: &Path, port: u16, folder: &Path) -> Result<Self, String> {
        let config = folder.join("mosquitto.conf");
        let log = folder.join("mosquitto.log");
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_dest stderr\n"
        );
        let cannot = |error: std::io::Error| format!("its files cannot be written: {error}");
        fs::write(&config, text).map_err(cannot)?;
        let stderr = File::create(&log).map_err(cannot)?;
        let child = Command::new(program)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut process = Self { child };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let over = Instant::now() + STARTS_WITHIN;
        while TcpStream::connect_timeout(&address, LOOK_EVERY).is_err() {
            if let Ok(Some(status)) = process.child.try_wait() {
                return Err(format!("it ended ({status}): {}", last_line(&log)));
            }
            if Instant::now() > over {
                return Err(format!("it does not listen: {}", last_line(&log)));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        // The port answers, but only a child that lives is the one that answers.
        match process.child.try_wait() {
            Ok(None) => Ok(process),
            _ => Err(format!("the port was taken: {}", last_line(&log))),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It keeps nothing, so there is nothing that it would have to finish.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("mosquitto"))
        .chain(OFF_THE_PATH.map(PathBuf::from))
        .find(|program| program.is_file())
}

/// Installs Debian's package, with its output shown: the user is to see what is done to the system.
fn install(say: impl Fn(&str)) -> Result<PathBuf, String> {
    const BY_HAND: &str = "install it (Debian, Raspberry Pi OS: sudo apt-get install mosquitto), \
                           or name a broker: nightlight demo --broker mqtt://HOST";
    say("mosquitto, a small MQTT broker, is not on this machine.");
    if !is_on_path("apt-get") {
        return Err(format!(
            "there is no apt-get to install mosquitto; {BY_HAND}"
        ));
    }
    let is_root = rustix::process::geteuid().is_root();
    if !is_root && !is_on_path("sudo") {
        return Err(format!("only root can install mosquitto; {BY_HAND}"));
    }
    let apt = |arguments: &[&str]| {
        let mut command = match is_root {
            true => Command::new("apt-get"),
            false => Command::new("sudo"),
        };
        if !is_root {
            command.arg("apt-get");
        }
        let sudo = if is_root { "" } else { "sudo " };
        say(&format!("> {sudo}apt-get {}", arguments.join(" ")));
        let status = command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status();
        status.is_ok_and(|status| status.success())
    };
    let wanted = ["install", "-y", "mosquitto"];
    // A fresh system has no lists of packages yet.
    let installed = apt(&wanted) || apt(&["update"]) && apt(&wanted);
    if !installed {
        return Err(format!("mosquitto could not be installed; {BY_HAND}"));
    }
    find().ok_or_else(|| format!("mosquitto is installed, but nowhere to be found; {BY_HAND}"))
}

fn is_on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("it says nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_mqtt_is_taken() {
        let broker = Broker::at("mqtt://hub.local").unwrap();
        assert_eq!((broker.host.as_str(), broker.port), ("hub.local", 1883));
        assert!(!broker.is_own);
        for url in [
            "mqtts://hub.local",
            "ws://hub.local",
            "wss://hub.local/mqtt",
        ] {
            let why = Broker::at(url).unwrap_err();
            assert!(why.contains("mqtt://"), "{why}");
        }
    }

    #[test]
    fn a_program_that_ends_is_told_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let why = Process::start(Path::new("/bin/false"), 1, folder.path()).unwrap_err();
        assert!(why.contains("it ended"), "{why}");
    }
}
