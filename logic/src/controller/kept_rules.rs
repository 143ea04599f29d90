//! Rules that commands set: for this run, or with `persist` for the next ones too. Those are kept in a file and
//! stand over the configuration.

use std::time::Duration;

use super::Controller;
use crate::command::Outcome;
use crate::command::Sender;
use crate::lighting::{Rules, RulesPatch};
use crate::time::Now;
use crate::timers::{Timer, Timers};
use crate::{Level, Output};

/// Rules go to the disk at once, but not more often than this: a flood of them would wear a card out.
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// The rules that outlive a restart.
#[derive(Debug, Clone)]
pub(super) struct KeptRules {
    /// The rules of the configuration, and what commands set over them for good.
    configured: Rules,
    patch: RulesPatch,
    is_written: bool,
}

impl KeptRules {
    pub(super) fn new(configured: Rules) -> Self {
        Self {
            configured,
            patch: RulesPatch::default(),
            is_written: true,
        }
    }

    /// What is kept.
    pub(super) fn patch(&self) -> RulesPatch {
        self.patch
    }

    /// What is to be kept once `patch` is set too. After a restart it stands over the configuration, without
    /// what was set for now.
    fn with(&self, patch: &RulesPatch, least: Duration) -> Result<RulesPatch, String> {
        let patch = self.patch.then(patch);
        let checked = patch.over(self.configured).check(least);
        checked.map_err(|why| format!("after a restart {why}; set both with persist"))?;
        Ok(patch)
    }

    fn keep(&mut self, patch: RulesPatch) {
        self.patch = patch;
        self.is_written = false;
    }

    /// Takes what earlier runs kept; what a command of this run set before it came goes on counting.
    fn found(&mut self, patch: &RulesPatch, least: Duration) -> Result<Rules, String> {
        let patch = patch.then(&self.patch);
        let rules = patch.over(self.configured);
        rules.check(least)?;
        self.patch = patch;
        Ok(rules)
    }

    /// What is to be written now, if anything; the last time it does not wait.
    fn write(&mut self, is_last: bool, now: Duration, timers: &mut Timers) -> Option<RulesPatch> {
        if self.is_written || !is_last && timers.is_set(Timer::KeepRules) {
            return None;
        }
        self.is_written = true;
        timers.set(Timer::KeepRules, now + WRITE_EVERY);
        Some(self.patch)
    }
}

impl Controller {
    /// A command sets rules.
    pub(super) fn set(&mut self, sender: Sender, patch: &RulesPatch, persist: bool, now: Now) {
        let least = self.lighting.settings().least_interval;
        let rules = patch.over(self.lighting.settings().rules());
        let checked = rules.check(least).and_then(|()| match persist {
            true => self.kept_rules.with(patch, least).map(Some),
            false => Ok(None),
        });
        let kept = match checked {
            Ok(kept) => kept,
            Err(why) => return self.finish(sender, "set", Outcome::Rejected, &why, now),
        };
        self.set_rules(rules, now);
        if let Some(kept) = kept {
            self.kept_rules.keep(kept);
        }
        self.finish(sender, "set", Outcome::Applied, "", now);
    }

    /// What earlier runs kept.
    pub(super) fn rules_found(&mut self, patch: RulesPatch, place: &str, now: Now) {
        if !patch.is_empty() {
            let least = self.lighting.settings().least_interval;
            match self.kept_rules.found(&patch, least) {
                Ok(rules) => {
                    let text = format!(
                        "kept by a command, over the configuration: {patch}; remove {place} and restart \
                         to end that"
                    );
                    self.log(Level::Warn, text);
                    self.set_rules(rules, now);
                }
                Err(why) => {
                    let text = format!(
                        "{place} is not followed: {why}; correct the configuration, or remove the file"
                    );
                    self.log(Level::Warn, text);
                }
            }
        }
        self.rules_known(now);
    }

    pub(super) fn rules_unusable(&mut self, why: &str, now: Now) {
        let text = format!("rules set by a command are not followed: {why}");
        self.log(Level::Warn, text);
        self.rules_known(now);
    }

    pub(super) fn keep_rules(&mut self, now: Now) {
        let is_last = self.stopping.is_some();
        let rules = self.kept_rules.write(is_last, now.boot, &mut self.timers);
        self.outputs.extend(rules.map(Output::KeepRules));
    }

    /// Only now is it sure whether the command of an earlier run holds.
    fn rules_known(&mut self, now: Now) {
        let (is_over, change) = self.lighting.rules_known(now.boot, &mut self.timers);
        if is_over {
            self.commands.reset_order();
        }
        self.apply(change);
    }

    fn set_rules(&mut self, rules: Rules, now: Now) {
        let is_new_interval = rules.interval != self.lighting.settings().interval;
        if is_new_interval {
            self.timers.set(Timer::Read, now.boot);
        }
        let change = self.lighting.set_rules(rules, now.boot, &mut self.timers);
        self.apply(change);
    }
}
