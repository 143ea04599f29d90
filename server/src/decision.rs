//! The decision about the LEDs: by threshold with hysteresis for a device alone, by majority in a group.
//!
//! Pure: `now` is an argument. The shell hands in live readings only, never history, and publishes
//! what comes back as a command to that device. One answer for each reading keeps the lease of the
//! device alive.
//!
//! In a group each member that was heard of lately and whose sensor works has a vote, dark or light, and the
//! majority counts for all members: one covered sensor does not light the stadium. A tie changes nothing.

use std::collections::HashMap;
use std::time::Duration;

/// A reading counts in its group for so long.
pub const FRESH: Duration = Duration::from_secs(30);
/// Devices alone whose last decision is remembered.
const MOST_ALONE: usize = 100_000;
/// A command holds for so many readings that do not come, at least.
const READINGS: u32 = 3;
/// Devices take no longer lease.
const LONGEST_LEASE: Duration = Duration::from_secs(86_400);

/// Devices that decide together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name, for people.
    pub name: String,
    /// The ids of its members.
    pub members: Vec<String>,
}

/// When it is dark.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// Below this.
    pub on_below: f64,
    /// Above this it is light; between the two it is what it was.
    pub off_above: f64,
}

/// A live reading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The light.
    pub light: f64,
    /// The LED then, as far as it tells.
    pub led_on: Option<bool>,
}

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// What the LED is to be; none while the group is in two minds and has not decided before.
    pub led_on: Option<bool>,
    /// How long the command is to hold.
    pub lease: Duration,
}

/// Decides.
#[derive(Debug)]
pub struct Decider {
    threshold: Threshold,
    lease: Duration,
    alone: HashMap<String, Vote>,
    groups: Vec<State>,
    /// The group of each device that is in one, and its place there.
    member_of: HashMap<String, (usize, usize)>,
}

#[derive(Debug)]
struct State {
    votes: Vec<Option<Vote>>,
    decided: Option<bool>,
}

/// What a device last saw.
#[derive(Debug, Clone, Copy)]
struct Vote {
    at: Duration,
    dark: bool,
    /// Its sensor works.
    counts: bool,
}

impl Decider {
    /// By `threshold`; commands hold for `lease` at least. A device is in one group at most; in a second one it
    /// has no say.
    pub fn new(threshold: Threshold, lease: Duration, groups: &[Group]) -> Self {
        let mut member_of = HashMap::new();
        for (number, group) in groups.iter().enumerate() {
            for (place, member) in group.members.iter().enumerate() {
                member_of.entry(member.clone()).or_insert((number, place));
            }
        }
        let state = |group: &Group| State {
            votes: vec![None; group.members.len()],
            decided: None,
        };
        Self {
            threshold,
            lease,
            alone: HashMap::new(),
            groups: groups.iter().map(state).collect(),
            member_of,
        }
    }

    /// A live reading of `device`: what is decided about its LED.
    pub fn read(&mut self, device: &str, reading: Reading, now: Duration) -> Decision {
        let member = self.member_of.get(device).copied();
        let before = match member {
            Some((group, place)) => self
                .groups
                .get(group)
                .and_then(|group| *group.votes.get(place)?),
            None => self.alone.get(device).copied(),
        };
        let vote = Vote {
            at: now,
            dark: self.threshold.is_dark(reading, before),
            counts: true,
        };
        // A device that is heard less often must not lose its command between two readings.
        let interval = before.map_or(Duration::ZERO, |before| now.saturating_sub(before.at));
        let lease = self.lease.max(interval * READINGS).min(LONGEST_LEASE);
        let led_on =
            match member.and_then(|(group, place)| Some((self.groups.get_mut(group)?, place))) {
                Some((group, place)) => {
                    if let Some(own) = group.votes.get_mut(place) {
                        *own = Some(vote);
                    }
                    group.decide(now);
                    group.decided
                }
                None => {
                    if self.alone.len() >= MOST_ALONE && !self.alone.contains_key(device) {
                        // Those that are still there come back with their next reading.
                        self.alone.clear();
                    }
                    self.alone.insert(device.to_owned(), vote);
                    Some(vote.dark)
                }
            };
        Decision { led_on, lease }
    }

    /// Whether the sensor of `device` works, as it says. Its last reading has no vote while it does not.
    pub fn sensor(&mut self, device: &str, works: bool) {
        if let Some((group, place)) = self.member_of.get(device)
            && let Some(group) = self.groups.get_mut(*group)
            && let Some(Some(vote)) = group.votes.get_mut(*place)
        {
            vote.counts = works;
        }
    }
}

impl Threshold {
    fn is_dark(self, reading: Reading, before: Option<Vote>) -> bool {
        if reading.light < self.on_below {
            true
        } else if reading.light > self.off_above {
            false
        } else {
            let before = before.map(|vote| vote.dark).or(reading.led_on);
            before.unwrap_or(false)
        }
    }
}

impl State {
    fn decide(&mut self, now: Duration) {
        let fresh = |vote: &&Vote| vote.counts && now.saturating_sub(vote.at) < FRESH;
        let votes: Vec<bool> = self
            .votes
            .iter()
            .flatten()
            .filter(fresh)
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

    const LEASE: Duration = Duration::from_secs(15);

    struct Hall(Decider);

    impl Hall {
        fn new() -> Self {
            let members = ["pi-1", "pi-2", "pi-3"].map(str::to_owned).to_vec();
            let name = "hall".to_owned();
            let threshold = Threshold {
                on_below: 300.0,
                off_above: 350.0,
            };
            Self(Decider::new(threshold, LEASE, &[Group { name, members }]))
        }

        fn read(&mut self, device: &str, light: f64, seconds: u64) -> Option<bool> {
            let reading = Reading {
                light,
                led_on: None,
            };
            self.0.read(device, reading, s(seconds)).led_on
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
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
        assert_eq!(hall.0.read("new", on, s(0)).led_on, Some(true));
        assert_eq!(hall.read("newer", 320.0, 0), Some(false));
    }

    #[test]
    fn the_lease_suits_how_often_a_device_is_heard() {
        let mut hall = Hall::new();
        let reading = Reading {
            light: 1.0,
            led_on: None,
        };
        assert_eq!(hall.0.read("slow", reading, s(0)).lease, LEASE);
        assert_eq!(hall.0.read("slow", reading, s(60)).lease, s(180));
        assert_eq!(hall.0.read("slow", reading, s(61)).lease, LEASE);
        assert_eq!(
            hall.0.read("slow", reading, s(1_000_000)).lease,
            LONGEST_LEASE
        );
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
    fn who_is_silent_or_blind_has_no_say() {
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
}
