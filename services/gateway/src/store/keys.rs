use errand_core::{ApiKeyId, Tenant};
use errand_proto::v1;
use errand_store::StoreError;
use uuid::Uuid;

use super::{Store, on_db};

/// A key as the store has it.
#[derive(Debug, Clone)]
pub struct StoredKey {
    /// The key.
    pub id: ApiKeyId,
    /// Whose.
    pub tenant: Tenant,
    /// What it is for.
    pub name: String,
    /// Scopes with blanks between.
    pub scopes: String,
    /// The secret's last characters.
    pub hint: String,
    /// SHA-256 of the secret.
    pub hash: Vec<u8>,
    /// When it was made.
    pub created_at: i64,
    /// Until when it is taken.
    pub expires_at: Option<i64>,
    /// Since when it is not.
    pub revoked_at: Option<i64>,
    /// When it was taken last, to the minute.
    pub last_used_at: Option<i64>,
}

type Row = (Vec<u8>, String, String, String, String, Vec<u8>, i64, Option<i64>, Option<i64>, Option<i64>);

const COLUMNS: &str = "id, tenant, name, scopes, hint, hash, created_at, expires_at, revoked_at, last_used_at";

fn key_of(row: Row) -> Result<StoredKey, StoreError> {
    let (id, tenant, name, scopes, hint, hash, created_at, expires_at, revoked_at, last_used_at) = row;
    let id = Uuid::from_slice(&id).map_err(|_| StoreError::Corrupt("a key's id".into()))?;
    let tenant = tenant.parse().map_err(|_| StoreError::Corrupt("a key's tenant".into()))?;
    let id = ApiKeyId::from_uuid(id);
    Ok(StoredKey { id, tenant, name, scopes, hint, hash, created_at, expires_at, revoked_at, last_used_at })
}

impl From<&StoredKey> for v1::ApiKey {
    fn from(key: &StoredKey) -> Self {
        Self {
            id: key.id.to_string(),
            tenant: key.tenant.to_string(),
            name: key.name.clone(),
            scopes: key.scopes.split(' ').map(str::to_owned).collect(),
            hint: key.hint.clone(),
            created_at_ms: key.created_at,
            expires_at_ms: key.expires_at,
            revoked_at_ms: key.revoked_at,
            last_used_at_ms: key.last_used_at,
        }
    }
}

impl Store {
    /// Keeps a key. The one with the same hash, where there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_key(&self, key: &StoredKey) -> Result<Option<StoredKey>, StoreError> {
        let sql = "INSERT INTO api_key (id, tenant, name, scopes, hint, hash, created_at, expires_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
        macro_rules! bound {
            () => {
                sqlx::query(sql)
                    .bind(key.id.uuid().as_bytes().to_vec())
                    .bind(key.tenant.as_str().to_owned())
                    .bind(key.name.clone())
                    .bind(key.scopes.clone())
                    .bind(key.hint.clone())
                    .bind(key.hash.clone())
                    .bind(key.created_at)
                    .bind(key.expires_at)
            };
        }
        on_db!(&self.db, write bound!() => execute_count)?;
        self.key_by_hash(&key.hash).await
    }

    /// The key whose secret has this hash.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn key_by_hash(&self, hash: &[u8]) -> Result<Option<StoredKey>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM api_key WHERE hash = $1"));
        let row: Option<Row> = on_db!(&self.db, read sqlx::query_as(sql).bind(hash.to_vec()) => fetch_optional)?;
        row.map(key_of).transpose()
    }

    /// A tenant's keys, newest first, older than one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keys(
        &self,
        tenant: &Tenant,
        before: Option<ApiKeyId>,
        limit: u32,
    ) -> Result<Vec<StoredKey>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM api_key WHERE tenant = $1 AND id < $2 ORDER BY id DESC LIMIT $3");
        let before = before.map_or(Uuid::max(), ApiKeyId::uuid).as_bytes().to_vec();
        let sql = sqlx::AssertSqlSafe(sql);
        let tenant = tenant.as_str().to_owned();
        let rows: Vec<Row> = on_db!(&self.db, read
            sqlx::query_as(sql).bind(tenant).bind(before).bind(i64::from(limit)) => fetch_all)?;
        rows.into_iter().map(key_of).collect()
    }

    /// Ends a key, once. None: the tenant has no such key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn revoke_key(&self, tenant: &Tenant, id: ApiKeyId, now: i64) -> Result<Option<StoredKey>, StoreError> {
        let sql = "UPDATE api_key SET revoked_at = coalesce(revoked_at, $1) WHERE tenant = $2 AND id = $3";
        let (tenant, id) = (tenant.as_str().to_owned(), id.uuid().as_bytes().to_vec());
        on_db!(&self.db, write sqlx::query(sql).bind(now).bind(tenant.clone()).bind(id.clone()) => execute_count)?;
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM api_key WHERE tenant = $1 AND id = $2"));
        let row: Option<Row> = on_db!(&self.db, read sqlx::query_as(sql).bind(tenant).bind(id) => fetch_optional)?;
        row.map(key_of).transpose()
    }

    /// Notes that a key was taken.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn key_used(&self, id: ApiKeyId, at: i64) -> Result<(), StoreError> {
        let sql = "UPDATE api_key SET last_used_at = $1 WHERE id = $2 AND coalesce(last_used_at, 0) < $1";
        let id = id.uuid().as_bytes().to_vec();
        on_db!(&self.db, write sqlx::query(sql).bind(at).bind(id) => execute_count)?;
        Ok(())
    }
}
