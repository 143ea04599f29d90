//! BH1750FVI, a light sensor with a 16-bit converter, on I2C at 0x23 (ADDR low) or 0x5C (ADDR high).
//!
//! - Unit: lux. Error: 20 % (the chip gives 0.96 to 1.44 counts per lux; 1.2 is taken).
//! - Range: 0 to 121,557 lx; more is an error, not a number.
//! - Resolution: 0.83 lx; 0.11 lx below 8 lx; 1.9 lx above 54,612 lx.
//! - Time of a measurement: at most 180 ms; 81 ms in bright light, 663 ms more in the dark.
//! - Source: ROHM, BH1750FVI technical note (2011.11, Rev. D): "Electrical characteristics",
//!   "Instruction set architecture", "Measurement sequence", "Adjust measurement result".
//!
//! The chip measures without end at its default setting (opcode 0x10, MTreg 69), so that a reading
//! finds a finished result and waits for nothing. Every reading sends the opcode again, in one transfer
//! with the reading of the result. That begins a new measurement and leaves the last result where it is
//! (seen by others: github.com/claws/BH1750, issues 59 and 61), so two readings are kept apart by the
//! time of one measurement: without that the result would never change. A chip that wants a STOP after
//! each opcode, as its data sheet says, ignores this one and measures on, with the same result.
//!
//! From the default setting it goes elsewhere for one reason each:
//! - The converter is full (0xFFFF): MTreg 31, and back below 45,000 lx. Full there too: an error.
//! - It counts less than 10: once more at MTreg 254 in mode 2, where a count is 0.11 lx, then back. The
//!   finer result counts only if it tells of the same light as the coarse one. A light that changed in
//!   between fails that, and so does a chip that is no whole BH1750 (clones without MTreg, an EEPROM in
//!   its place): after three failures in a row the coarse one is believed for good.
//!
//! Tried with scripted buses, and with an EEPROM in its place in an emulated Pi; not yet with a real
//! BH1750.

use std::fmt::Display;
use std::time::Duration;

use embedded_hal::i2c::I2c;

use super::SensorError;
use super::device::{Chip, Device, MeasurementClock};

/// Shortest interval of readings at which dim light is measured again with the fine setting, which takes
/// about 0.85 s.
pub(crate) const MIN_INTERVAL_FINE: Duration = Duration::from_secs(1);

const POWER_ON: u8 = 0x01;
/// The result of a saturated converter.
const SATURATED: u16 = 0xFFFF;
/// Below so many counts at the default setting the fine one is used: a count is then over 10 % of the light.
const MIN_COUNTS: u16 = 10;
/// The bright setting is left below this light, in lux; well below where the default setting saturates.
const BRIGHT_UNTIL: f64 = 45_000.0;
/// After so many fine results in a row that contradict the coarse one, no more are measured.
const MAX_CONTRADICTIONS: u8 = 3;

/// How the chip measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    /// 0x10 for high resolution, 0x11 for mode 2, which counts twice; both measure without end.
    opcode: u8,
    /// Measurement time register, 31..=254.
    mtreg: u8,
}

const NORMAL: Setting = Setting {
    opcode: 0x10,
    mtreg: 69,
};
const BRIGHT: Setting = Setting {
    opcode: 0x10,
    mtreg: 31,
};
const FINE: Setting = Setting {
    opcode: 0x11,
    mtreg: 254,
};

impl Setting {
    fn lux(self, counts: u16) -> f64 {
        let per_lux = 1.2 * f64::from(self.mtreg) / 69.0;
        let mode = if self.opcode == FINE.opcode { 2.0 } else { 1.0 };
        f64::from(counts) / per_lux / mode
    }

    /// The longest that a measurement takes.
    fn time(self) -> Duration {
        Duration::from_millis(180) * u32::from(self.mtreg) / 69
    }
}

/// A BH1750.
#[derive(Debug)]
pub(crate) struct Bh1750<B, T> {
    device: Device<B>,
    time: T,
    /// Whether the dark is measured finely.
    fine: bool,
    contradictions: u8,
    /// What the chip is set to, and when its measurement began; unknown at first and after an error.
    set: Option<(Setting, Duration)>,
}

impl<B, T> Bh1750<B, T> {
    /// A driver for the chip at `device`. `fine` asks for 0.1 lx in the dark, at the price of 0.85 s for
    /// a reading there.
    pub(crate) fn new(device: Device<B>, fine: bool, time: T) -> Self {
        Self {
            device,
            time,
            fine,
            contradictions: 0,
            set: None,
        }
    }
}

