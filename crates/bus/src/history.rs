//! Reading a piece of the event stream, forwards or backwards, without following it: for lists and for whoever catches
//! up. Each question is one consumer that the stream's leader makes and forgets, so what was acknowledged is seen.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures::{FutureExt, StreamExt};
use time::OffsetDateTime;

use crate::connection::{Bus, BusError};
use crate::delivery::Delivery;
use crate::follow::FollowFrom;
use crate::streams::StreamKind;

/// How long the broker keeps a consumer that we could not delete.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// How long a page may take to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Messages that are read in vain rather than counted.
const SPARE: u64 = 64;

/// A piece of the event stream.
#[derive(Debug, Clone)]
pub struct Slice {
    /// The messages.
    pub deliveries: Vec<Delivery>,
    /// How many more there are in the direction of reading.
    pub more: u64,
}

impl Bus {
    /// The first messages on any of these subjects from a place on, oldest first.
    ///
    /// # Errors
    /// [`BusError::Stream`] if the broker is away, [`BusError::Refused`] for filters that it does not take.
    pub async fn events_from(&self, filters: &[String], from: FollowFrom, limit: usize) -> Result<Slice, BusError> {
        let deliver_policy = match from {
            FollowFrom::New => DeliverPolicy::New,
            FollowFrom::Beginning => DeliverPolicy::All,
            FollowFrom::Sequence(sequence) => DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) },
            FollowFrom::Time(ms) => OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
                .map_or(DeliverPolicy::All, |start_time| DeliverPolicy::ByStartTime { start_time }),
        };
        let probe = self.probe(filters, deliver_policy).await?;
        let count = probe.pending.min(limit as u64);
        let deliveries = if count == 0 { Vec::new() } else { self.fetch(&probe, count).await? };
        let more = probe.pending.saturating_sub(deliveries.len() as u64);
        self.forget(&probe);
        Ok(Slice { deliveries, more })
    }

    /// The last messages on any of these subjects before a place (none: the end), newest first.
    ///
    /// # Errors
    /// As [`Self::events_from`].
    pub async fn events_before(
        &self,
        filters: &[String],
        before: Option<u64>,
        limit: usize,
    ) -> Result<Slice, BusError> {
        let state = self.event_stream_state().await?;
        let end = before.unwrap_or(u64::MAX).min(state.last_sequence + 1);
        if end <= state.first_sequence || limit == 0 {
            return Ok(Slice { deliveries: Vec::new(), more: 0 });
        }
        // How many there are from the end on is not ours; from there backwards we look for a place with enough behind it.
        let beyond = if before.is_none() { 0 } else { self.count_from(filters, end).await? };
        let total = self.count_from(filters, state.first_sequence.max(1)).await?.saturating_sub(beyond);
        let wanted = total.min(limit as u64);
        if wanted == 0 {
            return Ok(Slice { deliveries: Vec::new(), more: 0 });
        }
        let (start, held) = self.place_of(filters, beyond + wanted, state.first_sequence.max(1), end).await?;
        let count = usize::try_from(held.saturating_sub(beyond)).unwrap_or(usize::MAX);
        let slice = self.events_from(filters, FollowFrom::Sequence(start), count).await?;
        let mut deliveries = slice.deliveries;
        deliveries.retain(|delivery| delivery.stream_sequence < end);
        deliveries.reverse();
        deliveries.truncate(limit);
        let more = total.saturating_sub(deliveries.len() as u64);
        Ok(Slice { deliveries, more })
    }

    /// A place below `end` from which on there are at least so many messages, and not many more; and how many.
    async fn place_of(&self, filters: &[String], count: u64, first: u64, end: u64) -> Result<(u64, u64), BusError> {
        // What is sought is mostly near the end, so steps grow from there; then the last one is halved.
        let (mut low, mut held, mut high, mut step) = (end, 0, end, 128u64);
        while low > first {
            low = end.saturating_sub(step).max(first);
            held = self.count_from(filters, low).await?;
            if held >= count {
                break;
            }
            high = low;
            step = step.saturating_mul(8);
        }
        // A few more are read in vain, which is cheaper than to ask on.
        while high - low > SPARE && held - count.min(held) > SPARE {
            let middle = low + (high - low) / 2;
            let found = self.count_from(filters, middle).await?;
            if found >= count { (low, held) = (middle, found) } else { high = middle }
        }
        Ok((low, held))
    }

    async fn count_from(&self, filters: &[String], sequence: u64) -> Result<u64, BusError> {
        let policy = DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) };
        let probe = self.probe(filters, policy).await?;
        self.forget(&probe);
        Ok(probe.pending)
    }

    async fn probe(&self, filters: &[String], deliver_policy: DeliverPolicy) -> Result<Probe, BusError> {
        let stream = self.stream(StreamKind::Event).await?;
        let (one, several) = match filters {
            [one] => (one.clone(), Vec::new()),
            several => (String::new(), several.to_vec()),
        };
        let wanted = pull::Config {
            ack_policy: AckPolicy::None,
            deliver_policy,
            filter_subject: one,
            filter_subjects: several,
            inactive_threshold: FORGOTTEN_AFTER,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let name = StreamKind::Event.name(self.subjects().prefix());
        let consumer = stream.create_consumer(wanted).await.map_err(|error| BusError::consumer(&name, &error))?;
        let pending = consumer.cached_info().num_pending;
        Ok(Probe { consumer, pending, stream: name })
    }

    async fn fetch(&self, probe: &Probe, count: u64) -> Result<Vec<Delivery>, BusError> {
        let failed = |what: String| BusError::Stream { name: probe.stream.clone(), what };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let batch = probe.consumer.batch().max_messages(count).expires(PATIENCE);
        let mut messages = batch.messages().await.map_err(|error| failed(error.to_string()))?;
        let mut deliveries = Vec::with_capacity(count);
        while let Some(message) = messages.next().await {
            let message: jetstream::Message = message.map_err(|error| failed(error.to_string()))?;
            deliveries.extend(Delivery::of(&message));
            if deliveries.len() == count {
                break;
            }
        }
        Ok(deliveries)
    }

    fn forget(&self, probe: &Probe) {
        let subject = format!("$JS.API.CONSUMER.DELETE.{}.{}", probe.stream, probe.consumer.cached_info().name);
        let client = self.client().clone();
        tokio::spawn(async move { client.publish(subject, "".into()).map(drop).await });
    }
}

struct Probe {
    consumer: PullConsumer,
    /// Messages from its place on.
    pending: u64,
    stream: String,
}
