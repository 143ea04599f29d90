//! Commands: which of what came in may be obeyed, and when.
//!
//! [`parse`] reads the envelope; [`Inbox`] judges it: kept by the broker, repeated, expired, overtaken.
//! It does not touch the LED: the controller drains [`Inbox::poll`] and carries each verdict out.
//! Whatever arrives gets a verdict; nothing that arrives can do anything else.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lighting::{Mode, Rules};
use super::time::Now;

/// Larger payloads are refused unread.
const MAX_PAYLOAD: usize = 4096;
/// Ids of the last commands, to know a repeated one.
const IDS_KNOWN: usize = 256;
/// Commands that wait for a hole in the sequence; one more and the hole is passed.
const MAX_WAITING: usize = 64;
/// After the link came up, commands that waited at the broker arrive within this time of each other.
const SETTLE: Duration = Duration::from_millis(250);
/// A burst without an end counts as settled after this.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// What a command may look like and do.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Which of several commands counts.
    pub order: Order,
    /// How long a hole in the sequence is waited for.
    pub gap_wait: Duration,
    /// A plain payload taken as "LED on"; empty for none.
    pub on: String,
    /// A plain payload taken as "LED off"; empty for none.
    pub off: String,
    /// Whether `reboot` is obeyed.
    pub allow_reboot: bool,
    /// Whether a command that the broker kept is obeyed.
    pub accept_retained: bool,
}

/// Which of several commands counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The newest.
    Latest,
    /// Each, in the order of `seq`.
    Sequence,
}

/// A command, well-formed.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The sender's name for it, 1 to 64 characters.
    pub id: Option<String>,
    /// What is asked.
    pub action: Action,
    /// When it was given, in milliseconds since 1970.
    pub issued_at: Option<i64>,
    /// When it stops being good, in milliseconds since 1970.
    pub expires_at: Option<i64>,
    /// Its place among the sender's commands.
    pub seq: Option<i64>,
    /// How long it holds the LED.
    pub lease: Option<Duration>,
}

/// What a command asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// LED on or off.
    Led(bool),
    /// Read the sensor and answer with the reading.
    ReadNow,
    /// Change the rules.
    Set(Wish),
    /// End the daemon, to be started again.
    Restart,
    /// Restart the machine.
    Reboot,
}

/// The rules that `set` changes; `None` leaves one as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wish {
    on_below: Option<f64>,
    off_above: Option<f64>,
    mode: Option<Mode>,
    interval: Option<Duration>,
    /// Whether they outlive a restart.
    pub persist: bool,
}

impl Wish {
    /// The rules that come of it.
    pub fn over(&self, rules: Rules) -> Rules {
        Rules {
            mode: self.mode.unwrap_or(rules.mode),
            on_below: self.on_below.unwrap_or(rules.on_below),
            off_above: self.off_above.unwrap_or(rules.off_above),
            interval: self.interval.unwrap_or(rules.interval),
        }
    }
}

/// What is to become of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Carry it out.
    Obey(Command),
    /// Do nothing but tell the sender.
    Refuse {
        /// Its id, if it had a good one.
        id: Option<String>,
        /// Why.
        result: Outcome,
        /// Why, in words.
        reason: String,
    },
    /// Commands of the sequence never came: `from` to `to`.
    Missing {
        /// The first.
        from: i64,
        /// The last.
        to: i64,
    },
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Carried out.
    Applied,
    /// Already known by its id.
    Duplicate,
    /// Too late.
    Expired,
    /// A newer one counts.
    Superseded,
    /// Not understood or not allowed.
    Rejected,
}

/// Judges what comes in.
#[derive(Debug)]
pub struct Inbox {
    settings: Settings,
    known_ids: VecDeque<String>,
    fresh_ids: Vec<String>,
    /// So many of them are on their way to the disk.
    storing_ids: usize,
    settling: Option<Duration>,
    settled_by: Duration,
    /// Newest LED command while settling (order `latest`), or those after a hole (`sequence`).
    waiting: Vec<Command>,
    hole_until: Option<Duration>,
    last: Option<Place>,
    verdicts: VecDeque<Verdict>,
}

/// The place of the last obeyed LED command among those of its sender.
#[derive(Debug, Clone, Copy)]
struct Place {
    seq: Option<i64>,
    issued_at: Option<i64>,
}

