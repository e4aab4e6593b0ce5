//! Tells events on as JSON.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use errand_bus::{Broadcast, Bus, BusError, Delivery, HeaderMap, trace};
use errand_core::Timestamp;
use errand_kit::metrics;

use crate::clock::now;
use crate::fan_out::{Progress, Telling, first};

/// By which a subscriber drops duplicates.
const EVENT_ID: &str = "Errand-Event-Id";

/// See the module.
#[derive(Debug)]
pub(crate) struct FanOut {
    pub(crate) bus: Bus,
    pub(crate) progress: Arc<Mutex<Progress>>,
}

impl FanOut {
    /// Tells events on, each object's in their order. When this returns the broker has them: a flush alone would only mean that they
    /// have left the process.
    ///
    /// One event on each subject tells whether anybody listens there; where nobody does, no other is made into JSON and
    /// published. Whoever listens before an event is in the stream is told of it: it is asked for each batch.
    pub(super) async fn tell(&self, batch: &[Delivery], told: &[Telling]) -> Result<(), BusError> {
        let subjects: Vec<String> = told.iter().map(|told| self.subject(told)).collect();
        let objects = told.iter().map(|told| told.event.object_id.as_str());
        let first = first(subjects.iter().map(String::as_str).zip(objects));
        // The spans end when the broker has the events.
        let mut spans = Vec::new();
        // Where nothing is left to be spared, there is nothing to ask.
        let spares = first.told.len() < told.len();
        let broadcast = if spares { Some(self.bus.broadcast().await?) } else { None };
        for at in &first.told {
            let ask = broadcast.as_ref().filter(|_| first.asked.contains(at)).map(|broadcast| (broadcast, *at));
            spans.push(self.publish(&subjects[*at], &told[*at], ask).await?);
        }
        let mut unheard: HashSet<&str> = HashSet::new();
        if let Some(broadcast) = broadcast {
            unheard.extend(broadcast.unheard().await?.into_iter().map(|at| subjects[at].as_str()));
            spans.clear();
        }
        let rest = (0..told.len()).filter(|at| !first.told.contains(at) && !unheard.contains(subjects[*at].as_str()));
        for at in rest {
            spans.push(self.publish(&subjects[at], &told[at], None).await?);
        }
        if !spans.is_empty() {
            self.bus.round_trip().await?;
        }
        drop(spans);
        self.count(batch, told);
        Ok(())
    }

    fn count(&self, batch: &[Delivery], told: &[Telling]) {
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
    }

    /// An event cannot be told on.
    pub(super) fn give_up(&self, subject: &str, reason: &str) {
        tracing::error!(subject, reason, "an event cannot be told on");
        self.note(|progress| progress.dead_letters += 1);
        metrics().delivered("fan_out", "dead_letter", 1);
    }

    /// Publishes one event, and asks who hears it where that is to be known; it may still be on its way out.
    async fn publish(
        &self,
        subject: &str,
        told: &Telling,
        ask: Option<(&Broadcast, usize)>,
    ) -> Result<trace::Span, BusError> {
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
        let (subject, json) = (subject.to_owned(), told.json().into());
        match ask {
            Some((broadcast, number)) => broadcast.ask(number, subject, headers, json).await?,
            None => self.bus.publish_raw(subject, Some(headers), json).await?,
        }
        Ok(span)
    }

    fn subject(&self, told: &Telling) -> String {
        let (object, action) = told.object_and_action();
        self.bus.subjects().notify(&told.event.tenant, object, action)
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
