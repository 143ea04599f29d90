//! The controller: hands each input to the part that it concerns, and that part's word to the others.
//!
//! Inputs are handled in their order; then [`Controller::advance`] lets every part do what its deadlines say,
//! and the orders wait in [`Controller::poll_output`].

mod handover;
mod led;
mod link;
mod server;
mod stopping;

use std::collections::VecDeque;
use std::time::Duration;

use uuid::Uuid;

use super::command::{Command, CommandQueue, Outcome};
use super::delivery::{self, Delivery, Topic};
use super::handover::Handover;
use super::led::LedState;
use super::lighting::{self, Authority, Change, Lighting, Rules, RulesPatch};
use super::link::{DeviceInfo, Pattern};
use super::outage::Outage;
use super::telemetry::{self, Body, Event, OutageReadings, Recorder};
use super::time::{Clock, ClockState, Now, Stamp, rfc3339};
use super::view::View;
use super::words;
use super::{Exit, Input, Level, Opened, Output, command};

/// `state` is published at least so often.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(60);
/// The first record waits so long for the store to name the run before.
const STARTED_WAITS: Duration = Duration::from_secs(10);
/// A reading that takes longer hangs; the slowest sensor needs a second for each of a few measurements.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// A pause of the whole program that is not worth a thought: a busy machine.
const SHORT_PAUSE: Duration = Duration::from_secs(1);
/// Rules go to the disk at once, but not more often than this: a flood of them would wear a card out.
const KEEP_RULES_EVERY: Duration = Duration::from_secs(5);

/// What every part needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Who decides about the LED, and how.
    pub lighting: lighting::LightingSettings,
    /// When a reading is recorded.
    pub telemetry: telemetry::TelemetrySettings,
    /// What commands may do.
    pub commands: command::CommandSettings,
    /// How records reach the server.
    pub delivery: delivery::DeliverySettings,
    /// How the configuration calls the topics and this client.
    pub device: DeviceInfo,
}

/// The circumstances in which a run begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// Names this run; never used before.
    pub run: Uuid,
    /// Names this start of the machine.
    pub boot_id: Uuid,
    /// When the program was built, in milliseconds since 1970: no time is earlier.
    pub built_ms: i64,
    /// Seed of the jitters.
    pub seed: u64,
    /// The LED as it was found; `None` if that could not be told.
    pub led_on: Option<bool>,
    /// The version of the program.
    pub version: String,
    /// What the run before has left, if it was of this boot.
    pub handover: Option<Box<Handover>>,
}

/// The whole pure half.
#[derive(Debug)]
pub struct Controller {
    run_info: RunInfo,
    keep: OutageReadings,
    allow_reboot: bool,
    lighting: Lighting,
    led: LedState,
    commands: CommandQueue,
    recorder: Recorder,
    delivery: Delivery,
    clock: Clock,
    outage: Outage,
    /// The first record is not finished; the stamp it will carry, and until when it waits.
    starting: Option<(Stamp, Duration)>,
    /// The newest reading of an outage, with `keep = "latest"`.
    kept: Option<(Stamp, Body)>,
    /// A reading is under way, and since when.
    reading: Option<Duration>,
    /// It was begun before a pause: what it answers may be old.
    reread: bool,
    /// When the last input was handled.
    handled_at: Duration,
    sensor_reported_ok: bool,
    /// Commands that wait for the next reading.
    read_now: Vec<Command>,
    announced: Option<Announced>,
    announce_at: Duration,
    /// Rules that are to outlive a restart and are not on the disk yet; and not before when.
    rules_to_keep: Option<RulesPatch>,
    /// The rules of the configuration, and what commands set over them for good.
    configured: Rules,
    kept_rules: RulesPatch,
    keep_rules_at: Duration,
    writing: handover::Writing,
    stopping: Option<Stopping>,
    device: DeviceInfo,
    /// Why the last session ended, or there was none.
    link_why: String,
    /// What was told of it in this outage; and that the link is up again.
    link_reported: Vec<String>,
    link_up_reported: bool,
    pattern_reported: Option<Pattern>,
    /// When the link has held long enough; none while it is down, and after that.
    held_at: Option<Duration>,
    commands_refused: u64,
    outputs: VecDeque<Output>,
}

