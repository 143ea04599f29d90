//! The table of what is switched by hand.

use super::{Conn, Fault, Value};
use crate::decision::{Subject, Switches};

/// All of it.
///
/// # Errors
/// Those of the database.
pub(crate) async fn all(conn: &mut Conn) -> Result<Switches, Fault> {
    let rows = conn
        .rows("select kind, name, led_on from switches", &[])
        .await?;
    rows.iter()
        .map(|row| {
            let name = row.text(1)?.unwrap_or_default();
            let subject = match row.text(0)?.as_deref() {
                Some("group") => Subject::Group(name),
                _ => Subject::Device(name),
            };
            Ok((subject, row.flag(2)?.unwrap_or_default()))
        })
        .collect()
}

/// Switches on or off; none leaves it to the rules again.
///
/// # Errors
/// Those of the database.
pub(crate) async fn set(
    conn: &mut Conn,
    subject: &Subject,
    led_on: Option<bool>,
    now_ms: i64,
) -> Result<(), Fault> {
    let (kind, name) = match subject {
        Subject::Device(name) => ("device", name),
        Subject::Group(name) => ("group", name),
    };
    let mut values = vec![kind.into(), name.as_str().into()];
    let sql = match led_on {
        None => "delete from switches where kind = $1 and name = $2",
        Some(led_on) => {
            values.extend([Value::Flag(Some(led_on)), Value::Time(Some(now_ms))]);
            "insert into switches (kind, name, led_on, set_at) values ($1, $2, $3, $4) \
             on conflict (kind, name) do update set led_on = excluded.led_on, set_at = excluded.set_at"
        }
    };
    conn.execute(sql, &values).await?;
    Ok(())
}
