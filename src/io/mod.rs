//! The shell: what touches a device, a socket, a file or a clock.
//!
//! The files here do not import each other; only the daemon joins them. Four are ground under others: [`pi`],
//! which has the I2C bus and the pins, [`device_thread`], on which sensor and LED wait for devices that may
//! hang, [`folder`], for names that survive a power cut, and [`small_file`], for what is replaced as a whole.

pub mod announced;
pub mod backlog;
pub(crate) mod blocking_tasks;
pub mod broker;
pub mod clock;
pub mod dead_letters;
pub mod device_thread;
pub mod folder;
pub mod led;
pub mod pi;
pub mod rules;
pub mod runtime;
pub mod sensor;
pub mod small_file;
pub mod state_lock;
pub mod systemd;
pub mod web;
pub mod written;
