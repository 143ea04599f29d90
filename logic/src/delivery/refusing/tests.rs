//! Stories of a broker that gives reasons, told to delivery alone.

use std::collections::VecDeque;

use uuid::Uuid;

use super::super::{DeliverySettings, Message};
use super::*;
use crate::command::ReplyTo;
use crate::link::{Ending, Inbound};
use crate::telemetry::{Body, Record};
use crate::time::{Now, Stamp};
use crate::timers::Timer;

/// A delivery with a session, a disk that takes everything at once, and what went out.
struct Story {
    delivery: Delivery,
    timers: Timers,
    clock: Clock,
    now: Duration,
    next_seq: u64,
    out: VecDeque<Message>,
    subscriptions: Vec<(u64, Inbound)>,
    dead_letters: Vec<String>,
    log: Vec<String>,
    disk: Vec<(Key, Entry)>,
}

impl Story {
    fn begin(offer: Offer, change: impl FnOnce(&mut DeliverySettings)) -> Self {
        let mut settings = DeliverySettings {
            qos: 1,
            confirm: Confirm::Broker,
            ack_timeout: Duration::from_secs(30),
            window: 16,
            replay_rate: 0.0,
            replay_jitter: Duration::ZERO,
            batch: 1,
            require_listener: false,
            durable_within: Duration::from_secs(1),
            format: crate::telemetry::PayloadFormat::Flat,
            stalled_after: Duration::from_secs(10),
            connect_spread: Duration::ZERO,
        };
        change(&mut settings);
        let now = Duration::from_secs(1);
        let clock = Clock::new(
            Uuid::nil(),
            0,
            Now {
                boot: now,
                wall_ms: 1_000,
                synced: true,
            },
        );
        let mut timers = Timers::default();
        let mut story = Self {
            delivery: Delivery::new(settings, vec![Inbound::Commands], 7, now, &mut timers),
            timers,
            clock,
            now,
            next_seq: 1,
            out: VecDeque::new(),
            subscriptions: Vec::new(),
            dead_letters: Vec::new(),
            log: Vec::new(),
            disk: Vec::new(),
        };
        story.delivery.opened(1, 0, None);
        story.connect(offer);
        story
    }

    fn connect(&mut self, offer: Offer) {
        self.delivery.pump(self.now, &self.clock, &mut self.timers);
        self.delivery.offered(offer);
        self.delivery.link_up(self.now, &mut self.timers);
        self.turn();
    }

    fn record(&mut self) {
        let stamp = Stamp {
            boot_ms: self.next_seq,
            wall_ms: self.next_seq as i64,
            synced: true,
        };
        let record = Record {
            run: Uuid::from_u128(7),
            seq: self.next_seq,
            boot_id: Uuid::nil(),
            stamp,
            body: Body::Reading {
                light: 1.0,
                led_on: None,
                led_ok: true,
            },
        };
        self.next_seq += 1;
        self.delivery.add(record, self.now);
        self.turn();
    }

    fn records(&mut self, count: usize) {
        for _ in 0..count {
            self.record();
        }
    }

    /// Does what is due, and what the disk is asked for.
    fn turn(&mut self) {
        while let Some((timer, _)) = self.timers.expire(&Timer::ALL, self.now) {
            match timer {
                Timer::Connect => self.delivery.connect(),
                Timer::LateAcks => self.delivery.time_out_acks(self.now, &mut self.timers),
                _ => {}
            }
        }
        loop {
            if self.delivery.commit_due(self.now, &self.timers) {
                self.delivery
                    .commit(Vec::new(), self.next_seq - 1, &mut self.timers);
            }
            self.delivery.pump(self.now, &self.clock, &mut self.timers);
            let mut is_over = true;
            while let Some(output) = self.delivery.poll() {
                is_over &= !self.carry_out(output);
            }
            if is_over {
                return;
            }
        }
    }

