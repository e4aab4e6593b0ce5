use errand_core::run::Lease;
use errand_core::session::{Session, SessionStatus};
use errand_core::{AgentId, RunnerId, SessionId, Tenant};
use errand_store::{Db, StoreError};
use uuid::Uuid;

use super::Store;
use super::write::LossDocument;
use crate::pool::{Change, Loss, Stored, StoredTerms};

/// Which sessions of a tenant, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Whose.
    pub tenant: Tenant,
    /// In one of these; empty: in any.
    pub statuses: Vec<SessionStatus>,
    /// Of one of these; empty: of any.
    pub agents: Vec<AgentId>,
    /// Older than this one.
    pub before: Option<SessionId>,
    /// Newer than this one; then the nearest ones.
    pub after: Option<SessionId>,
    /// At most so many.
    pub limit: u32,
}

type OpenRow = (String, Option<i64>, Option<i64>);

fn session(document: &str) -> Result<Session, StoreError> {
    serde_json::from_str(document).map_err(|error| StoreError::Corrupt(format!("a session: {error}")))
}

fn change((document, attempt, keep): OpenRow) -> Result<Change, StoreError> {
    let terms = attempt.and_then(|attempt| u32::try_from(attempt).ok());
    let terms = terms.map(|attempt| StoredTerms { attempt, keep: keep == Some(1) });
    Ok(Change { session: session(&document)?, terms })
}

fn loss((token, document): (i64, String)) -> Result<Loss, StoreError> {
    let document: LossDocument =
        serde_json::from_str(&document).map_err(|error| StoreError::Corrupt(format!("a loss: {error}")))?;
    let token = u64::try_from(token).map_err(|_| StoreError::Corrupt("a negative lease token".into()))?;
    Ok(Loss {
        run_id: document.run_id,
        lease: Lease { session_id: document.session_id, runner_id: document.runner_id, token },
        reason: document.reason.into(),
        message: document.message,
    })
}

fn runner((id,): (Vec<u8>,)) -> Result<RunnerId, StoreError> {
    Uuid::from_slice(&id).map(RunnerId::from_uuid).map_err(|_| StoreError::Corrupt("a runner's id".into()))
}

fn key(id: SessionId) -> Vec<u8> {
    id.uuid().as_bytes().to_vec()
}

impl Store {
    /// What a pool needs to go on where the last one stopped. Read by the owner only.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(&self) -> Result<Stored, StoreError> {
        let open = "SELECT document, attempt, keep FROM session
                    WHERE status IN ('queued', 'running', 'idle', 'completing') ORDER BY id";
        let (losses, drains) = ("SELECT token, document FROM loss ORDER BY token", "SELECT runner FROM drain");
        let token = "SELECT token FROM owner WHERE one = 1";
        macro_rules! load {
            ($pool:expr) => {{
                let open: Vec<OpenRow> = sqlx::query_as(open).fetch_all($pool).await?;
                let losses: Vec<(i64, String)> = sqlx::query_as(losses).fetch_all($pool).await?;
                let drains: Vec<(Vec<u8>,)> = sqlx::query_as(drains).fetch_all($pool).await?;
                let token: i64 = sqlx::query_scalar(token).fetch_one($pool).await?;
                (open, losses, drains, token)
            }};
        }
        let (open, losses, drains, token) = match self.db() {
            Db::Sqlite(sqlite) => load!(&sqlite.write),
            Db::Postgres(pool) => load!(pool),
        };
        Ok(Stored {
            sessions: open.into_iter().map(change).collect::<Result<_, _>>()?,
            losses: losses.into_iter().map(loss).collect::<Result<_, _>>()?,
            drains: drains.into_iter().map(runner).collect::<Result<_, _>>()?,
            token: u64::try_from(token).map_err(|_| StoreError::Corrupt("a negative lease token".into()))?,
        })
    }

    /// One session, whoever's it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn session(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        let sql = "SELECT document FROM session WHERE id = $1";
        let row: Option<(String,)> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).bind(key(id)).fetch_optional(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).bind(key(id)).fetch_optional(pool).await?,
        };
        row.map(|(document,)| session(&document)).transpose()
    }

    /// The sessions that a query asks for, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sessions(&self, query: &Query) -> Result<Vec<Session>, StoreError> {
        let statuses: Vec<&str> = query.statuses.iter().map(|status| status.as_str()).collect();
        let agents: Vec<&str> = query.agents.iter().map(AgentId::as_str).collect();
        // All ids are between these: a bound that is always there is one that the index goes by.
        let (before, after) = (query.before.map_or(vec![0xff; 17], key), query.after.map(key).unwrap_or_default());
        let ascending = query.after.is_some();
        let rows: Vec<(String,)> = match self.db() {
            Db::Sqlite(sqlite) => {
                let list = |names: &[&str]| (!names.is_empty()).then(|| serde_json::json!(names).to_string());
                sqlx::query_as(if ascending { SQLITE_ASCENDING } else { SQLITE_DESCENDING })
                    .bind(query.tenant.as_str())
                    .bind(list(&statuses))
                    .bind(list(&agents))
                    .bind(before)
                    .bind(after)
                    .bind(i64::from(query.limit))
                    .fetch_all(&sqlite.read)
                    .await?
            }
            Db::Postgres(pool) => {
                sqlx::query_as(if ascending { POSTGRES_ASCENDING } else { POSTGRES_DESCENDING })
                    .bind(query.tenant.as_str())
                    .bind((!statuses.is_empty()).then_some(statuses))
                    .bind((!agents.is_empty()).then_some(agents))
                    .bind(before)
                    .bind(after)
                    .bind(i64::from(query.limit))
                    .fetch_all(pool)
                    .await?
            }
        };
        let mut sessions = rows.iter().map(|(document,)| session(document)).collect::<Result<Vec<_>, _>>()?;
        if ascending {
            sessions.reverse();
        }
        Ok(sessions)
    }
}

macro_rules! list_sessions {
    ($list:literal, $status:literal, $agent:literal, $order:literal) => {
        concat!(
            "SELECT document FROM session WHERE tenant = $1 AND id < $4 AND id > $5 AND ($2",
            $list,
            " IS NULL OR ",
            $status,
            ") AND ($3",
            $list,
            " IS NULL OR ",
            $agent,
            ") ORDER BY id ",
            $order,
            " LIMIT $6"
        )
    };
}

const SQLITE_DESCENDING: &str = list_sessions!(
    "",
    "status IN (SELECT value FROM json_each($2))",
    "agent IN (SELECT value FROM json_each($3))",
    "DESC"
);
const SQLITE_ASCENDING: &str = list_sessions!(
    "",
    "status IN (SELECT value FROM json_each($2))",
    "agent IN (SELECT value FROM json_each($3))",
    "ASC"
);
const POSTGRES_DESCENDING: &str = list_sessions!("::text[]", "status = ANY($2)", "agent = ANY($3)", "DESC");
const POSTGRES_ASCENDING: &str = list_sessions!("::text[]", "status = ANY($2)", "agent = ANY($3)", "ASC");
