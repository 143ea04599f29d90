//! A light sensor with a kernel driver: reads one number from a file, anew for each reading.
//!
//! `in_illuminance_input` holds lux. `in_illuminance_raw` holds the converter's number, and lux is
//! (raw + offset) * scale, from the files `..._offset` and `..._scale` beside it where the driver
//! has them (kernel documentation, ABI/testing/sysfs-bus-iio). Any other file with a number will do.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::error::excerpt;
use super::{Sensor, SensorError};

/// No number is longer; a file that is, is another file.
const LONGEST: usize = 64;

/// What it takes to fill a file that was just emptied, and much more than that.
const REWRITTEN: Duration = Duration::from_millis(10);

/// A pipe has so long to give a number.
const FLOWS_WITHIN: Duration = Duration::from_secs(2);

/// A sensor behind a file.
#[derive(Debug)]
pub struct Iio {
    value: PathBuf,
    /// Where offset and scale would be, for a raw value.
    correction: Option<(PathBuf, PathBuf)>,
}

impl Iio {
    /// Remembers the path; the file is opened at each reading, since a kernel driver may come later
    /// or go and come again.
    pub fn new(path: &Path) -> Self {
        Self {
            value: path.to_owned(),
            correction: beside(path, "_offset").zip(beside(path, "_scale")),
        }
    }
}

impl Sensor for Iio {
    /// Blocks as long as the kernel driver does.
    fn read(&mut self) -> Result<f64, SensorError> {
        let value = number(&self.value)?;
        let Some((offset, scale)) = &self.correction else {
            return Ok(value);
        };
        let offset = absent_is(number(offset), 0.0)?;
        let scale = absent_is(number(scale), 1.0)?;
        let lux = (value + offset) * scale;
        if lux.is_finite() {
            Ok(lux)
        } else {
            Err(invalid(&self.value, &format!("{value} is too large")))
        }
    }
}

fn beside(path: &Path, end: &str) -> Option<PathBuf> {
    let stem = path.file_name()?.to_str()?.strip_suffix("_raw")?;
    let mut name = OsString::from(stem);
    name.push(end);
    Some(path.with_file_name(name))
}

fn absent_is(result: Result<f64, SensorError>, default: f64) -> Result<f64, SensorError> {
    match result {
        Err(SensorError::Missing(_)) => Ok(default),
        other => other,
    }
}

fn number(path: &Path) -> Result<f64, SensorError> {
    let mut bytes = beginning(path)?;
    // An ordinary file that somebody rewrites is empty for a moment; a kernel's file never is.
    for _ in 0..20 {
        if bytes.is_empty() {
            std::thread::sleep(REWRITTEN);
            bytes = beginning(path)?;
        }
    }
    if bytes.len() == LONGEST {
        let what = format!(
            "begins with {} and goes on; one number was expected",
            excerpt(&bytes)
        );
        return Err(invalid(path, &what));
    }
    let text = bytes.trim_ascii();
    if text.is_empty() {
        return Err(invalid(path, "is empty; one number was expected"));
    }
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .filter(|value| value.is_finite())
        .ok_or_else(|| {
            let what = format!("holds {}; one number was expected", excerpt(text));
            invalid(path, &what)
        })
}

fn beginning(path: &Path) -> Result<Vec<u8>, SensorError> {
    let failed = |error| SensorError::file(path, error);
    // A pipe that nobody writes into would block already here.
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() {
        let mut bytes = Vec::with_capacity(LONGEST);
        file.take(LONGEST as u64)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        return Ok(bytes);
    }
    flowing(path, file)
}

/// What comes out of a pipe or the like, up to the end of a line or of what there is.
fn flowing(path: &Path, mut file: File) -> Result<Vec<u8>, SensorError> {
    let begun = Instant::now();
    let mut bytes = Vec::with_capacity(LONGEST);
    while bytes.len() < LONGEST && !bytes.contains(&b'\n') {
        let mut next = [0; LONGEST];
        let most = LONGEST - bytes.len();
        match file.read(&mut next[..most]) {
            Ok(0) if !bytes.is_empty() => break,
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(SensorError::file(path, error)),
            Ok(length) => {
                bytes.extend_from_slice(&next[..length]);
                continue;
            }
        }
        if begun.elapsed() >= FLOWS_WITHIN {
            let seconds = FLOWS_WITHIN.as_secs();
            let what = format!("is no ordinary file and gave no number within {seconds} s");
            return Err(invalid(path, &what));
        }
        std::thread::sleep(REWRITTEN);
    }
    Ok(bytes)
}

fn invalid(path: &Path, what: &str) -> SensorError {
    SensorError::Invalid {
        path: path.to_owned(),
        line: None,
        what: what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(content: &[u8]) -> Result<f64, SensorError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in_illuminance_input");
        fs::write(&path, content).unwrap();
        Iio::new(&path).read()
    }

    #[test]
    fn a_number_with_white_space_around_it_is_a_reading() {
        for (content, light) in [
            (&b"243\n"[..], 243.0),
            (b"  0.5 \r\n", 0.5),
            (b"1697.25", 1697.25),
            (b"1e3\n", 1000.0),
        ] {
            assert_eq!(read(content).unwrap(), light);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let huge = vec![b'7'; 1 << 20];
        for content in [
            &b""[..],
            b" \n",
            b"nan\n",
            b"-inf",
            b"1e999",
            b"12 13",
            b"12,5",
            b"bright",
            b"\xff\xfe\n",
            &huge,
        ] {
            let error = read(content).unwrap_err();
            assert!(matches!(error, SensorError::Invalid { .. }), "{error}");
            assert!(error.to_string().contains("in_illuminance_input"));
        }
    }

    #[test]
    fn a_missing_file_is_named_with_a_remedy() {
        let error = Iio::new(Path::new("/nowhere/light")).read().unwrap_err();
        assert!(matches!(error, SensorError::Missing(_)));
        assert!(error.to_string().contains("`sensor.path`"));
    }

    #[test]
    fn a_raw_value_becomes_lux_where_the_driver_says_how() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("in_illuminance_raw");
        fs::write(&raw, "100\n").unwrap();
        assert_eq!(Iio::new(&raw).read().unwrap(), 100.0);
        fs::write(dir.path().join("in_illuminance_scale"), "0.5\n").unwrap();
        assert_eq!(Iio::new(&raw).read().unwrap(), 50.0);
        fs::write(dir.path().join("in_illuminance_offset"), "-20\n").unwrap();
        assert_eq!(Iio::new(&raw).read().unwrap(), 40.0);
    }
}
