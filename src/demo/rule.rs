//! Whether the LED did what the local rule says, told from the records of an outage.
//!
//! A second, independent telling of the rule, from its description and not from `logic::lighting`: on
//! below one threshold, off above the other, unchanged between, no change soon after the last. Called
//! by `account`.

use super::record::{Received, Tells};
use super::{HOLD, OFF_ABOVE, ON_BELOW};

/// What the records say.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Judged {
    /// Readings for which the LED could be checked.
    pub(super) readings: usize,
    /// Changes by the local rule, in order.
    pub(super) changes: Vec<bool>,
    /// Where the LED did not follow the rule, a line each.
    pub(super) faults: Vec<String>,
}

/// Judges records in the order of their numbers, made while nobody but the local rule could decide.
pub(super) fn judge(records: &[Received]) -> Judged {
    let mut judged = Judged::default();
    let mut before: Option<(f64, bool, i64)> = None;
    let mut changed_ms: Option<i64> = None;
    for record in records {
        match &record.tells {
            Tells::Reading { light, led_on } => {
                if let Some((was_light, was_on, at_ms)) = before {
                    let wanted = wanted(was_light, was_on);
                    // A change that the hold has put off may come at any time after it.
                    let held =
                        changed_ms.is_none_or(|changed| at_ms - changed <= HOLD.as_millis() as i64);
                    judged.readings += 1;
                    if *led_on != wanted && !(held && *led_on == was_on) {
                        judged.faults.push(format!(
                            "record {}: at light {was_light} the LED was {}, which is not the local rule",
                            record.seq,
                            on_off(*led_on)
                        ));
                    }
                }
                before = Some((*light, *led_on, record.at_ms));
                // How long ago the change before the first record was is not known.
                changed_ms = changed_ms.or(Some(record.at_ms));
            }
            Tells::Led { led_on, by } => {
                if by == "fallback" {
                    judged.changes.push(*led_on);
                } else {
                    judged.faults.push(format!(
                        "record {}: the LED was switched {} by {by} in the outage",
                        record.seq,
                        on_off(*led_on)
                    ));
                }
                changed_ms = Some(record.at_ms);
            }
            _ => {}
        }
    }
    judged
}

/// The LED after a reading of `light`, when it was `led_on` before.
fn wanted(light: f64, led_on: bool) -> bool {
    if light < ON_BELOW {
        true
    } else if light > OFF_ABOVE {
        false
    } else {
        led_on
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

#[cfg(test)]
mod tests {
    use super::super::record::Lane;
    use super::*;

    /// Records a quarter of a second apart: a reading, or (light none) a change of the LED.
    fn records(told: &[(Option<f64>, bool)]) -> Vec<Received> {
        let record = |(index, &(light, led_on)): (usize, &(Option<f64>, bool))| Received {
            lane: Lane::History,
            seq: index as u64 + 1,
            at_ms: index as i64 * 250,
            tells: match light {
                Some(light) => Tells::Reading { light, led_on },
                None => Tells::Led {
                    led_on,
                    by: "fallback".into(),
                },
            },
        };
        told.iter().enumerate().map(record).collect()
    }

    #[test]
    fn dusk_by_the_rule_is_right() {
        let judged = judge(&records(&[
            (Some(400.0), false),
            (Some(320.0), false),
            (Some(299.0), false),
            (None, true),
            (Some(310.0), true),
            (Some(349.0), true),
        ]));
        assert_eq!(judged.faults, [""; 0]);
        assert_eq!((judged.readings, judged.changes), (4, vec![true]));
    }

    #[test]
    fn a_led_that_sleeps_or_dances_is_a_fault() {
        let dark = (Some(100.0), false);
        let asleep = judge(&records(&[dark; 10]));
        // The first second may be the hold of a change before.
        assert_eq!(asleep.faults.len(), 4, "{:?}", asleep.faults);
        let dancing = judge(&records(&[(Some(320.0), false), (Some(320.0), true)]));
        assert_eq!(dancing.faults.len(), 1);
    }

    #[test]
    fn the_hold_may_put_a_change_off() {
        let judged = judge(&records(&[
            (Some(100.0), false),
            (None, true),
            (Some(400.0), true),
            (Some(400.0), true),
            (None, false),
            (Some(400.0), false),
        ]));
        assert_eq!(judged.faults, [""; 0]);
        assert_eq!(judged.changes, [true, false]);
    }

    #[test]
    fn somebody_else_who_switches_is_a_fault() {
        let mut records = records(&[(None, true)]);
        records[0].tells = Tells::Led {
            led_on: true,
            by: "remote".into(),
        };
        assert_eq!(judge(&records).faults.len(), 1);
    }
}
