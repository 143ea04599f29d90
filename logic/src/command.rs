//! Commands: which of what came in may be obeyed, and when.
//!
//! [`parse`] reads the envelope; [`CommandQueue`] decides about it: kept by the broker, repeated, expired, overtaken.
//! It does not touch the LED: the controller drains [`CommandQueue::poll`] and carries each decision out.
//! Whatever arrives gets a decision; nothing that arrives can do anything else.

mod envelope;
mod handover;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use envelope::expired;
pub use envelope::{Action, Command, CommandOrder, InvalidCommand, parse};
pub(crate) use handover::CommandsStamp;
pub use handover::KeptCommands;

use super::time::Now;

/// Ids of the last commands, to know a repeated one.
const MAX_KNOWN_IDS: usize = 256;
/// Commands that wait for a hole in the sequence; one more and the hole is passed.
const MAX_WAITING: usize = 64;
/// After the link came up, commands that waited at the broker arrive within this time of each other.
const SETTLE: Duration = Duration::from_millis(250);
/// Clocks of senders that are set differ by less than this, in milliseconds.
const MAX_CLOCK_DIFFERENCE_MS: i64 = 60_000;
/// A burst without an end counts as settled after this.
const MAX_SETTLE: Duration = Duration::from_secs(1);

/// What a command may look like and do.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandSettings {
    /// Which of several commands counts.
    pub order: Order,
    /// How long a hole in the sequence is waited for.
    pub gap_wait: Duration,
    /// A plain payload taken as "LED on"; empty for none.
    pub on: String,
    /// A plain payload taken as "LED off"; empty for none.
    pub off: String,
    /// Whether `reboot` is obeyed.
    pub allow_reboot: bool,
    /// Whether a command that the broker kept is obeyed.
    pub accept_retained: bool,
}

/// Which of several commands counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The newest.
    Latest,
    /// Each, in the order of `seq`.
    Sequence,
}

/// What is to become of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Carry it out.
    Obey(Command),
    /// Do nothing but tell the sender.
    Refuse {
        /// Its id, if it had a good one.
        id: Option<String>,
        /// Why.
        result: Outcome,
        /// Why, in words.
        reason: String,
    },
    /// Commands of the sequence never came: `from` to `to`.
    Missing {
        /// The first.
        from: i64,
        /// The last.
        to: i64,
    },
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Carried out.
    Applied,
    /// Already known by its id.
    Duplicate,
    /// Too late.
    Expired,
    /// A newer one counts.
    Superseded,
    /// Not understood or not allowed.
    Rejected,
}

/// Judges what comes in.
#[derive(Debug)]
pub struct CommandQueue {
    settings: CommandSettings,
    known_ids: VecDeque<String>,
    fresh_ids: Vec<String>,
    /// So many of them are on their way to the disk.
    storing_ids: usize,
    settling: Option<Duration>,
    settled_by: Duration,
    /// Newest LED command while settling (order `latest`), or those after a hole (`sequence`).
    waiting: Vec<Command>,
    hole_until: Option<Duration>,
    last: Option<CommandOrder>,
    /// Grows with each id that becomes known, and with each command that waits no more.
    ids_noted: u64,
    decisions: VecDeque<Decision>,
}

impl CommandQueue {
    /// Knows no commands yet.
    pub fn new(settings: CommandSettings) -> Self {
        Self {
            settings,
            known_ids: VecDeque::new(),
            fresh_ids: Vec::new(),
            storing_ids: 0,
            settling: None,
            settled_by: Duration::ZERO,
            waiting: Vec::new(),
            hole_until: None,
            last: None,
            ids_noted: 0,
            decisions: VecDeque::new(),
        }
    }

    /// Ids obeyed in earlier runs, oldest first.
    pub fn remember(&mut self, ids: Vec<String>) {
        self.ids_noted += 1;
        // A restart within the same boot knows some of them already.
        let unknown = ids.into_iter().filter(|id| !self.known_ids.contains(id));
        for (place, id) in unknown.collect::<Vec<_>>().into_iter().enumerate() {
            self.known_ids.insert(place, id);
        }
        while self.known_ids.len() > MAX_KNOWN_IDS {
            self.known_ids.pop_front();
        }
    }

