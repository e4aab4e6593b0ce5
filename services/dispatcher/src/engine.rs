//! Natural batching: while one commit is under way, what arrives waits; the next commit takes all of it. No timer,
//! so an idle dispatcher adds no delay, and a loaded one commits hundreds at once.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;

use errand_core::run::{
    Change, Command, Effect, Ignored, LeaseToken, Outcome, Run, apply, check_change, implied, submit, touch,
};
use errand_core::{Error, ErrorCode, RunId, Tenant, Timestamp, mutated};
use errand_proto::event::of_run;
use lru::LruCache;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::catalog::unavailable;
use crate::effects::Effects;
use crate::observe::Commit;
use crate::store::Batch;
use crate::world::World;

/// Commands in one commit.
const BATCH: usize = 512;
/// Commands that may wait; beyond, callers wait to hand theirs over.
const QUEUE: usize = 8192;
/// Runs kept in memory.
const CACHE: NonZeroUsize = NonZeroUsize::new(50_000).expect("not zero");
/// How often a command is decided anew after a conflict with another dispatcher.
const TRIES: usize = 8;
/// How often activity is written down.
const TOUCH_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

/// What became of a command.
#[derive(Debug, Clone)]
pub struct Done {
    /// The run as it is committed.
    pub run: Run,
    /// Why nothing changed; none where it did.
    pub ignored: Option<Ignored>,
}

/// Where the answer goes.
type Reply = oneshot::Sender<Result<Done, Error>>;

#[derive(Debug)]
enum What {
    Submit { run: Box<Run>, validity: Result<(), Error> },
    Apply { tenant: Option<Tenant>, command: Command },
}

#[derive(Debug)]
struct Work {
    run_id: RunId,
    what: What,
    reply: Reply,
}

#[derive(Debug)]
struct Activity {
    run_id: RunId,
    token: LeaseToken,
    at: Timestamp,
}

/// How the rest of the dispatcher reaches the engine.
#[derive(Debug, Clone)]
pub struct Handle {
    works: mpsc::Sender<Work>,
    activity: mpsc::Sender<Activity>,
}

