//! The outbox (ADR 0002): an event is committed with the change that it tells, then published, and published again
//! until the stream has it.
//!
//! Each process that writes is a *writer* with a number of its own, and gives its events *positions* that grow by
//! one: `writer << 40 | n`. How far a writer's events are in the stream is one number, its *mark*, so nothing is
//! written per published event. What lies behind the mark of a writer that is gone is published by the others.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use errand_core::{EventId, Tenant};
use errand_proto::v1;
use prost::Message;
use sqlx::SqliteConnection;
use tokio::sync::mpsc;

use crate::db::{Db, Migration, StoreError};
use crate::ledger::{EventStream, Ledger};
use crate::postgres::PgStatements;
use crate::publisher::Publisher;
use crate::rows::{MultiRow, Script};

/// Positions of one writer: 2^40 events.
pub(crate) const WRITER_SHIFT: u32 = 40;
/// Batches that may wait for the publisher in memory; beyond, they are read from the store again.
const QUEUE: usize = 1024;

pub(crate) const MIGRATIONS: &[Migration] = &[OUTBOX, FENCE];

const OUTBOX: Migration = Migration {
    version: 1,
    name: "outbox",
    sqlite: "
        CREATE TABLE event (
            position INTEGER PRIMARY KEY,
            object BLOB NOT NULL,
            seq INTEGER NOT NULL,
            id BLOB NOT NULL,
            created_at INTEGER NOT NULL,
            payload BLOB NOT NULL
        );
        CREATE UNIQUE INDEX event_object_seq ON event (object, seq);
        CREATE INDEX event_created_at ON event (created_at);
        CREATE TABLE outbox_writer (
            writer INTEGER PRIMARY KEY,
            mark INTEGER NOT NULL,
            seen_at INTEGER NOT NULL
        );
        CREATE TABLE outbox_checkpoint (
            writer INTEGER NOT NULL,
            position INTEGER NOT NULL,
            stream_sequence INTEGER NOT NULL,
            message_id TEXT NOT NULL,
            PRIMARY KEY (writer, position)
        ) WITHOUT ROWID;
        CREATE TABLE outbox_recovery (one INTEGER PRIMARY KEY, since INTEGER NOT NULL);
    ",
    postgres: "
        CREATE TABLE event (
            position BIGINT PRIMARY KEY,
            object BYTEA NOT NULL,
            seq BIGINT NOT NULL,
            id BYTEA NOT NULL,
            created_at BIGINT NOT NULL,
            payload BYTEA NOT NULL
        );
        CREATE UNIQUE INDEX event_object_seq ON event (object, seq);
        CREATE INDEX event_created_at ON event (created_at);
        CREATE TABLE outbox_writer (
            writer BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            mark BIGINT NOT NULL,
            seen_at BIGINT NOT NULL
        );
        CREATE TABLE outbox_checkpoint (
            writer BIGINT NOT NULL,
            position BIGINT NOT NULL,
            stream_sequence BIGINT NOT NULL,
            message_id TEXT NOT NULL,
            PRIMARY KEY (writer, position)
        );
        CREATE TABLE outbox_recovery (one INTEGER PRIMARY KEY, since BIGINT NOT NULL);
    ",
};

/// Up to which position nothing of a writer's is written any more.
const FENCE: Migration = Migration {
    version: 3,
    name: "fence",
    sqlite: "ALTER TABLE outbox_writer ADD COLUMN fence INTEGER NOT NULL DEFAULT 0;",
    postgres: "ALTER TABLE outbox_writer ADD COLUMN fence BIGINT NOT NULL DEFAULT 0;",
};

/// An event as the store keeps it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// `writer << 40 | n`.
    pub position: i64,
    /// The UUID behind the object's id.
    pub object: [u8; 16],
    /// 1, 2, 3 ... per object.
    pub seq: i64,
    /// The event.
    pub id: EventId,
    /// When the object changed, in milliseconds since the Unix epoch.
    pub created_at: i64,
    /// The encoded event, as it is published.
    pub payload: Bytes,
    /// Where it is published: tenant, object, action, object's id, trace.
    pub(crate) route: Route,
}

