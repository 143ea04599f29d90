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

use std::collections::{BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::account::{Report, Run, Totals};

/// Records whose marks lie in one mask.
pub const BLOCK: u64 = 64;
/// Numbers above this are no record's: JSON readers elsewhere would round them.
pub const MOST_SEQ: u64 = 1 << 53;
/// More devices are refused: whoever can publish could otherwise fill the memory with names.
const MOST_DEVICES: usize = 10_000;
/// Runs of all devices kept in memory between two batches.
const MOST_RUNS: usize = 4_096;
/// Masks kept in memory for a run between two batches.
const OPEN_BLOCKS: usize = 4;

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

#[derive(Debug, Default)]
struct Device {
    totals: Totals,
    runs: HashMap<Uuid, Known>,
    told: HashSet<Loss>,
}

/// A run in memory.
#[derive(Debug, Default)]
struct Known {
    head: Run,
    /// Blocks and their masks, the last used at the end.
    open: Vec<(u64, u64)>,
    /// The records of this batch.
    fresh: Vec<(u64, String)>,
    /// The blocks that it has made full.
    full: Vec<u64>,
    changed: bool,
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

impl Device {
    /// A record was received; tells whether it is new.
    fn mark(
        &mut self,
        shelf: &impl Shelf,
        device: &str,
        run: Uuid,
        seq: u64,
        json: String,
    ) -> Result<bool, Fault> {
        let (known, totals) = self.run(shelf, device, run)?;
        let before = known.head.counts();
        let mask = known.mask(shelf, device, run, seq / BLOCK)?;
        let bit = 1 << (seq % BLOCK);
        let is_new = *mask & bit == 0;
        *mask |= bit;
        let is_full = *mask == whole(seq / BLOCK);
        let head = &mut known.head;
        if is_new {
            head.received += 1;
            head.received_in_losses += u64::from(head.losses.contains(seq));
            head.last = head.last.max(seq);
            known.fresh.push((seq, json));
            known.full.extend(is_full.then_some(seq / BLOCK));
        } else {
            head.twice += 1;
        }
        totals.counts.replace(before, head.counts());
        Ok(is_new)
    }

    /// Records of one of its runs were given up.
    fn lose(&mut self, shelf: &impl Shelf, device: &str, loss: Loss) -> Result<(), Fault> {
        if self.told.contains(&loss) || shelf.was_told(device, &loss)? {
            return Ok(());
        }
        self.told.insert(loss);
        let (known, totals) = self.run(shelf, device, loss.of_run)?;
        let before = known.head.counts();
        let fresh = &known.fresh;
        let received = |from, to| -> Result<u64, Fault> {
            let stored = shelf.received(device, loss.of_run, from, to)?;
            let fresh = fresh.iter().filter(|(seq, _)| (from..=to).contains(seq));
            Ok(stored + fresh.count() as u64)
        };
        known
            .head
            .lose((loss.from, loss.to), loss.count, received)?;
        totals.counts.replace(before, known.head.counts());
        Ok(())
    }

    /// One of its runs is known to have come as far as `last`. Of a run that was never heard of
    /// nothing is expected: it may have been before this server's time.
    fn raise(
        &mut self,
        shelf: &impl Shelf,
        device: &str,
        run: Uuid,
        last: u64,
    ) -> Result<(), Fault> {
        if !self.runs.contains_key(&run) && shelf.run(device, run)?.is_none() {
            return Ok(());
        }
        let (known, totals) = self.run(shelf, device, run)?;
        let before = known.head.counts();
        known.head.last = known.head.last.max(last);
        totals.counts.replace(before, known.head.counts());
        Ok(())
    }

    /// The run, which this batch changes.
    fn run(
        &mut self,
        shelf: &impl Shelf,
        device: &str,
        run: Uuid,
    ) -> Result<(&mut Known, &mut Totals), Fault> {
        use std::collections::hash_map::Entry;
        let known = match self.runs.entry(run) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let head = match shelf.run(device, run)? {
                    Some(head) => head,
                    None => {
                        self.totals.runs += 1;
                        Run {
                            ordinal: self.totals.runs,
                            ..Run::default()
                        }
                    }
                };
                entry.insert(Known {
                    head,
                    ..Known::default()
                })
            }
        };
        known.changed = true;
        Ok((known, &mut self.totals))
    }

    fn settle(&mut self) {
        self.told = HashSet::new();
        for known in self.runs.values_mut() {
            known.fresh = Vec::new();
            known.full = Vec::new();
            known.changed = false;
            let excess = known.open.len().saturating_sub(OPEN_BLOCKS);
            known.open.drain(..excess);
        }
    }
}

impl Known {
    /// The mask of a block. Within a batch none is let go: the shelf does not know the batch.
    fn mask(
        &mut self,
        shelf: &impl Shelf,
        device: &str,
        run: Uuid,
        block: u64,
    ) -> Result<&mut u64, Fault> {
        let place = match self.open.iter().rposition(|(open, _)| *open == block) {
            Some(place) => {
                // To the end, but cheaply where many are open.
                let last = self.open.len() - 1;
                self.open.swap(place, last);
                last
            }
            None => {
                self.open.push((block, shelf.block(device, run, block)?));
                self.open.len() - 1
            }
        };
        Ok(&mut self.open[place].1)
    }
}
