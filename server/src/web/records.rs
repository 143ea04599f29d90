//! Records of a span as a stream, page by page: as lines of JSON or comma separated, as `export` writes them.
//! What breaks off in the middle ends as an error, never as a shorter file.

use std::io;
use std::time::Duration;

use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::{Response, StatusCode};
use nightlight_common::http::{self, Body, Bytes};

use super::readers::Readers;
use crate::books::Form;
use crate::store::Fault;
use crate::store::read::{self, Span};

/// A visitor who takes nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Streams the records of a device.
pub(super) fn stream(readers: Readers, device: String, span: Span, form: Form) -> Response<Body> {
    let (sender, body) = Channel::<Bytes, io::Error>::new(2);
    tokio::spawn(async move {
        let mut out = Out(sender);
        match write(&readers, &device, &span, form, &mut out).await {
            Ok(()) => {}
            Err(Broken::Visitor) => out.0.abort(io::ErrorKind::TimedOut.into()),
            Err(Broken::Database(fault)) => {
                tracing::warn!("an export broke off: {}", fault.words());
                out.0.abort(io::Error::other("the database failed"));
            }
        }
    });
    let kind = match form {
        Form::Csv => "text/csv; charset=utf-8",
        Form::Lines => "application/x-ndjson",
    };
    let mut answer = http::answer(StatusCode::OK, kind, Bytes::new());
    *answer.body_mut() = body.boxed_unsync();
    answer
}

struct Out(Sender<Bytes, io::Error>);

enum Broken {
    Visitor,
    Database(Fault),
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        Self::Database(fault)
    }
}

async fn write(
    readers: &Readers,
    device: &str,
    span: &Span,
    form: Form,
    out: &mut Out,
) -> Result<(), Broken> {
    if let Some(head) = form.head() {
        out.send(format!("{head}\n")).await?;
    }
    let mut reader = readers.one().await?;
    let runs = readers.within(read::runs(&mut reader.conn, device)).await?;
    reader.keep();
    for run in runs {
        let mut after = 0;
        loop {
            // Nothing is held while the visitor takes what there is.
            let mut reader = readers.one().await?;
            let page = read::records(&mut reader.conn, (device, run.run), after, span);
            let page = readers.within(page).await?;
            reader.keep();
            let Some(last) = page.last() else { break };
            after = last.seq;
            let mut text = String::new();
            for record in &page {
                text.push_str(&form.line(record));
                text.push('\n');
            }
            out.send(text).await?;
        }
    }
    Ok(())
}

impl Out {
    async fn send(&mut self, text: String) -> Result<(), Broken> {
        let sent = self.0.send_data(Bytes::from(text));
        match tokio::time::timeout(PATIENCE, sent).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Broken::Visitor),
        }
    }
}
