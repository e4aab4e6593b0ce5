//! The vault owns sources and credentials: their sole writer. Secrets go in and come out to one only: the runner that
//! holds the lease of a run which names the credential (ADR 0012).

pub mod config;
pub mod credentials;
pub mod envelope;
pub mod handover;
pub mod limiter;
pub mod rotation;
pub mod service;
pub mod sources;
pub mod store;
pub mod transport;
