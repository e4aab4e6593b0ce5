//! Destinations. Each change counts up `destination_change`, by which others see that their picture is old.

use errand_core::{DestinationId, Tenant, Timestamp};
use errand_store::{Db, Staged, StoreError};

use super::{Store, bytes, uuid};
use crate::destination::{Definition, Destination, MAX_DESTINATIONS, Status};

const COLUMNS: &str = "number, id, tenant, status, version, seq, created_at, updated_at, old_secret_expires_at,
    failing_since, reason, document, sealed";
/// The row of the change is locked from here on, so that changes come one after another.
const COUNT: &str = "UPDATE destination_change SET number = number + 1 WHERE one = 1";

row! {
    struct DestinationRow {
        number: i64,
        id: Vec<u8>,
        tenant: String,
        status: i64,
        version: i64,
        seq: i64,
        created_at: i64,
        updated_at: i64,
        old_secret_expires_at: Option<i64>,
        failing_since: Option<i64>,
        reason: String,
        document: String,
        sealed: Vec<u8>,
    }
}

impl TryFrom<DestinationRow> for Destination {
    type Error = StoreError;

    fn try_from(row: DestinationRow) -> Result<Self, StoreError> {
        let corrupt = |what: &str| StoreError::Corrupt(format!("a destination: {what}"));
        Ok(Self {
            number: row.number,
            id: DestinationId::from_uuid(uuid(&row.id)?),
            tenant: row.tenant.parse().map_err(|_| corrupt("its tenant"))?,
            version: row.version,
            seq: u64::try_from(row.seq).map_err(|_| corrupt("its seq"))?,
            definition: definition(&row.document)?,
            status: if row.status == 0 { Status::Active } else { Status::Inactive },
            inactive_reason: row.reason,
            created_at: Timestamp(row.created_at),
            updated_at: Timestamp(row.updated_at),
            old_secret_expires_at: row.old_secret_expires_at.map(Timestamp),
            failing_since: row.failing_since.map(Timestamp),
            sealed: row.sealed,
        })
    }
}

fn definition(document: &str) -> Result<Definition, StoreError> {
    serde_json::from_str(document).map_err(|error| StoreError::Corrupt(format!("a destination: {error}")))
}

fn document(definition: &Definition) -> Result<String, StoreError> {
    serde_json::to_string(definition).map_err(|error| StoreError::Corrupt(error.to_string()))
}

const fn code(status: Status) -> i64 {
    match status {
        Status::Active => 0,
        Status::Inactive => 1,
    }
}

/// What became of a new destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It is there.
    Yes,
    /// Its id is taken.
    Taken,
    /// The tenant has as many as it may.
    TooMany,
}

