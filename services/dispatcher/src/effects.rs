//! What a change asks of others, sent at the moment of its commit: one request per receiver and batch. What gets no
//! answer is sent again by the sweep.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use errand_bus::RequestError;
use errand_core::run::{Command, Effect, Lease, LostReason, Run, RunStatus, State, StopReason};
use errand_core::{RunId, RunnerId, limits};
use errand_proto::{batches, v1};
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use crate::engine::Handle;
use crate::store::OpenKey;
use crate::world::World;

/// Sends effects. Cheap to clone.
#[derive(Debug)]
pub struct Effects<W>(Arc<Inner<W>>);

impl<W> Clone for Effects<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<W> {
    world: W,
    engine: OnceCell<Handle>,
    tracker: TaskTracker,
    seen: Mutex<Seen>,
}

/// Consequences that were seen, so that the sweep need not repeat their causes.
#[derive(Debug, Default)]
struct Seen {
    epoch: String,
    /// Runs that the pool of this epoch knows to wait, and in which version: a run that waits again is another matter.
    waiting: HashMap<RunId, u64>,
    /// Runs that their runner has taken, and in which version.
    assigned: HashMap<RunId, u64>,
}

/// One batch's effects by receiver.
#[derive(Default)]
struct Grouped {
    wants: Vec<v1::Want>,
    /// The runs of the wants, with their versions.
    wanting: Vec<(RunId, u64)>,
    /// The runs of the releases.
    over: Vec<RunId>,
    releases: Vec<v1::Release>,
    assign: BTreeMap<RunnerId, Vec<(Run, Lease)>>,
    stop: Vec<(RunId, Lease)>,
}

impl<W: World> Effects<W> {
    /// Into this world.
    #[must_use]
    pub fn new(world: W) -> Self {
        let (engine, tracker, seen) = (OnceCell::new(), TaskTracker::new(), Mutex::default());
        Self(Arc::new(Inner { world, engine, tracker, seen }))
    }

    /// Where refusals go. Set once, before anything is sent.
    pub fn attach(&self, engine: Handle) {
        if self.0.engine.set(engine).is_err() {
            tracing::error!("the engine was attached twice");
        }
    }

    /// Sends effects of committed changes; returns at once.
    pub fn send(&self, effects: impl Iterator<Item = (RunId, Run, Vec<Effect>)>) {
        let mut grouped = Grouped::default();
        for (_, run, effects) in effects {
            for effect in effects {
                grouped.add(&run, effect);
            }
        }
        self.send_grouped(grouped);
    }

    /// Whether something that this run waits for has to be sent once more: its consequence was not seen.
    #[must_use]
    pub fn is_owed(&self, run: &OpenKey) -> bool {
        let seen = self.seen();
        match run.status {
            RunStatus::Queued => seen.waiting.get(&run.id) != Some(&run.seq),
            RunStatus::Running => seen.assigned.get(&run.id) != Some(&run.seq),
            RunStatus::Canceling => true,
            RunStatus::InteractionRequired
            | RunStatus::ReviewRequired
            | RunStatus::Completed
            | RunStatus::Failed
            | RunStatus::Canceled => false,
        }
    }

    /// Sends what these runs wait for once more.
    pub fn send_again(&self, runs: &[Run]) {
        let mut grouped = Grouped::default();
        for run in runs {
            match &run.state {
                State::Queued { .. } => grouped.add(run, Effect::Acquire),
                State::Running(active) => grouped.add(run, Effect::Assign(active.lease)),
                State::Canceling { active, .. } => grouped.add(run, Effect::Stop(active.lease, StopReason::Canceled)),
                State::InteractionRequired { .. }
                | State::ReviewRequired { .. }
                | State::Completed
                | State::Failed
                | State::Canceled => {}
            }
        }
        self.send_grouped(grouped);
    }

    /// The session-pool serves in this epoch: one that has restarted knows no wants.
    pub fn pool_epoch(&self, epoch: &str) {
        let mut seen = self.seen();
        if seen.epoch != epoch {
            epoch.clone_into(&mut seen.epoch);
            if !errand_core::mutated!(ForgetTheEpoch) {
                seen.waiting.clear();
            }
        }
    }

