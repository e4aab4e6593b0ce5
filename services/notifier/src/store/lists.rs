//! Deliveries as their owners see them.

use errand_core::{DestinationId, EventId, Timestamp};
use errand_proto::v1;
use errand_store::paging::{CHUNK, Place};
use errand_store::{Db, StoreError};
use prost::Message;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{Entry, Store, bytes, uuid};
use crate::delivery::{Origin, Status, delivery_id, position_of};

/// Which deliveries of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeliveryFilter {
    /// In one of these states; empty: in any.
    pub status: Vec<v1::DeliveryStatus>,
    /// Of one of these types; empty: of any.
    pub event_type: Vec<String>,
}

impl DeliveryFilter {
    fn fits(&self, delivery: &v1::Delivery) -> bool {
        (self.status.is_empty() || self.status.contains(&delivery.status()))
            && (self.event_type.is_empty() || self.event_type.contains(&delivery.event_type))
    }
}

/// A delivery, and where it belongs.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its place.
    pub position: i64,
    /// Its destination's number.
    pub destination: i64,
    /// The wire form with its attempts; the destination's id is the caller's to fill in.
    pub view: v1::Delivery,
}

/// What waits for a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Which.
    pub destination: DestinationId,
    /// Whose.
    pub tenant: String,
    /// The number of it.
    pub number: i64,
    /// How many deliveries.
    pub pending: u64,
    /// Since when the first of them does.
    pub oldest: Option<Timestamp>,
}

row! {
    struct ListedRow {
        position: i64,
        destination: i64,
        origin: i64,
        status: i64,
        attempts: i64,
        due_at: i64,
        created_at: i64,
        finished_at: Option<i64>,
        log: Vec<u8>,
        event_id: Vec<u8>,
        event_type: String,
        object_id: String,
    }
}

type WaitingRow = (Vec<u8>, String, i64, i64, Option<i64>);

const SELECT: &str = "SELECT d.position, d.destination, d.origin, d.status, d.attempts, d.due_at, d.created_at,
    d.finished_at, d.log, e.id AS event_id, e.type AS event_type, e.object_id
    FROM delivery d JOIN delivery_event e ON e.number = d.event";

impl TryFrom<ListedRow> for Listed {
    type Error = StoreError;

    fn try_from(row: ListedRow) -> Result<Self, StoreError> {
        let attempts = v1::Delivery::decode(row.log.as_slice())
            .map_err(|error| StoreError::Corrupt(format!("a delivery: {error}")))?
            .attempts;
        let (status, origin) = (wire_status(row.status)?, origin(row.origin)?);
        let last = attempts.last();
        let view = v1::Delivery {
            id: delivery_id(row.position, Timestamp(row.created_at)).to_string(),
            destination_id: String::new(),
            event_id: EventId::from_uuid(uuid(&row.event_id)?).to_string(),
            event_type: row.event_type,
            object_id: row.object_id,
            status: status.into(),
            attempt_count: u32::try_from(row.attempts).unwrap_or(u32::MAX),
            next_attempt_at_ms: (status == v1::DeliveryStatus::Pending).then_some(row.due_at),
            last_status_code: last.and_then(|last| last.status_code),
            last_error: last.map(|last| last.error.clone()).unwrap_or_default(),
            created_at_ms: row.created_at,
            finished_at_ms: row.finished_at,
            origin: origin.as_str().to_owned(),
            attempts,
        };
        Ok(Self { position: row.position, destination: row.destination, view })
    }
}

fn wire_status(code: i64) -> Result<v1::DeliveryStatus, StoreError> {
    match code {
        0 => Ok(v1::DeliveryStatus::Pending),
        1 => Ok(v1::DeliveryStatus::Delivered),
        2 => Ok(v1::DeliveryStatus::Failed),
        other => Err(StoreError::Corrupt(format!("a delivery's status {other}"))),
    }
}

fn origin(code: i64) -> Result<Origin, StoreError> {
    match code {
        0 => Ok(Origin::Event),
        1 => Ok(Origin::Replay),
        2 => Ok(Origin::Test),
        other => Err(StoreError::Corrupt(format!("a delivery's origin {other}"))),
    }
}

