//! What Home Assistant is told of this device: its MQTT discovery message in the device form.
//!
//! Data in, one JSON text out; when it goes out, and when it is taken back, is for `controller::home_assistant`.
//! Every entity shows a field of `state`, but the light of the sensor, which comes with each reading, and the link,
//! which is the status topic. Null in a field is "unknown" in Home Assistant: nothing is made up on the way.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::delivery::Topic;
use crate::lighting::{Authority, Mode};
use crate::link::{DeviceInfo, Inbound, Sent};
use crate::time::ClockState;

/// `state` comes every minute: after this many seconds without one nothing in it is known any more.
const STATE_EXPIRES_S: u64 = 180;
/// A reading is late after three intervals and this, in seconds.
const READING_SLACK_S: u64 = 10;
/// Bounds of the thresholds, in lux: direct sunlight is 120,000.
const MAX_LUX: u64 = 200_000;
/// The same where nobody knows the unit.
const MAX_LIGHT: u64 = 1_000_000;

/// What the configuration settles of discovery.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscoverySettings {
    /// The device id as part of a topic: letters, digits, `-` and `_` alone.
    pub node: String,
    /// Home Assistant's status topic is the server's too, so that `Input::ServerStatus` brings it.
    pub status_is_servers: bool,
    /// Where a reading has the light: `light`, or below `values`.
    pub light: &'static str,
}

/// How often a reading comes, as far as that can be promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cadence {
    /// Between two readings.
    pub(crate) interval: Duration,
    /// Readings in steady light are left out, so that a long silence says nothing.
    pub(crate) is_sparse: bool,
}

/// The message, for `homeassistant/device/NODE/config`.
pub(crate) fn announcement(
    settings: &DiscoverySettings,
    device: &DeviceInfo,
    version: &str,
    cadence: Cadence,
) -> Vec<u8> {
    let topic = |sent| device.topics.get(&sent).cloned().unwrap_or_default();
    let telemetry = topic(Sent::Publish(Topic::Telemetry));
    let state = topic(Sent::Publish(Topic::State));
    let status = topic(Sent::Publish(Topic::Status));
    let id = format!("nightlight_{}", settings.node);
    let entities = [
        ("light", led()),
        (
            "illuminance",
            illuminance(settings, device, &telemetry, &state, &status, cadence),
        ),
        ("mode", mode()),
        ("on_below", threshold("on_below", "On below", device)),
        ("off_above", threshold("off_above", "Off above", device)),
        ("read_now", read_now()),
        ("link", link(&status)),
        ("by", decider()),
        ("why", reason()),
        (
            "backlog",
            records(field("backlog", "Backlog"), "measurement"),
        ),
        (
            "oldest",
            seconds(field("backlog_oldest_age_s", "Oldest record")),
        ),
        (
            "lost",
            records(field("lost", "Lost records"), "total_increasing"),
        ),
        ("last_outage", last_outage(&state)),
        ("clock", clock()),
        ("written", written()),
    ];
    let components = entities.into_iter().map(|(name, mut entity)| {
        entity.insert("uniq_id".into(), format!("{id}_{name}").into());
        (name.to_owned(), Value::Object(entity))
    });
    let message = json!({
        "dev": {
            "ids": [id],
            "name": device.device,
            "mf": "nightlight",
            "mdl": device.sensor,
            "sw": version,
        },
        "o": { "name": "nightlight", "sw": version },
        // What an entity does not name itself.
        "avty": [{ "t": status }],
        "stat_t": state,
        "cmd_t": topic(Sent::Subscribe(Inbound::Commands)),
        "qos": 1,
        "cmps": components.collect::<Map<String, Value>>(),
    });
    message.to_string().into_bytes()
}

type Entity = Map<String, Value>;

/// The LED; null in `led_on` is an LED that nobody has seen.
fn led() -> Entity {
    entity(json!({
        "p": "light",
        "name": null,
        "schema": "template",
        "cmd_on_tpl": r#"{"led_on":true}"#,
        "cmd_off_tpl": r#"{"led_on":false}"#,
        "stat_tpl": "{{ {true: 'on', false: 'off'}.get(value_json.led_on) }}",
    }))
}

/// Lux and its device class only where the driver measures lux. It is not available while the sensor fails.
fn illuminance(
    settings: &DiscoverySettings,
    device: &DeviceInfo,
    telemetry: &str,
    state: &str,
    status: &str,
    cadence: Cadence,
) -> Entity {
    let sensor_ok = "{{ 'online' if value_json.sensor_ok else 'offline' }}";
    let mut sensor = entity(json!({
        "p": "sensor",
        "name": "Light",
        "stat_t": telemetry,
        "val_tpl": format!("{{{{ value_json.{} }}}}", settings.light),
        "stat_cla": "measurement",
        "avty": [{ "t": status }, { "t": state, "val_tpl": sensor_ok }],
        "avty_mode": "all",
    }));
    if measures_lux(device) {
        sensor.insert("name".into(), "Illuminance".into());
        sensor.insert("dev_cla".into(), "illuminance".into());
        sensor.insert("unit_of_meas".into(), "lx".into());
    }
    if !cadence.is_sparse {
        let late = cadence.interval * 3 + Duration::from_secs(READING_SLACK_S);
        sensor.insert("exp_aft".into(), late.as_secs().into());
    }
    sensor
}

