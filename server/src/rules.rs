//! The rules that decisions follow: thresholds with hysteresis, and the hours in which LEDs may be on.
//!
//! Pure. A device has the rule of its own name, else that of its group, else the one of `[control]`; the
//! configuration makes [`Rules`], `decision` asks them.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;

/// When it is dark.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// Below this.
    pub on_below: f64,
    /// Above this it is light; between the two it is what it was.
    pub off_above: f64,
}

/// The hours of each day in which LEDs may be on.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// From this local time on.
    pub from: Time,
    /// Until before this one; it may be on the next day.
    pub to: Time,
    /// Whose local time.
    pub zone: TimeZone,
}

/// How an LED is decided about.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// When it is dark.
    pub threshold: Threshold,
    /// When the LED may be on; none: always.
    pub window: Option<Window>,
}

/// All rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// That of everybody else.
    pub usual: Rule,
    /// Those of devices and groups, by name.
    pub own: HashMap<String, Rule>,
}

impl Threshold {
    /// Whether `light` is dark; between the two thresholds it is as `before`.
    pub fn is_dark(self, light: f64, before: bool) -> bool {
        if light < self.on_below {
            true
        } else if light > self.off_above {
            false
        } else {
            before
        }
    }
}

impl Window {
    /// Whether the LED may be on at this time, in milliseconds since 1970.
    pub fn is_open(&self, wall_ms: i64) -> bool {
        let Ok(now) = Timestamp::from_millisecond(wall_ms) else {
            return true;
        };
        let now = self.zone.to_datetime(now).time();
        match self.from <= self.to {
            true => self.from <= now && now < self.to,
            // Over midnight.
            false => self.from <= now || now < self.to,
        }
    }
}

impl Rules {
    /// The rule of a device, which may be in a group.
    pub fn of(&self, device: &str, group: Option<&str>) -> &Rule {
        let own = |name: &str| self.own.get(name);
        own(device)
            .or_else(|| group.and_then(own))
            .unwrap_or(&self.usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from: &str, to: &str, zone: &str) -> Window {
        Window {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            zone: TimeZone::get(zone).unwrap(),
        }
    }

    fn at(time: &str) -> i64 {
        time.parse::<Timestamp>().unwrap().as_millisecond()
    }

    #[test]
    fn a_window_has_its_first_moment_and_not_its_last() {
        let day = window("08:00", "17:30", "UTC");
        assert!(!day.is_open(at("2026-11-21T07:59:59.999Z")));
        assert!(day.is_open(at("2026-11-21T08:00:00Z")));
        assert!(day.is_open(at("2026-11-21T17:29:59.999Z")));
        assert!(!day.is_open(at("2026-11-21T17:30:00Z")));
    }

    #[test]
    fn a_window_over_midnight_is_open_on_both_sides_of_it() {
        let night = window("18:00", "06:30", "UTC");
        for (time, open) in [
            ("17:59", false),
            ("18:00", true),
            ("23:59", true),
            ("00:00", true),
            ("06:29", true),
            ("06:30", false),
            ("12:00", false),
        ] {
            assert_eq!(
                night.is_open(at(&format!("2026-11-21T{time}:00Z"))),
                open,
                "{time}"
            );
        }
    }

    #[test]
    fn a_window_is_one_of_local_time_in_summer_and_in_winter() {
        let night = window("18:00", "06:30", "Europe/Berlin");
        assert!(night.is_open(at("2026-07-01T16:00:00Z")));
        assert!(!night.is_open(at("2026-07-01T15:59:00Z")));
        assert!(night.is_open(at("2026-12-01T17:00:00Z")));
        assert!(!night.is_open(at("2026-12-01T16:59:00Z")));
    }

    #[test]
    fn the_own_rule_comes_before_that_of_the_group() {
        let rule = |on_below| Rule {
            threshold: Threshold {
                on_below,
                off_above: 9.0,
            },
            window: None,
        };
        let rules = Rules {
            usual: rule(1.0),
            own: [("hall", 2.0), ("pi-1", 3.0)]
                .map(|(name, on_below)| (name.to_owned(), rule(on_below)))
                .into(),
        };
        assert_eq!(rules.of("pi-1", Some("hall")), &rule(3.0));
        assert_eq!(rules.of("pi-2", Some("hall")), &rule(2.0));
        assert_eq!(rules.of("pi-3", None), &rule(1.0));
    }
}
