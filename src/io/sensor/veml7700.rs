//! VEML7700, a light sensor with a 16-bit converter and the eye's sensitivity, on I2C at 0x10.
//!
//! - Unit: lux. Error: 10 % up to 1,000 lx, beyond that the maker's correction of what the chip does not
//!   count, whose error the maker does not give.
//! - Range: 0 to 140,000 lx; more is an error, not a number.
//! - Resolution: 0.034 lx below 100 lx; 0.54 lx above, growing with the correction.
//! - Time of a measurement: 100 ms; the chip measures without end, so a reading waits only when the
//!   setting has just been changed (205 ms).
//! - Source: Vishay, VEML7700 data sheet (document 84286, Rev. 1.7 or later: "Command register format",
//!   0.0042 lx a count where earlier ones said 0.0036) and application note 84323 ("Designing the
//!   VEML7700 into an application": start-up time, choice of gain, correction).
//!
//! Two settings: gain 1/8 for daylight, and gain 2 where the note allows it, below 100 lx. The register's
//! number and the result have a repeated START between them, which the chip asks for.
//!
//! Tried with scripted buses, and with an EEPROM in its place in an emulated Pi; not yet with a real
//! VEML7700.

use std::fmt::Display;
use std::time::Duration;

use embedded_hal::i2c::I2c;

use super::SensorError;
use super::device::{Chip, Device, MeasurementClock};

const CONFIGURATION: u8 = 0x00;
const POWER_SAVING: u8 = 0x03;
const RESULT: u8 = 0x04;
const SHUT_DOWN: u16 = 0x0001;
/// Power saving: a measurement only every 0.6 to 4.1 s.
const POWER_SAVING_ON: u16 = 0x0001;
/// The result of a saturated converter.
const SATURATED: u16 = 0xFFFF;
/// End of the range that the chip is made for, in lux.
const MAX_LUX: f64 = 140_000.0;
/// The dim setting is taken below the one and left above the other, in lux.
const DIM_BELOW: f64 = 80.0;
const DIM_UNTIL: f64 = 120.0;
/// From setting to result: 2.5 ms to start, and two times 100 ms, since the chip's own clock may be slow.
const SETTLING: Duration = Duration::from_millis(205);

/// How the chip measures: always for 100 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    /// Gain 1/8.
    Daylight,
    /// Gain 2.
    Dim,
}

impl Setting {
    /// The word of the configuration register; bits 11 and 12 are the gain.
    fn word(self) -> u16 {
        match self {
            Self::Daylight => 0b10 << 11,
            Self::Dim => 0b01 << 11,
        }
    }

    fn lux(self, counts: u16) -> f64 {
        // 0.0042 lx at gain 2 and 800 ms; the rest is proportion.
        match self {
            Self::Daylight => corrected(f64::from(counts) * 0.0042 * 8.0 * 16.0),
            Self::Dim => f64::from(counts) * 0.0042 * 8.0,
        }
    }
}

/// What the chip counts too little of in bright light, given back (application note, "Lux correction").
fn corrected(lux: f64) -> f64 {
    if lux <= 1_000.0 {
        return lux;
    }
    lux * (1.0023 + lux * (8.1488e-5 + lux * (-9.3924e-9 + lux * 6.0135e-13)))
}

/// A VEML7700.
#[derive(Debug)]
pub(crate) struct Veml7700<B, T> {
    device: Device<B>,
    time: T,
    /// Unknown at first and after an error.
    set: Option<Setting>,
}

impl<B, T> Veml7700<B, T> {
    /// A driver for the chip at `device`.
    pub(crate) fn new(device: Device<B>, time: T) -> Self {
        let set = None;
        Self { device, time, set }
    }
}

impl<B, T> Chip for Veml7700<B, T>
where
    B: I2c + Send,
    B::Error: Display,
    T: MeasurementClock,
{
    /// Lux, 0..=140,000.
    fn measure_lux(&mut self) -> Result<f64, SensorError> {
        if self.set == Some(Setting::Dim) {
            let counts = self.measure(Setting::Dim)?;
            if counts < SATURATED && Setting::Dim.lux(counts) <= DIM_UNTIL {
                return Ok(Setting::Dim.lux(counts));
            }
        }
        let counts = self.measure(Setting::Daylight)?;
        let lux = Setting::Daylight.lux(counts);
        if counts == SATURATED || lux > MAX_LUX {
            return Err(self.device.too_bright(MAX_LUX));
        }
        if lux >= DIM_BELOW {
            return Ok(lux);
        }
        match self.measure(Setting::Dim)? {
            // It has become bright meanwhile: the next reading will tell.
            SATURATED => Ok(lux),
            counts => Ok(Setting::Dim.lux(counts)),
        }
    }

    fn reset(&mut self) {
        self.set = None;
    }
}

