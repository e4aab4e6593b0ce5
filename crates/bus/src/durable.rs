//! Opening a durable consumer, again and again: after the broker was away, after it came back empty, and when it has
//! fallen silent.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{self, pull};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::connection::{Bus, BusError};
use crate::streams::StreamKind;

/// How often a broker shows that a silent consumer lives. Twice without one, and the consumer is made anew
/// (nats.go 1729 and 1972, nats.rs 557: consumers that never resume after a reconnect).
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);

/// What a consumer asks for.
pub(crate) struct Pull {
    pub(crate) batch: usize,
    pub(crate) expires: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) group: Option<&'static str>,
}

/// A durable consumer that may be opened many times.
pub(crate) struct Durable {
    bus: Bus,
    kind: StreamKind,
    config: pull::Config,
    pull: Pull,
    connections: watch::Receiver<u64>,
    created: Option<OffsetDateTime>,
    /// Grows when the stream is another one by the same name: then acks of what the former delivered must not be sent,
    /// they would be taken for those of other messages.
    generation: watch::Sender<u64>,
}

impl Durable {
    pub(crate) fn new(bus: &Bus, kind: StreamKind, config: pull::Config, pull: Pull) -> Self {
        let connections = bus.connections();
        let generation = watch::Sender::new(0);
        Self { bus: bus.clone(), kind, config, pull, connections, created: None, generation }
    }

    pub(crate) fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Resolves when the connection is another one than when this was opened.
    pub(crate) async fn reconnected(&mut self) {
        if self.connections.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) async fn stream(&self) -> Result<jetstream::stream::Stream<()>, BusError> {
        self.bus.stream(self.kind).await
    }

    pub(crate) async fn open(&mut self) -> Result<(pull::Stream, consumer::Info), BusError> {
        let name = self.kind.name(self.bus.subjects().prefix());
        let failed = |what: String| BusError::Stream { name: name.clone(), what };
        self.connections.mark_unchanged();
        // The broker may have come back empty.
        self.bus.ensure_streams().await?;
        let stream = self.stream().await?;
        let created = stream.get_info().await.map_err(|error| failed(error.to_string()))?.created;
        if self.created.replace(created).is_some_and(|before| before != created) {
            self.generation.send_modify(|generation| *generation += 1);
        }
        let made = stream.create_consumer(self.config.clone()).await;
        let consumer = made.map_err(|error| BusError::consumer(&name, &error))?;
        let mut builder = consumer
            .stream()
            .max_messages_per_batch(self.pull.batch)
            .heartbeat(self.pull.heartbeat)
            .expires(self.pull.expires);
        if let Some(group) = self.pull.group {
            builder = builder.group(group);
        }
        let messages = builder.messages().await.map_err(|error| failed(error.to_string()))?;
        Ok((messages, consumer.cached_info().clone()))
    }
}
