//! Publishing again what the stream may lack. One publisher at a time: two that each know a part would publish an
//! object's events in two orders.

use std::fs::{File, TryLockError};
use std::time::Duration;

use crate::db::{Db, StoreError};
use crate::postgres::PgLock;

/// How often a lock that another publisher holds is tried again.
const LOOK: Duration = Duration::from_millis(50);

/// The right to publish again. Given back when dropped, and by the system where the process dies.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held")] Held);

#[derive(Debug)]
enum Held {
    File(#[expect(dead_code, reason = "held")] File),
    Lock(#[expect(dead_code, reason = "held")] PgLock),
}

impl Turn {
    /// Waits for it.
    pub(crate) async fn take(db: &Db) -> Result<Self, StoreError> {
        loop {
            if let Some(turn) = Self::try_take(db).await? {
                return Ok(turn);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn try_take(db: &Db) -> Result<Option<Self>, StoreError> {
        match db {
            Db::Sqlite(sqlite) => {
                let failed = |error| StoreError::Folder(sqlite.turn.clone(), error);
                let file = File::create(&sqlite.turn).map_err(failed)?;
                match file.try_lock() {
                    Ok(()) => Ok(Some(Self(Held::File(file)))),
                    Err(TryLockError::WouldBlock) => Ok(None),
                    Err(TryLockError::Error(error)) => Err(failed(error)),
                }
            }
            Db::Postgres(pool) => {
                let sql = "SELECT pg_try_advisory_lock(hashtextextended(current_schema() || '.event', 0))";
                Ok(pool.try_lock(sql).await?.map(|lock| Self(Held::Lock(lock))))
            }
        }
    }
}

/// Since when somebody has begun to publish again and has not come to the end: what the stream holds of that time may
/// look complete and is not.
pub(crate) async fn begun(db: &Db) -> Result<Option<i64>, StoreError> {
    let sql = "SELECT since FROM outbox_recovery WHERE one = 1";
    Ok(match db {
        Db::Sqlite(sqlite) => sqlx::query_scalar(sql).fetch_optional(&sqlite.write).await?,
        Db::Postgres(pool) => sqlx::query_scalar(sql).fetch_optional(pool).await?,
    })
}

/// Writes down that everything since a time is to be published again.
pub(crate) async fn begin(db: &Db, since: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO outbox_recovery (one, since) VALUES (1, $1)
               ON CONFLICT (one) DO UPDATE SET since = excluded.since";
    match db {
        Db::Sqlite(sqlite) => sqlx::query(sql).bind(since).execute(&sqlite.write).await.map(drop)?,
        Db::Postgres(pool) => sqlx::query(sql).bind(since).execute(pool).await.map(drop)?,
    }
    Ok(())
}

/// It is done.
pub(crate) async fn end(db: &Db) -> Result<(), StoreError> {
    let sql = "DELETE FROM outbox_recovery";
    match db {
        Db::Sqlite(sqlite) => sqlx::query(sql).execute(&sqlite.write).await.map(drop)?,
        Db::Postgres(pool) => sqlx::query(sql).execute(pool).await.map(drop)?,
    }
    Ok(())
}
