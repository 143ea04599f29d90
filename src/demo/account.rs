//! The account of the demonstration: what the server received, held against what the agent took.
//!
//! Collects records as they come, and judges them once, at the end. It believes the server alone: of
//! the agent's own word it takes the number of its newest record, and when it was off line. No I/O.
//! Fed by `story`, closed by `demo::run`; `verdict` puts it into words.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde_json::Value;
use uuid::Uuid;

use super::record::{Lane, Received, Tells, read};
use super::{LEASE, rule};
use crate::logic;
use crate::logic::account::RunAccount;
use crate::logic::telemetry::OutageReport;
use crate::logic::words;

/// Everything that the server received.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// In the order in which they came, by run.
    runs: BTreeMap<Uuid, Vec<Received>>,
    /// Records that the agent said it gave up.
    given_up: logic::account::Account,
    faults: Vec<String>,
}

/// What a part of the show lets happen, and asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Expected {
    /// When only the local rule could decide, in milliseconds since 1970; none where the agent's clock was moved.
    pub(super) alone_ms: Vec<RangeInclusive<i64>>,
    /// A confirmation may have been lost on its way, so that records came again.
    pub(super) may_repeat: bool,
    /// A record may have gone out while no server listened, so that it came first when it was sent again.
    pub(super) may_overtake: bool,
    /// The backlog may have been full, so that records were given up and told.
    pub(super) may_lose: bool,
    /// The LED has to be held against the local rule.
    pub(super) wants_rule: bool,
    /// The agent has to report an outage of this cause.
    pub(super) wants_outage: Option<&'static str>,
}

/// What the agent says of itself.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Claim {
    /// Its run.
    pub(super) run: Uuid,
    /// The number of the first record that has to be there, and that of its newest.
    pub(super) first: u64,
    pub(super) last: u64,
    /// Records that it certainly made off line.
    pub(super) off_line: Vec<RangeInclusive<u64>>,
    /// It was ended by a power cut: what it had not stored by then is gone, and that may be so many records.
    pub(super) may_cut: Option<u64>,
}

