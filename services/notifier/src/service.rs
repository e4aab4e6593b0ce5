//! Owns the tasks: events are told on as JSON, taken into queues, and delivered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use errand_bus::{Bus, StreamKind};
use errand_kit::{Tasks, health, metrics};
use errand_store::Outbox;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::catalog::Catalog;
use crate::channel::Outside;
use crate::channels::{AllChannels, Channels};
use crate::claim::ClaimEnd;
use crate::config::Config;
use crate::desk::Desk;
use crate::destination::Vault;
use crate::events::Events;
use crate::fan_out::Progress;
use crate::figures::Figures;
use crate::hints::Hints;
use crate::replay::Replays;
use crate::store::Store;
use crate::supervisor::Supervisor;
use crate::switching::Switching;
use crate::transport::{FanOut, Intake, Notifier};
use crate::worker::Shared;
use crate::{recorder, sweep, transport};

/// How often the lag is logged, where there is any.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How often what is old is deleted.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Events that may wait before it is worth a warning: a third of a second's at full load.
const MUCH: u64 = 10_000;
/// How long requests may take to be answered at the end.
const ANSWER: Duration = Duration::from_secs(8);

/// Runs a notifier until shutdown.
///
/// # Errors
/// Where the broker or the store is not there at start, there is no master key, or a task fails for good.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    // A connection of its own: what destinations of type `nats` are sent waits behind nothing else, nor it behind them.
    let Some(own_broker) = config.kit.connect("notifier-deliveries", &shutdown).await? else { return Ok(()) };
    let outside = Outside::new(&config.outside, Some(own_broker))?;
    run_with(config, Arc::new(AllChannels::new(outside)), shutdown).await
}

/// As [`run`], with other types of destinations: for tests.
///
/// # Errors
/// As [`run`].
pub async fn run_with(config: Config, channels: Arc<dyn Channels>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = config.settings()?;
    let vault = Vault::new(config.master_key.load(&config.store)?);
    let Some(bus) = config.kit.connect_with_streams("notifier", &shutdown).await? else { return Ok(()) };
    let store = Store::open(&config.store).await?;
    let (outbox, publisher) = Outbox::open(store.db().clone(), bus.clone()).await?;
    let me = Uuid::now_v7();
    let hints = Hints::new(bus.clone(), me);
    let catalog = Arc::new(Catalog::new(store.clone()));
    let shared = Arc::new(Shared {
        store: store.clone(),
        catalog: Arc::clone(&catalog),
        events: Events::new(store.clone()),
        channels,
        vault,
        figures: Figures::default(),
        claim_end: ClaimEnd::default(),
        switching: Switching::new(store.clone(), outbox, hints.clone()),
        settings,
    });
    let progress = Arc::new(Mutex::new(Progress::default()));
    let desk = Desk { shared: Arc::clone(&shared), hints: hints.clone() };
    let notifier = Arc::new(Notifier { bus: bus.clone(), progress: Arc::clone(&progress), desk });

    let mut tasks = Tasks::new(shutdown.clone());
    if let Some(listen) = config.kit.health_listen {
        tasks.spawn("health", health::serve(listen, bus.clone(), shutdown.clone()));
    }
    // The publisher stops behind those who give it work.
    let draining = CancellationToken::new();
    tasks.spawn("publisher", {
        let draining = draining.clone();
        async move { Ok(publisher.run(draining).await?) }
    });
    tasks.spawn("hints", hints.clone().listen(shutdown.clone()));
    tasks.spawn("pending", metrics::watch_consumer(bus.clone(), StreamKind::Event, "notifier", shutdown.clone()));
    let forgetting = store.db().clone().forget_old_events(shutdown.clone());
    tasks.spawn("old events", async move { Ok(forgetting.await?) });
    tasks.spawn("lag", report(bus.clone(), Arc::clone(&progress), shutdown.clone()));
    let intake = Intake { store: store.clone(), catalog: Arc::clone(&catalog), hints: hints.clone() };
    let events = transport::Events { fan_out: FanOut { bus: bus.clone(), progress }, intake };
    let consuming = transport::consume(events, config.batch, shutdown.clone());
    tasks.spawn("events", async move { Ok(consuming.await?) });
    let kept = Duration::from_secs(u64::from(config.delivery_retention_days) * 24 * 3600);
    tasks.spawn("sweep", sweep::sweep(store.clone(), SWEEP_EVERY, kept, shutdown.clone()));
    let replays =
        Replays { me, bus: bus.clone(), store: store.clone(), catalog: Arc::clone(&catalog), hints: hints.clone() };
    tasks.spawn("replays", replays.run(shutdown.clone()));
    let (outcomes, written) = recorder::channel();
    let claim = config.delivery_claim.0;
    let supervisor = Supervisor { me, catalog, shared, hints, outcomes, claim };
    tasks.spawn("deliveries", deliver(supervisor, recorder::run(store.clone(), written), shutdown.clone()));
    let service = transport::serve(&notifier).await?;
    drop(notifier);
    tracing::info!(store = store.db().kind(), broker = bus.broker_version(), "the notifier serves");
    tasks.spawn("service", async move {
        shutdown.cancelled().await;
        service.stop(ANSWER).await;
        draining.cancel();
        Ok(())
    });
    let ended = tasks.join().await;
    store.db().close().await;
    ended
}

/// Workers and the recorder: what workers have done by the end is still written down.
async fn deliver(
    supervisor: Supervisor,
    recording: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let recorder = tokio::spawn(recording);
    let supervised = supervisor.run(shutdown.clone());
    tokio::pin!(supervised, recorder);
    tokio::select! {
        // The last sender of outcomes is gone with it.
        ended = &mut supervised => ended?,
        recorded = &mut recorder => {
            recorded??;
            anyhow::bail!("outcomes are written down no more");
        }
    }
    recorder.await?
}

/// Logs how far behind this notifier is. Of several only one is served, so one that has told nothing on since the
/// last report says nothing.
async fn report(bus: Bus, progress: Arc<Mutex<Progress>>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut told = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(REPORT_EVERY) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let now = *progress.lock().unwrap_or_else(PoisonError::into_inner);
        if now.published == told {
            continue;
        }
        told = now.published;
        let Ok(last) = transport::last_sequence(&bus).await else { continue };
        let (waiting, lag_ms) = (last.saturating_sub(now.stream_sequence), now.lag_ms);
        if waiting > MUCH {
            tracing::warn!(
                waiting,
                lag_ms,
                published = told,
                dead_letters = now.dead_letters,
                "events wait to be told on"
            );
        } else {
            tracing::info!(waiting, lag_ms, published = told, dead_letters = now.dead_letters, "events are told on");
        }
    }
}
