//! A whole stack of processes with gateways over it, and a client that speaks HTTP/1.1.

pub(crate) mod http;
pub(crate) mod notifier;
pub(crate) mod world;

pub(crate) use http::Api;
pub(crate) use world::World;
