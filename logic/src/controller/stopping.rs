//! A stop: what is published has a moment to be confirmed, the rest goes to the disk, then it ends.

use std::time::Duration;

use super::{Controller, Stopping};
use crate::delivery::Topic;
use crate::time::Now;
use crate::{Exit, Input, Level, Output, words};

/// At a stop, publications have so long to be confirmed, and all of it may take so long.
const STOP_QUIET: Duration = Duration::from_millis(500);
const MAX_STOP: Duration = Duration::from_secs(3);

impl Controller {
    pub(super) fn stop(&mut self, exit: Exit, now: Now) {
        if self.stopping.is_some() {
            return;
        }
        self.log(Level::Info, "stopping".into());
        if self.delivery.is_up() {
            self.link_held(now);
        }
        self.take_kept();
        self.delivery
            .publish_control(Topic::Status, b"offline".to_vec(), true);
        self.stopping = Some(Stopping {
            exit,
            quiet_by: now.boot + STOP_QUIET,
            over_by: now.boot + MAX_STOP,
            stored: false,
            done: false,
        });
    }

    /// At a stop the last group of records is on its way to the disk: nothing may make another.
    pub(super) fn is_closed_to(&self, input: &Input) -> bool {
        let is_led = matches!(input, Input::LedWritten { .. } | Input::LedFailed { .. });
        let goes_on = matches!(
            input,
            Input::Acked(_)
                | Input::SubscriptionRefused(_)
                | Input::Stored { .. }
                | Input::StoreFailed(_)
                | Input::BacklogOpened(_)
                | Input::LinkDown { .. }
                | Input::DeadlineReached
        );
        self.stopping
            .as_ref()
            .is_some_and(|stopping| !goes_on && (!is_led || stopping.stored))
    }

    /// What is published has a moment to be confirmed; the rest goes to the disk; then it ends.
    pub(super) fn go_on_stopping(&mut self, now: Now) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        let is_quiet = self.delivery.is_quiet() && !self.led.is_busy();
        let quiet = is_quiet || now.boot >= stopping.quiet_by;
        if quiet && !stopping.stored {
            self.delivery.hand_over_discards();
            let ids = self.commands.fresh_ids();
            stopping.stored = self
                .delivery
                .commit(ids, self.recorder.last_seq(), now.boot);
            if !stopping.stored && self.delivery.store_failed_last() {
                stopping.done = true;
            } else if !stopping.stored {
                stopping.quiet_by = (now.boot + STOP_QUIET).min(stopping.over_by);
            }
        }
        if stopping.done || now.boot >= stopping.over_by {
            let exit = stopping.exit;
            // Said once; a later deadline has nothing to add.
            stopping.over_by = Duration::MAX;
            stopping.done = false;
            self.delivery.hand_over_discards();
            let ids = self.commands.fresh_ids();
            let left = self
                .delivery
                .hand_over_the_rest(ids, self.recorder.last_seq());
            if left > 0 {
                let text = format!(
                    "{} not stored yet; what cannot be stored now is reported as lost by the next run",
                    words::counted(left as u64, "record")
                );
                self.outputs.push_back(Output::Log(Level::Warn, text));
            }
            // Behind all of them: the daemon carries nothing out after this.
            self.outputs
                .extend(std::iter::from_fn(|| self.delivery.poll()));
            self.outputs.push_back(Output::Exit(exit));
        }
    }
}
