//! What becomes known about the LED: told in the log, as events, and as results of commands.

use super::Controller;
use crate::command::Outcome;
use crate::led::{LedNews, LedOrder};
use crate::lighting::{Authority, Change};
use crate::telemetry::{Body, Event};
use crate::time::Now;
use crate::{Level, Output};

impl Controller {
    /// What the LED is to be. Nobody knows before the first decision if the LED could not be read either.
    pub(super) fn led_wanted(&self) -> Option<bool> {
        let decided =
            self.lighting.authority() != Authority::Starting || self.led.known().is_some();
        decided.then(|| self.lighting.led_on())
    }

    /// Orders a change of the LED; it is reported when it is made.
    pub(super) fn apply(&mut self, change: Option<Change>) {
        if let Some(change) = change {
            self.led.change(change);
        }
    }

    /// Reports what became known, and orders what is next.
    pub(super) fn advance_led(&mut self, now: Now) {
        // The last records of a stop are on their way to the disk: none may follow.
        if self.is_storing_last() {
            return;
        }
        while let Some(news) = self.led.poll_news() {
            self.report_led(news, now);
        }
        while let Some(order) = self.led.poll_order(now.boot, &mut self.timers) {
            self.outputs.push_back(match order {
                LedOrder::Set(led_on) => Output::SetLed(led_on),
                LedOrder::GiveUp => Output::GiveUpLed,
            });
        }
    }

    fn report_led(&mut self, news: LedNews, now: Now) {
        match news {
            LedNews::Changed(Change { led_on, by, why }) => {
                let on = if led_on { "on" } else { "off" };
                self.log(Level::Info, format!("LED {on} by {by}: {why}"));
                self.led_event(None, by, why, now);
            }
            LedNews::Failed(why) => {
                self.log(Level::Warn, format!("the LED cannot be written: {why}"));
                self.led_event(Some(false), self.lighting.authority().by(), why, now);
            }
            LedNews::Works => {
                let why = "the LED can be written again".to_owned();
                self.log(Level::Info, why.clone());
                self.led_event(Some(true), self.lighting.authority().by(), why, now);
            }
            LedNews::Meddled => {
                let why = "switched by something else, and set right".to_owned();
                self.log(Level::Warn, format!("LED {why}"));
                self.led_event(None, self.lighting.authority().by(), why, now);
            }
            LedNews::Applied(id) => self.reply(id, Outcome::Applied, "", None),
            LedNews::Refused(id, why) => {
                self.commands_refused += 1;
                self.reply(
                    id,
                    Outcome::Rejected,
                    &format!("the LED cannot be written: {why}"),
                    None,
                );
            }
            LedNews::Superseded(id) => {
                self.commands_refused += 1;
                let reason = "newer commands came before the LED was written";
                self.reply(id, Outcome::Superseded, reason, None);
            }
        }
    }

    fn led_event(&mut self, led_ok: Option<bool>, by: &str, why: String, now: Now) {
        let event = Event::Led {
            led_on: self.led.known(),
            led_ok,
            by: by.to_owned(),
            why,
        };
        self.record(Body::Event(event), now);
    }
}
