use std::collections::HashSet;

use bytes::Bytes;
use errand_core::run::{Run, RunStatus};
use errand_core::{RunId, Timestamp};
use errand_store::rows::{MultiRow, Script};
use errand_store::{Db, Staged, StoreError};
use uuid::Uuid;

use super::Store;

/// What one transaction writes.
#[derive(Debug, Default)]
pub struct Batch {
    /// Runs that are new.
    pub new: Vec<Run>,
    /// Runs that changed, each with the version that it had in the store.
    pub changed: Vec<(Run, u64)>,
    /// Their events; of each run one at least.
    pub events: Staged,
}

/// A run that is not final, as sweeps and the timeout-watcher need it.
pub type OpenRun = Run;

/// As much of an open run as says whether something is owed to it: read from an index alone, since as many may wait as
/// there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenKey {
    /// Which.
    pub id: RunId,
    /// Its version.
    pub seq: u64,
    /// Its state.
    pub status: RunStatus,
    /// When it changed last.
    pub updated_at: Timestamp,
}

impl From<&Run> for OpenKey {
    fn from(run: &Run) -> Self {
        Self { id: run.id, seq: run.seq, status: run.status(), updated_at: run.updated_at }
    }
}

type KeyRow = (Vec<u8>, i64, String, i64);
type RunRow = (Vec<u8>, i64, String, Option<Vec<u8>>, Option<Vec<u8>>);

