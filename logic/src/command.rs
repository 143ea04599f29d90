//! Commands: which of what came in may be obeyed, and when.
//!
//! [`parse`] reads the envelope; `CommandQueue` decides about it: kept by the broker, repeated, expired, overtaken.
//! It does not touch the LED: the controller drains `CommandQueue::poll` and carries each decision out.
//! Whatever arrives gets a decision; nothing that arrives can do anything else.

mod envelope;
mod handover;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use envelope::expired;
pub use envelope::{Action, Command, CommandOrder, InvalidCommand, ReplyTo, Sender, parse};
pub(crate) use handover::CommandsStamp;
pub use handover::KeptCommands;

use super::time::Now;
use super::timers::{Timer, Timers};

/// Ids of the last commands, to know a repeated one.
const MAX_KNOWN_IDS: usize = 256;
/// Commands that wait for missing ones of the sequence; one more and those are given up.
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
    /// How long a missing command of the sequence is waited for.
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
pub(crate) enum Decision {
    /// Carry it out.
    Obey(Command),
    /// Do nothing but tell the sender.
    Refuse {
        /// Who gave it.
        sender: Sender,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 5] = [
        Outcome::Applied,
        Outcome::Duplicate,
        Outcome::Expired,
        Outcome::Superseded,
        Outcome::Rejected,
    ];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::Duplicate => "duplicate",
            Outcome::Expired => "expired",
            Outcome::Superseded => "superseded",
            Outcome::Rejected => "rejected",
        }
    }
}

/// Judges what comes in.
#[derive(Debug, Clone)]
pub(crate) struct CommandQueue {
    settings: CommandSettings,
    known_ids: VecDeque<String>,
    /// Those that the disk does not know, and those of them that are on their way there.
    fresh_ids: Vec<String>,
    storing_ids: Vec<String>,
    /// A burst that goes on after the link came up settles by then.
    settled_by: Duration,
    /// Newest LED command while settling (order `latest`), or those behind missing ones (`sequence`).
    waiting: Vec<Command>,
    last: Option<CommandOrder>,
    /// Grows with each id that becomes known, and with each command that waits no more.
    ids_noted: u64,
    decisions: VecDeque<Decision>,
}

impl CommandQueue {
    /// Knows no commands yet.
    pub(crate) fn new(settings: CommandSettings) -> Self {
        Self {
            settings,
            known_ids: VecDeque::new(),
            fresh_ids: Vec::new(),
            storing_ids: Vec::new(),
            settled_by: Duration::ZERO,
            waiting: Vec::new(),
            last: None,
            ids_noted: 0,
            decisions: VecDeque::new(),
        }
    }

