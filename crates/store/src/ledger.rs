//! What the outbox and its publisher need of the world: [`Ledger`] is the store's part, [`EventStream`] the broker's.
//! What they decide stands elsewhere and knows only these, so that the simulator runs the same decisions.

use std::future::Future;

use errand_bus::{Bus, BusError};
use sqlx::Row;

use crate::db::{Db, StoreError};
use crate::outbox::{Stored, now_ms};
use crate::recovery::{self, Turn};
use crate::rows::MultiRow;

/// An event as it is read again: its position and its encoded form.
pub type Encoded = (i64, Vec<u8>);

/// A place in the order in which objects changed: `created_at`, `seq`, `position`.
pub type Place = (i64, i64, i64);

/// What a writer has committed and not marked as published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Whose.
    pub writer: i64,
    /// The newest of it.
    pub newest: i64,
    /// When the oldest of it was made; milliseconds since 1970.
    pub since: i64,
}

/// Where in the stream a writer's events are up to a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// All of the writer's events up to this one are in the stream.
    pub position: i64,
    /// Where the last of them is.
    pub stream_sequence: u64,
    /// Which event that is.
    pub message_id: String,
}

/// The store, as the outbox sees it. What is read must be as new as the last commit.
pub trait Ledger: Clone + Send + Sync + 'static {
    /// The right to publish again; given back when dropped.
    type Turn: Send;

    /// The time, in milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;
    /// A number for a new writer, seen just now.
    fn register(&self, now_ms: i64) -> impl Future<Output = Result<i64, StoreError>> + Send;
    /// What is not marked as published of these objects, of all writers.
    fn unmarked(&self, objects: &[[u8; 16]]) -> impl Future<Output = Result<Vec<Encoded>, StoreError>> + Send;
    /// Waits until what a writer has been committing up to a position is committed, or never will be: no answer may have
    /// come, and the commit goes on.
    fn settled(&self, _until: i64) -> impl Future<Output = Result<(), StoreError>> + Send {
        std::future::ready(Ok(()))
    }
    /// Up to `limit` events behind `after` and up to `until`, by position.
    fn read(&self, after: i64, until: i64, limit: i64)
    -> impl Future<Output = Result<Vec<Encoded>, StoreError>> + Send;
    /// When the oldest of a writer's events behind `after` and up to `until` was made: not always the first of them,
    /// clocks are set back.
    fn oldest(&self, after: i64, until: i64) -> impl Future<Output = Result<Option<i64>, StoreError>> + Send;
    /// Up to `limit` events behind a place, in the order in which objects changed.
    fn read_in_order(
        &self,
        behind: Place,
        limit: i64,
    ) -> impl Future<Output = Result<Vec<(Encoded, Place)>, StoreError>> + Send;
    /// Writes down that a writer lives, and how far its events are published.
    fn mark(&self, writer: i64, mark: i64, seen_at: i64) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Moves the mark of another writer forward, unless it was seen since `before`.
    fn advance(&self, left: Left, before: i64, own: i64) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Writes a checkpoint down, and keeps only the newest few.
    fn checkpoint(
        &self,
        writer: i64,
        checkpoint: Checkpoint,
        keep: i64,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Forgets a writer's checkpoints behind a position: the stream has lost what they name.
    fn forget_checkpoints(&self, writer: i64, behind: i64) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// A writer's checkpoints, newest first.
    fn checkpoints(&self, writer: i64) -> impl Future<Output = Result<Vec<Checkpoint>, StoreError>> + Send;
    /// What lies behind the marks of writers not seen since `before`; of `own`, what lies behind `published`.
    fn left(&self, own: i64, published: i64, before: i64)
    -> impl Future<Output = Result<Vec<Left>, StoreError>> + Send;
    /// All writers, with their marks.
    fn writers(&self) -> impl Future<Output = Result<Vec<(i64, i64)>, StoreError>> + Send;
    /// Since when somebody has begun to publish again and has not come to the end: what the stream holds of that time
    /// may look complete and is not.
    fn begun(&self) -> impl Future<Output = Result<Option<i64>, StoreError>> + Send;
    /// Writes down that everything since a time is to be published again.
    fn begin(&self, since: i64) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// It is done.
    fn end(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Waits for the right to publish again.
    fn turn(&self) -> impl Future<Output = Result<Self::Turn, StoreError>> + Send;
}

/// How far the event stream is: its first and last sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Of the oldest message that it holds.
    pub first: u64,
    /// Of the newest.
    pub last: u64,
}

