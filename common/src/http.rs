//! What stands around every page of ours: limits for visitors, and who may ask for what.
//!
//! [`serve`] gives each connection a bounded time and a bounded place; [`Access`] checks token, `Host` and
//! `Origin` before a page is made. Pages themselves are their program's. On hyper: docs/decisions/0031.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A token is at least so long.
const MIN_TOKEN: usize = 16;
/// Nothing from elsewhere is loaded, framed or guessed.
const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
];

/// What a visitor may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait until one ends.
    pub connections: usize,
    /// For a whole request head; a connection between two requests ends after it too.
    pub head: Duration,
    /// For a whole connection, however much is asked on it.
    pub connection: Duration,
}

/// Who may ask.
#[derive(Debug, Clone)]
pub struct Access {
    token: Option<String>,
    is_loopback: bool,
    hosts: Vec<String>,
}

impl Access {
    /// For a listener at `listen`. With a token every request needs it; without one only loopback is served, and
    /// nothing can be changed. `hosts` are names besides loopback's by which a proxy serves it.
    ///
    /// # Errors
    /// An address that others can reach needs a token.
    pub fn new(
        listen: SocketAddr,
        token: Option<String>,
        hosts: Vec<String>,
    ) -> Result<Self, String> {
        let is_loopback = listen.ip().is_loopback();
        if !is_loopback && token.is_none() {
            return Err(format!(
                "{listen} can be reached from elsewhere: put a token of at least {MIN_TOKEN} characters into a file and name it in web.token_file"
            ));
        }
        Ok(Self {
            token,
            is_loopback,
            hosts,
        })
    }

    /// Whether this request may be answered.
    ///
    /// # Errors
    /// The answer that it gets instead.
    pub fn check(&self, request: &Parts) -> Result<(), Box<Response<Body>>> {
        let Some(host) = one(request, header::HOST) else {
            return Err(refused(
                StatusCode::BAD_REQUEST,
                "one Host header is needed\n",
            ));
        };
        if !self.is_served(name_of(host)) {
            // A page of another site whose name was made to point here.
            return Err(refused(
                StatusCode::MISDIRECTED_REQUEST,
                "this name is not served here; if it should be, add it to web.hosts\n",
            ));
        }
        if let Some(token) = &self.token
            && !given(request).is_some_and(|given| is_same(&given, token))
        {
            let mut answer = text(StatusCode::UNAUTHORIZED, "a token is needed\n");
            let ask = HeaderValue::from_static("Basic realm=\"nightlight\", charset=\"UTF-8\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
            return Err(Box::new(answer));
        }
        if [Method::GET, Method::HEAD].contains(&request.method) {
            return Ok(());
        }
        if self.token.is_none() {
            return Err(refused(
                StatusCode::FORBIDDEN,
                "nothing can be changed here without a token; see web.token_file\n",
            ));
        }
        let own = ["http://", "https://"].map(|scheme| format!("{scheme}{host}"));
        let origin = request.headers.get(header::ORIGIN);
        let is_own_origin =
            origin.is_none_or(|origin| own.iter().any(|own| origin == own.as_str()));
        let site = request.headers.get("sec-fetch-site");
        let is_own_site = site.is_none_or(|site| site == "same-origin" || site == "none");
        match is_own_origin && is_own_site {
            true => Ok(()),
            false => Err(refused(
                StatusCode::FORBIDDEN,
                "another site's page may change nothing here\n",
            )),
        }
    }

    /// Whether anything can be changed: only with a token.
    pub fn can_change(&self) -> bool {
        self.token.is_some()
    }

    fn is_served(&self, name: &str) -> bool {
        let is_known = ["localhost", "127.0.0.1", "[::1]"].contains(&name)
            || self
                .hosts
                .iter()
                .any(|host| host.eq_ignore_ascii_case(name));
        // Who comes from elsewhere has the token, which a strange page has not.
        is_known || (!self.is_loopback && self.hosts.is_empty())
    }
}

/// The token in the first line of a file.
///
/// # Errors
/// What is wrong with it, in words that do not repeat it.
pub fn token(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        format!(
            "{} cannot be read: {error}; check the path and its rights",
            file.display()
        )
    })?;
    let token = text.lines().next().unwrap_or_default().trim();
    let is_good = token.len() >= MIN_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic());
    match is_good {
        true => Ok(token.to_owned()),
        false => Err(format!(
            "the first line of {} is no token; write at least {MIN_TOKEN} letters and digits, such as those of `openssl rand -hex 16`",
            file.display()
        )),
    }
}

/// An answer of plain text.
pub fn text(status: StatusCode, text: &str) -> Response<Body> {
    answer(
        status,
        "text/plain; charset=utf-8",
        Bytes::copy_from_slice(text.as_bytes()),
    )
}

/// An answer of this kind.
pub fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

