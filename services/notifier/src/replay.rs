//! Works on replays, one at a time: reads the event stream from where the job is, and puts what fits its destination
//! into the queue. Each piece commits with the job's new place, so that whoever goes on repeats nothing.

use std::sync::Arc;
use std::time::Duration;

use errand_bus::{Bus, Delivery, FollowFrom, follow, waiting};
use errand_core::EventId;
use errand_proto::v1;
use futures::StreamExt;
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::catalog::Catalog;
use crate::clock::now;
use crate::destination::Destination;
use crate::hints::Hints;
use crate::store::{Entry, Replay, Store};

/// Events of one piece.
const PIECE: usize = 256;
/// How long a job is its worker's without a new piece.
const CLAIM: Duration = Duration::from_secs(10);
/// How often it is looked whether somebody has left a job.
const LOOK: Duration = Duration::from_secs(5);
/// When nothing has come for so long, it is asked whether there is more.
const QUIET: Duration = Duration::from_millis(300);
/// Pause after a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Replays {
    /// Which notifier this is.
    pub me: Uuid,
    /// The event stream.
    pub bus: Bus,
    /// Jobs, and the queue.
    pub store: Store,
    /// Destinations.
    pub catalog: Arc<Catalog>,
    /// Tells workers.
    pub hints: Hints,
}

impl Replays {
    /// Until shutdown.
    ///
    /// # Errors
    /// None at present: what fails is tried again.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let working = async {
            loop {
                if let Err(error) = self.work().await {
                    tracing::warn!(%error, "a replay is interrupted; it goes on where it was");
                    tokio::time::sleep(AGAIN).await;
                }
                tokio::select! {
                    () = self.hints.until_replay() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        };
        // Each piece is one transaction: there is nothing to finish.
        tokio::select! {
            () = working => {}
            () = shutdown.cancelled() => {}
        }
        Ok(())
    }

    /// All jobs that nobody works on.
    async fn work(&self) -> anyhow::Result<()> {
        while let Some(mut replay) = self.store.claim_replay(self.me, now(), CLAIM).await? {
            let picture = self.catalog.refreshed().await?;
            if let Some(destination) = picture.get(replay.destination) {
                self.replay(&mut replay, destination).await?;
            }
            self.store.end_replay(self.me, &replay).await?;
        }
        Ok(())
    }

    async fn replay(&self, replay: &mut Replay, destination: &Destination) -> anyhow::Result<()> {
        let stream = self.bus.event_stream_state().await?.created_at_ms;
        if replay.stream != stream {
            // Its places are another stream's: what was published at the time of the last comes once more.
            (replay.stream, replay.sequence) = (stream, 0);
        }
        let filter = self.bus.subjects().events_of(Some(&destination.tenant));
        loop {
            let from = match u64::try_from(replay.sequence) {
                Ok(sequence) if sequence > 0 => FollowFrom::Sequence(sequence + 1),
                _ => FollowFrom::Time(replay.at),
            };
            if waiting(&self.bus, filter.clone(), from).await? == 0 {
                return Ok(());
            }
            let mut deliveries = follow(&self.bus, filter.clone(), from).await?.ready_chunks(PIECE);
            while let Ok(Some(piece)) = tokio::time::timeout(QUIET, deliveries.next()).await {
                let piece: Vec<Delivery> = piece.into_iter().collect::<Result<_, _>>()?;
                let old: Vec<Delivery> =
                    piece.iter().filter(|delivery| delivery.published_at_ms <= replay.until).cloned().collect();
                if !self.put(replay, destination, &old).await? || old.len() < piece.len() {
                    return Ok(());
                }
            }
        }
    }

    /// Puts a piece into the queue. False: somebody else works on the job.
    async fn put(&self, replay: &mut Replay, destination: &Destination, piece: &[Delivery]) -> anyhow::Result<bool> {
        let Some(last) = piece.last() else { return Ok(true) };
        replay.sequence = i64::try_from(last.stream_sequence).unwrap_or(i64::MAX);
        replay.at = last.published_at_ms;
        let entries: Vec<Entry> = piece.iter().filter_map(|delivery| entry(destination, delivery)).collect();
        let kept = self.store.advance_replay(self.me, replay, &entries, now(), CLAIM).await?;
        if kept && !entries.is_empty() {
            self.hints.due([destination.number].into()).await;
        }
        Ok(kept)
    }
}

/// What of the stream fits a destination. What cannot be read was a dead letter when it came.
fn entry(destination: &Destination, delivery: &Delivery) -> Option<Entry> {
    let event = v1::Event::decode(delivery.payload.clone()).ok()?;
    let id: EventId = event.id.parse().ok()?;
    let definition = &destination.definition;
    (definition.wants(&event.r#type) && definition.filter.fits(&event)).then(|| Entry {
        id,
        event_type: event.r#type,
        object_id: event.object_id,
        payload: delivery.payload.clone(),
        destinations: vec![destination.number],
    })
}
