//! Sources and credentials in SQLite or Postgres. A change and its event commit in one transaction; a change of what
//! another vault has changed meanwhile is a conflict, and is decided anew. Secrets are here as [`crate::envelope`] has
//! sealed them.

mod credentials;
mod keys;
mod migrations;
mod sources;

use errand_store::paging::{CHUNK, Place};
use errand_store::{Db, StoreError};
use uuid::Uuid;

pub use keys::Resealed;

/// The vault's part of the store.
#[derive(Debug, Clone)]
pub struct Store {
    db: Db,
}

/// What became of something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is there.
    Done,
    /// Its id is taken.
    Taken,
    /// The tenant has as many as it may have.
    Full,
    /// It names a source that is not there.
    NoSource,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// It is done.
    Done,
    /// It was changed meanwhile, or is gone.
    Conflict,
    /// It names a source that is not there.
    NoSource,
    /// Credentials belong to it.
    InUse,
}

/// What was read of a list, in order, each with what fits.
pub type Scanned<T> = Vec<(Uuid, Option<T>)>;

impl Store {
    /// Opens the store and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Ok(Self { db: Db::open(url, "vault", migrations::ALL).await? })
    }

    /// The database, for the outbox.
    #[must_use]
    pub const fn db(&self) -> &Db {
        &self.db
    }
}

fn key(uuid: Uuid) -> Vec<u8> {
    uuid.as_bytes().to_vec()
}

fn uuid(bytes: &[u8]) -> Result<Uuid, StoreError> {
    Uuid::from_slice(bytes).map_err(|_| StoreError::Corrupt("an id of 16 bytes".into()))
}

fn document(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn read<T: serde::de::DeserializeOwned>(document: &str) -> Result<T, StoreError> {
    serde_json::from_str(document).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn is_foreign_key(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_foreign_key_violation())
}

/// The next chunk of a tenant's rows. `select` and `condition` are ours, never a request's.
fn chunk(select: &str, condition: &str, place: Place) -> (String, Vec<u8>) {
    let (compare, order, from) = match place {
        Place::Newest => ("<=", "DESC", Uuid::max()),
        Place::Before(id) => ("<", "DESC", id),
        Place::After(id) => (">", "ASC", id),
    };
    let sql = format!("{select} WHERE {condition} AND id {compare} $2 ORDER BY id {order} LIMIT {CHUNK}");
    (sql, key(from))
}
