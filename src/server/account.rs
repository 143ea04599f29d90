//! The account: of one run, of one device, and how both are told to people and programs.
//!
//! Pure data. What belongs into it is decided in `ledger`; the shell prints and publishes it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::intervals::Intervals;

/// Ranges of lost records kept for a run. Beyond it the two nearest become one: the account stays
/// right, because losses are counted apart from where they were.
const MOST_RANGES: usize = 128;

/// received + lost + missing = 1..=last, for each run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Different records.
    pub received: u64,
    /// Arrivals of a record that was there already.
    pub twice: u64,
    /// Records that the device gave up and told so.
    pub lost: u64,
    /// The rest: not received, not told as lost; perhaps still on their way.
    pub missing: u64,
}

/// What is known of one run of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The how manieth run of the device here: 1, 2, 3 ...
    pub ordinal: u64,
    /// The highest number known to have been used.
    pub last: u64,
    /// Different records received.
    pub received: u64,
    /// Arrivals of a record that was there already.
    pub twice: u64,
    /// Where losses were told. A thinned backlog loses every second record of a range.
    pub losses: Intervals,
    /// How many records were told as lost.
    pub told: u64,
    /// How many of the records in `losses` were received all the same.
    pub received_in_losses: u64,
}

/// What is known of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Of all its runs.
    #[serde(flatten)]
    pub counts: Counts,
    /// How many runs.
    pub runs: u64,
    /// The run of the newest live record.
    pub latest: Option<Uuid>,
    /// Readings without run and number, as the lesson's device sends them: obeyed, not kept.
    pub plain: u64,
    /// Messages, or parts of one, that are no records.
    pub rubbish: u64,
}

/// A device and its newest run, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The device id.
    pub device: String,
    /// Its totals.
    #[serde(flatten)]
    pub totals: Totals,
    /// Its newest run.
    pub run: Option<RunReport>,
}

/// One run, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunReport {
    /// The run.
    pub run: Uuid,
    /// The highest number known to have been used.
    pub last: u64,
    /// Its account.
    #[serde(flatten)]
    pub counts: Counts,
}

impl Run {
    /// The account of the run.
    pub fn counts(&self) -> Counts {
        let gone = self.losses.count().saturating_sub(self.received_in_losses);
        let lost = gone.min(self.told);
        Counts {
            received: self.received,
            twice: self.twice,
            lost,
            missing: self.last.saturating_sub(self.received).saturating_sub(lost),
        }
    }

    /// Records `from..=to` hold `count` losses. `received` tells how many of a range were received.
    ///
    /// # Errors
    /// Those of `received`; the account is then not to be used any more.
    pub fn lose<E>(
        &mut self,
        (from, to): (u64, u64),
        count: u64,
        received: impl Fn(u64, u64) -> Result<u64, E>,
    ) -> Result<(), E> {
        let mut wider = Some((from, to));
        while let Some((from, to)) = wider {
            for (from, to) in self.losses.insert(from, to) {
                self.received_in_losses += received(from, to)?;
            }
            wider = (self.losses.ranges() > MOST_RANGES)
                .then(|| self.losses.narrowest_gap())
                .flatten();
        }
        self.told = self.told.saturating_add(count);
        self.last = self.last.max(to);
        Ok(())
    }

    /// For people and programs.
    pub fn report(&self, run: Uuid) -> RunReport {
        RunReport {
            run,
            last: self.last,
            counts: self.counts(),
        }
    }
}

impl Counts {
    /// One run's account has become another.
    pub fn replace(&mut self, before: Counts, after: Counts) {
        let replace = |total: &mut u64, before: u64, after: u64| {
            *total = total.saturating_sub(before).saturating_add(after);
        };
        replace(&mut self.received, before.received, after.received);
        replace(&mut self.twice, before.twice, after.twice);
        replace(&mut self.lost, before.lost, after.lost);
        replace(&mut self.missing, before.missing, after.missing);
    }
}

impl Report {
    /// As JSON; strings and numbers always have one.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// In one line.
    pub fn line(&self) -> String {
        let Totals {
            counts,
            runs,
            plain,
            rubbish,
            ..
        } = self.totals;
        let mut line = format!("{}: {}", readable(&self.device), words(counts));
        if runs != 1 {
            line.push_str(&format!(", in {runs} runs"));
        }
        for (count, name) in [(plain, "plain"), (rubbish, "rubbish")] {
            if count > 0 {
                line.push_str(&format!(", {count} {name}"));
            }
        }
        line
    }
}

impl RunReport {
    /// In one line, with the first of the ranges that are missing.
    pub fn line(&self, missing: &[(u64, u64)]) -> String {
        const SHOWN: usize = 5;
        let mut line = format!("  {}  1..{}: {}", self.run, self.last, words(self.counts));
        if !missing.is_empty() {
            let shown: Vec<String> = missing
                .iter()
                .take(SHOWN)
                .map(|(from, to)| match from == to {
                    true => from.to_string(),
                    false => format!("{from}-{to}"),
                })
                .collect();
            let more = if missing.len() > SHOWN { ", ..." } else { "" };
            line.push_str(&format!(" ({}{more})", shown.join(", ")));
        }
        line
    }
}

fn words(counts: Counts) -> String {
    let Counts {
        received,
        twice,
        lost,
        missing,
    } = counts;
    format!("{received} received, {twice} twice, {lost} lost, {missing} missing")
}

/// A device id comes from outside: nothing of it may move the cursor of a terminal.
fn readable(id: &str) -> String {
    id.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: u64, _: u64) -> Result<u64, ()> {
        Ok(0)
    }

    #[test]
    fn a_thinned_range_counts_what_was_told_and_no_more() {
        let mut run = Run {
            last: 10,
            ..Run::default()
        };
        run.lose((1, 9), 5, none).unwrap();
        assert_eq!(run.counts().lost, 5);
        assert_eq!(run.counts().missing, 5);
        for _ in 0..4 {
            run.received += 1;
            run.received_in_losses += 1;
        }
        run.received += 1;
        assert_eq!(run.counts().missing, 0);
    }

    #[test]
    fn many_ranges_become_fewer_and_the_account_stays() {
        let mut run = Run::default();
        for n in 1..=1_000 {
            run.lose((n * 10, n * 10), 1, none).unwrap();
        }
        assert!(run.losses.ranges() <= MOST_RANGES);
        assert_eq!(run.counts().lost, 1_000);
        assert_eq!(run.counts().missing, 9_000);
    }

    #[test]
    fn lines_are_for_people() {
        let report = Report {
            device: "pi\u{1b}[2J".into(),
            totals: Totals {
                counts: Counts {
                    received: 12,
                    twice: 1,
                    lost: 0,
                    missing: 3,
                },
                runs: 2,
                rubbish: 4,
                ..Totals::default()
            },
            run: None,
        };
        assert_eq!(
            report.line(),
            "pi?[2J: 12 received, 1 twice, 0 lost, 3 missing, in 2 runs, 4 rubbish"
        );
        let run = Run {
            last: 15,
            received: 12,
            ..Run::default()
        };
        assert_eq!(
            run.report(Uuid::nil()).line(&[(2, 3), (7, 7)]),
            "  00000000-0000-0000-0000-000000000000  1..15: 12 received, 0 twice, 0 lost, 3 missing (2-3, 7)"
        );
    }
}
