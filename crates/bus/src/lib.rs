//! The only crate that knows NATS: subjects, streams, connecting, consuming with one ack policy, request/reply
//! services (NATS micro), trace propagation.

pub mod batch;
mod broadcast;
mod connection;
mod consume;
mod delivery;
mod durable;
mod follow;
mod history;
mod identity;
mod in_order;
mod once;
mod permissions;
mod service;
mod streams;
mod subjects;
pub mod trace;

pub use async_nats::{HeaderMap, HeaderValue};
pub use batch::{Courier, recv_batch};
pub use broadcast::Broadcast;
pub use connection::{Bus, BusConfig, BusError, Incoming, RequestError, StoredMessage, StreamAck, connect_options};
pub use consume::{ConsumerConfig, consume};
pub use delivery::{Delivery, Verdict};
pub use follow::{FollowFrom, follow, waiting};
pub use history::Slice;
pub use in_order::{InOrderConfig, consume_in_order};
pub use permissions::{Part, Permissions};
pub use service::{Service, ServiceBuilder};
pub use streams::{EventStreamState, StreamKind};
pub use subjects::Subjects;

/// The oldest nats-server that Errand works with (major, minor).
pub const MINIMUM_BROKER: (u64, u64) = (2, 12);
