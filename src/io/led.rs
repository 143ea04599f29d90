//! The LED: a pin of the Pi (by its registers, or by the kernel), a kernel LED's file, or none. It switches
//! and reads back, and remembers nothing else; when and why is the controller's.
//!
//! A driver of the kernel may hang, so the daemon has it on a thread ([`LedThread`]); `nightlight led` uses
//! [`Led`] as it is.

mod thread;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::config::{self, AtExit, LedDriver};
use crate::io::pi::line::Line;
use crate::io::pi::{Level, PiError, Pin};

pub use thread::LedThread;

/// No brightness is longer; a file that is, is another file and must not be written to.
const LONGEST: usize = 64;

/// An LED that can be switched. It stays as it is when this value is dropped; with `gpiochip` only where
/// the kernel leaves it so ([`crate::io::pi::line`]).
#[derive(Debug)]
pub struct Led {
    driver: Driver,
    active_low: bool,
    at_exit: AtExit,
}

#[derive(Debug)]
enum Driver {
    Gpio(Pin),
    Line(Line),
    Sysfs(Brightness),
    /// Whether it is high.
    Simulated(bool),
}

impl Led {
    /// Opens the configured LED as it is, without a flash; tells with it whether it is on now.
    ///
    /// # Errors
    /// [`LedError`], with a remedy in its message; trying again later is allowed.
    pub fn open(config: &config::Led) -> Result<(Self, bool), LedError> {
        let active_low = config.active_low;
        let (driver, high) = match config.driver {
            LedDriver::Gpio => {
                let (pin, level) = Pin::open(config.pin, level(active_low))?;
                (Driver::Gpio(pin), level == Level::High)
            }
            LedDriver::Gpiochip => {
                let path = Some(config.path.as_path()).filter(|path| !path.as_os_str().is_empty());
                let (line, level) = Line::open(path, config.pin, level(active_low))?;
                (Driver::Line(line), level == Level::High)
            }
            LedDriver::Sysfs => {
                let (brightness, lit) = Brightness::open(&config.path, active_low)?;
                (Driver::Sysfs(brightness), lit)
            }
            LedDriver::Simulated => (Driver::Simulated(active_low), active_low),
        };
        let led = Self {
            driver,
            active_low,
            at_exit: config.at_exit,
        };
        Ok((led, high != active_low))
    }

    /// Makes the LED so if it is not, and tells how it was found, where that can be told. It is read back
    /// after it was written.
    ///
    /// # Errors
    /// [`LedError`], and how the LED was seen last, where it could be read.
    pub(crate) fn ensure(&mut self, on: bool) -> Result<Option<bool>, (LedError, Option<bool>)> {
        let was = self.is_on().map_err(|error| (error, None))?;
        if was == Some(on) {
            return match self.may_be_set() {
                Ok(()) => Ok(was),
                Err(error) => Err((error, was)),
            };
        }
        self.set(on).map_err(|error| (error, was))?;
        match self.is_on().map_err(|error| (error, None))? {
            Some(is) if is != on => Err((LedError::Stuck { wanted: on }, Some(is))),
            _ => Ok(was),
        }
    }

    /// How it is, read back; `None` where the file says nothing.
    fn is_on(&self) -> Result<Option<bool>, LedError> {
        let high = match &self.driver {
            Driver::Gpio(pin) => Some(pin.level() == Level::High),
            Driver::Line(line) => Some(line.level()? == Level::High),
            Driver::Sysfs(brightness) => number(&brightness.path)?.map(|value| value > 0),
            Driver::Simulated(high) => Some(*high),
        };
        Ok(high.map(|high| high != self.active_low))
    }

    /// Whether it could be switched now; better known by day than at dusk.
    fn may_be_set(&self) -> Result<(), LedError> {
        match &self.driver {
            Driver::Sysfs(brightness) => brightness.file().map(drop),
            Driver::Gpio(_) | Driver::Line(_) | Driver::Simulated(_) => Ok(()),
        }
    }

    /// Switches the LED.
    ///
    /// # Errors
    /// [`LedError`]; the LED is then as it was, as far as can be told.
    pub fn set(&mut self, on: bool) -> Result<(), LedError> {
        let high = on != self.active_low;
        match &mut self.driver {
            Driver::Gpio(pin) => pin.set(level(high)),
            Driver::Line(line) => line.set(level(high))?,
            Driver::Sysfs(brightness) => brightness.set(high)?,
            Driver::Simulated(is_high) => {
                *is_high = high;
                tracing::debug!(on, "the simulated LED");
            }
        }
        Ok(())
    }

    /// Leaves the LED as the configuration wants it after a clean stop.
    ///
    /// # Errors
    /// As [`Led::set`].
    pub fn leave(&mut self) -> Result<(), LedError> {
        match self.at_exit {
            AtExit::Keep => Ok(()),
            AtExit::On => self.set(true),
            AtExit::Off => self.set(false),
        }
    }
}

fn level(high: bool) -> Level {
    if high { Level::High } else { Level::Low }
}

/// The brightness file of a kernel LED (kernel documentation, leds/leds-class), or any file that is
/// to hold `0` or `1`.
#[derive(Debug)]
struct Brightness {
    path: PathBuf,
    /// What is written for full brightness.
    max: u64,
}

