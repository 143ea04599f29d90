//! What a restart keeps of the decision about the LED: the command that holds it, and who decided before.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Held, Lease, Lighting, Mode, State};

/// A command that holds as long as the link is up outlives a restart of at most this length: the link went
/// down with the daemon, and nobody can tell what the server did meanwhile.
const MAX_RESTART: Duration = Duration::from_secs(30);

const REMOTE: State = State::Remote { until: None };

/// The decision about the LED at one moment. Times are on the boot clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDecision {
    /// The LED.
    pub led_on: bool,
    /// Who decided, as in [`State::by`].
    pub by: String,
    /// Why, in words.
    pub why: String,
    /// When the LED or its decider last changed.
    pub since: Duration,
    /// When the LED last changed; none if it has not in that run.
    pub changed_at: Option<Duration>,
    /// The command that holds the LED.
    pub command: Option<KeptCommand>,
}

/// The command that holds the LED.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptCommand {
    /// What it wants.
    pub led_on: bool,
    /// How long it holds after a sign of life; none: as long as the link is up.
    pub lease: Option<Duration>,
    /// When the lease ends.
    pub until: Option<Duration>,
    /// Why, in words.
    pub why: String,
}

/// What changes when there is something new to keep; cheap to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DecisionStamp {
    led_on: bool,
    by: &'static str,
    since: Duration,
    command: Option<(bool, Option<Duration>)>,
}

impl KeptDecision {
    /// Whether it can be what a run wrote at `written`.
    pub(crate) fn is_sound(&self, written: Duration) -> bool {
        let command = self.command.as_ref().is_none_or(|command| {
            let longest = command.lease.unwrap_or_default();
            command.lease.is_some() == command.until.is_some()
                && command
                    .until
                    .is_none_or(|until| until <= written.saturating_add(longest))
        });
        command
            && by_name(&self.by).is_some()
            && self.since <= written
            && self.changed_at.is_none_or(|at| at <= written)
    }
}

impl Lighting {
    /// Goes on where an earlier run of the same boot stopped. `kept` is sound, and was written at `written`.
    /// True if its command holds on.
    pub(crate) fn take_over(
        &mut self,
        kept: KeptDecision,
        written: Duration,
        now: Duration,
    ) -> bool {
        self.changed_at = kept.changed_at;
        self.held = kept.command.and_then(|command| {
            let holds = match command.until {
                Some(until) => now < until,
                None => now.saturating_sub(written) <= MAX_RESTART,
            };
            (holds || self.settings.mode == Mode::Remote).then_some(Held {
                led_on: command.led_on,
                lease: command.lease.map_or(Lease::WhileLinked, Lease::For),
                until: command.until,
                why: command.why,
            })
        });
        // An LED that somebody switched meanwhile is not what the earlier run decided.
        if kept.led_on == self.led_on {
            self.decided = self.state();
            let by = by_name(&kept.by).unwrap_or(State::Starting.by());
            let is_over = matches!(self.decided, State::Starting) && by == REMOTE.by();
            if !is_over && (self.decided == State::Starting || self.decided.by() == by) {
                self.inherited_by = Some(by);
                self.decided_at = kept.since;
                self.why = kept.why;
            }
        }
        self.held.is_some()
    }

    /// What an earlier run of the same boot leaves to the next one.
    pub(crate) fn hand_over(&self) -> KeptDecision {
        KeptDecision {
            led_on: self.led_on,
            by: self.by().to_owned(),
            why: self.why.clone(),
            since: self.decided_at,
            changed_at: self.changed_at,
            command: self.held.as_ref().map(|held| KeptCommand {
                led_on: held.led_on,
                lease: match held.lease {
                    Lease::For(time) => Some(time),
                    Lease::WhileLinked => None,
                },
                until: held.until,
                why: held.why.clone(),
            }),
        }
    }

    /// Whether a command holds that has no end of its own.
    pub(crate) fn holds_while_linked(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.until.is_none())
    }

    pub(crate) fn stamp(&self) -> DecisionStamp {
        DecisionStamp {
            led_on: self.led_on,
            by: self.by(),
            since: self.decided_at,
            command: self.held.as_ref().map(|held| (held.led_on, held.until)),
        }
    }
}

fn by_name(name: &str) -> Option<&'static str> {
    [State::Starting, State::Fallback, REMOTE, State::SensorFault]
        .into_iter()
        .map(State::by)
        .find(|by| *by == name)
}
