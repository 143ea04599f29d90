//! What wall time a record may claim.
//!
//! A Pi has no clock battery: after a power cut its wall clock is wrong until the network sets it.
//! So everything is timed on the boot clock, which never jumps, and the wall clock is only data:
//! a record carries both, and a claim about the wall time that is no stronger than what was known.
//! Nothing here reads a clock; the shell passes [`Now`] in.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A wall clock that moved by more than this against the boot clock was set, not slewed.
const STEP: Duration = Duration::from_secs(2);

/// One look at the clocks of the machine, taken by the shell for each input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since the machine started (`CLOCK_BOOTTIME`); all deadlines are on this clock.
    pub boot: Duration,
    /// The wall clock in milliseconds since 1970, right or wrong.
    pub wall_ms: i64,
    /// Whether the kernel says that the wall clock is disciplined.
    pub synced: bool,
}

/// When a record was made, as far as it was known then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Milliseconds since the machine started.
    #[serde(rename = "b")]
    pub boot_ms: u64,
    /// Milliseconds since 1970 on the wall clock of that moment.
    #[serde(rename = "w")]
    pub wall_ms: i64,
    /// Whether that wall clock was known to be right.
    #[serde(rename = "s", default, skip_serializing_if = "std::ops::Not::not")]
    pub synced: bool,
}

/// What a published time is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockState {
    /// The wall clock was right when the record was made.
    Synced,
    /// Made before the clock was set; computed later from the boot clock.
    Corrected,
    /// A guess; consumers must not trust it.
    Unsynced,
}

impl ClockState {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            ClockState::Synced => "synced",
            ClockState::Corrected => "corrected",
            ClockState::Unsynced => "unsynced",
        }
    }
}

/// The machine's clocks as the records see them.
#[derive(Debug, Clone)]
pub struct Clock {
    boot_id: Uuid,
    built_ms: i64,
    offset_ms: i64,
    known: bool,
    /// The offsets of earlier boots, by their id.
    earlier: BTreeMap<Uuid, i64>,
}

/// The wall clock was set while the daemon ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockSet {
    /// How far the wall clock moved, in milliseconds; negative when it was set back.
    pub moved_ms: i64,
    /// Whether this is the moment from which the time is known.
    pub first: bool,
}

impl Clock {
    /// `boot_id` names this start of the machine, `built_ms` is the build time of the program:
    /// no published time is earlier.
    pub fn new(boot_id: Uuid, built_ms: i64, now: Now) -> Self {
        Self {
            boot_id,
            built_ms,
            offset_ms: offset(now),
            known: now.synced,
            earlier: BTreeMap::new(),
        }
    }

    /// Takes note of boots whose time became known while they lasted: of each what makes a time on its
    /// boot clock a wall time, in milliseconds.
    ///
    /// If it is this boot and nobody has set the clock since, the time is known now too: whoever set it
    /// told an earlier run, and may not have told the kernel.
    pub(crate) fn know_earlier(&mut self, boots: impl IntoIterator<Item = (Uuid, i64)>) {
        self.earlier.extend(boots);
        if let Some(offset_ms) = self.earlier.get(&self.boot_id) {
            let moved_ms = self.offset_ms.saturating_sub(*offset_ms);
            self.known |= moved_ms.unsigned_abs() <= STEP.as_millis() as u64;
        }
    }

    /// Compares the clocks; tells when the wall clock was set or became known.
    pub(crate) fn observe(&mut self, now: Now) -> Option<ClockSet> {
        let moved_ms = offset(now).saturating_sub(self.offset_ms);
        self.offset_ms = offset(now);
        let stepped = moved_ms.unsigned_abs() > STEP.as_millis() as u64;
        // Somebody who sets the clock to a possible time knew it, whether or not the kernel is told.
        let known = self.known || now.synced || (stepped && now.wall_ms >= self.built_ms);
        let first = known && !self.known;
        self.known = known;
        (stepped || first).then_some(ClockSet { moved_ms, first })
    }

    /// The stamp of a record made now.
    pub fn stamp(&self, now: Now) -> Stamp {
        Stamp {
            boot_ms: now.boot.as_millis() as u64,
            wall_ms: now.wall_ms,
            synced: self.known,
        }
    }

    /// Whether the wall clock is known to be right.
    pub fn known(&self) -> bool {
        self.known
    }

    /// What `state` says of the clock.
    pub fn state(&self) -> ClockState {
        if self.known {
            ClockState::Synced
        } else {
            ClockState::Unsynced
        }
    }

