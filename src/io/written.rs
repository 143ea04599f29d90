//! What the program has had the system write to storage today, as the kernel counts it.
//!
//! Read from `/proc/self/io`, which costs no disk. A system without that file gives no number. Used by the
//! daemon.

use std::fs;

const DAY_MS: i64 = 86_400_000;

/// Bytes written since midnight (UTC) or the start, whichever is later.
#[derive(Debug, Default)]
pub struct Written {
    day: Option<i64>,
    at_midnight: u64,
    last: u64,
}

impl Written {
    /// The number at `wall_ms`; called now and then, so that midnight is not missed by much.
    pub(crate) fn today(&mut self, wall_ms: i64) -> Option<u64> {
        let total = written_bytes(&fs::read_to_string("/proc/self/io").ok()?)?;
        Some(self.of(total, wall_ms))
    }

    fn of(&mut self, total: u64, wall_ms: i64) -> u64 {
        let day = wall_ms.div_euclid(DAY_MS);
        // The first day began before the program did; a clock that is set begins another, too.
        if self.day.is_some_and(|known| known != day) {
            self.at_midnight = self.last;
        }
        self.day = Some(day);
        self.last = total;
        total.saturating_sub(self.at_midnight)
    }
}

fn written_bytes(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_at_midnight() {
        let mut written = Written::default();
        assert_eq!(written.of(4_096, DAY_MS - 1), 4_096);
        assert_eq!(written.of(8_192, DAY_MS + 1), 4_096);
        assert_eq!(written.of(8_192, DAY_MS + 2), 4_096);
        assert_eq!(written.of(9_192, 2 * DAY_MS), 1_000);
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let text = "rchar: 1\nwrite_bytes: 12288\ncancelled_write_bytes: 0\n";
        assert_eq!(written_bytes(text), Some(12_288));
        assert_eq!(written_bytes("rchar: 1\n"), None);
    }
}
