//! The lesson's sensor: an analogue light sensor on a Grove Base HAT, whose small controller answers
//! over I2C. The value is a share of the supply voltage, 0..=1000, and not lux.
//!
//! The driver knows only `embedded_hal::i2c::I2c`; `sensor/mod.rs` hands it the bus.

use std::fmt::Display;

use embedded_hal::i2c::{Error, ErrorKind, I2c};

use super::{Sensor, SensorError};

/// Where most HATs answer, and where some newer ones do.
const ADDRESSES: [u8; 2] = [0x04, 0x08];
/// The first of the registers with input voltage / supply voltage; one for each channel.
const RATIO: u8 = 0x30;
/// In tenths of a percent.
const FULL_SCALE: u16 = 1000;
/// Channels of a HAT: A0 to A7.
const CHANNELS: u8 = 8;

/// Where the sensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// I2C bus number; for messages only.
    pub bus: u8,
    /// 7-bit I2C address; both known ones are tried when absent.
    pub address: Option<u16>,
    /// Analogue channel, 0..=7.
    pub channel: u8,
}

/// An analogue channel of a Grove Base HAT.
#[derive(Debug)]
pub struct GroveHat<B> {
    i2c: B,
    bus: u8,
    register: u8,
    /// Those that may answer; one, as soon as one has.
    addresses: Vec<u8>,
}

impl<B> GroveHat<B> {
    /// Checks the place, then takes the bus that `open` gives. The HAT is not spoken to yet.
    ///
    /// # Errors
    /// [`SensorError::Configured`] for a place that cannot be, and what `open` says.
    pub fn new<E>(place: Place, open: impl FnOnce() -> Result<B, E>) -> Result<Self, SensorError>
    where
        SensorError: From<E>,
    {
        if place.channel >= CHANNELS {
            return Err(SensorError::Configured(format!(
                "a Grove HAT has no channel {}: set `sensor.channel` to 0..=7",
                place.channel
            )));
        }
        let addresses = match place.address.map(u8::try_from) {
            None => ADDRESSES.to_vec(),
            // 0x78 and up are reserved for ten-bit addresses.
            Some(Ok(address)) if address < 0x78 => vec![address],
            Some(_) => {
                return Err(SensorError::Configured(format!(
                    "{:#04x} is no I2C address: set `sensor.address` to 0x04 or 0x08, or leave it out",
                    place.address.unwrap_or_default()
                )));
            }
        };
        Ok(Self {
            i2c: open()?,
            bus: place.bus,
            register: RATIO + place.channel,
            addresses,
        })
    }
}

impl<B> Sensor for GroveHat<B>
where
    B: I2c,
    B::Error: Display,
{
    /// 0..=1000, tenths of a percent of the supply voltage.
    fn read(&mut self) -> Result<f64, SensorError> {
        for address in self.addresses.clone() {
            match self.word(address) {
                Ok(value) if value <= FULL_SCALE => {
                    self.addresses = vec![address];
                    return Ok(f64::from(value));
                }
                Ok(value) => {
                    return Err(SensorError::Impossible {
                        bus: self.bus,
                        address,
                        value,
                        max: FULL_SCALE,
                    });
                }
                Err(error) if matches!(error.kind(), ErrorKind::NoAcknowledge(_)) => {}
                Err(error) => {
                    return Err(SensorError::Transfer {
                        bus: self.bus,
                        address,
                        why: error.to_string(),
                    });
                }
            }
        }
        Err(SensorError::NoAnswer {
            bus: self.bus,
            addresses: self.addresses.clone(),
        })
    }
}

