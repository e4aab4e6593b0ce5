//! What is old goes, a few rows at a time, so that what is new is not held up. The space that it leaves is used again.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use tokio_util::sync::CancellationToken;

use crate::db::{Db, StoreError};
use crate::outbox::now_ms;

/// How long events are kept (CONTRACT section 4), as in the event stream.
const EVENT_DAYS: u32 = 30;
const DAY_MS: i64 = 24 * 3600 * 1000;
/// Rows that go in one statement: on SQLite everybody who writes waits for it.
pub const BATCH: i64 = 500;
/// How long after a full batch the next one goes.
const NEXT: Duration = Duration::from_millis(50);
/// How long after one that was not full.
const REST: Duration = Duration::from_secs(60);

/// Deletes what is over for so many days, until shutdown; with 0 nothing. `batch` is given the time, in milliseconds since
/// the Unix epoch, and says how many rows went; fewer than [`BATCH`]: there are no more.
///
/// # Errors
/// None at present: what fails is tried again.
pub async fn run<F, Fut>(what: &'static str, days: u32, batch: F, shutdown: CancellationToken) -> Result<(), StoreError>
where
    F: Fn(i64) -> Fut + Send,
    Fut: Future<Output = Result<u64, StoreError>> + Send,
{
    if days == 0 {
        shutdown.cancelled().await;
    }
    while !shutdown.is_cancelled() {
        let pause = match batch(now_ms() - i64::from(days) * DAY_MS).await {
            Ok(gone) if gone >= BATCH.unsigned_abs() => NEXT,
            Ok(_) => REST,
            Err(error) => {
                tracing::warn!(%error, what, "what is old could not be deleted; it is tried again");
                REST
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => {}
        }
    }
    Ok(())
}

impl Db {
    /// Deletes events whose time is over, until shutdown.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn forget_old_events(self, shutdown: CancellationToken) -> Result<(), StoreError> {
        run("events", EVENT_DAYS, |before| self.delete_events_before(before), shutdown).await
    }

    /// Deletes a batch of the oldest events that were made before a time and have been published; how many.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn delete_events_before(&self, before_ms: i64) -> Result<u64, StoreError> {
        let sql = "DELETE FROM event WHERE position IN (
                     SELECT e.position FROM event e JOIN outbox_writer w ON w.writer = e.position >> 40
                     WHERE e.created_at < $1 AND e.position <= w.mark ORDER BY e.created_at LIMIT $2)";
        Ok(match self {
            Self::Sqlite(sqlite) => {
                sqlx::query(sql).bind(before_ms).bind(BATCH).execute(&sqlite.write).await?.rows_affected()
            }
            Self::Postgres(pool) => sqlx::query(sql).bind(before_ms).bind(BATCH).execute(pool).await?.rows_affected(),
        })
    }

    /// Deletes a batch of the oldest rows of `table` whose `status` is one of `ended` and which changed last before a
    /// time; how many. Ids say when they were made, so that these are found without an index of their own: one whose id,
    /// chosen by a client, is of a later time waits for that.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn delete_ended(&self, table: &str, ended: &str, before_ms: i64) -> Result<u64, StoreError> {
        let find = format!(
            "SELECT id FROM {table} WHERE id < $1 AND updated_at < $2 AND status IN ({ended}) ORDER BY id LIMIT $3"
        );
        let newest = first_id_of(before_ms);
        Ok(match self {
            Self::Sqlite(sqlite) => {
                let sql = AssertSqlSafe(format!("DELETE FROM {table} WHERE id IN ({find})"));
                let query = sqlx::query(sql).bind(newest).bind(before_ms).bind(BATCH);
                query.execute(&sqlite.write).await?.rows_affected()
            }
            Self::Postgres(pool) => {
                let sql = AssertSqlSafe(format!("DELETE FROM {table} WHERE id IN ({find} FOR UPDATE SKIP LOCKED)"));
                let query = sqlx::query(sql).bind(newest).bind(before_ms).bind(BATCH);
                query.execute(pool).await?.rows_affected()
            }
        })
    }
}

/// The first UUIDv7 of its millisecond: 48 bits of time, then what is random (RFC 9562).
#[must_use]
pub fn first_id_of(ms: i64) -> Vec<u8> {
    let mut id = vec![0; 16];
    id[..6].copy_from_slice(&ms.max(0).to_be_bytes()[2..]);
    id
}
