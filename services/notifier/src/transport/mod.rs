//! The only place that knows the bus's consumer and services: events in, requests answered.

mod api;
mod events;
mod fan_out;
mod intake;

use errand_bus::{Bus, BusError};

pub(crate) use api::{Notifier, serve};
pub(crate) use events::{Events, consume};
pub(crate) use fan_out::FanOut;
pub(crate) use intake::Intake;

/// The last place in the event stream.
pub(crate) async fn last_sequence(bus: &Bus) -> Result<u64, BusError> {
    Ok(bus.event_stream_state().await?.last_sequence)
}
