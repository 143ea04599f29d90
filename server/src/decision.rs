//! The decision about the LEDs: by hand, by the hours in which they may be on, by threshold with hysteresis for
//! a device alone, by majority in a group; the first of these that applies decides.
//!
//! Pure: `now` is an argument. `control` hands in live readings only, never history, and makes commands of what
//! comes back. One answer for each reading keeps the lease of the device alive.
//!
//! In a group each member that was heard of lately and whose sensor works has a vote, dark or light, and the
//! majority counts for all members: one covered sensor does not light the stadium. A tie changes nothing.

use std::collections::HashMap;
use std::time::Duration;

use crate::rules::Rules;

/// A reading counts in its group for so long, or for [`READINGS`] of its device if that is longer.
const FRESH: Duration = Duration::from_secs(30);
/// A command holds for so many readings that do not come, at least.
const READINGS: u32 = 3;
/// Devices take no longer lease.
const MAX_LEASE: Duration = Duration::from_secs(86_400);

/// Devices that decide together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name, for people.
    pub name: String,
    /// The ids of its members.
    pub members: Vec<String>,
}

/// Whose LED is switched by hand.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// That of this device.
    Device(String),
    /// Those of all members of this group.
    Group(String),
}

/// LEDs that are switched by hand, until told otherwise.
pub(crate) type Switches = HashMap<Subject, bool>;

/// A live reading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Reading {
    /// The light.
    pub light: f64,
    /// The LED then, as far as it tells.
    pub led_on: Option<bool>,
}

/// The time of a decision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// Since the machine started.
    pub boot: Duration,
    /// Milliseconds since 1970.
    pub wall_ms: i64,
}

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Decision {
    /// What the LED is to be; none while the group is in two minds and has not decided before.
    pub led_on: Option<bool>,
    /// How long the command is to hold.
    pub lease: Duration,
}

/// Decides.
#[derive(Debug)]
pub(crate) struct Decider {
    rules: Rules,
    lease: Duration,
    max_devices: usize,
    votes: HashMap<String, Vote>,
    groups: Vec<GroupState>,
    /// The group of each device that is in one.
    member_of: HashMap<String, usize>,
    switches: Switches,
}

#[derive(Debug)]
struct GroupState {
    group: Group,
    decided: Option<bool>,
}

/// What a device last saw.
#[derive(Debug, Clone, Copy)]
struct Vote {
    at: Duration,
    /// Between its last two readings.
    interval: Duration,
    dark: bool,
    /// Its sensor works.
    counts: bool,
}

impl Decider {
    /// By `rules`; commands hold for `lease` at least. A device is in one group at most; in a second one it
    /// has no vote. More than `max_devices` are not remembered.
    pub(crate) fn new(rules: Rules, lease: Duration, groups: &[Group], max_devices: usize) -> Self {
        let mut member_of = HashMap::new();
        for (number, group) in groups.iter().enumerate() {
            for member in &group.members {
                member_of.entry(member.clone()).or_insert(number);
            }
        }
        let state = |group: &Group| GroupState {
            group: group.clone(),
            decided: None,
        };
        Self {
            rules,
            lease,
            max_devices,
            votes: HashMap::new(),
            groups: groups.iter().map(state).collect(),
            member_of,
            switches: Switches::new(),
        }
    }

    /// A live reading of `device`: what is decided about its LED.
    pub(crate) fn read(&mut self, device: &str, reading: Reading, now: Moment) -> Decision {
        let before = self.votes.get(device).copied();
        let was_dark = before.map(|vote| vote.dark).or(reading.led_on);
        let rule = self.rules.of(device, self.group_of(device));
        let vote = Vote {
            at: now.boot,
            interval: before.map_or(Duration::ZERO, |vote| now.boot.saturating_sub(vote.at)),
            dark: rule
                .threshold
                .is_dark(reading.light, was_dark.unwrap_or(false)),
            counts: true,
        };
        if self.votes.len() >= self.max_devices && before.is_none() {
            // Those that are still there come back with their next reading.
            self.votes.clear();
        }
        self.votes.insert(device.to_owned(), vote);
        if let Some(group) = self.member_of.get(device)
            && let Some(group) = self.groups.get_mut(*group)
        {
            group.decide(&self.votes, now.boot);
        }
        self.decision(device, vote, now)
    }

