//! What the ends of sessions say about the broker: how long to wait for the next try, what to hold back,
//! and what to tell the operator.
//!
//! What a broker of MQTT 5 refuses with a reason is in `refusals`, and what it offers in `offer`. MQTT 3.1.1 has no word for "you may not do that": a broker acknowledges and drops, or closes the
//! connection. From outside, an access list without one topic, a second client of our id and a broken
//! line look alike. So this part remembers over several sessions what was left unanswered when they ended:
//!
//! - Short sessions that are closed from the other end make the wait before the next try longer: up to 5 s
//!   when they carried records, and up to 30 s when they did not. A session of a minute ends the series, and
//!   so does a broker that is not there in between: then it is the broker that restarts, not one that
//!   does not want us.
//! - A topic that three sessions in a row died of, each while the broker answered other messages, is held
//!   back for 30 s, then tried again, then held back for twice as long, up to an hour. Everything else goes on.
//! - Sessions that are closed again and again with nothing unanswered look like a second client of our id.

mod offer;
mod refusals;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::backoff::{doubled, jittered};
use super::delivery::Topic;
pub use offer::Offer;
pub use refusals::Refusal;
use refusals::Refusals;

/// An outage is over when the link has been up for so long; a shorter session is part of it.
pub(crate) const HELD: Duration = Duration::from_secs(10);

/// The least that tries to connect are spread over: the first try after a session comes within so long. Of many
/// devices that come back at once, each tries once in about such a time.
pub const MIN_CONNECT_SPREAD: Duration = Duration::from_millis(500);
/// The wait between two tries to connect is a quarter of the time since the last session, within these, but on
/// average not less than the spread.
const BACKOFF_FIRST: Duration = MIN_CONNECT_SPREAD;
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The longest first wait after short sessions: when they carried records, when it looks as if a second
/// client had our id, and when they carried nothing or the broker refuses us.
const BACKOFF_USEFUL: Duration = Duration::from_secs(5);
const BACKOFF_SECOND_CLIENT: Duration = Duration::from_secs(10);
const BACKOFF_USELESS: Duration = Duration::from_secs(30);
/// A session that lasts so long ends a series of short ones.
const LONG: Duration = Duration::from_secs(60);
/// More short sessions in a row make no difference.
const MAX_SHORT: u32 = 10;
/// So many short sessions in a row do not make the wait longer, and more than the second make no difference.
const UNWELCOME_FROM: u32 = 2;
const MAX_UNWELCOME: u32 = 10;
/// So many sessions in a row make a pattern.
const PATTERN: u32 = 3;
/// A topic is held back for so long at first, and never longer than the second.
const HOLD_FIRST: Duration = Duration::from_secs(30);
const MAX_HOLD: Duration = Duration::from_secs(3_600);
/// What the last session died of goes out so long after the next one began, and up to the second later.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);
const SUSPECT_SPREAD: Duration = Duration::from_secs(3);

/// How a session ended, or why there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The broker was not reached, or the line to it broke.
    Lost,
    /// The broker refused the session, or the configuration allows none: trying again soon is no use.
    Refused,
    /// The connection was closed from the other end.
    Closed,
    /// The same, and the broker says why: more publications at a time than it takes.
    TooMany,
    /// The same: a packet that is larger than it takes.
    TooLarge,
    /// The broker confirmed nothing for too long, and was left.
    Stalled,
}

/// The topics that are subscribed to; their names are the configuration's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Inbound {
    /// Commands.
    Commands,
    /// The server's acks.
    Acks,
    /// Signs of life of the server.
    ServerStatus,
    /// Home Assistant's status, where that is not the server's.
    HomeAssistant,
}

/// A message to the broker that it has to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sent {
    /// A subscription.
    Subscribe(Inbound),
    /// A publication.
    Publish(Topic),
}

