//! From the layers to the checked configuration: what each value may be, and what fits together.
//!
//! Looks at the files that the configuration names, since a missing one is better told now than at
//! three in the morning; touches no device and no network. Called by `Config::load` and
//! `Config::from_toml` alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nightlight_common::config::broker::broker;
use nightlight_common::config::{Key, Layers, values};

use super::home_assistant::home_assistant;
use super::keys;
use super::page::page;
use super::topics;
use super::{
    AtExit, Backlog, Config, Led, LedDriver, OnFull, RuleOrigins, RuntimeFolder, Sensor,
    SensorDriver,
};
use crate::logic::{command, delivery, lighting, link, telemetry};

const MS: Duration = Duration::from_millis(1);
/// The sensor is not read more often.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_secs(3_600);
/// With `while-present` a command outlives the server's presence by this.
/// Home Assistant needs 10 s to connect again after a restart of its broker, and 5 s more to say so.
const ABSENCE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86_400);
/// A broker that takes longer to confirm a publication is given up. Not a key: nobody could tell a
/// better value, and a wrong one hides a dead link.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// 18 digits: as many as a person may mean.
const MANY: i64 = 1_000_000_000_000_000_000;

/// The configuration, as good as the layers give it; it counts only if `layers` has no problem after.
pub(super) fn check(layers: &mut Layers, file: Option<PathBuf>) -> Config {
    let device_id = topics::device_id(layers, Path::new("/"));
    let home_assistant = home_assistant(layers, &device_id);
    let (topics, server_status) = topics::topics(layers, &device_id, home_assistant.as_ref());
    let broker = broker(layers, &keys::BROKER, &device_id);
    let mut sensor = sensor(layers);
    let led = led(layers, &sensor);
    let telemetry = telemetry(layers);
    let mut lighting = lighting(
        layers,
        &telemetry,
        server_status.is_some(),
        home_assistant.is_some(),
    );
    sensor.interval = lighting.interval;
    lighting.least_interval = sensor.driver.least_interval();
    interval_suits(layers, &sensor);
    let mut config = Config {
        device_id,
        broker,
        topics,
        sensor,
        led,
        lighting,
        server_status,
        telemetry,
        commands: commands(layers),
        runtime_folder: runtime_folder(layers),
        backlog: backlog(layers),
        delivery: delivery(layers),
        web: page(layers),
        home_assistant,
        file,
        rule_origins: RuleOrigins {
            mode: layers.origin(&keys::CONTROL_MODE),
            on_below: layers.origin(&keys::CONTROL_ON_BELOW),
            off_above: layers.origin(&keys::CONTROL_OFF_ABOVE),
            interval: layers.origin(&keys::SENSOR_INTERVAL),
        },
        warnings: Vec::new(),
    };
    config.warnings = std::mem::take(&mut layers.warnings);
    config
}

fn sensor(layers: &mut Layers) -> Sensor {
    let drivers = SensorDriver::ALL.map(|driver| (driver.name(), driver));
    let driver = layers.choice(&keys::SENSOR_DRIVER, &drivers, "");
    let bus = layers.whole(&keys::SENSOR_BUS, 0..=255) as u8;
    let address = layers.whole(&keys::SENSOR_ADDRESS, 0..=0x77) as u8;
    if matches!(address, 1 | 2) {
        layers.problem(
            &keys::SENSOR_ADDRESS,
            format!("no device has the I2C address {address}; use 0x03 to 0x77, or 0 for the driver's own"),
        );
    }
    let own = driver.addresses();
    if address > 2 && !own.is_empty() && !own.contains(&address) {
        let own: Vec<_> = own.iter().map(|own| format!("{own:#04x}")).collect();
        layers.warning(
            &keys::SENSOR_ADDRESS,
            format!(
                "{address:#04x} is not where a {} is ({}): right only behind a translator of addresses; 0 looks for it",
                driver.name(),
                own.join(" or ")
            ),
        );
    }
    let channel = layers.whole(&keys::SENSOR_CHANNEL, 0..=7) as u8;
    let path = layers.path(&keys::SENSOR_PATH);
    let kind = match driver {
        SensorDriver::Iio => Some("iio"),
        SensorDriver::Trace => Some("trace"),
        _ => None,
    };
    device_file(
        layers,
        &keys::SENSOR_PATH,
        &path,
        kind,
        driver == SensorDriver::Trace,
    );
    Sensor {
        driver,
        bus,
        address: (address > 0).then_some(address),
        channel,
        path: path.unwrap_or_default(),
        speed: layers.number(&keys::SENSOR_SPEED, 0.001..=1_000_000.0),
        interval: Duration::ZERO,
    }
}

