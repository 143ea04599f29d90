//! The decision about the LEDs: by threshold for a device alone, by majority in a group.
//!
//! Pure: `now` is an argument. The shell hands in live readings only, never history, and publishes
//! what comes back as a command to that device. One answer for each reading keeps the lease of the
//! device alive.
//!
//! In a group each member that was heard of lately has a vote, dark or light, and the majority counts
//! for all members: one covered sensor does not light the stadium. A tie changes nothing.

use std::collections::HashMap;
use std::time::Duration;

/// A reading counts in its group for so long.
pub const FRESH: Duration = Duration::from_secs(30);

/// Devices that decide together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name, for people.
    pub name: String,
    /// The ids of its members.
    pub members: Vec<String>,
}

/// Decides.
#[derive(Debug)]
pub struct Decider {
    on_below: f64,
    groups: Vec<State>,
    /// The group of each device that is in one, and its place there.
    member_of: HashMap<String, (usize, usize)>,
}

#[derive(Debug)]
struct State {
    /// When each member was last heard of, and whether it was dark there.
    votes: Vec<Option<(Duration, bool)>>,
    decided: Option<bool>,
}

impl Decider {
    /// On below `on_below`. A device is in one group at most; in a second one it has no say.
    pub fn new(on_below: f64, groups: &[Group]) -> Self {
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
            on_below,
            groups: groups.iter().map(state).collect(),
            member_of,
        }
    }

    /// A live reading of `device`: whether its LED is to be on. None while its group is in two minds
    /// and has not decided before.
    pub fn read(&mut self, device: &str, light: f64, now: Duration) -> Option<bool> {
        let dark = light < self.on_below;
        let Some((number, place)) = self.member_of.get(device).copied() else {
            return Some(dark);
        };
        let group = self.groups.get_mut(number)?;
        if let Some(vote) = group.votes.get_mut(place) {
            *vote = Some((now, dark));
        }
        group.decide(now);
        group.decided
    }
}

impl State {
    fn decide(&mut self, now: Duration) {
        let fresh = |vote: &Option<(Duration, bool)>| {
            vote.filter(|(at, _)| now.saturating_sub(*at) < FRESH)
                .map(|(_, dark)| dark)
        };
        let votes: Vec<bool> = self.votes.iter().filter_map(fresh).collect();
        let dark = votes.iter().filter(|dark| **dark).count();
        if 2 * dark != votes.len() {
            self.decided = Some(2 * dark > votes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hall() -> Decider {
        let members = ["pi-1", "pi-2", "pi-3"].map(str::to_owned).to_vec();
        let name = "hall".to_owned();
        Decider::new(300.0, &[Group { name, members }])
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_device_alone_is_decided_by_the_threshold() {
        let mut decider = hall();
        assert_eq!(decider.read("other", 299.9, s(0)), Some(true));
        assert_eq!(decider.read("other", 300.0, s(0)), Some(false));
    }

    #[test]
    fn one_covered_sensor_does_not_light_the_group() {
        let mut decider = hall();
        decider.read("pi-1", 800.0, s(0));
        decider.read("pi-2", 800.0, s(0));
        assert_eq!(decider.read("pi-3", 5.0, s(1)), Some(false));
        decider.read("pi-2", 5.0, s(2));
        assert_eq!(decider.read("pi-1", 800.0, s(3)), Some(true));
    }

    #[test]
    fn a_tie_changes_nothing() {
        let mut decider = hall();
        assert_eq!(decider.read("pi-1", 5.0, s(0)), Some(true));
        assert_eq!(decider.read("pi-2", 800.0, s(0)), Some(true));
        let mut decider = hall();
        assert_eq!(decider.read("pi-1", 800.0, s(0)), Some(false));
        assert_eq!(decider.read("pi-2", 5.0, s(0)), Some(false));
    }

    #[test]
    fn who_is_silent_has_no_say() {
        let mut decider = hall();
        decider.read("pi-1", 800.0, s(0));
        decider.read("pi-2", 800.0, s(0));
        assert_eq!(decider.read("pi-3", 5.0, s(29)), Some(false));
        assert_eq!(decider.read("pi-3", 5.0, s(30)), Some(true));
    }
}