    /// Only these are open: what was seen of others is over.
    pub fn keep(&self, waiting: &HashSet<RunId>, assigned: &HashSet<RunId>) {
        let mut seen = self.seen();
        seen.waiting.retain(|run_id, _| waiting.contains(run_id));
        seen.assigned.retain(|run_id, _| assigned.contains(run_id));
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_grouped(&self, grouped: Grouped) {
        let Grouped { wants, wanting, over, releases, assign, stop } = grouped;
        {
            let mut seen = self.seen();
            for run_id in over {
                seen.assigned.remove(&run_id);
            }
        }
        // A run that left the session that it lost and waits again: the pool hears of the loss first.
        if !wants.is_empty() || !releases.is_empty() {
            let this = self.clone();
            self.0.tracker.spawn(async move {
                this.release(releases).await;
                this.acquire(wants, wanting).await;
            });
        }
        for (runner, runs) in assign {
            let this = self.clone();
            self.0.tracker.spawn(async move { this.assign(runner, runs).await });
        }
        for (run_id, lease) in stop {
            let this = self.clone();
            self.0.tracker.spawn(async move { this.stop(run_id, lease).await });
        }
    }

    async fn acquire(&self, wants: Vec<v1::Want>, wanting: Vec<(RunId, u64)>) {
        if wants.is_empty() {
            return;
        }
        let request = v1::AcquireRequest { wants };
        match self.0.world.acquire(request).await {
            Ok(answer) => {
                self.pool_epoch(&answer.epoch);
                self.seen().waiting.extend(wanting);
                for refusal in answer.refusals {
                    tracing::info!(run = refusal.run_id, "the session that the run wants is not available");
                }
            }
            Err(error) => unanswered("acquire", &error),
        }
    }

    async fn release(&self, releases: Vec<v1::Release>) {
        if releases.is_empty() {
            return;
        }
        let request = v1::ReleaseRequest { releases };
        // One that is lost is found by the pool's own sweep over its leases.
        if let Err(error) = self.0.world.release(request).await {
            unanswered("release", &error);
        }
    }

    async fn assign(&self, runner: RunnerId, runs: Vec<(Run, Lease)>) {
        let mut assignments = Vec::with_capacity(runs.len());
        let mut taken: HashMap<u64, (RunId, u64)> = HashMap::with_capacity(runs.len());
        for (run, lease) in &runs {
            self.seen().waiting.remove(&run.id);
            match self.0.world.task(run.spec.task_id, run.spec.task_version).await {
                Ok(Some(task)) => {
                    taken.insert(lease.token, (run.id, run.seq));
                    assignments.push(assignment(run, *lease, &task.task.definition.prompt, &task.program));
                }
                Ok(None) | Err(_) => {
                    tracing::warn!(run = %run.id, "its task cannot be read now; the sweep tries again")
                }
            }
        }
        // Inputs may be large: all of them at once would be more than a message may hold, again and again.
        for assignments in batches(assignments, usize::MAX) {
            let mut tokens: Vec<u64> = assignments.iter().filter_map(|one| Some(one.lease.as_ref()?.token)).collect();
            match self.0.world.assign(runner, v1::AssignRequest { assignments }).await {
                Ok(answer) => {
                    // What is refused is not assigned: where the refusal is not taken, the sweep assigns again.
                    tokens.retain(|token| answer.refusals.iter().all(|refusal| refusal.lease_token != *token));
                    self.seen().assigned.extend(tokens.iter().filter_map(|token| taken.remove(token)));
                    for refusal in answer.refusals {
                        self.refused(refusal).await;
                    }
                }
                Err(error) => unanswered("assign", &error),
            }
        }
    }

    /// The runner does not have the session: to the run it is lost.
    async fn refused(&self, refusal: v1::AssignRefusal) {
        let (Some(engine), Ok(run_id)) = (self.0.engine.get(), refusal.run_id.parse()) else { return };
        let reason = LostReason::SessionFailed;
        let command = Command::Lost { token: refusal.lease_token, reason, message: refusal.message };
        if let Err(error) = engine.apply(run_id, None, command).await {
            tracing::warn!(%error, run = %run_id, "a runner's refusal could not be taken; the sweep assigns again");
        }
    }

    async fn stop(&self, run_id: RunId, lease: Lease) {
        let request = v1::StopRequest {
            run_id: run_id.to_string(),
            lease_token: lease.token,
            reason: "canceled".into(),
            grace_ms: limits::STOP_GRACE_SECONDS * 1000 / 2,
        };
        match self.0.world.stop(lease.runner_id, request).await {
            Ok(answer) if answer.running => {}
            Ok(_) => {
                let Some(engine) = self.0.engine.get() else { return };
                let stopped = Command::Stopped { token: lease.token };
                if let Err(error) = engine.apply(run_id, None, stopped).await {
                    tracing::warn!(%error, run = %run_id, "that its agent has stopped could not be taken");
                }
            }
            Err(error) => unanswered("stop", &error),
        }
    }
}

impl Grouped {
    fn add(&mut self, run: &Run, effect: Effect) {
        let run_id = run.id.to_string();
        match effect {
            Effect::Acquire => {
                self.wants.extend(v1::Want::of(run));
                self.wanting.push((run.id, run.seq));
            }
            Effect::Withdraw => self.releases.push(v1::Release { run_id, lease: None, discard: false }),
            Effect::Release { lease, discard } => {
                self.over.push(run.id);
                self.releases.push(v1::Release { run_id, lease: Some(lease.into()), discard });
            }
            Effect::Assign(lease) => self.assign.entry(lease.runner_id).or_default().push((run.clone(), lease)),
            Effect::Stop(lease, StopReason::Canceled) => self.stop.push((run.id, lease)),
        }
    }
}

fn assignment(run: &Run, lease: Lease, prompt: &str, program: &bytes::Bytes) -> v1::Assignment {
    let spec = &run.spec;
    v1::Assignment {
        run_id: run.id.to_string(),
        tenant: run.tenant.to_string(),
        lease: Some(lease.into()),
        task_id: spec.task_id.to_string(),
        task_version: spec.task_version,
        attempt: run.attempt,
        prompt: prompt.to_owned(),
        program: program.clone(),
        input: run.input.clone(),
        metadata: spec.metadata.clone(),
        source_id: spec.source_id.map(|id| id.to_string()).unwrap_or_default(),
        credential_id: spec.credential_id.map(|id| id.to_string()).unwrap_or_default(),
        traceparent: spec.traceparent.clone().unwrap_or_default(),
    }
}

fn unanswered(what: &str, error: &RequestError) {
    tracing::debug!(%error, what, "no answer; the sweep sends it again");
}
