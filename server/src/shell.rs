//! The server's loop: messages in; to the keeper, to the decision; acks, commands and accounts out.
//!
//! Joins the parts and decides nothing. It never waits for the database: the keeper says when something is
//! kept, and only then it is acked to the device and acknowledged to the broker, in that order, so
//! that a server killed at any point is sent again what it had not told. `main` calls [`run`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, UnboundedReceiver};
use tokio::time::Instant;
use tracing::{info, warn};

use nightlight_common::clock::Clock;
use nightlight_common::mqtt::{Publication, TooLarge};

use crate::account::Report;
use crate::accounts::{Accounts, PUBLISH_EVERY};
use crate::config::Config;
use crate::control::{Control, Decided};
use crate::decision::{Decider, Switches};
use crate::keep;
use crate::keeper::{Arrival, Keeper, Kept, Ticket, Told, Word};
use crate::leases::{self, Leases};
use crate::outbox::Message;
use crate::printer::Printer;
use crate::service::Service;
use crate::session::{Heard, Plan};
use crate::stats::Stats;
use crate::store::Fault;
use crate::switchboard;
use crate::topics::{Lane, Topics};
use crate::uplink::Uplink;
use crate::{watch, web, wire};

/// With more under way than this nothing more is read for now.
const MOST_WAITING: usize = 2_000;
const MOST_WAITING_BYTES: usize = 16 * 1024 * 1024;
/// Devices whose state is taken; a larger one is none of ours.
const STATE_BYTES: usize = 16 * 1024;
/// At the end: for what is under way to be kept, and for what was kept to be told.
const END_KEEP: Duration = Duration::from_millis(2_500);
const END_TELL: Duration = Duration::from_millis(1_000);

/// Serves until `stop` completes. Each `show` prints the account of all devices.
///
/// # Errors
/// When there is no database to begin with.
pub async fn run(
    config: Config,
    stop: impl Future<Output = ()>,
    show: tokio::sync::mpsc::Receiver<()>,
) -> Result<(), Fault> {
    let (sender, words) = tokio::sync::mpsc::unbounded_channel();
    let stats = Arc::new(Stats::default());
    let keeper = Keeper::start(
        config.database.clone(),
        config.max_devices,
        sender,
        Arc::clone(&stats),
    )
    .await?;
    info!(
        "nightlight-server {} serves {} at {}, database {}",
        crate::VERSION,
        config.devices.filter(),
        config.broker.url(),
        config.database.address
    );
    let newest = keeper.reports.iter().map(|report| &report.last_seen).max();
    let keep = config
        .keep
        .map(|keep| keep::start(config.database.clone(), keep, newest.cloned()));
    let switches = switchboard::start(config.database.clone());
    let page = web::start(&config, Arc::clone(&stats)).await;
    let server = config.broker.client_id.clone();
    let (leases, leasing) = leases::start(config.database.clone(), server);
    let watched = config.shared.as_ref().map(|name| {
        let (_, heard) = config.topics.shared_filters(&config.devices, name);
        let plan = Plan {
            filters: heard.to_vec(),
            status_topic: None,
            clean: true,
        };
        watch::start(config.broker.clone(), plan)
    });
    let inputs = Inputs {
        words,
        switches,
        leases,
        watched,
    };
    Shell::new(config, keeper, inputs, stats)
        .run(stop, show)
        .await;
    for task in [keep, page].into_iter().flatten() {
        task.abort();
    }
    // Others take over at once, where the database answers.
    let _ = tokio::time::timeout(END_TELL, leasing).await;
    Ok(())
}

/// What the shell hears besides its session.
struct Inputs {
    words: UnboundedReceiver<Word>,
    switches: UnboundedReceiver<Switches>,
    leases: UnboundedReceiver<Leases>,
    /// What every one of several servers hears; none where there is one.
    watched: Option<Receiver<Publication>>,
}

/// The running server.
struct Shell {
    topics: Topics,
    status_topic: String,
    account_topic: String,
    clock: Clock,
    stats: Arc<Stats>,
    keeper: Keeper,
    inputs: Inputs,
    control: Control,
    leases: Leases,
    /// What devices last said of themselves, where several servers hear it: written by whoever decides about them.
    statuses: HashMap<String, bool>,
    printer: Printer,
    uplink: Uplink,
    database_is_good: bool,
    keeper_has_ended: bool,
    /// Handed to the keeper in this session and not yet kept.
    waiting: usize,
    waiting_bytes: usize,
    accounts: Accounts,
    refused: u64,
    /// Messages that were not read for their size.
    too_large: u64,
}

