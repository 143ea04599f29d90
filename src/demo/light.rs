//! What light the agent is given: so that it crosses the thresholds while the cable is out.
//!
//! The invented day is played at a speed at which dusk falls then; of a recording, the stretch is cut
//! out in which the light changes most clearly. Decides before the demonstration begins; called by
//! `demo::run`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::{CROSSES_AT, OFF_ABOVE, ON_BELOW};
use crate::io::sensor::simulated;
use crate::io::sensor::trace::Recording;

/// What is played before and after the crossing, in seconds of the demonstration. After it, the cable
/// is still out for about a third.
const BEFORE: f64 = CROSSES_AT;
const AFTER: f64 = 40.0;
/// The cut-out goes on for so long, should the demonstration be slow; then it starts over.
const RESERVE: f64 = 600.0;
/// Rows of the recording in one second of the demonstration that are tried, the calmest first.
const ROWS_A_SECOND: [f64; 6] = [1.0, 0.5, 2.0, 4.0, 0.2, 8.0];
/// Crossings that are looked at; with more, the recording is mostly noise.
const MOST_CROSSINGS: usize = 500;
/// How often a second the played light is looked at to judge a stretch.
const LOOKS: u32 = 2;
/// What the configuration takes as `sensor.speed`.
const SPEEDS: std::ops::RangeInclusive<f64> = 0.001..=1_000_000.0;

/// The light of one demonstration.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Light {
    /// The cut-out; none for the invented day.
    pub(super) recording: Option<PathBuf>,
    /// How much faster than life it is played.
    pub(super) speed: f64,
    /// What the LED becomes while the cable is out; none when the light never crosses.
    pub(super) becomes: Option<bool>,
}

impl Light {
    /// The invented day, which begins at noon, so fast that dusk falls at [`CROSSES_AT`].
    pub(super) fn of_a_day() -> Self {
        let dusk = (0..10_000)
            .map(|step| f64::from(step) / 10_000.0)
            .find(|days| simulated::light(simulated::SEED, *days) < ON_BELOW);
        // Every day has a dusk before its half; this is only where it is on the average.
        let dusk = dusk.unwrap_or(0.2);
        Self {
            recording: None,
            speed: dusk * simulated::DAY.as_secs_f64() / CROSSES_AT,
            becomes: Some(true),
        }
    }

    /// The best stretch of the recording in `file`, cut out into `folder`.
    ///
    /// # Errors
    /// The recording cannot be read or the cut-out not be written, in words.
    pub(super) fn of_recording(file: &Path, folder: &Path) -> Result<Self, String> {
        let recording = Recording::read(file).map_err(|error| error.to_string())?;
        let stretch = choose(&recording);
        let copy = folder.join("recording.csv");
        fs::write(&copy, cut_out(&recording, &stretch))
            .map_err(|error| format!("{} cannot be written: {error}", copy.display()))?;
        Ok(Self {
            recording: Some(copy),
            speed: stretch.speed,
            becomes: stretch.becomes,
        })
    }
}

/// Plays the light into the file that the agent's sensor reads.
#[derive(Debug)]
pub(super) struct Player {
    recording: Option<Recording>,
    speed: f64,
}

impl Player {
    /// Reads the recording, if there is one.
    ///
    /// # Errors
    /// It cannot be read, in words.
    pub(super) fn new(light: &Light) -> Result<Self, String> {
        let recording = light.recording.as_deref().map(Recording::read);
        Ok(Self {
            recording: recording.transpose().map_err(|error| error.to_string())?,
            speed: light.speed,
        })
    }

    /// The light `seconds` after the beginning.
    pub(super) fn at(&self, seconds: f64) -> f64 {
        let played = seconds * self.speed;
        match &self.recording {
            Some(recording) => recording.light_at(played),
            None => simulated::light(simulated::SEED, played / simulated::DAY.as_secs_f64()),
        }
    }
}

/// A stretch of a recording. Positions are in seconds of the recording and may lie before its
/// beginning: there, and behind its end, the light stands still.
#[derive(Debug, Clone, PartialEq)]
struct Stretch {
    from: f64,
    speed: f64,
    becomes: Option<bool>,
}

/// The crossing with the calmest light before and after it, at the best speed; dusk before dawn.
fn choose(recording: &Recording) -> Stretch {
    let rows = recording.rows();
    let span = rows.last().map_or(0.0, |(at, _)| *at);
    let gap = span / (rows.len().max(2) - 1) as f64;
    let mut best: Option<(f64, Stretch)> = None;
    for (at, becomes) in crossings(rows).into_iter().take(MOST_CROSSINGS) {
        for a_second in ROWS_A_SECOND {
            let speed = (gap * a_second).clamp(*SPEEDS.start(), *SPEEDS.end());
            let stretch = Stretch {
                from: at - BEFORE * speed,
                speed,
                becomes: Some(becomes),
            };
            // Dusk is the better story: it wins unless dawn is much clearer.
            let score = clearness(rows, at, &stretch) + if becomes { 0.1 } else { 0.0 };
            if best.as_ref().is_none_or(|(most, _)| score > *most) {
                best = Some((score, stretch));
            }
        }
    }
    best.map_or_else(
        || Stretch {
            from: 0.0,
            speed: (span / (BEFORE + AFTER)).clamp(*SPEEDS.start(), *SPEEDS.end()),
            becomes: None,
        },
        |(_, stretch)| stretch,
    )
}

