//! TSL2591, a light sensor with two converters, one for all light and one for infrared, on I2C at 0x29.
//!
//! - Unit: lux, worked out from both converters. Error: the maker gives none and no formula; this one is
//!   Adafruit's, and lamps with much infrared (candles, halogen) are its weak side.
//! - Range: 0 to about 88,000 lx (data sheet); a full converter is an error, not a number.
//! - Resolution: 0.01 lx below 20 lx, 0.2 lx below 4,000 lx, 4 lx above.
//! - Time of a measurement: 100 ms; the chip measures without end, so a reading waits only when the
//!   gain has just been changed (120 ms).
//! - Source: ams, TSL2591 data sheet (2013, v1-40): "Register description" (ENABLE, CONTROL, STATUS, ID,
//!   ALS data), "Optical characteristics" (gains, full scale of 36,863 at 100 ms); the formula:
//!   Adafruit_TSL2591, `calculateLux`.
//!
//! In the dark, and in pure infrared, the formula divides by zero or gives light where there is none;
//! both are 0 lx here.
//!
//! Tried with scripted buses; not yet with a real TSL2591.

use std::fmt::Display;
use std::time::Duration;

use embedded_hal::i2c::I2c;

use super::SensorError;
use super::device::{Chip, Device, MeasurementClock};

/// Commands: register accesses are marked with 0xA0.
const ENABLE: u8 = 0xA0;
const CONTROL: u8 = 0xA0 | 0x01;
const ID: u8 = 0xA0 | 0x12;
const STATUS: u8 = 0xA0 | 0x13;
const DATA: u8 = 0xA0 | 0x14;

const POWER: u8 = 0x01;
const MEASURE: u8 = 0x02;
const VALID: u8 = 0x01;
const CHIP_ID: u8 = 0x50;
/// The result of a saturated converter at 100 ms.
const SATURATED: u16 = 36_863;
/// From so many counts on, the gain is lowered.
const GAIN_DOWN_AT: u16 = 33_000;
/// Below so many counts the gain is raised; far enough from [`GAIN_DOWN_AT`] / 25 that no light is between two gains.
const GAIN_UP_AT: u16 = 500;
/// End of the range in the data sheet, in lux.
const MAX_LUX: f64 = 88_000.0;
/// A measurement, with the error of the chip's clock.
const MEASUREMENT: Duration = Duration::from_millis(120);
/// So many polls without a valid result, a tenth of a measurement apart, and the chip counts as broken.
const POLL_ATTEMPTS: u32 = 10;

/// Bits 4 and 5 of CONTROL, and what they multiply by.
const GAINS: [(u8, f64); 3] = [(0x00, 1.0), (0x10, 25.0), (0x20, 428.0)];
/// The gain for a lit room, used first after each start.
const MEDIUM_GAIN: usize = 1;

/// A TSL2591.
#[derive(Debug)]
pub(crate) struct Tsl2591<B, T> {
    device: Device<B>,
    time: T,
    /// Which of the gains is set; unknown at first and after an error.
    gain: Option<usize>,
}

impl<B, T> Tsl2591<B, T> {
    /// A driver for the chip at `device`.
    pub(crate) fn new(device: Device<B>, time: T) -> Self {
        let gain = None;
        Self { device, time, gain }
    }
}

impl<B, T> Chip for Tsl2591<B, T>
where
    B: I2c + Send,
    B::Error: Display,
    T: MeasurementClock,
{
    /// Lux, 0 and up.
    fn measure_lux(&mut self) -> Result<f64, SensorError> {
        let mut gain = match self.gain {
            Some(gain) => gain,
            None => {
                let [id] = self.device.read_after(&[ID])?;
                if id != CHIP_ID {
                    return Err(self.device.wrong_chip("TSL2591", id.into()));
                }
                self.set(MEDIUM_GAIN)?
            }
        };
        // Each gain is tried once, so that a flickering lamp does not hold a reading up.
        for _ in 1..GAINS.len() {
            let (all, infrared) = self.counts()?;
            gain = match all.max(infrared) {
                GAIN_DOWN_AT.. if gain > 0 => self.set(gain - 1)?,
                0..GAIN_UP_AT if gain + 1 < GAINS.len() => self.set(gain + 1)?,
                _ => return self.result(gain, all, infrared),
            };
        }
        let (all, infrared) = self.counts()?;
        self.result(gain, all, infrared)
    }

    fn reset(&mut self) {
        self.gain = None;
    }
}

impl<B, T> Tsl2591<B, T>
where
    B: I2c + Send,
    B::Error: Display,
    T: MeasurementClock,
{
    fn result(&self, gain: usize, all: u16, infrared: u16) -> Result<f64, SensorError> {
        if all.max(infrared) >= SATURATED {
            return Err(self.device.too_bright(MAX_LUX));
        }
        Ok(lux(GAINS[gain].1, all, infrared))
    }

    /// Counts of the newest measurement: all light, infrared.
    fn counts(&mut self) -> Result<(u16, u16), SensorError> {
        for _ in 0..POLL_ATTEMPTS {
            let [status] = self.device.read_after(&[STATUS])?;
            if status & VALID != 0 {
                let [a, b, c, d] = self.device.read_after(&[DATA])?;
                return Ok((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])));
            }
            self.time.wait(MEASUREMENT / 10);
        }
        Err(self
            .device
            .not_measuring("it does not finish a measurement"))
    }

    /// Stopped and started, so that what follows is measured with this gain from the beginning.
    fn set(&mut self, gain: usize) -> Result<usize, SensorError> {
        self.device.write(&[ENABLE, POWER])?;
        self.device.write(&[CONTROL, GAINS[gain].0])?;
        self.device.write(&[ENABLE, POWER | MEASURE])?;
        self.gain = Some(gain);
        self.time.wait(MEASUREMENT);
        Ok(gain)
    }
}

