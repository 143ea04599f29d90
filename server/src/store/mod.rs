//! The database: SQLite in a file, or PostgreSQL.
//!
//! Opens it, brings its tables up to date, and tells its errors apart: what is worth another try at once,
//! and what a person has to mend. What is done in it stands in `ingest` (the one that writes records),
//! `read`, `forget`; the tables in `migrations/`.

mod account;
pub(crate) mod conn;
pub(crate) mod fleet;
pub(crate) mod forget;
pub(crate) mod ingest;
pub(crate) mod leases;
pub(crate) mod read;
pub(crate) mod switches;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Error};

pub(crate) use account::Counts;
pub(crate) use conn::{Conn, Row, Value};

/// Each version of the tables, oldest first: for SQLite and for PostgreSQL. None is ever changed.
const MIGRATIONS: &[(i64, &str, &str, &str)] = &[
    (
        1,
        "first",
        include_str!("../../migrations/sqlite/0001_first.sql"),
        include_str!("../../migrations/postgres/0001_first.sql"),
    ),
    (
        2,
        "switches",
        include_str!("../../migrations/sqlite/0002_switches.sql"),
        include_str!("../../migrations/postgres/0002_switches.sql"),
    ),
    (
        3,
        "events",
        include_str!("../../migrations/sqlite/0003_events.sql"),
        include_str!("../../migrations/postgres/0003_events.sql"),
    ),
    (
        4,
        "deciders",
        include_str!("../../migrations/sqlite/0004_deciders.sql"),
        include_str!("../../migrations/postgres/0004_deciders.sql"),
    ),
];
/// The other one writes for so long at most.
const BUSY: Duration = Duration::from_secs(5);
/// A file that grew to this in a burst is cut back.
const WAL_BYTES: &str = "67108864";

/// Where the database is.
#[derive(Debug, Clone)]
pub enum Address {
    /// The file.
    Sqlite(PathBuf),
    /// The server, without the password.
    Postgres(Box<PgConnectOptions>),
}

/// Where the database is, and how to get in.
#[derive(Debug, Clone)]
pub struct Database {
    /// Where.
    pub address: Address,
    /// File with the password in its first line; read for each connection.
    pub password_file: Option<PathBuf>,
    /// The longest that anything may take.
    pub timeout: Duration,
}

/// Why the database did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Another one was in the way: trying again at once is right.
    Again(String),
    /// A right is missing.
    Permission(String),
    /// Anything else, in words.
    Other(String),
}

impl Address {
    /// Reads `sqlite:///var/lib/x.db`, `sqlite://x.db`, `postgres://user@host:5432/name?sslmode=verify-full`.
    ///
    /// # Errors
    /// What is wrong and what to write; it never repeats a part that may be a password.
    pub fn parse(url: &str) -> Result<Self, String> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" | "/" => Err("names no file; write one such as sqlite:///var/lib/nightlight-server/nightlight.db".into()),
                path if path.contains(['?', '#']) || path.starts_with(":memory:") => {
                    Err("has more than a path after sqlite://; name a file and nothing else".into())
                }
                path => Ok(Self::Sqlite(PathBuf::from(path))),
            };
        }
        let Some(rest) = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
        else {
            return Err("has an unknown scheme; begin it with sqlite:// or postgres://".into());
        };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let has_password = rest.contains("password=")
            || authority
                .rsplit_once('@')
                .is_some_and(|(user, _)| user.contains(':'));
        if has_password {
            return Err(
                "has a password in it; put it in a file and name that with database.password_file"
                    .into(),
            );
        }
        let options = PgConnectOptions::from_str(url).map_err(
            |_| "cannot be read; write one such as postgres://nightlight@db.local:5432/nightlight",
        )?;
        Ok(Self::Postgres(Box::new(
            options
                .application_name("nightlight-server")
                // What it notes of tables that are there already is no news.
                .options([("client_min_messages", "warning")]),
        )))
    }

    /// Whether what travels to it can be read on the way.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            Self::Postgres(options) => {
                let here = options.get_socket().is_some()
                    || options.get_host().starts_with('/')
                    || ["localhost", "127.0.0.1", "::1"].contains(&options.get_host());
                let checked = [PgSslMode::VerifyCa as u8, PgSslMode::VerifyFull as u8]
                    .contains(&(options.get_ssl_mode() as u8));
                !here && !checked
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(options) => write!(
                f,
                "postgres://{}@{}:{}/{}",
                options.get_username(),
                options.get_host(),
                options.get_port(),
                options.get_database().unwrap_or(options.get_username())
            ),
        }
    }
}

