use errand_core::CredentialId;
use errand_store::{Db, StoreError};

use super::{Store, key, uuid};

const SELECT_PRIVATE: &str = "SELECT private_key FROM sealing_key WHERE one = 1";
const INSERT_PRIVATE: &str = "INSERT INTO sealing_key (one, private_key) VALUES (1, $1) ON CONFLICT DO NOTHING";
const UPDATE_PRIVATE: &str = "UPDATE sealing_key SET private_key = $1 WHERE one = 1 AND private_key = $2";
const SELECT_PAGE: &str = "SELECT id, data_key FROM credential WHERE deleted = 0 AND id > $1 ORDER BY id LIMIT $2";
// Only where it is still what was read: its owner may have changed the secrets, and the key with them.
const UPDATE_KEY: &str = "UPDATE credential SET data_key = $1 WHERE id = $2 AND data_key = $3";

/// A data key that is sealed with another master key now.
#[derive(Debug, Clone)]
pub struct Resealed {
    /// Whose it is.
    pub id: CredentialId,
    /// As it was.
    pub before: Vec<u8>,
    /// As it is to be.
    pub after: Vec<u8>,
}

impl Store {
    /// The sealed private key that secrets come in under; `made` where there was none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn private_key(&self, made: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, StoreError> {
        macro_rules! get_or_insert {
            ($pool:expr) => {{
                if let Some(found) = sqlx::query_scalar(SELECT_PRIVATE).fetch_optional($pool).await? {
                    return Ok(found);
                }
                // Another vault may be quicker: then its key is the one.
                sqlx::query(INSERT_PRIVATE).bind(made()).execute($pool).await?;
                sqlx::query_scalar(SELECT_PRIVATE).fetch_one($pool).await?
            }};
        }
        Ok(match self.db() {
            Db::Sqlite(sqlite) => get_or_insert!(&sqlite.write),
            Db::Postgres(pool) => get_or_insert!(pool),
        })
    }

    /// Stores the private key as sealed anew. False: another vault has done so meanwhile.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reseal_private_key(&self, before: &[u8], after: &[u8]) -> Result<bool, StoreError> {
        let rows = match self.db() {
            Db::Sqlite(sqlite) => {
                sqlx::query(UPDATE_PRIVATE).bind(after).bind(before).execute(&sqlite.write).await?.rows_affected()
            }
            Db::Postgres(pool) => {
                sqlx::query(UPDATE_PRIVATE).bind(after).bind(before).execute(pool).await?.rows_affected()
            }
        };
        Ok(rows > 0)
    }

    /// The sealed data keys behind this id, of every tenant, in the order of their ids.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn data_keys(
        &self,
        after: Option<CredentialId>,
        limit: u32,
    ) -> Result<Vec<(CredentialId, Vec<u8>)>, StoreError> {
        let after = after.map_or_else(Vec::new, |id| key(id.uuid()));
        let limit = i64::from(limit);
        let rows: Vec<(Vec<u8>, Vec<u8>)> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(SELECT_PAGE).bind(after).bind(limit).fetch_all(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(SELECT_PAGE).bind(after).bind(limit).fetch_all(pool).await?,
        };
        rows.into_iter().map(|(id, data_key)| Ok((CredentialId::from_uuid(uuid(&id)?), data_key))).collect()
    }

    /// Stores data keys as sealed anew, in one transaction; how many were still what they were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reseal(&self, keys: &[Resealed]) -> Result<u64, StoreError> {
        macro_rules! reseal {
            ($tx:expr) => {{
                let (mut tx, mut done) = ($tx, 0);
                for one in keys {
                    let update = sqlx::query(UPDATE_KEY).bind(&one.after).bind(key(one.id.uuid())).bind(&one.before);
                    done += update.execute(&mut *tx).await?.rows_affected();
                }
                tx.commit().await?;
                done
            }};
        }
        Ok(match self.db() {
            Db::Sqlite(sqlite) => reseal!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?),
            Db::Postgres(pool) => reseal!(pool.begin().await?),
        })
    }
}
