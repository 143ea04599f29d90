//! Every order of events in small worlds: whatever can happen next is tried, from every state that was
//! reached, and the promises are checked in each.
//!
//! A world (`orders/world.rs`) is a controller with a sensor, an LED, a broker and a disk that answer when the
//! search says so, early, late, twice or never. Faults have a number in each world: two lost links, a crash, a
//! commit that fails, and so on. A state that was reached before is known by its value, after a
//! normalisation that `orders/value.rs` writes down. From where nothing is left to happen, and from every
//! hundredth state, the world is played to its end without further faults, and the books are compared.
//!
//!     cargo test -p nightlight-logic --test every_order              # 200,000 states
//!     ORDERS=20000000 cargo test --release -p nightlight-logic --test every_order -- --nocapture
//!
//! A promise that is broken is printed with the events that lead there.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "orders/search.rs"]
mod search;
#[path = "orders/value.rs"]
mod value;
#[path = "orders/world.rs"]
mod world;

use nightlight_logic::delivery::Confirm;
use search::search;
use world::{Budget, Variant};

/// States in all worlds together.
fn states() -> usize {
    let given = std::env::var("ORDERS").ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(200_000)
}

#[test]
fn the_link_is_lost_twice_and_confirmations_come_late_twice_or_never() {
    let budget = Budget {
        losses: 2,
        failed_connects: 1,
        acks_again: 1,
        lights: 1,
        ..Budget::default()
    };
    search("link", &budget, Variant::default(), states() / 5);
}

#[test]
fn a_crash_at_any_moment_with_a_store_that_fails() {
    let budget = Budget {
        losses: 1,
        crashes: 1,
        failed_commits: 1,
        lights: 1,
        ..Budget::default()
    };
    search("crash", &budget, Variant::default(), states() / 5);
}

#[test]
fn commands_with_leases_one_too_late_and_one_twice_while_the_clock_is_set() {
    let budget = Budget {
        commands: 2,
        commands_again: 1,
        stale_commands: 1,
        clocks: 1,
        losses: 1,
        lights: 1,
        ..Budget::default()
    };
    search("command", &budget, Variant::default(), states() / 5);
}

#[test]
fn devices_that_fail_while_the_link_is_lost() {
    let budget = Budget {
        losses: 1,
        failed_readings: 4,
        failed_leds: 2,
        commands: 1,
        lights: 1,
        ..Budget::default()
    };
    search("device", &budget, Variant::default(), states() / 5);
}

#[test]
fn the_server_confirms_and_everything_goes_wrong_once() {
    let budget = Budget {
        losses: 2,
        crashes: 1,
        failed_commits: 1,
        failed_connects: 1,
        acks_again: 1,
        commands: 1,
        clocks: 1,
        lights: 1,
        ..Budget::default()
    };
    let variant = Variant {
        confirm: Confirm::Server,
        batch: 2,
    };
    search("server", &budget, variant, states() / 5);
}
