//! The stage of the story: what goes on while a part of it lasts.
//!
//! Takes what the server hears into the account, watches the agent, says a line each second, and waits
//! for what a part of the story waits for. It knows no part. Used by `story`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::account::{Account, Claim};
use super::agent::Agent;
use super::cable::Cable;
use super::light::Player;
use super::screen::{Moment, Screen};
use super::server::Heard;
use crate::logic::View;

/// Nothing has moved in the cable for so long: then no confirmation is on its way.
pub(super) const QUIET: Duration = Duration::from_millis(80);
/// Such a moment is waited for so long.
pub(super) const QUIET_WITHIN: Duration = Duration::from_secs(20);
/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often a moment is kept for the picture.
const MOMENT_EVERY: Duration = Duration::from_millis(250);
/// How often the sensor sees another light.
const LIGHT_EVERY: Duration = Duration::from_millis(100);
const LINE_EVERY: Duration = Duration::from_secs(1);

/// The story under way.
#[derive(Debug)]
pub(super) struct Story<'a> {
    pub(super) screen: &'a Screen,
    pub(super) agent: Agent,
    pub(super) cable: &'a Cable,
    pub(super) player: Player,
    pub(super) heard: mpsc::UnboundedReceiver<Heard>,
    pub(super) account: Account,
    pub(super) began: Instant,
    light_at: Instant,
    pub(super) line_at: Instant,
    pub(super) moment_at: Instant,
    pub(super) moments: Vec<Moment>,
    /// Of each run the newest record when the link was first seen down with the cable out, and when it was last.
    off_line: BTreeMap<Uuid, (u64, u64)>,
    /// What the runs before this one claim.
    pub(super) cut: Vec<Claim>,
}

impl<'a> Story<'a> {
    /// The beginning; the agent has just been started.
    pub(super) fn new(
        screen: &'a Screen,
        agent: Agent,
        cable: &'a Cable,
        player: Player,
        heard: mpsc::UnboundedReceiver<Heard>,
    ) -> Self {
        let began = Instant::now();
        Self {
            screen,
            agent,
            cable,
            player,
            heard,
            account: Account::default(),
            began,
            light_at: began,
            line_at: began,
            moment_at: began,
            moments: Vec::new(),
            off_line: BTreeMap::new(),
            cut: Vec::new(),
        }
    }

    /// Waits for a moment between two readings, when everything is confirmed. Where none comes the
    /// story goes on: it is a courtesy to the account, not a need.
    pub(super) async fn quiet(&mut self) -> Result<(), String> {
        self.until(QUIET_WITHIN, |story| {
            story.cable.idle() >= QUIET
                && story
                    .view()
                    .is_some_and(|view| story.account.is_complete(view.run, view.last_seq))
        })
        .await
        .map(|_| ())
    }

    pub(super) async fn stay(&mut self, time: Duration) -> Result<(), String> {
        self.until(time, |_| false).await.map(|_| ())
    }

    pub(super) async fn must(
        &mut self,
        limit: Duration,
        otherwise: &str,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), String> {
        match self.until(limit, done).await? {
            true => Ok(()),
            false => {
                let seconds = limit.as_secs();
                let link = self.view().map_or(String::new(), |view| view.link_why);
                Err(format!("{otherwise}, not in {seconds} s ({link})"))
            }
        }
    }

    /// Goes on until `done`; whether that came within `limit`.
    pub(super) async fn until(
        &mut self,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool, String> {
        let story = self.until_ended(limit, |story| done(story) || story.agent.has_ended());
        let came = story.await?;
        match self.agent.has_ended() {
            true => Err("the agent has ended before it was asked to".to_owned()),
            false => Ok(came),
        }
    }

    /// As [`Story::until`], while the agent may end.
    pub(super) async fn until_ended(
        &mut self,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool, String> {
        let over = Instant::now() + limit;
        loop {
            while let Ok(heard) = self.heard.try_recv() {
                self.hear(heard)?;
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
                heard = self.heard.recv() => match heard {
                    Some(heard) => self.hear(heard)?,
                    None => return Err("the server has ended".to_owned()),
                },
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn hear(&mut self, heard: Heard) -> Result<(), String> {
        match heard {
            Heard::Records(lane, payload) => self.account.take(lane, &payload),
            Heard::Lost(why) => {
                return Err(format!(
                    "the server lost its connection to the broker: {why}"
                ));
            }
            Heard::Picture => {}
        }
        Ok(())
    }

    /// Plays the light, looks at the agent, and says a line when it is time.
    fn look(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let at = self.began.elapsed().as_secs_f64();
        if now >= self.light_at {
            self.light_at = now + LIGHT_EVERY;
            self.agent.set_light(self.player.at(at))?;
        }
        self.agent.look_after();
        let Some(view) = self.view() else {
            return Ok(());
        };
        let has_power = self.agent.has_power();
        if has_power && !view.link_up && !self.cable.is_in() {
            let seen = self.off_line.entry(view.run);
            seen.or_insert((view.last_seq, view.last_seq)).1 = view.last_seq;
        }
        let moment = || Moment {
            at,
            light: Some(self.player.at(at)),
            led_on: has_power && view.led_on == Some(true),
            by: if has_power {
                view.by.clone()
            } else {
                "off".to_owned()
            },
            cable_in: self.cable.is_in(),
            link_up: has_power && view.link_up,
            backlog: view.backlog,
            received: self.account.received(),
        };
        // Before the first reading there is nothing to tell.
        let is_begun = view.light.is_some() && (view.link_up || !self.moments.is_empty());
        if is_begun && now >= self.moment_at && !self.agent.has_ended() {
            self.moment_at = (self.moment_at + MOMENT_EVERY).max(now + MOMENT_EVERY / 2);
            let moment = moment();
            self.moments.push(moment);
        }
        if is_begun && now >= self.line_at && !self.agent.has_ended() {
            // The beat of the clock is kept, and a beat that was missed is not made up for.
            self.line_at = (self.line_at + LINE_EVERY).max(now + LINE_EVERY / 2);
            self.screen.line(&moment());
        }
        Ok(())
    }

    /// Records of the run that were certainly made off line: after the link was seen down, and before it was
    /// last seen so.
    pub(super) fn off_line(&self, run: Uuid) -> Option<RangeInclusive<u64>> {
        let (first, last) = *self.off_line.get(&run)?;
        (first < last).then(|| first + 1..=last)
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
}
