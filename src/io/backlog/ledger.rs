//! What the store knows about its own contents, kept in the same batches as the contents: the runs,
//! the totals, and the losses not yet told. Data only; `store` and `salvage` use it.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::logic::telemetry::Loss;
use crate::logic::time::Stamp;

use super::format::{Header, Kind, pack_json};

/// Why a record was given up: the bounds.
pub(super) const FULL: &str = "backlog-full";
/// Why a record was given up: its bytes.
pub(super) const DAMAGED: &str = "damaged";
/// Why a record was given up: a later version wrote it.
pub(super) const UNREADABLE: &str = "unreadable";
/// Why a record was given up: it can never be stored.
pub(super) const REFUSED: &str = "refused";

/// Why a record was given up: its run ended before it could be stored.
pub(super) const NOT_STORED: &str = "not-stored";

/// What is known of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    /// Its name.
    pub(super) run: Uuid,
    /// The start of the machine in which it lived.
    pub(super) boot: Uuid,
    /// The lowest seq that is still held; one more than `high` when there is none.
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
    /// Records of it that are held.
    pub(super) held: u64,
    /// The write that this was part of: of two versions the greater is the later one.
    pub(super) generation: u64,
}

/// The totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Writes so far.
    pub(super) generation: u64,
    /// The last write known to be on the disk when this one was made.
    pub(super) synced: u64,
    /// Records held, those of partly forgotten chunks included.
    pub(super) records: u64,
    /// Bytes of their values.
    pub(super) bytes: u64,
    /// The id of the newest loss.
    pub(super) last_loss: u64,
    /// The id of the oldest loss that is not forgotten.
    pub(super) oldest_loss: u64,
    /// The number of the newest command id.
    pub(super) last_command: u64,
}

/// The losses that the store may not forget yet.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// By id.
    pub(super) all: BTreeMap<u64, Loss>,
    /// Those that may still grow, by run and reason: none that was told, or was there at the open.
    open: HashMap<(Uuid, String), u64>,
}

impl Run {
    /// A run without records.
    pub(super) fn new(run: Uuid, boot: Uuid) -> Run {
        Run {
            run,
            boot,
            low: 1,
            ..Run::default()
        }
    }

    /// Its value.
    pub(super) fn pack(&self, ordinal: u64) -> Vec<u8> {
        let header = Header {
            ordinal,
            run: self.run,
            boot_id: self.boot,
            first: self.low,
            last: self.high,
            ..plain(Kind::Run)
        };
        pack_json(&header, self)
    }

    /// Learns the time from a record that was made when it was known.
    pub(super) fn learns(&mut self, stamp: Stamp) {
        if stamp.synced {
            self.offset_ms = Some(stamp.wall_ms.saturating_sub(stamp.boot_ms as i64));
        }
    }

    /// Counts one record more.
    pub(super) fn gains(&mut self, seq: u64) {
        self.low = if self.held == 0 {
            seq
        } else {
            self.low.min(seq)
        };
        self.high = self.high.max(seq);
        self.last = self.last.max(seq);
        self.held += 1;
    }
}

impl State {
    /// Its value.
    pub(super) fn pack(&self) -> Vec<u8> {
        pack_json(&plain(Kind::State), self)
    }
}

impl Losses {
    /// As they were found on the disk.
    pub(super) fn new(all: BTreeMap<u64, Loss>) -> Losses {
        Losses {
            all,
            open: HashMap::new(),
        }
    }

    /// The loss that this one may become part of.
    pub(super) fn open_for(&self, loss: &Loss) -> Option<(u64, &Loss)> {
        let id = self.open.get(&(loss.of_run, loss.reason.clone()))?;
        Some((*id, self.all.get(id)?))
    }

    /// Adds one, or puts a grown one in the place of the smaller; it may grow further.
    pub(super) fn put(&mut self, id: u64, loss: Loss) {
        self.open.insert((loss.of_run, loss.reason.clone()), id);
        self.all.insert(id, loss);
    }

    /// From now on it never changes: it has been told.
    pub(super) fn close(&mut self, id: u64) {
        self.open.retain(|_, open| *open != id);
    }

    /// Forgets one; `false` when there is none.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        self.close(id);
        self.all.remove(&id).is_some()
    }
}

/// The value of a loss.
pub(super) fn pack_loss(id: u64, loss: &Loss) -> Vec<u8> {
    let header = Header {
        ordinal: id,
        run: loss.of_run,
        first: loss.from_seq,
        last: loss.to_seq,
        ..plain(Kind::Loss)
    };
    pack_json(&header, loss)
}

/// The value of a command id.
pub(super) fn pack_command(number: u64, id: &str) -> Vec<u8> {
    let header = Header {
        ordinal: number,
        ..plain(Kind::Command)
    };
    pack_json(&header, &id)
}

fn plain(kind: Kind) -> Header {
    Header {
        kind,
        count: 0,
        ordinal: 0,
        run: Uuid::nil(),
        boot_id: Uuid::nil(),
        first: 0,
        last: 0,
    }
}
