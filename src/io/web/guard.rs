//! Who may see the page: the checks of `Host`, `Origin`, token and cookie.
//!
//! Pure but for the machine's name. A page on the network can be reached by what a browser was lured to, so the
//! name that it asked for has to be one of this machine, and a request that another page made is refused. Where
//! other machines can reach it, a token is wanted too: as `Authorization: Bearer`, or typed once into the page,
//! which leaves a cookie made from it. The cookie is no secret of its own and outlives a restart.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ring::hmac;

/// The cookie's name.
pub(crate) const COOKIE: &str = "nightlight";
/// Shorter tokens can be guessed.
pub const MIN_TOKEN: usize = 16;
/// What is signed with the token to make the cookie, and to compare tokens in the same time whatever they are.
const SIGNED: &[u8] = b"nightlight page, 1";
/// What routers add to the name of a machine.
const SUFFIXES: [&str; 6] = [
    "",
    ".local",
    ".lan",
    ".home.arpa",
    ".fritz.box",
    ".internal",
];

/// Whom the page lets in.
pub struct Guard {
    /// Everybody who can open the socket.
    is_open: bool,
    /// Whether other machines can reach it.
    is_public: bool,
    host: String,
    token: Option<hmac::Key>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("is_public", &self.is_public)
            .field("wants_token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

/// What a request says of itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Claim<'a> {
    /// `Host`.
    pub host: Option<&'a str>,
    /// `Origin`.
    pub origin: Option<&'a str>,
    /// `Authorization`.
    pub authorization: Option<&'a str>,
    /// `Cookie`.
    pub cookie: Option<&'a str>,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is answered.
    Granted,
    /// It has to show the token first.
    TokenWanted,
    /// It is refused, and why.
    Refused(&'static str),
}

impl Guard {
    /// For a socket that file permissions guard.
    pub fn open() -> Self {
        Self {
            is_open: true,
            is_public: false,
            host: String::new(),
            token: None,
        }
    }

    /// For a page on `address`.
    pub fn new(address: SocketAddr, token: Option<&str>) -> Self {
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy().to_ascii_lowercase();
        Self {
            is_open: false,
            is_public: !address.ip().is_loopback(),
            host,
            token: token.map(|token| hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes())),
        }
    }

    /// What becomes of a request that says so of itself.
    pub(crate) fn admit(&self, claim: Claim) -> Admission {
        if self.is_open {
            return Admission::Granted;
        }
        if let Err(why) = self.check_site(claim) {
            return Admission::Refused(why);
        }
        let Some(key) = &self.token else {
            // A page that other machines can reach never has no token: the configuration refuses that.
            return match self.is_public {
                true => Admission::Refused("this page has no token"),
                false => Admission::Granted,
            };
        };
        let bearer = claim
            .authorization
            .and_then(|text| text.strip_prefix("Bearer "));
        let is_known = bearer.is_some_and(|token| self.knows(token))
            || claim.cookie.is_some_and(|cookies| has_cookie(key, cookies));
        match is_known {
            true => Admission::Granted,
            false => Admission::TokenWanted,
        }
    }

    /// Whether the request was meant for this machine, and no page of another made it.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_site(&self, claim: Claim) -> Result<(), &'static str> {
        if let Some(host) = claim.host
            && !self.is_own(host)
        {
            return Err("this is not a name of this machine; use its address or its own name");
        }
        if let Some(origin) = claim.origin {
            let site = origin.split_once("://").map(|(_, site)| site);
            let is_same = site.is_some_and(|site| {
                claim
                    .host
                    .is_some_and(|host| host.eq_ignore_ascii_case(site))
            });
            if !is_same {
                return Err("a page of another site may not ask");
            }
        }
        Ok(())
    }

    /// Whether this is the token.
    pub fn knows(&self, token: &str) -> bool {
        let offered = hmac::Key::new(hmac::HMAC_SHA256, token.trim().as_bytes());
        let offered = hmac::sign(&offered, SIGNED);
        let verified = |key| hmac::verify(key, SIGNED, offered.as_ref()).is_ok();
        self.token.as_ref().is_some_and(verified)
    }

    /// The header that leaves the cookie, for who has shown the token.
    pub(crate) fn set_cookie(&self) -> Option<String> {
        let key = self.token.as_ref()?;
        let value = hex(hmac::sign(key, SIGNED).as_ref());
        Some(format!(
            "{COOKIE}={value}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Strict"
        ))
    }

