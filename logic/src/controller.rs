//! The controller: hands each input to the part that it concerns, and that part's answer to the others.
//!
//! Inputs are handled in their order; then everything that is due is done, and the orders wait in
//! [`Controller::poll_output`]. What is no part of its own for its size has a file and private state here:
//! [`startup`], [`sensor`], [`kept_rules`], [`announcer`], [`home_assistant`], [`handover`], [`pause`], [`stopping`]. The other files
//! say what an input means for several parts at once: [`server`], [`link`], [`led`], [`store`], [`records`].

mod announcer;
mod handover;
mod home_assistant;
mod kept_rules;
mod led;
mod link;
mod pause;
mod records;
mod sensor;
mod server;
mod startup;
mod stopping;
mod store;

use std::collections::VecDeque;
use std::time::Duration;

use uuid::Uuid;

use super::command::{CommandQueue, CommandSettings};
use super::counters::{Counters, LostBy};
use super::delivery::{Delivery, DeliverySettings};
use super::handover::Handover;
use super::home_assistant::DiscoverySettings;
use super::led::LedState;
use super::lighting::{Lighting, LightingSettings};
use super::link::DeviceInfo;
use super::outage::Outage;
use super::telemetry::{OutageReport, Recorder, TelemetrySettings};
use super::time::{Clock, Now};
use super::timers::{Timer, Timers};
use super::{Exit, Input, Output};

/// What every part needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Who decides about the LED, and how.
    pub lighting: LightingSettings,
    /// When a reading is recorded.
    pub telemetry: TelemetrySettings,
    /// What commands may do.
    pub commands: CommandSettings,
    /// How records reach the server.
    pub delivery: DeliverySettings,
    /// How Home Assistant is told of the device; none where it is not.
    pub home_assistant: Option<DiscoverySettings>,
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
#[derive(Debug, Clone)]
pub struct Controller {
    run_info: RunInfo,
    device: DeviceInfo,
    allow_reboot: bool,
    timers: Timers,
    last_input: pause::LastInput,
    clock: Clock,
    lighting: Lighting,
    led: LedState,
    sensor: sensor::SensorPolling,
    commands: CommandQueue,
    commands_refused: u64,
    kept_rules: kept_rules::KeptRules,
    recorder: Recorder,
    startup: startup::Startup,
    outage: Outage,
    delivery: Delivery,
    link: link::LinkReports,
    announcer: announcer::Announcer,
    discovery: home_assistant::Discovery,
    written_today_bytes: Option<u64>,
    handover: handover::HandoverWriter,
    stopping: Option<stopping::Stopping>,
    counters: Counters,
    /// Outages that are over and nobody has taken note of.
    outages_over: Vec<OutageReport>,
    outputs: VecDeque<Output>,
}

impl Controller {
    /// Begins a run.
    pub fn new(settings: Settings, mut run_info: RunInfo, now: Now) -> Self {
        let Settings {
            lighting,
            telemetry,
            commands,
            delivery,
            home_assistant,
            device,
        } = settings;
        let mut timers = Timers::default();
        let clock = Clock::new(run_info.boot_id, run_info.built_ms, now);
        let led_on = run_info.led_on.unwrap_or(false);
        let handover = run_info.handover.take();
        let mut controller = Self {
            allow_reboot: commands.allow_reboot,
            last_input: pause::LastInput::new(now.boot),
            kept_rules: kept_rules::KeptRules::new(lighting.rules()),
            lighting: Lighting::new(lighting, led_on, now.boot, &mut timers),
            led: LedState::new(run_info.led_on),
            sensor: sensor::SensorPolling::new(now.boot, &mut timers),
            commands: CommandQueue::new(commands),
            commands_refused: 0,
            discovery: home_assistant::Discovery::new(home_assistant, &telemetry, run_info.seed),
            written_today_bytes: None,
            recorder: Recorder::new(telemetry, run_info.run, run_info.boot_id),
            startup: startup::Startup::new(clock.stamp(now), now.boot, &mut timers),
            outage: Outage::new(delivery.qos > 0),
            delivery: Delivery::new(
                delivery,
                device.inbound().collect(),
                run_info.seed,
                now.boot,
                &mut timers,
            ),
            link: link::LinkReports::new(),
            announcer: announcer::Announcer::default(),
            handover: handover::HandoverWriter::default(),
            stopping: None,
            counters: Counters::default(),
            outages_over: Vec::new(),
            outputs: VecDeque::new(),
            clock,
            timers,
            device,
            run_info,
        };
        if let Some(handover) = handover {
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
        }
        // Who decides about the LED may have changed before these came.
        self.expire(&Timer::DECIDING, now);
        for input in inputs {
            if self.is_open_to(&input) {
                self.take_in(input, now);
            }
        }
        self.advance(now);
    }

