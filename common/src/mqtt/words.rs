//! Why there is no session, in words: what failed, and the key of the configuration that mends it.
//!
//! Errors of libraries become words here, so that no library's words are shown where a person has to
//! act on them.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use rumqttc::mqttbytes::Error as PacketError;
use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use nightlight_logic::time::rfc3339;

use super::packet::Said;
use super::reasons::meaning;
use super::terms::Version;

/// Why there is no session, or no more.
#[derive(Debug)]
pub enum LinkError {
    /// The broker is there and refuses us.
    Refused(Said),
    /// The broker ended the session, and said why.
    Ended(Said),
    /// The broker speaks neither this version nor, where another was tried too, any.
    NotSpoken(Version, bool),
    /// What answered CONNECT is no broker.
    NotABroker,
    /// The broker does not free the packet ids of an earlier connection.
    Unreleased,
    /// The broker closed the connection when it was to free them.
    ClosedOnRelease,
    /// Something was to be sent while the broker had too much to answer.
    NoRoom,
    /// No address led to a session; what each said.
    Unreachable(Vec<(SocketAddr, LinkError)>),
    /// Nothing can be tried: the name.
    Configured(String),
    /// Nothing can be tried: a file of the configuration.
    File(String),
    /// An address did not answer: what was waited for.
    Timeout(&'static str),
    /// The broker closed the connection before it said anything.
    NoGreeting,
    /// The broker closed the connection.
    Closed,
    /// The broker does not answer a ping, or says nothing at all.
    Silent,
    /// The broker takes nothing.
    Stuck,
    /// What came is not MQTT, or not now.
    Protocol(String),
    /// TLS: why, and what to do.
    Tls(String),
    /// The WebSocket handshake failed.
    WebSocket(String),
    /// Of the system.
    Io(io::Error),
}

impl LinkError {
    /// Whether the connection was closed from the other end, for what we are or did.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Closed => true,
            // The broker goes, is busy or has a plan of its own: that is none of our doing.
            Self::Ended(said) => !matches!(said.code, 0x00 | 0x89 | 0x8b | 0x8d | 0x98 | 0xa0),
            Self::Io(error) => is_end(error),
            _ => false,
        }
    }

    /// The reason that the broker gave when it ended the session.
    pub fn ended_with(&self) -> Option<u8> {
        match self {
            Self::Ended(said) => Some(said.code),
            _ => None,
        }
    }

    /// An end before the broker has said anything is another error.
    pub(super) fn before_greeting(self) -> Self {
        match self {
            error if error.is_end() => Self::NoGreeting,
            other => other,
        }
    }

    /// Whether the broker refused us: trying again soon is no use.
    pub fn is_refusal(&self) -> bool {
        let code = self.refused_with();
        matches!(code, Some(0x84..=0x87 | 0x8a | 0x8c | 0x95 | 0x9c | 0x9d))
            || matches!(self, Self::File(_) | Self::NotSpoken(..))
    }

    /// The reason of the broker's refusal.
    pub(super) fn refused_with(&self) -> Option<u8> {
        match self {
            Self::Refused(said) => Some(said.code),
            _ => None,
        }
    }

    /// Whether another version of MQTT may be taken.
    pub(super) fn may_be_the_version(&self) -> bool {
        match self {
            Self::Refused(said) => matches!(said.code, 0x81 | 0x82 | 0x84),
            Self::NoGreeting | Self::NotABroker | Self::Protocol(_) => true,
            _ => false,
        }
    }

    /// Whether an address answered CONNECT with nothing.
    pub(super) fn is_silent_greeting(&self) -> bool {
        self.any(&|error| matches!(error, Self::Timeout("MQTT")))
    }

    /// Whether the broker did not free packet ids.
    pub(super) fn is_unreleased(&self) -> bool {
        self.any(&|error| matches!(error, Self::Unreleased))
    }

    /// Whether the broker closed the connection when it was to free packet ids.
    pub(super) fn is_closed_on_release(&self) -> bool {
        self.any(&|error| matches!(error, Self::ClosedOnRelease))
    }

    /// What went wrong while the broker was to free packet ids.
    pub(super) fn on_release(self) -> Self {
        match self.is_end() {
            true => Self::ClosedOnRelease,
            false => self,
        }
    }

    fn any(&self, is: &dyn Fn(&Self) -> bool) -> bool {
        match self {
            Self::Unreachable(tried) => tried.iter().any(|(_, error)| error.any(is)),
            error => is(error),
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Refused(said) => return refusal(said, f),
            Self::Ended(said) => {
                f.write_str("the broker ended the session: ")?;
                return because(said, f);
            }
            Self::NotSpoken(Version::V5, _) => {
                "the broker does not speak MQTT 5: set broker.version to \"auto\""
            }
            Self::NotSpoken(Version::V311, true) => {
                "the broker does not speak MQTT 3.1.1, and not 5 either: check the port in broker.url"
            }
            Self::NotSpoken(Version::V311, false) => {
                "the broker does not speak MQTT 3.1.1: set broker.version to \"auto\""
            }
            Self::NotABroker => {
                "what answers does not greet as an MQTT broker: check the port in broker.url"
            }
            Self::Unreleased => {
                "the broker does not free the packet ids of the session before: the next one begins without what \
                 the broker kept for us"
            }
            Self::ClosedOnRelease => {
                "the broker closed the connection when it was to free the packet ids of the session before; if it has \
                 no QoS 2, set delivery.qos = 1"
            }
            Self::NoRoom => "the broker does not confirm what it took long ago",
            Self::Unreachable(tried) => return unreachable(tried, f),
            Self::Timeout(what) => {
                return write!(f, "the broker did not answer in time ({what})");
            }
            Self::NoGreeting => {
                "the broker closed the connection before it answered CONNECT: are the port and the scheme of broker.url right \
                 (mqtts:// where the broker wants TLS), and what does its log say?"
            }
            Self::Closed => "the broker closed the connection",
            Self::Silent => "the broker does not answer any more",
            Self::Stuck => "the broker takes nothing",
            Self::WebSocket(why) => {
                return write!(
                    f,
                    "no WebSocket at the broker: {why}; check the port and the path in broker.url"
                );
            }
            Self::Configured(why) | Self::File(why) | Self::Protocol(why) | Self::Tls(why) => why,
            Self::Io(error) if is_end(error) => "the broker closed the connection",
            Self::Io(error) => match error.kind() {
                ErrorKind::ConnectionRefused => {
                    "nobody listens at the broker's address: does it run, and is broker.url right?"
                }
                ErrorKind::TimedOut => "the broker did not answer in time (TCP)",
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                    "there is no way to the broker: check the network of this machine, and broker.url"
                }
                _ => return error.fmt(f),
            },
        };
        f.write_str(text)
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
    )
}

