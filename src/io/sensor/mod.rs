//! The light sensor: opens the configured one and reads it when asked, on a thread of its own,
//! because a bus or a kernel driver may hang and the light must not wait.
//!
//! It decides nothing: how often to read, what a missing reading means and when a sensor counts as
//! broken is the controller's. The daemon calls [`Reader::read`] for each `Output::ReadSensor`;
//! `nightlight sensor read` and `doctor` call [`open`] and read once.

pub mod bh1750;
mod device;
mod error;
pub(crate) mod grove_hat;
pub mod iio;
pub(crate) mod opt3001;
pub mod simulated;
pub mod trace;
pub(crate) mod tsl2591;
pub(crate) mod veml7700;

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use crate::config::{self, SensorDriver};
use crate::io::device_thread::{Answer, DeviceThread, Refused, Work};
use crate::io::pi;
use crate::logic::Input;

use device::{Device, RealTime};

pub use error::SensorError;

/// Something that measures light.
pub trait Sensor: Send {
    /// One reading, in the sensor's unit (lux, or a share of full scale); always finite.
    ///
    /// May take as long as the device does, and for ever when that hangs.
    ///
    /// # Errors
    /// [`SensorError`], with a remedy in its message.
    fn read(&mut self) -> Result<f64, SensorError>;
}

/// Opens the configured sensor.
///
/// # Errors
/// [`SensorError`] when its bus or file cannot be opened; some drivers tell only at the first read.
pub fn open(config: &config::Sensor) -> Result<Box<dyn Sensor>, SensorError> {
    let device = || -> Result<Device<pi::Bus>, SensorError> {
        let addresses = match &config.address {
            Some(address) => std::slice::from_ref(address),
            None => config.driver.addresses(),
        };
        Ok(Device::new(
            pi::Bus::open(config.bus)?,
            config.bus,
            addresses,
        ))
    };
    Ok(match config.driver {
        SensorDriver::GroveHat => Box::new(grove_hat::GroveHat::new(device()?, config.channel)),
        SensorDriver::Bh1750 => {
            let fine = config.interval >= bh1750::MIN_INTERVAL_FINE;
            Box::new(bh1750::Bh1750::new(device()?, fine, RealTime::start()))
        }
        SensorDriver::Veml7700 => Box::new(veml7700::Veml7700::new(device()?, RealTime::start())),
        SensorDriver::Opt3001 => Box::new(opt3001::Opt3001::new(
            pi::Bus::open(config.bus)?,
            config.bus,
            config.address.unwrap_or(config.driver.addresses()[0]),
            config.interval,
            RealTime::start(),
        )?),
        SensorDriver::Tsl2591 => Box::new(tsl2591::Tsl2591::new(device()?, RealTime::start())),
        SensorDriver::Iio => Box::new(iio::Iio::new(&config.path)),
        SensorDriver::Trace => Box::new(trace::Trace::open(&config.path, config.speed)?),
        SensorDriver::Simulated => Box::new(simulated::Simulated::new(
            simulated::DAY,
            config.speed,
            simulated::SEED,
        )),
    })
}

/// Reads the sensor on its own thread, when asked.
///
/// An absent sensor fails each reading, never the start: the driver is opened at the first reading
/// and again after every failed one, so that a sensor that is plugged in later is found.
#[derive(Debug)]
pub struct Reader {
    thread: DeviceThread<()>,
    inputs: UnboundedSender<Input>,
}

impl Reader {
    /// A reader of the configured sensor that answers into `inputs`. Nothing is opened yet.
    pub fn start(config: &config::Sensor, inputs: UnboundedSender<Input>) -> Self {
        let config = config.clone();
        Self::with(move || open(&config), inputs)
    }

    /// The same for a sensor that `open` makes.
    pub fn with(
        open: impl Fn() -> Result<Box<dyn Sensor>, SensorError> + Send + Sync + 'static,
        inputs: UnboundedSender<Input>,
    ) -> Self {
        let open = Arc::new(open);
        let panicked = Input::ReadFailed(
            "the sensor's driver panicked; please report it with the lines above".to_owned(),
        );
        let make = move || answers(open.clone());
        Self {
            thread: DeviceThread::new("sensor", make, panicked, inputs.clone()),
            inputs,
        }
    }

    /// Asks for a reading and returns at once. The answer is one `Input::Read` or
    /// `Input::ReadFailed`. While a reading is under way, asking again does nothing.
    pub fn read(&mut self) {
        match self.thread.ask(()) {
            Ok(()) | Err(Refused::Busy) => {}
            Err(refused) => {
                // Nobody listens any more when the daemon stops.
                let _ = self.inputs.send(Input::ReadFailed(refused.why("sensor")));
            }
        }
    }

    /// The reading under way hangs: it counts no more, and the next one is made on a fresh thread.
    pub fn give_up(&mut self) {
        self.thread.give_up();
    }
}

fn answers(
    open: Arc<impl Fn() -> Result<Box<dyn Sensor>, SensorError> + Send + Sync + 'static>,
) -> Work<()> {
    let mut sensor = None;
    Box::new(move |()| {
        let read = read_once(sensor.take(), &*open);
        Answer::Input(match read {
            Ok((open, light)) => {
                sensor = Some(open);
                Input::Read(light)
            }
            Err(error) => Input::ReadFailed(error.to_string()),
        })
    })
}

fn read_once(
    sensor: Option<Box<dyn Sensor>>,
    open: impl Fn() -> Result<Box<dyn Sensor>, SensorError>,
) -> Result<(Box<dyn Sensor>, f64), SensorError> {
    let mut sensor = match sensor {
        Some(sensor) => sensor,
        None => open()?,
    };
    let light = sensor.read()?;
    Ok((sensor, light))
}
