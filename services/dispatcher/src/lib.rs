//! The dispatcher owns runs: it accepts requests, persists the state machine and publishes events. Sole writer of
//! runs.

pub mod catalog;
pub mod config;
pub mod effects;
pub mod engine;
pub mod internal;
mod observe;
pub mod references;
pub mod run_filter;
pub mod service;
pub mod store;
pub mod submissions;
pub mod sweep;
pub mod tasks;
pub mod transport;
pub mod world;
