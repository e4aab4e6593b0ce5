//! The dispatcher owns runs: it accepts requests, persists the state machine and publishes events. Sole writer of
//! runs.

pub mod store;
