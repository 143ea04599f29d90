//! The device id and the topic names, linted as MQTT practice has it.
//!
//! What the standard allows and nobody wants (spaces, empty levels, `$`) is refused too. Knows
//! nothing of brokers and their rights. Called by `check` alone.

use std::path::Path;

use nightlight_common::config::{Key, Layers};

use super::{DEFAULT_ID, HomeAssistant, Topics, keys, serial};

/// Longest topic and device id, in bytes.
const MAX_BYTES: usize = 200;

/// The device id, or the default one when it is refused. `root` is where the files of this machine are.
pub(super) fn device_id(layers: &mut Layers, root: &Path) -> String {
    let id = layers.text(&keys::DEVICE_ID);
    let id = match with_serial(layers, &id, root) {
        Ok(id) => id,
        Err(what) => {
            layers.problem(&keys::DEVICE_ID, format!("{} {what}", quoted(&id)));
            return DEFAULT_ID.into();
        }
    };
    match lint(&id) {
        Ok(()) => {
            for what in doubts(&id) {
                layers.warning(&keys::DEVICE_ID, format!("{} {what}", quoted(&id)));
            }
            id
        }
        Err(what) => {
            layers.problem(&keys::DEVICE_ID, format!("{} {what}", quoted(&id)));
            DEFAULT_ID.into()
        }
    }
}

/// The id with the serial number of the machine in the place kept for it.
fn with_serial(layers: &mut Layers, id: &str, root: &Path) -> Result<String, String> {
    if !id.contains(serial::PLACEHOLDER) {
        return Ok(id.to_owned());
    }
    let (serial, origin) = serial::of(root)?;
    let filled = id.replace(serial::PLACEHOLDER, &serial);
    if origin == serial::Origin::MachineId {
        layers.warning(
            &keys::DEVICE_ID,
            format!(
                "is {}, made from /etc/machine-id, because this board tells no serial number: a copy of this system has \
                 the same id, unless it gets a machine id of its own",
                quoted(&filled)
            ),
        );
    }
    Ok(filled)
}

/// What a good device id is not good for.
fn doubts(id: &str) -> Vec<&'static str> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/');
    let mut doubts = Vec::new();
    if id.contains('/') {
        doubts.push(
            "has a \"/\" in it: a subscription such as \"+/telemetry\" never matches it, so that nightlight-server does \
             not hear it; use \"-\" instead",
        );
    }
    if !id.bytes().all(is_plain) {
        doubts.push(
            "has characters other than letters, digits, \"-\" and \"_\", which Home Assistant does not take in \
             the name of a device; leave them out",
        );
    }
    doubts
}

/// The topics and the server's status topic, `{id}` replaced.
pub(super) fn topics(
    layers: &mut Layers,
    id: &str,
    home_assistant: Option<&HomeAssistant>,
) -> (Topics, Option<String>) {
    let mut topic = |key: &'static Key| own_topic(layers, key, id);
    let topics = Topics {
        telemetry: topic(&keys::TOPICS_TELEMETRY),
        history: topic(&keys::TOPICS_HISTORY),
        events: topic(&keys::TOPICS_EVENTS),
        commands: topic(&keys::TOPICS_COMMANDS),
        results: topic(&keys::TOPICS_RESULTS),
        acks: topic(&keys::TOPICS_ACKS),
        state: topic(&keys::TOPICS_STATE),
        status: topic(&keys::TOPICS_STATUS),
    };
    let server_status = layers.optional(&keys::CONTROL_SERVER_STATUS).map(|text| {
        let topic = text.replace("{id}", id);
        if let Err(what) = lint(&topic) {
            layers.problem(
                &keys::CONTROL_SERVER_STATUS,
                format!("{} {what}", quoted(&topic)),
            );
        }
        topic
    });
    let of_home_assistant = home_assistant.map(|home| home.status_topic.clone());
    let server_status = server_status.or(of_home_assistant);
    tell_same_names(layers, &topics, server_status.as_deref(), home_assistant);
    (topics, server_status)
}

/// Why `name` is not a good topic, with what to do.
pub(super) fn lint(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("is empty; give it a name")
    } else if name.len() > MAX_BYTES {
        Err("is longer than 200 bytes; shorten it")
    } else if name.contains(char::is_whitespace) {
        Err("has a space in it; use \"-\" or \"_\"")
    } else if !name.bytes().all(|b| b.is_ascii_graphic()) {
        Err("has a character that is not printable ASCII; use letters, digits, \"-\" and \"_\"")
    } else if name.contains(['+', '#']) {
        Err("has a \"+\" or \"#\", which are wildcards; leave them out")
    } else if name.contains(['{', '}']) {
        Err("has a brace in it; only {id} is replaced in topics, and only {serial} in device.id")
    } else if name.starts_with('$') {
        Err("begins with \"$\", which is the broker's own; leave it out")
    } else if name.starts_with('/') {
        Err("begins with \"/\"; leave it out")
    } else if name.split('/').any(str::is_empty) {
        Err("has an empty level (\"//\" or a \"/\" at the end); leave it out")
    } else {
        Ok(())
    }
}

