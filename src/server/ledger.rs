//! The ledger: which record is new and which came before, what the account of each run is, and what
//! must be written before anything of it is acknowledged.
//!
//! Pure: what is stored already is asked of a [`Shelf`], what is to be stored is told in
//! [`Ledger::changes`]; `keeper` calls it, `store` is the shelf. A batch is taken record by record,
//! its changes are written as one, and then [`Ledger::committed`] ends it. When the write fails, the
//! ledger is ahead of the store: throw it away and begin with what the store knows.
//!
//! Which records of a run are known stays on the shelf. Memory holds only a mask of 64 records around
//! the newest ones, because records come nearly in order: live ones and history, each at its place.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use super::account::{Report, Run, Totals};
use super::known::Device;

/// Records whose marks lie in one mask.
pub const BLOCK: u64 = 64;
/// Numbers above this are no record's: JSON readers elsewhere would round them.
pub const MOST_SEQ: u64 = 1 << 53;
/// More devices are refused: whoever can publish could otherwise fill the memory with names.
const MOST_DEVICES: usize = 10_000;
/// Runs of all devices kept in memory between two batches.
const MOST_RUNS: usize = 4_096;

/// The mask of a block that has all its records. There is no record 0.
pub fn whole(block: u64) -> u64 {
    match block {
        0 => !1,
        _ => !0,
    }
}

/// Why the shelf does not answer, in words.
pub type Fault = String;

/// A record as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrived {
    /// The life of the device's daemon that made it.
    pub run: Uuid,
    /// Its number there, 1..=[`MOST_SEQ`].
    pub seq: u64,
    /// What it says about other records.
    pub tells: Tells,
    /// It came as it was made, not as history.
    pub live: bool,
    /// The whole of it.
    pub json: String,
}

/// What a record says about other records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tells {
    /// Nothing.
    Nothing,
    /// Some were given up.
    Loss(Loss),
    /// The run before this one, and the highest number of it that its disk knows.
    Previous(Uuid, u64),
}

/// Records that the device gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Loss {
    /// Their run.
    pub of_run: Uuid,
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// How many in that range; at least 1 and no more than fit.
    pub count: u64,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is new, and acknowledged once it is written.
    New,
    /// It was there; acknowledged again.
    Again,
    /// There are too many devices; not kept, not acknowledged.
    Refused,
}

/// What is stored, without what this batch has brought.
pub trait Shelf {
    /// What is known of a run.
    ///
    /// # Errors
    /// When it cannot be read.
    fn run(&self, device: &str, run: Uuid) -> Result<Option<Run>, Fault>;
    /// Which of the records `block * 64 ..` are there: the lowest bit is the lowest number.
    ///
    /// # Errors
    /// When it cannot be read.
    fn block(&self, device: &str, run: Uuid, block: u64) -> Result<u64, Fault>;
    /// How many of the records `from..=to` are there.
    ///
    /// # Errors
    /// When it cannot be read.
    fn received(&self, device: &str, run: Uuid, from: u64, to: u64) -> Result<u64, Fault>;
    /// Whether this very loss was told before. A device that dies at the wrong moment tells it twice.
    ///
    /// # Errors
    /// When it cannot be read.
    fn was_told(&self, device: &str, loss: &Loss) -> Result<bool, Fault>;
}

/// Something to be written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change<'a> {
    /// A new record.
    Record(&'a str, Uuid, u64, &'a str),
    /// All records of a block are there now, those of this batch told before.
    Full(&'a str, Uuid, u64),
    /// What is known of a run now.
    Run(&'a str, Uuid, &'a Run),
    /// A loss that was told.
    Told(&'a str, &'a Loss),
    /// What is known of a device now.
    Totals(&'a str, &'a Totals),
}

/// All devices.
#[derive(Debug, Default)]
pub struct Ledger {
    devices: HashMap<String, Device>,
    /// Devices of this batch.
    touched: BTreeSet<String>,
    /// Whether the batch has more than counts of rubbish.
    weighty: bool,
}