impl Shell {
    /// With a store that is open.
    fn new(settings: Config, keeper: Keeper, inputs: Inputs, stats: Arc<Stats>) -> Self {
        let decider = Decider::new(
            settings.rules,
            settings.lease,
            &settings.groups,
            settings.max_devices,
        );
        let filters = match &settings.shared {
            None => settings.topics.filters(&settings.devices).to_vec(),
            Some(name) => {
                let (records, _) = settings.topics.shared_filters(&settings.devices, name);
                records.to_vec()
            }
        };
        let plan = Plan {
            filters,
            status_topic: Some(settings.status_topic.clone()),
            // Else a broker goes on giving a dead one its share of the records.
            clean: settings.shared.is_some(),
        };
        let printer = Printer::new(keeper.reports.clone());
        Self {
            account_topic: settings.account_topic,
            accounts: Accounts::new(printer.devices()),
            printer,
            topics: settings.topics,
            uplink: Uplink::new(settings.broker, plan),
            status_topic: settings.status_topic,
            clock: Clock::new(),
            stats,
            keeper,
            inputs,
            leases: Leases::default(),
            statuses: HashMap::new(),
            control: Control::new(decider, settings.expiry),
            database_is_good: true,
            keeper_has_ended: false,
            waiting: 0,
            waiting_bytes: 0,
            refused: 0,
            too_large: 0,
        }
    }