    /// Ids that the disk does not know yet, to be stored now; then [`CommandQueue::ids_stored`] is told.
    pub fn fresh_ids(&mut self) -> Vec<String> {
        self.storing_ids = self.fresh_ids.len();
        self.fresh_ids.clone()
    }

    /// The disk knows those handed over last, or it failed and gets them again.
    pub fn ids_stored(&mut self, stored: bool) {
        let known = std::mem::take(&mut self.storing_ids);
        if stored {
            self.fresh_ids.drain(..known.min(self.fresh_ids.len()));
        }
    }

    /// The link is up: what waited at the broker comes now.
    pub fn link_up(&mut self, now: Duration) {
        self.settling = Some(now + SETTLE);
        self.settled_by = now + MAX_SETTLE;
    }

    /// The server was silent for its lease: if it comes back it may count from anywhere.
    pub fn reset_order(&mut self) {
        self.last = None;
    }

    /// Something came in. `clock_known` says whether `now.wall_ms` can be trusted.
    pub fn receive(&mut self, payload: &[u8], retained: bool, now: Now, clock_known: bool) {
        let command = match parse(payload, &self.settings) {
            Ok(command) => command,
            Err(InvalidCommand { id, reason }) => {
                return self.refuse(id, Outcome::Rejected, reason);
            }
        };
        let id = command.id.clone();
        if retained && !self.settings.accept_retained {
            let reason = "retained: it was given before, perhaps long ago; publish commands without the retain flag";
            return self.refuse(id, Outcome::Rejected, reason.into());
        }
        if id.as_ref().is_some_and(|id| self.known_ids.contains(id)) {
            let reason = "a command with this id has been seen";
            return self.refuse(id, Outcome::Duplicate, reason.into());
        }
        if let Some(reason) = expired(&command, now.wall_ms) {
            self.note(&command);
            return self.refuse(id, Outcome::Expired, reason);
        }
        let waited_at_broker = retained || self.settling.is_some();
        if command.expires_at.is_some() && !clock_known && waited_at_broker {
            let reason = "it waited at the broker and the clock is not set: nobody can tell whether it has expired";
            return self.refuse(id, Outcome::Rejected, reason.into());
        }
        self.note(&command);
        match (&command.action, self.settings.order) {
            (Action::Led(_), Order::Latest) => self.latest(command, now),
            (Action::Led(_), Order::Sequence) => self.sequence(command, now),
            _ => self.decisions.push_back(Decision::Obey(command)),
        }
    }

    /// Something of so many bytes came in that it was not kept.
    pub fn receive_too_large(&mut self, bytes: usize) {
        let InvalidCommand { id, reason } = envelope::too_large(bytes);
        self.refuse(id, Outcome::Rejected, reason);
    }

    /// Time has passed: the burst has settled, or a hole is passed.
    pub fn tick(&mut self, now: Now) {
        if self.settling.is_some_and(|until| now.boot >= until) {
            self.settling = None;
            if self.settings.order == Order::Latest {
                for command in std::mem::take(&mut self.waiting) {
                    self.obey_unless_overtaken(command, now.wall_ms);
                }
            }
        }
        if self.hole_until.is_some_and(|until| now.boot >= until) {
            self.pass_hole(now);
        }
    }

    /// What is to become of the commands, in order.
    pub fn poll(&mut self) -> Option<Decision> {
        self.decisions.pop_front()
    }

    /// When to call [`CommandQueue::tick`] next.
    pub fn next_deadline(&self) -> Option<Duration> {
        [self.settling, self.hole_until].into_iter().flatten().min()
    }

    fn latest(&mut self, command: Command, now: Now) {
        if let Some(until) = &mut self.settling {
            if now.boot < *until {
                *until = (now.boot + SETTLE).min(self.settled_by);
            }
            match self.waiting.pop() {
                Some(other) if command.is_before(other.order()) => {
                    self.refuse(
                        command.id,
                        Outcome::Superseded,
                        "a newer command waited too".into(),
                    );
                    self.waiting.push(other);
                }
                Some(other) => {
                    self.ids_noted += 1;
                    self.refuse(
                        other.id,
                        Outcome::Superseded,
                        "a newer command waited too".into(),
                    );
                    self.waiting.push(command);
                }
                None => self.waiting.push(command),
            }
            return;
        }
        self.obey_unless_overtaken(command, now.wall_ms);
    }

