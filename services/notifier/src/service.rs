//! Owns the tasks: one takes events and tells them on, one says how far that is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use errand_bus::Bus;
use errand_kit::{Tasks, health};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::fan_out::Progress;
use crate::transport;

/// How often the lag is logged, where there is any.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Events that may wait before it is worth a warning: a third of a second's at full load.
const MUCH: u64 = 10_000;

/// Runs a notifier until shutdown.
///
/// # Errors
/// Where the broker cannot be reached at start, or a task fails.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let bus = config.kit.connect("notifier").await?;
    let progress = Arc::new(Mutex::new(Progress::default()));
    let mut tasks = Tasks::new(shutdown.clone());
    if let Some(listen) = config.kit.health_listen {
        tasks.spawn("health", health::serve(listen, bus.clone(), shutdown.clone()));
    }
    let service = transport::serve(&bus, Arc::clone(&progress)).await?;
    tasks.spawn("lag", report(bus.clone(), Arc::clone(&progress), shutdown.clone()));
    let consuming = transport::consume(bus, config.batch, progress, shutdown);
    tasks.spawn("events", async move { Ok(consuming.await?) });
    let ended = tasks.join().await;
    service.stop(Duration::from_secs(1)).await;
    ended
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
