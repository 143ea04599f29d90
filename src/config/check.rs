//! From the layers to the checked configuration: what each value may be, and what fits together.
//!
//! Looks at the files that the configuration names, since a missing one is better told now than at
//! three in the morning; touches no device and no network. Called by `Config::load` and
//! `Config::from_toml` alone.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keys::{self, Key};
use super::layers::{self, Layers};
use super::topics;
use super::url::BrokerUrl;
use super::{
    AtExit, Backlog, Broker, Config, Led, LedDriver, OnFull, Scheme, Sensor, SensorDriver,
};
use crate::logic::{command, delivery, lighting, telemetry};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The sensor is not read more often.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// The longest that fits into the 16 bits of MQTT.
const LONGEST_KEEP_ALIVE: Duration = Duration::from_secs(65_535);
/// A broker that takes longer to confirm a publication is given up. Not a key: nobody could tell a
/// better value, and a wrong one hides a dead link.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// 18 digits: as many as a person may mean.
const MANY: i64 = 1_000_000_000_000_000_000;
/// Sensors of the documents that this version has no driver for.
const LATER_SENSORS: [&str; 4] = ["bh1750", "veml7700", "opt3001", "tsl2591"];

/// The configuration, as good as the layers give it; it counts only if `layers` has no problem after.
pub(super) fn check(layers: &mut Layers, file: Option<PathBuf>) -> Config {
    let device_id = topics::device_id(layers);
    let (topics, server_status) = topics::topics(layers, &device_id);
    let broker = broker(layers, &device_id);
    let sensor = sensor(layers);
    let led = led(layers, &sensor);
    let telemetry = telemetry(layers);
    let lighting = lighting(layers, &telemetry, server_status.is_some());
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
        backlog: backlog(layers),
        delivery: delivery(layers),
        web_listen: web(layers),
        file,
        warnings: Vec::new(),
    };
    config.warnings = std::mem::take(&mut layers.warnings);
    config
}

fn broker(layers: &mut Layers, device_id: &str) -> Broker {
    let url = layers.text(&keys::BROKER_URL);
    let url = BrokerUrl::parse(&url).unwrap_or_else(|what| {
        layers.problem(&keys::BROKER_URL, what);
        BrokerUrl {
            scheme: Scheme::Mqtt,
            host: "localhost".into(),
            port: 1883,
            path: String::new(),
        }
    });
    let client_id = layers
        .optional(&keys::BROKER_CLIENT_ID)
        .inspect(|id| client_id(layers, id))
        .unwrap_or_else(|| device_id.to_string());
    let username = layers.optional(&keys::BROKER_USERNAME);
    let password_file = layers.path(&keys::BROKER_PASSWORD_FILE);
    if let Some(file) = &password_file {
        password(layers, file);
        if username.is_none() && layers.are_good(&[&keys::BROKER_USERNAME]) {
            layers.problem(
                &keys::BROKER_PASSWORD_FILE,
                "there is a password but no user; set broker.username too",
            );
        }
    }
    let [ca_file, cert_file, key_file] = [
        (&keys::BROKER_CA_FILE, "CERTIFICATE-----"),
        (&keys::BROKER_CERT_FILE, "CERTIFICATE-----"),
        (&keys::BROKER_KEY_FILE, "PRIVATE KEY-----"),
    ]
    .map(|(key, label)| {
        layers
            .path(key)
            .inspect(|file| pem(layers, key, file, label))
    });
    let comparable = layers.are_good(&[&keys::BROKER_CERT_FILE, &keys::BROKER_KEY_FILE]);
    match (&cert_file, &key_file) {
        _ if !comparable => {}
        (Some(_), None) => layers.problem(
            &keys::BROKER_CERT_FILE,
            "a client certificate needs its key; set broker.key_file too",
        ),
        (None, Some(_)) => layers.problem(
            &keys::BROKER_KEY_FILE,
            "a key needs its client certificate; set broker.cert_file too",
        ),
        _ => {}
    }
    if !url.scheme.is_tls() {
        if ca_file.is_some() || cert_file.is_some() {
            layers.warning(
                &keys::BROKER_URL,
                format!("{}:// is not encrypted, so ca_file, cert_file and key_file are not used; mqtts:// or wss:// is", url.scheme.name()),
            );
        }
        if password_file.is_some() && !is_this_machine(&url.host) {
            layers.warning(
                &keys::BROKER_URL,
                "the password travels unencrypted; use mqtts:// or wss:// where the broker can",
            );
        }
    }
    Broker {
        scheme: url.scheme,
        host: url.host,
        port: url.port,
        path: url.path,
        client_id,
        username,
        password_file,
        ca_file,
        cert_file,
        key_file,
        keep_alive: layers.duration(&keys::BROKER_KEEP_ALIVE, SECOND..=LONGEST_KEEP_ALIVE),
    }
}

