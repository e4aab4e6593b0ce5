//! Sessions in SQLite or Postgres. One pool writes at a time: each commit names the epoch of the pool that makes it,
//! and finds out when another one has taken over.

mod migrations;
mod read;
#[cfg(test)]
mod tests;
mod write;

use errand_store::{Db, PgLock, StoreError, retention};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use read::Query;

/// The session-pool's part of the store.
#[derive(Debug, Clone)]
pub struct Store {
    db: Db,
}

impl Store {
    /// Deletes sessions so many days after their end, until shutdown; with 0 none.
    ///
    /// # Errors
    /// As [`retention::run`].
    pub async fn forget_old_sessions(self, days: u32, shutdown: CancellationToken) -> Result<(), StoreError> {
        let batch = |before| self.db.delete_ended("session", "'completed', 'failed'", before);
        retention::run("sessions", days, batch, shutdown).await
    }
}

/// The right to write. Ends when another pool takes it, which the next commit notices.
#[derive(Debug)]
pub struct Ownership {
    /// This pool's: another one at each start.
    pub epoch: Uuid,
    batch: i64,
    /// On Postgres: holds the lock that keeps others standing by.
    _lock: Option<PgLock>,
}

impl Ownership {
    /// As if the answer to the last commit had been lost: simulations try it again.
    pub const fn forget_last(&mut self) {
        self.batch -= 1;
    }
}

/// Why a batch was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another pool has taken over.
    #[error("another session-pool has taken over")]
    TakenOver,
    /// It is unknown whether it was.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CommitError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// One lock for all pools of a schema.
const LOCK: &str = "SELECT pg_try_advisory_lock(hashtext('errand-session-pool'), hashtext(current_schema()))";

impl Store {
    /// Opens the store and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Ok(Self { db: Db::open(url, "session-pool", migrations::ALL).await? })
    }

    /// The database, for the outbox.
    #[must_use]
    pub const fn db(&self) -> &Db {
        &self.db
    }

    /// Becomes the one that writes; none while another pool is. A SQLite file has one process at a time, so that a
    /// pool which finds one takes it at once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_over(&self, epoch: Uuid) -> Result<Option<Ownership>, StoreError> {
        let take = "UPDATE owner SET epoch = $1 WHERE one = 1 RETURNING batch";
        let epoch_bytes = epoch.as_bytes().as_slice();
        match &self.db {
            Db::Sqlite(sqlite) => {
                let batch = sqlx::query_scalar(take).bind(epoch_bytes).fetch_one(&sqlite.write).await?;
                Ok(Some(Ownership { epoch, batch, _lock: None }))
            }
            Db::Postgres(pool) => {
                let Some(lock) = pool.try_lock(LOCK).await? else { return Ok(None) };
                let batch = sqlx::query_scalar(take).bind(epoch_bytes).fetch_one(pool).await?;
                Ok(Some(Ownership { epoch, batch, _lock: Some(lock) }))
            }
        }
    }
}
