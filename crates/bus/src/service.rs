//! Request/reply services that speak NATS micro (ADR-32 of nats-architecture-and-design): `nats micro ls` shows them.
//!
//! The client library's own services lose what is on its way when they stop, and do not count errors that carry a
//! body; so the few messages of the protocol are in [`discovery`], and subscriptions are drained here.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::header::HeaderMap;
use async_nats::{Message as Request, Subscriber};
use bytes::Bytes;
use errand_core::{Error, ErrorCode};
use errand_proto::v1;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{Bus, BusError};
use crate::trace;

mod discovery;

use discovery::{Endpoint, Instance};

/// Set on an answer that is an error; its body is an `errand.v1.Error`.
pub(crate) const ERROR_HEADER: &str = "Nats-Service-Error";
const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";
/// How long a request waits for a turn. Then the service is overloaded, and says so to this request and to all that
/// find no turn free, until one does.
const TURN: Duration = Duration::from_millis(500);

/// How a subscription ends without losing what the broker has sent by then: it is told to end after so many more
/// messages, which it and the client count alike, and after fewer where they do not come within [`STEP`]. To
/// unsubscribe at once, or to drain as the client library does (0.51 forgets the subscription before the broker has
/// heard of it), leaves requests under way unanswered.
const LAST: [u64; 3] = [256, 16, 1];
const STEP: Duration = Duration::from_millis(60);

type Handler = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> + Send + Sync>;

enum Failure {
    /// The request cannot be read.
    Undecodable(prost::DecodeError),
    /// The handler says no.
    Refused(Error),
}

struct Method {
    name: String,
    subject: String,
    in_flight: usize,
    handler: Handler,
}

/// A service on its way.
pub struct ServiceBuilder {
    bus: Bus,
    name: &'static str,
    description: &'static str,
    methods: Vec<Method>,
}

/// A running service. Stop it, or its requests go unanswered at the end.
#[derive(Debug)]
pub struct Service {
    bus: Bus,
    stopping: CancellationToken,
    ended: CancellationToken,
    tracker: TaskTracker,
}

impl Service {
    /// Begins to describe a service. Its name may hold letters, digits, `-` and `_`.
    #[must_use]
    pub fn builder(bus: &Bus, name: &'static str, description: &'static str) -> ServiceBuilder {
        ServiceBuilder { bus: bus.clone(), name, description, methods: Vec::new() }
    }

    /// Resolves when a method is served no more although the service was not stopped: the connection is closed.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Takes no further requests, answers those that were on their way, and waits at most so long for them.
    pub async fn stop(self, patience: Duration) {
        self.stopping.cancel();
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_err() {
            tracing::warn!("requests were still under way when the service stopped");
        }
        // When this returns, the broker sends nothing here: who asks now goes to another instance.
        if self.bus.is_connected()
            && let Err(error) = self.bus.round_trip().await
        {
            tracing::debug!(%error, "the broker was away when the service stopped");
        }
    }
}

impl ServiceBuilder {
    /// Adds a method. At most `in_flight` requests are handled at once. Others wait for a turn, and are told that the
    /// service is not available where that takes too long.
    #[must_use]
    pub fn endpoint<Q, A, F, Fut>(self, name: &str, subject: String, in_flight: usize, handler: F) -> Self
    where
        Q: Message + Default + 'static,
        A: Message + 'static,
        F: Fn(Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, Error>> + Send + 'static,
    {
        self.add(name, subject, in_flight, move |payload: Bytes| {
            let answer = Q::decode(payload).map(&handler);
            async move {
                match answer {
                    Ok(answer) => answer.await.map(|answer| answer.encode_to_vec().into()).map_err(Failure::Refused),
                    Err(error) => Err(Failure::Undecodable(error)),
                }
            }
        })
    }

    /// Adds a method whose requests and answers are bytes as they are.
    #[must_use]
    pub fn endpoint_raw<F, Fut>(self, name: &str, subject: String, in_flight: usize, handler: F) -> Self
    where
        F: Fn(Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, Error>> + Send + 'static,
    {
        self.add(name, subject, in_flight, move |payload| {
            handler(payload).map(|answer| answer.map_err(Failure::Refused))
        })
    }

    fn add<F, Fut>(mut self, name: &str, subject: String, in_flight: usize, handler: F) -> Self
    where
        F: Fn(Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, Failure>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |payload| handler(payload).boxed());
        self.methods.push(Method { name: name.to_owned(), subject, in_flight: in_flight.max(1), handler });
        self
    }

    /// Starts to serve. Instances of one name share the requests.
    ///
    /// # Errors
    /// [`BusError::Listen`].
    pub async fn start(self) -> Result<Service, BusError> {
        let Self { bus, name, description, methods } = self;
        let (stopping, ended, tracker) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let mut endpoints = Vec::new();
        for method in methods {
            let requests = bus.client().queue_subscribe(method.subject.clone(), name.to_owned()).await;
            let requests = requests
                .map_err(|error| BusError::Listen { subject: method.subject.clone(), what: error.to_string() })?;
            let endpoint = Arc::new(Endpoint::new(&method.name, &method.subject, name));
            endpoints.push(Arc::clone(&endpoint));
            let serving = Serving {
                permits: Arc::new(Semaphore::new(method.in_flight)),
                overloaded: false,
                handler: method.handler,
                endpoint,
                bus: bus.clone(),
                tracker: tracker.clone(),
            };
            tracker.spawn(serving.run(requests, stopping.clone(), ended.clone()));
        }
        let prefix = bus.subjects().prefix().to_owned();
        let instance = Instance::new(name, description, prefix, endpoints);
        discovery::answer(&bus, instance, stopping.clone(), &tracker).await?;
        // What comes back on the same connection says that the broker knows the subscriptions.
        bus.round_trip().await?;
        Ok(Service { bus, stopping, ended, tracker })
    }
}

/// One method at work.
struct Serving {
    permits: Arc<Semaphore>,
    overloaded: bool,
    handler: Handler,
    endpoint: Arc<Endpoint>,
    bus: Bus,
    tracker: TaskTracker,
}

impl Serving {
    async fn run(mut self, mut requests: Subscriber, stopping: CancellationToken, ended: CancellationToken) {
        let mut received = 0;
        loop {
            let request = tokio::select! {
                request = requests.next() => request,
                () = stopping.cancelled() => break,
            };
            let Some(request) = request else {
                tracing::error!(subject = self.endpoint.subject(), "served no more: the connection is closed");
                ended.cancel();
                return;
            };
            received += 1;
            self.admit(request).await;
        }
        for more in LAST {
            if requests.unsubscribe_after(received + more).await.is_err() {
                return;
            }
            let until = tokio::time::Instant::now() + STEP;
            while let Ok(request) = tokio::time::timeout_at(until, requests.next()).await {
                let Some(request) = request else { return };
                received += 1;
                self.admit(request).await;
            }
        }
        if requests.unsubscribe().await.is_ok() {
            while let Some(request) = requests.next().await {
                self.admit(request).await;
            }
        }
    }