/// What a change of is announced.
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
}

/// A stop under way.
#[derive(Debug)]
struct Stopping {
    exit: Exit,
    quiet_by: Duration,
    over_by: Duration,
    stored: bool,
    done: bool,
}

impl Controller {
    /// Begins a run.
    pub fn new(settings: Settings, run_info: RunInfo, now: Now) -> Self {
        let clock = Clock::new(run_info.boot_id, run_info.built_ms, now);
        let starting = Some((clock.stamp(now), now.boot + STARTED_WAITS));
        let configured = settings.lighting.rules();
        let confirms = settings.delivery.qos > 0;
        let mut controller = Self {
            keep: settings.telemetry.keep,
            allow_reboot: settings.commands.allow_reboot,
            lighting: Lighting::new(
                settings.lighting,
                run_info.led_on.unwrap_or(false),
                now.boot,
            ),
            led: LedState::new(run_info.led_on),
            commands: CommandQueue::new(settings.commands),
            recorder: Recorder::new(settings.telemetry, run_info.run, run_info.boot_id),
            delivery: Delivery::new(
                settings.delivery,
                settings.device.inbound().collect(),
                run_info.seed,
                now.boot,
            ),
            outage: Outage::new(confirms),
            starting,
            kept: None,
            reading: None,
            reread: false,
            handled_at: now.boot,
            sensor_reported_ok: true,
            read_now: Vec::new(),
            announced: None,
            announce_at: now.boot,
            rules_to_keep: None,
            configured,
            kept_rules: RulesPatch::default(),
            keep_rules_at: now.boot,
            writing: handover::Writing::default(),
            stopping: None,
            device: settings.device,
            link_why: "not connected yet".into(),
            link_reported: Vec::new(),
            link_up_reported: false,
            pattern_reported: None,
            held_at: None,
            commands_refused: 0,
            outputs: VecDeque::new(),
            clock,
            run_info,
        };
        if let Some(handover) = controller.run_info.handover.take() {
            controller.take_over(*handover, now);
        }
        controller.advance(now);
        controller
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, input: Input, now: Now) {
        self.handle_all([input], now);
    }

    /// Takes in several things that happened until `now`, in their order: all answers that one read from the
    /// broker gave, for example. What follows from them is decided once.
    pub fn handle_all(&mut self, inputs: impl IntoIterator<Item = Input>, now: Now) {
        if self.stopping.is_none() {
            self.observe_clock(now);
            self.notice_pause(now);
            self.decide(now);
        }
        for input in inputs {
            if !self.is_closed_to(&input) {
                self.take_in(input, now);
            }
        }
        self.advance(now);
    }