    /// Ids obeyed in earlier runs, oldest first.
    pub(crate) fn remember(&mut self, ids: Vec<String>) {
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

    /// Ids that the disk does not know yet, to be stored now; then [`CommandQueue::ids_stored`] says how that
    /// ended. Not those of commands that still wait: nobody has obeyed them, and after a crash somebody should.
    pub(crate) fn fresh_ids(&mut self) -> Vec<String> {
        let over = self.fresh_ids.iter().filter(|id| !self.is_waiting(id));
        self.storing_ids = over.cloned().collect();
        self.storing_ids.clone()
    }

    /// The disk knows those handed over last, or it failed and gets them again.
    pub(crate) fn ids_stored(&mut self, stored: bool) {
        let known = std::mem::take(&mut self.storing_ids);
        if stored {
            self.fresh_ids.retain(|id| !known.contains(id));
        }
    }

    fn is_waiting(&self, id: &str) -> bool {
        let mut waiting = self.waiting.iter();
        waiting.any(|command| command.id.as_deref() == Some(id))
    }

    /// The link is up: what waited at the broker comes now.
    pub(crate) fn link_up(&mut self, now: Duration, timers: &mut Timers) {
        timers.set(Timer::CommandsSettled, now + SETTLE);
        self.settled_by = now + MAX_SETTLE;
    }

    /// The server was silent for its lease: if it comes back it may count from anywhere.
    pub(crate) fn reset_order(&mut self) {
        self.last = None;
    }

    /// Something came in. `clock_known` says whether `now.wall_ms` can be trusted.
    pub(crate) fn receive(
        &mut self,
        payload: &[u8],
        retained: bool,
        reply_to: Option<ReplyTo>,
        now: Now,
        clock_known: bool,
        timers: &mut Timers,
    ) {
        let mut command = match parse(payload, &self.settings) {
            Ok(command) => command,
            Err(InvalidCommand { id, reason }) => {
                return self.refuse(Sender { id, reply_to }, Outcome::Rejected, reason);
            }
        };
        command.reply_to = reply_to;
        let sender = command.sender();
        if retained && !self.settings.accept_retained {
            let reason = "retained: it was given before, perhaps long ago; publish commands without the retain flag";
            return self.refuse(sender, Outcome::Rejected, reason.into());
        }
        let id = &command.id;
        if id.as_ref().is_some_and(|id| self.known_ids.contains(id)) {
            let reason = "a command with this id has been seen";
            return self.refuse(sender, Outcome::Duplicate, reason.into());
        }
        if let Some(reason) = expired(&command, now.wall_ms) {
            self.note(&command);
            return self.refuse(sender, Outcome::Expired, reason);
        }
        let waited_at_broker = retained || timers.is_set(Timer::CommandsSettled);
        if command.expires_at.is_some() && !clock_known && waited_at_broker {
            let reason = "it waited at the broker and the clock is not set: nobody can tell whether it has expired";
            return self.refuse(sender, Outcome::Rejected, reason.into());
        }
        self.note(&command);
        match (&command.action, self.settings.order) {
            (Action::Led(_), Order::Latest) => self.latest(command, now, timers),
            (Action::Led(_), Order::Sequence) => self.sequence(command, now, timers),
            _ => self.decisions.push_back(Decision::Obey(command)),
        }
    }

    /// Something of so many bytes came in that it was not kept.
    pub(crate) fn receive_too_large(&mut self, bytes: usize) {
        let InvalidCommand { id, reason } = envelope::too_large(bytes);
        let reply_to = None;
        self.refuse(Sender { id, reply_to }, Outcome::Rejected, reason);
    }

    /// What waited at the broker has arrived: the newest of it counts.
    pub(crate) fn settled(&mut self, now: Now) {
        if self.settings.order == Order::Latest {
            for command in std::mem::take(&mut self.waiting) {
                self.obey_unless_overtaken(command, now.wall_ms);
            }
        }
    }

    /// Missing commands of the sequence are waited for no longer: goes on behind them.
    pub(crate) fn give_up_missing(&mut self, now: Now, timers: &mut Timers) {
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
        self.obey_run(now.wall_ms);
        self.await_missing(now.boot, timers);
    }

    /// What is to become of the commands, in order.
    pub(crate) fn poll(&mut self) -> Option<Decision> {
        self.decisions.pop_front()
    }

    fn latest(&mut self, command: Command, now: Now, timers: &mut Timers) {
        if let Some(until) = timers.get(Timer::CommandsSettled) {
            if now.boot < until {
                let until = (now.boot + SETTLE).min(self.settled_by);
                timers.set(Timer::CommandsSettled, until);
            }
            match self.waiting.pop() {
                Some(other) if command.is_before(other.order()) => {
                    self.refuse(
                        command.sender(),
                        Outcome::Superseded,
                        "a newer command waited too".into(),
                    );
                    self.waiting.push(other);
                }
                Some(other) => {
                    self.ids_noted += 1;
                    self.refuse(
                        other.sender(),
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
                self.refuse(command.sender(), Outcome::Superseded, reason.into());
            }
            _ => self.obey(command, wall_ms),
        }
    }

    fn sequence(&mut self, command: Command, now: Now, timers: &mut Timers) {
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
            return self.refuse(command.sender(), Outcome::Superseded, reason);
        }
        if self
            .waiting
            .iter()
            .any(|waiting| waiting.seq == command.seq)
        {
            let reason = format!("another command with seq {seq} waits");
            return self.refuse(command.sender(), Outcome::Duplicate, reason);
        }
        self.waiting.push(command);
        self.waiting.sort_by_key(|waiting| waiting.seq);
        if seq == next {
            self.obey_run(now.wall_ms);
        }
        if self.waiting.len() > MAX_WAITING {
            timers.set(Timer::MissingCommands, now.boot);
        } else if self.waiting.is_empty() || !timers.is_set(Timer::MissingCommands) {
            self.await_missing(now.boot, timers);
        }
    }

    fn await_missing(&self, now: Duration, timers: &mut Timers) {
        let until = (!self.waiting.is_empty()).then_some(now + self.settings.gap_wait);
        timers.set_or_stop(Timer::MissingCommands, until);
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
    }

    /// Obeys a command that has waited here, unless it expired meanwhile.
    fn obey(&mut self, command: Command, wall_ms: i64) {
        match expired(&command, wall_ms) {
            Some(reason) => self.refuse(command.sender(), Outcome::Expired, reason),
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

    fn refuse(&mut self, sender: Sender, result: Outcome, reason: String) {
        self.decisions.push_back(Decision::Refuse {
            sender,
            result,
            reason,
        });
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
            }
        }
    }
}

#[cfg(test)]
mod tests;
