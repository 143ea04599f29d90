//! The lesson's sensor: an analogue light sensor on a Grove Base HAT, whose small controller answers
//! over I2C at 0x04, or at 0x08 on some newer boards. It works as soon as it has power.
//!
//! - Unit: tenths of a percent of the supply voltage, 0 to 1000; not lux. More light is more of it.
//! - Error: that of the photo transistor and its resistor, which no document gives; a converter of 12
//!   bits adds less than 0.1 %.
//! - Resolution: 1. Time of a measurement: under 1 ms, two transfers of together 7 bytes.
//! - Source: Seeed Studio, grove.py (`grove/adc.py`): registers, byte order.
//!
//! Tried with scripted buses, and with an EEPROM in its place in an emulated Pi; not yet with a real HAT.

use std::fmt::Display;

use embedded_hal::i2c::I2c;

use super::device::Device;
use super::{Sensor, SensorError};

/// The first of the registers with input voltage / supply voltage; one for each channel.
const RATIO: u8 = 0x30;
/// In tenths of a percent.
const FULL_SCALE: u16 = 1000;

/// An analogue channel of a Grove Base HAT.
#[derive(Debug)]
pub(crate) struct GroveHat<B> {
    device: Device<B>,
    register: u8,
}

impl<B> GroveHat<B> {
    /// Channel `channel`, 0..=7, of the HAT at `device`. The HAT is not spoken to yet.
    pub(crate) fn new(device: Device<B>, channel: u8) -> Self {
        Self {
            device,
            register: RATIO + channel,
        }
    }
}

impl<B> Sensor for GroveHat<B>
where
    B: I2c + Send,
    B::Error: Display,
{
    /// 0..=1000, tenths of a percent of the supply voltage.
    ///
    /// The register is written on its own and then once more as the command of the word read: the
    /// order of the maker's own library (grove.py, `ADC.read_register`), and the only one that is
    /// known to suit the HAT's firmware.
    fn read(&mut self) -> Result<f64, SensorError> {
        self.device.write(&[self.register])?;
        match u16::from_le_bytes(self.device.read_after(&[self.register])?) {
            value if value <= FULL_SCALE => Ok(f64::from(value)),
            value => Err(self.device.out_of_range(value, FULL_SCALE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sensor::device::script::SILENCE;
    use embedded_hal::i2c::ErrorKind;
    use embedded_hal_mock::eh1::i2c::{Mock, Transaction};

    fn answers(address: u8, register: u8, word: [u8; 2]) -> [Transaction; 2] {
        [
            Transaction::write(address, vec![register]),
            Transaction::write_read(address, vec![register], word.to_vec()),
        ]
    }

    fn silent(address: u8, register: u8) -> Transaction {
        Transaction::write(address, vec![register]).with_error(SILENCE)
    }

    fn hat(bus: &Mock, addresses: &[u8], channel: u8) -> GroveHat<Mock> {
        GroveHat::new(Device::new(bus.clone(), 1, addresses), channel)
    }

    #[test]
    fn a_reading_is_the_little_endian_word_of_the_channel() {
        let mut bus = Mock::new(&answers(0x04, 0x32, [0xF3, 0x00]));
        assert_eq!(hat(&bus, &[0x04, 0x08], 2).read().unwrap(), 243.0);
        bus.done();
    }

    #[test]
    fn the_second_address_is_tried_once_and_then_kept() {
        let mut script = vec![silent(0x04, 0x30)];
        script.extend(answers(0x08, 0x30, [0xE8, 0x03]));
        script.extend(answers(0x08, 0x30, [0x00, 0x00]));
        let mut bus = Mock::new(&script);
        let mut hat = hat(&bus, &[0x04, 0x08], 0);
        assert_eq!(hat.read().unwrap(), 1000.0);
        assert_eq!(hat.read().unwrap(), 0.0);
        bus.done();
    }

    #[test]
    fn a_configured_address_is_the_only_one_tried() {
        let mut bus = Mock::new(&[silent(0x04, 0x30)]);
        let error = hat(&bus, &[0x04], 0).read().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("at 0x04:"), "{text}");
        assert!(text.contains("i2cdetect"), "{text}");
        bus.done();
    }

    #[test]
    fn silence_at_both_addresses_names_both() {
        let mut bus = Mock::new(&[silent(0x04, 0x30), silent(0x08, 0x30)]);
        let error = hat(&bus, &[0x04, 0x08], 0).read().unwrap_err();
        assert!(error.to_string().contains("0x04 or 0x08"), "{error}");
        bus.done();
    }

    #[test]
    fn a_word_over_full_scale_is_no_reading() {
        for word in [[0xE9, 0x03], [0xFF, 0xFF]] {
            let mut bus = Mock::new(&answers(0x04, 0x30, word));
            let error = hat(&bus, &[0x04, 0x08], 0).read().unwrap_err();
            assert!(matches!(error, SensorError::OutOfRange { .. }), "{error}");
            bus.done();
        }
    }

    #[test]
    fn a_stuck_bus_is_not_taken_for_an_absent_hat() {
        let stuck = Transaction::write(0x04, vec![0x30]).with_error(ErrorKind::Bus);
        let mut bus = Mock::new(&[stuck]);
        let error = hat(&bus, &[0x04, 0x08], 0).read().unwrap_err();
        assert!(matches!(error, SensorError::Transfer { address: 0x04, .. }));
        bus.done();
    }
}
