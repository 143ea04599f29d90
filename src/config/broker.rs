//! How to reach the broker: the URL, the names, and the files of secrets and certificates.
//!
//! Looks into the files, but keeps nothing of them: they are read again when a session is made.
//! Called by `check` alone.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::keys::{self, Key};
use super::layers::Layers;
use super::url::BrokerUrl;
use super::{Broker, Scheme};

/// The longest that fits into the 16 bits of MQTT.
const LONGEST_KEEP_ALIVE: Duration = Duration::from_secs(65_535);

/// How to reach the broker.
pub(super) fn broker(layers: &mut Layers, device_id: &str) -> Broker {
    let url = layers.text(&keys::BROKER_URL);
    let url = BrokerUrl::parse(&url).unwrap_or_else(|what| {
        layers.problem(&keys::BROKER_URL, what);
        BrokerUrl {
            scheme: Scheme::Mqtt,
            host: "localhost".into(),
            port: 1883,
            path: String::new(),
        }
    });
    let client_id = layers
        .optional(&keys::BROKER_CLIENT_ID)
        .inspect(|id| client_id(layers, id))
        .unwrap_or_else(|| device_id.to_string());
    let username = layers.optional(&keys::BROKER_USERNAME);
    let password_file = layers.path(&keys::BROKER_PASSWORD_FILE);
    if let Some(file) = &password_file {
        password(layers, file);
        if username.is_none() && layers.are_good(&[&keys::BROKER_USERNAME]) {
            layers.problem(
                &keys::BROKER_PASSWORD_FILE,
                "there is a password but no user; set broker.username too",
            );
        }
    }
    let [ca_file, cert_file, key_file] = [
        (&keys::BROKER_CA_FILE, "CERTIFICATE-----"),
        (&keys::BROKER_CERT_FILE, "CERTIFICATE-----"),
        (&keys::BROKER_KEY_FILE, "PRIVATE KEY-----"),
    ]
    .map(|(key, label)| {
        layers
            .path(key)
            .inspect(|file| pem(layers, key, file, label))
    });
    let comparable = layers.are_good(&[&keys::BROKER_CERT_FILE, &keys::BROKER_KEY_FILE]);
    match (&cert_file, &key_file) {
        _ if !comparable => {}
        (Some(_), None) => layers.problem(
            &keys::BROKER_CERT_FILE,
            "a client certificate needs its key; set broker.key_file too",
        ),
        (None, Some(_)) => layers.problem(
            &keys::BROKER_KEY_FILE,
            "a key needs its client certificate; set broker.cert_file too",
        ),
        _ => {}
    }
    if !url.scheme.is_tls() {
        if ca_file.is_some() || cert_file.is_some() {
            layers.warning(
                &keys::BROKER_URL,
                format!("{}:// is not encrypted, so ca_file, cert_file and key_file are not used; mqtts:// or wss:// is", url.scheme.name()),
            );
        }
        if password_file.is_some() && !is_this_machine(&url.host) {
            layers.warning(
                &keys::BROKER_URL,
                "the password travels unencrypted; use mqtts:// or wss:// where the broker can",
            );
        }
    }
    Broker {
        scheme: url.scheme,
        host: url.host,
        port: url.port,
        path: url.path,
        client_id,
        username,
        password_file,
        ca_file,
        cert_file,
        key_file,
        keep_alive: layers.duration(
            &keys::BROKER_KEEP_ALIVE,
            Duration::from_secs(1)..=LONGEST_KEEP_ALIVE,
        ),
    }
}

fn client_id(layers: &mut Layers, id: &str) {
    if id.len() > 200 || !id.bytes().all(|b| b.is_ascii_graphic()) {
        layers.problem(
            &keys::BROKER_CLIENT_ID,
            "has a space or a character that is not printable ASCII, or more than 200; use letters, digits, \"-\" and \"_\"",
        );
    }
}

fn password(layers: &mut Layers, file: &Path) {
    let key = &keys::BROKER_PASSWORD_FILE;
    let Some(content) = content(layers, key, file) else {
        return;
    };
    let first_line = content.split(|&b| b == b'\n').next().unwrap_or_default();
    let is_blank = first_line.iter().all(u8::is_ascii_whitespace);
    if is_blank {
        layers.problem(
            key,
            format!(
                "the first line of {} is empty; write the password there",
                file.display()
            ),
        );
    } else if std::str::from_utf8(first_line).is_err() {
        layers.problem(
            key,
            format!(
                "the first line of {} is not UTF-8; write the password as text",
                file.display()
            ),
        );
    }
    let mode = fs::metadata(file).map_or(0, |data| data.permissions().mode());
    if mode & 0o004 != 0 {
        layers.warning(
            key,
            format!(
                "every user of this machine can read {}; chmod o-r it",
                file.display()
            ),
        );
    }
}

fn pem(layers: &mut Layers, key: &Key, file: &Path, label: &str) {
    let Some(content) = content(layers, key, file) else {
        return;
    };
    let text = String::from_utf8_lossy(&content);
    let has_label = text
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(label));
    if !has_label {
        layers.problem(
            key,
            format!(
                "{} has no \"-----BEGIN ... {label}\" line; name a PEM file",
                file.display()
            ),
        );
    }
}

/// The bytes of a file that must be there.
fn content(layers: &mut Layers, key: &Key, file: &Path) -> Option<Vec<u8>> {
    /// More than any bundle of certificates.
    const MOST: u64 = 4 << 20;
    let read = fs::metadata(file).and_then(|data| {
        if !data.is_file() {
            return Err(std::io::Error::other("it is not a file"));
        }
        if data.len() > MOST {
            return Err(std::io::Error::other("it is larger than 4 MiB"));
        }
        fs::read(file)
    });
    read.map_err(|error| {
        layers.problem(
            key,
            format!("{} cannot be read: {error}; check the path and the rights of the user that runs the daemon", file.display()),
        );
    })
    .ok()
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
