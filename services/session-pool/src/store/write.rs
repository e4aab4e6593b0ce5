use std::collections::HashSet;

use errand_core::run::LostReason;
use errand_core::{RunId, RunnerId, SessionId};
use errand_store::rows::MultiRow;
use errand_store::{Db, PgStatements, Staged, StoreError};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;

use super::{CommitError, Ownership, Store};
use crate::pool::{Change, Decisions, Loss};

/// A loss as it is kept.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LossDocument {
    pub(super) run_id: RunId,
    pub(super) session_id: SessionId,
    pub(super) runner_id: RunnerId,
    pub(super) reason: Reason,
    pub(super) message: String,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reason {
    RunnerLost,
    SessionFailed,
    SessionEnded,
}

impl From<LostReason> for Reason {
    fn from(reason: LostReason) -> Self {
        match reason {
            LostReason::RunnerLost => Self::RunnerLost,
            LostReason::SessionFailed => Self::SessionFailed,
            LostReason::SessionEnded => Self::SessionEnded,
        }
    }
}

impl From<Reason> for LostReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::RunnerLost => Self::RunnerLost,
            Reason::SessionFailed => Self::SessionFailed,
            Reason::SessionEnded => Self::SessionEnded,
        }
    }
}

/// One session as a row.
struct Row<'a> {
    id: [u8; 16],
    tenant: &'a str,
    agent: &'a str,
    status: &'static str,
    updated_at: i64,
    attempt: Option<i64>,
    keep: Option<i64>,
    document: String,
}

static UPSERT: MultiRow = MultiRow::new(
    "INSERT INTO session (id, tenant, agent, status, updated_at, attempt, keep, document) VALUES",
    "(?,?,?,?,?,?,?,?)",
    "ON CONFLICT (id) DO UPDATE SET tenant = excluded.tenant, status = excluded.status,
         updated_at = excluded.updated_at, attempt = excluded.attempt, keep = excluded.keep,
         document = excluded.document",
);
static INSERT_LOSS: MultiRow =
    MultiRow::new("INSERT INTO loss (token, document) VALUES", "(?,?)", "ON CONFLICT (token) DO NOTHING");
static DELETE_LOSS: MultiRow = MultiRow::new("DELETE FROM loss WHERE token IN (", "?", ")");

const NEXT_BATCH: &str = "UPDATE owner SET batch = $1, token = $2 WHERE one = 1 AND epoch = $3 AND batch = $4";

/// The last state of each session.
fn rows(changes: &[Change]) -> Result<Vec<Row<'_>>, StoreError> {
    let mut seen = HashSet::with_capacity(changes.len());
    let last = changes.iter().rev().filter(|change| seen.insert(change.session.id));
    let mut rows = last.map(row).collect::<Result<Vec<_>, _>>()?;
    // One order for everybody who ever locks rows.
    rows.sort_unstable_by_key(|row| row.id);
    Ok(rows)
}

fn row(change: &Change) -> Result<Row<'_>, StoreError> {
    let session = &change.session;
    let document = serde_json::to_string(session)
        .map_err(|error| StoreError::Corrupt(format!("session {}: {error}", session.id)))?;
    Ok(Row {
        id: *session.id.uuid().as_bytes(),
        tenant: session.tenant.as_ref().map_or("", |tenant| tenant.as_str()),
        agent: session.agent_id.as_str(),
        status: session.status().as_str(),
        updated_at: session.updated_at.0,
        attempt: change.terms.map(|terms| terms.attempt.into()),
        keep: change.terms.map(|terms| terms.keep.into()),
        document,
    })
}

fn loss_row(loss: &Loss) -> Result<(i64, String), StoreError> {
    let document = LossDocument {
        run_id: loss.run_id,
        session_id: loss.lease.session_id,
        runner_id: loss.lease.runner_id,
        reason: loss.reason.into(),
        message: loss.message.clone(),
    };
    let document = serde_json::to_string(&document).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    Ok((number(loss.lease.token), document))
}

pub(super) fn number(token: u64) -> i64 {
    i64::try_from(token).unwrap_or(i64::MAX)
}

