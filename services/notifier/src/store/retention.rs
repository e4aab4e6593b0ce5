//! What is old goes: deliveries after 30 days, then their events; those of deleted destinations at once.

use errand_store::{Db, StoreError};

use super::Store;

/// Rows that are deleted at once, so that the writer is not held up.
const BATCH: i64 = 500;

/// `$1`: older than this. What waits for an active destination stays, however old; what waits for an inactive one has
/// had its time.
const OLD: &str = "DELETE FROM delivery WHERE position IN (
    SELECT d.position FROM delivery d JOIN destination s ON s.number = d.destination
     WHERE d.position > $2 AND d.created_at < $1 AND (s.status <> 0 OR (d.status <> 0 AND d.finished_at < $1))
     ORDER BY d.position LIMIT $3) RETURNING position";
const EVENTS: &str = "DELETE FROM delivery_event WHERE number IN (
    SELECT e.number FROM delivery_event e
     WHERE e.number > $2 AND e.created_at < $1 AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.event = e.number)
     ORDER BY e.number LIMIT $3) RETURNING number";
const DELETED: &str = "SELECT number FROM destination WHERE status = 2";
const OF_DELETED: &str = "DELETE FROM delivery WHERE position IN (
    SELECT position FROM delivery WHERE destination = $1 AND position > $2 ORDER BY position LIMIT $3)
    RETURNING position";
/// A delivery may still come in behind the deletion, so the row stays until nobody can have an older picture.
const FORGET: &str = "DELETE FROM destination WHERE status = 2 AND number = $1 AND updated_at < $2
    AND NOT EXISTS (SELECT 1 FROM delivery WHERE destination = $1)";

impl Store {
    /// Deletes what is older than `before`; how many rows went.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sweep(&self, before: i64) -> Result<usize, StoreError> {
        let mut gone = self.delete_all(OLD, before).await?;
        let deleted: Vec<i64> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_scalar(DELETED).fetch_all(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_scalar(DELETED).fetch_all(pool).await?,
        };
        for number in deleted {
            gone += self.delete_all(OF_DELETED, number).await?;
            match self.db() {
                Db::Sqlite(sqlite) => {
                    sqlx::query(FORGET).bind(number).bind(before).execute(&sqlite.write).await.map(drop)?;
                }
                Db::Postgres(pool) => sqlx::query(FORGET).bind(number).bind(before).execute(pool).await.map(drop)?,
            }
        }
        Ok(gone + self.delete_all(EVENTS, before).await?)
    }

    /// Deletes by batches, each behind the one before.
    async fn delete_all(&self, sql: &'static str, bound: i64) -> Result<usize, StoreError> {
        let (mut after, mut gone) = (0_i64, 0);
        loop {
            let rows: Vec<i64> = match self.db() {
                Db::Sqlite(sqlite) => {
                    sqlx::query_scalar(sql).bind(bound).bind(after).bind(BATCH).fetch_all(&sqlite.write).await?
                }
                Db::Postgres(pool) => {
                    sqlx::query_scalar(sql).bind(bound).bind(after).bind(BATCH).fetch_all(pool).await?
                }
            };
            let Some(last) = rows.iter().max() else { return Ok(gone) };
            gone += rows.len();
            after = *last;
        }
    }
}
