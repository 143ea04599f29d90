//! Random deliveries against a model that simply remembers everything.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::account::{Counts, Run, Totals};
use super::ledger::{Arrived, BLOCK, Change, Fault, Ledger, Loss, Shelf, Taken, Tells, whole};

const RUNS: u128 = 3;

/// A store in memory.
#[derive(Debug, Default)]
struct Memory {
    records: BTreeMap<(String, Uuid, u64), String>,
    runs: BTreeMap<(String, Uuid), Run>,
    totals: BTreeMap<String, Totals>,
    told: HashSet<(String, Loss)>,
}

impl Memory {
    fn write(&mut self, ledger: &Ledger) {
        for change in ledger.changes() {
            match change {
                Change::Record(device, run, seq, json) => {
                    let before = self.records.insert((device.into(), run, seq), json.into());
                    assert_eq!(before, None, "a record is stored once");
                }
                Change::Full(device, run, block) => {
                    assert_eq!(self.block(device, run, block), Ok(whole(block)));
                }
                Change::Run(device, run, head) => {
                    self.runs.insert((device.into(), run), head.clone());
                }
                Change::Told(device, loss) => {
                    self.told.insert((device.into(), *loss));
                }
                Change::Totals(device, totals) => {
                    self.totals.insert(device.into(), *totals);
                }
            }
        }
    }

    fn ledger(&self) -> Ledger {
        Ledger::new(self.totals.clone())
    }
}

impl Shelf for Memory {
    fn run(&self, device: &str, run: Uuid) -> Result<Option<Run>, Fault> {
        Ok(self.runs.get(&(device.into(), run)).cloned())
    }

    fn block(&self, device: &str, run: Uuid, block: u64) -> Result<u64, Fault> {
        let first = block * BLOCK;
        let there = |bit: &u64| {
            let key = (device.to_owned(), run, first + bit);
            self.records.contains_key(&key)
        };
        Ok((0..BLOCK)
            .filter(there)
            .fold(0, |mask, bit| mask | 1 << bit))
    }

    fn received(&self, device: &str, run: Uuid, from: u64, to: u64) -> Result<u64, Fault> {
        let key = |seq| (device.to_owned(), run, seq);
        Ok(self.records.range(key(from)..=key(to)).count() as u64)
    }

