//! The command line: which commands there are, what they take, what the program's exit codes mean.
//!
//! Parses and carries out nothing; `main` does what the result says.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  nightlight check                      look at /etc/nightlight/nightlight.toml
  nightlight run --config my.toml       run with a file of your own
  NIGHTLIGHT_BROKER__URL=mqtt://hub.local nightlight run
                                        set a key without a file: [broker] url
  nightlight demo                       see it work without a Pi
  nightlight doctor                     see what is missing on this machine

Environment:
  NIGHTLIGHT_SECTION__KEY               sets a key of the configuration
  NIGHTLIGHT_LOG                        error, warn, info (default), debug or trace

Exit codes: 0 done, 64 usage, 70 software, 75 another one runs, 77 permission, 78 configuration.";

const CHECK_EXAMPLES: &str = "\
Examples:
  nightlight check
  nightlight check --config my.toml && sudo systemctl restart nightlight

Exits with 0 if `run` would start with this configuration, or with 78 and every problem named.";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  nightlight doctor
  sudo nightlight doctor --config my.toml

Changes nothing. Exits with 0 if nothing fails, whatever is warned of; else with 78 (the configuration is
wrong), 77 (a right is missing, also at the broker) or 70 (anything else), the first of these that applies.";

const DRILL_EXAMPLES: &str = "\
Examples:
  sudo nightlight drill
  sudo nightlight drill --seconds 120 --kill --report report.json

Needs the running service, and nftables. Whatever becomes of the drill, the way to the broker is mended: when it
ends, when it is killed, and by the kernel itself after a while. Exits with 0 only if the account is right.";

const DEMO_EXAMPLES: &str = "\
Examples:
  nightlight demo
  nightlight demo --broker mqtt://test.local
  nightlight demo --trace evening.csv
  nightlight demo --scenario hands-on            everything is in your hands: page and keys
  nightlight demo --scenario all --report all.html";

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
    /// Another daemon runs with the same state folder; trying again later may help (EX_TEMPFAIL).
    Running = 75,
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
    /// Cut the running service's way to the broker for a while, watch it, and count what arrives
    #[command(after_help = DRILL_EXAMPLES)]
    Drill(Drill),
    /// Check the configuration and say what the daemon would do with it
    #[command(after_help = CHECK_EXAMPLES)]
    Check(ConfigFile),
    /// Show what the running daemon sees and does, and why the LED is as it is
    Status(Status),
    /// Look into the backlog of a daemon that does not run
    #[command(subcommand)]
    Backlog(Backlog),
    /// Look at this machine: sensor, LED, broker, clock, disk, service, and what to do about each
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(ConfigFile),
    /// Read the configured sensor
    #[command(subcommand)]
    Sensor(Sensor),
    /// Switch the configured LED by hand
    #[command(subcommand)]
    Led(Led),
}

/// What to do with the sensor.
#[derive(Debug, Subcommand, PartialEq)]
pub enum Sensor {
    /// Print the light, its unit and how long the reading took
    Read(SensorRead),
}

/// How to read the sensor.
#[derive(Debug, Args, PartialEq)]
pub struct SensorRead {
    /// The configuration
    #[command(flatten)]
    pub file: ConfigFile,
    /// Again and again, every sensor.interval, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
}

/// What to do with the LED.
#[derive(Debug, Subcommand, PartialEq)]
pub enum Led {
    /// Switch it on
    On(ConfigFile),
    /// Switch it off
    Off(ConfigFile),
    /// Let it blink for five seconds, then leave it as it was
    Blink(ConfigFile),
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
    /// Again and again, every second, until Ctrl-C; with --json a line each
    #[arg(short, long)]
    pub watch: bool,
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
    /// One scenario in place of the story
    #[arg(long, value_name = "NAME", value_enum, conflicts_with = "trace")]
    pub scenario: Option<Scenario>,
    /// Write plot, events and account of the run into this file, which needs no other
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Be the device of a demonstration whose files are in this folder; `demo` starts itself so
    #[arg(long, value_name = "DIR", hide = true)]
    pub agent: Option<PathBuf>,
}

/// How to drill.
#[derive(Debug, Args, PartialEq)]
pub struct Drill {
    /// The configuration of the service
    #[command(flatten)]
    pub file: ConfigFile,
    /// The way is cut for at least so many seconds
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Kill the service (SIGKILL) in the middle
    #[arg(long)]
    pub kill: bool,
    /// What the machine is, what happened when, and the account; without names, addresses and secrets
    #[arg(long, value_name = "FILE.json", default_value = "report.json")]
    pub report: PathBuf,
}

/// What can be played, each with its account at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// The cable is pulled, it gets dark, the cable is back
    Cable,
    /// The power is cut in an outage, and again in the middle of the replay
    Power,
    /// The server is killed while the broker lives, then the broker
    Server,
    /// Commands that are late, repeated or kept come all at once
    StaleCommands,
    /// The backlog is full, and what is given up is told
    Full,
    /// A flood of commands, a link that flaps, the broker killed, the power cut
    Storm,
    /// Each of these, one after the other
    All,
    /// No story: cause what you like, by the page or by keys
    HandsOn,
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
}