    /// Tells whether it was answered.
    fn carry_out(&mut self, output: Output) -> bool {
        match output {
            Output::Publish(message) => self.out.push_back(message),
            Output::Subscribe { token, inbound } => self.subscriptions.push((token, inbound)),
            Output::KeepDeadLetter(record) => self.dead_letters.push(record),
            Output::Log(_, text) => self.log.push(text),
            Output::Append { entries, .. } => {
                for entry in entries {
                    let (from, to) = (entry.first(), entry.last());
                    self.disk.retain(|(key, _)| !(from..=to).contains(&key.seq));
                    let key = Key {
                        run_number: 1,
                        seq: from,
                    };
                    self.disk.push((key, entry));
                }
                self.disk.sort_by_key(|(key, _)| *key);
                self.delivery.stored(self.disk.len() as u64, 0);
                return true;
            }
            Output::Discard(ranges) => self.disk.retain(|(key, _)| {
                let is_in = |range: &crate::KeyRange| (range.from..=range.to).contains(&key.seq);
                !ranges.iter().any(is_in)
            }),
            Output::ReadAfter { after, limit } => {
                let behind = self.disk.iter().filter(|(key, _)| Some(*key) > after);
                let entries: Vec<_> = behind.take(limit).cloned().collect();
                let end = entries.len() < limit;
                self.delivery.fetched(entries, end);
                return true;
            }
            _ => {}
        }
        false
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now = (self.now + Duration::from_millis(100)).min(until);
            self.turn();
        }
    }

    /// All that went out and was not answered.
    fn take(&mut self) -> Vec<Message> {
        self.out.drain(..).collect()
    }

    fn yes(&mut self, token: u64) {
        self.delivery.acked(token, self.now, &mut self.timers);
        self.turn();
    }

    fn no(&mut self, token: u64, refusal: Refusal) {
        self.delivery.refused(
            token,
            refusal,
            "so it says",
            &self.clock,
            self.now,
            &mut self.timers,
        );
        self.turn();
    }

    /// Answers what goes out for so long; `refuses` says what is refused, and everything else is taken.
    fn answer_for(
        &mut self,
        time: Duration,
        refuses: impl Fn(&Message) -> Option<Refusal>,
    ) -> Vec<Message> {
        let until = self.now + time;
        let mut all = Vec::new();
        while self.now < until {
            for message in self.take() {
                match refuses(&message) {
                    Some(Refusal::Unheard) => {
                        self.delivery
                            .unheard(message.token, self.now, &mut self.timers);
                        self.turn();
                    }
                    Some(refusal) => self.no(message.token, refusal),
                    None => self.yes(message.token),
                }
                all.push(message);
            }
            self.pass(Duration::from_millis(100));
        }
        all
    }
}

fn mqtt_5() -> Offer {
    Offer {
        version: "5".into(),
        ..Offer::default()
    }
}

fn has(message: &Message, seq: u64) -> bool {
    let text = String::from_utf8_lossy(&message.payload);
    text.contains(&format!("\"seq\":{seq},"))
}

fn on(messages: &[Message], topic: Topic) -> usize {
    messages
        .iter()
        .filter(|message| message.topic == topic)
        .count()
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn nobody_listens_is_known_and_the_record_counts_as_confirmed() {
    let mut story = Story::begin(mqtt_5(), |_| {});
    story.record();
    assert_eq!(story.delivery.heard(), None);
    let sent = story.take();
    story
        .delivery
        .unheard(sent[0].token, story.now, &mut story.timers);
    assert_eq!(story.delivery.heard(), Some(false));
    assert_eq!(story.delivery.backlog(), 0);
    assert_eq!(
        story.delivery.refused_so_far().collect::<Vec<_>>(),
        [(Refusal::Unheard, 1)]
    );
    story.record();
    let sent = story.take();
    story.yes(sent[0].token);
    assert_eq!(story.delivery.heard(), Some(true));
    story.pass(MINUTE);
    assert_eq!(story.take(), [], "neither is sent again");
    // At QoS 2 and with 3.1.1 nobody can know.
    for (offer, qos) in [(mqtt_5(), 2), (Offer::default(), 1)] {
        let mut story = Story::begin(offer, |settings| settings.qos = qos);
        story.record();
        let sent = story.take();
        story.yes(sent[0].token);
        assert_eq!(story.delivery.heard(), None);
    }
}

#[test]
fn with_require_listener_what_nobody_hears_is_kept_and_comes_behind_others() {
    let mut story = Story::begin(mqtt_5(), |settings| settings.require_listener = true);
    story.records(3);
    let sent = story.take();
    // The second one meets nobody.
    story.yes(sent[0].token);
    story
        .delivery
        .unheard(sent[1].token, story.now, &mut story.timers);
    story.turn();
    story.yes(sent[2].token);
    let again = story.answer_for(MINUTE, |_| None);
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].topic, Topic::History);
    assert!(has(&again[0], 2));
    assert_eq!(story.delivery.backlog(), 0);
    // With nobody at all, everything is kept, and little is sent in vain.
    story.records(50);
    let in_vain = story.answer_for(5 * MINUTE, |_| Some(Refusal::Unheard));
    assert!(on(&in_vain, Topic::History) < 20, "{}", in_vain.len());
    assert_eq!(story.delivery.backlog(), 50);
    // Somebody comes: a live reading shows it, and the rest follows.
    story.record();
    let all = story.answer_for(MINUTE, |_| None);
    assert_eq!(story.delivery.backlog(), 0);
    assert!((4..=54).all(|seq| all.iter().any(|message| has(message, seq))));
}

