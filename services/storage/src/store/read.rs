use bytes::Bytes;
use errand_core::artifact::ArtifactKind;
use errand_core::{RunId, StorageId, Tenant};
use errand_store::paging::{CHUNK, Place};
use errand_store::{Db, StoreError};
use uuid::Uuid;

use super::{Store, bytes, reading, uuid};
use crate::artifact::Artifact;

/// What was read of a list, in order, each with what fits.
pub(crate) type Scanned = Vec<(Uuid, Option<Artifact>)>;

type Row = (Vec<u8>, String, Option<Vec<u8>>);

pub(super) fn artifact_of(document: &str, data: Option<Vec<u8>>) -> Result<Artifact, StoreError> {
    let corrupt = |error| StoreError::Corrupt(format!("an artifact: {error}"));
    let mut artifact: Artifact = serde_json::from_str(document).map_err(corrupt)?;
    artifact.data = data.map(Bytes::from);
    Ok(artifact)
}

impl Store {
    /// An artifact, whoever's it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn artifact(&self, id: StorageId) -> Result<Option<Artifact>, StoreError> {
        let sql = "SELECT document, data FROM artifact WHERE id = $1";
        let found: Option<(String, Option<Vec<u8>>)> = reading!(self.db(), pool => {
            sqlx::query_as(sql).bind(bytes(id.uuid())).fetch_optional(pool).await?
        });
        found.map(|(document, data)| artifact_of(&document, data)).transpose()
    }

    /// Where a tenant's artifact has its bytes, and how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn blob_of(&self, tenant: &Tenant, id: StorageId) -> Result<Option<(Uuid, u64)>, StoreError> {
        let sql = "SELECT blob_id, size FROM artifact WHERE id = $1 AND tenant = $2";
        let found: Option<(Vec<u8>, i64)> = reading!(self.db(), pool => {
            sqlx::query_as(sql).bind(bytes(id.uuid())).bind(tenant.as_str()).fetch_optional(pool).await?
        });
        found.map(|(blob, size)| Ok((uuid(&blob)?, u64::try_from(size).unwrap_or(0)))).transpose()
    }

    /// The next chunk of a run's artifacts, of some kinds only.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn scan(
        &self,
        tenant: &Tenant,
        run: RunId,
        kinds: &[ArtifactKind],
        place: Place,
    ) -> Result<Scanned, StoreError> {
        let (compare, order, from) = match place {
            Place::Newest => ("<=", "DESC", Uuid::max()),
            Place::Before(id) => ("<", "DESC", id),
            Place::After(id) => (">", "ASC", id),
        };
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT id, document, data FROM artifact WHERE run_id = $1 AND tenant = $2 AND id {compare} $3
             ORDER BY id {order} LIMIT {CHUNK}"
        ));
        let (run, from) = (bytes(run.uuid()), bytes(from));
        let rows: Vec<Row> = reading!(self.db(), pool => {
            sqlx::query_as(sql).bind(run).bind(tenant.as_str()).bind(from).fetch_all(pool).await?
        });
        let fits = |artifact: &Artifact| kinds.is_empty() || kinds.contains(&artifact.kind);
        let scanned = rows.into_iter().map(|(id, document, data)| {
            Ok((uuid(&id)?, Some(artifact_of(&document, data)?).filter(|artifact| fits(artifact))))
        });
        scanned.collect()
    }
}
