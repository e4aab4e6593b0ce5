use std::future::Future;
use std::time::Duration;

use errand_bus::{Bus, Courier, RequestError};
use errand_core::run::{Lease, LostReason};
use errand_core::{Error, ErrorCode, RunId, RunnerId, SessionId};
use errand_proto::v1;
use prost::Message;
use tokio_util::task::TaskTracker;

use crate::engine::{Effects, Handle, Input};
use crate::pool::{Grant, Loss, Start};

/// What goes to the dispatcher in one request at most.
const BATCH: usize = 500;
/// Losses in one: each has a message, of 2 KiB at most.
const LOSSES: usize = 250;
/// How long the dispatcher may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a runner may take to tear a session down, until it is asked again.
const TEAR_DOWN: Duration = Duration::from_secs(70);

/// Those whom the pool speaks to.
pub trait Others: Clone + Send + Sync + 'static {
    /// Tells the dispatcher of grants.
    fn grant(&self, request: v1::GrantRequest) -> impl Future<Output = Result<v1::GrantResponse, RequestError>> + Send;
    /// Tells the dispatcher of losses.
    fn lost(&self, request: v1::LostRequest) -> impl Future<Output = Result<v1::LostResponse, RequestError>> + Send;
    /// Asks the dispatcher which leases are held still.
    fn leases(
        &self,
        request: v1::CheckLeasesRequest,
    ) -> impl Future<Output = Result<v1::CheckLeasesResponse, RequestError>> + Send;
    /// Has a runner make a session.
    fn start(
        &self,
        runner_id: RunnerId,
        request: v1::StartSessionRequest,
    ) -> impl Future<Output = Result<v1::StartSessionResponse, RequestError>> + Send;
    /// Has a runner tear a session down.
    fn tear_down(
        &self,
        runner_id: RunnerId,
        request: v1::TearDownSessionRequest,
    ) -> impl Future<Output = Result<v1::TearDownSessionResponse, RequestError>> + Send;
    /// Whether the broker is there.
    fn reachable(&self) -> bool;
}

/// Those on the bus.
#[derive(Debug, Clone)]
pub struct Live {
    /// The broker.
    pub bus: Bus,
    /// How long a runner may take to make a session.
    pub start_timeout: Duration,
}

impl Live {
    async fn ask<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A, RequestError> {
        self.bus.request_within(self.bus.subjects().run(method), request, ANSWER).await
    }
}

impl Others for Live {
    async fn grant(&self, request: v1::GrantRequest) -> Result<v1::GrantResponse, RequestError> {
        self.ask("grant", &request).await
    }

    async fn lost(&self, request: v1::LostRequest) -> Result<v1::LostResponse, RequestError> {
        self.ask("lost", &request).await
    }

    async fn leases(&self, request: v1::CheckLeasesRequest) -> Result<v1::CheckLeasesResponse, RequestError> {
        self.ask("leases", &request).await
    }

    async fn start(
        &self,
        runner_id: RunnerId,
        request: v1::StartSessionRequest,
    ) -> Result<v1::StartSessionResponse, RequestError> {
        let subject = self.bus.subjects().runner(runner_id, "start_session");
        self.bus.request_within(subject, &request, self.start_timeout).await
    }

    async fn tear_down(
        &self,
        runner_id: RunnerId,
        request: v1::TearDownSessionRequest,
    ) -> Result<v1::TearDownSessionResponse, RequestError> {
        let subject = self.bus.subjects().runner(runner_id, "tear_down_session");
        self.bus.request_within(subject, &request, TEAR_DOWN).await
    }

    fn reachable(&self) -> bool {
        self.bus.is_connected()
    }
}

/// Tells dispatcher and runners what the engine has decided, and the engine what they say.
#[derive(Debug)]
pub struct Outgoing<O> {
    others: O,
    engine: Handle,
    grants: Courier<Grant>,
    losses: Courier<Loss>,
    checks: Courier<(RunId, Lease)>,
    /// Never more than the runners have room for sessions.
    requests: TaskTracker,
}

impl<O: Others> Outgoing<O> {
    /// To these, from this engine.
    #[must_use]
    pub fn new(others: O, engine: Handle, epoch: String) -> Self {
        let to_dispatcher = Dispatcher { others: others.clone(), engine: engine.clone(), epoch };
        let [for_grants, for_losses, for_checks] = std::array::from_fn(|_| to_dispatcher.clone());
        Self {
            others,
            engine,
            grants: Courier::spawn("grants", BATCH, move |items| {
                let dispatcher = for_grants.clone();
                async move { dispatcher.deliver(items, Dispatcher::grant).await }
            }),
            losses: Courier::spawn("losses", LOSSES, move |items| {
                let dispatcher = for_losses.clone();
                async move { dispatcher.deliver(items, Dispatcher::lost).await }
            }),
            checks: Courier::spawn("checks", BATCH, move |items| {
                let dispatcher = for_checks.clone();
                async move { dispatcher.deliver(items, Dispatcher::check).await }
            }),
            requests: TaskTracker::new(),
        }
    }
}

impl<O: Others> Effects for Outgoing<O> {
    fn grant(&self, grant: Grant) {
        self.grants.offer(grant);
    }