/// A sensor that is asked faster than it measures would be taken for a broken one.
fn interval_suits(layers: &mut Layers, sensor: &Sensor) {
    let least = sensor.driver.least_interval();
    if sensor.interval < least {
        if !layers.are_good(&[&keys::SENSOR_INTERVAL]) {
            return;
        }
        layers.problem(
            &keys::SENSOR_INTERVAL,
            format!(
                "{} is shorter than a measurement of a {}; use {} or more",
                values::in_words(sensor.interval),
                sensor.driver.name(),
                values::in_words(least)
            ),
        );
    }
}

fn led(layers: &mut Layers, sensor: &Sensor) -> Led {
    let drivers = [
        ("gpio", LedDriver::Gpio),
        ("gpiochip", LedDriver::Gpiochip),
        ("sysfs", LedDriver::Sysfs),
        ("simulated", LedDriver::Simulated),
    ];
    let driver = layers.choice(&keys::LED_DRIVER, &drivers, "");
    let most = match driver {
        // Other boards have more lines on a chip.
        LedDriver::Gpiochip => 255,
        _ => 27,
    };
    let pin = layers.whole(&keys::LED_PIN, 0..=most) as u8;
    let i2c_pins = match sensor.bus {
        0 => [0, 1],
        _ => [2, 3],
    };
    let shares_bus = !sensor.driver.addresses().is_empty()
        && sensor.bus <= 1
        && layers.are_good(&[&keys::SENSOR_DRIVER, &keys::SENSOR_BUS, &keys::LED_DRIVER]);
    let path = layers.path(&keys::LED_PATH);
    let is_pin = match driver {
        LedDriver::Gpio => true,
        LedDriver::Gpiochip => path.is_none(),
        LedDriver::Sysfs | LedDriver::Simulated => false,
    };
    if is_pin && shares_bus && i2c_pins.contains(&pin) {
        layers.problem(
            &keys::LED_PIN,
            format!("GPIO {pin} is a line of I2C bus {}, where the sensor is; use another pin, such as 5", sensor.bus),
        );
    }
    let kind = match driver {
        LedDriver::Sysfs => Some("sysfs"),
        LedDriver::Gpiochip if path.is_some() => Some("gpiochip"),
        _ => None,
    };
    device_file(layers, &keys::LED_PATH, &path, kind, false);
    let at_exit = [
        ("keep", AtExit::Keep),
        ("on", AtExit::On),
        ("off", AtExit::Off),
    ];
    Led {
        driver,
        pin,
        active_low: layers.flag(&keys::LED_ACTIVE_LOW),
        path: path.unwrap_or_default(),
        at_exit: layers.choice(&keys::LED_AT_EXIT, &at_exit, ""),
    }
}

