//! Between bus and engine: wire types in, wire types out.

mod incoming;
pub mod internal;
mod outgoing;

pub use incoming::{SessionPool, say_hello, serve};
pub use outgoing::{Live, Others, Outgoing};
