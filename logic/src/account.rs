//! What a consumer has of the records of each run: received, received twice, lost, and missing.
//!
//! Nothing here decides: it is how the demonstration and the tests hold what came against what was made, as any
//! consumer can that counts `run` and `seq` and believes loss records.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::intervals::Intervals;

/// Records as a consumer got them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    runs: BTreeMap<Uuid, RunAccount>,
}

/// Those of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunAccount {
    received: BTreeMap<u64, u64>,
    lost: Intervals,
}

impl Account {
    /// Takes one object of a telemetry, events or history topic. What is neither a record nor a loss record does
    /// not count.
    pub fn take(&mut self, object: &Value) {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Object {
            Loss {
                of_run: Uuid,
                from_seq: u64,
                to_seq: u64,
            },
            Record {
                run: Uuid,
                seq: u64,
            },
        }
        match Object::deserialize(object) {
            Ok(Object::Record { run, seq }) => self.receive(run, seq),
            Ok(Object::Loss {
                of_run,
                from_seq,
                to_seq,
            }) => drop(self.of(of_run).lost.insert(from_seq, to_seq)),
            Err(_) => {}
        }
    }

    /// A record came.
    pub fn receive(&mut self, run: Uuid, seq: u64) {
        *self.of(run).received.entry(seq).or_default() += 1;
    }

    /// The runs of which something came.
    pub fn runs(&self) -> impl Iterator<Item = (Uuid, &RunAccount)> {
        self.runs.iter().map(|(run, account)| (*run, account))
    }

    /// What came of `run`; nothing, of one that is not known.
    pub fn run(&self, run: Uuid) -> RunAccount {
        self.runs.get(&run).cloned().unwrap_or_default()
    }

    fn of(&mut self, run: Uuid) -> &mut RunAccount {
        self.runs.entry(run).or_default()
    }
}

impl RunAccount {
    /// Numbers that came, and how often each did.
    pub fn received(&self) -> &BTreeMap<u64, u64> {
        &self.received
    }

    /// Numbers that came more than once.
    pub fn twice(&self) -> Vec<u64> {
        let twice = self.received.iter().filter(|(_, times)| **times > 1);
        twice.map(|(seq, _)| *seq).collect()
    }

    /// Numbers that loss records name.
    pub fn lost(&self) -> &Intervals {
        &self.lost
    }

    /// The highest number that came.
    pub fn last(&self) -> u64 {
        self.received.keys().next_back().copied().unwrap_or(0)
    }

    /// Numbers up to `last` that neither came nor were lost.
    pub fn missing(&self, last: u64) -> Vec<u64> {
        let is_missing = |seq: &u64| !self.received.contains_key(seq) && !self.lost.contains(*seq);
        (1..=last).filter(is_missing).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_number_is_received_lost_or_missing() {
        let (run, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut account = Account::default();
        for seq in [1, 2, 2, 9] {
            account.take(&json!({"run": run, "seq": seq, "light": 1}));
        }
        account
            .take(&json!({"event": "loss", "of_run": run, "from_seq": 3, "to_seq": 5, "count": 3}));
        account.take(&json!({"event": "started", "run": other, "seq": 1}));
        for odd in [json!(null), json!({"seq": 3}), json!({"light": 3})] {
            account.take(&odd);
        }
        let of_run = account.run(run);
        assert_eq!((of_run.received().len(), of_run.last()), (3, 9));
        assert_eq!((of_run.twice(), of_run.lost().count()), (vec![2], 3));
        assert_eq!(of_run.missing(of_run.last()), [6, 7, 8]);
        assert_eq!(account.runs().count(), 2);
        assert_eq!(account.run(Uuid::nil()).missing(2), [1, 2]);
    }
}
