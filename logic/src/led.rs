//! The LED as it is: what was ordered, what was observed, and who waits for the outcome.
//!
//! [`super::lighting`] decides what the LED is to be; this follows each decision to the device. One order is
//! under way at a time, the others wait in their order. Nothing is told before its order was answered:
//! a change, and the result of a command, are told when the LED was written; what cannot be written is told
//! once, tried again each second, and told once more when it works.
//!
//! ```text
//!          order          answer: written
//!   Idle --------> Asked -----------------> Idle, or the next order
//!    ^               |  answer: failed, or none within 2 s
//!    |               v
//!    +----------- Broken: everything that waits is refused; the LED as it is to be, again after 1 s
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use super::command::Sender;

use super::lighting::Change;
use super::timers::{Timer, Timers};

/// An LED that has not answered within this time counts as one that cannot be written.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The next try after one that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Orders that wait behind the one under way; of more, only the newest counts.
const MAX_ORDERS: usize = 64;
/// Commands whose result waits for one order; the results of older ones say that newer ones count.
const MAX_REPLIES: usize = 64;

/// What is to be done about the LED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LedOrder {
    /// Make it so, and say how it was found.
    Set(bool),
    /// The last order hangs: what it still answers does not count.
    GiveUp,
}

/// What became known about the LED.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LedNews {
    /// It was switched.
    Changed(Change),
    /// The command with this id, if it has one, was carried out.
    Applied(Sender),
    /// The command with this id was not carried out, and why.
    Refused(Sender, String),
    /// A newer command counts.
    Superseded(Sender),
    /// It cannot be written any more, and why.
    Failed(String),
    /// It can be written again.
    Works,
    /// Somebody else had switched it; it is as it is to be again.
    Meddled,
}

/// The LED as it is.
#[derive(Debug, Clone)]
pub(crate) struct LedState {
    /// As last written or read back.
    known: Option<bool>,
    /// Why it cannot be written.
    fault: Option<String>,
    /// The orders not answered yet.
    orders: VecDeque<PendingOrder>,
    /// The first of them is under way.
    is_asked: bool,
    give_up: bool,
    /// The last change that was decided and not made.
    missed: Option<Change>,
    meddled_reported: bool,
    news: VecDeque<LedNews>,
}

#[derive(Debug, Clone)]
struct PendingOrder {
    led_on: bool,
    change: Option<Change>,
    replies: Vec<Sender>,
}

impl LedState {
    /// Begins with the LED as it was found, if that is known.
    pub(crate) fn new(found: Option<bool>) -> Self {
        Self {
            known: found,
            fault: None,
            orders: VecDeque::new(),
            is_asked: false,
            give_up: false,
            missed: None,
            meddled_reported: false,
            news: VecDeque::new(),
        }
    }

    /// The LED as last written or read back; `None` if it never was.
    pub(crate) fn known(&self) -> Option<bool> {
        self.known
    }

    /// Why it cannot be written, in words; `None` if it can.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Whether an order waits for its answer.
    pub(crate) fn is_busy(&self) -> bool {
        !self.orders.is_empty()
    }

    /// The LED is to change.
    pub(crate) fn change(&mut self, change: Change) {
        if self.fault.is_some() {
            // The next try brings it to what it is to be then.
            self.missed = Some(change);
        } else {
            let order = self.order(change.led_on);
            order.change = Some(change);
        }
    }

    /// A command wants the LED so; its result is told when that is so.
    pub(crate) fn command(&mut self, led_on: bool, sender: Sender) {
        let order = self.order(led_on);
        order.replies.push(sender);
        if order.replies.len() > MAX_REPLIES {
            let id = order.replies.remove(0);
            self.news.push_back(LedNews::Superseded(id));
        }
    }

    /// Looks after the LED: somebody else may have switched it.
    pub(crate) fn see_to(&mut self, led_on: bool) {
        if self.fault.is_none() && self.orders.is_empty() {
            self.order(led_on);
        }
    }

    /// The LED is `led_on`, written if it was not; before, it was found to be `was`.
    pub(crate) fn written(&mut self, led_on: bool, was: Option<bool>, timers: &mut Timers) {
        let before = self.known.replace(led_on);
        timers.stop(Timer::LedAnswer);
        timers.stop(Timer::LedRetry);
        let order = match std::mem::take(&mut self.is_asked) {
            true => self.orders.pop_front(),
            false => None,
        };
        let (change, replies) =
            order.map_or_else(Default::default, |order| (order.change, order.replies));
        let was_broken = self.fault.take().is_some();
        if was_broken {
            self.news.push_back(LedNews::Works);
        }
        let (missed, overdue) = match self.missed.take() {
            Some(missed) if missed.led_on == led_on => (Some(missed), None),
            // Decided while the order of before was under way.
            missed => (None, missed),
        };
        let change = change.or(missed);
        let meddled = was.is_some() && before.is_some() && was != before;
        if let Some(change) = change.filter(|_| before != Some(led_on) || meddled) {
            self.news.push_back(LedNews::Changed(change));
        } else if meddled && !self.meddled_reported {
            self.news.push_back(LedNews::Meddled);
        }
        self.meddled_reported = meddled;
        self.news.extend(replies.into_iter().map(LedNews::Applied));
        if let Some(overdue) = overdue {
            self.change(overdue);
        }
    }

