//! The broker: is it there, does it let us in with the configured credentials, and what does its access
//! list let us do?
//!
//! What a guest saw (nightlight-common's `mqtt::visit`) is judged here; where the broker does not let us know, that is
//! said, and is no failure: an access list with no more rights than needed looks so.

use std::time::Duration;

use super::Finding;
use crate::cli::Exit;
use crate::config::{Broker, Config};
use nightlight_common::config::values::in_words;
use nightlight_common::mqtt::visit::{Ask, Closed, Trip, visit};
use nightlight_common::mqtt::{Terms, Version};
use nightlight_logic::View;

/// Shorter than the doctor's own patience, so that the broker's line says more.
const PATIENCE: Duration = Duration::from_secs(12);

const WHAT: &str = "access list";

/// A topic of ours, and what became of its probe.
#[derive(Debug)]
struct Tried {
    topic: String,
    we_publish: bool,
    trip: Trip,
    /// Why the broker refused it, where it said so.
    said: Option<String>,
}

/// A real connection with the configured credentials, under another client id, and a round trip on every
/// topic.
pub(super) fn broker(config: &Config, view: Option<&View>) -> Vec<Finding> {
    let broker = &config.broker;
    let url = broker.url();
    let (topics, asks) = asks(config, view);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let visited = match runtime {
        Ok(runtime) => {
            let visited = runtime.block_on(visit(broker, &asks, PATIENCE));
            runtime.shutdown_background();
            visited
        }
        Err(error) => Err(Closed::Unreachable(error.to_string())),
    };
    let who = broker
        .username
        .as_ref()
        .map_or("without a user name".to_owned(), |user| {
            format!("as {user}")
        });
    let visit = match visited {
        Ok(visit) => visit,
        Err(closed) => return vec![shut(closed, &url, &who)],
    };
    let ms = visit.took.as_millis();
    let mut findings = vec![Finding::ok(
        "broker",
        format!("{url} lets us in {who}, after {ms} ms"),
    )];
    findings.push(Finding::ok("broker", offers(&visit.terms)));
    let seen = visit.trips.into_iter().zip(visit.refusals);
    let tried: Vec<Tried> = topics
        .into_iter()
        .zip(seen)
        .map(|((topic, we_publish), (trip, said))| Tried {
            topic,
            we_publish,
            trip,
            said,
        })
        .collect();
    findings.extend(access(broker, &tried));
    findings
}

fn shut(closed: Closed, url: &str, who: &str) -> Finding {
    match closed {
        Closed::Refused(why) => Finding::fail(
            "broker",
            Exit::Permission,
            format!("{url} is there and refuses us {who}"),
            why,
        ),
        Closed::Configured(why) => Finding::fail(
            "broker",
            Exit::Configuration,
            format!("{url} was not tried"),
            why,
        ),
        Closed::Unreachable(why) => Finding::fail(
            "broker",
            Exit::Software,
            format!("{url} cannot be reached: {why}"),
            "the Pi decides by itself meanwhile; check the broker, the network, and `broker.url`",
        ),
    }
}

/// All topics, whether we publish on them, and how each is tried.
fn asks(config: &Config, view: Option<&View>) -> (Vec<(String, bool)>, Vec<Ask>) {
    let topics = &config.topics;
    let ours = [
        &topics.telemetry,
        &topics.history,
        &topics.events,
        &topics.results,
        &topics.state,
        &topics.status,
    ];
    let theirs = [&topics.commands, &topics.acks];
    let all: Vec<(String, bool)> = ours
        .into_iter()
        .map(|topic| (topic.clone(), true))
        .chain(
            theirs
                .into_iter()
                .chain(&config.server_status)
                .map(|topic| (topic.clone(), false)),
        )
        .collect();
    // A server that knows no probes answers to a reading: it gets the one that it had last.
    let light = view
        .and_then(|view| view.light)
        .unwrap_or(config.lighting.on_below);
    let asks = all
        .iter()
        .map(|(topic, _)| Ask {
            topic: topic.clone(),
            light: (*topic == topics.telemetry).then_some(light),
        })
        .collect();
    (all, asks)
}

/// What the broker offers, in one line.
fn offers(terms: &Terms) -> String {
    if terms.version == Version::V311 {
        return "it speaks MQTT 3.1.1, which has no words for limits, nor for who listens".into();
    }
    let there = |is_there, what: &str| match is_there {
        true => what.to_owned(),
        false => format!("no {what}"),
    };
    let session = match terms.session_expiry {
        Some(time) => format!("a session kept for {}", in_words(time)),
        None => "a session kept as long as asked for".into(),
    };
    let packet = match terms.max_packet {
        Some(bytes) => format!("packets of {bytes} bytes"),
        None => "packets of any size".into(),
    };
    let mut offered = vec![
        session,
        format!("{} publications at a time", terms.receive_max),
        packet,
        format!("QoS up to {}", terms.max_qos),
        there(terms.retain, "retained messages"),
        there(terms.wildcards, "wildcards"),
        there(terms.shared, "shared subscriptions"),
    ];
    if let Some(time) = terms.keep_alive {
        offered.push(format!("keep alive {}", in_words(time)));
    }
    format!("it speaks MQTT 5 and offers: {}", offered.join(", "))
}