/// What the configuration calls this device and its topics; for messages to the operator, and for what is subscribed to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device id.
    pub device: String,
    /// The broker, as a URL without user and password.
    pub broker: String,
    /// The sensor's driver.
    pub sensor: String,
    /// The unit of light and thresholds, where it is known.
    pub unit: Option<String>,
    /// The MQTT client id.
    pub client_id: String,
    /// The topics.
    pub topics: BTreeMap<Sent, String>,
}

/// A session that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionEnd {
    /// How long it was.
    pub length: Duration,
    /// The oldest message that the broker had not answered.
    pub unanswered: Option<Sent>,
    /// Whether the broker had answered the same kind of message in this session.
    pub answered_before: bool,
    /// What was sent last.
    pub last: Option<Sent>,
}

/// What was seen of the sessions of this run.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    /// What tries to connect are spread over.
    spread: Duration,
    /// When the session under way, or the last one, began.
    since: Duration,
    /// When the last session ended, or the run began.
    ended_at: Duration,
    /// Tries to connect since then.
    tries: u32,
    /// What the broker has answered in this session.
    answered: BTreeSet<Sent>,
    last: Option<Sent>,
    /// The broker has confirmed a record in this session.
    useful: bool,
    /// Sessions in a row in which it has confirmed none.
    useless: u32,
    /// Short sessions; a longer one halves it.
    short: u32,
    /// Short sessions that were closed from the other end, with the broker there whenever we asked.
    unwelcome: u32,
    /// Sessions in a row that were closed from the other end soon after they began.
    closed: u32,
    /// Those among them in which the broker had answered nothing.
    unheard: u32,
    /// Those among them in which it had answered everything.
    unexplained: u32,
    /// What the last session died of, and is not sent in this one before `suspect_at`.
    suspect: Option<Sent>,
    suspect_at: Duration,
    gates: BTreeMap<Sent, Gate>,
    /// Subscriptions that the broker has refused, and not taken since.
    refused: BTreeSet<Inbound>,
    /// What the broker refuses with a reason.
    refusals: Refusals,
}

/// A topic that sessions died of.
#[derive(Debug, Clone, Default)]
struct Gate {
    /// How many in a row.
    sessions: u32,
    /// Held back until then.
    opens_at: Option<Duration>,
}

impl Sessions {
    /// None yet; tries to connect are spread over `spread`.
    pub(super) fn new(spread: Duration, now: Duration) -> Self {
        Self {
            spread: spread.max(MIN_CONNECT_SPREAD),
            since: now,
            ended_at: now,
            tries: 0,
            answered: BTreeSet::new(),
            last: None,
            useful: false,
            useless: 0,
            short: 0,
            unwelcome: 0,
            closed: 0,
            unheard: 0,
            unexplained: 0,
            suspect: None,
            suspect_at: now,
            gates: BTreeMap::new(),
            refused: BTreeSet::new(),
            refusals: Refusals::default(),
        }
    }

    /// How long the first try of the run waits, so that a building whose power comes back does not connect in one
    /// moment; `random` gives a number in 0..1, if there is something to spread.
    pub(super) fn first_wait(&self, random: impl FnOnce() -> f64) -> Duration {
        match self.spread.saturating_sub(MIN_CONNECT_SPREAD) {
            Duration::ZERO => Duration::ZERO,
            rest => rest.mul_f64(random()),
        }
    }

    /// A session begins; `random` is in 0..1. What the last one died of goes out at a random moment, so
    /// that a session that ends by itself does not seem to die of it again.
    pub(super) fn begin(&mut self, random: f64, now: Duration) {
        self.since = now;
        self.suspect_at = now + SUSPECT_AFTER + SUSPECT_SPREAD.mul_f64(random);
        self.answered.clear();
        self.refusals.begin(now);
        self.last = None;
        self.useful = false;
    }

    /// A message goes out.
    pub(super) fn send(&mut self, sent: Sent) {
        self.last = Some(sent);
        self.refusals.send(sent);
    }

