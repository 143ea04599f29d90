//! The loop: wait for one thing, hand it to the controller, carry out what comes back.
//!
//! The only place that joins the two halves. It decides nothing, and waits for nothing but its inputs: the
//! sensor, the LED and the backlog live beside it and answer with inputs, the session has no more of it than a socket
//! that is polled, and what a session needs of the disk (password, certificates) is read beside it too. `main.rs`
//! calls it.

use std::future::Future;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::config::{Config, Topics};
use crate::io::announced::Announced;
use crate::io::backlog::Backlog;
use crate::io::blocking_tasks::BlockingTasks;
use crate::io::broker::{Link, Session};
use crate::io::clock::{BUILT_MS, Clock};
use crate::io::dead_letters::DeadLetters;
use crate::io::led::LedThread;
use crate::io::rules::KeptRules;
use crate::io::runtime::Runtime;
use crate::io::sensor::Reader;
use crate::io::web::guard::Guard;
use crate::io::web::{Look, Looker, PageThread};
use crate::io::written::Written;
use crate::io::{systemd, web};
use crate::lag::Lag;
use crate::logic::delivery::Topic;
use crate::logic::handover::Handover;
use crate::logic::home_assistant::DiscoverySettings;
use crate::logic::link::{DeviceInfo, Inbound, Sent};
use crate::logic::past::Past;
use crate::logic::telemetry::PayloadFormat;
use crate::logic::time::Now;
use crate::logic::{Controller, Exit, Input, Level, Output, RunInfo, Settings, View};

/// The backlog is opened when the first decision about the LED is made, or after so long: reading a large
/// store keeps a small machine busy.
const HEAD_START: Duration = Duration::from_millis(500);
/// At the start, rules that a command kept are waited for so long; later ones count when they come.
const RULES_WITHIN: Duration = Duration::from_millis(300);
/// So many more inputs of the link are taken in with a confirmation.
const ANSWERS_A_TURN: usize = 256;
/// So many who look are answered before the next input.
const LOOKS_A_TURN: usize = 4;
/// What was written is counted at least so often.
const COUNT_WRITTEN_EVERY: Duration = Duration::from_secs(60);
/// At the end, the backlog may take so long to finish what it was told, and so may the blocking tasks.
const BACKLOG_CLOSE: Duration = Duration::from_secs(1);
/// The runtime directory is in memory: it answers within this time or never.
const RUNTIME_CLOSE: Duration = Duration::from_millis(200);
/// A backlog that has had work and has not moved for so long will not move again: the watchdog is no
/// longer fed, and systemd starts us anew (docs/decisions/0012). The longest that it may be busy with
/// one thing is the salvage of a large damaged store on a slow card.
const BACKLOG_HANGS: Duration = Duration::from_secs(600);

