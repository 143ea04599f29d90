//! What both programs need of the world: a configuration in layers, the way to the broker, a log, the
//! machine's clocks. The daemon (`src/`) and the server (`server/`) build on it; it knows neither.

// `pub` means used from another crate: dead code shows itself.
#![warn(unreachable_pub)]

pub mod clock;
pub mod config;
#[cfg(feature = "http")]
pub mod http;
pub mod log;
pub mod mqtt;
pub mod signals;