/// A recording must be there now; the file of a kernel driver may still come.
fn device_file(
    layers: &mut Layers,
    key: &Key,
    path: &Option<PathBuf>,
    driver: Option<&str>,
    must_exist: bool,
) {
    match (driver, path) {
        (Some(driver), None) => layers.problem(
            key,
            format!("is empty, but driver \"{driver}\" works on a file; name it here"),
        ),
        (Some(_), Some(file)) if must_exist => {
            if let Err(error) = fs::File::open(file)
                .and_then(|file| file.metadata())
                .and_then(|data| match data.is_dir() {
                    true => Err(std::io::Error::other("it is a folder")),
                    false => Ok(()),
                })
            {
                layers.problem(
                    key,
                    format!(
                        "{} cannot be read: {error}; check the path and its rights",
                        file.display()
                    ),
                );
            }
        }
        (Some(_), Some(file)) if !file.exists() => layers.warning(
            key,
            format!(
                "{} is not there (yet); it is tried again while the daemon runs",
                file.display()
            ),
        ),
        (None, Some(_)) => {
            layers.warning(key, "is not used by this driver");
        }
        _ => {}
    }
}

fn telemetry(layers: &mut Layers) -> telemetry::TelemetrySettings {
    let keep = [
        ("all", telemetry::OutageReadings::All),
        ("latest", telemetry::OutageReadings::Latest),
    ];
    let interval = layers.duration(&keys::TELEMETRY_INTERVAL, Duration::ZERO..=DAY);
    if !interval.is_zero() && interval < SHORTEST_INTERVAL {
        layers.problem(
            &keys::TELEMETRY_INTERVAL,
            "is too short; use \"0s\" to record each reading, or 10ms to 24h",
        );
    }
    telemetry::TelemetrySettings {
        interval,
        deadband: layers.number(&keys::TELEMETRY_DEADBAND, 0.0..=f64::MAX),
        keep: layers.choice(&keys::TELEMETRY_KEEP, &keep, ""),
    }
}

fn lighting(
    layers: &mut Layers,
    telemetry: &telemetry::TelemetrySettings,
    has_server_status: bool,
    is_discovered: bool,
) -> lighting::LightingSettings {
    let modes = [
        ("auto", lighting::Mode::Auto),
        ("local", lighting::Mode::Local),
        ("remote", lighting::Mode::Remote),
    ];
    let fail_safes = [
        ("keep", lighting::FailSafe::Keep),
        ("on", lighting::FailSafe::On),
        ("off", lighting::FailSafe::Off),
    ];
    let mode = layers.choice(&keys::CONTROL_MODE, &modes, "");
    let on_below = layers.number(&keys::CONTROL_ON_BELOW, f64::MIN..=f64::MAX);
    let off_above = layers.number(&keys::CONTROL_OFF_ABOVE, f64::MIN..=f64::MAX);
    let comparable = layers.are_good(&[&keys::CONTROL_ON_BELOW, &keys::CONTROL_OFF_ABOVE]);
    if comparable && off_above < on_below {
        layers.problem(
            &keys::CONTROL_OFF_ABOVE,
            format!("{off_above} is less than control.on_below ({on_below}), and the LED would flicker; make it the same or more"),
        );
    } else if off_above == on_below {
        layers.warning(
            &keys::CONTROL_OFF_ABOVE,
            "is the same as control.on_below: at dusk the LED may change with each reading; leave a gap between them",
        );
    }
    let read_every = layers.duration(&keys::SENSOR_INTERVAL, SHORTEST_INTERVAL..=DAY);
    if !telemetry.interval.is_zero() && telemetry.interval < read_every {
        layers.warning(
            &keys::TELEMETRY_INTERVAL,
            format!(
                "{} is shorter than sensor.interval ({}): each reading is recorded, and the sensor is read no faster for it",
                values::in_words(telemetry.interval),
                values::in_words(read_every)
            ),
        );
    }
    let lease = lease(layers, is_discovered);
    if let lighting::Lease::For(lease) = lease
        && mode != lighting::Mode::Local
    {
        // Most servers give a sign of life for each reading that they get.
        let told_every = read_every.max(telemetry.interval);
        if lease < 2 * told_every {
            layers.warning(
                &keys::CONTROL_LEASE,
                format!(
                    "{} is less than two readings ({} apart): one late answer of the server ends its lease",
                    values::in_words(lease),
                    values::in_words(told_every)
                ),
            );
        }
        if telemetry.deadband > 0.0 && !has_server_status {
            layers.warning(
                &keys::TELEMETRY_DEADBAND,
                "in steady light nothing is published: a server that only answers readings loses its lease; set control.server_status or lease = \"while-linked\"",
            );
        }
    }
    lighting::LightingSettings {
        mode,
        on_below,
        off_above,
        hold: layers.duration(&keys::CONTROL_HOLD, Duration::ZERO..=DAY),
        lease,
        fail_safe: layers.choice(&keys::LED_FAIL_SAFE, &fail_safes, ""),
        interval: read_every,
        least_interval: Duration::ZERO,
        frozen_after: layers.duration(&keys::SENSOR_FROZEN_AFTER, Duration::ZERO..=7 * DAY),
    }
}

