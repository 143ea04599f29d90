//! The sensor and the LED, and the buses, pins and files that they are on.
//!
//! A bus is looked through by reading one byte from each address, which disturbs its devices least:
//! nothing is written, least of all to the EEPROMs at 0x50 to 0x57. The configured sensor is read by its
//! own driver, unless a running nightlight reads it: then what that one read counts.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Finding;
use super::machine::pi;
use crate::cli::Exit;
use crate::config::{self, Config, LedDriver};
use crate::io::pi::line;
use crate::io::pi::{Bus, PiError, Presence};
use crate::io::sensor;
use crate::logic::View;
use crate::manual::{exit_of, exit_of_pi, measured};

/// What is often at an address; the first guess is the one nightlight has a driver for.
const GUESSES: [(std::ops::RangeInclusive<u8>, &str); 16] = [
    (0x04..=0x04, "Grove Base HAT"),
    (0x08..=0x08, "Grove Base HAT of the newer kind"),
    (0x10..=0x10, "VEML7700"),
    (0x20..=0x22, "port expander"),
    (0x23..=0x23, "BH1750"),
    (0x29..=0x29, "TSL2591, or a VL53L0X or TSL2561"),
    (0x39..=0x39, "TSL2561 or APDS9960"),
    (0x3C..=0x3D, "display"),
    (0x40..=0x40, "Si7021 or INA219"),
    (0x44..=0x47, "OPT3001, or an SHT3x"),
    (0x48..=0x4B, "ADS1115 or TMP102"),
    (0x50..=0x57, "EEPROM"),
    (0x5C..=0x5C, "BH1750 with ADDR high, or an AM2320"),
    (0x68..=0x68, "clock (DS3231) or MPU6050"),
    (0x70..=0x70, "bus switch (TCA9548A)"),
    (0x76..=0x77, "BME280 or BMP280"),
];

/// The I2C buses, and who answers on those that may be asked: all of them on a Pi, the configured one
/// elsewhere, since a laptop's buses are its own affair.
pub(super) fn buses(sensor: Option<&config::Sensor>) -> Vec<Finding> {
    let is_pi = pi().is_some();
    let wanted = sensor
        .filter(|sensor| !sensor.driver.addresses().is_empty())
        .map(|sensor| sensor.bus);
    let there = numbers();
    let mut findings = Vec::new();
    if let Some(bus) = wanted.filter(|bus| !there.contains(bus)) {
        findings.push(missing(is_pi, PiError::NoBus(bus), Exit::Software, "I2C"));
    } else if there.is_empty() {
        findings.push(Finding::ok("I2C", "no bus, and none is needed"));
    }
    for bus in there {
        let what = format!("I2C bus {bus}");
        if !is_pi && wanted != Some(bus) {
            findings.push(Finding::ok(&what, format!("{}; not asked", name(bus))));
            continue;
        }
        findings.push(match Bus::open(bus) {
            Ok(open) => answers(&what, &name(bus), open),
            Err(error) if wanted == Some(bus) => unusable(&what, error),
            Err(error) => Finding::warn(&what, name(bus), error.to_string()),
        });
    }
    findings
}

fn numbers() -> Vec<u8> {
    let names = fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut numbers: Vec<u8> = names
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("i2c-")?
                .parse()
                .ok()
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

fn name(bus: u8) -> String {
    let file = format!("/sys/class/i2c-adapter/i2c-{bus}/name");
    fs::read_to_string(file).map_or("unnamed".into(), |name| name.trim().to_owned())
}

fn answers(what: &str, name: &str, mut bus: Bus) -> Finding {
    let mut seen = Vec::new();
    // 0x00 to 0x02 and 0x78 and up have other meanings than devices.
    for address in 0x03..=0x77 {
        match bus.probe(address) {
            Presence::Silent => {}
            Presence::Answers => seen.push(format!("{address:#04x} ({})", guess(address))),
            Presence::Kernel => {
                seen.push(format!("{address:#04x} (a driver of the kernel has it)"))
            }
            Presence::Stuck => {
                return Finding::fail(
                    what,
                    Exit::Software,
                    format!("{name}: the bus is stuck"),
                    "check SDA and SCL: swapped, shorted, or without pull-up resistors; take the devices off one by one",
                );
            }
        }
    }
    match seen.is_empty() {
        true => Finding::ok(what, format!("{name}: nobody answers")),
        false => Finding::ok(what, format!("{name}: {}", seen.join(", "))),
    }
}

fn guess(address: u8) -> &'static str {
    GUESSES
        .iter()
        .find(|(addresses, _)| addresses.contains(&address))
        .map_or("unknown", |(_, guess)| guess)
}

