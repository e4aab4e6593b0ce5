//! Level-triggered safety: what a run waits for is sent again until its consequence is seen.

use std::collections::HashSet;
use std::time::Duration;

use errand_core::RunId;
use errand_core::run::RunStatus;
use errand_store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::effects::Effects;
use crate::store::OpenKey;
use crate::world::World;

const EVERY: Duration = Duration::from_secs(5);
/// A run that has just changed is not swept: what its change asks for is under way.
const SETTLED_MS: u64 = 3_000;
/// Keys that are read at once.
const PAGE: u32 = 10_000;
/// Runs that are read whole, and asked for in one message.
const AT_ONCE: usize = 1_000;
/// Runs that one sweep asks for, the oldest first: the next goes on. Where a hundred thousand wait, a session-pool that
/// has restarted hears of no more at once than it has work in until then, and the work that goes on has its time, too.
const MOST: usize = 10_000;

/// Sweeps until shutdown.
///
/// # Errors
/// None at present: what fails is tried by the next sweep.
pub async fn run<W: World>(world: W, effects: Effects<W>, shutdown: CancellationToken) -> anyhow::Result<()> {
    loop {
        if let Err(error) = sweep(&world, &effects).await {
            tracing::warn!(%error, "a sweep broke off");
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

async fn sweep<W: World>(world: &W, effects: &Effects<W>) -> Result<(), StoreError> {
    if errand_core::mutated!(DropTheSweep) {
        return Ok(());
    }
    let mut after: Option<RunId> = None;
    let (mut waiting, mut assigned) = (HashSet::new(), HashSet::new());
    let mut left = MOST;
    loop {
        let page = world.open_keys(after, PAGE).await?;
        let now = world.now();
        let is_due = |key: &&OpenKey| now.millis_since(key.updated_at) >= SETTLED_MS && effects.is_owed(key);
        let due: Vec<RunId> = page.iter().filter(is_due).map(|key| key.id).take(left).collect();
        left -= due.len();
        for due in due.chunks(AT_ONCE) {
            effects.send_again(&world.runs(due).await?);
        }
        let of = |status| page.iter().filter(move |key| key.status == status).map(|key| key.id);
        waiting.extend(of(RunStatus::Queued));
        assigned.extend(of(RunStatus::Running));
        match page.last() {
            Some(last) if page.len() == PAGE as usize => after = Some(last.id),
            _ => break,
        }
    }
    // What came to be open while this looked is forgotten with the rest, and sent once more by the next sweep.
    effects.keep(&waiting, &assigned);
    Ok(())
}
