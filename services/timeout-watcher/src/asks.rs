//! What the watcher asks of the dispatcher: the snapshot of all that is armed, and to act on what has passed.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use errand_core::Timestamp;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::timers::{ArmedRun, Expiry};
use crate::watch::{Answer, Watch};

/// How long to wait before the dispatcher is asked for a page again, at first and at most.
const PAGE_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The dispatcher, as the watcher speaks to it.
pub trait Asks: Clone + Send + Sync + 'static {
    /// Why there is no page.
    type Error: Display + Send;

    /// A page of what is armed, behind a run, and where the next one begins.
    fn page(&self, after: String) -> impl Future<Output = Result<(Vec<ArmedRun>, Option<String>), Self::Error>> + Send;
    /// Asks the dispatcher to act on what has passed.
    fn expire(&self, expiries: &[Expiry]) -> impl Future<Output = Answer> + Send;
}

/// All pages, however long it takes. It arms and never disarms: what the snapshot does not hold is newer than the
/// snapshot, or final, which the dispatcher says when it is asked.
pub async fn load<C: Fn() -> Timestamp>(asks: &impl Asks, watch: &Watch<C>) {
    if errand_core::mutated!(LoseDeadlinesOnRestart) {
        return;
    }
    let (mut after, mut pause) = (String::new(), PAGE_AGAIN.0);
    loop {
        match asks.page(after.clone()).await {
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
    watch.note_snapshot(watch.now());
}

/// Asks the dispatcher about all that has passed. While requests are under way more comes to be due, and goes
/// together.
///
/// # Errors
/// Where an ask has died.
pub async fn fire<C: Fn() -> Timestamp + Send + Sync + 'static>(
    asks: impl Asks,
    watch: Arc<Watch<C>>,
    in_flight: u16,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let permits = Arc::new(Semaphore::new(usize::from(in_flight)));
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = watch.wait() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        // An ask that died would keep its expiries for ever.
        while let Some(ended) = under_way.try_join_next() {
            ended?;
        }
        let mut permit = Some(Arc::clone(&permits).acquire_owned().await?);
        for expiries in watch.due(watch.now()) {
            let permit = match permit.take() {
                Some(permit) => permit,
                None => Arc::clone(&permits).acquire_owned().await?,
            };
            let (asks, watch) = (asks.clone(), Arc::clone(&watch));
            under_way.spawn(async move {
                let sent = Instant::now();
                let answer = asks.expire(&expiries).await;
                watch.settle(&expiries, answer, sent, watch.now());
                drop(permit);
            });
        }
    }
}