/// 408 is the formula's factor for the bare chip; a measurement is 100 ms.
fn lux(gain: f64, all: u16, infrared: u16) -> f64 {
    let (all, infrared) = (f64::from(all), f64::from(infrared));
    if infrared >= all {
        return 0.0;
    }
    (all - infrared) * (1.0 - infrared / all) * 408.0 / (100.0 * gain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sensor::Sensor;
    use crate::io::sensor::device::script::ManualClock;
    use embedded_hal_mock::eh1::i2c::{Mock, Transaction};

    const AT: u8 = 0x29;

    fn reads(command: u8, bytes: &[u8]) -> Vec<Transaction> {
        vec![Transaction::write_read(AT, vec![command], bytes.to_vec())]
    }

    fn sets(gain: u8) -> Vec<Transaction> {
        [[0xA0, 0x01], [0xA1, gain], [0xA0, 0x03]]
            .map(|bytes| Transaction::write(AT, bytes.to_vec()))
            .to_vec()
    }

    fn reports(all: u16, infrared: u16) -> Vec<Transaction> {
        let bytes = [all.to_le_bytes(), infrared.to_le_bytes()].concat();
        [reads(0xB3, &[0x01]), reads(0xB4, &bytes)].concat()
    }

    fn identifies() -> Vec<Transaction> {
        [reads(0xB2, &[0x50]), sets(0x10)].concat()
    }

    fn chip(script: &[Vec<Transaction>]) -> (Tsl2591<Mock, ManualClock>, Mock, ManualClock) {
        let (bus, clock) = (Mock::new(&script.concat()), ManualClock::default());
        let device = Device::new(bus.clone(), 1, &[AT]);
        (Tsl2591::new(device, clock.clone()), bus, clock)
    }

    #[test]
    fn a_room_is_read_without_waiting_after_the_first_time() {
        let script = [identifies(), reports(4_000, 1_000), reports(4_000, 2_000)];
        let (mut chip, mut bus, clock) = chip(&script);
        assert!((chip.read().unwrap() - 367.2).abs() < 0.01);
        assert_eq!(clock.now(), MEASUREMENT);
        assert!((chip.read().unwrap() - 163.2).abs() < 0.01);
        assert_eq!(clock.now(), MEASUREMENT);
        bus.done();
    }

    #[test]
    fn the_gain_follows_the_light() {
        let (mut chip, mut bus, _) = chip(&[
            identifies(),
            reports(100, 20),
            sets(0x20),
            reports(1_712, 342),
            reports(36_863, 9_000),
            sets(0x10),
            reports(36_863, 9_000),
            sets(0x00),
            reports(20_000, 5_000),
        ]);
        assert!((chip.read().unwrap() - 10.45).abs() < 0.01);
        assert!((chip.read().unwrap() - 45_900.0).abs() < 1.0);
        bus.done();
    }

    #[test]
    fn the_dark_and_pure_infrared_are_nothing() {
        for (all, infrared) in [(0, 0), (0, 7), (7, 7), (3, 9)] {
            let script = [
                identifies(),
                reports(all, infrared),
                sets(0x20),
                reports(all, infrared),
            ];
            let (mut chip, mut bus, _) = chip(&script);
            assert_eq!(chip.read().unwrap(), 0.0);
            bus.done();
        }
    }

    #[test]
    fn every_pair_of_counts_is_a_light() {
        for all in (0..SATURATED).step_by(97) {
            for infrared in (0..SATURATED).step_by(101) {
                let light = lux(1.0, all, infrared);
                assert!(light.is_finite() && light >= 0.0, "{all} {infrared}");
            }
        }
    }

    #[test]
    fn a_full_converter_at_the_least_gain_is_an_error() {
        let blinding = reports(SATURATED, 9_000);
        let (mut chip, mut bus, _) = chip(&[identifies(), blinding.clone(), sets(0x00), blinding]);
        let error = chip.read().unwrap_err();
        assert!(matches!(error, SensorError::TooBright { .. }), "{error}");
        bus.done();
    }

    #[test]
    fn another_chip_at_this_address_is_told_and_not_written_to() {
        let (mut chip, mut bus, _) = chip(&[reads(0xB2, &[0xEE])]);
        let text = chip.read().unwrap_err().to_string();
        assert!(text.contains("TSL2591") && text.contains("0xee"), "{text}");
        bus.done();
    }

    #[test]
    fn a_chip_that_does_not_measure_is_given_up_in_time() {
        let idle = vec![reads(0xB3, &[0x00]); POLL_ATTEMPTS as usize].concat();
        let (mut chip, mut bus, clock) = chip(&[identifies(), idle]);
        assert!(chip.read().unwrap_err().to_string().contains("finish"));
        assert!(clock.now() < Duration::from_millis(300));
        bus.done();
    }
}
