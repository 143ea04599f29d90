//! What the daemon will do with a configuration, in a few lines for a person.
//!
//! Shows no secret: passwords and keys appear as the names of their files. Called by `check`.

use std::fmt::{self, Display, Formatter};

use super::{Config, LedDriver, OnFull, Sensor, SensorDriver, Speak};
use crate::logic::{command::Order, delivery::Confirm, lighting::FailSafe, lighting::Lease};
use crate::logic::{lighting::Mode, telemetry::OutageReadings};
use nightlight_common::config::values::in_words;

/// See [`Config::summary`].
struct Summary<'a>(&'a Config);

impl Config {
    /// The configuration in a few lines, without its warnings.
    pub fn summary(&self) -> impl Display + '_ {
        Summary(self)
    }
}

impl Display for Summary<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(config) = self;
        let file = config
            .file
            .as_ref()
            .map_or("defaults (no file)".into(), |file| {
                file.display().to_string()
            });
        let topics = &config.topics;
        let rows = [
            ("configuration", file),
            ("device", config.device_id.clone()),
            ("broker", broker(config)),
            (
                "publishes",
                format!(
                    "{}, {}, {}",
                    topics.telemetry, topics.history, topics.events
                ),
            ),
            (
                "",
                format!("{}, {}, {}", topics.results, topics.state, topics.status),
            ),
            ("listens", listens(config)),
            ("sensor", sensor(config)),
            ("LED", led(config)),
            ("control", control(config)),
            ("", remote(config)),
            ("commands", commands(config)),
            ("telemetry", telemetry(config)),
            ("backlog", backlog(config)),
            ("delivery", delivery(config)),
            ("status page", page(config)),
            ("Home Assistant", home_assistant(config)),
        ];
        for (name, text) in rows.iter().filter(|(_, text)| !text.is_empty()) {
            writeln!(f, "{name:<14} {text}")?;
        }
        Ok(())
    }
}

fn home_assistant(config: &Config) -> String {
    let home = config.home_assistant.as_ref();
    home.map_or(String::new(), |home| format!("announced on {}", home.topic))
}

fn page(config: &Config) -> String {
    match &config.web {
        None => "off".into(),
        Some(page) => {
            let token = if page.token.is_some() {
                ", with a token"
            } else {
                ""
            };
            format!("http://{}/{token}", page.listen)
        }
    }
}

fn broker(config: &Config) -> String {
    let broker = &config.broker;
    let user = match (&broker.username, &broker.password_file) {
        (Some(user), Some(file)) => format!(", user {user} (password in {})", file.display()),
        (Some(user), None) => format!(", user {user} without a password"),
        _ => String::new(),
    };
    let certificate = broker.cert_file.as_ref().map_or(String::new(), |file| {
        format!(", client certificate {}", file.display())
    });
    let (url, client_id) = (broker.url(), &broker.client_id);
    format!(
        "{url} as {client_id}{user}{certificate}, MQTT {}, keep alive {}, session kept for {}",
        match broker.speak {
            Speak::Auto => "5 or 3.1.1",
            Speak::Only(version) => version.name(),
        },
        in_words(broker.keep_alive),
        in_words(broker.session_expiry)
    )
}

fn listens(config: &Config) -> String {
    let mut topics = vec![config.topics.commands.as_str(), config.topics.acks.as_str()];
    topics.extend(config.server_status.as_deref());
    topics.extend(config.home_assistant_status());
    topics.join(", ")
}

fn sensor(config: &Config) -> String {
    let sensor = &config.sensor;
    let every = in_words(config.lighting.interval);
    let what = match sensor.driver {
        SensorDriver::GroveHat => {
            format!(
                "Grove Base HAT {}, channel {}",
                place(sensor),
                sensor.channel
            )
        }
        SensorDriver::Iio => format!("kernel driver {}", sensor.path.display()),
        SensorDriver::Trace => format!(
            "recording {}, speed {}",
            sensor.path.display(),
            sensor.speed
        ),
        SensorDriver::Simulated => format!("simulated, speed {}", sensor.speed),
        chip => format!("{} {}", chip.name(), place(sensor)),
    };
    format!("{what}; read every {every}")
}

fn place(sensor: &Sensor) -> String {
    let address = sensor.address.map_or("its own address".into(), |address| {
        format!("address {address:#04x}")
    });
    format!("on I2C bus {}, {address}", sensor.bus)
}