/// The configured sensor, read once; by the running nightlight if there is one.
pub(super) fn sensor(config: &Config, view: Option<&View>) -> Vec<Finding> {
    let driver = config.sensor.driver;
    let unit = driver.unit();
    if let Some(view) = view {
        return vec![match view.light.filter(|_| view.sensor_ok) {
            Some(light) => Finding::ok(
                "sensor",
                format!(
                    "{}: {}, read by the running nightlight",
                    driver.name(),
                    measured(light, unit)
                ),
            ),
            None => Finding::fail(
                "sensor",
                Exit::Software,
                format!("{}: the running nightlight gets no readings", driver.name()),
                &view.sensor_why,
            ),
        }];
    }
    let begun = Instant::now();
    let read = sensor::open(&config.sensor).and_then(|mut sensor| sensor.read());
    vec![match read {
        Ok(light) => Finding::ok(
            "sensor",
            format!(
                "{}: {}, in {} ms",
                driver.name(),
                measured(light, unit),
                begun.elapsed().as_millis()
            ),
        ),
        Err(error) => {
            let exit = exit_of(&error);
            let is_absent = matches!(error, sensor::SensorError::Pi(PiError::NoBus(_)));
            match is_absent && pi().is_none() {
                true => Finding::warn("sensor", format!("no {} without a bus", driver.name()), ""),
                false => Finding::fail(
                    "sensor",
                    exit,
                    format!("{} gives no reading", driver.name()),
                    error.to_string(),
                ),
            }
        }
    }]
}

/// What the LED is on. It is not switched, and a pin is not made an output.
pub(super) fn led(led: &config::Led) -> Vec<Finding> {
    vec![match led.driver {
        LedDriver::Gpio => registers(led.pin),
        LedDriver::Gpiochip => chip(led),
        LedDriver::Sysfs => file(&led.path),
        LedDriver::Simulated => Finding::ok("LED", "simulated"),
    }]
}

/// The window on the registers of the pins: of a Pi 5, and of those before.
fn registers(pin: u8) -> Finding {
    if pi().is_none() {
        return missing(false, PiError::NotAPi, Exit::Configuration, "LED");
    }
    let windows = ["/dev/gpiomem0", "/dev/gpiomem", "/dev/mem"].map(Path::new);
    let Some(window) = windows.into_iter().find(|path| path.exists()) else {
        let error = PiError::NoWindow("/dev/mem".into());
        return missing(true, error, Exit::Software, "LED");
    };
    match File::options().read(true).write(true).open(window) {
        Ok(_) => Finding::ok("LED", format!("GPIO {pin} by {}", window.display())),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => unusable(
            "LED",
            match window == Path::new("/dev/mem") {
                true => PiError::NoWindow("/dev/mem".into()),
                false => PiError::Denied {
                    path: window.display().to_string(),
                    group: "gpio",
                },
            },
        ),
        Err(error) => Finding::fail(
            "LED",
            Exit::Software,
            format!("{}: {error}", window.display()),
            "set `led.driver` to \"gpiochip\"",
        ),
    }
}

fn chip(led: &config::Led) -> Finding {
    let chips = line::chips();
    let is_it = |(path, label): &&(PathBuf, Option<String>)| match led.path.as_os_str().is_empty() {
        true => label.as_deref().is_some_and(line::is_header),
        false => fs::canonicalize(&led.path).is_ok_and(|led| led == *path),
    };
    match chips.iter().find(is_it) {
        Some((path, Some(label))) => Finding::ok(
            "LED",
            format!("line {} of {} ({label})", led.pin, path.display()),
        ),
        Some((path, None)) => unusable(
            "LED",
            PiError::Denied {
                path: path.display().to_string(),
                group: "gpio",
            },
        ),
        None => {
            let there = chips.iter().map(|(path, _)| path.display().to_string());
            missing(
                pi().is_some() || !led.path.as_os_str().is_empty(),
                PiError::NoChip(there.collect()),
                Exit::Software,
                "LED",
            )
        }
    }
}

fn file(path: &Path) -> Finding {
    match File::options().write(true).open(path) {
        Ok(_) => Finding::ok("LED", format!("kernel LED {}", path.display())),
        Err(error) => {
            let (exit, remedy) = match error.kind() {
                ErrorKind::PermissionDenied => (
                    Exit::Permission,
                    "let this user write it; nightlight comes with a udev rule for that: 60-nightlight.rules",
                ),
                _ => (
                    Exit::Software,
                    "`ls /sys/class/leds` shows the LEDs; set `led.path` to the file `brightness` of one",
                ),
            };
            Finding::fail("LED", exit, format!("{}: {error}", path.display()), remedy)
        }
    }
}

/// A part that is not there: a failure on a Pi, and to be expected elsewhere.
fn missing(is_pi: bool, error: PiError, exit: Exit, what: &str) -> Finding {
    match is_pi {
        true => Finding::fail(what, exit, "not there", error.to_string()),
        false => Finding::warn(what, "not on this machine", error.to_string()),
    }
}

fn unusable(what: &str, error: PiError) -> Finding {
    Finding::fail(
        what,
        exit_of_pi(&error),
        "cannot be used",
        error.to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SensorDriver;

    #[test]
    fn every_sensor_with_a_driver_is_guessed_at_each_of_its_addresses() {
        for driver in SensorDriver::ALL {
            for address in driver.addresses() {
                let name = driver.name().replace('-', " base ");
                let guess = guess(*address).to_lowercase();
                assert!(guess.contains(&name), "{address:#04x}: {guess}");
            }
        }
        assert_eq!(guess(0x03), "unknown");
    }
}
