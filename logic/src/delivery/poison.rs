//! A record that the broker will not take must not keep the others from it, and a bad link must not make a
//! good record look like one.
//!
//! ```text
//!   in flight when three sessions were closed --------> suspect: records go one at a time
//!   a suspect that was in flight alone at the next ----> case: set back, and tried alone once in a while
//!   confirmed ----------------------------------------> none of these
//!   a case beyond chance, while others got through ----> given up: kept as a dead letter, reported as lost
//! ```
//!
//! A trial begins at a random moment of a session, with nothing else in flight. If the link flaps by itself,
//! sessions end outside of trials as often as the time spent in them makes likely. So a record is given up
//! only when the sessions that were closed in its trials are more than chance explains, one in a million,
//! and when other records were confirmed on the same topic since. Until then it waits, and the rest goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::unanswered::Contents;
use super::{Delivery, InFlight, Topic};
use crate::link::{Ending, Sent};
use crate::telemetry::{Loss, Record};
use crate::time::Clock;
use crate::timers::{Timer, Timers};
use crate::{Entry, Key};

/// Why a record is given up.
pub(super) const REFUSED: &str = "refused";
/// In flight when so many sessions were closed, and not confirmed between: a suspect.
const SESSIONS: u32 = 3;
/// At least so many sessions must be closed in trials of a record.
const TRIALS: u32 = 2;
/// So improbable must it be that it was chance.
const CHANCE: f64 = 1e-6;
/// No more are remembered at a time, and no more have a case.
const MAX_SEEN: usize = 4_096;
const MAX_CASES: usize = 64;
/// A trial begins so long after the session, and up to the second later; longer after many trials.
const TRIAL_AFTER: Duration = Duration::from_secs(1);
const TRIAL_SPREAD: Duration = Duration::from_secs(4);
/// Without the record at hand, or after a trial, the next one waits so long.
const TRIAL_PAUSE: Duration = Duration::from_secs(1);
/// No trial is shorter than this: answers and the end of a session come in any order within it.
const MIN_TRIAL: Duration = Duration::from_millis(1);

/// What speaks against records.
#[derive(Debug, Clone, Default)]
pub(super) struct Poison {
    /// Those in flight when a session was closed, and how many.
    seen: BTreeMap<Key, u32>,
    /// Those of them that make us send one record at a time.
    suspects: BTreeSet<Key>,
    /// Those that were in flight alone.
    cases: BTreeMap<Key, Case>,
    since: Duration,
    /// The record on trial, and since when.
    on_trial: Option<(Key, Duration)>,
}

/// What was seen of one record.
#[derive(Debug, Clone, Default)]
struct Case {
    /// Sessions closed while it was on trial, and for how long it was.
    closed: u32,
    on_trial: Duration,
    /// Sessions that ended otherwise since it has a case, and the time in sessions without it.
    otherwise: u32,
    without: Duration,
    /// Other records that were confirmed on its topic meanwhile.
    others: u64,
}

impl Case {
    /// Whether chance does not explain that sessions were closed in its trials.
    fn is_beyond_chance(&self) -> bool {
        let on_trial = self.on_trial.max(MIN_TRIAL * self.closed).as_secs_f64();
        let share = on_trial / (on_trial + self.without.as_secs_f64());
        self.closed >= TRIALS && tail(self.closed, self.closed + self.otherwise, share) <= CHANCE
    }
}

/// The probability of `least` or more of `of`, each with probability `share`.
fn tail(least: u32, of: u32, share: f64) -> f64 {
    let term = |hits: u32| {
        let ways: f64 = (0..hits)
            .map(|place| f64::from(of - place) / f64::from(hits - place))
            .product();
        ways * share.powf(f64::from(hits)) * (1.0 - share).powf(f64::from(of - hits))
    };
    (least..=of).map(term).sum()
}

impl Poison {
    /// A session begins; `random` is in 0..1.
    pub(super) fn begin(&mut self, random: f64, now: Duration, timers: &mut Timers) {
        let doublings = self.cases.values().map(|case| case.closed / 4).min();
        let spread = TRIAL_SPREAD * (1 << doublings.unwrap_or(0).min(10));
        self.since = now;
        let first = doublings.map(|_| now + TRIAL_AFTER + spread.mul_f64(random));
        timers.set_or_stop(Timer::Trial, first);
        self.on_trial = None;
    }

