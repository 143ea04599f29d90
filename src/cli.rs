//! The command line: which commands there are, what they take, what the program's exit codes mean.
//!
//! Parses and carries out nothing; `main` does what the result says.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config;
use crate::config::url::BrokerUrl;
use crate::server::{self, Devices, Group, Pattern, Topics, is_device_id};

const EXAMPLES: &str = "\
Examples:
  nightlight check                      look at /etc/nightlight/nightlight.toml
  nightlight run --config my.toml       run with a file of your own
  NIGHTLIGHT_BROKER__URL=mqtt://hub.local nightlight run
                                        set a key without a file: [broker] url
  nightlight demo                       see it work without a Pi

Environment:
  NIGHTLIGHT_SECTION__KEY               sets a key of the configuration
  NIGHTLIGHT_LOG                        error, warn, info (default), debug or trace

Exit codes: 0 done, 64 usage, 70 software, 77 permission, 78 configuration.";

const CHECK_EXAMPLES: &str = "\
Examples:
  nightlight check
  nightlight check --config my.toml && sudo systemctl restart nightlight

Exits with 0 if `run` would start with this configuration, or with 78 and every problem named.";

const DEMO_EXAMPLES: &str = "\
Examples:
  nightlight demo
  nightlight demo --broker mqtt://test.local
  nightlight demo --trace evening.csv";

const SERVER_EXAMPLES: &str = "\
Examples:
  nightlight server                     serve every device at mqtt://localhost:1883
  nightlight server --device pi-1 --on-below 250
  nightlight server --group hall=pi-1,pi-2,pi-3
                                        the majority of three decides for all three
  nightlight server --account           what was received, twice, lost and is missing
  kill -USR1 $(pidof nightlight)        have a running server print that

A device that is to wait for the acks of this server has delivery.confirm = \"server\". Accounts are
published, retained, beside the status topic: nightlight/server/account/ID.";

/// How the program ends; systemd and scripts read it (see sysexits.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The command line is wrong.
    Usage = 64,
    /// A bug, or an operating system that does not do what it must.
    Software = 70,
    /// No right to something that is needed.
    Permission = 77,
    /// The configuration is wrong: starting again is no use before somebody mends it.
    Configuration = 78,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A silent link is found dead after two of these.
const SERVER_KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The command line.
#[derive(Debug, Parser, PartialEq)]
#[command(
    name = "nightlight",
    version,
    about = "A dependable nightlight: light sensor in, LED out, MQTT between",
    after_help = EXAMPLES,
    arg_required_else_help = false
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand, PartialEq)]
pub enum Command {
    /// Run the daemon until it is told to stop (SIGTERM, SIGINT)
    Run(ConfigFile),
    /// Show the daemon at work with a simulated sensor and LED
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(Demo),
    /// Check the configuration and say what the daemon would do with it
    #[command(after_help = CHECK_EXAMPLES)]
    Check(ConfigFile),
    /// Show what the running daemon sees and does, and why the LED is as it is
    Status(Status),
    /// Run the reference server: keep every record once, confirm it, decide about the LEDs
    #[command(after_help = SERVER_EXAMPLES)]
    Server(Box<Server>),
    /// Look into the backlog of a daemon that does not run
    #[command(subcommand)]
    Backlog(Backlog),
}