    fn lost(&self, loss: Loss) {
        self.losses.offer(loss);
    }

    fn check(&self, run_id: RunId, lease: Lease) {
        self.checks.offer((run_id, lease));
    }

    fn start(&self, start: Start) {
        let (others, engine) = (self.others.clone(), self.engine.clone());
        self.requests.spawn(async move {
            let session_id = start.session_id;
            let request = v1::StartSessionRequest {
                session_id: session_id.to_string(),
                tenant: start.tenant.map(String::from).unwrap_or_default(),
                source_id: start.source_id.map(|id| id.to_string()).unwrap_or_default(),
                credential_id: start.credential_id.map(|id| id.to_string()).unwrap_or_default(),
            };
            let answer = others.start(start.runner_id, request).await;
            let result = match answer {
                Ok(v1::StartSessionResponse { error: None }) => Ok(()),
                Ok(v1::StartSessionResponse { error: Some(error) }) => Err(Error::from(error)),
                Err(error) => Err(ErrorCode::PROVISION_FAILED.with(error.to_string())),
            };
            engine.tell(Input::Started(session_id, result)).await;
        });
    }

    fn tear_down(&self, runner_id: RunnerId, session_id: SessionId) {
        let (others, engine) = (self.others.clone(), self.engine.clone());
        self.requests.spawn(async move {
            let request = v1::TearDownSessionRequest { session_id: session_id.to_string() };
            let answer = others.tear_down(runner_id, request).await;
            if let Err(error) = &answer {
                tracing::debug!(%error, session = %session_id, "a tear-down has no answer; it is asked for again");
            }
            engine.tell(Input::TornDown(runner_id, session_id, answer.is_ok())).await;
        });
    }

    fn reachable(&self) -> bool {
        self.others.reachable()
    }
}

/// The dispatcher, as the pool speaks to it.
#[derive(Debug, Clone)]
struct Dispatcher<O> {
    others: O,
    engine: Handle,
    epoch: String,
}

impl<O: Others> Dispatcher<O> {
    /// Delivers a batch; gives back what has to be sent again. A batch that is refused is halved until what is at
    /// fault stands alone: one bad item must not hold up the others.
    async fn deliver<T: Clone>(
        &self,
        items: Vec<T>,
        send: impl AsyncFn(&Self, &[T]) -> Result<(), RequestError>,
    ) -> Vec<T> {
        let mut left = vec![items];
        let mut failed = Vec::new();
        while let Some(mut batch) = left.pop() {
            let Err(error) = send(self, &batch).await else { continue };
            if error.is_transient() || batch.len() == 1 {
                tracing::debug!(%error, items = batch.len(), "the dispatcher did not take these");
                failed.append(&mut batch);
            } else {
                left.push(batch.split_off(batch.len() / 2));
                left.push(batch);
            }
        }
        failed
    }

    async fn grant(&self, grants: &[Grant]) -> Result<(), RequestError> {
        let wire = grants.iter().map(|grant| v1::Grant {
            run_id: grant.run_id.to_string(),
            lease: Some(grant.lease.into()),
            attempt: grant.attempt,
        });
        let request = v1::GrantRequest { grants: wire.collect(), epoch: self.epoch.clone() };
        let answer = self.others.grant(request).await?;
        if answer.answers.len() != grants.len() {
            tracing::error!("the dispatcher did not answer each grant once; they are sent again");
            return Err(RequestError::TimedOut("run.grant".into()));
        }
        let answers = grants.iter().zip(&answer.answers).map(|(grant, answer)| (*grant, answer.accepted));
        self.engine.tell(Input::Granted(answers.collect())).await;
        Ok(())
    }

    async fn lost(&self, losses: &[Loss]) -> Result<(), RequestError> {
        let wire = losses.iter().map(|loss| v1::Lost {
            run_id: loss.run_id.to_string(),
            lease: Some(loss.lease.into()),
            reason: match loss.reason {
                LostReason::RunnerLost => v1::LostReason::RunnerLost,
                LostReason::SessionFailed => v1::LostReason::SessionFailed,
                LostReason::SessionEnded => v1::LostReason::SessionEnded,
            }
            .into(),
            message: loss.message.clone(),
        });
        let request = v1::LostRequest { losses: wire.collect() };
        let v1::LostResponse {} = self.others.lost(request).await?;
        self.engine.tell(Input::LossesTold(losses.iter().map(|loss| loss.lease.token).collect())).await;
        Ok(())
    }

    async fn check(&self, leases: &[(RunId, Lease)]) -> Result<(), RequestError> {
        let checks = leases
            .iter()
            .map(|(run_id, lease)| v1::LeaseCheck { run_id: run_id.to_string(), lease: Some((*lease).into()) });
        let request = v1::CheckLeasesRequest { checks: checks.collect() };
        let answer = self.others.leases(request).await?;
        let released = leases.iter().filter(|(_, lease)| answer.released_tokens.contains(&lease.token));
        let released: Vec<(RunId, Lease)> = released.copied().collect();
        if !released.is_empty() {
            tracing::info!(leases = released.len(), "leases whose release was missed are given back");
            self.engine.tell(Input::NotHeld(released)).await;
        }
        Ok(())
    }
}
