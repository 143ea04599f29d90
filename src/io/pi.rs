//! The I2C buses and the pins of a Raspberry Pi: the only file that names rppal, so that another
//! crate (gpiocdev, linux-embedded-hal) can take its place. [`mod@line`] has the pins without it.
//!
//! It knows nothing of sensors or LEDs. The sensor drivers see a bus as `embedded_hal::i2c::I2c`,
//! `led.rs` sees a pin that is high or low.

pub mod line;

use std::fmt;
use std::io;

use embedded_hal::i2c::{ErrorKind, ErrorType, I2c, NoAcknowledgeSource, Operation};
use rppal::gpio::{self, Gpio, Mode, OutputPin};
use rppal::i2c;
use rustix::io::Errno;

/// An I2C bus of the kernel, `/dev/i2c-N`. Works on any Linux, not only on a Pi.
#[derive(Debug)]
pub(crate) struct Bus {
    native: i2c::I2c,
}

impl Bus {
    /// Opens bus `number`; no device on it is spoken to yet.
    ///
    /// # Errors
    /// [`PiError::NoBus`] when it is not switched on, [`PiError::Denied`] without the right to use it.
    pub(crate) fn open(number: u8) -> Result<Self, PiError> {
        let path = || format!("/dev/i2c-{number}");
        match i2c::I2c::with_bus(number) {
            Ok(native) => Ok(Self { native }),
            Err(i2c::Error::Io(error)) => Err(match error.kind() {
                io::ErrorKind::NotFound => PiError::NoBus(number),
                io::ErrorKind::PermissionDenied => PiError::Denied {
                    path: path(),
                    group: "i2c",
                },
                _ => PiError::Io {
                    what: path(),
                    why: error.to_string(),
                },
            }),
            Err(error) => Err(PiError::Io {
                what: path(),
                why: error.to_string(),
            }),
        }
    }
}

/// What is at an address of a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Something acknowledges.
    Answers,
    /// Nothing does.
    Silent,
    /// A driver of the kernel has it.
    Kernel,
    /// The bus does not work.
    Stuck,
}

impl Bus {
    /// Reads one byte from `address` and throws it away: what disturbs the devices on a bus least.
    /// Nothing is written.
    pub(crate) fn probe(&mut self, address: u8) -> Presence {
        let read = self
            .native
            .set_slave_address(u16::from(address))
            .and_then(|()| self.native.read(&mut [0]));
        let errno = match read {
            Ok(_) => return Presence::Answers,
            Err(i2c::Error::Io(error)) => Errno::from_io_error(&error),
            Err(_) => None,
        };
        match errno {
            Some(Errno::BUSY) => Presence::Kernel,
            Some(Errno::TIMEDOUT) => Presence::Stuck,
            _ => Presence::Silent,
        }
    }
}

impl ErrorType for Bus {
    type Error = BusError;
}

impl I2c for Bus {
    /// A write followed by a read is one transfer with a repeated START between the two, as
    /// embedded-hal asks and some sensors need; rppal's own implementation puts a STOP there.
    /// Other neighbours are transfers of their own, each with a STOP.
    fn transaction(
        &mut self,
        address: u8,
        operations: &mut [Operation<'_>],
    ) -> Result<(), BusError> {
        self.native.set_slave_address(u16::from(address))?;
        let mut rest = operations;
        loop {
            rest = match rest {
                [] => return Ok(()),
                [Operation::Write(bytes), Operation::Read(buffer), tail @ ..] => {
                    self.native.write_read(bytes, buffer)?;
                    tail
                }
                [Operation::Write(bytes), tail @ ..] => {
                    whole(self.native.write(bytes)?, bytes.len())?;
                    tail
                }
                [Operation::Read(buffer), tail @ ..] => {
                    whole(self.native.read(buffer)?, buffer.len())?;
                    tail
                }
            };
        }
    }
}

/// A pin that drives something.
#[derive(Debug)]
pub struct Pin {
    native: OutputPin,
}

impl Pin {
    /// Makes the pin with BCM number `bcm` an output and returns it with whether it is high now.
    ///
    /// A pin that is an output already keeps its level, so that what hangs on it does not flash when
    /// the daemon starts again. Any other pin (an input after power-on, perhaps with its pull-up)
    /// drives nothing, and becomes an output at the `rest` level.
    ///
    /// The pin stays as it is when this value is dropped.
    ///
    /// # Errors
    /// [`PiError`] when this is not a Pi, has no such pin, or does not let us.
    pub fn open(bcm: u8, rest: Level) -> Result<(Self, Level), PiError> {
        let pin = Gpio::new()
            .and_then(|gpio| gpio.get(bcm))
            .map_err(pin_error)?;
        let present = (pin.mode() == Mode::Output).then(|| match pin.read() {
            gpio::Level::High => Level::High,
            gpio::Level::Low => Level::Low,
        });
        let level = present.unwrap_or(rest);
        // Both set the level first and the direction after it.
        let mut native = match level {
            Level::High => pin.into_output_high(),
            Level::Low => pin.into_output_low(),
        };
        native.set_reset_on_drop(false);
        Ok((Self { native }, level))
    }

