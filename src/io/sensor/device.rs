//! What the I2C drivers share: where a sensor is, what a failed transfer means, what happens after a
//! failed measurement, and the clock that they wait by.
//!
//! It knows no chip. A driver of ours has one [`Device`] and speaks to it by [`Device::write`] and
//! [`Device::read_after`]; one over a crate turns its errors into ours with [`fault`]. Each implements
//! [`Chip`], and so is a [`Sensor`].

use std::fmt::Display;
use std::time::{Duration, Instant};

use embedded_hal::i2c::{Error, ErrorKind, I2c};

use super::{Sensor, SensorError};

/// A sensor on a bus, at the first of its addresses that answers.
#[derive(Debug)]
pub(crate) struct Device<B> {
    i2c: B,
    bus: u8,
    /// Those that may answer; one, as soon as one has.
    addresses: Vec<u8>,
}

impl<B> Device<B> {
    /// The sensor is at one of `addresses`, tried in turn, on `i2c`, whose number is `bus`. Nothing is
    /// sent yet.
    pub(crate) fn new(i2c: B, bus: u8, addresses: &[u8]) -> Self {
        Self {
            i2c,
            bus,
            addresses: addresses.to_vec(),
        }
    }

    /// The sensor reported `value`, but its range ends at `max`.
    pub(crate) fn out_of_range(&self, value: u16, max: u16) -> SensorError {
        SensorError::OutOfRange {
            bus: self.bus,
            address: self.address(),
            value,
            max,
        }
    }

    /// There is more light than the sensor can measure: over `max_lux`.
    pub(crate) fn too_bright(&self, max_lux: f64) -> SensorError {
        SensorError::TooBright {
            bus: self.bus,
            address: self.address(),
            max_lux,
        }
    }

    /// The chip at the address is not `wanted`; its identification register holds `id`.
    pub(crate) fn wrong_chip(&self, wanted: &'static str, id: u16) -> SensorError {
        SensorError::WrongChip {
            bus: self.bus,
            address: self.address(),
            wanted,
            id,
        }
    }

    /// The chip acknowledges, but does not measure; `why` in words.
    pub(crate) fn not_measuring(&self, why: &str) -> SensorError {
        SensorError::Transfer {
            bus: self.bus,
            address: self.address(),
            why: why.to_owned(),
        }
    }

    fn address(&self) -> u8 {
        self.addresses.first().copied().unwrap_or_default()
    }
}

impl<B> Device<B>
where
    B: I2c,
    B::Error: Display,
{
    /// Sends `bytes`.
    ///
    /// # Errors
    /// [`SensorError::NoAnswer`] when nobody acknowledges, else [`SensorError::Transfer`].
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), SensorError> {
        self.transfer(|i2c, address| i2c.write(address, bytes))
    }

    /// Sends `bytes` and reads `N` after a repeated START, as one transfer that nobody can come between.
    ///
    /// # Errors
    /// As [`Device::write`].
    pub(crate) fn read_after<const N: usize>(
        &mut self,
        bytes: &[u8],
    ) -> Result<[u8; N], SensorError> {
        self.transfer(|i2c, address| {
            let mut buffer = [0; N];
            i2c.write_read(address, bytes, &mut buffer)?;
            Ok(buffer)
        })
    }

    fn transfer<T>(
        &mut self,
        mut go: impl FnMut(&mut B, u8) -> Result<T, B::Error>,
    ) -> Result<T, SensorError> {
        for address in self.addresses.clone() {
            match go(&mut self.i2c, address) {
                Ok(done) => {
                    self.addresses = vec![address];
                    return Ok(done);
                }
                Err(error) => match fault(self.bus, &self.addresses, address, error) {
                    SensorError::NoAnswer { .. } => {}
                    error => return Err(error),
                },
            }
        }
        Err(SensorError::NoAnswer {
            bus: self.bus,
            addresses: self.addresses.clone(),
        })
    }
}

/// What a failed transfer with `address`, one of the `addresses` on bus number `bus`, means.
pub(super) fn fault<E>(bus: u8, addresses: &[u8], address: u8, error: E) -> SensorError
where
    E: Error + Display,
{
    match error.kind() {
        ErrorKind::NoAcknowledge(_) => SensorError::NoAnswer {
            bus,
            addresses: addresses.to_vec(),
        },
        _ => SensorError::Transfer {
            bus,
            address,
            why: error.to_string(),
        },
    }
}

/// A chip with settings that the driver remembers. Each [`Chip`] is a [`Sensor`].
pub(crate) trait Chip: Send {
    /// Measures once, in lux; finite.
    ///
    /// # Errors
    /// As [`Sensor::read`].
    fn measure_lux(&mut self) -> Result<f64, SensorError>;

    /// Makes the next measurement set the chip again: after a failure nobody knows its settings.
    fn reset(&mut self);
}

impl<C: Chip> Sensor for C {
    fn read(&mut self) -> Result<f64, SensorError> {
        let lux = self.measure_lux();
        if lux.is_err() {
            self.reset();
        }
        // Finer than any chip measures, and without the tail that binary fractions have in messages.
        lux.map(|lux| (lux * 10_000.0).round() / 10_000.0)
    }
}

/// The time a driver waits by; a test has one that runs when it is waited for.
pub(crate) trait MeasurementClock: Send {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;
    /// Lets `duration` pass.
    fn wait(&mut self, duration: Duration);
}

/// Real time; blocks the thread that waits.
#[derive(Debug)]
pub(super) struct RealTime(Instant);

impl RealTime {
    /// Begins at zero.
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }
}

impl MeasurementClock for RealTime {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wait(&mut self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// What the drivers' tests have in place of a bus number, a clock and a silent device.
#[cfg(test)]
pub(super) mod script {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use embedded_hal::i2c::{ErrorKind, NoAcknowledgeSource};

    use super::MeasurementClock;

    /// What a bus says when nobody is at the address.
    pub(crate) const SILENCE: ErrorKind = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address);

    /// A clock that moves when it is waited for, and when the test says so.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct ManualClock(Arc<AtomicU64>);

    impl ManualClock {
        pub(crate) fn advance(&self, duration: Duration) {
            let nanos = duration.as_nanos() as u64;
            self.0.fetch_add(nanos, Ordering::Relaxed);
        }
    }

    impl MeasurementClock for ManualClock {
        fn now(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::Relaxed))
        }

        fn wait(&mut self, duration: Duration) {
            self.advance(duration);
        }
    }
}