    /// The broker confirmed a publication on `sent` that carried the records with these keys.
    pub(super) fn confirmed(
        &mut self,
        keys: &[Key],
        sent: Sent,
        now: Duration,
        timers: &mut Timers,
    ) {
        for key in keys {
            self.seen.remove(key);
            self.suspects.remove(key);
            self.cases.remove(key);
        }
        if self
            .on_trial
            .take_if(|(key, _)| keys.contains(key))
            .is_some()
        {
            timers.set(Timer::Trial, now + TRIAL_PAUSE);
        }
        if sent == Sent::Publish(Topic::History) && !keys.is_empty() {
            for case in self.cases.values_mut() {
                case.others += 1;
            }
        }
    }

    /// The broker has refused a publication with these records, and said why: a trial of one of them is over.
    pub(super) fn refused(&mut self, keys: &[Key], now: Duration, timers: &mut Timers) {
        if self
            .on_trial
            .take_if(|(key, _)| keys.contains(key))
            .is_some()
        {
            timers.set(Timer::Trial, now + TRIAL_PAUSE);
        }
    }

    /// One record more was refused without a reason. Gives how often it was.
    pub(super) fn refused_without_reason(&mut self, key: Key) -> u32 {
        if self.seen.len() >= MAX_SEEN {
            self.seen.pop_last();
        }
        let times = self.seen.entry(key).or_default();
        *times += 1;
        *times
    }

    /// The record is set back: others go first.
    pub(super) fn set_aside(&mut self, key: Key) {
        self.suspects.remove(&key);
        if self.cases.len() < MAX_CASES {
            self.cases.entry(key).or_default();
        }
    }

    /// One of these records is to blame: they go one at a time.
    pub(super) fn suspect(&mut self, keys: &[Key]) {
        self.suspects.extend(keys);
    }

    /// Nothing more is held against the record.
    pub(super) fn forget(&mut self, key: Key) {
        self.seen.remove(&key);
        self.suspects.remove(&key);
        self.cases.remove(&key);
    }

    /// Whether a record is set back, until its next trial.
    pub(super) fn is_set_back(&self, key: Key) -> bool {
        self.cases.contains_key(&key)
    }

    /// The records that are set back.
    pub(super) fn set_back(&self) -> impl Iterator<Item = Key> {
        self.cases.keys().copied()
    }

    /// Whether a record is on trial.
    pub(super) fn is_on_trial(&self) -> bool {
        self.on_trial.is_some()
    }

    /// A session is over: what that says about each case. Gives the one that was on trial.
    fn end(&mut self, closed: bool, now: Duration) -> Option<Key> {
        let on_trial = self.on_trial.take();
        let length = now.saturating_sub(self.since);
        for (key, case) in &mut self.cases {
            match on_trial {
                Some((tried, since)) if tried == *key => {
                    let time = now.saturating_sub(since);
                    case.on_trial += time;
                    case.without += length.saturating_sub(time);
                    case.closed += u32::from(closed);
                    case.otherwise += u32::from(!closed);
                }
                _ => {
                    case.without += length;
                    case.otherwise += 1;
                }
            }
        }
        on_trial.map(|(key, _)| key)
    }
}

impl Delivery {
    /// Whether records go one at a time.
    pub(super) fn is_on_probation(&self) -> bool {
        !self.poison.suspects.is_empty()
    }

    /// Most publications in flight: the window, or one.
    pub(super) fn max_in_flight(&self) -> usize {
        match self.is_on_probation() {
            true => 1,
            false => self.window.size(),
        }
    }

    /// Most replayed records in one message.
    pub(super) fn max_batch(&self) -> usize {
        match self.is_on_probation() {
            true => 1,
            false => self.batch.size(),
        }
    }

