//! The tables of servers and of the parts that they decide about. Times are the database's own.

use std::collections::BTreeSet;

use super::conn::in_seconds;
use super::{Conn, Fault, Value};

/// Parts of all devices and groups.
pub(crate) const PARTS: u16 = 64;
/// How long a lease holds without being renewed, in seconds: less than a command does by default.
pub(crate) const LEASE_S: u64 = 6;

/// This server is there; gives how many are.
///
/// # Errors
/// Those of the database.
pub(crate) async fn alive(conn: &mut Conn, server: &str) -> Result<usize, Fault> {
    let (now, until) = (in_seconds(conn, 0), in_seconds(conn, LEASE_S));
    let sql = format!(
        "insert into servers (server, until) values ($1, {until}) \
         on conflict (server) do update set until = excluded.until"
    );
    conn.execute(&sql, &[server.into()]).await?;
    // Names of servers that have gone for good are of no use.
    let sql = format!("delete from servers where until < {}", in_seconds(conn, 0));
    if fastrand::u8(..) == 0 {
        conn.execute(&sql, &[]).await?;
    }
    let sql = format!("select count(*) from servers where until >= {now}");
    let rows = conn.rows(&sql, &[]).await?;
    let count = rows.first().map_or(Ok(0), |row| row.count(0))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Renews what this server has and takes what is free, up to `most`; gives what it has then.
///
/// # Errors
/// Those of the database.
pub(crate) async fn take(
    conn: &mut Conn,
    server: &str,
    most: usize,
) -> Result<BTreeSet<u16>, Fault> {
    let (now, until) = (in_seconds(conn, 0), in_seconds(conn, LEASE_S));
    let sql = format!("select part, server from deciders where until >= {now}");
    let mut own = BTreeSet::new();
    let mut others = BTreeSet::new();
    for row in conn.rows(&sql, &[]).await? {
        let part = u16::try_from(row.whole(0)?).unwrap_or(u16::MAX);
        match row.text(1)?.as_deref() == Some(server) {
            true => own.insert(part),
            false => others.insert(part),
        };
    }
    let free = (0..PARTS).filter(|part| !own.contains(part) && !others.contains(part));
    let wanted: Vec<u16> = own.iter().copied().chain(free).take(most).collect();
    if wanted.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut sql = String::from("insert into deciders (part, server, until) values ");
    let mut values: Vec<Value<'_>> = vec![server.into()];
    let mut parts = wanted.clone();
    // Rows are locked in one order.
    parts.sort_unstable();
    for part in parts {
        let comma = if values.len() == 1 { "" } else { ", " };
        values.push(i64::from(part).into());
        sql.push_str(&format!("{comma}(${}, $1, {until})", values.len()));
    }
    sql.push_str(&format!(
        " on conflict (part) do update set server = excluded.server, until = excluded.until \
         where deciders.server = excluded.server or deciders.until < {now} returning part"
    ));
    let mut held = BTreeSet::new();
    for row in conn.rows(&sql, &values).await? {
        held.extend(u16::try_from(row.whole(0)?));
    }
    Ok(held)
}

/// Gives these up.
///
/// # Errors
/// Those of the database.
pub(crate) async fn release(
    conn: &mut Conn,
    server: &str,
    parts: &BTreeSet<u16>,
) -> Result<(), Fault> {
    // The past, so that it is free at once.
    let past = in_seconds(conn, 0);
    for part in parts {
        let sql = format!(
            "update deciders set until = {past}, server = '' where part = $1 and server = $2"
        );
        conn.execute(&sql, &[i64::from(*part).into(), server.into()])
            .await?;
    }
    Ok(())
}
