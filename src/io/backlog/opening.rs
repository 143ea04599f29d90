//! Getting a store that can be used, whatever lies there: open it, or salvage it into a new one and
//! move it aside, or say why neither is possible now. Also the exchange of an empty store that has
//! grown large for a small one, which is the only way to get its space back. `worker` calls this.
//!
//! A power cut at any moment leaves either the old store or the complete new one (see `disk`).

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use sled::Batch;
use uuid::Uuid;

use crate::config;

use super::account::Account;
use super::disk::{Fault, Place, remove_any, tree_bytes};
use super::keys;
use super::ledger::{pack_command, pack_loss};
use super::salvage::Found;
use super::store::{Displaced, Store};

/// An empty store of fewer bytes is not worth the exchange.
const LARGE: u64 = 4 * 1024 * 1024;
/// The threads of a store that was just closed may hold its lock for a moment.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Whose store it is, and where.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    /// The settings.
    pub(super) bounds: &'a config::Backlog,
    /// The current run.
    pub(super) run: Uuid,
    /// The start of the machine.
    pub(super) boot_id: Uuid,
}

/// Runs something that may panic inside sled.
pub(super) fn guard<T>(place: &Place, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|what| Err(place.panic_fault(&*what)))
}

/// Drops a store that has failed, panics and all.
pub(super) fn discard(store: Store) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(store)));
}

impl Opening<'_> {
    /// The store, ready for this run. A `suspect` one is salvaged even if it opens.
    ///
    /// # Errors
    /// When there is none for now: a full disk, a lock, rights. A damaged one is salvaged instead.
    pub(super) fn open(
        &self,
        suspect: bool,
        displaced: Option<&Displaced>,
        progress: &dyn Fn(),
    ) -> Result<Store, Fault> {
        let place = Place::new(&self.bounds.path);
        place.prepare()?;
        place.has_room()?;
        let account = Account::read(&place.account());
        let there = place.store().symlink_metadata().is_ok();
        patiently(|| place.not_held())?;
        if account.records || account.generation == 0 {
            place.copy_before();
        }
        let found_here = [place.store(), place.before()];
        let mut store = if let Some(displaced) = displaced {
            // The descriptor opens the same file again, also one that has no name any more.
            let log = PathBuf::from(format!("/proc/self/fd/{}", displaced.log.as_raw_fd()));
            let why = "its folder was deleted, renamed or replaced while nightlight used it";
            self.rebuild(&place, &[log], &displaced.account, why, progress)?
        } else if there && suspect {
            let why = "the store failed again and again";
            self.rebuild(&place, &found_here, &account, why, progress)?
        } else if there || account.generation == 0 {
            // The account is written now and then, the log with every write: it knows more.
            let copied = place.before().is_file();
            let synced = if copied {
                Found::scan(&[place.before()], progress).synced()
            } else {
                0
            };
            match self.load_whole(&place, account.generation.max(synced)) {
                Err(Fault::Damaged(why)) => {
                    self.rebuild(&place, &found_here, &account, &why, progress)?
                }
                other => other?,
            }
        } else {
            let why = "the store is gone";
            self.rebuild(&place, &found_here, &account, why, progress)?
        };
        let begun = guard(&place, || {
            store.note_losses(&account.not_stored, self.run)?;
            store.begin(self.run, self.boot_id, account.ordinal.saturating_add(1))
        });
        if let Err(fault) = begun {
            discard(store);
            return Err(fault);
        }
        place.drop_before();
        place.lay_ballast();
        Ok(store)
    }

    /// A small store with the same contents, if this one is empty and large.
    ///
    /// # Errors
    /// When the new one cannot be made; the old one can be opened again.
    pub(super) fn renew(&self, store: Store) -> Result<Store, Fault> {
        let place = store.place.clone();
        let large = store.state.records == 0 && tree_bytes(&place.store()) > LARGE;
        if !large || place.above_floor().is_err() {
            return Ok(store);
        }
        let new = place.new_store();
        let copied = guard(&place, || {
            remove_any(&new).map_err(|error| place.fault(&error))?;
            let mut small = Store::load(&place, &new, self.bounds)?;
            copy(&store, &mut small)?;
            small.sync()?;
            Ok(())
        });
        discard(store);
        copied?;
        place.replace()?;
        let mut store = self.load_whole(&place, Account::read(&place.account()).generation)?;
        guard(&place, || store.begin(self.run, self.boot_id, 1))?;
        Ok(store)
    }

    fn load_whole(&self, place: &Place, least: u64) -> Result<Store, Fault> {
        let store = patiently(|| guard(place, || Store::load(place, &place.store(), self.bounds)))?;
        if store.state.generation < least {
            let why = format!(
                "the store opened, but with its state of write {} where {} had been made",
                store.state.generation, least
            );
            discard(store);
            return Err(Fault::Damaged(why));
        }
        Ok(store)
    }

    /// Salvages `dead` into a new store, and moves aside what lies in its place.
    fn rebuild(
        &self,
        place: &Place,
        dead: &[PathBuf],
        account: &Account,
        why: &str,
        progress: &dyn Fn(),
    ) -> Result<Store, Fault> {
        place.above_floor()?;
        let new = place.new_store();
        let mut found = Found::scan(dead, progress);
        let nothing = found.is_empty();
        let refilled = guard(place, || {
            remove_any(&new).map_err(|error| place.fault(&error))?;
            let mut store = Store::load(place, &new, self.bounds)?;
            let records = found.refill(&mut store, account, progress)?;
            store.sync()?;
            Ok((records, store.losses.all.len()))
        });
        let (records, losses) = match refilled {
            Ok(counts) => counts,
            Err(fault) => {
                let _ = remove_any(&new);
                // Whatever is wrong with a store just made, it is not what lies in the old one.
                return Err(Fault::Blocked(fault.why().to_owned()));
            }
        };
        let aside = place.quarantine()?;
        let kept = match aside {
            Some(aside) => format!("what was there is kept at {}", aside.display()),
            None => "nothing was there to be kept".to_owned(),
        };
        if nothing {
            tracing::warn!("backlog: {why}; nothing to salvage; {kept}");
        } else {
            tracing::warn!(
                "backlog: {why}; {records} records salvaged, {losses} losses to tell; {kept}"
            );
        }
        patiently(|| guard(place, || Store::load(place, &place.store(), self.bounds)))
    }
}

/// Everything of an empty store.
fn copy(from: &Store, to: &mut Store) -> Result<(), Fault> {
    to.state = from.state;
    to.state.bytes = 0;
    to.runs = from.runs.clone();
    to.dirty = to.runs.keys().copied().collect();
    let mut batch = Batch::default();
    for (id, loss) in &from.losses.all {
        batch.insert(keys::numbered(keys::LOSS, *id), pack_loss(*id, loss));
    }
    for (number, id) in &from.commands {
        batch.insert(
            keys::numbered(keys::COMMAND, *number),
            pack_command(*number, id),
        );
    }
    // Else the first write of the copy would say that no loss is left to tell.
    to.losses.all = from.losses.all.clone();
    to.apply(batch)
}

/// Tries again while the lock is held.
fn patiently<T>(load: impl Fn() -> Result<T, Fault>) -> Result<T, Fault> {
    let mut tries = 0;
    loop {
        match load() {
            Err(Fault::Blocked(why)) if why.contains("held by") && tries < LOCK_TRIES => {
                tries += 1;
                thread::sleep(LOCK_PAUSE);
            }
            other => return other,
        }
    }
}