fn client_id(layers: &mut Layers, id: &str) {
    if id.len() > 200 || !id.bytes().all(|b| b.is_ascii_graphic()) {
        layers.problem(
            &keys::BROKER_CLIENT_ID,
            "has a space or a character that is not printable ASCII, or more than 200; use letters, digits, \"-\" and \"_\"",
        );
    }
}

fn password(layers: &mut Layers, file: &Path) {
    let key = &keys::BROKER_PASSWORD_FILE;
    let Some(content) = content(layers, key, file) else {
        return;
    };
    let first_line = content.split(|&b| b == b'\n').next().unwrap_or_default();
    let is_blank = first_line.iter().all(u8::is_ascii_whitespace);
    if is_blank {
        layers.problem(
            key,
            format!(
                "the first line of {} is empty; write the password there",
                file.display()
            ),
        );
    } else if std::str::from_utf8(first_line).is_err() {
        layers.problem(
            key,
            format!(
                "the first line of {} is not UTF-8; write the password as text",
                file.display()
            ),
        );
    }
    let mode = fs::metadata(file).map_or(0, |data| data.permissions().mode());
    if mode & 0o004 != 0 {
        layers.warning(
            key,
            format!(
                "every user of this machine can read {}; chmod o-r it",
                file.display()
            ),
        );
    }
}

fn pem(layers: &mut Layers, key: &Key, file: &Path, label: &str) {
    let Some(content) = content(layers, key, file) else {
        return;
    };
    let text = String::from_utf8_lossy(&content);
    let has_label = text
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(label));
    if !has_label {
        layers.problem(
            key,
            format!(
                "{} has no \"-----BEGIN ... {label}\" line; name a PEM file",
                file.display()
            ),
        );
    }
}

/// The bytes of a file that must be there. A megabyte is more than any certificate bundle.
fn content(layers: &mut Layers, key: &Key, file: &Path) -> Option<Vec<u8>> {
    const MOST: u64 = 4 << 20;
    let read = fs::metadata(file).and_then(|data| {
        if !data.is_file() {
            return Err(std::io::Error::other("it is not a file"));
        }
        if data.len() > MOST {
            return Err(std::io::Error::other("it is larger than 4 MiB"));
        }
        fs::read(file)
    });
    read.map_err(|error| {
        layers.problem(
            key,
            format!("{} cannot be read: {error}; check the path and the rights of the user that runs the daemon", file.display()),
        );
    })
    .ok()
}

