//! The life of a runner: listen, register, keep in touch, drain, go.

use std::sync::Arc;
use std::time::Duration;

use errand_bus::{Bus, BusError, RequestError};
use errand_core::{Error, RunnerId, SessionId};
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::activity::{self, Activities};
use crate::backoff::Backoff;
use crate::config::RunnerConfig;
use crate::engine::{Engine, Loss, Outward};
use crate::host::Host;
use crate::report::{self, Reports};
use crate::transport::{self, Dispatcher, Line, Pool, Shelf};

/// How long the last words may take: reports that wait, the goodbye to the pool.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long nothing must execute before a runner that was told to go believes it: an assignment may be on its way.
const QUIET: Duration = Duration::from_millis(100);

/// Why a runner has ended.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// Its configuration breaks a limit.
    #[error("{0}")]
    Config(String),
    /// It cannot listen.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The session-pool does not want it.
    #[error("the session-pool refuses this runner: {0}")]
    Refused(Error),
    /// A task of its own has died, which is a bug.
    #[error("the runner's {0} has ended")]
    Died(&'static str),
}

/// Runs a runner until `shutdown` or until the pool has drained it. Runs that execute at shutdown get
/// [`RunnerConfig::drain`] to end.
///
/// # Errors
/// [`RunnerError`]. A broker, pool or dispatcher that is away is none: it is waited for.
pub async fn run<H: Host>(
    bus: Bus,
    host: H,
    config: RunnerConfig,
    shutdown: CancellationToken,
) -> Result<(), RunnerError> {
    config.check().map_err(RunnerError::Config)?;
    // Credentials that are confined to one runner make us that one, again after a restart; the pool sees what it had die.
    let id = bus.confined_to_runner().unwrap_or_else(|| RunnerId::from_uuid(Uuid::now_v7()));
    let (reports, waiting) = Reports::new();
    let (activities, signs) = Activities::new();
    let (losses, lost) = mpsc::unbounded_channel();
    let vault = Arc::new(transport::Vault { bus: bus.clone(), id });
    let shelf = Shelf::new(bus.clone());
    let outward = Outward { reports, activities, shelf, losses, vault: Some(vault) };
    let engine = Engine::new(host, id, config.capacity as usize, outward);
    // Before the registration, so that the pool's first word finds ears.
    let service = transport::serve(&bus, &engine, &config).await?;
    let pool = Pool { line: bus.clone(), id };
    let mut tasks = JoinSet::new();
    let desk = Dispatcher { line: bus.clone(), engine: Arc::clone(&engine) };
    tasks.spawn(async move {
        report::send_all(waiting, &desk, id).await;
        "reporter"
    });
    let publisher = bus.clone();
    tasks.spawn(async move {
        let send = |execution, progress| transport::publish_activity(publisher.clone(), execution, progress);
        activity::publish(signs, send).await;
        "publisher of activity"
    });
    tasks.spawn(tell_losses(pool.clone(), lost));
    let (told, state) = watch::channel(Touch::default());
    let touch = keep_in_touch(pool.clone(), Arc::clone(&engine), config.clone(), told, shutdown.clone());
    let mut touch = AbortOnDropHandle::new(tokio::spawn(touch));
    tracing::info!(runner = %id, agent = %config.agent_id, capacity = config.capacity, "the runner listens");
    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = drained(&engine, state.clone()) => Ok(()),
        refused = &mut touch => Err(refused.unwrap_or(RunnerError::Died("heartbeat"))),
        died = tasks.join_next() => Err(RunnerError::Died(died.and_then(Result::ok).unwrap_or("task"))),
    };
    if ended.is_ok() {
        engine.drain();
        quiet(&engine, state, config.drain).await;
    }
    engine.close_all().await;
    service.stop(LAST_WORDS).await;
    last_words(&engine, &pool).await;
    drop(touch);
    tracing::info!(runner = %id, "the runner has gone");
    ended
}

/// What the pool has heard and said.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Touch {
    /// It knows that this runner drains.
    knows_draining: bool,
}