    /// The same, on a topic that somebody else named.
    pub(super) fn send_reply(&mut self, sent: Sent) {
        self.last = Some(sent);
    }

    /// The broker has answered a message.
    pub(super) fn answer(&mut self, sent: Sent) {
        self.answered.insert(sent);
        self.refusals.allow(sent);
        self.gates.remove(&sent);
        if let Sent::Subscribe(inbound) = sent {
            self.refused.remove(&inbound);
        }
    }

    /// The broker has refused a message.
    pub(super) fn refuse(&mut self, sent: Sent, refusal: Refusal, why: &str, now: Duration) {
        self.answered.insert(sent);
        self.gates.remove(&sent);
        self.refusals.refuse(sent, refusal, why, now);
        if let Sent::Subscribe(inbound) = sent {
            self.refused.insert(inbound);
        }
    }

    /// The broker has refused a message for what it carries, and takes others on its topic.
    pub(super) fn refuse_message(&mut self, sent: Sent) {
        self.answered.insert(sent);
        self.gates.remove(&sent);
        self.refusals.allow(sent);
    }

    /// Somebody listens, as the broker says.
    pub(super) fn is_heard(&mut self) {
        self.refusals.is_heard();
    }

    /// Whether the broker has taken a record in this session.
    pub(super) fn is_useful(&self) -> bool {
        self.useful
    }

    /// The broker has taken a record.
    pub(super) fn carry(&mut self) {
        self.useful = true;
    }

    /// The session is over. `unanswered` is the oldest message without an answer; `knows` is false where
    /// some messages get none (QoS 0), so that nothing follows from having all of them. With a record
    /// `on_trial`, it is that record and not its topic that is to blame.
    pub(super) fn end(
        &mut self,
        ending: Ending,
        unanswered: Option<Sent>,
        knows: bool,
        on_trial: bool,
        now: Duration,
    ) -> SessionEnd {
        let length = now.saturating_sub(self.since);
        self.ended_at = now;
        self.tries = 0;
        let is_useless = ending == Ending::Stalled && !self.useful;
        let is_short = is_useless || length < HELD;
        self.useless = if self.useful { 0 } else { self.useless + 1 };
        self.unwelcome = match ending {
            _ if ending != Ending::Lost && is_short => (self.unwelcome + 1).min(MAX_UNWELCOME),
            _ if length < LONG => self.unwelcome / 2,
            _ => 0,
        };
        self.short = match ending {
            _ if ending != Ending::Lost && is_short => (self.short + 1).min(MAX_SHORT),
            _ if is_short => (self.short / 2).max(1),
            _ if length < LONG => self.short / 2,
            _ => 0,
        };
        if length >= LONG {
            (self.closed, self.unheard, self.unexplained) = (0, 0, 0);
        }
        let answered_before = unanswered.is_some_and(|sent| self.answered.contains(&sent));
        if let Some(innocent) = self.suspect.take() {
            self.gates.remove(&innocent);
        }
        if ending == Ending::Closed {
            if length < LONG {
                let (heard, all) = (!self.answered.is_empty(), unanswered.is_none());
                self.closed += 1;
                self.unheard = if heard { 0 } else { self.unheard + 1 };
                // One that dies of a message says nothing about those that do not.
                self.unexplained += u32::from(heard && all && knows);
            }
            if let Some(sent) = unanswered.filter(|_| !answered_before && !on_trial) {
                self.suspect = Some(sent);
                self.blame(sent, now);
            }
        } else {
            (self.closed, self.unheard, self.unexplained) = (0, 0, 0);
        }
        SessionEnd {
            length,
            unanswered,
            answered_before,
            last: self.last,
        }
    }

    /// Only where the broker has answered something else in the same session.
    fn blame(&mut self, sent: Sent, now: Duration) {
        if self.answered.is_empty() {
            return;
        }
        let gate = self.gates.entry(sent).or_default();
        gate.sessions += 1;
        if let Some(more) = gate.sessions.checked_sub(PATTERN) {
            gate.opens_at = Some(now + doubled(HOLD_FIRST, more, MAX_HOLD));
        }
    }

