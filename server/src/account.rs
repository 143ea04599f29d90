//! The account of a device and of a run, as it is told to people and programs. The rows that it comes from
//! are the database's.

use serde::Serialize;
use uuid::Uuid;

pub(crate) use crate::store::Counts;

/// A device and its newest run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// The device id.
    pub device: String,
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
    /// When it was last heard of, RFC 3339.
    pub last_seen: String,
    /// Its newest run.
    pub run: Option<RunReport>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RunReport {
    /// The run.
    pub run: Uuid,
    /// The highest number known to have been used.
    pub last: u64,
    /// Its account.
    #[serde(flatten)]
    pub counts: Counts,
}

impl Report {
    /// As JSON; strings and numbers always have one.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        let mut line = format!("{}: {}", readable(&self.device), words(self.counts));
        if self.runs != 1 {
            line.push_str(&format!(", in {} runs", self.runs));
        }
        for (count, name) in [(self.plain, "plain"), (self.rubbish, "rubbish")] {
            if count > 0 {
                line.push_str(&format!(", {count} {name}"));
            }
        }
        line
    }
}

impl RunReport {
    /// In one line, with the first of the ranges that are missing.
    pub(crate) fn line(&self, missing: &[(u64, u64)]) -> String {
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
        deleted,
    } = counts;
    let mut words = format!("{received} received, {twice} twice, {lost} lost, {missing} missing");
    if deleted > 0 {
        words.push_str(&format!(", {deleted} deleted"));
    }
    words
}

/// A device id comes from outside: nothing of it may move the cursor of a terminal.
pub(crate) fn readable(id: &str) -> String {
    id.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_for_people() {
        let counts = Counts {
            received: 12,
            twice: 1,
            lost: 0,
            missing: 3,
            deleted: 0,
        };
        let report = Report {
            device: "pi\u{1b}[2J".into(),
            counts,
            runs: 2,
            latest: None,
            plain: 0,
            rubbish: 4,
            last_seen: String::new(),
            run: None,
        };
        assert_eq!(
            report.line(),
            "pi?[2J: 12 received, 1 twice, 0 lost, 3 missing, in 2 runs, 4 rubbish"
        );
        let run = RunReport {
            run: Uuid::nil(),
            last: 17,
            counts: Counts {
                deleted: 2,
                ..counts
            },
        };
        assert_eq!(
            run.line(&[(2, 3), (7, 7)]),
            "  00000000-0000-0000-0000-000000000000  1..17: 12 received, 1 twice, 0 lost, 3 missing, 2 deleted (2-3, 7)"
        );
    }
}