impl Inbox {
    /// Knows no commands yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            known_ids: VecDeque::new(),
            fresh_ids: Vec::new(),
            storing_ids: 0,
            settling: None,
            settled_by: Duration::ZERO,
            waiting: Vec::new(),
            hole_until: None,
            last: None,
            verdicts: VecDeque::new(),
        }
    }

    /// Ids obeyed in earlier runs, oldest first.
    pub fn remember(&mut self, ids: Vec<String>) {
        for (place, id) in ids.into_iter().enumerate() {
            self.known_ids.insert(place.min(self.known_ids.len()), id);
        }
        while self.known_ids.len() > IDS_KNOWN {
            self.known_ids.pop_front();
        }
    }

    /// Ids that the disk does not know yet, to be stored now; then [`Inbox::ids_stored`] is told.
    pub fn fresh_ids(&mut self) -> Vec<String> {
        self.storing_ids = self.fresh_ids.len();
        self.fresh_ids.clone()
    }

    /// The disk knows those handed over last, or it failed and gets them again.
    pub fn ids_stored(&mut self, stored: bool) {
        let known = std::mem::take(&mut self.storing_ids);
        if stored {
            self.fresh_ids.drain(..known.min(self.fresh_ids.len()));
        }
    }

    /// The link is up: what waited at the broker comes now.
    pub fn link_up(&mut self, now: Duration) {
        self.settling = Some(now + SETTLE);
        self.settled_by = now + SETTLE_MAX;
    }

    /// The server was silent for its lease: if it comes back it may count anew.
    pub fn forget_order(&mut self) {
        self.last = None;
    }

    /// Something came in. `clock_known` says whether `now.wall_ms` can be trusted.
    pub fn receive(&mut self, payload: &[u8], retained: bool, now: Now, clock_known: bool) {
        let command = match parse(payload, &self.settings) {
            Ok(command) => command,
            Err(Unfit { id, reason }) => return self.refuse(id, Outcome::Rejected, reason),
        };
        let id = command.id.clone();
        if retained && !self.settings.accept_retained {
            let reason = "retained: it was given before, perhaps long ago; publish commands without the retain flag";
            return self.refuse(id, Outcome::Rejected, reason.into());
        }
        if id.as_ref().is_some_and(|id| self.known_ids.contains(id)) {
            let reason = "a command with this id has been seen";
            return self.refuse(id, Outcome::Duplicate, reason.into());
        }
        if let Some(reason) = expired(&command, now.wall_ms) {
            self.note(&command);
            return self.refuse(id, Outcome::Expired, reason);
        }
        let waited_at_broker = retained || self.settling.is_some();
        if command.expires_at.is_some() && !clock_known && waited_at_broker {
            let reason = "it waited at the broker and the clock is not set: nobody can tell whether it has expired";
            return self.refuse(id, Outcome::Rejected, reason.into());
        }
        self.note(&command);
        match (&command.action, self.settings.order) {
            (Action::Led(_), Order::Latest) => self.latest(command, now),
            (Action::Led(_), Order::Sequence) => self.sequence(command, now),
            _ => self.verdicts.push_back(Verdict::Obey(command)),
        }
    }

    /// Time has passed: the burst has settled, or a hole is passed.
    pub fn tick(&mut self, now: Now) {
        if self.settling.is_some_and(|until| now.boot >= until) {
            self.settling = None;
            if self.settings.order == Order::Latest {
                for command in std::mem::take(&mut self.waiting) {
                    self.obey_unless_overtaken(command, now.wall_ms);
                }
            }
        }
        if self.hole_until.is_some_and(|until| now.boot >= until) {
            self.pass_hole(now);
        }
    }

    /// What is to become of the commands, in order.
    pub fn poll(&mut self) -> Option<Verdict> {
        self.verdicts.pop_front()
    }

    /// When to call [`Inbox::tick`] next.
    pub fn next_deadline(&self) -> Option<Duration> {
        [self.settling, self.hole_until].into_iter().flatten().min()
    }

    fn latest(&mut self, command: Command, now: Now) {
        if let Some(until) = &mut self.settling {
            if now.boot < *until {
                *until = (now.boot + SETTLE).min(self.settled_by);
            }
            match self.waiting.pop() {
                Some(other) if command.is_before(other.place()) => {
                    self.refuse(
                        command.id,
                        Outcome::Superseded,
                        "a newer command waited too".into(),
                    );
                    self.waiting.push(other);
                }
                Some(other) => {
                    self.refuse(
                        other.id,
                        Outcome::Superseded,
                        "a newer command waited too".into(),
                    );
                    self.waiting.push(command);
                }
                None => self.waiting.push(command),
            }
            return;
        }
        self.obey_unless_overtaken(command, now.wall_ms);
    }

    fn obey_unless_overtaken(&mut self, command: Command, wall_ms: i64) {
        match self.last {
            Some(last) if command.is_before(last) => {
                let reason = "a newer command was obeyed before it came";
                self.refuse(command.id, Outcome::Superseded, reason.into());
            }
            _ => self.obey(command, wall_ms),
        }
    }

    fn sequence(&mut self, command: Command, now: Now) {
        let Some(seq) = command.seq else {
            self.verdicts.push_back(Verdict::Obey(command));
            return;
        };
        let next = self
            .last
            .and_then(|last| last.seq)
            .map_or(seq, |last| last.saturating_add(1));
        if seq < next {
            let reason = format!("seq {seq} came when {next} was next");
            return self.refuse(command.id, Outcome::Superseded, reason);
        }
        if self
            .waiting
            .iter()
            .any(|waiting| waiting.seq == command.seq)
        {
            let reason = format!("another command with seq {seq} waits");
            return self.refuse(command.id, Outcome::Duplicate, reason);
        }
        self.waiting.push(command);
        self.waiting.sort_by_key(|waiting| waiting.seq);
        if seq == next {
            self.obey_run(now.wall_ms);
        } else if self.waiting.len() > MAX_WAITING {
            self.hole_until = Some(now.boot);
        }
        self.hole_until = match (self.waiting.is_empty(), self.hole_until) {
            (true, _) => None,
            (false, None) => Some(now.boot + self.settings.gap_wait),
            (false, until) => until,
        };
    }

    /// Gives the hole up and goes on behind it.
    fn pass_hole(&mut self, now: Now) {
        let wall_ms = now.wall_ms;
        self.hole_until = None;
        let first = self.waiting.first().and_then(|command| command.seq);
        // After a silence of the server nobody knows which number is next: the first that waits is.
        if let (Some(first), Some(last)) = (first, self.last.and_then(|last| last.seq)) {
            self.verdicts.push_back(Verdict::Missing {
                from: last.saturating_add(1),
                to: first.saturating_sub(1),
            });
            self.last = Some(Place {
                seq: Some(first.saturating_sub(1)),
                issued_at: None,
            });
        }
        self.obey_run(wall_ms);
        if !self.waiting.is_empty() {
            self.hole_until = Some(now.boot + self.settings.gap_wait);
        }
    }

    /// Obeys the waiting commands that now follow each other.
    fn obey_run(&mut self, wall_ms: i64) {
        while let Some(command) = self.waiting.first() {
            let last = self.last.and_then(|last| last.seq);
            if last.is_some_and(|last| command.seq != Some(last.saturating_add(1))) {
                break;
            }
            let command = self.waiting.remove(0);
            self.last = Some(command.place());
            self.obey(command, wall_ms);
        }
        if self.waiting.is_empty() {
            self.hole_until = None;
        }
    }

    /// Obeys a command that has waited here, unless it expired meanwhile.
    fn obey(&mut self, command: Command, wall_ms: i64) {
        match expired(&command, wall_ms) {
            Some(reason) => self.refuse(command.id, Outcome::Expired, reason),
            None => {
                self.last = Some(command.place());
                self.verdicts.push_back(Verdict::Obey(command));
            }
        }
    }

    fn refuse(&mut self, id: Option<String>, result: Outcome, reason: String) {
        self.verdicts
            .push_back(Verdict::Refuse { id, result, reason });
    }

    fn note(&mut self, command: &Command) {
        if let Some(id) = &command.id {
            self.known_ids.push_back(id.clone());
            self.fresh_ids.push(id.clone());
            if self.known_ids.len() > IDS_KNOWN {
                self.known_ids.pop_front();
            }
            if self.fresh_ids.len() > IDS_KNOWN {
                self.fresh_ids.remove(0);
                self.storing_ids = self.storing_ids.saturating_sub(1);
            }
        }
    }
}