    /// A try to connect made no session.
    pub(super) fn fail(&mut self, ending: Ending) {
        if ending == Ending::Lost {
            self.refusals.broker_was_away();
            self.short /= 2;
            self.unwelcome = 0;
            (self.closed, self.unheard, self.unexplained) = (0, 0, 0);
        }
    }

    /// How long to wait for the next try; `random` is in 0..1, so that many Pis do not come back in step.
    pub(super) fn wait(&mut self, ending: Ending, random: f64, now: Duration) -> Duration {
        // A session that a restart cut off before anything was confirmed does not make the others useless.
        let most = match self.useless < PATTERN {
            true if self.unexplained >= PATTERN => BACKOFF_SECOND_CLIENT,
            true => BACKOFF_USEFUL,
            false => BACKOFF_USELESS,
        };
        let away = now.saturating_sub(self.ended_at);
        self.tries += 1;
        let longest = match self.tries {
            _ if ending == Ending::Refused => BACKOFF_USELESS,
            // The first ones may be a broker that restarts: asked soon, it is seen to be away.
            1 => {
                let doublings = self.unwelcome.saturating_sub(UNWELCOME_FROM);
                doubled(BACKOFF_FIRST, doublings, most)
            }
            _ => (away / 4).clamp(BACKOFF_FIRST, BACKOFF_MAX),
        };
        let wait = jittered(longest, random);
        if self.spread == MIN_CONNECT_SPREAD {
            return wait;
        }
        // The first tries fill the spread evenly; later ones follow at its pace, three quarters of `longest` each.
        let spread = match self.tries {
            1 => self.spread.mul_f64(random),
            _ => jittered(self.spread * 4 / 3, random),
        };
        wait.max(spread)
    }

    /// Whether the broker has answered such a message in this session.
    pub(super) fn has_answered_to(&self, sent: Sent) -> bool {
        self.answered.contains(&sent)
    }

    /// Whether the broker has answered anything in this session.
    pub(super) fn has_answered(&self) -> bool {
        !self.answered.is_empty()
    }

    /// Whether the last sessions were short.
    pub(super) fn is_flapping(&self) -> bool {
        self.short > 1
    }

    /// Opens what has been held back for long enough.
    pub(super) fn tick(&mut self, now: Duration) {
        for gate in self.gates.values_mut() {
            gate.opens_at.take_if(|at| now >= *at);
        }
        self.refusals.tick(now);
        self.suspect.take_if(|_| now >= self.suspect_at);
        if now >= self.since + LONG {
            (self.closed, self.unheard, self.unexplained) = (0, 0, 0);
        }
    }

    /// Whether `sent` is not to go out for some time.
    pub(super) fn holds_back(&self, sent: Sent) -> bool {
        let gate = self.gates.get(&sent);
        gate.is_some_and(|gate| gate.opens_at.is_some()) || self.refusals.holds_back(sent)
    }

    /// Whether `sent` is not to go out at this moment.
    pub(super) fn must_wait(&self, sent: Sent) -> bool {
        self.is_suspect(sent) || self.refusals.holds_back(sent)
    }

    /// Whether `sent` waits because sessions ended after it.
    pub(super) fn is_suspect(&self, sent: Sent) -> bool {
        let gate = self.gates.get(&sent);
        self.suspect == Some(sent) || gate.is_some_and(|gate| gate.opens_at.is_some())
    }

    /// When something that is held back may go out, in a session.
    pub(super) fn next_opening(&self) -> Option<Duration> {
        let suspect = self.suspect.map(|_| self.suspect_at);
        let gates = self.gates.values().filter_map(|gate| gate.opens_at);
        gates
            .chain(suspect)
            .chain(self.refusals.next_opening())
            .min()
    }

