//! The queue of each destination: what is due, and what became of it.

use errand_core::EventId;
use errand_store::rows::MultiRow;
use errand_store::{Db, PgStatements, StoreError};
use sqlx::SqliteConnection;

use super::{Store, uuid};
use crate::delivery::{Due, Status};

/// An event as the queue keeps it.
#[derive(Debug, Clone)]
pub struct QueueEvent {
    /// How deliveries name it.
    pub number: i64,
    /// Its id.
    pub id: EventId,
    /// The encoded event.
    pub payload: Vec<u8>,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which delivery.
    pub position: i64,
    /// Of which destination.
    pub destination: i64,
    /// Of which object.
    pub object: i64,
    /// Attempts before this one: who has another number was too late, and changes nothing.
    pub attempts_before: u32,
    /// Where it stands now.
    pub status: Status,
    /// When it is due, where it still is.
    pub due_at: i64,
    /// When it was finished, where it is.
    pub finished_at: Option<i64>,
    /// All attempts.
    pub log: Vec<u8>,
    /// What of its object waits behind it waits with it.
    pub holds: bool,
}

row! {
    struct DueRow {
        position: i64,
        object: i64,
        event: i64,
        due_at: i64,
        before_due_at: Option<i64>,
        attempts: i64,
        base: i64,
        log: Vec<u8>,
    }
}

impl From<DueRow> for Due {
    fn from(row: DueRow) -> Self {
        let count = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            position: row.position,
            object: row.object,
            event: row.event,
            due_at: row.due_at,
            before_due_at: row.before_due_at,
            attempts: count(row.attempts),
            base: count(row.base),
            log: row.log,
            message: None,
        }
    }
}

const ORDERED: &str = "SELECT d.position, d.object, d.event, d.due_at, d.attempts, d.base, d.log,
      (SELECT e.due_at FROM delivery e
        WHERE e.destination = d.destination AND e.object = d.object AND e.status = 0 AND e.position < d.position
        ORDER BY e.position DESC LIMIT 1) AS before_due_at
    FROM delivery d WHERE d.destination = $1 AND d.status = 0 AND d.due_at <= $2 ORDER BY d.due_at, d.position LIMIT $3";
const UNORDERED: &str = "SELECT d.position, d.object, d.event, d.due_at, d.attempts, d.base, d.log,
      CAST(NULL AS BIGINT) AS before_due_at
    FROM delivery d WHERE d.destination = $1 AND d.status = 0 AND d.due_at <= $2 ORDER BY d.due_at, d.position LIMIT $3";
/// While a destination is probed the oldest goes first, so that its schedule is kept.
const OLDEST: &str = "SELECT d.position, d.object, d.event, d.due_at, d.attempts, d.base, d.log,
      (SELECT e.due_at FROM delivery e
        WHERE e.destination = d.destination AND e.object = d.object AND e.status = 0 AND e.position < d.position
        ORDER BY e.position DESC LIMIT 1) AS before_due_at
    FROM delivery d WHERE d.destination = $1 AND d.status = 0 AND d.due_at <= $2 ORDER BY d.position LIMIT $3";
const NEXT_DUE: &str = "SELECT due_at FROM delivery WHERE destination = $1 AND status = 0 AND due_at > $2
    ORDER BY due_at LIMIT 1";
const HOLD: &str = "UPDATE delivery SET due_at = $1
    WHERE destination = $2 AND object = $3 AND status = 0 AND position > $4 AND due_at < $1";
const PUT_OFF: &str = "UPDATE delivery SET due_at = $1 WHERE position = $2 AND status = 0 AND due_at < $1";
const HEALTH: &str = "UPDATE destination SET failing_since = $1 WHERE number = $2";

/// An update in the form of an insertion that always conflicts: of `UPDATE ... FROM (VALUES ...)` SQLite may walk through
/// the whole table, while `CROSS JOIN` says in which order to join.
static RECORD: MultiRow = MultiRow::new(
    "INSERT INTO delivery (position, destination, event, object, origin, status, attempts, base, due_at, created_at,
                           finished_at, log)
     SELECT d.position, d.destination, d.event, d.object, d.origin, v.column3, d.attempts + 1, d.base, v.column4,
            d.created_at, v.column5, v.column6
       FROM (VALUES",
    "(?,?,?,?,?,?)",
    ") v CROSS JOIN delivery d WHERE d.position = v.column1 AND d.attempts = v.column2 AND +d.status = 0
     ON CONFLICT (position) DO UPDATE SET status = excluded.status, attempts = excluded.attempts,
        due_at = excluded.due_at, finished_at = excluded.finished_at, log = excluded.log",
);
const PG_RECORD: &str = "UPDATE delivery SET status = v.status, attempts = v.before + 1, due_at = v.due_at,
        finished_at = v.finished_at, log = v.log
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[])
         AS v (position, before, status, due_at, finished_at, log)
    WHERE delivery.position = v.position AND delivery.status = 0 AND delivery.attempts = v.before";
static EVENTS: MultiRow = MultiRow::new("SELECT number, id, payload FROM delivery_event WHERE number IN (", "?", ")");

/// How to choose among what is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// By time, with what each has to wait for.
    Ordered,
    /// By time.
    Unordered,
    /// By place.
    Oldest,
}