/// The broker's event stream, over one connection.
pub trait EventStream: Clone + Send + Sync + 'static {
    /// A connection that ends with its broker, to streams that are there.
    fn connect_once(&self) -> impl Future<Output = Result<Self, BusError>> + Send;
    /// Whether it is up.
    fn is_connected(&self) -> bool;
    /// Hands over an event; the future within resolves with its place in the stream.
    fn publish(
        &self,
        event: &Stored,
    ) -> impl Future<Output = Result<impl Future<Output = Result<u64, BusError>> + Send + use<Self>, BusError>> + Send;
    /// How far it is.
    fn extent(&self) -> impl Future<Output = Result<Extent, BusError>> + Send;
    /// The id of the message at a place; none where there is no message.
    fn id_at(&self, sequence: u64) -> impl Future<Output = Result<Option<String>, BusError>> + Send;
}

impl EventStream for Bus {
    async fn connect_once(&self) -> Result<Self, BusError> {
        let link = Self::connect_once(self).await?;
        link.ensure_streams().await?;
        Ok(link)
    }

    fn is_connected(&self) -> bool {
        Self::is_connected(self)
    }

    async fn publish(
        &self,
        event: &Stored,
    ) -> Result<impl Future<Output = Result<u64, BusError>> + Send + use<>, BusError> {
        let route = &event.route;
        let (object, action) = route.r#type.split_once('.').unwrap_or((&route.r#type, "unknown"));
        let subject = self.subjects().event(&route.tenant, object, action, &route.object_id);
        let (id, trace) = (event.id.to_string(), route.traceparent.as_deref());
        let ack = self.publish_stream(subject, &id, trace, event.payload.clone()).await?;
        Ok(async move { ack.await.map(|ack| ack.sequence) })
    }

    async fn extent(&self) -> Result<Extent, BusError> {
        let state = self.event_stream_state().await?;
        Ok(Extent { first: state.first_sequence, last: state.last_sequence })
    }

    async fn id_at(&self, sequence: u64) -> Result<Option<String>, BusError> {
        Ok(self.event_stream_message(sequence).await?.and_then(|message| message.message_id))
    }
}

impl Ledger for Db {
    type Turn = Turn;

    fn now_ms(&self) -> i64 {
        now_ms()
    }

    async fn register(&self, now: i64) -> Result<i64, StoreError> {
        match self {
            Self::Sqlite(sqlite) => {
                let sql = "INSERT INTO outbox_writer (writer, mark, seen_at)
                           SELECT n, n << 40, ?1 FROM (SELECT COALESCE(MAX(writer), 0) + 1 AS n FROM outbox_writer)
                           RETURNING writer";
                Ok(sqlx::query_scalar(sql).bind(now).fetch_one(&sqlite.write).await?)
            }
            Self::Postgres(pool) => {
                let sql = "INSERT INTO outbox_writer (mark, seen_at) VALUES (0, $1) RETURNING writer";
                Ok(sqlx::query_scalar(sql).bind(now).fetch_one(pool).await?)
            }
        }
    }