/// What one transaction writes.
struct Batch<'a> {
    rows: Vec<Row<'a>>,
    losses: Vec<(i64, String)>,
    told: Vec<i64>,
    drains: &'a [(RunnerId, bool)],
    events: &'a Staged,
    number: i64,
    token: i64,
}

impl Store {
    /// Commits what was decided, with its events, in one transaction. Repeatable: what was committed before is not
    /// committed again.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn commit(
        &self,
        owner: &mut Ownership,
        decisions: &Decisions,
        token: u64,
        events: &Staged,
    ) -> Result<(), CommitError> {
        let batch = Batch {
            rows: rows(&decisions.changes)?,
            losses: decisions.new_losses.iter().map(loss_row).collect::<Result<_, _>>()?,
            told: decisions.told_losses.iter().map(|token| number(*token)).collect(),
            drains: &decisions.drains,
            events,
            number: owner.batch + 1,
            token: number(token),
        };
        let done = match &self.db {
            Db::Sqlite(sqlite) if batch.is_one_session() => {
                let mut connection = sqlite.write.acquire().await?;
                match batch.commit_one_sqlite(&mut connection, owner).await {
                    Ok(done) => done,
                    Err(error) => {
                        // Fails where the transaction has not begun, or is over.
                        let _ = sqlx::query("ROLLBACK").execute(&mut *connection).await;
                        return Err(error.into());
                    }
                }
            }
            Db::Sqlite(sqlite) => {
                let mut tx = sqlite.write.begin_with("BEGIN IMMEDIATE").await?;
                let next = next_batch(&batch, owner).execute(&mut *tx).await?.rows_affected() == 1;
                if next {
                    batch.write_sqlite(&mut tx).await?;
                    tx.commit().await?;
                }
                next
            }
            Db::Postgres(pool) => {
                let mut tx = pool.begin().await?;
                let query = sqlx::query(NEXT_BATCH).bind(batch.number).bind(batch.token);
                let query = query.bind(owner.epoch.as_bytes().as_slice()).bind(owner.batch);
                let next = query.execute(&mut *tx).await?.rows_affected() == 1;
                if next {
                    batch.write_postgres(&mut tx).await?;
                    tx.commit().await?;
                }
                next
            }
        };
        if !done && !self.is_committed(owner, batch.number).await? {
            return Err(CommitError::TakenOver);
        }
        owner.batch = batch.number;
        Ok(())
    }

    /// Whether an earlier try, whose outcome nobody learned, has done it.
    async fn is_committed(&self, owner: &Ownership, number: i64) -> Result<bool, CommitError> {
        let sql = "SELECT epoch, batch FROM owner WHERE one = 1";
        let (epoch, batch): (Vec<u8>, i64) = match &self.db {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).fetch_one(&sqlite.write).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).fetch_one(pool).await?,
        };
        Ok(epoch == owner.epoch.as_bytes() && batch == number)
    }
}

fn next_batch<'q>(
    batch: &Batch<'_>,
    owner: &'q Ownership,
) -> sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments> {
    let query = sqlx::query(NEXT_BATCH).bind(batch.number).bind(batch.token);
    query.bind(owner.epoch.as_bytes().as_slice()).bind(owner.batch)
}

