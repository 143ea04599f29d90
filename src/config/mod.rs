//! The configuration: defaults, a TOML file and the environment in, a checked [`Config`] out.
//!
//! The types here are what the rest of the program builds on: every value in them is one it can run
//! with, so nobody checks again. Reads the configuration file and looks at the files it names;
//! opens no device and no socket. Called by `main` (for `run` and `check`) and by `demo`.
//!
//! - `keys`: every key and its default, the only place for defaults
//! - nightlight-common's `config`: which layer a value comes from, whether it is of the right kind, and how
//!   to reach the broker
//! - `check`, `topics`: what it may be, and what fits together
//! - `serial`: the serial number of the board, for the device id
//! - `summary`: the configuration for a person
//! - `in_force`: the rules for the LED, with what a command set for good
//! - `page`: where the live page is, and its token
//! - `home_assistant`: whether Home Assistant is told of the device

mod check;
mod home_assistant;
mod in_force;
mod keys;
mod page;
mod serial;
mod summary;
mod topics;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::logic::{command, delivery, lighting, telemetry};
pub use home_assistant::HomeAssistant;
pub use in_force::{RuleOrigins, RulesInForce};
pub use nightlight_common::config::{Broker, Scheme, Speak, url};
use nightlight_common::config::{Layers, on_one_line};
pub use page::Page;

/// Read when the command line names no file; need not exist.
pub const DEFAULT_FILE: &str = "/etc/nightlight/nightlight.toml";
/// The device id when none is given. Two Pis need two.
const DEFAULT_ID: &str = "nightlight";

/// The configuration, checked: every value is one that the program can run with.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The device id, in topics and in the client id.
    pub device_id: String,
    /// How to reach the broker.
    pub broker: Broker,
    /// The names of the topics.
    pub topics: Topics,
    /// The light sensor.
    pub sensor: Sensor,
    /// The LED.
    pub led: Led,
    /// Who decides about the LED, and how.
    pub lighting: lighting::LightingSettings,
    /// The topic on which the server tells that it lives, if any.
    pub server_status: Option<String>,
    /// When a reading is recorded.
    pub telemetry: telemetry::TelemetrySettings,
    /// What commands may do.
    pub commands: command::CommandSettings,
    /// The backlog on disk.
    pub backlog: Backlog,
    /// How records reach the server.
    pub delivery: delivery::DeliverySettings,
    /// Where the status page listens; `None` is off.
    pub web: Option<Page>,
    /// How the device is announced to Home Assistant; `None` is not at all.
    pub home_assistant: Option<HomeAssistant>,
    /// Where what outlives a restart but not a reboot is kept, if anywhere.
    pub runtime_folder: Option<RuntimeFolder>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Where the rules for the LED are from.
    pub rule_origins: RuleOrigins,
    /// What works but may not be meant; a line each, for a person.
    pub warnings: Vec<String>,
}

/// A folder in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeFolder {
    /// Where it is; made if it is missing.
    pub path: PathBuf,
    /// It was given for this (by systemd, or by a person), and not found.
    pub is_given: bool,
}

/// Why there is no configuration: every problem that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// A line each: where, which key, what is wrong, what to do. Never empty.
    pub problems: Vec<String>,
}

impl Config {
    /// Reads the layers: defaults, the file, then the variables `NIGHTLIGHT_SECTION__KEY` of `env`.
    ///
    /// Without `file`, [`DEFAULT_FILE`] is read if it exists. `env` is the whole environment:
    /// `STATE_DIRECTORY`, `RUNTIME_DIRECTORY`, `XDG_RUNTIME_DIR` and `CREDENTIALS_DIRECTORY` count too.
    ///
    /// # Errors
    /// Every problem of every layer, and a `file` that cannot be read.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let name = file.unwrap_or(Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(name) {
            Ok(text) => Self::from_layers(Some((name, &text)), env),
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Self::from_layers(None, env)
            }
            Err(error) => {
                let advice = match error.kind() {
                    std::io::ErrorKind::InvalidData => "write it in UTF-8",
                    std::io::ErrorKind::NotFound => "check the path",
                    _ => "check the path and its rights",
                };
                let name = on_one_line(&name.display().to_string());
                Err(ConfigError {
                    problems: vec![format!("{name}: cannot be read: {error}; {advice}")],
                })
            }
        }
    }

    /// As [`Config::load`], with the text of a file instead of one; `""` gives the defaults.
    /// The file of this machine is not read.
    ///
    /// # Errors
    /// Every problem of the text and of `env`.
    pub fn from_toml(
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::from_layers(Some((Path::new("configuration"), text)), env)?;
        config.file = None;
        Ok(config)
    }

    /// Home Assistant's status topic, where discovery is on and that is not the server's topic.
    pub fn home_assistant_status(&self) -> Option<&str> {
        let home = self.home_assistant.as_ref()?;
        let is_servers = self.server_status.as_ref() == Some(&home.status_topic);
        (!is_servers).then_some(home.status_topic.as_str())
    }

    fn from_layers(
        file: Option<(&Path, &str)>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::gather(&keys::SCHEMA, file, HashMap::from_iter(env));
        let config = check::check(&mut layers, file.map(|(name, _)| name.to_path_buf()));
        let problems: Vec<_> = layers
            .problems
            .iter()
            .map(|line| on_one_line(line))
            .collect();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError { problems })
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// The names of the topics, `{id}` replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Live readings.
    pub telemetry: String,
    /// Replayed records.
    pub history: String,
    /// Live events.
    pub events: String,
    /// Commands, inbound.
    pub commands: String,
    /// What became of commands.
    pub results: String,
    /// The server's acks, inbound.
    pub acks: String,
    /// The retained picture of the device.
    pub state: String,
    /// Availability.
    pub status: String,
}

