//! Keeps one worker for each active destination that this notifier has claimed. Of several notifiers each claims its
//! share; a claim that is not renewed ends, and another one takes it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use errand_store::StoreError;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::catalog::{Catalog, Picture};
use crate::clock::now;
use crate::destination::{Destination, Status};
use crate::hints::Hints;
use crate::recorder::Outcomes;
use crate::store::Round;
use crate::worker::{self, Orders, Shared};

/// Of a claim, the part in which its owner may send. The rest is for an attempt to reach its end, and for clocks that
/// run unevenly.
const USED: f64 = 0.75;

/// A worker at work.
#[derive(Debug)]
struct Employed {
    destination: watch::Sender<Arc<Destination>>,
    stop: CancellationToken,
    task: Id,
}

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    /// Which notifier this is.
    pub me: Uuid,
    /// Destinations.
    pub catalog: Arc<Catalog>,
    /// What workers share.
    pub shared: Arc<Shared>,
    /// Bells.
    pub hints: Hints,
    /// Where outcomes go.
    pub outcomes: Outcomes,
    /// How long a claim lasts without being renewed.
    pub claim: Duration,
}

/// Its workers, and those that have been told to stop.
#[derive(Debug, Default)]
struct Crew {
    employed: HashMap<i64, Employed>,
    tasks: JoinSet<i64>,
}

impl Supervisor {
    /// Until shutdown; then every worker finishes what is under way, and the claims are given back.
    ///
    /// # Errors
    /// None at present: what fails is tried again.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut crew = Crew::default();
        let mut tick = tokio::time::interval(self.claim / 4);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let round = tokio::select! {
                () = shutdown.cancelled() => break,
                _ = tick.tick() => true,
                () = self.hints.until_changed() => true,
                Some(ended) = crew.tasks.join_next_with_id() => {
                    self.ended(&mut crew, ended).await;
                    // Its place is free for another, or for itself in another form.
                    !shutdown.is_cancelled()
                }
            };
            if round && let Err(error) = self.round(&mut crew).await {
                tracing::warn!(%error, "claims cannot be renewed; nothing is sent when they end");
            }
        }
        for employed in crew.employed.values() {
            employed.stop.cancel();
        }
        while crew.tasks.join_next().await.is_some() {}
        if let Err(error) = self.shared.store.leave(self.me).await {
            tracing::debug!(%error, "claims are left to end by themselves");
        }
        Ok(())
    }

    async fn round(&self, crew: &mut Crew) -> Result<(), StoreError> {
        let picture = self.catalog.refreshed().await?;
        let asked = Instant::now();
        let Round { held, too_many } = self.shared.store.claim_round(self.me, now(), self.claim).await?;
        self.shared.claim_end.extend(asked, self.claim.mul_f64(USED));
        self.shared.figures.keep(|number| picture.get(number).is_some());
        // A claim may be newer than the picture; the next round has both.
        let mut serve: Vec<&Arc<Destination>> = held.iter().filter_map(|number| active(&picture, *number)).collect();
        serve.sort_by_key(|destination| destination.number);
        let given = serve.split_off(serve.len() - too_many.min(serve.len()));
        for (number, employed) in &crew.employed {
            let kept = serve.iter().any(|destination| destination.number == *number);
            if !kept {
                employed.stop.cancel();
            }
        }
        let idle: Vec<i64> = given
            .iter()
            .map(|destination| destination.number)
            .filter(|number| !crew.employed.contains_key(number))
            .collect();
        self.shared.store.release(self.me, &idle).await?;
        for destination in serve {
            self.employ(crew, destination);
        }
        Ok(())
    }

    fn employ(&self, crew: &mut Crew, destination: &Arc<Destination>) {
        if let Some(employed) = crew.employed.get(&destination.number) {
            employed.destination.send_if_modified(|current| {
                let newer = current.version != destination.version;
                if newer {
                    *current = Arc::clone(destination);
                }
                newer
            });
            return;
        }
        let (sender, receiver) = watch::channel(Arc::clone(destination));
        let stop = CancellationToken::new();
        let orders = Orders { destination: receiver, bell: self.hints.bell(destination.number), stop: stop.clone() };
        let (shared, outcomes, number) = (Arc::clone(&self.shared), self.outcomes.clone(), destination.number);
        let task = crew.tasks.spawn(async move {
            worker::serve(shared, orders, outcomes).await;
            number
        });
        crew.employed.insert(number, Employed { destination: sender, stop, task: task.id() });
    }

    async fn ended(&self, crew: &mut Crew, ended: Result<(Id, i64), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => {
                tracing::error!(%error, "a worker died; its destination gets another one");
                error.id()
            }
        };
        let Some(number) = crew.employed.iter().find(|(_, one)| one.task == id).map(|(number, _)| *number) else {
            return;
        };
        crew.employed.remove(&number);
        self.hints.forget(number);
        if let Err(error) = self.shared.store.release(self.me, &[number]).await {
            tracing::debug!(%error, number, "a claim is left to end by itself");
        }
    }
}

fn active(picture: &Picture, number: i64) -> Option<&Arc<Destination>> {
    picture.get(number).filter(|destination| destination.status == Status::Active)
}