#[test]
fn a_denied_topic_is_named_and_retried_slowly_and_the_rest_goes_on() {
    let mut story = Story::begin(mqtt_5(), |_| {});
    story.records(20);
    let denied = |message: &Message| (message.topic == Topic::Telemetry).then_some(Refusal::Denied);
    let sent = story.answer_for(5 * MINUTE, denied);
    // A window of them at first, then one after 30, 60, 120 s.
    assert!(
        on(&sent, Topic::Telemetry) <= 20,
        "{}",
        on(&sent, Topic::Telemetry)
    );
    assert_eq!(story.delivery.backlog(), 0, "they went as history");
    story.records(5);
    story.answer_for(MINUTE, denied);
    assert_eq!(story.delivery.backlog(), 0);
    let Some(crate::link::Pattern::Said(said)) = story.delivery.pattern() else {
        panic!("{:?}", story.delivery.pattern());
    };
    let expected = (
        Sent::Publish(Topic::Telemetry),
        Refusal::Denied,
        "so it says".to_owned(),
    );
    assert_eq!(said, [expected]);
    // The access list is mended: a reading shows it within the hour.
    for _ in 0..60 {
        story.record();
        story.answer_for(MINUTE, |_| None);
    }
    assert_eq!(story.delivery.pattern(), None);
    story.record();
    assert_eq!(on(&story.take(), Topic::Telemetry), 1);
    assert_eq!(story.dead_letters.len(), 0);
}

#[test]
fn denied_history_stays_and_holds_up_no_reading() {
    let mut story = Story::begin(mqtt_5(), |_| {});
    story
        .delivery
        .link_down(Ending::Lost, &story.clock, story.now, &mut story.timers);
    story.records(50);
    story.pass(Duration::from_secs(20));
    story.connect(mqtt_5());
    let denied = |message: &Message| (message.topic == Topic::History).then_some(Refusal::Denied);
    let sent = story.answer_for(5 * MINUTE, denied);
    assert!(
        on(&sent, Topic::History) < 30,
        "{}",
        on(&sent, Topic::History)
    );
    assert_eq!(story.delivery.backlog(), 50);
    story.record();
    let sent = story.answer_for(Duration::from_secs(1), denied);
    assert_eq!(on(&sent, Topic::Telemetry), 1);
    story.answer_for(60 * MINUTE, |_| None);
    assert_eq!(story.delivery.backlog(), 0, "mended");
}

#[test]
fn a_quota_slows_down_and_loses_nothing() {
    let mut story = Story::begin(mqtt_5(), |settings| settings.batch = 10);
    story
        .delivery
        .link_down(Ending::Lost, &story.clock, story.now, &mut story.timers);
    story.records(100);
    story.pass(Duration::from_secs(20));
    story.connect(mqtt_5());
    let sent = story.answer_for(Duration::from_secs(30), |_| Some(Refusal::Quota));
    assert!(sent.len() < 30, "{}", sent.len());
    story.answer_for(2 * MINUTE, |_| None);
    assert_eq!(story.delivery.backlog(), 0);
    assert_eq!(story.dead_letters.len(), 0);
}