    fn obey_unless_overtaken(&mut self, command: Command, wall_ms: i64) {
        match self.last {
            Some(last) if command.is_before(last) => {
                let reason = "a newer command was obeyed before it came";
                self.refuse(command.id, Outcome::Superseded, reason.into());
            }
            _ => self.obey(command, wall_ms),
        }
    }

    fn sequence(&mut self, command: Command, now: Now) {
        let Some(seq) = command.seq else {
            self.decisions.push_back(Decision::Obey(command));
            return;
        };
        let next = self
            .last
            .and_then(|last| last.seq)
            .map_or(seq, |last| last.saturating_add(1));
        if seq < next {
            let reason = format!("seq {seq} came when {next} was next");
            return self.refuse(command.id, Outcome::Superseded, reason);
        }
        if self
            .waiting
            .iter()
            .any(|waiting| waiting.seq == command.seq)
        {
            let reason = format!("another command with seq {seq} waits");
            return self.refuse(command.id, Outcome::Duplicate, reason);
        }
        self.waiting.push(command);
        self.waiting.sort_by_key(|waiting| waiting.seq);
        if seq == next {
            self.obey_run(now.wall_ms);
        } else if self.waiting.len() > MAX_WAITING {
            self.hole_until = Some(now.boot);
        }
        self.hole_until = match (self.waiting.is_empty(), self.hole_until) {
            (true, _) => None,
            (false, None) => Some(now.boot + self.settings.gap_wait),
            (false, until) => until,
        };
    }

    /// Gives the hole up and goes on behind it.
    fn pass_hole(&mut self, now: Now) {
        let wall_ms = now.wall_ms;
        self.hole_until = None;
        let first = self.waiting.first().and_then(|command| command.seq);
        // After a silence of the server nobody knows which number is next: the first that waits is.
        if let (Some(first), Some(last)) = (first, self.last.and_then(|last| last.seq)) {
            self.decisions.push_back(Decision::Missing {
                from: last.saturating_add(1),
                to: first.saturating_sub(1),
            });
            self.last = Some(CommandOrder {
                seq: Some(first.saturating_sub(1)),
                issued_at: None,
            });
        }
        self.obey_run(wall_ms);
        if !self.waiting.is_empty() {
            self.hole_until = Some(now.boot + self.settings.gap_wait);
        }
    }

    /// Obeys the waiting commands that now follow each other.
    fn obey_run(&mut self, wall_ms: i64) {
        while let Some(command) = self.waiting.first() {
            let last = self.last.and_then(|last| last.seq);
            if last.is_some_and(|last| command.seq != Some(last.saturating_add(1))) {
                break;
            }
            let command = self.waiting.remove(0);
            self.last = Some(command.order());
            self.obey(command, wall_ms);
        }
        if self.waiting.is_empty() {
            self.hole_until = None;
        }
    }

    /// Obeys a command that has waited here, unless it expired meanwhile.
    fn obey(&mut self, command: Command, wall_ms: i64) {
        match expired(&command, wall_ms) {
            Some(reason) => self.refuse(command.id, Outcome::Expired, reason),
            None => {
                // A sender whose clock is ahead must not silence the others until then.
                let mut place = command.order();
                place.issued_at = place
                    .issued_at
                    .map(|at| at.min(wall_ms + MAX_CLOCK_DIFFERENCE_MS));
                self.last = Some(place);
                self.decisions.push_back(Decision::Obey(command));
            }
        }
    }

    fn refuse(&mut self, id: Option<String>, result: Outcome, reason: String) {
        self.decisions
            .push_back(Decision::Refuse { id, result, reason });
    }

    fn note(&mut self, command: &Command) {
        if let Some(id) = &command.id {
            self.ids_noted += 1;
            self.known_ids.push_back(id.clone());
            self.fresh_ids.push(id.clone());
            if self.known_ids.len() > MAX_KNOWN_IDS {
                self.known_ids.pop_front();
            }
            if self.fresh_ids.len() > MAX_KNOWN_IDS {
                self.fresh_ids.remove(0);
                self.storing_ids = self.storing_ids.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests;