    /// Drives the pin; a register write, which cannot fail.
    pub fn set(&mut self, level: Level) {
        match level {
            Level::High => self.native.set_high(),
            Level::Low => self.native.set_low(),
        }
    }

    /// What the pin is at, whoever drives it.
    pub fn level(&self) -> Level {
        match self.native.is_set_high() {
            true => Level::High,
            false => Level::Low,
        }
    }
}

/// What a pin is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// 3.3 V.
    High,
    /// Ground.
    Low,
}

/// Why a bus or a pin could not be had, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PiError {
    /// There is no I2C bus of this number.
    NoBus(u8),
    /// The user of this process may not use the device.
    Denied {
        /// The device file.
        path: String,
        /// The group that may.
        group: &'static str,
    },
    /// No pins are known here.
    NotAPi,
    /// A Pi, but the kernel has no window on its pins for users.
    NoWindow(String),
    /// No GPIO chip that is a Pi's header; these are there.
    NoChip(Vec<String>),
    /// Somebody else has the line.
    LineUsed {
        /// The line.
        pin: u8,
        /// What the kernel says of them; may be empty.
        by: String,
    },
    /// The Pi has no pin of this BCM number.
    NoPin(u8),
    /// This process uses the pin already.
    PinUsed(u8),
    /// Something else.
    Io {
        /// The device.
        what: String,
        /// The system's words.
        why: String,
    },
}

impl fmt::Display for PiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBus(bus) => write!(
                f,
                "there is no I2C bus /dev/i2c-{bus}: put `dtparam=i2c_arm=on` in /boot/firmware/config.txt and \
                 `i2c-dev` in /etc/modules, restart the Pi; or set `sensor.bus` to one that `ls /dev/i2c-*` shows"
            ),
            Self::Denied { path, group } => write!(
                f,
                "no permission to use {path}: add the user to the group {group} \
                 (`sudo usermod -aG {group} nightlight`) and start the program again"
            ),
            Self::NotAPi => write!(
                f,
                "this does not look like a Raspberry Pi, so it has no pins to switch: \
                 set `led.driver` to \"gpiochip\" (the kernel's own pins, with `led.path`), \"sysfs\" or \"simulated\""
            ),
            Self::NoWindow(path) => write!(
                f,
                "this kernel has no /dev/gpiomem, and {path} is not for this user: \
                 set `led.driver` to \"gpiochip\", which does without"
            ),
            Self::NoChip(there) if there.is_empty() => write!(
                f,
                "the kernel has no GPIO chip here (/dev/gpiochip*): \
                 set `led.driver` to \"sysfs\" or \"simulated\""
            ),
            Self::NoChip(there) => write!(
                f,
                "no GPIO chip here is a Raspberry Pi's header: set `led.path` to the one that the LED is on, of {}",
                there.join(", ")
            ),
            Self::LineUsed { pin, by } => write!(
                f,
                "line {pin} is in use by {}: end that, or set `led.pin` to another",
                if by.is_empty() { "the kernel" } else { by }
            ),
            Self::NoPin(pin) => write!(
                f,
                "there is no GPIO {pin}: set `led.pin` to the BCM number of a pin on the header (2 to 27)"
            ),
            Self::PinUsed(pin) => {
                write!(
                    f,
                    "GPIO {pin} is already in use by this program: give each thing its own pin"
                )
            }
            Self::Io { what, why } => write!(
                f,
                "{what} cannot be used: {why}; look at `dmesg` for what the kernel says of it"
            ),
        }
    }
}

