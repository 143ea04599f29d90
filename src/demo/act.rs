//! What can be done to the demonstration, by a scenario, a key or the page: each a real fault on the real
//! program, or its end.
//!
//! Names them, and says of each what to watch for. `stage` carries them out.

use std::fmt;

use super::{LEASE, OFF_ABOVE, ON_BELOW};

/// One thing that is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Act {
    /// The light that the sensor sees.
    Light(f64),
    /// A hand over the sensor.
    Cover,
    /// The hand is taken away.
    Uncover,
    /// The cable between the device and the broker.
    Pull,
    Plug,
    /// The server that decides.
    KillServer,
    StartServer,
    /// The broker.
    KillBroker,
    StartBroker,
    /// The power of the device: SIGKILL of its process.
    CutPower,
    GivePower,
    /// The device's wall clock, an hour ahead, and back.
    SetClock,
    ResetClock,
    /// A command that was sent ten minutes ago.
    OldCommand,
    /// Many readings, and the cable out: the backlog gets full.
    Fill,
    /// All is put in order and the account is closed.
    Finish,
}

/// The acts that take no value, by the names that the page uses.
const NAMES: [(&str, Act); 15] = [
    ("cover", Act::Cover),
    ("uncover", Act::Uncover),
    ("pull", Act::Pull),
    ("plug", Act::Plug),
    ("kill-server", Act::KillServer),
    ("start-server", Act::StartServer),
    ("kill-broker", Act::KillBroker),
    ("start-broker", Act::StartBroker),
    ("cut-power", Act::CutPower),
    ("give-power", Act::GivePower),
    ("set-clock", Act::SetClock),
    ("reset-clock", Act::ResetClock),
    ("old-command", Act::OldCommand),
    ("fill", Act::Fill),
    ("finish", Act::Finish),
];

/// The most light that the slider gives.
pub(super) const MAX_LIGHT: f64 = 1000.0;

impl Act {
    /// As the page names it: a name, or `light=` and a number.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(light) = text.strip_prefix("light=") {
            let light: f64 = light.parse().ok()?;
            let is_possible = (0.0..=MAX_LIGHT).contains(&light);
            return is_possible.then_some(Act::Light(light));
        }
        NAMES
            .iter()
            .find_map(|(name, act)| (*name == text).then_some(*act))
    }

    /// What to watch for, in one sentence.
    pub(super) fn watch(self) -> String {
        let lease = LEASE.as_secs();
        match self {
            Act::Light(_) => format!(
                "Below {ON_BELOW:.0} the LED goes on and above {OFF_ABOVE:.0} off, whoever decides; between them the Pi by itself leaves it as it is."
            ),
            Act::Cover => "The light falls at once, and the LED goes on: by the server while it is heard, else by the Pi itself.".into(),
            Act::Uncover => "The light comes back, and the LED goes off again.".into(),
            Act::Pull => format!(
                "Nobody tells the Pi: when the lease of {lease} s has run out it decides by itself, and the backlog begins to grow."
            ),
            Act::Plug => "Live readings go first, then the backlog falls to 0, oldest first, and the server decides again.".into(),
            Act::KillServer => format!(
                "The link stays up, but nobody confirms and nobody commands: after {lease} s the Pi decides by itself, and the backlog grows."
            ),
            Act::StartServer => "The server's first command takes the LED over, and what it had not confirmed comes again.".into(),
            Act::KillBroker => "The link is down at once, and the Pi asks for it again and again, more slowly each time.".into(),
            Act::StartBroker => "The broker has forgotten everything; the Pi connects, subscribes anew, and delivers what it kept.".into(),
            Act::CutPower => "The process is killed between two instructions: the page loses the device, and the LED is dark.".into(),
            Act::GivePower => "The first reading decides about the LED, and the backlog from before the cut is still there.".into(),
            Act::SetClock | Act::ResetClock => "The device's clock jumps by an hour and an event says so; LED, lease and backlog do not care, and no record changes its place.".into(),
            Act::OldCommand => "The LED does not move: the event says that the command had expired.".into(),
            Act::Fill => "50 readings a second and no cable: the backlog grows to its bound, then the oldest make room, and each gap is told to the server.".into(),
            Act::Finish => "Everything is put in order, the rest is delivered, and the account is closed.".into(),
        }
    }
}

/// As the story tells it.
impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Act::Light(light) => return write!(f, "the light is {light:.0}"),
            Act::Cover => "a hand covers the sensor",
            Act::Uncover => "the sensor is free again",
            Act::Pull => "the cable is pulled",
            Act::Plug => "the cable is back",
            Act::KillServer => "the server is killed",
            Act::StartServer => "the server starts",
            Act::KillBroker => "the broker is killed",
            Act::StartBroker => "the broker starts",
            Act::CutPower => "the power is cut",
            Act::GivePower => "the power is back",
            Act::SetClock => "the device's clock is set an hour ahead",
            Act::ResetClock => "the device's clock is set right again",
            Act::OldCommand => "a command from ten minutes ago is sent",
            Act::Fill => "the backlog is filled",
            Act::Finish => "the end",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_acts_and_nothing_else() {
        for (name, act) in NAMES {
            assert_eq!(Act::parse(name), Some(act));
            let watch = act.watch();
            assert!(watch.ends_with('.') && watch.len() < 200, "{watch}");
        }
        assert_eq!(Act::parse("light=12.5"), Some(Act::Light(12.5)));
        for bad in [
            "",
            "light",
            "light=",
            "light=-1",
            "light=1e9",
            "light=NaN",
            "Pull",
        ] {
            assert_eq!(Act::parse(bad), None, "{bad}");
        }
    }
}
