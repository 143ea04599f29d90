//! One device by hand: `nightlight sensor read` and `nightlight led on|off|blink`, to see whether the
//! wiring is right, without broker and server. `main.rs` calls it.
//!
//! A daemon that runs with the same configuration keeps what is its own: the settings of a sensor's chip
//! are left alone, and of the LED it is said that the daemon decides.

use std::io::Write;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::cli::Exit;
use crate::config::{Config, LedDriver};
use crate::io::clock::Clock;
use crate::io::led::{Led, LedError};
use crate::io::pi::PiError;
use crate::io::sensor::{self, Sensor, SensorError};
use crate::io::state_lock::{self, BootTime, Holder};
use crate::io::web;
use crate::logic::View;

/// A sensor that takes longer hangs; the slowest measurement is one second.
const PATIENCE: Duration = Duration::from_secs(10);
/// How the LED blinks.
const HALF_BLINK: Duration = Duration::from_millis(400);
const BLINKS: u32 = 6;

/// What to do with the LED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
    /// On and off for five seconds, then as it was.
    Blink,
}

/// What the daemon that runs with this configuration says of itself, if there is one.
pub async fn running(config: &Config) -> Option<View> {
    let answer = web::ask(&config.backlog.path).await.ok()?;
    serde_json::from_str(&answer).ok()
}

/// Who runs a daemon with this configuration's state folder, also where it does not answer this user.
pub fn holder(config: &Config) -> Option<Holder> {
    state_lock::holder(&config.backlog.path, boot_time())
}

/// The boot clock, as a state folder's lock wants it.
pub fn boot_time() -> BootTime {
    let clock = Clock::new();
    BootTime {
        boot_id: clock.boot_id(),
        now: clock.now().boot,
    }
}

/// Reads the sensor and prints the light, once or, with `watch`, at each interval until `stop`.
pub async fn read(config: &Config, watch: bool, stop: impl Future<Output = ()>) -> Exit {
    tokio::select! {
        exit = reading(config, watch) => exit,
        () = stop => if watch { Exit::Done } else { Exit::Software },
    }
}

async fn reading(config: &Config, watch: bool) -> Exit {
    let unit = config.sensor.driver.unit();
    let mut sensor = None;
    loop {
        let asked = tokio::time::Instant::now();
        let exit = match the_daemons(config).await {
            Some(Ok(light)) => print(&format!(
                "{}, read by the running nightlight",
                measured(light, unit)
            )),
            Some(Err(why)) => complain(&why, Exit::Software),
            None => {
                let begun = Instant::now();
                let (held, light) = read_once(config, sensor.take()).await;
                sensor = held;
                match light {
                    Ok(light) => {
                        let ms = begun.elapsed().as_millis();
                        print(&format!("{}, in {ms} ms", measured(light, unit)))
                    }
                    Err((why, exit)) => complain(&why, exit),
                }
            }
        };
        // Whoever watches wants to see it come back; but not when nobody reads any more.
        if !watch || exit == Some(Exit::Done) {
            return exit.unwrap_or(Exit::Done);
        }
        tokio::time::sleep_until(asked + config.sensor.interval).await;
    }
}

/// A reading of the running daemon, where a second reader would change the chip's settings under it.
async fn the_daemons(config: &Config) -> Option<Result<f64, String>> {
    if !config.sensor.driver.has_settings() {
        return None;
    }
    let Some(view) = running(config).await else {
        return holder(config).map(|holder| {
            Err(format!(
                "a running nightlight has the sensor ({holder}), and this user cannot ask it: try `sudo`"
            ))
        });
    };
    Some(view.light.filter(|_| view.sensor_ok).ok_or_else(|| {
        format!(
            "the running nightlight gets no readings: {}",
            view.sensor_why
        )
    }))
}

/// What it takes to read a sensor again, and the light or why there is none.
type Read = (Option<Box<dyn Sensor>>, Result<f64, (String, Exit)>);

async fn read_once(config: &Config, held: Option<Box<dyn Sensor>>) -> Read {
    let (sender, answer) = oneshot::channel();
    let settings = config.sensor.clone();
    let thread = std::thread::Builder::new().spawn(move || {
        let opened = match held {
            Some(sensor) => Ok(sensor),
            None => sensor::open(&settings),
        };
        let read = opened.and_then(|mut sensor| Ok((sensor.read()?, sensor)));
        let _ = sender.send(read);
    });
    if let Err(error) = thread {
        return (None, Err((error.to_string(), Exit::Software)));
    }
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(Ok((light, sensor)))) => (Some(sensor), Ok(light)),
        Ok(Ok(Err(error))) => (None, Err((error.to_string(), exit_of(&error)))),
        Ok(Err(_)) => {
            let why =
                "the sensor's driver panicked; please report it with the lines above".to_owned();
            (None, Err((why, Exit::Software)))
        }
        Err(_) => {
            let why = format!("the sensor does not answer within {} s", PATIENCE.as_secs());
            (None, Err((why, Exit::Software)))
        }
    }
}