/// Runs the nightlight until it is asked to stop: by `stop`, or by a command. Who wants to see the device
/// asks with `looker`, whose questions come in `looks`.
pub async fn run(
    config: Config,
    clock: Clock,
    stop: impl Future<Output = ()>,
    (looker, mut looks): (Looker, mpsc::Receiver<Look>),
) -> Ended {
    let (sender, mut inputs) = mpsc::unbounded_channel();
    let (mut shell, led) = Shell::start(&config, clock, sender);
    let settings = settings(&config);
    let run_info = shell.run_info(led.as_ref().ok().copied());
    let mut controller = Controller::new(settings, run_info, shell.clock.now());
    if let Err(why) = led {
        controller.handle(Input::LedFailed { why, seen: None }, shell.clock.now());
    }
    // Rules that were kept are better known before the first decision; a disk that hangs must not delay it.
    shell.rules.load_beside(shell.inputs.clone());
    if let Ok(Some(input)) = tokio::time::timeout(RULES_WITHIN, inputs.recv()).await {
        controller.handle(input, shell.clock.now());
    }
    shell.announced.load_beside(shell.inputs.clone());
    let socket = web::serve_socket(config.backlog.path.clone(), looker.clone());
    let socket = tokio::spawn(socket);
    let _page = config.web.as_ref().and_then(|page| {
        let guard = Guard::new(page.listen, page.token.as_deref());
        PageThread::start(page.listen, guard, looker)
    });
    let mut watchdog = systemd::watchdog_interval().map(tokio::time::interval);
    let mut stop = std::pin::pin!(stop);
    let mut asked = false;
    let open_by = Instant::now() + HEAD_START;
    let mut decided = false;
    info!(run = %shell.run, "nightlight {} started as {}", crate::VERSION, config.device_id);
    systemd::ready();
    loop {
        while let Some(output) = controller.poll_output() {
            if let Some(input) = shell.carry_out(output) {
                controller.handle(input, shell.clock.now());
            }
            if let Some(exit) = shell.exit {
                socket.abort();
                let last = controller.view(shell.clock.now());
                shell.leave().await;
                return Ended { exit, last };
            }
        }
        if shell.backlog.is_none() && (decided || Instant::now() >= open_by) {
            shell.open_backlog(&config);
        }
        let now = shell.clock.now();
        if let Some(counted) = shell.seen.observe(&mut controller, now) {
            controller.handle(counted, now);
            continue;
        }
        // Each turn some, so that neither visitors nor a busy link hold up the other.
        for look in std::iter::from_fn(|| looks.try_recv().ok()).take(LOOKS_A_TURN) {
            shell.show(look, &controller, now);
        }
        let wait = controller.next_deadline().saturating_sub(now.boot);
        let mut wake_at = Instant::now() + wait;
        if shell.backlog.is_none() {
            wake_at = wake_at.min(open_by);
        }
        shell.seen.past.expect(now.boot + wait);
        let input = tokio::select! {
            biased;
            () = &mut stop, if !asked => {
                asked = true;
                systemd::stopping();
                Input::ShutdownAsked
            }
            // Before the link, which a flood keeps busy without a pause.
            () = tick(&mut watchdog) => {
                if !shell.backlog_hangs() {
                    systemd::feed();
                }
                continue;
            }
            Some(input) = inputs.recv() => input,
            input = next(&mut shell.session) => shell.heard(input),
            Some(look) = looks.recv() => {
                let now = shell.clock.now();
                shell.show(look, &controller, now);
                continue;
            }
            () = tokio::time::sleep_until(wake_at) => {
                shell.seen.lag.late(wake_at.elapsed(), shell.clock.now().boot);
                Input::DeadlineReached
            }
        };
        decided |= matches!(input, Input::Read(_) | Input::ReadFailed(_));
        let more = match input {
            Input::Acked(_) => shell.heard_already().await,
            _ => Vec::new(),
        };
        let inputs = std::iter::once(input).chain(more);
        controller.handle_all(inputs, shell.clock.now());
    }
}

/// A run that is over.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub exit: Exit,
    /// The device as it was then.
    pub last: View,
}

/// What was seen of the run, for those who look.
struct Seen {
    past: Past,
    lag: Lag,
    written: Written,
    written_at: Duration,
    outages: u64,
}

impl Seen {
    fn new(now: Now) -> Self {
        Self {
            past: Past::new(now.boot),
            lag: Lag::default(),
            written: Written::default(),
            written_at: Duration::ZERO,
            outages: 0,
        }
    }

    /// Takes note of the device as it is. What was written so far, when it was counted anew.
    fn observe(&mut self, controller: &mut Controller, now: Now) -> Option<Input> {
        self.past.observe(controller.moment(), now.boot);
        for report in controller.take_outages() {
            self.outages += 1;
            self.past.outage(report, now.boot);
        }
        if now.boot < self.written_at {
            return None;
        }
        self.written_at = now.boot + COUNT_WRITTEN_EVERY;
        Some(Input::WrittenCounted(self.written.today(now.wall_ms)))
    }

