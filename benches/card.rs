//! What a record costs the card: bytes that reach the block device, with the file system's journal,
//! beside SQLite and a log in preallocated zeros on disks of the same kind in the same run.
//!
//!     sudo -E cargo bench --bench card
//!
//! Each figure is taken on a fresh disk, with some records already there; `ROUNDS` (5) times. The peers
//! keep what a record is on the wire. Needs root, loop devices and mkfs.ext4; SQLite is left out where
//! there is no `sqlite3`. `ONLY=nightlight` leaves out both peers.

#![expect(
    clippy::expect_used,
    reason = "a benchmark that cannot run says so by failing"
)]

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use common::{Figure, Store, number, record, short, wire};
use disk::Disk;

/// Records that are there before anything is counted.
const BEFORE: u64 = 1_000;
const BLOCK: u64 = 4_096;
/// Bytes of the preallocated log.
const LOG: usize = 16 << 20;

/// What is done to a store while its disk counts.
#[derive(Clone, Copy)]
enum Work {
    /// So many commits of `group` records.
    Append { group: u64, commits: u64 },
    /// The oldest of 10,000 records, which came by 100, discarded by `group` until `BEFORE` are left.
    Discard { group: u64 },
}

const WORKS: [(&str, Work); 6] = [
    ("appended alone", append(1, 500)),
    ("appended by 10", append(10, 300)),
    ("appended by 100", append(100, 100)),
    ("appended by 10,000", append(10_000, 3)),
    ("discarded by 16", Work::Discard { group: 16 }),
    ("discarded by 1,000", Work::Discard { group: 1_000 }),
];

const fn append(group: u64, commits: u64) -> Work {
    Work::Append { group, commits }
}

/// Something that keeps records; each call is durable when it returns.
trait Keeper {
    fn append(&mut self, from: u64, to: u64);
    fn discard(&mut self, from: u64, to: u64);
    fn close(self: Box<Self>);
}

type Open = fn(&Path) -> Box<dyn Keeper>;

fn main() {
    if let Err(why) = disk::own_mounts().and_then(|()| Disk::start().map(drop)) {
        println!("card: LEFT OUT, {}", why.trim());
        return;
    }
    let rounds = number("ROUNDS", 5);
    let mut keepers: Vec<(&str, Open)> = vec![("nightlight", |path| Box::new(Own::open(path)))];
    if std::env::var("ONLY").as_deref() != Ok("nightlight") {
        if Command::new("sqlite3").arg("--version").output().is_ok() {
            keepers.push(("SQLite", |path| Box::new(Sqlite::open(path))));
        } else {
            println!("SQLite: LEFT OUT, there is no sqlite3 (apt-get install sqlite3)");
        }
        keepers.push(("preallocated log", |path| Box::new(Log::open(path))));
    }
    println!(
        "bytes at the block device for each record of {} bytes on the wire, median of {rounds} (least to most)",
        wire(&record(5_000)).len()
    );
    print!("{:20}", "");
    for (name, _) in &keepers {
        print!("{name:28}");
    }
    println!("nightlight to the others");
    for (what, work) in WORKS {
        let mut runs = vec![Vec::new(); keepers.len()];
        for _ in 0..rounds {
            for ((_, open), runs) in keepers.iter().zip(&mut runs) {
                runs.push(cost(*open, work));
            }
        }
        print!("{what:20}");
        let figures: Vec<Figure> = runs.into_iter().map(Figure::new).collect();
        for figure in &figures {
            print!("{figure:28}");
        }
        let own = figures[0].median();
        let ratios = figures.iter().skip(1).map(|peer| own / peer.median());
        println!("{}", ratios.map(short).collect::<Vec<_>>().join(", "));
    }
}

/// Bytes a record.
fn cost(open: Open, work: Work) -> f64 {
    let disk = Disk::start().expect("a disk, as there was one at the beginning");
    let mut keeper = open(&disk.path().join("kept"));
    let mut next = 1;
    let mut append = |keeper: &mut Box<dyn Keeper>, group: u64, commits: u64| {
        for _ in 0..commits {
            keeper.append(next, next + group - 1);
            next += group;
        }
    };
    let (before, records) = match work {
        Work::Append { group, commits } => {
            append(&mut keeper, BEFORE, 1);
            let before = disk.written();
            append(&mut keeper, group, commits);
            (before, group * commits)
        }
        Work::Discard { group } => {
            append(&mut keeper, 100, 100);
            let before = disk.written();
            let last = 10_000 - BEFORE;
            for from in (1..=last).step_by(group as usize) {
                keeper.discard(from, last.min(from + group - 1));
            }
            (before, last)
        }
    };
    let bytes = disk.written() - before;
    keeper.close();
    bytes as f64 / records as f64
}

