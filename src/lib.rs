//! draft
pub mod config;
pub mod io;
pub mod logic;
