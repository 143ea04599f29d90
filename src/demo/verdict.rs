//! The closed account in words.
//!
//! Pure: what was found in, lines out. Called by `demo::run` at the end.

use super::account::Verdict;
use super::screen::{Ink, Screen};
use crate::logic::words;

impl Verdict {
    /// Whether all was received once, in order, on the right topics, and the LED was right.
    pub(super) fn is_right(&self) -> bool {
        self.faults.is_empty()
    }

    /// The account for a person: what was taken, what came, what is wrong.
    pub(super) fn in_words(&self, screen: &Screen) -> String {
        let mut lines = vec![
            format!(
                "taken by the Pi       {:5}   ({}, {} received)",
                self.last,
                words::counted(self.readings as u64, "reading"),
                words::counted(self.events as u64, "event")
            ),
            format!("received live         {:5}", self.live),
            format!("received by replay    {:5}", self.replayed),
            format!("missing               {:5}", self.missing.len()),
            format!("twice                 {:5}", self.twice.len()),
        ];
        if let Some(cut_off) = self.cut_off {
            lines.push(format!(
                "lost to the power cut {cut_off:5}   (younger than a second: the one exception)"
            ));
        }
        let order = self
            .faults
            .iter()
            .any(|fault| fault.contains("out of order"));
        lines.push(format!("in order              {:>5}", yes(!order)));
        for outage in &self.outages {
            lines.push(format!(
                "outage of the {:<6}  {:5.1} s: {}, {}, {}, {}",
                outage.cause,
                outage.seconds,
                words::counted(outage.readings, "reading"),
                words::counted(outage.events, "event"),
                words::counted(outage.led_changes, "LED change"),
                outage.lost_in_words()
            ));
        }
        let changes: Vec<_> = self.local_changes.iter().map(|on| on_off(*on)).collect();
        let changes = match changes.is_empty() {
            true => "not switched: the light did not cross".to_owned(),
            false => format!("switched {} by the Pi itself", changes.join(", ")),
        };
        lines.push(format!(
            "the LED meanwhile     {changes}; checked against the rule at {}",
            words::counted(self.ruled as u64, "reading")
        ));
        lines.push(String::new());
        lines.push(match self.is_right() {
            true => screen.ink(
                Ink::Green,
                "The account is right: everything arrived, once, in order.",
            ),
            false => screen.ink(Ink::Red, "The account is not right:"),
        });
        lines.extend(self.faults.iter().map(|fault| format!("  - {fault}")));
        lines.join("\n")
    }
}

fn yes(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_said() {
        let screen = Screen::new();
        let mut verdict = Verdict {
            last: 3,
            local_changes: vec![true],
            ..Verdict::default()
        };
        assert!(verdict.in_words(&screen).contains("The account is right"));
        verdict.missing = vec![2];
        verdict.faults = vec!["missing: 2".to_owned()];
        let words = verdict.in_words(&screen);
        assert!(words.contains("not right") && words.contains("  - missing: 2"));
        assert!(words.contains("missing                   1"), "{words}");
    }
}
