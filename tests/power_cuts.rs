//! Durable means durable: the store lives on a disk whose every write is logged, the log is cut at
//! random moments, and each disk that a power cut could have left is opened by the real store.
//!
//!     cargo test --release --test power_cuts -- --nocapture
//!     POWER_CUTS=15000 cargo test --release --test power_cuts -- --nocapture
//!
//! Needs root; says so and is skipped without. `POWER_CUTS_SEED` chooses other cuts.

mod powercut;
#[path = "real/stage/mod.rs"]
mod stage;

use std::sync::Mutex;
use std::thread;

use powercut::check::open_and_read;
use powercut::control::{self, Sync};
use powercut::cuts::Card;
use powercut::disk::{Logged, Mounted, folder};
use powercut::notes::{Notes, Promise};
use powercut::program::cut_the_program;
use powercut::tally::{Checker, SALVAGE, Tally, empty_disk};
use powercut::tools::{number, ready};
use powercut::writer::{Life, STORIES, live};

/// Cuts of a test that nobody asked for more.
const CUTS: u64 = 200;
/// Cuts of one story, at the most; more cuts are of several stories.
const CUTS_OF_A_STORY: u64 = 500;
/// Stories that are cut at the same time.
const AT_ONCE: u64 = 4;
/// Records in a store that is salvaged.
const SALVAGED: u64 = 3_000;

#[test]
fn what_was_called_durable_survives_a_power_cut_at_any_moment() {
    if !ready() {
        return;
    }
    let cuts = number("POWER_CUTS", CUTS);
    let seed = number("POWER_CUTS_SEED", 1).wrapping_mul(1_000_003);
    // Three quarters of the cuts are of the first story.
    let mut left = [cuts - cuts / 4, cuts / 4];
    let mut stories = Vec::new();
    while left != [0, 0] {
        for (lives, left) in STORIES.into_iter().zip(&mut left) {
            let count = CUTS_OF_A_STORY.min(*left);
            *left -= count;
            if count > 0 {
                stories.push((lives, count, seed + stories.len() as u64));
            }
        }
    }
    let stories = Mutex::new(stories.into_iter());
    let total = Mutex::new(Tally::default());
    // Most of the time is spent waiting, for mounts above all.
    thread::scope(|scope| {
        for _ in 0..number("POWER_CUTS_AT_ONCE", AT_ONCE) {
            scope.spawn(|| {
                loop {
                    let next = stories.lock().expect("sound").next();
                    let Some((lives, count, seed)) = next else {
                        break;
                    };
                    let mut rng = fastrand::Rng::with_seed(seed);
                    let tally = cut_a_story(lives, Card::Honest, count as usize, &mut rng);
                    let mut total = total.lock().expect("sound");
                    total.join(tally);
                    if cuts > CUTS {
                        eprintln!("so far:\n{total}");
                    }
                }
            });
        }
    });
    let total = total.into_inner().expect("sound");
    eprintln!("{total}");
    assert_eq!(total.failed, 0, "{total}");
    assert_eq!(total.lost, 0);
}

/// Sled cannot open this store, so it is salvaged; and while it is, the power fails.
#[test]
fn a_salvage_that_a_power_cut_ends_is_done_again_and_loses_nothing() {
    if !ready() {
        return;
    }
    let mut rng = fastrand::Rng::with_seed(number("POWER_CUTS_SEED", 1) + 5);
    let work = folder();
    let base = empty_disk(work.path());
    let run = uuid::Uuid::from_u128(rng.u128(..));
    let disk = Mounted::new(&base, &work.path().join("mounted")).expect("mounted");
    open_and_read(disk.path(), run, SALVAGED).expect("filled");
    let rubbish = "rubbish and nothing but rubbish";
    std::fs::write(disk.path().join("backlog/store/conf"), rubbish).expect("damaged");
    disk.end().expect("unmounted");
    let promise = Promise {
        required: (1..=SALVAGED).map(|seq| (run, seq)).collect(),
        given: [(run, SALVAGED)].into(),
        run: Some(run),
        ..Promise::default()
    };
    let cuts = number("POWER_CUTS_SALVAGE", 40) as usize;
    let mut total = Tally::default();
    total.cut_opening(
        &base,
        SALVAGE,
        cuts,
        &promise,
        &Default::default(),
        &mut rng,
    );
    eprintln!("cut while it was salvaged:\n{total}");
    assert_eq!((total.failed, total.lost), (0, 0), "{total}");
    assert!(total.salvaged * 2 > cuts as u64, "{total}");
}

