//! The server's configuration: defaults, a TOML file and the environment in, a checked [`Config`] out.
//!
//! - `keys`: every key and its default
//! - `check`: what values may be, and what fits together; `rules`: those of the decisions
//! - nightlight-common's `config`: which layer a value comes from, and whether it is of the right kind

mod check;
mod keys;
mod rules;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use nightlight_common::config::{Broker, Layers, on_one_line, values};

use crate::decision::Group;
use crate::rules::{Rule, Rules};
use crate::store::Database;
use crate::topics::{Devices, Topics};
use crate::web::Web;

/// Read when the command line names no file; need not exist.
pub const DEFAULT_FILE: &str = "/etc/nightlight-server/nightlight-server.toml";

/// The configuration, checked: every value is one that the program can run with.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to reach the broker; the client id names the session that the broker keeps.
    pub broker: Broker,
    /// Where records are kept.
    pub database: Database,
    /// Records are deleted this long after they were received; none: never.
    pub keep: Option<Duration>,
    /// The page, if there is to be one.
    pub web: Option<Web>,
    /// Whom to serve.
    pub devices: Devices,
    /// More are refused.
    pub max_devices: usize,
    /// The names of the topics.
    pub topics: Topics,
    /// Where to say `online` and `offline`.
    pub status_topic: String,
    /// Accounts are published below it.
    pub account_topic: String,
    /// The shared subscription, where several servers divide the records.
    pub shared: Option<String>,
    /// When LEDs are on.
    pub rules: Rules,
    /// How long a command holds, at least.
    pub lease: Duration,
    /// How long a command may be on its way.
    pub expiry: Duration,
    /// Devices that decide together.
    pub groups: Vec<Group>,
    /// What works but may not be meant; a line each, for a person.
    pub warnings: Vec<String>,
}

/// Why there is no configuration: every problem that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// A line each: where, which key, what is wrong, what to do. Never empty.
    pub problems: Vec<String>,
}

impl Config {
    /// Reads the layers: defaults, the file, then the variables `NIGHTLIGHT_SERVER_SECTION__KEY` of `env`.
    ///
    /// Without `file`, [`DEFAULT_FILE`] is read if it exists. `env` is the whole environment.
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
                let name = on_one_line(&name.display().to_string());
                Err(ConfigError {
                    problems: vec![format!(
                        "{name}: cannot be read: {error}; check the path, its rights, and that it is UTF-8"
                    )],
                })
            }
        }
    }

    fn from_layers(
        file: Option<(&Path, &str)>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::gather(&keys::SCHEMA, file, HashMap::from_iter(env));
        let config = check::check(&mut layers);
        let problems: Vec<_> = layers
            .problems
            .iter()
            .map(|line| on_one_line(line))
            .collect();
        match (config, problems.is_empty()) {
            (Some(config), true) => Ok(config),
            _ => Err(ConfigError { problems }),
        }
    }

    /// What the server would do, for a person.
    pub fn summary(&self) -> String {
        let mut own: Vec<_> = self.rules.own.iter().collect();
        own.sort_by_key(|(name, _)| *name);
        let own: Vec<String> = own
            .into_iter()
            .map(|(name, rule)| format!("  rule      {name}: {}\n", rule_in_words(rule)))
            .collect();
        let groups: Vec<String> = self
            .groups
            .iter()
            .map(|group| format!("  group     {}: {}\n", group.name, group.members.join(", ")))
            .collect();
        format!(
            "  broker    {} as {}\n  database  {}, records are kept {}\n  devices   {}, {} at most\n  LEDs      {}; a command holds {}\n{}{}  status    {}\n  page      {}\n",
            self.broker.url(),
            self.broker.client_id,
            self.database.address,
            self.keep
                .map_or_else(|| "forever".to_owned(), values::in_words),
            self.devices.filter(),
            self.max_devices,
            rule_in_words(&self.rules.usual),
            values::in_words(self.lease),
            own.concat(),
            groups.concat(),
            self.status_topic,
            self.web.as_ref().map_or_else(
                || "none".to_owned(),
                |web| format!("http://{}/", web.listen)
            ),
        )
    }
}

