//! The one task that owns the picture. Natural batching: while a commit is under way what arrives waits, and the next
//! batch takes all of it: decide, commit in one transaction, then do and answer.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use errand_bus::recv_batch;
use errand_core::run::{Lease, LeaseToken};
use errand_core::session::Session;
use errand_core::{Error, ErrorCode, EventId, RunId, RunnerId, SessionId, Tenant, Timestamp};
use errand_proto::event;
use errand_store::{Db, Ledger, Outbox, Staged};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::pool::{AgentView, Beat, Decisions, Grant, Loss, Pool, Registration, Release, RunnerView, Start, Want};
use crate::store::{CommitError, Ownership, Store};
use crate::waits::Waits;

/// Messages that wait for the engine; then their senders wait.
const QUEUE: usize = 4_096;
/// Messages in one batch.
const BATCH: usize = 512;
const TICK: Duration = Duration::from_millis(200);
const COMMIT_AGAIN: Duration = Duration::from_millis(50);
const COMMIT_AGAIN_MAX: Duration = Duration::from_secs(2);

type Reply<T> = oneshot::Sender<T>;

/// What the engine is told.
#[derive(Debug)]
pub enum Input {
    /// Runs wait. Answered with those that wait in vain.
    Acquire(Vec<Want>, Reply<Vec<(RunId, Error)>>),
    /// Runs need no session any more.
    Release(Vec<Release>, Reply<()>),
    /// A runner presents itself, with its sessions.
    Register(Registration, Vec<SessionId>, Reply<Result<Vec<SessionId>, Error>>),
    /// A runner lives; its sessions, and whether it drains.
    Heartbeat(RunnerId, Vec<SessionId>, bool, Reply<Beat>),
    /// A runner goes.
    Deregister(RunnerId, Reply<()>),
    /// A session died under its runner.
    SessionLost(RunnerId, SessionId, String, Reply<()>),
    /// The dispatcher's answers to grants.
    Granted(Vec<(Grant, bool)>),
    /// The dispatcher knows of these losses.
    LossesTold(Vec<LeaseToken>),
    /// The dispatcher says that these leases are held no longer.
    NotHeld(Vec<(RunId, Lease)>),
    /// A runner's answer to a start.
    Started(SessionId, Result<(), Error>),
    /// A runner's answer to a tear-down, or that there was none.
    TornDown(RunnerId, SessionId, bool),
    /// A user ends a session.
    EndSession(SessionId, Tenant, Reply<Result<Session, Error>>),
    /// An operator drains a runner.
    Drain(RunnerId, Reply<Result<RunnerView, Error>>),
    /// What is connected.
    Runners(Reply<Vec<RunnerView>>),
    /// Which kinds of runner there are.
    Agents(Reply<Vec<AgentView>>),
}

/// How others speak to the engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Input>);

impl Handle {
    /// Tells the engine; waits where many wait already.
    pub async fn tell(&self, input: Input) {
        if self.0.send(input).await.is_err() {
            tracing::debug!("the engine has stopped; after the restart it asks again");
        }
    }

    /// Asks the engine; the answer comes when what it tells of is committed.
    ///
    /// # Errors
    /// `api`/`unavailable` where the engine stops.
    pub async fn ask<T>(&self, input: impl FnOnce(Reply<T>) -> Input) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let stopped = || ErrorCode::API_UNAVAILABLE.with("the session-pool is stopping");
        self.0.send(input(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}

/// How the engine speaks to others. Must not wait: what does not get through is said again by the sweep.
pub trait Effects: Send + 'static {
    /// To the dispatcher.
    fn grant(&self, grant: Grant);
    /// To the dispatcher.
    fn lost(&self, loss: Loss);
    /// To the dispatcher.
    fn check(&self, run_id: RunId, lease: Lease);
    /// To a runner; answered with [`Input::Started`].
    fn start(&self, start: Start);
    /// To a runner; answered with [`Input::TornDown`].
    fn tear_down(&self, runner_id: RunnerId, session_id: SessionId);
    /// Whether the broker is there, so that runners can be heard.
    fn reachable(&self) -> bool;
}

/// Where the engine keeps what it decides, and what time it is.
pub trait Keep: Send + 'static {
    /// Where the outbox keeps its events.
    type Ledger: Ledger;

