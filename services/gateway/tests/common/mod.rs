//! A whole stack of processes with gateways over it, and a client that speaks HTTP/1.1.

pub mod http;
pub mod notifier;
pub mod world;

pub use http::{Answer, Api};
pub use world::World;
