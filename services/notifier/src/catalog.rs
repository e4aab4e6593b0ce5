//! All destinations, in memory. Whether the picture is old shows a number in the store that each change counts up.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use errand_core::Timestamp;
use errand_proto::v1;
use errand_store::StoreError;

use crate::destination::Destination;
use crate::store::Store;

/// The clocks of broker and notifiers may differ by so much: a destination rather gets an event from just before its
/// creation than misses one from just after.
const CLOCKS_DIFFER_MS: i64 = 5_000;

/// The destinations as they were at some time.
#[derive(Debug, Default)]
pub struct Picture {
    change: Option<i64>,
    by_number: HashMap<i64, Arc<Destination>>,
    by_tenant: HashMap<String, Vec<Arc<Destination>>>,
}

impl Picture {
    fn new(change: i64, destinations: Vec<Destination>) -> Self {
        let mut picture = Self { change: Some(change), ..Self::default() };
        for destination in destinations {
            let destination = Arc::new(destination);
            picture.by_number.insert(destination.number, Arc::clone(&destination));
            picture.by_tenant.entry(destination.tenant.to_string()).or_default().push(destination);
        }
        picture
    }

    /// One destination.
    #[must_use]
    pub fn get(&self, number: i64) -> Option<&Arc<Destination>> {
        self.by_number.get(&number)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Destination>> {
        self.by_number.values()
    }

    /// Which want this event.
    #[must_use]
    pub fn wanting(&self, event: &v1::Event, published: Timestamp) -> Vec<i64> {
        let of_type = self.of_type(&event.tenant, &event.r#type, published);
        of_type.filter(|one| one.definition.filter.fits(event)).map(|one| one.number).collect()
    }

    fn of_type<'a>(
        &'a self,
        tenant: &str,
        event_type: &'a str,
        published: Timestamp,
    ) -> impl Iterator<Item = &'a Arc<Destination>> {
        let all = self.by_tenant.get(tenant).map_or(&[][..], Vec::as_slice).iter();
        all.filter(move |one| {
            one.created_at.0 <= published.0.saturating_add(CLOCKS_DIFFER_MS) && one.definition.wants(event_type)
        })
    }
}

/// The newest picture.
#[derive(Debug)]
pub struct Catalog {
    store: Store,
    picture: RwLock<Arc<Picture>>,
}

impl Catalog {
    /// Over a store; the first [`Self::refreshed`] reads it.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, picture: RwLock::default() }
    }

    /// The picture with every change in it that was committed when this was called.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn refreshed(&self) -> Result<Arc<Picture>, StoreError> {
        let current = Arc::clone(&self.picture.read().unwrap_or_else(PoisonError::into_inner));
        // The number first: a change in between makes the picture newer than its number, which costs a reading.
        let change = self.store.destination_change().await?;
        if current.change == Some(change) {
            return Ok(current);
        }
        let picture = Arc::new(Picture::new(change, self.store.destinations().await?));
        *self.picture.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&picture);
        Ok(picture)
    }
}