    /// What time it is.
    fn now(&self) -> Timestamp;
    /// For ids of sessions and events.
    fn uuid(&self) -> Uuid;
    /// Where events go.
    fn outbox(&self) -> &Outbox<Self::Ledger>;
    /// As [`Store::commit`].
    fn commit(
        &mut self,
        decisions: &Decisions,
        token: LeaseToken,
        events: &Staged,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;
}

/// The store that this pool owns.
#[derive(Debug)]
pub struct Kept {
    /// The store.
    pub store: Store,
    /// The right to write to it.
    pub owner: Ownership,
    /// Its events.
    pub outbox: Outbox,
}

impl Keep for Kept {
    type Ledger = Db;

    fn now(&self) -> Timestamp {
        now()
    }

    fn uuid(&self) -> Uuid {
        Uuid::now_v7()
    }

    fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    async fn commit(&mut self, decisions: &Decisions, token: LeaseToken, events: &Staged) -> Result<(), CommitError> {
        self.store.commit(&mut self.owner, decisions, token, events).await
    }
}

/// See the module.
#[derive(Debug)]
pub struct Engine<K, E> {
    kept: K,
    pool: Pool,
    inputs: mpsc::Receiver<Input>,
    effects: E,
    waits: Waits,
}

/// The line to an engine that is to be.
#[must_use]
pub fn channel() -> (Handle, mpsc::Receiver<Input>) {
    let (sender, inputs) = mpsc::channel(QUEUE);
    (Handle(sender), inputs)
}

/// The time.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// An answer that waits for the commit.
type Answer = Box<dyn FnOnce() + Send>;

fn answer<T: Send + 'static>(reply: Reply<T>, value: T) -> Option<Answer> {
    // Who no longer waits asks again.
    Some(Box::new(move || drop(reply.send(value))))
}

impl<K: Keep, E: Effects> Engine<K, E> {
    /// An engine for the pool that owns the store.
    pub fn new(kept: K, pool: Pool, inputs: mpsc::Receiver<Input>, effects: E) -> Self {
        Self { kept, pool, inputs, effects, waits: Waits::default() }
    }

    /// Decides, commits and does, until `draining`; then what waits is done, and no more.
    ///
    /// # Errors
    /// Where another pool has taken over, or the store fails for good.
    pub async fn run(mut self, draining: CancellationToken) -> anyhow::Result<()> {
        let mut inputs = Vec::with_capacity(BATCH);
        let mut next_tick = Instant::now();
        loop {
            inputs.clear();
            let stop = tokio::select! {
                biased;
                _ = recv_batch(&mut self.inputs, &mut inputs, BATCH) => false,
                () = tokio::time::sleep_until(next_tick) => false,
                () = draining.cancelled() => true,
            };
            while stop && let Ok(input) = self.inputs.try_recv() {
                inputs.push(input);
            }
            let now = self.kept.now();
            let answers: Vec<Answer> = inputs.drain(..).filter_map(|input| self.handle(input, now)).collect();
            if Instant::now() >= next_tick {
                self.pool.tick(now, self.effects.reachable());
                self.waits.show(&self.pool.agent_views());
                next_tick = Instant::now() + TICK;
            }
            self.pool.settle(now, &mut || SessionId::from_uuid(self.kept.uuid()));
            let decisions = self.pool.take();
            self.commit(&decisions).await?;
            self.perform(decisions);
            for answer in answers {
                answer();
            }
            if stop {
                return Ok(());
            }
        }
    }