impl Batch<'_> {
    fn is_one_session(&self) -> bool {
        let nothing_else = self.losses.is_empty() && self.told.is_empty() && self.drains.is_empty();
        self.rows.len() == 1 && nothing_else && !self.events.is_empty()
    }

    /// Commits in one round trip: each costs two changes of thread. False: this is not the owner's next batch.
    async fn commit_one_sqlite(
        &self,
        connection: &mut SqliteConnection,
        owner: &Ownership,
    ) -> Result<bool, sqlx::Error> {
        const NEXT: &str = "UPDATE owner SET batch = ?, token = ? WHERE one = 1 AND epoch = ? AND batch = ?;";
        const SESSION: &str = "INSERT INTO session (id, tenant, agent, status, updated_at, attempt, keep, document)
            SELECT ?, ?, ?, ?, ?, ?, ?, ? WHERE changes() > 0
            ON CONFLICT (id) DO UPDATE SET tenant = excluded.tenant, status = excluded.status,
                updated_at = excluded.updated_at, attempt = excluded.attempt, keep = excluded.keep,
                document = excluded.document;";
        let row = &self.rows[0];
        let events = Staged::INSERT_IF_CHANGED.repeat(self.events.len());
        let sql = sqlx::AssertSqlSafe(format!("BEGIN IMMEDIATE;{NEXT}{SESSION}{events}COMMIT"));
        let query = sqlx::query_as(sql)
            .bind(self.number)
            .bind(self.token)
            .bind(owner.epoch.as_bytes().to_vec())
            .bind(owner.batch)
            .bind(row.id.to_vec())
            .bind(row.tenant)
            .bind(row.agent)
            .bind(row.status)
            .bind(row.updated_at)
            .bind(row.attempt)
            .bind(row.keep)
            .bind(row.document.as_str());
        let told: Vec<(Vec<u8>,)> = self.events.bind(query).fetch_all(connection).await?;
        Ok(!told.is_empty())
    }

    async fn write_sqlite(&self, connection: &mut SqliteConnection) -> Result<(), CommitError> {
        for (statement, chunk) in UPSERT.chunks(&self.rows) {
            let mut query = sqlx::query(statement);
            for row in chunk {
                query = query
                    .bind(row.id.as_slice())
                    .bind(row.tenant)
                    .bind(row.agent)
                    .bind(row.status)
                    .bind(row.updated_at)
                    .bind(row.attempt)
                    .bind(row.keep)
                    .bind(row.document.as_str());
            }
            query.execute(&mut *connection).await?;
        }
        self.events.insert_sqlite(connection).await?;
        for (statement, chunk) in INSERT_LOSS.chunks(&self.losses) {
            let query = chunk
                .iter()
                .fold(sqlx::query(statement), |query, (token, document)| query.bind(token).bind(document.as_str()));
            query.execute(&mut *connection).await?;
        }
        for (statement, chunk) in DELETE_LOSS.chunks(&self.told) {
            let query = chunk.iter().fold(sqlx::query(statement), |query, token| query.bind(token));
            query.execute(&mut *connection).await?;
        }
        for (runner, drains) in self.drains {
            let id = runner.uuid().as_bytes().to_vec();
            sqlx::query(drain_statement(*drains)).bind(id).execute(&mut *connection).await?;
        }
        Ok(())
    }

    async fn write_postgres(&self, connection: &mut PgStatements) -> Result<(), CommitError> {
        if !self.rows.is_empty() {
            let rows = &self.rows;
            sqlx::query(
                "INSERT INTO session (id, tenant, agent, status, updated_at, attempt, keep, document)
                 SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[],
                                      $7::bigint[], $8::text[])
                 ON CONFLICT (id) DO UPDATE SET tenant = excluded.tenant, status = excluded.status,
                     updated_at = excluded.updated_at, attempt = excluded.attempt, keep = excluded.keep,
                     document = excluded.document",
            )
            .bind(rows.iter().map(|row| row.id.as_slice()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.tenant).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.agent).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.status).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.updated_at).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.attempt).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.keep).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.document.as_str()).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
        self.events.insert_postgres(connection).await?;
        if !self.losses.is_empty() {
            sqlx::query(
                "INSERT INTO loss (token, document) SELECT * FROM unnest($1::bigint[], $2::text[])
                 ON CONFLICT (token) DO NOTHING",
            )
            .bind(self.losses.iter().map(|(token, _)| *token).collect::<Vec<_>>())
            .bind(self.losses.iter().map(|(_, document)| document.as_str()).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
        if !self.told.is_empty() {
            let query = sqlx::query("DELETE FROM loss WHERE token = ANY($1)").bind(&self.told);
            query.execute(&mut *connection).await?;
        }
        for (runner, drains) in self.drains {
            let id = runner.uuid().as_bytes().to_vec();
            sqlx::query(drain_statement(*drains)).bind(id).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

const fn drain_statement(drains: bool) -> &'static str {
    if drains {
        "INSERT INTO drain (runner) VALUES ($1) ON CONFLICT (runner) DO NOTHING"
    } else {
        "DELETE FROM drain WHERE runner = $1"
    }
}
