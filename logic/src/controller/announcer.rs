//! The picture of the device: published as `state` when it has changed and once a minute, and given to whoever
//! looks.

use std::time::Duration;

use super::Controller;
use crate::counters::Counters;
use crate::delivery::Topic;
use crate::lighting::{Authority, Rules};
use crate::link::DeviceInfo;
use crate::past::Moment;
use crate::telemetry::OutageReport;
use crate::time::{ClockState, Now, rfc3339};
use crate::timers::{Timer, Timers};
use crate::view::View;
use crate::words;

/// `state` is published at least so often.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(60);

/// What was published as `state`.
#[derive(Debug, Clone, Default)]
pub(super) struct Announcer {
    last: Option<Announced>,
}

/// Fields whose change triggers a `state` message.
#[derive(Debug, Clone, PartialEq)]
struct Announced {
    led_on: Option<bool>,
    led_ok: bool,
    by: &'static str,
    rules: Rules,
    clock: ClockState,
    sensor_ok: bool,
    backlog: bool,
    store_ok: bool,
    heard: Option<bool>,
    lost: u64,
    outages: u64,
}

impl Announcer {
    /// It is to be published again.
    pub(super) fn expire(&mut self) {
        self.last = None;
    }

    /// Whether to publish it now; then it counts as published.
    fn is_due(&mut self, current: Announced, now: Duration, timers: &mut Timers) -> bool {
        let is_due = self.last.as_ref() != Some(&current);
        if is_due {
            self.last = Some(current);
            timers.set(Timer::Announce, now + ANNOUNCE_EVERY);
        }
        is_due
    }
}

impl Controller {
    /// Publishes `state` if that is due. Not before the backlog has been opened, or failed to: nobody knows how
    /// much waits; nor while the LED is being switched.
    pub(super) fn announce(&mut self, now: Now) {
        if !self.delivery.is_up() || self.startup.began().is_some() || self.led.is_busy() {
            return;
        }
        let current = Announced {
            led_on: self.led.known(),
            led_ok: self.led.fault().is_none(),
            by: self.lighting.by(),
            rules: self.lighting.settings().rules(),
            clock: self.clock.state(),
            sensor_ok: self.lighting.sensor_ok(),
            backlog: self.delivery.backlog() > 0,
            store_ok: self.delivery.store_ok(),
            heard: self.delivery.heard(),
            lost: self.counters.all_lost(),
            outages: self.counters.all_outages(),
        };
        if self.announcer.is_due(current, now.boot, &mut self.timers) {
            let payload = self.view(now).announcement().into_bytes();
            self.delivery.publish_control(Topic::State, payload, true);
        }
    }

    /// The picture of the device at `now`.
    pub fn view(&self, now: Now) -> View {
        let lease_left = match self.lighting.authority() {
            Authority::Remote { until } => until.map(|until| until.saturating_sub(now.boot)),
            _ => None,
        };
        let outage = self
            .outage
            .since()
            .map(|since| now.boot.saturating_sub(since));
        let DeviceInfo {
            device,
            broker,
            sensor,
            unit,
            ..
        } = self.device.clone();
        View {
            device,
            broker,
            sensor,
            unit,
            led_on: self.led.known(),
            led_wanted: self.lighting.led_on(),
            led_ok: self.led.fault().is_none(),
            led_why: self.led.fault().unwrap_or_default().to_owned(),
            by: self.lighting.by().to_owned(),
            why: self.lighting.why().to_owned(),
            light: self.lighting.light(),
            light_age_s: self.lighting.light_age(now.boot).map(words::seconds),
            rules: self.lighting.settings().rules(),
            kept_rules: self.kept_rules.patch(),
            backlog: self.delivery.backlog(),
            store_ok: self.delivery.store_ok(),
            clock: self.clock.state(),
            version: self.run_info.version.clone(),
            run: self.run_info.run,
            last_seq: self.recorder.last_seq(),
            link_up: self.delivery.is_up(),
            heard: self.delivery.heard(),
            mqtt: self.delivery.offer().cloned(),
            refused: self
                .delivery
                .refused_so_far()
                .map(|(refusal, count)| (refusal.name().to_owned(), count))
                .collect(),
            link_why: self.link_why(),
            sensor_ok: self.lighting.sensor_ok(),
            sensor_why: self.lighting.sensor_why().to_owned(),
            lease_left_s: lease_left.map(words::seconds),
            outage_s: outage.map(words::seconds),
            commands_refused: self.commands_refused,
            counters: self.counters(),
            results_dropped: self.delivery.results_dropped(),
            led_since_s: words::seconds(now.boot.saturating_sub(self.lighting.since())),
            backlog_oldest: self.delivery.oldest_ms().map(rfc3339),
            backlog_oldest_age_s: self.oldest_age(now).map(words::seconds),
            at: rfc3339(now.wall_ms),
            boot_s: words::seconds(now.boot),
            backlog_bytes: None,
            written_today_bytes: self.written_today_bytes,
            loop_lag_s: None,
            last_outage: self.outage.last().cloned(),
        }
    }
    /// The device at this moment, as the curves and bands of the past show it.
    pub fn moment(&self) -> Moment {
        Moment {
            light: self.lighting.light(),
            led_on: self.led.known(),
            by: self.lighting.by(),
            link_up: self.delivery.is_up(),
            backlog: self.delivery.backlog(),
        }
    }

    /// The outages that ended since this was last called; of very many the newest.
    pub fn take_outages(&mut self) -> Vec<OutageReport> {
        std::mem::take(&mut self.outages_over)
    }

    fn counters(&self) -> Counters {
        let deliveries = self.delivery.deliveries();
        Counters {
            published: deliveries.published,
            replayed: deliveries.replayed,
            confirmed: deliveries.confirmed,
            ..self.counters.clone()
        }
    }

    /// How old the oldest record of the backlog is, where the clocks of both moments can be trusted.
    fn oldest_age(&self, now: Now) -> Option<Duration> {
        let oldest_ms = self.delivery.oldest_ms()?;
        let is_true = self.clock.known() && oldest_ms >= self.run_info.built_ms;
        let age_ms = u64::try_from(now.wall_ms.saturating_sub(oldest_ms)).ok()?;
        is_true.then(|| Duration::from_millis(age_ms))
    }
}
