//! The only importer of the bus and of request types: decode, convert, handle, reply.

mod incoming;
mod outgoing;

pub use incoming::{Vault, serve};
pub use outgoing::Witnesses;
