//! Plays a recording: a CSV file of `time,lux`, from its beginning, as fast as it was recorded or
//! faster, and over again. For trials and demonstrations without a sensor.
//!
//! The file is read once, when it is opened. A header, blank lines and lines that begin with `#` are
//! skipped. A time is RFC 3339 (`2015-02-02T14:19:00Z`, a space for the `T` is allowed), the same
//! without a zone, or plain seconds; one form throughout. Times must not go back.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

use super::error::excerpt;
use super::{Sensor, SensorError};

/// A minute of a year is 20 MB; a longer file is a mistake that would fill the memory of a small Pi.
const LARGEST: u64 = 32 * 1024 * 1024;

/// A recording that plays since it was opened.
#[derive(Debug)]
pub struct Trace {
    recording: Recording,
    speed: f64,
    opened: Instant,
}

impl Trace {
    /// Reads the recording and starts to play it, `speed` times as fast as recorded.
    ///
    /// # Errors
    /// [`SensorError`] when the file cannot be read, or its first line that is no row.
    pub fn open(path: &Path, speed: f64) -> Result<Self, SensorError> {
        Ok(Self {
            recording: Recording::read(path)?,
            speed,
            opened: Instant::now(),
        })
    }
}

impl Sensor for Trace {
    fn read(&mut self) -> Result<f64, SensorError> {
        let played = self.opened.elapsed().as_secs_f64() * self.speed;
        Ok(self.recording.light_at(played))
    }
}

/// The rows of a recording; at least one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recording {
    /// Seconds since the first row, which ascend, and the light from then on.
    rows: Vec<(f64, f64)>,
    /// Seconds from the first row to its return.
    period: f64,
}

impl Recording {
    /// Reads a CSV file.
    ///
    /// # Errors
    /// [`SensorError`] when it cannot be read, or its first line that is no row.
    pub(crate) fn read(path: &Path) -> Result<Self, SensorError> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
            .map_err(|error| SensorError::file(path, error))?;
        let recording = if bytes.len() as u64 > LARGEST {
            Err(Bad::whole("is larger than 32 MiB; take a part of it"))
        } else {
            Self::parse(&bytes)
        };
        recording.map_err(|bad| SensorError::Invalid {
            path: path.to_owned(),
            line: bad.line,
            what: bad.what,
        })
    }

    /// Seconds since the first row, ascending, and the light from then on; at least one.
    pub(crate) fn rows(&self) -> &[(f64, f64)] {
        &self.rows
    }

    /// Reads the text of a CSV file.
    fn parse(bytes: &[u8]) -> Result<Self, Bad> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            Bad::at(line, "is not UTF-8 text".to_owned())
        })?;
        let mut rows: Vec<(f64, f64)> = Vec::new();
        let mut form = None;
        let mut header_allowed = true;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (line, row) in (1..).zip(text.lines()) {
            let row = row.trim();
            if row.is_empty() || row.starts_with('#') {
                continue;
            }
            let (time, light) = row
                .split_once(',')
                .map(|(time, light)| (time.trim(), light.trim()))
                .ok_or_else(|| Bad::at(line, format!("{} is no `time,lux`", quoted(row))))?;
            let may_be_header = std::mem::replace(&mut header_allowed, false);
            let (Some((its_form, at)), Ok(light)) = (time_of(time), light.parse::<f64>()) else {
                if may_be_header && time_of(time).is_none() && light.parse::<f64>().is_err() {
                    continue;
                }
                return Err(Bad::at(line, format!("{} is no `time,lux`", quoted(row))));
            };
            if !light.is_finite() {
                return Err(Bad::at(line, format!("{light} is no light")));
            }
            if *form.get_or_insert(its_form) != its_form {
                let what = "the time is of another form than in the rows before".to_owned();
                return Err(Bad::at(line, what));
            }
            if rows.last().is_some_and(|(before, _)| at < *before) {
                return Err(Bad::at(line, format!("{} goes back in time", quoted(time))));
            }
            rows.push((at, light));
        }
        Self::of(rows).ok_or_else(|| Bad::whole("has no row of `time,lux`"))
    }

    fn of(mut rows: Vec<(f64, f64)>) -> Option<Self> {
        let (first, _) = *rows.first()?;
        for (at, _) in &mut rows {
            *at -= first;
        }
        let (span, _) = *rows.last()?;
        // The last row is in force for as long as a row is on the average; with none, it would never
        // be seen.
        let gaps = rows.len().saturating_sub(1).max(1) as f64;
        let period = span + span / gaps;
        Some(Self { rows, period })
    }

    /// The light when `played` seconds of the recording have been played: the last row at or before
    /// that time, counted round and round.
    pub(crate) fn light_at(&self, played: f64) -> f64 {
        let position = if self.period > 0.0 {
            played.rem_euclid(self.period)
        } else {
            f64::INFINITY
        };
        let after = self.rows.partition_point(|(at, _)| *at <= position);
        // Not a number, as from an endless speed, is the beginning.
        self.rows[after.saturating_sub(1)].1
    }
}

