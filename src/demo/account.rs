//! The account of the demonstration: what the server received, held against what the agent took.
//!
//! Collects records as they come, and judges them once, at the end. It believes the server alone: of
//! the agent's own word it takes the number of its newest record, and when it was off line. No I/O.
//! Fed by `story`, closed by `demo::run`; `verdict` puts it into words.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::Value;
use uuid::Uuid;

use super::record::{Lane, Received, Tells, ms, read};
use super::{LEASE, rule};
use crate::logic;
use crate::logic::account::RunAccount;
use crate::logic::telemetry::OutageReport;
use crate::logic::words;

/// A power cut may take the records of `durable_within`, which is a second: four readings, and a few events.
const MAX_CUT_OFF: u64 = 10;

/// Everything that the server received.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// In the order in which they came, by run.
    runs: BTreeMap<Uuid, Vec<Received>>,
    /// Records that the agent said it gave up.
    given_up: u64,
    faults: Vec<String>,
}

/// What the agent says of itself.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Claim {
    /// Its run.
    pub(super) run: Uuid,
    /// The number of its newest record.
    pub(super) last: u64,
    /// Records that it certainly made off line.
    pub(super) off_line: Option<RangeInclusive<u64>>,
    /// When only the local rule could decide, in milliseconds since 1970, as far as the agent had no time to
    /// report it.
    pub(super) alone_ms: Option<RangeInclusive<i64>>,
    /// It was ended by a power cut: what it had not stored by then is gone.
    pub(super) is_cut: bool,
}

/// The account, closed.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// Records that the agent took.
    pub(super) last: u64,
    /// Of those received: readings, and events.
    pub(super) readings: usize,
    pub(super) events: usize,
    /// Records by way of the live topics, and by replay.
    pub(super) live: usize,
    pub(super) replayed: usize,
    /// Numbers that never came, and those that came more than once.
    pub(super) missing: Vec<u64>,
    pub(super) twice: Vec<u64>,
    /// Readings of the outage for which the LED could be held against the local rule.
    pub(super) ruled: usize,
    /// Changes of the LED by the local rule in the outage.
    pub(super) local_changes: Vec<bool>,
    /// The agent's own reports of outages.
    pub(super) outages: Vec<OutageReport>,
    /// Records that power cuts took: they were too young to be on the disk.
    pub(super) cut_off: Option<u64>,
    /// Everything that is wrong, a line each. Empty: the account is right.
    pub(super) faults: Vec<String>,
}

impl Account {
    /// Takes a message: one record, or several in an array. What is no record of an agent (such as the
    /// lesson's device sends) is not counted.
    pub(super) fn take(&mut self, lane: Lane, payload: &[u8]) {
        let records = match serde_json::from_slice(payload) {
            Ok(Value::Array(records)) => records,
            Ok(record) => vec![record],
            Err(_) => Vec::new(),
        };
        for record in records {
            if record["event"] == "loss" {
                self.given_up += record["count"].as_u64().unwrap_or(1);
                continue;
            }
            let Some((run, replayed, received)) = read(lane, &record) else {
                continue;
            };
            if replayed != (lane == Lane::History) {
                let seq = received.seq;
                self.faults.push(match replayed {
                    true => format!("record {seq} was replayed on a live topic"),
                    false => format!("record {seq} came as history without saying so"),
                });
            }
            self.runs.entry(run).or_default().push(received);
        }
    }

    /// Records received so far, of all runs.
    pub(super) fn received(&self) -> usize {
        self.runs.values().map(Vec::len).sum()
    }

    /// Whether every record of `run` up to `last` is here.
    pub(super) fn is_complete(&self, run: Uuid, last: u64) -> bool {
        self.numbers(run).missing(last).is_empty()
    }

