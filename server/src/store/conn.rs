//! One connection, to either database, and the values that go to it and come from it.
//!
//! Statements are written once, with `$1, $2 ...`; what has a type of its own in PostgreSQL (uuid,
//! timestamptz, boolean) is text or a number in SQLite, and [`Value`] knows how. Everything that comes from
//! outside goes through a [`Value`]: no statement has any of it in its text.

use std::time::Duration;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgConnection, PgRow, PgTypeInfo, PgValueRef, Postgres};
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Connection, Decode, Encode, Error, Row as _, Type};
use uuid::Uuid;

use nightlight_logic::time::rfc3339;

/// Milliseconds between 1970 and 2000, where PostgreSQL counts from.
const EPOCH_MS: i64 = 946_684_800_000;

/// An open connection.
#[derive(Debug)]
pub enum Conn {
    /// To a file.
    Sqlite(SqliteConnection),
    /// To a server.
    Postgres(PgConnection),
}

/// What is bound to a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Text, without NUL.
    Text(Option<&'a str>),
    /// A whole number.
    Whole(Option<i64>),
    /// A finite number.
    Number(Option<f64>),
    /// True or false.
    Flag(Option<bool>),
    /// A run.
    Run(Option<Uuid>),
    /// Milliseconds since 1970.
    Time(Option<i64>),
}

/// A row of an answer; columns are counted from 0.
pub enum Row {
    /// Of a file.
    Sqlite(SqliteRow),
    /// Of a server.
    Postgres(PgRow),
}

impl Conn {
    /// Carries a statement out; gives the number of rows that it touched.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn execute(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, Error> {
        match self {
            Self::Sqlite(conn) => sqlite(sql, values)
                .execute(conn)
                .await
                .map(|done| done.rows_affected()),
            Self::Postgres(conn) => postgres(sql, values)
                .execute(conn)
                .await
                .map(|done| done.rows_affected()),
        }
    }

    /// All rows of an answer.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn rows(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Error> {
        match self {
            Self::Sqlite(conn) => {
                let rows = sqlite(sql, values).fetch_all(conn).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
            Self::Postgres(conn) => {
                let rows = postgres(sql, values).fetch_all(conn).await?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
        }
    }

    /// Begins a transaction that will write.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn begin(&mut self) -> Result<(), Error> {
        // SQLite would else find out in the middle that another one writes.
        let sql = match self {
            Self::Sqlite(_) => "begin immediate",
            Self::Postgres(_) => "begin",
        };
        self.execute(sql, &[]).await.map(drop)
    }

    /// Ends it; what was done stays.
    ///
    /// # Errors
    /// Those of the database; it may or may not stay then.
    pub async fn commit(&mut self) -> Result<(), Error> {
        self.execute("commit", &[]).await.map(drop)
    }

    /// Ends it; what was done is undone.
    ///
    /// # Errors
    /// Those of the database; the connection is of no use then.
    pub async fn rollback(&mut self) -> Result<(), Error> {
        self.execute("rollback", &[]).await.map(drop)
    }

    /// Says goodbye; a database that does not hear it in time is left all the same.
    pub async fn close(self) {
        const GOODBYE: Duration = Duration::from_secs(2);
        // It makes no difference to what was committed.
        let _ = match self {
            Self::Sqlite(conn) => tokio::time::timeout(GOODBYE, conn.close()).await,
            Self::Postgres(conn) => tokio::time::timeout(GOODBYE, conn.close()).await,
        };
    }
}

impl Row {
    /// Text.
    ///
    /// # Errors
    /// The column is not there or is something else.
    pub fn text(&self, column: usize) -> Result<Option<String>, Error> {
        match self {
            Self::Sqlite(row) => row.try_get_unchecked(column),
            Self::Postgres(row) => row.try_get_unchecked(column),
        }
    }

    /// A whole number; null is 0.
    ///
    /// # Errors
    /// The column is not there or is something else.
    pub fn whole(&self, column: usize) -> Result<i64, Error> {
        let number: Option<i64> = match self {
            Self::Sqlite(row) => row.try_get_unchecked(column)?,
            Self::Postgres(row) => row.try_get_unchecked(column)?,
        };
        Ok(number.unwrap_or(0))
    }

    /// A whole number that counts something.
    ///
    /// # Errors
    /// The column is not there or is something else.
    pub fn count(&self, column: usize) -> Result<u64, Error> {
        Ok(u64::try_from(self.whole(column)?).unwrap_or(0))
    }

