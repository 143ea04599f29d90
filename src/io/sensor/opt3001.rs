//! OPT3001, a light sensor with the eye's sensitivity that chooses its range by itself, on I2C at 0x44
//! to 0x47 (pin ADDR). The crate opt300x speaks to it.
//!
//! - Unit: lux. Error: 10 %, of which 2 % between ranges and 4 % from the light's kind.
//! - Range: 0 to 83,865 lx; more is an error, not a number.
//! - Resolution: 0.01 lx below 41 lx, doubling with each of the 11 ranges above; always under 0.1 %.
//! - Time of a measurement: 800 ms (880 at most), or 100 ms when it is read more often than that; the
//!   chip measures without end, so only the first reading waits.
//! - Source: TI, OPT3001 data sheet (SBOS681C): "Electrical characteristics", "Register maps".
//!
//! Tried with scripted buses; not yet with a real OPT3001.

use std::time::Duration;

use embedded_hal::i2c::I2c;
use opt300x::{Error, IntegrationTime, LuxRange, ModeChangeError, Opt300x, SlaveAddr, ic, mode};

use super::SensorError;
use super::device::{Chip, MeasurementClock, fault};

const CHIP_ID: u16 = 0x3001;
/// End of its highest range, in lux.
const MAX_LUX: f64 = 83_865.6;
/// The longest time of a slow measurement.
const SLOW: Duration = Duration::from_millis(880);
/// How often the chip is polled for its first result, and how long.
const POLL_EVERY: Duration = Duration::from_millis(20);
const FIRST_RESULT_TIMEOUT: Duration = Duration::from_millis(1_000);

/// An OPT3001.
pub(crate) struct Opt3001<B, T> {
    chip: Opt300x<B, ic::Opt3001, mode::Continuous>,
    bus: u8,
    address: u8,
    time: T,
    /// There has been a result since it was set.
    has_result: bool,
}

impl<B, T> Opt3001<B, T>
where
    B: I2c + Send,
    B::Error: std::fmt::Display,
    T: MeasurementClock,
{
    /// Sets the chip at `address`, one of 0x44..=0x47, on `i2c`, whose number is `bus`. It is read every
    /// `interval`, which decides between slow and fast measurements.
    ///
    /// # Errors
    /// [`SensorError`] when it does not answer, or is another chip.
    pub(crate) fn new(
        i2c: B,
        bus: u8,
        address: u8,
        interval: Duration,
        time: T,
    ) -> Result<Self, SensorError> {
        let place = SlaveAddr::Alternative(address & 2 != 0, address & 1 != 0);
        let in_words = |error| in_words(bus, address, error);
        let mut chip = Opt300x::new_opt3001(i2c, place);
        let id = chip.get_device_id().map_err(in_words)?;
        if id != CHIP_ID {
            return Err(SensorError::WrongChip {
                bus,
                address,
                wanted: "OPT3001",
                id,
            });
        }
        chip.set_lux_range(LuxRange::Auto).map_err(in_words)?;
        let pace = match interval > SLOW {
            true => IntegrationTime::Ms800,
            false => IntegrationTime::Ms100,
        };
        chip.set_integration_time(pace).map_err(in_words)?;
        let chip = chip
            .into_continuous()
            .map_err(|ModeChangeError::I2C(error, _)| fault(bus, &[address], address, error))?;
        Ok(Self {
            chip,
            bus,
            address,
            time,
            has_result: false,
        })
    }
}

fn in_words<E>(bus: u8, address: u8, error: Error<E>) -> SensorError
where
    E: embedded_hal::i2c::Error + std::fmt::Display,
{
    match error {
        Error::I2C(error) => fault(bus, &[address], address, error),
        Error::InvalidInputData => SensorError::Transfer {
            bus,
            address,
            why: "a setting that the chip does not have".to_owned(),
        },
    }
}