impl Handle {
    /// Submits a run; one of the same id that is there already is answered instead.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn submit(&self, run: Run, validity: Result<(), Error>) -> Result<Done, Error> {
        self.send(run.id, What::Submit { run: Box::new(run), validity }).await
    }

    /// Applies a command. With a tenant, another tenant's run is not found.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn apply(&self, run_id: RunId, tenant: Option<Tenant>, command: Command) -> Result<Done, Error> {
        self.send(run_id, What::Apply { tenant, command }).await
    }

    /// Takes note of a sign of life; lossy.
    pub fn activity(&self, run_id: RunId, token: LeaseToken, at: Timestamp) {
        if self.activity.try_send(Activity { run_id, token, at }).is_err() {
            tracing::debug!("activity is dropped: too much of it waits");
        }
    }

    async fn send(&self, run_id: RunId, what: What) -> Result<Done, Error> {
        let stopping = || ErrorCode::API_UNAVAILABLE.with("the dispatcher is stopping; try again");
        let (reply, answer) = oneshot::channel();
        self.works.send(Work { run_id, what, reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

/// The one writer of this dispatcher.
pub struct Engine<W: World> {
    world: W,
    effects: Effects<W>,
    cache: LruCache<RunId, Run>,
    works: mpsc::Receiver<Work>,
    activity: mpsc::Receiver<Activity>,
    touched: HashMap<RunId, Timestamp>,
}

/// What a batch has decided so far.
#[derive(Default)]
struct Decided {
    /// The newest version of each run that changes, and the version in the store (0: none).
    runs: HashMap<RunId, (Run, u64)>,
    order: Vec<RunId>,
    events: Vec<errand_proto::v1::Event>,
    effects: Vec<(RunId, Run, Vec<Effect>)>,
    settled: Vec<(Work, Result<Done, Error>)>,
    /// Runs that were read from the store for this batch.
    fresh: HashSet<RunId>,
    /// Runs whose place in the cache is in doubt, and what waits for them to be read.
    doubtful: HashSet<RunId>,
    again: Vec<Work>,
}

impl<W: World> Engine<W> {
    /// An engine and the handle to it.
    #[must_use]
    pub fn new(world: W, effects: Effects<W>) -> (Self, Handle) {
        let (works_in, works) = mpsc::channel(QUEUE);
        let (activity_in, activity) = mpsc::channel(QUEUE);
        let cache = LruCache::new(CACHE);
        let engine = Self { world, effects, cache, works, activity, touched: HashMap::new() };
        (engine, Handle { works: works_in, activity: activity_in })
    }

    /// Commits until shutdown, and then what still waits.
    ///
    /// # Errors
    /// None at present: what fails is answered.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut touch_time = tokio::time::interval(TOUCH_EVERY);
        loop {
            let mut works = Vec::new();
            tokio::select! {
                biased;
                count = self.works.recv_many(&mut works, BATCH) => if count == 0 { break },
                Some(activity) = self.activity.recv() => self.note(&activity),
                _ = touch_time.tick() => self.write_activity().await,
                () = shutdown.cancelled() => self.works.close(),
            }
            if !works.is_empty() {
                self.batch(works).await;
            }
        }
        self.write_activity().await;
        Ok(())
    }

    fn note(&mut self, activity: &Activity) {
        // A time from the future would keep a dead agent alive.
        let at = activity.at.min(self.world.now());
        if let Some(run) = self.cache.get_mut(&activity.run_id)
            && touch(run, activity.token, at)
        {
            self.touched.insert(activity.run_id, at);
        }
    }

    async fn write_activity(&mut self) {
        let touched: Vec<_> = self.touched.drain().collect();
        if let Err(error) = self.world.touch(&touched).await {
            tracing::warn!(%error, "activity could not be written down");
        }
    }

    async fn batch(&mut self, mut works: Vec<Work>) {
        for tried in 0..TRIES {
            works = self.try_batch(works, tried == 0).await;
            if works.is_empty() {
                return;
            }
        }
        for work in works {
            let error = ErrorCode::API_UNAVAILABLE.with("the run is changed by others all the time; try again");
            let _asker_gone = work.reply.send(Err(error));
        }
    }

    /// Decides and commits once; gives back what met a conflict. The first time a submission is taken for a new run
    /// without a look into the store, as nearly all are: the commit finds those that are not.
    async fn try_batch(&mut self, works: Vec<Work>, first: bool) -> Vec<Work> {
        let to_read = works.iter().filter(|work| !(first && matches!(work.what, What::Submit { .. })));
        let fresh = match self.load(to_read.map(|work| work.run_id).collect()).await {
            Ok(fresh) => fresh,
            Err(error) => {
                refuse(works, &error);
                return Vec::new();
            }
        };
        let now = self.world.now();
        let mut decided = Decided { fresh, ..Decided::default() };
        for mut work in works {
            if let Err(error) = self.check_output(&mut work).await {
                decided.settled.push((work, Err(error)));
                continue;
            }
            self.decide(work, &mut decided, now);
        }
        self.commit(decided).await
    }

    /// Brings these runs into the cache, and what others may not have published of them to the outbox: it must go
    /// before what is decided now.
    async fn load(&mut self, mut fresh: HashSet<RunId>) -> Result<HashSet<RunId>, Error> {
        fresh.retain(|id| !self.cache.contains(id));
        let missing: Vec<RunId> = fresh.iter().copied().collect();
        let found = self.world.runs(&missing).await.map_err(unavailable)?;
        let objects: Vec<[u8; 16]> = found.iter().map(|run| *run.id.uuid().as_bytes()).collect();
        let earlier = self.world.outbox().unpublished_of_others(&objects).await.map_err(unavailable)?;
        if !mutated!(OvertakeOtherWriters) {
            self.world.outbox().publish(earlier);
        }
        for run in found {
            self.cache.put(run.id, run);
        }
        Ok(fresh)
    }

    /// Checks a finished run's output against the schema of the version that the run began with.
    async fn check_output(&mut self, work: &mut Work) -> Result<(), Error> {
        let What::Apply { command: Command::Finish { output, .. }, .. } = &mut work.what else { return Ok(()) };
        let Some(run) = self.cache.get(&work.run_id) else { return Ok(()) };
        let task = self.world.task(run.spec.task_id, run.spec.task_version).await?;
        output.misfit = match task {
            Some(task) => task.misfit_of_output(&output.json),
            None => Some("the task's version is gone".into()),
        };
        Ok(())
    }

    fn decide(&mut self, work: Work, decided: &mut Decided, now: Timestamp) {
        if decided.doubtful.contains(&work.run_id) {
            decided.again.push(work);
            return;
        }
        let current =
            decided.runs.get(&work.run_id).map(|(run, _)| run).or_else(|| self.cache.peek(&work.run_id)).cloned();
        let result = match (&work.what, &current) {
            (What::Submit { run, validity }, None) => {
                let change = submit((**run).clone(), validity.clone(), now);
                Ok(decided.take(change, None, &self.world))
            }
            (What::Submit { run, .. }, Some(existing)) if existing.tenant == run.tenant => {
                Ok(Done { run: existing.clone(), ignored: Some(Ignored::Repeated) })
            }
            (What::Submit { .. }, Some(_)) => {
                Err(ErrorCode::INPUT_INVALID.with("run_id is taken; choose another").at("run_id"))
            }
            (What::Apply { .. }, None) => Err(not_found(work.run_id)),
            (What::Apply { tenant: Some(tenant), .. }, Some(run)) if run.tenant != *tenant => {
                Err(not_found(work.run_id))
            }
            (What::Apply { command, .. }, Some(run)) => decided.apply(run, command, now, &self.world),
        };
        // A change is checked against the version in the store by its commit; that nothing changes is not. Another
        // dispatcher may have moved the run since it was cached: read it, and decide again.
        let changes = matches!(&result, Ok(Done { ignored: None, .. }));
        if !changes
            && !mutated!(TrustTheCache)
            && !decided.fresh.contains(&work.run_id)
            && !decided.runs.contains_key(&work.run_id)
        {
            self.cache.pop(&work.run_id);
            decided.doubtful.insert(work.run_id);
            decided.again.push(work);
            return;
        }
        decided.settled.push((work, result));
    }

    async fn commit(&mut self, decided: Decided) -> Vec<Work> {
        let Decided { mut runs, order, events, mut effects, mut settled, mut again, .. } = decided;
        let events = match self.world.outbox().stage(events) {
            Ok(events) => events,
            Err(error) => {
                refuse(settled.into_iter().map(|(work, _)| work).collect(), &unavailable(error));
                return again;
            }
        };
        let mut batch = Batch { events, ..Batch::default() };
        for id in order {
            match runs.remove(&id) {
                Some((run, 0)) => batch.new.push(run),
                Some((run, version)) => batch.changed.push((run, version)),
                None => {}
            }
        }
        if mutated!(PublishBeforeCommit) {
            self.world.outbox().publish(batch.events.clone());
        }
        if mutated!(EffectsBeforeCommit) {
            self.effects.send(std::mem::take(&mut effects).into_iter());
        }
        if mutated!(AnswerBeforeCommit) {
            for (work, result) in std::mem::take(&mut settled) {
                let _asker_gone = work.reply.send(result);
            }
        }
        let commit = Commit::begin(batch.new.len() + batch.changed.len());
        let conflicts = match self.commit_batch(&mut batch).await {
            Ok(conflicts) => conflicts,
            Err(error) => {
                refuse(settled.into_iter().map(|(work, _)| work).collect(), &error);
                return again;
            }
        };
        for run in batch.new.into_iter().chain(batch.changed.into_iter().map(|(run, _)| run)) {
            if conflicts.contains(&run.id) || run.status().is_final() {
                self.cache.pop(&run.id);
            } else {
                self.cache.put(run.id, run);
            }
        }
        self.world.outbox().publish(batch.events);
        commit.ended(effects.iter().filter(|(id, ..)| !conflicts.contains(id)).map(|(_, run, _)| run));
        self.effects.send(effects.into_iter().filter(|(id, ..)| !conflicts.contains(id)));
        let (conflicted, done): (Vec<_>, Vec<_>) =
            settled.into_iter().partition(|(work, _)| conflicts.contains(&work.run_id) && !mutated!(DropOnConflict));
        for (work, result) in done {
            let _asker_gone = work.reply.send(result);
        }
        again.extend(conflicted.into_iter().map(|(work, _)| work));
        again
    }

    async fn commit_batch(&mut self, batch: &mut Batch) -> Result<HashSet<RunId>, Error> {
        if batch.new.is_empty() && batch.changed.is_empty() {
            return Ok(HashSet::new());
        }
        let events = batch.events.clone();
        match self.world.commit(batch).await {
            Ok(conflicts) => Ok(conflicts),
            Err(error) => {
                // Whether it was committed is unknown: forget what we knew, and let the publisher look.
                for run in batch.new.iter().chain(batch.changed.iter().map(|(run, _)| run)) {
                    self.cache.pop(&run.id);
                }
                if !mutated!(ForgetTheUncertain) {
                    self.world.outbox().uncertain(events);
                }
                Err(unavailable(error))
            }
        }
    }
}

impl Decided {
    fn apply(&mut self, run: &Run, command: &Command, now: Timestamp, world: &impl World) -> Result<Done, Error> {
        let before =
            implied(run, command).and_then(|first| self.apply(run, &first, now, world).ok()).map(|done| done.run);
        let run = before.as_ref().unwrap_or(run);
        match apply(run, command.clone(), now) {
            Outcome::Changed(change) => Ok(self.take(*change, Some(run), world)),
            Outcome::Ignored(reason) => Ok(Done { run: run.clone(), ignored: Some(reason) }),
            Outcome::Rejected(error) => Err(error),
        }
    }

    /// What this batch itself has overtaken is not asked for: an agent would begin under a lease that is gone.
    fn take_back(&mut self, before: Option<&Run>, next: &Run) {
        let Some(lease) = before.and_then(Run::lease).filter(|lease| next.lease() != Some(*lease)) else { return };
        if self.runs.contains_key(&next.id) {
            let own = self.effects.iter_mut().filter(|(id, ..)| *id == next.id);
            own.for_each(|(.., effects)| effects.retain(|effect| *effect != Effect::Assign(lease)));
        }
    }

    fn take(&mut self, change: Change, before: Option<&Run>, world: &impl World) -> Done {
        let Change { next, effects } = change;
        debug_assert_eq!(before.map_or(Ok(()), |before| check_change(before, &next)), Ok(()));
        self.take_back(before, &next);
        self.events.push(of_run(world.event_id(), &next));
        self.effects.push((next.id, next.clone(), effects));
        let version = before.map_or(0, |run| run.seq);
        match self.runs.get_mut(&next.id) {
            Some((run, _)) => *run = next.clone(),
            None => {
                self.order.push(next.id);
                self.runs.insert(next.id, (next.clone(), version));
            }
        }
        Done { run: next, ignored: None }
    }
}

fn not_found(run_id: RunId) -> Error {
    ErrorCode::TASK_RUN_NOT_FOUND.with(format!("there is no task run {run_id}"))
}

fn refuse(works: Vec<Work>, error: &Error) {
    for work in works {
        let _asker_gone = work.reply.send(Err(error.clone()));
    }
}