/// What of an event its subject and headers need.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) tenant: Tenant,
    pub(crate) r#type: String,
    pub(crate) object_id: String,
    pub(crate) traceparent: Option<String>,
}

/// Events that have their positions: insert them in the transaction of the change, then publish them.
#[derive(Debug, Clone, Default)]
pub struct Staged {
    pub(crate) rows: Vec<Stored>,
}

pub(crate) enum Order {
    /// Committed: publish.
    Publish(Staged),
    /// Perhaps committed: look, and publish what is there.
    Look(Staged),
}

/// Where a writer puts its events. Its commits must come one after another, each staged, committed and published
/// before the next is staged: the mark is one number, and says that all before it is done.
#[derive(Debug, Clone)]
pub struct Outbox<L = Db> {
    ledger: L,
    pub(crate) writer: i64,
    next: Arc<AtomicI64>,
    queue: mpsc::Sender<Order>,
    behind: Arc<AtomicBool>,
    backlog: Arc<Backlog>,
}

/// What is committed and not yet in the stream, of one writer.
/// By batch: its last position, and when its first event was made.
#[derive(Debug, Default)]
pub(crate) struct Backlog(Mutex<VecDeque<(i64, i64)>>);

/// Batches that are remembered for their age; beyond, the oldest still tells.
const REMEMBERED: usize = 16 * 1024;

impl Backlog {
    fn begin(&self, rows: &[Stored]) {
        let mut batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(first), Some(last)) = (rows.first(), rows.last())
            && batches.len() < REMEMBERED
        {
            batches.push_back((last.position, first.created_at));
        }
    }

    /// All up to this position is in the stream.
    pub(crate) fn end(&self, published: i64) {
        let mut batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while batches.front().is_some_and(|(position, _)| *position <= published) {
            batches.pop_front();
        }
    }

    fn oldest(&self) -> Option<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).front().map(|(_, created_at)| *created_at)
    }
}

pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

// `OR ROLLBACK`: a row that does not fit ends the transaction, so SQLite need not be able to take back this statement alone.
static INSERT: MultiRow = MultiRow::new(
    "INSERT OR ROLLBACK INTO event (position, object, seq, id, created_at, payload) SELECT * FROM (VALUES",
    "(?,?,?,?,?,?)",
    ") WHERE column1 IS NOT NULL",
);

impl<L: Ledger> Outbox<L> {
    /// Registers this process as a writer. The publisher must be run for events to reach the stream.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn open<S: EventStream>(ledger: L, stream: S) -> Result<(Self, Publisher<L, S>), StoreError> {
        let writer = ledger.register(ledger.now_ms()).await?;
        let (queue, orders) = mpsc::channel(QUEUE);
        let behind = Arc::new(AtomicBool::new(false));
        let backlog = Arc::new(Backlog::default());
        let outbox = Self {
            ledger: ledger.clone(),
            writer,
            next: Arc::new(AtomicI64::new(first_position(writer))),
            queue,
            behind: Arc::clone(&behind),
            backlog: Arc::clone(&backlog),
        };
        Ok((outbox, Publisher::new(ledger, stream, writer, orders, behind, backlog)))
    }

    /// How old the oldest of the events is that are committed here and not yet in the stream.
    #[must_use]
    pub fn lag(&self) -> Duration {
        let oldest = self.backlog.oldest().map_or(0, |created_at| self.ledger.now_ms() - created_at);
        Duration::from_millis(u64::try_from(oldest).unwrap_or(0))
    }

    /// Gives the events their positions. `objects` are the UUIDs behind `object_id`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where an event is not one that Errand makes.
    pub fn stage(&self, events: impl IntoIterator<Item = v1::Event>) -> Result<Staged, StoreError> {
        let mut rows: Vec<Stored> = Vec::new();
        for event in events {
            let payload = Bytes::from(event.encode_to_vec());
            rows.push(row(0, event, payload)?);
        }
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        for (position, row) in (first..).zip(&mut rows) {
            row.position = position;
        }
        Ok(Staged { rows })
    }

    /// Publishes what is committed; in the order of the calls. Never waits: what does not fit in memory is read from
    /// the store again.
    pub fn publish(&self, staged: Staged) {
        self.order(Order::Publish(staged));
    }

    /// After a commit whose outcome is unknown: publishes what of it is in the store.
    pub fn uncertain(&self, staged: Staged) {
        self.order(Order::Look(staged));
    }

    fn order(&self, order: Order) {
        let (rows, committed) = match &order {
            Order::Publish(staged) => (&staged.rows, true),
            Order::Look(staged) => (&staged.rows, false),
        };
        // Of others' events others tell.
        if committed && rows.first().is_some_and(|row| row.position >> WRITER_SHIFT == self.writer) {
            self.backlog.begin(rows);
        }
        if rows.is_empty() || self.behind.load(Ordering::Acquire) {
            return;
        }
        if self.queue.try_send(order).is_err() {
            self.behind.store(true, Ordering::Release);
        }
    }

    /// What other writers have committed for these objects and may not have published. Publish it before anything
    /// newer of theirs, so that each object's events keep their order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unpublished_of_others(&self, objects: &[[u8; 16]]) -> Result<Staged, StoreError> {
        if objects.is_empty() {
            return Ok(Staged::default());
        }
        let rows = self.ledger.unmarked(objects).await?;
        let mut staged = decode_rows(rows)?;
        staged.rows.retain(|row| row.position >> WRITER_SHIFT != self.writer);
        staged.rows.sort_by_key(|row| (row.object, row.seq));
        Ok(staged)
    }
}