    /// The time that a record made at `stamp` during boot `boot_id` may claim, in milliseconds
    /// since 1970, and what that is worth.
    pub fn claim(&self, stamp: Stamp, boot_id: Uuid) -> (i64, ClockState) {
        if stamp.synced {
            (stamp.wall_ms.max(self.built_ms), ClockState::Synced)
        } else if let Some(offset_ms) = self.offset_of(boot_id) {
            let corrected = (stamp.boot_ms as i64).saturating_add(offset_ms);
            (corrected.max(self.built_ms), ClockState::Corrected)
        } else {
            (stamp.wall_ms.max(self.built_ms), ClockState::Unsynced)
        }
    }

    fn offset_of(&self, boot_id: Uuid) -> Option<i64> {
        if self.known && boot_id == self.boot_id {
            return Some(self.offset_ms);
        }
        self.earlier.get(&boot_id).copied()
    }
}

/// RFC 3339 in UTC with milliseconds, within the years that it can write.
pub fn rfc3339(wall_ms: i64) -> String {
    let bound = if wall_ms < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    };
    let timestamp = Timestamp::from_millisecond(wall_ms).unwrap_or(bound);
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    PRINTER.timestamp_to_string(&timestamp)
}

fn offset(now: Now) -> i64 {
    now.wall_ms.saturating_sub(now.boot.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILT: i64 = 1_790_000_000_000;

    fn at(boot_s: u64, wall_ms: i64, synced: bool) -> Now {
        Now {
            boot: Duration::from_secs(boot_s),
            wall_ms,
            synced,
        }
    }

    #[test]
    fn a_record_from_before_the_clock_was_set_is_corrected_from_the_boot_clock() {
        let boot = Uuid::from_u128(1);
        let mut clock = Clock::new(boot, BUILT, at(10, 1_000, false));
        let early = clock.stamp(at(12, 3_000, false));
        assert_eq!(clock.claim(early, boot), (BUILT, ClockState::Unsynced));
        let set = clock.observe(at(20, BUILT + 60_000, true));
        assert!(set.is_some_and(|set| set.first));
        assert_eq!(
            clock.claim(early, boot),
            (BUILT + 52_000, ClockState::Corrected)
        );
        let other_boot = Uuid::from_u128(2);
        assert_eq!(
            clock.claim(early, other_boot),
            (BUILT, ClockState::Unsynced)
        );
        clock.know_earlier([(other_boot, BUILT + 5_000)]);
        assert_eq!(
            clock.claim(early, other_boot),
            (BUILT + 17_000, ClockState::Corrected)
        );
    }

    #[test]
    fn a_later_run_of_the_boot_knows_the_time_unless_the_clock_was_set_since() {
        let boot = Uuid::from_u128(1);
        for (moved_ms, known) in [(0, true), (1_900, true), (-2_100, false)] {
            let mut clock = Clock::new(boot, BUILT, at(10, BUILT + 10_000, false));
            clock.know_earlier([(boot, BUILT - moved_ms)]);
            assert_eq!(clock.known(), known, "moved by {moved_ms} ms");
        }
    }

    #[test]
    fn a_jump_of_a_day_either_way_is_told_and_moves_no_earlier_record() {
        let boot = Uuid::from_u128(1);
        let day = 86_400_000;
        let mut clock = Clock::new(boot, BUILT, at(10, BUILT + day, true));
        let stamp = clock.stamp(at(11, BUILT + day + 1_000, true));
        for moved_ms in [day, -day] {
            let wall = BUILT + day + 2_000 + moved_ms.max(0);
            let set = clock.observe(at(12, wall, true));
            assert_eq!(
                set,
                Some(ClockSet {
                    moved_ms,
                    first: false
                })
            );
        }
        assert_eq!(
            clock.claim(stamp, boot),
            (BUILT + day + 1_000, ClockState::Synced)
        );
    }

    #[test]
    fn a_clock_out_of_its_mind_is_survived() {
        let boot = Uuid::from_u128(1);
        let mut clock = Clock::new(boot, BUILT, at(10, i64::MIN, false));
        let stamp = clock.stamp(at(11, i64::MIN, false));
        for wall_ms in [i64::MAX, i64::MIN, 0, i64::MAX] {
            clock.observe(at(12, wall_ms, false));
            let (claimed, _) = clock.claim(stamp, boot);
            assert!(claimed >= BUILT);
            assert!(rfc3339(claimed).as_str() >= "2026");
        }
    }

    #[test]
    fn times_are_rfc3339_in_utc_with_milliseconds() {
        assert_eq!(rfc3339(1_795_194_191_250), "2026-11-20T17:03:11.250Z");
        assert_eq!(rfc3339(i64::MAX), "9999-12-30T22:00:00.999Z");
        assert!(rfc3339(i64::MIN).starts_with("-009999-"));
    }
}