fn own_topic(layers: &mut Layers, key: &'static Key, id: &str) -> String {
    let text = layers.text(key);
    let topic = text.replace("{id}", id);
    if let Err(what) = lint(&topic) {
        layers.problem(key, format!("{} {what}", quoted(&topic)));
    } else if !text.contains("{id}") && !has_levels(&topic, id) && !is_thingsboard(layers) {
        layers.problem(
            key,
            format!(
                "{} does not name the device; put {{id}} in it, or two Pis speak with one voice",
                quoted(&topic)
            ),
        );
    }
    topic
}

/// ThingsBoard knows a device by its access token: its topics are those of every device.
fn is_thingsboard(layers: &Layers) -> bool {
    layers.is_word(&keys::PAYLOAD_FORMAT, "thingsboard")
}

/// Whether the levels of `id` stand in `topic`, one after the other.
fn has_levels(topic: &str, id: &str) -> bool {
    let topic: Vec<_> = topic.split('/').collect();
    let id: Vec<_> = id.split('/').collect();
    topic.windows(id.len()).any(|levels| levels == id)
}

/// Two uses of one topic would make the daemon hear itself, or consumers mistake one for the other.
fn tell_same_names(
    layers: &mut Layers,
    topics: &Topics,
    server_status: Option<&str>,
    home_assistant: Option<&HomeAssistant>,
) {
    let mut uses: Vec<(&'static Key, &str)> = vec![
        (&keys::TOPICS_TELEMETRY, &topics.telemetry),
        (&keys::TOPICS_HISTORY, &topics.history),
        (&keys::TOPICS_EVENTS, &topics.events),
        (&keys::TOPICS_COMMANDS, &topics.commands),
        (&keys::TOPICS_RESULTS, &topics.results),
        (&keys::TOPICS_ACKS, &topics.acks),
        (&keys::TOPICS_STATE, &topics.state),
        (&keys::TOPICS_STATUS, &topics.status),
    ];
    uses.extend(server_status.map(|topic| (&keys::CONTROL_SERVER_STATUS, topic)));
    if let Some(home) = home_assistant {
        uses.push((&keys::HOME_ASSISTANT_PREFIX, &home.topic));
        if server_status != Some(&home.status_topic) {
            uses.push((&keys::HOME_ASSISTANT_STATUS_TOPIC, &home.status_topic));
        }
    }
    let records = match is_thingsboard(layers) {
        true => vec![
            keys::TOPICS_TELEMETRY.path,
            keys::TOPICS_HISTORY.path,
            keys::TOPICS_EVENTS.path,
        ],
        false => Vec::new(),
    };
    for (index, (key, name)) in uses.iter().enumerate() {
        let earlier = uses.iter().take(index).find(|(_, other)| other == name);
        // There a record says by itself when it was made, and what it is.
        let is_shared = |key: &Key| records.contains(&key.path);
        let earlier = earlier.filter(|(other, _)| !(is_shared(key) && is_shared(other)));
        if let Some((other, _)) = earlier.filter(|_| !name.is_empty()) {
            layers.problem(
                key,
                format!(
                    "{} is the topic of {} too; give each its own",
                    quoted(name),
                    other.path
                ),
            );
        }
    }
}

fn quoted(name: &str) -> String {
    let cut: String = name.chars().take(60).collect();
    let dots = if cut.len() < name.len() { "..." } else { "" };
    format!("\"{}{dots}\"", cut.escape_debug())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// The id on a machine with these files, the problems and the warnings.
    fn id_of(id: &str, board: Option<&str>) -> (String, Vec<String>, Vec<String>) {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("proc/device-tree/serial-number");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        if let Some(board) = board {
            std::fs::write(file, board).unwrap();
        }
        let text = format!("[device]\nid = \"{id}\"\n");
        let named = Some((Path::new("file"), text.as_str()));
        let mut layers = Layers::gather(&keys::SCHEMA, named, HashMap::new());
        let id = device_id(&mut layers, root.path());
        (id, layers.problems, layers.warnings)
    }

    #[test]
    fn the_serial_number_is_a_part_of_the_id() {
        let (id, problems, warnings) = id_of("light-{serial}", Some("100000004f2a7c11\0"));
        assert_eq!(id, "light-100000004f2a7c11");
        assert_eq!((problems, warnings), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_machine_without_a_number_and_another_brace_are_problems() {
        let (_, problems, _) = id_of("light-{serial}", None);
        assert!(
            problems[0].contains("tells no serial number"),
            "{problems:?}"
        );
        let (_, problems, _) = id_of("light-{serail}", Some("1\0"));
        assert!(
            problems[0].contains("only {serial} in device.id"),
            "{problems:?}"
        );
    }
}
