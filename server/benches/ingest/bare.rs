//! The same rows into the same database by the same library, and nothing else.

use std::fmt::Write;
use std::time::{Duration, Instant};

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{
    ConnectOptions, Connection, Database, Executor, PgConnection, Postgres, Row, Sqlite,
    SqliteConnection,
};
use uuid::Uuid;

use crate::device;

/// Rows in one statement, as many as the server puts into one.
const ROWS: u64 = 128;
const COUNT: &str =
    "select count(*) from (select device, count(*) from records group by device) as each";

/// Rows a second, into an empty table like `records`, in transactions of `size` rows.
pub async fn rate(url: &str, records: u64, size: u64) -> f64 {
    let run = Uuid::new_v4().to_string();
    let rows: Vec<String> = (1..=records).map(device::record).collect();
    let rows: Vec<&[String]> = rows.chunks(size as usize).collect();
    let mut seq = 0;
    let took = match url.starts_with("sqlite") {
        true => {
            let mut conn = sqlite(url).await;
            let tables =
                "select sql from sqlite_master where tbl_name = 'records' and sql is not null";
            for row in conn.fetch_all(tables).await.expect("tables") {
                let sql = row.get::<String, _>(0).replace("records", "bare");
                conn.execute(sql.as_str()).await.expect("made");
            }
            let began = Instant::now();
            for some in rows {
                let mut transaction = conn.begin().await.expect("begun");
                for chunk in some.chunks(ROWS as usize) {
                    let sql = statement(chunk.len(), ["", ""]);
                    let query = bind_sqlite(sqlx::query(&sql), chunk, &run, &mut seq);
                    query.execute(&mut *transaction).await.expect("inserted");
                }
                transaction.commit().await.expect("committed");
            }
            began.elapsed()
        }
        false => {
            let mut conn = PgConnection::connect(url).await.expect("open");
            conn.execute("create table bare (like records including all)")
                .await
                .expect("made");
            let began = Instant::now();
            for some in rows {
                let mut transaction = conn.begin().await.expect("begun");
                for chunk in some.chunks(ROWS as usize) {
                    let sql = statement(chunk.len(), ["::uuid", "::timestamptz"]);
                    let query = bind_postgres(sqlx::query(&sql), chunk, &run, &mut seq);
                    query.execute(&mut *transaction).await.expect("inserted");
                }
                transaction.commit().await.expect("committed");
            }
            began.elapsed()
        }
    };
    records as f64 / took.as_secs_f64()
}

/// How long it takes to count the records of each device.
pub async fn count(url: &str) -> Duration {
    match url.starts_with("sqlite") {
        true => {
            let mut conn = sqlite(url).await;
            let began = Instant::now();
            conn.fetch_one(COUNT).await.expect("counted");
            began.elapsed()
        }
        false => {
            let mut conn = PgConnection::connect(url).await.expect("open");
            let began = Instant::now();
            conn.fetch_one(COUNT).await.expect("counted");
            began.elapsed()
        }
    }
}

/// As the server opens it.
async fn sqlite(url: &str) -> SqliteConnection {
    let options: SqliteConnectOptions = url.parse().expect("a URL");
    let options = options
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    options.connect().await.expect("open")
}

/// Run and times are text here, and what `types` says there.
fn statement(rows: usize, types: [&str; 2]) -> String {
    let mut sql = String::from(
        "insert into bare (device, run, seq, ts, clock, kind, light, led_on, received_at, payload) values ",
    );
    let [run, time] = types.map(|name| match name {
        "" => String::new(),
        name => format!("::text{name}"),
    });
    let flag = if run.is_empty() { "1" } else { "true" };
    for row in 0..rows {
        let comma = if row == 0 { "" } else { ", " };
        let at = row * 5;
        let [one, two, three, four, five] = [1, 2, 3, 4, 5].map(|place| at + place);
        write!(
            sql,
            "{comma}('d00000', ${one}{run}, ${two}, ${three}{time}, 'synced', 'reading', ${four}, {flag}, \
             ${three}{time}, ${five})"
        )
        .expect("written");
    }
    sql.push_str(" on conflict do nothing");
    sql
}

fn bind_sqlite<'q>(
    mut query: Query<'q, Sqlite, SqliteArguments<'q>>,
    rows: &'q [String],
    run: &'q str,
    seq: &mut u64,
) -> Query<'q, Sqlite, <Sqlite as Database>::Arguments<'q>> {
    for row in rows {
        *seq += 1;
        query = query
            .bind(run)
            .bind(*seq as i64)
            .bind(time(row))
            .bind(243.0)
            .bind(row);
    }
    query
}

fn bind_postgres<'q>(
    mut query: Query<'q, Postgres, PgArguments>,
    rows: &'q [String],
    run: &'q str,
    seq: &mut u64,
) -> Query<'q, Postgres, PgArguments> {
    for row in rows {
        *seq += 1;
        query = query
            .bind(run)
            .bind(*seq as i64)
            .bind(time(row))
            .bind(243.0)
            .bind(row);
    }
    query
}

/// The time in a record.
fn time(row: &str) -> &str {
    let from = row.find("\"ts\":\"").expect("a time") + 6;
    &row[from..from + 24]
}
