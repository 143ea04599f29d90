//! The LED on a thread of its own: a driver that hangs keeps neither readings nor the link waiting.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::{Led, LedError};
use crate::config::{self, AtExit};
use crate::io::device_thread::{Answer, DeviceThread, Work};
use crate::logic::Input;

/// At the start and at the end the LED is waited for; a good one needs less than a millisecond.
const PATIENCE: Duration = Duration::from_millis(500);

/// The configured LED. It is opened at the start, and again after each failure.
#[derive(Debug)]
pub struct LedThread {
    thread: DeviceThread<Request>,
    inputs: UnboundedSender<Input>,
}

enum Request {
    /// How is it?
    Look(Sender<Result<bool, String>>),
    Set(bool),
    /// As the configuration wants it after a clean stop.
    Leave(Sender<Result<bool, String>>),
}

impl LedThread {
    /// Opens the LED; tells with it whether it is on, or why that cannot be told. Waits half a second at
    /// most. It answers into `inputs`.
    pub fn start(
        config: &config::Led,
        inputs: UnboundedSender<Input>,
    ) -> (Self, Result<bool, String>) {
        let config = config.clone();
        let panicked = Input::LedFailed {
            why: "the LED's driver panicked; please report it with the lines above".to_owned(),
            seen: None,
        };
        let make = move || work(config.clone());
        let thread = DeviceThread::new("led", make, panicked, inputs.clone());
        let mut led = Self { thread, inputs };
        let found = led.ask_and_wait(Request::Look);
        (led, found)
    }

    /// Makes the LED so, and returns at once. The answer is one `Input::LedWritten` or `Input::LedFailed`.
    pub fn set(&mut self, on: bool) {
        if let Err(refused) = self.thread.ask(Request::Set(on)) {
            let why = refused.why("LED");
            // Nobody listens any more when the daemon stops.
            let _ = self.inputs.send(Input::LedFailed { why, seen: None });
        }
    }

    /// What is under way counts no more.
    pub fn give_up(&mut self) {
        self.thread.give_up();
    }

    /// Leaves the LED as the configuration wants it after a clean stop; waits half a second at most.
    ///
    /// # Errors
    /// In words.
    pub fn leave(mut self) -> Result<(), String> {
        self.ask_and_wait(Request::Leave).map(drop)
    }

    fn ask_and_wait(
        &mut self,
        request: impl FnOnce(Sender<Result<bool, String>>) -> Request,
    ) -> Result<bool, String> {
        let (sender, answer): (_, Receiver<_>) = channel();
        self.thread
            .ask(request(sender))
            .map_err(|refused| refused.why("LED"))?;
        match answer.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                self.give_up();
                Err(format!(
                    "the LED has not answered for {} ms",
                    PATIENCE.as_millis()
                ))
            }
            Err(RecvTimeoutError::Disconnected) => Err("the LED's driver panicked".to_owned()),
        }
    }
}

fn work(config: config::Led) -> Work<Request> {
    let mut open: Option<Led> = None;
    Box::new(move |request| match request {
        Request::Look(sender) => {
            let found = Led::open(&config).map(|(led, on)| {
                open = Some(led);
                on
            });
            tell(sender, found)
        }
        Request::Set(on) => Answer::Input(set(&config, &mut open, on)),
        Request::Leave(sender) => {
            let left = leave(&config, &mut open);
            tell(sender, left.map(|()| true))
        }
    })
}

fn tell(sender: Sender<Result<bool, String>>, answer: Result<bool, LedError>) -> Answer {
    let answer = answer.map_err(|error| error.to_string());
    // Nobody waits any more for what took too long.
    Answer::Call(Box::new(move || drop(sender.send(answer))))
}

fn leave(config: &config::Led, open: &mut Option<Led>) -> Result<(), LedError> {
    match open {
        Some(led) => led.leave(),
        None if config.at_exit == AtExit::Keep => Ok(()),
        None => Led::open(config)?.0.leave(),
    }
}

/// Switches the LED; after a failure it is opened anew, since its driver may have gone and come again.
fn set(config: &config::Led, open: &mut Option<Led>, on: bool) -> Input {
    let mut led = match open.take() {
        Some(led) => led,
        None => match Led::open(config) {
            Ok((led, _)) => led,
            Err(error) => {
                let why = error.to_string();
                return Input::LedFailed { why, seen: None };
            }
        },
    };
    match led.ensure(on) {
        Ok(was) => {
            *open = Some(led);
            Input::LedWritten { led_on: on, was }
        }
        Err((error, seen)) => {
            let why = error.to_string();
            Input::LedFailed { why, seen }
        }
    }
}
