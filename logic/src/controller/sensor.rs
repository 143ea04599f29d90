//! When the sensor is read, who waits for the reading, and what is told of the sensor itself.

use std::time::Duration;

use super::Controller;
use crate::command::{Command, Outcome, Sender};
use crate::telemetry::{Body, Event};
use crate::time::Now;
use crate::timers::{Timer, Timers};
use crate::{Level, Output};

/// A reading that takes longer hangs; the slowest sensor needs a second for each of a few measurements.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// Commands that wait for one reading; a sensor that does not answer must not pile them up.
const MAX_READ_NOW: usize = 16;

/// The reading under way, and who waits for it.
#[derive(Debug, Clone)]
pub(super) struct SensorPolling {
    /// The reading was begun before a long pause: what it gives may be old.
    is_outdated: bool,
    /// Commands that wait for the next reading.
    read_now: Vec<Command>,
    reported_ok: bool,
}

impl SensorPolling {
    /// The sensor is to be read at once.
    pub(super) fn new(now: Duration, timers: &mut Timers) -> Self {
        timers.set(Timer::Read, now);
        Self {
            is_outdated: false,
            read_now: Vec::new(),
            reported_ok: true,
        }
    }

    /// A reading was due at `due`; sets the next one. After a pause the beat starts again instead of catching up.
    fn set_next(due: Duration, interval: Duration, now: Duration, timers: &mut Timers) {
        let beat = due + interval;
        let next = if beat > now { beat } else { now + interval };
        timers.set(Timer::Read, next);
    }

    /// The order to read, unless a reading is under way.
    fn begin(now: Duration, timers: &mut Timers) -> Option<Output> {
        if timers.is_set(Timer::ReadAnswer) {
            return None;
        }
        timers.set(Timer::ReadAnswer, now + READ_WITHIN);
        Some(Output::ReadSensor)
    }

    /// The sensor has answered. Gives the order to read again where the answer may be old.
    fn answered(&mut self, now: Duration, timers: &mut Timers) -> Option<Output> {
        timers.stop(Timer::ReadAnswer);
        match std::mem::take(&mut self.is_outdated) {
            true => Self::begin(now, timers),
            false => None,
        }
    }

    /// The program did not run for a long time.
    pub(super) fn paused(&mut self, timers: &Timers) {
        self.is_outdated = timers.is_set(Timer::ReadAnswer);
    }

    /// The command gets the next reading. Gives back its id where too many wait already.
    pub(super) fn read_for(&mut self, command: Command) -> Result<(), Sender> {
        if self.read_now.len() >= MAX_READ_NOW {
            return Err(command.sender());
        }
        self.read_now.push(command);
        Ok(())
    }
}

impl Controller {
    /// A reading was due at `due`. The LED is looked after with each of them.
    pub(super) fn poll_sensor(&mut self, due: Duration, now: Now) {
        let interval = self.lighting.settings().interval;
        SensorPolling::set_next(due, interval, now.boot, &mut self.timers);
        if self.begin_reading(now)
            && let Some(led_on) = self.led_wanted()
        {
            self.led.see_to(led_on);
        }
    }

    /// False if one is under way.
    pub(super) fn begin_reading(&mut self, now: Now) -> bool {
        let order = SensorPolling::begin(now.boot, &mut self.timers);
        let begins = order.is_some();
        self.outputs.extend(order);
        begins
    }

    pub(super) fn read(&mut self, light: f64, now: Now) {
        if !self.take_answer(now) {
            return;
        }
        if self.recorder.should_record(light, now.boot) {
            let body = Body::Reading {
                light,
                led_on: self.led.known(),
                led_ok: self.led.fault().is_none(),
            };
            self.record_reading(body, now);
        }
        let change = self.lighting.read(light, now.boot, &mut self.timers);
        self.report_sensor(now);
        self.apply(change);
        for command in std::mem::take(&mut self.sensor.read_now) {
            self.reply(command.sender(), Outcome::Applied, "", Some(light));
        }
    }

    pub(super) fn read_failed(&mut self, why: &str, now: Now) {
        if self.take_answer(now) {
            self.no_reading(why, now);
        }
    }

    pub(super) fn give_up_reading(&mut self, now: Now) {
        self.outputs.push_back(Output::GiveUpReading);
        let seconds = READ_WITHIN.as_secs();
        let why = format!("the sensor has not answered for {seconds} s");
        self.no_reading(&why, now);
    }

    /// Reports once when the sensor fails and once when it works again.
    pub(super) fn report_sensor(&mut self, now: Now) {
        let ok = self.lighting.sensor_ok();
        if std::mem::replace(&mut self.sensor.reported_ok, ok) == ok {
            return;
        }
        let (level, why) = match ok {
            true => (Level::Info, "it gives readings again".to_owned()),
            false => (Level::Warn, self.lighting.sensor_why().to_owned()),
        };
        self.log(level, format!("sensor: {why}"));
        self.record(Body::Event(Event::Sensor { ok, why }), now);
    }

    /// False if the answer is to a question from before a long pause: then the sensor is asked again.
    fn take_answer(&mut self, now: Now) -> bool {
        let again = self.sensor.answered(now.boot, &mut self.timers);
        let is_good = again.is_none();
        self.outputs.extend(again);
        is_good
    }

    fn no_reading(&mut self, why: &str, now: Now) {
        self.counters.sensor_errors += 1;
        let change = self.lighting.read_failed(why, now.boot, &mut self.timers);
        self.report_sensor(now);
        self.apply(change);
        for command in std::mem::take(&mut self.sensor.read_now) {
            self.reply(command.sender(), Outcome::Rejected, why, None);
        }
    }
}
