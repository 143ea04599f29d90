//! The files of a try to connect, read on a thread that nobody waits for: password, certificates, and the
//! system's own. A disk or a mount can hang for as long as it likes, and neither the light nor a stop may.
//!
//! Read anew for each try, so that a renewed file needs no restart. One that hangs is not asked a second time
//! while it does.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::watch;

use super::tls;
use crate::config::Broker;

/// A try to connect waits so long for its files.
const WITHIN: Duration = Duration::from_secs(10);
/// More than any password, and than any bundle of certificates.
const MOST: u64 = 4 << 20;
/// The parser of certificates needs more than a lookup does.
const STACK: usize = 1024 * 1024;

/// What opens the broker's door.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    /// With a scheme that is encrypted.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// User and password.
    pub(super) login: Option<(String, String)>,
}

type Answer = Result<Keys, String>;

/// The files of one broker.
#[derive(Debug, Default)]
pub(super) struct Files {
    reading: Option<watch::Receiver<Option<Answer>>>,
}

/// One try's share in a reading.
#[derive(Debug)]
pub(super) struct Pending {
    answer: Option<watch::Receiver<Option<Answer>>>,
}

impl Files {
    /// For one try to connect.
    pub(super) fn begin(&mut self, broker: &Broker) -> Pending {
        let hangs = |answer: &mut watch::Receiver<Option<Answer>>| {
            answer.has_changed().is_ok() && answer.borrow().is_none()
        };
        let is_plain = !broker.scheme.is_tls() && broker.password_file.is_none();
        if is_plain {
            return Pending { answer: None };
        }
        if !self.reading.as_mut().is_some_and(hangs) {
            self.reading = Some(start(broker.clone()));
        }
        Pending {
            answer: self.reading.clone(),
        }
    }
}

fn start(broker: Broker) -> watch::Receiver<Option<Answer>> {
    let (sender, answer) = watch::channel(None);
    // Without a thread the sender is dropped, and so is the try.
    let _ = thread::Builder::new()
        .name("files".into())
        .stack_size(STACK)
        .spawn(move || {
            sender.send_replace(Some(read_all(&broker)));
        });
    answer
}

impl Pending {
    /// What the files say.
    ///
    /// # Errors
    /// One cannot be used, or does not answer, in words.
    pub(super) async fn keys(self, broker: &Broker) -> Result<Keys, String> {
        let Some(mut answer) = self.answer else {
            return Ok(Keys {
                tls: None,
                login: login(broker, String::new()),
            });
        };
        let asked = tokio::time::timeout(WITHIN, answer.wait_for(Option::is_some)).await;
        match asked {
            Ok(Ok(answer)) => answer.clone().unwrap_or_else(|| Ok(Keys::default())),
            Ok(Err(_)) => Err("the system has no thread to read the broker's files with".into()),
            Err(_) => Err(format!(
                "the files of the broker (password_file, ca_file, cert_file, key_file) do not answer within {} s: \
                 look for a disk or a mount that hangs",
                WITHIN.as_secs()
            )),
        }
    }
}

fn login(broker: &Broker, password: String) -> Option<(String, String)> {
    let username = broker.username.clone()?;
    Some((username, password))
}

fn read_all(broker: &Broker) -> Answer {
    let password = match &broker.password_file {
        Some(file) => {
            let text = read(file).and_then(|bytes| {
                String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))
            });
            let text = text.map_err(|error| {
                format!(
                    "{} (broker.password_file) cannot be read: {error}",
                    file.display()
                )
            })?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        None => String::new(),
    };
    let tls = match broker.scheme.is_tls() {
        true => Some(tls::client(broker)?),
        false => None,
    };
    Ok(Keys {
        tls,
        login: login(broker, password),
    })
}

/// The whole file; one without an end is an error.
pub(super) fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MOST + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MOST {
        true => Err(io::Error::other("it is larger than 4 MiB")),
        false => Ok(bytes),
    }
}
