//! A process: a service or a runner on a runtime of its own, whose clock stands still unless the world moves it. To
//! kill it is to drop the runtime: whatever it was about to do is not done.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use errand_core::run::Command;
use errand_core::{Error, ErrorCode, RunId, RunnerId, SessionId, Timestamp};
use errand_dispatcher::effects::Effects;
use errand_dispatcher::engine::{Engine, Handle};
use errand_dispatcher::{internal, sweep};
use errand_proto::v1;
use errand_runner::RunnerConfig;
use errand_runner::simulated::Simulated;
use errand_session_pool::engine::{self as pool_engine, Input};
use errand_session_pool::pool::{Policy, Pool};
use errand_session_pool::transport::{Outgoing, internal as pool_desk};
use errand_store::{Outbox, Publisher, StoreError};
use errand_timeout_watcher::asks::{fire, load};
use errand_timeout_watcher::watch::Watch;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::host::Agent;
use crate::line::{Call, Line, Note, Reply, Request};
use crate::ports::{Abroad, Around, Book, Desk, Link, Shelf, tell};
use crate::stores::Base;

/// When every simulation begins.
pub(crate) const EPOCH: i64 = 1_700_000_000_000;

/// What a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Dispatcher,
    Pool(Limits),
    Watcher,
    Runner { id: RunnerId, capacity: u32, warm: u32 },
}

/// The pool's configuration, as far as it differs from the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) tenant_limit: u32,
    pub(crate) max_waiting: usize,
}

type Clock = Box<dyn Fn() -> Timestamp + Send + Sync>;

/// How a process is reached when it has started.
enum Parts {
    Dispatcher { engine: Handle, effects: Effects<Around>, around: Around },
    Pool(pool_desk::Desk),
    Watcher(Arc<Watch<Clock>>),
    Runner(Simulated<Agent>, Agent),
}

/// See the module.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) line: Line,
    runtime: Runtime,
    parts: Arc<OnceLock<Parts>>,
    /// Begin to go: no further work is taken on.
    pub(crate) shutdown: CancellationToken,
    began: Instant,
    began_at: i64,
    /// Its clock against the world's, in milliseconds.
    pub(crate) skew: i64,
    /// Until when it does not execute at all.
    pub(crate) stalled_until: i64,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Process {
    pub(crate) fn start(kind: Kind, name: String, line: Line, now: i64) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let parts = Arc::new(OnceLock::new());
        let shutdown = CancellationToken::new();
        let began = runtime.block_on(async { Instant::now() });
        line.set_now(EPOCH + now);
        runtime.spawn(boot(kind, line.clone(), Arc::clone(&parts), shutdown.clone()));
        Ok(Self { name, line, runtime, parts, shutdown, began, began_at: now, skew: 0, stalled_until: 0 })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.parts.get().is_some()
    }

    /// Lets the process go on until nothing is left to do at this time.
    pub(crate) fn go_on(&self, now: i64) {
        self.line.set_now(EPOCH + now + self.skew);
        let until = self.began + Duration::from_millis(u64::try_from(now - self.began_at).unwrap_or(0));
        self.runtime.block_on(async {
            tokio::time::sleep_until(until).await;
            for _ in 0..4 {
                // Comes back when the others have nothing to do, or have had their share.
                tokio::task::yield_now().await;
            }
        });
    }

    /// A request arrives.
    pub(crate) fn take(&self, token: u64, request: Request) {
        let (parts, line) = (Arc::clone(&self.parts), self.line.clone());
        self.runtime.spawn(async move {
            let Some(parts) = parts.get() else { return };
            let answer = parts.answer(request).await;
            line.push(Call::Answer { token, answer });
        });
    }

    /// Something is told.
    pub(crate) fn hear(&self, note: Note) {
        match (self.parts.get(), note) {
            (Some(Parts::Dispatcher { engine, .. }), Note::Activity(sign)) => {
                if let Ok(run_id) = sign.run_id.parse::<RunId>() {
                    engine.activity(run_id, sign.lease_token, Timestamp(sign.at_ms));
                }
            }
            (Some(Parts::Dispatcher { effects, .. }), Note::Hello(epoch)) => effects.pool_epoch(&epoch),
            (Some(Parts::Watcher(watch)), Note::Activity(sign)) => {
                if let Ok(run_id) = sign.run_id.parse::<RunId>() {
                    watch.touch(run_id, Timestamp(sign.at_ms), self.line.now());
                }
            }
            (_, Note::Hello(_)) => self.line.hello(),
            _ => {}
        }
    }

    /// An event of the stream arrives.
    pub(crate) fn follow(&self, payload: &[u8]) {
        if let Some(Parts::Watcher(watch)) = self.parts.get() {
            match errand_timeout_watcher::transport::armed_by_event(payload.to_vec().into()) {
                Ok(Some(armed)) => watch.arm(&[armed]),
                Ok(None) => {}
                Err(error) => self.line.push(Call::Broken(format!("an event cannot be read: {error}"))),
            }
        }
    }

    /// The sessions that a runner's host has.
    pub(crate) fn hosted(&self) -> Vec<SessionId> {
        match self.parts.get() {
            Some(Parts::Runner(_, agent)) => agent.sessions(),
            _ => Vec::new(),
        }
    }

    /// Whether a runner has drained: then it goes.
    pub(crate) fn has_drained(&self) -> bool {
        matches!(self.parts.get(), Some(Parts::Runner(runner, _)) if runner.has_drained())
    }

    /// How many runs a watcher has armed.
    pub(crate) fn armed(&self) -> Option<usize> {
        match self.parts.get() {
            Some(Parts::Watcher(watch)) => Some(watch.status().armed),
            _ => None,
        }
    }
}

