//! Owns the tasks: what is told of runs comes in, what has passed goes out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use errand_bus::{Bus, BusError, Delivery};
use errand_kit::{Tasks, health, metrics};
use futures::{Stream, StreamExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::transport;
use crate::watch::{Watch, now};

/// How often it is shown how many runs are held.
const SHOW_EVERY: Duration = Duration::from_secs(5);

/// Between two snapshots at least, whatever calls for them.
const SNAPSHOT_GAP: Duration = Duration::from_secs(2);

/// How long to wait before the dispatcher is asked for a page again, at first and at most.
const PAGE_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Runs a watcher until shutdown.
///
/// # Errors
/// Where the broker cannot be reached at start, or a task fails.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let bus = config.kit.connect("timeout-watcher").await?;
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
    tasks.spawn("expiries", fire(bus, watch, config.asks_in_flight, shutdown));
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
    let mut connections = bus.connections();
    connections.mark_unchanged();
    tokio::select! {
        () = load(&bus, &watch) => {}
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
            load(&bus, &watch).await;
            tracing::info!(armed = watch.status().armed, because, "the snapshot is loaded again");
            tokio::time::sleep(SNAPSHOT_GAP).await;
        };
        tokio::select! {
            () = again => {}
            () = shutdown.cancelled() => break,
        }
    }
    service.stop(Duration::from_secs(1)).await;
    Ok(())
}

/// All pages, however long it takes. It arms and never disarms: what the snapshot does not hold is newer than the
/// snapshot, or final, which the dispatcher says when it is asked.
async fn load(bus: &Bus, watch: &Watch) {
    let (mut after, mut pause) = (String::new(), PAGE_AGAIN.0);
    loop {
        match transport::list_deadlines(bus, watch, after.clone()).await {
            Ok((runs, next)) => {
                watch.arm(&runs);
                pause = PAGE_AGAIN.0;
                match next {
                    Some(next) => after = next,
                    None => break,
                }
            }
            Err(error) => {
                if pause >= PAGE_AGAIN.1 {
                    tracing::warn!(%error, "no snapshot yet; the dispatcher is asked again");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAGE_AGAIN.1);
            }
        }
    }
    watch.note_snapshot(now());
}

/// Asks the dispatcher about all that has passed. While requests are under way more comes to be due, and goes
/// together.
async fn fire(bus: Bus, watch: Arc<Watch>, in_flight: u16, shutdown: CancellationToken) -> anyhow::Result<()> {
    let permits = Arc::new(Semaphore::new(usize::from(in_flight)));
    let mut asks = JoinSet::new();
    loop {
        tokio::select! {
            () = watch.wait() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        // An ask that died would keep its expiries for ever.
        while let Some(ended) = asks.try_join_next() {
            ended?;
        }
        let mut permit = Some(Arc::clone(&permits).acquire_owned().await?);
        for expiries in watch.due(now()) {
            let permit = match permit.take() {
                Some(permit) => permit,
                None => Arc::clone(&permits).acquire_owned().await?,
            };
            let (bus, watch) = (bus.clone(), Arc::clone(&watch));
            asks.spawn(async move {
                let sent = Instant::now();
                let answer = transport::expire(&bus, &watch, &expiries).await;
                watch.settle(&expiries, answer, sent, now());
                drop(permit);
            });
        }
    }
}