    async fn admit(&mut self, request: Request) {
        // The permit first, so that no more tasks are made than may work.
        let permit = self.turn().await;
        self.serve(request, permit);
    }

    async fn turn(&mut self) -> Option<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.permits);
        let permit = match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) if self.overloaded => None,
            Err(_) => tokio::time::timeout(TURN, permits.acquire_owned()).await.ok().and_then(Result::ok),
        };
        self.overloaded = permit.is_none();
        permit
    }

    fn serve(&self, mut request: Request, permit: Option<OwnedSemaphorePermit>) {
        let (bus, endpoint) = (self.bus.clone(), Arc::clone(&self.endpoint));
        let Some(permit) = permit else {
            let error = ErrorCode::API_UNAVAILABLE.with("the service has too much to do; try again later");
            endpoint.count(Duration::ZERO, Some(&error));
            self.tracker.spawn(async move { reply_error(&bus, &request, &error).await });
            return;
        };
        let handler = Arc::clone(&self.handler);
        self.tracker.spawn(async move {
            let started = Instant::now();
            let asked = trace::from_headers(request.headers.as_ref());
            let name = bus.subjects().endpoint(&request.subject);
            let mut span = trace::Span::child(asked, trace::Kind::Handle, name);
            // Not kept until the answer is out: of large requests there may be many.
            let payload = std::mem::take(&mut request.payload);
            let size = payload.len();
            let handling = trace::scope(span.traceparent(), async move { handler(payload).await });
            // A handler that panics must not leave its asker waiting.
            let error = match AssertUnwindSafe(handling).catch_unwind().await {
                Ok(Ok(payload)) if payload.len() > bus.max_message_bytes() => {
                    Some(ErrorCode::API_ERROR.with("the answer is larger than the broker takes; ask for less"))
                }
                Ok(Ok(payload)) => {
                    reply(&bus, &request, None, payload).await;
                    None
                }
                Ok(Err(failure)) => Some(tell(&bus, &endpoint, &request.subject, size, failure).await),
                Err(_panic) => Some(ErrorCode::API_ERROR.with("the service failed at this request")),
            };
            if let Some(error) = &error {
                span.fail(error.code.code);
                reply_error(&bus, &request, error).await;
            }
            drop(span);
            endpoint.count(started.elapsed(), error.as_ref());
            drop(permit);
        });
    }
}

/// The error that the asker gets.
async fn tell(bus: &Bus, endpoint: &Endpoint, subject: &str, size: usize, failure: Failure) -> Error {
    let error = match failure {
        Failure::Refused(error) => return error,
        Failure::Undecodable(error) => error,
    };
    let reason = format!("{}: the request cannot be read: {error}", endpoint.name());
    // Without the bytes: its asker has them, and they may hold what must not be kept, a password or an MFA code.
    let kept = format!("{size} bytes");
    if let Err(error) = bus.dead_letter("request", &reason, subject, kept.into()).await {
        tracing::error!(%error, reason, "a dead letter could not be kept");
    }
    ErrorCode::BODY_INVALID.with(reason)
}

async fn reply_error(bus: &Bus, request: &Request, error: &Error) {
    let mut headers = HeaderMap::new();
    headers.insert(ERROR_HEADER, error.code.code);
    headers.insert(ERROR_CODE_HEADER, error.code.http.to_string());
    let body = v1::Error::from(error).encode_to_vec();
    reply(bus, request, Some(headers), body.into()).await;
}

async fn reply(bus: &Bus, request: &Request, headers: Option<HeaderMap>, payload: Bytes) {
    let Some(to) = request.reply.clone() else { return };
    let sent = match headers {
        None => bus.client().publish(to, payload).await,
        Some(headers) => bus.client().publish_with_headers(to, headers, payload).await,
    };
    if let Err(error) = sent {
        tracing::debug!(%error, subject = %request.subject, "an answer could not be sent; the asker will ask again");
    }
}
