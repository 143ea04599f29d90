//! When the state that a restart keeps is written: as soon as it has changed, but not more often than four
//! times a second; and before the end. A command without an end needs a sign of life of this run now and then,
//! by which the next one knows how long nobody was there.

use std::time::Duration;

use super::Controller;
use crate::command::CommandsStamp;
use crate::handover::Handover;
use crate::lighting::DecisionStamp;
use crate::time::Now;
use crate::timers::Timer;
use crate::{Level, Output};

/// A flood of commands makes no more writes than one each of these.
const WRITE_EVERY: Duration = Duration::from_millis(250);

/// While a command holds as long as the link is up.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(10);

/// What was written last.
#[derive(Debug, Clone, Default)]
pub(super) struct HandoverWriter {
    last: Option<(DecisionStamp, CommandsStamp, u64)>,
}

impl HandoverWriter {
    /// It is to be written again, as a sign of life.
    pub(super) fn expire(&mut self) {
        self.last = None;
    }
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
            outage,
            ..
        } = handover;
        let timers = &mut self.timers;
        let (holds, change) = self.lighting.take_over(decision, written, now.boot, timers);
        if !holds {
            // Without its lease the server counts again from anywhere.
            commands.last = None;
        }
        self.commands.take_over(commands);
        if let Some(outage) = outage {
            self.outage.take_over(outage);
        }
        self.apply(change);
    }

    pub(super) fn write_handover(&mut self, now: Now) {
        let stamps = (
            self.lighting.stamp(),
            self.commands.stamp(),
            self.outage.stamp(),
        );
        let may_write = self.stopping.is_some() || !self.timers.is_set(Timer::Handover);
        if self.handover.last == Some(stamps) || !may_write {
            return;
        }
        self.handover.last = Some(stamps);
        self.timers.set(Timer::Handover, now.boot + WRITE_EVERY);
        let holds = self.lighting.holds_while_linked();
        let sign_of_life = holds.then_some(now.boot + SIGN_OF_LIFE_EVERY);
        self.timers.set_or_stop(Timer::SignOfLife, sign_of_life);
        let handover = Handover {
            boot_id: self.run_info.boot_id,
            written: now.boot,
            decision: self.lighting.hand_over(),
            commands: self.commands.hand_over(),
            outage: self.outage.hand_over(),
        };
        self.outputs.push_back(Output::HandOver(Box::new(handover)));
    }
}
