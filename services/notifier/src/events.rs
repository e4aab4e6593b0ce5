//! Events as they go out: read and turned into JSON once, for all destinations.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use errand_core::{EventId, Timestamp};
use errand_proto::{json, v1};
use errand_store::StoreError;
use prost::Message as _;

use crate::channel::Message;
use crate::store::Store;

/// What the cache holds, in bytes of payload.
const CACHED_BYTES: usize = 32 * 1024 * 1024;

#[derive(Debug, Default)]
struct Cache {
    by_number: HashMap<i64, Arc<Message>>,
    /// Oldest first.
    order: VecDeque<i64>,
    bytes: usize,
}

/// Events of the queue, by their numbers.
#[derive(Debug)]
pub struct Events {
    store: Store,
    cache: Mutex<Cache>,
}

/// What an event takes, roughly.
#[must_use]
pub fn weight(message: &Message) -> usize {
    message.json.len() + message.protobuf.len()
}

/// An event as it goes out. `now` is to be set at each attempt.
#[must_use]
pub fn outgoing(id: EventId, event: &v1::Event, protobuf: Bytes) -> Message {
    Message {
        event_id: id,
        event_type: event.r#type.clone(),
        tenant: event.tenant.clone(),
        object_id: event.object_id.clone(),
        seq: event.seq,
        created_at: Timestamp(event.created_at_ms),
        json: json::event_text(event).into(),
        protobuf,
        traceparent: (!event.traceparent.is_empty()).then(|| event.traceparent.clone()),
        now: Timestamp(0),
    }
}

impl Cache {
    fn put(&mut self, number: i64, message: &Arc<Message>) {
        if self.by_number.insert(number, Arc::clone(message)).is_none() {
            self.order.push_back(number);
            self.bytes += weight(message);
        }
        while self.bytes > CACHED_BYTES {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some(gone) = self.by_number.remove(&oldest) {
                self.bytes -= weight(&gone);
            }
        }
    }
}

impl Events {
    /// Over a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, cache: Mutex::default() }
    }

    /// These events; what cannot be read is missing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(&self, numbers: &[i64]) -> Result<HashMap<i64, Arc<Message>>, StoreError> {
        let mut found = HashMap::with_capacity(numbers.len());
        let mut missing = Vec::new();
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            for number in numbers {
                match cache.by_number.get(number) {
                    Some(message) => drop(found.insert(*number, Arc::clone(message))),
                    None => missing.push(*number),
                }
            }
        }
        missing.sort_unstable();
        missing.dedup();
        let mut read = Vec::with_capacity(missing.len());
        for event in self.store.queue_events(&missing).await? {
            let payload = Bytes::from(event.payload);
            match v1::Event::decode(payload.clone()) {
                Ok(decoded) => read.push((event.number, Arc::new(outgoing(event.id, &decoded, payload)))),
                Err(error) => tracing::error!(event = %event.id, %error, "an event of the queue cannot be read"),
            }
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, message) in read {
            cache.put(number, &message);
            found.insert(number, message);
        }
        Ok(found)
    }
}
