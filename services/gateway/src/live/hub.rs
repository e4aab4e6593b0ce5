//! One follower of the event stream hands each event to those who listen. It follows only while somebody does. Each
//! listener has a queue of its own; one that is full has lost its place, and ends: its client comes back with the id of
//! the last event that it had.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use errand_bus::{Bus, Delivery, FollowFrom, follow};
use errand_core::{Error, ErrorCode, RunId, Tenant};
use errand_proto::{json, v1};
use futures::StreamExt;
use prost::Message;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Events that wait for one listener.
const QUEUE: usize = 128;
/// How long the follower goes on without a listener: the next one mostly comes soon.
const LINGER: Duration = Duration::from_secs(5);
/// How long a listener waits for the follower to begin.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many may listen.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All together.
    pub streams: usize,
    /// One tenant's.
    pub of_tenant: usize,
}

/// An event that was heard.
#[derive(Debug)]
pub struct Heard {
    /// Its place in the stream.
    pub sequence: u64,
    /// The event.
    pub event: v1::Event,
    frame: OnceLock<Bytes>,
}

impl Heard {
    /// An event of the stream.
    #[must_use]
    pub fn of(delivery: &Delivery) -> Option<Self> {
        match v1::Event::decode(delivery.payload.clone()) {
            Ok(event) => Some(Self { sequence: delivery.stream_sequence, event, frame: OnceLock::new() }),
            Err(error) => {
                tracing::warn!(%error, subject = delivery.subject, "an event cannot be read");
                None
            }
        }
    }

    /// As it is sent to all of its listeners, written once.
    #[must_use]
    pub fn frame(&self) -> Bytes {
        self.frame.get_or_init(|| frame(&self.event)).clone()
    }
}

/// An event as a server-sent event.
#[must_use]
pub(super) fn frame(event: &v1::Event) -> Bytes {
    // JSON has no line breaks outside of strings, and escapes those within.
    let mut frame = format!("id: {}\nevent: {}\ndata: ", event.id, event.r#type).into_bytes();
    frame.extend(json::event_text(event));
    frame.extend(b"\n\n");
    frame.into()
}

/// What to listen to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// All events of a tenant.
    Tenant(Tenant),
    /// One run's events.
    Run(Tenant, RunId),
}

impl Topic {
    const fn tenant(&self) -> &Tenant {
        match self {
            Self::Tenant(tenant) | Self::Run(tenant, _) => tenant,
        }
    }
}

type Queues = HashMap<u64, mpsc::Sender<Arc<Heard>>>;

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// Open streams, listeners among them.
    seats: usize,
    of_tenant: HashMap<Tenant, usize>,
    topics: HashMap<Topic, Queues>,
}

/// See the module.
#[derive(Debug)]
pub struct Hub {
    bus: Bus,
    limits: Limits,
    inner: Mutex<Inner>,
    wake: Notify,
    /// Whether what is published from now on is heard.
    follows: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

/// A place among the listeners; given up when it is dropped.
#[derive(Debug)]
pub struct Listener {
    hub: Arc<Hub>,
    topic: Topic,
    id: u64,
    queue: mpsc::Receiver<Arc<Heard>>,
    _seat: Seat,
}

/// One of the streams that may be open; given up when it is dropped.
#[derive(Debug)]
pub struct Seat {
    hub: Arc<Hub>,
    tenant: Tenant,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.stand_up(&self.tenant);
    }
}

impl Listener {
    /// The next event; none: it was too slow, or the gateway ends.
    pub async fn next(&mut self) -> Option<Arc<Heard>> {
        self.queue.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.hub.leave(&self.topic, self.id);
    }
}