impl Command {
    fn place(&self) -> Place {
        Place {
            seq: self.seq,
            issued_at: self.issued_at,
        }
    }

    /// Whether the sender gave it before the one at `place`, as far as both say so.
    fn is_before(&self, place: Place) -> bool {
        match (self.issued_at, place.issued_at, self.seq, place.seq) {
            (Some(own), Some(other), Some(seq), Some(other_seq)) if own == other => seq < other_seq,
            (Some(own), Some(other), ..) => own < other,
            (_, _, Some(own), Some(other)) => own < other,
            _ => false,
        }
    }
}

/// Why a payload is no command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// Its id, if it had a good one.
    pub id: Option<String>,
    /// What is wrong with it, in words.
    pub reason: String,
}

/// Reads a payload: the JSON envelope or one of the two plain payloads.
///
/// # Errors
/// [`Unfit`] with the first thing that is wrong.
pub fn parse(payload: &[u8], settings: &Settings) -> Result<Command, Unfit> {
    if payload.len() > MAX_PAYLOAD {
        let reason = format!("{} bytes; at most {MAX_PAYLOAD}", payload.len());
        return Err(Unfit { id: None, reason });
    }
    for (plain, led_on) in [(&settings.on, true), (&settings.off, false)] {
        if !plain.is_empty() && payload == plain.as_bytes() {
            return Ok(Command {
                id: None,
                action: Action::Led(led_on),
                issued_at: None,
                expires_at: None,
                seq: None,
                lease: None,
            });
        }
    }
    let unfit = |reason: String| Unfit { id: None, reason };
    let value: Value =
        serde_json::from_slice(payload).map_err(|error| unfit(format!("not JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(unfit(
            "not a JSON object such as {\"led_on\": true}".to_string(),
        ));
    };
    let id = id(&fields).map_err(unfit)?;
    envelope(&fields, id.clone()).map_err(|reason| Unfit { id, reason })
}