impl Ledger {
    /// With the devices that the store knows.
    pub fn new(devices: impl IntoIterator<Item = (String, Totals)>) -> Self {
        let with = |(id, totals)| {
            let device = Device {
                totals,
                ..Device::default()
            };
            (id, device)
        };
        Self {
            devices: devices.into_iter().map(with).collect(),
            ..Self::default()
        }
    }

    /// A record came from `device`.
    ///
    /// # Errors
    /// Those of the shelf; the ledger is then not to be used any more.
    pub fn take(
        &mut self,
        shelf: &impl Shelf,
        device: &str,
        record: Arrived,
    ) -> Result<Taken, Fault> {
        let Some(known) = self.device(device) else {
            return Ok(Taken::Refused);
        };
        let Arrived {
            run,
            seq,
            tells,
            live,
            json,
        } = record;
        let is_new = known.mark(shelf, device, run, seq, json)?;
        if is_new {
            if live || known.totals.latest.is_none() {
                known.totals.latest = Some(run);
            }
            match tells {
                Tells::Nothing => {}
                Tells::Loss(loss) => known.lose(shelf, device, loss)?,
                Tells::Previous(run, last) => known.raise(shelf, device, run, last)?,
            }
        }
        self.weighty = true;
        Ok(if is_new { Taken::New } else { Taken::Again })
    }

    /// A reading without run and number came. False when there are too many devices.
    pub fn take_plain(&mut self, device: &str) -> bool {
        let known = self.device(device);
        let is_known = known.is_some();
        if let Some(known) = known {
            known.totals.plain += 1;
        }
        is_known
    }

    /// Something came that is no record. Rubbish alone makes no device known.
    pub fn take_rubbish(&mut self, device: &str, count: u64) {
        if self.devices.contains_key(device)
            && let Some(known) = self.device(device)
        {
            known.totals.rubbish = known.totals.rubbish.saturating_add(count);
        }
    }

    /// Whether the batch must be written before it is answered. Counts of rubbish can wait for the
    /// next write: else whoever sends it decides how busy the disk is.
    pub fn is_weighty(&self) -> bool {
        self.weighty
    }

    /// Everything that the batch has changed.
    pub fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        self.touched().flat_map(|(id, device)| {
            let runs = device.runs.iter().filter(|(_, known)| known.changed);
            let runs = runs.flat_map(move |(run, known)| {
                let records = known.fresh.iter();
                let full = known.full.iter();
                records
                    .map(move |(seq, json)| Change::Record(id, *run, *seq, json))
                    .chain(full.map(move |block| Change::Full(id, *run, *block)))
                    .chain([Change::Run(id, *run, &known.head)])
            });
            let told = device.told.iter().map(move |loss| Change::Told(id, loss));
            runs.chain(told).chain([Change::Totals(id, &device.totals)])
        })
    }

    /// The devices that the batch has changed, for people and programs.
    pub fn reports(&self) -> Vec<Report> {
        self.touched()
            .map(|(id, device)| {
                let latest = device.totals.latest;
                let run = latest.and_then(|run| Some(device.runs.get(&run)?.head.report(run)));
                Report {
                    device: id.to_owned(),
                    totals: device.totals,
                    run,
                }
            })
            .collect()
    }

    /// The batch was written.
    pub fn committed(&mut self) {
        let too_many = self.devices.values().map(|d| d.runs.len()).sum::<usize>() > MOST_RUNS;
        for id in std::mem::take(&mut self.touched) {
            if let Some(device) = self.devices.get_mut(&id) {
                device.settle();
            }
        }
        if too_many {
            // Those in use come back at their next record.
            for device in self.devices.values_mut() {
                device.runs = HashMap::new();
            }
        }
        self.weighty = false;
    }

    fn touched(&self) -> impl Iterator<Item = (&str, &Device)> {
        self.touched
            .iter()
            .filter_map(|id| Some((id.as_str(), self.devices.get(id)?)))
    }

    /// The device, which this batch changes.
    fn device(&mut self, id: &str) -> Option<&mut Device> {
        if !self.devices.contains_key(id) {
            if self.devices.len() >= MOST_DEVICES {
                return None;
            }
            self.devices.insert(id.to_owned(), Device::default());
        }
        if !self.touched.contains(id) {
            self.touched.insert(id.to_owned());
        }
        self.devices.get_mut(id)
    }
}