    /// `Host`, with or without a port. An address is no name that somebody else could point here.
    fn is_own(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        match name.parse::<IpAddr>() {
            Ok(address) => self.is_public || address.is_loopback(),
            Err(_) => {
                let is_named = |suffix: &&str| {
                    !self.host.is_empty() && name == format!("{}{suffix}", self.host)
                };
                name == "localhost" || self.is_public && SUFFIXES.iter().any(is_named)
            }
        }
    }
}

fn has_cookie(key: &hmac::Key, cookies: &str) -> bool {
    cookies
        .split(';')
        .filter_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
        .filter_map(unhex)
        .any(|tag| hmac::verify(key, SIGNED, &tag).is_ok())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|sign| sign.to_digit(16).map(|digit| digit as u8))
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(
        digits
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn page(address: &str, token: Option<&str>) -> Guard {
        Guard {
            host: "hallway".into(),
            ..Guard::new(address.parse().unwrap(), token)
        }
    }

    fn host(host: &str) -> Claim<'_> {
        Claim {
            host: Some(host),
            ..Claim::default()
        }
    }

    #[test]
    fn on_loopback_the_name_has_to_be_of_loopback() {
        let guard = page("127.0.0.1:8080", None);
        for good in [
            "127.0.0.1:8080",
            "localhost:9000",
            "LOCALHOST",
            "[::1]:8080",
        ] {
            assert_eq!(guard.admit(host(good)), Admission::Granted, "{good}");
        }
        // An HTTP/1.0 client names none; every browser does.
        assert_eq!(guard.admit(Claim::default()), Admission::Granted);
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "hallway",
            "192.168.1.5",
            "",
            "[",
        ] {
            assert!(
                matches!(guard.admit(host(bad)), Admission::Refused(_)),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_page_of_another_site_may_not_ask() {
        let guard = page("127.0.0.1:8080", None);
        let claim = |origin| Claim {
            origin: Some(origin),
            ..host("localhost:8080")
        };
        assert_eq!(
            guard.admit(claim("http://localhost:8080")),
            Admission::Granted
        );
        for bad in ["http://evil.example", "null", "", "http://localhost:9999"] {
            assert!(
                matches!(guard.admit(claim(bad)), Admission::Refused(_)),
                "{bad}"
            );
        }
    }

    #[test]
    fn elsewhere_the_token_lets_in_and_so_does_the_cookie_made_from_it() {
        let guard = page("0.0.0.0:8080", Some(TOKEN));
        let at = host("192.168.1.5:8080");
        assert_eq!(guard.admit(at), Admission::TokenWanted);
        for name in ["hallway", "hallway.local:8080", "hallway.fritz.box."] {
            assert_eq!(guard.admit(host(name)), Admission::TokenWanted, "{name}");
        }
        let not_ours = guard.admit(host("hallway.evil.example"));
        assert!(matches!(not_ours, Admission::Refused(_)));
        let bearer = format!("Bearer {TOKEN}");
        let authorized = |text| Claim {
            authorization: Some(text),
            ..at
        };
        assert_eq!(guard.admit(authorized(&bearer)), Admission::Granted);
        for bad in ["Bearer ", "Bearer 0123456789abcdeg", TOKEN, "Basic eA=="] {
            assert_eq!(
                guard.admit(authorized(bad)),
                Admission::TokenWanted,
                "{bad}"
            );
        }
        let header = guard.set_cookie().unwrap();
        let pair = header.split(';').next().unwrap();
        assert!(!header.contains(TOKEN));
        let both = format!("other=1; {pair}");
        let cookie = |text| Claim {
            cookie: Some(text),
            ..at
        };
        assert_eq!(guard.admit(cookie(&both)), Admission::Granted);
        let other = page("0.0.0.0:8080", Some("another token, as long"));
        assert_eq!(other.admit(cookie(&both)), Admission::TokenWanted);
        for bad in ["nightlight=", "nightlight=zz", "nightlight=ü", "nightlight"] {
            assert_eq!(guard.admit(cookie(bad)), Admission::TokenWanted, "{bad}");
        }
    }

    #[test]
    fn a_public_page_without_a_token_lets_nobody_in() {
        let guard = page("0.0.0.0:8080", None);
        assert!(matches!(
            guard.admit(host("192.168.1.5")),
            Admission::Refused(_)
        ));
    }
}
