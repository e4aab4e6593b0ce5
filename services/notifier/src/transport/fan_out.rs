//! Tells events on as JSON.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use errand_bus::{Bus, BusError, Delivery, HeaderMap, trace};
use errand_core::Timestamp;
use errand_kit::metrics;

use crate::clock::now;
use crate::fan_out::{Progress, Telling};

/// By which a subscriber drops duplicates.
const EVENT_ID: &str = "Errand-Event-Id";

/// See the module.
#[derive(Debug)]
pub(crate) struct FanOut {
    pub(crate) bus: Bus,
    pub(crate) progress: Arc<Mutex<Progress>>,
}

impl FanOut {
    /// Tells events on, in their order. When this returns the broker has them: a flush alone would only mean that they
    /// have left the process.
    pub(super) async fn tell(&self, batch: &[Delivery], told: &[Telling]) -> Result<(), BusError> {
        // The spans end when the broker has the events.
        let mut spans = Vec::new();
        for told in told {
            spans.push(self.publish(told).await?);
        }
        self.bus.round_trip().await?;
        drop(spans);
        let now = now();
        let created = || told.iter().map(|told| Timestamp(told.event.created_at_ms));
        for created in created() {
            metrics().delivery_lag("fan_out", Duration::from_millis(now.millis_since(created)));
        }
        metrics().delivered("fan_out", "delivered", told.len() as u64);
        self.note(|progress| {
            progress.published += told.len() as u64;
            progress.redelivered += batch.iter().filter(|delivery| delivery.delivery_count > 1).count() as u64;
            progress.stream_sequence = batch.last().map_or(progress.stream_sequence, |last| last.stream_sequence);
            progress.lag_ms = created().max().map_or(progress.lag_ms, |newest| now.millis_since(newest));
        });
        Ok(())
    }

    /// An event cannot be told on.
    pub(super) fn give_up(&self, subject: &str, reason: &str) {
        tracing::error!(subject, reason, "an event cannot be told on");
        self.note(|progress| progress.dead_letters += 1);
        metrics().delivered("fan_out", "dead_letter", 1);
    }

    /// Publishes one event; it may still be on its way out.
    async fn publish(&self, told: &Telling) -> Result<trace::Span, BusError> {
        let event_id = told.id.to_string();
        let mut headers = HeaderMap::new();
        headers.insert(EVENT_ID, event_id.as_str());
        let parent = told.traceparent().filter(|text| trace::is_valid(text));
        let mut span = trace::Span::child(parent, trace::Kind::Send, "notify");
        if span.is_recording() {
            span.set("messaging.message.id", event_id);
            span.set("errand.event.type", told.event.r#type.clone());
        }
        if let Some(traceparent) = span.traceparent() {
            trace::set(&mut headers, traceparent);
        }
        let (object, action) = told.object_and_action();
        let subject = self.bus.subjects().notify(&told.event.tenant, object, action);
        self.bus.publish_raw(subject, Some(headers), told.json.clone().into()).await.map(|()| span)
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
