use std::collections::HashSet;

use errand_core::{TaskId, Tenant, Timestamp};
use errand_proto::v1;
use errand_store::{Db, Outbox, PgTx, Staged, StoreError};
use sqlx::{Sqlite, Transaction};
use uuid::Uuid;

use super::read::artifact_of;
use super::{Store, bytes, changing, number, uuid, writing};
use crate::artifact::{Artifact, Sha256};
use crate::names;

/// What the files of one run may be, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunLimits {
    /// How many.
    pub files: u32,
    /// How many bytes.
    pub bytes: u64,
}

/// What is to be kept.
#[derive(Debug)]
pub struct Keep<'a> {
    /// Its name is made unique.
    pub artifact: &'a Artifact,
    /// Whether it may share its bytes with equal files of its task.
    pub shared: bool,
    /// Its own bytes, `pending`, where they were put.
    pub blob: Option<Uuid>,
    /// What the run may have.
    pub limits: RunLimits,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It is kept, under this name.
    New(Artifact),
    /// It has been kept before.
    Already(Artifact),
    /// The run may have no more files, or bytes.
    NoRoom,
    /// The equal file is gone, or the blob was swept: put the bytes, again.
    NoBytes,
}

const PENDING: &str = "INSERT INTO stored (id, tenant, task_id, sha256, size, shared, refs, state, changed_at)
    VALUES ($1, $2, $3, $4, $5, 0, 0, 'pending', $6)";
const ROOM: &str = "UPDATE run_files SET files = files + 1, bytes = bytes + $1
    WHERE run_id = $2 AND files + 1 <= $3 AND bytes + $1 <= $4";
const ENSURE_RUN: &str =
    "INSERT INTO run_files (run_id, files, bytes) VALUES ($1, 0, 0) ON CONFLICT (run_id) DO NOTHING";
const LOCK_RUN: &str = "UPDATE run_files SET files = files WHERE run_id = $1";
const KNOWN: &str = "SELECT document, data FROM artifact WHERE id = $1";
const NAMES: &str = "SELECT name_key FROM artifact WHERE run_id = $1";
const SHARE: &str = "UPDATE stored SET refs = refs + 1 WHERE tenant = $1 AND task_id = $2 AND sha256 = $3 AND size = $4
    AND shared = 1 AND state = 'kept' RETURNING id";
const TAKE: &str = "UPDATE stored SET state = 'kept', refs = 1, shared = $1, changed_at = $2
    WHERE id = $3 AND state = 'pending'";
const DISCARD: &str = "UPDATE stored SET state = 'garbage', changed_at = $1 WHERE id = $2 AND state = 'pending'";
const INSERT: &str = "INSERT INTO artifact (id, tenant, run_id, name_key, blob_id, size, expires_at, document, data)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/// The blob that an artifact gets in this transaction: an equal one, or its own; none where neither is there.
macro_rules! blob_of {
    ($tx:ident, $keep:ident) => {{
        let new = $keep.artifact;
        let mut equal: Option<(Vec<u8>,)> = None;
        if $keep.shared {
            equal = sqlx::query_as(SHARE)
                .bind(new.tenant.as_str())
                .bind(bytes(new.task_id.uuid()))
                .bind(new.sha256.as_slice())
                .bind(number(new.size))
                .fetch_optional(&mut *$tx)
                .await?;
        }
        match (equal, $keep.blob) {
            (Some((equal,)), own) => {
                if let Some(own) = own {
                    sqlx::query(DISCARD).bind(new.created_at.0).bind(bytes(own)).execute(&mut *$tx).await?;
                }
                Some(uuid(&equal)?)
            }
            (None, Some(own)) => {
                let take = sqlx::query(TAKE).bind(i64::from($keep.shared)).bind(new.created_at.0).bind(bytes(own));
                (take.execute(&mut *$tx).await?.rows_affected() > 0).then_some(own)
            }
            (None, None) => None,
        }
    }};
}

/// A transaction that takes events with it.
trait Tell {
    async fn tell(&mut self, events: &Staged) -> Result<(), StoreError>;
}

impl Tell for Transaction<'_, Sqlite> {
    async fn tell(&mut self, events: &Staged) -> Result<(), StoreError> {
        events.insert_sqlite(&mut *self).await
    }
}

impl Tell for PgTx {
    async fn tell(&mut self, events: &Staged) -> Result<(), StoreError> {
        events.insert_postgres(self).await
    }
}

