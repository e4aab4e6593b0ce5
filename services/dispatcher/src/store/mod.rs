//! Runs and tasks in SQLite or Postgres. A change, its event and its effects commit in one transaction; a change
//! whose run was changed by another dispatcher meanwhile is a conflict, and is decided anew.

mod lists;
mod migrations;
mod retention;
mod runs;
mod tasks;

use errand_store::Db;

pub use runs::{Batch, OpenKey, OpenRun};
pub use tasks::Current;

/// The dispatcher's part of the store.
#[derive(Debug, Clone)]
pub struct Store {
    db: Db,
}

impl Store {
    /// Opens the store and brings its schema up to date.
    ///
    /// # Errors
    /// [`errand_store::StoreError`].
    pub async fn open(url: &str) -> Result<Self, errand_store::StoreError> {
        Ok(Self { db: Db::open(url, "dispatcher", migrations::ALL).await? })
    }

    /// The database, for the outbox.
    #[must_use]
    pub const fn db(&self) -> &Db {
        &self.db
    }
}
