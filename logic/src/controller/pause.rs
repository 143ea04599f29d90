//! Time in which the program did not run: the machine slept, or the process was stopped. That is nobody's fault:
//! what has to answer within a time gets that much more, and after a long pause the first fresh reading decides.

use std::time::Duration;

use super::Controller;
use crate::Level;
use crate::time::Now;
use crate::timers::Timer;

/// A pause that is not worth a thought: a busy machine.
const SHORT: Duration = Duration::from_secs(1);

/// When the last input was handled (boot clock).
#[derive(Debug, Clone)]
pub(super) struct LastInput(Duration);

impl LastInput {
    pub(super) fn new(now: Duration) -> Self {
        Self(now)
    }
}

impl Controller {
    pub(super) fn notice_pause(&mut self, now: Now) {
        let last = std::mem::replace(&mut self.last_input.0, now.boot);
        let expected = self.timers.next().map_or(last, |next| next.max(last));
        let pause = now.boot.saturating_sub(expected);
        if pause.is_zero() {
            return;
        }
        let is_long = pause >= SHORT.max(self.lighting.settings().interval);
        self.lighting.paused(pause, is_long, &mut self.timers);
        self.timers.delay(Timer::LedAnswer, pause);
        self.timers.delay(Timer::ReadAnswer, pause);
        if is_long {
            self.sensor.paused(&self.timers);
            let seconds = pause.as_secs();
            let text = format!("nothing ran for {seconds} s: the next reading decides");
            self.log(Level::Info, text);
        }
    }
}
