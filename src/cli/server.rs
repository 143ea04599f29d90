//! The command line of the reference server: its options, their defaults, and the settings they make.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::broker_url;
use crate::config;
use crate::config::url::BrokerUrl;
use crate::server::{self, Devices, Group, Pattern, Topics, is_device_id};

pub(super) const EXAMPLES: &str = "\
Examples:
  nightlight server                     serve every device at mqtt://localhost:1883
  nightlight server --device pi-1 --on-below 250
  nightlight server --group hall=pi-1,pi-2,pi-3
                                        the majority of three decides for all three
  nightlight server --account           what was received, twice, lost and is missing
  pkill -USR1 -f '^[^ ]*nightlight server'
                                        have a running server print that

A device that is to wait for the acks of this server has delivery.confirm = \"server\". Accounts are
published, retained, beside the status topic: nightlight/server/account/ID.";

/// A silent link is found dead after two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

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
                keep_alive: KEEP_ALIVE,
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
    use std::ffi::OsString;

    use super::super::{Cli, Command};
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(line.split(' ').map(OsString::from))
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