    fn log(&mut self, level: Level, text: &str, now: Now) {
        self.past.tell(text, level == Level::Warn, now.boot);
    }
}

/// What the controller's orders act on.
struct Shell {
    run: Uuid,
    boot_id: Uuid,
    clock: Clock,
    led: LedThread,
    sensor: Reader,
    backlog: Option<Backlog>,
    inputs: mpsc::UnboundedSender<Input>,
    rules: KeptRules,
    announced: Announced,
    dead_letters: DeadLetters,
    blocking_tasks: Option<BlockingTasks>,
    runtime: Option<Runtime>,
    /// What the run before has left, until this one begins.
    handover: Option<Box<Handover>>,
    link: Link,
    session: Option<Session>,
    seen: Seen,
    exit: Option<Exit>,
}

impl Shell {
    /// With it whether the LED is on, or why that cannot be told.
    fn start(
        config: &Config,
        clock: Clock,
        inputs: mpsc::UnboundedSender<Input>,
    ) -> (Self, Result<bool, String>) {
        let run = Uuid::new_v4();
        let boot_id = clock.boot_id();
        let now = clock.now();
        let (led, found) = LedThread::start(&config.led, inputs.clone());
        let (runtime, handover) = open_runtime(config);
        let shell = Self {
            run,
            boot_id,
            clock,
            led,
            sensor: Reader::start(&config.sensor, inputs.clone()),
            backlog: None,
            inputs,
            rules: KeptRules::in_folder(&config.backlog.path),
            announced: Announced::in_folder(&config.backlog.path),
            dead_letters: DeadLetters::in_folder(&config.backlog.path),
            blocking_tasks: None,
            runtime,
            handover: handover.map(Box::new),
            link: Link::new(config),
            session: None,
            seen: Seen::new(now),
            exit: None,
        };
        (shell, found)
    }

    fn open_backlog(&mut self, config: &Config) {
        let inputs = self.inputs.clone();
        let backlog = Backlog::open(&config.backlog, self.run, self.boot_id, inputs);
        self.backlog = Some(backlog);
    }

    fn run_info(&mut self, led_on: Option<bool>) -> RunInfo {
        RunInfo {
            run: self.run,
            boot_id: self.boot_id,
            built_ms: BUILT_MS,
            seed: self.run.as_u64_pair().0,
            led_on,
            version: crate::VERSION.to_owned(),
            handover: self.handover.take(),
        }
    }

