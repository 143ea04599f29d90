//! Every key of the configuration and its default, in the order of `config/nightlight.toml`.
//!
//! The one place for defaults: the layers take them from here, and a test holds the commented file
//! against this list in both directions. What a value may be is said in `check`, not here.
//! Used by `layers` (known keys, defaults) and `check` (a name for each key, so that a slip of the
//! pen does not compile).

use nightlight_common::config::{Schema, broker};
use nightlight_common::keys;

/// The daemon's keys. The server's variables may stand in the same environment.
pub(super) static SCHEMA: Schema = Schema {
    prefix: "NIGHTLIGHT",
    not_keys: &["NIGHTLIGHT_LOG", "NIGHTLIGHT_SERVER_"],
    keys: ALL,
    lists: &[],
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
    DEVICE_ID = "device.id", Text("nightlight");

    BROKER_URL = "broker.url", Text("mqtt://localhost:1883");
    BROKER_CLIENT_ID = "broker.client_id", Text("");
    BROKER_USERNAME = "broker.username", Text("");
    BROKER_PASSWORD_FILE = "broker.password_file", Text("");
    BROKER_CA_FILE = "broker.ca_file", Text("");
    BROKER_CERT_FILE = "broker.cert_file", Text("");
    BROKER_KEY_FILE = "broker.key_file", Text("");
    BROKER_KEEP_ALIVE = "broker.keep_alive", Text("30s");
    BROKER_VERSION = "broker.version", Text("auto");
    BROKER_SESSION_EXPIRY = "broker.session_expiry", Text("7d");
    BROKER_SPREAD = "broker.spread", Text("500ms");

    TOPICS_TELEMETRY = "topics.telemetry", Text("{id}/telemetry");
    TOPICS_HISTORY = "topics.history", Text("{id}/telemetry/history");
    TOPICS_EVENTS = "topics.events", Text("{id}/events");
    TOPICS_COMMANDS = "topics.commands", Text("{id}/commands");
    TOPICS_RESULTS = "topics.results", Text("{id}/commands/result");
    TOPICS_ACKS = "topics.acks", Text("{id}/acks");
    TOPICS_STATE = "topics.state", Text("{id}/state");
    TOPICS_STATUS = "topics.status", Text("{id}/status");

    PAYLOAD_FORMAT = "payload.format", Text("nightlight");

    SENSOR_DRIVER = "sensor.driver", Text("grove-hat");
    SENSOR_BUS = "sensor.bus", Whole(1);
    // 0 is the driver's own address (0x04 for the Grove Base HAT): one form for file and environment.
    SENSOR_ADDRESS = "sensor.address", Whole(0);
    SENSOR_CHANNEL = "sensor.channel", Whole(0);
    SENSOR_PATH = "sensor.path", Text("");
    SENSOR_SPEED = "sensor.speed", Number(1.0);
    SENSOR_INTERVAL = "sensor.interval", Text("5s");
    SENSOR_FROZEN_AFTER = "sensor.frozen_after", Text("0s");

    LED_DRIVER = "led.driver", Text("gpio");
    LED_PIN = "led.pin", Whole(5);
    LED_ACTIVE_LOW = "led.active_low", Flag(false);
    LED_PATH = "led.path", Text("");
    LED_FAIL_SAFE = "led.fail_safe", Text("keep");
    LED_AT_EXIT = "led.at_exit", Text("keep");

    CONTROL_MODE = "control.mode", Text("auto");
    CONTROL_ON_BELOW = "control.on_below", Number(300.0);
    CONTROL_OFF_ABOVE = "control.off_above", Number(350.0);
    CONTROL_HOLD = "control.hold", Text("1s");
    CONTROL_LEASE = "control.lease", Text("15s");
    CONTROL_SERVER_STATUS = "control.server_status", Text("");

    TELEMETRY_INTERVAL = "telemetry.interval", Text("0s");
    TELEMETRY_DEADBAND = "telemetry.deadband", Number(0.0);
    TELEMETRY_KEEP = "telemetry.keep", Text("all");

    COMMANDS_ORDER = "commands.order", Text("latest");
    COMMANDS_GAP_WAIT = "commands.gap_wait", Text("5s");
    COMMANDS_ON = "commands.on", Text("");
    COMMANDS_OFF = "commands.off", Text("");
    COMMANDS_ALLOW_REBOOT = "commands.allow_reboot", Flag(false);
    COMMANDS_ACCEPT_RETAINED = "commands.accept_retained", Flag(false);

    BACKLOG_PATH = "backlog.path", Text("/var/lib/nightlight");
    BACKLOG_DURABLE_WITHIN = "backlog.durable_within", Text("1s");
    BACKLOG_MAX_RECORDS = "backlog.max_records", Whole(10_000_000);
    BACKLOG_MAX_BYTES = "backlog.max_bytes", Whole(536_870_912);
    BACKLOG_ON_FULL = "backlog.on_full", Text("drop-oldest");

    DELIVERY_QOS = "delivery.qos", Whole(1);
    DELIVERY_CONFIRM = "delivery.confirm", Text("broker");
    DELIVERY_ACK_TIMEOUT = "delivery.ack_timeout", Text("30s");
    DELIVERY_WINDOW = "delivery.window", Whole(16);
    DELIVERY_REPLAY_RATE = "delivery.replay_rate", Number(200.0);
    DELIVERY_REPLAY_JITTER = "delivery.replay_jitter", Text("2s");
    DELIVERY_BATCH = "delivery.batch", Whole(1);
    DELIVERY_REQUIRE_LISTENER = "delivery.require_listener", Flag(false);

    WEB_LISTEN = "web.listen", Text("");
    WEB_TOKEN_FILE = "web.token_file", Text("");

    HOME_ASSISTANT_DISCOVERY = "home_assistant.discovery", Flag(false);
    HOME_ASSISTANT_PREFIX = "home_assistant.prefix", Text("homeassistant");
    HOME_ASSISTANT_STATUS_TOPIC = "home_assistant.status_topic", Text("homeassistant/status");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use config::{File, FileFormat, Source, ValueKind};

    use nightlight_common::config::Default;

    use super::*;

    const SHIPPED: &str = include_str!("../../config/nightlight.toml");

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

    #[test]
    fn variables_are_named_as_documented() {
        assert_eq!(SCHEMA.variable(BROKER_URL.path), "NIGHTLIGHT_BROKER__URL");
        assert_eq!(
            SCHEMA.variable(CONTROL_ON_BELOW.path),
            "NIGHTLIGHT_CONTROL__ON_BELOW"
        );
    }
}