impl Outbox {
    /// The events of one object behind `after_seq`, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn events_of(&self, object: [u8; 16], after_seq: u64, limit: u32) -> Result<Vec<v1::Event>, StoreError> {
        let sql = "SELECT payload FROM event WHERE object = $1 AND seq > $2 ORDER BY seq LIMIT $3";
        let after = i64::try_from(after_seq).unwrap_or(i64::MAX);
        let limit = i64::from(limit);
        let payloads: Vec<(Vec<u8>,)> = match &self.ledger {
            Db::Sqlite(sqlite) => {
                let query = sqlx::query_as(sql).bind(object.as_slice()).bind(after).bind(limit);
                query.fetch_all(&sqlite.read).await?
            }
            Db::Postgres(pool) => {
                let query = sqlx::query_as(sql).bind(object.as_slice()).bind(after).bind(limit);
                query.fetch_all(pool).await?
            }
        };
        payloads.into_iter().map(|(payload,)| decode(&payload)).collect()
    }
}

type PgQuery<'q, O> = sqlx::query::QueryAs<'q, sqlx::Postgres, O, sqlx::postgres::PgArguments>;

impl Staged {
    /// The events.
    #[must_use]
    pub fn events(&self) -> &[Stored] {
        &self.rows
    }

    /// How many events these are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds the insertion of those of some objects to the transaction of the change.
    ///
    /// # Errors
    /// As [`Script::rows`].
    pub fn write_sqlite(&self, script: &mut Script, of: impl Fn(&[u8; 16]) -> bool) -> Result<(), sqlx::Error> {
        let rows: Vec<&Stored> = self.rows.iter().filter(|row| of(&row.object)).collect();
        script.rows(&INSERT, &rows, |script, row| {
            script.bind(row.position)?;
            script.bind(row.object.to_vec())?;
            script.bind(row.seq)?;
            script.bind(row.id.uuid().as_bytes().to_vec())?;
            script.bind(row.created_at)?;
            script.bind(row.payload.to_vec())
        })
    }