/// The account, closed.
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Records that the agent gave up and told, and that never came.
    pub(super) given_up: u64,
    /// Places where history was overtaken, because nobody listened when it first went out.
    pub(super) overtaken: u64,
    /// Readings of the outage for which the LED could be held against the local rule.
    pub(super) ruled: usize,
    /// Changes of the LED by the local rule in the outage.
    pub(super) local_changes: Vec<bool>,
    /// The agent's own reports of outages.
    pub(super) outages: Vec<OutageReport>,
    /// Records that power cuts took: they were too young to be on the disk.
    pub(super) cut_off: Option<u64>,
    /// What else was seen, a line each.
    pub(super) notes: Vec<String>,
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
                self.given_up.take(&record);
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

    /// Something is wrong that the account itself cannot see.
    pub(super) fn fault(&mut self, what: String) {
        self.faults.push(what);
    }

    /// Whether the agent has told of an outage of this cause.
    pub(super) fn has_outage(&self, cause: &str) -> bool {
        let is_one = |record: &Received| matches!(&record.tells, Tells::Outage(report) if report.cause == cause);
        self.runs.values().flatten().any(is_one)
    }

    /// Whether a reading or an event has the LED on.
    pub(super) fn was_on(&self) -> bool {
        let is_on = |record: &Received| {
            matches!(
                record.tells,
                Tells::Reading { led_on: true, .. } | Tells::Led { led_on: true, .. }
            )
        };
        self.runs.values().flatten().any(is_on)
    }

    /// Records that were told as given up so far.
    pub(super) fn given_up(&self) -> u64 {
        let lost = self.given_up.runs().map(|(_, run)| run.lost().count());
        lost.sum()
    }

    /// Whether every record of `run` up to `last` is here.
    pub(super) fn is_complete(&self, run: Uuid, last: u64) -> bool {
        self.numbers(run).missing(last).is_empty()
    }

    /// Whether every record of `run` from `first` up to `last` is here.
    pub(super) fn is_complete_from(&self, run: Uuid, first: u64, last: u64) -> bool {
        let missing = self.numbers(run).missing(last);
        !missing.iter().any(|seq| *seq >= first)
    }

    /// Closes the account: every record of the claims once, history in order and on its own topic, and
    /// the LED in the outage as the local rule says; but for what `expected` lets happen.
    pub(super) fn close(&self, claims: &[Claim], expected: &Expected) -> Verdict {
        let mut verdict = Verdict {
            faults: self.faults.clone(),
            ..Verdict::default()
        };
        for claim in claims {
            self.close_run(claim, expected, &mut verdict);
        }
        let is_claimed = |run: &Uuid| claims.iter().any(|claim| claim.run == *run);
        let others = self.runs.iter().filter(|(run, _)| !is_claimed(run));
        let others: usize = others.map(|(_, records)| records.len()).sum();
        let mut fault = |text: String| verdict.faults.push(text);
        if others > 0 {
            let others = words::counted(others as u64, "record");
            fault(format!("{others} of another run"));
        }
        if verdict.given_up > 0 && !expected.may_lose {
            let given_up = words::counted(verdict.given_up, "record");
            fault(format!("the agent gave up {given_up} (and told)"));
        }
        if verdict.ruled == 0 && expected.wants_rule {
            fault("there is no reading of the outage to hold the LED against".to_owned());
        }
        if let Some(cause) = expected.wants_outage
            && !verdict.outages.iter().any(|report| report.cause == cause)
        {
            fault(format!("the agent reports no outage of the {cause}"));
        }
        verdict
    }

    fn close_run(&self, claim: &Claim, expected: &Expected, verdict: &mut Verdict) {
        let claim = &self.after_cut(claim, verdict);
        let records = self.of(claim.run);
        let count = |wanted: fn(&Received) -> bool| records.iter().filter(|r| wanted(r)).count();
        let numbers = self.numbers(claim.run);
        let readings = count(|record| matches!(record.tells, Tells::Reading { .. }));
        verdict.last += (claim.last + 1).saturating_sub(claim.first);
        verdict.readings += readings;
        verdict.events += records.len() - readings;
        verdict.live += count(|record| record.lane != Lane::History);
        verdict.replayed += count(|record| record.lane == Lane::History);
        let mut missing = numbers.missing(claim.last);
        missing.retain(|seq| *seq >= claim.first);
        let twice = numbers.twice();
        let may_repeat = expected.may_repeat;
        let wrong = if may_repeat { &[][..] } else { &twice[..] };
        self.judge_completeness(claim, (&missing, wrong), verdict);
        verdict.missing.extend(missing);
        verdict.twice.extend(twice);
        let received = |seq: u64| numbers.received().contains_key(&seq);
        let given_up = (1..=claim.last).filter(|seq| numbers.lost().contains(*seq));
        verdict.given_up += given_up.filter(|seq| !received(*seq)).count() as u64;
        judge_order(records, claim, expected, verdict);
        judge_outage(records, &expected.alone_ms, verdict);
    }

    /// After a power cut the claim is what the next run found on the disk, or more, if more was received; what
    /// the agent had shown beyond that is cut off.
    fn after_cut(&self, claim: &Claim, verdict: &mut Verdict) -> Claim {
        let Some(may_cut) = claim.may_cut else {
            return claim.clone();
        };
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
        if cut_off > may_cut {
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
        let mut account = self.given_up.clone();
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
fn judge_order(records: &[Received], claim: &Claim, expected: &Expected, verdict: &mut Verdict) {
    for (lane, name) in [
        (Lane::Telemetry, "live readings"),
        (Lane::Events, "live events"),
        (Lane::History, "history"),
    ] {
        let seqs = records.iter().filter(|record| record.lane == lane);
        let mut seqs: Vec<_> = seqs.map(|record| record.seq).collect();
        if expected.may_repeat {
            // What is sent again follows newer records; the first time each came counts.
            let mut seen = BTreeSet::new();
            seqs.retain(|seq| seen.insert(*seq));
        }
        if let Some(pair) = seqs.windows(2).find(|pair| pair[1] <= pair[0]) {
            let (first, second) = (pair[0], pair[1]);
            let text = format!("{name} out of order: {second} came after {first}");
            match expected.may_overtake && lane == Lane::History {
                true => {
                    verdict.overtaken +=
                        seqs.windows(2).filter(|pair| pair[1] < pair[0]).count() as u64
                }
                false => verdict.faults.push(text),
            }
        }
    }
    let off_line = |seq: u64| claim.off_line.iter().any(|range| range.contains(&seq));
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

/// Outages are told; while nobody else could decide, the LED did what the local rule says.
fn judge_outage(records: &[Received], alone_ms: &[RangeInclusive<i64>], verdict: &mut Verdict) {
    let mut records: Vec<_> = records.to_vec();
    records.sort_by_key(|record| record.seq);
    records.dedup_by_key(|record| record.seq);
    let outages = records.iter().filter_map(|record| match &record.tells {
        Tells::Outage(report) => Some(report.clone()),
        _ => None,
    });
    verdict.outages.extend(outages);
    // A run begins with a dark LED, and what it makes of that is no change of the light.
    let settled_ms = records
        .first()
        .map_or(0, |record| record.at_ms + LEASE.as_millis() as i64);
    for span in alone_ms {
        let outage: Vec<_> = records
            .iter()
            .filter(|record| span.contains(&record.at_ms) && record.at_ms >= settled_ms)
            .cloned()
            .collect();
        let judged = rule::judge(&outage);
        verdict.ruled += judged.readings;
        verdict.local_changes.extend(judged.changes);
        verdict.faults.extend(judged.faults);
    }
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