async fn boot(kind: Kind, line: Line, parts: Arc<OnceLock<Parts>>, shutdown: CancellationToken) {
    let started = match kind {
        Kind::Dispatcher => dispatcher(&line, shutdown).await,
        Kind::Pool(policy) => pool(&line, policy, shutdown).await,
        Kind::Watcher => watcher(&line, shutdown),
        Kind::Runner { id, capacity, warm } => runner(&line, id, capacity, warm, shutdown),
    };
    match started {
        Ok(started) => {
            if parts.set(started).is_ok() {
                line.push(Call::Started);
            }
        }
        Err(error) => line.push(Call::Died(error.to_string())),
    }
}

async fn open(line: &Line, base: Base) -> Result<(Outbox<Book>, Publisher<Book, Link>), StoreError> {
    let link = Link { line: line.clone(), broker: line.broker().unwrap_or(0) };
    Outbox::open(Book { line: line.clone(), base }, link).await
}

/// Runs a task for as long as the process lives: what ends it with an error ends the process, and a panic is a bug.
fn keep<E: fmt::Display + Send + 'static>(
    line: &Line,
    what: &'static str,
    task: impl Future<Output = Result<(), E>> + Send + 'static,
) {
    let (line, task) = (line.clone(), tokio::spawn(task));
    tokio::spawn(async move {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => line.push(Call::Died(format!("{what}: {error:#}"))),
            Err(error) => line.push(Call::Broken(format!("the {what} panicked: {error}"))),
        }
    });
}

async fn dispatcher(line: &Line, shutdown: CancellationToken) -> anyhow::Result<Parts> {
    let (outbox, publisher) = open(line, Base::Runs).await?;
    let around = Around { line: line.clone(), outbox };
    let effects = Effects::new(around.clone());
    let (engine, handle) = Engine::new(around.clone(), effects.clone());
    effects.attach(handle.clone());
    keep(line, "engine", engine.run(shutdown.clone()));
    keep(line, "publisher", publisher.run(shutdown.clone()));
    keep(line, "sweep", sweep::run(around.clone(), effects.clone(), shutdown));
    Ok(Parts::Dispatcher { engine: handle, effects, around })
}

async fn pool(line: &Line, policy: Limits, shutdown: CancellationToken) -> anyhow::Result<Parts> {
    let epoch = line.uuid();
    line.store("take over".into(), move |stores| stores.take_over(epoch)).await?;
    let (outbox, publisher) = open(line, Base::Sessions).await?;
    let stored = line.store("load".into(), crate::stores::Stores::load).await?;
    let policy = Policy {
        tenant_limit: policy.tenant_limit,
        max_waiting: policy.max_waiting,
        idle_ms: 15_000,
        ..Policy::default()
    };
    let pool = Pool::restore(policy, stored, line.now());
    let (handle, inputs) = pool_engine::channel();
    let outgoing = Outgoing::new(Abroad(line.clone()), handle.clone(), epoch.to_string());
    let kept = Shelf { line: line.clone(), outbox, epoch };
    let engine = pool_engine::Engine::new(kept, pool, inputs, outgoing);
    keep(line, "engine", engine.run(shutdown.clone()));
    keep(line, "publisher", publisher.run(shutdown.clone()));
    let hellos = line.clone();
    tokio::spawn(async move {
        while !shutdown.is_cancelled() {
            tell(&hellos, Note::Hello(epoch.to_string()));
            sleep(Duration::from_secs(5)).await;
        }
    });
    Ok(Parts::Pool(pool_desk::Desk { engine: handle, epoch: epoch.to_string(), heartbeat_seconds: 2 }))
}

fn watcher(line: &Line, shutdown: CancellationToken) -> anyhow::Result<Parts> {
    let clock = line.clone();
    let clock: Clock = Box::new(move || clock.now());
    let watch = Arc::new(Watch::with_clock(clock)?);
    let asks = Desk(line.clone());
    keep(line, "expiries", fire(asks.clone(), Arc::clone(&watch), 8, shutdown));
    let watched = Arc::clone(&watch);
    let mut connections = line.connections();
    connections.mark_unchanged();
    tokio::spawn(async move {
        loop {
            load(&asks, &watched).await;
            sleep(Duration::from_secs(2)).await;
            tokio::select! {
                biased;
                () = sleep(Duration::from_secs(298)) => {}
                () = watched.stale() => {}
                _ = connections.changed() => {}
            }
        }
    });
    Ok(Parts::Watcher(watch))
}

