use errand_store::retention::{self, BATCH, first_id_of};
use errand_store::{Db, StoreError};
use tokio_util::sync::CancellationToken;

use super::Store;

impl Store {
    /// Deletes runs so many days after their end, until shutdown; with 0 none.
    ///
    /// # Errors
    /// As [`retention::run`].
    pub async fn forget_old_runs(self, days: u32, shutdown: CancellationToken) -> Result<(), StoreError> {
        retention::run("runs", days, |before| self.delete_runs_before(before), shutdown).await
    }

    /// Deletes a batch of the oldest runs that ended before a time, and of the inputs that no run has any more; how many
    /// runs.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn delete_runs_before(&self, before_ms: i64) -> Result<u64, StoreError> {
        let gone = self.db.delete_ended("run", "'completed', 'failed', 'canceled'", before_ms).await?;
        let sql = "DELETE FROM run_input WHERE run_id IN (
                     SELECT i.run_id FROM run_input i WHERE i.run_id < $1
                     AND NOT EXISTS (SELECT 1 FROM run r WHERE r.id = i.run_id) ORDER BY i.run_id LIMIT $2)";
        let before = first_id_of(before_ms);
        match &self.db {
            Db::Sqlite(sqlite) => {
                sqlx::query(sql).bind(before).bind(BATCH).execute(&sqlite.write).await.map(drop)?;
            }
            Db::Postgres(pool) => sqlx::query(sql).bind(before).bind(BATCH).execute(pool).await.map(drop)?,
        }
        Ok(gone)
    }
}