impl<B, T> Chip for Bh1750<B, T>
where
    B: I2c + Send,
    B::Error: Display,
    T: MeasurementClock,
{
    /// Lux, 0..=121,557.
    fn measure_lux(&mut self) -> Result<f64, SensorError> {
        if matches!(self.set, Some((BRIGHT, _))) {
            let lux = self.bright()?;
            if lux >= BRIGHT_UNTIL {
                return Ok(lux);
            }
        }
        let counts = self.measure(NORMAL)?;
        match counts {
            SATURATED => self.bright(),
            0..MIN_COUNTS if self.fine => self.fine(NORMAL.lux(counts)),
            _ => Ok(NORMAL.lux(counts)),
        }
    }

    fn reset(&mut self) {
        self.set = None;
    }
}

impl<B, T> Bh1750<B, T>
where
    B: I2c + Send,
    B::Error: Display,
    T: MeasurementClock,
{
    fn bright(&mut self) -> Result<f64, SensorError> {
        match self.measure(BRIGHT)? {
            SATURATED => Err(self.device.too_bright(BRIGHT.lux(SATURATED))),
            counts => Ok(BRIGHT.lux(counts)),
        }
    }

    /// `coarse` measured again, more finely.
    fn fine(&mut self, coarse: f64) -> Result<f64, SensorError> {
        let fine = FINE.lux(self.measure(FINE)?);
        // So that the next reading finds a result.
        self.set(NORMAL)?;
        // Two counts of the coarse setting for its rounding and for noise.
        if (fine - coarse).abs() <= NORMAL.lux(2) + 0.2 * coarse {
            self.contradictions = 0;
            return Ok(fine);
        }
        self.contradictions += 1;
        self.fine = self.contradictions < MAX_CONTRADICTIONS;
        Ok(coarse)
    }

    /// Counts of the newest measurement at a setting; waits for one if there is none yet.
    fn measure(&mut self, setting: Setting) -> Result<u16, SensorError> {
        let begun = match self.set {
            Some((is_set, begun)) if is_set == setting => begun,
            _ => self.set(setting)?,
        };
        let left = (begun + setting.time()).saturating_sub(self.time.now());
        if !left.is_zero() {
            self.time.wait(left);
        }
        let counts = self.device.read_after(&[setting.opcode])?;
        self.set = Some((setting, self.time.now()));
        Ok(u16::from_be_bytes(counts))
    }

    /// Sets the chip, whatever state it is in, and returns when its measurement began. The chip takes
    /// one instruction a transfer.
    fn set(&mut self, setting: Setting) -> Result<Duration, SensorError> {
        if self.set.is_none() {
            self.device.write(&[POWER_ON])?;
        }
        self.device.write(&[0x40 | setting.mtreg >> 5])?;
        self.device.write(&[0x60 | setting.mtreg & 0x1F])?;
        self.device.write(&[setting.opcode])?;
        let begun = self.time.now();
        self.set = Some((setting, begun));
        Ok(begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sensor::Sensor;
    use crate::io::sensor::device::script::{ManualClock, SILENCE};
    use embedded_hal::i2c::ErrorKind;
    use embedded_hal_mock::eh1::i2c::{Mock, Transaction};

    const AT: u8 = 0x23;

    /// The chip is set, and measures.
    fn sets(address: u8, setting: Setting) -> Vec<Transaction> {
        let (high, low) = (0x40 | setting.mtreg >> 5, 0x60 | setting.mtreg & 0x1F);
        [high, low, setting.opcode]
            .map(|opcode| Transaction::write(address, vec![opcode]))
            .to_vec()
    }

    fn wakes(address: u8) -> Vec<Transaction> {
        let mut script = vec![Transaction::write(address, vec![POWER_ON])];
        script.extend(sets(address, NORMAL));
        script
    }

    fn gives(setting: Setting, counts: u16) -> Vec<Transaction> {
        vec![Transaction::write_read(
            AT,
            vec![setting.opcode],
            counts.to_be_bytes().to_vec(),
        )]
    }

    fn device(bus: &Mock, number: u8, addresses: &[u8]) -> Device<Mock> {
        Device::new(bus.clone(), number, addresses)
    }

    /// A chip that follows the script; the clock tells how long the readings took.
    fn chip(script: &[Vec<Transaction>]) -> (Bh1750<Mock, ManualClock>, Mock, ManualClock) {
        let bus = Mock::new(&script.concat());
        let clock = ManualClock::default();
        let chip = Bh1750::new(device(&bus, 1, &[AT, 0x5C]), true, clock.clone());
        (chip, bus, clock)
    }

    fn about(light: f64, expected: f64) {
        assert!((light - expected).abs() < 0.005 * expected, "{light}");
    }

    #[test]
    fn the_settings_are_the_bytes_of_the_data_sheet() {
        let bytes = |setting| -> Vec<u8> {
            let Setting { opcode, mtreg } = setting;
            vec![0x40 | mtreg >> 5, 0x60 | mtreg & 0x1F, opcode]
        };
        assert_eq!(bytes(NORMAL), [0x42, 0x65, 0x10]);
        assert_eq!(bytes(BRIGHT), [0x40, 0x7F, 0x10]);
        assert_eq!(bytes(FINE), [0x47, 0x7E, 0x11]);
        // The example of the data sheet: 0x8390 is 28067 lx.
        assert_eq!(NORMAL.lux(0x8390).round(), 28_067.0);
        assert_eq!((FINE.lux(1) * 100.0).round(), 11.0);
        assert!(BRIGHT.lux(SATURATED) > 100_000.0);
    }

    #[test]
    fn the_first_reading_waits_for_a_measurement_and_the_next_for_nothing() {
        let (mut chip, mut bus, clock) = chip(&[
            wakes(AT),
            gives(NORMAL, 600),
            gives(NORMAL, 601),
            gives(NORMAL, 602),
        ]);
        about(chip.read().unwrap(), 500.0);
        assert_eq!(clock.now(), Duration::from_millis(180));
        clock.advance(Duration::from_secs(5));
        about(chip.read().unwrap(), 500.8);
        assert_eq!(clock.now(), Duration::from_millis(5_180));
        // A hurried reader waits until there is something new.
        clock.advance(Duration::from_millis(10));
        about(chip.read().unwrap(), 501.7);
        assert_eq!(clock.now(), Duration::from_millis(5_360));
        bus.done();
    }

    #[test]
    fn a_full_converter_is_set_coarser_and_back_when_the_sun_has_gone() {
        let (mut chip, mut bus, clock) = chip(&[
            wakes(AT),
            gives(NORMAL, SATURATED),
            sets(AT, BRIGHT),
            gives(BRIGHT, 54_000),
            gives(BRIGHT, 30_000),
            gives(BRIGHT, 20_000),
            sets(AT, NORMAL),
            gives(NORMAL, 44_000),
        ]);
        about(chip.read().unwrap(), 100_161.0);
        assert_eq!(clock.now(), Duration::from_millis(180) + BRIGHT.time());
        about(chip.read().unwrap(), 55_645.0);
        about(chip.read().unwrap(), 36_667.0);
        bus.done();
    }

    #[test]
    fn a_converter_that_is_full_at_its_coarsest_is_told_and_begun_anew() {
        let (mut chip, mut bus, _) = chip(&[
            wakes(AT),
            gives(NORMAL, SATURATED),
            sets(AT, BRIGHT),
            gives(BRIGHT, SATURATED),
            wakes(AT),
            gives(NORMAL, 60_000),
        ]);
        let error = chip.read().unwrap_err();
        assert!(matches!(error, SensorError::TooBright { .. }), "{error}");
        assert!(error.to_string().contains("121557 lx"), "{error}");
        about(chip.read().unwrap(), 50_000.0);
        bus.done();
    }

    #[test]
    fn the_dark_is_measured_finely_and_the_default_is_back_before_the_next_reading() {
        let (mut chip, mut bus, clock) = chip(&[
            wakes(AT),
            gives(NORMAL, 0),
            sets(AT, FINE),
            gives(FINE, 1),
            sets(AT, NORMAL),
            gives(NORMAL, 5),
            sets(AT, FINE),
            gives(FINE, 41),
            sets(AT, NORMAL),
            gives(NORMAL, 10),
        ]);
        about(chip.read().unwrap(), 0.1132);
        assert_eq!(clock.now(), Duration::from_millis(180) + FINE.time());
        clock.advance(Duration::from_secs(5));
        about(chip.read().unwrap(), 4.641);
        clock.advance(Duration::from_secs(5));
        let begun = clock.now();
        about(chip.read().unwrap(), 8.333);
        assert_eq!(clock.now(), begun);
        bus.done();
    }

    /// An EEPROM of 256 bytes, as in the emulated Pi: a write sets the pointer and then bytes, a read
    /// goes on from the pointer. Knows neither modes nor MTreg.
    struct Eeprom {
        memory: [u8; 256],
        pointer: u8,
    }

    impl embedded_hal::i2c::ErrorType for &mut Eeprom {
        type Error = ErrorKind;
    }

    impl I2c for &mut Eeprom {
        fn transaction(
            &mut self,
            address: u8,
            operations: &mut [embedded_hal::i2c::Operation<'_>],
        ) -> Result<(), ErrorKind> {
            if address != AT {
                return Err(SILENCE);
            }
            for operation in operations {
                match operation {
                    embedded_hal::i2c::Operation::Write(bytes) => {
                        self.pointer = bytes[0];
                        for byte in &bytes[1..] {
                            self.memory[usize::from(self.pointer)] = *byte;
                            self.pointer = self.pointer.wrapping_add(1);
                        }
                    }
                    embedded_hal::i2c::Operation::Read(buffer) => {
                        for byte in buffer.iter_mut() {
                            *byte = self.memory[usize::from(self.pointer)];
                            self.pointer = self.pointer.wrapping_add(1);
                        }
                    }
                }
            }
            Ok(())
        }
    }

    #[test]
    fn a_chip_without_modes_is_read_right_at_every_count() {
        let mut eeprom = Eeprom {
            memory: [0; 256],
            pointer: 0,
        };
        let mut counts: Vec<u16> = (0..=600).collect();
        counts.extend((600..SATURATED).step_by(997));
        counts.extend([0, 256, 0, 6, 600, 9, 512, 65_534]);
        let order = counts.clone();
        let mut chip = Bh1750::new(
            Device::new(&mut eeprom, 1, &[AT]),
            true,
            ManualClock::default(),
        );
        for raw in order {
            // As `i2cset -y 1 0x23 0x10 HI LO i`.
            let [high, low] = raw.to_be_bytes();
            chip.device.write(&[0x10, high, low]).unwrap();
            let expected = f64::from(raw) / 1.2;
            let light = chip.read().unwrap();
            assert!((light - expected).abs() < 0.01, "{raw}: {light}");
        }
        chip.device.write(&[0x10, 0xFF, 0xFF]).unwrap();
        assert!(chip.read().is_err());
        chip.device.write(&[0x10, 0xEA, 0x60]).unwrap();
        about(chip.read().unwrap(), 50_000.0);
    }

    #[test]
    fn the_other_address_is_tried_and_kept_unless_one_is_configured() {
        let mut script = vec![Transaction::write(AT, vec![POWER_ON]).with_error(SILENCE)];
        script.extend(wakes(0x5C));
        script.push(Transaction::write_read(0x5C, vec![0x10], vec![0x00, 0x0C]));
        let (mut chip, mut bus, _) = chip(&[script]);
        about(chip.read().unwrap(), 10.0);
        bus.done();
        let mut bus = Mock::new(&[Transaction::write(0x5C, vec![POWER_ON]).with_error(SILENCE)]);
        let mut chip = Bh1750::new(device(&bus, 3, &[0x5C]), true, ManualClock::default());
        let text = chip.read().unwrap_err().to_string();
        assert!(text.contains("I2C bus 3 at 0x5c:"), "{text}");
        bus.done();
    }

    #[test]
    fn after_a_fault_the_chip_is_set_anew() {
        let lost = Transaction::write_read(AT, vec![0x10], vec![0, 0]).with_error(ErrorKind::Bus);
        let (mut chip, mut bus, _) = chip(&[wakes(AT), vec![lost], wakes(AT), gives(NORMAL, 600)]);
        let error = chip.read().unwrap_err();
        assert!(matches!(error, SensorError::Transfer { address: AT, .. }));
        about(chip.read().unwrap(), 500.0);
        bus.done();
    }

    #[test]
    fn a_hurried_reader_goes_without_the_fine_setting() {
        let mut bus = Mock::new(&[wakes(AT), gives(NORMAL, 6)].concat());
        let mut chip = Bh1750::new(device(&bus, 1, &[AT]), false, ManualClock::default());
        about(chip.read().unwrap(), 5.0);
        bus.done();
    }
}
