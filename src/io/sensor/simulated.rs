//! An invented light sensor: a day in ten minutes, with dusk and dawn, clouds and noise. For
//! demonstrations and trials where there is no sensor.
//!
//! It begins at noon. The same seed gives the same days, so that a trial can be repeated. Nothing
//! is kept between readings: the light is a function of the seed and of the time.

use std::f64::consts::TAU;
use std::time::{Duration, Instant};

use super::{Sensor, SensorError};

/// The length of a day at speed 1.
pub const DAY: Duration = Duration::from_secs(600);

/// The seed, unless another is wanted.
pub(crate) const SEED: u64 = 0x006e_6967_6874;

/// The light of a clear noon and of the middle of the night's range, in lux or thereabouts.
const NOON: f64 = 700.0;
const NIGHT: f64 = 12.5;
/// How far the night's light strays from its middle.
const NIGHT_STRAY: f64 = 6.5;
/// Most of the daylight that a cloud takes. What is left of noon is well above the usual
/// thresholds (300, 350): clouds make a demonstration lively, dusk and dawn make it switch.
const CLOUD: f64 = 0.4;
/// Clouds that may pass in a day.
const CLOUDS_A_DAY: f64 = 24.0;
/// The most by which a reading errs, as a share of it.
const NOISE: f64 = 0.02;
/// Times a day that the error is another one.
const NOISES_A_DAY: f64 = 86_400.0;

/// A sensor that invents its days.
#[derive(Debug)]
pub struct Simulated {
    day: Duration,
    speed: f64,
    seed: u64,
    opened: Instant,
}

impl Simulated {
    /// Days of the length `day` that pass `speed` times as fast, from noon.
    pub fn new(day: Duration, speed: f64, seed: u64) -> Self {
        Self {
            day,
            speed,
            seed,
            opened: Instant::now(),
        }
    }
}

impl Sensor for Simulated {
    fn read(&mut self) -> Result<f64, SensorError> {
        let elapsed = self.opened.elapsed().as_secs_f64() * self.speed;
        Ok(light(self.seed, elapsed / self.day.as_secs_f64()))
    }
}

/// The light, 0..=1000, when `days` have passed since the first noon.
///
/// Days beyond counting (of a length of nothing) are the first noon.
pub fn light(seed: u64, days: f64) -> f64 {
    let days = if days.abs() < 1e9 { days } else { 0.0 };
    // The height of the sun: 1 at noon, -1 at midnight.
    let sun = (days * TAU).cos();
    let daylight = (NOON - NIGHT) * smooth((sun + 0.25).clamp(0.0, 1.0));
    let cover = drift(seed, Stream::Clouds, days * CLOUDS_A_DAY);
    let clouds = CLOUD * smooth((cover * 2.0 - 1.0).max(0.0));
    let night = NIGHT + NIGHT_STRAY * (drift(seed, Stream::Night, days * CLOUDS_A_DAY) * 2.0 - 1.0);
    let noise = NOISE * (chance(seed, Stream::Noise, days * NOISES_A_DAY) * 2.0 - 1.0);
    ((night + daylight * (1.0 - clouds)) * (1.0 + noise)).clamp(0.0, 1000.0)
}

/// What the chances are for; each has its own.
#[derive(Debug, Clone, Copy)]
enum Stream {
    Clouds = 1,
    Night = 2,
    Noise = 3,
}

/// Goes smoothly from one chance to the next; 0..1. This is value noise in one dimension.
fn drift(seed: u64, stream: Stream, at: f64) -> f64 {
    let (from, to) = (chance(seed, stream, at), chance(seed, stream, at + 1.0));
    from + (to - from) * smooth(at - at.floor())
}

/// A number in 0..1 that depends on nothing but these.
fn chance(seed: u64, stream: Stream, at: f64) -> f64 {
    // An odd multiplier spreads neighbouring places over all seeds.
    let place = (at.floor() as i64 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut rng = fastrand::Rng::with_seed(seed ^ place.rotate_left(8 * stream as u32));
    rng.f64()
}

/// From 0 to 1 without a corner at either end: 3x^2 - 2x^3.
fn smooth(x: f64) -> f64 {
    x * x * (3.0 - 2.0 * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: u32 = 20_000;

    fn day(seed: u64) -> impl Iterator<Item = (f64, f64)> {
        (0..STEPS).map(move |step| {
            let days = f64::from(step) / f64::from(STEPS);
            (days, light(seed, days))
        })
    }

    #[test]
    fn a_day_is_bright_then_dark_then_bright_for_every_seed() {
        for seed in 0..200 {
            for (days, light) in day(seed) {
                assert!((0.0..=1000.0).contains(&light));
                if !(0.05..0.95).contains(&days) {
                    assert!(light > 350.0, "seed {seed}, day {days}: {light}");
                }
                if (0.4..0.6).contains(&days) {
                    assert!((5.0..20.0).contains(&light), "seed {seed}, {days}: {light}");
                }
            }
        }
    }

    #[test]
    fn noon_is_about_700_and_clouds_take_some_of_it() {
        let noons: Vec<f64> = (0..500).map(|day| light(SEED, f64::from(day))).collect();
        let brightest = noons.iter().copied().fold(0.0, f64::max);
        let darkest = noons.iter().copied().fold(1000.0, f64::min);
        assert!((680.0..730.0).contains(&brightest), "{brightest}");
        assert!((400.0..560.0).contains(&darkest), "{darkest}");
        assert!(light(SEED, 0.0) > 600.0);
    }

    #[test]
    fn the_same_seed_is_the_same_day_and_another_is_another() {
        assert!(day(7).eq(day(7)));
        assert!(!day(7).eq(day(8)));
    }

    #[test]
    fn the_light_does_not_jump_by_more_than_noise_and_a_step_of_the_sky() {
        let mut before = light(SEED, 0.0);
        for (days, light) in day(SEED) {
            assert!(
                (light - before).abs() <= before * 2.1 * NOISE + 3.0,
                "{days}"
            );
            before = light;
        }
    }

    #[test]
    fn no_time_and_no_length_of_a_day_is_out_of_bounds() {
        for days in [0.0, -1.5, 1e18, f64::MAX, f64::INFINITY, f64::NAN] {
            assert!((0.0..=1000.0).contains(&light(SEED, days)), "{days}");
        }
        let mut none = Simulated::new(Duration::ZERO, 1.0, SEED);
        assert!(none.read().unwrap().is_finite());
    }
}