#[test]
fn a_payload_that_is_not_taken_is_a_dead_letter_when_others_are_taken() {
    for batch in [1, 10] {
        let mut story = Story::begin(mqtt_5(), |settings| settings.batch = batch);
        story
            .delivery
            .link_down(Ending::Lost, &story.clock, story.now, &mut story.timers);
        story.records(30);
        story.pass(Duration::from_secs(20));
        story.connect(mqtt_5());
        let poison = |message: &Message| has(message, 7).then_some(Refusal::Payload);
        let sent = story.answer_for(2 * MINUTE, poison);
        assert_eq!(story.dead_letters.len(), 1, "{:?}", story.log);
        assert!(story.dead_letters[0].contains("\"seq\":7,"));
        assert_eq!(story.delivery.backlog(), 0);
        let loss = |message: &Message| {
            String::from_utf8_lossy(&message.payload).contains("\"from_seq\":7,\"to_seq\":7")
        };
        assert!(sent.iter().any(loss), "told as lost");
        assert!((1..=30).all(|seq| sent.iter().any(|message| has(message, seq))));
    }
}

#[test]
fn a_broker_that_takes_no_payload_at_all_makes_no_dead_letters() {
    for refusal in [Refusal::Payload, Refusal::Unclear] {
        let mut story = Story::begin(mqtt_5(), |_| {});
        story.records(10);
        story.answer_for(10 * MINUTE, |_| Some(refusal));
        assert_eq!(story.dead_letters.len(), 0, "{refusal:?}");
        assert_eq!(story.delivery.backlog(), 10, "{refusal:?}");
        for _ in 0..30 {
            story.record();
            story.answer_for(MINUTE, |_| None);
        }
        assert_eq!(story.delivery.backlog(), 0, "{refusal:?}");
    }
}

#[test]
fn a_record_that_is_refused_without_a_reason_is_given_up_in_the_end() {
    let mut story = Story::begin(mqtt_5(), |_| {});
    let unclear = |message: &Message| has(message, 3).then_some(Refusal::Unclear);
    for _ in 0..240 {
        story.record();
        story.answer_for(Duration::from_secs(15), unclear);
    }
    assert_eq!(story.dead_letters.len(), 1, "{:?}", story.log);
    assert_eq!(story.delivery.backlog(), 0);
}

#[test]
fn a_batch_is_made_to_fit_and_a_record_too_large_alone_is_a_dead_letter() {
    let small = Offer {
        max_packet: Some(600),
        max_payload: Some(500),
        ..mqtt_5()
    };
    let mut story = Story::begin(small.clone(), |settings| settings.batch = 100);
    story
        .delivery
        .link_down(Ending::Lost, &story.clock, story.now, &mut story.timers);
    story.records(50);
    story.pass(Duration::from_secs(20));
    story.connect(small);
    let sent = story.answer_for(MINUTE, |message| {
        (message.payload.len() > 500 || has(message, 9)).then_some(Refusal::TooLarge)
    });
    assert!(sent.iter().all(|message| message.payload.len() <= 500));
    assert!(
        sent.iter().any(|message| message.payload.len() > 300),
        "several in one"
    );
    assert_eq!(story.dead_letters.len(), 1);
    assert_eq!(story.delivery.backlog(), 0);
}

#[test]
fn no_more_is_in_flight_than_the_broker_takes() {
    let few = Offer {
        receive_max: 3,
        ..mqtt_5()
    };
    let mut story = Story::begin(few, |_| {});
    story.records(10);
    assert_eq!(story.take().len(), 3);
}

