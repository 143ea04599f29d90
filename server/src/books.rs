//! What a person asks of the database at the command line, while the server runs or not.

use std::io::Write;

use nightlight_common::clock::Clock;

use crate::account::readable;
use crate::decision::Subject;
use crate::store::read::{self, Kept, Span};
use crate::store::{Conn, Database, Fault, forget as gone, switches};

/// How records are written out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A line of JSON each: the device, and the record as it came.
    Lines,
    /// A line of comma separated values each, the names of the columns first (RFC 4180).
    Csv,
}

impl Form {
    /// What stands above the first line.
    pub fn head(self) -> Option<&'static str> {
        (self == Self::Csv).then_some("device,run,seq,ts,clock,kind,light,led_on,by,why\r")
    }

    /// A record.
    pub fn line(self, record: &Kept) -> String {
        match self {
            Self::Lines => json_line(record),
            Self::Csv => csv_line(record),
        }
    }
}

/// The account of each device and each of its runs.
///
/// # Errors
/// Those of the database, and when `out` does not take it.
pub async fn account(
    database: &Database,
    device: Option<&str>,
    out: &mut impl Write,
) -> Result<(), Fault> {
    let mut conn = database.look().await?;
    each_report(&mut conn, device, async |conn, report| {
        print(out, &report.line())?;
        for run in read::runs(conn, &report.device).await? {
            let missing = match run.counts.missing {
                0 => Vec::new(),
                _ => read::missing(conn, &report.device, run.run).await?,
            };
            print(out, &run.line(&missing))?;
        }
        Ok(())
    })
    .await
}

/// Each device: when it was last heard of, and its account in a line; as JSON the whole report.
///
/// # Errors
/// Those of the database, and when `out` does not take it.
pub async fn devices(database: &Database, json: bool, out: &mut impl Write) -> Result<(), Fault> {
    let mut conn = database.look().await?;
    each_report(&mut conn, None, async |_, report| {
        let line = match json {
            true => report.json(),
            false => format!("{}  {}", report.last_seen, report.line()),
        };
        print(out, &line)
    })
    .await
}

/// The records of a span, device by device, run by run, in order.
///
/// # Errors
/// Those of the database, and when `out` does not take it.
pub async fn export(
    database: &Database,
    span: &Span,
    form: Form,
    out: &mut impl Write,
) -> Result<(), Fault> {
    let mut conn = database.look().await?;
    let devices = match &span.device {
        Some(device) => vec![device.clone()],
        None => read::devices(&mut conn).await?,
    };
    if let Some(head) = form.head() {
        print(out, head)?;
    }
    for device in devices {
        for run in read::runs(&mut conn, &device).await? {
            let mut after = 0;
            loop {
                let page = read::records(&mut conn, (&device, run.run), after, span).await?;
                let Some(last) = page.last() else { break };
                after = last.seq;
                for record in &page {
                    print(out, &form.line(record))?;
                }
            }
        }
    }
    Ok(())
}

/// Deletes all of a device, in small steps; gives the number of its records, none for a device that is not
/// known.
///
/// # Errors
/// Those of the database.
pub async fn forget(database: &Database, device: &str) -> Result<Option<usize>, Fault> {
    let mut conn = database.look().await?;
    let mut records = 0;
    for run in read::runs(&mut conn, device).await? {
        loop {
            match database
                .within(gone::step(&mut conn, device, run.run, None))
                .await?
            {
                0 => break,
                count => records += count,
            }
        }
    }
    let known = database.within(gone::device(&mut conn, device)).await?;
    Ok(known.then_some(records))
}

/// Switches an LED by hand, or those of a group; none leaves it to the rules again. False for a device that is
/// not known.
///
/// # Errors
/// Those of the database.
pub async fn switch(
    database: &Database,
    subject: &Subject,
    led_on: Option<bool>,
) -> Result<bool, Fault> {
    let mut conn = database.look().await?;
    if let Subject::Device(device) = subject
        && read::report(&mut conn, device).await?.is_none()
    {
        return Ok(false);
    }
    let now_ms = Clock::new().now().wall_ms;
    let done = switches::set(&mut conn, subject, led_on, now_ms);
    database.within(done).await?;
    Ok(true)
}

async fn each_report(
    conn: &mut Conn,
    device: Option<&str>,
    mut what: impl AsyncFnMut(&mut Conn, &crate::account::Report) -> Result<(), Fault>,
) -> Result<(), Fault> {
    if let Some(device) = device {
        return match read::report(conn, device).await? {
            Some(report) => what(conn, &report).await,
            None => Err(Fault::Other(format!(
                "there is no device {} in the database; `nightlight-server devices` names them",
                readable(device)
            ))),
        };
    }
    let mut after = String::new();
    loop {
        let page = read::reports(conn, &after).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after.clone_from(&last.device);
        for report in &page {
            what(conn, report).await?;
        }
    }
}

fn print(out: &mut impl Write, line: &str) -> Result<(), Fault> {
    writeln!(out, "{line}").map_err(|error| Fault::Other(format!("cannot write it out: {error}")))
}

fn json_line(record: &Kept) -> String {
    let device = serde_json::Value::from(record.device.as_str());
    // A line break can only lie between the parts of it.
    let payload = record.payload.replace(['\n', '\r'], " ");
    format!("{{\"device\":{device},\"record\":{payload}}}")
}

fn csv_line(record: &Kept) -> String {
    let or_empty = |text: &Option<String>| field(text.as_deref().unwrap_or_default());
    format!(
        "{},{},{},{},{},{},{},{},{},{}\r",
        field(&record.device),
        record.run,
        record.seq,
        or_empty(&record.ts),
        or_empty(&record.clock),
        field(&record.kind),
        record
            .light
            .map(|light| light.to_string())
            .unwrap_or_default(),
        record.led_on.map(|on| on.to_string()).unwrap_or_default(),
        or_empty(&record.by),
        or_empty(&record.why),
    )
}

/// In quotes where it has to be. A text that a spreadsheet would take for a formula gets an apostrophe before
/// it, because it comes from outside.
fn field(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = match formula {
        true => format!("'{text}"),
        false => text.to_owned(),
    };
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_and_no_formula() {
        assert_eq!(field("pi-1"), "pi-1");
        assert_eq!(field("a \"b\", c\nd"), "\"a \"\"b\"\", c\nd\"");
        assert_eq!(field("=1+1"), "'=1+1");
        assert_eq!(field("=A1,\"x\""), "\"'=A1,\"\"x\"\"\"");
    }
}