impl<B: I2c> GroveHat<B> {
    /// The register is written on its own and then once more as the command of the word read: the
    /// order of the maker's own library (grove.py, `ADC.read_register`), and the only one that is
    /// known to suit the HAT's firmware.
    fn word(&mut self, address: u8) -> Result<u16, B::Error> {
        let mut word = [0; 2];
        self.i2c.write(address, &[self.register])?;
        self.i2c.write_read(address, &[self.register], &mut word)?;
        Ok(u16::from_le_bytes(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    use embedded_hal::i2c::NoAcknowledgeSource;
    use embedded_hal_mock::eh1::i2c::{Mock, Transaction};

    impl From<Infallible> for SensorError {
        fn from(never: Infallible) -> Self {
            match never {}
        }
    }

    const SILENCE: ErrorKind = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address);

    fn answers(address: u8, register: u8, word: [u8; 2]) -> [Transaction; 2] {
        [
            Transaction::write(address, vec![register]),
            Transaction::write_read(address, vec![register], word.to_vec()),
        ]
    }

    fn silent(address: u8, register: u8) -> Transaction {
        Transaction::write(address, vec![register]).with_error(SILENCE)
    }

    fn hat(bus: &Mock, address: Option<u16>, channel: u8) -> GroveHat<Mock> {
        let place = Place {
            bus: 1,
            address,
            channel,
        };
        GroveHat::new(place, || Ok::<_, Infallible>(bus.clone())).unwrap()
    }

    #[test]
    fn a_reading_is_the_little_endian_word_of_the_channel() {
        let mut bus = Mock::new(&answers(0x04, 0x32, [0xF3, 0x00]));
        assert_eq!(hat(&bus, None, 2).read().unwrap(), 243.0);
        bus.done();
    }

    #[test]
    fn the_second_address_is_tried_once_and_then_kept() {
        let mut script = vec![silent(0x04, 0x30)];
        script.extend(answers(0x08, 0x30, [0xE8, 0x03]));
        script.extend(answers(0x08, 0x30, [0x00, 0x00]));
        let mut bus = Mock::new(&script);
        let mut hat = hat(&bus, None, 0);
        assert_eq!(hat.read().unwrap(), 1000.0);
        assert_eq!(hat.read().unwrap(), 0.0);
        bus.done();
    }

    #[test]
    fn a_configured_address_is_the_only_one_tried() {
        let mut bus = Mock::new(&[silent(0x04, 0x30)]);
        let error = hat(&bus, Some(0x04), 0).read().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("at 0x04:"), "{text}");
        assert!(text.contains("i2cdetect"), "{text}");
        bus.done();
    }

    #[test]
    fn silence_at_both_addresses_names_both() {
        let mut bus = Mock::new(&[silent(0x04, 0x30), silent(0x08, 0x30)]);
        let error = hat(&bus, None, 0).read().unwrap_err();
        assert!(error.to_string().contains("0x04 or 0x08"), "{error}");
        bus.done();
    }

    #[test]
    fn a_word_over_full_scale_is_no_reading() {
        for word in [[0xE9, 0x03], [0xFF, 0xFF]] {
            let mut bus = Mock::new(&answers(0x04, 0x30, word));
            let error = hat(&bus, None, 0).read().unwrap_err();
            assert!(matches!(error, SensorError::Impossible { .. }), "{error}");
            bus.done();
        }
    }

    #[test]
    fn a_stuck_bus_is_not_taken_for_an_absent_hat() {
        let stuck = Transaction::write(0x04, vec![0x30]).with_error(ErrorKind::Bus);
        let mut bus = Mock::new(&[stuck]);
        let error = hat(&bus, None, 0).read().unwrap_err();
        assert!(matches!(error, SensorError::Transfer { address: 0x04, .. }));
        bus.done();
    }

    #[test]
    fn a_place_that_cannot_be_is_refused_before_the_bus_is_opened() {
        for (address, channel) in [(Some(0x78), 0), (Some(0x104), 0), (None, 8)] {
            let place = Place {
                bus: 1,
                address,
                channel,
            };
            let error = GroveHat::<Mock>::new(place, || -> Result<Mock, Infallible> {
                panic!("the bus was opened")
            })
            .unwrap_err();
            assert!(matches!(error, SensorError::Configured(_)), "{error}");
        }
    }
}
