use errand_core::credential::Credential;
use errand_core::{CredentialId, Tenant, limits};
use errand_store::paging::Place;
use errand_store::{Db, Staged, StoreError};
use sqlx::AssertSqlSafe;

use super::{Changed, Created, Scanned, Store, chunk, document, is_foreign_key, key, read, uuid};
use crate::envelope::Sealed;

const SELECT: &str = "SELECT document, data_key, secrets FROM credential WHERE tenant = $1 AND id = $2 AND deleted = 0";
const INSERT: &str = "INSERT INTO credential (id, tenant, source_id, version, deleted, document, data_key, secrets)
    SELECT $1, $2, $3, $4, 0, $5, $6, $7
    WHERE (SELECT COUNT(*) FROM credential WHERE tenant = $2 AND deleted = 0) < $8 ON CONFLICT DO NOTHING";
const EXISTS: &str = "SELECT COUNT(*) FROM credential WHERE id = $1";
const UPDATE: &str = "UPDATE credential SET source_id = $1, version = $2, document = $3,
        data_key = COALESCE($4, data_key), secrets = COALESCE($5, secrets)
    WHERE id = $6 AND version = $7 AND deleted = 0";
const DELETE: &str = "UPDATE credential SET source_id = NULL, version = $1, document = $2, deleted = 1,
        data_key = $3, secrets = $3
    WHERE id = $4 AND version = $5 AND deleted = 0";

fn number(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

fn source_of(credential: &Credential) -> Option<Vec<u8>> {
    credential.source_id.map(|id| key(id.uuid()))
}

impl Store {
    /// A tenant's credential with its sealed secrets; none where it is not there or deleted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn credential(
        &self,
        tenant: &Tenant,
        id: CredentialId,
    ) -> Result<Option<(Credential, Sealed)>, StoreError> {
        let id = key(id.uuid());
        let found: Option<(String, Vec<u8>, Vec<u8>)> = match self.db() {
            // Through the writer where it is about what another vault may have just committed: a SQLite file has one
            // process, and its readers see what is committed.
            Db::Sqlite(sqlite) => {
                sqlx::query_as(SELECT).bind(tenant.as_str()).bind(id).fetch_optional(&sqlite.read).await?
            }
            Db::Postgres(pool) => sqlx::query_as(SELECT).bind(tenant.as_str()).bind(id).fetch_optional(pool).await?,
        };
        found.map(|(document, data_key, secrets)| Ok((read(&document)?, Sealed { data_key, secrets }))).transpose()
    }

    /// Stores a new credential with its event.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_credential(
        &self,
        credential: &Credential,
        sealed: &Sealed,
        event: &Staged,
    ) -> Result<Created, StoreError> {
        let (id, document) = (key(credential.id.uuid()), document(credential)?);
        macro_rules! create {
            ($tx:expr, $insert:ident) => {{
                let mut tx = $tx;
                let inserted = sqlx::query(INSERT)
                    .bind(id.clone())
                    .bind(credential.tenant.as_str())
                    .bind(source_of(credential))
                    .bind(number(credential.version))
                    .bind(document)
                    .bind(&sealed.data_key)
                    .bind(&sealed.secrets)
                    .bind(i64::from(limits::MAX_CREDENTIALS))
                    .execute(&mut *tx)
                    .await;
                match inserted {
                    Ok(done) if done.rows_affected() > 0 => {
                        event.$insert(&mut tx).await?;
                        tx.commit().await?;
                        return Ok(Created::Done);
                    }
                    Ok(_) => sqlx::query_scalar(EXISTS).bind(id).fetch_one(&mut *tx).await?,
                    Err(error) if is_foreign_key(&error) => return Ok(Created::NoSource),
                    Err(error) => return Err(error.into()),
                }
            }};
        }
        let taken: i64 = match self.db() {
            Db::Sqlite(sqlite) => create!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?, insert_sqlite),
            Db::Postgres(pool) => create!(pool.begin().await?, insert_postgres),
        };
        Ok(if taken > 0 { Created::Taken } else { Created::Full })
    }

    /// Stores a credential's next version in place of the one before, with other secrets where there are some, and
    /// with its event where there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn change_credential(
        &self,
        credential: &Credential,
        sealed: Option<&Sealed>,
        event: &Staged,
    ) -> Result<Changed, StoreError> {
        let document = document(credential)?;
        macro_rules! change {
            ($tx:expr, $insert:ident) => {{
                let mut tx = $tx;
                let updated = sqlx::query(UPDATE)
                    .bind(source_of(credential))
                    .bind(number(credential.version))
                    .bind(document)
                    .bind(sealed.map(|sealed| sealed.data_key.clone()))
                    .bind(sealed.map(|sealed| sealed.secrets.clone()))
                    .bind(key(credential.id.uuid()))
                    .bind(number(credential.version) - 1)
                    .execute(&mut *tx)
                    .await;
                match updated {
                    Ok(done) if done.rows_affected() > 0 => {
                        event.$insert(&mut tx).await?;
                        tx.commit().await?;
                        Ok(Changed::Done)
                    }
                    Ok(_) => Ok(Changed::Conflict),
                    Err(error) if is_foreign_key(&error) => Ok(Changed::NoSource),
                    Err(error) => Err(error.into()),
                }
            }};
        }
        match self.db() {
            Db::Sqlite(sqlite) => change!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?, insert_sqlite),
            Db::Postgres(pool) => change!(pool.begin().await?, insert_postgres),
        }
    }

    /// Deletes a credential with its secrets, as its next version, with its event.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_credential(&self, credential: &Credential, event: &Staged) -> Result<Changed, StoreError> {
        let document = document(credential)?;
        macro_rules! delete {
            ($tx:expr, $insert:ident) => {{
                let mut tx = $tx;
                let deleted = sqlx::query(DELETE)
                    .bind(number(credential.version))
                    .bind(document)
                    .bind(Vec::<u8>::new())
                    .bind(key(credential.id.uuid()))
                    .bind(number(credential.version) - 1)
                    .execute(&mut *tx)
                    .await?;
                if deleted.rows_affected() == 0 {
                    return Ok(Changed::Conflict);
                }
                event.$insert(&mut tx).await?;
                tx.commit().await?;
            }};
        }
        match self.db() {
            Db::Sqlite(sqlite) => delete!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?, insert_sqlite),
            Db::Postgres(pool) => delete!(pool.begin().await?, insert_postgres),
        }
        Ok(Changed::Done)
    }

    /// The next chunk of a tenant's credentials, without their secrets.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn scan_credentials(
        &self,
        tenant: &Tenant,
        fits: impl Fn(&Credential) -> bool,
        place: Place,
    ) -> Result<Scanned<Credential>, StoreError> {
        let (sql, from) = chunk("SELECT id, document FROM credential", "tenant = $1 AND deleted = 0", place);
        let sql = AssertSqlSafe(sql);
        let rows: Vec<(Vec<u8>, String)> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).bind(tenant.as_str()).bind(from).fetch_all(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).bind(tenant.as_str()).bind(from).fetch_all(pool).await?,
        };
        let scanned = rows.into_iter().map(|(id, document)| {
            let credential = read(&document)?;
            Ok((uuid(&id)?, Some(credential).filter(|credential| fits(credential))))
        });
        scanned.collect()
    }
}