fn envelope(fields: &Map<String, Value>, id: Option<String>) -> Result<Command, String> {
    Ok(Command {
        id,
        action: action(fields)?,
        issued_at: time(fields, "issued_at")?,
        expires_at: time(fields, "expires_at")?,
        seq: match present(fields, "seq") {
            None => None,
            Some(value) => Some(value.as_i64().ok_or("seq is not an integer")?),
        },
        lease: match present(fields, "lease") {
            None => None,
            Some(value) => Some(duration(value).ok_or("lease is not a duration such as \"30s\"")?),
        },
    })
}

fn action(fields: &Map<String, Value>) -> Result<Action, String> {
    match (present(fields, "led_on"), present(fields, "command")) {
        (Some(Value::Bool(led_on)), None) => Ok(Action::Led(*led_on)),
        (Some(_), None) => Err("led_on is neither true nor false".into()),
        (None, None) => Err("neither led_on nor command in it".into()),
        (Some(_), Some(_)) => Err("both led_on and command in it".into()),
        (None, Some(Value::String(command))) => match command.as_str() {
            "read-now" => Ok(Action::ReadNow),
            "set" => wish(fields).map(Action::Set),
            "restart" => Ok(Action::Restart),
            "reboot" => Ok(Action::Reboot),
            _ => Err("unknown command; there are read-now, set, restart and reboot".into()),
        },
        (None, Some(_)) => Err("command is not a text".into()),
    }
}

fn wish(fields: &Map<String, Value>) -> Result<Wish, String> {
    const ENVELOPE: [&str; 6] = ["command", "id", "issued_at", "expires_at", "seq", "lease"];
    const RULES: [&str; 4] = ["on_below", "off_above", "mode", "interval"];
    const TAKES: &str = "set takes on_below, off_above, mode, interval and persist";
    let known = |key: &&String| {
        let key = key.as_str();
        ENVELOPE.contains(&key) || RULES.contains(&key) || key == "persist"
    };
    if let Some(key) = fields.keys().find(|key| !known(key)) {
        let key: String = key.chars().take(40).collect();
        return Err(format!("unknown key {key}; {TAKES}"));
    }
    if RULES.iter().all(|key| present(fields, key).is_none()) {
        return Err(format!("nothing to set; {TAKES}"));
    }
    let number = |key: &str| match present(fields, key) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(format!("{key} is not a number")),
        },
    };
    Ok(Wish {
        on_below: number("on_below")?,
        off_above: number("off_above")?,
        mode: match present(fields, "mode") {
            None => None,
            Some(value) => Some(
                Mode::deserialize(value).map_err(|_| "mode is none of auto, local and remote")?,
            ),
        },
        interval: match present(fields, "interval") {
            None => None,
            Some(value) => {
                Some(duration(value).ok_or("interval is not a duration such as \"5s\"")?)
            }
        },
        persist: match present(fields, "persist") {
            None => false,
            Some(value) => value.as_bool().ok_or("persist is neither true nor false")?,
        },
    })
}

