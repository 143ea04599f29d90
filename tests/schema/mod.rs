//! What is published, held against docs/schemas: the part of JSON Schema that those files use.
//!
//! Stricter than a consumer should be: a property that is not described is a fault too, so that the description is
//! whole. An unknown word of a schema is a fault of the schema, so that none is passed over.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use serde_json::Value;

/// The files by name.
const FILES: [(&str, &str); 8] = [
    (
        "reading.json",
        include_str!("../../docs/schemas/reading.json"),
    ),
    ("event.json", include_str!("../../docs/schemas/event.json")),
    ("loss.json", include_str!("../../docs/schemas/loss.json")),
    (
        "history.json",
        include_str!("../../docs/schemas/history.json"),
    ),
    (
        "result.json",
        include_str!("../../docs/schemas/result.json"),
    ),
    ("state.json", include_str!("../../docs/schemas/state.json")),
    ("acks.json", include_str!("../../docs/schemas/acks.json")),
    (
        "command.json",
        include_str!("../../docs/schemas/command.json"),
    ),
];
/// Words that say nothing about a value here.
const FOR_PEOPLE: [&str; 5] = ["$schema", "$id", "title", "description", "format"];

/// Where in a value; written only when something is wrong there, because a story has many thousand messages.
enum Place<'a> {
    Top,
    Property(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top => Ok(()),
            Self::Property(of, name) => write!(f, "{of}/{name}"),
            Self::Item(of, index) => write!(f, "{of}/{index}"),
        }
    }
}

/// The schema of that name.
pub fn of(name: &str) -> &'static Value {
    static ALL: OnceLock<BTreeMap<&str, Value>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let parsed = |(name, text): (&'static str, &str)| {
            (name, serde_json::from_str(text).expect("a schema is JSON"))
        };
        FILES.into_iter().map(parsed).collect()
    });
    all.get(name).unwrap_or_else(|| panic!("no schema {name}"))
}

/// Fails unless `payload` is as the schema of that name says.
#[track_caller]
pub fn assert_is(name: &str, payload: &[u8]) {
    let value: Value = serde_json::from_slice(payload).expect("JSON");
    let found = faults(of(name), &value);
    assert!(
        found.is_empty(),
        "not as docs/schemas/{name}: {found:#?}\n{value}"
    );
}

/// What is wrong with `value`, if it is to be as `schema` says.
pub fn faults(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(schema, value, &Place::Top, &mut found);
    found
}

fn look(schema: &Value, value: &Value, at: &Place<'_>, found: &mut Vec<String>) {
    let words = schema.as_object().expect("a schema is an object");
    for (word, said) in words {
        match word.as_str() {
            "type" => kind(said, value, at, found),
            "const" if said != value => found.push(format!("{at} is {value}")),
            "enum" if !said.as_array().expect("a list").contains(value) => {
                found.push(format!("{at} is {value}"));
            }
            "minimum" if value.as_f64() < said.as_f64() && value.is_number() => {
                found.push(format!("{at} is {value}"));
            }
            "maximum" if value.as_f64() > said.as_f64() => found.push(format!("{at} is {value}")),
            "minItems" if value.as_array().is_some_and(|it| it.len() < number(said)) => {
                found.push(format!("{at} has too few"));
            }
            "maxItems" if value.as_array().is_some_and(|it| it.len() > number(said)) => {
                found.push(format!("{at} has too many"));
            }
            "minLength"
                if value
                    .as_str()
                    .is_some_and(|it| it.chars().count() < number(said)) =>
            {
                found.push(format!("{at} is too short"));
            }
            "maxLength"
                if value
                    .as_str()
                    .is_some_and(|it| it.chars().count() > number(said)) =>
            {
                found.push(format!("{at} is too long"));
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    look(said, item, &Place::Item(at, index), found);
                }
            }
            "required" => {
                for name in said.as_array().expect("a list") {
                    let name = name.as_str().expect("a name");
                    if value.is_object() && value.get(name).is_none() {
                        found.push(format!("{at} lacks {name}"));
                    }
                }
            }
            "properties" => properties(words, value, at, found),
            "oneOf" => one_of(said, value, at, found),
            "$ref" => look(of(said.as_str().expect("a name")), value, at, found),
            "const"
            | "enum"
            | "minimum"
            | "maximum"
            | "minItems"
            | "maxItems"
            | "minLength"
            | "maxLength"
            | "additionalProperties" => {}
            word if FOR_PEOPLE.contains(&word) => {}
            word => found.push(format!("the schema has {word}, which is not known here")),
        }
    }
}

fn number(said: &Value) -> usize {
    said.as_u64().expect("a number") as usize
}

fn kind(said: &Value, value: &Value, at: &Place<'_>, found: &mut Vec<String>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() || number.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let one = [said.clone()];
    let kinds = said.as_array().map_or(&one[..], Vec::as_slice);
    let is_kind = |wanted: &Value| wanted == kind || wanted == "number" && kind == "integer";
    if !kinds.iter().any(is_kind) {
        found.push(format!("{at} is {kind}"));
    }
}

fn properties(
    schema: &serde_json::Map<String, Value>,
    value: &Value,
    at: &Place<'_>,
    found: &mut Vec<String>,
) {
    for (name, inner) in value.as_object().into_iter().flatten() {
        let named = schema["properties"].get(name);
        let others = schema
            .get("additionalProperties")
            .filter(|schema| schema.is_object());
        match named.or(others) {
            Some(schema) => look(schema, inner, &Place::Property(at, name), found),
            None => found.push(format!("{at}/{name} is not in the schema")),
        }
    }
}

/// Of several the one that fits; if none does, the faults of the one that comes nearest.
fn one_of(said: &Value, value: &Value, at: &Place<'_>, found: &mut Vec<String>) {
    let all = || said.as_array().expect("a list").iter();
    let tried = |schema: &Value| {
        let mut inner = Vec::new();
        look(schema, value, at, &mut inner);
        inner
    };
    let likely: Vec<&Value> = all().filter(|schema| may_be(schema, value)).collect();
    let results: Vec<Vec<String>> = match likely.is_empty() {
        true => all().map(tried).collect(),
        false => likely.into_iter().map(tried).collect(),
    };
    match results.iter().filter(|faults| faults.is_empty()).count() {
        1 => {}
        0 => found.extend(results.into_iter().min_by_key(Vec::len).unwrap_or_default()),
        _ => found.push(format!("{at} fits several")),
    }
}

/// By the kind of value, and the property that names an event or a command.
fn may_be(schema: &Value, value: &Value) -> bool {
    if let Some(name) = schema["$ref"].as_str() {
        return may_be(of(name), value);
    }
    if let Some(several) = schema["oneOf"].as_array() {
        return several.iter().any(|schema| may_be(schema, value));
    }
    let is_named = |name| match schema["properties"][name].get("const") {
        Some(wanted) => value.get(name) == Some(wanted),
        // An event may tell of a command.
        None => name == "command" || value.get(name).is_none(),
    };
    match schema["type"].as_str() {
        Some("array") => value.is_array(),
        _ => value.is_object() && ["event", "command"].into_iter().all(is_named),
    }
}