/// Home Assistant speaks when it starts and when it goes: with discovery a command holds meanwhile, if nothing is set.
fn lease(layers: &mut Layers, is_discovered: bool) -> lighting::Lease {
    let is_set = layers.is_set(&keys::CONTROL_LEASE);
    if layers.is_word(&keys::CONTROL_LEASE, "while-present") || is_discovered && !is_set {
        return lighting::Lease::WhilePresent(ABSENCE);
    }
    let lease = layers
        .duration_or(&keys::CONTROL_LEASE, "while-linked", 100 * MS..=7 * DAY)
        .map_or(lighting::Lease::WhileLinked, lighting::Lease::For);
    if is_discovered && let lighting::Lease::For(time) = lease {
        layers.warning(
            &keys::CONTROL_LEASE,
            format!(
                "a light switched by hand in Home Assistant goes back to the Pi after {}, since Home Assistant gives no sign of life meanwhile; leave this key out",
                values::in_words(time)
            ),
        );
    }
    lease
}

fn commands(layers: &mut Layers) -> command::CommandSettings {
    let orders = [
        ("latest", command::Order::Latest),
        ("sequence", command::Order::Sequence),
    ];
    let on = layers.text(&keys::COMMANDS_ON);
    let off = layers.text(&keys::COMMANDS_OFF);
    if !on.is_empty() && on == off {
        layers.problem(
            &keys::COMMANDS_OFF,
            "is the same as commands.on; the LED cannot obey both",
        );
    } else if on.is_empty() != off.is_empty() {
        let key = if on.is_empty() {
            &keys::COMMANDS_OFF
        } else {
            &keys::COMMANDS_ON
        };
        layers.warning(
            key,
            "has no counterpart: only one of commands.on and commands.off is set",
        );
    }
    command::CommandSettings {
        order: layers.choice(&keys::COMMANDS_ORDER, &orders, ""),
        gap_wait: layers.duration(&keys::COMMANDS_GAP_WAIT, Duration::ZERO..=HOUR),
        on,
        off,
        allow_reboot: layers.flag(&keys::COMMANDS_ALLOW_REBOOT),
        accept_retained: layers.flag(&keys::COMMANDS_ACCEPT_RETAINED),
    }
}

/// systemd's `RUNTIME_DIRECTORY`, else one of the user who runs this by hand.
fn runtime_folder(layers: &Layers) -> Option<RuntimeFolder> {
    let given = layers
        .variable("RUNTIME_DIRECTORY")
        .and_then(|folders| folders.split(':').find(|folder| !folder.is_empty()));
    match given {
        Some(path) => Some(RuntimeFolder {
            path: path.into(),
            is_given: true,
        }),
        None => layers
            .variable("XDG_RUNTIME_DIR")
            .map(|path| RuntimeFolder {
                path: Path::new(path).join("nightlight"),
                is_given: false,
            }),
    }
}

