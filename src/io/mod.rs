//! The shell: what touches a device, a socket, a file or a clock.
//!
//! The files here do not import each other; only the daemon joins them. Two are ground under the sensor
//! and the LED: [`pi`], which has the I2C bus and the pins, and [`device_thread`], on which both wait for
//! devices that may hang.

pub mod backlog;
pub mod blocking_tasks;
pub mod broker;
pub mod clock;
pub mod dead_letters;
pub mod device_thread;
pub mod led;
pub mod pi;
pub mod rules;
pub mod runtime;
pub mod sensor;
pub mod systemd;
pub mod web;