    /// What the last sessions have in common; none, when it is nothing.
    pub(super) fn pattern(&self) -> Option<Pattern> {
        let blamed = |(sent, gate): (&Sent, &Gate)| (gate.sessions >= PATTERN).then_some(*sent);
        let held_back: Vec<Sent> = self.gates.iter().filter_map(blamed).collect();
        let said: Vec<_> = self
            .refusals
            .in_force()
            .map(|(sent, refusal, why)| (sent, refusal, why.to_owned()))
            .collect();
        if !held_back.is_empty() {
            Some(Pattern::HeldBack(held_back))
        } else if said.iter().any(|(_, _, why)| !why.is_empty()) {
            Some(Pattern::Said(said))
        } else if self.unexplained >= PATTERN {
            Some(Pattern::SecondClient)
        } else if self.unheard >= PATTERN {
            Some(Pattern::Unheard)
        } else {
            let refused = || Pattern::Refused(self.refused.iter().copied().collect());
            match self.closed {
                PATTERN.. => Some(Pattern::Closed),
                _ => (!self.refused.is_empty()).then(refused),
            }
        }
    }
}

/// What several sessions in a row have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// They died of these messages, which are held back.
    HeldBack(Vec<Sent>),
    /// They were closed with nothing unanswered.
    SecondClient,
    /// They were closed before the broker had answered anything.
    Unheard,
    /// They were closed.
    Closed,
    /// The broker refuses these, and says why.
    Said(Vec<(Sent, Refusal, String)>),
    /// In the last one the broker refused these subscriptions.
    Refused(Vec<Inbound>),
}

impl Pattern {
    /// For an operator: what was seen, the likely cause, what to do.
    pub(crate) fn in_words(&self, device: &DeviceInfo) -> String {
        match self {
            Self::HeldBack(sent) => {
                let each: Vec<String> = sent.iter().map(|sent| device.held_back(*sent)).collect();
                format!(
                    "the broker closes the connection after {}; check the broker's access list; \
                     the rest goes on, and this is tried again now and then",
                    each.join(", ")
                )
            }
            Self::Said(all) => {
                let each = all.iter().map(|(sent, refusal, why)| {
                    let slower = match refusal {
                        Refusal::Quota => "; this is sent more slowly",
                        _ => "",
                    };
                    format!("{}: {why}{slower}", device.held_back(*sent))
                });
                let each: Vec<String> = each.collect();
                format!(
                    "the broker refuses {}; the rest goes on, and this is tried again now and then",
                    each.join(", and ")
                )
            }
            Self::Refused(inbound) => {
                let subscriptions = inbound.iter().map(|inbound| Sent::Subscribe(*inbound));
                let each: Vec<String> = subscriptions.map(|sent| device.held_back(sent)).collect();
                format!(
                    "the broker refuses {}; check the broker's access list",
                    each.join(", ")
                )
            }
            Self::SecondClient => format!(
                "several times in a row the broker accepted us and soon closed the connection again, with \
                 nothing unanswered: most likely another client uses the client id {:?} (a cloned card, a second \
                 daemon); each device needs its own device.id",
                device.client_id
            ),
            Self::Unheard => {
                "several times in a row the broker accepted us and closed the connection before \
                 it answered anything: look into the broker's log"
                    .into()
            }
            Self::Closed => {
                "several times in a row the broker accepted us and soon closed the connection \
                 again: look into the broker's log"
                    .into()
            }
        }
    }
}

impl SessionEnd {
    /// For an operator: what a session that was closed from the other end died of, as far as is known.
    pub(crate) fn in_words(&self, device: &DeviceInfo) -> String {
        let mut words = match self.unanswered {
            Some(sent) if self.answered_before => {
                format!(
                    "the first message without an answer was {}",
                    device.of(sent)
                )
            }
            Some(sent) => format!(
                "the first message without an answer was {}: does its access list allow that?",
                device.of(sent)
            ),
            None => "no message was without an answer".into(),
        };
        if let Some(last) = self.last.filter(|last| Some(*last) != self.unanswered) {
            words += &format!("; sent last: {}", device.of(last));
        }
        words
    }
}