/// Which configuration.
#[derive(Debug, Args, PartialEq)]
pub struct ConfigFile {
    /// Configuration file; without it /etc/nightlight/nightlight.toml is read if it exists
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How to show the status.
#[derive(Debug, Args, PartialEq)]
pub struct Status {
    /// The configuration of the daemon: its backlog's folder is where it answers
    #[command(flatten)]
    pub file: ConfigFile,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Ways to look into a backlog at rest.
#[derive(Debug, Subcommand, PartialEq)]
pub enum Backlog {
    /// How much is in it, and of which runs
    Stats(Folder),
    /// Its chunks and single records: run, first seq, last seq, count
    List(Folder),
    /// Each record as a line of JSON, as it would be replayed, oldest first
    Export(Folder),
    /// Read everything and compare it with the store's own account
    Verify(Folder),
}

/// Where the backlog is.
#[derive(Debug, Args, PartialEq)]
pub struct Folder {
    /// The folder that backlog.path names
    #[arg(long, value_name = "DIR", default_value = "/var/lib/nightlight")]
    pub path: PathBuf,
}

/// What the demonstration runs with.
#[derive(Debug, Args, PartialEq)]
pub struct Demo {
    /// Broker to use, such as mqtt://localhost:1883
    #[arg(long, value_name = "URL", value_parser = broker_url)]
    pub broker: Option<String>,
    /// Recording of light to play in place of the simulated day
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// What the reference server runs with.
#[derive(Debug, Args, PartialEq)]
pub struct Server {
    /// Broker, such as mqtt://localhost:1883 or mqtts://hub.local
    #[arg(long, value_name = "URL", default_value = "mqtt://localhost:1883", value_parser = broker_url)]
    pub broker: String,
    /// User name at the broker
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// File with the password in its first line
    #[arg(long, value_name = "FILE", requires = "username")]
    pub password_file: Option<PathBuf>,
    /// PEM file of the authorities to trust; without it those of the system
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Name at the broker, which keeps what comes for it while the server is away
    #[arg(long, value_name = "NAME", default_value = "nightlight-server")]
    pub client_id: String,
    /// Device to serve; + is all
    #[arg(long, value_name = "ID", default_value = "+", value_parser = Devices::parse)]
    pub device: Devices,
    /// LEDs are on below this light, in the sensor's unit
    #[arg(long, value_name = "LIGHT", default_value = "300", value_parser = light)]
    pub on_below: f64,
    /// Devices whose majority decides for all of them; may be given more than once
    #[arg(long = "group", value_name = "NAME=ID,ID,...", value_parser = group)]
    pub groups: Vec<Group>,
    /// Folder of the store, made if it is missing
    #[arg(long, value_name = "DIR", default_value = "nightlight-server")]
    pub store: PathBuf,
    /// Where to say online and offline
    #[arg(long, value_name = "TOPIC", default_value = "nightlight/server/status", value_parser = plain_topic)]
    pub status_topic: String,
    /// Topic of live readings
    #[arg(long, value_name = "TOPIC", default_value = "{id}/telemetry", value_parser = Pattern::parse)]
    pub telemetry_topic: Pattern,
    /// Topic of replayed records
    #[arg(long, value_name = "TOPIC", default_value = "{id}/telemetry/history", value_parser = Pattern::parse)]
    pub history_topic: Pattern,
    /// Topic of live events
    #[arg(long, value_name = "TOPIC", default_value = "{id}/events", value_parser = Pattern::parse)]
    pub events_topic: Pattern,
    /// Topic of commands
    #[arg(long, value_name = "TOPIC", default_value = "{id}/commands", value_parser = Pattern::parse)]
    pub commands_topic: Pattern,
    /// Topic of acks
    #[arg(long, value_name = "TOPIC", default_value = "{id}/acks", value_parser = Pattern::parse)]
    pub acks_topic: Pattern,
    /// Print the account of a store at rest, each device and each of its runs, and end
    #[arg(long)]
    pub account: bool,
    /// Print every record of a store at rest as a line of JSON, and end
    #[arg(long, conflicts_with = "account")]
    pub export: bool,
}

impl Server {
    /// What the server runs with.
    ///
    /// # Errors
    /// Values that are good one by one and do not fit together, in words.
    pub fn settings(self) -> Result<server::Settings, String> {
        let mut members: Vec<&String> = self.groups.iter().flat_map(|g| &g.members).collect();
        members.sort();
        if let Some(twice) = members.windows(2).find(|pair| pair[0] == pair[1]) {
            let twice = &twice[0];
            return Err(format!("--group: {twice} is in a group twice, or in two"));
        }
        if self.device != Devices::All && !self.groups.is_empty() {
            return Err("--group: a group needs all its devices; leave --device out".into());
        }
        let url = BrokerUrl::parse(&self.broker)?;
        Ok(server::Settings {
            broker: config::Broker {
                scheme: url.scheme,
                host: url.host,
                port: url.port,
                path: url.path,
                client_id: self.client_id,
                username: self.username,
                password_file: self.password_file,
                ca_file: self.ca_file,
                cert_file: None,
                key_file: None,
                keep_alive: SERVER_KEEP_ALIVE,
            },
            devices: self.device,
            topics: Topics {
                telemetry: self.telemetry_topic,
                history: self.history_topic,
                events: self.events_topic,
                commands: self.commands_topic,
                acks: self.acks_topic,
            },
            on_below: self.on_below,
            groups: self.groups,
            store: self.store,
            status_topic: self.status_topic,
        })
    }
}

impl Cli {
    /// Reads the command line, the program's name first.
    ///
    /// # Errors
    /// `--help` and `--version` too: what to print is in the error, how to exit tells [`exit_of`].
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(arguments)
    }
}

/// The exit code of an error of the command line; clap's own is 2.
pub fn exit_of(error: &clap::Error) -> Exit {
    if error.use_stderr() {
        Exit::Usage
    } else {
        Exit::Done
    }
}

fn broker_url(url: &str) -> Result<String, String> {
    crate::config::url::BrokerUrl::parse(url).map(|_| url.to_string())
}

fn light(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(light) if light.is_finite() => Ok(light),
        _ => Err("is not a number".into()),
    }
}

fn group(text: &str) -> Result<Group, String> {
    let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let Some((name, members)) = parts else {
        return Err("has no name; write one such as hall=pi-1,pi-2,pi-3".into());
    };
    let members: Vec<String> = members.split(',').map(str::to_owned).collect();
    match members.iter().find(|member| !is_device_id(member)) {
        Some(bad) => Err(format!("has {bad:?} in it, which is no device id")),
        None => Ok(Group {
            name: name.to_owned(),
            members,
        }),
    }
}

fn plain_topic(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains(['+', '#', '\0']) {
        true => Err("is no topic to publish on; leave \"+\" and \"#\" out".into()),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_of_the_config_kind_take_a_file() {
        let config = Some(PathBuf::from("a.toml"));
        assert_eq!(
            read("nightlight run --config a.toml").unwrap().command,
            Command::Run(ConfigFile {
                config: config.clone()
            })
        );
        assert_eq!(
            read("nightlight check -c a.toml").unwrap().command,
            Command::Check(ConfigFile { config })
        );
        assert_eq!(
            read("nightlight run").unwrap().command,
            Command::Run(ConfigFile { config: None })
        );
    }

    #[test]
    fn usage_errors_exit_with_64_and_help_with_0() {
        for line in [
            "nightlight",
            "nightlight dance",
            "nightlight run --confg a",
            "nightlight run --config",
            "nightlight demo --broker localhost",
        ] {
            assert_eq!(exit_of(&read(line).unwrap_err()), Exit::Usage, "{line}");
        }
        for line in [
            "nightlight --help",
            "nightlight -V",
            "nightlight run --help",
        ] {
            assert_eq!(exit_of(&read(line).unwrap_err()), Exit::Done, "{line}");
        }
    }

    fn server(line: &str) -> Result<server::Settings, String> {
        match read(line).map_err(|error| error.to_string())?.command {
            Command::Server(server) => server.settings(),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_server_has_defaults_and_groups() {
        let settings = server("nightlight server").unwrap();
        assert_eq!(settings.broker.url(), "mqtt://localhost:1883");
        assert_eq!(settings.devices, Devices::All);
        assert_eq!(settings.topics.acks.of("pi"), "pi/acks");
        let settings = server("nightlight server --group hall=a,b --group yard=c").unwrap();
        assert_eq!(settings.groups[0].members, ["a", "b"]);
        assert_eq!(settings.groups[1].name, "yard");
    }

    #[test]
    fn a_server_that_cannot_be_meant_is_refused() {
        for line in [
            "--group hall",
            "--group =a",
            "--group hall=a,",
            "--group hall=a,a",
            "--group hall=a --group yard=a",
            "--group hall=a --device a",
            "--device a/b",
            "--on-below dark",
            "--on-below NaN",
            "--password-file f",
            "--status-topic a/#",
            "--acks-topic acks",
        ] {
            let line = format!("nightlight server {line}");
            assert!(server(&line).is_err(), "{line}");
        }
    }
}
