//! The machine's clocks, and the one moment before which no clock of this program can be right.

pub use nightlight_common::clock::Clock;

/// When the program was built, in milliseconds since 1970 (`build.rs`); no right clock shows less.
pub const BUILT_MS: i64 = match i64::from_str_radix(env!("BUILD_TIME_MS"), 10) {
    Ok(built_ms) => built_ms,
    Err(_) => 0,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_is_in_the_past_and_known() {
        let built = BUILT_MS..=jiff::Timestamp::now().as_millisecond();
        assert!(!built.is_empty(), "built after now: {BUILT_MS}");
        assert_ne!(*built.start(), 0);
    }
}
