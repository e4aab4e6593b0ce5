//! What the engine, the effects and the sweep need of the world. [`Live`] is the real one; the simulator has its own,
//! so that it runs these very decisions over time, stores and messages that it can break.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use errand_bus::{Bus, RequestError};
use errand_core::run::Run;
use errand_core::{Error, EventId, RunId, RunnerId, TaskId, Timestamp};
use errand_proto::v1;
use errand_store::{Db, Ledger, Outbox, StoreError};
use uuid::Uuid;

use crate::catalog::{Catalog, Compiled};
use crate::store::{Batch, OpenKey, Store};

/// How long one receiver of effects may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Now, by this machine's clock.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// See the module. Cheap to clone.
pub trait World: Clone + Send + Sync + 'static {
    /// Where the outbox keeps its events.
    type Ledger: Ledger;

    /// What time it is.
    fn now(&self) -> Timestamp;
    /// An id for an event.
    fn event_id(&self) -> EventId;
    /// Where events go.
    fn outbox(&self) -> &Outbox<Self::Ledger>;
    /// As [`Store::runs`].
    fn runs(&self, ids: &[RunId]) -> impl Future<Output = Result<Vec<Run>, StoreError>> + Send;
    /// As [`Store::open_keys`].
    fn open_keys(
        &self,
        after: Option<RunId>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<OpenKey>, StoreError>> + Send;
    /// As [`Store::commit`].
    fn commit(&self, batch: &mut Batch) -> impl Future<Output = Result<HashSet<RunId>, StoreError>> + Send;
    /// As [`Store::touch`].
    fn touch(&self, seen: &[(RunId, Timestamp)]) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// As [`Catalog::version`].
    fn task(&self, id: TaskId, version: u32) -> impl Future<Output = Result<Option<Arc<Compiled>>, Error>> + Send;
    /// Tells the session-pool who waits.
    fn acquire(
        &self,
        request: v1::AcquireRequest,
    ) -> impl Future<Output = Result<v1::AcquireResponse, RequestError>> + Send;
    /// Tells the session-pool who has enough.
    fn release(
        &self,
        request: v1::ReleaseRequest,
    ) -> impl Future<Output = Result<v1::ReleaseResponse, RequestError>> + Send;
    /// Has a runner execute.
    fn assign(
        &self,
        runner: RunnerId,
        request: v1::AssignRequest,
    ) -> impl Future<Output = Result<v1::AssignResponse, RequestError>> + Send;
    /// Has a runner stop an agent.
    fn stop(
        &self,
        runner: RunnerId,
        request: v1::StopRequest,
    ) -> impl Future<Output = Result<v1::StopResponse, RequestError>> + Send;
    /// Hands a user's answer to a runner.
    fn input(
        &self,
        runner: RunnerId,
        request: v1::InputRequest,
    ) -> impl Future<Output = Result<v1::InputResponse, RequestError>> + Send;
}

/// This machine, its store and its broker.
#[derive(Debug, Clone)]
pub struct Live {
    /// The broker.
    pub bus: Bus,
    /// Runs.
    pub store: Store,
    /// Their events.
    pub outbox: Outbox,
    /// Task versions.
    pub catalog: Arc<Catalog>,
}

impl World for Live {
    type Ledger = Db;

    fn now(&self) -> Timestamp {
        now()
    }

    fn event_id(&self) -> EventId {
        EventId::from_uuid(Uuid::now_v7())
    }

    fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    async fn runs(&self, ids: &[RunId]) -> Result<Vec<Run>, StoreError> {
        self.store.runs(ids).await
    }

    async fn open_keys(&self, after: Option<RunId>, limit: u32) -> Result<Vec<OpenKey>, StoreError> {
        self.store.open_keys(after, limit).await
    }

    async fn commit(&self, batch: &mut Batch) -> Result<HashSet<RunId>, StoreError> {
        self.store.commit(batch).await
    }

    async fn touch(&self, seen: &[(RunId, Timestamp)]) -> Result<(), StoreError> {
        self.store.touch(seen).await
    }

    async fn task(&self, id: TaskId, version: u32) -> Result<Option<Arc<Compiled>>, Error> {
        self.catalog.version(id, version).await
    }

    async fn acquire(&self, request: v1::AcquireRequest) -> Result<v1::AcquireResponse, RequestError> {
        self.bus.request_within(self.bus.subjects().pool("acquire"), &request, ANSWER).await
    }

    async fn release(&self, request: v1::ReleaseRequest) -> Result<v1::ReleaseResponse, RequestError> {
        self.bus.request_within(self.bus.subjects().pool("release"), &request, ANSWER).await
    }

    async fn assign(&self, runner: RunnerId, request: v1::AssignRequest) -> Result<v1::AssignResponse, RequestError> {
        self.bus.request_within(self.bus.subjects().runner(runner, "assign"), &request, ANSWER).await
    }

    async fn stop(&self, runner: RunnerId, request: v1::StopRequest) -> Result<v1::StopResponse, RequestError> {
        self.bus.request_within(self.bus.subjects().runner(runner, "stop"), &request, ANSWER).await
    }

    async fn input(&self, runner: RunnerId, request: v1::InputRequest) -> Result<v1::InputResponse, RequestError> {
        self.bus.request(self.bus.subjects().runner(runner, "input"), &request).await
    }
}