impl Store {
    /// The number of the last change to any destination.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn destination_change(&self) -> Result<i64, StoreError> {
        let sql = "SELECT number FROM destination_change WHERE one = 1";
        Ok(match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_scalar(sql).fetch_one(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await?,
        })
    }

    /// All destinations of all tenants.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn destinations(&self) -> Result<Vec<Destination>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM destination WHERE status < 2"));
        let rows: Vec<DestinationRow> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).fetch_all(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).fetch_all(pool).await?,
        };
        rows.into_iter().map(Destination::try_from).collect()
    }

    /// A tenant's destinations, newest first: never more than [`MAX_DESTINATIONS`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn destinations_of(&self, tenant: &Tenant) -> Result<Vec<Destination>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM destination WHERE tenant = $1 AND status < 2 ORDER BY id DESC");
        let sql = sqlx::AssertSqlSafe(sql);
        let rows: Vec<DestinationRow> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).bind(tenant.as_str()).fetch_all(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).bind(tenant.as_str()).fetch_all(pool).await?,
        };
        rows.into_iter().map(Destination::try_from).collect()
    }

    /// One destination, whose-ever it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn destination(&self, id: DestinationId) -> Result<Option<Destination>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM destination WHERE id = $1 AND status < 2"));
        let row: Option<DestinationRow> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).bind(bytes(id.uuid())).fetch_optional(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).bind(bytes(id.uuid())).fetch_optional(pool).await?,
        };
        row.map(Destination::try_from).transpose()
    }

    /// Adds a destination; its number is the store's to choose.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_destination(&self, new: &Destination) -> Result<Added, StoreError> {
        let insert = "INSERT INTO destination (id, tenant, status, version, seq, created_at, updated_at, reason,
                                               document, sealed)
                      VALUES ($1, $2, 0, 1, 0, $3, $3, '', $4, $5) ON CONFLICT (id) DO NOTHING";
        let count = "SELECT COUNT(*) FROM destination WHERE tenant = $1 AND status < 2";
        let document = document(&new.definition)?;
        macro_rules! add {
            ($tx:expr) => {{
                let mut tx = $tx;
                sqlx::query(COUNT).execute(&mut *tx).await?;
                let there: i64 = sqlx::query_scalar(count).bind(new.tenant.as_str()).fetch_one(&mut *tx).await?;
                let inserted = sqlx::query(insert)
                    .bind(bytes(new.id.uuid()))
                    .bind(new.tenant.as_str())
                    .bind(new.created_at.0)
                    .bind(&document)
                    .bind(&new.sealed)
                    .execute(&mut *tx)
                    .await?;
                if inserted.rows_affected() == 0 {
                    return Ok(Added::Taken);
                }
                if there >= i64::from(MAX_DESTINATIONS) {
                    return Ok(Added::TooMany);
                }
                tx.commit().await?;
            }};
        }
        match self.db() {
            Db::Sqlite(sqlite) => add!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?),
            Db::Postgres(pool) => add!(pool.begin().await?),
        }
        Ok(Added::Yes)
    }

    /// Stores what its owner has changed, with the next version. False: somebody was quicker, or it is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn change_destination(&self, changed: &Destination) -> Result<bool, StoreError> {
        let update = "UPDATE destination SET version = version + 1, updated_at = $1, old_secret_expires_at = $2,
                             document = $3, sealed = $4
                      WHERE number = $5 AND version = $6 AND status < 2";
        let document = document(&changed.definition)?;
        macro_rules! change {
            ($tx:expr) => {{
                let mut tx = $tx;
                sqlx::query(COUNT).execute(&mut *tx).await?;
                let updated = sqlx::query(update)
                    .bind(changed.updated_at.0)
                    .bind(changed.old_secret_expires_at.map(|at| at.0))
                    .bind(&document)
                    .bind(&changed.sealed)
                    .bind(changed.number)
                    .bind(changed.version)
                    .execute(&mut *tx)
                    .await?;
                if updated.rows_affected() == 0 {
                    return Ok(false);
                }
                tx.commit().await?;
            }};
        }
        match self.db() {
            Db::Sqlite(sqlite) => change!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?),
            Db::Postgres(pool) => change!(pool.begin().await?),
        }
        Ok(true)
    }

    /// Deletes a destination. Its deliveries go with the next sweep.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_destination(&self, number: i64) -> Result<(), StoreError> {
        // What was sealed goes at once.
        let delete = "UPDATE destination SET status = 2, version = version + 1, sealed = $1 WHERE number = $2";
        let replays = "DELETE FROM replay WHERE destination = $1";
        macro_rules! delete {
            ($tx:expr) => {{
                let mut tx = $tx;
                sqlx::query(COUNT).execute(&mut *tx).await?;
                sqlx::query(delete).bind(Vec::<u8>::new()).bind(number).execute(&mut *tx).await?;
                sqlx::query(replays).bind(number).execute(&mut *tx).await?;
                tx.commit().await?;
            }};
        }
        match self.db() {
            Db::Sqlite(sqlite) => delete!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?),
            Db::Postgres(pool) => delete!(pool.begin().await?),
        }
        Ok(())
    }

    /// Activates or deactivates, with the event of it. On activation all that waits is due now, what was given up
    /// since it failed included. False: somebody was quicker, or it is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn switch_destination(&self, switched: &Destination, event: &Staged) -> Result<bool, StoreError> {
        let update =
            "UPDATE destination SET version = version + 1, status = $1, seq = $2, reason = $3, updated_at = $4,
                             failing_since = $5
                      WHERE number = $6 AND version = $7 AND status < 2";
        let due = "UPDATE delivery SET due_at = $1 WHERE destination = $2 AND status = 0";
        let again = "UPDATE delivery SET status = 0, due_at = $1, base = attempts, finished_at = NULL
                     WHERE destination = $2 AND status = 2 AND finished_at >= $3 AND origin <> 2";
        let activates = switched.status == Status::Active;
        // Whoever activates passes the time on as it was: it is cleared here.
        let failing_since = switched.failing_since.map(|since| since.0);
        macro_rules! switch {
            ($tx:expr, $insert:ident) => {{
                let mut tx = $tx;
                sqlx::query(COUNT).execute(&mut *tx).await?;
                let updated = sqlx::query(update)
                    .bind(code(switched.status))
                    .bind(i64::try_from(switched.seq).unwrap_or(i64::MAX))
                    .bind(&switched.inactive_reason)
                    .bind(switched.updated_at.0)
                    .bind(failing_since.filter(|_| !activates))
                    .bind(switched.number)
                    .bind(switched.version)
                    .execute(&mut *tx)
                    .await?;
                if updated.rows_affected() == 0 {
                    return Ok(false);
                }
                if activates {
                    let (now, number) = (switched.updated_at.0, switched.number);
                    sqlx::query(due).bind(now).bind(number).execute(&mut *tx).await?;
                    if let Some(since) = failing_since {
                        sqlx::query(again).bind(now).bind(number).bind(since).execute(&mut *tx).await?;
                    }
                }
                event.$insert(&mut tx).await?;
                tx.commit().await?;
            }};
        }
        match self.db() {
            Db::Sqlite(sqlite) => switch!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?, insert_sqlite),
            Db::Postgres(pool) => switch!(pool.begin().await?, insert_postgres),
        }
        Ok(true)
    }
}
