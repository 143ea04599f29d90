//! What comes from the server: commands, acks, signs of life; and what it is answered.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Controller;
use crate::command::{Action, Command, Decision, Outcome};
use crate::delivery::Topic;
use crate::lighting::{Authority, Mode, RulesPatch};
use crate::outage::Cause;
use crate::telemetry::{Body, Event, PlainNumber};
use crate::time::Now;
use crate::{Exit, Level};

/// Larger acks are not read.
const MAX_ACK: usize = 64 * 1024;
/// Commands that wait for one reading; a sensor that does not answer must not pile them up.
const MAX_READ_NOW: usize = 16;

impl Controller {
    pub(super) fn server_acked(&mut self, payload: &[u8], now: Now) {
        #[derive(Deserialize)]
        struct Ack {
            run: Uuid,
            acked: Vec<(u64, u64)>,
        }
        if payload.len() > MAX_ACK {
            return;
        }
        if let Ok(ack) = serde_json::from_slice::<Ack>(payload) {
            self.server_alive(now);
            self.delivery.server_acked(ack.run, &ack.acked, now.boot);
        }
    }

    pub(super) fn server_status(&mut self, payload: &[u8], retained: bool, now: Now) {
        // What the broker kept says how the server was when it said so, perhaps long ago.
        if retained {
            return;
        }
        if payload.eq_ignore_ascii_case(b"offline") {
            let was = self.lighting.authority();
            let change = self.lighting.server_gone(now.boot);
            self.lease_over(was, now);
            self.apply(change);
        } else {
            self.server_alive(now);
        }
    }

    pub(super) fn server_alive(&mut self, now: Now) {
        self.lighting.server_alive(now.boot);
        self.server_heard(now);
    }

    /// The server has lost its lease while the link is up: that is an outage too.
    pub(super) fn lease_over(&mut self, was: Authority, now: Now) {
        let is_remote = |state: Authority| matches!(state, Authority::Remote { .. });
        if is_remote(was) && !is_remote(self.lighting.authority()) {
            self.commands.reset_order();
            if self.delivery.is_up() {
                let began = self.clock.stamp(now);
                let why = "no sign of life from the server";
                self.outage.begin(Cause::Server, why, began, now.boot);
                self.log(Level::Warn, format!("{why}: the Pi decides by itself"));
            }
        }
    }

    pub(super) fn act_on(&mut self, decision: Decision, now: Now) {
        match decision {
            Decision::Obey(command) => {
                self.server_alive(now);
                self.obey(command, now);
            }
            Decision::Refuse { id, result, reason } => {
                self.commands_refused += 1;
                self.reply(id, result, &reason, None);
            }
            Decision::Missing { from, to } => {
                let reason = format!("commands {from} to {to} never came");
                self.log(Level::Warn, reason.clone());
                self.command_event(None, "led_on", Outcome::Superseded, &reason, now);
            }
        }
    }

    pub(super) fn obey(&mut self, command: Command, now: Now) {
        match &command.action {
            Action::Led(_) if self.lighting.settings().mode == Mode::Local => {
                self.commands_refused += 1;
                let reason = "mode is local: the Pi alone decides";
                self.reply(command.id, Outcome::Rejected, reason, None);
            }
            Action::Led(led_on) => {
                let why = match &command.id {
                    // It is shown in logs and terminals, where a line break or an escape is an order.
                    Some(id) => format!("command {}", id.replace(char::is_control, "\u{fffd}")),
                    None => "command".to_owned(),
                };
                let change = self.lighting.command(*led_on, command.lease, why, now.boot);
                self.apply(change);
                self.led.command(*led_on, command.id);
            }
            Action::ReadNow if self.read_now.len() >= MAX_READ_NOW => {
                self.commands_refused += 1;
                let reason = "the sensor has not answered those before it";
                self.reply(command.id, Outcome::Rejected, reason, None);
            }
            Action::ReadNow => {
                if self.reading.is_none() {
                    self.begin_reading(now);
                }
                self.read_now.push(command);
            }
            Action::Set { patch, persist } => self.set(command.id.clone(), patch, *persist, now),
            Action::Reboot if !self.allow_reboot => {
                let reason = "not allowed here; the key commands.allow_reboot allows it";
                self.finish(command.id, "reboot", Outcome::Rejected, reason, now);
            }
            Action::Reboot => {
                self.finish(command.id, "reboot", Outcome::Applied, "", now);
                self.stop(Exit::Reboot, now);
            }
            Action::Restart => {
                self.finish(command.id, "restart", Outcome::Applied, "", now);
                self.stop(Exit::Restart, now);
            }
        }
    }