fn id(fields: &Map<String, Value>) -> Result<Option<String>, String> {
    match present(fields, "id") {
        None => Ok(None),
        Some(Value::String(id)) if (1..=64).contains(&id.chars().count()) => Ok(Some(id.clone())),
        Some(_) => Err("id is not a text of 1 to 64 characters".into()),
    }
}

fn time(fields: &Map<String, Value>, key: &str) -> Result<Option<i64>, String> {
    match present(fields, key) {
        None => Ok(None),
        Some(Value::String(text)) => match text.parse::<jiff::Timestamp>() {
            Ok(timestamp) => Ok(Some(timestamp.as_millisecond())),
            Err(_) => Err(format!(
                "{key} is not an RFC 3339 time such as \"2026-11-20T17:03:11Z\""
            )),
        },
        Some(_) => Err(format!("{key} is not a text")),
    }
}

/// JSON's null means absent.
fn present<'a>(fields: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    fields.get(key).filter(|value| !value.is_null())
}

/// A duration such as "30s", not negative.
fn duration(value: &Value) -> Option<Duration> {
    let text = value.as_str()?;
    let duration: jiff::SignedDuration = text.parse().ok()?;
    Duration::try_from(duration).ok()
}

fn expired(command: &Command, wall_ms: i64) -> Option<String> {
    let expires_at = command.expires_at?;
    // A clock that is not set is behind, not ahead: what it calls expired is expired.
    (expires_at <= wall_ms).then(|| {
        format!(
            "it was good until {}, and it is {}",
            super::time::rfc3339(expires_at),
            super::time::rfc3339(wall_ms)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            order: Order::Latest,
            gap_wait: Duration::from_secs(5),
            on: "ON".into(),
            off: "OFF".into(),
            allow_reboot: false,
            accept_retained: false,
        }
    }

    fn at(ms: u64) -> Now {
        Now {
            boot: Duration::from_millis(ms),
            wall_ms: 1_795_194_000_000 + ms as i64,
            synced: true,
        }
    }

    fn verdicts(inbox: &mut Inbox) -> Vec<String> {
        std::iter::from_fn(|| inbox.poll())
            .map(|verdict| match verdict {
                Verdict::Obey(command) => format!("obey {:?}", command.action),
                Verdict::Refuse { id, result, .. } => {
                    format!("{:?} {}", result, id.unwrap_or_default())
                }
                Verdict::Missing { from, to } => format!("missing {from}..{to}"),
            })
            .collect()
    }

    #[test]
    fn the_lessons_command_and_plain_payloads_are_understood() {
        let action = |payload: &str| parse(payload.as_bytes(), &settings()).map(|c| c.action);
        assert_eq!(action(r#"{"led_on": true}"#), Ok(Action::Led(true)));
        assert_eq!(action("OFF"), Ok(Action::Led(false)));
        assert_eq!(action(r#"{"command":"read-now"}"#), Ok(Action::ReadNow));
    }

    #[test]
    fn malformed_payloads_are_refused_with_a_reason() {
        let long_id = format!(r#"{{"led_on":true,"id":"{}"}}"#, "x".repeat(65));
        let large = format!(r#"{{"led_on":true,"x":"{}"}}"#, "x".repeat(200_000));
        let deep = "[".repeat(4_000);
        for payload in [
            "",
            "null",
            "[]",
            "true",
            "on",
            "{",
            "{}",
            r#"{"led_on": 1}"#,
            r#"{"led_on": "true"}"#,
            r#"{"led_on": null}"#,
            r#"{"led_on":true,"seq":1e400}"#,
            r#"{"led_on":true,"seq":1.5}"#,
            r#"{"led_on":true,"lease":5}"#,
            r#"{"led_on":true,"lease":"-5s"}"#,
            r#"{"led_on":true,"expires_at":"yesterday"}"#,
            r#"{"led_on":true,"id":""}"#,
            r#"{"led_on":true,"id":7}"#,
            r#"{"led_on":true,"command":"set"}"#,
            r#"{"command":"explode"}"#,
            r#"{"command":"set"}"#,
            r#"{"command":"set","on_below":"x"}"#,
            r#"{"command":"set","mode":"party"}"#,
            r#"{"command":"set","on_belov":3}"#,
            &long_id,
            &large,
            &deep,
        ] {
            let unfit = parse(payload.as_bytes(), &settings());
            assert!(
                unfit.is_err_and(|unfit| !unfit.reason.is_empty() && unfit.reason.len() < 200),
                "{payload:.40}"
            );
        }
        assert!(parse(&[0xff, 0xfe, b'{'], &settings()).is_err());
    }

    #[test]
    fn a_burst_that_waited_at_the_broker_moves_the_led_once() {
        let mut inbox = Inbox::new(settings());
        inbox.link_up(at(0).boot);
        for n in 0..20 {
            let payload = format!(r#"{{"led_on":{},"id":"c{n}"}}"#, n % 2 == 1);
            inbox.receive(payload.as_bytes(), false, at(n), true);
        }
        assert_eq!(verdicts(&mut inbox).len(), 19);
        inbox.tick(at(1_000));
        assert_eq!(verdicts(&mut inbox), ["obey Led(true)"]);
    }

    #[test]
    fn retained_repeated_and_expired_commands_are_refused() {
        let mut inbox = Inbox::new(settings());
        let command = br#"{"led_on":true,"id":"a"}"#;
        inbox.receive(command, true, at(0), true);
        inbox.receive(command, false, at(0), true);
        inbox.receive(command, false, at(1), true);
        let old = br#"{"led_on":true,"id":"b","expires_at":"2020-01-01T00:00:00Z"}"#;
        inbox.receive(old, false, at(2), true);
        assert_eq!(
            verdicts(&mut inbox),
            ["Rejected a", "obey Led(true)", "Duplicate a", "Expired b"]
        );
    }

    #[test]
    fn an_id_of_an_earlier_run_is_known() {
        let mut inbox = Inbox::new(settings());
        inbox.remember(vec!["a".into(), "b".into()]);
        inbox.receive(br#"{"led_on":true,"id":"b"}"#, false, at(0), true);
        assert_eq!(verdicts(&mut inbox), ["Duplicate b"]);
    }

    #[test]
    fn with_the_clock_not_set_an_expiry_counts_only_for_what_comes_at_once() {
        let command = br#"{"led_on":true,"expires_at":"2030-01-01T00:00:00Z"}"#;
        let mut inbox = Inbox::new(settings());
        inbox.receive(command, false, at(0), false);
        inbox.link_up(at(1).boot);
        inbox.receive(command, false, at(2), false);
        assert_eq!(verdicts(&mut inbox), ["obey Led(true)", "Rejected "]);
    }

    #[test]
    fn a_sequence_waits_for_a_hole_and_passes_it() {
        let mut inbox = Inbox::new(Settings {
            order: Order::Sequence,
            ..settings()
        });
        let send = |inbox: &mut Inbox, seq: i64, ms: u64| {
            let payload = format!(r#"{{"led_on":{},"seq":{seq}}}"#, seq % 2 == 0);
            inbox.receive(payload.as_bytes(), false, at(ms), true);
        };
        send(&mut inbox, 1, 0);
        send(&mut inbox, 3, 1);
        assert_eq!(verdicts(&mut inbox), ["obey Led(false)"]);
        send(&mut inbox, 2, 2);
        assert_eq!(verdicts(&mut inbox), ["obey Led(true)", "obey Led(false)"]);
        send(&mut inbox, 7, 10);
        send(&mut inbox, 6, 11);
        assert_eq!(inbox.next_deadline(), Some(Duration::from_millis(5_010)));
        inbox.tick(at(5_010));
        assert_eq!(
            verdicts(&mut inbox),
            ["missing 4..5", "obey Led(true)", "obey Led(false)"]
        );
        send(&mut inbox, 2, 5_011);
        assert_eq!(verdicts(&mut inbox), ["Superseded "]);
    }

    #[test]
    fn a_command_overtaken_by_a_newer_one_does_nothing() {
        let mut inbox = Inbox::new(settings());
        let newer = br#"{"led_on":true,"issued_at":"2026-11-20T12:00:01Z"}"#;
        let older = br#"{"led_on":false,"issued_at":"2026-11-20T12:00:00Z"}"#;
        inbox.receive(newer, false, at(0), true);
        inbox.receive(older, false, at(1), true);
        assert_eq!(verdicts(&mut inbox), ["obey Led(true)", "Superseded "]);
    }
}