fn sensor(layers: &mut Layers) -> Sensor {
    let drivers = [
        ("grove-hat", SensorDriver::GroveHat),
        ("iio", SensorDriver::Iio),
        ("trace", SensorDriver::Trace),
        ("simulated", SensorDriver::Simulated),
    ];
    let name = layers.text(&keys::SENSOR_DRIVER);
    let later = if LATER_SENSORS.contains(&name.as_str()) {
        format!(
            "\"{name}\" is not in this version (the kernel may have a driver for it: then use \"iio\")"
        )
    } else {
        String::new()
    };
    let driver = layers.choice(&keys::SENSOR_DRIVER, &drivers, &later);
    let bus = layers.whole(&keys::SENSOR_BUS, 0..=255) as u8;
    let address = layers.whole(&keys::SENSOR_ADDRESS, 0..=0x77) as u16;
    if matches!(address, 1 | 2) {
        layers.problem(
            &keys::SENSOR_ADDRESS,
            format!("no device has the I2C address {address}; use 0x03 to 0x77, or 0 for the driver's own"),
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
    }
}

fn led(layers: &mut Layers, sensor: &Sensor) -> Led {
    let drivers = [
        ("gpio", LedDriver::Gpio),
        ("sysfs", LedDriver::Sysfs),
        ("simulated", LedDriver::Simulated),
    ];
    let driver = layers.choice(&keys::LED_DRIVER, &drivers, "");
    let pin = layers.whole(&keys::LED_PIN, 0..=27) as u8;
    let i2c_pins = match sensor.bus {
        0 => [0, 1],
        _ => [2, 3],
    };
    let shares_bus = sensor.driver == SensorDriver::GroveHat
        && sensor.bus <= 1
        && layers.are_good(&[&keys::SENSOR_DRIVER, &keys::SENSOR_BUS, &keys::LED_DRIVER]);
    if driver == LedDriver::Gpio && shares_bus && i2c_pins.contains(&pin) {
        layers.problem(
            &keys::LED_PIN,
            format!("GPIO {pin} is a line of I2C bus {}, where the sensor is; use another pin, such as 5", sensor.bus),
        );
    }
    let path = layers.path(&keys::LED_PATH);
    let kind = (driver == LedDriver::Sysfs).then_some("sysfs");
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

fn telemetry(layers: &mut Layers) -> telemetry::Settings {
    let keep = [
        ("all", telemetry::Keep::All),
        ("latest", telemetry::Keep::Latest),
    ];
    let interval = layers.duration(&keys::TELEMETRY_INTERVAL, Duration::ZERO..=DAY);
    if !interval.is_zero() && interval < SHORTEST_INTERVAL {
        layers.problem(
            &keys::TELEMETRY_INTERVAL,
            "is too short; use \"0s\" to record each reading, or 10ms to 24h",
        );
    }
    telemetry::Settings {
        interval,
        deadband: layers.number(&keys::TELEMETRY_DEADBAND, 0.0..=f64::MAX),
        keep: layers.choice(&keys::TELEMETRY_KEEP, &keep, ""),
    }
}

fn lighting(
    layers: &mut Layers,
    telemetry: &telemetry::Settings,
    has_server_status: bool,
) -> lighting::Settings {
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
    let lease = lease(layers);
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
                    layers::in_words(lease),
                    layers::in_words(told_every)
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
    lighting::Settings {
        mode,
        on_below,
        off_above,
        hold: layers.duration(&keys::CONTROL_HOLD, Duration::ZERO..=DAY),
        lease,
        fail_safe: layers.choice(&keys::LED_FAIL_SAFE, &fail_safes, ""),
        interval: match telemetry.interval {
            Duration::ZERO => read_every,
            recorded_every => read_every.min(recorded_every),
        },
    }
}

fn lease(layers: &mut Layers) -> lighting::Lease {
    layers
        .duration_or(&keys::CONTROL_LEASE, "while-linked", 100 * MS..=7 * DAY)
        .map_or(lighting::Lease::WhileLinked, lighting::Lease::For)
}

fn commands(layers: &mut Layers) -> command::Settings {
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
    command::Settings {
        order: layers.choice(&keys::COMMANDS_ORDER, &orders, ""),
        gap_wait: layers.duration(&keys::COMMANDS_GAP_WAIT, Duration::ZERO..=HOUR),
        on,
        off,
        allow_reboot: layers.flag(&keys::COMMANDS_ALLOW_REBOOT),
        accept_retained: layers.flag(&keys::COMMANDS_ACCEPT_RETAINED),
    }
}

fn backlog(layers: &mut Layers) -> Backlog {
    let on_full = [
        ("drop-oldest", OnFull::DropOldest),
        ("drop-newest", OnFull::DropNewest),
        ("thin", OnFull::Thin),
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

fn delivery(layers: &mut Layers) -> delivery::Settings {
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
    delivery::Settings {
        qos,
        confirm,
        ack_timeout: layers.duration(&keys::DELIVERY_ACK_TIMEOUT, 100 * MS..=DAY),
        window: layers.whole(&keys::DELIVERY_WINDOW, 1..=1000) as usize,
        replay_rate: layers.number(&keys::DELIVERY_REPLAY_RATE, 0.0..=1_000_000.0),
        replay_jitter: layers.duration(&keys::DELIVERY_REPLAY_JITTER, Duration::ZERO..=HOUR),
        batch: layers.whole(&keys::DELIVERY_BATCH, 1..=1000) as usize,
        durable_within: layers.duration(&keys::BACKLOG_DURABLE_WITHIN, 10 * MS..=HOUR),
        stalled_after: STALLED_AFTER,
    }
}

fn web(layers: &mut Layers) -> Option<SocketAddr> {
    let text = layers.optional(&keys::WEB_LISTEN)?;
    let Ok(address) = text.parse::<SocketAddr>() else {
        let port: String = text
            .chars()
            .rev()
            .take_while(char::is_ascii_digit)
            .collect();
        let port: String = port.chars().rev().collect();
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            .unwrap_or(8080);
        layers.problem(
            &keys::WEB_LISTEN,
            format!("is not an address and a port; write \"127.0.0.1:{port}\", or \"\" for no status page"),
        );
        return None;
    };
    if !address.ip().is_loopback() {
        layers.warning(
            &keys::WEB_LISTEN,
            "the status page has no password, and other machines can see it; 127.0.0.1 keeps it here",
        );
    }
    Some(address)
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
