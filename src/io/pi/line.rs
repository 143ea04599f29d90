//! A pin by the kernel's GPIO character device, `/dev/gpiochipN`: for boards that rppal does not know and
//! kernels without /dev/gpiomem. The only file that names gpiocdev. `led.rs` calls it.
//!
//! The kernel takes a line back when the program ends, however it ends. Upstream kernels then make it an
//! input, so that what hangs on it goes off (or wherever a resistor pulls it); those of Raspberry Pi OS
//! leave an output as it is, unless `dtparam=strict_gpiod` is set (github.com/raspberrypi/linux, pull
//! request 6117). A restart is without a flash only on the latter.

use std::path::{Path, PathBuf};

use gpiocdev::chip::Chip;
use gpiocdev::line::{Direction, Value};
use gpiocdev::request::{Config, Request};

use super::{Level, PiError};

/// What the kernel calls the chip of a Pi's header: of the Pi 5, the Pi 4, and all before.
const HEADERS: [&str; 3] = ["pinctrl-rp1", "pinctrl-bcm2711", "pinctrl-bcm2835"];

/// A line that drives something.
#[derive(Debug)]
pub struct Line {
    request: Request,
    config: Config,
    pin: u8,
}

impl Line {
    /// Makes line `pin` of the chip at `path` an output and returns it with whether it is high now; of
    /// the chip of the Pi's header without `path`.
    ///
    /// A line that is an output already keeps its level; any other becomes an output at `rest`.
    ///
    /// # Errors
    /// [`PiError`], when there is no such chip or line, somebody has it, or the user may not.
    pub fn open(path: Option<&Path>, pin: u8, rest: Level) -> Result<(Self, Level), PiError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => header()?,
        };
        let refused = |error| line_error(&path, error);
        let chip = Chip::from_path(&path).map_err(refused)?;
        if u32::from(pin) >= chip.info().map_err(refused)?.num_lines {
            return Err(PiError::NoPin(pin));
        }
        let offset = u32::from(pin);
        let info = chip.line_info(offset).map_err(refused)?;
        if info.used {
            return Err(PiError::LineUsed {
                pin,
                by: info.consumer,
            });
        }
        let mut builder = Request::builder();
        builder
            .on_chip(&path)
            .with_consumer("nightlight")
            .with_line(offset);
        let (request, level) = match info.direction {
            // As it is first: only who has a line may ask what it is at.
            Direction::Output => {
                let request = builder.as_is().request().map_err(refused)?;
                let level = match request.value(offset).map_err(refused)? {
                    Value::Active => Level::High,
                    Value::Inactive => Level::Low,
                };
                (request, level)
            }
            Direction::Input => {
                let request = builder.as_output(value(rest)).request().map_err(refused)?;
                (request, rest)
            }
        };
        let mut config = request.config();
        config.with_line(offset).as_output(value(level));
        let line = Self {
            request,
            config,
            pin,
        };
        line.request
            .reconfigure(&line.config)
            .map_err(|error| line.failed(error))?;
        Ok((line, level))
    }

    /// Drives the line.
    ///
    /// # Errors
    /// [`PiError::Io`], when the chip is gone.
    pub fn set(&mut self, level: Level) -> Result<(), PiError> {
        self.request
            .set_value(u32::from(self.pin), value(level))
            .map_err(|error| self.failed(error))
    }

    /// What the line is at.
    ///
    /// # Errors
    /// As [`Line::set`].
    pub fn level(&self) -> Result<Level, PiError> {
        match self.request.value(u32::from(self.pin)) {
            Ok(Value::Active) => Ok(Level::High),
            Ok(Value::Inactive) => Ok(Level::Low),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: gpiocdev::Error) -> PiError {
        PiError::Io {
            what: format!("line {}", self.pin),
            why: error.to_string(),
        }
    }
}

/// The GPIO chips of this machine and what the kernel calls them; those that may not be opened have no
/// name.
pub(crate) fn chips() -> Vec<(PathBuf, Option<String>)> {
    let paths = gpiocdev::chip::chips().unwrap_or_default();
    let label = |path: &PathBuf| Chip::from_path(path).and_then(|chip| chip.info()).ok();
    paths
        .into_iter()
        .map(|path| {
            let label = label(&path).map(|info| info.label);
            (path, label)
        })
        .collect()
}

/// Whether the kernel's name for a chip is that of a Pi's header.
pub(crate) fn is_header(label: &str) -> bool {
    HEADERS.contains(&label)
}

fn header() -> Result<PathBuf, PiError> {
    let chips = chips();
    let is_it = |(_, label): &&(PathBuf, Option<String>)| label.as_deref().is_some_and(is_header);
    if let Some((path, _)) = chips.iter().find(is_it) {
        return Ok(path.clone());
    }
    match chips.iter().find(|(_, label)| label.is_none()) {
        Some((path, _)) => Err(PiError::Denied {
            path: path.display().to_string(),
            group: "gpio",
        }),
        None => Err(PiError::NoChip(
            chips
                .iter()
                .map(|(path, label)| {
                    format!("{} ({})", path.display(), label.as_deref().unwrap_or("?"))
                })
                .collect(),
        )),
    }
}

fn value(level: Level) -> Value {
    match level {
        Level::High => Value::Active,
        Level::Low => Value::Inactive,
    }
}

fn line_error(path: &Path, error: gpiocdev::Error) -> PiError {
    let denied = std::fs::File::open(path)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    match denied {
        true => PiError::Denied {
            path: path.display().to_string(),
            group: "gpio",
        },
        false => PiError::Io {
            what: path.display().to_string(),
            why: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_chip_is_refused_by_name() {
        for path in ["/dev/null", "/nowhere/gpiochip0"] {
            let error = Line::open(Some(Path::new(path)), 5, Level::Low).unwrap_err();
            assert!(matches!(error, PiError::Io { .. }), "{error:?}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn the_headers_of_all_pis_are_known_and_no_other_chip() {
        assert!(HEADERS.iter().all(|label| is_header(label)));
        assert!(!is_header("raspberrypi-exp-gpio"));
    }
}