impl Store {
    /// The next chunk of a destination's deliveries, each with what fits the filter.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn scan_deliveries(
        &self,
        destination: i64,
        filter: &DeliveryFilter,
        place: Place,
    ) -> Result<Vec<(Uuid, Option<Listed>)>, StoreError> {
        let (compare, order, from) = match place {
            Place::Newest => ("<=", "DESC", i64::MAX),
            Place::Before(id) => ("<", "DESC", position_of(id)),
            Place::After(id) => (">", "ASC", position_of(id)),
        };
        let sql = AssertSqlSafe(format!(
            "{SELECT} WHERE d.destination = $1 AND d.position {compare} $2 ORDER BY d.position {order} LIMIT {CHUNK}"
        ));
        let rows: Vec<ListedRow> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).bind(destination).bind(from).fetch_all(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).bind(destination).bind(from).fetch_all(pool).await?,
        };
        let scanned = rows.into_iter().map(|row| {
            let place = delivery_id(row.position, Timestamp(row.created_at)).uuid();
            let listed = Listed::try_from(row)?;
            Ok((place, Some(listed).filter(|listed| filter.fits(&listed.view))))
        });
        scanned.collect()
    }

    /// The delivery at a place.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delivery(&self, position: i64) -> Result<Option<Listed>, StoreError> {
        let sql = AssertSqlSafe(format!("{SELECT} WHERE d.position = $1"));
        let row: Option<ListedRow> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).bind(position).fetch_optional(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).bind(position).fetch_optional(pool).await?,
        };
        row.map(Listed::try_from).transpose()
    }

    /// Makes a delivery due now, with its whole schedule before it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn deliver_again(&self, position: i64, now: i64) -> Result<(), StoreError> {
        let sql =
            "UPDATE delivery SET status = 0, due_at = $1, base = attempts, finished_at = NULL WHERE position = $2";
        match self.db() {
            Db::Sqlite(sqlite) => {
                sqlx::query(sql).bind(now).bind(position).execute(&sqlite.write).await.map(drop)?;
            }
            Db::Postgres(pool) => sqlx::query(sql).bind(now).bind(position).execute(pool).await.map(drop)?,
        }
        Ok(())
    }

    /// Keeps a test and what became of it; its place.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_test(
        &self,
        entry: &Entry,
        destination: i64,
        status: Status,
        now: i64,
        log: &[u8],
    ) -> Result<i64, StoreError> {
        let event = "INSERT INTO delivery_event (id, taken, type, object_id, created_at, payload)
                     VALUES ($1, 1, $2, $3, $4, $5) RETURNING number";
        let delivery = "INSERT INTO delivery (destination, event, object, origin, status, attempts, base, due_at,
                                              created_at, finished_at, log)
                        VALUES ($1, $2, $3, 2, $4, 1, 0, $5, $5, $5, $6) RETURNING position";
        let object = super::intake::object_number(&entry.object_id);
        macro_rules! add {
            ($tx:expr) => {{
                let mut tx = $tx;
                let number: i64 = sqlx::query_scalar(event)
                    .bind(bytes(entry.id.uuid()))
                    .bind(&entry.event_type)
                    .bind(&entry.object_id)
                    .bind(now)
                    .bind(entry.payload.to_vec())
                    .fetch_one(&mut *tx)
                    .await?;
                let query = sqlx::query_scalar(delivery).bind(destination).bind(number).bind(object);
                let query = query.bind(status as i64).bind(now).bind(log.to_vec());
                let position: i64 = query.fetch_one(&mut *tx).await?;
                tx.commit().await?;
                position
            }};
        }
        Ok(match self.db() {
            Db::Sqlite(sqlite) => add!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?),
            Db::Postgres(pool) => add!(pool.begin().await?),
        })
    }

    /// What waits, by destination, where most does first; those that are active even where nothing does. The first
    /// thousand, which is what a message holds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        let sql = "SELECT s.id, s.tenant, s.number, COALESCE(w.pending, 0), f.created_at
                   FROM destination s
                   LEFT JOIN (SELECT destination, COUNT(*) AS pending, MIN(position) AS first
                                FROM delivery WHERE status = 0 GROUP BY destination) w ON w.destination = s.number
                   LEFT JOIN delivery f ON f.position = w.first
                   WHERE s.status = 0 OR (s.status = 1 AND w.pending > 0) ORDER BY COALESCE(w.pending, 0) DESC, s.number LIMIT 1000";
        let rows: Vec<WaitingRow> = match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_as(sql).fetch_all(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_as(sql).fetch_all(pool).await?,
        };
        let waiting = |(id, tenant, number, pending, oldest): WaitingRow| {
            Ok(Waiting {
                destination: DestinationId::from_uuid(uuid(&id)?),
                tenant,
                number,
                pending: u64::try_from(pending).unwrap_or(0),
                oldest: oldest.map(Timestamp),
            })
        };
        rows.into_iter().map(waiting).collect()
    }
}