#[test]
fn with_a_maximum_of_qos_0_nothing_counts_as_confirmed() {
    let none = Offer {
        max_qos: 0,
        ..mqtt_5()
    };
    let mut story = Story::begin(none.clone(), |_| {});
    assert!(
        story
            .log
            .iter()
            .any(|line| line.contains("confirms nothing")),
        "{:?}",
        story.log
    );
    story.records(5);
    let sent = story.answer_for(MINUTE, |_| None);
    assert_eq!(on(&sent, Topic::Telemetry), 5, "each goes out once");
    assert_eq!(sent.len(), 5);
    assert_eq!(story.disk.len(), 5, "and all are kept");
    // A broker that confirms gets them.
    story
        .delivery
        .link_down(Ending::Lost, &story.clock, story.now, &mut story.timers);
    story.pass(Duration::from_secs(20));
    story.connect(mqtt_5());
    let sent = story.answer_for(MINUTE, |_| None);
    assert_eq!(on(&sent, Topic::History), 5);
    assert_eq!(story.delivery.backlog(), 0);
}

#[test]
fn a_refused_subscription_is_tried_again_in_its_time() {
    let mut story = Story::begin(mqtt_5(), |_| {});
    let (token, _) = story.subscriptions[0];
    story
        .delivery
        .subscription_refused(token, "not authorised", story.now);
    story.pass(Duration::from_secs(20));
    assert_eq!(story.subscriptions.len(), 1);
    story.pass(Duration::from_secs(15));
    assert_eq!(story.subscriptions.len(), 2);
    let (token, _) = story.subscriptions[1];
    story.yes(token);
    story.pass(10 * MINUTE);
    assert_eq!(story.subscriptions.len(), 2);
    assert_eq!(story.delivery.pattern(), None);
}

#[test]
fn a_broker_that_takes_no_record_of_any_size_is_not_flooded_and_nothing_is_given_up() {
    for refusal in [Refusal::TooLarge, Refusal::Payload] {
        let tiny = Offer {
            max_packet: Some(30),
            max_payload: Some(0),
            ..mqtt_5()
        };
        let mut story = Story::begin(tiny, |settings| settings.batch = 100);
        story.records(300);
        let sent = story.answer_for(10 * MINUTE, |_| Some(refusal));
        assert!(sent.len() < 150, "{refusal:?}: {}", sent.len());
        assert_eq!(story.dead_letters.len(), 0, "{refusal:?}");
        assert_eq!(story.delivery.backlog(), 300);
        assert!(story.delivery.pattern().is_some(), "an operator is told");
    }
}

#[test]
fn a_refused_reply_says_nothing_about_the_results_of_others() {
    let mut story = Story::begin(mqtt_5(), |_| {});
    let reply_to = ReplyTo {
        topic: "pi/answers".into(),
        correlation: None,
    };
    for refusal in [Refusal::Denied, Refusal::Quota, Refusal::TooLarge] {
        story
            .delivery
            .publish_reply(reply_to.clone(), b"{}".to_vec());
        story.turn();
        let sent = story.take();
        assert_eq!(sent.len(), 1);
        story.no(sent[0].token, refusal);
        assert_eq!(story.delivery.pattern(), None);
        story
            .delivery
            .publish_control(Topic::Results, b"{}".to_vec(), false);
        story.turn();
        let sent = story.take();
        assert_eq!(sent.len(), 1, "the next result goes out at once");
        story.yes(sent[0].token);
    }
    // And the other way about.
    story
        .delivery
        .publish_control(Topic::Results, b"{}".to_vec(), false);
    story.turn();
    let sent = story.take();
    story.no(sent[0].token, Refusal::Denied);
    story.delivery.publish_reply(reply_to, b"{}".to_vec());
    story.turn();
    let sent = story.take();
    assert_eq!(sent.len(), 1);
    story.yes(sent[0].token);
    assert!(
        story.delivery.pattern().is_some(),
        "results are refused as before"
    );
}

#[test]
fn a_topic_that_is_tried_with_a_message_of_a_wrong_payload_opens() {
    let mut story = Story::begin(mqtt_5(), |_| {});
    story.records(3);
    let sent = story.take();
    story.no(sent[1].token, Refusal::Quota);
    story.yes(sent[0].token);
    story.yes(sent[2].token);
    story.pass(Duration::from_secs(2));
    story.record();
    // What goes out to see is not taken for what it carries.
    for message in story.take() {
        story.no(message.token, Refusal::Payload);
    }
    story.record();
    assert_eq!(on(&story.take(), Topic::Telemetry), 1);
}