    /// Whether the sensor of `device` works, as it says. Its last reading has no vote while it does not.
    pub(crate) fn sensor(&mut self, device: &str, works: bool) {
        if let Some(vote) = self.votes.get_mut(device) {
            vote.counts = works;
        }
    }

    /// What is switched by hand from now on, and nothing else; gives what is decided about the devices whose
    /// switch has changed, as far as they were heard of.
    pub(crate) fn switch(&mut self, switches: Switches, now: Moment) -> Vec<(String, Decision)> {
        let before = std::mem::replace(&mut self.switches, switches);
        let by_hand =
            |switches: &Switches, device: &str| manual(switches, device, self.group_of(device));
        self.votes
            .iter()
            .filter(|(device, _)| by_hand(&before, device) != by_hand(&self.switches, device))
            .map(|(device, vote)| (device.clone(), self.decision(device, *vote, now)))
            .collect()
    }

    /// What is decided about the devices that were heard of lately.
    pub(crate) fn again(&self, now: Moment) -> Vec<(String, Decision)> {
        self.votes
            .iter()
            .filter(|(_, vote)| vote.is_fresh(now.boot))
            .map(|(device, vote)| (device.clone(), self.decision(device, *vote, now)))
            .collect()
    }

    /// What applies first.
    fn decision(&self, device: &str, vote: Vote, now: Moment) -> Decision {
        let group = self.member_of.get(device).and_then(|n| self.groups.get(*n));
        let name = group.map(|state| state.group.name.as_str());
        let window = &self.rules.of(device, name).window;
        let is_open = || {
            window
                .as_ref()
                .is_none_or(|window| window.is_open(now.wall_ms))
        };
        let led_on = match manual(&self.switches, device, name) {
            Some(led_on) => Some(led_on),
            None if !is_open() => Some(false),
            None => group.map_or(Some(vote.dark), |group| group.decided),
        };
        // A device that is heard less often must not lose its command between two readings.
        let lease = self.lease.max(vote.interval * READINGS).min(MAX_LEASE);
        Decision { led_on, lease }
    }

    /// The group that a device is in.
    pub(crate) fn group_of(&self, device: &str) -> Option<&str> {
        let group = self.groups.get(*self.member_of.get(device)?)?;
        Some(group.group.name.as_str())
    }
}

/// The switch of a device comes before that of its group.
fn manual(switches: &Switches, device: &str, group: Option<&str>) -> Option<bool> {
    // Nearly always there are none.
    if switches.is_empty() {
        return None;
    }
    let of = |subject| switches.get(&subject).copied();
    of(Subject::Device(device.to_owned()))
        .or_else(|| group.and_then(|group| of(Subject::Group(group.to_owned()))))
}

impl Vote {
    fn is_fresh(&self, now: Duration) -> bool {
        self.counts && now.saturating_sub(self.at) < FRESH.max(self.interval * READINGS)
    }
}

