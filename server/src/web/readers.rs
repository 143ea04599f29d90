//! A few connections to the database for those who only look: visitors wait for one, never the work.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::store::{Conn, Database, Fault};

/// Connections at a time.
const READERS: usize = 4;

/// Lends connections.
#[derive(Debug, Clone)]
pub(super) struct Readers {
    database: Arc<Database>,
    places: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Conn>>>,
}

/// A connection that is lent. It is closed when dropped; [`Reader::keep`] gives it back.
#[derive(Debug)]
pub(super) struct Reader {
    /// The connection.
    pub conn: Conn,
    idle: Arc<Mutex<Vec<Conn>>>,
    _place: OwnedSemaphorePermit,
}

impl Readers {
    /// Of this database; none is opened yet.
    pub(super) fn new(database: Database) -> Self {
        Self {
            database: Arc::new(database),
            places: Arc::new(Semaphore::new(READERS)),
            idle: Arc::default(),
        }
    }

    /// A connection, as soon as one is free.
    ///
    /// # Errors
    /// The database cannot be reached, or has other tables.
    pub(super) async fn one(&self) -> Result<Reader, Fault> {
        let place = Arc::clone(&self.places).acquire_owned();
        let place = self
            .database
            .within(async {
                place
                    .await
                    .map_err(|_| Fault::Other("the server is stopping".into()))
            })
            .await?;
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let conn = match idle {
            Some(conn) => conn,
            None => self.database.look().await?,
        };
        Ok(Reader {
            conn,
            idle: Arc::clone(&self.idle),
            _place: place,
        })
    }

    /// Within the time that a question may take.
    ///
    /// # Errors
    /// Those of `what`, and when it takes longer.
    pub(super) async fn within<T>(
        &self,
        what: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        self.database.within(what).await
    }
}

impl Reader {
    /// The connection is good and may serve the next one.
    pub(super) fn keep(self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(self.conn);
    }
}
