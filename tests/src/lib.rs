//! The harness of the black-box tests: a real nats-server, a real Postgres, the services' real processes. Missing
//! infrastructure fails a test with one line; it never skips it. What a test starts ends with it, however it ends:
//! also when it panics, and when its process is killed.
//!
//! The servers start and stop in plain functions that block for some tens of milliseconds, so they serve tests without
//! a runtime as well.

mod broker;
mod clock;
mod disk;
mod guard;
pub mod ledger;
mod otlp;
mod postgres;
mod process;
mod proxy;
pub mod runs;
mod s3;
mod service;
mod stack;
mod wait;

pub use broker::{Broker, connect};
pub use clock::Clock;
pub use disk::Disk;
pub use guard::{folder, root};
pub use nix::sys::signal::Signal;
pub use otlp::{Collector, Span};
pub use postgres::Postgres;
pub use process::Child;
pub use proxy::{Proxy, Toxic};
pub use s3::S3;
pub use service::{Service, service};
pub use stack::{Links, MASTER_KEY, Role, Stack, StoreKind};
pub use wait::{eventually, pick_port};