/// Else a rig that sees nothing would prove nothing.
#[test]
fn the_rig_notices_a_card_that_ignores_flushes() {
    if !ready() {
        return;
    }
    let mut rng = fastrand::Rng::with_seed(number("POWER_CUTS_SEED", 1) + 2);
    let cuts = number("POWER_CUTS_CONTROL", 60) as usize;
    let total = cut_a_story(STORIES[0], Card::Lying(12), cuts, &mut rng);
    eprintln!("a card that ignores the last 12 flushes, the real store:\n{total}");
    assert!(total.losing > 0, "{total}");
}

#[test]
fn the_rig_notices_that_the_flush_of_sled_alone_is_not_durable() {
    if !ready() {
        return;
    }
    let cuts = number("POWER_CUTS_CONTROL", 60) as usize;
    let mut losing = Vec::new();
    for sync in [Sync::FlushAlone, Sync::FlushAndFdatasync] {
        let mut rng = fastrand::Rng::with_seed(number("POWER_CUTS_SEED", 1) + 3);
        let work = folder();
        let base = empty_disk(work.path());
        let disk = Logged::start(&base);
        let mut notes = Notes::new(&disk.log());
        control::write(&disk.mounted(), sync, &mut rng, &mut notes);
        let ended = disk.finish();
        notes.finish(&ended.log());
        let total = Tally::cut(&notes, &base, Card::Honest, cuts, &mut rng, Checker::Sled);
        eprintln!("sled itself, {sync:?}:\n{total}");
        losing.push(total.losing);
    }
    assert!(losing[0] > 0, "flush alone lost nothing");
    // Not none: a cut while sled itself is being closed can leave what only a salvage reads.
    assert!(losing[1] * 10 <= losing[0], "{losing:?}");
}

#[test]
fn the_program_loses_nothing_older_than_durable_within() {
    if !ready() {
        return;
    }
    let cuts = number("POWER_CUTS_PROGRAM", 40) as usize;
    let mut rng = fastrand::Rng::with_seed(number("POWER_CUTS_SEED", 1) + 4);
    let outcome = cut_the_program(cuts, &mut rng);
    eprintln!("the whole program: {outcome:#?}");
    assert!(outcome.failures.is_empty());
    assert!(outcome.with_records > 0, "the cuts saw no outage");
}

/// Lives a story on a logged disk, and cuts it.
fn cut_a_story(lives: &[Life], card: Card, cuts: usize, rng: &mut fastrand::Rng) -> Tally {
    let work = folder();
    let base = empty_disk(work.path());
    let disk = Logged::start(&base);
    let mut notes = Notes::new(&disk.log());
    for life in lives {
        live(*life, &disk.mounted(), rng, &mut notes);
    }
    let ended = disk.finish();
    notes.finish(&ended.log());
    Tally::cut(&notes, &base, card, cuts, rng, Checker::Store)
}

/// Opens the store on an image that a failure has left, and tells what the store says of it.
#[test]
#[ignore = "for a person who looks into a failure: POWER_CUT_IMAGE=<file>"]
fn an_image_is_looked_at() {
    let Ok(image) = std::env::var("POWER_CUT_IMAGE") else {
        return;
    };
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .try_init();
    let work = folder();
    let copy = work.path().join("image");
    std::fs::copy(image, &copy).expect("a copy");
    let disk = Mounted::new(&copy, &work.path().join("mounted")).expect("mounted");
    let found = open_and_read(disk.path(), uuid::Uuid::from_u128(1), 0);
    match found {
        Ok(found) => eprintln!(
            "{:?}\n{} records\n{:?}",
            found.opened,
            found.records.len(),
            found.losses
        ),
        Err(why) => eprintln!("{why}"),
    }
    disk.end().expect("unmounted");
}
