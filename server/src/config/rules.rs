//! The rules of the decisions: those of `[control]`, and the tables of devices and groups that differ.

use std::collections::{BTreeMap, HashMap};

use config::ValueKind;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use nightlight_common::config::{Key, Layers};

use super::keys;
use crate::rules::{Rule, Rules, Threshold, Window};

/// What a rule is made of, as texts and numbers.
#[derive(Clone)]
struct Parts {
    on_below: f64,
    off_above: f64,
    from: String,
    to: String,
    time_zone: String,
}

/// What is wrong, and with which of the keys.
struct Wrong(&'static str, String);

/// All rules, where those of `[control]` are right.
pub(super) fn rules(layers: &mut Layers) -> Option<Rules> {
    let usual = Parts {
        on_below: layers.number(&keys::CONTROL_ON_BELOW, f64::MIN..=f64::MAX),
        off_above: layers.number(&keys::CONTROL_OFF_ABOVE, f64::MIN..=f64::MAX),
        from: layers.text(&keys::CONTROL_FROM),
        to: layers.text(&keys::CONTROL_TO),
        time_zone: layers.text(&keys::CONTROL_TIME_ZONE),
    };
    let own = layers.tables(keys::RULES, &keys::RULE_KEYS);
    if !layers.are_good(&[&keys::CONTROL_ON_BELOW, &keys::CONTROL_OFF_ABOVE]) {
        return None;
    }
    let parsed = match usual.rule("control") {
        Ok(rule) => rule,
        Err(Wrong(name, what)) => {
            layers.problem(of_control(name), what);
            return None;
        }
    };
    let mut rules = HashMap::new();
    for (name, values) in own {
        let section = format!("{}.{name}", keys::RULES);
        match usual.with(values).and_then(|parts| parts.rule(&section)) {
            Ok(rule) => drop(rules.insert(name, rule)),
            Err(Wrong(key, what)) => layers.problems.push(format!("{section}.{key}: {what}")),
        }
    }
    Some(Rules {
        usual: parsed,
        own: rules,
    })
}

fn of_control(name: &str) -> &'static Key {
    match name {
        "on_below" => &keys::CONTROL_ON_BELOW,
        "from" => &keys::CONTROL_FROM,
        "to" => &keys::CONTROL_TO,
        _ => &keys::CONTROL_TIME_ZONE,
    }
}

impl Parts {
    /// With these in the place of some.
    fn with(&self, values: BTreeMap<String, ValueKind>) -> Result<Self, Wrong> {
        let mut parts = self.clone();
        for (key, value) in values {
            match key.as_str() {
                "on_below" => parts.on_below = number("on_below", &value)?,
                "off_above" => parts.off_above = number("off_above", &value)?,
                "from" => parts.from = text("from", value)?,
                "to" => parts.to = text("to", value)?,
                _ => parts.time_zone = text("time_zone", value)?,
            }
        }
        Ok(parts)
    }

    fn rule(&self, section: &str) -> Result<Rule, Wrong> {
        let Self {
            on_below,
            off_above,
            ..
        } = *self;
        if on_below > off_above {
            let what = format!(
                "{on_below} is above {section}.off_above, {off_above}; the LED would not know; lower it"
            );
            return Err(Wrong("on_below", what));
        }
        Ok(Rule {
            threshold: Threshold {
                on_below,
                off_above,
            },
            window: self.window(section)?,
        })
    }

    fn window(&self, section: &str) -> Result<Option<Window>, Wrong> {
        let zone = self.zone()?;
        if self.from.is_empty() && self.to.is_empty() {
            return Ok(None);
        }
        let (from, to) = (time("from", &self.from)?, time("to", &self.to)?);
        if from == to {
            let what = format!("is the same as {section}.from; empty both for the whole day");
            return Err(Wrong("to", what));
        }
        Ok(Some(Window { from, to, zone }))
    }

    fn zone(&self) -> Result<TimeZone, Wrong> {
        match self.time_zone.as_str() {
            "" => Ok(TimeZone::system()),
            name => TimeZone::get(name).map_err(|_| {
                let what = format!(
                    "\"{name}\" is no time zone of this system; write one such as \"Europe/Berlin\" (Debian has them in the package tzdata)"
                );
                Wrong("time_zone", what)
            }),
        }
    }
}

fn time(key: &'static str, text: &str) -> Result<Time, Wrong> {
    if text.is_empty() {
        return Err(Wrong(
            key,
            "is empty, and the other end is not; write a time such as \"18:00\"".into(),
        ));
    }
    let is_short = text.len() == 5 && text.as_bytes().get(2) == Some(&b':');
    let time = text.parse().ok().filter(|_| is_short);
    time.ok_or_else(|| {
        Wrong(
            key,
            format!("\"{text}\" is no time of day; write one such as \"18:00\""),
        )
    })
}

fn number(key: &'static str, value: &ValueKind) -> Result<f64, Wrong> {
    let number = match value {
        ValueKind::Float(number) => Some(*number),
        ValueKind::I64(number) => Some(*number as f64),
        // From the environment.
        ValueKind::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number
        .filter(|number| number.is_finite())
        .ok_or_else(|| Wrong(key, "is no number; write one such as 300.0".into()))
}

fn text(key: &'static str, value: ValueKind) -> Result<String, Wrong> {
    match value {
        ValueKind::String(text) => Ok(text),
        _ => Err(Wrong(key, "is no text; write it in quotes".into())),
    }
}