    async fn unmarked(&self, objects: &[[u8; 16]]) -> Result<Vec<Encoded>, StoreError> {
        match self {
            Self::Sqlite(sqlite) => {
                static SELECT: MultiRow = MultiRow::new(
                    "SELECT e.position, e.payload FROM event e JOIN outbox_writer w ON w.writer = e.position >> 40
                     WHERE e.position > w.mark AND e.object IN (",
                    "?",
                    ")",
                );
                let mut found = Vec::new();
                for (statement, chunk) in SELECT.chunks(objects) {
                    let mut query = sqlx::query(statement);
                    for object in chunk {
                        query = query.bind(object.as_slice());
                    }
                    for row in query.fetch_all(&sqlite.read).await? {
                        found.push((row.try_get::<i64, _>(0)?, row.try_get::<Vec<u8>, _>(1)?));
                    }
                }
                Ok(found)
            }
            Self::Postgres(pool) => {
                let objects: Vec<&[u8]> = objects.iter().map(<[u8; 16]>::as_slice).collect();
                Ok(sqlx::query_as(
                    "SELECT e.position, e.payload FROM event e JOIN outbox_writer w ON w.writer = e.position >> 40
                     WHERE e.position > w.mark AND e.object = ANY($1)",
                )
                .bind(objects)
                .fetch_all(pool)
                .await?)
            }
        }
    }

    async fn settled(&self, until: i64) -> Result<(), StoreError> {
        match self {
            // What is read next waits for the one connection that writes.
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(pool) => {
                // A commit that is a statement by itself may still be on its way there: it holds the fence, or finds it.
                let sql = "UPDATE outbox_writer SET fence = GREATEST(fence, $1) WHERE writer = $1 >> 40";
                sqlx::query(sql).bind(until).execute(pool).await?;
                Ok(pool.settled().await?)
            }
        }
    }

    async fn read(&self, after: i64, until: i64, limit: i64) -> Result<Vec<Encoded>, StoreError> {
        let sql =
            "SELECT position, payload FROM event WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3";
        Ok(match self {
            // Through the writer: a reader's snapshot may be from before the commit.
            Self::Sqlite(sqlite) => {
                sqlx::query_as(sql).bind(after).bind(until).bind(limit).fetch_all(&sqlite.write).await?
            }
            Self::Postgres(pool) => sqlx::query_as(sql).bind(after).bind(until).bind(limit).fetch_all(pool).await?,
        })
    }

    async fn oldest(&self, after: i64, until: i64) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT MIN(created_at) FROM event WHERE position > $1 AND position <= $2";
        Ok(match self {
            Self::Sqlite(sqlite) => sqlx::query_scalar(sql).bind(after).bind(until).fetch_one(&sqlite.write).await?,
            Self::Postgres(pool) => sqlx::query_scalar(sql).bind(after).bind(until).fetch_one(&pool.patient()).await?,
        })
    }

    async fn read_in_order(&self, behind: Place, limit: i64) -> Result<Vec<(Encoded, Place)>, StoreError> {
        let sql = "SELECT position, payload, created_at, seq FROM event
                   WHERE created_at >= $1 AND (created_at, seq, position) > ($1, $2, $3)
                   ORDER BY created_at, seq, position LIMIT $4";
        let rows: Vec<(i64, Vec<u8>, i64, i64)> = match self {
            Self::Sqlite(sqlite) => {
                let query = sqlx::query_as(sql).bind(behind.0).bind(behind.1).bind(behind.2).bind(limit);
                query.fetch_all(&sqlite.write).await?
            }
            Self::Postgres(pool) => {
                let query = sqlx::query_as(sql).bind(behind.0).bind(behind.1).bind(behind.2).bind(limit);
                query.fetch_all(pool).await?
            }
        };
        let with_place = |(position, payload, created_at, seq)| ((position, payload), (created_at, seq, position));
        Ok(rows.into_iter().map(with_place).collect())
    }

    async fn mark(&self, writer: i64, mark: i64, seen_at: i64) -> Result<(), StoreError> {
        let sql = "UPDATE outbox_writer SET mark = $1, seen_at = $2 WHERE writer = $3";
        match self {
            Self::Sqlite(sqlite) => {
                let query = sqlx::query(sql).bind(mark).bind(seen_at).bind(writer);
                query.execute(&sqlite.write).await.map(drop)?;
            }
            Self::Postgres(pool) => {
                sqlx::query(sql).bind(mark).bind(seen_at).bind(writer).execute(pool).await.map(drop)?;
            }
        }
        Ok(())
    }

    async fn advance(&self, left: Left, before: i64, own: i64) -> Result<(), StoreError> {
        let sql =
            "UPDATE outbox_writer SET mark = $1 WHERE writer = $2 AND mark < $1 AND seen_at < $3 AND writer <> $4";
        let Left { writer, newest, .. } = left;
        match self {
            Self::Sqlite(sqlite) => {
                let query = sqlx::query(sql).bind(newest).bind(writer).bind(before).bind(own);
                query.execute(&sqlite.write).await.map(drop)?;
            }
            Self::Postgres(pool) => {
                let query = sqlx::query(sql).bind(newest).bind(writer).bind(before).bind(own);
                query.execute(pool).await.map(drop)?;
            }
        }
        Ok(())
    }