#[test]
fn results_and_records_share_what_the_broker_takes_at_a_time_and_neither_starves() {
    for most in [1, 2, 5] {
        let few = Offer {
            receive_max: most,
            ..mqtt_5()
        };
        let mut story = Story::begin(few, |_| {});
        let (subscription, _) = story.subscriptions[0];
        story.yes(subscription);
        let answers = |story: &mut Story| {
            story
                .delivery
                .publish_control(Topic::Results, b"{}".to_vec(), false);
        };
        story.records(40);
        (0..40).for_each(|_| answers(&mut story));
        story.turn();
        let (mut waiting, mut all) = (VecDeque::new(), Vec::new());
        while all.len() < 60 {
            waiting.extend(story.take());
            assert!(waiting.len() <= usize::from(most), "{}", waiting.len());
            let message: Message = waiting.pop_front().unwrap();
            story.yes(message.token);
            all.push(message);
            // A flood of commands.
            answers(&mut story);
        }
        let results = on(&all, Topic::Results);
        assert!((20..=40).contains(&results), "{most}: {results} of 60");
    }
}

/// How many sessions the broker ends with `ending` while more than `takes` says goes out at once.
fn sessions_until_it_holds(
    story: &mut Story,
    ending: Ending,
    too_much: impl Fn(&[Message]) -> bool,
) -> u32 {
    for ended in 0..30 {
        let (subscription, _) = story.subscriptions[story.subscriptions.len() - 1];
        story.yes(subscription);
        let mut waiting: VecDeque<Message> = VecDeque::new();
        let mut quiet = 0;
        let is_over = loop {
            waiting.extend(story.take());
            if too_much(waiting.make_contiguous()) {
                break true;
            }
            match waiting.pop_front() {
                Some(message) => {
                    quiet = 0;
                    story.yes(message.token);
                }
                None if quiet > 50 => break false,
                None => {
                    quiet += 1;
                    story.pass(Duration::from_millis(100));
                }
            }
        };
        if !is_over {
            return ended;
        }
        story
            .delivery
            .link_down(ending, &story.clock, story.now, &mut story.timers);
        story.pass(Duration::from_secs(1));
        story.connect(mqtt_5());
    }
    panic!("it never holds: {:?}", story.log);
}

#[test]
fn a_broker_that_lies_about_its_limits_is_believed_when_it_says_why_it_hangs_up() {
    let waiting = |change: fn(&mut DeliverySettings)| {
        let mut story = Story::begin(mqtt_5(), change);
        story
            .delivery
            .link_down(Ending::Lost, &story.clock, story.now, &mut story.timers);
        story.records(200);
        story.pass(Duration::from_secs(20));
        story.connect(mqtt_5());
        story
    };
    let mut story = waiting(|_| {});
    let ended = sessions_until_it_holds(&mut story, Ending::TooMany, |all| all.len() > 3);
    assert!((1..=4).contains(&ended), "{ended} sessions");
    assert_eq!(story.delivery.backlog(), 0);
    assert!(
        story
            .log
            .iter()
            .any(|line| line.contains("fewer publications"))
    );
    let mut story = waiting(|settings| settings.batch = 100);
    let large = |all: &[Message]| all.iter().any(|message| message.payload.len() > 1_000);
    let ended = sessions_until_it_holds(&mut story, Ending::TooLarge, large);
    assert!((1..=6).contains(&ended), "{ended} sessions");
    assert_eq!(story.delivery.backlog(), 0);
    assert!(
        story
            .log
            .iter()
            .any(|line| line.contains("smaller packets"))
    );
    assert_eq!(story.dead_letters.len(), 0);
    assert_eq!(story.delivery.pattern(), None, "no topic is blamed");
}

#[test]
fn where_nothing_is_left_to_make_smaller_a_session_ended_as_any_other() {
    let mut story = Story::begin(mqtt_5(), |_| {});
    for _ in 0..8 {
        story.record();
        for ending in [Ending::TooMany, Ending::TooLarge] {
            story
                .delivery
                .link_down(ending, &story.clock, story.now, &mut story.timers);
            story.pass(Duration::from_secs(1));
            story.connect(mqtt_5());
        }
    }
    assert!(story.delivery.pattern().is_some(), "an operator is told");
}
