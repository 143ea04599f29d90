//! The store's life: it is open only while there is something in it or to put in. It is made at the first
//! append, opened again after a failure, salvaged when it fails twice as damaged, and removed once drained.
//!
//! All of sled is called inside `tree::guard`; after any failure the store is dropped, because memory may be
//! ahead of the disk. The checkpoint is written here, and only after a commit, so that it never says more than
//! the disk holds. `thread` calls this.

use std::fs::File;
use std::mem;

use uuid::Uuid;

use crate::config;
use crate::logic::{Entry, Opened};

use super::checkpoint::Checkpoint;
use super::dir::{Fault, StoreDir};
use super::opening::Opening;
use super::run::Run;
use super::store::Store;
use super::tree::{drop_failed, guard};

/// A store that failed so often as damaged is salvaged, even if it opens.
pub(super) const MAX_FAILURES: u32 = 2;

/// The store, or what is known while there is none.
#[derive(Debug)]
pub(super) struct Life {
    settings: config::Backlog,
    run: Uuid,
    boot_id: Uuid,
    pub(super) dir: StoreDir,
    pub(super) checkpoint: Checkpoint,
    /// The number of this run, once the backlog is open.
    current: Option<u64>,
    store: Option<Store>,
    /// The log of a store that is no longer in its place: still to be salvaged.
    displaced: Option<File>,
    failures: u32,
    /// Why there is no store.
    why: String,
}

impl Life {
    pub(super) fn new(settings: config::Backlog, run: Uuid, boot_id: Uuid) -> Life {
        Life {
            dir: StoreDir::new(&settings.path),
            settings,
            run,
            boot_id,
            checkpoint: Checkpoint::default(),
            current: None,
            store: None,
            displaced: None,
            failures: 0,
            why: String::new(),
        }
    }

    /// Why there is no store.
    pub(super) fn why(&self) -> String {
        self.why.clone()
    }

    /// Whether the backlog was ever opened.
    pub(super) fn is_known(&self) -> bool {
        self.current.is_some()
    }

    /// Whether there is no store and should be one, or it is not known.
    pub(super) fn wants_store(&self) -> bool {
        let should_be = !self.is_known() || self.checkpoint.holds || self.displaced.is_some();
        self.store.is_none() && should_be
    }

    /// Whether there is a store, and nothing in it.
    pub(super) fn is_drained(&self) -> bool {
        self.store.as_ref().is_some_and(Store::is_empty)
    }

    /// Whether there is a store.
    pub(super) fn has_store(&self) -> bool {
        self.store.is_some()
    }

    /// Bytes of what is in it, compressed; 0 without one.
    pub(super) fn bytes(&self) -> u64 {
        self.store.as_ref().map_or(0, Store::bytes)
    }

    /// Whether a store was lost from its place, and is to be salvaged into a new one.
    pub(super) fn is_displaced(&self) -> bool {
        self.displaced.is_some()
    }

    /// Opens the backlog, and the store if it may hold something, or is to be made. Gives what the daemon is
    /// told, when that is new.
    ///
    /// # Errors
    /// As `Opening::open`; they are noted here.
    pub(super) fn open(
        &mut self,
        make: bool,
        progress: &dyn Fn(),
    ) -> Result<Option<Opened>, Fault> {
        let dir = self.dir.clone();
        let suspect = self.failures >= MAX_FAILURES;
        let opened = guard(&dir, || self.open_unguarded(make, suspect, progress));
        match &opened {
            Err(fault) => self.failed(fault),
            Ok(_) => {
                self.displaced = None;
                if suspect {
                    self.failures = 0;
                }
            }
        }
        opened
    }

    fn open_unguarded(
        &mut self,
        make: bool,
        suspect: bool,
        progress: &dyn Fn(),
    ) -> Result<Option<Opened>, Fault> {
        self.dir.prepare()?;
        let is_new = !self.is_known();
        // What is in memory knows more, and the file may be gone with its folder.
        let mut checkpoint = match is_new {
            true => Checkpoint::read(&self.dir.checkpoint()),
            false => self.checkpoint.clone(),
        };
        let mut current = checkpoint.number(self.run);
        let own = self.run;
        let notes = checkpoint.not_stored.iter();
        let notes: Vec<_> = notes.filter(|loss| loss.of_run != own).cloned().collect();
        let there = self.dir.store().symlink_metadata().is_ok();
        let needed = make || there || checkpoint.holds || !notes.is_empty();
        let mut oldest_ms = None;
        if needed || self.is_displaced() {
            let opening = Opening {
                dir: &self.dir,
                bounds: &self.settings,
                checkpoint: &checkpoint,
                run: (self.run, self.boot_id),
                suspect,
                displaced: self.displaced.as_ref(),
            };
            let mut store = opening.open(progress)?;
            if is_new {
                for note in notes {
                    match store.number_of(note.of_run) {
                        Ok(number) => store.put_gap(number, note)?,
                        Err(fault) => tracing::warn!("backlog: {}: {note:?}", fault.why()),
                    }
                }
                checkpoint.not_stored.retain(|loss| loss.of_run == own);
                let oldest = store.read_after(None, 1)?.entries.into_iter();
                oldest_ms = oldest.filter_map(|(_, entry)| entry.wall_ms()).next();
                store.read_to = None;
            }
            checkpoint.holds = true;
            current = store.current;
            self.store = Some(store);
        }
        let run = Run::new(self.run, self.boot_id);
        checkpoint.runs.entry(current).or_insert(run);
        self.checkpoint = checkpoint;
        self.current = Some(current);
        if let (Err(fault), true) = (self.write_checkpoint(), is_new) {
            self.current = None;
            drop_failed(self.store.take());
            return Err(fault);
        }
        Ok(is_new.then(|| self.opened(current, oldest_ms)))
    }

