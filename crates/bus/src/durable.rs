//! Opening a durable consumer, again and again: after the broker was away, after it came back empty, and when it has
//! fallen silent.

use async_nats::jetstream;
use async_nats::jetstream::consumer::{Consumer, pull};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::connection::{Bus, BusError};
use crate::streams::StreamKind;

/// A durable consumer that may be opened many times.
pub(crate) struct Durable {
    bus: Bus,
    kind: StreamKind,
    config: pull::Config,
    connections: watch::Receiver<u64>,
    created: Option<OffsetDateTime>,
    /// Grows when the stream is another one by the same name: then acks of what the former delivered must not be sent,
    /// they would be taken for those of other messages.
    generation: watch::Sender<u64>,
}

impl Durable {
    pub(crate) fn new(bus: &Bus, kind: StreamKind, config: pull::Config) -> Self {
        let connections = bus.connections();
        let generation = watch::Sender::new(0);
        Self { bus: bus.clone(), kind, config, connections, created: None, generation }
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

    /// What of it failed.
    pub(crate) fn failed(&self, what: String) -> BusError {
        BusError::Stream { name: self.config.durable_name.clone().unwrap_or_default(), what }
    }

    pub(crate) async fn open(&mut self) -> Result<Consumer<pull::Config>, BusError> {
        self.connections.mark_unchanged();
        // The broker may have come back empty.
        self.bus.ensure_streams().await?;
        let stream = self.stream().await?;
        let created = stream.get_info().await.map_err(|error| self.failed(error.to_string()))?.created;
        if self.created.replace(created).is_some_and(|before| before != created) {
            self.generation.send_modify(|generation| *generation += 1);
        }
        let made = stream.create_consumer(self.config.clone()).await;
        made.map_err(|error| BusError::consumer(&self.kind.name(self.bus.subjects().prefix()), &error))
    }
}