    /// Closes the account: every record of the claims once, history in order and on its own topic, and
    /// the LED in the outage as the local rule says.
    pub(super) fn close(&self, claims: &[Claim]) -> Verdict {
        let mut verdict = Verdict {
            faults: self.faults.clone(),
            ..Verdict::default()
        };
        for claim in claims {
            self.close_run(claim, &mut verdict);
        }
        let is_claimed = |run: &Uuid| claims.iter().any(|claim| claim.run == *run);
        let others = self.runs.iter().filter(|(run, _)| !is_claimed(run));
        let others: usize = others.map(|(_, records)| records.len()).sum();
        let mut fault = |text: String| verdict.faults.push(text);
        if others > 0 {
            let others = words::counted(others as u64, "record");
            fault(format!("{others} of another run"));
        }
        if self.given_up > 0 {
            let given_up = words::counted(self.given_up, "record");
            fault(format!("the agent gave up {given_up} (and told)"));
        }
        if verdict.ruled == 0 {
            fault("there is no reading of the outage to hold the LED against".to_owned());
        }
        verdict
    }

    fn close_run(&self, claim: &Claim, verdict: &mut Verdict) {
        let claim = &self.after_cut(claim, verdict);
        let records = self.of(claim.run);
        let count = |wanted: fn(&Received) -> bool| records.iter().filter(|r| wanted(r)).count();
        let numbers = self.numbers(claim.run);
        let readings = count(|record| matches!(record.tells, Tells::Reading { .. }));
        verdict.last += claim.last;
        verdict.readings += readings;
        verdict.events += records.len() - readings;
        verdict.live += count(|record| record.lane != Lane::History);
        verdict.replayed += count(|record| record.lane == Lane::History);
        let (missing, twice) = (numbers.missing(claim.last), numbers.twice());
        self.judge_completeness(claim, (&missing, &twice), verdict);
        verdict.missing.extend(missing);
        verdict.twice.extend(twice);
        judge_order(records, claim, verdict);
        judge_outage(records, claim, verdict);
    }

    /// After a power cut the claim is what the next run found on the disk, or more, if more was received; what
    /// the agent had shown beyond that is cut off.
    fn after_cut(&self, claim: &Claim, verdict: &mut Verdict) -> Claim {
        if !claim.is_cut {
            return claim.clone();
        }
        let found = self
            .runs
            .values()
            .flatten()
            .filter_map(|record| match &record.tells {
                Tells::Started { previous } => previous.filter(|(run, _)| *run == claim.run),
                _ => None,
            });
        let found = found.map(|(_, seq)| seq).max().unwrap_or(0);
        let last = found.max(self.highest(claim.run));
        let cut_off = claim.last.saturating_sub(last);
        verdict.cut_off = Some(verdict.cut_off.unwrap_or(0) + cut_off);
        if cut_off > MAX_CUT_OFF {
            let text =
                format!("the power cut took {cut_off} records, more than the youngest second");
            verdict.faults.push(text);
        }
        Claim {
            last,
            ..claim.clone()
        }
    }

    /// The highest number received of the run.
    pub(super) fn highest(&self, run: Uuid) -> u64 {
        self.numbers(run).last()
    }

    fn numbers(&self, run: Uuid) -> RunAccount {
        let mut account = logic::account::Account::default();
        for record in self.of(run) {
            account.receive(run, record.seq);
        }
        account.run(run)
    }

    fn of(&self, run: Uuid) -> &[Received] {
        self.runs.get(&run).map_or(&[], Vec::as_slice)
    }

    fn judge_completeness(
        &self,
        claim: &Claim,
        (missing, twice): (&[u64], &[u64]),
        verdict: &mut Verdict,
    ) {
        let mut fault = |text: String| verdict.faults.push(text);
        if claim.last == 0 {
            fault("the agent took nothing".to_owned());
        }
        if !missing.is_empty() {
            fault(format!("missing: {}", in_words(missing)));
        }
        if !twice.is_empty() {
            fault(format!("received twice: {}", in_words(twice)));
        }
        let records = self.of(claim.run);
        let beyond = records.iter().filter(|record| record.seq > claim.last);
        let beyond: Vec<_> = beyond.map(|record| record.seq).collect();
        if !beyond.is_empty() {
            let beyond = in_words(&beyond);
            fault(format!("received, but never taken by the agent: {beyond}"));
        }
    }
}

