//! The dispatcher owns runs: it accepts requests, persists the state machine and publishes events. Sole writer of
//! runs.

pub mod catalog;
pub mod config;
pub mod effects;
pub mod engine;
<<<<<<< HEAD
=======
mod observe;
pub mod paging;
>>>>>>> 4ad8370 (Telemetry: one trace per run over all services, metrics by OTLP and on /metrics; users of the broker)
pub mod run_filter;
pub mod schema;
pub mod service;
pub mod store;
pub mod submissions;
pub mod sweep;
pub mod tasks;
pub mod transport;