    fn take_in(&mut self, input: Input, now: Now) {
        match input {
            Input::Read(light) => self.read(light, now),
            Input::ReadFailed(why) => {
                if !self.is_old_answer(now) {
                    self.read_failed(&why, now);
                }
            }
            Input::LedWritten { led_on, was } => self.led.written(led_on, was),
            Input::LedFailed { why, seen } => self.led.failed(&why, seen, now.boot),
            Input::LinkUp => self.link_up(now),
            Input::LinkDown { why, ending } => self.link_down(&why, ending, now),
            Input::Acked(token) => self.delivery.acked(token, now.boot),
            Input::SubscriptionRefused(token) => {
                self.delivery.subscription_refused(token, now.boot);
            }
            Input::CommandReceived { payload, retained } => {
                let known = self.clock.known();
                self.commands.receive(&payload, retained, now, known);
            }
            Input::CommandTooLarge { bytes } => self.commands.receive_too_large(bytes),
            Input::ServerAcked(payload) => self.server_acked(&payload, now),
            Input::ServerStatus { payload, retained } => {
                self.server_status(&payload, retained, now);
            }
            Input::RulesFound { patch, place } => {
                self.rules_found(patch, &place, now);
                self.rules_known(now);
            }
            Input::RulesUnusable(why) => {
                let text = format!("rules set by a command are not followed: {why}");
                self.log(Level::Warn, text);
                self.rules_known(now);
            }
            Input::BacklogOpened(opened) => self.backlog_opened(opened, now),
            Input::Stored { records, lost } => {
                self.commands.ids_stored(true);
                self.delivery.stored(records, lost);
                self.note_lost(lost, "the backlog is full or damaged");
                if let Some(stopping) = &mut self.stopping {
                    stopping.done = stopping.stored;
                }
            }
            Input::StoreFailed(why) => {
                self.log(Level::Warn, format!("the backlog cannot be written: {why}"));
                self.commands.ids_stored(false);
                self.delivery.store_failed(now.boot);
                self.started(None, now);
                if let Some(stopping) = &mut self.stopping {
                    stopping.done = stopping.stored;
                }
            }
            Input::Fetched { entries, end } => self.delivery.fetched(entries, end),
            Input::DeadlineReached => {}
            Input::ShutdownAsked => self.stop(Exit::Stopped, now),
        }
    }