fn rule_in_words(rule: &Rule) -> String {
    let threshold = rule.threshold;
    let mut words = format!(
        "on below {}, off above {}",
        threshold.on_below, threshold.off_above
    );
    if let Some(window) = &rule.window {
        let zone = window.zone.iana_name().unwrap_or("local time");
        let (from, to) = (window.from.strftime("%H:%M"), window.to.strftime("%H:%M"));
        words.push_str(&format!(", from {from} to {to} ({zone})"));
    }
    words
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let env = env
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Config::from_layers(Some((Path::new("x.toml"), text)), env)
    }

    #[test]
    fn the_shipped_file_is_the_default() {
        let shipped = load(include_str!("../../config/nightlight-server.toml"), &[]).unwrap();
        let none = load("", &[]).unwrap();
        assert_eq!(shipped.summary(), none.summary());
        assert_eq!(none.broker.client_id, "nightlight-server");
        assert_eq!(none.topics.acks.of("pi"), "pi/acks");
        assert!(none.warnings.is_empty(), "{:?}", none.warnings);
    }

    #[test]
    fn groups_come_from_the_file_and_the_environment() {
        let config = load(
            "[groups]\nhall = [\"a\", \"b\"]\nyard = [\"c\"]\n",
            &[("NIGHTLIGHT_SERVER_GROUPS__YARD", "d, e")],
        );
        let groups = config.unwrap().groups;
        assert_eq!(
            (groups[0].name.as_str(), &groups[0].members[..]),
            ("hall", &["a".into(), "b".into()][..])
        );
        assert_eq!(groups[1].members, ["d", "e"]);
    }

    #[test]
    fn rules_take_what_they_leave_out_from_control() {
        let text = "[control]\noff_above = 400.0\nfrom = \"18:00\"\nto = \"06:30\"\ntime_zone = \"UTC\"\n\
                    [groups]\nhall = [\"a\", \"b\"]\n[rules.hall]\non_below = 200\n\
                    [rules.\"pi.7\"]\nfrom = \"08:00\"\ntime_zone = \"Europe/Berlin\"\n";
        let env = ("NIGHTLIGHT_SERVER_RULES__HALL__OFF_ABOVE", "250.5");
        let config = load(text, &[env]).unwrap();
        let summary = config.summary();
        for line in [
            "LEDs      on below 300, off above 400, from 18:00 to 06:30 (UTC);",
            "rule      hall: on below 200, off above 250.5, from 18:00 to 06:30 (UTC)\n",
            "rule      pi.7: on below 300, off above 400, from 08:00 to 06:30 (Europe/Berlin)\n",
        ] {
            assert!(summary.contains(line), "{summary}");
        }
        assert_eq!(config.rules.of("b", Some("hall")).threshold.on_below, 200.0);
    }

    #[test]
    fn every_problem_is_named_with_what_to_do() {
        for (text, what) in [
            ("[groups]\nhall = 3\n", "groups.hall: is no list of names"),
            (
                "[groups]\nhall = [\"a/b\"]\n",
                "groups.hall: \"a/b\" is no device id",
            ),
            (
                "[groups]\nhall = [\"a\", \"a\"]\n",
                "groups: a is in a group twice",
            ),
            (
                "[groups]\nhall = [\"a\"]\nyard = [\"a\"]\n",
                "groups: a is in a group twice",
            ),
            ("[groups]\nhall = []\n", "groups.hall: has no members"),
            (
                "[groups]\nhall = [\"a\"]\n[devices]\nid = \"a\"\n",
                "devices.id: a group needs all",
            ),
            ("[web]\nlisten = \"8081\"\n", "web.listen: is no address"),
            (
                "[web]\nlisten = \"0.0.0.0:8081\"\n",
                "web.listen: 0.0.0.0:8081 can be reached from elsewhere",
            ),
            (
                "[web]\ntoken_file = \"/no/such/file\"\n",
                "web.token_file: /no/such/file cannot be read",
            ),
            ("[broker]\nshared = \"a/b\"\n", "broker.shared: is no name"),
            (
                "[broker]\nshared = \"lights\"\n",
                "broker.shared: needs a database that several servers can reach",
            ),
            (
                "[broker]\nshared = \"lights\"\nclient_id = \"a/b\"\n",
                "broker.client_id: is part of a topic",
            ),
            ("[devices]\nid = \"a/b\"\n", "x.toml: devices.id"),
            ("[control]\non_below = 400.0\n", "x.toml: control.on_below"),
            (
                "[control]\nfrom = \"18:00\"\n",
                "x.toml: control.to: is empty",
            ),
            (
                "[control]\nfrom = \"dusk\"\nto = \"06:00\"\n",
                "x.toml: control.from: \"dusk\" is no time of day",
            ),
            (
                "[control]\nfrom = \"18:00\"\nto = \"18:00\"\n",
                "x.toml: control.to: is the same as",
            ),
            (
                "[control]\ntime_zone = \"Mars/Olympus\"\n",
                "x.toml: control.time_zone: \"Mars/Olympus\" is no time zone",
            ),
            (
                "[rules.hall]\non_below = 400\n",
                "rules.hall.on_below: 400 is above rules.hall.off_above, 350",
            ),
            (
                "[rules.hall]\non_bellow = 1\n",
                "x.toml: rules.hall.on_bellow: unknown key; there are: on_below,",
            ),
            ("[rules]\nhall = 3\n", "x.toml: rules.hall: is no table"),
            (
                "[rules.hall]\non_below = \"dark\"\n",
                "rules.hall.on_below: is no number",
            ),
            (
                "[rules.hall]\nfrom = \"25:00\"\nto = \"06:00\"\n",
                "rules.hall.from: \"25:00\" is no time of day",
            ),
            ("[control]\nlease = \"25h\"\n", "x.toml: control.lease"),
            ("[topics]\nacks = \"acks\"\n", "x.toml: topics.acks"),
            (
                "[topics]\nacks = \"{id}/commands\"\n",
                "topic of topics.commands too",
            ),
            (
                "[topics]\nserver_status = \"a/#\"\n",
                "x.toml: topics.server_status",
            ),
            (
                "[topics]\nserver_status = \"pi/status\"\n",
                "x.toml: topics.server_status",
            ),
            (
                "[database]\nurl = \"mysql://x\"\n",
                "x.toml: database.url: has an unknown scheme",
            ),
            (
                "[database]\nurl = \"postgres://u:hunter2@h/d\"\n",
                "database.password_file",
            ),
            (
                "[database]\nkeep = \"400 years ago\"\n",
                "database.keep: \"400 years ago\" is not a duration",
            ),
            ("[database]\nurl = \"sqlite://\"\n", "names no file"),
            (
                "[databse]\nurl = \"sqlite://\"\n",
                "did you mean [database]",
            ),
            ("[database]\nulr = \"sqlite://x\"\n", "did you mean \"url\""),
        ] {
            let error = load(text, &[]).map(|config| config.summary()).unwrap_err();
            let lines = error.to_string();
            assert!(lines.contains(what), "{text}: {lines}");
            assert!(!lines.contains("hunter2"), "{lines}");
        }
        let error = load(
            "[control]\nlease = 3\nexpiry = 4\n",
            &[("NIGHTLIGHT_SERVER_X__Y", "1")],
        );
        assert_eq!(
            error
                .map(|config| config.summary())
                .unwrap_err()
                .problems
                .len(),
            3
        );
    }
}
