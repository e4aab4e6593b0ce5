//! What has to go, goes: artifacts whose time has come, bytes that nobody needs, uploads that broke off.

use std::sync::Arc;
use std::time::Duration;

use errand_core::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::artifact::now;
use crate::blobs::Blobs;
use crate::store::Store;
use crate::uploads::Uploads;

/// Artifacts, or blobs, that go at once.
const BATCH: u32 = 200;

/// When it is swept.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How often.
    pub every: Duration,
    /// How long a blob may be on its way: longer than any upload's keeping takes.
    pub abandoned_after: Duration,
}

/// Sweeps until shutdown.
///
/// # Errors
/// None at present: what fails is tried by the next sweep.
pub async fn run(
    store: Store,
    blobs: Blobs,
    uploads: Arc<Uploads>,
    pace: Pace,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        uploads.expire();
        if let Err(error) = sweep(&store, &blobs, pace.abandoned_after, now()).await {
            tracing::warn!(error = format!("{error:#}"), "a sweep broke off");
        }
        tokio::select! {
            () = tokio::time::sleep(pace.every) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Deletes what has to go by this time, batch by batch.
///
/// # Errors
/// Where the store or the place of the bytes fails; the next sweep goes on.
pub async fn sweep(store: &Store, blobs: &Blobs, abandoned_after: Duration, now: Timestamp) -> anyhow::Result<()> {
    loop {
        let expired = store.expired(now, BATCH).await?;
        store.delete(&expired, now).await?;
        if expired.len() < BATCH as usize {
            break;
        }
    }
    let before = Timestamp(now.0 - i64::try_from(abandoned_after.as_millis())?);
    loop {
        let garbage = store.sweepable(before, now, BATCH).await?;
        burn(store, blobs, &garbage).await?;
        if garbage.len() < BATCH as usize {
            return Ok(());
        }
    }
}

/// Deletes the bytes of blobs that nobody needs, then forgets them.
///
/// # Errors
/// As [`sweep`].
pub async fn burn(store: &Store, blobs: &Blobs, garbage: &[Uuid]) -> anyhow::Result<()> {
    let (mut gone, mut failed) = (Vec::new(), None);
    for blob in garbage {
        match blobs.delete(*blob).await {
            Ok(()) => gone.push(*blob),
            // One that resists does not hold up the others.
            Err(error) => failed = Some(error),
        }
    }
    if !gone.is_empty() {
        store.forget(&gone).await?;
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}