fn access(broker: &Broker, tried: &[Tried]) -> Vec<Finding> {
    // Where something of the same kind comes back, the rest would too.
    let comes_back = |we_publish| {
        tried
            .iter()
            .any(|it| it.we_publish == we_publish && it.trip == Trip::CameBack)
    };
    let (mut findings, mut unknown) = (Vec::new(), Vec::new());
    for it in tried {
        let topic = &it.topic;
        let said = it
            .said
            .as_ref()
            .map_or(String::new(), |said| format!(": {said}"));
        let denied = match (it.trip, it.we_publish) {
            (Trip::CameBack, _) | (Trip::Taken, true) => continue,
            (Trip::Denied, true) => {
                format!("{topic}: the broker refuses what we publish there{said}")
            }
            (Trip::Dropped, true) => {
                format!("{topic}: what we publish is dropped, though the broker confirms it")
            }
            (Trip::HungUpOnPublish, true) => {
                format!("{topic}: the broker ends the session when we publish there")
            }
            (Trip::Lost, true) if comes_back(true) => format!(
                "{topic}: what we publish there does not come back, and elsewhere it does: the broker confirms and drops it, or does not let us read it"
            ),
            (Trip::NotReadable | Trip::Taken, false) => {
                format!("{topic}: the broker refuses our subscription{said}")
            }
            (Trip::HungUpOnSubscribe, false) => {
                format!("{topic}: the broker ends the session when we subscribe there")
            }
            (Trip::Lost | Trip::Denied | Trip::HungUpOnPublish, false) if comes_back(false) => {
                format!(
                    "{topic}: nothing comes to us from there, and from others it does: the broker does not let us read it, or not publish there to try it"
                )
            }
            // Messages of others came: reading is what we need there.
            (Trip::Dropped, false) => continue,
            _ => {
                unknown.push(it);
                continue;
            }
        };
        findings.push(Finding::fail(
            WHAT,
            Exit::Permission,
            denied,
            format!("the broker's access list needs: {}", lines(broker, &[it])),
        ));
    }
    if !unknown.is_empty() {
        let topics: Vec<&str> = unknown.iter().map(|it| it.topic.as_str()).collect();
        let late = unknown.iter().all(|it| it.trip == Trip::NotTried);
        findings.push(Finding::warn(
            WHAT,
            match late {
                true => format!("there was no time to try {}", topics.join(", ")),
                false => format!(
                    "cannot know whether we may use {}: the broker does not show us what we publish there, which is right where the access list gives no more rights than needed",
                    topics.join(", ")
                ),
            },
            format!(
                "needed are: {}; `mosquitto_sub` with an account that may read them shows what arrives",
                lines(broker, &unknown)
            ),
        ));
    } else if findings.is_empty() {
        findings.push(Finding::ok(
            WHAT,
            format!("publishing and reading work on all {} topics", tried.len()),
        ));
    }
    findings
}

/// As mosquitto's access list has it.
fn lines(broker: &Broker, topics: &[&Tried]) -> String {
    let who = broker.username.as_ref().map(|user| format!("user {user}"));
    let topics = topics.iter().map(|it| {
        let right = if it.we_publish { "write" } else { "read" };
        format!("topic {right} {}", it.topic)
    });
    let lines: Vec<String> = who
        .into_iter()
        .chain(topics)
        .map(|line| format!("`{line}`"))
        .collect();
    lines.join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn judged(all: &[(&str, bool, Trip)]) -> Vec<Finding> {
        let tried: Vec<Tried> = all
            .iter()
            .map(|(topic, we_publish, trip)| Tried {
                topic: (*topic).to_owned(),
                we_publish: *we_publish,
                trip: *trip,
                said: None,
            })
            .collect();
        let mut broker = Config::from_toml("", [])
            .expect("the defaults are good")
            .broker;
        broker.username = Some("anna".into());
        access(&broker, &tried)
    }

    #[test]
    fn what_came_back_everywhere_is_good() {
        let found = judged(&[
            ("pi/state", true, Trip::CameBack),
            ("pi/commands", false, Trip::CameBack),
        ]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].state, State::Ok);
    }

    #[test]
    fn a_denial_names_topic_direction_and_line() {
        for (trip, we_publish, right) in [
            (Trip::Lost, true, "write"),
            (Trip::Dropped, true, "write"),
            (Trip::HungUpOnPublish, true, "write"),
            (Trip::Denied, true, "write"),
            (Trip::Lost, false, "read"),
            (Trip::Denied, false, "read"),
            (Trip::HungUpOnPublish, false, "read"),
            (Trip::NotReadable, false, "read"),
            (Trip::HungUpOnSubscribe, false, "read"),
        ] {
            let found = judged(&[
                ("pi/events", true, Trip::CameBack),
                ("pi/acks", false, Trip::CameBack),
                ("pi/it", we_publish, trip),
            ]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].state, State::Fail(Exit::Permission));
            assert!(found[0].seen.contains("pi/it"), "{found:?}");
            let line = format!("`user anna` `topic {right} pi/it`");
            assert!(found[0].remedy.contains(&line), "{found:?}");
        }
    }

    #[test]
    fn what_nobody_can_know_is_told_and_fails_nothing() {
        let found = judged(&[
            ("pi/state", true, Trip::Lost),
            ("pi/status", true, Trip::NotReadable),
            ("pi/commands", false, Trip::Lost),
            ("pi/acks", false, Trip::HungUpOnPublish),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].state, State::Warn);
        assert!(found[0].seen.starts_with("cannot know"), "{found:?}");
        for line in ["`topic write pi/state`", "`topic read pi/acks`"] {
            assert!(found[0].remedy.contains(line), "{found:?}");
        }
    }
}
