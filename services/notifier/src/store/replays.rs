//! Replays: jobs with a place in the event stream, so that whoever takes one over goes on where it was.

use std::time::Duration;

use errand_core::Timestamp;
use errand_store::{Db, StoreError};
use uuid::Uuid;

use super::intake::{replay_postgres, replay_sqlite};
use super::{Entry, Store, bytes};

row! {
    /// A replay at work.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Replay {
        /// Its number.
        pub number: i64,
        /// Its destination's.
        pub destination: i64,
        /// Events published up to here; milliseconds since 1970.
        pub until: i64,
        /// When the stream was created in which `sequence` is a place.
        pub stream: i64,
        /// The last place that is done; 0: none yet.
        pub sequence: i64,
        /// When the last that is done was published; at first, from when on.
        pub at: i64,
    }
}

const COLUMNS: &str = "number, destination, until, stream, sequence, at";

impl Store {
    /// Writes down that a destination is to get what there was from a time to another.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_replay(&self, destination: i64, since: Timestamp, until: Timestamp) -> Result<(), StoreError> {
        let sql = "INSERT INTO replay (destination, until, stream, sequence, at, claimed_until)
                   VALUES ($1, $2, 0, 0, $3, 0)";
        match self.db() {
            Db::Sqlite(sqlite) => {
                let query = sqlx::query(sql).bind(destination).bind(until.0).bind(since.0);
                query.execute(&sqlite.write).await.map(drop)?;
            }
            Db::Postgres(pool) => {
                let query = sqlx::query(sql).bind(destination).bind(until.0).bind(since.0);
                query.execute(pool).await.map(drop)?;
            }
        }
        Ok(())
    }

    /// How many replays of a destination are under way.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn replays_of(&self, destination: i64) -> Result<i64, StoreError> {
        let sql = "SELECT COUNT(*) FROM replay WHERE destination = $1";
        Ok(match self.db() {
            Db::Sqlite(sqlite) => sqlx::query_scalar(sql).bind(destination).fetch_one(&sqlite.read).await?,
            Db::Postgres(pool) => sqlx::query_scalar(sql).bind(destination).fetch_one(pool).await?,
        })
    }

    /// Takes a replay that nobody works on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim_replay(
        &self,
        owner: Uuid,
        now: Timestamp,
        lasting: Duration,
    ) -> Result<Option<Replay>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "UPDATE replay SET owner = $1, claimed_until = $2
             WHERE number = (SELECT number FROM replay WHERE claimed_until < $3 OR owner = $1 ORDER BY number LIMIT 1)
               AND (claimed_until < $3 OR owner = $1) RETURNING {COLUMNS}"
        ));
        let until = now.plus_millis(i64::try_from(lasting.as_millis()).unwrap_or(i64::MAX)).0;
        Ok(match self.db() {
            Db::Sqlite(sqlite) => {
                let query = sqlx::query_as(sql).bind(bytes(owner)).bind(until).bind(now.0);
                query.fetch_optional(&sqlite.write).await?
            }
            Db::Postgres(pool) => {
                sqlx::query_as(sql).bind(bytes(owner)).bind(until).bind(now.0).fetch_optional(pool).await?
            }
        })
    }

    /// Stores what of a replay was read, and how far it is. False: somebody else works on it now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn advance_replay(
        &self,
        owner: Uuid,
        replay: &Replay,
        entries: &[Entry],
        now: Timestamp,
        lasting: Duration,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE replay SET stream = $1, sequence = $2, at = $3, claimed_until = $4
                   WHERE number = $5 AND owner = $6";
        let until = now.plus_millis(i64::try_from(lasting.as_millis()).unwrap_or(i64::MAX)).0;
        macro_rules! advance {
            ($tx:expr, $insert:ident) => {{
                let mut tx = $tx;
                let updated = sqlx::query(sql)
                    .bind(replay.stream)
                    .bind(replay.sequence)
                    .bind(replay.at)
                    .bind(until)
                    .bind(replay.number)
                    .bind(bytes(owner))
                    .execute(&mut *tx)
                    .await?;
                if updated.rows_affected() == 0 {
                    return Ok(false);
                }
                if !entries.is_empty() {
                    $insert(&mut tx, entries, now.0).await?;
                }
                tx.commit().await?;
            }};
        }
        match self.db() {
            Db::Sqlite(sqlite) => advance!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?, replay_sqlite),
            Db::Postgres(pool) => advance!(pool.begin().await?, replay_postgres),
        }
        Ok(true)
    }

    /// It is done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_replay(&self, owner: Uuid, replay: &Replay) -> Result<(), StoreError> {
        let sql = "DELETE FROM replay WHERE number = $1 AND owner = $2";
        match self.db() {
            Db::Sqlite(sqlite) => {
                sqlx::query(sql).bind(replay.number).bind(bytes(owner)).execute(&sqlite.write).await.map(drop)?;
            }
            Db::Postgres(pool) => {
                sqlx::query(sql).bind(replay.number).bind(bytes(owner)).execute(pool).await.map(drop)?;
            }
        }
        Ok(())
    }
}