    /// The LED could not be written; `seen` is how it was found, if it could be read.
    pub(crate) fn failed(
        &mut self,
        why: &str,
        seen: Option<bool>,
        now: Duration,
        timers: &mut Timers,
    ) {
        self.known = seen.or(self.known);
        self.is_asked = false;
        timers.stop(Timer::LedAnswer);
        timers.set(Timer::LedRetry, now + RETRY_AFTER);
        for order in std::mem::take(&mut self.orders) {
            self.missed = order.change.or(self.missed.take());
            let refused = |id| LedNews::Refused(id, why.to_owned());
            self.news.extend(order.replies.into_iter().map(refused));
        }
        if self.fault.replace(why.to_owned()).is_none() {
            self.news.push_back(LedNews::Failed(why.to_owned()));
        }
    }

    /// The order under way has had its time.
    pub(crate) fn give_up(&mut self, now: Duration, timers: &mut Timers) {
        self.give_up = true;
        let seconds = ANSWER_WITHIN.as_secs();
        let why = format!("the LED has not answered for {seconds} s");
        self.failed(&why, None, now, timers);
    }

    /// The LED is tried again; `led_on` is what it is to be, if anybody has decided.
    pub(crate) fn retry(&mut self, led_on: Option<bool>, now: Duration, timers: &mut Timers) {
        if self.orders.is_empty() {
            timers.set(Timer::LedRetry, now + RETRY_AFTER);
            if let Some(led_on) = led_on {
                self.order(led_on);
            }
        }
    }

    /// The next thing to be done.
    pub(crate) fn poll_order(&mut self, now: Duration, timers: &mut Timers) -> Option<LedOrder> {
        if std::mem::take(&mut self.give_up) {
            return Some(LedOrder::GiveUp);
        }
        if self.is_asked {
            return None;
        }
        let order = self.orders.front()?;
        self.is_asked = true;
        timers.stop(Timer::LedRetry);
        timers.set(Timer::LedAnswer, now + ANSWER_WITHIN);
        Some(LedOrder::Set(order.led_on))
    }

    /// What became known, in order.
    pub(crate) fn poll_news(&mut self) -> Option<LedNews> {
        self.news.pop_front()
    }

    /// The newest order, if it is not under way and asks the same; else a new one.
    fn order(&mut self, led_on: bool) -> &mut PendingOrder {
        let under_way = usize::from(self.is_asked);
        let joins = self.orders.len() > under_way
            && self
                .orders
                .back()
                .is_some_and(|newest| newest.led_on == led_on);
        if !joins {
            if self.orders.len() > MAX_ORDERS {
                for order in self.orders.drain(under_way..) {
                    self.news
                        .extend(order.replies.into_iter().map(LedNews::Superseded));
                }
            }
            self.orders.push_back(PendingOrder {
                led_on,
                change: None,
                replies: Vec::new(),
            });
        }
        let newest = self.orders.len() - 1;
        &mut self.orders[newest]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_is_decided_while_a_broken_led_is_tried_again_is_made_and_told() {
        let (mut led, mut timers) = (LedState::new(Some(false)), Timers::default());
        led.failed("no device", None, Duration::ZERO, &mut timers);
        led.retry(Some(false), RETRY_AFTER, &mut timers);
        let order = led.poll_order(RETRY_AFTER, &mut timers);
        assert_eq!(order, Some(LedOrder::Set(false)));
        let on = Change {
            led_on: true,
            by: "remote",
            why: "command".into(),
        };
        led.change(on.clone());
        led.written(false, Some(false), &mut timers);
        let order = led.poll_order(RETRY_AFTER, &mut timers);
        assert_eq!(order, Some(LedOrder::Set(true)));
        led.written(true, Some(false), &mut timers);
        let news: Vec<LedNews> = std::iter::from_fn(|| led.poll_news()).collect();
        let failed = LedNews::Failed("no device".into());
        assert_eq!(news, [failed, LedNews::Works, LedNews::Changed(on)]);
    }
}