fn runner(line: &Line, id: RunnerId, capacity: u32, warm: u32, shutdown: CancellationToken) -> anyhow::Result<Parts> {
    let config = RunnerConfig { capacity, warm, host: "sim".into(), ..RunnerConfig::new("agt_sim".parse()?) };
    let signs = line.clone();
    let told = move |mut sign: v1::Activity| {
        sign.at_ms = signs.now().0;
        tell(&signs, Note::Activity(sign));
    };
    let agent = Agent::new(line.clone());
    let runner = Simulated::start(line.clone(), agent.clone(), id, config, shutdown, told);
    Ok(Parts::Runner(runner, agent))
}

fn boxed<T: Send + 'static>(answer: Result<T, Error>) -> Result<Reply, Error> {
    answer.map(|answer| Box::new(answer) as Reply)
}

impl Parts {
    async fn answer(&self, request: Request) -> Result<Reply, Error> {
        match self {
            Self::Dispatcher { engine, effects, around } => dispatch(engine, effects, around, request).await,
            Self::Pool(desk) => ask_pool(desk, request).await,
            Self::Runner(runner, _) => ask_runner(runner, request).await,
            Self::Watcher(_) => Err(strange()),
        }
    }
}

fn strange() -> Error {
    ErrorCode::API_ERROR.with("not asked here")
}

async fn dispatch(
    engine: &Handle,
    effects: &Effects<Around>,
    around: &Around,
    request: Request,
) -> Result<Reply, Error> {
    match request {
        Request::Submit(run) => boxed(engine.submit(*run, Ok(())).await),
        Request::FromStream(run) => boxed(Ok(internal::verdict(&engine.submit(*run, Ok(())).await))),
        Request::Cancel(tenant, run_id) => boxed(engine.apply(run_id, Some(tenant), Command::Cancel).await),
        Request::Review(tenant, run_id, decision) => {
            let command = Command::Review { decision, comment: String::new() };
            boxed(engine.apply(run_id, Some(tenant), command).await)
        }
        Request::Interact(tenant, run_id, input) => {
            boxed(internal::interact(around, engine, tenant, run_id, input).await)
        }
        Request::Grant(request) => boxed(internal::grant(engine, effects, request).await),
        Request::Lost(request) => boxed(internal::lost(engine, request).await),
        Request::Report(request) => boxed(internal::report(engine, request).await),
        Request::Expire(request) => boxed(internal::expire(engine, request).await),
        Request::Leases(request) => {
            use errand_dispatcher::world::World;
            let asked = internal::leases_of(request)?;
            let ids: Vec<RunId> = asked.iter().map(|(run_id, _)| *run_id).collect();
            let runs = around.runs(&ids).await.map_err(|_| ErrorCode::API_UNAVAILABLE.with("the store is away"))?;
            boxed(Ok(internal::released(&asked, &runs)))
        }
        Request::Deadlines(after) => {
            let runs = around.open_runs(after.parse().ok(), 20).await;
            let runs = runs.map_err(|_| ErrorCode::API_UNAVAILABLE.with("the store is away"))?;
            let has_more = runs.len() == 20;
            let runs = runs.iter().map(internal::armed_run).collect();
            boxed(Ok(v1::ListDeadlinesResponse { has_more, runs }))
        }
        _ => Err(strange()),
    }
}

async fn ask_pool(desk: &pool_desk::Desk, request: Request) -> Result<Reply, Error> {
    match request {
        Request::Acquire(request) => boxed(pool_desk::acquire(desk, request).await),
        Request::Release(request) => boxed(pool_desk::release(desk, request).await),
        Request::Register(request) => boxed(pool_desk::register(desk, request).await),
        Request::Heartbeat(request) => boxed(pool_desk::heartbeat(desk, request).await),
        Request::SessionLost(request) => boxed(pool_desk::session_lost(desk, request).await),
        Request::Deregister(request) => boxed(pool_desk::deregister(desk, request).await),
        Request::EndSession(tenant, id) => {
            boxed(desk.engine.ask(|reply| Input::EndSession(id, tenant, reply)).await.and_then(|ended| ended))
        }
        Request::Drain(id) => boxed(desk.engine.ask(|reply| Input::Drain(id, reply)).await.and_then(|drained| drained)),
        _ => Err(strange()),
    }
}

async fn ask_runner(runner: &Simulated<Agent>, request: Request) -> Result<Reply, Error> {
    match request {
        Request::Start(request) => boxed(runner.start_session(request).await),
        Request::TearDown(request) => boxed(runner.tear_down(request).await),
        Request::Assign(request) => boxed(Ok(runner.assign(request))),
        Request::Stop(request) => boxed(runner.stop(&request)),
        Request::Input(request) => boxed(runner.input(&request)),
        _ => Err(strange()),
    }
}