/// Switches the LED; `stop` ends blinking early.
pub async fn switch(config: &Config, how: Switch, stop: impl Future<Output = ()>) -> Exit {
    if running(config).await.is_some() || holder(config).is_some() {
        warn(
            "nightlight is running with this configuration and decides about the LED: it does not see what \
             is done here, and switches it again with its next decision",
        );
    }
    let (mut led, was_on) = match Led::open(&config.led) {
        Ok(opened) => opened,
        Err(error) => {
            return complain(&error.to_string(), exit_of_led(&error)).unwrap_or(Exit::Done);
        }
    };
    let done = match how {
        Switch::On | Switch::Off => led
            .ensure(how == Switch::On)
            .map(drop)
            .map_err(|(error, _)| error),
        Switch::Blink => blink(&mut led, was_on, stop).await,
    };
    if let Err(error) = done {
        return complain(&error.to_string(), exit_of_led(&error)).unwrap_or(Exit::Done);
    }
    let word = |on| if on { "on" } else { "off" };
    let told = match how {
        Switch::Blink => print(&format!("the LED blinked, and is {} again", word(was_on))),
        _ => print(&format!("the LED is {}", word(how == Switch::On))),
    };
    if config.led.driver == LedDriver::Gpiochip {
        warn(
            "with this command the pin goes back to the kernel: that of Raspberry Pi OS leaves it as it is, \
             others switch the LED off",
        );
    }
    told.unwrap_or(Exit::Done)
}

async fn blink(
    led: &mut Led,
    was_on: bool,
    stop: impl Future<Output = ()>,
) -> Result<(), LedError> {
    let blinking = async {
        for _ in 0..BLINKS {
            for on in [!was_on, was_on] {
                led.set(on)?;
                tokio::time::sleep(HALF_BLINK).await;
            }
        }
        Ok(())
    };
    let blinked = tokio::select! {
        blinked = blinking => blinked,
        () = stop => Ok(()),
    };
    led.set(was_on)?;
    blinked
}

/// Which exit code a sensor's error is.
pub fn exit_of(error: &SensorError) -> Exit {
    match error {
        SensorError::Pi(error) => exit_of_pi(error),
        SensorError::Denied(_) => Exit::Permission,
        SensorError::Configured(_) | SensorError::Missing(_) | SensorError::WrongChip { .. } => {
            Exit::Configuration
        }
        _ => Exit::Software,
    }
}

fn exit_of_led(error: &LedError) -> Exit {
    match error {
        LedError::Pi(error) => exit_of_pi(error),
        LedError::Denied(_) | LedError::ReadOnly(_) => Exit::Permission,
        LedError::Missing(_) | LedError::NotAFile(_) | LedError::Invalid { .. } => {
            Exit::Configuration
        }
        LedError::Io { .. } | LedError::Stuck { .. } => Exit::Software,
    }
}

/// Which exit code an error of a bus or a pin is.
pub(crate) fn exit_of_pi(error: &PiError) -> Exit {
    match error {
        PiError::Denied { .. } | PiError::NoWindow(_) => Exit::Permission,
        PiError::NotAPi | PiError::NoPin(_) | PiError::NoChip(_) => Exit::Configuration,
        PiError::NoBus(_) | PiError::PinUsed(_) | PiError::LineUsed { .. } | PiError::Io { .. } => {
            Exit::Software
        }
    }
}

/// A light with its unit, where that is known.
pub fn measured(light: f64, unit: Option<&str>) -> String {
    let light = plain(light);
    unit.map_or(light.clone(), |unit| format!("{light} {unit}"))
}

/// A light without the digits that no sensor has.
pub fn plain(light: f64) -> String {
    let text = format!("{light:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Prints a line; a reader that has gone ends the command.
fn print(line: &str) -> Option<Exit> {
    let mut out = std::io::stdout();
    let printed = writeln!(out, "{line}").and_then(|()| out.flush());
    printed.is_err().then_some(Exit::Done)
}

fn complain(why: &str, exit: Exit) -> Option<Exit> {
    warn(why);
    Some(exit)
}

fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "nightlight: {text}");
}
