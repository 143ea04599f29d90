//! Home Assistant: whether the device is announced to it, and where.
//!
//! With discovery a maker sets nothing else: Home Assistant's status topic is the server's, and a command holds as
//! long as it is there, unless the owner has set `control.server_status` or `control.lease`. Called by `check`.

use nightlight_common::config::Layers;

use super::{keys, topics};

/// How the device is announced to Home Assistant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HomeAssistant {
    /// The device id in the topic.
    pub node: String,
    /// The topic of the announcement.
    pub topic: String,
    /// Where Home Assistant says `online` and `offline`.
    pub status_topic: String,
}

/// The section, if discovery is on; what is wrong with it is told either way.
pub(super) fn home_assistant(layers: &mut Layers, id: &str) -> Option<HomeAssistant> {
    let is_on = layers.flag(&keys::HOME_ASSISTANT_DISCOVERY);
    let prefix = layers.text(&keys::HOME_ASSISTANT_PREFIX);
    let status_topic = layers.text(&keys::HOME_ASSISTANT_STATUS_TOPIC);
    for (key, name) in [
        (&keys::HOME_ASSISTANT_PREFIX, &prefix),
        (&keys::HOME_ASSISTANT_STATUS_TOPIC, &status_topic),
    ] {
        if let Err(what) = topics::lint(name) {
            layers.problem(key, format!("\"{}\" {what}", name.escape_debug()));
        }
    }
    if !is_on {
        return None;
    }
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !id.bytes().all(is_plain) {
        layers.problem(
            &keys::DEVICE_ID,
            "has characters other than letters, digits, \"-\" and \"_\": Home Assistant takes no such device; leave them \
             out, or set home_assistant.discovery = false",
        );
    }
    Some(HomeAssistant {
        node: id.to_owned(),
        topic: format!("{prefix}/device/{id}/config"),
        status_topic,
    })
}