    async fn checkpoint(&self, writer: i64, checkpoint: Checkpoint, keep: i64) -> Result<(), StoreError> {
        let insert = "INSERT INTO outbox_checkpoint (writer, position, stream_sequence, message_id)
                      VALUES ($1, $2, $3, $4) ON CONFLICT (writer, position)
                      DO UPDATE SET stream_sequence = excluded.stream_sequence, message_id = excluded.message_id";
        let prune = "DELETE FROM outbox_checkpoint WHERE writer = $1 AND position < (
                       SELECT MIN(position) FROM (SELECT position FROM outbox_checkpoint WHERE writer = $1
                                                  ORDER BY position DESC LIMIT $2) AS kept)";
        let Checkpoint { position, stream_sequence, message_id } = checkpoint;
        let sequence = i64::try_from(stream_sequence).unwrap_or(i64::MAX);
        macro_rules! write_down {
            ($connection:expr) => {{
                let query = sqlx::query(insert).bind(writer).bind(position).bind(sequence).bind(message_id);
                query.execute($connection).await?;
                sqlx::query(prune).bind(writer).bind(keep).execute($connection).await?;
            }};
        }
        match self {
            Self::Sqlite(sqlite) => write_down!(&sqlite.write),
            Self::Postgres(pool) => write_down!(pool),
        }
        Ok(())
    }

    async fn forget_checkpoints(&self, writer: i64, behind: i64) -> Result<(), StoreError> {
        let sql = "DELETE FROM outbox_checkpoint WHERE writer = $1 AND position > $2";
        match self {
            Self::Sqlite(sqlite) => {
                sqlx::query(sql).bind(writer).bind(behind).execute(&sqlite.write).await.map(drop)?;
            }
            Self::Postgres(pool) => {
                sqlx::query(sql).bind(writer).bind(behind).execute(pool).await.map(drop)?;
            }
        }
        Ok(())
    }

    async fn checkpoints(&self, writer: i64) -> Result<Vec<Checkpoint>, StoreError> {
        let sql = "SELECT position, stream_sequence, message_id FROM outbox_checkpoint
                   WHERE writer = $1 ORDER BY position DESC";
        let rows: Vec<(i64, i64, String)> = match self {
            Self::Sqlite(sqlite) => sqlx::query_as(sql).bind(writer).fetch_all(&sqlite.write).await?,
            Self::Postgres(pool) => sqlx::query_as(sql).bind(writer).fetch_all(pool).await?,
        };
        let checkpoint = |(position, sequence, message_id): (i64, i64, String)| Checkpoint {
            position,
            stream_sequence: u64::try_from(sequence).unwrap_or(0),
            message_id,
        };
        Ok(rows.into_iter().map(checkpoint).collect())
    }

    async fn left(&self, own: i64, published: i64, before: i64) -> Result<Vec<Left>, StoreError> {
        let sql = "SELECT w.writer, MAX(e.position), MIN(e.created_at) FROM outbox_writer w JOIN event e
                       ON e.position > CASE w.writer WHEN $1 THEN $2 ELSE w.mark END
                      AND e.position > w.writer << 40 AND e.position < (w.writer + 1) << 40
                   WHERE w.seen_at < $3 OR w.writer = $1 GROUP BY w.writer";
        let left: Vec<(i64, i64, i64)> = match self {
            Self::Sqlite(sqlite) => {
                sqlx::query_as(sql).bind(own).bind(published).bind(before).fetch_all(&sqlite.write).await?
            }
            Self::Postgres(pool) => {
                sqlx::query_as(sql).bind(own).bind(published).bind(before).fetch_all(&pool.patient()).await?
            }
        };
        Ok(left.into_iter().map(|(writer, newest, since)| Left { writer, newest, since }).collect())
    }

    async fn writers(&self) -> Result<Vec<(i64, i64)>, StoreError> {
        let sql = "SELECT writer, mark FROM outbox_writer ORDER BY writer";
        Ok(match self {
            Self::Sqlite(sqlite) => sqlx::query_as(sql).fetch_all(&sqlite.write).await?,
            Self::Postgres(pool) => sqlx::query_as(sql).fetch_all(pool).await?,
        })
    }

    async fn begun(&self) -> Result<Option<i64>, StoreError> {
        recovery::begun(self).await
    }

    async fn begin(&self, since: i64) -> Result<(), StoreError> {
        recovery::begin(self, since).await
    }

    async fn end(&self) -> Result<(), StoreError> {
        recovery::end(self).await
    }

    async fn turn(&self) -> Result<Turn, StoreError> {
        Turn::take(self).await
    }
}
