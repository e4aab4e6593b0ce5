//! The session-pool owns sessions: it registers runners, has sessions made, leases them to the runs that wait, and
//! takes them back (DESIGN section 4).

pub mod config;
pub mod engine;
pub mod pool;
pub mod service;
pub mod store;
pub mod transport;
mod waits;
