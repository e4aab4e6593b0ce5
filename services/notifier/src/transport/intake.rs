//! Takes events into the queues of the destinations that want them.

use std::sync::Arc;

use errand_bus::Delivery;
use errand_core::Timestamp;
use errand_store::StoreError;

use crate::catalog::{Catalog, Picture};
use crate::clock::now;
use crate::fan_out::Telling;
use crate::hints::Hints;
use crate::store::{Entry, Store};

/// See the module.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) store: Store,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) hints: Hints,
}

impl Intake {
    /// Stores a batch's deliveries, in one transaction.
    pub(super) async fn take(&self, batch: &[Delivery], told: &[Telling]) -> Result<(), StoreError> {
        // Asked at each batch: whoever was told of a new destination may publish for it at once.
        let picture = self.catalog.refreshed().await?;
        let entries: Vec<Entry> =
            batch.iter().zip(told).filter_map(|(delivery, told)| entry(&picture, delivery, told)).collect();
        let taken = self.store.take(&entries, now().0).await?;
        if !taken.destinations.is_empty() {
            self.hints.due(taken.destinations).await;
        }
        Ok(())
    }
}

/// An event with those that want it; none where nobody does.
fn entry(picture: &Picture, delivery: &Delivery, told: &Telling) -> Option<Entry> {
    let destinations = picture.wanting(&told.event, Timestamp(delivery.published_at_ms));
    (!destinations.is_empty()).then(|| Entry {
        id: told.id,
        event_type: told.event.r#type.clone(),
        object_id: told.event.object_id.clone(),
        payload: delivery.payload.clone(),
        destinations,
    })
}
