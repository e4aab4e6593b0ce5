//! Owns the tasks: what is told of runs comes in, what has passed goes out.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use errand_bus::{Bus, BusError, Delivery};
use errand_kit::{Tasks, health, metrics};
use futures::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::asks::{fire, load};
use crate::config::Config;
use crate::transport::{self, Desk};
use crate::watch::{Watch, now};

/// How often it is shown how many runs are held.
const SHOW_EVERY: Duration = Duration::from_secs(5);

/// Between two snapshots at least, whatever calls for them.
const SNAPSHOT_GAP: Duration = Duration::from_secs(2);

/// A pause so many times as long as a snapshot took: with hundreds of thousands of runs it takes seconds, and its
/// reading is the dispatcher's work. What was missed meanwhile is told by events as well.
const SNAPSHOT_REST: u32 = 9;

/// Runs a watcher until shutdown.
///
/// # Errors
/// Where the broker cannot be reached at start, or a task fails.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Some(bus) = config.kit.connect_with_streams("timeout-watcher", &shutdown).await? else { return Ok(()) };
    let watch = Arc::new(Watch::new()?);
    let mut tasks = Tasks::new(shutdown.clone());
    if let Some(listen) = config.kit.health_listen {
        tasks.spawn("health", health::serve(listen, bus.clone(), shutdown.clone()));
    }
    // What happens from here on is seen by following, what happened before is in the snapshot: so in this order.
    let events = transport::events(&bus).await?;
    tasks.spawn("events", follow(events, Arc::clone(&watch), shutdown.clone()));
    let activity = transport::activity(&bus, Arc::clone(&watch)).await?;
    tasks.spawn("activity", listen(activity, Arc::clone(&watch), shutdown.clone()));
    let every = Duration::from_secs(config.snapshot_seconds);
    tasks.spawn("snapshots", snapshots(bus.clone(), Arc::clone(&watch), every, shutdown.clone()));
    tasks.spawn("metrics", show(Arc::clone(&watch), shutdown.clone()));
    let asks = Desk { bus, watch: Arc::clone(&watch) };
    tasks.spawn("expiries", fire(asks, watch, config.asks_in_flight, shutdown));
    tasks.join().await
}

async fn follow(
    mut events: impl Stream<Item = Result<Delivery, BusError>> + Unpin,
    watch: Arc<Watch>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = shutdown.cancelled() => return Ok(()),
        };
        transport::take_event(&watch, event.context("the events have ended")??);
    }
}

async fn listen(
    mut activity: impl Stream<Item = transport::Sign> + Unpin,
    watch: Arc<Watch>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let sign = tokio::select! {
            sign = activity.next() => sign,
            () = shutdown.cancelled() => return Ok(()),
        };
        let (run_id, stamped) = sign.context("the subscription has ended")?;
        watch.touch(run_id, stamped, now());
    }
}

/// Shows how many runs are held.
async fn show(watch: Arc<Watch>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut every = tokio::time::interval(SHOW_EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => metrics().armed(watch.status().armed as u64),
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Loads the snapshot at start, and again whenever something may have been missed.
async fn snapshots(bus: Bus, watch: Arc<Watch>, every: Duration, shutdown: CancellationToken) -> anyhow::Result<()> {
    let asks = Desk { bus: bus.clone(), watch: Arc::clone(&watch) };
    let mut connections = bus.connections();
    connections.mark_unchanged();
    tokio::select! {
        () = load(&asks, &watch) => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    tracing::info!(armed = watch.status().armed, "the snapshot is loaded");
    let service = transport::serve(&bus, Arc::clone(&watch)).await?;
    loop {
        let because = tokio::select! {
            () = tokio::time::sleep(every) => "time",
            () = watch.stale() => "something was missed",
            changed = connections.changed() => changed.map(|()| "the broker is back")?,
            () = shutdown.cancelled() => break,
        };
        let again = async {
            let started = tokio::time::Instant::now();
            load(&asks, &watch).await;
            tracing::info!(armed = watch.status().armed, because, "the snapshot is loaded again");
            tokio::time::sleep(SNAPSHOT_GAP.max(started.elapsed() * SNAPSHOT_REST)).await;
        };
        tokio::select! {
            () = again => {}
            () = shutdown.cancelled() => break,
        }
    }
    service.stop(Duration::from_secs(1)).await;
    Ok(())
}