// `OR ROLLBACK`: as for events, nothing takes back a statement and goes on.
static INSERT_RUN: MultiRow = MultiRow::new(
    "INSERT OR ROLLBACK INTO run (id, tenant, version, status, task_id, updated_at, last_activity, document, output)
     SELECT * FROM (VALUES",
    "(?,?,?,?,?,?,?,?,?)",
    ") WHERE column1 IS NOT NULL ON CONFLICT (id) DO NOTHING",
)
.exact();
static INSERT_INPUT: MultiRow = MultiRow::new(
    "INSERT OR ROLLBACK INTO run_input (run_id, input) SELECT * FROM (VALUES",
    "(?,?)",
    ") WHERE column1 IS NOT NULL ON CONFLICT DO NOTHING",
);
// The plus signs: SQLite must look each run up. With statistics of a time when there were few runs it reads them all
// instead, and looks for each in an index of the values that it makes for that.
static UPDATE_RUN: MultiRow = MultiRow::new(
    "UPDATE OR ROLLBACK run SET version = v.column3, status = v.column4, updated_at = v.column5,
         last_activity = MAX(run.last_activity, v.column6), document = v.column7, output = v.column8
     FROM (VALUES",
    "(?,?,?,?,?,?,?,?)",
    ") AS v WHERE run.id = +v.column1 AND run.version = +v.column2",
)
.exact();
static TOUCH: MultiRow = MultiRow::new(
    "UPDATE run SET last_activity = MAX(last_activity, v.column2) FROM (VALUES",
    "(?,?)",
    ") AS v WHERE run.id = +v.column1",
);
static SELECT: MultiRow = MultiRow::new(
    "SELECT r.id, r.last_activity, r.document, r.output, i.input FROM run r
     LEFT JOIN run_input i ON i.run_id = r.id WHERE r.id IN (",
    "?",
    ")",
);

pub(super) fn key(id: RunId) -> Vec<u8> {
    id.uuid().as_bytes().to_vec()
}

fn version(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

fn document(run: &Run) -> Result<String, sqlx::Error> {
    serde_json::to_string(run).map_err(|error| sqlx::Error::Encode(format!("run {}: {error}", run.id).into()))
}

pub(super) fn run_of(row: RunRow) -> Result<Run, StoreError> {
    let (_, last_activity, document, output, input) = row;
    let mut run: Run =
        serde_json::from_str(&document).map_err(|error| StoreError::Corrupt(format!("a run: {error}")))?;
    run.last_activity = run.last_activity.max(Timestamp(last_activity));
    run.output = output.map(Bytes::from);
    run.input = input.map(Bytes::from).unwrap_or_default();
    Ok(run)
}

fn key_of((id, seq, status, updated_at): KeyRow) -> Result<OpenKey, StoreError> {
    let broken = || StoreError::Corrupt("the key of an open run".into());
    Ok(OpenKey {
        id: id_of(&id)?,
        seq: u64::try_from(seq).map_err(|_| broken())?,
        status: RunStatus::ALL.into_iter().find(|known| known.as_str() == status).ok_or_else(broken)?,
        updated_at: Timestamp(updated_at),
    })
}

fn id_of(bytes: &[u8]) -> Result<RunId, StoreError> {
    let id = Uuid::from_slice(bytes).map_err(|error| StoreError::Corrupt(format!("the id of a run: {error}")))?;
    Ok(RunId::from_uuid(id))
}

impl Store {
    /// Commits a batch in one transaction. Gives the runs whose change met a conflict: nothing of theirs is written,
    /// their events are taken out of `batch.events`.
    ///
    /// # Errors
    /// [`StoreError`]; then it is unknown whether the batch was committed.
    pub async fn commit(&self, batch: &mut Batch) -> Result<HashSet<RunId>, StoreError> {
        let mut conflicts: HashSet<RunId> = batch.new.iter().map(|run| run.id).collect();
        conflicts.extend(batch.changed.iter().map(|(run, _)| run.id));
        match &self.db {
            Db::Sqlite(sqlite) => {
                let mut connection = sqlite.write.acquire().await?;
                let mut parts = vec![Part { new: &batch.new, changed: &batch.changed, whole: true }];
                while let Some(part) = parts.pop() {
                    if part.script(&batch.events)?.commit(&mut connection).await? {
                        part.ids().for_each(|id| {
                            conflicts.remove(&id);
                        });
                    } else {
                        parts.extend(part.halves().into_iter().flatten());
                    }
                }
            }
            Db::Postgres(pool) => {
                for (id,) in pool.write(write_postgres(batch)?).await? {
                    conflicts.remove(&id_of(&id)?);
                }
            }
        }
        keep_committed(batch, &conflicts);
        Ok(conflicts)
    }

    /// The runs of these ids that there are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn runs(&self, ids: &[RunId]) -> Result<Vec<Run>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut rows: Vec<RunRow> = Vec::with_capacity(ids.len());
        match &self.db {
            Db::Sqlite(sqlite) => {
                for (statement, chunk) in SELECT.chunks(ids) {
                    let query = chunk.iter().fold(sqlx::query_as(statement), |query, id| query.bind(key(*id)));
                    rows.extend(query.fetch_all(&sqlite.read).await?);
                }
            }
            Db::Postgres(pool) => {
                let keys: Vec<Vec<u8>> = ids.iter().map(|id| key(*id)).collect();
                let sql = "SELECT r.id, r.last_activity, r.document, r.output, i.input FROM run r
                           LEFT JOIN run_input i ON i.run_id = r.id WHERE r.id = ANY($1)";
                rows = sqlx::query_as(sql).bind(keys).fetch_all(pool).await?;
            }
        }
        rows.into_iter().map(run_of).collect()
    }

    /// A page of the runs that are not final, by id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_runs(&self, after: Option<RunId>, limit: u32) -> Result<Vec<OpenRun>, StoreError> {
        let sql = "SELECT r.id, r.last_activity, r.document, NULL, NULL FROM run r
                   WHERE r.status IN ('queued', 'running', 'interaction_required', 'review_required', 'canceling')
                   AND r.id > $1 ORDER BY r.id LIMIT $2";
        let after = after.map(key).unwrap_or_default();
        let rows: Vec<RunRow> = match &self.db {
            Db::Sqlite(sqlite) => {
                sqlx::query_as(sql).bind(after).bind(i64::from(limit)).fetch_all(&sqlite.read).await?
            }
            Db::Postgres(pool) => {
                let sql = sql.replace("NULL, NULL", "NULL::bytea, NULL::bytea");
                let query = sqlx::query_as(sqlx::AssertSqlSafe(sql));
                query.bind(after).bind(i64::from(limit)).fetch_all(pool).await?
            }
        };
        rows.into_iter().map(run_of).collect()
    }

    /// A page of the runs that are not final, by id, and of each no more than the index holds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_keys(&self, after: Option<RunId>, limit: u32) -> Result<Vec<OpenKey>, StoreError> {
        let sql = "SELECT id, version, status, updated_at FROM run
                   WHERE status IN ('queued', 'running', 'interaction_required', 'review_required', 'canceling')
                   AND id > $1 ORDER BY id LIMIT $2";
        let after = after.map(key).unwrap_or_default();
        let rows: Vec<KeyRow> = match &self.db {
            Db::Sqlite(sqlite) => {
                sqlx::query_as(sql).bind(after).bind(i64::from(limit)).fetch_all(&sqlite.read).await?
            }
            Db::Postgres(pool) => sqlx::query_as(sql).bind(after).bind(i64::from(limit)).fetch_all(pool).await?,
        };
        rows.into_iter().map(key_of).collect()
    }

    /// Writes down the newest activity of runs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn touch(&self, seen: &[(RunId, Timestamp)]) -> Result<(), StoreError> {
        match &self.db {
            Db::Sqlite(sqlite) => {
                for (statement, chunk) in TOUCH.chunks(seen) {
                    let query =
                        chunk.iter().fold(sqlx::query(statement), |query, (id, at)| query.bind(key(*id)).bind(at.0));
                    query.execute(&sqlite.write).await?;
                }
            }
            Db::Postgres(pool) => {
                sqlx::query(
                    "UPDATE run SET last_activity = GREATEST(last_activity, v.at)
                     FROM unnest($1::bytea[], $2::bigint[]) AS v (id, at) WHERE run.id = v.id",
                )
                .bind(seen.iter().map(|(id, _)| key(*id)).collect::<Vec<_>>())
                .bind(seen.iter().map(|(_, at)| at.0).collect::<Vec<_>>())
                .execute(pool)
                .await?;
            }
        }
        Ok(())
    }
}

