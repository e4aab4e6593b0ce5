use errand_core::{StorageId, Timestamp};
use errand_store::{Db, StoreError};
use uuid::Uuid;

use super::{Store, bytes, changing, reading, uuid, writing};

const DELETE: &str = "DELETE FROM artifact WHERE id = $1 RETURNING run_id, blob_id, size";
const LEAVE_RUN: &str = "UPDATE run_files SET files = files - 1, bytes = bytes - $1 WHERE run_id = $2";
const FORGET_RUN: &str = "DELETE FROM run_files WHERE run_id = $1 AND files <= 0";
const LEAVE_BLOB: &str = "UPDATE stored SET refs = refs - 1, changed_at = $1,
    state = CASE WHEN refs <= 1 THEN 'garbage' ELSE state END WHERE id = $2 RETURNING state";

impl Store {
    /// Deletes artifacts. Gives the blobs that nobody needs any more: their bytes are to be deleted, then they
    /// themselves with [`Self::forget`]; the sweep finds those that were not.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is deleted then, or all.
    pub async fn delete(&self, ids: &[StorageId], now: Timestamp) -> Result<Vec<Uuid>, StoreError> {
        let mut ids = ids.to_vec();
        // One order for everybody: two deletions cannot wait for each other.
        ids.sort_unstable();
        let mut garbage = Vec::new();
        changing!(self.db(), tx => {
            for id in ids {
                let query = sqlx::query_as(DELETE).bind(bytes(id.uuid()));
                let deleted: Option<(Vec<u8>, Vec<u8>, i64)> = query.fetch_optional(&mut *tx).await?;
                let Some((run, blob, size)) = deleted else { continue };
                sqlx::query(LEAVE_RUN).bind(size).bind(&run).execute(&mut *tx).await?;
                sqlx::query(FORGET_RUN).bind(&run).execute(&mut *tx).await?;
                let query = sqlx::query_as(LEAVE_BLOB).bind(now.0).bind(&blob);
                let state: Option<(String,)> = query.fetch_optional(&mut *tx).await?;
                if state.is_some_and(|(state,)| state == "garbage") {
                    garbage.push(uuid(&blob)?);
                }
            }
            tx.commit().await?;
        });
        Ok(garbage)
    }

    /// Artifacts whose time has come, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn expired(&self, now: Timestamp, limit: u32) -> Result<Vec<StorageId>, StoreError> {
        let sql = "SELECT id FROM artifact WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2";
        let rows: Vec<(Vec<u8>,)> = reading!(self.db(), pool => {
            sqlx::query_as(sql).bind(now.0).bind(i64::from(limit)).fetch_all(pool).await?
        });
        rows.into_iter().map(|(id,)| Ok(StorageId::from_uuid(uuid(&id)?))).collect()
    }

    /// Blobs to be swept: those that nobody needs, and those whose upload broke off before `pending_before`. The latter
    /// become garbage here, so that no commit can take one while its bytes go.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sweepable(
        &self,
        pending_before: Timestamp,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Uuid>, StoreError> {
        let abandon =
            "UPDATE stored SET state = 'garbage', changed_at = $1 WHERE state = 'pending' AND changed_at < $2";
        let select = "SELECT id FROM stored WHERE state = 'garbage' ORDER BY changed_at LIMIT $1";
        let rows: Vec<(Vec<u8>,)> = writing!(self.db(), pool => {
            sqlx::query(abandon).bind(now.0).bind(pending_before.0).execute(pool).await?;
            sqlx::query_as(select).bind(i64::from(limit)).fetch_all(pool).await?
        });
        rows.into_iter().map(|(id,)| uuid(&id)).collect()
    }

    /// Forgets blobs whose bytes are gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget(&self, blobs: &[Uuid]) -> Result<(), StoreError> {
        changing!(self.db(), tx => {
            for blob in blobs {
                let sql = "DELETE FROM stored WHERE id = $1 AND state = 'garbage'";
                sqlx::query(sql).bind(bytes(*blob)).execute(&mut *tx).await?;
            }
            tx.commit().await?;
        });
        Ok(())
    }
}
