//! The dispatcher owns runs: it accepts requests, persists the state machine and publishes events. Sole writer of
//! runs.

pub mod catalog;
pub mod effects;
pub mod engine;
pub mod schema;
pub mod store;
