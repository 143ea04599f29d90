//! The broker's URL, taken apart and checked without any look-up.
//!
//! Knows the four transports and refuses what a general URL parser would let pass: user and password
//! (they would end in logs), queries, hosts that cannot be. Configurations and command lines have it.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::broker::Scheme;

/// A broker's URL in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Transport.
    pub scheme: Scheme,
    /// Host name or address; an IPv6 address without its brackets.
    pub host: String,
    /// Port; the scheme's own when the URL has none.
    pub port: u16,
    /// For the web socket schemes: begins with a slash, `/mqtt` when the URL has none. Else empty.
    pub path: String,
}

impl BrokerUrl {
    /// Reads `mqtt://host`, `mqtts://host:8883`, `ws://host/mqtt`, `wss://[::1]:443/mqtt`.
    ///
    /// # Errors
    /// A line that says what is wrong and what to write; it never repeats a part that may be a
    /// password.
    pub fn parse(url: &str) -> Result<Self, String> {
        if url.is_empty() {
            return Err("is empty; write one such as \"mqtt://localhost:1883\"".into());
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err("has no scheme; begin it with mqtt://, mqtts://, ws:// or wss://".into());
        };
        let scheme = scheme_of(scheme)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if rest.contains('@') {
            return Err("has a user or password in it; use broker.username and broker.password_file instead".into());
        }
        let (host, port) = host_and_port(authority)?;
        let port = match port {
            Some(port) => port_of(port)?,
            None => scheme.port(),
        };
        Ok(Self {
            scheme,
            host,
            port,
            path: path_of(scheme, path)?,
        })
    }
}

impl Scheme {
    /// As it stands in a URL, without `://`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// The port when a URL names none.
    pub fn port(self) -> u16 {
        match self {
            Self::Mqtt => 1883,
            Self::Mqtts => 8883,
            Self::Ws => 80,
            Self::Wss => 443,
        }
    }

    /// Whether the connection is encrypted and the broker's certificate checked.
    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }

    /// Whether MQTT travels in web sockets.
    pub(crate) fn is_web_socket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

fn scheme_of(name: &str) -> Result<Scheme, String> {
    let meant = match name.to_ascii_lowercase().as_str() {
        "mqtt" => return Ok(Scheme::Mqtt),
        "mqtts" => return Ok(Scheme::Mqtts),
        "ws" => return Ok(Scheme::Ws),
        "wss" => return Ok(Scheme::Wss),
        "tcp" => "mqtt://",
        "ssl" | "tls" | "mqtt+ssl" => "mqtts://",
        "http" => "ws://",
        "https" => "wss://",
        _ => "mqtt://, mqtts://, ws:// or wss://",
    };
    Err(format!("has an unknown scheme; begin it with {meant}"))
}

fn host_and_port(authority: &str) -> Result<(String, Option<&str>), String> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest
            .split_once(']')
            .ok_or("has no \"]\" after the IPv6 address; write mqtt://[::1]:1883")?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err(format!(
                "has no valid IPv6 address in brackets (\"{host}\")"
            ));
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host.into(), Some(port))),
            None if rest.is_empty() => Ok((host.into(), None)),
            None => Err("has something between \"]\" and the port; write mqtt://[::1]:1883".into()),
        };
    }
    if authority.matches(':').count() > 1 {
        return Err(
            "has more than one \":\"; write an IPv6 address in brackets: mqtt://[::1]:1883".into(),
        );
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    if host.is_empty() {
        return Err("names no host; write one such as \"mqtt://localhost:1883\"".into());
    }
    if !is_host(host) {
        return Err(format!(
            "has a host name that cannot be (\"{}\"); use letters, digits, \"-\", \".\" and \"_\"",
            host.escape_debug()
        ));
    }
    Ok((host.into(), port))
}

fn is_host(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // Digits and dots alone are an address, and then must be a whole one.
    let is_address = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    host.len() <= 253
        && name.split('.').all(is_label)
        && (!is_address || name.parse::<Ipv4Addr>().is_ok())
}

