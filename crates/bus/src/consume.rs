//! Durable consumers, with the one ack policy.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{Bus, BusError};
use crate::delivery::{Delivery, Verdict, hand_over, settle};
use crate::durable::Durable;
use crate::streams::StreamKind;
use crate::trace;

/// A durable consumer, shared by all instances of a service.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// Its name.
    pub durable: &'static str,
    /// Of which stream.
    pub stream: StreamKind,
    /// How long the broker waits for an ack before it delivers again.
    pub ack_wait: Duration,
    /// Deliveries before a message is a dead letter; 0 or less for no limit.
    pub max_deliver: i64,
    /// Deliveries that are handled at once.
    pub in_flight: usize,
    /// What its dead letters are: `dlq.<what>`.
    pub dead_letter: &'static str,
}

/// How long the broker may fill what was asked for. One that stops waits for that, too: only then can nothing be on its
/// way here, where it would lie until [`ConsumerConfig::ack_wait`] is over.
const EXPIRES: Duration = Duration::from_secs(1);
/// How long those under way may take at the end.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a message waits whose handler panicked.
const AFTER_PANIC: Duration = Duration::from_secs(1);
/// Messages that all instances together may hold; more than any number of them handles at once.
const MAX_ACK_PENDING: i64 = 100_000;

/// Hands every message to `handler` until shutdown, and applies its verdict. Returns when those under way are done,
/// or after 10 s.
///
/// # Errors
/// [`BusError::Refused`], where the broker will never have such a consumer. What else fails is tried again.
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
    let wanted = pull::Config {
        durable_name: Some(config.durable.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: config.ack_wait,
        // Counted here: the broker would leave a message that it gives up in the stream, untold.
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING,
        ..pull::Config::default()
    };
    let mut durable = Durable::new(bus, config.stream, wanted);
    let work = Arc::new(Work { bus: bus.clone(), handler, generation: durable.generation(), config });
    let permits = Arc::new(Semaphore::new(work.config.in_flight.max(1)));
    let tracker = TaskTracker::new();
    let ended = loop {
        if shutdown.is_cancelled() {
            break Ok(());
        }
        match consume_until_broken(&mut durable, &work, &permits, &tracker, &shutdown).await {
            Ok(()) => {}
            Err(error @ BusError::Refused { .. }) => break Err(error),
            Err(error) => {
                tracing::warn!(%error, durable = work.config.durable, "the consumer is made anew");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(200)) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        }
    };
    tracker.close();
    if tokio::time::timeout(DRAIN, tracker.wait()).await.is_err() {
        tracing::warn!(durable = work.config.durable, "deliveries were still under way; they will be delivered again");
    }
    ended
}

/// What each task needs.
struct Work<F> {
    bus: Bus,
    config: ConsumerConfig,
    handler: F,
    generation: watch::Receiver<u64>,
}

async fn consume_until_broken<F, Fut>(
    durable: &mut Durable,
    work: &Arc<Work<F>>,
    permits: &Arc<Semaphore>,
    tracker: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<(), BusError>
where
    F: Fn(Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    let consumer = tokio::select! {
        opened = durable.open() => opened?,
        () = shutdown.cancelled() => return Ok(()),
    };
    loop {
        // One after another, each to its end: so a broker that has fallen silent is noticed within seconds, too (nats.go
        // 1729 and 1972, nats.rs 557: consumers that never resume after a reconnect).
        let asked = consumer.batch().max_messages(work.config.in_flight.max(1)).expires(EXPIRES).messages().await;
        let mut messages = asked.map_err(|error| durable.failed(error.to_string()))?;
        loop {
            // Only the permit may wait; while it does, the batch's own buffer holds what comes.
            let permit = tokio::select! {
                permit = Arc::clone(permits).acquire_owned() => permit,
                () = shutdown.cancelled() => return give_back(messages).await,
            };
            let Ok(permit) = permit else { return Ok(()) };
            let message = tokio::select! {
                biased;
                () = shutdown.cancelled() => return give_back(messages).await,
                message = messages.next() => message,
                // After what had arrived before: that is still good.
                () = durable.reconnected() => return Ok(()),
            };
            let Some(message) = message else { break };
            let message = message.map_err(|error| durable.failed(error.to_string()))?;
            let generation = *work.generation.borrow();
            tracker.spawn(Arc::clone(work).handle(message, generation, permit));
        }
    }
}

/// At the end: what still comes goes to another instance.
async fn give_back(messages: pull::Batch) -> Result<(), BusError> {
    let messages = messages.filter_map(|message| std::future::ready(message.ok()));
    let giving = messages.for_each(|message| hand_over([message]));
    // A broker that is gone gives nothing.
    let _ = tokio::time::timeout(EXPIRES * 2, giving).await;
    Ok(())
}

impl<F, Fut> Work<F>
where
    F: Fn(Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    async fn handle(self: Arc<Self>, message: jetstream::Message, generation: u64, permit: OwnedSemaphorePermit) {
        let Some(mut delivery) = Delivery::of(&message) else { return };
        let name = self.bus.subjects().endpoint(&delivery.subject);
        let mut span = trace::Span::child(delivery.traceparent.as_deref(), trace::Kind::Process, name);
        if span.is_recording() {
            span.set("messaging.consumer.group.name", self.config.durable);
            span.set("messaging.message.id", delivery.message_id.clone().unwrap_or_default());
            delivery.traceparent = span.traceparent().map(str::to_owned);
        }
        let (count, limit) = (delivery.delivery_count, self.config.max_deliver);
        let verdict = if limit > 0 && count > limit {
            // Whoever handled it last did not live to tell: it is not given to another.
            Verdict::DeadLetter(format!("delivered {count} times without a verdict"))
        } else {
            let handling = trace::scope(span.traceparent(), async { (self.handler)(delivery).await });
            AssertUnwindSafe(handling).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(durable = self.config.durable, "a handler panicked");
                Verdict::RetryAfter(AFTER_PANIC)
            })
        };
        let verdict = match verdict {
            Verdict::RetryAfter(_) if limit > 0 && count >= limit => {
                Verdict::DeadLetter(format!("not handled within {count} deliveries"))
            }
            verdict => verdict,
        };
        if verdict != Verdict::Ack {
            span.fail("not handled");
        }
        drop(span);
        if generation == *self.generation.borrow() {
            settle(&self.bus, self.config.dead_letter, &message, verdict).await;
        }
        drop(permit);
    }
}
