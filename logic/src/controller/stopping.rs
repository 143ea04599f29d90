//! A stop: what is published has a moment to be confirmed, the rest goes to the disk, then it ends.
//!
//! ```text
//!   Confirming --all confirmed, or 0.5 s--> Storing --stored, or failed--> Ending --> Over
//!     |    ^ |                                 |                             ^
//!     |    +-+ the store cannot take it yet    |                             |
//!     +--- the store failed last, or 3 s ------+------------- 3 s -----------+
//! ```

use std::time::Duration;

use super::Controller;
use crate::delivery::Topic;
use crate::time::Now;
use crate::timers::Timer;
use crate::{Exit, Input, Level, Output, words};

/// At a stop, publications have so long to be confirmed, and all of it may take so long.
const QUIET_WITHIN: Duration = Duration::from_millis(500);
const MAX_STOP: Duration = Duration::from_secs(3);

/// A stop under way.
#[derive(Debug, Clone)]
pub(super) struct Stopping {
    exit: Exit,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Publications have a moment to be confirmed, and the LED to answer.
    Confirming,
    /// The last group is on its way to the disk: nothing may make another.
    Storing,
    /// Nothing is waited for any more.
    Ending,
    /// The last orders are given.
    Over,
}

impl Controller {
    pub(super) fn stop(&mut self, exit: Exit, now: Now) {
        if self.stopping.is_some() {
            return;
        }
        self.log(Level::Info, "stopping".into());
        if self.delivery.is_up() {
            self.link_held(now);
        }
        self.record_kept();
        self.delivery
            .publish_control(Topic::Status, b"offline".to_vec(), true);
        self.stopping = Some(Stopping {
            exit,
            stage: Stage::Confirming,
        });
        // Nothing more is decided or recorded: it could be neither published nor stored.
        self.timers.stop_all_but(&Timer::AT_STOP);
        self.timers.set(Timer::StopQuiet, now.boot + QUIET_WITHIN);
        self.timers.set(Timer::StopEnd, now.boot + MAX_STOP);
    }

    /// Whether a stop under way lets this in.
    pub(super) fn is_open_to(&self, input: &Input) -> bool {
        match input {
            _ if self.stopping.is_none() => true,
            Input::LedWritten { .. } | Input::LedFailed { .. } => !self.is_storing_last(),
            Input::Acked(_)
            | Input::Unheard(_)
            | Input::PublicationRefused { .. }
            | Input::SubscriptionRefused { .. }
            | Input::Stored { .. }
            | Input::StoreFailed(_)
            | Input::BacklogOpened(_)
            | Input::LinkDown { .. } => true,
            _ => false,
        }
    }

    /// Whether the last group is on its way to the disk, or beyond.
    pub(super) fn is_storing_last(&self) -> bool {
        self.stage().is_some_and(|stage| stage != Stage::Confirming)
    }

    /// The store has answered.
    pub(super) fn stop_stored(&mut self) {
        if self.stage() == Some(Stage::Storing) {
            self.enter(Stage::Ending);
        }
    }

    /// A stop takes no longer.
    pub(super) fn stop_over(&mut self) {
        self.enter(Stage::Ending);
    }

    /// Stores the rest once publications have had their moment, and ends.
    pub(super) fn go_on_stopping(&mut self, now: Now) {
        if self.stage() == Some(Stage::Confirming) {
            self.store_last(now);
        }
        if self.stage() == Some(Stage::Ending) {
            self.end();
        }
    }

    fn store_last(&mut self, now: Now) {
        let is_quiet = self.delivery.is_quiet() && !self.led.is_busy();
        if !is_quiet && self.timers.is_set(Timer::StopQuiet) {
            return;
        }
        self.delivery.hand_over_discards(&mut self.timers);
        if self.commit() {
            self.enter(Stage::Storing);
        } else if self.delivery.store_failed_last() {
            self.enter(Stage::Ending);
        } else {
            self.timers.set(Timer::StopQuiet, now.boot + QUIET_WITHIN);
        }
    }

    fn end(&mut self) {
        let Some(Stopping { exit, stage }) = &mut self.stopping else {
            return;
        };
        *stage = Stage::Over;
        let exit = *exit;
        self.timers.stop_all_but(&[]);
        self.delivery.hand_over_discards(&mut self.timers);
        let ids = self.commands.fresh_ids();
        let last_seq = self.recorder.last_seq();
        let left = self.delivery.hand_over_the_rest(ids, last_seq);
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

    fn stage(&self) -> Option<Stage> {
        self.stopping.as_ref().map(|stopping| stopping.stage)
    }

    fn enter(&mut self, stage: Stage) {
        if let Some(stopping) = &mut self.stopping {
            stopping.stage = stage;
        }
    }
}