impl<B, T> Chip for Opt3001<B, T>
where
    B: I2c + Send,
    B::Error: std::fmt::Display,
    T: MeasurementClock,
{
    /// Lux, 0..=83,865.
    fn measure_lux(&mut self) -> Result<f64, SensorError> {
        let (bus, address) = (self.bus, self.address);
        let begun = self.time.now();
        let status = loop {
            let status = self
                .chip
                .read_status()
                .map_err(|e| in_words(bus, address, e))?;
            // The register says 0 before the first result: as if it were dark.
            self.has_result |= status.conversion_ready;
            if self.has_result {
                break status;
            }
            if self.time.now() >= begun + FIRST_RESULT_TIMEOUT {
                return Err(SensorError::Transfer {
                    bus,
                    address,
                    why: "it does not finish a measurement".to_owned(),
                });
            }
            self.time.wait(POLL_EVERY);
        };
        let (exponent, counts) = self
            .chip
            .read_raw()
            .map_err(|e| in_words(bus, address, e))?;
        let lux = 0.01 * f64::from(1_u32 << exponent) * f64::from(counts);
        if status.has_overflown || lux > MAX_LUX {
            return Err(SensorError::TooBright {
                bus,
                address,
                max_lux: MAX_LUX,
            });
        }
        Ok(lux)
    }

    fn reset(&mut self) {
        self.has_result = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sensor::Sensor;
    use crate::io::sensor::device::script::{ManualClock, SILENCE};
    use embedded_hal_mock::eh1::i2c::{Mock, Transaction};

    const AT: u8 = 0x45;

    fn reads(register: u8, word: u16) -> Transaction {
        Transaction::write_read(AT, vec![register], word.to_be_bytes().to_vec())
    }

    fn writes(word: u16) -> Transaction {
        let [high, low] = word.to_be_bytes();
        Transaction::write(AT, vec![0x01, high, low])
    }

    /// Automatic range, 800 ms, measuring without end.
    fn is_set() -> Vec<Transaction> {
        vec![
            reads(0x7F, 0x3001),
            writes(0xC810),
            writes(0xC810),
            writes(0xCE10),
        ]
    }

    fn chip(
        script: &[Vec<Transaction>],
        interval: Duration,
    ) -> (
        Result<Opt3001<Mock, ManualClock>, SensorError>,
        Mock,
        ManualClock,
    ) {
        let (bus, clock) = (Mock::new(&script.concat()), ManualClock::default());
        let chip = Opt3001::new(bus.clone(), 1, AT, interval, clock.clone());
        (chip, bus, clock)
    }

    const EVERY: Duration = Duration::from_secs(5);

    #[test]
    fn only_the_first_result_is_waited_for() {
        let results = vec![
            reads(0x01, 0xCE10),
            reads(0x01, 0xCE10),
            reads(0x01, 0xCE90),
            reads(0x00, 0x0001),
            reads(0x01, 0xCE10),
            reads(0x00, 0x5A3C),
        ];
        let (chip, mut bus, clock) = chip(&[is_set(), results], EVERY);
        let mut chip = chip.unwrap();
        assert_eq!(chip.read().unwrap(), 0.01);
        assert_eq!(clock.now(), 2 * POLL_EVERY);
        assert!((chip.read().unwrap() - 838.4).abs() < 0.001);
        assert_eq!(clock.now(), 2 * POLL_EVERY);
        bus.done();
    }

    #[test]
    fn a_hurried_reader_has_fast_measurements() {
        let fast = vec![
            reads(0x7F, 0x3001),
            writes(0xC810),
            writes(0xC010),
            writes(0xC610),
        ];
        let (chip, mut bus, _) = chip(&[fast], Duration::from_millis(500));
        assert!(chip.is_ok());
        bus.done();
    }

    #[test]
    fn too_much_light_is_an_error_and_the_most_is_a_number() {
        let results = vec![
            reads(0x01, 0xCE90),
            reads(0x00, 0xBFFF),
            reads(0x01, 0xCF90),
            reads(0x00, 0xBFFF),
            reads(0x01, 0xCE90),
            reads(0x00, 0xFFFF),
        ];
        let (chip, mut bus, _) = chip(&[is_set(), results], EVERY);
        let mut chip = chip.unwrap();
        assert!((chip.read().unwrap() - MAX_LUX).abs() < 0.01);
        for _ in 0..2 {
            let error = chip.read().unwrap_err();
            assert!(matches!(error, SensorError::TooBright { .. }), "{error}");
        }
        bus.done();
    }

    #[test]
    fn a_chip_that_does_not_measure_is_given_up() {
        let idle = vec![reads(0x01, 0xCE10); 51];
        let (chip, mut bus, _) = chip(&[is_set(), idle], EVERY);
        assert!(
            chip.unwrap()
                .read()
                .unwrap_err()
                .to_string()
                .contains("finish")
        );
        bus.done();
    }

    #[test]
    fn nobody_or_somebody_else_at_the_address_is_told() {
        let silent = Transaction::write_read(AT, vec![0x7F], vec![0, 0]).with_error(SILENCE);
        let (chip, mut bus, _) = chip(&[vec![silent]], EVERY);
        assert!(matches!(chip.err(), Some(SensorError::NoAnswer { .. })));
        bus.done();
        let (other, mut bus, _) = self::chip(&[vec![reads(0x7F, 0x0117)]], EVERY);
        let text = other.err().unwrap().to_string();
        assert!(text.contains("OPT3001") && text.contains("0x117"), "{text}");
        bus.done();
    }
}