fn refusal(said: &Said, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let text = match said.code {
        0x85 => "the broker refused the client id: check broker.client_id",
        0x86 => {
            "the broker refused the user name or password: check broker.username and broker.password_file"
        }
        0x87 => {
            "the broker says: not authorised; check broker.username, broker.password_file and its access list"
        }
        0x88 => "the broker is there but says that it takes nobody now",
        _ => {
            f.write_str("the broker refused the session: ")?;
            return because(said, f);
        }
    };
    f.write_str(text)?;
    quoted(said, f)
}

/// The meaning of a reason, its code, and the broker's own words.
fn because(said: &Said, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{} (0x{:02x})", meaning(said.code), said.code)?;
    quoted(said, f)
}

fn quoted(said: &Said, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match &said.words {
        Some(words) => write!(f, "; in its words: {words:?}"),
        None => Ok(()),
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        because(self, f)
    }
}

/// What all said, once; or what each said.
fn unreachable(tried: &[(SocketAddr, LinkError)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut said: Vec<(String, Vec<String>)> = Vec::new();
    for (address, error) in tried {
        let (address, error) = (address.to_string(), error.to_string());
        match said.iter_mut().find(|(other, _)| *other == error) {
            Some((_, addresses)) => addresses.push(address),
            None => said.push((error, vec![address])),
        }
    }
    match said.as_slice() {
        [(error, addresses)] if addresses.len() == 1 => f.write_str(error),
        [(error, addresses)] => write!(f, "{error} (tried {})", addresses.join(", ")),
        many => {
            for (n, (error, addresses)) in many.iter().enumerate() {
                let comma = if n == 0 { "" } else { "; " };
                write!(f, "{comma}{}: {error}", addresses.join(", "))?;
            }
            Ok(())
        }
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(error) => Self::Tls(tls(error)),
            None => Self::Io(error),
        }
    }
}

impl From<PacketError> for LinkError {
    fn from(error: PacketError) -> Self {
        match error {
            PacketError::Io(error) => error.into(),
            other => Self::Protocol(format!("the broker breaks the protocol: {other}")),
        }
    }
}

