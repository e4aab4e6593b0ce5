use errand_core::source::Source;
use errand_core::{SourceId, Tenant, limits};
use errand_store::paging::Place;
use errand_store::{Db, StoreError};
use sqlx::AssertSqlSafe;

use super::{Changed, Created, Scanned, Store, chunk, document, is_foreign_key, key, read, uuid};

const SELECT: &str = "SELECT document FROM source WHERE tenant = $1 AND id = $2";
const INSERT: &str = "INSERT INTO source (id, tenant, document) SELECT $1, $2, $3
    WHERE (SELECT COUNT(*) FROM source WHERE tenant = $2) < $4 ON CONFLICT DO NOTHING";
// Compared with the whole text that was read: no version is needed beside it.
const UPDATE: &str = "UPDATE source SET document = $1 WHERE id = $2 AND document = $3";
const DELETE: &str = "DELETE FROM source WHERE tenant = $1 AND id = $2";
const EXISTS: &str = "SELECT COUNT(*) FROM source WHERE id = $1";

impl Store {
    /// A tenant's source.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn source(&self, tenant: &Tenant, id: SourceId) -> Result<Option<Source>, StoreError> {
        let found: Option<(String,)> = match self.db() {
            Db::Sqlite(sqlite) => {
                sqlx::query_as(SELECT).bind(tenant.as_str()).bind(key(id.uuid())).fetch_optional(&sqlite.read).await?
            }
            Db::Postgres(pool) => {
                sqlx::query_as(SELECT).bind(tenant.as_str()).bind(key(id.uuid())).fetch_optional(pool).await?
            }
        };
        found.map(|(document,)| read(&document)).transpose()
    }

    /// Stores a new source.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_source(&self, source: &Source) -> Result<Created, StoreError> {
        let (id, document) = (key(source.id.uuid()), document(source)?);
        macro_rules! create {
            ($pool:expr) => {{
                let insert = sqlx::query(INSERT).bind(id.clone()).bind(source.tenant.as_str()).bind(document);
                if insert.bind(i64::from(limits::MAX_SOURCES)).execute($pool).await?.rows_affected() > 0 {
                    return Ok(Created::Done);
                }
                sqlx::query_scalar(EXISTS).bind(id).fetch_one($pool).await?
            }};
        }
        let taken: i64 = match self.db() {
            Db::Sqlite(sqlite) => create!(&sqlite.write),
            Db::Postgres(pool) => create!(pool),
        };
        Ok(if taken > 0 { Created::Taken } else { Created::Full })
    }

    /// Stores a source in place of the one that was read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn change_source(&self, before: &Source, after: &Source) -> Result<Changed, StoreError> {
        let (old, new, id) = (document(before)?, document(after)?, key(after.id.uuid()));
        let rows = match self.db() {
            Db::Sqlite(sqlite) => {
                sqlx::query(UPDATE).bind(new).bind(id).bind(old).execute(&sqlite.write).await?.rows_affected()
            }
            Db::Postgres(pool) => sqlx::query(UPDATE).bind(new).bind(id).bind(old).execute(pool).await?.rows_affected(),
        };
        Ok(if rows > 0 { Changed::Done } else { Changed::Conflict })
    }

    /// Deletes a source that no credential belongs to.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_source(&self, tenant: &Tenant, id: SourceId) -> Result<Changed, StoreError> {
        let id = key(id.uuid());
        let deleted = match self.db() {
            Db::Sqlite(sqlite) => {
                let query = sqlx::query(DELETE).bind(tenant.as_str()).bind(id).execute(&sqlite.write).await;
                query.map(|done| done.rows_affected())
            }
            Db::Postgres(pool) => {
                let query = sqlx::query(DELETE).bind(tenant.as_str()).bind(id).execute(pool).await;
                query.map(|done| done.rows_affected())
            }
        };
        match deleted {
            Ok(0) => Ok(Changed::Conflict),
            Ok(_) => Ok(Changed::Done),
            Err(error) if is_foreign_key(&error) => Ok(Changed::InUse),
            Err(error) => Err(error.into()),
        }
    }

    /// The next chunk of a tenant's sources.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn scan_sources(
        &self,
        tenant: &Tenant,
        fits: impl Fn(&Source) -> bool,
        place: Place,
    ) -> Result<Scanned<Source>, StoreError> {
        let (sql, from) = chunk("SELECT id, document FROM source", "tenant = $1", place);
        let sql = AssertSqlSafe(sql);
        let rows: Vec<(Vec<u8>, String)> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).bind(tenant.as_str()).bind(from).fetch_all(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).bind(tenant.as_str()).bind(from).fetch_all(pool).await?,
        };
        let scanned = rows.into_iter().map(|(id, document)| {
            let source = read(&document)?;
            Ok((uuid(&id)?, Some(source).filter(|source| fits(source))))
        });
        scanned.collect()
    }
}