    fn was_told(&self, device: &str, loss: &Loss) -> Result<bool, Fault> {
        Ok(self.told.contains(&(device.into(), *loss)))
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A record of this device and run.
    Record(u8, u8, u64),
    /// It tells that all of a range of another run is lost.
    Loss(u8, u8, u64, (u8, u64, u64)),
    /// It tells how far another run came.
    Previous(u8, u8, u64, (u8, u64)),
    /// The batch is written.
    Commit,
    /// The server dies, and what was not written with it, and begins again.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (device, run, seq) = (0..2_u8, 0..RUNS as u8, 1..200_u64);
    let range = (0..RUNS as u8, 1..200_u64, 0..30_u64);
    prop::collection::vec(
        prop_oneof![
            20 => (device.clone(), run.clone(), seq.clone()).prop_map(|(d, r, s)| Step::Record(d, r, s)),
            2 => (device.clone(), run.clone(), seq.clone(), range)
                .prop_map(|(d, r, s, (of, from, more))| Step::Loss(d, r, s, (of, from, from + more))),
            1 => (device, run.clone(), seq.clone(), (run, seq)).prop_map(|(d, r, s, of)| Step::Previous(d, r, s, of)),
            4 => Just(Step::Commit),
            1 => Just(Step::Crash),
        ],
        0..300,
    )
}

/// Remembers everything of one run.
#[derive(Debug, Clone, Default)]
struct Remembered {
    received: BTreeSet<u64>,
    twice: u64,
    lost: BTreeSet<u64>,
    last: u64,
}

impl Remembered {
    fn counts(&self) -> Counts {
        let lost = self.lost.difference(&self.received).count() as u64;
        let received = self.received.len() as u64;
        Counts {
            received,
            twice: self.twice,
            lost,
            missing: self.last - received - lost,
        }
    }
}

type Model = BTreeMap<(u8, u8), Remembered>;

fn name(device: u8) -> String {
    format!("pi-{device}")
}

fn run_id(run: u8) -> Uuid {
    Uuid::from_u128(u128::from(run) + 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_account_is_that_of_a_model_that_remembers_everything(steps in steps()) {
        let mut store = Memory::default();
        let mut ledger = store.ledger();
        let (mut model, mut written) = (Model::new(), Model::new());
        for step in steps {
            let (device, run, seq, tells) = match step {
                Step::Commit => {
                    store.write(&ledger);
                    ledger.committed();
                    written = model.clone();
                    continue;
                }
                Step::Crash => {
                    ledger = store.ledger();
                    model = written.clone();
                    continue;
                }
                Step::Record(d, r, s) => (d, r, s, Tells::Nothing),
                Step::Loss(d, r, s, (of, from, to)) => {
                    let (of_run, count) = (run_id(of), to - from + 1);
                    (d, r, s, Tells::Loss(Loss { of_run, from, to, count }))
                }
                Step::Previous(d, r, s, (of, last)) => (d, r, s, Tells::Previous(run_id(of), last)),
            };
            let record = Arrived {
                run: run_id(run),
                seq,
                tells,
                live: true,
                json: format!("{tells:?}"),
            };
            let taken = ledger.take(&store, &name(device), record).unwrap();
            let remembered = model.entry((device, run)).or_default();
            let is_new = remembered.received.insert(seq);
            remembered.last = remembered.last.max(seq);
            remembered.twice += u64::from(!is_new);
            prop_assert_eq!(taken, if is_new { Taken::New } else { Taken::Again });
            match tells {
                Tells::Loss(loss) if is_new => {
                    let of = (loss.of_run.as_u128() - 1) as u8;
                    let other = model.entry((device, of)).or_default();
                    other.lost.extend(loss.from..=loss.to);
                    other.last = other.last.max(loss.to);
                }
                Tells::Previous(of_run, last) if is_new => {
                    let of = (of_run.as_u128() - 1) as u8;
                    if let Some(other) = model.get_mut(&(device, of)) {
                        other.last = other.last.max(last);
                    }
                }
                _ => {}
            }
        }
        store.write(&ledger);
        let mut sums: BTreeMap<u8, Counts> = BTreeMap::new();
        for ((device, run), remembered) in &model {
            let head = &store.runs[&(name(*device), run_id(*run))];
            prop_assert_eq!(head.counts(), remembered.counts());
            prop_assert_eq!(head.last, remembered.last);
            let counts = remembered.counts();
            let sum = sums.entry(*device).or_default();
            sum.received += counts.received;
            sum.twice += counts.twice;
            sum.lost += counts.lost;
            sum.missing += counts.missing;
        }
        for (device, sum) in sums {
            prop_assert_eq!(store.totals[&name(device)].counts, sum);
        }
    }

    /// A thinned backlog: some records of a range are lost, their number is told, the others come.
    #[test]
    fn a_thinned_run_is_complete_in_any_order(
        keep in prop::collection::vec(any::<bool>(), 1..150),
        seed in any::<u64>(),
    ) {
        let (device, run) = ("pi", Uuid::from_u128(1));
        let numbers = 1..=keep.len() as u64;
        let (kept, lost): (Vec<_>, Vec<_>) = numbers.zip(&keep).partition(|(_, keep)| **keep);
        let mut arrivals: Vec<(u64, Tells)> =
            kept.iter().map(|(seq, _)| (*seq, Tells::Nothing)).collect();
        if let (Some((from, _)), Some((to, _))) = (lost.first(), lost.last()) {
            let (from, to, count) = (*from, *to, lost.len() as u64);
            let loss = Tells::Loss(Loss { of_run: run, from, to, count });
            let last = keep.len() as u64;
            // Told twice: the device died before it had noted that it was told.
            arrivals.extend([(last + 1, loss), (last + 2, loss)]);
        }
        fastrand::Rng::with_seed(seed).shuffle(&mut arrivals);
        let last = arrivals.iter().map(|(seq, _)| *seq).max().unwrap_or(0);
        let mut store = Memory::default();
        let mut ledger = store.ledger();
        for (n, (seq, tells)) in arrivals.into_iter().enumerate() {
            let record = Arrived { run, seq, tells, live: false, json: String::new() };
            ledger.take(&store, device, record).unwrap();
            if n % 7 == 0 {
                store.write(&ledger);
                ledger.committed();
            }
        }
        store.write(&ledger);
        if last > 0 {
            let counts = store.runs[&(device.to_owned(), run)].counts();
            prop_assert_eq!(counts.missing, 0);
            prop_assert_eq!(counts.lost, lost.len() as u64);
            prop_assert_eq!(counts.received + counts.lost, last);
        }
    }
}

#[test]
fn a_device_too_many_is_refused_and_rubbish_makes_none_known() {
    let store = Memory::default();
    let mut ledger = store.ledger();
    let record = |seq| Arrived {
        run: Uuid::nil(),
        seq,
        tells: Tells::Nothing,
        live: true,
        json: String::new(),
    };
    ledger.take_rubbish("nobody", 5);
    assert_eq!(ledger.changes().count(), 0);
    for n in 0..10_000 {
        assert_eq!(
            ledger.take(&store, &format!("pi-{n}"), record(1)),
            Ok(Taken::New)
        );
    }
    assert_eq!(ledger.take(&store, "pi-x", record(1)), Ok(Taken::Refused));
    assert!(!ledger.take_plain("pi-x"));
    assert_eq!(ledger.take(&store, "pi-0", record(2)), Ok(Taken::New));
}

#[test]
fn the_example_of_the_protocol_misses_nothing_and_lost_one() {
    let mut store = Memory::default();
    let mut ledger = store.ledger();
    let run = Uuid::from_u128(5);
    let (from, to, count) = (3, 4, 2);
    let loss = Tells::Loss(Loss {
        of_run: run,
        from,
        to,
        count,
    });
    for seq in [1, 2, 3, 11, 12, 5, 6, 7, 8, 9, 10] {
        let record = Arrived {
            run,
            seq,
            tells: if seq == 8 { loss } else { Tells::Nothing },
            live: true,
            json: String::new(),
        };
        ledger.take(&store, "pi", record).unwrap();
    }
    store.write(&ledger);
    let counts = store.totals["pi"].counts;
    assert_eq!((counts.received, counts.lost, counts.missing), (11, 1, 0));
}