    /// Carries an order out; gives back what is known of it at once.
    fn carry_out(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::ReadSensor => self.sensor.read(),
            Output::GiveUpReading => self.sensor.give_up(),
            Output::SetLed(on) => self.led.set(on),
            Output::GiveUpLed => self.led.give_up(),
            Output::Connect => self.session = Some(self.link.connect()),
            Output::Disconnect => {
                if let Some(session) = self.session.take() {
                    self.link.ended(&session);
                }
            }
            Output::Publish(message) => {
                if let Some(session) = &mut self.session {
                    session.publish(message);
                }
            }
            Output::Subscribe { token, inbound } => {
                if let Some(session) = &mut self.session {
                    session.subscribe(token, inbound);
                }
            }
            Output::Append {
                entries,
                command_ids,
                last_seq,
            } => self.with_backlog(|backlog| backlog.append(entries, command_ids, last_seq)),
            Output::Discard(ranges) => self.with_backlog(|backlog| backlog.discard(ranges)),
            Output::ReadAfter { after, limit } => {
                self.with_backlog(|backlog| backlog.read_after(after, limit));
            }
            Output::KeepDeadLetter(record) => {
                let dead_letters = self.dead_letters.clone();
                self.run_beside(move || {
                    if let Err(error) = dead_letters.add(&record) {
                        warn!("a refused record cannot be kept in dead-letter.jsonl: {error}");
                    }
                });
            }
            Output::KeepRules(rules) => {
                let kept = self.rules.clone();
                self.run_beside(move || {
                    if let Err(error) = kept.keep(&rules) {
                        warn!("the rules will not outlive a restart: {error}");
                    }
                });
            }
            Output::KeepAnnounced(topic) => {
                let announced = self.announced.clone();
                self.run_beside(move || {
                    if let Err(error) = announced.keep(topic.as_deref()) {
                        warn!("where Home Assistant was told of this device is not remembered: {error}");
                    }
                });
            }
            Output::HandOver(handover) => {
                if let Some(runtime) = &self.runtime {
                    runtime.keep(&handover);
                }
            }
            Output::Log(level, text) => {
                self.seen.log(level, &text, self.clock.now());
                match level {
                    Level::Info => info!("{text}"),
                    Level::Warn => warn!("{text}"),
                }
            }
            Output::Exit(exit) => self.exit = Some(exit),
        }
        None
    }

    fn run_beside(&mut self, task: impl FnOnce() + Send + 'static) {
        self.blocking_tasks
            .get_or_insert_with(BlockingTasks::start)
            .add(task);
    }

    /// Answers one who looks, and may have left.
    fn show(&mut self, look: Look, controller: &Controller, now: Now) {
        match look {
            Look::Now(reply) => {
                let _ = reply.send(self.view(controller, now));
            }
            Look::Since(after, reply) => {
                let events = self.seen.past.events_after(after).cloned().collect();
                let _ = reply.send((self.view(controller, now), events, self.seen.outages));
            }
            Look::Past(reply) => {
                let _ = reply.send(Box::new(self.seen.past.clone()));
            }
        }
    }

    /// The picture of the device, with what only the shell knows.
    fn view(&mut self, controller: &Controller, now: Now) -> View {
        View {
            backlog_bytes: self.backlog.as_ref().and_then(Backlog::bytes),
            written_today_bytes: self.seen.written.today(now.wall_ms),
            loop_lag_s: Some(self.seen.lag.largest(now.boot).as_secs_f64()),
            ..controller.view(now)
        }
    }

    fn with_backlog(&self, order: impl FnOnce(&Backlog)) {
        if let Some(backlog) = &self.backlog {
            order(backlog);
        }
    }

    /// Whether the backlog's thread is beyond hope; says so each time.
    fn backlog_hangs(&mut self) -> bool {
        let hangs_for = match &mut self.backlog {
            Some(backlog) => backlog.hangs_for(std::time::Instant::now()),
            None => Duration::ZERO,
        };
        let hangs = hangs_for >= BACKLOG_HANGS;
        if hangs {
            error!(
                "the backlog has not moved for {} s, and the watchdog is not fed any more; \
                 look for errors of the card with `dmesg`",
                hangs_for.as_secs()
            );
        }
        hangs
    }

    /// What the link says; a session that is over is dropped.
    fn heard(&mut self, input: Input) -> Input {
        if let Input::LinkDown { .. } = input
            && let Some(session) = self.session.take()
        {
            self.link.ended(&session);
        }
        input
    }

    /// What the link says without being waited for: all answers of one read are one turn.
    async fn heard_already(&mut self) -> Vec<Input> {
        let mut heard = Vec::new();
        while heard.len() < ANSWERS_A_TURN
            && let Some(session) = &mut self.session
        {
            // Cancel-safe: what is not ready now comes in the next turn.
            let ready = {
                let mut next = std::pin::pin!(session.next());
                std::future::poll_fn(|context| match next.as_mut().poll(context) {
                    Poll::Ready(input) => Poll::Ready(Some(input)),
                    Poll::Pending => Poll::Ready(None),
                })
                .await
            };
            let Some(input) = ready else {
                break;
            };
            heard.push(self.heard(input));
        }
        heard
    }

    /// The end, in order: LED, link, backlog.
    async fn leave(mut self) {
        if let Err(why) = self.led.leave() {
            warn!("the LED cannot be left as configured: {why}");
        }
        if let Some(session) = self.session.take() {
            session.close().await;
        }
        if let Some(runtime) = self.runtime.take()
            && !runtime.finish(RUNTIME_CLOSE)
        {
            warn!("the lease may not outlive this restart: the runtime directory does not answer");
        }
        if let Some(tasks) = self.blocking_tasks.take()
            && !tasks.finish(BACKLOG_CLOSE)
        {
            error!(
                "rules or refused records may not have been kept: the disk did not answer in time"
            );
        }
        if let Some(backlog) = self.backlog.take()
            && !backlog.close(BACKLOG_CLOSE)
        {
            error!("the backlog did not finish in time; the next start will repair it");
        }
    }
}

