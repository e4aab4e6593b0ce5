//! The gateway's part of the store: keys, and what idempotency keys have been answered.

mod answers;
mod keys;
mod migrations;

use errand_store::{Db, StoreError};

pub use answers::{Claim, Remembered};
pub use keys::StoredKey;

/// See the module.
#[derive(Debug, Clone)]
pub struct Store {
    db: Db,
}

/// One statement for both databases, run where it belongs.
macro_rules! on_db {
    ($db:expr, write $query:expr => execute_count) => {
        match $db {
            errand_store::Db::Sqlite(sqlite) => $query.execute(&sqlite.write).await.map(|done| done.rows_affected()),
            errand_store::Db::Postgres(pool) => $query.execute(pool).await.map(|done| done.rows_affected()),
        }
    };
    ($db:expr, read $query:expr => $method:ident) => {
        match $db {
            errand_store::Db::Sqlite(sqlite) => $query.$method(&sqlite.read).await,
            errand_store::Db::Postgres(pool) => $query.$method(pool).await,
        }
    };
}
pub(crate) use on_db;

impl Store {
    /// Opens the store and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Ok(Self { db: Db::open(url, "gateway", migrations::ALL).await? })
    }

    /// The database.
    #[must_use]
    pub const fn db(&self) -> &Db {
        &self.db
    }
}
