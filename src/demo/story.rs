//! The story: on line, cable pulled, the light changes, cable back, replay, the end.
//!
//! Decides when each part begins, by what has happened and not by the clock alone, so that it comes
//! out the same on a slow machine. Says what it does; `verdict` judges it. Called by `demo::run`.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::account::{Account, Claim};
use super::agent::Agent;
use super::cable::Cable;
use super::screen::{Moment, Screen};
use super::server::Heard;
use super::{CROSSES_AT, LEASE, ON_BELOW};
use crate::logic::View;

/// The cable is pulled so long after the beginning, if all is well by then.
const PULLED_AT: Duration = Duration::from_secs(10);
/// It stays out for at least so long, and at least so long after the LED has changed.
const OUT: Duration = Duration::from_secs(24);
const SHOWN: Duration = Duration::from_secs(6);
/// At the end the server decides again for so long.
const EPILOGUE: Duration = Duration::from_secs(5);
/// Nothing has moved in the cable for so long: then no confirmation is on its way.
const QUIET: Duration = Duration::from_millis(80);
/// Limits for what must happen; generous, since a slow machine is no fault.
const LINK_WITHIN: Duration = Duration::from_secs(60);
const CHANGE_WITHIN: Duration = Duration::from_secs(40);
const REPLAY_WITHIN: Duration = Duration::from_secs(120);
const QUIET_WITHIN: Duration = Duration::from_secs(20);
const END_WITHIN: Duration = Duration::from_secs(15);
/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often a moment is kept for the picture.
const MOMENT_EVERY: Duration = Duration::from_millis(250);
const LINE_EVERY: Duration = Duration::from_secs(1);

/// The story under way.
#[derive(Debug)]
pub(super) struct Story<'a> {
    screen: &'a Screen,
    agent: Agent,
    cable: &'a Cable,
    heard: mpsc::UnboundedReceiver<Heard>,
    account: Account,
    began: Instant,
    line_at: Instant,
    moment_at: Instant,
    moments: Vec<Moment>,
    /// The newest record when the link was first seen down after the pull, and when it was last.
    off_line: Option<(u64, u64)>,
}

/// The story, told to its end.
#[derive(Debug)]
pub(super) struct Told {
    /// What the server received.
    pub(super) account: Account,
    /// What the agent says.
    pub(super) claim: Claim,
    /// The minute.
    pub(super) moments: Vec<Moment>,
}

impl<'a> Story<'a> {
    /// The beginning; the agent has just been started.
    pub(super) fn new(
        screen: &'a Screen,
        agent: Agent,
        cable: &'a Cable,
        heard: mpsc::UnboundedReceiver<Heard>,
    ) -> Self {
        let began = Instant::now();
        Self {
            screen,
            agent,
            cable,
            heard,
            account: Account::default(),
            began,
            line_at: began,
            moment_at: began,
            moments: Vec::new(),
            off_line: None,
        }
    }

    /// Tells it. `becomes` is what the light makes of the LED while the cable is out.
    ///
    /// # Errors
    /// What kept it from being told to its end, in words.
    pub(super) async fn tell(mut self, becomes: Option<bool>) -> Result<Told, String> {
        self.on_line().await?;
        self.pulled(becomes).await?;
        self.mended().await?;
        self.end().await
    }

    async fn on_line(&mut self) -> Result<(), String> {
        self.screen.head(
            "1. On line: the server decides",
            &format!(
                "Each reading goes to the server, and the server answers: LED on below {ON_BELOW:.0}, else off."
            ),
        );
        self.must(
            LINK_WITHIN,
            "the agent gets no command from the server",
            |story| story.began.elapsed() >= PULLED_AT && story.is_decided_by("remote"),
        )
        .await?;
        self.quiet().await
    }

    async fn pulled(&mut self, becomes: Option<bool>) -> Result<(), String> {
        let lease = LEASE.as_secs();
        self.screen.head(
            "2. The cable is pulled",
            &format!(
                "Nobody tells the Pi. It hears nothing more from the server, and after {lease} s it decides\n\
                 by itself. What it measures is kept on the disk: that is the backlog."
            ),
        );
        let led_was = self.led_on();
        self.cable.pull();
        let pulled = Instant::now();
        self.must(
            LINK_WITHIN,
            "the agent does not notice that its cable is out",
            |story| {
                story.view().is_some_and(|view| !view.link_up) && story.is_decided_by("fallback")
            },
        )
        .await?;
        if let Some(becomes) = becomes {
            let (light, led) = match becomes {
                true => ("It is getting dark", "on"),
                false => ("It is getting bright", "off"),
            };
            self.screen.head(
                &format!("3. {light}, and the cable is out"),
                &format!("No server can say so: the Pi switches the light {led} by itself."),
            );
            let crosses = self.began + Duration::from_secs_f64(CROSSES_AT);
            let limit = crosses.saturating_duration_since(Instant::now()) + CHANGE_WITHIN;
            let changed =
                |story: &Self| story.is_decided_by("fallback") && story.led_on() == Some(becomes);
            if led_was == Some(becomes) || !self.until(limit, changed).await? {
                // Then the account says whether that was right.
                self.screen
                    .say("(The LED does not change: the light did not cross in time.)");
            } else {
                let led = led.to_uppercase();
                self.screen.say(&format!(
                    "       -> the LED is {led}, by the Pi's own decision"
                ));
            }
            self.stay(SHOWN).await?;
        } else {
            self.screen.head(
                "3. The cable is out",
                "This recording does not cross the threshold, so the LED stays as it is.",
            );
        }
        let rest = OUT.saturating_sub(pulled.elapsed());
        self.stay(rest).await
    }