fn mode() -> Entity {
    let modes = [Mode::Auto, Mode::Local, Mode::Remote].map(Mode::name);
    entity(json!({
        "p": "select",
        "name": "Mode",
        "ent_cat": "config",
        "ops": modes,
        "val_tpl": "{{ value_json.mode }}",
        "cmd_tpl": r#"{"command":"set","mode":"{{ value }}","persist":true}"#,
    }))
}

fn threshold(key: &str, name: &str, device: &DeviceInfo) -> Entity {
    let command = format!(r#"{{"command":"set","{key}":{{{{ value }}}},"persist":true}}"#);
    let mut number = entity(json!({
        "p": "number",
        "name": name,
        "ent_cat": "config",
        "mode": "box",
        "min": 0,
        "max": if measures_lux(device) { MAX_LUX } else { MAX_LIGHT },
        "step": 0.1,
        "val_tpl": format!("{{{{ value_json.{key} }}}}"),
        "cmd_tpl": command,
    }));
    if measures_lux(device) {
        number.insert("unit_of_meas".into(), "lx".into());
    }
    number
}

fn read_now() -> Entity {
    entity(json!({
        "p": "button",
        "name": "Read now",
        "pl_prs": r#"{"command":"read-now"}"#,
    }))
}

/// The status topic itself, so that it says "disconnected" where the others are not available.
fn link(status: &str) -> Entity {
    diagnostic(json!({
        "p": "binary_sensor",
        "name": "Link",
        "dev_cla": "connectivity",
        "stat_t": status,
        "pl_on": "online",
        "pl_off": "offline",
        "avty": [],
    }))
}

fn decider() -> Entity {
    let by = [
        Authority::Starting,
        Authority::Fallback,
        Authority::Remote { until: None },
        Authority::SensorFault,
    ];
    one_of(field("by", "Decides"), &by.map(Authority::by))
}

/// Home Assistant takes no state of more than 255 characters.
fn reason() -> Entity {
    let mut why = field("why", "Why");
    why.insert("val_tpl".into(), "{{ value_json.why[:255] }}".into());
    why
}

fn clock() -> Entity {
    let states = [
        ClockState::Synced,
        ClockState::Corrected,
        ClockState::Unsynced,
    ];
    one_of(field("clock", "Clock"), &states.map(ClockState::name))
}

/// How long it was; what else is known of it are attributes.
fn last_outage(state: &str) -> Entity {
    let mut outage = seconds(field("last_outage", "Last outage"));
    let length = "{{ (value_json.last_outage or {}).get('seconds') }}";
    outage.insert("val_tpl".into(), length.into());
    outage.insert("json_attr_t".into(), state.into());
    let all = "{{ (value_json.last_outage or {}) | tojson }}";
    outage.insert("json_attr_tpl".into(), all.into());
    outage
}

fn written() -> Entity {
    let mut written = field("written_today_bytes", "Written today");
    written.insert("dev_cla".into(), "data_size".into());
    written.insert("unit_of_meas".into(), "B".into());
    written.insert("stat_cla".into(), "total_increasing".into());
    written
}

/// A field of `state` as it is.
fn field(key: &str, name: &str) -> Entity {
    diagnostic(json!({
        "p": "sensor",
        "name": name,
        "val_tpl": format!("{{{{ value_json.{key} }}}}"),
        "exp_aft": STATE_EXPIRES_S,
    }))
}

fn records(mut sensor: Entity, class: &str) -> Entity {
    sensor.insert("unit_of_meas".into(), "records".into());
    sensor.insert("stat_cla".into(), class.into());
    sensor
}

fn seconds(mut sensor: Entity) -> Entity {
    sensor.insert("dev_cla".into(), "duration".into());
    sensor.insert("unit_of_meas".into(), "s".into());
    sensor
}

fn one_of(mut sensor: Entity, options: &[&str]) -> Entity {
    sensor.insert("dev_cla".into(), "enum".into());
    sensor.insert("ops".into(), options.into());
    sensor
}

fn diagnostic(value: Value) -> Entity {
    let mut entity = entity(value);
    entity.insert("ent_cat".into(), "diagnostic".into());
    entity
}

fn entity(value: Value) -> Entity {
    match value {
        Value::Object(entity) => entity,
        _ => Map::new(),
    }
}

fn measures_lux(device: &DeviceInfo) -> bool {
    device.unit.as_deref() == Some("lx")
}
