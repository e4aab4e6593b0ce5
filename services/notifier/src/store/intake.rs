//! Events come in, each once, with a delivery for each destination that wants it.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use errand_core::EventId;
use errand_store::rows::MultiRow;
use errand_store::{Db, PgStatements, StoreError};
use sqlx::SqliteConnection;

use super::{Store, bytes, uuid};
use crate::delivery::Origin;

/// An event that some destination wants.
#[derive(Debug, Clone)]
pub struct Entry {
    /// By which it is stored once.
    pub id: EventId,
    /// `task_run.completed`
    pub event_type: String,
    /// What it is about.
    pub object_id: String,
    /// The encoded event.
    pub payload: Bytes,
    /// The numbers of the destinations.
    pub destinations: Vec<i64>,
}

/// What came of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Taken {
    /// Deliveries that there are now and were not.
    pub deliveries: usize,
    /// The destinations that have one.
    pub destinations: HashSet<i64>,
}

struct NewDelivery {
    destination: i64,
    event: i64,
    object: i64,
}

static EVENTS: MultiRow = MultiRow::new(
    "INSERT INTO delivery_event (id, taken, type, object_id, created_at, payload) VALUES",
    "(?,?,?,?,?,?)",
    // Conflicting: an event that a replay stored gets its deliveries once, one that has them none.
    "ON CONFLICT (id) DO UPDATE SET taken = 1 WHERE taken = 0 AND excluded.taken = 1 RETURNING number, id",
);
static DELIVERIES: MultiRow = MultiRow::new(
    "INSERT INTO delivery (destination, event, object, origin, status, attempts, base, due_at, created_at, log) VALUES",
    "(?,?,?,?,0,0,0,?,?,x'')",
    "",
);
static NUMBERS: MultiRow = MultiRow::new("SELECT number, id FROM delivery_event WHERE id IN (", "?", ")");

const PG_EVENTS: &str = "INSERT INTO delivery_event (id, taken, type, object_id, created_at, payload)
    SELECT id, $2, type, object_id, $5, payload
      FROM unnest($1::bytea[], $3::text[], $4::text[], $6::bytea[]) AS e (id, type, object_id, payload)
    ON CONFLICT (id) DO UPDATE SET taken = 1 WHERE delivery_event.taken = 0 AND excluded.taken = 1
    RETURNING number, id";
const PG_DELIVERIES: &str = "INSERT INTO delivery
        (destination, event, object, origin, status, attempts, base, due_at, created_at, log)
    SELECT destination, event, object, $4, 0, 0, 0, $5, $5, ''
      FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS d (destination, event, object, place)
     ORDER BY place";

/// A number of an object, the same in each version of Errand (FNV-1a): deliveries of one number keep their order.
#[must_use]
pub(crate) fn object_number(object_id: &str) -> i64 {
    let hash = object_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash.cast_signed()
}

impl Store {
    /// Stores events that came in, with their deliveries, due at `now`. What was taken before is left as it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take(&self, entries: &[Entry], now: i64) -> Result<Taken, StoreError> {
        if entries.is_empty() {
            return Ok(Taken::default());
        }
        match self.db() {
            Db::Sqlite(sqlite) => {
                let mut tx = sqlite.write.begin_with("BEGIN IMMEDIATE").await?;
                let numbers = insert_events_sqlite(&mut tx, entries, true, now).await?;
                let (new, taken) = deliveries(entries, &numbers);
                insert_deliveries_sqlite(&mut tx, &new, Origin::Event, now).await?;
                tx.commit().await?;
                Ok(taken)
            }
            Db::Postgres(pool) => {
                let mut tx = pool.begin().await?;
                let numbers = insert_events_postgres(&mut tx, entries, true, now).await?;
                let (new, taken) = deliveries(entries, &numbers);
                insert_deliveries_postgres(&mut tx, &new, Origin::Event, now).await?;
                tx.commit().await?;
                Ok(taken)
            }
        }
    }
}

/// As [`Store::take`] within a transaction, for a replay: each entry gets its deliveries, whether or not its event was
/// taken before; an event that was not still gets its own when it comes in.
pub(super) async fn replay_sqlite(tx: &mut SqliteConnection, entries: &[Entry], now: i64) -> Result<(), StoreError> {
    insert_events_sqlite(&mut *tx, entries, false, now).await?;
    let ids: Vec<Vec<u8>> = entries.iter().map(|entry| bytes(entry.id.uuid())).collect();
    let mut numbers = HashMap::with_capacity(ids.len());
    for (statement, chunk) in NUMBERS.chunks(&ids) {
        let query = chunk.iter().fold(sqlx::query_as(statement), |query, id| query.bind(id.as_slice()));
        add_numbers(&mut numbers, query.fetch_all(&mut *tx).await?)?;
    }
    let (new, _) = deliveries(entries, &numbers);
    insert_deliveries_sqlite(tx, &new, Origin::Replay, now).await
}

