//! The real program as a process, with a real broker, real files and real signals.
//!
//! One binary, so that its stories overlap: most of their time is waiting. A part of them alone:
//! `cargo test --test real kills::`.

mod commands;
mod damage;
mod demo;
mod doctor;
mod fake_broker;
#[path = "stage/filled.rs"]
mod filled;
mod folder;
mod full_disk;
mod home_assistant;
mod kills;
mod life;
mod light;
mod lines;
mod link;
mod manual;
mod oversize;
mod page;
mod presets;
mod reasons;
#[path = "../schema/mod.rs"]
mod schema;
mod sessions;
mod signals;
mod stage;
mod way;