    /// A number.
    ///
    /// # Errors
    /// The column is not there or is something else.
    pub fn number(&self, column: usize) -> Result<Option<f64>, Error> {
        match self {
            Self::Sqlite(row) => row.try_get_unchecked(column),
            Self::Postgres(row) => row.try_get_unchecked(column),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// The column is not there or is something else.
    pub fn flag(&self, column: usize) -> Result<Option<bool>, Error> {
        match self {
            Self::Sqlite(row) => row.try_get_unchecked(column),
            Self::Postgres(row) => row.try_get_unchecked(column),
        }
    }

    /// A run.
    ///
    /// # Errors
    /// The column is not there or is something else.
    pub fn run(&self, column: usize) -> Result<Option<Uuid>, Error> {
        match self {
            Self::Sqlite(row) => {
                let text: Option<String> = row.try_get_unchecked(column)?;
                let parse = |text: String| {
                    let index = column.to_string();
                    text.parse().map_err(|error| Error::ColumnDecode {
                        index,
                        source: Box::new(error),
                    })
                };
                text.map(parse).transpose()
            }
            Self::Postgres(row) => row.try_get_unchecked(column),
        }
    }

    /// A time, as RFC 3339 in UTC with milliseconds.
    ///
    /// # Errors
    /// The column is not there or is something else.
    pub fn time(&self, column: usize) -> Result<Option<String>, Error> {
        match self {
            Self::Sqlite(row) => row.try_get_unchecked(column),
            Self::Postgres(row) => {
                let time: Option<Milliseconds> = row.try_get_unchecked(column)?;
                Ok(time.map(|Milliseconds(ms)| rfc3339(ms)))
            }
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(text))
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Whole(Some(number))
    }
}

/// Numbers of records stay below 2^53; a count that does not fit is the greatest one.
impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Self::Whole(Some(i64::try_from(number).unwrap_or(i64::MAX)))
    }
}

impl From<Uuid> for Value<'_> {
    fn from(run: Uuid) -> Self {
        Self::Run(Some(run))
    }
}

/// The database's own time in so many seconds, as an expression.
pub(crate) fn in_seconds(conn: &Conn, seconds: u64) -> String {
    match conn {
        Conn::Sqlite(_) => format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+{seconds} seconds')"),
        Conn::Postgres(_) => format!("(clock_timestamp() + interval '{seconds} seconds')"),
    }
}

fn sqlite<'q>(sql: &'q str, values: &[Value<'q>]) -> Query<'q, Sqlite, SqliteArguments<'q>> {
    let mut query = sqlx::query(sql);
    for value in values {
        query = match value {
            Value::Text(text) => query.bind(*text),
            Value::Whole(number) => query.bind(*number),
            Value::Number(number) => query.bind(*number),
            Value::Flag(flag) => query.bind(*flag),
            Value::Run(run) => query.bind(run.map(|run| run.to_string())),
            Value::Time(time) => query.bind(time.map(rfc3339)),
        };
    }
    query
}

fn postgres<'q>(
    sql: &'q str,
    values: &[Value<'q>],
) -> Query<'q, Postgres, sqlx::postgres::PgArguments> {
    let mut query = sqlx::query(sql);
    for value in values {
        query = match value {
            Value::Text(text) => query.bind(*text),
            Value::Whole(number) => query.bind(*number),
            Value::Number(number) => query.bind(*number),
            Value::Flag(flag) => query.bind(*flag),
            Value::Run(run) => query.bind(*run),
            Value::Time(time) => query.bind(time.map(Milliseconds)),
        };
    }
    query
}

/// Milliseconds since 1970, as PostgreSQL's timestamptz.
#[derive(Debug, Clone, Copy)]
struct Milliseconds(i64);

impl Type<Postgres> for Milliseconds {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }
}

impl Encode<'_, Postgres> for Milliseconds {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        // Microseconds since 2000.
        let us = (self.0 - EPOCH_MS).saturating_mul(1_000);
        <i64 as Encode<'_, Postgres>>::encode_by_ref(&us, buffer)
    }
}

impl<'r> Decode<'r, Postgres> for Milliseconds {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        let us = <i64 as Decode<'r, Postgres>>::decode(value)?;
        Ok(Self(us.div_euclid(1_000).saturating_add(EPOCH_MS)))
    }
}
