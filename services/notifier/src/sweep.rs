//! Deletes what has had its time.

use std::time::Duration;

use errand_core::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::clock::now;
use crate::store::Store;

/// Deletes what is old, until shutdown.
///
/// # Errors
/// None at present: what fails is tried again.
pub(crate) async fn sweep(
    store: Store,
    every: Duration,
    kept: Duration,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let kept = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
        let before = Timestamp(now().0.saturating_sub(kept));
        match store.sweep(before.0).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "what was old is deleted"),
            Err(error) => tracing::warn!(%error, "what is old cannot be deleted yet"),
        }
    }
}
