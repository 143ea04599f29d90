//! The shell: what touches a device, a socket, a file or a clock.
//!
//! The files here do not import each other; only the daemon joins them. [`pi`] alone is ground under
//! two of them: the I2C bus for the sensor drivers and the pins for the LED.

pub mod aside;
pub mod backlog;
pub mod broker;
pub mod chores;
pub mod clock;
pub mod led;
pub mod pi;
pub mod rules;
pub mod sensor;
pub mod systemd;
pub mod web;