    async fn mended(&mut self) -> Result<(), String> {
        self.screen.head(
            "4. The cable is back",
            "The Pi tries again now and then (so that a whole house does not do so at once). Live readings\n\
             go first; then the backlog follows on a topic of its own, oldest first.",
        );
        self.cable.mend();
        self.must(LINK_WITHIN, "the agent does not connect again", |story| {
            story.view().is_some_and(|view| view.link_up)
        })
        .await?;
        self.must(
            REPLAY_WITHIN,
            "the backlog does not reach the server",
            |story| {
                story.view().is_some_and(|view| {
                    let all_but_the_live = view.last_seq.saturating_sub(2);
                    view.backlog == 0 && story.account.is_complete(view.run, all_but_the_live)
                })
            },
        )
        .await?;
        self.must(LINK_WITHIN, "the server does not decide again", |story| {
            story.is_decided_by("remote")
        })
        .await?;
        self.screen.head(
            "5. All of it has arrived",
            "The server decides again. Now the Pi is stopped, and the books are closed.",
        );
        self.stay(EPILOGUE).await
    }

    /// Stops the agent while the server goes on listening, and takes down what each has to say.
    async fn end(mut self) -> Result<Told, String> {
        self.quiet().await?;
        self.agent.ask_to_stop();
        let ended = |story: &Self| story.agent.has_ended();
        if !self.until_ended(END_WITHIN, ended).await? {
            return Err("the agent does not stop".to_owned());
        }
        if let Err(why) = self.agent.outcome() {
            return Err(format!("the agent: {why}"));
        }
        let Some(view) = self.view() else {
            return Err("the agent never showed itself".to_owned());
        };
        // What is on its way from broker to server may still come; then the account is closed.
        let all_here = |story: &Self| story.account.is_complete(view.run, view.last_seq);
        self.until_ended(QUIET_WITHIN, all_here).await?;
        self.until_ended(QUIET * 2, |_| false).await?;
        Ok(Told {
            claim: Claim {
                run: view.run,
                last: view.last_seq,
                off_line: self.off_line(),
            },
            account: self.account,
            moments: self.moments,
        })
    }

    /// Waits for a moment between two readings, when everything is confirmed. Where none comes the
    /// story goes on: it is a courtesy to the account, not a need.
    async fn quiet(&mut self) -> Result<(), String> {
        self.until(QUIET_WITHIN, |story| {
            story.cable.idle() >= QUIET
                && story
                    .view()
                    .is_some_and(|view| story.account.is_complete(view.run, view.last_seq))
        })
        .await
        .map(|_| ())
    }

    async fn stay(&mut self, time: Duration) -> Result<(), String> {
        self.until(time, |_| false).await.map(|_| ())
    }

    async fn must(
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
    async fn until(
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
    async fn until_ended(
        &mut self,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool, String> {
        let over = Instant::now() + limit;
        loop {
            while let Ok(heard) = self.heard.try_recv() {
                self.hear(heard)?;
            }
            self.look();
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

    /// Looks at the agent, and says a line when it is time.
    fn look(&mut self) {
        let Some(view) = self.view() else {
            return;
        };
        if !view.link_up && !self.moments.is_empty() {
            let first = self.off_line.map_or(view.last_seq, |(first, _)| first);
            self.off_line = Some((first, view.last_seq));
        }
        let now = Instant::now();
        let moment = || Moment {
            at: self.began.elapsed().as_secs_f64(),
            light: view.light,
            led_on: view.led_on,
            by: view.by.clone(),
            cable_in: self.cable.is_in(),
            link_up: view.link_up,
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
    }

    /// Records that were certainly made off line: after the link was seen down, and before it was
    /// last seen so.
    fn off_line(&self) -> Option<RangeInclusive<u64>> {
        let (first, last) = self.off_line?;
        (first < last).then(|| first + 1..=last)
    }

    fn view(&self) -> Option<View> {
        self.agent.views.borrow().clone()
    }

    fn led_on(&self) -> Option<bool> {
        self.view().map(|view| view.led_on)
    }

    fn is_decided_by(&self, whom: &str) -> bool {
        self.view().is_some_and(|view| view.by == whom)
    }
}
