//! `[web]`: where the live page is, and the token that it wants.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nightlight_common::config::Layers;

use super::keys::{WEB_LISTEN, WEB_TOKEN_FILE};
use crate::io::web::guard::MIN_TOKEN;

/// Where the page is.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The address and port.
    pub listen: SocketAddr,
    /// What a visitor has to know; always there where other machines can reach the page.
    pub token: Option<Token>,
}

/// A secret that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Deref for Token {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The page; none when it is off, or wrong, which is noted as a problem.
pub(super) fn page(layers: &mut Layers) -> Option<Page> {
    let file = layers.path(&WEB_TOKEN_FILE);
    let token = file.and_then(|file| token(layers, &file));
    let text = layers.optional(&WEB_LISTEN)?;
    let Ok(listen) = text.parse::<SocketAddr>() else {
        let (_, port) = text.rsplit_once(':').unwrap_or(("", &text));
        let port = port.parse().ok().filter(|port: &u16| *port > 0);
        let port = port.unwrap_or(8080);
        layers.problem(
            &WEB_LISTEN,
            format!(
                "is not an address and a port; write \"127.0.0.1:{port}\", or \"\" for no page"
            ),
        );
        return None;
    };
    if !listen.ip().is_loopback() && token.is_none() && layers.are_good(&[&WEB_TOKEN_FILE]) {
        layers.problem(
            &WEB_LISTEN,
            "lets other machines see the page, so it wants a token: write at least 16 characters to a file \
             and name that with web.token_file, or write 127.0.0.1 to keep the page here",
        );
    }
    Some(Page { listen, token })
}

fn token(layers: &mut Layers, file: &Path) -> Option<Token> {
    let shown = file.display();
    let content = match fs::read_to_string(file) {
        Ok(content) => content,
        Err(error) => {
            layers.problem(&WEB_TOKEN_FILE, format!("{shown} cannot be read: {error}"));
            return None;
        }
    };
    let token = content.lines().next().unwrap_or_default().trim();
    if token.chars().count() < MIN_TOKEN {
        layers.problem(
            &WEB_TOKEN_FILE,
            format!(
                "the first line of {shown} is shorter than {MIN_TOKEN} characters, which can be guessed; \
                 `openssl rand -hex 16` makes a good one"
            ),
        );
        return None;
    }
    let mode = fs::metadata(file).map_or(0, |data| data.permissions().mode());
    if mode & 0o004 != 0 {
        let text = format!("every user of this machine can read {shown}; chmod o-r it");
        layers.warning(&WEB_TOKEN_FILE, text);
    }
    Some(Token(token.to_owned()))
}
