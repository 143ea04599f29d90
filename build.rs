//! Tells the program when it was built (`BUILD_TIME_MS`, read by `src/io/clock.rs`).
//!
//! No clock of a Pi can be right and show an earlier time than this. `SOURCE_DATE_EPOCH` wins over
//! the clock, so that a build can be repeated to the byte:
//! <https://reproducible-builds.org/specs/source-date-epoch/>. Without it the time is that of the
//! last build in which the manifest changed, which is early and therefore still true.

use std::time::{SystemTime, UNIX_EPOCH};

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=Cargo.toml");
    let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.trim().parse::<u64>().map_err(|_| {
            format!("SOURCE_DATE_EPOCH is {text:?}; it must be whole seconds since 1970")
        })?,
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    };
    println!(
        "cargo:rustc-env=BUILD_TIME_MS={}",
        seconds.saturating_mul(1000)
    );
    Ok(())
}
