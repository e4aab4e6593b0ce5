//! Destinations and deliveries in SQLite or Postgres.

/// A row whose columns go by the names of the struct's fields: numbers, texts and bytes, for both databases. sqlx's own
/// derive would build the drivers twice.
macro_rules! row {
    ($(#[$meta:meta])* $visible:vis struct $name:ident { $($(#[$doc:meta])* $field_visible:vis $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        $visible struct $name { $($(#[$doc])* $field_visible $field: $type,)* }

        impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for $name
        where
            &'static str: sqlx::ColumnIndex<R>,
            $($type: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,)*
        {
            fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
                Ok(Self { $($field: row.try_get(stringify!($field))?,)* })
            }
        }
    };
}

mod claims;
mod destinations;
mod intake;
mod lists;
mod migrations;
mod queue;
mod replays;
mod retention;

use errand_store::{Db, StoreError};
use uuid::Uuid;

pub use claims::Round;
pub use destinations::Added;
pub use intake::{Entry, Taken};
pub use lists::{DeliveryFilter, Listed, Waiting};
pub(crate) use queue::Choice;
pub use queue::{QueueEvent, Record};
pub use replays::Replay;

/// The notifier's part of the store.
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
        Ok(Self { db: Db::open(url, "notifier", migrations::ALL).await? })
    }

    /// The database, for the outbox.
    #[must_use]
    pub const fn db(&self) -> &Db {
        &self.db
    }
}

fn bytes(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

fn uuid(bytes: &[u8]) -> Result<Uuid, StoreError> {
    Uuid::from_slice(bytes).map_err(|_| StoreError::Corrupt("an id of 16 bytes".into()))
}
