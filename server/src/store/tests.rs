//! Random deliveries against a model that simply remembers everything, and single stories of the account.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use uuid::Uuid;

use super::account::Counts;
use super::ingest::{Acks, Batch, ingest};
use super::{Address, Conn, Database, Fault, forget, leases, read};
use crate::topics::Lane;
use crate::wire;

const RUNS: u128 = 3;
const NOW_MS: i64 = 1_795_194_200_000;

#[path = "../../tests/server/postgres.rs"]
#[expect(unreachable_pub, reason = "a crate of tests uses it too")]
mod postgres;

/// A database of its own.
struct Place {
    database: Database,
    _folder: Option<TempDir>,
    cluster: Option<(Arc<postgres::Cluster>, String)>,
}

impl Place {
    fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Sqlite(folder.path().join("sub/nightlight.db"));
        Self {
            database: Database {
                address,
                password_file: None,
                timeout: Duration::from_secs(60),
            },
            _folder: Some(folder),
            cluster: None,
        }
    }

    /// None, and loudly so, where PostgreSQL is not installed.
    fn postgres() -> Option<Self> {
        let cluster = postgres::shared()?;
        let name = cluster.database();
        Some(Self {
            database: Database {
                address: Address::parse(&cluster.url(&name)).unwrap(),
                password_file: None,
                timeout: Duration::from_secs(60),
            },
            _folder: None,
            cluster: Some((cluster, name)),
        })
    }
}

/// The same with either database.
fn with_each(story: impl Fn(Place)) {
    story(Place::sqlite());
    if let Some(place) = Place::postgres() {
        story(place);
    }
}

fn block_on<T>(what: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(what)
}

/// A batch of payloads, each of a device.
fn batch<'a>(payloads: impl IntoIterator<Item = (&'a str, String)>) -> Batch {
    let mut batch = Batch {
        now_ms: NOW_MS,
        ..Batch::default()
    };
    for (device, json) in payloads {
        let payload = wire::read(json.as_bytes(), Lane::Telemetry, None);
        assert_eq!(payload.rubbish, 0, "{json}");
        let from = batch.devices.entry(device.to_owned()).or_default();
        from.records.extend(payload.records);
        from.losses.extend(payload.losses);
        from.plain += payload.plain;
    }
    batch
}

fn reading(run: Uuid, seq: u64) -> String {
    format!(
        r#"{{"light":{seq},"led_on":true,"run":"{run}","seq":{seq},"ts":"2026-11-20T17:03:11.250Z","clock":"synced"}}"#
    )
}

fn loss(of_run: Uuid, from: u64, to: u64, count: u64) -> String {
    format!(
        r#"{{"event":"loss","of_run":"{of_run}","from_seq":{from},"to_seq":{to},"count":{count},"reason":"backlog-full"}}"#
    )
}

async fn put(conn: &mut Conn, device: &str, payloads: &[String]) -> Acks {
    let payloads = payloads.iter().map(|json| (device, json.clone()));
    ingest(conn, &batch(payloads)).await.unwrap()
}

/// Each run of a device: last, account.
async fn books(conn: &mut Conn, device: &str) -> Vec<(u64, Counts)> {
    let runs = read::runs(conn, device).await.unwrap();
    runs.iter().map(|run| (run.last, run.counts)).collect()
}

#[derive(Debug, Clone)]
enum Step {
    /// A record of this device and run.
    Record(u8, u8, u64),
    /// All of a range of a run is told as lost.
    Loss(u8, (u8, u64, u64)),
    /// A first record tells how far another run came.
    Previous(u8, u8, (u8, u64)),
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
            2 => (device.clone(), range)
                .prop_map(|(d, (of, from, more))| Step::Loss(d, (of, from, from + more))),
            1 => (device, run.clone(), (run, seq)).prop_map(|(d, r, of)| Step::Previous(d, r, of)),
            3 => Just(Step::Commit),
            1 => Just(Step::Crash),
        ],
        0..250,
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
            deleted: 0,
        }
    }

    fn receive(&mut self, seq: u64) -> bool {
        let is_new = self.received.insert(seq);
        self.last = self.last.max(seq);
        self.twice += u64::from(!is_new);
        is_new
    }
}

fn name(device: u8) -> String {
    format!("pi-{device}")
}

fn run_id(run: u8) -> Uuid {
    Uuid::from_u128(u128::from(run) + 1)
}

type Model = BTreeMap<(u8, u8), Remembered>;

