//! What happens in a year: when the cable is pulled and put back, when the machine crashes, when the disk is full.

use std::collections::VecDeque;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The cable is put back, or pulled.
    Cable(bool),
    /// The machine stops and starts again.
    Crash,
    /// The disk is full, or has room again.
    Full(bool),
}

/// What is still to come, in order.
pub struct Plan {
    events: VecDeque<(Duration, Event)>,
    outages: u64,
}

impl Plan {
    /// A year of so many days; what belongs to a later day is left out.
    pub fn of(days: u64) -> Plan {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut events = Vec::new();
        let mut away = |from: Duration, length: Duration| {
            events.push((from, Event::Cable(false)));
            events.push((from + length, Event::Cable(true)));
        };
        let week = 100..107;
        for day in 0..days {
            let midnight = DAY * day as u32;
            match day {
                100 => away(midnight, 7 * DAY),
                day if week.contains(&day) => {}
                // A flapping evening.
                day if day % 7 == 5 => {
                    for flap in 0..180 {
                        away(midnight + 19 * HOUR + flap * 2 * MINUTE / 3, MINUTE / 3);
                    }
                }
                _ => away(midnight + 19 * HOUR, HOUR),
            }
        }
        for crash in 0..24 * days / 365 {
            let day = crash * 365 / 24;
            let second = rng.u64(0..86_400);
            events.push((DAY * day as u32 + Duration::from_secs(second), Event::Crash));
        }
        events.push((DAY * 200 + 12 * HOUR, Event::Full(true)));
        events.push((DAY * 201 + 12 * HOUR, Event::Full(false)));
        events.sort_by_key(|(at, _)| *at);
        events.retain(|(at, _)| *at < DAY * days as u32);
        Plan {
            events: events.into(),
            outages: 0,
        }
    }

    /// The next thing before `end`, and when; it is taken off the list.
    pub fn next_before(&mut self, end: Duration) -> Option<(Duration, Event)> {
        self.events.front().filter(|(at, _)| *at < end)?;
        let next = self.events.pop_front()?;
        self.outages += u64::from(next.1 == Event::Cable(false));
        Some(next)
    }

    /// How often the cable was pulled so far.
    pub fn outages(&self) -> u64 {
        self.outages
    }
}