    fn opened(&self, current: u64, oldest_ms: Option<i64>) -> Opened {
        let stored = self.store.as_ref();
        let runs = stored.map_or(&self.checkpoint.runs, |store| &store.runs);
        let previous = runs.range(..current).next_back();
        Opened {
            oldest_ms,
            run_number: current,
            previous: previous.map(|(_, run)| (run.run, run.high.max(run.last))),
            records: stored.map_or(0, Store::waiting),
            clocks: runs
                .values()
                .filter_map(|run| Some((run.boot, run.offset_ms?)))
                .collect(),
            command_ids: self.checkpoint.commands.iter().cloned().collect(),
        }
    }

    /// Runs something on the store; after a failure there is none any more.
    pub(super) fn with_store<T>(
        &mut self,
        work: impl FnOnce(&mut Store) -> Result<T, Fault>,
    ) -> Option<T> {
        let store = self.store.as_mut()?;
        let done = guard(&self.dir, || work(store));
        if !store.tree.is_in_place()
            && let Some(log) = store.tree.log()
        {
            self.displaced = Some(log);
            self.drop_store(done.is_ok());
            self.why = format!(
                "the folder of the backlog in {} was deleted, renamed or replaced",
                self.settings.path.display()
            );
            return done.ok();
        }
        if let Err(fault) = &done {
            self.drop_store(false);
            self.failed(fault);
        }
        done.ok()
    }

    /// Without a store, the run remembers here the numbers that it has given.
    ///
    /// # Errors
    /// As the disk gives them.
    pub(super) fn remember_last(&mut self, last_seq: u64) -> Result<(), Fault> {
        if let Some(run) = self.current.and_then(|n| self.checkpoint.runs.get_mut(&n)) {
            run.last = run.last.max(last_seq);
        }
        self.write_checkpoint()
    }

    /// Notes that these entries could not be stored, so that the next run reports it if this one does not live
    /// to store them. Whether the note is on the disk.
    pub(super) fn note_not_stored(&mut self, entries: &[Entry]) -> bool {
        if !self.is_known() {
            // Of a backlog that could not be opened at all.
            self.checkpoint = Checkpoint::read(&self.dir.checkpoint());
        }
        let number = self.checkpoint.number(self.run);
        let run = Run::new(self.run, self.boot_id);
        self.checkpoint.runs.entry(number).or_insert(run);
        self.checkpoint.note_not_stored(self.run, entries);
        let written = self.checkpoint.write(&self.dir.checkpoint());
        if let Err(error) = &written {
            tracing::warn!(
                "backlog: {} records are in memory only, and if they are lost nobody will know: {error}",
                entries.len()
            );
        }
        written.is_ok()
    }

    /// What could not be stored is stored now.
    pub(super) fn take_note_back(&mut self) {
        self.checkpoint.note_not_stored(self.run, &[]);
        if let Err(fault) = self.write_checkpoint() {
            self.failed(&fault);
        }
    }

    /// Removes the store: nothing is in it. The next outage begins with a new one.
    pub(super) fn remove_drained(&mut self) {
        self.drop_store(true);
        self.checkpoint.holds = false;
        self.checkpoint.least = 0;
        // In this order: a store that the checkpoint misses would be reported as lost.
        let removed = self
            .write_checkpoint()
            .and_then(|()| self.dir.remove_store());
        if let Err(fault) = removed {
            self.checkpoint.holds = true;
            self.failed(&fault);
        }
    }

    /// Writes the checkpoint, after a commit.
    ///
    /// # Errors
    /// As the disk gives them.
    pub(super) fn write_checkpoint(&mut self) -> Result<(), Fault> {
        if let Some(store) = &self.store {
            self.checkpoint.runs.clone_from(&store.runs);
            self.checkpoint.generation = store.generation;
            self.checkpoint.least = store.generation;
        }
        if let Some(current) = self.current {
            self.checkpoint.drop_done_runs(current);
        }
        if !self.dir.path().is_dir() {
            self.dir.prepare()?;
        }
        self.checkpoint
            .write(&self.dir.checkpoint())
            .map_err(|error| self.dir.fault(&error))
    }

    /// Ends with the store; whether all is on the disk.
    pub(super) fn close(&mut self) -> bool {
        let mut clean = true;
        if self.is_drained() {
            self.remove_drained();
        } else if self.has_store() {
            clean = self.with_store(|_| Ok(())).is_some() && self.write_checkpoint().is_ok();
        }
        let store = self.store.take();
        let closed = guard(&self.dir, || {
            drop(store);
            Ok(())
        });
        clean && closed.is_ok()
    }

    fn failed(&mut self, fault: &Fault) {
        match fault {
            Fault::Full(_) => self.dir.release_ballast(),
            Fault::Damaged(_) => self.failures += 1,
            Fault::Blocked(_) => {}
        }
        if fault.why() != self.why {
            tracing::warn!("backlog: {}", fault.why());
        }
        fault.why().clone_into(&mut self.why);
    }

    /// After a failure, memory may be ahead of the disk.
    fn drop_store(&mut self, is_true: bool) {
        if let Some(mut store) = self.store.take() {
            self.checkpoint.generation = self.checkpoint.generation.max(store.generation);
            if is_true {
                self.checkpoint.runs = mem::take(&mut store.runs);
            }
            drop_failed(store);
        }
    }
}
