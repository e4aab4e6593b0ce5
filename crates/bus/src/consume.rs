//! Durable consumers, with the one ack policy.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{Bus, BusError};
use crate::streams::StreamKind;
use crate::trace;

/// What becomes of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is done: committed, or was before.
    Ack,
    /// Not now: again after so long. Never a bare nak, which would come back at once.
    RetryAfter(Duration),
    /// Never: kept on the dead-letter subject, with the reason.
    DeadLetter(String),
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Where it was published.
    pub subject: String,
    /// What.
    pub payload: Bytes,
    /// Its place in the stream.
    pub stream_sequence: u64,
    /// When the stream took it, in milliseconds since the Unix epoch.
    pub published_at_ms: i64,
    /// 1 at first.
    pub delivery_count: i64,
    /// Its `Nats-Msg-Id`.
    pub message_id: Option<String>,
    /// Its W3C trace context.
    pub traceparent: Option<String>,
}

impl Delivery {
    pub(crate) fn of(message: &jetstream::Message) -> Option<Self> {
        let info = match message.info() {
            Ok(info) => info,
            Err(error) => {
                tracing::error!(%error, "a delivery without a place in its stream");
                return None;
            }
        };
        let headers = message.headers.as_ref();
        Some(Self {
            subject: message.subject.to_string(),
            payload: message.payload.clone(),
            stream_sequence: info.stream_sequence,
            published_at_ms: milliseconds(info.published),
            delivery_count: info.delivered,
            message_id: headers.and_then(|headers| headers.get("Nats-Msg-Id")).map(|id| id.as_str().to_owned()),
            traceparent: trace::from_headers(headers).map(str::to_owned),
        })
    }
}

pub(crate) fn milliseconds(time: time::OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// A durable consumer, shared by all instances of a service.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// Its name.
    pub durable: &'static str,
    /// Of which stream.
    pub stream: StreamKind,
    /// How long the broker waits for an ack before it delivers again.
    pub ack_wait: Duration,
    /// Deliveries before a message is a dead letter.
    pub max_deliver: i64,
    /// Deliveries that are handled at once.
    pub in_flight: usize,
    /// What its dead letters are: `dlq.<what>`.
    pub dead_letter: &'static str,
}

/// How often a broker shows that a silent consumer lives. Twice without one, and the consumer is made anew
/// (nats.go 1729 and 1972, nats.rs 557: consumers that never resume after a reconnect).
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);

/// Hands every message to `handler` until shutdown, and applies its verdict. Returns when those under way are done,
/// or after 10 s.
///
/// # Errors
/// None at present: what fails is tried again.
pub async fn consume<F, Fut>(
    bus: &Bus,
    config: ConsumerConfig,
    shutdown: CancellationToken,
    handler: F,
) -> Result<(), BusError>
where
    F: Fn(Delivery) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(config.in_flight));
    let tracker = TaskTracker::new();
    while !shutdown.is_cancelled() {
        let work = consume_once(bus, &config, &permits, &tracker, handler.clone());
        let ended = tokio::select! {
            ended = work => ended,
            () = shutdown.cancelled() => break,
        };
        if let Err(error) = ended {
            tracing::warn!(%error, durable = config.durable, "the consumer is made anew");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tracker.close();
    if tokio::time::timeout(Duration::from_secs(10), tracker.wait()).await.is_err() {
        tracing::warn!(durable = config.durable, "deliveries were still under way; they will be delivered again");
    }
    Ok(())
}

async fn consume_once<F, Fut>(
    bus: &Bus,
    config: &ConsumerConfig,
    permits: &Arc<Semaphore>,
    tracker: &TaskTracker,
    handler: F,
) -> Result<(), BusError>
where
    F: Fn(Delivery) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    let mut messages = open(bus, config).await?;
    loop {
        // Only the permit may wait; while it does, the stream's own buffer holds what comes.
        let Ok(permit) = Arc::clone(permits).acquire_owned().await else { return Ok(()) };
        let Some(message) = messages.next().await else { return Ok(()) };
        let failed = |what: String| BusError::Stream { name: config.durable.to_owned(), what };
        let message = message.map_err(|error| failed(error.to_string()))?;
        let (bus, config, handler) = (bus.clone(), config.clone(), handler.clone());
        tracker.spawn(async move {
            handle(&bus, &config, message, handler).await;
            drop(permit);
        });
    }
}

async fn open(bus: &Bus, config: &ConsumerConfig) -> Result<pull::Stream, BusError> {
    let name = config.stream.name(bus.subjects().prefix());
    let failed = |what: String| BusError::Stream { name: name.clone(), what };
    // The broker may have come back empty.
    bus.ensure_streams().await?;
    let stream = bus.jetstream().get_stream_no_info(&name).await.map_err(|error| failed(error.to_string()))?;
    let wanted = pull::Config {
        durable_name: Some(config.durable.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: config.ack_wait,
        // One more than ours: the last delivery is handled here, not dropped by the broker.
        max_deliver: config.max_deliver + 1,
        max_ack_pending: i64::try_from(config.in_flight * 4).unwrap_or(i64::MAX),
        ..pull::Config::default()
    };
    let consumer: jetstream::consumer::PullConsumer =
        stream.create_consumer(wanted).await.map_err(|error| failed(error.to_string()))?;
    consumer
        .stream()
        .max_messages_per_batch(config.in_flight.max(1))
        .heartbeat(HEARTBEAT)
        .expires(HEARTBEAT * 6)
        .messages()
        .await
        .map_err(|error| failed(error.to_string()))
}

async fn handle<F, Fut>(bus: &Bus, config: &ConsumerConfig, message: jetstream::Message, handler: F)
where
    F: Fn(Delivery) -> Fut,
    Fut: Future<Output = Verdict>,
{
    let Some(delivery) = Delivery::of(&message) else { return };
    let (count, subject) = (delivery.delivery_count, delivery.subject.clone());
    let verdict = match handler(delivery).await {
        Verdict::RetryAfter(_) if count >= config.max_deliver => {
            Verdict::DeadLetter(format!("not handled within {count} deliveries"))
        }
        verdict => verdict,
    };
    // An ack that is lost means a redelivery, which every handler takes as a repetition.
    let acked = match verdict {
        Verdict::Ack => message.ack().await,
        Verdict::RetryAfter(delay) => message.ack_with(AckKind::Nak(Some(delay))).await,
        Verdict::DeadLetter(reason) => {
            match bus.dead_letter(config.dead_letter, &reason, &subject, message.payload.clone()).await {
                Ok(()) => message.ack_with(AckKind::Term).await,
                Err(error) => {
                    tracing::error!(%error, reason, "a dead letter could not be kept; it will be tried again");
                    message.ack_with(AckKind::Nak(Some(Duration::from_secs(5)))).await
                }
            }
        }
    };
    if let Err(error) = acked {
        tracing::debug!(%error, "an ack was lost");
    }
}
