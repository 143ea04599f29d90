//! Getting a store that can be used, whatever lies there: open it, make one, or salvage it into a new
//! one and move it aside, or say why none of that is possible now. `thread` and `inspect` call this.
//!
//! A power cut at any moment leaves either the old store or the complete new one (see `dir`).

use std::fs::File;
use std::path::PathBuf;

use uuid::Uuid;

use crate::config;

use super::checkpoint::Checkpoint;
use super::dir::{Fault, StoreDir, remove_any};
use super::salvage::SalvageScan;
use super::store::Store;
use super::tree::{self, Tree, copy_before, drop_before, drop_failed, finish_snapshots, guard};

/// What is known before a store is opened.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    pub(super) dir: &'a StoreDir,
    pub(super) bounds: &'a config::Backlog,
    pub(super) checkpoint: &'a Checkpoint,
    /// The current run, and the start of the machine in which it lives.
    pub(super) run: (Uuid, Uuid),
    /// It failed as damaged before: it is salvaged even if it opens.
    pub(super) suspect: bool,
    /// The open log of a store that is no longer in its place.
    pub(super) displaced: Option<&'a File>,
}

impl Opening<'_> {
    /// The store, ready for the current run. The folder must be prepared.
    ///
    /// # Errors
    /// When there is none for now: a full disk, a lock, rights. A damaged one is salvaged instead.
    pub(super) fn open(&self, progress: &dyn Fn()) -> Result<Store, Fault> {
        let dir = self.dir;
        dir.has_room()?;
        finish_snapshots(&dir.store()).map_err(|error| dir.fault(&error))?;
        tree::not_held(dir)?;
        let there = dir.store().symlink_metadata().is_ok();
        if there && (self.checkpoint.holds || !self.checkpoint.is_known()) {
            copy_before(dir);
        }
        let here = [dir.store(), dir.before()];
        let mut store = if let Some(log) = self.displaced {
            let why = "its folder was deleted, renamed or replaced while nightlight used it";
            self.salvage(&[tree::path_of(log)], why, progress)?
        } else if there && self.suspect {
            self.salvage(&here, "the store failed again and again", progress)?
        } else if there || !self.must_be_there() {
            match self.load_whole(progress) {
                Err(Fault::Damaged(why)) => self.salvage(&here, &why, progress)?,
                other => other?,
            }
        } else {
            self.salvage(&here, "the store is gone", progress)?
        };
        let (run, boot_id) = self.run;
        let begun = guard(dir, || store.begin(run, boot_id, self.checkpoint));
        if let Err(fault) = begun {
            drop_failed(store);
            return Err(fault);
        }
        drop_before(dir);
        dir.lay_ballast();
        Ok(store)
    }

    /// Whether a store that is not there is a loss.
    fn must_be_there(&self) -> bool {
        self.checkpoint.holds && self.checkpoint.runs.values().any(|run| !run.is_empty())
    }

    fn load_whole(&self, progress: &dyn Fn()) -> Result<Store, Fault> {
        // The checkpoint is written now and then, the log with every batch: it knows more.
        let copied = self.dir.before().is_file();
        let synced = match copied {
            true => SalvageScan::of(&[self.dir.before()], progress).synced(),
            false => 0,
        };
        let store = self.load()?;
        let least = self.checkpoint.least.max(synced);
        if store.generation < least {
            let why = format!(
                "the store opened, but as it was after batch {} where {least} had been written",
                store.generation
            );
            drop_failed(store);
            return Err(Fault::Damaged(why));
        }
        Ok(store)
    }

    fn load(&self) -> Result<Store, Fault> {
        let tree = Tree::open(self.dir, &self.dir.store())?;
        guard(self.dir, || Store::load(tree, self.dir, self.bounds))
    }

    /// Salvages `dead` into a new store, and moves aside what lies in its place.
    fn salvage(&self, dead: &[PathBuf], why: &str, progress: &dyn Fn()) -> Result<Store, Fault> {
        let dir = self.dir;
        dir.above_floor()?;
        let part = dir.part();
        let mut found = SalvageScan::of(dead, progress);
        let refilled = guard(dir, || {
            remove_any(&part).map_err(|error| dir.fault(&error))?;
            let tree = Tree::open(dir, &part)?;
            let mut store = Store::load(tree, dir, self.bounds)?;
            found.refill(&mut store, self.checkpoint, progress)
        });
        let (records, gaps) = match refilled {
            Ok(made) => made,
            Err(fault) => {
                let _ = remove_any(&part);
                // Whatever is wrong with a store just made, it is not what lies in the old one.
                return Err(Fault::Blocked(fault.why().to_owned()));
            }
        };
        let kept = match dir.quarantine()? {
            Some(aside) => format!("what was there is kept at {}", aside.display()),
            None => "nothing was there to be kept".to_owned(),
        };
        match found.is_empty() {
            true => tracing::warn!("backlog: {why}; nothing to salvage; {kept}"),
            false => tracing::warn!(
                "backlog: {why}; {records} records salvaged, {gaps} losses to report; {kept}"
            ),
        }
        self.load()
    }
}