/// What a batch does, in the order in which it does it: records, what they tell, losses.
fn remember(model: &mut Model, steps: &[Step]) {
    let mut told = Vec::new();
    for step in steps {
        match step {
            Step::Record(d, r, seq) => {
                model.entry((*d, *r)).or_default().receive(*seq);
            }
            Step::Previous(d, r, (of, last)) => {
                let is_new = model.entry((*d, *r)).or_default().receive(1);
                told.extend(is_new.then_some((*d, *of, *last)));
            }
            _ => {}
        }
    }
    for (d, of, last) in told {
        if let Some(run) = model.get_mut(&(d, of)) {
            run.last = run.last.max(last);
        }
    }
    for step in steps {
        if let Step::Loss(d, (of, from, to)) = step {
            let run = model.entry((*d, *of)).or_default();
            run.lost.extend(*from..=*to);
            run.last = run.last.max(*to);
        }
    }
}

fn check(place: &Place, steps: Vec<Step>) -> Result<(), TestCaseError> {
    block_on(async {
        let mut conn = place.database.open().await.unwrap();
        let mut model = Model::new();
        let mut waiting: Vec<Step> = Vec::new();
        for step in steps.into_iter().chain([Step::Commit]) {
            match step {
                Step::Commit => {
                    let json = |step: &Step| match step {
                        Step::Record(d, r, seq) => (*d, reading(run_id(*r), *seq)),
                        Step::Loss(d, (of, from, to)) => {
                            (*d, loss(run_id(*of), *from, *to, to - from + 1))
                        }
                        Step::Previous(d, r, (of, last)) => (
                            *d,
                            format!(
                                r#"{{"event":"started","run":"{}","seq":1,"previous_run":"{}","previous_seq":{last}}}"#,
                                run_id(*r),
                                run_id(*of)
                            ),
                        ),
                        Step::Commit | Step::Crash => unreachable!(),
                    };
                    let payloads: Vec<_> = waiting
                        .iter()
                        .map(json)
                        .map(|(d, json)| (name(d), json))
                        .collect();
                    let batch = batch(payloads.iter().map(|(d, json)| (d.as_str(), json.clone())));
                    remember(&mut model, &waiting);
                    let acks = ingest(&mut conn, &batch).await.unwrap();
                    for step in &waiting {
                        let (d, r, range) = match step {
                            Step::Record(d, r, seq) => (d, r, (*seq, *seq)),
                            Step::Loss(d, (of, from, to)) => (d, of, (*from, *to)),
                            Step::Previous(d, r, _) => (d, r, (1, 1)),
                            Step::Commit | Step::Crash => unreachable!(),
                        };
                        let acked = &acks[&(name(*d), run_id(*r))];
                        prop_assert!((range.0..=range.1).all(|seq| acked.contains(seq)));
                    }
                    waiting.clear();
                }
                Step::Crash => {
                    waiting.clear();
                    conn = place.database.open().await.unwrap();
                }
                step => waiting.push(step),
            }
        }
        let mut sums: BTreeMap<u8, Counts> = BTreeMap::new();
        for ((device, run), remembered) in &model {
            let runs = read::runs(&mut conn, &name(*device)).await.unwrap();
            let kept = runs.iter().find(|kept| kept.run == run_id(*run)).unwrap();
            let counts = remembered.counts();
            prop_assert_eq!((kept.last, kept.counts), (remembered.last, counts));
            let missing = read::missing(&mut conn, &name(*device), kept.run)
                .await
                .unwrap();
            let known =
                |seq: &u64| remembered.received.contains(seq) || remembered.lost.contains(seq);
            let first = (1..=remembered.last).find(|seq| !known(seq));
            prop_assert_eq!(missing.first().map(|range| range.0), first);
            let sum = sums.entry(*device).or_default();
            sum.received += counts.received;
            sum.twice += counts.twice;
            sum.lost += counts.lost;
            sum.missing += counts.missing;
        }
        for (device, sum) in sums {
            let report = read::report(&mut conn, &name(device))
                .await
                .unwrap()
                .unwrap();
            prop_assert_eq!(report.counts, sum);
        }
        conn.close().await;
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_account_is_that_of_a_model_that_remembers_everything(steps in steps()) {
        check(&Place::sqlite(), steps)?;
    }

    /// A thinned backlog: some records of a range are lost, their number is told, the others come. The loss is
    /// acked only when they have.
    #[test]
    fn a_thinned_run_is_complete_in_any_order(
        keep in prop::collection::vec(any::<bool>(), 1..60),
        seed in any::<u64>(),
    ) {
        let run = Uuid::from_u128(1);
        let place = Place::sqlite();
        let numbers = 1..=keep.len() as u64;
        let (kept, lost): (Vec<_>, Vec<_>) = numbers.zip(&keep).partition(|(_, keep)| **keep);
        let mut arrivals: Vec<String> = kept.iter().map(|(seq, _)| reading(run, *seq)).collect();
        let range = lost.first().zip(lost.last()).map(|((from, _), (to, _))| (*from, *to));
        let told = range.map(|(from, to)| loss(run, from, to, lost.len() as u64));
        // Told twice: the device died before it had noted that it was told.
        arrivals.extend(told.clone());
        arrivals.extend(told.clone());
        fastrand::Rng::with_seed(seed).shuffle(&mut arrivals);
        block_on(async {
            let mut conn = place.database.open().await.unwrap();
            for some in arrivals.chunks(7) {
                put(&mut conn, "pi", some).await;
            }
            let (last, counts) = books(&mut conn, "pi").await[0];
            prop_assert_eq!(counts.missing, 0);
            prop_assert_eq!(counts.lost, lost.len() as u64);
            prop_assert_eq!(counts.received + counts.lost, last);
            if let (Some(told), Some((from, to))) = (told, range) {
                let acks = put(&mut conn, "pi", &[told]).await;
                prop_assert!((from..=to).all(|seq| acks[&("pi".to_owned(), run)].contains(seq)));
            }
            Ok(())
        })?;
    }
}

#[test]
fn the_example_of_the_protocol_misses_nothing_and_lost_one() {
    with_each(|place| {
        let run = Uuid::from_u128(5);
        block_on(async {
            let mut conn = place.database.open().await.unwrap();
            for seq in [1, 2, 3, 11, 12, 5, 6, 7] {
                put(&mut conn, "pi", &[reading(run, seq)]).await;
            }
            put(&mut conn, "pi", &[loss(run, 3, 4, 2)]).await;
            for seq in [8, 9, 10] {
                put(&mut conn, "pi", &[reading(run, seq)]).await;
            }
            let (last, counts) = books(&mut conn, "pi").await[0];
            let (received, lost, missing) = (counts.received, counts.lost, counts.missing);
            assert_eq!((last, received, lost, missing), (12, 11, 1, 0));
        });
    });
}

/// An ack of a range acks all that is in it: of a thinned one only when nothing of it is on its way.
#[test]
fn a_loss_with_holes_is_not_acked_before_they_are_filled() {
    with_each(|place| {
        let run = Uuid::from_u128(5);
        block_on(async {
            let mut conn = place.database.open().await.unwrap();
            let thinned = loss(run, 1, 3, 2);
            assert!(
                put(&mut conn, "pi", std::slice::from_ref(&thinned))
                    .await
                    .is_empty()
            );
            put(&mut conn, "pi", &[reading(run, 2)]).await;
            let acks = put(&mut conn, "pi", &[thinned]).await;
            let acked: Vec<_> = acks[&("pi".to_owned(), run)].iter().collect();
            assert_eq!(acked, [(1, 3)]);
        });
    });
}

#[test]
fn no_device_can_take_the_records_of_another() {
    with_each(|place| {
        let run = Uuid::from_u128(5);
        block_on(async {
            let mut conn = place.database.open().await.unwrap();
            let both = [("pi", reading(run, 1)), ("thief", reading(run, 1))];
            let acks = ingest(&mut conn, &batch(both)).await.unwrap();
            assert_eq!(acks.len(), 2);
            for device in ["pi", "thief"] {
                let (last, counts) = books(&mut conn, device).await[0];
                assert_eq!((last, counts.received, counts.twice), (1, 1, 0), "{device}");
            }
        });
    });
}

#[test]
fn ids_and_texts_with_sql_in_them_are_kept_as_they_are() {
    with_each(|place| {
        let run = Uuid::from_u128(5);
        let ids = [
            "'; drop table records; --",
            "\" or 1=1",
            "$1",
            "?",
            "%_\\",
            "{id}",
            "\u{202e}pi",
            "\u{1}\u{7f}",
            "null",
        ];
        block_on(async {
            let mut conn = place.database.open().await.unwrap();
            let odd = |seq| {
                format!(
                    r#"{{"event":"led","led_on":true,"by":"'; --","why":"\u0000 $2 \"","run":"{run}","seq":{seq}}}"#
                )
            };
            let all = ids
                .iter()
                .flat_map(|id| [(*id, odd(1)), (*id, odd(2)), (*id, loss(run, 4, 5, 2))]);
            ingest(&mut conn, &batch(all)).await.unwrap();
            let mut devices = read::devices(&mut conn).await.unwrap();
            let mut expected = ids.map(str::to_owned).to_vec();
            devices.sort();
            expected.sort();
            assert_eq!(devices, expected);
            for id in ids {
                let (last, counts) = books(&mut conn, id).await[0];
                assert_eq!(
                    (last, counts.received, counts.lost, counts.missing),
                    (5, 2, 2, 1)
                );
                let page = read::records(&mut conn, (id, run), 0, &read::Span::default())
                    .await
                    .unwrap();
                assert_eq!(page[1].payload, odd(2));
                assert_eq!(page[1].why.as_deref(), Some("\u{fffd} $2 \""));
            }
        });
    });
}

#[test]
fn what_comes_twice_in_one_batch_counts_once() {
    with_each(|place| {
        let run = Uuid::from_u128(5);
        block_on(async {
            let mut conn = place.database.open().await.unwrap();
            let many: Vec<_> = (1..=300)
                .flat_map(|seq| [reading(run, seq), reading(run, seq)])
                .collect();
            put(&mut conn, "pi", &many).await;
            let (last, counts) = books(&mut conn, "pi").await[0];
            assert_eq!(
                (last, counts.received, counts.twice, counts.missing),
                (300, 300, 300, 0)
            );
        });
    });
}

#[test]
fn what_is_deleted_is_neither_missing_nor_asked_for_again() {
    with_each(|place| {
        let run = Uuid::from_u128(5);
        block_on(async {
            let mut conn = place.database.open().await.unwrap();
            let some: Vec<_> = (1..=3_000)
                .filter(|seq| *seq != 7)
                .map(|seq| reading(run, seq))
                .collect();
            put(&mut conn, "pi", &some).await;
            assert_eq!(
                forget::step(&mut conn, "pi", run, None).await.unwrap(),
                2_000
            );
            let (last, counts) = books(&mut conn, "pi").await[0];
            assert_eq!(
                (last, counts.received, counts.deleted, counts.missing),
                (3_000, 999, 2_000, 1)
            );
            assert_eq!(read::missing(&mut conn, "pi", run).await.unwrap(), [(7, 7)]);
            // The ack was lost: acked again, and not kept again.
            let acks = put(&mut conn, "pi", &[reading(run, 3), reading(run, 7)]).await;
            let acked: Vec<_> = acks[&("pi".to_owned(), run)].iter().collect();
            assert_eq!(acked, [(3, 3), (7, 7)]);
            let (_, counts) = books(&mut conn, "pi").await[0];
            assert_eq!(
                (counts.received, counts.twice, counts.missing),
                (1_000, 1, 0)
            );
            assert!(forget::device(&mut conn, "pi").await.unwrap());
            assert!(!forget::device(&mut conn, "pi").await.unwrap());
            assert!(books(&mut conn, "pi").await.is_empty());
        });
    });
}

#[test]
fn a_part_is_leased_to_one_server_at_a_time() {
    with_each(|place| {
        block_on(async {
            let mut conn = place.database.open().await.unwrap();
            let all: BTreeSet<u16> = (0..leases::PARTS).collect();
            assert_eq!(leases::alive(&mut conn, "a").await.unwrap(), 1);
            assert_eq!(leases::take(&mut conn, "a", 64).await.unwrap(), all);
            // Another one comes: nothing is free before the first gives some up.
            assert_eq!(leases::alive(&mut conn, "b").await.unwrap(), 2);
            assert!(leases::take(&mut conn, "b", 32).await.unwrap().is_empty());
            let surplus: BTreeSet<u16> = (32..64).collect();
            leases::release(&mut conn, "a", &surplus).await.unwrap();
            leases::release(&mut conn, "b", &all).await.unwrap();
            assert_eq!(leases::take(&mut conn, "a", 32).await.unwrap().len(), 32);
            assert_eq!(leases::take(&mut conn, "b", 32).await.unwrap(), surplus);
            // One that is gone for longer than its lease.
            let gone = "update deciders set until = '2020-01-01T00:00:00.000Z' where server = 'a'";
            conn.execute(gone, &[]).await.unwrap();
            assert_eq!(leases::take(&mut conn, "b", 64).await.unwrap(), all);
            assert!(leases::take(&mut conn, "a", 64).await.unwrap().is_empty());
        });
    });
}

#[test]
fn of_two_first_records_in_one_batch_the_first_tells_of_the_run_before() {
    let told = |last| Step::Previous(1, 0, (0, last));
    with_each(|place| check(&place, vec![told(1), told(2)]).unwrap());
}

#[test]
fn what_was_kept_as_long_as_wanted_goes_and_the_account_stays() {
    with_each(|place| {
        let (old, new) = (Uuid::from_u128(1), Uuid::from_u128(2));
        block_on(async {
            let mut conn = place.database.open().await.unwrap();
            let some: Vec<_> = (1..=10).map(|seq| reading(old, seq)).collect();
            put(&mut conn, "pi", &some).await;
            let payloads = [reading(old, 12), reading(new, 1)];
            let mut later = batch(payloads.map(|json| ("pi", json)));
            later.now_ms += 1_000;
            ingest(&mut conn, &later).await.unwrap();
            let runs = read::old_runs(&mut conn, ("", Uuid::nil()), NOW_MS + 1).await;
            assert_eq!(runs.unwrap(), [("pi".to_owned(), old)]);
            let mut step = async |before| {
                forget::step(&mut conn, "pi", old, Some(before))
                    .await
                    .unwrap()
            };
            assert_eq!(step(NOW_MS).await, 0);
            assert_eq!(step(NOW_MS + 1).await, 10);
            assert_eq!(step(NOW_MS + 1).await, 0);
            // The device tells of a gap in which there is what was deleted: it was received all the same.
            put(&mut conn, "pi", &[loss(old, 9, 11, 3)]).await;
            let (last, counts) = books(&mut conn, "pi").await[0];
            assert_eq!(
                (
                    last,
                    counts.received,
                    counts.deleted,
                    counts.lost,
                    counts.missing
                ),
                (12, 1, 10, 1, 0)
            );
            assert!(
                read::missing(&mut conn, "pi", old)
                    .await
                    .unwrap()
                    .is_empty()
            );
            let (_, counts) = books(&mut conn, "pi").await[1];
            assert_eq!((counts.received, counts.deleted), (1, 0));
        });
    });
}

/// The next version's tables, and a stranger's file.
#[test]
fn a_database_of_another_kind_is_refused_in_words() {
    let place = Place::sqlite();
    block_on(async {
        let Err(Fault::Other(why)) = place.database.look().await else {
            panic!("nothing is there yet")
        };
        assert!(why.contains("there is no database at"), "{why}");
        let mut conn = place.database.open().await.unwrap();
        conn.execute(
            "update _sqlx_migrations set version = 99 where version = 4",
            &[],
        )
        .await
        .unwrap();
        let Err(Fault::Other(why)) = place.database.open().await else {
            panic!("it is newer")
        };
        assert!(why.contains("run a newer nightlight-server"), "{why}");
        let Err(Fault::Other(why)) = place.database.look().await else {
            panic!("it is newer")
        };
        assert!(why.contains("tables of version 99"), "{why}");
    });
}

#[test]
fn the_documentation_shows_the_tables_as_they_are() {
    let text = include_str!("../../../docs/server.md");
    for (_, name, sql, _) in super::MIGRATIONS {
        assert!(text.contains(sql), "{name}");
    }
}

#[test]
fn a_plot_of_a_day_goes_by_the_index() {
    let place = Place::sqlite();
    block_on(async {
        let mut conn = place.database.open().await.unwrap();
        let sql = "explain query plan select ts, light from readings \
                   where device = $1 and ts >= $2 and ts < $3 order by ts";
        let values = [
            "pi".into(),
            super::Value::Time(Some(0)),
            super::Value::Time(Some(1)),
        ];
        let rows = conn.rows(sql, &values).await.unwrap();
        let plan: Vec<_> = rows
            .iter()
            .map(|row| row.text(3).unwrap().unwrap())
            .collect();
        assert!(
            plan.concat()
                .contains("records_by_time (device=? AND ts>? AND ts<?)"),
            "{plan:?}"
        );
        assert!(!plan.concat().contains("SCAN"), "{plan:?}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn the_account_in_postgres_is_that_of_the_model_too(steps in steps()) {
        if let Some(place) = Place::postgres() {
            check(&place, steps)?;
        }
    }
}

/// Several servers write the same at the same time, each in an order of its own.
#[test]
fn writers_at_the_same_time_agree() {
    with_each(|place| writers_agree(&place));
}

/// As strict as PostgreSQL can be: it refuses what could not have happened one after the other, and the server
/// tries again.
#[test]
fn a_transaction_that_is_refused_is_tried_again() {
    let Some(place) = Place::postgres() else {
        return;
    };
    if let Some((cluster, name)) = &place.cluster {
        let sql =
            format!("alter database {name} set default_transaction_isolation = 'serializable'");
        assert!(cluster.sql("postgres", &sql).is_some());
    }
    writers_agree(&place);
}

fn writers_agree(place: &Place) {
    const WRITERS: u64 = 4;
    const RECORDS: u64 = 60;
    let run = Uuid::from_u128(5);
    let devices: Vec<String> = (0..3).map(name).collect();
    block_on(place.database.open()).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let devices = &devices;
            scope.spawn(move || {
                block_on(async {
                    let mut conn = place.database.open().await.unwrap();
                    let mut seqs: Vec<u64> = (1..=RECORDS).collect();
                    fastrand::Rng::with_seed(writer).shuffle(&mut seqs);
                    for some in seqs.chunks(6) {
                        let all = devices.iter().flat_map(|device| {
                            some.iter().map(|seq| (device.as_str(), reading(run, *seq)))
                        });
                        let told = devices
                            .iter()
                            .map(|device| (device.as_str(), loss(run, 61, 62, 2)));
                        ingest(&mut conn, &batch(all.chain(told))).await.unwrap();
                    }
                    conn.close().await;
                });
            });
        }
    });
    block_on(async {
        let mut conn = place.database.look().await.unwrap();
        for device in &devices {
            let (last, counts) = books(&mut conn, device).await[0];
            let expected = Counts {
                received: RECORDS,
                twice: (WRITERS - 1) * RECORDS,
                lost: 2,
                missing: 0,
                deleted: 0,
            };
            assert_eq!((last, counts), (62, expected), "{device}");
        }
    });
}

/// The tables and views of both databases, column by column.
#[test]
fn both_databases_have_the_same_tables() {
    let Some(postgres) = Place::postgres() else {
        return;
    };
    let sqlite = Place::sqlite();
    let (here, there) = block_on(async {
        let mut conn = sqlite.database.open().await.unwrap();
        let sql = "select m.name, c.name, lower(c.type), c.pk, c.\"notnull\" from sqlite_master m, \
                   pragma_table_info(m.name) c where m.type in ('table', 'view') and m.name not like '\\_%' escape '\\' \
                   and m.name not like 'sqlite%' order by m.name, c.cid";
        let here: Vec<_> = conn
            .rows(sql, &[])
            .await
            .unwrap()
            .iter()
            .map(column)
            .collect();
        let mut conn = postgres.database.open().await.unwrap();
        let sql = "select c.table_name::text, c.column_name::text, c.data_type::text, \
                   coalesce((select k.ordinal_position from information_schema.key_column_usage k \
                   where k.table_name = c.table_name and k.column_name = c.column_name), 0)::bigint, \
                   (c.is_nullable = 'NO')::int::bigint \
                   from information_schema.columns c where c.table_schema = 'public' \
                   and c.table_name not like '\\_%' order by c.table_name collate \"C\", c.ordinal_position";
        let there: Vec<_> = conn
            .rows(sql, &[])
            .await
            .unwrap()
            .iter()
            .map(column)
            .collect();
        (here, there)
    });
    assert!(here.len() > 60, "{here:?}");
    assert_eq!(here.len(), there.len());
    for (here, there) in here.iter().zip(&there) {
        let types = match there.2.as_str() {
            "bigint" | "boolean" => ["integer", "int"],
            "double precision" => ["real", "real"],
            _ => ["text", "text"],
        };
        assert_eq!(
            (&here.0, &here.1, here.3, here.4),
            (&there.0, &there.1, there.3, there.4)
        );
        // A view's computed column has no declared type in SQLite; some versions say blob then.
        let is_computed = ["", "blob"].contains(&here.2.as_str());
        assert!(
            is_computed || types.contains(&here.2.as_str()),
            "{here:?} {there:?}"
        );
    }
}

fn column(row: &super::Row) -> (String, String, String, i64, i64) {
    let text = |at| row.text(at).unwrap().unwrap_or_default();
    (
        text(0),
        text(1),
        text(2),
        row.whole(3).unwrap(),
        row.whole(4).unwrap(),
    )
}
