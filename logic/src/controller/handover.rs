//! When the state that a restart keeps is written: as soon as it has changed, but not more often than four
//! times a second; and before the end. A command without an end needs a sign of life of this run now and then,
//! by which the next one knows how long nobody was there.

use std::time::Duration;

use super::Controller;
use crate::command::CommandsStamp;
use crate::handover::Handover;
use crate::lighting::DecisionStamp;
use crate::time::Now;
use crate::{Level, Output};

/// A flood of commands makes no more writes than one each of these.
const WRITE_EVERY: Duration = Duration::from_millis(250);

/// While a command holds as long as the link is up.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(10);

/// What was last written, and not before when the next is.
#[derive(Debug, Default)]
pub(super) struct Writing {
    last: Option<(DecisionStamp, CommandsStamp)>,
    not_before: Duration,
}

impl Controller {
    /// Goes on from what an earlier run of this boot left, if that is good.
    pub(super) fn take_over(&mut self, handover: Handover, now: Now) {
        if let Err(why) = handover.check(self.run_info.boot_id, now) {
            let text = format!("the lease of the run before is not taken over: {why}");
            return self.log(Level::Info, text);
        }
        let Handover {
            written,
            decision,
            mut commands,
            ..
        } = handover;
        let holds = self.lighting.take_over(decision, written, now.boot);
        if !holds {
            // Without its lease the server counts again from anywhere.
            commands.last = None;
        }
        self.commands.take_over(commands);
    }

    /// The rules kept on the disk are known: only now is it sure whether the command of an earlier run holds.
    pub(super) fn rules_known(&mut self, now: Now) {
        let (is_over, change) = self.lighting.rules_known(now.boot);
        if is_over {
            self.commands.reset_order();
        }
        self.apply(change);
    }

    pub(super) fn write_handover(&mut self, now: Now) {
        let stamps = (self.lighting.stamp(), self.commands.stamp());
        let is_due = self.handover_due().is_some_and(|at| now.boot >= at);
        let is_last = self.stopping.is_some() && self.writing.last != Some(stamps);
        if !is_due && !is_last {
            return;
        }
        self.writing = Writing {
            last: Some(stamps),
            not_before: now.boot + WRITE_EVERY,
        };
        let handover = Handover {
            boot_id: self.run_info.boot_id,
            written: now.boot,
            decision: self.lighting.hand_over(),
            commands: self.commands.hand_over(),
        };
        self.outputs.push_back(Output::HandOver(Box::new(handover)));
    }

    /// When the next write is due, if there is something to write.
    pub(super) fn handover_due(&self) -> Option<Duration> {
        let stamps = (self.lighting.stamp(), self.commands.stamp());
        if self.writing.last != Some(stamps) {
            return Some(self.writing.not_before);
        }
        let pause = SIGN_OF_LIFE_EVERY.saturating_sub(WRITE_EVERY);
        self.lighting
            .holds_while_linked()
            .then_some(self.writing.not_before + pause)
    }
}
