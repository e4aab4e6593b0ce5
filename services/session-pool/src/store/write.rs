use std::collections::HashSet;

use errand_core::run::LostReason;
use errand_core::{RunId, RunnerId, SessionId};
use errand_store::rows::{MultiRow, Script};
use errand_store::{Db, PgStatements, Staged, StoreError};
use serde::{Deserialize, Serialize};

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
    "INSERT INTO session (id, tenant, agent, status, updated_at, attempt, keep, document) SELECT * FROM (VALUES",
    "(?,?,?,?,?,?,?,?)",
    ") WHERE column1 IS NOT NULL ON CONFLICT (id) DO UPDATE SET tenant = excluded.tenant, status = excluded.status,
         updated_at = excluded.updated_at, attempt = excluded.attempt, keep = excluded.keep,
         document = excluded.document",
);
static INSERT_LOSS: MultiRow = MultiRow::new(
    "INSERT INTO loss (token, document) SELECT * FROM (VALUES",
    "(?,?)",
    ") WHERE column1 IS NOT NULL ON CONFLICT (token) DO NOTHING",
);
static DELETE_LOSS: MultiRow = MultiRow::new("DELETE FROM loss WHERE token IN (", "?", ")");

type PgQuery<'q> = sqlx::query::QueryAs<'q, sqlx::Postgres, (i64,), sqlx::postgres::PgArguments>;

const NEXT_BATCH: &str = "UPDATE owner SET batch = ?, token = ? WHERE one = 1 AND epoch = ? AND batch = ?";

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
            Db::Sqlite(sqlite) => {
                let mut connection = sqlite.write.acquire().await?;
                batch.script(owner)?.commit(&mut connection).await?
            }
            Db::Postgres(pool) => {
                // Alone, a statement needs no transaction about it, whose begin and end are round trips. Where it is given
                // up and comes late, it is this batch, or finds that this batch is done.
                let sessions = batch.sessions_postgres(owner);
                if batch.is_only_sessions() {
                    !pool.write(sessions).await?.is_empty()
                } else {
                    let mut tx = pool.begin().await?;
                    let next = sessions.fetch_optional(&mut *tx).await?.is_some();
                    if next {
                        batch.write_rest_postgres(&mut tx).await?;
                        tx.commit().await?;
                    }
                    next
                }
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

impl Batch<'_> {
    /// All of it in one go; nothing where this is not the owner's next batch.
    fn script(&self, owner: &Ownership) -> Result<Script, sqlx::Error> {
        let mut script = Script::begin();
        script.statement(NEXT_BATCH);
        script.bind(self.number)?;
        script.bind(self.token)?;
        script.bind(owner.epoch.as_bytes().to_vec())?;
        script.bind(owner.batch)?;
        script.expect_changes(1)?;
        script.rows(&UPSERT, &self.rows, |script, row| {
            script.bind(row.id.to_vec())?;
            script.bind(row.tenant)?;
            script.bind(row.agent)?;
            script.bind(row.status)?;
            script.bind(row.updated_at)?;
            script.bind(row.attempt)?;
            script.bind(row.keep)?;
            script.bind(row.document.as_str())
        })?;
        self.events.write_sqlite(&mut script, |_| true)?;
        script.rows(&INSERT_LOSS, &self.losses, |script, (token, document)| {
            script.bind(*token)?;
            script.bind(document.as_str())
        })?;
        script.rows(&DELETE_LOSS, &self.told, |script, token| script.bind(*token))?;
        for (runner, drains) in self.drains {
            // `$1` would be the script's first.
            script.statement(&drain_statement(*drains).replace("$1", "?"));
            script.bind(runner.uuid().as_bytes().to_vec())?;
        }
        Ok(script)
    }

    /// Sessions and their events in one statement, as each is a round trip. Tells nothing, and writes nothing, where this
    /// is not the owner's next batch.
    fn sessions_postgres<'q>(&'q self, owner: &'q Ownership) -> PgQuery<'q> {
        const WRITE: &str = "WITH
            next AS (UPDATE owner SET batch = $1, token = $2 WHERE one = 1 AND epoch = $3 AND batch = $4 RETURNING one),
            kept AS (
                INSERT INTO session (id, tenant, agent, status, updated_at, attempt, keep, document)
                SELECT v.* FROM unnest($5::bytea[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::bigint[],
                                       $11::bigint[], $12::text[])
                    AS v (id, tenant, agent, status, updated_at, attempt, keep, document)
                WHERE EXISTS (SELECT FROM next)
                ON CONFLICT (id) DO UPDATE SET tenant = excluded.tenant, status = excluded.status,
                    updated_at = excluded.updated_at, attempt = excluded.attempt, keep = excluded.keep,
                    document = excluded.document),
            told AS (
                INSERT INTO event (position, object, seq, id, created_at, payload)
                SELECT v.* FROM unnest($13::bigint[], $14::bytea[], $15::bigint[], $16::bytea[], $17::bigint[],
                                       $18::bytea[])
                    AS v (position, object, seq, id, created_at, payload)
                WHERE EXISTS (SELECT FROM next))
            SELECT one FROM next";
        let rows = &self.rows;
        let query = sqlx::query_as(WRITE)
            .bind(self.number)
            .bind(self.token)
            .bind(owner.epoch.as_bytes().as_slice())
            .bind(owner.batch)
            .bind(rows.iter().map(|row| row.id.as_slice()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.tenant).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.agent).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.status).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.updated_at).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.attempt).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.keep).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.document.as_str()).collect::<Vec<_>>());
        self.events.bind_postgres(query)
    }

    const fn is_only_sessions(&self) -> bool {
        self.losses.is_empty() && self.told.is_empty() && self.drains.is_empty()
    }

    async fn write_rest_postgres(&self, connection: &mut PgStatements) -> Result<(), CommitError> {
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