impl DeviceInfo {
    /// The topics to subscribe to.
    pub(super) fn inbound(&self) -> impl Iterator<Item = Inbound> {
        self.topics.keys().filter_map(|sent| match sent {
            Sent::Subscribe(inbound) => Some(*inbound),
            Sent::Publish(_) => None,
        })
    }

    fn of(&self, sent: Sent) -> String {
        let topic = self.topics.get(&sent).map_or("?", String::as_str);
        match sent {
            Sent::Subscribe(_) => format!("the subscription to {topic}"),
            Sent::Publish(_) => format!("a publication to {topic}"),
        }
    }

    /// With what it means that it is held back.
    fn held_back(&self, sent: Sent) -> String {
        let means = match sent {
            Sent::Subscribe(Inbound::Commands) => "no command comes",
            Sent::Subscribe(Inbound::Acks) => "no ack of the server comes",
            Sent::Subscribe(Inbound::ServerStatus) => "the server's status does not come",
            Sent::Subscribe(Inbound::HomeAssistant) => "Home Assistant's start is not heard",
            Sent::Publish(Topic::Telemetry) => "readings go to the history topic",
            Sent::Publish(Topic::Events) => "events go to the history topic",
            Sent::Publish(Topic::History) => "the backlog stays on this machine",
            Sent::Publish(Topic::Results) => "nobody hears what became of commands",
            Sent::Publish(Topic::State) => "state is not published",
            Sent::Publish(Topic::Status) => "online and offline are not published",
            Sent::Publish(Topic::Discovery) => "Home Assistant is not told of this device",
        };
        format!("{} ({means})", self.of(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 1,000 devices connect in each second after the broker is back, from an outage that began for all
    /// of them at once.
    fn arrivals(spread: Duration, outage: Duration) -> Vec<u32> {
        let mut per_second = vec![0; 60];
        for seed in 0..1_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut sessions = Sessions::new(spread, Duration::ZERO);
            // A session that had lasted.
            let began = Duration::ZERO;
            sessions.begin(rng.f64(), began);
            let lost = began + Duration::from_secs(3_600);
            sessions.end(Ending::Lost, None, true, false, lost);
            let mut now = lost + sessions.wait(Ending::Lost, rng.f64(), lost);
            while now < lost + outage {
                sessions.fail(Ending::Lost);
                now += sessions.wait(Ending::Lost, rng.f64(), now);
            }
            let second = (now - lost - outage).as_secs() as usize;
            per_second[second] += 1;
        }
        per_second
    }

    #[test]
    fn a_thousand_devices_come_back_at_most_150_a_second() {
        for outage in [0, 1, 5, 60, 3_600].map(Duration::from_secs) {
            let arrivals = arrivals(Duration::from_secs(10), outage);
            assert_eq!(arrivals.iter().sum::<u32>(), 1_000);
            let most = arrivals.iter().max();
            assert!(most <= Some(&150), "{outage:?}: {arrivals:?}");
            assert_eq!(
                arrivals[14..].iter().sum::<u32>(),
                0,
                "{outage:?}: {arrivals:?}"
            );
        }
    }

    #[test]
    fn one_at_home_is_back_at_once() {
        let arrivals = arrivals(MIN_CONNECT_SPREAD, Duration::from_secs(1));
        assert_eq!(arrivals[0], 1_000);
        let sessions = Sessions::new(Duration::ZERO, Duration::ZERO);
        assert_eq!(sessions.first_wait(|| 1.0), Duration::ZERO);
        let sessions = Sessions::new(Duration::from_secs(10), Duration::ZERO);
        assert_eq!(sessions.first_wait(|| 0.5), Duration::from_millis(4_750));
    }
}
