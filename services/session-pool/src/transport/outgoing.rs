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
/// How long the dispatcher may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a runner may take to tear a session down, until it is asked again.
const TEAR_DOWN: Duration = Duration::from_secs(70);

/// Tells dispatcher and runners what the engine has decided, and the engine what they say.
#[derive(Debug)]
pub struct Outgoing {
    bus: Bus,
    engine: Handle,
    grants: Courier<Grant>,
    losses: Courier<Loss>,
    checks: Courier<(RunId, Lease)>,
    start_timeout: Duration,
    /// Never more than the runners have room for sessions.
    requests: TaskTracker,
}

impl Outgoing {
    /// Over this bus, to this engine.
    #[must_use]
    pub fn new(bus: Bus, engine: Handle, epoch: String, start_timeout: Duration) -> Self {
        let to_dispatcher = Dispatcher { bus: bus.clone(), engine: engine.clone(), epoch };
        let [for_grants, for_losses, for_checks] = std::array::from_fn(|_| to_dispatcher.clone());
        Self {
            bus,
            engine,
            grants: Courier::spawn("grants", BATCH, move |items| {
                let dispatcher = for_grants.clone();
                async move { dispatcher.deliver(items, Dispatcher::grant).await }
            }),
            losses: Courier::spawn("losses", BATCH, move |items| {
                let dispatcher = for_losses.clone();
                async move { dispatcher.deliver(items, Dispatcher::lost).await }
            }),
            checks: Courier::spawn("checks", BATCH, move |items| {
                let dispatcher = for_checks.clone();
                async move { dispatcher.deliver(items, Dispatcher::check).await }
            }),
            start_timeout,
            requests: TaskTracker::new(),
        }
    }
}

impl Effects for Outgoing {
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
        let (bus, engine, timeout) = (self.bus.clone(), self.engine.clone(), self.start_timeout);
        self.requests.spawn(async move {
            let session_id = start.session_id;
            let subject = bus.subjects().runner(start.runner_id, "start_session");
            let request = v1::StartSessionRequest {
                session_id: session_id.to_string(),
                tenant: start.tenant.map(String::from).unwrap_or_default(),
                source_id: start.source_id.map(|id| id.to_string()).unwrap_or_default(),
                credential_id: start.credential_id.map(|id| id.to_string()).unwrap_or_default(),
            };
            let answer = bus.request_within::<_, v1::StartSessionResponse>(subject, &request, timeout).await;
            let result = match answer {
                Ok(v1::StartSessionResponse { error: None }) => Ok(()),
                Ok(v1::StartSessionResponse { error: Some(error) }) => Err(Error::from(error)),
                Err(error) => Err(ErrorCode::PROVISION_FAILED.with(error.to_string())),
            };
            engine.tell(Input::Started(session_id, result)).await;
        });
    }

    fn tear_down(&self, runner_id: RunnerId, session_id: SessionId) {
        let (bus, engine) = (self.bus.clone(), self.engine.clone());
        self.requests.spawn(async move {
            let subject = bus.subjects().runner(runner_id, "tear_down_session");
            let request = v1::TearDownSessionRequest { session_id: session_id.to_string() };
            let answer = bus.request_within::<_, v1::TearDownSessionResponse>(subject, &request, TEAR_DOWN).await;
            if let Err(error) = &answer {
                tracing::debug!(%error, session = %session_id, "a tear-down has no answer; it is asked for again");
            }
            engine.tell(Input::TornDown(runner_id, session_id, answer.is_ok())).await;
        });
    }

    fn reachable(&self) -> bool {
        self.bus.is_connected()
    }
}

/// The dispatcher, as the pool speaks to it.
#[derive(Debug, Clone)]
struct Dispatcher {
    bus: Bus,
    engine: Handle,
    epoch: String,
}

impl Dispatcher {
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

    async fn ask<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A, RequestError> {
        self.bus.request_within(self.bus.subjects().run(method), request, ANSWER).await
    }

    async fn grant(&self, grants: &[Grant]) -> Result<(), RequestError> {
        let wire = grants.iter().map(|grant| v1::Grant {
            run_id: grant.run_id.to_string(),
            lease: Some(grant.lease.into()),
            attempt: grant.attempt,
        });
        let request = v1::GrantRequest { grants: wire.collect(), epoch: self.epoch.clone() };
        let answer: v1::GrantResponse = self.ask("grant", &request).await?;
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
        let v1::LostResponse {} = self.ask("lost", &request).await?;
        self.engine.tell(Input::LossesTold(losses.iter().map(|loss| loss.lease.token).collect())).await;
        Ok(())
    }

    async fn check(&self, leases: &[(RunId, Lease)]) -> Result<(), RequestError> {
        let checks = leases
            .iter()
            .map(|(run_id, lease)| v1::LeaseCheck { run_id: run_id.to_string(), lease: Some((*lease).into()) });
        let request = v1::CheckLeasesRequest { checks: checks.collect() };
        let answer: v1::CheckLeasesResponse = self.ask("leases", &request).await?;
        let released = leases.iter().filter(|(_, lease)| answer.released_tokens.contains(&lease.token));
        let released: Vec<(RunId, Lease)> = released.copied().collect();
        if !released.is_empty() {
            tracing::info!(leases = released.len(), "leases whose release was missed are given back");
            self.engine.tell(Input::NotHeld(released)).await;
        }
        Ok(())
    }
}