impl Hub {
    /// Nobody listens yet.
    #[must_use]
    pub fn new(bus: Bus, limits: Limits, metrics: Arc<Metrics>) -> Self {
        let (follows, _) = watch::channel(false);
        Self { bus, limits, inner: Mutex::default(), wake: Notify::new(), follows, metrics }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens: what is published after this returns is heard.
    ///
    /// # Errors
    /// `api`/`unavailable` where too many listen, or the broker is away.
    pub async fn listen(self: &Arc<Self>, topic: Topic) -> Result<Listener, Error> {
        let listener = self.join(topic)?;
        let mut follows = self.follows.subscribe();
        let in_time = tokio::time::timeout(PATIENCE, follows.wait_for(|follows| *follows)).await;
        if !matches!(in_time, Ok(Ok(_))) {
            return Err(ErrorCode::API_UNAVAILABLE.with("the event stream is not there; try again"));
        }
        Ok(listener)
    }

    /// Takes one of the places that there are for open streams.
    ///
    /// # Errors
    /// `api`/`unavailable` where all are taken.
    pub fn seat(self: &Arc<Self>, tenant: &Tenant) -> Result<Seat, Error> {
        let mut inner = self.inner();
        let of_tenant = inner.of_tenant.get(tenant).copied().unwrap_or(0);
        if inner.seats >= self.limits.streams || of_tenant >= self.limits.of_tenant {
            return Err(ErrorCode::API_UNAVAILABLE.with("too many live streams are open; close some, or try later"));
        }
        inner.seats += 1;
        *inner.of_tenant.entry(tenant.clone()).or_default() += 1;
        drop(inner);
        self.metrics.streams.inc();
        Ok(Seat { hub: Arc::clone(self), tenant: tenant.clone() })
    }

    fn stand_up(&self, tenant: &Tenant) {
        let mut inner = self.inner();
        if let Some(count) = inner.of_tenant.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                inner.of_tenant.remove(tenant);
            }
        }
        inner.seats -= 1;
        drop(inner);
        self.metrics.streams.dec();
    }

    fn join(self: &Arc<Self>, topic: Topic) -> Result<Listener, Error> {
        let seat = self.seat(topic.tenant())?;
        let mut inner = self.inner();
        let (sender, queue) = mpsc::channel(QUEUE);
        let id = inner.next;
        inner.next += 1;
        inner.topics.entry(topic.clone()).or_default().insert(id, sender);
        drop(inner);
        self.wake.notify_one();
        Ok(Listener { hub: Arc::clone(self), topic, id, queue, _seat: seat })
    }

    fn leave(&self, topic: &Topic, id: u64) {
        let mut inner = self.inner();
        if let Some(queues) = inner.topics.get_mut(topic) {
            queues.remove(&id);
            if queues.is_empty() {
                inner.topics.remove(topic);
            }
        }
    }

    /// Follows while somebody listens, until shutdown.
    ///
    /// # Errors
    /// Where the broker refuses for good.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            tokio::select! {
                followed = self.follow() => followed?,
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Follows until nobody has listened for a while.
    async fn follow(&self) -> anyhow::Result<()> {
        let deliveries = follow(&self.bus, self.bus.subjects().events_of(None), FollowFrom::New).await;
        let mut deliveries = match deliveries {
            Ok(deliveries) => deliveries,
            Err(error @ errand_bus::BusError::Refused { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::debug!(%error, "the event stream cannot be followed yet");
                tokio::time::sleep(Duration::from_millis(100)).await;
                self.wake.notify_one();
                return Ok(());
            }
        };
        self.follows.send_replace(true);
        let mut look = tokio::time::interval(LINGER);
        look.tick().await;
        let mut lonely = false;
        loop {
            let delivery = tokio::select! {
                delivery = deliveries.next() => delivery,
                _ = look.tick() => {
                    if self.may_end(&mut lonely) { return Ok(()) }
                    continue;
                }
            };
            match delivery {
                Some(Ok(delivery)) => self.hand_out(&delivery),
                Some(Err(error)) => return Err(error.into()),
                None => anyhow::bail!("the event stream has ended"),
            }
        }
    }

    /// Whether nobody has listened at two looks in a row. Said under the lock, so that whoever joins knows.
    fn may_end(&self, lonely: &mut bool) -> bool {
        let inner = self.inner();
        if !inner.topics.is_empty() {
            *lonely = false;
            return false;
        }
        if !std::mem::replace(lonely, true) {
            return false;
        }
        self.follows.send_replace(false);
        true
    }

    fn hand_out(&self, delivery: &Delivery) {
        let Some((tenant, run)) = self.route(&delivery.subject) else { return };
        let topics = [Some(Topic::Tenant(tenant.clone())), run.map(|run| Topic::Run(tenant, run))];
        let mut inner = self.inner();
        let mut heard = None;
        for topic in topics.into_iter().flatten() {
            let Some(queues) = inner.topics.get_mut(&topic) else { continue };
            if heard.is_none() {
                heard = Heard::of(delivery).map(Arc::new);
            }
            let Some(heard) = &heard else { return };
            queues.retain(|_, queue| match queue.try_send(Arc::clone(heard)) {
                Ok(()) => true,
                Err(_) => {
                    self.metrics.dropped.inc();
                    false
                }
            });
        }
    }

    /// `<prefix>.event.<tenant>.<object>.<action>.<id>`: whose event it is, and which run's.
    fn route(&self, subject: &str) -> Option<(Tenant, Option<RunId>)> {
        let rest = subject.strip_prefix(self.bus.subjects().prefix())?.strip_prefix(".event.")?;
        let mut words = rest.split('.');
        let tenant = words.next()?.parse().ok()?;
        let is_run = words.next()? == "task_run";
        let run = words.nth(1).filter(|_| is_run).and_then(|id| id.parse().ok());
        Some((tenant, run))
    }
}
