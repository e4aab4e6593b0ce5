//! The line between a process and the simulated world: whatever a process wants of clock, store, broker and others it
//! puts here as a [`Call`], and the world answers when, and if, it sees fit. So every await of a service at which
//! something is outside is a place where it can be delayed, fail, or die.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use errand_bus::{BusError, RequestError};
use errand_core::run::{Decision, Run};
use errand_core::{Error, RunId, RunnerId, SessionId, Tenant, Timestamp};
use errand_proto::v1;
use errand_store::{Extent, StoreError, Stored};
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::rng::Rng;
use crate::stores::{Base, Stores};

/// The answer to a request, whatever its type.
pub(crate) type Reply = Box<dyn Any + Send>;
/// Something that reaches a process: run it, then let the process go on.
pub(crate) type Wake = Box<dyn FnOnce() + Send>;
/// What a call of the store does there; gives what then reaches the process.
pub(crate) type StoreWork = Box<dyn FnOnce(&mut Stores, Fate) -> Wake + Send>;

/// What becomes of a call of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is done.
    Done,
    /// It is not done, and that is told.
    Refused,
    /// It is done, and the answer is an error: its outcome is unknown.
    Unknown,
}

/// To whom a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    Dispatcher,
    Pool,
    Runner(RunnerId),
}

/// What is asked of others.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Submit(Box<Run>),
    FromStream(Box<Run>),
    Cancel(Tenant, RunId),
    Review(Tenant, RunId, Decision),
    Interact(Tenant, RunId, Bytes),
    Grant(v1::GrantRequest),
    Lost(v1::LostRequest),
    Report(v1::ReportRequest),
    Expire(v1::ExpireRequest),
    Leases(v1::CheckLeasesRequest),
    Deadlines(String),
    Acquire(v1::AcquireRequest),
    Release(v1::ReleaseRequest),
    Register(v1::RegisterRequest),
    Heartbeat(v1::HeartbeatRequest),
    SessionLost(v1::SessionLostRequest),
    Deregister(v1::DeregisterRequest),
    EndSession(Tenant, SessionId),
    Drain(RunnerId),
    Start(v1::StartSessionRequest),
    TearDown(v1::TearDownSessionRequest),
    Assign(v1::AssignRequest),
    Stop(v1::StopRequest),
    Input(v1::InputRequest),
}

/// What is told to whoever listens.
#[derive(Debug, Clone)]
pub(crate) enum Note {
    Activity(v1::Activity),
    Hello(String),
}

/// What a connection to the stream is asked.
pub(crate) enum StreamAsk {
    Connect(oneshot::Sender<Result<u64, BusError>>),
    Extent(oneshot::Sender<Result<Extent, BusError>>),
    IdAt(u64, oneshot::Sender<Result<Option<String>, BusError>>),
}

/// What a process wants of the world.
pub(crate) enum Call {
    Store { what: String, work: StoreWork },
    Request { to: To, request: Request, within: i64, reply: oneshot::Sender<Result<Reply, RequestError>> },
    Answer { token: u64, answer: Result<Reply, Error> },
    Event { link: u64, event: Stored, ack: oneshot::Sender<Result<u64, BusError>> },
    Stream { link: u64, ask: StreamAsk },
    Note(Note),
    TakeTurn(Base, oneshot::Sender<bool>),
    GiveTurn(Base),
    Started,
    Broken(String),
    Died(String),
}

struct Inner {
    now: AtomicI64,
    /// Which broker this process is connected to; 0: none.
    broker: AtomicU64,
    connections: watch::Sender<u64>,
    calm: AtomicBool,
    shared: Mutex<Shared>,
}

struct Shared {
    calls: Vec<Call>,
    rng: Rng,
    hellos: Vec<mpsc::UnboundedSender<()>>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Line(Arc<Inner>);

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl Line {
    pub(crate) fn new(rng: Rng) -> Self {
        Self(Arc::new(Inner {
            now: AtomicI64::new(0),
            broker: AtomicU64::new(0),
            connections: watch::channel(0).0,
            calm: AtomicBool::new(false),
            shared: Mutex::new(Shared { calls: Vec::new(), rng, hellos: Vec::new() }),
        }))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What time it is to this process.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.0.now.load(Ordering::Relaxed))
    }

    pub(crate) fn set_now(&self, now_ms: i64) {
        self.0.now.store(now_ms, Ordering::Relaxed);
    }

    /// An id of now.
    pub(crate) fn uuid(&self) -> Uuid {
        let now = self.now().0;
        self.shared().rng.uuid(now)
    }

    /// A stream of numbers that depends on the process alone.
    pub(crate) fn fork(&self) -> Rng {
        self.shared().rng.fork()
    }

    pub(crate) fn push(&self, call: Call) {
        self.shared().calls.push(call);
    }

    pub(crate) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.shared().calls)
    }

    /// The broker that this process is connected to.
    pub(crate) fn broker(&self) -> Option<u64> {
        let broker = self.0.broker.load(Ordering::Relaxed);
        (broker > 0).then_some(broker)
    }

    pub(crate) fn connect(&self, broker: Option<u64>) {
        let before = self.0.broker.swap(broker.unwrap_or(0), Ordering::Relaxed);
        if broker.is_some_and(|broker| broker != before) {
            self.0.connections.send_modify(|count| *count += 1);
        }
    }

    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        self.0.connections.subscribe()
    }

    /// From now on agents are to end soon.
    pub(crate) fn calm_down(&self) {
        self.0.calm.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.0.calm.load(Ordering::Relaxed)
    }

    pub(crate) fn listen_to_hellos(&self) -> mpsc::UnboundedReceiver<()> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.shared().hellos.push(sender);
        receiver
    }

    pub(crate) fn hello(&self) {
        for listener in &self.shared().hellos {
            // Who has stopped to listen does not mind.
            let _ = listener.send(());
        }
    }

    /// Does something in the store.
    pub(crate) fn store<T: Send + 'static>(
        &self,
        what: String,
        work: impl FnOnce(&mut Stores) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (sender, answer) = oneshot::channel();
        let away = || StoreError::Database(sqlx::Error::PoolTimedOut);
        let work = move |stores: &mut Stores, fate| -> Wake {
            let result = match fate {
                Fate::Done => work(stores),
                Fate::Refused => Err(away()),
                Fate::Unknown => work(stores).and_then(|_| Err(away())),
            };
            Box::new(move || drop(sender.send(result)))
        };
        self.push(Call::Store { what, work: Box::new(work) });
        // A process that is dead waits for ever.
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(away())) })
    }

    /// Asks somebody.
    pub(crate) fn request<A: 'static>(
        &self,
        to: To,
        request: Request,
        within: i64,
    ) -> impl Future<Output = Result<A, RequestError>> + Send + use<A> {
        let (reply, answer) = oneshot::channel();
        self.push(Call::Request { to, request, within, reply });
        async move {
            let answer = answer.await.unwrap_or_else(|_| Err(RequestError::TimedOut("nobody".into())))?;
            answer.downcast::<A>().map(|answer| *answer).map_err(|_| RequestError::TimedOut("another answer".into()))
        }
    }
}