    fn handle(&mut self, input: Input, now: Timestamp) -> Option<Answer> {
        let pool = &mut self.pool;
        match input {
            Input::Acquire(wants, reply) => {
                let waits = &mut self.waits;
                let refused = wants.into_iter().filter_map(|want| {
                    let run_id = want.run_id;
                    waits.begin(&want);
                    pool.acquire(want, now).err().map(|error| (run_id, error))
                });
                let refused = refused.collect();
                answer(reply, refused)
            }
            Input::Release(releases, reply) => {
                for release in releases {
                    self.waits.forget(release.run_id);
                    pool.release(release, now);
                }
                answer(reply, ())
            }
            Input::Register(registration, listed, reply) => answer(reply, pool.register(registration, &listed, now)),
            Input::Heartbeat(id, listed, draining, reply) => answer(reply, pool.heartbeat(id, &listed, draining, now)),
            Input::Deregister(id, reply) => {
                pool.deregister(id, now);
                answer(reply, ())
            }
            Input::SessionLost(runner_id, id, message, reply) => {
                pool.session_lost(runner_id, id, &message, now);
                answer(reply, ())
            }
            Input::EndSession(id, tenant, reply) => answer(reply, pool.end_session(id, &tenant, now)),
            Input::Drain(id, reply) => answer(reply, pool.drain_runner(id, now)),
            Input::Runners(reply) => answer(reply, pool.runner_views()),
            Input::Agents(reply) => answer(reply, pool.agent_views()),
            Input::Granted(answers) => {
                for (grant, accepted) in answers {
                    pool.granted(grant.lease.session_id, grant.lease.token, accepted, now);
                }
                None
            }
            Input::LossesTold(tokens) => {
                pool.losses_told(&tokens, now);
                None
            }
            Input::NotHeld(leases) => {
                for (run_id, lease) in leases {
                    pool.not_held(run_id, lease, now);
                }
                None
            }
            Input::Started(id, result) => {
                pool.started(id, result, now);
                None
            }
            Input::TornDown(runner_id, id, done) => {
                pool.torn_down(runner_id, id, done, now);
                None
            }
        }
    }

    async fn commit(&mut self, decisions: &Decisions) -> anyhow::Result<()> {
        if !decisions.changes_the_store() {
            return Ok(());
        }
        let events = decisions.changes.iter().map(|change| {
            let id = EventId::from_uuid(self.kept.uuid());
            event::of_session(id, &change.session)
        });
        let staged = self.kept.outbox().stage(events).context("an event cannot be encoded")?;
        self.commit_staged(decisions, &staged).await?;
        self.kept.outbox().publish(staged);
        Ok(())
    }

    /// Tries until it is done. Nothing else goes on meanwhile: what is decided holds only with what is committed.
    async fn commit_staged(&mut self, decisions: &Decisions, staged: &Staged) -> anyhow::Result<()> {
        let mut pause = COMMIT_AGAIN;
        loop {
            match self.kept.commit(decisions, self.pool.token(), staged).await {
                Ok(()) => return Ok(()),
                Err(CommitError::TakenOver) if errand_core::mutated!(IgnoreTheOwner) => return Ok(()),
                Err(CommitError::Store(error)) if error.is_transient() => {
                    tracing::warn!(%error, "a batch was not committed; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(COMMIT_AGAIN_MAX);
                }
                Err(error) => return Err(error).context("a batch cannot be committed"),
            }
        }
    }

    fn perform(&mut self, decisions: Decisions) {
        for grant in decisions.grants {
            self.waits.end(&grant);
            self.effects.grant(grant);
        }
        for start in decisions.starts {
            self.effects.start(start);
        }
        for (runner_id, session_id) in decisions.tear_downs {
            self.effects.tear_down(runner_id, session_id);
        }
        for loss in decisions.losses {
            self.effects.lost(loss);
        }
        for (run_id, lease) in decisions.checks {
            self.effects.check(run_id, lease);
        }
    }
}
