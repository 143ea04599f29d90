//! What goes on while a part of the drill lasts: the service by its status socket, the records by the observer.
//!
//! Takes moments for the plot, says a line each second and every event, and waits for what a part waits for.
//! Used by the parent module.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::super::account::Account;
use super::super::screen::{Moment, Screen};
use super::observer::Observer;
use crate::config::Config;
use crate::io::web;
use crate::logic::View;

const LOOK_EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(1);

/// The drill under way.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    screen: &'a Screen,
    config: &'a Config,
    observer: Observer,
    pub(super) account: Account,
    pub(super) moments: Vec<Moment>,
    /// What the drill itself said, with the seconds since the beginning.
    pub(super) notes: Vec<(f64, String)>,
    pub(super) is_cut: bool,
    view: Option<View>,
    is_there: bool,
    began: Instant,
    line_at: Instant,
    /// The last event of the service that was seen, and of which run it is.
    seen: (Option<Uuid>, u64),
}

/// The service's own events, which it keeps for its page.
#[derive(Deserialize)]
struct Events {
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    number: u64,
    text: String,
}

impl<'a> Watch<'a> {
    pub(super) fn new(screen: &'a Screen, config: &'a Config, observer: Observer) -> Self {
        let began = Instant::now();
        Self {
            screen,
            config,
            observer,
            account: Account::default(),
            moments: Vec::new(),
            notes: Vec::new(),
            is_cut: false,
            view: None,
            is_there: false,
            began,
            line_at: began,
            seen: (None, 0),
        }
    }

    /// The service as it was last seen.
    pub(super) fn view(&self) -> Option<View> {
        self.view.clone()
    }

    /// Whether each record of the run from `first` on is here.
    pub(super) fn is_complete(&self, (run, first): (Uuid, u64)) -> bool {
        self.view.as_ref().is_some_and(|view| {
            view.run == run && self.account.is_complete_from(run, first, view.last_seq)
        })
    }

    /// A line for something that happened.
    pub(super) fn note(&mut self, text: &str) {
        self.screen.say(&format!("       -> {text}"));
        self.notes
            .push((self.began.elapsed().as_secs_f64(), text.to_owned()));
    }

    pub(super) async fn must(
        &mut self,
        limit: Duration,
        otherwise: &str,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), String> {
        match self.until(limit, done).await? {
            true => Ok(()),
            false => Err(format!("{otherwise}; waited {} s", limit.as_secs())),
        }
    }

    /// Goes on until `done`; whether that came within `limit`.
    pub(super) async fn until(
        &mut self,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool, String> {
        let over = Instant::now() + limit;
        loop {
            while let Ok(heard) = self.observer.heard.try_recv() {
                let (lane, payload) = heard.map_err(|why| {
                    format!("the drill's own client has lost the broker, so that there is no account: {why}")
                })?;
                self.account.take(lane, &payload);
            }
            self.look().await;
            if done(self) {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= over {
                return Ok(false);
            }
            tokio::time::sleep_until((now + LOOK_EVERY).min(over)).await;
        }
    }

    async fn look(&mut self) {
        let folder = self.config.backlog.path.clone();
        let told = web::ask(&folder).await.ok();
        let seen = told.and_then(|text| serde_json::from_str::<View>(&text).ok());
        self.is_there = seen.is_some();
        let Some(view) = seen.or_else(|| self.view.take()) else {
            return;
        };
        let (is_there, at) = (self.is_there, self.began.elapsed().as_secs_f64());
        if is_there {
            self.hear_events(&folder, view.run).await;
        }
        let moment = Moment {
            at,
            light: view.light,
            led_on: view.led_on == Some(true),
            by: if is_there {
                view.by.clone()
            } else {
                "off".to_owned()
            },
            cable_in: !self.is_cut,
            server_up: true,
            broker_up: true,
            link_up: is_there && view.link_up,
            backlog: view.backlog,
            received: self.account.received(),
        };
        self.view = Some(view);
        let now = Instant::now();
        if now >= self.line_at {
            self.line_at = (self.line_at + LINE_EVERY).max(now + LINE_EVERY / 2);
            self.screen.line(&moment);
        }
        self.moments.push(moment);
    }

    /// What the service says happened, from the beginning of the drill on.
    async fn hear_events(&mut self, folder: &std::path::Path, run: Uuid) {
        let after = match self.seen {
            (Some(known), after) if known == run => after,
            _ => 0,
        };
        let Ok((true, text)) = web::fetch(folder, &format!("/frame?after={after}")).await else {
            return;
        };
        let Ok(told) = serde_json::from_str::<Events>(&text) else {
            return;
        };
        let is_first = self.seen.0.is_none();
        let newest = told.events.last().map_or(after, |event| event.number);
        self.seen = (Some(run), newest);
        for event in told.events {
            // What was before the drill is not its business.
            if !is_first {
                self.screen.say(&format!("       service: {}", event.text));
            }
        }
    }
}
