//! Tells every event on (DESIGN section 4), in two ways.
//!
//! *As JSON to plain subscribers* ([`fan_out`]): a durable consumer takes the event stream in its order and publishes
//! each event on `<prefix>.notify.<tenant>.<object>.<action>`, with its id in the header `Errand-Event-Id` and its
//! trace context in `traceparent`. Every event is told on at least once, in order per object, where anybody listens:
//! where the broker says that nobody does, no JSON is made. Of several notifiers one is served at a time (a pinned
//! consumer of nats-server); another takes over when it dies, and what it had told on but not acknowledged is told on
//! again: drop duplicates by id. The publish itself is core NATS, so whoever is not subscribed at that moment misses it;
//! the stream keeps it for 30 days. What cannot be told on is kept on `<prefix>.dlq.notifier` with the reason, and holds
//! nothing up.
//!
//! *To destinations* (ADR 0006): a second consumer takes what some destination wants into the store
//! (`transport/intake.rs`), a worker per destination sends what is due ([`worker`]), a recorder writes down
//! what became of it ([`recorder`]). An event whose intake was acknowledged is delivered or given up, whatever is
//! killed meanwhile.

pub mod catalog;
pub mod channel;
pub mod channels;
pub mod claim;
mod clock;
mod config;
pub mod delivery;
pub mod desk;
pub mod destination;
pub mod events;
pub mod fan_out;
pub mod figures;
pub mod hints;
pub mod recorder;
pub mod replay;
mod service;
pub mod store;
pub mod supervisor;
mod sweep;
pub mod switching;
mod transport;
pub mod worker;

pub use config::{Config, Span};
pub use service::{run, run_with};