/// The real store.
struct Own(Store);

impl Own {
    fn open(path: &Path) -> Own {
        Own(Store::open(path))
    }
}

impl Keeper for Own {
    fn append(&mut self, from: u64, to: u64) {
        self.0.append(from, to);
    }

    fn discard(&mut self, from: u64, to: u64) {
        self.0.discard(from, to);
    }

    fn close(self: Box<Self>) {
        self.0.close();
    }
}

/// SQLite's shell: a table by number, write-ahead log, synced at each commit.
struct Sqlite {
    shell: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Sqlite {
    fn open(path: &Path) -> Sqlite {
        let mut shell = Command::new("sqlite3")
            .arg("-batch")
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sqlite3 starts");
        let orders = shell.stdin.take().expect("its input");
        let answers = BufReader::new(shell.stdout.take().expect("its output"));
        let mut sqlite = Sqlite {
            shell,
            orders,
            answers,
        };
        sqlite.order(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;\n\
             CREATE TABLE records (seq INTEGER PRIMARY KEY, record TEXT NOT NULL);\n",
        );
        sqlite
    }

    /// Returns when it is done.
    fn order(&mut self, statements: &str) {
        let asked = self.orders.write_all(statements.as_bytes());
        asked
            .and_then(|()| self.orders.write_all(b"SELECT 'done';\n"))
            .expect("sqlite3 listens");
        let mut line = String::new();
        while line != "done\n" {
            line.clear();
            let read = self.answers.read_line(&mut line).expect("sqlite3 answers");
            assert!(read > 0, "sqlite3 has ended");
        }
    }
}

impl Keeper for Sqlite {
    fn append(&mut self, from: u64, to: u64) {
        let mut statements = String::from("BEGIN;\n");
        for seq in from..=to {
            let record = wire(&record(seq));
            statements.push_str(&format!(
                "INSERT INTO records VALUES ({seq}, '{record}');\n"
            ));
        }
        self.order(&(statements + "COMMIT;\n"));
    }

    fn discard(&mut self, from: u64, to: u64) {
        self.order(&format!(
            "DELETE FROM records WHERE seq BETWEEN {from} AND {to};\n"
        ));
    }

    fn close(self: Box<Self>) {
        let Sqlite {
            mut shell,
            orders,
            answers,
        } = *self;
        drop(orders);
        let status = shell.wait().expect("sqlite3 ends");
        assert!(status.success(), "sqlite3: {status}");
        drop(answers);
    }
}

/// A log in a file of zeros that are written once, so that a sync has no metadata to write: each commit
/// begins a block of its own. What has been discarded stands in another file, of one block.
struct Log {
    log: File,
    head: File,
    end: u64,
}

impl Log {
    fn open(path: &Path) -> Log {
        let zeroed = |name: &str, size: usize| {
            let mut file = File::create_new(path.with_extension(name)).expect("a file");
            file.write_all(&vec![0; size]).expect("zeros");
            file.sync_all().expect("synced");
            file
        };
        Log {
            log: zeroed("log", LOG),
            head: zeroed("head", BLOCK as usize),
            end: 0,
        }
    }
}

impl Keeper for Log {
    fn append(&mut self, from: u64, to: u64) {
        let mut bytes = Vec::new();
        for seq in from..=to {
            let record = wire(&record(seq));
            bytes.extend((record.len() as u32).to_le_bytes());
            bytes.extend(crc32fast::hash(record.as_bytes()).to_le_bytes());
            bytes.extend(record.as_bytes());
        }
        let place = self.end.next_multiple_of(BLOCK);
        self.end = place + bytes.len() as u64;
        assert!(self.end <= LOG as u64, "the log is full");
        self.log.write_all_at(&bytes, place).expect("written");
        self.log.sync_data().expect("synced");
    }

    fn discard(&mut self, _from: u64, to: u64) {
        self.head
            .write_all_at(&to.to_le_bytes(), 0)
            .expect("written");
        self.head.sync_data().expect("synced");
    }

    fn close(self: Box<Self>) {}
}
