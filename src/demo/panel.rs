//! The control panel on the demonstration's page: what it shows, and what it asks for.
//!
//! Served by `demo` alone, beside the page of the daemon, which knows nothing of it. What changes anything is a
//! POST that names this page as its origin and shows the token that the page was made with, so that neither a
//! page of another site nor another user of this machine who has not opened the page can. Called by `io::web`.

use hyper::header::ORIGIN;
use hyper::{HeaderMap, Method};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::act::{Act, MAX_LIGHT};
use super::stage::Shown;
use crate::io::web::routes::{INDEX, More, Told};

const HTML: &str = include_str!("page/panel.html");
const JS: &str = include_str!("page/panel.js");
/// Where the panel is asked and told.
const PATH: &str = "/panel";
const TOKEN: &str = "x-panel-token";

/// The panel.
#[derive(Debug)]
pub(super) struct Panel {
    page: String,
    token: String,
    acts: mpsc::UnboundedSender<Act>,
    shown: watch::Receiver<Shown>,
}

impl Panel {
    /// A panel with a token of its own.
    pub(super) fn new(acts: mpsc::UnboundedSender<Act>, shown: watch::Receiver<Shown>) -> Self {
        let token = Uuid::new_v4().simple().to_string();
        let panel = HTML
            .replace("{{token}}", &token)
            .replace("{{most}}", &format!("{MAX_LIGHT:.0}"));
        let empty = "<section id=\"panel\" hidden aria-labelledby=\"panel-title\"></section>";
        let page = INDEX
            .replace(empty, &panel)
            .replace("<!--panel-->", "<script src=\"/panel.js\"></script>");
        Self {
            page,
            token,
            acts,
            shown,
        }
    }

    fn shown(&self) -> String {
        let text = serde_json::to_string(&*self.shown.borrow());
        text.unwrap_or_default()
    }

    fn do_it(&self, headers: &HeaderMap, body: &[u8]) -> Told {
        let refused = |status, why: &str| told(status, "text/plain; charset=utf-8", why.to_owned());
        // Where there is an origin, the guard has seen that it is this page.
        if !headers.contains_key(ORIGIN) {
            return refused(403, "only the page itself may ask for this\n");
        }
        let given = headers.get(TOKEN).map(|token| token.as_bytes());
        if given != Some(self.token.as_bytes()) {
            return refused(
                403,
                "load the page again: its token is of another demonstration\n",
            );
        }
        match Act::parse(&String::from_utf8_lossy(body)) {
            Some(act) if self.acts.send(act).is_ok() => told(202, "application/json", self.shown()),
            Some(_) => refused(410, "the demonstration is over\n"),
            None => refused(400, "there is no such thing to do\n"),
        }
    }
}

impl More for Panel {
    fn answer(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Option<Told> {
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        match path {
            "/" if is_read => Some(told(200, "text/html; charset=utf-8", self.page.clone())),
            "/panel.js" if is_read => {
                Some(told(200, "text/javascript; charset=utf-8", JS.to_owned()))
            }
            PATH if is_read => Some(told(200, "application/json", self.shown())),
            PATH if *method == Method::POST => Some(self.do_it(headers, body)),
            _ => None,
        }
    }
}

fn told(status: u16, kind: &'static str, text: String) -> Told {
    Told { status, kind, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_page_can_ask_for_something() {
        let (sender, mut acts) = mpsc::unbounded_channel();
        let (_show, shown) = watch::channel(Shown::default());
        let panel = Panel::new(sender, shown);
        let page = panel
            .answer(&Method::GET, "/", &HeaderMap::new(), b"")
            .unwrap();
        assert!(page.text.contains(&panel.token) && page.text.contains("/panel.js"));
        assert!(!page.text.contains("<!--panel-->") && !page.text.contains("{{"));
        let ask = |origin: bool, token: &str, body: &str| {
            let mut headers = HeaderMap::new();
            if origin {
                headers.insert(ORIGIN, "http://localhost:1".parse().unwrap());
            }
            headers.insert(TOKEN, token.parse().unwrap());
            let told = panel.answer(&Method::POST, PATH, &headers, body.as_bytes());
            told.unwrap().status
        };
        assert_eq!(ask(false, &panel.token, "pull"), 403);
        assert_eq!(ask(true, "0123456789abcdef", "pull"), 403);
        assert_eq!(ask(true, &panel.token, "dance"), 400);
        assert!(acts.try_recv().is_err());
        assert_eq!(ask(true, &panel.token, "pull"), 202);
        assert_eq!(acts.try_recv(), Ok(Act::Pull));
        drop(acts);
        assert_eq!(ask(true, &panel.token, "plug"), 410);
        let none = panel.answer(&Method::POST, "/", &HeaderMap::new(), b"");
        assert_eq!(none, None);
    }
}
