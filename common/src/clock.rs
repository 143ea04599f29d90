//! Reads the machine's clocks. What a record may claim from them is decided in `logic/src/time.rs`; both
//! programs call [`Clock::now`] for each input.

use std::ffi::c_long;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};
use uuid::Uuid;

use nightlight_logic::time::Now;

/// The kernel's estimate of the clock's error from which on it is not synchronised, in microseconds
/// (`NTP_PHASE_LIMIT`): the estimate starts there, and grows back to it in 9 hours (500 ppm) when
/// nobody disciplines the clock any more.
const UNSYNCED_US: c_long = 16_000_000;

/// The clocks of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    boot_id: Uuid,
    /// Where the milliseconds stand by which the wall clock is moved; only the demonstration's is.
    moved_by: Option<&'static Path>,
}

impl Clock {
    /// Takes note of which start of the machine this is.
    pub fn new() -> Self {
        let told = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| text.trim().parse().ok());
        Self {
            // Not knowing it, no record of an earlier run counts as of this boot: that costs a
            // correction, where a wrong id would invent one.
            boot_id: told.unwrap_or_else(Uuid::new_v4),
            moved_by: None,
        }
    }

    /// With a wall clock that is moved by the milliseconds in `file`, so that the demonstration can set it
    /// without touching the machine's.
    pub fn moved_by(file: PathBuf) -> Self {
        Self {
            moved_by: Some(Box::leak(file.into_boxed_path())),
            ..Self::new()
        }
    }

    /// One look at all clocks.
    pub fn now(&self) -> Now {
        let moved = self.moved_by.and_then(|file| fs::read_to_string(file).ok());
        let moved_ms: i64 = moved.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Now {
            boot: since(clock_gettime(ClockId::Boottime)),
            wall_ms: milliseconds(clock_gettime(ClockId::Realtime)).saturating_add(moved_ms),
            synced: synced(),
        }
    }

    /// The id of this start of the machine, from the kernel.
    pub fn boot_id(&self) -> Uuid {
        self.boot_id
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether the kernel holds the wall clock for synchronised, by the rule of systemd
/// (`ntp_synced` in `basic/time-util.c`): the call succeeds and `maxerror` is below its limit.
///
/// Not by `STA_UNSYNC`, nor by the call's result `TIME_ERROR` which follows from it: a time service
/// may leave that flag set for ever only to keep the kernel from writing to the clock chip. Every
/// service (timesyncd, chrony, ntpd, ntpd-rs) lowers `maxerror` when it has the time. A refused call,
/// as under a system call filter, is "not known".
#[expect(
    unsafe_code,
    reason = "no maintained crate asks the kernel this on 32-bit systems too (docs/decisions/0014)"
)]
fn synced() -> bool {
    // SAFETY: the struct is plain numbers, for which zero is a value. Zero modes make the call a question,
    // which needs no privilege; the kernel writes into the struct, whose size libc knows, and keeps no
    // pointer to it.
    unsafe {
        let mut answer: libc::timex = std::mem::zeroed();
        libc::adjtimex(&mut answer) >= 0 && is_synced(answer.maxerror)
    }
}

fn is_synced(maxerror_us: c_long) -> bool {
    maxerror_us < UNSYNCED_US
}

fn since(time: Timespec) -> Duration {
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

// A long is 32 bits wide on half of the Pis, and the conversion does something there.
#[allow(clippy::useless_conversion)]
fn milliseconds(time: Timespec) -> i64 {
    time.tv_sec
        .saturating_mul(1000)
        .saturating_add(i64::from(time.tv_nsec) / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_runs_and_the_wall_clock_is_the_systems() {
        let clock = Clock::new();
        let (first, second) = (clock.now(), clock.now());
        assert!(first.boot <= second.boot);
        assert!(first.boot > Duration::ZERO);
        let system = jiff::Timestamp::now().as_millisecond();
        assert!((system - second.wall_ms).abs() < 5_000);
    }

    #[test]
    fn a_demonstration_moves_its_own_clock_alone() {
        let name = format!("nightlight-clock-{}", Uuid::new_v4());
        let file = std::env::temp_dir().join(name);
        let (own, moved) = (Clock::new(), Clock::moved_by(file.clone()));
        assert!((moved.now().wall_ms - own.now().wall_ms).abs() < 5_000);
        fs::write(&file, "3600000\n").unwrap();
        assert!((moved.now().wall_ms - own.now().wall_ms - 3_600_000).abs() < 5_000);
        assert!(moved.now().boot.abs_diff(own.now().boot) < Duration::from_secs(5));
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_boot_has_one_id() {
        assert_eq!(Clock::new().boot_id(), Clock::new().boot_id());
    }

    #[test]
    fn sixteen_seconds_of_possible_error_are_not_synchronised() {
        assert!(is_synced(0));
        assert!(is_synced(15_999_999));
        assert!(!is_synced(16_000_000));
    }

    #[test]
    fn milliseconds_hold_before_1970_too() {
        let at = |tv_sec, tv_nsec| milliseconds(Timespec { tv_sec, tv_nsec });
        assert_eq!(at(1, 999_999_999), 1_999);
        assert_eq!(at(-1, 250_000_000), -750);
        assert_eq!(at(i64::MAX, 0), i64::MAX);
    }
}
