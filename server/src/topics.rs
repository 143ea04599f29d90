//! The names of the topics: patterns with `{id}` in them, filters to subscribe to, and the device that
//! a topic belongs to.
//!
//! Pure. The configuration gives the patterns; `session` subscribes, the shell asks whose a topic is.

/// A topic with `{id}` in the place of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    before: String,
    after: String,
}

/// Whom the server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// Every one.
    All,
    /// The one with this id.
    One(String),
}

/// The topics of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Live readings.
    pub telemetry: Pattern,
    /// Replayed records.
    pub history: Pattern,
    /// Live events.
    pub events: Pattern,
    /// Whether they are on line.
    pub status: Pattern,
    /// Their pictures of themselves.
    pub state: Pattern,
    /// Commands, outbound.
    pub commands: Pattern,
    /// Acks, outbound.
    pub acks: Pattern,
}

/// What comes on a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Live readings: the server answers with a command.
    Telemetry,
    /// The past: kept, and nothing else.
    History,
    /// Live events.
    Events,
    /// Whether it is on line; retained.
    Status,
    /// Its picture of itself; retained.
    State,
}

impl Pattern {
    /// Reads `{id}/telemetry`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((before, after)) = text.split_once("{id}") else {
            return Err("has no {id} in it; write one such as \"{id}/telemetry\"".into());
        };
        let whole_level = (before.is_empty() || before.ends_with('/'))
            && (after.is_empty() || after.starts_with('/'));
        if !whole_level || after.contains("{id}") {
            return Err("must have {id} once, as a whole level between slashes".into());
        }
        if text.contains(['+', '#', '\0']) || text.len() > 512 {
            return Err("may have no \"+\" and \"#\" in it, and at most 512 characters".into());
        }
        Ok(Self {
            before: before.into(),
            after: after.into(),
        })
    }

    /// The topic of a device.
    pub fn of(&self, device: &str) -> String {
        format!("{}{device}{}", self.before, self.after)
    }

    /// The device that a topic belongs to.
    pub fn device<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic
            .strip_prefix(self.before.as_str())?
            .strip_suffix(self.after.as_str())
            .filter(|id| is_device_id(id))
    }
}

impl Devices {
    /// Reads `+` or an id.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "+" => Ok(Self::All),
            id if is_device_id(id) => Ok(Self::One(id.into())),
            _ => Err("is no device id; a slash, \"+\" and \"#\" cannot be in one".into()),
        }
    }

    /// As it stands in a subscription.
    pub fn filter(&self) -> &str {
        match self {
            Self::All => "+",
            Self::One(id) => id,
        }
    }
}

impl Topics {
    /// What to subscribe to.
    pub fn filters(&self, devices: &Devices) -> [String; 5] {
        [
            &self.telemetry,
            &self.history,
            &self.events,
            &self.status,
            &self.state,
        ]
        .map(|topic| topic.of(devices.filter()))
    }

    /// What to subscribe to of what several servers share: records; and what each of them hears.
    pub fn shared_filters(&self, devices: &Devices, name: &str) -> ([String; 3], [String; 4]) {
        let of = |topic: &Pattern| topic.of(devices.filter());
        let records = [&self.telemetry, &self.history, &self.events];
        let heard = [&self.telemetry, &self.events, &self.status, &self.state];
        (
            records.map(|topic| format!("$share/{name}/{}", of(topic))),
            heard.map(of),
        )
    }

    /// Whose topic it is, and for what.
    pub fn read<'a>(&self, topic: &'a str) -> Option<(Lane, &'a str)> {
        let lanes = [
            (Lane::Telemetry, &self.telemetry),
            (Lane::History, &self.history),
            (Lane::Events, &self.events),
            (Lane::Status, &self.status),
            (Lane::State, &self.state),
        ];
        lanes
            .into_iter()
            .find_map(|(lane, pattern)| Some((lane, pattern.device(topic)?)))
    }
}

/// One level of a topic, no wildcard, of a length that fits into a topic.
pub(crate) fn is_device_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 256 && !id.contains(['/', '+', '#', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(root: &str) -> Topics {
        let pattern = |name| Pattern::parse(&format!("{root}{{id}}/{name}")).unwrap();
        Topics {
            telemetry: pattern("telemetry"),
            history: pattern("telemetry/history"),
            events: pattern("events"),
            status: pattern("status"),
            state: pattern("state"),
            commands: pattern("commands"),
            acks: pattern("acks"),
        }
    }

    #[test]
    fn a_topic_names_its_lane_and_its_device() {
        let plain = topics("");
        assert_eq!(plain.read("pi/telemetry"), Some((Lane::Telemetry, "pi")));
        assert_eq!(
            plain.read("pi/telemetry/history"),
            Some((Lane::History, "pi"))
        );
        assert_eq!(plain.read("a/b/events"), None);
        assert_eq!(plain.read("/events"), None);
        assert_eq!(plain.read("events"), None);
        let rooted = topics("home/");
        assert_eq!(rooted.read("home/pi/events"), Some((Lane::Events, "pi")));
        assert_eq!(rooted.read("pi/events"), None);
        assert_eq!(rooted.filters(&Devices::All)[0], "home/+/telemetry");
        assert_eq!(rooted.acks.of("pi"), "home/pi/acks");
        let (records, heard) = rooted.shared_filters(&Devices::All, "lights");
        assert_eq!(records[1], "$share/lights/home/+/telemetry/history");
        assert_eq!(heard[3], "home/+/state");
    }

    #[test]
    fn what_cannot_be_a_topic_or_a_device_is_refused() {
        for bad in ["telemetry", "x{id}/y", "{id}x/y", "{id}/{id}", "{id}/+", ""] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "#", "a/b", "a+", "a\0b"] {
            assert!(Devices::parse(bad).is_err(), "{bad}");
        }
        assert!(!is_device_id(&"x".repeat(257)));
    }
}