impl Store {
    /// What is due of a destination by `now`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn due(
        &self,
        destination: i64,
        now: i64,
        choice: Choice,
        limit: usize,
    ) -> Result<Vec<Due>, StoreError> {
        let sql = match choice {
            Choice::Ordered => ORDERED,
            Choice::Unordered => UNORDERED,
            Choice::Oldest => OLDEST,
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows: Vec<DueRow> = match self.db() {
            Db::Sqlite(sqlite) => {
                sqlx::query_as(sql).bind(destination).bind(now).bind(limit).fetch_all(&sqlite.read).await?
            }
            Db::Postgres(pool) => sqlx::query_as(sql).bind(destination).bind(now).bind(limit).fetch_all(pool).await?,
        };
        Ok(rows.into_iter().map(Due::from).collect())
    }

    /// When the next of a destination is due that is not by `now`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn next_due(&self, destination: i64, now: i64) -> Result<Option<i64>, StoreError> {
        Ok(match self.db() {
            Db::Sqlite(sqlite) => {
                sqlx::query_scalar(NEXT_DUE).bind(destination).bind(now).fetch_optional(&sqlite.read).await?
            }
            Db::Postgres(pool) => sqlx::query_scalar(NEXT_DUE).bind(destination).bind(now).fetch_optional(pool).await?,
        })
    }

    /// Puts deliveries off, each to its time: what is before them is not due sooner.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_off(&self, positions: &[(i64, i64)]) -> Result<(), StoreError> {
        macro_rules! put_off {
            ($tx:expr) => {{
                let mut tx = $tx;
                for (position, due_at) in positions {
                    sqlx::query(PUT_OFF).bind(due_at).bind(position).execute(&mut *tx).await?;
                }
                tx.commit().await?;
            }};
        }
        match self.db() {
            _ if positions.is_empty() => {}
            Db::Sqlite(sqlite) => put_off!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?),
            Db::Postgres(pool) => put_off!(pool.begin().await?),
        }
        Ok(())
    }

    /// Events by their numbers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn queue_events(&self, numbers: &[i64]) -> Result<Vec<QueueEvent>, StoreError> {
        let mut rows: Vec<(i64, Vec<u8>, Vec<u8>)> = Vec::with_capacity(numbers.len());
        match self.db() {
            _ if numbers.is_empty() => {}
            Db::Sqlite(sqlite) => {
                for (statement, chunk) in EVENTS.chunks(numbers) {
                    let query = chunk.iter().fold(sqlx::query_as(statement), |query, number| query.bind(number));
                    rows.extend(query.fetch_all(&sqlite.read).await?);
                }
            }
            Db::Postgres(pool) => {
                let sql = "SELECT number, id, payload FROM delivery_event WHERE number = ANY($1)";
                rows = sqlx::query_as(sql).bind(numbers.to_vec()).fetch_all(pool).await?;
            }
        }
        let event = |(number, id, payload): (i64, Vec<u8>, Vec<u8>)| {
            Ok(QueueEvent { number, id: EventId::from_uuid(uuid(&id)?), payload })
        };
        rows.into_iter().map(event).collect()
    }

    /// Writes down what became of attempts, and since when destinations have been failing, in one transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn record(&self, records: &[Record], health: &[(i64, Option<i64>)]) -> Result<(), StoreError> {
        macro_rules! record {
            ($tx:expr, $write:ident) => {{
                let mut tx = $tx;
                $write(&mut tx, records).await?;
                for held in records.iter().filter(|record| record.holds) {
                    let query = sqlx::query(HOLD).bind(held.due_at).bind(held.destination).bind(held.object);
                    query.bind(held.position).execute(&mut *tx).await?;
                }
                for (destination, since) in health {
                    sqlx::query(HEALTH).bind(since).bind(destination).execute(&mut *tx).await?;
                }
                tx.commit().await?;
            }};
        }
        match self.db() {
            Db::Sqlite(sqlite) => record!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?, record_sqlite),
            Db::Postgres(pool) => record!(pool.begin().await?, record_postgres),
        }
        Ok(())
    }
}

async fn record_sqlite(tx: &mut SqliteConnection, records: &[Record]) -> Result<(), StoreError> {
    for (statement, chunk) in RECORD.chunks(records) {
        let mut query = sqlx::query(statement);
        for record in chunk {
            query = query
                .bind(record.position)
                .bind(i64::from(record.attempts_before))
                .bind(record.status as i64)
                .bind(record.due_at)
                .bind(record.finished_at)
                .bind(record.log.as_slice());
        }
        query.execute(&mut *tx).await?;
    }
    Ok(())
}

async fn record_postgres(tx: &mut PgStatements, records: &[Record]) -> Result<(), StoreError> {
    if records.is_empty() {
        return Ok(());
    }
    sqlx::query(PG_RECORD)
        .bind(records.iter().map(|record| record.position).collect::<Vec<_>>())
        .bind(records.iter().map(|record| i64::from(record.attempts_before)).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.status as i64).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.due_at).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.finished_at).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.log.as_slice()).collect::<Vec<_>>())
        .execute(tx)
        .await?;
    Ok(())
}
