//! Owns the tasks and clients of a dispatcher.

use std::sync::Arc;
use std::time::Duration;

use errand_bus::StreamKind;
use errand_kit::{Tasks as KitTasks, health, metrics};
use errand_store::Outbox;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::config::Config;
use crate::effects::Effects;
use crate::engine::Engine;
use crate::references::References;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::world::Live;
use crate::{sweep, transport};

/// Runs a dispatcher until shutdown.
///
/// # Errors
/// Where the broker or the store is not there at start, or a task fails for good.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Some(bus) = config.kit.connect_with_streams("dispatcher", &shutdown).await? else { return Ok(()) };
    let store = Store::open(&config.store).await?;
    let (outbox, publisher) = Outbox::open(store.db().clone(), bus.clone()).await?;
    let (task_outbox, task_publisher) = Outbox::open(store.db().clone(), bus.clone()).await?;
    let catalog = Arc::new(Catalog::new(store.clone()));
    let world = Live { bus: bus.clone(), store: store.clone(), outbox: outbox.clone(), catalog: Arc::clone(&catalog) };
    let effects = Effects::new(world.clone());
    let (engine, handle) = Engine::new(world.clone(), effects.clone());
    effects.attach(handle.clone());
    let tasks = Tasks::new(store.clone(), task_outbox, Arc::clone(&catalog));
    let shared = Arc::new(transport::Dispatcher {
        bus: bus.clone(),
        store: store.clone(),
        outbox: outbox.clone(),
        catalog,
        references: References::new(bus.clone()),
        tasks,
        engine: handle,
        effects: effects.clone(),
        world: world.clone(),
    });
    // The engine and the publishers stop behind those who give them work.
    let draining = CancellationToken::new();
    let mut running = KitTasks::new(shutdown.clone());
    running.spawn("engine", engine.run(draining.clone()));
    for publisher in [publisher, task_publisher] {
        let draining = draining.clone();
        running.spawn("publisher", async move { Ok(publisher.run(draining).await?) });
    }
    running.spawn("submissions", transport::take_submissions(Arc::clone(&shared), shutdown.clone()));
    running.spawn("activity", transport::listen(Arc::clone(&shared), shutdown.clone()));
    running.spawn("sweep", sweep::run(world, effects, shutdown.clone()));
    let pending = metrics::watch_consumer(bus.clone(), StreamKind::Submit, "dispatcher", shutdown.clone());
    running.spawn("pending", pending);
    let forgetting = store.db().clone().forget_old_events(shutdown.clone());
    running.spawn("old events", async move { Ok(forgetting.await?) });
    let forgetting = store.clone().forget_old_runs(config.keep_days, shutdown.clone());
    running.spawn("old runs", async move { Ok(forgetting.await?) });
    running.spawn("lag", metrics::watch_outbox("runs", move || outbox.lag(), shutdown.clone()));
    if let Some(listen) = config.kit.health_listen {
        running.spawn("health", health::serve(listen, bus.clone(), shutdown.clone()));
    }
    let service = transport::serve(&shared).await?;
    tracing::info!(store = store.db().kind(), broker = bus.broker_version(), "the dispatcher serves");
    running.spawn("service", async move {
        shutdown.cancelled().await;
        service.stop(Duration::from_secs(10)).await;
        draining.cancel();
        Ok(())
    });
    let ended = running.join().await;
    store.db().close().await;
    ended
}
