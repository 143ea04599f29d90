//! The store on a real folder: what it knows after a restart, and what it says when it cannot be had.

use uuid::Uuid;

use super::ledger::{Arrived, Ledger, Shelf, Taken, Tells};
use super::opening::OpenError;
use super::store::Store;

const DEVICE: &str = "pi";

fn arrived(run: Uuid, seq: u64) -> Arrived {
    Arrived {
        run,
        seq,
        tells: Tells::Nothing,
        live: true,
        json: format!("{{\"light\":{seq}}}"),
    }
}

#[test]
fn a_store_knows_after_a_restart_what_it_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let (run, other) = (Uuid::from_u128(7), Uuid::from_u128(8));
    {
        let store = Store::open(folder.path()).unwrap();
        let mut ledger = Ledger::new(store.devices().unwrap());
        for seq in (1..=200).filter(|seq| *seq != 130) {
            let taken = ledger.take(&store, DEVICE, arrived(run, seq)).unwrap();
            assert_eq!(taken, Taken::New);
        }
        ledger.take(&store, DEVICE, arrived(other, 3)).unwrap();
        store.write(ledger.changes()).unwrap();
        ledger.committed();
    }
    let store = Store::open(folder.path()).unwrap();
    let mut ledger = Ledger::new(store.devices().unwrap());
    let taken = ledger.take(&store, DEVICE, arrived(run, 64)).unwrap();
    assert_eq!(taken, Taken::Again);
    let taken = ledger.take(&store, DEVICE, arrived(run, 130)).unwrap();
    assert_eq!(taken, Taken::New);
    store.write(ledger.changes()).unwrap();
    ledger.committed();
    let (_, totals) = &store.devices().unwrap()[0];
    assert_eq!(totals.counts.received, 201);
    assert_eq!(totals.counts.twice, 1);
    assert_eq!(totals.counts.missing, 2);
    let runs = store.runs(DEVICE).unwrap();
    assert_eq!((runs.len(), runs[0].0, runs[0].1.received), (2, run, 200));
    assert_eq!(store.missing(DEVICE, run, &runs[0].1).unwrap(), []);
    assert_eq!(store.missing(DEVICE, other, &runs[1].1).unwrap(), [(1, 2)]);
}

#[test]
fn a_store_in_use_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let _store = Store::open(folder.path()).unwrap();
    let Err(OpenError::Other(why)) = Store::open(folder.path()) else {
        panic!("opened twice");
    };
    assert!(why.contains("running server"), "{why}");
}

#[test]
fn ids_that_begin_alike_are_different_devices() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut ledger = Ledger::new([]);
    let run = Uuid::from_u128(1);
    for device in ["pi", "pi-1", "p"] {
        ledger.take(&store, device, arrived(run, 1)).unwrap();
    }
    store.write(ledger.changes()).unwrap();
    assert_eq!(store.runs("pi").unwrap().len(), 1);
    assert_eq!(store.received("p", run, 1, 100).unwrap(), 1);
    assert_eq!(store.devices().unwrap().len(), 3);
}