    /// Inserts into SQLite, within the transaction of the change.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn insert_sqlite(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        for (statement, rows) in INSERT.chunks(&self.rows) {
            let mut query = sqlx::query(statement);
            for row in rows {
                query = query
                    .bind(row.position)
                    .bind(row.object.as_slice())
                    .bind(row.seq)
                    .bind(row.id.uuid().as_bytes().to_vec())
                    .bind(row.created_at)
                    .bind(row.payload.as_ref());
            }
            query.execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Inserts into Postgres, within the transaction of the change.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn insert_postgres(&self, connection: &mut PgStatements) -> Result<(), StoreError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let query = sqlx::query_as(
            "INSERT INTO event (position, object, seq, id, created_at, payload)
             SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bytea[])
             RETURNING position",
        );
        let _: Vec<(i64,)> = self.bind_postgres(query).fetch_all(connection).await?;
        Ok(())
    }

    /// Binds them for Postgres, an array a column: position, object, seq, id, `created_at`, payload.
    pub fn bind_postgres<'q, O>(&'q self, query: PgQuery<'q, O>) -> PgQuery<'q, O> {
        let rows = &self.rows;
        query
            .bind(rows.iter().map(|row| row.position).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.object.as_slice()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.seq).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.id.uuid().as_bytes().to_vec()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.created_at).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.payload.as_ref()).collect::<Vec<_>>())
    }

    /// Leaves only the events of objects for which `keep` says yes: the others' changes met a conflict.
    pub fn retain_objects(&mut self, keep: impl Fn(&[u8; 16]) -> bool) {
        self.rows.retain(|row| keep(&row.object));
    }

    /// Whether there is nothing to publish.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The waves in which these may be published: within one, no object has two events.
    pub(crate) fn waves(self) -> Vec<Vec<Stored>> {
        if errand_core::mutated!(PublishInOneWave) {
            return vec![self.rows];
        }
        let mut waves: Vec<Vec<Stored>> = Vec::new();
        let mut depth: HashMap<[u8; 16], usize> = HashMap::with_capacity(self.rows.len());
        for row in self.rows {
            let at = depth.entry(row.object).and_modify(|at| *at += 1).or_insert(0);
            if waves.len() == *at {
                waves.push(Vec::new());
            }
            waves[*at].push(row);
        }
        waves
    }
}

/// The first position of a writer.
pub(crate) const fn first_position(writer: i64) -> i64 {
    (writer << WRITER_SHIFT) + 1
}

fn decode(payload: &[u8]) -> Result<v1::Event, StoreError> {
    v1::Event::decode(payload).map_err(|error| StoreError::Corrupt(format!("event: {error}")))
}

pub(crate) fn decode_rows(rows: Vec<(i64, Vec<u8>)>) -> Result<Staged, StoreError> {
    let rows = rows.into_iter().map(|(position, payload)| row(position, decode(&payload)?, payload.into()));
    Ok(Staged { rows: rows.collect::<Result<_, _>>()? })
}

fn row(position: i64, event: v1::Event, payload: Bytes) -> Result<Stored, StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt(format!("event {}: {what}", event.id));
    Ok(Stored {
        position,
        object: object_uuid(&event.object_id).ok_or_else(|| corrupt("object_id"))?,
        seq: i64::try_from(event.seq).map_err(|_| corrupt("seq"))?,
        id: event.id.parse().map_err(|_| corrupt("id"))?,
        created_at: event.created_at_ms,
        payload,
        route: Route {
            tenant: event.tenant.parse().or_else(|_| system(&event.tenant)).map_err(|()| corrupt("tenant"))?,
            r#type: event.r#type,
            object_id: event.object_id,
            traceparent: (!event.traceparent.is_empty()).then_some(event.traceparent),
        },
    })
}

fn system(tenant: &str) -> Result<Tenant, ()> {
    let system = Tenant::system();
    if tenant == system.as_str() { Ok(system) } else { Err(()) }
}

fn object_uuid(id: &str) -> Option<[u8; 16]> {
    use errand_core::{CredentialId, DestinationId, RunId, SessionId, StorageId, TaskId};
    let uuid = match id.split_once('_')?.0 {
        RunId::PREFIX => id.parse::<RunId>().ok()?.uuid(),
        SessionId::PREFIX => id.parse::<SessionId>().ok()?.uuid(),
        TaskId::PREFIX => id.parse::<TaskId>().ok()?.uuid(),
        CredentialId::PREFIX => id.parse::<CredentialId>().ok()?.uuid(),
        DestinationId::PREFIX => id.parse::<DestinationId>().ok()?.uuid(),
        StorageId::PREFIX => id.parse::<StorageId>().ok()?.uuid(),
        _ => return None,
    };
    Some(*uuid.as_bytes())
}
