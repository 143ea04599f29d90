//! The server, seen from outside: the page of the fleet and of a device, JSON below `/api`, records as a stream,
//! `/metrics`. It reads the database over connections of its own and changes nothing but switches by hand.
//!
//! - `api`: the answers
//! - `records`, `live`: those that take long
//! - `metrics`: for Prometheus
//! - `readers`: connections
//!
//! Who may ask, and how much, is checked before (nightlight-common's `http`). The shell starts it.

mod api;
mod live;
mod metrics;
mod readers;
mod records;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use nightlight_common::http::{self, Access, Body, Limits};
use percent_encoding::percent_decode_str;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use self::api::Api;
use crate::config::Config;
use crate::stats::Stats;

/// Visitors.
const LIMITS: Limits = Limits {
    connections: 128,
    head: Duration::from_secs(10),
    // A month of a device's records over a slow line; who looks for longer connects again.
    connection: Duration::from_secs(3_600),
};
const MAX_BODY: usize = 1_024;
const SCRIPT: &str = "text/javascript; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// Where to serve, and whom.
#[derive(Debug, Clone)]
pub struct Web {
    /// The address.
    pub listen: SocketAddr,
    /// Who may ask.
    pub access: Access,
}

/// Serves the page until the handle is aborted. An address that cannot be had is told and left out: records and
/// LEDs do not depend on it.
pub(crate) async fn start(config: &Config, stats: Arc<Stats>) -> Option<JoinHandle<()>> {
    let Web { listen, access } = config.web.clone()?;
    let listener = match TcpListener::bind(listen).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("no page on {listen}: {error}; check web.listen");
            return None;
        }
    };
    tracing::info!("the page is at http://{listen}/");
    let api = Api::new(config, stats);
    let page = move |request| {
        let api = api.clone();
        async move { route(&api, request).await }
    };
    Some(tokio::spawn(http::serve(listener, LIMITS, access, page)))
}

async fn route(api: &Api, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let path: Option<Vec<String>> = head.uri.path().split('/').skip(1).map(decoded).collect();
    let Some(path) = path else {
        return http::text(StatusCode::BAD_REQUEST, "the path is no UTF-8\n");
    };
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    if head.method == Method::POST {
        return match path.as_slice() {
            ["api", kind @ ("devices" | "groups"), name, "switch"] => match small(body).await {
                Some(body) => api.switch(kind, name, &body).await,
                None => http::text(StatusCode::PAYLOAD_TOO_LARGE, "that is too long\n"),
            },
            _ => http::text(StatusCode::NOT_FOUND, "only switches take a POST\n"),
        };
    }
    if ![Method::GET, Method::HEAD].contains(&head.method) {
        return http::text(
            StatusCode::METHOD_NOT_ALLOWED,
            "GET, and POST for switches\n",
        );
    }
    let file = |kind, text: &'static str| http::answer(StatusCode::OK, kind, text);
    match path.as_slice() {
        [""] => file(HTML, include_str!("../../web/fleet.html")),
        ["device", _] => file(HTML, include_str!("../../web/device.html")),
        ["style.css"] => file(
            "text/css; charset=utf-8",
            include_str!("../../web/style.css"),
        ),
        ["common.js"] => file(SCRIPT, include_str!("../../web/common.js")),
        ["fleet.js"] => file(SCRIPT, include_str!("../../web/fleet.js")),
        ["device.js"] => file(SCRIPT, include_str!("../../web/device.js")),
        ["healthz"] => api.health(),
        ["metrics"] => api.metrics().await,
        ["api", "devices"] => api.devices(&query).await,
        ["api", "curves"] => api.curves().await,
        ["api", "live"] => api.live(&query),
        ["api", "devices", device] => api.device(device).await,
        ["api", "devices", device, "plot"] => api.plot(device, &query).await,
        ["api", "devices", device, "records"] => api.records(device, &query).await,
        _ => http::text(StatusCode::NOT_FOUND, "there is nothing here\n"),
    }
}

fn decoded(part: &str) -> Option<String> {
    percent_decode_str(part).decode_utf8().ok().map(Into::into)
}

/// A body that is as small as it should be.
async fn small(body: Incoming) -> Option<Vec<u8>> {
    let limited = http_body_util::Limited::new(body, MAX_BODY);
    let read = tokio::time::timeout(LIMITS.head, limited.collect()).await;
    Some(read.ok()?.ok()?.to_bytes().to_vec())
}