    /// A session has ended with messages that the broker had not answered.
    pub(super) fn look_for_poison(
        &mut self,
        ending: Ending,
        unanswered: &[InFlight],
        clock: &Clock,
        now: Duration,
    ) {
        let closed = ending == Ending::Closed;
        let tried = self.poison.end(closed, now);
        if !closed {
            return;
        }
        if let Some(key) = tried {
            let case = self.poison.cases.get(&key);
            if case.is_some_and(|case| case.is_beyond_chance() && case.others > 0) {
                self.poison.cases.remove(&key);
                let why = "the broker closes the connection whenever it gets it, and takes others";
                self.give_up(key, why, clock);
            }
            return;
        }
        let messages = unanswered.iter();
        let keys: Vec<Key> = messages
            .flat_map(|message| self.keys_of(&message.contents))
            .collect();
        let is_alone = keys.len() == 1 && unanswered.len() == 1;
        let in_one = |message: &InFlight| self.keys_of(&message.contents).len();
        let largest = unanswered.iter().map(in_one).max().unwrap_or(0);
        let mut is_new_suspect = false;
        let Poison {
            seen,
            suspects,
            cases,
            ..
        } = &mut self.poison;
        for key in keys {
            let times = seen.entry(key).or_default();
            *times += 1;
            if *times < SESSIONS {
                continue;
            }
            if is_alone && self.sessions.has_answered() && cases.len() < MAX_CASES {
                seen.remove(&key);
                suspects.remove(&key);
                cases.insert(key, Case::default());
            } else {
                is_new_suspect |= suspects.insert(key);
            }
        }
        while seen.len() > MAX_SEEN {
            let last = seen.pop_last();
            last.map(|(key, _)| suspects.remove(&key));
        }
        if is_new_suspect && largest > 1 {
            self.batch.halve(now);
        }
    }

    /// Whether the moment of a trial has come: then nothing else is sent.
    pub(super) fn is_trial_due(&self, timers: &Timers) -> bool {
        self.poison.on_trial.is_some() || self.may_try() && !timers.is_set(Timer::Trial)
    }

    fn may_try(&self) -> bool {
        // Others go first, so that a topic is not taken for closed because of one record.
        let history = Sent::Publish(Topic::History);
        let is_last = !self.page_waits() && !self.memory_waits();
        let is_open = !self.sessions.must_wait(history)
            && (self.sessions.has_answered_to(history) || is_last);
        self.begun && is_open && !self.poison.cases.is_empty()
    }

    /// All that is in flight has its answer first.
    pub(super) fn hold_trial(&mut self, clock: &Clock, now: Duration, timers: &mut Timers) {
        let may_begin = self.poison.on_trial.is_none() && self.unanswered.is_empty();
        if may_begin && !self.begin_trial(clock, now, timers) {
            self.holds_trial = false;
            self.send(clock, now, timers);
        }
    }

    /// Sends one record that is set back, with nothing else in flight. False when none is at hand.
    fn begin_trial(&mut self, clock: &Clock, now: Duration, timers: &mut Timers) -> bool {
        let mut cases: Vec<(u32, Key)> = Vec::new();
        for (key, case) in &self.poison.cases {
            cases.push((case.closed, *key));
        }
        cases.sort_unstable();
        let at_hand = cases.into_iter().find_map(|(_, key)| {
            let (contents, entry) = self.at_hand(key)?;
            let payload = entry.wire(self.settings.format, clock, true);
            Some((key, contents, payload))
        });
        let Some((key, contents, payload)) = at_hand else {
            timers.set(Timer::Trial, now + TRIAL_PAUSE);
            return false;
        };
        match &contents {
            Contents::Own(seq, _) => self.memory.sent(*seq),
            Contents::Page(_) | Contents::Control | Contents::Reply => self.replay.sent(key),
        }
        self.poison.on_trial = Some((key, now));
        self.publish_records(Topic::History, payload.into_bytes(), contents, now);
        true
    }

    /// The record with this key, where it can be sent from.
    fn at_hand(&self, key: Key) -> Option<(Contents, &Entry)> {
        if let Some(entry) = self.replay.get_waiting(key) {
            return Some((Contents::Page(vec![key]), entry));
        }
        let entry = self.memory.next_history(|seq| self.own(seq) == key)?;
        Some((Contents::Own(key.seq, entry.last()), entry))
    }

    /// The records that a message carries.
    pub(super) fn keys_of(&self, contents: &Contents) -> Vec<Key> {
        match contents {
            Contents::Control | Contents::Reply => Vec::new(),
            Contents::Own(seq, _) => vec![self.own(*seq)],
            Contents::Page(keys) => keys.clone(),
        }
    }

    pub(super) fn give_up_on_disk(&mut self, record: &Record, is_own: bool) {
        if is_own {
            self.memory.remove(record.seq);
        }
        self.disk.given_up += 1;
        self.disk.gaps.push(Loss {
            of_run: record.run,
            from_seq: record.seq,
            to_seq: record.seq,
            count: 1,
            reason: REFUSED.to_owned(),
        });
    }
}
