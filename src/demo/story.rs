//! The story: on line, cable pulled, the light changes, power cut, cable back, replay, the end.
//!
//! Decides when each part begins, by what has happened and not by the clock alone, so that it comes
//! out the same on a slow machine. Says what it does; `verdict` judges it. Called by `demo::run`.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::account::{Account, Claim};
use super::screen::Moment;
use super::stage::{QUIET, QUIET_WITHIN, Story};
use super::{CROSSES_AT, LEASE, ON_BELOW};
use crate::logic::View;

/// The cable is pulled so long after the beginning, if all is well by then.
const PULLED_AT: Duration = Duration::from_secs(10);
/// It stays out for at least so long, and at least so long after the LED has changed.
const OUT: Duration = Duration::from_secs(24);
const SHOWN: Duration = Duration::from_secs(4);
/// The power is away for so long, and what it left is shown for so long.
const DARK: Duration = Duration::from_secs(2);
const BACK: Duration = Duration::from_secs(4);
/// How much longer than its lease the server's last command is believed to hold.
const LEASE_SLACK: Duration = Duration::from_secs(1);
/// At the end the server decides again for so long.
const EPILOGUE: Duration = Duration::from_secs(5);
/// Limits for what must happen; generous, since a slow machine is no fault.
const LINK_WITHIN: Duration = Duration::from_secs(60);
const CHANGE_WITHIN: Duration = Duration::from_secs(40);
const REPLAY_WITHIN: Duration = Duration::from_secs(120);
const END_WITHIN: Duration = Duration::from_secs(15);

/// When the cable was pulled.
#[derive(Debug, Clone, Copy)]
struct Pulled {
    at: Instant,
    wall_ms: i64,
}

/// The story, told to its end.
#[derive(Debug)]
pub(super) struct Told {
    /// What the server received.
    pub(super) account: Account,
    /// What the agent says, of each of its runs.
    pub(super) claims: Vec<Claim>,
    /// The minute.
    pub(super) moments: Vec<Moment>,
}

impl Story<'_> {
    /// Tells it. `becomes` is what the light makes of the LED while the cable is out.
    ///
    /// # Errors
    /// What kept it from being told to its end, in words.
    pub(super) async fn tell(mut self, becomes: Option<bool>) -> Result<Told, String> {
        self.on_line().await?;
        let pulled = self.pulled(becomes).await?;
        self.power_cut(pulled).await?;
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

    async fn pulled(&mut self, becomes: Option<bool>) -> Result<Pulled, String> {
        let lease = LEASE.as_secs();
        self.screen.head(
            "2. The cable is pulled",
            &format!(
                "Nobody tells the Pi. It hears nothing more from the server, and after {lease} s it decides \
                 by itself. What it measures is kept on the disk: that is the backlog."
            ),
        );
        let led_was = self.led_on();
        self.cable.pull();
        let pulled = Pulled {
            at: Instant::now(),
            wall_ms: Timestamp::now().as_millisecond(),
        };
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
        Ok(pulled)
    }

    /// The process is killed where it stands, as a power cut does it, and started again.
    async fn power_cut(&mut self, pulled: Pulled) -> Result<(), String> {
        self.screen.head(
            "4. The power is cut, too",
            "The program is killed between two instructions (SIGKILL), and the LED goes dark. Whatever is older than a second is on the disk.",
        );
        let before = self.view().ok_or("the agent never showed itself")?;
        self.agent.cut_power()?;
        let alone = pulled.wall_ms + (LEASE + LEASE_SLACK).as_millis() as i64;
        self.cut.push(Claim {
            run: before.run,
            last: before.last_seq,
            off_line: self.off_line(before.run),
            alone_ms: Some(alone..=Timestamp::now().as_millisecond()),
            is_cut: true,
        });
        self.until_ended(DARK, |_| false).await?;
        self.agent.start()?;
        self.must(LINK_WITHIN, "the agent does not come back", |story| {
            let is_next = |view: View| view.run != before.run && view.backlog > 0;
            story.view().is_some_and(is_next) && story.is_decided_by("fallback")
        })
        .await?;
        let led = if self.led_on() == Some(true) {
            "ON"
        } else {
            "OFF"
        };
        self.screen.say(&format!(
            "       -> power is back: the LED is {led}, by the Pi's own decision, and what it kept is still there"
        ));
        self.stay(BACK.max(OUT.saturating_sub(pulled.at.elapsed())))
            .await
    }

    async fn mended(&mut self) -> Result<(), String> {
        self.screen.head(
            "5. The cable is back",
            "The Pi tries again now and then (so that a whole house does not do so at once). Live readings \
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
            "6. All of it has arrived",
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
        // It may have made records after its last picture: those that came are its own word, too.
        let last = view.last_seq.max(self.account.highest(view.run));
        let mut claims = std::mem::take(&mut self.cut);
        claims.push(Claim {
            run: view.run,
            last,
            off_line: self.off_line(view.run),
            alone_ms: None,
            is_cut: false,
        });
        Ok(Told {
            claims,
            account: self.account,
            moments: self.moments,
        })
    }
}