fn backlog(layers: &mut Layers) -> Backlog {
    let on_full = [
        ("drop-oldest", OnFull::DropOldest),
        ("drop-newest", OnFull::DropNewest),
    ];
    let state_folder = layers
        .variable("STATE_DIRECTORY")
        .filter(|_| !layers.is_set(&keys::BACKLOG_PATH))
        // systemd gives several folders with colons between them.
        .and_then(|folders| folders.split(':').find(|folder| !folder.is_empty()))
        .map(PathBuf::from);
    let path = state_folder
        .or_else(|| layers.path(&keys::BACKLOG_PATH))
        .unwrap_or_else(|| {
            layers.problem(
                &keys::BACKLOG_PATH,
                "is empty; name a folder that survives a restart, such as \"/var/lib/nightlight\"",
            );
            PathBuf::new()
        });
    if path.is_file() {
        layers.problem(
            &keys::BACKLOG_PATH,
            format!("{} is a file; name a folder", path.display()),
        );
    } else if path.is_relative() && !path.as_os_str().is_empty() {
        layers.warning(
            &keys::BACKLOG_PATH,
            "is relative: which folder it is depends on where the daemon is started; begin it with \"/\"",
        );
    }
    Backlog {
        path,
        max_records: layers.whole(&keys::BACKLOG_MAX_RECORDS, 1..=MANY) as u64,
        max_bytes: layers.bytes(&keys::BACKLOG_MAX_BYTES, 65_536..=MANY) as u64,
        on_full: layers.choice(&keys::BACKLOG_ON_FULL, &on_full, ""),
    }
}

fn delivery(layers: &mut Layers) -> delivery::DeliverySettings {
    let confirms = [
        ("broker", delivery::Confirm::Broker),
        ("server", delivery::Confirm::Server),
    ];
    let qos = layers.whole(&keys::DELIVERY_QOS, 0..=2) as u8;
    let confirm = layers.choice(&keys::DELIVERY_CONFIRM, &confirms, "");
    if qos == 0 && confirm == delivery::Confirm::Broker {
        layers.warning(
            &keys::DELIVERY_QOS,
            "at QoS 0 the broker confirms nothing, so a record can be lost unseen; use 1, or delivery.confirm = \"server\"",
        );
    }
    delivery::DeliverySettings {
        qos,
        confirm,
        ack_timeout: layers.duration(&keys::DELIVERY_ACK_TIMEOUT, 100 * MS..=DAY),
        window: layers.whole(&keys::DELIVERY_WINDOW, 1..=1000) as usize,
        replay_rate: layers.number(&keys::DELIVERY_REPLAY_RATE, 0.0..=1_000_000.0),
        replay_jitter: layers.duration(&keys::DELIVERY_REPLAY_JITTER, Duration::ZERO..=HOUR),
        batch: layers.whole(&keys::DELIVERY_BATCH, 1..=1000) as usize,
        require_listener: require_listener(layers, qos),
        durable_within: layers.duration(&keys::BACKLOG_DURABLE_WITHIN, 10 * MS..=HOUR),
        stalled_after: STALLED_AFTER,
        format: format(layers),
        connect_spread: layers.duration(&keys::BROKER_SPREAD, link::MIN_CONNECT_SPREAD..=HOUR),
    }
}

fn format(layers: &mut Layers) -> telemetry::PayloadFormat {
    let formats = [
        ("nightlight", telemetry::PayloadFormat::Flat),
        ("thingsboard", telemetry::PayloadFormat::ThingsBoard),
    ];
    layers.choice(&keys::PAYLOAD_FORMAT, &formats, "")
}

/// Of what nobody listens to, only MQTT 5 at QoS 1 tells.
fn require_listener(layers: &mut Layers, qos: u8) -> bool {
    let is_required = layers.flag(&keys::DELIVERY_REQUIRE_LISTENER);
    let version = layers.text(&keys::BROKER_VERSION);
    if is_required && (qos != 1 || version == "3.1.1") {
        layers.warning(
            &keys::DELIVERY_REQUIRE_LISTENER,
            "has no effect: a broker tells whether somebody listens with MQTT 5 at QoS 1 alone; set delivery.qos = 1 and broker.version = \"auto\"",
        );
    }
    is_required
}
