//! The harness of the black-box tests: a real nats-server, a real Postgres, the services' real processes. Missing
//! infrastructure fails a test with one line; it never skips it. What a test starts ends with it, also when it
//! panics.

mod broker;
mod postgres;
mod process;

pub use broker::Broker;
pub use postgres::Postgres;
pub use process::{Child, service};

/// Where the runs of a test are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// A file in a temporary folder.
    Sqlite,
    /// A database of the test's own server.
    Postgres,
}