/// What is wrong with a recording.
#[derive(Debug, PartialEq)]
struct Bad {
    line: Option<usize>,
    what: String,
}

impl Bad {
    fn at(line: usize, what: String) -> Self {
        Self {
            line: Some(line),
            what,
        }
    }

    fn whole(what: &str) -> Self {
        Self {
            line: None,
            what: what.to_owned(),
        }
    }
}

/// How a time is written. They cannot be mixed: there is no way from one to the other.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Zoned,
    Local,
    Seconds,
}

/// The time in seconds since some beginning that is the same for all of its form.
fn time_of(text: &str) -> Option<(Form, f64)> {
    let seconds = |timestamp: Timestamp| timestamp.as_millisecond() as f64 / 1000.0;
    if let Ok(plain) = text.parse::<f64>() {
        return plain.is_finite().then_some((Form::Seconds, plain));
    }
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Some((Form::Zoned, seconds(timestamp)));
    }
    // Where a local clock is put forward or back the recording jumps with it: nobody can tell.
    let local = text.parse::<DateTime>().ok()?;
    let timestamp = Offset::UTC.to_timestamp(local).ok()?;
    Some((Form::Local, seconds(timestamp)))
}

fn quoted(text: &str) -> String {
    excerpt(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recording, Bad> {
        Recording::parse(text.as_bytes())
    }

    #[test]
    fn the_value_in_force_is_the_last_row_at_or_before() {
        let recording = parse("time,lux\n0,10\n60,20\n60,30\n120,40\n").unwrap();
        for (played, light) in [
            (0.0, 10.0),
            (59.999, 10.0),
            (60.0, 30.0),
            (119.0, 30.0),
            (120.0, 40.0),
            (159.0, 40.0),
            // The last row holds for 120 / 3 s, then it starts over.
            (160.0, 10.0),
            (220.5, 30.0),
        ] {
            assert_eq!(recording.light_at(played), light, "{played}");
        }
        assert_eq!(recording.period, 160.0);
    }

    #[test]
    fn every_form_of_time_is_read_and_only_differences_count() {
        for text in [
            "2015-02-02T14:19:00,1\n2015-02-02T14:20:00,2",
            "2015-02-02 14:19:00,1\n2015-02-02 14:20:00.000,2",
            "2015-02-02T14:19:00Z,1\n2015-02-02T15:20:00+01:00,2",
            "2015-02-02 14:19:00Z,1\n2015-02-02 14:20:00Z,2",
            "1422886740,1\n1422886800.0,2",
            "\u{feff}# office\r\ntime,lux\r\n\r\n 0 , 1 \r\n60,2\r\n",
        ] {
            let recording = parse(text).unwrap();
            assert_eq!(recording.rows, [(0.0, 1.0), (60.0, 2.0)], "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line) in [
            ("", None),
            ("time,lux\n", None),
            ("time,lux\ntime,lux\n", Some(2)),
            ("0,1\n\n# x\nnonsense\n", Some(4)),
            ("0,1\n5,bright\n", Some(2)),
            ("0,1\n5,NaN\n", Some(2)),
            ("0,1\n5,inf\n", Some(2)),
            ("nan,1\n", Some(1)),
            ("time,1\n", Some(1)),
            ("0,1,2\n", Some(1)),
            ("10,1\n5,2\n", Some(2)),
            ("0,1\n2015-02-02T14:19:00Z,2\n", Some(2)),
            ("2015-02-02T14:19:00,2\n2015-02-02T14:19:00Z,2\n", Some(2)),
        ] {
            let bad = parse(text).unwrap_err();
            assert_eq!(bad.line, line, "{text:?}: {}", bad.what);
        }
        let bad = Recording::parse(b"0,1\n\xff,2\n").unwrap_err();
        assert_eq!(bad.line, Some(2));
    }

    #[test]
    fn no_position_is_out_of_the_recording() {
        let one = parse("5,7").unwrap();
        let same = parse("5,7\n5,8").unwrap();
        let two = parse("0,7\n1,8").unwrap();
        for played in [0.0, 1e300, -3.5, f64::INFINITY, f64::NAN] {
            assert_eq!(one.light_at(played), 7.0);
            assert_eq!(same.light_at(played), 8.0);
            assert!([7.0, 8.0].contains(&two.light_at(played)));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_breaks_the_player(
            rows in "(([0-9]{1,3}|-?1e9|[a-zT: ]{0,4}|#)(,| , )([0-9.]{1,4}|nan|x)?\\PC?\\n){0,5}",
            played in proptest::num::f64::ANY,
        ) {
            if let Ok(recording) = parse(&rows) {
                let light = recording.light_at(played);
                assert!(recording.rows.iter().any(|row| row.1 == light && light.is_finite()));
            }
        }
    }
}
