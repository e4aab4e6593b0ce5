//! What notifiers tell one another, so that nobody need look at the store all the time: that destinations have changed,
//! and that some have something due. A hint may be lost; whoever misses one looks by itself a little later.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use errand_bus::{Bus, BusError};
use futures::{Stream, StreamExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Numbers in one hint.
const MOST: usize = 1_000;

/// The bells of this process's workers, and the way to other notifiers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hints {
    bus: Bus,
    me: Uuid,
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    workers: Mutex<HashMap<i64, Arc<Notify>>>,
    changed: Notify,
    replay: Notify,
}

impl Hints {
    /// Of one notifier.
    #[must_use]
    pub fn new(bus: Bus, me: Uuid) -> Self {
        Self { bus, me, inner: Arc::default() }
    }

    /// The bell of a destination's worker.
    #[must_use]
    pub fn bell(&self, destination: i64) -> Arc<Notify> {
        let mut workers = self.inner.workers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(workers.entry(destination).or_default())
    }

    /// Its worker has ended.
    pub fn forget(&self, destination: i64) {
        self.inner.workers.lock().unwrap_or_else(PoisonError::into_inner).remove(&destination);
    }

    /// Resolves when destinations have changed.
    pub async fn until_changed(&self) {
        self.inner.changed.notified().await;
    }

    /// Resolves when there is a new replay.
    pub async fn until_replay(&self) {
        self.inner.replay.notified().await;
    }

    /// These destinations have something due. Those that are served here know at once, others over the bus.
    pub async fn due(&self, mut destinations: HashSet<i64>) {
        {
            let workers = self.inner.workers.lock().unwrap_or_else(PoisonError::into_inner);
            destinations.retain(|number| {
                let here = workers.get(number);
                here.inspect(|bell| bell.notify_one()).is_none()
            });
        }
        if destinations.is_empty() {
            return;
        }
        let numbers: Vec<String> = destinations.iter().take(MOST).map(ToString::to_string).collect();
        self.tell("due", numbers.join(",")).await;
    }

    /// Destinations have changed.
    pub async fn changed(&self) {
        self.inner.changed.notify_one();
        self.tell("changed", self.me.to_string()).await;
    }

    /// There is a new replay. Whoever is asked does it.
    pub fn replay(&self) {
        self.inner.replay.notify_one();
    }

    async fn tell(&self, what: &str, text: String) {
        let subject = self.bus.subjects().notifier(what);
        if let Err(error) = self.bus.publish_bytes(subject, text.into()).await {
            tracing::debug!(%error, what, "a hint was lost");
        }
    }

    /// Passes on what other notifiers say, until shutdown.
    ///
    /// # Errors
    /// Where it cannot be listened to.
    pub async fn listen(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut due = self.subscribe("due").await?;
        let mut changed = self.subscribe("changed").await?;
        loop {
            tokio::select! {
                Some(text) = due.next() => self.ring(&text),
                Some(who) = changed.next() => if who != self.me.to_string() { self.inner.changed.notify_one() },
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    async fn subscribe(&self, what: &str) -> Result<impl Stream<Item = String> + Unpin + use<>, BusError> {
        let hints = self.bus.subscribe(self.bus.subjects().notifier(what)).await?;
        Ok(hints.map(|hint| String::from_utf8_lossy(&hint.payload).into_owned()))
    }

    fn ring(&self, numbers: &str) {
        let workers = self.inner.workers.lock().unwrap_or_else(PoisonError::into_inner);
        for number in numbers.split(',').filter_map(|text| text.parse::<i64>().ok()) {
            if let Some(bell) = workers.get(&number) {
                bell.notify_one();
            }
        }
    }
}
