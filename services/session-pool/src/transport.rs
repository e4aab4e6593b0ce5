//! Between bus and engine: wire types in, wire types out.

mod incoming;
mod outgoing;

pub use incoming::{SessionPool, say_hello, serve};
pub use outgoing::Outgoing;