fn port_of(port: &str) -> Result<u16, String> {
    match port.parse::<u16>() {
        Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => Ok(number),
        _ => Err(format!(
            "has a port that cannot be (\"{}\"); use 1 to 65535",
            port.escape_debug()
        )),
    }
}

fn path_of(scheme: Scheme, path: &str) -> Result<String, String> {
    if path.contains('#') || path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("has a \"#\" or a space after the host; remove it".into());
    }
    if scheme.is_web_socket() {
        return match path {
            // What most brokers listen on; the others do not care.
            "" => Ok("/mqtt".into()),
            _ if path.starts_with('/') => Ok(path.into()),
            _ => Err("has no path before the \"?\"; write one such as ws://host/mqtt?...".into()),
        };
    }
    match path {
        "" | "/" => Ok(String::new()),
        _ => Err(format!(
            "has a path or query, which {}:// does not know; end it after the port",
            scheme.name()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_in_use_are_understood() {
        for (url, scheme, host, port, path) in [
            ("mqtt://localhost:1883", Scheme::Mqtt, "localhost", 1883, ""),
            ("mqtt://10.0.0.1/", Scheme::Mqtt, "10.0.0.1", 1883, ""),
            (
                "MQTTS://broker.example.org",
                Scheme::Mqtts,
                "broker.example.org",
                8883,
                "",
            ),
            ("ws://host_1", Scheme::Ws, "host_1", 80, "/mqtt"),
            ("wss://h:9001/", Scheme::Wss, "h", 9001, "/"),
            ("wss://h/a?b=c", Scheme::Wss, "h", 443, "/a?b=c"),
            ("mqtt://[fe80::1]:1884", Scheme::Mqtt, "fe80::1", 1884, ""),
            ("mqtt://[::1]", Scheme::Mqtt, "::1", 1883, ""),
        ] {
            let (host, path) = (host.to_string(), path.to_string());
            assert_eq!(
                BrokerUrl::parse(url),
                Ok(BrokerUrl {
                    scheme,
                    host,
                    port,
                    path
                }),
                "{url}"
            );
        }
    }

    #[test]
    fn other_urls_are_refused_with_what_to_do() {
        for (url, what) in [
            ("", "is empty"),
            ("localhost", "no scheme"),
            ("localhost:1883", "no scheme"),
            ("tcp://localhost", "begin it with mqtt://"),
            ("ssl://localhost", "begin it with mqtts://"),
            ("https://localhost", "begin it with wss://"),
            ("ftp://localhost", "mqtt://, mqtts://"),
            ("mqtt://", "names no host"),
            ("mqtt://:1883", "names no host"),
            ("mqtt:///x", "names no host"),
            ("mqtt://host:", "port"),
            ("mqtt://host:0", "port"),
            ("mqtt://host:65536", "port"),
            ("mqtt://host:+18", "port"),
            ("mqtt://host:mqtt", "port"),
            ("mqtt://ho st", "host name"),
            ("mqtt://-host", "host name"),
            ("mqtt://a..b", "host name"),
            ("mqtt://300.1.1.1", "host name"),
            ("mqtt://::1", "in brackets"),
            ("mqtt://[::1", "no \"]\""),
            ("mqtt://[xyz]", "IPv6"),
            ("mqtt://[::1]1883", "between"),
            ("mqtt://host/path", "path or query"),
            ("mqtt://host?client_id=1", "path or query"),
            ("ws://host/#x", "\"#\""),
            ("ws://host?x", "no path"),
        ] {
            let refused = BrokerUrl::parse(url).unwrap_err();
            assert!(refused.contains(what), "{url}: {refused}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for url in [
            "mqtt://me:hunter2@host",
            "mqtt://me:hunter2/x@host:1883",
            "ws://me:hunter2?@h",
        ] {
            let refused = BrokerUrl::parse(url).unwrap_err();
            assert!(refused.contains("password_file"), "{refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(url in "(mqtt://|ws://)?\\PC{0,40}") {
            let _ = BrokerUrl::parse(&url);
        }
    }
}
