//! Keys of the terminal, each of which does what a button of the panel does.
//!
//! Heard only where standard input is a terminal and this program is in its foreground. The terminal gives each
//! key at once and does not show it, until [`Keys`] is dropped; Ctrl-C goes on working. Called by `demo::run`.

use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use tokio::sync::{mpsc, watch};

use super::act::{Act, MAX_LIGHT};
use super::stage::Shown;

/// What the keys do.
pub(super) const HELP: &str = "\nKeys: c cable, s server, b broker, p power, t clock, o old command, f fill,\n\
                               h hand over the sensor, + and - light, q the end. Again undoes it.";

/// How much a key changes the light.
const STEP: f64 = 50.0;

/// The terminal as it was; it is so again when this is dropped.
#[derive(Debug)]
pub(super) struct Keys {
    before: Termios,
}

/// Whether keys are heard at all.
pub(super) fn are_heard() -> bool {
    let stdin = std::io::stdin();
    stdin.is_terminal()
        && tcgetpgrp(stdin.as_fd()).is_ok_and(|group| group == rustix::process::getpgrp())
}

impl Keys {
    /// Hears them, and says what they mean in `acts`; none where there are none to hear.
    pub(super) fn hear(
        acts: mpsc::UnboundedSender<Act>,
        shown: watch::Receiver<Shown>,
    ) -> Option<Self> {
        if !are_heard() {
            return None;
        }
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut after = before.clone();
        after.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &after).ok()?;
        // It waits in a read that nothing ends; the end of the program takes it along.
        std::thread::spawn(move || {
            for key in std::io::stdin().lock().bytes() {
                let Ok(key) = key else { return };
                let act = meaning(key, &shown.borrow());
                if let Some(act) = act
                    && acts.send(act).is_err()
                {
                    return;
                }
            }
        });
        Some(Self { before })
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}

/// What a key does, as things stand.
fn meaning(key: u8, shown: &Shown) -> Option<Act> {
    let turn = |is_so: bool, off: Act, on: Act| Some(if is_so { off } else { on });
    match key.to_ascii_lowercase() {
        b'c' => turn(shown.cable_in, Act::Pull, Act::Plug),
        b's' => turn(shown.server_up, Act::KillServer, Act::StartServer),
        b'b' => turn(shown.broker_up, Act::KillBroker, Act::StartBroker),
        b'p' => turn(shown.has_power, Act::CutPower, Act::GivePower),
        b't' => turn(shown.clock_is_set, Act::ResetClock, Act::SetClock),
        b'h' | b' ' => turn(shown.is_covered, Act::Uncover, Act::Cover),
        b'o' => Some(Act::OldCommand),
        b'f' => Some(Act::Fill),
        b'+' | b'=' => Some(Act::Light((shown.light + STEP).min(MAX_LIGHT).round())),
        b'-' => Some(Act::Light((shown.light - STEP).max(0.0).round())),
        b'q' => Some(Act::Finish),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_undoes_what_it_did() {
        let mut shown = Shown {
            cable_in: true,
            light: 20.0,
            ..Shown::default()
        };
        assert_eq!(meaning(b'c', &shown), Some(Act::Pull));
        shown.cable_in = false;
        assert_eq!(meaning(b'C', &shown), Some(Act::Plug));
        assert_eq!(meaning(b'-', &shown), Some(Act::Light(0.0)));
        assert_eq!(meaning(b'+', &shown), Some(Act::Light(70.0)));
        assert_eq!(meaning(b'\n', &shown), None);
        for key in "csbpthofq".bytes() {
            assert!(meaning(key, &shown).is_some());
            assert!(HELP.contains(key as char));
        }
    }
}
