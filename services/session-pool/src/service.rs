//! Owns the tasks and clients of a session-pool.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use errand_kit::{Tasks, health, metrics};
use errand_store::Outbox;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::engine::{self, Engine, Kept};
use crate::pool::Pool;
use crate::store::{Ownership, Store};
use crate::transport::internal::Desk;
use crate::transport::{self, Live, Outgoing};

/// How often a pool that stands by looks whether it is needed.
const STAND_BY: Duration = Duration::from_millis(500);

/// Runs a session-pool until shutdown. Where another one owns the store, it stands by until that one is gone.
///
/// # Errors
/// Where the broker or the store is not there at start, or a task fails for good.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let policy = config.policy()?;
    let Some(bus) = config.kit.connect_with_streams("session-pool", &shutdown).await? else { return Ok(()) };
    let store = Store::open(&config.store).await?;
    let mut running = Tasks::new(shutdown.clone());
    // Also while it stands by: it lives, and is ready to take over.
    if let Some(listen) = config.kit.health_listen {
        running.spawn("health", health::serve(listen, bus.clone(), shutdown.clone()));
    }
    let Some(owner) = take_over(&store, &shutdown).await? else { return Ok(()) };
    let (outbox, publisher) = Outbox::open(store.db().clone(), bus.clone()).await?;
    let stored = store.load().await.context("the sessions cannot be read")?;
    let sessions = stored.sessions.len();
    let pool = Pool::restore(policy, stored, engine::now());
    let epoch = owner.epoch.to_string();
    let (handle, inputs) = engine::channel();
    let outgoing =
        Outgoing::new(Live { bus: bus.clone(), start_timeout: config.start_timeout() }, handle.clone(), epoch.clone());
    let lag = outbox.clone();
    let kept = Kept { store: store.clone(), owner, outbox };
    let engine = Engine::new(kept, pool, inputs, outgoing);
    let shared = Arc::new(transport::SessionPool {
        bus: bus.clone(),
        store: store.clone(),
        desk: Desk { engine: handle, epoch, heartbeat_seconds: config.heartbeat_seconds },
    });
    // The engine and the publisher stop behind those who give them work.
    let (draining, drained) = (CancellationToken::new(), CancellationToken::new());
    running.spawn("engine", {
        let (draining, drained) = (draining.clone(), drained.clone());
        async move {
            let ended = engine.run(draining).await;
            drained.cancel();
            ended
        }
    });
    running.spawn("publisher", async move { Ok(publisher.run(drained).await?) });
    let forgetting = store.db().clone().forget_old_events(shutdown.clone());
    running.spawn("old events", async move { Ok(forgetting.await?) });
    let forgetting = store.clone().forget_old_sessions(config.keep_days, shutdown.clone());
    running.spawn("old sessions", async move { Ok(forgetting.await?) });
    running.spawn("lag", metrics::watch_outbox("sessions", move || lag.lag(), shutdown.clone()));
    let service = transport::serve(&shared).await?;
    running.spawn("hello", transport::say_hello(Arc::clone(&shared), shutdown.clone()));
    let (store_kind, broker) = (store.db().kind(), bus.broker_version());
    tracing::info!(store = store_kind, broker, sessions, "the session-pool serves");
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

/// Waits until the store is this pool's; none where the shutdown comes first.
async fn take_over(store: &Store, shutdown: &CancellationToken) -> anyhow::Result<Option<Ownership>> {
    let mut told = false;
    loop {
        if let Some(owner) = store.take_over(Uuid::now_v7()).await? {
            return Ok(Some(owner));
        }
        if !told {
            tracing::info!("another session-pool serves; standing by");
            told = true;
        }
        tokio::select! {
            () = tokio::time::sleep(STAND_BY) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
    }
}
