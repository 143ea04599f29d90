//! What both programs need of the world: a configuration in layers, the way to the broker, a log, the
//! machine's clocks. The daemon (`src/`) and the server (`server/`) build on it; it knows neither.

pub mod clock;
pub mod config;
pub mod log;
pub mod mqtt;
pub mod signals;
