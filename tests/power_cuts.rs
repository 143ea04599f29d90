//! Durable means durable: the store lives on a disk whose every write is logged, the log is cut at
//! random moments, and each disk that a power cut could have left is opened by the real store.
//!
//!     cargo test --release --test power_cuts -- --nocapture
//!     POWER_CUTS=15000 cargo test --release --test power_cuts -- --nocapture
//!
//! Needs root; says so and is skipped without. `POWER_CUTS_SEED` chooses other cuts.

mod powercut;

use powercut::cuts::Card;
use powercut::check::open_and_read;
use powercut::disk::{Logged, Mounted, folder};
use powercut::notes::Notes;
use powercut::tally::{Tally, empty_disk};
use powercut::tools::{number, ready};
use powercut::writer::{STORY, live};

/// Cuts of a test that nobody asked for more.
const CUTS: u64 = 200;
/// Cuts of one story; more cuts are of several stories.
const CUTS_OF_A_STORY: u64 = 1_000;

#[test]
fn what_was_called_durable_survives_a_power_cut_at_any_moment() {
    if !ready() {
        return;
    }
    let cuts = number("POWER_CUTS", CUTS);
    let seed = number("POWER_CUTS_SEED", 1);
    let mut total = Tally::default();
    let mut left = cuts;
    for story in 0.. {
        if left == 0 {
            break;
        }
        let count = left.min(CUTS_OF_A_STORY);
        left -= count;
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003) + story);
        let work = folder();
        let base = empty_disk(work.path());
        let disk = Logged::start(&base);
        let mut notes = Notes::new(&disk.log());
        for life in STORY {
            live(life, &disk.mounted(), &mut rng, &mut notes);
        }
        let ended = disk.finish();
        notes.finish(&ended.log());
        let tally = Tally::cut(&notes, &base, Card::Honest, count as usize, &mut rng);
        total.join(tally);
        if cuts > CUTS_OF_A_STORY {
            eprintln!("{total}");
        }
    }
    eprintln!("{total}");
    assert_eq!(total.failed, 0, "{total}");
}

/// Opens the store on an image that a failure has left, and tells what the store says of it.
#[test]
#[ignore = "for a person who looks into a failure: POWER_CUT_IMAGE=<file>"]
fn an_image_is_looked_at() {
    let Ok(image) = std::env::var("POWER_CUT_IMAGE") else {
        return;
    };
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
    let work = folder();
    let copy = work.path().join("image");
    std::fs::copy(image, &copy).expect("a copy");
    let disk = Mounted::new(&copy, &work.path().join("mounted")).expect("mounted");
    let found = open_and_read(disk.path(), uuid::Uuid::from_u128(1), 0);
    match found {
        Ok(found) => eprintln!("{:?}\n{} records\n{:?}", found.opened, found.records.len(), found.losses),
        Err(why) => eprintln!("{why}"),
    }
    disk.end().expect("unmounted");
}
