//! Every key of the server's configuration and its default, in the order of
//! `server/config/nightlight-server.toml`. The one place for defaults: a test holds that file against it.

use nightlight_common::config::{Schema, broker};
use nightlight_common::keys;

/// The section whose keys people name: groups of devices.
pub(super) const GROUPS: &str = "groups";
/// The section with a table for each device or group that has rules of its own, and their keys.
pub(super) const RULES: &str = "rules";
pub(super) const RULE_KEYS: [&str; 5] = ["on_below", "off_above", "from", "to", "time_zone"];

/// The server's keys.
pub(super) static SCHEMA: Schema = Schema {
    prefix: "NIGHTLIGHT_SERVER",
    not_keys: &["NIGHTLIGHT_SERVER_LOG"],
    keys: ALL,
    lists: &[GROUPS, RULES],
};

/// How to reach the broker.
pub(super) static BROKER: broker::Keys = broker::Keys {
    url: &BROKER_URL,
    client_id: &BROKER_CLIENT_ID,
    username: &BROKER_USERNAME,
    password_file: &BROKER_PASSWORD_FILE,
    ca_file: &BROKER_CA_FILE,
    cert_file: &BROKER_CERT_FILE,
    key_file: &BROKER_KEY_FILE,
    keep_alive: &BROKER_KEEP_ALIVE,
    version: &BROKER_VERSION,
    session_expiry: &BROKER_SESSION_EXPIRY,
};

keys! {
    BROKER_URL = "broker.url", Text("mqtt://localhost:1883");
    BROKER_CLIENT_ID = "broker.client_id", Text("");
    BROKER_USERNAME = "broker.username", Text("");
    BROKER_PASSWORD_FILE = "broker.password_file", Text("");
    BROKER_CA_FILE = "broker.ca_file", Text("");
    BROKER_CERT_FILE = "broker.cert_file", Text("");
    BROKER_KEY_FILE = "broker.key_file", Text("");
    BROKER_KEEP_ALIVE = "broker.keep_alive", Text("30s");
    BROKER_SHARED = "broker.shared", Text("");
    BROKER_VERSION = "broker.version", Text("auto");
    BROKER_SESSION_EXPIRY = "broker.session_expiry", Text("7d");

    DATABASE_URL = "database.url", Text("sqlite:///var/lib/nightlight-server/nightlight.db");
    DATABASE_PASSWORD_FILE = "database.password_file", Text("");
    DATABASE_TIMEOUT = "database.timeout", Text("10s");
    DATABASE_KEEP = "database.keep", Text("forever");

    DEVICES_ID = "devices.id", Text("+");
    DEVICES_MAX = "devices.max", Whole(100_000);

    WEB_LISTEN = "web.listen", Text("");
    WEB_TOKEN_FILE = "web.token_file", Text("");
    WEB_HOSTS = "web.hosts", Text("");

    TOPICS_TELEMETRY = "topics.telemetry", Text("{id}/telemetry");
    TOPICS_HISTORY = "topics.history", Text("{id}/telemetry/history");
    TOPICS_EVENTS = "topics.events", Text("{id}/events");
    TOPICS_COMMANDS = "topics.commands", Text("{id}/commands");
    TOPICS_ACKS = "topics.acks", Text("{id}/acks");
    TOPICS_STATE = "topics.state", Text("{id}/state");
    TOPICS_STATUS = "topics.status", Text("{id}/status");
    TOPICS_SERVER_STATUS = "topics.server_status", Text("nightlight/server/status");

    CONTROL_ON_BELOW = "control.on_below", Number(300.0);
    CONTROL_OFF_ABOVE = "control.off_above", Number(350.0);
    CONTROL_FROM = "control.from", Text("");
    CONTROL_TO = "control.to", Text("");
    CONTROL_TIME_ZONE = "control.time_zone", Text("");
    CONTROL_LEASE = "control.lease", Text("15s");
    CONTROL_EXPIRY = "control.expiry", Text("1m");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use config::{File, FileFormat, Source, ValueKind};
    use nightlight_common::config::Default;

    use super::*;

    const SHIPPED: &str = include_str!("../../config/nightlight-server.toml");

    #[test]
    fn the_shipped_file_has_every_key_with_its_default_and_no_other() {
        let sections = File::from_str(SHIPPED, FileFormat::Toml).collect().unwrap();
        let mut shipped = BTreeMap::new();
        for (section, value) in sections {
            for (name, value) in value.into_table().unwrap() {
                let value = match value.kind {
                    ValueKind::String(text) => format!("{:?}", Default::Text(text.leak())),
                    ValueKind::I64(number) => format!("{:?}", Default::Whole(number)),
                    ValueKind::Float(number) => format!("{:?}", Default::Number(number)),
                    ValueKind::Boolean(flag) => format!("{:?}", Default::Flag(flag)),
                    other => panic!("{section}.{name} is {other:?}"),
                };
                shipped.insert(format!("{section}.{name}"), value);
            }
        }
        let in_code = ALL
            .iter()
            .map(|key| (key.path.to_string(), format!("{:?}", key.default)))
            .collect();
        assert_eq!(shipped, in_code);
    }

    #[test]
    fn the_shipped_file_keeps_the_order_of_the_code_and_says_why_of_each_key() {
        let lines: Vec<_> = SHIPPED.lines().collect();
        let mut names = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            if let Some((name, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
                assert!(lines[index - 1].starts_with("# "), "{name} has no comment");
                names.push(name);
            }
        }
        assert_eq!(names, ALL.iter().map(|key| key.name()).collect::<Vec<_>>());
    }
}