    /// Serves until `stop`; each `show` prints the account.
    async fn run(
        mut self,
        stop: impl Future<Output = ()>,
        mut show: tokio::sync::mpsc::Receiver<()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut service = Service::ready();
        loop {
            service.beat_if_due(Instant::now());
            self.connect_if_due();
            self.decide_if_due();
            self.ask_accounts_if_due();
            self.printer.print_if_due(Instant::now());
            self.flush();
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(()) = show.recv() => self.printer.print_all(),
                Some(word) = self.inputs.words.recv() => self.hear_keeper(word),
                Some(leases) = self.inputs.leases.recv() => self.take_leases(leases),
                Some(switches) = self.inputs.switches.recv() => self.switch(switches),
                Some(publish) = watched(&mut self.inputs.watched), if self.has_room() => self.watch(&publish),
                heard = self.uplink.next(), if self.has_room() => self.hear_broker(heard),
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
        service.stopping();
        self.end().await;
    }

    fn connect_if_due(&mut self) {
        if self.database_is_good && self.uplink.connect_if_due() {
            // What was handed over before belongs to no session any more.
            (self.waiting, self.waiting_bytes) = (0, 0);
        }
    }

    fn hear_broker(&mut self, heard: Heard) {
        match heard {
            Heard::Up => {
                self.uplink.up();
                self.stats.connected.store(true, Relaxed);
                info!("connected to {}", self.uplink.url());
                self.say_status("online");
            }
            Heard::Message(publish) => self.take(&publish),
            Heard::TooLarge(message) => self.pass_over(&message),
            Heard::Confirmed => self.uplink.confirmed(),
            Heard::Down { why, refused } => self.link_down(&why, refused),
            Heard::Nothing => {}
        }
    }

    fn take(&mut self, publish: &Publication) {
        let Some((lane, device)) = self.topics.read(&publish.topic) else {
            self.uplink.acknowledge(publish.pkid);
            return;
        };
        let device = device.to_owned();
        let word = match lane {
            Lane::Status => status(&publish.payload),
            Lane::State => self.state(&device, &publish.payload),
            lane => Some(Told::Records(self.records(&device, lane, publish))),
        };
        let Some(word) = word else {
            self.uplink.acknowledge(publish.pkid);
            return;
        };
        self.hand_over(device, publish.pkid, publish.payload.len(), word);
    }

    /// A message that no device of ours sends: counted as rubbish where it belongs to one.
    fn pass_over(&mut self, message: &TooLarge) {
        let TooLarge {
            topic, bytes, pkid, ..
        } = message;
        self.too_large += 1;
        // A flood of them must not be one of the log.
        if self.too_large.is_power_of_two() {
            warn!(
                "a message of {bytes} bytes on {topic:?} was not read ({} so far)",
                self.too_large
            );
        }
        let Some((_, device)) = self.topics.read(topic) else {
            self.uplink.acknowledge(*pkid);
            return;
        };
        let rubbish = wire::Payload {
            rubbish: 1,
            ..wire::Payload::default()
        };
        self.hand_over(device.to_owned(), *pkid, 0, Told::Records(rubbish));
    }

    fn hand_over(&mut self, device: String, pkid: u16, bytes: usize, word: Told) {
        if !self.database_is_good {
            // Nobody would answer; it comes again, or with the next state.
            return;
        }
        self.stats.messages.fetch_add(1, Relaxed);
        self.waiting += 1;
        self.waiting_bytes += bytes;
        self.keeper.take(Arrival {
            ticket: Ticket {
                session: self.uplink.session(),
                pkid,
                bytes,
                at: Instant::now(),
            },
            device,
            word,
        });
    }

    fn state(&mut self, device: &str, payload: &[u8]) -> Option<Told> {
        if let Some(works) = wire::sensor_ok(payload) {
            self.control.sensor(device, works);
        }
        let text = std::str::from_utf8(payload).ok()?;
        let fits = text.len() <= STATE_BYTES && !text.contains('\0') && !text.is_empty();
        fits.then(|| Told::State(text.to_owned()))
    }

    fn records(&mut self, device: &str, lane: Lane, publish: &Publication) -> wire::Payload {
        let payload = match self.inputs.watched {
            None => self.decide_by(device, lane, publish),
            // Decided about by what every server hears.
            Some(_) => wire::read(&publish.payload, lane, None),
        };
        let records = u64::try_from(payload.records.len()).unwrap_or(u64::MAX);
        self.stats.records.fetch_add(records, Relaxed);
        payload
    }

    /// Takes note of what a live message says about light and sensor.
    fn decide_by(&mut self, device: &str, lane: Lane, publish: &Publication) -> wire::Payload {
        let now = self.clock.now();
        let payload = wire::read(&publish.payload, lane, now.synced.then_some(now.wall_ms));
        if let Some(works) = payload.sensor_ok {
            self.control.sensor(device, works);
        }
        // What the broker kept may be of any age.
        if let Some(reading) = payload.reading.filter(|_| !publish.retain) {
            self.printer.light(device, reading.light);
            self.control.reading(device, reading);
        }
        payload
    }

    fn hear_keeper(&mut self, word: Word) {
        match word {
            Word::Kept(kept) => self.pass_on(kept),
            Word::Failed(why) => {
                warn!("the database has failed, and the devices keep their records: {why}");
                self.database_is_good = false;
                // So that they know, and decide by themselves.
                self.say_status("offline");
                self.flush();
                self.link_down("there is no database", false);
            }
            Word::Mended => {
                info!("the database is good again");
                self.database_is_good = true;
                // It was left for the database's sake, not for the broker's.
                self.uplink.retry_now();
            }
            Word::Reports(reports) => {
                self.accounts.answered();
                for (device, report) in reports {
                    self.publish_report(&device, report);
                }
            }
            Word::Ended => self.keeper_has_ended = true,
            Word::NoReports(devices) => {
                self.accounts.answered();
                self.accounts.change(devices);
            }
        }
    }

    fn pass_on(&mut self, kept: Kept) {
        for (device, run, acked) in &kept.acked {
            for payload in wire::acks(*run, acked) {
                let topic = self.topics.acks.of(device);
                self.uplink.publish(topic, false, payload);
            }
        }
        for ticket in kept.tickets {
            if ticket.session == self.uplink.session() {
                self.waiting = self.waiting.saturating_sub(1);
                self.waiting_bytes = self.waiting_bytes.saturating_sub(ticket.bytes);
                self.uplink.acknowledge(ticket.pkid);
                self.stats.acks.took(ticket.at.elapsed());
            }
        }
        if kept.refused > 0 {
            if self.refused == 0 {
                warn!("there are too many devices: records of new ones are refused");
            }
            self.refused += kept.refused;
        }
        self.accounts.change(kept.changed);
    }

    fn decide_if_due(&mut self) {
        let idle = self.uplink.is_idle();
        if idle.is_some_and(|is_idle| self.control.is_due(is_idle)) {
            let now = self.clock.now();
            let leases = &self.leases;
            let decided = self.control.decide(now, |name| leases.hold(name, now.boot));
            self.command(decided);
        }
    }

    /// What is switched by hand has changed.
    fn switch(&mut self, switches: Switches) {
        let now = self.clock.now();
        let leases = &self.leases;
        let may = |name: &str| leases.hold(name, now.boot);
        let decided = self.control.switch(switches, now, may);
        self.command(decided);
    }

    /// What this server decides about from now on.
    fn take_leases(&mut self, leases: Leases) {
        let before = std::mem::replace(&mut self.leases, leases);
        if !self.leases.has_new(&before) {
            return;
        }
        // What was read and said while nobody had the lease.
        let leases = &self.leases;
        let is_new = |name: &str| leases.is_new(&before, name);
        let decided = self.control.again(self.clock.now(), is_new);
        self.command(decided);
        let new: Vec<(String, bool)> = self
            .statuses
            .iter()
            .filter(|(device, _)| self.leases.is_new(&before, self.control.subject_of(device)))
            .map(|(device, online)| (device.clone(), *online))
            .collect();
        for (device, online) in new {
            self.hand_over(device, 0, 0, Told::Online(online));
        }
    }

    /// A message that every server hears: each knows what it says, and whoever decides about the device writes it.
    fn watch(&mut self, publish: &Publication) {
        let Some((lane, device)) = self.topics.read(&publish.topic) else {
            return;
        };
        let device = device.to_owned();
        let word = match lane {
            Lane::Status => {
                let word = status(&publish.payload);
                if let Some(Told::Online(online)) = &word {
                    self.statuses.insert(device.clone(), *online);
                }
                word
            }
            Lane::State => self.state(&device, &publish.payload),
            lane => {
                self.decide_by(&device, lane, publish);
                None
            }
        };
        let subject = self.control.subject_of(&device);
        if let Some(word) = word.filter(|_| self.leases.hold(subject, self.clock.now().boot)) {
            self.hand_over(device, 0, 0, word);
        }
    }

    fn command(&mut self, decided: Vec<Decided>) {
        for Decided {
            device,
            led_on,
            command,
        } in decided
        {
            self.printer.decided(&device, led_on);
            if let Some(command) = command {
                self.stats.commands.fetch_add(1, Relaxed);
                self.uplink.publish_first(Message {
                    topic: self.topics.commands.of(&device),
                    retain: false,
                    payload: command,
                    expiry: Some(self.control.expiry_s()),
                });
            }
        }
    }

    fn ask_accounts_if_due(&mut self) {
        if self.uplink.is_up()
            && let Some(devices) = self.accounts.due(Instant::now())
        {
            self.keeper.ask(devices);
        }
    }

    fn publish_report(&mut self, device: &str, report: Option<Report>) {
        let topic = format!("{}/{device}", self.account_topic);
        // Nothing, retained, takes back what the broker keeps.
        let json = report.as_ref().map_or_else(String::new, Report::json);
        match report {
            Some(report) => self.printer.take(report),
            None => self.printer.forget(device),
        }
        self.uplink.publish(topic, true, json);
    }

    /// Before everything else that is to be told.
    fn say_status(&mut self, status: &str) {
        self.uplink.publish_first(Message {
            topic: self.status_topic.clone(),
            retain: true,
            payload: status.into(),
            expiry: None,
        });
    }

    fn flush(&mut self) {
        if !self.uplink.flush() {
            self.link_down("the broker does not take what it is told", false);
        }
    }

    /// The session is over. What was not acknowledged in it comes again in the next one.
    fn link_down(&mut self, why: &str, refused: bool) {
        self.uplink.down(why, refused);
        self.stats.connected.store(false, Relaxed);
        self.control.clear();
        (self.waiting, self.waiting_bytes) = (0, 0);
        self.accounts.change(self.printer.devices());
    }

    fn has_room(&self) -> bool {
        // Not by what is to be told: while nothing is read, the client does not write either.
        self.waiting < MOST_WAITING && self.waiting_bytes < MOST_WAITING_BYTES
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        // Without a database there is no reason to connect.
        let uplink = self.uplink.deadline(now).filter(|_| self.database_is_good);
        let parts = [uplink, self.control.deadline()];
        let mut deadline = now + PUBLISH_EVERY;
        for part in parts.into_iter().flatten() {
            deadline = deadline.min(part);
        }
        deadline
    }

    /// The end, in order: what is under way is kept and told, then `offline`, then goodbye.
    async fn end(mut self) {
        info!("stopping");
        self.keeper.end();
        self.wait(END_KEEP, |shell| shell.keeper_has_ended).await;
        if self.uplink.is_up()
            && let Some(devices) = self.accounts.ask()
        {
            self.keeper.ask(devices);
        }
        let is_told = |shell: &Self| !shell.accounts.is_asking() || !shell.uplink.is_up();
        self.wait(END_TELL, is_told).await;
        let topic = self.status_topic.clone();
        self.uplink.publish(topic, true, "offline".into());
        self.wait(END_TELL, |shell| shell.uplink.is_done()).await;
        self.uplink.close().await;
        self.printer.print_all();
    }

    /// Tells and hears on, but takes no more messages, until `done` or for this long.
    async fn wait(&mut self, longest: Duration, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + longest;
        self.flush();
        while !done(self) && Instant::now() < until {
            tokio::select! {
                biased;
                Some(word) = self.inputs.words.recv() => self.hear_keeper(word),
                heard = self.uplink.next() => match heard {
                    Heard::Confirmed => self.uplink.confirmed(),
                    Heard::Down { why, refused } => self.link_down(&why, refused),
                    _ => {}
                },
                () = tokio::time::sleep_until(until) => {}
            }
            self.flush();
        }
    }
}

/// What a device says of itself.
fn status(payload: &[u8]) -> Option<Told> {
    match payload {
        b"online" => Some(Told::Online(true)),
        b"offline" => Some(Told::Online(false)),
        _ => None,
    }
}

/// What every server hears; never, where there is one.
async fn watched(messages: &mut Option<Receiver<Publication>>) -> Option<Publication> {
    match messages {
        Some(messages) => messages.recv().await,
        None => std::future::pending().await,
    }
}
