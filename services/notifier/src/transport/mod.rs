//! The only place that knows the bus's consumers and services: events in, requests answered.

mod api;
mod fan_out;
mod intake;

use errand_bus::{Bus, BusError};

pub(crate) use api::{Notifier, serve};
pub(crate) use fan_out::consume;
pub(crate) use intake::{Intake, take_in};

/// The last place in the event stream.
pub(crate) async fn last_sequence(bus: &Bus) -> Result<u64, BusError> {
    Ok(bus.event_stream_state().await?.last_sequence)
}
