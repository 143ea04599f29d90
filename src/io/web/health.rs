//! `/healthz`: what is not as it should be, a line each, for a person and for a monitor.
//!
//! Pure. What this machine cannot do counts; a broker or server that is away does not, because living with
//! that is what the program is for: it is only named.

use crate::logic::View;

/// A loop that is later than this does not do its work.
const MAX_LAG_S: f64 = 5.0;

/// Whether all is well, and the text.
pub(super) fn health(view: &View) -> (bool, String) {
    let mut faults = Vec::new();
    if !view.led_ok {
        faults.push(format!("LED: the LED cannot be written: {}", view.led_why));
    }
    if !view.sensor_ok {
        let why = &view.sensor_why;
        faults.push(format!("sensor: the sensor gives no readings: {why}"));
    }
    if !view.store_ok {
        faults.push("store: not open, or not to be written; records are in memory only".into());
    }
    if view.loop_lag_s.is_some_and(|lag| lag > MAX_LAG_S) {
        let lag = view.loop_lag_s.unwrap_or_default();
        faults.push(format!("loop: {lag:.1} s late within the last minute"));
    }
    let is_well = faults.is_empty();
    if is_well {
        faults.push("ok".into());
    }
    if !view.link_up {
        let why = &view.link_why;
        faults.push(format!("note: the broker is not connected: {why}"));
    }
    (is_well, faults.join("\n") + "\n")
}
