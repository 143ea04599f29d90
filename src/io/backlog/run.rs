//! What is known of a run: its name, its clock, and what the store holds of it. A copy is part of each
//! batch that changes it, and of the checkpoint. Data only.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::logic::telemetry::{Loss, Record};

use super::format::{Header, Kind, pack_json};

/// Why records were given up: the bounds.
pub(super) const FULL: &str = "backlog-full";
/// Why records were given up: their bytes.
pub(super) const DAMAGED: &str = "damaged";
/// Why a record was given up: a later version wrote it.
pub(super) const UNREADABLE: &str = "unreadable";
/// Why a record was given up: it fits into no chunk.
pub(super) const TOO_LARGE: &str = "too-large";
/// Why records were given up: their run ended before they could be stored.
pub(super) const NOT_STORED: &str = "not-stored";

/// What is known of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    /// Its name.
    pub(super) run: Uuid,
    /// The start of the machine in which it lived.
    pub(super) boot: Uuid,
    /// No record below this seq is held.
    pub(super) low: u64,
    /// The highest seq that was ever stored; 0 before the first.
    pub(super) high: u64,
    /// The highest seq that it was known to have given, stored or not.
    #[serde(default)]
    pub(super) last: u64,
    /// What makes a time on the boot clock of then a wall time, in milliseconds, once that was known:
    /// with it a later boot corrects what was stored before.
    #[serde(default)]
    pub(super) offset_ms: Option<i64>,
    /// Records in its chunks.
    pub(super) held: u64,
    /// Its gaps.
    #[serde(default)]
    pub(super) gaps: u64,
    /// Bytes of its chunks.
    #[serde(default)]
    pub(super) bytes: u64,
    /// The batch that this was part of, counted over all of the backlog's life: of two versions the
    /// greater is the later one.
    pub(super) generation: u64,
    /// The last batch known to be on the disk when this one was made.
    #[serde(default)]
    pub(super) synced: u64,
}

impl Run {
    /// A run of which nothing is stored.
    pub(super) fn new(run: Uuid, boot: Uuid) -> Run {
        Run {
            run,
            boot,
            low: 1,
            ..Run::default()
        }
    }

    /// The same run, with nothing stored.
    pub(super) fn emptied(&self) -> Run {
        Run {
            held: 0,
            gaps: 0,
            bytes: 0,
            ..*self
        }
    }

    /// Its value.
    pub(super) fn pack(&self, run_number: u64) -> Vec<u8> {
        let header = Header {
            kind: Kind::Run,
            count: 0,
            run_number,
            run: self.run,
            boot_id: self.boot,
            first: self.low,
            last: self.high,
        };
        pack_json(&header, self)
    }

    /// Learns the time from a record that was made when it was known.
    pub(super) fn learn_clock(&mut self, record: &Record) {
        let stamp = record.stamp;
        if stamp.synced {
            self.offset_ms = Some(stamp.wall_ms.saturating_sub(stamp.boot_ms as i64));
        }
    }

    /// A chunk was added.
    pub(super) fn add(&mut self, chunk: &Header, bytes: usize) {
        self.low = match self.held {
            0 => chunk.first,
            _ => self.low.min(chunk.first),
        };
        self.high = self.high.max(chunk.last);
        self.last = self.last.max(chunk.last);
        self.held += u64::from(chunk.count);
        self.bytes += bytes as u64;
    }

    /// A chunk was removed.
    pub(super) fn subtract(&mut self, count: u16, bytes: usize) {
        self.held = self.held.saturating_sub(u64::from(count));
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }

    /// Whether nothing of it is stored.
    pub(super) fn is_empty(&self) -> bool {
        self.held == 0 && self.gaps == 0
    }
}

/// A loss.
pub(super) fn loss(of_run: Uuid, from_seq: u64, to_seq: u64, count: u64, reason: &str) -> Loss {
    Loss {
        of_run,
        from_seq,
        to_seq,
        count,
        reason: reason.to_owned(),
    }
}
