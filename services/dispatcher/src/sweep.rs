//! Level-triggered safety: what a run waits for is sent again until its consequence is seen.

use std::collections::HashSet;
use std::time::Duration;

use errand_core::RunId;
use errand_core::run::{Run, RunStatus};
use errand_store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::effects::Effects;
use crate::world::World;

const EVERY: Duration = Duration::from_secs(5);
/// A run that has just changed is not swept: what its change asks for is under way.
const SETTLED_MS: u64 = 3_000;
const PAGE: u32 = 1_000;

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
    loop {
        let page = world.open_runs(after, PAGE).await?;
        let now = world.now();
        let is_due = |run: &&Run| now.millis_since(run.updated_at) >= SETTLED_MS && effects.is_owed(run);
        let due: Vec<RunId> = page.iter().filter(is_due).map(|run| run.id).collect();
        // Once more, whole: the page holds no inputs.
        effects.send_again(&world.runs(&due).await?);
        waiting.extend(page.iter().filter(|run| run.status() == RunStatus::Queued).map(|run| (run.id, run.attempt)));
        assigned.extend(page.iter().filter_map(Run::lease).map(|lease| lease.token));
        match page.last() {
            Some(last) if page.len() == PAGE as usize => after = Some(last.id),
            _ => break,
        }
    }
    // What came to be open while this looked is forgotten with the rest, and sent once more by the next sweep.
    effects.keep(&waiting, &assigned);
    Ok(())
}
