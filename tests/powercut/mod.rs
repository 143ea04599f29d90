//! The rig that cuts the power: real ext4 on a disk whose every write is logged, the real store on it,
//! and then the disk as a card would have it at any moment of that log. `tests/power_cuts.rs` drives it.
//!
//! Reading order: `tools` (what it needs of the system), `disk` (the logged disk), `log` (what was
//! written), `cuts` (what a cut leaves of it), `notes` (what had been promised by then), `writer` (who
//! promised), `check` (what is found), `tally` (the figures). `control` and `program` are other writers.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a rig that cannot work says so where it stands"
)]

pub mod check;
pub mod control;
pub mod cuts;
pub mod disk;
pub mod log;
pub mod notes;
pub mod program;
pub mod tally;
pub mod tools;
pub mod writer;