impl std::error::Error for PiError {}

/// A transfer that failed.
#[derive(Debug)]
pub(crate) struct BusError {
    kind: ErrorKind,
    why: String,
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for BusError {}

impl embedded_hal::i2c::Error for BusError {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<i2c::Error> for BusError {
    fn from(error: i2c::Error) -> Self {
        match error {
            i2c::Error::Io(error) => Self::from(error),
            other => Self {
                kind: ErrorKind::Other,
                why: other.to_string(),
            },
        }
    }
}

impl From<io::Error> for BusError {
    /// The kernel's fault codes: <https://docs.kernel.org/i2c/fault-codes.html>. The Pi's controllers
    /// answer EREMOTEIO when nobody acknowledges, others ENXIO.
    fn from(error: io::Error) -> Self {
        let errno = Errno::from_io_error(&error);
        let (kind, why) = if errno == Some(Errno::NXIO) || errno == Some(Errno::REMOTEIO) {
            let kind = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Unknown);
            (kind, error.to_string())
        } else if errno == Some(Errno::AGAIN) {
            (ErrorKind::ArbitrationLoss, error.to_string())
        } else if errno == Some(Errno::BUSY) {
            let why = "a kernel driver holds this address (unload it, or read its file with the driver \"iio\")";
            (ErrorKind::Other, why.to_owned())
        } else if errno == Some(Errno::BUSY) {
            let why = "a driver of the kernel has this address (use `sensor.driver = \"iio\"`, or unload it)";
            (ErrorKind::Other, why.to_owned())
        } else if errno == Some(Errno::TIMEDOUT) {
            let why = "the bus is stuck or has no pull-up resistors (timed out)";
            (ErrorKind::Bus, why.to_owned())
        } else {
            (ErrorKind::Other, error.to_string())
        };
        Self { kind, why }
    }
}

fn whole(done: usize, wanted: usize) -> Result<(), BusError> {
    if done == wanted {
        return Ok(());
    }
    Err(BusError {
        kind: ErrorKind::Bus,
        why: format!("only {done} of {wanted} bytes went over the bus"),
    })
}

fn pin_error(error: gpio::Error) -> PiError {
    match error {
        gpio::Error::UnknownModel => PiError::NotAPi,
        gpio::Error::PinUsed(pin) => PiError::PinUsed(pin),
        gpio::Error::PinNotAvailable(pin) => PiError::NoPin(pin),
        gpio::Error::PermissionDenied(path) if path == "/dev/mem" => PiError::NoWindow(path),
        gpio::Error::PermissionDenied(path) => PiError::Denied {
            path,
            group: "gpio",
        },
        other => PiError::Io {
            what: "the GPIO of this Pi".to_owned(),
            why: format!("{other} (`led.driver = \"gpiochip\"` is another way to it)"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use embedded_hal::i2c::Error;

    #[test]
    fn a_bus_that_is_not_there_names_the_switch() {
        let error = Bus::open(250).unwrap_err();
        assert_eq!(error, PiError::NoBus(250));
        assert!(error.to_string().contains("dtparam=i2c_arm=on"));
    }

    #[test]
    fn nobody_acknowledging_is_told_from_a_stuck_bus() {
        for silent in [Errno::NXIO, Errno::REMOTEIO] {
            let error = BusError::from(io::Error::from(silent));
            assert!(matches!(error.kind(), ErrorKind::NoAcknowledge(_)));
        }
        let stuck = BusError::from(io::Error::from(Errno::TIMEDOUT));
        assert_eq!(stuck.kind(), ErrorKind::Bus);
    }

    #[test]
    fn where_rppal_does_not_work_the_other_way_is_named() {
        for error in [
            gpio::Error::UnknownModel,
            gpio::Error::PermissionDenied("/dev/mem".to_owned()),
            gpio::Error::Io(Errno::NOENT.into()),
        ] {
            let text = pin_error(error).to_string();
            assert!(text.contains("\"gpiochip\""), "{text}");
        }
    }

    #[test]
    fn a_missing_permission_names_the_group() {
        let error = pin_error(gpio::Error::PermissionDenied("/dev/gpiomem".to_owned()));
        assert!(error.to_string().contains("usermod -aG gpio"), "{error}");
        assert!(error.to_string().contains("/dev/gpiomem"), "{error}");
    }
}