/// Serves `listener` until dropped: checks `access`, then asks `page`.
pub async fn serve<F>(
    listener: TcpListener,
    limits: Limits,
    access: Access,
    page: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limits.connections));
    let access = Arc::new(access);
    let mut connections = tokio::task::JoinSet::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(64 * 1024);
    // Only a closed semaphore gives none, and nobody closes it.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Out of descriptors, most likely: not worth more than a pause.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        // It would only be slower without.
        let _ = stream.set_nodelay(true);
        let (access, page) = (Arc::clone(&access), page.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (access, page) = (Arc::clone(&access), page.clone());
            async move {
                let (head, body) = request.into_parts();
                let mut answer = match access.check(&head) {
                    Ok(()) => page(Request::from_parts(head, body)).await,
                    Err(refusal) => *refusal,
                };
                for (name, value) in HEADERS {
                    let value = HeaderValue::from_static(value);
                    answer.headers_mut().entry(name).or_insert(value);
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = http.serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            let _place = place;
            // A visitor who leaves early, or says nothing, takes nothing from the others.
            let _ = tokio::time::timeout(limits.connection, connection).await;
        });
    }
}

fn refused(status: StatusCode, why: &str) -> Box<Response<Body>> {
    Box::new(text(status, why))
}

/// The only value of a header.
fn one(request: &Parts, name: header::HeaderName) -> Option<&str> {
    let mut values = request.headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// The token of a request: `Bearer`, or the password of `Basic`, which browsers ask people for.
fn given(request: &Parts) -> Option<Vec<u8>> {
    let value = one(request, header::AUTHORIZATION)?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = from_base64(rest.trim())?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    pair.get(colon + 1..).map(<[u8]>::to_vec)
}

/// Takes as long for a token that is nearly right as for any of its length.
fn is_same(given: &[u8], token: &str) -> bool {
    let token = token.as_bytes();
    let differences = given.iter().zip(token).fold(0, |sum, (a, b)| sum | (a ^ b));
    given.len() == token.len() && differences == 0
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn asked(access: &Access, method: &str, headers: &[(&str, &str)]) -> StatusCode {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        match access.check(&parts) {
            Ok(()) => StatusCode::OK,
            Err(answer) => answer.status(),
        }
    }

    fn at(listen: &str, token: Option<&str>, hosts: &[&str]) -> Result<Access, String> {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Access::new(listen.parse().unwrap(), token.map(str::to_owned), hosts)
    }

    #[test]
    fn loopback_is_open_to_read_and_only_by_its_own_names() {
        let access = at("127.0.0.1:80", None, &["lights.example"]).unwrap();
        for host in [
            "localhost:80",
            "127.0.0.1",
            "[::1]:8081",
            "Lights.Example:1",
        ] {
            assert_eq!(asked(&access, "GET", &[("host", host)]), 200, "{host}");
            assert_eq!(asked(&access, "POST", &[("host", host)]), 403, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "", "127.0.0.1:x"] {
            assert_eq!(asked(&access, "GET", &[("host", host)]), 421, "{host}");
        }
        assert_eq!(asked(&access, "GET", &[]), 400);
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(asked(&access, "GET", &twice), 400);
    }

    #[test]
    fn elsewhere_a_token_is_needed() {
        assert!(
            at("0.0.0.0:80", None, &[])
                .unwrap_err()
                .contains("web.token_file")
        );
        let access = at("0.0.0.0:80", Some(TOKEN), &[]).unwrap();
        let host = ("host", "server.lan:80");
        assert_eq!(asked(&access, "GET", &[host]), 401);
        // "any:0123456789abcdef"
        for good in [
            "Bearer 0123456789abcdef",
            "basic YW55OjAxMjM0NTY3ODlhYmNkZWY=",
        ] {
            assert_eq!(
                asked(&access, "GET", &[host, ("authorization", good)]),
                200,
                "{good}"
            );
        }
        for bad in [
            "Bearer 0123456789abcdee",
            "Bearer 0123456789abcdef0",
            "Bearer",
            "Basic !",
            "Basic MDEyMzQ1Njc4OWFiY2RlZg==",
            "Digest 0123456789abcdef",
        ] {
            assert_eq!(
                asked(&access, "GET", &[host, ("authorization", bad)]),
                401,
                "{bad}"
            );
        }
    }

    #[test]
    fn a_strange_page_changes_nothing() {
        let access = at("127.0.0.1:80", Some(TOKEN), &[]).unwrap();
        let post = |more: &[(&str, &str)]| {
            let mut headers = vec![
                ("host", "localhost:80"),
                ("authorization", "Bearer 0123456789abcdef"),
            ];
            headers.extend(more);
            asked(&access, "POST", &headers)
        };
        assert_eq!(post(&[]), 200);
        assert_eq!(
            post(&[
                ("origin", "http://localhost:80"),
                ("sec-fetch-site", "same-origin")
            ]),
            200
        );
        assert_eq!(post(&[("origin", "http://localhost:81")]), 403);
        assert_eq!(post(&[("origin", "null")]), 403);
        assert_eq!(post(&[("sec-fetch-site", "cross-site")]), 403);
    }

    #[test]
    fn a_short_token_is_none() {
        let file = std::env::temp_dir().join(format!("nightlight-token-{}", std::process::id()));
        for (text, good) in [
            ("0123456789abcdef\n", true),
            ("short\n", false),
            ("with a space in it\n", false),
            ("", false),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(token(&file).is_ok(), good, "{text}");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(token(&file).unwrap_err().contains("cannot be read"));
    }
}