impl Database {
    /// Connects, and brings the tables up to date; a file that is not there is made, and its folder.
    ///
    /// # Errors
    /// [`Fault`], in words for a person.
    pub async fn open(&self) -> Result<Conn, Fault> {
        if let Address::Sqlite(path) = &self.address
            && let Some(folder) = path.parent().filter(|folder| *folder != Path::new(""))
        {
            std::fs::create_dir_all(folder).map_err(|error| {
                let folder = folder.display();
                of_io(&error, format!("cannot make the folder {folder}: {error}"))
            })?;
        }
        let mut conn = self.within(self.connect_to(true)).await?;
        self.within(async {
            migrate(&mut conn)
                .await
                .map_err(|error| self.outdated(error))
        })
        .await?;
        Ok(conn)
    }

    /// Connects to a database that is there and up to date, to look into it.
    ///
    /// # Errors
    /// [`Fault`], in words for a person.
    pub async fn look(&self) -> Result<Conn, Fault> {
        if let Address::Sqlite(path) = &self.address
            && !path.exists()
        {
            let path = path.display();
            return Err(Fault::Other(format!(
                "there is no database at {path}; a server that has run makes it, see database.url"
            )));
        }
        let mut conn = self.within(self.connect_to(false)).await?;
        let version = self.within(async {
            let found = conn.rows("select max(version) from _sqlx_migrations", &[]);
            let rows = found.await.map_err(|error| {
                let address = &self.address;
                let why = in_words(&error);
                Fault::Other(format!("{address} has no tables of nightlight-server ({why}); a server that has run makes them"))
            })?;
            match rows.first() {
                Some(row) => row.whole(0).map_err(|error| fault(&error)),
                None => Ok(0),
            }
        });
        let (found, ours) = (version.await?, newest());
        match found == ours {
            true => Ok(conn),
            false => Err(Fault::Other(format!(
                "{} has tables of version {found}, and this program knows {ours}; use the same version as the server that runs",
                self.address
            ))),
        }
    }

    /// Does it in time.
    ///
    /// # Errors
    /// Those of `what`; the connection is of no use after [`Fault`] for lack of time.
    pub async fn within<T>(
        &self,
        what: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        match tokio::time::timeout(self.timeout, what).await {
            Ok(done) => done,
            Err(_) => Err(Fault::Other(format!(
                "{} did not answer within {} s (database.timeout)",
                self.address,
                self.timeout.as_secs_f64()
            ))),
        }
    }

    async fn connect_to(&self, create: bool) -> Result<Conn, Fault> {
        match &self.address {
            Address::Sqlite(path) => {
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(create)
                    .journal_mode(SqliteJournalMode::Wal)
                    // What is committed survives a power cut.
                    .synchronous(SqliteSynchronous::Full)
                    .pragma("journal_size_limit", WAL_BYTES)
                    .busy_timeout(BUSY)
                    .disable_statement_logging();
                match options.connect().await {
                    Ok(conn) => Ok(Conn::Sqlite(conn)),
                    Err(error) => Err(self.unopened(path, &error)),
                }
            }
            Address::Postgres(options) => {
                let mut options = options.as_ref().clone().disable_statement_logging();
                if let Some(file) = &self.password_file {
                    let text = std::fs::read_to_string(file).map_err(|error| {
                        of_io(&error, format!("cannot read {}: {error}", file.display()))
                    })?;
                    options = options.password(text.lines().next().unwrap_or_default());
                }
                let conn = options
                    .connect()
                    .await
                    .map_err(|error| match fault(&error) {
                        Fault::Permission(why) => {
                            Fault::Permission(format!("{}: {why}", self.address))
                        }
                        other => Fault::Other(format!("{}: {}", self.address, other.words())),
                    })?;
                let mut conn = Conn::Postgres(conn);
                // An ack promises that a crash of the database does not undo it.
                let durable = "select set_config('synchronous_commit', 'on', false) \
                               where current_setting('synchronous_commit') = 'off'";
                conn.rows(durable, &[])
                    .await
                    .map_err(|error| fault(&error))?;
                Ok(conn)
            }
        }
    }

