//! The command line: which commands there are, what they take, what the exit codes mean.
//!
//! Parses and carries out nothing; `main` does what the result says.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::books::Form;
use crate::decision::Subject;
use crate::store::read::Span;

const EXAMPLES: &str = "\
Examples:
  nightlight-server check                look at /etc/nightlight-server/nightlight-server.toml
  nightlight-server run                  serve every device at mqtt://localhost:1883
  NIGHTLIGHT_SERVER_DATABASE__URL=sqlite://try.db nightlight-server run
                                         set a key without a file: [database] url
  nightlight-server account              what was received, twice, lost and is missing
  nightlight-server export --device pi-1 --from 2026-11-20T00:00:00Z --csv > pi-1.csv
  kill -USR1 $(pidof nightlight-server)  have a running server print the account

A device that is to wait for the acks of this server has delivery.confirm = \"server\".

Environment:
  NIGHTLIGHT_SERVER_SECTION__KEY         sets a key of the configuration
  NIGHTLIGHT_SERVER_LOG                  error, warn, info (default), debug or trace

Exit codes: 0 done, 64 usage, 70 software, 77 permission, 78 configuration.";

/// How the program ends; systemd and scripts read it (see sysexits.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The command line is wrong.
    Usage = 64,
    /// Something did not work that should, and trying again may help.
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

/// The command line.
#[derive(Debug, Parser, PartialEq)]
#[command(
    name = "nightlight-server",
    version,
    about = "The other end of nightlight: records into SQL, acks, decisions for many",
    after_help = EXAMPLES,
    arg_required_else_help = false
)]
pub struct Cli {
    /// Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand, PartialEq)]
pub enum Command {
    /// Serve until told to stop (SIGTERM, SIGINT)
    Run(Run),
    /// Check the configuration and say what the server would do with it
    Check,
    /// Look at configuration, broker, database and clock, and what to do about each
    Doctor,
    /// Print what was received, twice, lost and is missing: each device and each of its runs
    Account(Account),
    /// Print records, device by device and in order
    Export(Export),
    /// Print each device, when it was last heard of, and its account
    Devices(Devices),
    /// Switch an LED by hand; it holds until told otherwise
    Switch(Switch),
    /// Delete all that is known of a device
    Forget(Forget),
    /// Take the records that `export` or the earlier `nightlight server --export` wrote
    Import(Import),
}

/// How to serve.
#[derive(Debug, Default, Args, PartialEq)]
pub struct Run {
    /// Where the page, the API and the metrics are, such as 127.0.0.1:8081; the same as web.listen
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Divide the records with other servers of this name and one PostgreSQL; the same as broker.shared
    #[arg(long, value_name = "NAME")]
    pub shared: Option<String>,
}

impl Run {
    /// What is set here, as variables of the environment: they win over the file.
    pub fn variables(&self) -> Vec<(String, String)> {
        let given = [
            ("NIGHTLIGHT_SERVER_WEB__LISTEN", &self.listen),
            ("NIGHTLIGHT_SERVER_BROKER__SHARED", &self.shared),
        ];
        given
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
            .collect()
    }
}

/// Whose account.
#[derive(Debug, Args, PartialEq)]
pub struct Account {
    /// Only this device
    #[arg(long, value_name = "ID")]
    pub device: Option<String>,
}

/// Which records, and how.
#[derive(Debug, Args, PartialEq)]
pub struct Export {
    /// Only of this device
    #[arg(long, value_name = "ID")]
    pub device: Option<String>,
    /// Made at this time or later, such as 2026-11-20T17:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub from: Option<i64>,
    /// Made before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub to: Option<i64>,
    /// Comma separated values in place of lines of JSON
    #[arg(long)]
    pub csv: bool,
}

/// How to print devices.
#[derive(Debug, Args, PartialEq)]
pub struct Devices {
    /// A JSON object each
    #[arg(long)]
    pub json: bool,
}

/// Whose LED to switch, and how.
#[derive(Debug, Args, PartialEq)]
pub struct Switch {
    /// The device, or the group with --group
    #[arg(value_name = "ID")]
    pub name: String,
    /// auto leaves it to the rules again
    #[arg(value_name = "TO")]
    pub to: SwitchTo,
    /// All devices of a group
    #[arg(long)]
    pub group: bool,
}

/// How to switch.
#[derive(Debug, Clone, Copy, clap::ValueEnum, PartialEq, Eq)]
pub enum SwitchTo {
    /// The LED is on
    On,
    /// The LED is off
    Off,
    /// The rules decide
    Auto,
}

/// Whom to forget.
#[derive(Debug, Args, PartialEq)]
pub struct Forget {
    /// The device
    #[arg(value_name = "ID")]
    pub device: String,
}

/// What to take.
#[derive(Debug, Args, PartialEq)]
pub struct Import {
    /// The file; - is the standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

impl Switch {
    /// Whose.
    pub fn subject(&self) -> Subject {
        match self.group {
            true => Subject::Group(self.name.clone()),
            false => Subject::Device(self.name.clone()),
        }
    }

    /// What it is to be; none leaves it to the rules.
    pub fn led_on(&self) -> Option<bool> {
        match self.to {
            SwitchTo::On => Some(true),
            SwitchTo::Off => Some(false),
            SwitchTo::Auto => None,
        }
    }
}

impl Export {
    /// Which records.
    pub fn span(&self) -> Span {
        Span {
            device: self.device.clone(),
            from_ms: self.from,
            to_ms: self.to,
        }
    }

    /// How.
    pub fn form(&self) -> Form {
        match self.csv {
            true => Form::Csv,
            false => Form::Lines,
        }
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

fn time(text: &str) -> Result<i64, String> {
    let time: Result<jiff::Timestamp, _> = text.parse();
    time.map(jiff::Timestamp::as_millisecond)
        .map_err(|_| "is no time; write one such as 2026-11-20T17:00:00Z".into())
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
    fn the_configuration_may_stand_anywhere() {
        let config = Some(PathBuf::from("a.toml"));
        for line in [
            "nightlight-server -c a.toml run",
            "nightlight-server run --config a.toml",
        ] {
            let cli = read(line).unwrap();
            assert_eq!(
                (cli.config, cli.command),
                (config.clone(), Command::Run(Run::default())),
                "{line}"
            );
        }
        let cli = read("nightlight-server export --from 1970-01-01T00:00:01Z --csv").unwrap();
        let Command::Export(export) = cli.command else {
            panic!("no export")
        };
        assert_eq!(
            (export.span().from_ms, export.form()),
            (Some(1_000), Form::Csv)
        );
    }

    #[test]
    fn usage_errors_exit_with_64_and_help_with_0() {
        for line in [
            "nightlight-server",
            "nightlight-server dance",
            "nightlight-server forget",
            "nightlight-server switch pi-1 dim",
            "nightlight-server export --from yesterday",
        ] {
            assert_eq!(exit_of(&read(line).unwrap_err()), Exit::Usage, "{line}");
        }
        for line in ["nightlight-server --help", "nightlight-server -V"] {
            assert_eq!(exit_of(&read(line).unwrap_err()), Exit::Done, "{line}");
        }
    }
}