/// Registers, and tells the pool again and again what is here. Ends only where the pool refuses the runner.
pub(crate) async fn keep_in_touch<H: Host, L: Line>(
    pool: Pool<L>,
    engine: Arc<Engine<H>>,
    config: RunnerConfig,
    told: watch::Sender<Touch>,
    shutdown: CancellationToken,
) -> RunnerError {
    let mut hellos = match pool.line.hellos().await {
        Ok(hellos) => hellos,
        Err(error) => return RunnerError::Bus(error),
    };
    let mut connections = pool.line.connections();
    let mut registered = false;
    let mut pause = Duration::from_secs(1);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3), pool.id.uuid().as_u128());
    loop {
        if !registered {
            match pool.register(&config, engine.sessions()).await {
                Ok(answer) => {
                    tracing::info!(runner = %pool.id, "the session-pool knows the runner");
                    (registered, pause) = (true, answer.heartbeat);
                    end(&engine, answer.end_sessions);
                }
                Err(RequestError::Service(error)) if error.code.kind == "request" => {
                    return RunnerError::Refused(error);
                }
                Err(error) => {
                    tracing::warn!(%error, "the session-pool has not taken the runner; trying again");
                    backoff.pause().await;
                    continue;
                }
            }
        }
        let draining = engine.draining() || shutdown.is_cancelled();
        match pool.heartbeat(engine.sessions(), draining).await {
            Ok(beat) => {
                backoff.reset();
                registered = beat.known;
                if beat.drain && !draining {
                    tracing::info!("the session-pool drains this runner");
                    engine.drain();
                }
                if beat.known {
                    told.send_modify(|touch| touch.knows_draining = draining);
                }
                end(&engine, beat.end_sessions);
                if !registered {
                    continue;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a heartbeat was not answered");
                backoff.pause().await;
                continue;
            }
        }
        let still_takes = !draining;
        tokio::select! {
            biased;
            () = sleep(pause) => {}
            // Told at once, so that the pool grants nothing here any more.
            () = shutdown.cancelled(), if still_takes => {}
            _ = connections.changed() => {}
            hello = hellos.next() => {
                registered = false;
                if hello.is_none() {
                    return RunnerError::Died("subscription");
                }
            }
        }
    }
}

/// Ends sessions that the pool does not want, beside everything else.
fn end<H: Host>(engine: &Arc<Engine<H>>, sessions: Vec<SessionId>) {
    for id in sessions {
        let engine = Arc::clone(engine);
        tokio::spawn(async move { engine.tear_down(id).await });
    }
}

/// Tells the pool of sessions that died here, one after the other, each until it has heard.
pub(crate) async fn tell_losses<L: Line>(pool: Pool<L>, mut lost: mpsc::UnboundedReceiver<Loss>) -> &'static str {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), pool.id.uuid().as_u128());
    while let Some(loss) = lost.recv().await {
        while let Err(error) = pool.session_lost(&loss).await {
            if !error.is_transient() {
                // The next heartbeat says the same without a message.
                tracing::warn!(session = %loss.id, %error, "the session-pool does not hear of a lost session");
                break;
            }
            backoff.pause().await;
        }
        backoff.reset();
    }
    "teller of losses"
}

/// Resolves when the pool has drained this runner: it wants no session any more, and has none.
async fn drained<H: Host>(engine: &Engine<H>, state: watch::Receiver<Touch>) {
    loop {
        sleep(QUIET).await;
        if state.borrow().knows_draining && engine.sessions().is_empty() && engine.is_idle() {
            return;
        }
    }
}

/// Waits, at most so long, until the pool knows that this runner goes and nothing executes any more.
async fn quiet<H: Host>(engine: &Engine<H>, state: watch::Receiver<Touch>, patience: Duration) {
    let until = Instant::now() + patience;
    let mut idle_since = None;
    while Instant::now() < until {
        let idle = engine.is_idle() && (state.borrow().knows_draining || engine.sessions().is_empty());
        let since = *idle_since.get_or_insert_with(Instant::now);
        if !idle {
            idle_since = None;
        } else if since.elapsed() >= QUIET {
            return;
        }
        sleep(QUIET / 10).await;
    }
    tracing::warn!("runs were still executing at the end of the drain; they are tried again elsewhere");
}

/// What waits to be reported, and the goodbye.
async fn last_words<H: Host, L: Line>(engine: &Engine<H>, pool: &Pool<L>) {
    let reported = async {
        while !engine.is_idle() {
            sleep(QUIET / 10).await;
        }
    };
    if timeout(LAST_WORDS, reported).await.is_err() {
        tracing::warn!("the dispatcher has not heard the last reports");
    }
    let goodbye = async {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1), pool.id.uuid().as_u128());
        while let Err(error) = pool.deregister().await {
            tracing::debug!(%error, "the goodbye was not heard");
            backoff.pause().await;
        }
    };
    if timeout(LAST_WORDS, goodbye).await.is_err() {
        tracing::warn!("the session-pool has not heard that the runner goes; it will find out");
    }
}