    /// The next order; to be drained after each input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.delivery.poll())
    }

    /// When to come back with [`Input::DeadlineReached`] if nothing else happens, on the boot clock.
    pub fn next_deadline(&self) -> Duration {
        let announce = self.may_announce().then_some(self.announce_at);
        let own = match &self.stopping {
            Some(stopping) if stopping.stored => Some(stopping.over_by),
            Some(stopping) => Some(stopping.quiet_by),
            None => [
                Some(self.lighting.next_deadline()),
                self.commands.next_deadline(),
                self.starting.as_ref().map(|(_, until)| *until),
                self.led.next_deadline(),
                self.reading.map(|since| since + READ_WITHIN),
                self.rules_to_keep.map(|_| self.keep_rules_at),
                self.held_at,
                self.handover_due(),
            ]
            .into_iter()
            .flatten()
            .min(),
        };
        [self.delivery.next_deadline(), announce, own]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_default()
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
            kept_rules: self.kept_rules,
            backlog: self.delivery.backlog(),
            store_ok: self.delivery.store_ok(),
            clock: self.clock.state(),
            version: self.run_info.version.clone(),
            run: self.run_info.run,
            last_seq: self.recorder.last_seq(),
            link_up: self.delivery.is_up(),
            link_why: self.link_why(),
            sensor_ok: self.lighting.sensor_ok(),
            sensor_why: self.lighting.sensor_why().to_owned(),
            lease_left_s: lease_left.map(words::seconds),
            outage_s: outage.map(words::seconds),
            commands_refused: self.commands_refused,
            results_dropped: self.delivery.results_dropped(),
            led_since_s: words::seconds(now.boot.saturating_sub(self.lighting.since())),
            backlog_oldest: self.delivery.oldest_ms().map(rfc3339),
            last_outage: self.outage.last().cloned(),
        }
    }

    /// Lets every part do what is due.
    fn advance(&mut self, now: Now) {
        self.watch_link(now);
        // At a stop nothing more is decided or recorded: it could be neither told nor stored.
        if self.stopping.is_none() {
            self.decide(now);
            self.read_and_obey(now);
        }
        self.advance_led(now);
        if self.delivery.commit_due(now.boot) {
            let ids = self.commands.fresh_ids();
            self.delivery
                .commit(ids, self.recorder.last_seq(), now.boot);
        }
        self.keep_rules(now);
        self.write_handover(now);
        self.announce(now);
        self.delivery.pump(now.boot, &self.clock);
        self.go_on_stopping(now);
    }

    fn keep_rules(&mut self, now: Now) {
        if (now.boot >= self.keep_rules_at || self.stopping.is_some())
            && let Some(rules) = self.rules_to_keep.take()
        {
            self.keep_rules_at = now.boot + KEEP_RULES_EVERY;
            self.outputs.push_back(Output::KeepRules(rules));
        }
    }

    /// The LED as it is to be at this moment.
    fn decide(&mut self, now: Now) {
        let was = self.lighting.authority();
        let change = self.lighting.tick(now.boot);
        self.lease_over(was, now);
        self.report_sensor(now);
        self.apply(change);
    }

    fn read_and_obey(&mut self, now: Now) {
        if self
            .reading
            .is_some_and(|since| now.boot >= since + READ_WITHIN)
        {
            self.outputs.push_back(Output::GiveUpReading);
            let seconds = READ_WITHIN.as_secs();
            self.read_failed(&format!("the sensor has not answered for {seconds} s"), now);
        }
        if self.lighting.read_due(now.boot) && self.reading.is_none() {
            self.begin_reading(now);
            if let Some(led_on) = self.led_wanted() {
                self.led.see_to(led_on);
            }
        }
        self.commands.tick(now);
        while let Some(decision) = self.commands.poll() {
            self.act_on(decision, now);
        }
        if self.starting.is_some_and(|(_, until)| now.boot >= until) {
            self.started(None, now);
        }
        let given_up = self.delivery.take_given_up();
        self.note_lost(given_up, "memory is full, or the broker refuses them");
    }

    /// Records were given up. Each is in a gap that is delivered; the log has one line for an outage.
    fn note_lost(&mut self, count: u64, why: &str) {
        if count > 0 && self.outage.note_lost(count) {
            let text = format!("records are given up, which is reported to the server: {why}");
            self.log(Level::Warn, text);
        }
    }

    pub(super) fn begin_reading(&mut self, now: Now) {
        self.reading = Some(now.boot);
        self.outputs.push_back(Output::ReadSensor);
    }

    /// Time in which the program did not run (the machine slept, the process was stopped) is nobody's
    /// fault: what has to answer within a time gets that much more, and after a long pause the first
    /// fresh reading decides.
    fn notice_pause(&mut self, now: Now) {
        let expected = self.lighting.next_deadline().max(self.handled_at);
        self.handled_at = now.boot;
        let pause = now.boot.saturating_sub(expected);
        if pause.is_zero() {
            return;
        }
        let is_long = pause >= SHORT_PAUSE.max(self.lighting.settings().interval);
        self.lighting.paused(pause, is_long);
        self.led.paused(pause);
        self.reading = self.reading.map(|since| since + pause);
        if is_long {
            self.reread = self.reading.is_some();
            let seconds = pause.as_secs();
            self.log(
                Level::Info,
                format!("nothing ran for {seconds} s: the next reading decides"),
            );
        }
    }

    /// Whether the answer is to a question from before a pause; then the question is put again.
    fn is_old_answer(&mut self, now: Now) -> bool {
        let is_old = std::mem::take(&mut self.reread);
        if is_old {
            self.begin_reading(now);
        }
        is_old
    }

    fn read(&mut self, light: f64, now: Now) {
        if self.is_old_answer(now) {
            return;
        }
        self.reading = None;
        if self.recorder.should_record(light, now.boot) {
            let body = Body::Reading {
                light,
                led_on: self.led.known(),
                led_ok: self.led.fault().is_none(),
            };
            if self.keep == OutageReadings::Latest && !self.delivery.is_up() {
                self.kept = Some((self.clock.stamp(now), body));
            } else {
                self.record(body, now);
            }
        }
        let change = self.lighting.read(light, now.boot);
        self.report_sensor(now);
        self.apply(change);
        for command in std::mem::take(&mut self.read_now) {
            self.reply(command.id, Outcome::Applied, "", Some(light));
        }
    }

    fn read_failed(&mut self, why: &str, now: Now) {
        self.reading = None;
        let change = self.lighting.read_failed(why, now.boot);
        self.report_sensor(now);
        self.apply(change);
        for command in std::mem::take(&mut self.read_now) {
            self.reply(command.id, Outcome::Rejected, why, None);
        }
    }

    /// Tells once when the sensor fails and once when it works again.
    fn report_sensor(&mut self, now: Now) {
        let ok = self.lighting.sensor_ok();
        if ok == self.sensor_reported_ok {
            return;
        }
        self.sensor_reported_ok = ok;
        let (level, why) = match ok {
            true => (Level::Info, "it gives readings again".to_owned()),
            false => (Level::Warn, self.lighting.sensor_why().to_owned()),
        };
        self.log(level, format!("sensor: {why}"));
        self.record(Body::Event(Event::Sensor { ok, why }), now);
    }

    /// With `keep = "latest"`, the newest reading of the outage becomes a record when it can be told.
    fn take_kept(&mut self) {
        if let Some((stamp, body)) = self.kept.take() {
            self.outage.note(&body);
            let record = self.recorder.record(body, stamp);
            let made_at = Duration::from_millis(stamp.boot_ms);
            self.delivery.add_replayed(record, made_at);
        }
    }

    fn backlog_opened(&mut self, opened: Opened, now: Now) {
        self.commands.remember(opened.command_ids);
        self.clock.know_earlier(opened.clocks);
        self.delivery
            .opened(opened.run_number, opened.records, opened.oldest_ms);
        if opened.records > 0 {
            let text = format!(
                "backlog: {} of earlier runs",
                words::counted(opened.records, "record")
            );
            self.log(Level::Info, text);
        }
        self.started(opened.previous, now);
    }

    /// Finishes the first record of the run, if that is still to be done.
    fn started(&mut self, previous: Option<(Uuid, u64)>, now: Now) {
        let Some((stamp, _)) = self.starting.take() else {
            return;
        };
        let body = Body::Event(Event::Started {
            version: self.run_info.version.clone(),
            previous_run: previous.map(|(run, _)| run),
            previous_seq: previous.map(|(_, seq)| seq),
        });
        let record = self.recorder.first(body, stamp);
        self.delivery.add(record, now.boot);
    }

    /// Orders a change of the LED; it is told when it is made.
    fn apply(&mut self, change: Option<Change>) {
        if let Some(change) = change {
            self.led.change(change);
        }
    }

    /// Makes a record.
    fn record(&mut self, body: Body, now: Now) {
        self.outage.note(&body);
        let record = self.recorder.record(body, self.clock.stamp(now));
        self.delivery.add(record, now.boot);
    }

    fn observe_clock(&mut self, now: Now) {
        if let Some(set) = self.clock.observe(now) {
            let moved_s = set.moved_ms as f64 / 1000.0;
            self.log(Level::Info, format!("the clock was set by {moved_s} s"));
            let state = self.clock.state();
            let event = Event::Clock { moved_s, state };
            self.record(Body::Event(event), now);
        }
    }

    /// Before the backlog has been opened, or failed to, nobody knows how much waits; and an LED that is
    /// being switched is told when that is done.
    fn may_announce(&self) -> bool {
        self.delivery.is_up() && self.starting.is_none() && !self.led.is_busy()
    }

    /// Publishes `state` when it has changed, and now and then.
    fn announce(&mut self, now: Now) {
        if !self.may_announce() {
            return;
        }
        let announced = Announced {
            led_on: self.led.known(),
            led_ok: self.led.fault().is_none(),
            by: self.lighting.by(),
            rules: self.lighting.settings().rules(),
            clock: self.clock.state(),
            sensor_ok: self.lighting.sensor_ok(),
            backlog: self.delivery.backlog() > 0,
            store_ok: self.delivery.store_ok(),
        };
        if now.boot < self.announce_at && self.announced.as_ref() == Some(&announced) {
            return;
        }
        self.announced = Some(announced);
        self.announce_at = now.boot + ANNOUNCE_EVERY;
        let announcement = self.view(now).announcement();
        self.delivery
            .publish_control(Topic::State, announcement.into_bytes(), true);
    }

    fn log(&mut self, level: Level, text: String) {
        self.outputs.push_back(Output::Log(level, text));
    }
}
