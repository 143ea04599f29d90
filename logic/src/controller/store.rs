//! What the store on the disk says, and what goes to it.

use super::Controller;
use crate::counters::StoreLosses;
use crate::time::Now;
use crate::{Level, Opened, words};

impl Controller {
    pub(super) fn backlog_opened(&mut self, opened: Opened, now: Now) {
        self.commands.remember(opened.command_ids);
        self.clock.know_earlier(opened.clocks);
        self.delivery
            .opened(opened.run_number, opened.records, opened.oldest_ms);
        if opened.records > 0 {
            let waiting = words::counted(opened.records, "record");
            self.log(Level::Info, format!("backlog: {waiting} of earlier runs"));
        }
        self.finish_first_record(opened.previous, now);
    }

    pub(super) fn stored(&mut self, records: u64, lost: StoreLosses) {
        self.commands.ids_stored(true);
        self.delivery.stored(records, lost.total());
        self.counters.store_commits += 1;
        self.counters.lose_stored(lost);
        self.note_lost(lost.total(), "the backlog is full or damaged");
        self.stop_stored();
    }

    pub(super) fn store_failed(&mut self, why: &str, now: Now) {
        self.counters.store_errors += 1;
        self.log(Level::Warn, format!("the backlog cannot be written: {why}"));
        self.commands.ids_stored(false);
        self.delivery.store_failed(now.boot, &mut self.timers);
        self.finish_first_record(None, now);
        self.stop_stored();
    }

    /// Hands over what is due to be on the disk.
    pub(super) fn store(&mut self, now: Now) {
        if self.delivery.commit_due(now.boot, &self.timers) {
            self.commit();
        }
    }

    /// Hands over all that is not on the disk. False when that cannot be done now.
    pub(super) fn commit(&mut self) -> bool {
        let ids = self.commands.fresh_ids();
        let last_seq = self.recorder.last_seq();
        self.delivery.commit(ids, last_seq, &mut self.timers)
    }
}
