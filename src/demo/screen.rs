//! What the demonstration says: headings, explanations, and a line each second.
//!
//! Prints lines and nothing else, so that it reads the same in a terminal, a file and a log; colour
//! only on a terminal. It knows no story. Called by `story` and `verdict`.

use std::io::{IsTerminal, Write};

/// Places of the small bar, and the light that fills it.
const BAR: usize = 10;
const BRIGHT: f64 = 700.0;

/// Colours, as a terminal wants them.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ink {
    Bold,
    Green,
    Yellow,
    Red,
    Grey,
}

/// Standard output.
#[derive(Debug)]
pub(super) struct Screen {
    colour: bool,
}

/// What a line of each second tells.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moment {
    /// Seconds since the beginning.
    pub(super) at: f64,
    /// The light; none before the first reading.
    pub(super) light: Option<f64>,
    /// The LED.
    pub(super) led_on: bool,
    /// Who decides, as the agent names it.
    pub(super) by: String,
    /// Whether the cable is plugged in.
    pub(super) cable_in: bool,
    /// Whether the agent has a link.
    pub(super) link_up: bool,
    /// Records that wait.
    pub(super) backlog: u64,
    /// Records that the server has.
    pub(super) received: usize,
}

impl Screen {
    /// With colour where it is wanted: on a terminal, unless `NO_COLOR` says otherwise.
    pub(super) fn new() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            colour: std::io::stdout().is_terminal() && !unwanted,
        }
    }

    /// A line of text, or several.
    pub(super) fn say(&self, text: &str) {
        // A reader who has gone away does not change what the account comes to.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// The beginning of a part of the story, and what it is about.
    pub(super) fn head(&self, title: &str, about: &str) {
        self.say(&format!("\n{}\n{about}\n", self.ink(Ink::Bold, title)));
    }

    /// The line of a second.
    pub(super) fn line(&self, moment: &Moment) {
        let led = match moment.led_on {
            true => self.ink(Ink::Yellow, "●"),
            false => "○".to_owned(),
        };
        let link = match (moment.cable_in, moment.link_up) {
            (true, true) => self.ink(Ink::Green, "up    "),
            (true, false) => self.ink(Ink::Yellow, "down  "),
            (false, _) => self.ink(Ink::Red, "pulled"),
        };
        let light = moment
            .light
            .map_or_else(|| "   -".to_owned(), |light| format!("{light:4.0}"));
        self.say(&format!(
            "{:3.0} s  light {light} {}  LED {led} by {:<9}  link {link}  backlog {:3}  received {:3}",
            moment.at,
            self.ink(Ink::Grey, &bar(moment.light)),
            who(&moment.by),
            moment.backlog,
            moment.received,
        ));
    }

    /// The text in a colour, if there is any.
    pub(super) fn ink(&self, ink: Ink, text: &str) -> String {
        let code = match ink {
            Ink::Bold => 1,
            Ink::Green => 32,
            Ink::Yellow => 33,
            Ink::Red => 31,
            Ink::Grey => 90,
        };
        match self.colour {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

/// Who decides, for a person.
pub(super) fn who(by: &str) -> &str {
    match by {
        "remote" => "server",
        "fallback" => "Pi itself",
        "start" => "nobody",
        other => other,
    }
}

fn bar(light: Option<f64>) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let share = (light.unwrap_or(0.0) / BRIGHT).clamp(0.0, 1.0);
    let eighths = (share * (BAR * 8) as f64).round() as usize;
    let full = "█".repeat(eighths / 8);
    let text = full + EIGHTHS[eighths % 8];
    format!("{text:<BAR$}")
}

/// What is said first.
pub(super) fn greeting(broker: &str, light: &str) -> String {
    format!(
        "This is nightlight: a light sensor, an LED, and a server that decides over MQTT.\n\
         When the server cannot be reached, the Pi decides by itself, and whatever it\n\
         measured meanwhile reaches the server afterwards. In a minute you see all of it.\n\
         \n\
         broker   {broker}\n\
         light    {light}\n\
         stop     Ctrl-C"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_always_the_same_width() {
        for light in [-5.0, 0.0, 1.0, 243.0, 699.0, 700.0, 1e9, f64::NAN] {
            assert_eq!(bar(Some(light)).chars().count(), BAR, "{light}");
        }
        assert_eq!(bar(Some(350.0)).trim(), "█████");
        assert_eq!(bar(None).trim(), "");
    }

    #[test]
    fn people_do_not_read_remote_and_fallback() {
        assert_eq!(who("remote"), "server");
        assert_eq!(who("fallback"), "Pi itself");
        assert_eq!(who("fail-safe"), "fail-safe");
    }
}