/// As [`replay_sqlite`].
pub(super) async fn replay_postgres(tx: &mut PgStatements, entries: &[Entry], now: i64) -> Result<(), StoreError> {
    insert_events_postgres(&mut *tx, entries, false, now).await?;
    let ids: Vec<Vec<u8>> = entries.iter().map(|entry| bytes(entry.id.uuid())).collect();
    let sql = "SELECT number, id FROM delivery_event WHERE id = ANY($1)";
    let mut numbers = HashMap::with_capacity(ids.len());
    add_numbers(&mut numbers, sqlx::query_as(sql).bind(ids).fetch_all(&mut *tx).await?)?;
    let (new, _) = deliveries(entries, &numbers);
    insert_deliveries_postgres(tx, &new, Origin::Replay, now).await
}

fn deliveries(entries: &[Entry], numbers: &HashMap<EventId, i64>) -> (Vec<NewDelivery>, Taken) {
    let mut new = Vec::new();
    let mut seen = HashSet::with_capacity(entries.len());
    for entry in entries {
        let Some(number) = numbers.get(&entry.id).filter(|_| seen.insert(entry.id)) else { continue };
        let object = object_number(&entry.object_id);
        let each = entry.destinations.iter();
        new.extend(each.map(|destination| NewDelivery { destination: *destination, event: *number, object }));
    }
    let destinations = new.iter().map(|new| new.destination).collect();
    let taken = Taken { deliveries: new.len(), destinations };
    (new, taken)
}

fn add_numbers(numbers: &mut HashMap<EventId, i64>, rows: Vec<(i64, Vec<u8>)>) -> Result<(), StoreError> {
    for (number, id) in rows {
        numbers.insert(EventId::from_uuid(uuid(&id)?), number);
    }
    Ok(())
}

pub(super) async fn insert_events_sqlite(
    tx: &mut SqliteConnection,
    entries: &[Entry],
    taken: bool,
    now: i64,
) -> Result<HashMap<EventId, i64>, StoreError> {
    let mut numbers = HashMap::with_capacity(entries.len());
    for (statement, chunk) in EVENTS.chunks(entries) {
        let mut query = sqlx::query_as(statement);
        for entry in chunk {
            query = query
                .bind(bytes(entry.id.uuid()))
                .bind(i64::from(taken))
                .bind(entry.event_type.as_str())
                .bind(entry.object_id.as_str())
                .bind(now)
                .bind(entry.payload.as_ref());
        }
        add_numbers(&mut numbers, query.fetch_all(&mut *tx).await?)?;
    }
    Ok(numbers)
}

pub(super) async fn insert_events_postgres(
    tx: &mut PgStatements,
    entries: &[Entry],
    taken: bool,
    now: i64,
) -> Result<HashMap<EventId, i64>, StoreError> {
    // One statement may not touch a row twice.
    let mut seen = HashSet::with_capacity(entries.len());
    let once: Vec<&Entry> = entries.iter().filter(|entry| seen.insert(entry.id)).collect();
    let rows = sqlx::query_as(PG_EVENTS)
        .bind(once.iter().map(|entry| bytes(entry.id.uuid())).collect::<Vec<_>>())
        .bind(i64::from(taken))
        .bind(once.iter().map(|entry| entry.event_type.as_str()).collect::<Vec<_>>())
        .bind(once.iter().map(|entry| entry.object_id.as_str()).collect::<Vec<_>>())
        .bind(now)
        .bind(once.iter().map(|entry| entry.payload.as_ref()).collect::<Vec<_>>())
        .fetch_all(tx)
        .await?;
    let mut numbers = HashMap::with_capacity(entries.len());
    add_numbers(&mut numbers, rows)?;
    Ok(numbers)
}

async fn insert_deliveries_sqlite(
    tx: &mut SqliteConnection,
    new: &[NewDelivery],
    origin: Origin,
    now: i64,
) -> Result<(), StoreError> {
    for (statement, chunk) in DELIVERIES.chunks(new) {
        let mut query = sqlx::query(statement);
        for row in chunk {
            query = query.bind(row.destination).bind(row.event).bind(row.object);
            query = query.bind(origin as i64).bind(now).bind(now);
        }
        query.execute(&mut *tx).await?;
    }
    Ok(())
}

async fn insert_deliveries_postgres(
    tx: &mut PgStatements,
    new: &[NewDelivery],
    origin: Origin,
    now: i64,
) -> Result<(), StoreError> {
    if new.is_empty() {
        return Ok(());
    }
    sqlx::query(PG_DELIVERIES)
        .bind(new.iter().map(|row| row.destination).collect::<Vec<_>>())
        .bind(new.iter().map(|row| row.event).collect::<Vec<_>>())
        .bind(new.iter().map(|row| row.object).collect::<Vec<_>>())
        .bind(origin as i64)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(())
}
