//! Artifacts and their bytes' books in SQLite or Postgres.
//!
//! A blob is written down before its first byte is: `pending`. The commit that makes its artifact makes it `kept`, with
//! a count of the artifacts that share it. With the last of these it becomes `garbage`, and its row goes only when its
//! bytes have gone. So whatever breaks off, every byte at rest has a row that leads to it.

mod delete;
mod keep;
mod migrations;
mod read;

use errand_store::{Db, StoreError};
use uuid::Uuid;

pub use keep::{Keep, Kept, RunLimits};

/// The storage's part of the store.
#[derive(Debug, Clone)]
pub struct Store {
    db: Db,
}

impl Store {
    /// Opens the store and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Ok(Self { db: Db::open(url, "storage", migrations::ALL).await? })
    }

    /// The database, for the outbox.
    #[must_use]
    pub const fn db(&self) -> &Db {
        &self.db
    }
}

/// The same for either database: `$pool` is where one reads.
macro_rules! reading {
    ($db:expr, $pool:ident => $body:expr) => {
        match $db {
            Db::Sqlite(sqlite) => {
                let $pool = &sqlite.read;
                $body
            }
            Db::Postgres($pool) => $body,
        }
    };
}

/// The same for either database: `$pool` is where one writes.
macro_rules! writing {
    ($db:expr, $pool:ident => $body:expr) => {
        match $db {
            Db::Sqlite(sqlite) => {
                let $pool = &sqlite.write;
                $body
            }
            Db::Postgres($pool) => $body,
        }
    };
}

/// The same for either database: `$tx` is a transaction, which the body commits.
macro_rules! changing {
    ($db:expr, $tx:ident => $body:expr) => {
        match $db {
            Db::Sqlite(sqlite) => {
                let mut $tx = sqlite.write.begin_with("BEGIN IMMEDIATE").await?;
                $body
            }
            Db::Postgres(pool) => {
                let mut $tx = pool.begin().await?;
                $body
            }
        }
    };
}

use {changing, reading, writing};

fn bytes(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

fn uuid(bytes: &[u8]) -> Result<Uuid, StoreError> {
    Uuid::from_slice(bytes).map_err(|_| StoreError::Corrupt("an id of 16 bytes".into()))
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
