//! The stage of the show: what goes on while a part of it lasts, and what is done to it.
//!
//! Takes what the server hears into the account, watches the agent, says a line each second, carries out acts,
//! and waits for what a part waits for. It knows no part. Used by `story`, `scenarios` and `hands`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::account::{Account, Claim, Expected, Verdict};
use super::act::Act;
use super::agent::Agent;
use super::broker::Broker;
use super::cable::Cable;
use super::light::Player;
use super::report::{Chapter, Noted};
use super::screen::{Moment, Screen};
use super::server::{Hand, Heard, Post, Server};
use super::{FILL_INTERVAL, INTERVAL, LEASE, MAX_RECORDS, words_of};
use crate::config::Topics;
use crate::logic::View;

/// Nothing has moved in the cable for so long: then no confirmation is on its way.
const QUIET: Duration = Duration::from_millis(80);
/// Such a moment is waited for so long.
const QUIET_WITHIN: Duration = Duration::from_secs(20);
/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often a moment is kept for the picture.
const MOMENT_EVERY: Duration = Duration::from_millis(250);
/// How often the sensor sees another light.
const LIGHT_EVERY: Duration = Duration::from_millis(100);
const LINE_EVERY: Duration = Duration::from_secs(1);
/// How much longer than its lease the server's last command is believed to hold.
const LEASE_SLACK: Duration = Duration::from_secs(1);
/// The light below a hand.
const COVERED: f64 = 2.0;
/// The device's clock is set so far ahead.
const CLOCK_AHEAD_MS: i64 = 3_600_000;
/// A command that is sent late is so old.
const OLD_MS: i64 = 600_000;
/// Waiting for the device's end, and for what it left to be delivered.
const END_WITHIN: Duration = Duration::from_secs(15);
const REPLAY_WITHIN: Duration = Duration::from_secs(180);
const LINK_WITHIN: Duration = Duration::from_secs(60);
/// A power cut may take the records of `durable_within`, which is a second, and a few events.
const MAX_CUT_EVENTS: f64 = 6.0;

/// Why a part of the show did not go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// Something that had to happen did not, in words.
    Failed(String),
    /// Somebody wants to do something themselves.
    TakenOver(Act),
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Stop::Failed(why)
    }
}

/// What people with a panel see of the stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Shown {
    /// Whether somebody has taken over, and whether it is over.
    pub(super) yours: bool,
    pub(super) over: bool,
    pub(super) cable_in: bool,
    pub(super) server_up: bool,
    pub(super) broker_up: bool,
    pub(super) broker_is_own: bool,
    pub(super) has_power: bool,
    pub(super) clock_is_set: bool,
    pub(super) light: f64,
    pub(super) is_covered: bool,
    /// What happens, and what to watch for.
    pub(super) told: String,
    pub(super) watch: String,
}

/// Everything around the device.
#[derive(Debug)]
pub(super) struct World<'a> {
    pub(super) screen: &'a Screen,
    pub(super) cable: &'a Cable,
    pub(super) broker: &'a mut Broker,
    pub(super) post: Post,
    pub(super) heard: mpsc::UnboundedReceiver<Heard>,
    pub(super) acts: &'a mut mpsc::UnboundedReceiver<Act>,
    pub(super) shown: &'a watch::Sender<Shown>,
    pub(super) topics: Topics,
}

/// The show under way.
#[derive(Debug)]
pub(super) struct Story<'a> {
    pub(super) world: World<'a>,
    pub(super) agent: Agent,
    pub(super) hand: Hand,
    pub(super) server: Option<Server>,
    pub(super) player: Player,
    /// The light that somebody has set, in place of the day's.
    pub(super) light: Option<f64>,
    pub(super) account: Account,
    pub(super) began: Instant,
    pub(super) began_ms: i64,
    /// Whether somebody else says what comes next, and whether nobody does any more.
    pub(super) is_yours: bool,
    is_closing: bool,
    pub(super) wants_end: bool,
    pub(super) expected: Expected,
    /// What became of commands with an id, in the order of the answers.
    pub(super) results: Vec<(String, String, String)>,
    is_covered: bool,
    is_clock_set: bool,
    was_clock_set: bool,
    filling: Option<Filling>,
    light_at: Instant,
    line_at: Instant,
    moment_at: Instant,
    moments: Vec<Moment>,
    notes: Vec<Noted>,
    told: String,
    watch: String,
    /// Of each run the records between the link seen down with the cable out, and last seen so.
    off_line: BTreeMap<Uuid, Vec<(u64, u64)>>,
    is_off_line: bool,
    /// Since when nobody but the Pi can decide.
    alone_since_ms: Option<i64>,
    /// What the runs before this one claim.
    cut: Vec<Claim>,
}

