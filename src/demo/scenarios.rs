//! The scenarios: one kind of fault each, for talks and tests.
//!
//! Each begins on line in the light of day, waits for conditions and never for luck, and ends when all has
//! arrived; what it lets happen and asks for stands in `expected`. Called by `demo::run`.

use std::time::Duration;

use jiff::Timestamp;

use super::act::Act;
use super::stage::{Stop, Story};
use super::{LEASE, MAX_RECORDS};
use crate::cli::Scenario;

const DAY: f64 = 600.0;
const NIGHT: f64 = 40.0;
/// Limits for what must happen; generous, since a slow machine is no fault.
const WITHIN: Duration = Duration::from_secs(60);
const FILL_WITHIN: Duration = Duration::from_secs(120);
/// What has happened is shown for so long.
const SHOWN: Duration = Duration::from_secs(3);
/// The power is away for so long.
const DARK: Duration = Duration::from_secs(2);
/// Records that are kept before the power is cut, so that the replay lasts.
const KEPT: u64 = 50;
/// Times that the cable goes out and in.
const FLAPS: u32 = 4;
/// A cable is out for so long when it flaps.
const FLAP: Duration = Duration::from_millis(400);
/// Commands of a flood.
const FLOOD: usize = 1000;
/// Commands of a burst that waited at the broker.
const BURST: usize = 6;

