//! What a restart keeps of the commands: the ids that are known, and the place of the last one obeyed.

use serde::{Deserialize, Serialize};

use super::envelope::CommandOrder;
use super::{CommandQueue, MAX_KNOWN_IDS};

/// Longer ids are refused when a command comes.
const MAX_ID: usize = 64;

/// The commands obeyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptCommands {
    /// Ids of commands already obeyed, oldest first.
    pub ids: Vec<String>,
    /// So many of them, the last, are not on the disk yet.
    pub fresh: usize,
    /// The place of the last one among those of its sender; none if any may be next.
    pub last: Option<CommandOrder>,
}

/// What changes when there is something new to keep; cheap to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommandsStamp {
    ids_noted: u64,
    waiting: usize,
    last: Option<CommandOrder>,
}

impl KeptCommands {
    /// Whether it can be what a run wrote.
    pub(crate) fn is_sound(&self) -> bool {
        let is_id = |id: &String| (1..=MAX_ID).contains(&id.chars().count());
        self.ids.len() <= MAX_KNOWN_IDS
            && self.fresh <= self.ids.len()
            && self.ids.iter().all(is_id)
    }
}

impl CommandQueue {
    /// Goes on where an earlier run of the same boot stopped; to be called before anything else.
    pub(crate) fn take_over(&mut self, kept: KeptCommands) {
        let on_disk = kept.ids.len().saturating_sub(kept.fresh);
        self.fresh_ids = kept.ids.iter().skip(on_disk).cloned().collect();
        self.known_ids = kept.ids.into();
        self.last = kept.last;
    }

    /// What the next run of this boot has to know. Not the ids of commands that still wait: nobody has obeyed
    /// those, and when they are sent again somebody should.
    pub(crate) fn hand_over(&self) -> KeptCommands {
        let over = self.known_ids.iter().filter(|id| !self.is_waiting(id));
        let is_fresh = |id: &String| self.fresh_ids.contains(id);
        let (fresh, mut ids): (Vec<String>, Vec<String>) = over.cloned().partition(is_fresh);
        let count = fresh.len();
        ids.extend(fresh);
        KeptCommands {
            ids,
            fresh: count,
            last: self.last,
        }
    }

    pub(crate) fn stamp(&self) -> CommandsStamp {
        CommandsStamp {
            ids_noted: self.ids_noted,
            waiting: self.waiting.len(),
            last: self.last,
        }
    }
}