    /// The next order; to be drained after each input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.delivery.poll())
    }

    /// When to come back with [`Input::DeadlineReached`] if nothing else happens, on the boot clock. After the
    /// end that is never.
    pub fn next_deadline(&self) -> Duration {
        self.timers.next().unwrap_or(Duration::MAX)
    }

    fn take_in(&mut self, input: Input, now: Now) {
        match input {
            Input::Read(light) => self.read(light, now),
            Input::ReadFailed(why) => self.read_failed(&why, now),
            Input::LedWritten { led_on, was } => self.led.written(led_on, was, &mut self.timers),
            Input::LedFailed { why, seen } => {
                self.counters.led_errors += 1;
                self.led.failed(&why, seen, now.boot, &mut self.timers);
            }
            Input::Offered(offer) => self.delivery.offered(offer),
            Input::LinkUp => self.link_up(now),
            Input::LinkDown { why, ending } => self.link_down(&why, ending, now),
            Input::Acked(token) => self.delivery.acked(token, now.boot, &mut self.timers),
            Input::Unheard(token) => self.delivery.unheard(token, now.boot, &mut self.timers),
            Input::PublicationRefused {
                token,
                refusal,
                why,
            } => {
                let (clock, timers) = (&self.clock, &mut self.timers);
                self.delivery
                    .refused(token, refusal, &why, clock, now.boot, timers);
            }
            Input::SubscriptionRefused { token, why } => {
                self.delivery.subscription_refused(token, &why, now.boot);
            }
            Input::CommandReceived {
                payload,
                retained,
                reply_to,
            } => {
                let known = self.clock.known();
                self.commands
                    .receive(&payload, retained, reply_to, now, known, &mut self.timers);
                self.obey_commands(now);
            }
            Input::CommandTooLarge { bytes } => {
                self.commands.receive_too_large(bytes);
                self.obey_commands(now);
            }
            Input::ServerAcked(payload) => self.server_acked(&payload, now),
            Input::ServerStatus { payload, retained } => {
                self.server_status(&payload, retained, now);
            }
            Input::HomeAssistantStatus { payload, retained } => {
                self.home_assistant_said(&payload, retained, now);
            }
            Input::AnnouncedFound(topic) => self.announced_found(topic),
            Input::WrittenCounted(bytes) => self.written_today_bytes = bytes,
            Input::RulesFound { patch, place } => self.rules_found(patch, &place, now),
            Input::RulesUnusable(why) => self.rules_unusable(&why, now),
            Input::BacklogOpened(opened) => self.backlog_opened(opened, now),
            Input::Stored { records, lost } => self.stored(records, lost),
            Input::StoreFailed(why) => self.store_failed(&why, now),
            Input::Fetched { entries, end } => self.delivery.fetched(entries, end),
            Input::DeadlineReached => {}
            Input::ShutdownAsked => self.stop(Exit::Stopped, now),
        }
    }

    /// Lets every part do what is due, and orders what follows from that.
    fn advance(&mut self, now: Now) {
        self.expire(&Timer::ALL, now);
        self.report_pattern();
        // At a stop nothing more is decided or recorded: it could be neither published nor stored.
        if self.stopping.is_none() {
            let given_up = self.delivery.take_given_up();
            let refused = self.delivery.take_refused();
            self.counters.lose(LostBy::Refused, refused);
            let from_memory = given_up.saturating_sub(refused);
            self.counters.lose(LostBy::Memory, from_memory);
            self.note_lost(given_up, "memory is full, or the broker refuses them");
            self.report_hearing(now);
        }
        self.advance_led(now);
        self.store(now);
        self.keep_rules(now);
        self.write_handover(now);
        self.observe_server(now);
        self.announce(now);
        self.tell_home_assistant();
        self.delivery.pump(now.boot, &self.clock, &mut self.timers);
        self.go_on_stopping(now);
    }

    /// Hands out those of `timers` that are due.
    fn expire(&mut self, timers: &[Timer], now: Now) {
        while let Some((timer, due)) = self.timers.expire(timers, now.boot) {
            self.expired(timer, due, now);
        }
    }

    /// What a timer that was due at `due` is for.
    fn expired(&mut self, timer: Timer, due: Duration, now: Now) {
        match timer {
            Timer::Stalled => self.look_for_answers(now),
            Timer::LinkHeld => self.look_at_link(now),
            Timer::SensorFault | Timer::Lease | Timer::Hold => {
                self.decide(now, |lighting, timers| {
                    lighting.expired(timer, now.boot, timers)
                });
            }
            Timer::ReadAnswer => self.give_up_reading(now),
            Timer::Read => self.poll_sensor(due, now),
            Timer::CommandsSettled => {
                self.commands.settled(now);
                self.obey_commands(now);
            }
            Timer::MissingCommands => {
                self.commands.give_up_missing(now, &mut self.timers);
                self.obey_commands(now);
            }
            Timer::FirstRecord => self.finish_first_record(None, now),
            Timer::LedAnswer => self.led.give_up(now.boot, &mut self.timers),
            Timer::LedRetry => {
                let wanted = self.led_wanted();
                self.led.retry(wanted, now.boot, &mut self.timers);
            }
            Timer::SignOfLife => self.handover.expire(),
            Timer::Announce => self.announcer.expire(),
            Timer::HomeAssistant => self.discovery.expire(),
            Timer::StopEnd => self.stop_over(),
            Timer::Connect => self.delivery.connect(),
            Timer::LateAcks => self.delivery.time_out_acks(now.boot, &mut self.timers),
            // That they run no more is all: what waited for them goes on by itself.
            Timer::KeepRules | Timer::Handover | Timer::StopQuiet => {}
            Timer::TopicOpens | Timer::Replay | Timer::Trial => {}
            Timer::Commit | Timer::StoreRetry | Timer::Discard => {}
        }
    }
}