fn led(config: &Config) -> String {
    let led = &config.led;
    let low = if led.active_low { ", on when low" } else { "" };
    match led.driver {
        LedDriver::Gpio => format!("GPIO {}{low}", led.pin),
        LedDriver::Gpiochip if led.path.as_os_str().is_empty() => {
            format!("GPIO {} by the kernel{low}", led.pin)
        }
        LedDriver::Gpiochip => format!("line {} of {}{low}", led.pin, led.path.display()),
        LedDriver::Sysfs => format!("kernel driver {}", led.path.display()),
        LedDriver::Simulated => "simulated".into(),
    }
}

fn control(config: &Config) -> String {
    let lighting = &config.lighting;
    let rule = format!(
        "on below {}, off above {}, at most one change in {}",
        lighting.on_below,
        lighting.off_above,
        in_words(lighting.hold)
    );
    let rule = match lighting.mode {
        Mode::Auto => format!("without a server: {rule}"),
        Mode::Local => format!("always by itself: {rule}"),
        Mode::Remote => "by the server alone; without it the LED stays as it is".into(),
    };
    match lighting.fail_safe {
        FailSafe::Keep => format!("{rule}; sensor broken: LED as it is"),
        FailSafe::On => format!("{rule}; sensor broken: LED on"),
        FailSafe::Off => format!("{rule}; sensor broken: LED off"),
    }
}

fn remote(config: &Config) -> String {
    match (config.lighting.mode, config.lighting.lease) {
        (Mode::Auto, Lease::For(lease)) => {
            format!(
                "a command holds until {} after the server's last sign of life",
                in_words(lease)
            )
        }
        (Mode::Auto, Lease::WhileLinked) => "a command holds as long as the link is up".into(),
        (Mode::Auto, Lease::WhilePresent(lease)) => {
            let who = match config.home_assistant {
                Some(_) => "Home Assistant",
                None => "the server",
            };
            format!(
                "a command holds as long as {who} is there, and {} more",
                in_words(lease)
            )
        }
        _ => String::new(),
    }
}

fn commands(config: &Config) -> String {
    let commands = &config.commands;
    let mut text = match commands.order {
        Order::Latest => "the newest counts".to_string(),
        Order::Sequence => format!(
            "in sequence, a hole is waited for {}",
            in_words(commands.gap_wait)
        ),
    };
    for (is_so, what) in [
        (commands.allow_reboot, "; reboot is allowed"),
        (commands.accept_retained, "; retained ones are obeyed"),
    ] {
        text.push_str(if is_so { what } else { "" });
    }
    text
}

fn telemetry(config: &Config) -> String {
    let telemetry = &config.telemetry;
    let mut text = if telemetry.interval.is_zero() {
        "each reading".to_string()
    } else {
        format!("a reading every {}", in_words(telemetry.interval))
    };
    if telemetry.deadband > 0.0 {
        text.push_str(&format!(" that differs by {}", telemetry.deadband));
    }
    match telemetry.keep {
        OutageReadings::All => text + "; an outage keeps all",
        OutageReadings::Latest => text + "; an outage keeps the newest",
    }
}

fn backlog(config: &Config) -> String {
    let backlog = &config.backlog;
    let full = match backlog.on_full {
        OnFull::DropOldest => "the oldest go",
        OnFull::DropNewest => "the newest go",
    };
    format!(
        "{}, up to {} records or {:.1} MB, then {full}; on disk within {}",
        backlog.path.display(),
        backlog.max_records,
        backlog.max_bytes as f64 / 1e6,
        in_words(config.delivery.durable_within)
    )
}

fn delivery(config: &Config) -> String {
    let delivery = &config.delivery;
    let by = match delivery.confirm {
        Confirm::Broker => "the broker".to_string(),
        Confirm::Server => format!("the server within {}", in_words(delivery.ack_timeout)),
    };
    let rate = if delivery.replay_rate > 0.0 {
        format!("at {} records a second", delivery.replay_rate)
    } else {
        "as fast as acks allow".into()
    };
    format!(
        "QoS {}, confirmed by {by}, window {}; history {rate}, {} in a message",
        delivery.qos, delivery.window, delivery.batch
    )
}
