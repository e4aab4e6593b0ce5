//! Owns the tasks and clients of a vault.

use std::sync::Arc;
use std::time::Duration;

use errand_kit::{Tasks, health, metrics};
use errand_store::Outbox;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::credentials::Credentials;
use crate::handover::Handover;
use crate::rotation::Rotation;
use crate::sources::Sources;
use crate::store::Store;
use crate::transport;

/// Runs a vault until shutdown.
///
/// # Errors
/// Where the master key, the broker or the store is not there at start, or a task fails for good.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    // First, so that what a person has to do is said at once.
    let master = Arc::new(config.master_key.load(&config.store)?);
    let Some(bus) = config.kit.connect_with_streams("vault", &shutdown).await? else { return Ok(()) };
    let store = Store::open(&config.store).await?;
    let rotation = Rotation::new(store.clone(), Arc::clone(&master));
    let keys = Arc::new(rotation.keys().await?);
    let (outbox, publisher) = Outbox::open(store.db().clone(), bus.clone()).await?;
    let credentials = Arc::new(Credentials::new(store.clone(), outbox.clone(), master, keys));
    let handover = Handover::new(Arc::clone(&credentials), transport::Witnesses::new(bus.clone()));
    let shared = Arc::new(transport::Vault {
        bus: bus.clone(),
        store: store.clone(),
        sources: Sources::new(store.clone()),
        credentials,
        handover,
        rotation,
    });
    // The publisher stops behind those who give it work.
    let draining = CancellationToken::new();
    let mut running = Tasks::new(shutdown.clone());
    running.spawn("publisher", {
        let draining = draining.clone();
        async move { Ok(publisher.run(draining).await?) }
    });
    let forgetting = store.db().clone().forget_old_events(shutdown.clone());
    running.spawn("old events", async move { Ok(forgetting.await?) });
    running.spawn("lag", metrics::watch_outbox("credentials", move || outbox.lag(), shutdown.clone()));
    if let Some(listen) = config.kit.health_listen {
        running.spawn("health", health::serve(listen, bus.clone(), shutdown.clone()));
    }
    let service = transport::serve(&shared).await?;
    tracing::info!(store = store.db().kind(), broker = bus.broker_version(), "the vault serves");
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