    fn unopened(&self, path: &Path, error: &Error) -> Fault {
        let tried = std::fs::OpenOptions::new()
            .read(true)
            .append(true)
            .open(path);
        let path = path.display();
        match tried {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Fault::Permission(format!("no right to {path}: {error}"))
            }
            _ => match fault(error) {
                Fault::Again(why) => Fault::Other(format!("{path} is in use: {why}")),
                other => Fault::Other(format!("cannot open {path}: {}", other.words())),
            },
        }
    }

    fn outdated(&self, error: MigrateError) -> Fault {
        let address = &self.address;
        match error {
            MigrateError::VersionMissing(version) => Fault::Other(format!(
                "{address} has tables of version {version}, and this program knows {}; run a newer nightlight-server",
                newest()
            )),
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                match fault(&error) {
                    Fault::Permission(why) => Fault::Permission(format!("{address}: {why}")),
                    other => Fault::Other(format!("{address}: {}", other.words())),
                }
            }
            error => Fault::Other(format!("{address}: {error}")),
        }
    }
}

impl Fault {
    /// In words.
    pub fn words(&self) -> &str {
        match self {
            Self::Again(why) | Self::Permission(why) | Self::Other(why) => why,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        fault(&error)
    }
}

/// The newest version of the tables.
fn newest() -> i64 {
    MIGRATIONS.last().map_or(0, |(version, ..)| *version)
}

async fn migrate(conn: &mut Conn) -> Result<(), MigrateError> {
    let for_sqlite = matches!(conn, Conn::Sqlite(_));
    let of =
        |(version, name, sqlite, postgres): &(i64, &'static str, &'static str, &'static str)| {
            let sql = if for_sqlite { sqlite } else { postgres };
            Migration::new(
                *version,
                Cow::Borrowed(name),
                MigrationType::Simple,
                Cow::Borrowed(sql),
                false,
            )
        };
    let migrator = Migrator {
        migrations: MIGRATIONS.iter().map(of).collect(),
        ..Migrator::DEFAULT
    };
    match conn {
        Conn::Sqlite(conn) => migrator.run_direct(conn).await,
        Conn::Postgres(conn) => migrator.run_direct(conn).await,
    }
}

/// What kind of error it is. The codes are SQLite's result codes and PostgreSQL's SQLSTATE.
fn fault(error: &Error) -> Fault {
    let code = match error {
        Error::Database(error) => error.code().map(Cow::into_owned),
        _ => None,
    };
    let why = in_words(error);
    match code.as_deref() {
        // Busy, locked; busy after a recovery, a snapshot that is too old. Serialisation, deadlock, lock.
        Some("5" | "6" | "261" | "517" | "40001" | "40P01" | "55P03") => Fault::Again(why),
        // Rights; password, authorisation.
        Some("3" | "23" | "42501" | "28P01" | "28000") => Fault::Permission(why),
        _ => Fault::Other(why),
    }
}

fn in_words(error: &Error) -> String {
    match error {
        Error::Database(error) => error.message().to_owned(),
        Error::Io(error) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "nobody listens there".into(),
            _ => error.to_string(),
        },
        other => other.to_string(),
    }
}

fn of_io(error: &std::io::Error, why: String) -> Fault {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => Fault::Permission(why),
        _ => Fault::Other(why),
    }
}
