//! What the demonstration says: headings, explanations, and a line each second.
//!
//! Prints lines and nothing else, so that it reads the same in a terminal, a file and a log; colour
//! only on a terminal. It knows no story. Called by `story` and `verdict`.

use std::io::{IsTerminal, Write};

/// Places of the small bar, and the light that fills it.
const BAR: usize = 8;
/// Columns of a terminal.
const WIDTH: usize = 80;
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
    /// Whether the server lives, and the broker.
    pub(super) server_up: bool,
    pub(super) broker_up: bool,
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

    /// Without colour, wherever it is.
    pub(super) fn plain() -> Self {
        Self { colour: false }
    }

    /// A line of text, or several.
    pub(super) fn say(&self, text: &str) {
        // A reader who has gone away does not change what the account comes to.
        let _ = writeln!(std::io::stdout(), "{}", wrapped(text));
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
        // In 80 columns for as long as a lesson lasts.
        let unit = if moment.at < 999.5 { " s" } else { "s" };
        let light = moment
            .light
            .map_or_else(|| "   -".to_owned(), |light| format!("{light:4.0}"));
        self.say(&format!(
            "{:3.0}{unit}  light {light} {}  LED {led} by {:<9}  link {link}  kept {:3}  got {:3}",
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
        "off" => "no power",
        other => other,
    }
}

/// The text with lines of at most 80 columns, broken between words; what hangs over an indented line is indented more.
fn wrapped(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let indent: String = line.chars().take_while(|sign| *sign == ' ').collect();
        let more = if indent.is_empty() { "" } else { "   " };
        let mut rest = line.to_owned();
        while columns(&rest) > WIDTH {
            let fits = rest
                .char_indices()
                .filter(|(at, sign)| *sign == ' ' && *at > indent.len() + 2)
                .take_while(|(at, _)| columns(rest.get(..*at).unwrap_or_default()) <= WIDTH);
            // A word that is longer than a line stays whole.
            let Some((at, _)) = fits.last() else { break };
            let behind = rest.split_off(at);
            lines.push(std::mem::replace(
                &mut rest,
                format!("{indent}{more}{}", behind.trim_start()),
            ));
        }
        lines.push(rest);
    }
    lines.join("\n")
}

/// How wide it is on a terminal, which does not show colours as columns.
fn columns(text: &str) -> usize {
    let mut columns = 0;
    let mut is_colour = false;
    for sign in text.chars() {
        match sign {
            '\u{1b}' => is_colour = true,
            'm' if is_colour => is_colour = false,
            _ => columns += usize::from(!is_colour),
        }
    }
    columns
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
pub(super) fn greeting(broker: &str, page: &str, light: &str, keys: &str) -> String {
    let keys = match keys.is_empty() {
        true => "the panel on the page takes over, whenever you like",
        false => "the panel on the page and the keys of this terminal take over:",
    };
    format!(
        "This is nightlight: a light sensor, an LED, and a server that decides over MQTT.\n\
         When the server cannot be reached, the Pi decides by itself, and whatever it\n\
         measured meanwhile reaches the server afterwards.\n\
         \n\
         broker   {broker}\n\
         light    {light}\n\
         page     {page}\n\
         yours    {keys}\n\
         kept     records on the Pi that the server does not have yet\n\
         got      records that the server has\n\
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
        assert_eq!(bar(Some(350.0)).trim(), "████");
        assert_eq!(bar(None).trim(), "");
    }

    #[test]
    fn a_long_line_is_broken_between_words() {
        let long = format!("       -> {}", "twelve chars ".repeat(20));
        for line in wrapped(&long).lines() {
            assert!(
                line.chars().count() <= WIDTH && line.starts_with("       "),
                "{line:?}"
            );
        }
        assert_eq!(wrapped("a\n\n  b"), "a\n\n  b");
        let word = "x".repeat(100);
        assert_eq!(wrapped(&word), word);
        assert_eq!(columns("\u{1b}[33m●\u{1b}[0m on"), 4);
    }

    #[test]
    fn people_do_not_read_remote_and_fallback() {
        assert_eq!(who("remote"), "server");
        assert_eq!(who("fallback"), "Pi itself");
        assert_eq!(who("fail-safe"), "fail-safe");
    }
}
