use errand_core::task::Task;
use errand_core::{TaskId, Tenant};
use errand_proto::event::TaskRef;
use errand_store::{Db, Staged, StoreError};

use super::Store;

fn key(id: TaskId) -> Vec<u8> {
    id.uuid().as_bytes().to_vec()
}

/// The newest version of a task, and the number of its last event.
#[derive(Debug, Clone)]
pub struct Current {
    /// The task.
    pub task: Task,
    /// The number of its last event.
    pub seq: u64,
}

const SELECT_BY_ID: &str = "SELECT v.document, t.seq FROM task t JOIN task_version v
    ON v.id = t.id AND v.version = t.version WHERE t.deleted = 0 AND t.tenant = $1 AND t.id = $2";
const SELECT_BY_NAME: &str = "SELECT v.document, t.seq FROM task t JOIN task_version v
    ON v.id = t.id AND v.version = t.version WHERE t.deleted = 0 AND t.tenant = $1 AND t.name = $2";
const SELECT_VERSION: &str = "SELECT document FROM task_version WHERE id = $1 AND version = $2";
const INSERT_TASK: &str = "INSERT INTO task (id, tenant, name, version, seq, deleted)
    VALUES ($1, $2, $3, $4, 1, 0) ON CONFLICT DO NOTHING";
const INSERT_VERSION: &str = "INSERT INTO task_version (id, version, document) VALUES ($1, $2, $3)";
const UPDATE_TASK: &str = "UPDATE task SET name = $1, version = $2, seq = $3, deleted = $4
    WHERE id = $5 AND seq = $3 - 1 AND deleted = 0";

pub(super) fn task_of(document: &str) -> Result<Task, StoreError> {
    serde_json::from_str(document).map_err(|error| StoreError::Corrupt(format!("a task: {error}")))
}

fn number(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

impl Store {
    /// The newest version of a tenant's task; none where it is not there or deleted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn current_task(&self, tenant: &Tenant, task: &TaskRef) -> Result<Option<Current>, StoreError> {
        macro_rules! fetch {
            ($pool:expr) => {
                match task {
                    TaskRef::Id(id) => {
                        sqlx::query_as(SELECT_BY_ID).bind(tenant.as_str()).bind(key(*id)).fetch_optional($pool).await?
                    }
                    TaskRef::Name(name) => {
                        sqlx::query_as(SELECT_BY_NAME).bind(tenant.as_str()).bind(name).fetch_optional($pool).await?
                    }
                }
            };
        }
        let found: Option<(String, i64)> = match self.db() {
            Db::Sqlite(sqlite) => fetch!(&sqlite.read),
            Db::Postgres(pool) => fetch!(pool),
        };
        found
            .map(|(document, seq)| Ok(Current { task: task_of(&document)?, seq: u64::try_from(seq).unwrap_or(0) }))
            .transpose()
    }

    /// One version of a task, deleted or not: a run keeps the one it began with.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn task_version(&self, id: TaskId, version: u32) -> Result<Option<Task>, StoreError> {
        let version = i64::from(version);
        let found: Option<(String,)> = match self.db() {
            Db::Sqlite(sqlite) => {
                sqlx::query_as(SELECT_VERSION).bind(key(id)).bind(version).fetch_optional(&sqlite.read).await?
            }
            Db::Postgres(pool) => {
                sqlx::query_as(SELECT_VERSION).bind(key(id)).bind(version).fetch_optional(pool).await?
            }
        };
        found.map(|(document,)| task_of(&document)).transpose()
    }

    /// Stores a task's first version with its event. False: the name is taken.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_task(&self, task: &Task, event: &Staged) -> Result<bool, StoreError> {
        let document = serde_json::to_string(task).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        macro_rules! create {
            ($tx:expr, $insert:ident) => {{
                let mut tx = $tx;
                let inserted = sqlx::query(INSERT_TASK)
                    .bind(key(task.id))
                    .bind(task.tenant.as_str())
                    .bind(&task.definition.name)
                    .bind(i64::from(task.version))
                    .execute(&mut *tx)
                    .await?;
                if inserted.rows_affected() == 0 {
                    return Ok(false);
                }
                let version = i64::from(task.version);
                sqlx::query(INSERT_VERSION).bind(key(task.id)).bind(version).bind(&document).execute(&mut *tx).await?;
                event.$insert(&mut tx).await?;
                tx.commit().await?;
            }};
        }
        match self.db() {
            Db::Sqlite(sqlite) => create!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?, insert_sqlite),
            Db::Postgres(pool) => create!(pool.begin().await?, insert_postgres),
        }
        Ok(true)
    }

    /// Stores a task's next version, or its deletion, with the event numbered `seq`. False: it was changed meanwhile.
    ///
    /// # Errors
    /// [`StoreError`]; `Database` with a unique violation where the new name is taken.
    pub async fn change_task(&self, task: &Task, deleted: bool, seq: u64, event: &Staged) -> Result<bool, StoreError> {
        let document = serde_json::to_string(task).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        macro_rules! change {
            ($tx:expr, $insert:ident) => {{
                let mut tx = $tx;
                let updated = sqlx::query(UPDATE_TASK)
                    .bind(&task.definition.name)
                    .bind(i64::from(task.version))
                    .bind(number(seq))
                    .bind(i64::from(deleted))
                    .bind(key(task.id))
                    .execute(&mut *tx)
                    .await?;
                if updated.rows_affected() == 0 {
                    return Ok(false);
                }
                if !deleted {
                    let version = i64::from(task.version);
                    let query = sqlx::query(INSERT_VERSION).bind(key(task.id)).bind(version).bind(&document);
                    query.execute(&mut *tx).await?;
                }
                event.$insert(&mut tx).await?;
                tx.commit().await?;
            }};
        }
        match self.db() {
            Db::Sqlite(sqlite) => change!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?, insert_sqlite),
            Db::Postgres(pool) => change!(pool.begin().await?, insert_postgres),
        }
        Ok(true)
    }
}