/// Where the local rule, left alone with the recording, would switch the LED.
fn crossings(rows: &[(f64, f64)]) -> Vec<(f64, bool)> {
    let mut crossings = Vec::new();
    let mut led_on = None;
    for &(at, light) in rows {
        let now = match light {
            light if light < ON_BELOW => Some(true),
            light if light > OFF_ABOVE => Some(false),
            _ => led_on,
        };
        if let (Some(was), Some(now)) = (led_on, now)
            && was != now
        {
            crossings.push((at, now));
        }
        led_on = now;
    }
    crossings
}

/// How much of the stretch is on the right side of the thresholds: 0 to 2, one for before the
/// crossing and one for after it.
fn clearness(rows: &[(f64, f64)], crossing: f64, stretch: &Stretch) -> f64 {
    // What comes long after the crossing is told with the cable in.
    let after = AFTER / 2.0;
    let share = |from: f64, seconds: f64, wanted: bool| {
        let looks = (seconds * f64::from(LOOKS)) as u32;
        let right = (0..looks).filter(|look| {
            let at = from + f64::from(*look) / f64::from(LOOKS) * stretch.speed;
            let light = light_at(rows, at);
            if wanted {
                light < ON_BELOW
            } else {
                light > OFF_ABOVE
            }
        });
        right.count() as f64 / f64::from(looks.max(1))
    };
    let becomes = stretch.becomes.unwrap_or_default();
    share(stretch.from, BEFORE, !becomes) + share(crossing, after, becomes)
}

/// The light at a position; still before the first row and behind the last.
fn light_at(rows: &[(f64, f64)], at: f64) -> f64 {
    let after = rows.partition_point(|(row, _)| *row <= at);
    rows.get(after.saturating_sub(1))
        .map_or(0.0, |(_, light)| *light)
}

/// The stretch as a recording of its own, which begins where the demonstration does.
fn cut_out(recording: &Recording, stretch: &Stretch) -> String {
    let rows = recording.rows();
    let until = stretch.from + (BEFORE + AFTER) * stretch.speed;
    let mut text = format!("time,lux\n0,{}\n", light_at(rows, stretch.from));
    let inside = rows
        .iter()
        .filter(|(at, _)| *at > stretch.from && *at <= until);
    for (at, light) in inside {
        // Writing into a text cannot fail.
        let _ = writeln!(text, "{},{light}", at - stretch.from);
    }
    let end = (BEFORE + AFTER + RESERVE) * stretch.speed;
    let _ = writeln!(text, "{end},{}", light_at(rows, until));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(rows: &[(u32, u32)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("own.csv");
        let lines: Vec<_> = rows
            .iter()
            .map(|(at, lux)| format!("{at},{lux}\n"))
            .collect();
        fs::write(&file, lines.concat()).unwrap();
        (folder, file)
    }

    /// What the agent's sensor gives, a value for each half second of the demonstration.
    fn played(light: &Light) -> Vec<f64> {
        let cut = Recording::read(light.recording.as_ref().unwrap()).unwrap();
        let at = |half: u32| cut.light_at(f64::from(half) / 2.0 * light.speed);
        (0..124).map(at).collect()
    }

    #[test]
    fn dusk_of_the_day_falls_when_it_should_and_lasts() {
        let light = Light::of_a_day();
        let at = |seconds: f64| {
            let days = seconds * light.speed / simulated::DAY.as_secs_f64();
            simulated::light(simulated::SEED, days)
        };
        assert!(at(0.0) > 600.0 && at(CROSSES_AT - 4.0) > ON_BELOW);
        for seconds in 28..70 {
            assert!(at(f64::from(seconds)) < ON_BELOW, "{seconds}");
        }
    }

    #[test]
    fn the_evening_of_a_recording_is_put_where_the_cable_is_out() {
        // A minute a row: two hours of day with a flicker, a night, and a day.
        let rows: Vec<_> = (0..400)
            .map(|minute| {
                let lux = match minute {
                    10 => 50,
                    0..120 | 240.. => 500,
                    _ => 3,
                };
                (minute * 60, lux)
            })
            .collect();
        let (folder, file) = recording(&rows);
        let light = Light::of_recording(&file, folder.path()).unwrap();
        assert_eq!((light.becomes, light.speed), (Some(true), 60.0));
        let played = played(&light);
        assert!(played[..43].iter().all(|light| *light == 500.0));
        assert!(played[45..].iter().all(|light| *light == 3.0));
    }

    #[test]
    fn a_morning_does_where_there_is_no_evening() {
        let (folder, file) = recording(&[(0, 10), (1, 400)]);
        let light = Light::of_recording(&file, folder.path()).unwrap();
        assert_eq!(light.becomes, Some(false));
        let played = played(&light);
        assert_eq!((played[40], played[50], played[120]), (10.0, 400.0, 400.0));
    }

    #[test]
    fn a_recording_that_never_crosses_is_played_as_it_is() {
        for rows in [&[(5, 320)][..], &[(0, 10), (100, 340), (200, 20)]] {
            let (folder, file) = recording(rows);
            let light = Light::of_recording(&file, folder.path()).unwrap();
            assert_eq!(light.becomes, None);
            assert!(SPEEDS.contains(&light.speed));
            assert_eq!(played(&light)[0], f64::from(rows[0].1));
        }
    }

    #[test]
    fn what_is_no_recording_is_told() {
        let (folder, file) = recording(&[]);
        assert!(Light::of_recording(&file, folder.path()).is_err());
        assert!(Light::of_recording(Path::new("/no/such.csv"), folder.path()).is_err());
    }
}
