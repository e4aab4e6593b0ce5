//! Writes down what became of attempts, all in one place with natural batching: while one commit is under way, what
//! comes waits, and the next takes all of it.

use std::collections::HashMap;
use std::time::Duration;

use errand_bus::recv_batch;
use tokio::sync::mpsc;

use crate::store::{Record, Store};

/// Outcomes that go in one transaction.
const BATCH: usize = 1024;
/// Outcomes that wait; then whoever has more waits, too.
const QUEUE: usize = 4096;
/// Pause before a batch is written again that the store did not take; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// It is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Which delivery.
    pub position: i64,
    /// Of which object.
    pub object: i64,
    /// It is due again.
    pub again: bool,
}

/// One outcome, and who wants to know that it is written down.
#[derive(Debug)]
pub struct Outcome {
    /// What is written.
    pub record: Record,
    /// Since when the destination fails, where that has changed.
    pub failing_since: Option<Option<i64>>,
    /// Who is told. The window of a worker bounds what waits here.
    pub settled: mpsc::UnboundedSender<Settled>,
}

/// Where outcomes go.
pub type Outcomes = mpsc::Sender<Outcome>;

/// A recorder's two ends.
#[must_use]
pub fn channel() -> (Outcomes, mpsc::Receiver<Outcome>) {
    mpsc::channel(QUEUE)
}

/// Records until the last sender is gone.
///
/// # Errors
/// Where the store will never take it.
pub async fn run(store: Store, mut outcomes: mpsc::Receiver<Outcome>) -> anyhow::Result<()> {
    let mut batch: Vec<Outcome> = Vec::new();
    while recv_batch(&mut outcomes, &mut batch, BATCH).await > 0 {
        let mut health: HashMap<i64, Option<i64>> = HashMap::new();
        let mut records = Vec::with_capacity(batch.len());
        let mut told = Vec::with_capacity(batch.len());
        for Outcome { record, failing_since, settled } in batch.drain(..) {
            if let Some(since) = failing_since {
                health.insert(record.destination, since);
            }
            let again = record.holds || record.finished_at.is_none();
            told.push((settled, Settled { position: record.position, object: record.object, again }));
            records.push(record);
        }
        let health: Vec<(i64, Option<i64>)> = health.into_iter().collect();
        write(&store, &records, &health).await?;
        for (worker, settled) in told {
            // One that has ended does not want to know.
            let _ = worker.send(settled);
        }
    }
    Ok(())
}

/// Writes until it is written: to write it twice changes nothing.
async fn write(store: &Store, records: &[Record], health: &[(i64, Option<i64>)]) -> anyhow::Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        match store.record(records, health).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, outcomes = records.len(), "outcomes wait for the store");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
