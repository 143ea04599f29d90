//! What a visitor gets for which path. Reads only: nothing here can change anything at the device.

use std::sync::Arc;

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use super::desk::{Ask, Desk};
use super::guard::{Admission, Claim, Guard};
use super::live::{self, Live};
use super::visit::{Reply, Stay};

/// Longer bodies are refused.
const MAX_BODY: usize = 1024;
/// How long whoever shows a wrong token waits for that word.
const WRONG_TOKEN_WAITS: std::time::Duration = std::time::Duration::from_secs(1);

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
/// The page, with a place for the demonstration's panel: `<!--panel-->`.
pub(crate) const INDEX: &str = include_str!("page/index.html");
const LOGIN: &str = include_str!("page/login.html");
const CSS: &str = include_str!("page/page.css");
const JS: &str = include_str!("page/page.js");
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// What is served in one place.
#[derive(Debug, Clone)]
pub struct Site {
    desk: Desk,
    guard: Arc<Guard>,
    live: Option<Live>,
    more: Option<Arc<dyn More>>,
}

/// What somebody else serves beside the page: the panel of the demonstration.
pub trait More: std::fmt::Debug + Send + Sync {
    /// The answer to a request; none for a path that it does not have.
    fn answer(&self, method: &Method, path: &str, headers: &HeaderMap, body: &[u8])
    -> Option<Told>;
}

/// An answer in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The status code.
    pub status: u16,
    /// The type of the text.
    pub kind: &'static str,
    /// The text.
    pub text: String,
}

impl Site {
    /// For a local socket: no page, and no questions asked.
    pub fn local(desk: Desk) -> Self {
        Self {
            desk,
            guard: Arc::new(Guard::open()),
            live: None,
            more: None,
        }
    }

    /// The page, and all that it reads.
    pub fn page(desk: Desk, guard: Guard, live: Live) -> Self {
        Self {
            desk,
            guard: Arc::new(guard),
            live: Some(live),
            more: None,
        }
    }

    /// With more beside it.
    pub fn with(mut self, more: Arc<dyn More>) -> Self {
        self.more = Some(more);
        self
    }
}