impl<B, T> Veml7700<B, T>
where
    B: I2c + Send,
    B::Error: Display,
    T: MeasurementClock,
{
    fn measure(&mut self, setting: Setting) -> Result<u16, SensorError> {
        if self.set != Some(setting) {
            self.write(CONFIGURATION, setting.word() | SHUT_DOWN)?;
            self.write(CONFIGURATION, setting.word())?;
            // Only somebody else can have switched it on: without that there is nothing to write.
            if self.word(POWER_SAVING)? & POWER_SAVING_ON != 0 {
                self.write(POWER_SAVING, 0)?;
            }
            self.set = Some(setting);
            self.time.wait(SETTLING);
        }
        self.word(RESULT)
    }

    fn word(&mut self, register: u8) -> Result<u16, SensorError> {
        self.device.read_after(&[register]).map(u16::from_le_bytes)
    }

    fn write(&mut self, register: u8, word: u16) -> Result<(), SensorError> {
        let [low, high] = word.to_le_bytes();
        self.device.write(&[register, low, high])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sensor::Sensor;
    use crate::io::sensor::device::script::{ManualClock, SILENCE};
    use embedded_hal_mock::eh1::i2c::{Mock, Transaction};

    const AT: u8 = 0x10;

    fn sets(high: u8) -> Vec<Transaction> {
        vec![
            Transaction::write(AT, vec![0x00, 0x01, high]),
            Transaction::write(AT, vec![0x00, 0x00, high]),
            Transaction::write_read(AT, vec![0x03], vec![0x00, 0x00]),
        ]
    }

    fn gives(counts: u16) -> Vec<Transaction> {
        let word = counts.to_le_bytes().to_vec();
        vec![Transaction::write_read(AT, vec![0x04], word)]
    }

    const DAYLIGHT: u8 = 0x10;
    const DIM: u8 = 0x08;

    fn chip(script: &[Vec<Transaction>]) -> (Veml7700<Mock, ManualClock>, Mock, ManualClock) {
        let (bus, clock) = (Mock::new(&script.concat()), ManualClock::default());
        let device = Device::new(bus.clone(), 1, &[AT]);
        (Veml7700::new(device, clock.clone()), bus, clock)
    }

    fn about(light: f64, expected: f64) {
        assert!((light - expected).abs() < 0.005 * expected, "{light}");
    }

    #[test]
    fn only_a_changed_setting_is_waited_for() {
        let (mut chip, mut bus, clock) = chip(&[sets(DAYLIGHT), gives(1_000), gives(1_010)]);
        about(chip.read().unwrap(), 537.6);
        assert_eq!(clock.now(), SETTLING);
        about(chip.read().unwrap(), 543.0);
        assert_eq!(clock.now(), SETTLING);
        bus.done();
    }

    #[test]
    fn dusk_and_dawn_change_the_gain_once_each() {
        let (mut chip, mut bus, _) = chip(&[
            sets(DAYLIGHT),
            gives(140),
            sets(DIM),
            gives(2_240),
            gives(0),
            gives(1),
            gives(3_500),
            gives(3_600),
            sets(DAYLIGHT),
            gives(225),
        ]);
        about(chip.read().unwrap(), 75.3);
        assert_eq!(chip.read().unwrap(), 0.0);
        about(chip.read().unwrap(), 0.0336);
        about(chip.read().unwrap(), 117.6);
        about(chip.read().unwrap(), 120.96);
        bus.done();
    }

    #[test]
    fn bright_light_is_corrected_and_never_falls_with_more_counts() {
        // The note's polynomial, worked out by clock for 10,000 lx.
        assert_eq!(corrected(10_000.0).round(), 14_793.0);
        let mut before = -1.0;
        for counts in 0..=SATURATED {
            let lux = Setting::Daylight.lux(counts);
            assert!(lux.is_finite() && lux > before, "{counts}: {lux}");
            before = lux;
        }
    }

    #[test]
    fn more_light_than_the_chip_can_tell_is_an_error() {
        for counts in [SATURATED, 60_000] {
            let (mut chip, mut bus, _) = chip(&[sets(DAYLIGHT), gives(counts)]);
            let error = chip.read().unwrap_err();
            assert!(matches!(error, SensorError::TooBright { .. }), "{error}");
            bus.done();
        }
        let (mut chip, mut bus, _) = chip(&[sets(DAYLIGHT), gives(41_000)]);
        assert!((90_000.0..MAX_LUX).contains(&chip.read().unwrap()));
        bus.done();
    }

    #[test]
    fn power_saving_of_somebody_else_is_switched_off() {
        let mut script = sets(DAYLIGHT);
        script.pop();
        script.extend([
            Transaction::write_read(AT, vec![0x03], vec![0x07, 0x00]),
            Transaction::write(AT, vec![0x03, 0x00, 0x00]),
        ]);
        let (mut chip, mut bus, _) = chip(&[script, gives(1_000)]);
        about(chip.read().unwrap(), 537.6);
        bus.done();
    }

    #[test]
    fn a_lamp_switched_on_between_two_measurements_blinds_nobody() {
        let (mut chip, mut bus, _) =
            chip(&[sets(DAYLIGHT), gives(10), sets(DIM), gives(SATURATED)]);
        about(chip.read().unwrap(), 5.376);
        bus.done();
    }

    #[test]
    fn an_absent_chip_is_named_by_its_address() {
        let silent = Transaction::write(AT, vec![0x00, 0x01, DAYLIGHT]).with_error(SILENCE);
        let (mut chip, mut bus, _) = chip(&[vec![silent]]);
        let text = chip.read().unwrap_err().to_string();
        assert!(text.contains("at 0x10:"), "{text}");
        bus.done();
    }
}