impl GroupState {
    fn decide(&mut self, votes: &HashMap<String, Vote>, now: Duration) {
        let members = self.group.members.iter();
        let votes: Vec<bool> = members
            .filter_map(|member| votes.get(member))
            .filter(|vote| vote.is_fresh(now))
            .map(|vote| vote.dark)
            .collect();
        let dark = votes.iter().filter(|dark| **dark).count();
        if 2 * dark != votes.len() {
            self.decided = Some(2 * dark > votes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Rule, Threshold, Window};

    const LEASE: Duration = Duration::from_secs(15);

    struct Hall(Decider);

    fn rule(on_below: f64, off_above: f64) -> Rule {
        Rule {
            threshold: Threshold {
                on_below,
                off_above,
            },
            window: None,
        }
    }

    impl Hall {
        fn new() -> Self {
            Self::with([])
        }

        fn with<const N: usize>(own: [(&str, Rule); N]) -> Self {
            let members = ["pi-1", "pi-2", "pi-3"].map(str::to_owned).to_vec();
            let name = "hall".to_owned();
            let rules = Rules {
                usual: rule(300.0, 350.0),
                own: own.map(|(name, rule)| (name.to_owned(), rule)).into(),
            };
            Self(Decider::new(
                rules,
                LEASE,
                &[Group { name, members }],
                1_000,
            ))
        }

        fn read(&mut self, device: &str, light: f64, seconds: u64) -> Option<bool> {
            let reading = Reading {
                light,
                led_on: None,
            };
            self.0.read(device, reading, at(seconds)).led_on
        }

        fn lease(&mut self, device: &str, seconds: u64) -> Duration {
            let reading = Reading {
                light: 1.0,
                led_on: None,
            };
            self.0.read(device, reading, at(seconds)).lease
        }

        /// What is decided about whom now that these are switched by hand.
        fn switch<const N: usize>(
            &mut self,
            switches: [(Subject, bool); N],
        ) -> Vec<(String, bool)> {
            let decided = self.0.switch(switches.into(), at(0));
            let mut told: Vec<_> = decided
                .into_iter()
                .map(|(device, decision)| (device, decision.led_on.unwrap()))
                .collect();
            told.sort();
            told
        }
    }

    /// Midnight of a day in UTC, and so many seconds.
    fn at(seconds: u64) -> Moment {
        Moment {
            boot: s(seconds),
            wall_ms: 1_795_132_800_000 + 1_000 * seconds as i64,
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn device(id: &str) -> Subject {
        Subject::Device(id.into())
    }

    #[test]
    fn a_device_alone_is_decided_by_the_threshold_and_stays_between() {
        let mut hall = Hall::new();
        assert_eq!(hall.read("other", 299.9, 0), Some(true));
        assert_eq!(hall.read("other", 350.0, 1), Some(true));
        assert_eq!(hall.read("other", 350.1, 2), Some(false));
        assert_eq!(hall.read("other", 300.0, 3), Some(false));
        let on = Reading {
            light: 320.0,
            led_on: Some(true),
        };
        assert_eq!(hall.0.read("new", on, at(0)).led_on, Some(true));
        assert_eq!(hall.read("newer", 320.0, 0), Some(false));
    }

    #[test]
    fn devices_and_groups_have_rules_of_their_own() {
        let own = [("hall", rule(10.0, 20.0)), ("pi-9", rule(100.0, 100.0))];
        let mut hall = Hall::with(own);
        assert_eq!(hall.read("pi-9", 150.0, 0), Some(false));
        assert_eq!(hall.read("other", 150.0, 0), Some(true));
        assert_eq!(hall.read("pi-1", 15.0, 0), Some(false));
        assert_eq!(hall.read("pi-1", 9.0, 1), Some(true));
        assert_eq!(hall.read("pi-1", 15.0, 2), Some(true));
    }

    #[test]
    fn the_lease_suits_how_often_a_device_is_heard() {
        let mut hall = Hall::new();
        assert_eq!(hall.lease("slow", 0), LEASE);
        assert_eq!(hall.lease("slow", 60), s(180));
        assert_eq!(hall.lease("slow", 61), LEASE);
        assert_eq!(hall.lease("slow", 1_000_000), MAX_LEASE);
    }

    #[test]
    fn one_covered_sensor_does_not_light_the_group() {
        let mut hall = Hall::new();
        hall.read("pi-1", 800.0, 0);
        hall.read("pi-2", 800.0, 0);
        assert_eq!(hall.read("pi-3", 5.0, 1), Some(false));
        hall.read("pi-2", 5.0, 2);
        assert_eq!(hall.read("pi-1", 800.0, 3), Some(true));
    }

    #[test]
    fn a_tie_changes_nothing() {
        let mut hall = Hall::new();
        assert_eq!(hall.read("pi-1", 5.0, 0), Some(true));
        assert_eq!(hall.read("pi-2", 800.0, 0), Some(true));
        let mut hall = Hall::new();
        assert_eq!(hall.read("pi-1", 800.0, 0), Some(false));
        assert_eq!(hall.read("pi-2", 5.0, 0), Some(false));
    }

    #[test]
    fn who_is_silent_or_blind_has_no_vote() {
        let mut hall = Hall::new();
        hall.read("pi-1", 800.0, 0);
        hall.read("pi-2", 800.0, 0);
        assert_eq!(hall.read("pi-3", 5.0, 29), Some(false));
        assert_eq!(hall.read("pi-3", 5.0, 30), Some(true));
        hall.read("pi-1", 800.0, 31);
        hall.read("pi-2", 800.0, 31);
        assert_eq!(hall.read("pi-3", 5.0, 32), Some(false));
        hall.0.sensor("pi-1", false);
        hall.0.sensor("pi-2", false);
        hall.0.sensor("nobody", false);
        assert_eq!(hall.read("pi-3", 5.0, 33), Some(true));
        assert_eq!(hall.read("pi-1", 800.0, 34), Some(true), "a tie");
        hall.0.sensor("pi-2", true);
        assert_eq!(hall.read("pi-1", 800.0, 35), Some(false));
    }

    #[test]
    fn who_is_heard_seldom_is_not_silent() {
        let mut hall = Hall::new();
        for round in 0..3 {
            hall.read("pi-1", 800.0, 120 * round);
            hall.read("pi-2", 800.0, 120 * round);
        }
        assert_eq!(hall.read("pi-3", 5.0, 340), Some(false));
    }

    #[test]
    fn the_led_is_off_outside_of_its_hours() {
        let mut night = rule(300.0, 350.0);
        night.window = Some(Window {
            from: "00:01".parse().unwrap(),
            to: "00:02".parse().unwrap(),
            zone: jiff::tz::TimeZone::UTC,
        });
        let mut hall = Hall::with([("hall", night.clone()), ("pi-9", night)]);
        for device in ["pi-1", "pi-9"] {
            assert_eq!(hall.read(device, 5.0, 59), Some(false));
            assert_eq!(hall.read(device, 5.0, 60), Some(true));
            assert_eq!(hall.read(device, 5.0, 119), Some(true));
            assert_eq!(hall.read(device, 5.0, 120), Some(false));
        }
    }

    #[test]
    fn whoever_takes_over_decides_by_what_was_read_lately() {
        let mut hall = Hall::new();
        hall.read("pi-9", 5.0, 0);
        hall.read("silent", 5.0, 0);
        hall.read("pi-9", 5.0, 20);
        let decided = hall.0.again(at(40));
        assert_eq!(decided.len(), 1);
        assert_eq!(
            (decided[0].0.as_str(), decided[0].1.led_on),
            ("pi-9", Some(true))
        );
    }

    #[test]
    fn a_switch_by_hand_holds_until_told_otherwise() {
        let mut hall = Hall::new();
        assert_eq!(hall.read("pi-9", 5.0, 0), Some(true));
        assert_eq!(
            hall.switch([(device("pi-9"), false), (device("silent"), true)]),
            [("pi-9".to_owned(), false)]
        );
        for seconds in 1..200 {
            assert_eq!(hall.read("pi-9", 5.0, seconds), Some(false));
        }
        // Told again, nothing has changed.
        let same = [(device("pi-9"), false), (device("silent"), true)];
        assert_eq!(hall.switch(same), []);
        assert_eq!(hall.switch([]), [("pi-9".to_owned(), true)]);
    }

    #[test]
    fn a_switch_of_a_device_comes_before_that_of_its_group_and_both_before_the_hours() {
        let mut closed = rule(300.0, 350.0);
        closed.window = Some(Window {
            from: "12:00".parse().unwrap(),
            to: "12:01".parse().unwrap(),
            zone: jiff::tz::TimeZone::UTC,
        });
        let mut hall = Hall::with([("hall", closed)]);
        hall.read("pi-1", 800.0, 0);
        hall.read("pi-2", 800.0, 0);
        let group = Subject::Group("hall".into());
        assert_eq!(
            hall.switch([(group.clone(), true)]),
            [("pi-1".to_owned(), true), ("pi-2".to_owned(), true)]
        );
        assert_eq!(
            hall.switch([(group, true), (device("pi-2"), false)]),
            [("pi-2".to_owned(), false)]
        );
        assert_eq!(hall.read("pi-1", 800.0, 1), Some(true));
        assert_eq!(hall.read("pi-2", 800.0, 1), Some(false));
    }
}
