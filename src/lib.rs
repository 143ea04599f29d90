//! draft
pub mod logic;