impl Store {
    /// Writes down a blob before its first byte is put.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pending(&self, id: Uuid, artifact: &Artifact) -> Result<(), StoreError> {
        writing!(self.db(), pool => {
            sqlx::query(PENDING)
                .bind(bytes(id))
                .bind(artifact.tenant.as_str())
                .bind(bytes(artifact.task_id.uuid()))
                .bind(artifact.sha256.as_slice())
                .bind(number(artifact.size))
                .bind(artifact.created_at.0)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// Whether a task has equal bytes to share.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn has_equal(&self, tenant: &Tenant, task: TaskId, sha256: &Sha256) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM stored WHERE tenant = $1 AND task_id = $2 AND sha256 = $3 AND shared = 1
                   AND state = 'kept'";
        // Where one writes: the newest state, as the commit will find it.
        let found = writing!(self.db(), pool => {
            let query = sqlx::query(sql).bind(tenant.as_str()).bind(bytes(task.uuid())).bind(sha256.as_slice());
            query.fetch_optional(pool).await?.is_some()
        });
        Ok(found)
    }

    /// Says that a blob is not wanted after all; its bytes are swept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn discard(&self, id: Uuid, now: Timestamp) -> Result<(), StoreError> {
        writing!(self.db(), pool => {
            sqlx::query(DISCARD).bind(now.0).bind(bytes(id)).execute(pool).await?;
        });
        Ok(())
    }

    /// Commits an artifact whose bytes are durable, with its event, and publishes that. The outbox must be nobody
    /// else's meanwhile.
    ///
    /// # Errors
    /// [`StoreError`]; then it is unknown whether it was committed, and the event is seen to.
    pub async fn keep(
        &self,
        keep: &Keep<'_>,
        outbox: &Outbox,
        event: impl Fn(&Artifact) -> v1::Event,
    ) -> Result<Kept, StoreError> {
        let mut staged = None;
        let kept = self.commit(keep, |artifact| {
            let events = outbox.stage([event(artifact)])?;
            staged = Some(events.clone());
            Ok(events)
        });
        let kept = kept.await;
        match (&kept, staged) {
            (Ok(Kept::New(_)), Some(staged)) => outbox.publish(staged),
            (Err(_), Some(staged)) => outbox.uncertain(staged),
            _ => {}
        }
        kept
    }

    async fn commit(
        &self,
        keep: &Keep<'_>,
        stage: impl FnOnce(&Artifact) -> Result<Staged, StoreError>,
    ) -> Result<Kept, StoreError> {
        let new = keep.artifact;
        let (id, run) = (bytes(new.id.uuid()), bytes(new.run_id.uuid()));
        changing!(self.db(), tx => {
            // One after the other within a run: its names and its sums are read and written here.
            sqlx::query(ENSURE_RUN).bind(&run).execute(&mut *tx).await?;
            sqlx::query(LOCK_RUN).bind(&run).execute(&mut *tx).await?;
            let known: Option<(String, Option<Vec<u8>>)> = sqlx::query_as(KNOWN).bind(&id).fetch_optional(&mut *tx).await?;
            if let Some((document, data)) = known {
                return Ok(Kept::Already(artifact_of(&document, data)?));
            }
            let room = sqlx::query(ROOM)
                .bind(number(new.size))
                .bind(&run)
                .bind(i64::from(keep.limits.files))
                .bind(number(keep.limits.bytes));
            if room.execute(&mut *tx).await?.rows_affected() == 0 {
                return Ok(Kept::NoRoom);
            }
            let Some(blob) = blob_of!(tx, keep) else { return Ok(Kept::NoBytes) };
            let taken: Vec<(String,)> = sqlx::query_as(NAMES).bind(&run).fetch_all(&mut *tx).await?;
            let taken: HashSet<String> = taken.into_iter().map(|(name,)| name).collect();
            let name = names::free(&new.name, |name| taken.contains(&names::key(name)));
            let artifact = Artifact { name, ..new.clone() };
            let document = serde_json::to_string(&artifact).map_err(|error| StoreError::Corrupt(error.to_string()))?;
            sqlx::query(INSERT)
                .bind(&id)
                .bind(artifact.tenant.as_str())
                .bind(&run)
                .bind(names::key(&artifact.name))
                .bind(bytes(blob))
                .bind(number(artifact.size))
                .bind(artifact.expires_at.map(|at| at.0))
                .bind(document)
                .bind(artifact.data.as_deref())
                .execute(&mut *tx)
                .await?;
            tx.tell(&stage(&artifact)?).await?;
            tx.commit().await?;
            Ok(Kept::New(artifact))
        })
    }
}
