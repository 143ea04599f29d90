//! Why there is no reading, and what a person can do about it. Made by the drivers, shown to the
//! operator as it is: each message says what failed, on what, and the remedy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::io::pi::PiError;

/// Why there is no reading.
#[derive(Debug)]
pub enum SensorError {
    /// The bus itself cannot be had.
    Pi(PiError),
    /// Nothing acknowledges on the bus at these addresses.
    NoAnswer {
        /// I2C bus number.
        bus: u8,
        /// The addresses that were tried.
        addresses: Vec<u8>,
    },
    /// A transfer went wrong in another way.
    Transfer {
        /// I2C bus number.
        bus: u8,
        /// The address spoken to.
        address: u8,
        /// The bus's words.
        why: String,
    },
    /// The sensor reported a value outside its range.
    OutOfRange {
        /// I2C bus number.
        bus: u8,
        /// The address spoken to.
        address: u8,
        /// What it reported.
        value: u16,
        /// The largest value it can report.
        max: u16,
    },
    /// Another chip is at the address.
    WrongChip {
        /// I2C bus number.
        bus: u8,
        /// The address spoken to.
        address: u8,
        /// The chip that should be there.
        wanted: &'static str,
        /// How the chip that is there identifies itself.
        id: u16,
    },
    /// There is more light than the sensor can measure at its coarsest setting.
    TooBright {
        /// I2C bus number.
        bus: u8,
        /// The address spoken to.
        address: u8,
        /// The most it can measure, in lux.
        max_lux: f64,
    },
    /// The configured I2C address or channel does not exist.
    Configured(String),
    /// A file that does not exist.
    Missing(PathBuf),
    /// A file that may not be read.
    Denied(PathBuf),
    /// A file that cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file with something else than was expected.
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where lines matter.
        line: Option<usize>,
        /// What is there, and what should be.
        what: String,
    },
}

impl SensorError {
    pub(super) fn file(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing(path.to_owned()),
            io::ErrorKind::PermissionDenied => Self::Denied(path.to_owned()),
            _ => Self::Unreadable {
                path: path.to_owned(),
                source,
            },
        }
    }
}

impl From<PiError> for SensorError {
    fn from(error: PiError) -> Self {
        Self::Pi(error)
    }
}

impl fmt::Display for SensorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pi(error) => write!(f, "{error}"),
            Self::NoAnswer { bus, addresses } => {
                write!(f, "no sensor answers on I2C bus {bus} at ")?;
                for (nth, address) in addresses.iter().enumerate() {
                    let before = if nth == 0 { "" } else { " or " };
                    write!(f, "{before}{address:#04x}")?;
                }
                write!(
                    f,
                    ": check the wiring and the power; `i2cdetect -y -a {bus}` shows who is there; \
                     then set `sensor.address`"
                )
            }
            Self::Transfer { bus, address, why } => write!(
                f,
                "the sensor at {address:#04x} on I2C bus {bus} cannot be read: {why}; \
                 if this stays, check the wiring and the length of the cable"
            ),
            Self::OutOfRange {
                bus,
                address,
                value,
                max,
            } => write!(
                f,
                "the sensor at {address:#04x} on I2C bus {bus} reports {value}, but its range ends at {max}: \
                 a bad contact, or another device at this address (`sensor.driver`, `sensor.address`)"
            ),
            Self::WrongChip {
                bus,
                address,
                wanted,
                id,
            } => write!(
                f,
                "the chip at {address:#04x} on I2C bus {bus} is not a {wanted}: it identifies itself as {id:#x}; \
                 correct `sensor.driver` or `sensor.address`"
            ),
            Self::TooBright {
                bus,
                address,
                max_lux,
            } => write!(
                f,
                "the sensor at {address:#04x} on I2C bus {bus} reports more light than it can measure \
                 ({max_lux:.0} lx): shade it, or put something translucent over it. If it is not that bright, \
                 check its wiring"
            ),
            Self::Configured(what) => f.write_str(what),
            Self::Missing(path) => write!(
                f,
                "{} does not exist: correct `sensor.path`, or load the kernel driver that makes the file",
                path.display()
            ),
            Self::Denied(path) => write!(
                f,
                "no permission to read {}: let the user nightlight read it (`chmod o+r`, or a group of that user)",
                path.display()
            ),
            Self::Unreadable { path, source } => write!(
                f,
                "{} cannot be read: {source}; for a kernel sensor check its wiring and `dmesg`",
                path.display()
            ),
            Self::Invalid { path, line, what } => {
                write!(f, "{}", path.display())?;
                if let Some(line) = line {
                    write!(f, ":{line}")?;
                }
                write!(f, ": {what}; correct the file or `sensor.path`")
            }
        }
    }
}

impl std::error::Error for SensorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Pi(error) => Some(error),
            Self::Unreadable { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// A short, printable piece of what was found.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(24)]).into_owned();
    format!("{text:?}")
}
