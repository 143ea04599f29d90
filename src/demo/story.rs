//! The story: on line, cable pulled, the light changes, power cut, cable back, replay, the end.
//!
//! Decides when each part begins, by what has happened and not by the clock alone, so that it comes
//! out the same on a slow machine. Says what it does; `verdict` judges it. Called by `demo::run`.

use std::time::Duration;

use tokio::time::Instant;

use super::act::Act;
use super::stage::{Stop, Story};
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
/// At the end the server decides again for so long.
const EPILOGUE: Duration = Duration::from_secs(5);
/// Limits for what must happen; generous, since a slow machine is no fault.
const LINK_WITHIN: Duration = Duration::from_secs(60);
const CHANGE_WITHIN: Duration = Duration::from_secs(40);

impl Story<'_> {
    /// Tells it up to its end. `becomes` is what the light makes of the LED while the cable is out.
    ///
    /// # Errors
    /// What kept it from being told to its end, in words.
    pub(super) async fn tell(&mut self, becomes: Option<bool>) -> Result<(), Stop> {
        self.expected.wants_rule = true;
        self.expected.wants_outage = Some("link");
        self.on_line().await?;
        let pulled = self.pulled(becomes).await?;
        self.power_cut(pulled).await?;
        self.mended().await
    }

    async fn on_line(&mut self) -> Result<(), Stop> {
        self.head(
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

    /// Gives when the cable was pulled.
    async fn pulled(&mut self, becomes: Option<bool>) -> Result<Instant, Stop> {
        let lease = LEASE.as_secs();
        self.head(
            "2. The cable is pulled",
            &format!(
                "Nobody tells the Pi. It hears nothing more from the server, and after {lease} s it decides \
                 by itself. What it measures is kept on the disk: that is the backlog."
            ),
        );
        let led_was = self.led_on();
        self.act(Act::Pull)?;
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
            self.head(
                &format!("3. {light}, and the cable is out"),
                &format!("No server can say so: the Pi switches the light {led} by itself."),
            );
            let crosses = self.began + Duration::from_secs_f64(CROSSES_AT);
            let limit = crosses.saturating_duration_since(Instant::now()) + CHANGE_WITHIN;
            let changed =
                |story: &Self| story.is_decided_by("fallback") && story.led_on() == Some(becomes);
            if led_was == Some(becomes) || !self.until(limit, changed).await? {
                // Then the account says whether that was right.
                self.say("the LED does not change: the light did not cross in time");
            } else {
                let led = led.to_uppercase();
                self.say(&format!("the LED is {led}, by the Pi's own decision"));
            }
            self.stay(SHOWN).await?;
        } else {
            self.head(
                "3. The cable is out",
                "This recording does not cross the threshold, so the LED stays as it is.",
            );
        }
        Ok(pulled)
    }

    /// The process is killed where it stands, as a power cut does it, and started again.
    async fn power_cut(&mut self, pulled: Instant) -> Result<(), Stop> {
        self.head(
            "4. The power is cut, too",
            "The program is killed between two instructions (SIGKILL), and the LED goes dark. Whatever is older than a second is on the disk.",
        );
        self.cut_and_back(DARK).await?;
        self.stay(BACK.max(OUT.saturating_sub(pulled.elapsed())))
            .await
    }

    /// Takes the power away for so long; off line. What was kept is there afterwards.
    pub(super) async fn cut_and_back(&mut self, dark: Duration) -> Result<(), Stop> {
        let before = self
            .view()
            .ok_or("the agent never showed itself".to_owned())?;
        self.act(Act::CutPower)?;
        self.until_ended(dark, |_| false).await?;
        self.act(Act::GivePower)?;
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
        self.say(&format!(
            "power is back: the LED is {led}, by the Pi's own decision, and what it kept is still there"
        ));
        Ok(())
    }

    async fn mended(&mut self) -> Result<(), Stop> {
        self.head(
            "5. The cable is back",
            "The Pi tries again now and then (so that a whole house does not do so at once). Live readings \
             go first; then the backlog follows on a topic of its own, oldest first.",
        );
        self.act(Act::Plug)?;
        self.must(LINK_WITHIN, "the agent does not connect again", |story| {
            story.view().is_some_and(|view| view.link_up)
        })
        .await?;
        self.all_arrives().await?;
        self.head(
            "6. All of it has arrived",
            "The server decides again. Now the Pi is stopped, and the books are closed.",
        );
        self.stay(EPILOGUE).await
    }
}
