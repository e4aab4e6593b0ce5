use std::collections::HashMap;

use bytes::Bytes;
use errand_core::run::Run;
use errand_core::task::Task;
use errand_core::{RunId, TaskId, Tenant};
use errand_store::rows::MultiRow;
use errand_store::{Db, StoreError};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::Store;
use super::runs::{key, run_of};
use super::tasks::task_of;
use crate::run_filter::RunFilter;
use errand_store::paging::{CHUNK, Place};

/// What was read of a list, in order, each with what fits.
pub(crate) type Scanned<T> = Vec<(Uuid, Option<T>)>;

type RunRow = (Vec<u8>, String, Vec<u8>, i64, String);

static OUTPUTS: MultiRow = MultiRow::new("SELECT id, output FROM run WHERE output IS NOT NULL AND id IN (", "?", ")");

fn uuid(bytes: &[u8]) -> Result<Uuid, StoreError> {
    Uuid::from_slice(bytes).map_err(|_| StoreError::Corrupt("an id of 16 bytes".into()))
}

/// `condition` is ours, never a request's.
fn chunk(select: &str, condition: &str, id: &str, place: Place) -> (String, Vec<u8>) {
    let (compare, order, from) = match place {
        Place::Newest => ("<=", "DESC", Uuid::max()),
        Place::Before(id) => ("<", "DESC", id),
        Place::After(id) => (">", "ASC", id),
    };
    let sql = format!("{select} WHERE {condition} AND {id} {compare} $2 ORDER BY {id} {order} LIMIT {CHUNK}");
    (sql, from.as_bytes().to_vec())
}

impl Store {
    /// The next chunk of a tenant's runs, without input and output.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn scan_runs(&self, filter: &RunFilter, place: Place) -> Result<Scanned<Run>, StoreError> {
        let condition = if filter.only_open() {
            "tenant = $1 AND status IN ('queued', 'running', 'interaction_required', 'review_required', 'canceling')"
        } else {
            "tenant = $1"
        };
        let (sql, from) = chunk("SELECT id, status, task_id, last_activity, document FROM run", condition, "id", place);
        let sql = AssertSqlSafe(sql);
        let rows: Vec<RunRow> = match self.db() {
            Db::Sqlite(sqlite) => {
                sqlx::query_as(sql).bind(filter.tenant.as_str()).bind(from).fetch_all(&sqlite.read).await?
            }
            Db::Postgres(pool) => sqlx::query_as(sql).bind(filter.tenant.as_str()).bind(from).fetch_all(pool).await?,
        };
        let scanned = rows.into_iter().map(|(id, status, task_id, last_activity, document)| {
            let place = uuid(&id)?;
            if !filter.may_fit(&status, TaskId::from_uuid(uuid(&task_id)?)) {
                return Ok((place, None));
            }
            let run = run_of((id, last_activity, document, None, None))?;
            Ok((place, Some(run).filter(|run| filter.fits(run))))
        });
        scanned.collect()
    }

    /// Adds the outputs to runs that may have one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_outputs(&self, runs: &mut [Run]) -> Result<(), StoreError> {
        let keys: Vec<Vec<u8>> = runs.iter().map(|run| key(run.id)).collect();
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        match self.db() {
            Db::Sqlite(sqlite) => {
                for (statement, chunk) in OUTPUTS.chunks(&keys) {
                    let query = chunk.iter().fold(sqlx::query_as(statement), |query, key| query.bind(key));
                    rows.extend(query.fetch_all(&sqlite.read).await?);
                }
            }
            Db::Postgres(pool) => {
                let sql = "SELECT id, output FROM run WHERE output IS NOT NULL AND id = ANY($1)";
                rows = sqlx::query_as(sql).bind(keys).fetch_all(pool).await?;
            }
        }
        let mut outputs: HashMap<RunId, Bytes> = HashMap::with_capacity(rows.len());
        for (id, output) in rows {
            outputs.insert(RunId::from_uuid(uuid(&id)?), output.into());
        }
        for run in runs {
            run.output = outputs.remove(&run.id);
        }
        Ok(())
    }

    /// The next chunk of a tenant's tasks, each in its newest version, those of some agents only.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn scan_tasks(
        &self,
        tenant: &Tenant,
        fits: impl Fn(&Task) -> bool,
        place: Place,
    ) -> Result<Scanned<Task>, StoreError> {
        let select = "SELECT t.id, v.document FROM task t JOIN task_version v ON v.id = t.id AND v.version = t.version";
        let (sql, from) = chunk(select, "t.tenant = $1 AND t.deleted = 0", "t.id", place);
        let sql = AssertSqlSafe(sql);
        let rows: Vec<(Vec<u8>, String)> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).bind(tenant.as_str()).bind(from).fetch_all(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).bind(tenant.as_str()).bind(from).fetch_all(pool).await?,
        };
        let scanned = rows.into_iter().map(|(id, document)| {
            let task = task_of(&document)?;
            Ok((uuid(&id)?, Some(task).filter(|task| fits(task))))
        });
        scanned.collect()
    }
}