/// Each topic must be in the order of the numbers, and what was made off line must come as history.
fn judge_order(records: &[Received], claim: &Claim, verdict: &mut Verdict) {
    for (lane, name) in [
        (Lane::Telemetry, "live readings"),
        (Lane::Events, "live events"),
        (Lane::History, "history"),
    ] {
        let seqs = records.iter().filter(|record| record.lane == lane);
        let seqs: Vec<_> = seqs.map(|record| record.seq).collect();
        if let Some(pair) = seqs.windows(2).find(|pair| pair[1] <= pair[0]) {
            let (first, second) = (pair[0], pair[1]);
            verdict
                .faults
                .push(format!("{name} out of order: {second} came after {first}"));
        }
    }
    let off_line = |seq: u64| {
        let off_line = claim.off_line.as_ref();
        off_line.is_some_and(|range| range.contains(&seq))
    };
    let stray = records
        .iter()
        .filter(|record| record.lane != Lane::History && off_line(record.seq));
    let stray: Vec<_> = stray.map(|record| record.seq).collect();
    if !stray.is_empty() {
        let stray = in_words(&stray);
        let text = format!("made off line, but received on a live topic: {stray}");
        verdict.faults.push(text);
    }
}

/// The link was lost once and that is told; meanwhile the LED did what the local rule says.
fn judge_outage(records: &[Received], claim: &Claim, verdict: &mut Verdict) {
    let mut records: Vec<_> = records.to_vec();
    records.sort_by_key(|record| record.seq);
    records.dedup_by_key(|record| record.seq);
    let outages: Vec<_> = records
        .iter()
        .filter_map(|record| match &record.tells {
            Tells::Outage(report) => Some(report.clone()),
            _ => None,
        })
        .collect();
    let links = outages.iter().filter(|report| {
        // The first connection ends an outage that is as old as the agent.
        report.cause == "link" && report.seconds > LEASE.as_secs_f64()
    });
    let mut spans: Vec<_> = claim.alone_ms.clone().into_iter().collect();
    for report in links {
        if let (Some(began), Some(ended)) = (ms(&report.began), ms(&report.ended)) {
            // Until then, the server's last command may have held.
            spans.push(began + LEASE.as_millis() as i64..=ended);
        }
    }
    if spans.is_empty() {
        let text = "the agent reports no outage, though its cable was pulled";
        verdict.faults.push(text.to_owned());
    }
    for span in spans {
        let outage: Vec<_> = records
            .iter()
            .filter(|record| span.contains(&record.at_ms))
            .cloned()
            .collect();
        let judged = rule::judge(&outage);
        verdict.ruled += judged.readings;
        verdict.local_changes.extend(judged.changes);
        verdict.faults.extend(judged.faults);
    }
    verdict.outages.extend(outages);
}

/// `12, 14 to 17 and 5 more`: numbers in ascending order, runs of them drawn together.
fn in_words(seqs: &[u64]) -> String {
    const SHOWN: usize = 5;
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for &seq in seqs {
        match spans.last_mut() {
            Some((_, to)) if *to + 1 == seq => *to = seq,
            _ => spans.push((seq, seq)),
        }
    }
    let shown = spans
        .iter()
        .take(SHOWN)
        .map(|&(from, to)| match from == to {
            true => from.to_string(),
            false => format!("{from} to {to}"),
        });
    let shown = shown.collect::<Vec<_>>().join(", ");
    let count = words::counted(seqs.len() as u64, "record");
    match spans.len() > SHOWN {
        true => format!("{shown} ... ({count})"),
        false => format!("{shown} ({count})"),
    }
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
