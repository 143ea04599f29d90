//! Random work, beside a sorted map.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Store(u8, u8),
    Discard(u16, u16),
    Fetch(u16, u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..4_u8, 1..200_u8).prop_map(|(hole, count)| Step::Store(hole, count)),
        3 => (0..1500_u16, 0..300_u16).prop_map(|(from, more)| Step::Discard(from, more)),
        2 => (0..1500_u16, 1..200_u8).prop_map(|(after, limit)| Step::Fetch(after, limit)),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_as_a_sorted_map(steps in proptest::collection::vec(step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(&folder);
        let mut run = 1;
        let mut open = Open::new(&settings, run);
        let mut model: BTreeSet<Key> = BTreeSet::new();
        // Forgotten, but perhaps still on the disk: may come back after a restart.
        let mut ghosts: BTreeSet<Key> = BTreeSet::new();
        let mut seq = 0;
        for step in steps {
            let run_number = open.opened.run_number;
            match step {
                Step::Store(hole, count) => {
                    let from = seq + 1 + u64::from(hole);
                    seq = from + u64::from(count) - 1;
                    let records = open.store(from..=seq);
                    model.extend((from..=seq).map(|seq| Key { run_number, seq }));
                    prop_assert_eq!(records, model.len() as u64);
                }
                Step::Discard(from, more) => {
                    let of = 1 + u64::from(from) % run_number;
                    let (from, to) = (u64::from(from), u64::from(from + more));
                    open.backlog.discard(vec![KeyRange { run_number: of, from, to }]);
                    let range = Key { run_number: of, seq: from }..=Key { run_number: of, seq: to };
                    let gone: Vec<Key> = model.range(range).copied().collect();
                    for key in gone {
                        model.remove(&key);
                        ghosts.insert(key);
                    }
                }
                Step::Fetch(after, limit) => {
                    let after = Key { run_number: 1 + u64::from(after) % run_number, seq: u64::from(after) };
                    let (page, end) = open.fetch(Some(after), usize::from(limit));
                    let page: Vec<Key> = page.into_iter().map(|(key, _)| key).collect();
                    let expected: Vec<Key> = model.range(after..).filter(|k| **k != after).copied().collect();
                    prop_assert!(expected.starts_with(&page));
                    prop_assert_eq!(end, page.len() == expected.len());
                    prop_assert!(end || page.len() >= usize::from(limit));
                }
                Step::Reopen => {
                    open.close();
                    run += 1;
                    seq = 0;
                    open = Open::new(&settings, run);
                    prop_assert_eq!(open.opened.run_number, run as u64);
                    let all: BTreeSet<Key> = open.all().into_iter().collect();
                    prop_assert!(all.is_superset(&model));
                    prop_assert!(all.iter().all(|key| model.contains(key) || ghosts.contains(key)));
                    model = all;
                }
            }
        }
        let all: Vec<Key> = model.iter().copied().collect();
        prop_assert_eq!(open.all(), all);
        prop_assert_eq!(open.lost, 0);
        open.close();
    }
}
