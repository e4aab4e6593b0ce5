//! What every service that persists needs: opening SQLite or Postgres with embedded migrations ([`Db`]), bulk
//! statements ([`rows`]), and the outbox that commits events with the change that they tell ([`Outbox`], ADR 0002).

mod db;
mod ledger;
mod outbox;
pub mod paging;
mod postgres;
mod publisher;
mod recovery;
pub mod retention;
pub mod rows;

pub use db::{Db, Migration, Sqlite, StoreError};
pub use ledger::{Checkpoint, Encoded, EventStream, Extent, Ledger, Left, Place};
pub use outbox::{Outbox, Staged, Stored};
pub use postgres::{Pg, PgLock, PgStatements, PgTx};
pub use publisher::Publisher;