    pub(super) fn set(&mut self, id: Option<String>, patch: &RulesPatch, persist: bool, now: Now) {
        let least = self.lighting.settings().least_interval;
        let rules = patch.over(self.lighting.settings().rules());
        let kept = self.kept_rules.then(patch);
        // What is kept stands over the configuration after a restart, without what was set for now.
        let checked = rules.check(least).and_then(|()| match persist {
            true => kept
                .over(self.configured)
                .check(least)
                .map_err(|why| format!("after a restart {why}; set both with persist")),
            false => Ok(()),
        });
        if let Err(reason) = checked {
            return self.finish(id, "set", Outcome::Rejected, &reason, now);
        }
        let change = self.lighting.set_rules(rules, now.boot);
        self.apply(change);
        if persist {
            self.kept_rules = kept;
            self.rules_to_keep = Some(kept);
        }
        self.finish(id, "set", Outcome::Applied, "", now);
    }

    /// What earlier runs kept; a command of this run that came before it goes on counting.
    pub(super) fn rules_found(&mut self, patch: RulesPatch, place: &str, now: Now) {
        if patch.is_empty() {
            return;
        }
        let kept = patch.then(&self.kept_rules);
        let rules = kept.over(self.configured);
        if let Err(why) = rules.check(self.lighting.settings().least_interval) {
            let text = format!(
                "{place} is not followed: {why}; correct the configuration, or remove the file"
            );
            return self.log(Level::Warn, text);
        }
        self.kept_rules = kept;
        let text = format!(
            "kept by a command, over the configuration: {patch}; remove {place} and restart to end that"
        );
        self.log(Level::Warn, text);
        let change = self.lighting.set_rules(rules, now.boot);
        self.apply(change);
    }

    /// The end of an instruction to the device: the sender is told, and it is recorded.
    pub(super) fn finish(
        &mut self,
        id: Option<String>,
        name: &str,
        result: Outcome,
        reason: &str,
        now: Now,
    ) {
        if result == Outcome::Rejected {
            self.commands_refused += 1;
        }
        self.command_event(id.clone(), name, result, reason, now);
        self.reply(id, result, reason, None);
    }

    pub(super) fn command_event(
        &mut self,
        id: Option<String>,
        command: &str,
        result: Outcome,
        reason: &str,
        now: Now,
    ) {
        let event = Event::Command {
            id,
            command: command.to_owned(),
            result,
            reason: reason.to_owned(),
        };
        self.record(Body::Event(event), now);
    }

    pub(super) fn reply(
        &mut self,
        id: Option<String>,
        result: Outcome,
        reason: &str,
        light: Option<f64>,
    ) {
        #[derive(Serialize)]
        struct Reply<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            id: Option<String>,
            result: Outcome,
            #[serde(skip_serializing_if = "str::is_empty")]
            reason: &'a str,
            led_on: Option<bool>,
            #[serde(skip_serializing_if = "Option::is_none")]
            led_ok: Option<bool>,
            #[serde(skip_serializing_if = "Option::is_none")]
            light: Option<PlainNumber>,
        }
        let reply = Reply {
            id,
            result,
            reason,
            led_on: self.led.known(),
            led_ok: self.led.fault().map(|_| false),
            light: light.map(PlainNumber),
        };
        let payload = serde_json::to_vec(&reply).unwrap_or_default();
        self.delivery
            .publish_control(Topic::Results, payload, false);
    }
}
