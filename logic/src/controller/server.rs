//! What comes from the server: commands, acks, signs of life; and what it is answered.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Controller;
use crate::command::{Action, Command, Decision, Outcome, Sender};
use crate::delivery::Topic;
use crate::lighting::{Authority, Change, Lighting, Mode};
use crate::outage::Cause;
use crate::telemetry::{Body, Event, PlainNumber};
use crate::time::Now;
use crate::timers::Timers;
use crate::{Exit, Level};

/// Larger acks are not read.
const MAX_ACK: usize = 64 * 1024;

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
            self.delivery
                .server_acked(ack.run, &ack.acked, now.boot, &mut self.timers);
        }
    }

    pub(super) fn server_status(&mut self, payload: &[u8], retained: bool, now: Now) {
        if self.discovery.is_servers() {
            self.home_assistant_said(payload, retained, now);
        }
        // What the broker kept says how the server was when it said so, perhaps long ago.
        if retained {
            return;
        }
        if payload.eq_ignore_ascii_case(b"offline") {
            self.decide(now, |lighting, timers| {
                lighting.server_gone(now.boot, timers)
            });
        } else {
            self.server_alive(now);
        }
    }

    pub(super) fn server_alive(&mut self, now: Now) {
        // What the broker said of its listeners is older.
        self.delivery.forget_state_heard();
        self.observe_server(now);
        self.lighting.server_alive(now.boot, &mut self.timers);
        self.server_heard(now);
    }

    /// Whether the server is there, as far as link and broker show it.
    /// At a stop nothing is decided any more, so that no lease is to run out either.
    pub(super) fn observe_server(&mut self, now: Now) {
        if self.stopping.is_some() {
            return;
        }
        let is_there = self.delivery.is_up() && self.delivery.state_heard() != Some(false);
        self.lighting
            .server_may_be_there(is_there, now.boot, &mut self.timers);
    }

    /// Something that may end the lease of the server. While the link is up, that is an outage too.
    pub(super) fn decide(
        &mut self,
        now: Now,
        happens: impl FnOnce(&mut Lighting, &mut Timers) -> Option<Change>,
    ) {
        let is_remote = |state: Authority| matches!(state, Authority::Remote { .. });
        let was_remote = is_remote(self.lighting.authority());
        let change = happens(&mut self.lighting, &mut self.timers);
        if was_remote && !is_remote(self.lighting.authority()) {
            self.commands.reset_order();
            if self.delivery.is_up() {
                let began = self.clock.stamp(now);
                let why = "no sign of life from the server";
                self.outage.begin(Cause::Server, why, began, now.boot);
                self.log(Level::Warn, format!("{why}: the Pi decides by itself"));
            }
        }
        self.report_sensor(now);
        self.apply(change);
    }

    /// Carries out what was decided about commands.
    pub(super) fn obey_commands(&mut self, now: Now) {
        while let Some(decision) = self.commands.poll() {
            self.act_on(decision, now);
        }
    }

    fn act_on(&mut self, decision: Decision, now: Now) {
        match decision {
            Decision::Obey(command) => {
                self.server_alive(now);
                self.obey(command, now);
            }
            Decision::Refuse {
                sender,
                result,
                reason,
            } => {
                self.commands_refused += 1;
                self.reply(sender, result, &reason, None);
            }
            Decision::Missing { from, to } => {
                let reason = format!("commands {from} to {to} never came");
                self.log(Level::Warn, reason.clone());
                self.command_event(None, "led_on", Outcome::Superseded, &reason, now);
            }
        }
    }

    fn obey(&mut self, command: Command, now: Now) {
        match &command.action {
            Action::Led(_) if self.lighting.settings().mode == Mode::Local => {
                self.commands_refused += 1;
                let reason = "mode is local: the Pi alone decides";
                self.reply(command.sender(), Outcome::Rejected, reason, None);
            }
            Action::Led(led_on) => {
                let why = match &command.id {
                    // It is shown in logs and terminals, where a line break or an escape is an order.
                    Some(id) => format!("command {}", id.replace(char::is_control, "\u{fffd}")),
                    None => "command".to_owned(),
                };
                let lease = command.lease;
                let timers = &mut self.timers;
                let change = self.lighting.command(*led_on, lease, why, now.boot, timers);
                self.apply(change);
                self.led.command(*led_on, command.sender());
            }
            Action::ReadNow => match self.sensor.read_for(command) {
                Ok(()) => {
                    self.begin_reading(now);
                }
                Err(sender) => {
                    self.commands_refused += 1;
                    let reason = "the sensor has not answered those before it";
                    self.reply(sender, Outcome::Rejected, reason, None);
                }
            },
            Action::Set { patch, persist } => self.set(command.sender(), patch, *persist, now),
            Action::Reboot if !self.allow_reboot => {
                let reason = "not allowed here; the key commands.allow_reboot allows it";
                self.finish(command.sender(), "reboot", Outcome::Rejected, reason, now);
            }
            Action::Reboot => {
                self.finish(command.sender(), "reboot", Outcome::Applied, "", now);
                self.stop(Exit::Reboot, now);
            }
            Action::Restart => {
                self.finish(command.sender(), "restart", Outcome::Applied, "", now);
                self.stop(Exit::Restart, now);
            }
        }
    }

    /// The end of an instruction to the device: the sender is told, and it is recorded.
    pub(super) fn finish(
        &mut self,
        sender: Sender,
        name: &str,
        result: Outcome,
        reason: &str,
        now: Now,
    ) {
        if result == Outcome::Rejected {
            self.commands_refused += 1;
        }
        self.command_event(sender.id.clone(), name, result, reason, now);
        self.reply(sender, result, reason, None);
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
        sender: Sender,
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
        let Sender { id, reply_to } = sender;
        let reply = Reply {
            id,
            result,
            reason,
            led_on: self.led.known(),
            led_ok: self.led.fault().map(|_| false),
            light: light.map(PlainNumber),
        };
        self.counters.command(result);
        let payload = serde_json::to_vec(&reply).unwrap_or_default();
        if let Some(reply_to) = reply_to {
            self.delivery.publish_reply(reply_to, payload.clone());
        }
        self.delivery
            .publish_control(Topic::Results, payload, false);
    }
}
