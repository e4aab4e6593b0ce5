//! The gateway owns HTTP: the `/v2` API over NATS request/reply to the services, live events, API keys, OpenAPI. It
//! holds no state of runs; its store has keys and what idempotency keys have been answered.

pub mod answer;
pub mod auth;
pub mod backend;
pub mod body;
pub mod config;
pub mod cors;
pub mod docs;
pub mod envelope;
pub mod guard;
pub mod health;
pub mod idempotency;
pub mod live;
pub mod metrics;
pub mod openapi;
pub mod query;
pub mod range;
pub mod rate;
pub mod routes;
pub mod schema;
pub mod scope;
pub mod seal;
pub mod server;
pub mod service;
pub mod store;
pub mod tls;
pub mod transport;

pub use config::Config;
pub use service::{Gateway, run, run_telling};