/// The runtime directory, and what the run before has left in it.
fn open_runtime(config: &Config) -> (Option<Runtime>, Option<Handover>) {
    let Some(folder) = &config.runtime_folder else {
        return (None, None);
    };
    match Runtime::open(folder, &config.backlog.path) {
        Ok((runtime, handover)) => (Some(runtime), handover),
        Err(why) => {
            warn!("a restart will forget the lease and the newest command ids: {why}");
            (None, None)
        }
    }
}

/// What the configuration settles of the controller.
fn settings(config: &Config) -> Settings {
    Settings {
        lighting: config.lighting.clone(),
        telemetry: config.telemetry.clone(),
        commands: config.commands.clone(),
        delivery: config.delivery.clone(),
        home_assistant: discovery(config),
        device: device_info(config),
    }
}

/// How Home Assistant is told of the device.
fn discovery(config: &Config) -> Option<DiscoverySettings> {
    let home = config.home_assistant.as_ref()?;
    Some(DiscoverySettings {
        node: home.node.clone(),
        status_is_servers: config.home_assistant_status().is_none(),
        light: match config.delivery.format {
            PayloadFormat::Flat => "light",
            PayloadFormat::ThingsBoard => "values.light",
        },
    })
}

/// How the configuration calls the topics and this client.
fn device_info(config: &Config) -> DeviceInfo {
    let Topics {
        telemetry,
        history,
        events,
        commands,
        results,
        acks,
        state,
        status,
    } = &config.topics;
    let publish = [
        (Topic::Telemetry, telemetry),
        (Topic::History, history),
        (Topic::Events, events),
        (Topic::Results, results),
        (Topic::State, state),
        (Topic::Status, status),
    ];
    let subscribe = [(Inbound::Commands, commands), (Inbound::Acks, acks)];
    let server_status = config.server_status.as_ref();
    let subscribe = subscribe
        .into_iter()
        .chain(server_status.map(|topic| (Inbound::ServerStatus, topic)));
    let home = config.home_assistant.as_ref();
    let discovery = home.map(|home| (Sent::Publish(Topic::Discovery), home.topic.clone()));
    let home_status = config.home_assistant_status().map(|topic| {
        let sent = Sent::Subscribe(Inbound::HomeAssistant);
        (sent, topic.to_owned())
    });
    let publish = publish.map(|(topic, name)| (Sent::Publish(topic), name));
    let subscribe = subscribe.map(|(inbound, name)| (Sent::Subscribe(inbound), name));
    DeviceInfo {
        device: config.device_id.clone(),
        broker: config.broker.url().to_string(),
        sensor: config.sensor.driver.name().into(),
        unit: config.sensor.driver.unit().map(Into::into),
        client_id: config.broker.client_id.clone(),
        topics: subscribe
            .chain(publish)
            .map(|(sent, name)| (sent, name.clone()))
            .chain(discovery)
            .chain(home_status)
            .collect(),
    }
}

/// The session's next word; never, without a session.
async fn next(session: &mut Option<Session>) -> Input {
    match session {
        Some(session) => session.next().await,
        None => std::future::pending().await,
    }
}

/// The watchdog's next tick; never, without a watchdog.
async fn tick(watchdog: &mut Option<tokio::time::Interval>) {
    match watchdog {
        Some(watchdog) => {
            watchdog.tick().await;
        }
        None => std::future::pending().await,
    }
}
