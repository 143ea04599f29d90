//! What the page shows: each device with its account, samples of its light, its events, outages and losses.
//! Each question has a bounded cost, however many records there are: it goes by an index, or by pages.

use std::fmt::Write;

use super::account::Counts;
use super::{Conn, Fault, Row, Value};

/// Rows of one page.
pub(crate) const PAGE: usize = 500;
/// Samples in one statement.
const SAMPLES: usize = 60;

/// A device as it was last heard of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    /// Its id.
    pub device: String,
    /// When anything last came of it, RFC 3339.
    pub last_seen: String,
    /// What its status topic says.
    pub online: Option<bool>,
    /// Since when, as this server heard it.
    pub online_since: Option<String>,
    /// Its state message, as it came.
    pub state: Option<String>,
    /// What it is switched to by hand.
    pub switched: Option<bool>,
    /// The newest light by its own time.
    pub light: Option<f64>,
    /// Its account over all runs.
    pub counts: Counts,
    /// Outages of its link or server that are over.
    pub outages: u64,
}

/// A reading that stands for a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// The light.
    pub light: Option<f64>,
    /// The LED then.
    pub led_on: Option<bool>,
}

/// An event of a device.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// When, RFC 3339, as the device says.
    pub ts: String,
    /// Which.
    pub kind: String,
    /// The LED.
    pub led_on: Option<bool>,
    /// Who decided.
    pub by: Option<String>,
    /// Why.
    pub why: Option<String>,
    /// As it came.
    pub payload: String,
}

/// A stretch of time, or a moment, in which something went wrong.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Trouble {
    /// When it began, RFC 3339.
    pub from: String,
    /// When it ended.
    pub to: String,
    /// What.
    pub what: String,
    /// How many records were lost.
    pub lost: u64,
}

const SEEN: &str = "select account.device, account.last_seen, devices.online, devices.online_since, \
    devices.state, switches.led_on, \
    (select records.light from records where records.device = account.device \
     and records.kind = 'reading' and records.ts is not null order by records.ts desc limit 1), \
    account.received, account.twice, account.lost, account.missing, account.deleted, \
    (select count(*) from outages where outages.device = account.device) \
    from account join devices on devices.device = account.device \
    left join switches on switches.kind = 'device' and switches.name = account.device ";

/// The devices behind `after`, in order, that were heard of at `since_ms` or later; a page of them, empty at the
/// end.
///
/// # Errors
/// Those of the database.
pub(crate) async fn devices(
    conn: &mut Conn,
    after: &str,
    since_ms: Option<i64>,
) -> Result<Vec<Seen>, Fault> {
    let mut values = vec![after.into()];
    let mut sql = format!("{SEEN} where account.device > $1 ");
    if since_ms.is_some() {
        values.push(Value::Time(since_ms));
        sql.push_str("and account.last_seen >= $2 ");
    }
    let _ = write!(sql, "order by account.device limit {PAGE}");
    conn.rows(&sql, &values).await?.iter().map(seen).collect()
}

/// One device.
///
/// # Errors
/// Those of the database.
pub(crate) async fn device(conn: &mut Conn, device: &str) -> Result<Option<Seen>, Fault> {
    let sql = format!("{SEEN} where account.device = $1");
    let rows = conn.rows(&sql, &[device.into()]).await?;
    rows.first().map(seen).transpose()
}

