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
        if self.given_up > 0 {
            let given_up = self.given_up;
            lines.push(format!(
                "given up, and told    {given_up:5}   (the backlog was full)"
            ));
        }
        if let Some(cut_off) = self.cut_off {
            lines.push(format!(
                "lost to the power cut {cut_off:5}   (younger than a second: the one exception)"
            ));
        }
        let order = self
            .faults
            .iter()
            .any(|fault| fault.contains("out of order"));
        lines.push(match self.overtaken {
            0 => format!("in order              {:>5}", yes(!order)),
            places => format!(
                "in order              {:>5}   (but for {}: first sent while no server listened)",
                yes(!order),
                words::counted(places, "place")
            ),
        });
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
        match self.ruled {
            0 => {
                lines.push("the LED meanwhile     not held against the local rule here".to_owned())
            }
            ruled => lines.push(format!(
                "the LED meanwhile     {changes}; checked against the rule at {}",
                words::counted(ruled as u64, "reading")
            )),
        }
        lines.extend(self.notes.iter().cloned());
        lines.push(String::new());
        let ink = if self.is_right() {
            Ink::Green
        } else {
            Ink::Red
        };
        lines.push(screen.ink(ink, &self.sentence()));
        lines.extend(self.faults.iter().map(|fault| format!("  - {fault}")));
        lines.join("\n")
    }

    /// What it comes to.
    pub(super) fn sentence(&self) -> String {
        if !self.is_right() {
            return "The account is not right:".to_owned();
        }
        let all = match self.given_up {
            0 => "everything arrived".to_owned(),
            given_up => format!("everything arrived but {given_up}, and those were told"),
        };
        let order = match self.overtaken {
            0 => "in order",
            _ => "to be ordered by number",
        };
        match self.twice.len() as u64 {
            0 => format!("The account is right: {all}, once, {order}."),
            twice => format!(
                "The account is right: {all}, {order}; {} came again and {} known by number.",
                words::counted(twice, "record"),
                if twice == 1 { "is" } else { "are" }
            ),
        }
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
    fn the_sentence_says_what_it_comes_to() {
        let said = |twice: Vec<u64>, given_up| {
            let verdict = Verdict {
                twice,
                given_up,
                ..Verdict::default()
            };
            verdict.sentence()
        };
        let (right, once) = (
            "The account is right: everything arrived",
            "once, in order.",
        );
        assert_eq!(said(vec![], 0), format!("{right}, {once}"));
        let told = format!("{right} but 3, and those were told, {once}");
        assert_eq!(said(vec![], 3), told);
        assert!(said(vec![4], 0).ends_with("1 record came again and is known by number."));
    }

    #[test]
    fn every_fault_is_said() {
        let screen = Screen::new();
        let mut verdict = Verdict {
            last: 3,
            local_changes: vec![true],
            ruled: 7,
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
