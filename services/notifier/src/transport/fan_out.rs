//! Takes events from the stream, tells them on as JSON.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use errand_bus::{Bus, BusError, Delivery, HeaderMap, InOrderConfig, StreamKind, Verdict, consume_in_order, trace};
use errand_core::Timestamp;
use errand_kit::metrics;
use tokio_util::sync::CancellationToken;

use crate::clock::now;
use crate::fan_out::{Progress, Telling, telling};

/// By which a subscriber drops duplicates.
const EVENT_ID: &str = "Errand-Event-Id";

/// How long to wait before a batch is told on again that the broker did not take.
const AGAIN: Duration = Duration::from_millis(500);

/// Publishes one event; it may still be on its way out.
async fn publish(bus: &Bus, told: Telling) -> Result<trace::Span, BusError> {
    let mut headers = HeaderMap::new();
    headers.insert(EVENT_ID, told.event_id.as_str());
    let parent = told.traceparent.as_deref().filter(|text| trace::is_valid(text));
    let mut span = trace::Span::child(parent, trace::Kind::Send, "notify");
    if span.is_recording() {
        span.set("messaging.message.id", told.event_id.clone());
        span.set("errand.event.type", format!("{}.{}", told.object, told.action));
    }
    if let Some(traceparent) = span.traceparent() {
        trace::set(&mut headers, traceparent);
    }
    let subject = bus.subjects().notify(&told.tenant, &told.object, &told.action);
    bus.publish_raw(subject, Some(headers), told.json.into()).await.map(|()| span)
}

/// Takes the events of the stream in their order, until shutdown.
pub(crate) async fn consume(
    bus: Bus,
    batch: u16,
    progress: Arc<Mutex<Progress>>,
    shutdown: CancellationToken,
) -> Result<(), BusError> {
    let config = InOrderConfig {
        durable: "notifier",
        stream: StreamKind::Event,
        filters: Vec::new(),
        ack_wait: Duration::from_secs(10),
        max_batch: usize::from(batch),
        // An event is never given up because the broker was away; one that cannot be told on is a dead letter at once.
        max_attempts: 0,
        dead_letter: "notifier",
    };
    let handler = {
        let bus = bus.clone();
        move |batch| tell_on(bus.clone(), Arc::clone(&progress), batch)
    };
    consume_in_order(&bus, config, shutdown, handler).await
}

/// Tells a batch on, in its order. All or nothing: an event that cannot be told on makes the bus bring each of the
/// batch by itself, and then it takes no other with it.
async fn tell_on(bus: Bus, progress: Arc<Mutex<Progress>>, batch: Vec<Delivery>) -> Verdict {
    let told: Result<Vec<Telling>, String> = batch.iter().map(|delivery| telling(&delivery.payload)).collect();
    let told = match told {
        Ok(told) => told,
        Err(reason) => {
            if let [delivery] = &batch[..] {
                tracing::error!(subject = delivery.subject, reason, "an event cannot be told on");
                note(&progress, |progress| progress.dead_letters += 1);
                metrics().delivered("fan_out", "dead_letter", 1);
            }
            return Verdict::DeadLetter(reason);
        }
    };
    let created: Vec<Timestamp> = told.iter().map(|told| told.created_at).collect();
    let newest = created.iter().max().copied();
    if let Err(error) = publish_all(&bus, told).await {
        tracing::warn!(%error, events = batch.len(), "the broker did not take events; they are told on again");
        return Verdict::RetryAfter(AGAIN);
    }
    let now = now();
    for created in created {
        metrics().delivery_lag("fan_out", Duration::from_millis(now.millis_since(created)));
    }
    metrics().delivered("fan_out", "delivered", batch.len() as u64);
    note(&progress, |progress| {
        progress.published += batch.len() as u64;
        progress.redelivered += batch.iter().filter(|delivery| delivery.delivery_count > 1).count() as u64;
        progress.stream_sequence = batch.last().map_or(progress.stream_sequence, |last| last.stream_sequence);
        progress.lag_ms = newest.map_or(progress.lag_ms, |newest| now.millis_since(newest));
    });
    Verdict::Ack
}

/// When this returns the broker has them: a flush alone would only mean that they have left the process.
async fn publish_all(bus: &Bus, told: Vec<Telling>) -> Result<(), BusError> {
    // The spans end when the broker has the events.
    let mut spans = Vec::new();
    for told in told {
        spans.push(publish(bus, told).await?);
    }
    bus.round_trip().await?;
    drop(spans);
    Ok(())
}

fn note(progress: &Mutex<Progress>, change: impl FnOnce(&mut Progress)) {
    change(&mut progress.lock().unwrap_or_else(PoisonError::into_inner));
}
