//! The bus over a real `nats-server`, which is killed, started again, and robbed of what it stored.

#![expect(clippy::unwrap_used, reason = "tests")]

mod consumers;
mod follow;
mod harness;
mod requests;
mod streams;