/// Runs of a batch that are written in one go, or not at all where one of them met a conflict.
#[derive(Clone, Copy)]
struct Part<'a> {
    new: &'a [Run],
    changed: &'a [(Run, u64)],
    /// All of the batch: every event is of one of these.
    whole: bool,
}

impl<'a> Part<'a> {
    fn ids(&self) -> impl Iterator<Item = RunId> + use<'a> {
        self.new.iter().map(|run| run.id).chain(self.changed.iter().map(|(run, _)| run.id))
    }

    /// What is left to try; nothing of a run alone.
    fn halves(self) -> [Option<Self>; 2] {
        let Self { new, changed, .. } = self;
        let part = |new, changed| Some(Self { new, changed, whole: false });
        match (new, changed) {
            ([], [] | [_]) | ([_], []) => [None, None],
            ([], _) => {
                let (first, second) = changed.split_at(changed.len() / 2);
                [part(new, first), part(new, second)]
            }
            (_, []) => {
                let (first, second) = new.split_at(new.len() / 2);
                [part(first, changed), part(second, changed)]
            }
            _ => [part(new, &[]), part(&[], changed)],
        }
    }

    fn script(&self, events: &Staged) -> Result<Script, sqlx::Error> {
        let mut script = Script::begin();
        let with_input: Vec<&Run> = self.new.iter().filter(|run| !run.input.is_empty()).collect();
        script.rows(&INSERT_RUN, self.new, bind_new)?;
        script.rows(&INSERT_INPUT, &with_input, |script, run| {
            script.bind(key(run.id))?;
            script.bind(run.input.to_vec())
        })?;
        script.rows(&UPDATE_RUN, self.changed, bind_changed)?;
        let objects: Option<HashSet<RunId>> = (!self.whole).then(|| self.ids().collect());
        let is_of_these = |object: &[u8; 16]| {
            objects.as_ref().is_none_or(|objects| objects.contains(&RunId::from_uuid(Uuid::from_bytes(*object))))
        };
        events.write_sqlite(&mut script, is_of_these)?;
        Ok(script)
    }
}

fn bind_new(script: &mut Script, run: &Run) -> Result<(), sqlx::Error> {
    script.bind(key(run.id))?;
    script.bind(run.tenant.as_str())?;
    script.bind(version(run.seq))?;
    script.bind(run.status().as_str())?;
    script.bind(run.spec.task_id.uuid().as_bytes().to_vec())?;
    script.bind(run.updated_at.0)?;
    script.bind(run.last_activity.0)?;
    script.bind(document(run)?)?;
    script.bind(run.output.as_deref())
}

fn bind_changed(script: &mut Script, (run, expected): &(Run, u64)) -> Result<(), sqlx::Error> {
    script.bind(key(run.id))?;
    script.bind(version(*expected))?;
    script.bind(version(run.seq))?;
    script.bind(run.status().as_str())?;
    script.bind(run.updated_at.0)?;
    script.bind(run.last_activity.0)?;
    script.bind(document(run)?)?;
    script.bind(run.output.as_deref())
}

fn keep_committed(batch: &mut Batch, conflicts: &HashSet<RunId>) {
    if !conflicts.is_empty() {
        batch.events.retain_objects(|object| !conflicts.contains(&RunId::from_uuid(Uuid::from_bytes(*object))));
    }
}

type PgQuery<'q> = sqlx::query::QueryAs<'q, sqlx::Postgres, (Vec<u8>,), sqlx::postgres::PgArguments>;