/// What a failure of TLS means, and which key mends it.
pub(super) fn tls(error: &rustls::Error) -> String {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(why) => certificate(why),
        Error::AlertReceived(alert) => self::alert(*alert),
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
            "what answers does not speak TLS: check the port in broker.url (8883 is usual for mqtts://)".into()
        }
        Error::PeerIncompatible(why) => incompatible(why),
        Error::NoCertificatesPresented => "the broker shows no certificate".into(),
        other => format!("TLS with the broker failed: {other}"),
    }
}

fn incompatible(why: &PeerIncompatible) -> String {
    format!(
        "the broker and this program have no TLS in common ({why:?}): the broker needs TLS 1.2 or 1.3"
    )
}

fn certificate(why: &CertificateError) -> String {
    let dated = |now: u64, what: &str, at: u64, mend: &str| {
        let when = |s: u64| date(s);
        format!(
            "the broker's certificate {what} {}, and the clock of this machine says {}: {mend}",
            when(at),
            when(now)
        )
    };
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the broker's certificate is from an authority that is not trusted here: set broker.ca_file to the certificate of that authority".into()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let names: Vec<String> = presented.iter().map(|name| plain_name(name)).collect();
            format!(
                "the broker's certificate is not for {}, but for {}: use a name of the certificate in broker.url",
                expected.to_str(),
                match names.is_empty() {
                    true => "no name at all".to_owned(),
                    false => names.join(", "),
                }
            )
        }
        CertificateError::NotValidForName => {
            "the broker's certificate is not for the name in broker.url: use a name of the certificate there".into()
        }
        CertificateError::ExpiredContext { time, not_after } => dated(
            time.as_secs(),
            "was good until",
            not_after.as_secs(),
            "renew it at the broker, or set this clock",
        ),
        CertificateError::NotValidYetContext { time, not_before } => dated(
            time.as_secs(),
            "is good from",
            not_before.as_secs(),
            "set this clock (`timedatectl` shows it), or the one that the certificate was made with",
        ),
        CertificateError::Expired => {
            "the broker's certificate is too old for the clock of this machine: renew it, or set this clock".into()
        }
        CertificateError::NotValidYet => {
            "the broker's certificate is not good yet by the clock of this machine: set this clock".into()
        }
        CertificateError::Revoked => {
            "the broker's certificate was revoked: it needs another one".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the broker's certificate is not made for a server: it needs the extended key usage serverAuth".into()
        }
        CertificateError::ApplicationVerificationFailure => {
            "the broker's certificate is not accepted".into()
        }
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "the broker shows the certificate of an authority as its own: it needs one of its own, signed by that authority".into()
        }
        other => format!("the broker's certificate cannot be used ({other:?}): it needs another one"),
    }
}

fn alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "the broker wants a client certificate: set broker.cert_file and broker.key_file".into()
        }
        AlertDescription::UnknownCA => {
            "the broker does not know the authority of our client certificate: check broker.cert_file, and the broker's list of authorities".into()
        }
        AlertDescription::CertificateExpired => {
            "the broker says that our client certificate is out of date: renew broker.cert_file, or set the broker's clock".into()
        }
        AlertDescription::CertificateRevoked => {
            "the broker says that our client certificate was revoked: broker.cert_file needs another one".into()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => {
            "the broker does not accept our client certificate: check broker.cert_file and broker.key_file".into()
        }
        AlertDescription::HandshakeFailure => {
            "the broker ends the TLS handshake: it may want a client certificate (broker.cert_file and broker.key_file), or an older TLS than 1.2".into()
        }
        AlertDescription::ProtocolVersion | AlertDescription::InsufficientSecurity => {
            "the broker has only an older TLS: it needs 1.2 or 1.3".into()
        }
        AlertDescription::UnrecognisedName => {
            "the broker has no certificate for the name in broker.url: use a name that it has".into()
        }
        other => format!("the broker ended TLS with the alert {other:?}"),
    }
}

/// webpki shows a name as its own type: `DnsName("hub")`.
fn plain_name(name: &str) -> String {
    let inside = name.split_once('(').map_or(name, |(_, rest)| rest);
    inside.trim_end_matches(')').trim_matches('"').to_owned()
}

fn date(seconds: u64) -> String {
    rfc3339(
        i64::try_from(seconds)
            .unwrap_or(i64::MAX)
            .saturating_mul(1_000),
    )
    .replace(".000", "")
}
