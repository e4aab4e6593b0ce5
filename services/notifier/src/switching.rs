//! Activates and deactivates destinations, each with the event of it.

use errand_core::{DestinationId, Error, ErrorCode, EventId};
use errand_proto::event::of_destination;
use errand_store::Outbox;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::clock::now;
use crate::desk::{not_found, unavailable};
use crate::destination::{Destination, Status};
use crate::hints::Hints;
use crate::store::Store;

/// How often a change is tried again after another one came first.
pub(crate) const TRIES: usize = 5;

/// See the module.
#[derive(Debug)]
pub struct Switching {
    store: Store,
    /// Its commits must come one after another.
    outbox: Mutex<Outbox>,
    hints: Hints,
}

impl Switching {
    /// Over this store. The outbox must be nobody else's.
    #[must_use]
    pub fn new(store: Store, outbox: Outbox, hints: Hints) -> Self {
        Self { store, outbox: Mutex::new(outbox), hints }
    }

    /// Sends to it again, what it missed first.
    ///
    /// # Errors
    /// `request`/`event_destination_not_found`, `api`/`unavailable`.
    pub async fn activate(&self, id: DestinationId) -> Result<Destination, Error> {
        self.switch(id, Status::Active, "").await
    }

    /// Sends no more to it; what it is to get is kept.
    ///
    /// # Errors
    /// As [`Self::activate`].
    pub async fn deactivate(&self, id: DestinationId, reason: &str) -> Result<Destination, Error> {
        self.switch(id, Status::Inactive, reason).await
    }

    /// The destination as it is then; where it was so before, nothing has happened.
    async fn switch(&self, id: DestinationId, to: Status, reason: &str) -> Result<Destination, Error> {
        for _ in 0..TRIES {
            let before = self.store.destination(id).await.map_err(unavailable)?.ok_or_else(not_found)?;
            if before.status == to {
                return Ok(before);
            }
            let mut after = before;
            after.status = to;
            after.seq += 1;
            reason.clone_into(&mut after.inactive_reason);
            after.updated_at = now();
            if self.commit(&after).await? {
                self.hints.changed().await;
                return self.store.destination(id).await.map_err(unavailable)?.ok_or_else(not_found);
            }
        }
        Err(ErrorCode::API_UNAVAILABLE.with("the destination is changed by others all the time; try again"))
    }

    async fn commit(&self, after: &Destination) -> Result<bool, Error> {
        let action = match after.status {
            Status::Active => "activated",
            Status::Inactive => "deactivated",
        };
        let event_id = EventId::from_uuid(Uuid::now_v7());
        let event = of_destination(event_id, &after.view(), action, after.seq, after.updated_at);
        let outbox = self.outbox.lock().await;
        let staged = outbox.stage([event]).map_err(unavailable)?;
        match self.store.switch_destination(after, &staged).await {
            Ok(true) => {
                outbox.publish(staged);
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(error) => {
                outbox.uncertain(staged);
                Err(unavailable(error))
            }
        }
    }
}