impl Story<'_> {
    /// Plays it up to its end.
    ///
    /// # Errors
    /// What kept it from being played to its end, in words.
    pub(super) async fn play(&mut self, scenario: Scenario) -> Result<(), Stop> {
        self.act(Act::Light(DAY))?;
        match scenario {
            Scenario::Cable => self.cable().await,
            Scenario::Power => self.power().await,
            Scenario::Server => self.server().await,
            Scenario::StaleCommands => self.stale_commands().await,
            Scenario::Full => self.full().await,
            Scenario::Storm => self.storm().await,
            Scenario::All | Scenario::HandsOn => Ok(()),
        }
    }

    /// On line, the server decides, and the LED is off.
    async fn begins(&mut self, title: &str, about: &str) -> Result<(), Stop> {
        self.head(title, about);
        self.must(
            WITHIN,
            "the server does not decide about the LED",
            |story| {
                story.is_decided_by("remote")
                    && story.led_on() == Some(false)
                    && story.account.received() >= 8
            },
        )
        .await?;
        self.quiet().await
    }

    /// The lease runs out, and the Pi decides; then it gets dark, and the LED goes on.
    async fn decides_alone(&mut self) -> Result<(), Stop> {
        self.must(WITHIN, "the Pi does not decide by itself", |story| {
            story.is_decided_by("fallback")
        })
        .await?;
        let lease = LEASE.as_secs();
        self.say(&format!(
            "the lease of {lease} s is over: the Pi decides by itself"
        ));
        self.act(Act::Light(NIGHT))?;
        self.must(WITHIN, "the LED does not go on in the dark", |story| {
            story.led_on() == Some(true) && story.is_decided_by("fallback")
        })
        .await?;
        self.say("it is dark: the LED is ON, by the Pi's own decision");
        self.stay(SHOWN).await
    }

    async fn loses_the_cable(&mut self) -> Result<(), Stop> {
        self.head("The cable is pulled", &Act::Pull.watch());
        self.act(Act::Pull)?;
        self.must(WITHIN, "the device does not notice", |story| {
            story.view().is_some_and(|view| !view.link_up)
        })
        .await
    }

    async fn comes_back(&mut self) -> Result<(), Stop> {
        self.must(WITHIN, "the device does not connect again", |story| {
            story.view().is_some_and(|view| view.link_up)
        })
        .await?;
        self.all_arrives().await?;
        self.say("all of it has arrived, and the server decides again");
        self.stay(SHOWN).await
    }

    async fn cable(&mut self) -> Result<(), Stop> {
        self.expected.wants_rule = true;
        self.expected.wants_outage = Some("link");
        self.begins(
            "The cable",
            "The server decides. Then somebody pulls the cable, it gets dark, and no server can say so.",
        )
        .await?;
        self.loses_the_cable().await?;
        self.decides_alone().await?;
        self.head("The cable is back", &Act::Plug.watch());
        self.act(Act::Plug)?;
        // The outage is over, and told, when the link has held.
        self.comes_back().await?;
        self.reports_outage("link").await
    }

    /// The agent has told of an outage of this cause.
    async fn reports_outage(&mut self, cause: &'static str) -> Result<(), Stop> {
        self.must(WITHIN, "the device does not report the outage", |story| {
            story.account.has_outage(cause)
        })
        .await
    }

    async fn power(&mut self) -> Result<(), Stop> {
        self.expected.wants_rule = true;
        // What was delivered and not yet noted when the power went comes again.
        self.expected.may_repeat = true;
        self.begins(
            "The power",
            "The worst moments for a power cut: in an outage, and in the middle of the replay.",
        )
        .await?;
        self.loses_the_cable().await?;
        self.decides_alone().await?;
        self.must(WITHIN, "the backlog does not grow", |story| {
            story.view().is_some_and(|view| view.backlog >= KEPT)
        })
        .await?;
        self.head("The power is cut, too", &Act::CutPower.watch());
        self.cut_and_back(DARK).await?;
        let had = self.account.received();
        self.head(
            "The cable is back, and the power goes in the middle of the replay",
            "Of what was delivered some was not yet noted on the card: that comes again, and the server knows it by its number.",
        );
        self.act(Act::Plug)?;
        self.must(WITHIN, "there is no replay", |story| {
            let is_under_way = story
                .view()
                .is_some_and(|view| view.counters.replayed > 10 && view.backlog > 5);
            is_under_way && story.account.received() > had + 10
        })
        .await?;
        self.act(Act::CutPower)?;
        self.until_ended(DARK, |_| false).await?;
        self.act(Act::GivePower)?;
        self.say("power is back, and the replay goes on");
        self.comes_back().await
    }

    async fn server(&mut self) -> Result<(), Stop> {
        self.expected.wants_rule = true;
        self.expected.wants_outage = Some("server");
        self.expected.may_repeat = true;
        self.begins(
            "The server",
            "A broker that is up while the server is dead is an outage too: nobody answers.",
        )
        .await?;
        self.head("The server is killed", &Act::KillServer.watch());
        self.act(Act::KillServer)?;
        self.decides_alone().await?;
        if self.view().is_some_and(|view| !view.link_up) {
            return Err(Stop::Failed("the link went with the server".to_owned()));
        }
        self.head("The server is back", &Act::StartServer.watch());
        self.act(Act::StartServer)?;
        self.act(Act::Light(DAY))?;
        self.comes_back().await?;
        self.reports_outage("server").await?;
        if !self.world.broker.is_own {
            self.say("the broker is yours, and is left alone");
            return Ok(());
        }
        self.head("The broker is killed", &Act::KillBroker.watch());
        self.act(Act::KillBroker)?;
        self.decides_alone().await?;
        self.head("The broker is back", &Act::StartBroker.watch());
        self.act(Act::StartBroker)?;
        self.comes_back().await
    }

    /// It is day, and nobody sane wants the LED on: whenever it goes on, a stale command did it.
    async fn stale_commands(&mut self) -> Result<(), Stop> {
        self.expected.may_repeat = true;
        self.begins(
            "Stale commands",
            "It is day, and the LED is off. Commands that are late, repeated or kept say ON; not one of them may move it.",
        )
        .await?;
        let now = || Timestamp::now().as_millisecond();
        // Without an expiry: what waited at the broker is refused by a device that does not know the time.
        let newest = || (Some(now()), None);
        self.command("done-once", false, newest(), false)?;
        self.must(WITHIN, "a good command has no result", |story| {
            story.result("done-once").is_some()
        })
        .await?;
        self.head(
            "The cable is pulled, and commands pile up at the broker",
            "One has expired, one repeats an id, one is kept by the broker, and the others are older than the newest, which says off.",
        );
        self.act(Act::Pull)?;
        self.must(WITHIN, "the device does not notice", |story| {
            story.view().is_some_and(|view| !view.link_up) && story.is_decided_by("fallback")
        })
        .await?;
        let old = now() - 600_000;
        self.command("expired", true, (Some(old), Some(old + 60_000)), false)?;
        self.command("done-once", true, newest(), false)?;
        self.command("kept", true, newest(), true)?;
        for number in 1..=BURST {
            let id = format!("burst-{number}");
            self.command(&id, number < BURST, newest(), false)?;
            // Each is newer than the one before.
            self.stay(Duration::from_millis(20)).await?;
        }
        self.must(WITHIN, "the broker does not take the commands", |story| {
            story.hand.is_done()
        })
        .await?;
        self.head(
            "The cable is back",
            "They all come at once: at most the newest counts, and the LED stays off.",
        );
        self.act(Act::Plug)?;
        let answered = self
            .until(WITHIN, |story| {
                story.result("expired").is_some()
                    && story.results_of("done-once") >= 2
                    && story.result(&format!("burst-{BURST}")).is_some()
            })
            .await?;
        let topic = self.world.topics.commands.clone();
        // An empty message makes the broker forget the kept one.
        self.hand.publish(&topic, true, String::new())?;
        if !answered {
            return Err(Stop::Failed(
                "the device does not answer the commands".to_owned(),
            ));
        }
        self.comes_back().await?;
        self.judge_stale();
        Ok(())
    }

    fn judge_stale(&mut self) {
        let results = self.results.clone();
        for (id, result, reason) in &results {
            let is_right = match id.as_str() {
                "expired" => result == "expired",
                // It comes twice: it waited like the others, and is kept besides.
                "kept" => result == "rejected" || result == "superseded" || result == "duplicate",
                // The first time it was good.
                "done-once" => result == "applied" || result == "duplicate",
                id if id == format!("burst-{BURST}") => {
                    result == "applied" || result == "superseded"
                }
                id if id.starts_with("burst-") => result == "superseded",
                _ => continue,
            };
            let reason = if reason.is_empty() {
                String::new()
            } else {
                format!(": {reason}")
            };
            self.say(&format!("{id}: {result}{reason}"));
            if !is_right {
                self.account.fault(format!("the command {id} was {result}"));
            }
        }
        if self.results_of("done-once") != 2 {
            self.account
                .fault("the repeated command has no second result".into());
        }
        if self.account.was_on() {
            self.account
                .fault("the LED was on, and only a stale command wanted that".into());
        }
    }

    fn result(&self, id: &str) -> Option<&str> {
        let mut results = self.results.iter();
        results.find_map(|(of, result, _)| (of == id).then_some(result.as_str()))
    }

    fn results_of(&self, id: &str) -> usize {
        self.results.iter().filter(|(of, ..)| of == id).count()
    }

    async fn full(&mut self) -> Result<(), Stop> {
        // The outage is as long as it takes, and its lease ends in it: the LED is held against the rule.
        self.expected.wants_rule = true;
        self.expected.may_repeat = true;
        self.begins(
            "A full backlog",
            &format!("This one holds {MAX_RECORDS} records. What has no room is given up, oldest first, and told."),
        )
        .await?;
        self.head(
            "The cable is pulled, and readings come fast",
            &Act::Fill.watch(),
        );
        self.act(Act::Fill)?;
        self.must(WITHIN, "the device does not read more often", |story| {
            !story.world.cable.is_in()
        })
        .await?;
        self.must(
            FILL_WITHIN,
            "the backlog does not get full",
            Self::is_overfull,
        )
        .await?;
        self.say("the backlog is full: the oldest records make room");
        self.stay(SHOWN).await?;
        self.head(
            "The cable is back",
            "The gaps come in their places, so that the server can count to the end.",
        );
        self.act(Act::Plug)?;
        self.comes_back().await?;
        if self.account.given_up() == 0 {
            self.account.fault("nothing was told as given up".into());
        }
        Ok(())
    }

    async fn storm(&mut self) -> Result<(), Stop> {
        self.expected.may_repeat = true;
        self.begins(
            "A storm",
            "Everything at once: a flood of commands, a link that flaps, the broker killed, the power cut, the server killed.",
        )
        .await?;
        self.head(
            "A flood of commands",
            &format!("{FLOOD} commands in a burst: on, off, on, off."),
        );
        for number in 0..FLOOD {
            self.command(
                &format!("flood-{number}"),
                number % 2 == 0,
                (None, None),
                false,
            )?;
        }
        self.must(WITHIN, "the broker does not take the flood", |story| {
            story.hand.is_done()
        })
        .await?;
        self.head(
            "The link flaps",
            "The cable goes out and in, and the LED is decided all the while.",
        );
        for flap in 1..=FLAPS {
            self.act(Act::Light(if flap % 2 == 0 { DAY } else { NIGHT }))?;
            self.act(Act::Pull)?;
            self.stay(FLAP).await?;
            self.act(Act::Plug)?;
            let before = self.view().map_or(0, |view| view.counters.sessions);
            self.must(WITHIN, "the device does not connect again", |story| {
                story
                    .view()
                    .is_some_and(|view| view.link_up && view.counters.sessions > before)
            })
            .await?;
        }
        if self.world.broker.is_own {
            self.head(
                "The broker is killed, and the power is cut",
                &Act::KillBroker.watch(),
            );
            self.act(Act::KillBroker)?;
        } else {
            self.head(
                "The cable is pulled, and the power is cut",
                &Act::Pull.watch(),
            );
            self.act(Act::Pull)?;
        }
        self.must(WITHIN, "the device does not notice", |story| {
            story.view().is_some_and(|view| !view.link_up) && story.is_decided_by("fallback")
        })
        .await?;
        self.cut_and_back(DARK).await?;
        self.head(
            "The server is killed, and all comes back",
            "Out of order, and in the end everything is there.",
        );
        self.act(Act::KillServer)?;
        self.act(Act::Light(DAY))?;
        if !self.world.broker.is_up() {
            self.act(Act::StartBroker)?;
        }
        self.act(Act::Plug)?;
        self.must(WITHIN, "the device does not connect again", |story| {
            story.view().is_some_and(|view| view.link_up)
        })
        .await?;
        self.act(Act::StartServer)?;
        self.comes_back().await
    }
}