/// The first reading of each of `count` equal parts of a span, in milliseconds since 1970.
///
/// # Errors
/// Those of the database.
pub(crate) async fn samples(
    conn: &mut Conn,
    device: &str,
    (from_ms, to_ms): (i64, i64),
    count: usize,
) -> Result<Vec<Option<Sample>>, Fault> {
    let length = to_ms.saturating_sub(from_ms).max(1);
    let total = i64::try_from(count.max(1)).unwrap_or(i64::MAX);
    let begin = |n: usize| {
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        from_ms.saturating_add(length.saturating_mul(n) / total)
    };
    let mut samples = Vec::with_capacity(count);
    while samples.len() < count {
        let some = SAMPLES.min(count - samples.len());
        let mut sql = String::from("select ");
        let mut values = vec![device.into()];
        for n in samples.len()..samples.len() + some {
            let comma = if values.len() == 1 { "" } else { ", " };
            let (from, to) = (values.len() + 1, values.len() + 2);
            let _ = write!(
                sql,
                "{comma}(select coalesce(cast(light as text), '') || ' ' || coalesce(cast(led_on as text), '') \
                 from records where device = $1 and ts >= ${from} and ts < ${to} and kind = 'reading' \
                 order by ts limit 1)"
            );
            values.extend([Value::Time(Some(begin(n))), Value::Time(Some(begin(n + 1)))]);
        }
        let rows = conn.rows(&sql, &values).await?;
        let row = rows.first();
        for column in 0..some {
            let packed = row.map(|row| row.text(column)).transpose()?.flatten();
            samples.push(packed.map(|packed| unpack(&packed)));
        }
    }
    Ok(samples)
}

/// The newest events of a device, newest first.
///
/// # Errors
/// Those of the database.
pub(crate) async fn events(
    conn: &mut Conn,
    device: &str,
    most: usize,
) -> Result<Vec<Event>, Fault> {
    let sql = format!(
        "select ts, kind, led_on, by, why, payload from records \
         where device = $1 and kind <> 'reading' and ts is not null order by ts desc limit {most}"
    );
    let rows = conn.rows(&sql, &[device.into()]).await?;
    let event = |row: &Row| {
        Ok(Event {
            ts: row.time(0)?.unwrap_or_default(),
            kind: row.text(1)?.unwrap_or_default(),
            led_on: row.flag(2)?,
            by: row.text(3)?,
            why: row.text(4)?,
            payload: row.text(5)?.unwrap_or_default(),
        })
    };
    rows.iter().map(event).collect()
}

/// Outages of a device that reach into a span, and losses that it told in it; the newest of them.
///
/// # Errors
/// Those of the database.
pub(crate) async fn troubles(
    conn: &mut Conn,
    device: &str,
    (from_ms, to_ms): (i64, i64),
) -> Result<Vec<Trouble>, Fault> {
    const MOST: usize = 200;
    let values = [
        device.into(),
        Value::Time(Some(from_ms)),
        Value::Time(Some(to_ms)),
    ];
    let outages = format!(
        "select began, ended, cause, lost from outages where device = $1 and ended >= $2 \
         and began < $3 order by began desc limit {MOST}"
    );
    let losses = format!(
        "select told_at, told_at, reason, count from losses where device = $1 and told_at >= $2 \
         and told_at < $3 order by told_at desc limit {MOST}"
    );
    let mut troubles = Vec::new();
    for (sql, what) in [(outages, "outage"), (losses, "lost")] {
        for row in conn.rows(&sql, &values).await? {
            let detail = row.text(2)?.unwrap_or_else(|| "not told why".into());
            troubles.push(Trouble {
                from: row.time(0)?.unwrap_or_default(),
                to: row.time(1)?.unwrap_or_default(),
                what: format!("{what}: {detail}"),
                lost: row.count(3)?,
            });
        }
    }
    Ok(troubles)
}

fn seen(row: &Row) -> Result<Seen, Fault> {
    Ok(Seen {
        device: row.text(0)?.unwrap_or_default(),
        last_seen: row.time(1)?.unwrap_or_default(),
        online: row.flag(2)?,
        online_since: row.time(3)?,
        state: row.text(4)?,
        switched: row.flag(5)?,
        light: row.number(6)?,
        counts: Counts {
            received: row.count(7)?,
            twice: row.count(8)?,
            lost: row.count(9)?,
            missing: row.count(10)?,
            deleted: row.count(11)?,
        },
        outages: row.count(12)?,
    })
}

fn unpack(packed: &str) -> Sample {
    let (light, led_on) = packed.split_once(' ').unwrap_or((packed, ""));
    Sample {
        light: light.parse().ok(),
        // As each database writes it.
        led_on: match led_on {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        },
    }
}
