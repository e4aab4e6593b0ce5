//! What a service says of itself: `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`, of all, by name, and by instance.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use errand_core::Error;
use futures::StreamExt;
use futures::stream::{SelectAll, select_all};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{Bus, BusError};

const VERBS: [&str; 3] = ["PING", "INFO", "STATS"];

/// A method's numbers.
#[derive(Debug)]
pub(super) struct Endpoint {
    name: String,
    subject: String,
    queue_group: &'static str,
    requests: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    last_error: Mutex<String>,
}

impl Endpoint {
    pub(super) fn new(name: &str, subject: &str, queue_group: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            subject: subject.to_owned(),
            queue_group,
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
            last_error: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    pub(super) fn count(&self, took: Duration, error: Option<&Error>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(error) = error {
            self.errors.fetch_add(1, Ordering::Relaxed);
            // The code, not the message: that is the asker's, and this is for all to read.
            let text = format!("{}:{}/{}", error.code.http, error.code.kind, error.code.code);
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }
    }

    fn info(&self) -> Value {
        json!({ "name": self.name, "subject": self.subject, "queue_group": self.queue_group, "metadata": {} })
    }

    fn stats(&self) -> Value {
        let requests = self.requests.load(Ordering::Relaxed);
        let nanoseconds = self.nanoseconds.load(Ordering::Relaxed);
        json!({
            "name": self.name,
            "subject": self.subject,
            "queue_group": self.queue_group,
            "num_requests": requests,
            "num_errors": self.errors.load(Ordering::Relaxed),
            "last_error": *self.last_error.lock().unwrap_or_else(PoisonError::into_inner),
            "processing_time": nanoseconds,
            "average_processing_time": nanoseconds.checked_div(requests).unwrap_or(0),
        })
    }
}

/// One instance of a service.
#[derive(Debug)]
pub(super) struct Instance {
    name: &'static str,
    id: String,
    description: &'static str,
    prefix: String,
    started: OffsetDateTime,
    endpoints: Vec<Arc<Endpoint>>,
}

impl Instance {
    pub(super) fn new(
        name: &'static str,
        description: &'static str,
        prefix: String,
        endpoints: Vec<Arc<Endpoint>>,
    ) -> Self {
        let id = uuid::Uuid::now_v7().simple().to_string();
        Self { name, id, description, prefix, started: OffsetDateTime::now_utc(), endpoints }
    }

    /// The answer to a verb.
    fn answer(&self, verb: &str) -> Value {
        let mut answer = json!({
            "type": format!("io.nats.micro.v1.{}_response", verb.to_lowercase()),
            "name": self.name,
            "id": self.id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": { "prefix": self.prefix },
        });
        if verb == "INFO" {
            answer["description"] = self.description.into();
            answer["endpoints"] = self.endpoints.iter().map(|endpoint| endpoint.info()).collect();
        }
        if verb == "STATS" {
            answer["started"] = self.started.format(&Rfc3339).unwrap_or_default().into();
            answer["endpoints"] = self.endpoints.iter().map(|endpoint| endpoint.stats()).collect();
        }
        answer
    }
}

/// Answers until the service stops.
pub(super) async fn answer(
    bus: &Bus,
    instance: Instance,
    stopping: CancellationToken,
    tracker: &TaskTracker,
) -> Result<(), BusError> {
    let mut asked = Vec::new();
    for verb in VERBS {
        let (name, id) = (instance.name, &instance.id);
        for subject in [format!("$SRV.{verb}"), format!("$SRV.{verb}.{name}"), format!("$SRV.{verb}.{name}.{id}")] {
            let questions = bus.client().subscribe(subject.clone()).await;
            let questions = questions.map_err(|error| BusError::Listen { subject, what: error.to_string() })?;
            asked.push(questions.map(move |question| (verb, question)).boxed());
        }
    }
    let mut asked: SelectAll<_> = select_all(asked);
    let client = bus.client().clone();
    tracker.spawn(async move {
        loop {
            let question = tokio::select! {
                question = asked.next() => question,
                () = stopping.cancelled() => return,
            };
            let Some((verb, question)) = question else { return };
            let Some(to) = question.reply else { continue };
            if let Err(error) = client.publish(to, instance.answer(verb).to_string().into()).await {
                tracing::debug!(%error, verb, "an answer about the service could not be sent");
            }
        }
    });
    Ok(())
}
