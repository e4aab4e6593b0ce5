//! Takes events from the stream into the queues of the destinations that want them. An event that nobody wants costs a
//! look at its subject.

use std::sync::Arc;
use std::time::Duration;

use errand_bus::{Bus, BusError, Delivery, InOrderConfig, StreamKind, Subjects, Verdict, consume_in_order};
use errand_core::{EventId, Timestamp};
use errand_proto::v1;
use prost::Message;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, Picture};
use crate::clock::now;
use crate::hints::Hints;
use crate::store::{Entry, Store};

/// Events that are stored together.
const BATCH: usize = 1_000;
/// How long to wait before a batch is stored that the store did not take.
const AGAIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) subjects: Subjects,
    pub(crate) store: Store,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) hints: Hints,
}

/// Takes events in, in the order of the stream, until shutdown. Of several notifiers one does at a time.
pub(crate) async fn take_in(bus: Bus, intake: Intake, shutdown: CancellationToken) -> Result<(), BusError> {
    let config = InOrderConfig {
        durable: "notifier-destinations",
        stream: StreamKind::Event,
        filters: Vec::new(),
        // How long whoever takes over waits for what its predecessor held, to put it in its place.
        ack_wait: Duration::from_secs(4),
        max_batch: BATCH,
        // An event is never given up because the store was away; one that cannot be read is a dead letter at once.
        max_attempts: 0,
        dead_letter: "notifier-destinations",
    };
    let intake = Arc::new(intake);
    let handler = move |batch| {
        let intake = Arc::clone(&intake);
        async move { intake.take(batch).await }
    };
    consume_in_order(&bus, config, shutdown, handler).await
}

impl Intake {
    async fn take(&self, batch: Vec<Delivery>) -> Verdict {
        // Asked at each batch: whoever was told of a new destination may publish for it at once.
        let picture = match self.catalog.refreshed().await {
            Ok(picture) => picture,
            Err(error) => return again(&error, batch.len()),
        };
        let entries: Result<Vec<Option<Entry>>, String> =
            batch.iter().map(|delivery| entry(&self.subjects, &picture, delivery)).collect();
        let entries: Vec<Entry> = match entries {
            Ok(entries) => entries.into_iter().flatten().collect(),
            // Of several, each is tried by itself.
            Err(reason) => return Verdict::DeadLetter(reason),
        };
        match self.store.take(&entries, now().0).await {
            Ok(taken) => {
                if !taken.destinations.is_empty() {
                    self.hints.due(taken.destinations).await;
                }
                Verdict::Ack
            }
            Err(error) => again(&error, batch.len()),
        }
    }
}

fn again(error: &errand_store::StoreError, events: usize) -> Verdict {
    tracing::warn!(%error, events, "events wait for the store");
    Verdict::RetryAfter(AGAIN)
}

/// An event with those that want it; none where nobody does.
fn entry(subjects: &Subjects, picture: &Picture, delivery: &Delivery) -> Result<Option<Entry>, String> {
    let published = Timestamp(delivery.published_at_ms);
    let wanted = subjects
        .parts_of_event(&delivery.subject)
        .is_some_and(|(tenant, event_type)| picture.may_want(tenant, event_type, published));
    if !wanted {
        return Ok(None);
    }
    let event = v1::Event::decode(delivery.payload.clone()).map_err(|error| format!("it is no event: {error}"))?;
    let destinations = picture.wanting(&event, published);
    if destinations.is_empty() {
        return Ok(None);
    }
    let id: EventId = event.id.parse().map_err(|error| format!("id: {error}"))?;
    let payload = delivery.payload.clone();
    Ok(Some(Entry { id, event_type: event.r#type, object_id: event.object_id, payload, destinations }))
}