impl Brightness {
    /// Opens it, and tells whether it is bright now. A file that is empty says nothing, so it is
    /// made to say `rest_bright`.
    fn open(path: &Path, rest_bright: bool) -> Result<(Self, bool), LedError> {
        let beside = path.with_file_name("max_brightness");
        let max = match number(&beside) {
            Ok(Some(max)) if max > 0 => max,
            Ok(_) | Err(LedError::Missing(_)) => 1,
            Err(error) => return Err(error),
        };
        let brightness = Self {
            path: path.to_owned(),
            max,
        };
        let bright = match number(path)? {
            Some(value) => {
                // Whether it can be written is better known now than at dusk.
                brightness.file()?;
                value > 0
            }
            None => {
                brightness.set(rest_bright)?;
                rest_bright
            }
        };
        Ok((brightness, bright))
    }

    /// One write of the whole text at the beginning, as sysfs wants it. The file is not emptied
    /// before, so that nobody finds it empty; what an ordinary file had beyond is cut off after.
    fn set(&self, bright: bool) -> Result<(), LedError> {
        let text = format!("{}\n", if bright { self.max } else { 0 });
        let failed = |source| LedError::file(&self.path, "written", source);
        let file = self.file()?;
        let written = file.write_at(text.as_bytes(), 0).map_err(failed)?;
        if written != text.len() {
            return Err(failed(io::Error::from(io::ErrorKind::WriteZero)));
        }
        let length = text.len() as u64;
        if file.metadata().map_err(failed)?.len() > length {
            file.set_len(length).map_err(failed)?;
        }
        Ok(())
    }

    /// Opened for each write: a kernel driver may go and come again, and an LED is seldom switched.
    fn file(&self) -> Result<File, LedError> {
        open(&self.path, OpenOptions::new().write(true), "written")
    }
}

/// The number in a file; none when the file is empty.
fn number(path: &Path) -> Result<Option<u64>, LedError> {
    let file = open(path, OpenOptions::new().read(true), "read")?;
    let mut text = String::new();
    let invalid = |found: &str| LedError::Invalid {
        path: path.to_owned(),
        found: found.chars().take(24).collect(),
    };
    match file.take(LONGEST as u64).read_to_string(&mut text) {
        Ok(LONGEST) => return Err(invalid(&text)),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(invalid("bytes that are no text"));
        }
        Err(error) => return Err(LedError::file(path, "read", error)),
    }
    match text.trim() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| invalid(text)),
    }
}

/// Opens an ordinary file (those of sysfs are) and no other: a pipe or a terminal could block.
fn open(path: &Path, options: &mut OpenOptions, doing: &'static str) -> Result<File, LedError> {
    let failed = |source| LedError::file(path, doing, source);
    let flags = OFlags::NONBLOCK.bits() as i32;
    match options.custom_flags(flags).open(path) {
        Ok(file) if file.metadata().map_err(failed)?.is_file() => Ok(file),
        Ok(_) => Err(LedError::NotAFile(path.to_owned())),
        Err(_) if path.exists() && !path.is_file() => Err(LedError::NotAFile(path.to_owned())),
        Err(error) => Err(failed(error)),
    }
}

/// Why the LED cannot be switched, and what to do about it.
#[derive(Debug)]
pub enum LedError {
    /// The pin cannot be had.
    Pi(PiError),
    /// The file does not exist.
    Missing(PathBuf),
    /// The file may not be used.
    Denied(PathBuf),
    /// The file lies where nothing may be written.
    ReadOnly(PathBuf),
    /// A folder, a pipe or the like.
    NotAFile(PathBuf),
    /// The file holds no brightness.
    Invalid {
        /// The file.
        path: PathBuf,
        /// The beginning of what is there.
        found: String,
    },
    /// It was switched, and is not as it was switched.
    Stuck {
        /// What it was switched to.
        wanted: bool,
    },
    /// The file cannot be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        doing: &'static str,
        /// The system's words.
        source: io::Error,
    },
}

impl LedError {
    fn file(path: &Path, doing: &'static str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing(path),
            io::ErrorKind::PermissionDenied => Self::Denied(path),
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly(path),
            _ => Self::Io {
                path,
                doing,
                source,
            },
        }
    }
}

impl From<PiError> for LedError {
    fn from(error: PiError) -> Self {
        Self::Pi(error)
    }
}

impl fmt::Display for LedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pi(error) => write!(f, "the LED: {error}"),
            Self::Missing(path) => write!(
                f,
                "the LED's file {} does not exist: set `led.path` to a file `/sys/class/leds/NAME/brightness` \
                 (`ls /sys/class/leds` shows the names)",
                path.display()
            ),
            Self::Denied(path) => write!(
                f,
                "no permission to write the LED's file {}: give it to a group of the user nightlight \
                 with a udev rule (nightlight comes with one for kernel LEDs: 60-nightlight.rules)",
                path.display()
            ),
            Self::ReadOnly(path) => write!(
                f,
                "the LED's file {} is read-only for this program: add its folder to `ReadWritePaths=` \
                 (`systemctl edit nightlight`)",
                path.display()
            ),
            Self::NotAFile(path) => write!(
                f,
                "{} is not an ordinary file: set `led.path` to the file `brightness` of an LED",
                path.display()
            ),
            Self::Invalid { path, found } => write!(
                f,
                "{} holds {found:?} and no brightness, so it is left alone: set `led.path` to the file \
                 `brightness` of an LED, or put 0 into the file",
                path.display()
            ),
            Self::Stuck { wanted } => write!(
                f,
                "the LED was switched {} and does not stay so: look for another program that has it, and for \
                 what else hangs on the pin",
                if *wanted { "on" } else { "off" }
            ),
            Self::Io {
                path,
                doing,
                source,
            } => write!(
                f,
                "the LED's file {} cannot be {doing}: {source}; look at `dmesg` for what the kernel says",
                path.display()
            ),
        }
    }
}

impl std::error::Error for LedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Pi(error) => Some(error),
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
