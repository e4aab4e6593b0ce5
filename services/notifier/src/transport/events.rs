//! Takes events from the stream: each is told on, and put into the queues of the destinations that want it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use errand_bus::{BusError, Delivery, InOrderConfig, StreamKind, Verdict, consume_in_order};
use tokio_util::sync::CancellationToken;

use super::{FanOut, Intake};
use crate::fan_out::{Telling, telling};

/// How long to wait before a batch is handled again that the broker or the store did not take.
const AGAIN: Duration = Duration::from_millis(500);

/// What becomes of events.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) fan_out: FanOut,
    pub(crate) intake: Intake,
}

/// Takes the events of the stream in their order, until shutdown. Of several notifiers one does at a time.
pub(crate) async fn consume(events: Events, batch: u16, shutdown: CancellationToken) -> Result<(), BusError> {
    let config = InOrderConfig {
        durable: "notifier",
        stream: StreamKind::Event,
        filters: Vec::new(),
        // How long whoever takes over waits for what its predecessor held, to put it in its place.
        ack_wait: Duration::from_secs(4),
        max_batch: usize::from(batch),
        // An event is never given up because broker or store were away; one that cannot be read is a dead letter at once.
        max_attempts: 0,
        dead_letter: "notifier",
    };
    let bus = events.fan_out.bus.clone();
    let events = Arc::new((events, Mutex::default()));
    let handler = move |batch| {
        let events = Arc::clone(&events);
        async move { events.0.handle(batch, &events.1).await }
    };
    consume_in_order(&bus, config, shutdown, handler).await
}

/// The place of an event, and when it was published: in a stream that began anew, places come again.
type Place = Option<(u64, i64)>;

impl Events {
    /// All or nothing: an event that cannot be told on makes the bus bring each of the batch by itself, and then it takes
    /// no other with it.
    async fn handle(&self, batch: Vec<Delivery>, told_up_to: &Mutex<Place>) -> Verdict {
        let told: Result<Vec<Telling>, String> = batch.iter().map(|delivery| telling(&delivery.payload)).collect();
        let told = match told {
            Ok(told) => told,
            Err(reason) => {
                if let [delivery] = &batch[..] {
                    self.fan_out.give_up(&delivery.subject, &reason);
                }
                return Verdict::DeadLetter(reason);
            }
        };
        let last = batch.last().map(|last| (last.stream_sequence, last.published_at_ms));
        // What waits for the store is not told on again meanwhile.
        if *told_up_to.lock().unwrap_or_else(PoisonError::into_inner) != last {
            if let Err(error) = self.fan_out.tell(&batch, &told).await {
                tracing::warn!(%error, events = batch.len(), "the broker did not take events; they are told on again");
                return Verdict::RetryAfter(AGAIN);
            }
            *told_up_to.lock().unwrap_or_else(PoisonError::into_inner) = last;
        }
        match self.intake.take(&batch, &told).await {
            Ok(()) => Verdict::Ack,
            Err(error) => {
                tracing::warn!(%error, events = batch.len(), "events wait for the store");
                Verdict::RetryAfter(AGAIN)
            }
        }
    }
}
