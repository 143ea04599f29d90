//! How to reach the broker: the URL, the names, and the files of secrets and certificates.
//!
//! Looks into the files, but keeps nothing of them: they are read again when a session is made.
//! Each program has these keys under its own statics.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::url::BrokerUrl;
use super::{Key, Layers};
use crate::mqtt::Version;

/// The longest that fits into the 16 bits of MQTT.
const LONGEST_KEEP_ALIVE: Duration = Duration::from_secs(65_535);

/// A session that the broker forgets sooner does not outlive a restart.
const SHORTEST_EXPIRY: Duration = Duration::from_secs(60);
const LONGEST_EXPIRY: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The keys that say how.
#[derive(Debug)]
pub struct Keys {
    /// `broker.url`
    pub url: &'static Key,
    /// `broker.client_id`; empty for the program's own.
    pub client_id: &'static Key,
    /// `broker.username`
    pub username: &'static Key,
    /// `broker.password_file`
    pub password_file: &'static Key,
    /// `broker.ca_file`
    pub ca_file: &'static Key,
    /// `broker.cert_file`
    pub cert_file: &'static Key,
    /// `broker.key_file`
    pub key_file: &'static Key,
    /// `broker.keep_alive`
    pub keep_alive: &'static Key,
    /// `broker.version`
    pub version: &'static Key,
    /// `broker.session_expiry`
    pub session_expiry: &'static Key,
}

/// How to reach the broker.
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    /// Transport.
    pub scheme: Scheme,
    /// Host name or address.
    pub host: String,
    /// Port; the scheme's own by default (1883, 8883, 80, 443).
    pub port: u16,
    /// Path, for the web socket schemes; begins with a slash. Empty for the others.
    pub path: String,
    /// MQTT client id; never empty.
    pub client_id: String,
    /// User name, if the broker wants one.
    pub username: Option<String>,
    /// File with the password in its first line.
    pub password_file: Option<PathBuf>,
    /// PEM file of the authorities to trust; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM file of its key.
    pub key_file: Option<PathBuf>,
    /// MQTT keep alive: 1 s to 18 h.
    pub keep_alive: Duration,
    /// The version of MQTT.
    pub speak: Speak,
    /// How long a broker of MQTT 5 keeps our session, and what waits in it, when we are gone: 1 min to 10 years.
    pub session_expiry: Duration,
}

/// Which version of MQTT is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speak {
    /// 5, and 3.1.1 with a broker that does not know it.
    Auto,
    /// This one alone.
    Only(Version),
}

impl Speak {
    /// As the configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Only(version) => version.name(),
        }
    }
}

impl Broker {
    /// The URL, without user and password; for logs and for the web socket transports.
    pub fn url(&self) -> String {
        let (scheme, port, path) = (self.scheme.name(), self.port, &self.path);
        if self.host.contains(':') {
            format!("{scheme}://[{}]:{port}{path}", self.host)
        } else {
            format!("{scheme}://{}:{port}{path}", self.host)
        }
    }
}

/// Transport to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `mqtt://`
    Mqtt,
    /// `mqtts://`
    Mqtts,
    /// `ws://`
    Ws,
    /// `wss://`
    Wss,
}

/// How to reach the broker; `own_id` is the client id when none is set.
pub fn broker(layers: &mut Layers, keys: &Keys, own_id: &str) -> Broker {
    let url = layers.text(keys.url);
    let url = BrokerUrl::parse(&url).unwrap_or_else(|what| {
        layers.problem(keys.url, what);
        BrokerUrl {
            scheme: Scheme::Mqtt,
            host: "localhost".into(),
            port: 1883,
            path: String::new(),
        }
    });
    let client_id = layers
        .optional(keys.client_id)
        .inspect(|id| client_id(layers, keys.client_id, id))
        .unwrap_or_else(|| own_id.to_string());
    let username = layers.optional(keys.username);
    let password_file = layers.path(keys.password_file);
    if let Some(file) = &password_file {
        password(layers, keys.password_file, file);
        if username.is_none() && layers.are_good(&[keys.username]) {
            layers.problem(
                keys.password_file,
                "there is a password but no user; set broker.username too",
            );
        }
    }
    let [ca_file, cert_file, key_file] = [
        (keys.ca_file, "CERTIFICATE-----"),
        (keys.cert_file, "CERTIFICATE-----"),
        (keys.key_file, "PRIVATE KEY-----"),
    ]
    .map(|(key, label)| {
        layers
            .path(key)
            .inspect(|file| pem(layers, key, file, label))
    });
    let comparable = layers.are_good(&[keys.cert_file, keys.key_file]);
    match (&cert_file, &key_file) {
        _ if !comparable => {}
        (Some(_), None) => layers.problem(
            keys.cert_file,
            "a client certificate needs its key; set broker.key_file too",
        ),
        (None, Some(_)) => layers.problem(
            keys.key_file,
            "a key needs its client certificate; set broker.cert_file too",
        ),
        _ => {}
    }
    if !url.scheme.is_tls() {
        if ca_file.is_some() || cert_file.is_some() {
            layers.warning(
                keys.url,
                format!("{}:// is not encrypted, so ca_file, cert_file and key_file are not used; mqtts:// or wss:// is", url.scheme.name()),
            );
        }
        if password_file.is_some() && !is_this_machine(&url.host) {
            layers.warning(
                keys.url,
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
        keep_alive: layers.duration(keys.keep_alive, Duration::from_secs(1)..=LONGEST_KEEP_ALIVE),
        speak: layers.choice(
            keys.version,
            &[
                ("auto", Speak::Auto),
                ("5", Speak::Only(Version::V5)),
                ("3.1.1", Speak::Only(Version::V311)),
            ],
            "",
        ),
        session_expiry: layers.duration(keys.session_expiry, SHORTEST_EXPIRY..=LONGEST_EXPIRY),
    }
}

fn client_id(layers: &mut Layers, key: &Key, id: &str) {
    if id.len() > 200 || !id.bytes().all(|b| b.is_ascii_graphic()) {
        layers.problem(
            key,
            "has a space or a character that is not printable ASCII, or more than 200; use letters, digits, \"-\" and \"_\"",
        );
    }
}

fn password(layers: &mut Layers, key: &Key, file: &Path) {
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
            format!("{} cannot be read: {error}; check the path and the rights of the user that runs it", file.display()),
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