impl Topics {
    /// All of them.
    pub fn all(&self) -> [&str; 8] {
        [
            &self.telemetry,
            &self.history,
            &self.events,
            &self.commands,
            &self.results,
            &self.acks,
            &self.state,
            &self.status,
        ]
    }
}

/// The light sensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensor {
    /// Which one.
    pub driver: SensorDriver,
    /// I2C bus number.
    pub bus: u8,
    /// I2C address; the driver's own when absent.
    pub address: Option<u8>,
    /// Analogue channel of a Grove HAT, 0..=7.
    pub channel: u8,
    /// The file of `iio` or `trace`.
    pub path: PathBuf,
    /// How much faster than recorded `trace` plays, and `simulated` lives.
    pub speed: f64,
    /// How often it is read.
    pub interval: Duration,
}

/// The kinds of light sensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SensorDriver {
    /// Analogue sensor on a Grove Base HAT; 0..=1000, not lux.
    GroveHat,
    /// ROHM BH1750; lux.
    Bh1750,
    /// Vishay VEML7700; lux.
    Veml7700,
    /// TI OPT3001; lux.
    Opt3001,
    /// ams TSL2591; lux.
    Tsl2591,
    /// A file of a kernel driver.
    Iio,
    /// A recording.
    Trace,
    /// An invented day.
    Simulated,
}

impl SensorDriver {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::GroveHat,
        Self::Bh1750,
        Self::Veml7700,
        Self::Opt3001,
        Self::Tsl2591,
        Self::Iio,
        Self::Trace,
        Self::Simulated,
    ];

    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GroveHat => "grove-hat",
            Self::Bh1750 => "bh1750",
            Self::Veml7700 => "veml7700",
            Self::Opt3001 => "opt3001",
            Self::Tsl2591 => "tsl2591",
            Self::Iio => "iio",
            Self::Trace => "trace",
            Self::Simulated => "simulated",
        }
    }

    /// The I2C addresses it can have, the usual one first; none for a sensor that is not on a bus.
    pub fn addresses(self) -> &'static [u8] {
        match self {
            Self::GroveHat => &[0x04, 0x08],
            Self::Bh1750 => &[0x23, 0x5C],
            Self::Veml7700 => &[0x10],
            Self::Opt3001 => &[0x44, 0x45, 0x46, 0x47],
            Self::Tsl2591 => &[0x29],
            Self::Iio | Self::Trace | Self::Simulated => &[],
        }
    }

    /// The unit of its numbers; `None` where that is up to a file.
    pub fn unit(self) -> Option<&'static str> {
        match self {
            Self::GroveHat => Some("tenths of a percent"),
            Self::Bh1750 | Self::Veml7700 | Self::Opt3001 | Self::Tsl2591 => Some("lx"),
            Self::Iio | Self::Trace | Self::Simulated => None,
        }
    }

    /// Whether the driver sets its chip: two readers would then mislead each other.
    pub(crate) fn has_settings(self) -> bool {
        self.unit() == Some("lx")
    }

    /// It cannot be read more often than this.
    fn least_interval(self) -> Duration {
        match self {
            Self::Bh1750 => Duration::from_millis(200),
            Self::Veml7700 | Self::Opt3001 | Self::Tsl2591 => Duration::from_millis(150),
            Self::GroveHat | Self::Iio | Self::Trace | Self::Simulated => Duration::ZERO,
        }
    }
}

/// The LED.
#[derive(Debug, Clone, PartialEq)]
pub struct Led {
    /// Which kind.
    pub driver: LedDriver,
    /// BCM number of the pin; for `gpiochip` the number of the line, the same on a Pi's header.
    pub pin: u8,
    /// The LED is on when the pin is low.
    pub active_low: bool,
    /// The file of `sysfs`; the chip of `gpiochip`, that of the Pi's header when empty.
    pub path: PathBuf,
    /// The LED after a clean stop.
    pub at_exit: AtExit,
}

/// The kinds of LED.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LedDriver {
    /// A pin of the Pi, by its registers.
    Gpio,
    /// A line of a GPIO chip, by the kernel.
    Gpiochip,
    /// A file of a kernel driver.
    Sysfs,
    /// None; it is remembered and logged.
    Simulated,
}

/// The LED after a clean stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtExit {
    /// As it was.
    Keep,
    /// On.
    On,
    /// Off.
    Off,
}

/// The backlog on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Backlog {
    /// Folder of the store.
    pub path: PathBuf,
    /// Most records kept.
    pub max_records: u64,
    /// Most bytes of packed records kept.
    pub max_bytes: u64,
    /// What to give up when full.
    pub on_full: OnFull,
}

/// What to give up when the backlog is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// The oldest records.
    DropOldest,
    /// The newest records.
    DropNewest,
}
