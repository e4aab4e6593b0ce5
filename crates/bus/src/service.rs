//! Request/reply services: NATS micro (ADR-32 of nats-architecture-and-design), visible in `$SRV.INFO`.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::service::ServiceExt;
use bytes::Bytes;
use errand_core::{Error, ErrorCode};
use errand_proto::v1;
use futures::StreamExt;
use futures::future::BoxFuture;
use prost::Message;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{Bus, BusError};

/// Set on an answer that is an error; its body is an `errand.v1.Error`.
pub(crate) const ERROR_HEADER: &str = "Nats-Service-Error";
const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";

type Handler = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> + Send + Sync>;

enum Failure {
    /// The request cannot be read.
    Undecodable(prost::DecodeError),
    /// The handler says no.
    Refused(Error),
}

struct Endpoint {
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
    endpoints: Vec<Endpoint>,
}

/// A running service. Stop it, or its requests go unanswered at the end.
pub struct Service {
    inner: async_nats::service::Service,
    taking: CancellationToken,
    tracker: TaskTracker,
}

impl Service {
    /// Begins to describe a service.
    #[must_use]
    pub fn builder(bus: &Bus, name: &'static str, description: &'static str) -> ServiceBuilder {
        ServiceBuilder { bus: bus.clone(), name, description, endpoints: Vec::new() }
    }

    /// Takes no further requests, and waits at most so long for those under way.
    pub async fn stop(self, patience: Duration) {
        self.taking.cancel();
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_err() {
            tracing::warn!("requests were still under way when the service stopped");
        }
        if let Err(error) = self.inner.stop().await {
            tracing::debug!(%error, "the service was gone already");
        }
    }
}

impl ServiceBuilder {
    /// Adds a method. At most `in_flight` requests are handled at once; the others wait, and those beyond the
    /// subscription's capacity are answered by nobody.
    #[must_use]
    pub fn endpoint<Q, A, F, Fut>(mut self, name: &str, subject: String, in_flight: usize, handler: F) -> Self
    where
        Q: Message + Default + 'static,
        A: Message + 'static,
        F: Fn(Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, Error>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |payload: Bytes| {
            let answer = Q::decode(payload).map(&handler);
            Box::pin(async move {
                match answer {
                    Ok(answer) => answer.await.map(|answer| answer.encode_to_vec().into()).map_err(Failure::Refused),
                    Err(error) => Err(Failure::Undecodable(error)),
                }
            })
        });
        self.endpoints.push(Endpoint { name: name.to_owned(), subject, in_flight, handler });
        self
    }

    /// Starts to serve. Instances of one name share the requests.
    ///
    /// # Errors
    /// [`BusError::Listen`].
    pub async fn start(self) -> Result<Service, BusError> {
        let listen = |subject: &str, what: String| BusError::Listen { subject: subject.to_owned(), what };
        let inner = self
            .bus
            .client()
            .service_builder()
            .description(self.description)
            .queue_group(self.name)
            .metadata(HashMap::from([("prefix".to_owned(), self.bus.subjects().prefix().to_owned())]))
            .start(self.name, env!("CARGO_PKG_VERSION"))
            .await
            .map_err(|error| listen(self.name, error.to_string()))?;
        let (taking, tracker) = (CancellationToken::new(), TaskTracker::new());
        for endpoint in self.endpoints {
            let requests = inner
                .endpoint_builder()
                .name(&endpoint.name)
                .add(&endpoint.subject)
                .await
                .map_err(|error| listen(&endpoint.subject, error.to_string()))?;
            tokio::spawn(serve(self.bus.clone(), endpoint, requests, taking.clone(), tracker.clone()));
        }
        Ok(Service { inner, taking, tracker })
    }
}

async fn serve(
    bus: Bus,
    endpoint: Endpoint,
    mut requests: async_nats::service::endpoint::Endpoint,
    taking: CancellationToken,
    tracker: TaskTracker,
) {
    let permits = Arc::new(Semaphore::new(endpoint.in_flight));
    loop {
        // The permit first: what cannot be handled now waits at the broker's side of the channel.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let request = tokio::select! {
            request = requests.next() => request,
            () = taking.cancelled() => None,
        };
        let Some(request) = request else { return };
        let (bus, handler, name) = (bus.clone(), Arc::clone(&endpoint.handler), endpoint.name.clone());
        tracker.spawn(async move {
            answer(&bus, &handler, &name, request).await;
            drop(permit);
        });
    }
}

async fn answer(bus: &Bus, handler: &Handler, name: &str, request: async_nats::service::Request) {
    let message = &request.message;
    let error = match handler(message.payload.clone()).await {
        Ok(payload) => {
            if message.reply.is_some() && request.respond(Ok(payload)).await.is_err() {
                tracing::debug!(name, "an answer could not be sent; the asker will ask again");
            }
            return;
        }
        Err(Failure::Refused(error)) => error,
        Err(Failure::Undecodable(error)) => {
            let reason = format!("{name}: the request cannot be read: {error}");
            let letter = bus.dead_letter("request", &reason, &message.subject, message.payload.clone());
            if let Err(error) = letter.await {
                tracing::error!(%error, reason, "a dead letter could not be kept");
            }
            ErrorCode::BODY_INVALID.with(reason)
        }
    };
    let Some(reply) = message.reply.clone() else { return };
    let mut headers = HeaderMap::new();
    headers.insert(ERROR_HEADER, error.code.code);
    headers.insert(ERROR_CODE_HEADER, error.code.http.to_string().as_str());
    let body = v1::Error::from(&error).encode_to_vec();
    if bus.client().publish_with_headers(reply, headers, body.into()).await.is_err() {
        tracing::debug!(name, "an error could not be sent; the asker will ask again");
    }
}