/// The answer to a request.
pub(super) async fn answer(request: Request<Incoming>, site: &Site, stay: Stay) -> Response<Reply> {
    let mut response = match route(request, site, stay).await {
        Ok(response) | Err(response) => response,
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// An answer as an error is one that nothing follows.
type Routed = Result<Response<Reply>, Response<Reply>>;

async fn route(request: Request<Incoming>, site: &Site, stay: Stay) -> Routed {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if let Some(refusal) = refusal(site, &head.headers, path) {
        return Ok(refusal);
    }
    if let Some(more) = &site.more {
        let body = match head.method {
            Method::POST => read(body).await?,
            _ => Vec::new(),
        };
        if let Some(told) = more.answer(&head.method, path, &head.headers, &body) {
            let status = StatusCode::from_u16(told.status).unwrap_or_default();
            return Ok(whole(status, told.kind, told.text));
        }
        if head.method == Method::POST {
            return Ok(whole(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n"));
        }
    } else if path == "/login" && head.method == Method::POST {
        return login(site, &read(body).await?).await;
    }
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return Ok(whole(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n"));
    }
    match (path, &site.live) {
        ("/status", _) => ask(site, Ask::Status, JSON).await,
        ("/past", _) => ask(site, Ask::Past, JSON).await,
        ("/metrics", _) => {
            ask(
                site,
                Ask::Metrics,
                "text/plain; version=0.0.4; charset=utf-8",
            )
            .await
        }
        ("/healthz", _) => ask(site, Ask::Health, TEXT).await,
        ("/frame", None) => {
            let after = head
                .uri
                .query()
                .and_then(|query| query.strip_prefix("after="));
            let after = after.and_then(|after| after.parse().ok()).unwrap_or(0);
            ask(site, Ask::Frame(after), JSON).await
        }
        ("/", Some(_)) => Ok(whole(StatusCode::OK, HTML, INDEX)),
        ("/login", Some(_)) => Ok(whole(StatusCode::OK, HTML, LOGIN)),
        ("/page.css", Some(_)) => Ok(whole(StatusCode::OK, "text/css; charset=utf-8", CSS)),
        ("/page.js", Some(_)) => Ok(whole(StatusCode::OK, "text/javascript; charset=utf-8", JS)),
        ("/stream", Some(live)) => watch(live, stay).await,
        _ => Ok(whole(
            StatusCode::NOT_FOUND,
            TEXT,
            "there are /, /status, /past, /metrics and /healthz\n",
        )),
    }
}

/// What a request gets that is not let in.
fn refusal(site: &Site, headers: &HeaderMap, path: &str) -> Option<Response<Reply>> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let claim = Claim {
        host: headers
            .get(header::HOST)
            .map(|host| host.to_str().unwrap_or("?")),
        origin: headers
            .get(header::ORIGIN)
            .map(|from| from.to_str().unwrap_or("?")),
        authorization: text(header::AUTHORIZATION),
        cookie: text(header::COOKIE),
    };
    // What one needs to show the token has no secrets.
    let is_for_all = matches!(path, "/login" | "/page.css");
    match site.guard.admit(claim) {
        Admission::Granted => None,
        Admission::TokenWanted if is_for_all => None,
        Admission::TokenWanted if path == "/" => Some(elsewhere("/login", None)),
        Admission::TokenWanted => {
            let text =
                "the token is wanted: `Authorization: Bearer TOKEN`, or open / in a browser\n";
            let mut response = whole(StatusCode::UNAUTHORIZED, TEXT, text);
            let bearer = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, bearer);
            Some(response)
        }
        Admission::Refused(why) => Some(whole(StatusCode::FORBIDDEN, TEXT, format!("{why}\n"))),
    }
}

async fn ask(site: &Site, ask: Ask, kind: &'static str) -> Routed {
    Ok(match site.desk.ask(ask).await {
        Some(answer) => {
            let status = match answer.is_good {
                true => StatusCode::OK,
                false => StatusCode::SERVICE_UNAVAILABLE,
            };
            whole(status, kind, answer.text.as_bytes().to_vec())
        }
        None => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            whole(
                status,
                TEXT,
                "nightlight does not answer; it may be stopping\n",
            )
        }
    })
}

async fn watch(live: &Live, stay: Stay) -> Routed {
    let Some(frames) = live.watch().await else {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return Ok(whole(status, TEXT, "too many viewers; come again later\n"));
    };
    stay.watches();
    let reply = Reply::Live {
        frames,
        hello: Some(live::hello()),
        stay,
    };
    Ok(made(StatusCode::OK, "text/event-stream", reply))
}

/// `token=...`, as a form sends it.
async fn login(site: &Site, body: &[u8]) -> Routed {
    let body = String::from_utf8_lossy(body);
    let token = body.split('&').find_map(|pair| pair.strip_prefix("token="));
    let token = unescaped(token.unwrap_or_default());
    if site.guard.knows(&token) {
        return Ok(elsewhere("/", site.guard.set_cookie()));
    }
    tokio::time::sleep(WRONG_TOKEN_WAITS).await;
    let again = LOGIN.replace(
        "<!--wrong-->",
        "<p role=\"alert\">That is not the token.</p>",
    );
    Ok(whole(StatusCode::FORBIDDEN, HTML, again))
}

/// The text of a form's field: `+` is a space and `%41` is `A`.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, behind @ ..] = rest {
        rest = behind;
        let escaped = behind.get(..2).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        match (byte, escaped) {
            (b'+', _) => bytes.push(b' '),
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = behind.get(2..).unwrap_or_default();
            }
            _ => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The body, if it is short.
async fn read(mut body: Incoming) -> Result<Vec<u8>, Response<Reply>> {
    let mut bytes = Vec::new();
    loop {
        let next =
            std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context));
        let too_much = || whole(StatusCode::PAYLOAD_TOO_LARGE, TEXT, "too long\n");
        match next.await {
            None => return Ok(bytes),
            Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(_)) => return Err(whole(StatusCode::BAD_REQUEST, TEXT, "cut off\n")),
        }
        if bytes.len() > MAX_BODY {
            return Err(too_much());
        }
    }
}

fn whole(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Reply> {
    made(status, kind, Reply::Whole(Some(text.into())))
}

fn elsewhere(path: &'static str, cookie: Option<String>) -> Response<Reply> {
    let mut response = whole(StatusCode::SEE_OTHER, TEXT, "");
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, HeaderValue::from_static(path));
    let cookie = cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok());
    if let Some(cookie) = cookie {
        headers.insert(header::SET_COOKIE, cookie);
    }
    response
}

fn made(status: StatusCode, kind: &'static str, reply: Reply) -> Response<Reply> {
    let mut response = Response::new(reply);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_says_what_was_typed() {
        for (form, typed) in [
            ("abc", "abc"),
            ("a+b%2B%20", "a b+ "),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz1", "%zz1"),
            ("%C3%BC", "ü"),
        ] {
            assert_eq!(unescaped(form), typed, "{form}");
        }
    }

    #[test]
    fn the_page_is_small_and_needs_nobody_else() {
        const { assert!(INDEX.len() + LOGIN.len() + CSS.len() + JS.len() <= 60_000) };
        for text in [INDEX, LOGIN, CSS, JS] {
            for foreign in ["http://", "https://", "//cdn", "@import"] {
                let known = text.replace("http://www.w3.org/", "");
                assert!(!known.contains(foreign), "{foreign}");
            }
        }
    }
}
