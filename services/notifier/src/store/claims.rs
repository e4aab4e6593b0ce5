//! Which notifier serves which destination: claims with an end, which their owner renews.

use std::collections::HashSet;
use std::time::Duration;

use errand_core::Timestamp;
use errand_store::{Db, StoreError};
use uuid::Uuid;

use super::{Store, bytes};

/// What a notifier holds after a round.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Round {
    /// Numbers of the destinations that are its own until the claim ends.
    pub held: HashSet<i64>,
    /// How many of these it should give to others.
    pub too_many: usize,
}

const SEEN: &str = "INSERT INTO notifier (id, seen_at) VALUES ($1, $2)
    ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at";
const GONE: &str = "DELETE FROM notifier WHERE seen_at < $1";
const SHARE: &str = "SELECT (SELECT COUNT(*) FROM notifier), (SELECT COUNT(*) FROM destination WHERE status = 0)";
const RENEW: &str = "UPDATE claim SET until = $1 WHERE owner = $2
    AND destination IN (SELECT number FROM destination WHERE status = 0) RETURNING destination";
const CLAIM: &str = "INSERT INTO claim (destination, owner, until)
    SELECT d.number, $1, $2 FROM destination d
    WHERE d.status = 0 AND NOT EXISTS (SELECT 1 FROM claim c WHERE c.destination = d.number AND c.until >= $3)
    ORDER BY d.number LIMIT $4
    ON CONFLICT (destination) DO UPDATE SET owner = excluded.owner, until = excluded.until WHERE claim.until < $3
    RETURNING destination";
const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";

impl Store {
    /// Shows that this notifier lives, renews its claims, and claims what is free, up to its share of the active
    /// destinations. `now` is this process's clock; Postgres goes by its own, since its clients' may differ.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim_round(&self, owner: Uuid, now: Timestamp, lasting: Duration) -> Result<Round, StoreError> {
        let lasting = i64::try_from(lasting.as_millis()).unwrap_or(i64::MAX);
        macro_rules! round {
            ($tx:expr, $now:expr) => {{
                let (mut tx, now): (_, i64) = ($tx, $now);
                let until = now + lasting;
                sqlx::query(SEEN).bind(bytes(owner)).bind(now).execute(&mut *tx).await?;
                sqlx::query(GONE).bind(now - lasting).execute(&mut *tx).await?;
                let (notifiers, active): (i64, i64) = sqlx::query_as(SHARE).fetch_one(&mut *tx).await?;
                let renewed: Vec<i64> =
                    sqlx::query_scalar(RENEW).bind(until).bind(bytes(owner)).fetch_all(&mut *tx).await?;
                let share = (active + notifiers.max(1) - 1) / notifiers.max(1);
                let room = share - i64::try_from(renewed.len()).unwrap_or(i64::MAX);
                let mut held: HashSet<i64> = renewed.into_iter().collect();
                if room > 0 {
                    let query = sqlx::query_scalar(CLAIM).bind(bytes(owner)).bind(until).bind(now).bind(room);
                    let claimed: Vec<i64> = query.fetch_all(&mut *tx).await?;
                    held.extend(claimed);
                }
                tx.commit().await?;
                Round { held, too_many: usize::try_from(-room).unwrap_or(0) }
            }};
        }
        Ok(match self.db() {
            Db::Sqlite(sqlite) => round!(sqlite.write.begin_with("BEGIN IMMEDIATE").await?, now.0),
            Db::Postgres(pool) => {
                let now = sqlx::query_scalar(CLOCK).fetch_one(pool).await?;
                round!(pool.begin().await?, now)
            }
        })
    }

    /// Gives claims back, so that others need not wait for their end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn release(&self, owner: Uuid, destinations: &[i64]) -> Result<(), StoreError> {
        let sql = "DELETE FROM claim WHERE owner = $1 AND destination = $2";
        for destination in destinations {
            match self.db() {
                Db::Sqlite(sqlite) => {
                    sqlx::query(sql).bind(bytes(owner)).bind(destination).execute(&sqlite.write).await.map(drop)?;
                }
                Db::Postgres(pool) => {
                    sqlx::query(sql).bind(bytes(owner)).bind(destination).execute(pool).await.map(drop)?;
                }
            }
        }
        Ok(())
    }

    /// Says that this notifier is gone: the others need not wait.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn leave(&self, owner: Uuid) -> Result<(), StoreError> {
        for sql in ["DELETE FROM claim WHERE owner = $1", "DELETE FROM notifier WHERE id = $1"] {
            match self.db() {
                Db::Sqlite(sqlite) => {
                    sqlx::query(sql).bind(bytes(owner)).execute(&sqlite.write).await.map(drop)?;
                }
                Db::Postgres(pool) => sqlx::query(sql).bind(bytes(owner)).execute(pool).await.map(drop)?,
            }
        }
        Ok(())
    }
}
