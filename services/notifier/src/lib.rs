//! Tells every event on as JSON (DESIGN section 4): a durable consumer takes the event stream in its order and
//! publishes each event on `<prefix>.notify.<tenant>.<object>.<action>`, with its id in the header `Errand-Event-Id`
//! and its trace context in `traceparent`.
//!
//! What holds: every event is told on at least once, in the order of the stream, so in order per object. Of several
//! notifiers one is served at a time (a pinned consumer of nats-server); another takes over when it dies, and what it
//! had told on but not acknowledged is told on again: drop duplicates by id. The publish itself is core NATS, so
//! whoever is not subscribed at that moment misses it; the stream keeps it for 30 days. What cannot be told on is kept
//! on `<prefix>.dlq.notifier` with the reason, and holds nothing up.

pub mod channel;
mod config;
pub mod fan_out;
mod service;
mod transport;

pub use config::Config;
pub use service::run;
