//! What a restart keeps of the decision about the LED: the command that holds it, and who decided before.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::timers::Timers;

use super::{ActiveCommand, Authority, Change, Lease, Lighting, Mode};

/// A command that holds as long as the link is up outlives a restart of at most this length: the link went
/// down with the daemon, and nobody can tell what the server did meanwhile.
const MAX_RESTART: Duration = Duration::from_secs(30);

const REMOTE: Authority = Authority::Remote { until: None };

/// The decision about the LED at one moment. Times are on the boot clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDecision {
    /// The LED.
    pub led_on: bool,
    /// Who decided, as in [`Authority::by`].
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
    /// It holds as long as the server is there, and `lease` after that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub while_present: bool,
    /// When the lease ends.
    pub until: Option<Duration>,
    /// Why, in words.
    pub why: String,
}

/// A command of an earlier run of which the mode decides, and the mode may still come from the disk.
#[derive(Debug, Clone)]
pub(super) struct Undecided {
    active: ActiveCommand,
    /// The restart was short enough for a command without an end.
    in_time: bool,
}

/// What changes when there is something new to keep; cheap to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DecisionStamp {
    led_on: bool,
    by: &'static str,
    since: Duration,
    active_count: u64,
    until: Option<Option<Duration>>,
}

impl KeptDecision {
    /// Whether it can be what a run wrote at `written`.
    pub(crate) fn is_sound(&self, written: Duration) -> bool {
        let command = self.command.as_ref().is_none_or(|command| {
            let longest = command.lease.unwrap_or_default();
            (command.while_present || command.lease.is_some() == command.until.is_some())
                && command.while_present <= command.lease.is_some()
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
    /// Gives back whether its command holds on, or may when the rules kept on the disk are known, and the change
    /// of an LED that was switched since.
    pub(crate) fn take_over(
        &mut self,
        kept: KeptDecision,
        written: Duration,
        now: Duration,
        timers: &mut Timers,
    ) -> (bool, Option<Change>) {
        self.changed_at = kept.changed_at;
        if let Some(command) = kept.command {
            let active = ActiveCommand {
                led_on: command.led_on,
                lease: match command.lease {
                    Some(lease) if command.while_present => Lease::WhilePresent(lease),
                    Some(lease) => Lease::For(lease),
                    None => Lease::WhileLinked,
                },
                // The restart was an absence of the server: of this one, and of us.
                until: match command.while_present {
                    true => command.until.or(Some(written + MAX_RESTART)),
                    false => command.until,
                },
                why: command.why,
            };
            let in_time = active.until.is_some() || now.saturating_sub(written) <= MAX_RESTART;
            let undecided = Undecided { active, in_time };
            // One that did not decide (mode `local`) does not begin to before the mode is known for sure.
            if kept.by == REMOTE.by() && undecided.holds(self.settings.mode, now) {
                self.active = Some(undecided.active);
            } else {
                self.undecided = Some(undecided);
            }
        }
        // An LED that somebody switched meanwhile is not what the earlier run decided.
        if kept.led_on == self.led_on {
            self.decided = self.authority();
            let by = by_name(&kept.by).unwrap_or(Authority::Starting.by());
            let is_over = matches!(self.decided, Authority::Starting) && by == REMOTE.by();
            if !is_over && (self.decided == Authority::Starting || self.decided.by() == by) {
                self.inherited_by = Some(by);
                self.decided_at = kept.since;
                self.why = kept.why;
            }
        }
        let holds = self.active.is_some() || self.undecided.is_some();
        (holds, self.decide(now, timers))
    }

    /// The rules kept on the disk are known by now: what an earlier run left holds by them, or no more.
    /// Gives back whether its command ends here, and the change of the LED.
    pub(crate) fn rules_known(
        &mut self,
        now: Duration,
        timers: &mut Timers,
    ) -> (bool, Option<Change>) {
        let Some(undecided) = self.undecided.take() else {
            return (false, None);
        };
        self.active_count += 1;
        let is_newest = self.active.is_none();
        if is_newest && undecided.holds(self.settings.mode, now) {
            self.active = Some(undecided.active);
            if self.is_server_there() {
                self.follow_presence(now);
            }
        }
        (self.active.is_none(), self.decide(now, timers))
    }

    /// What an earlier run of the same boot leaves to the next one.
    pub(crate) fn hand_over(&self) -> KeptDecision {
        KeptDecision {
            led_on: self.led_on,
            by: self.by().to_owned(),
            why: self.why.clone(),
            since: self.decided_at,
            changed_at: self.changed_at,
            command: self.left().map(|active| KeptCommand {
                led_on: active.led_on,
                lease: match active.lease {
                    Lease::For(time) | Lease::WhilePresent(time) => Some(time),
                    Lease::WhileLinked => None,
                },
                while_present: matches!(active.lease, Lease::WhilePresent(_)),
                until: active.until,
                why: active.why.clone(),
            }),
        }
    }

    /// Whether a command holds that has no end of its own.
    pub(crate) fn holds_while_linked(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| active.until.is_none())
    }

    pub(crate) fn stamp(&self) -> DecisionStamp {
        DecisionStamp {
            led_on: self.led_on,
            by: self.by(),
            since: self.decided_at,
            active_count: self.active_count,
            until: self.left().map(|active| active.until),
        }
    }

    fn left(&self) -> Option<&ActiveCommand> {
        let undecided = self.undecided.as_ref().map(|undecided| &undecided.active);
        self.active.as_ref().or(undecided)
    }
}

impl Undecided {
    fn holds(&self, mode: Mode, now: Duration) -> bool {
        let is_over = self.active.until.is_some_and(|until| now >= until);
        mode == Mode::Remote || (self.in_time && !is_over)
    }
}

fn by_name(name: &str) -> Option<&'static str> {
    [
        Authority::Starting,
        Authority::Fallback,
        REMOTE,
        Authority::SensorFault,
    ]
    .into_iter()
    .map(Authority::by)
    .find(|by| *by == name)
}