/// All of a batch but what met a conflict; tells the ids of what was written. One statement and no transaction about it, as
/// each is a round trip. Who gives it up cannot know whether it is still on its way: so it writes nothing behind the fence
/// that is put up before it is looked for ([`errand_store::Ledger::settled`]), and holds that fence until it is over.
/// Rows that change are locked in one order by everybody: two dispatchers' batches cannot wait for each other. `IS TRUE`
/// keeps Postgres, which does not know how long an array is, from comparing each row with each: it looks rows up.
fn write_postgres(batch: &Batch) -> Result<PgQuery<'_>, StoreError> {
    const WRITE: &str = "WITH
        fence AS (SELECT FROM outbox_writer WHERE writer = $26::bigint >> 40 AND fence < $26 FOR SHARE),
        new AS (
            INSERT INTO run (id, tenant, version, status, task_id, updated_at, last_activity, document, output)
            SELECT * FROM unnest($1::bytea[], $2::text[], $3::bigint[], $4::text[], $5::bytea[], $6::bigint[],
                                 $7::bigint[], $8::text[], $9::bytea[])
            WHERE EXISTS (SELECT FROM fence)
            ON CONFLICT (id) DO NOTHING RETURNING id),
        input AS (
            INSERT INTO run_input (run_id, input)
            SELECT v.id, v.input FROM unnest($10::bytea[], $11::bytea[]) AS v (id, input)
            WHERE (v.id IN (SELECT id FROM new)) IS TRUE ON CONFLICT DO NOTHING),
        locked AS (SELECT id FROM run WHERE id = ANY($12::bytea[]) ORDER BY id FOR UPDATE),
        changed AS (
            UPDATE run SET version = v.version, status = v.status, updated_at = v.updated_at,
                last_activity = GREATEST(run.last_activity, v.last_activity), document = v.document, output = v.output
            FROM unnest($12::bytea[], $13::bigint[], $14::bigint[], $15::text[], $16::bigint[], $17::bigint[],
                        $18::text[], $19::bytea[])
                AS v (id, expected, version, status, updated_at, last_activity, document, output)
            WHERE EXISTS (SELECT FROM fence) AND (SELECT COUNT(*) FROM locked) >= 0
              AND run.id = v.id AND run.version = v.expected RETURNING run.id),
        written AS (SELECT id FROM new UNION ALL SELECT id FROM changed),
        told AS (
            INSERT INTO event (position, object, seq, id, created_at, payload)
            SELECT v.* FROM unnest($20::bigint[], $21::bytea[], $22::bigint[], $23::bytea[], $24::bigint[], $25::bytea[])
                AS v (position, object, seq, id, created_at, payload)
            WHERE (v.object IN (SELECT id FROM written)) IS TRUE)
        SELECT id FROM written";
    let Batch { new, changed, events } = batch;
    let with_input = || new.iter().filter(|run| !run.input.is_empty());
    let query = sqlx::query_as(WRITE)
        .bind(new.iter().map(|run| key(run.id)).collect::<Vec<_>>())
        .bind(new.iter().map(|run| run.tenant.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|run| version(run.seq)).collect::<Vec<_>>())
        .bind(new.iter().map(|run| run.status().as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|run| run.spec.task_id.uuid().as_bytes().to_vec()).collect::<Vec<_>>())
        .bind(new.iter().map(|run| run.updated_at.0).collect::<Vec<_>>())
        .bind(new.iter().map(|run| run.last_activity.0).collect::<Vec<_>>())
        .bind(new.iter().map(document).collect::<Result<Vec<_>, _>>()?)
        .bind(new.iter().map(|run| run.output.as_deref()).collect::<Vec<_>>())
        .bind(with_input().map(|run| key(run.id)).collect::<Vec<_>>())
        .bind(with_input().map(|run| run.input.as_ref()).collect::<Vec<_>>())
        .bind(changed.iter().map(|(run, _)| key(run.id)).collect::<Vec<_>>())
        .bind(changed.iter().map(|(_, expected)| version(*expected)).collect::<Vec<_>>())
        .bind(changed.iter().map(|(run, _)| version(run.seq)).collect::<Vec<_>>())
        .bind(changed.iter().map(|(run, _)| run.status().as_str()).collect::<Vec<_>>())
        .bind(changed.iter().map(|(run, _)| run.updated_at.0).collect::<Vec<_>>())
        .bind(changed.iter().map(|(run, _)| run.last_activity.0).collect::<Vec<_>>())
        .bind(changed.iter().map(|(run, _)| document(run)).collect::<Result<Vec<_>, _>>()?)
        .bind(changed.iter().map(|(run, _)| run.output.as_deref()).collect::<Vec<_>>());
    Ok(events.bind_postgres(query).bind(events.events().first().map(|event| event.position)))
}