/// The backlog is being filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filling {
    /// The device was asked to read more often.
    Asked,
    /// It does, and the cable is out.
    Under,
}

impl<'a> Story<'a> {
    /// The beginning; the agent has just been started.
    pub(super) fn new(world: World<'a>, agent: Agent, server: Server, player: Player) -> Self {
        let began = Instant::now();
        let (host, port) = (world.post.address.0.as_str(), world.post.address.1);
        let hand = Hand::new((host, port), &format!("{}-hand", world.post.name));
        Self {
            world,
            agent,
            hand,
            server: Some(server),
            player,
            light: None,
            account: Account::default(),
            began,
            began_ms: Timestamp::now().as_millisecond(),
            is_yours: false,
            is_closing: false,
            wants_end: false,
            expected: Expected::default(),
            results: Vec::new(),
            is_covered: false,
            is_clock_set: false,
            was_clock_set: false,
            filling: None,
            light_at: began,
            line_at: began,
            moment_at: began,
            moments: Vec::new(),
            notes: Vec::new(),
            told: String::new(),
            watch: String::new(),
            off_line: BTreeMap::new(),
            is_off_line: false,
            alone_since_ms: None,
            cut: Vec::new(),
        }
    }

    /// The beginning of a part, and what it is about.
    pub(super) fn head(&mut self, title: &str, about: &str) {
        self.world.screen.head(title, about);
        self.note(title.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ' '));
        self.told = title.to_owned();
        self.watch = about.to_owned();
    }

    /// Something that is worth a line.
    pub(super) fn say(&mut self, text: &str) {
        self.world.screen.say(&format!("       -> {text}"));
        self.note(text);
    }

    fn note(&mut self, text: &str) {
        self.notes.push(Noted {
            at: self.began.elapsed().as_secs_f64(),
            text: text.to_owned(),
        });
    }

    /// Does it.
    ///
    /// # Errors
    /// Why it cannot be done, in words.
    pub(super) fn act(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::Light(light) => self.light = Some(light),
            Act::Cover => self.is_covered = true,
            Act::Uncover => self.is_covered = false,
            Act::Pull => self.world.cable.pull(),
            Act::Plug => {
                self.world.cable.mend();
                if self.filling.take().is_some() {
                    self.read_every(INTERVAL)?;
                }
            }
            Act::KillServer => {
                self.nobody_listens();
                self.server = None;
            }
            Act::StartServer => {
                if self.server.is_none() {
                    self.server = Some(self.world.post.start_again());
                }
            }
            Act::KillBroker => {
                self.world.broker.kill()?;
                self.nobody_listens();
            }
            Act::StartBroker => self.world.broker.start_again()?,
            Act::CutPower => self.cut_power()?,
            Act::GivePower => {
                if !self.agent.has_power() {
                    self.agent.start()?;
                }
            }
            Act::SetClock => self.set_clock(true)?,
            Act::ResetClock => self.set_clock(false)?,
            Act::OldCommand => self.send_old_command()?,
            Act::Fill => self.fill()?,
            Act::Finish => self.wants_end = true,
        }
        self.light_at = Instant::now();
        self.look_who_can_decide();
        Ok(())
    }

    /// What goes out now is heard when it is sent again.
    fn nobody_listens(&mut self) {
        self.expected.may_repeat = true;
        self.expected.may_overtake = true;
    }

    fn cut_power(&mut self) -> Result<(), String> {
        if !self.agent.has_power() {
            return Ok(());
        }
        let view = self.view();
        self.agent.cut_power()?;
        if let Some(view) = view {
            let a_second = 1.0 / view.rules.interval.as_secs_f64().max(0.001);
            self.cut.push(Claim {
                run: view.run,
                first: 1,
                last: view.last_seq,
                off_line: self.off_line(view.run),
                may_cut: Some((a_second * 1.5 + MAX_CUT_EVENTS) as u64),
            });
        }
        Ok(())
    }

    fn set_clock(&mut self, is_ahead: bool) -> Result<(), String> {
        self.agent
            .move_clock(if is_ahead { CLOCK_AHEAD_MS } else { 0 })?;
        (self.is_clock_set, self.was_clock_set) = (is_ahead, true);
        Ok(())
    }

    /// The opposite of what the LED is, sent ten minutes ago and good for one.
    fn send_old_command(&mut self) -> Result<(), String> {
        let led_on = self.led_on() != Some(true);
        let sent_ms = Timestamp::now().as_millisecond() - OLD_MS;
        let id = format!("late-{}", self.results.len() + 1);
        self.command(&id, led_on, (Some(sent_ms), Some(sent_ms + 60_000)), false)
    }

    /// A command for the LED; with when it was sent and when it expires, in milliseconds since 1970.
    pub(super) fn command(
        &mut self,
        id: &str,
        led_on: bool,
        (sent_ms, expires_ms): (Option<i64>, Option<i64>),
        is_retained: bool,
    ) -> Result<(), String> {
        let mut command = serde_json::json!({"led_on": led_on, "id": id});
        for (name, ms) in [("issued_at", sent_ms), ("expires_at", expires_ms)] {
            if let Some(Ok(time)) = ms.map(Timestamp::from_millisecond) {
                command[name] = time.to_string().into();
            }
        }
        let topic = self.world.topics.commands.clone();
        self.hand.publish(&topic, is_retained, command.to_string())
    }

    fn fill(&mut self) -> Result<(), String> {
        if self.filling.is_some() {
            return Ok(());
        }
        if self.view().is_none_or(|view| !view.link_up) {
            return Err(
                "the device is asked by a command to read more often: it needs its link first"
                    .into(),
            );
        }
        self.filling = Some(Filling::Asked);
        self.expected.may_lose = true;
        self.read_every(FILL_INTERVAL)
    }

    fn read_every(&mut self, interval: Duration) -> Result<(), String> {
        let text = serde_json::json!({"command": "set", "interval": format!("{}ms", interval.as_millis())});
        let topic = self.world.topics.commands.clone();
        self.hand.publish(&topic, false, text.to_string())
    }

    /// What people with a panel see.
    fn show(&self) {
        let shown = Shown {
            yours: self.is_yours,
            over: self.is_closing,
            cable_in: self.world.cable.is_in(),
            server_up: self.server.is_some(),
            broker_up: self.world.broker.is_up(),
            broker_is_own: self.world.broker.is_own,
            has_power: self.agent.has_power(),
            clock_is_set: self.is_clock_set,
            light: self.light.unwrap_or_else(|| self.played()),
            is_covered: self.is_covered,
            told: self.told.clone(),
            watch: self.watch.clone(),
        };
        self.world.shown.send_if_modified(|before| {
            let is_new = *before != shown;
            *before = shown;
            is_new
        });
    }

    fn played(&self) -> f64 {
        self.player.at(self.began.elapsed().as_secs_f64())
    }

    fn light_now(&self) -> f64 {
        match self.is_covered {
            true => COVERED,
            false => self.light.unwrap_or_else(|| self.played()),
        }
    }

    /// Waits for a moment between two readings, when everything is confirmed. Where none comes the
    /// story goes on: it is a courtesy to the account, not a need.
    pub(super) async fn quiet(&mut self) -> Result<(), Stop> {
        self.until(QUIET_WITHIN, |story| {
            story.world.cable.idle() >= QUIET
                && story
                    .view()
                    .is_some_and(|view| story.account.is_complete(view.run, view.last_seq))
        })
        .await
        .map(|_| ())
    }

    pub(super) async fn stay(&mut self, time: Duration) -> Result<(), Stop> {
        self.until(time, |_| false).await.map(|_| ())
    }

    pub(super) async fn must(
        &mut self,
        limit: Duration,
        otherwise: &str,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), Stop> {
        match self.until(limit, done).await? {
            true => Ok(()),
            false => {
                let seconds = limit.as_secs();
                let link = self.view().map_or(String::new(), |view| view.link_why);
                Err(Stop::Failed(format!(
                    "{otherwise}, not in {seconds} s ({link})"
                )))
            }
        }
    }

    /// Goes on until `done`; whether that came within `limit`.
    pub(super) async fn until(
        &mut self,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool, Stop> {
        let story = self.until_ended(limit, |story| done(story) || story.agent.has_ended());
        let came = story.await?;
        match self.agent.has_ended() {
            true => Err(Stop::Failed(match self.agent.outcome() {
                Ok(()) => "the agent has ended before it was asked to".to_owned(),
                Err(why) => format!("the agent has ended before it was asked to: {why}"),
            })),
            false => Ok(came),
        }
    }

    /// As [`Story::until`], while the agent may end.
    pub(super) async fn until_ended(
        &mut self,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool, Stop> {
        let over = Instant::now() + limit;
        loop {
            while let Ok(heard) = self.world.heard.try_recv() {
                self.hear(heard);
            }
            while let Ok(act) = self.world.acts.try_recv() {
                self.wish(act)?;
            }
            self.look()?;
            if done(self) {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= over {
                return Ok(false);
            }
            let next = (now + LOOK_EVERY).min(over);
            tokio::select! {
                Some(heard) = self.world.heard.recv() => self.hear(heard),
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Somebody wants something done.
    fn wish(&mut self, act: Act) -> Result<(), Stop> {
        if self.is_closing {
            return Ok(());
        }
        if !self.is_yours {
            return Err(Stop::TakenOver(act));
        }
        self.do_as_wished(act);
        Ok(())
    }

    /// Does what somebody wants, and says what to watch for, or why it cannot be.
    pub(super) fn do_as_wished(&mut self, act: Act) {
        match self.act(act) {
            Ok(()) => {
                let told = act.to_string();
                // A slider says the same with each step.
                let is_same = matches!(act, Act::Light(_)) && self.told.starts_with("the light is");
                (self.told, self.watch) = (told.clone(), act.watch());
                if !is_same {
                    self.say(&format!("{told}. {}", act.watch()));
                }
            }
            Err(why) => {
                (self.told, self.watch) = ("that cannot be".to_owned(), why.clone());
                self.say(&format!("that cannot be: {why}"));
            }
        }
        self.show();
    }

    fn hear(&mut self, heard: Heard) {
        let (lane, payload) = match heard {
            Heard::Records(lane, payload) => (lane, payload),
            Heard::Result(payload) => return self.hear_result(&payload),
        };
        self.account.take(lane, &payload);
        if let Some(text) = words_of(&payload) {
            self.note(&text);
        }
    }

    fn hear_result(&mut self, payload: &[u8]) {
        let result: Value = serde_json::from_slice(payload).unwrap_or_default();
        let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
        let (id, result, reason) = (text("id"), text("result"), text("reason"));
        if id.is_empty() {
            return;
        }
        if id.starts_with("late-") {
            self.say(&format!(
                "the device answers the old command: {result} ({reason})"
            ));
        }
        self.results.push((id, result, reason));
    }

    /// Plays the light, looks at the agent, and says a line when it is time.
    fn look(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let at = self.began.elapsed().as_secs_f64();
        if now >= self.light_at {
            self.light_at = now + LIGHT_EVERY;
            self.agent.set_light(self.light_now())?;
            self.show();
        }
        self.agent.look_after();
        let Some(view) = self.view() else {
            return Ok(());
        };
        if self.filling == Some(Filling::Asked) && view.rules.interval == FILL_INTERVAL {
            self.filling = Some(Filling::Under);
            self.act(Act::Pull)?;
        }
        let has_power = self.agent.has_power();
        self.look_whether_off_line(has_power, &view);
        let moment = Moment {
            at,
            light: Some(self.light_now()),
            led_on: has_power && view.led_on == Some(true),
            by: if has_power {
                view.by.clone()
            } else {
                "off".to_owned()
            },
            cable_in: self.world.cable.is_in(),
            server_up: self.server.is_some(),
            broker_up: self.world.broker.is_up(),
            link_up: has_power && view.link_up,
            backlog: view.backlog,
            received: self.account.received(),
        };
        // Before the first reading there is nothing to tell.
        let is_begun = view.light.is_some() && (view.link_up || !self.moments.is_empty());
        if is_begun && now >= self.moment_at && !self.agent.has_ended() {
            self.moment_at = (self.moment_at + MOMENT_EVERY).max(now + MOMENT_EVERY / 2);
            self.moments.push(moment.clone());
        }
        if is_begun && now >= self.line_at && !self.agent.has_ended() {
            // The beat of the clock is kept, and a beat that was missed is not made up for.
            self.line_at = (self.line_at + LINE_EVERY).max(now + LINE_EVERY / 2);
            self.world.screen.line(&moment);
        }
        Ok(())
    }

    fn look_whether_off_line(&mut self, has_power: bool, view: &View) {
        let is_off_line = has_power && !view.link_up && !self.world.cable.is_in();
        let spans = self.off_line.entry(view.run).or_default();
        match spans.last_mut() {
            Some(span) if is_off_line && self.is_off_line => span.1 = view.last_seq,
            _ if is_off_line => spans.push((view.last_seq, view.last_seq)),
            _ => {}
        }
        self.is_off_line = is_off_line;
    }

    /// Notes when nobody but the Pi can decide.
    fn look_who_can_decide(&mut self) {
        let can = self.world.cable.is_in() && self.server.is_some() && self.world.broker.is_up();
        let now_ms = Timestamp::now().as_millisecond();
        match (can, self.alone_since_ms) {
            (false, None) => self.alone_since_ms = Some(now_ms),
            (true, Some(since)) => {
                self.alone_since_ms = None;
                let held = (LEASE + LEASE_SLACK).as_millis() as i64;
                self.expected.alone_ms.push(since + held..=now_ms);
            }
            _ => {}
        }
    }

    /// Records of the run that were certainly made off line: after the link was seen down, and before it was
    /// last seen so.
    fn off_line(&self, run: Uuid) -> Vec<RangeInclusive<u64>> {
        let spans = self.off_line.get(&run).into_iter().flatten();
        let certain = spans.filter(|(first, last)| first < last);
        certain.map(|(first, last)| first + 1..=*last).collect()
    }

    pub(super) fn view(&self) -> Option<View> {
        self.agent.views.borrow().clone()
    }

    pub(super) fn led_on(&self) -> Option<bool> {
        self.view().and_then(|view| view.led_on)
    }

    pub(super) fn is_decided_by(&self, whom: &str) -> bool {
        self.view().is_some_and(|view| view.by == whom)
    }

    /// Puts everything in order, and waits until all has arrived and the server decides.
    pub(super) async fn restore(&mut self) -> Result<(), Stop> {
        self.act(Act::Plug)?;
        if !self.world.broker.is_up() {
            self.act(Act::StartBroker)?;
        }
        self.act(Act::StartServer)?;
        self.act(Act::GivePower)?;
        self.must(LINK_WITHIN, "the device does not connect again", |story| {
            story.view().is_some_and(|view| view.link_up)
        })
        .await?;
        self.all_arrives().await
    }

    /// The backlog is empty, and the server decides.
    pub(super) async fn all_arrives(&mut self) -> Result<(), Stop> {
        self.must(
            REPLAY_WITHIN,
            "the backlog does not reach the server",
            |story| {
                story.view().is_some_and(|view| {
                    let all_but_the_live = view.last_seq.saturating_sub(2);
                    view.backlog == 0
                        && view.rules.interval == INTERVAL
                        && story.account.is_complete(view.run, all_but_the_live)
                })
            },
        )
        .await?;
        self.must(LINK_WITHIN, "the server does not decide again", |story| {
            story.is_decided_by("remote")
        })
        .await
    }

    /// Stops the agent while the server goes on listening, and closes the account.
    pub(super) async fn end(mut self) -> Result<Chapter, Stop> {
        self.is_closing = true;
        self.show();
        self.quiet().await?;
        self.agent.ask_to_stop();
        let ended = |story: &Self| story.agent.has_ended();
        if !self.until_ended(END_WITHIN, ended).await? {
            return Err(Stop::Failed("the agent does not stop".to_owned()));
        }
        if let Err(why) = self.agent.outcome() {
            return Err(Stop::Failed(format!("the agent: {why}")));
        }
        let Some(view) = self.view() else {
            return Err(Stop::Failed("the agent never showed itself".to_owned()));
        };
        // What is on its way from broker to server may still come; then the account is closed.
        let all_here = |story: &Self| story.account.is_complete(view.run, view.last_seq);
        self.until_ended(QUIET_WITHIN, all_here).await?;
        self.until_ended(QUIET * 2, |_| false).await?;
        // It may have made records after its last picture: those that came are its own word, too.
        let last = view.last_seq.max(self.account.highest(view.run));
        let mut claims = std::mem::take(&mut self.cut);
        claims.push(Claim {
            run: view.run,
            first: 1,
            last,
            off_line: self.off_line(view.run),
            may_cut: None,
        });
        if self.was_clock_set {
            // Times of records are the device's, and ours are not.
            (self.expected.alone_ms, self.expected.wants_rule) = (Vec::new(), false);
        }
        let verdict: Verdict = self.account.close(&claims, &self.expected);
        Ok(Chapter {
            title: String::new(),
            began_ms: self.began_ms,
            moments: self.moments,
            notes: self.notes,
            verdict,
        })
    }

    /// How full the backlog can be.
    pub(super) fn is_overfull(&self) -> bool {
        self.view().is_some_and(|view| {
            let lost: u64 = view.counters.lost.values().sum();
            lost > 0 && view.backlog > MAX_RECORDS / 4
        })
    }
}
