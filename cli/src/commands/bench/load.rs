//! Load, and what became of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use errand_client::{Client, NewRun, v1};
use errand_core::RunId;
use errand_core::run::RunStatus;
use futures::StreamExt;
use hdrhistogram::Histogram;
use prost::Message;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// A run without its final event for so long is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was measured of some runs.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) runs: usize,
    /// From the first submission to the last final event.
    pub(super) took: Duration,
    /// From submitting a run to seeing its final event, in microseconds.
    pub(super) latency: Histogram<u64>,
    /// What of it each of [`STAGES`] took, in milliseconds: events tell the time no finer.
    pub(super) stages: [Histogram<u64>; STAGES.len()],
}

/// The stages of a run, by the times that its final event carries.
pub(super) const STAGES: [&str; 4] = ["submitted_kept", "kept_granted", "granted_finished", "finished_seen"];

impl Measured {
    /// Nothing yet.
    pub(super) fn new() -> anyhow::Result<Self> {
        let histogram = || Histogram::new(3);
        let stages = [histogram()?, histogram()?, histogram()?, histogram()?];
        Ok(Self { runs: 0, took: Duration::ZERO, latency: histogram()?, stages })
    }

    fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.runs += other.runs;
        self.latency.add(&other.latency)?;
        for (stage, more) in self.stages.iter_mut().zip(&other.stages) {
            stage.add(more)?;
        }
        Ok(())
    }

    /// A run that was submitted `latency` before its final event was seen.
    fn record(&mut self, latency: Duration, last: &Final) -> anyhow::Result<()> {
        self.runs += 1;
        self.latency.record(u64::try_from(latency.as_micros())?)?;
        let submitted = last.seen_ms - i64::try_from(latency.as_millis())?;
        let times = [submitted, last.created_ms, last.started_ms, last.finished_ms, last.seen_ms];
        for (stage, times) in self.stages.iter_mut().zip(times.windows(2)) {
            // Rounded times of two clocks: a stage of nothing may seem to end before it began.
            stage.record(u64::try_from(times[1] - times[0]).unwrap_or(0))?;
        }
        Ok(())
    }
}

/// A final event, as it was seen.
#[derive(Debug, Clone, Copy)]
struct Final {
    at: Instant,
    seen_ms: i64,
    status: RunStatus,
    created_ms: i64,
    started_ms: i64,
    finished_ms: i64,
}

/// The final events that the client has seen.
#[derive(Debug)]
pub(super) struct Seen {
    runs: Arc<Runs>,
    _listeners: Vec<AbortOnDropHandle<()>>,
}

#[derive(Debug, Default)]
struct Runs {
    waiting: Mutex<HashMap<RunId, Waiting>>,
    repeated: AtomicU64,
}

#[derive(Debug)]
enum Waiting {
    For(oneshot::Sender<Final>),
    /// It came.
    Nothing,
}

impl Seen {
    /// Listens for the final events of these clients' runs, as any subscriber does.
    pub(super) async fn start(clients: &[Client]) -> anyhow::Result<Self> {
        let runs = Arc::new(Runs::default());
        let mut listeners = Vec::new();
        for client in clients {
            for action in ["completed", "failed", "canceled"] {
                let subject = client.bus().subjects().event(client.tenant(), "task_run", action, "*");
                let mut events = client.bus().subscribe(subject).await?;
                let runs = Arc::clone(&runs);
                listeners.push(AbortOnDropHandle::new(tokio::spawn(async move {
                    while let Some(incoming) = events.next().await {
                        let at = Instant::now();
                        match v1::Event::decode(incoming.payload) {
                            Ok(event) => runs.saw(&event, at),
                            Err(error) => eprintln!("an event cannot be read: {error}"),
                        }
                    }
                })));
            }
        }
        Ok(Self { runs, _listeners: listeners })
    }

    /// Final events that came more than once.
    pub(super) fn repeated(&self) -> u64 {
        self.runs.repeated.load(Ordering::Relaxed)
    }

    /// Whether this run is ours, and its final event was seen.
    pub(super) fn has(&self, run: &str) -> bool {
        run.parse().is_ok_and(|run: RunId| matches!(self.runs.waiting().get(&run), Some(Waiting::Nothing)))
    }
}

impl Runs {
    fn expect(&self, run: RunId) -> oneshot::Receiver<Final> {
        let (sender, receiver) = oneshot::channel();
        self.waiting().insert(run, Waiting::For(sender));
        receiver
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<RunId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saw(&self, event: &v1::Event, at: Instant) {
        let Some(v1::event::Data::Run(run)) = &event.data else { return };
        let (Ok(id), Ok(status)) = (run.id.parse::<RunId>(), RunStatus::try_from(run.status())) else { return };
        let mut waiting = self.waiting();
        let Some(entry) = waiting.get_mut(&id) else { return };
        match std::mem::replace(entry, Waiting::Nothing) {
            // Whoever waited may have given up.
            Waiting::For(sender) => drop(sender.send(Final {
                at,
                seen_ms: unix_ms(),
                status,
                created_ms: run.created_at_ms,
                started_ms: run.started_at_ms(),
                finished_ms: run.finished_at_ms(),
            })),
            Waiting::Nothing => {
                self.repeated.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Makes load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load<'a> {
    pub(super) clients: &'a Arc<[Client]>,
    /// The task of each client.
    pub(super) tasks: &'a [String],
    pub(super) seen: &'a Seen,
}

impl Load<'_> {
    /// Submits `runs` runs with `in_flight` of them under way: each place submits `batch` at once, waits until the final
    /// event of each was seen, and goes on.
    pub(super) async fn closed_loop(&self, runs: usize, in_flight: usize, batch: usize) -> anyhow::Result<Measured> {
        let left = Arc::new(AtomicUsize::new(runs));
        let places = in_flight.div_ceil(batch).max(1);
        let started = Instant::now();
        let mut set = JoinSet::new();
        for place in 0..places {
            let at = place % self.clients.len();
            let (client, task) = (self.clients[at].clone(), self.tasks[at].clone());
            let (left, seen) = (Arc::clone(&left), Arc::clone(&self.seen.runs));
            set.spawn(async move { work(&client, &task, &left, batch, &seen).await });
        }
        let mut measured = Measured::new()?;
        let mut last = started;
        while let Some(part) = set.join_next().await {
            let (part, at) = part??;
            measured.add(&part)?;
            last = last.max(at.unwrap_or(last));
        }
        measured.took = last - started;
        Ok(measured)
    }
}

impl Load<'_> {
    /// Submits `rate` runs a second for so long, however many are under way. Latencies are from when a run was to be
    /// submitted: what comes too late to be submitted in time has waited.
    pub(super) async fn open_loop(&self, rate: f64, time: Duration) -> anyhow::Result<Measured> {
        let runs = (rate * time.as_secs_f64()).ceil() as usize;
        let started = Instant::now();
        let mut set = JoinSet::new();
        for number in 0..runs {
            let due = started + Duration::from_secs_f64(number as f64 / rate);
            tokio::time::sleep_until(due).await;
            let at = number % self.clients.len();
            let (client, run) = (self.clients[at].clone(), NewRun::of_task(&self.tasks[at])?);
            let wait = self.seen.runs.expect(run.id());
            set.spawn(async move {
                let id = run.id();
                client.submit(run).await?;
                anyhow::Ok((due, completed(&client, id, wait).await?))
            });
        }
        let mut measured = Measured::new()?;
        let mut last = started;
        while let Some(one) = set.join_next().await {
            let (due, seen) = one??;
            measured.record(seen.at.saturating_duration_since(due), &seen)?;
            last = last.max(seen.at);
        }
        measured.took = last - started;
        Ok(measured)
    }
}

/// The event that says that a run is completed.
async fn completed(client: &Client, run: RunId, wait: oneshot::Receiver<Final>) -> anyhow::Result<Final> {
    let in_time = tokio::time::timeout(PATIENCE, wait).await;
    let seen = in_time.with_context(|| format!("{run} has no final event after {} s", PATIENCE.as_secs()))??;
    if seen.status != RunStatus::Completed {
        bail!("{run} is {}: {:?}", seen.status.as_str(), client.get_run(run).await?.errors);
    }
    Ok(seen)
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// One place: what it measured, and when it saw its last event.
async fn work(
    client: &Client,
    task: &str,
    left: &AtomicUsize,
    batch: usize,
    seen: &Runs,
) -> anyhow::Result<(Measured, Option<Instant>)> {
    let mut measured = Measured::new()?;
    let mut last = None;
    loop {
        let claimed = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(batch)));
        let count = claimed.unwrap_or(0).min(batch);
        if count == 0 {
            return Ok((measured, last));
        }
        let runs: Vec<NewRun> = (0..count).map(|_| NewRun::of_task(task)).collect::<Result<_, _>>()?;
        let waits: Vec<_> = runs.iter().map(|run| (run.id(), seen.expect(run.id()))).collect();
        let submitted = Instant::now();
        for outcome in client.submit_many(runs).await? {
            outcome?;
        }
        for (run, wait) in waits {
            let seen = completed(client, run, wait).await?;
            measured.record(seen.at - submitted, &seen)?;
            last = last.max(Some(seen.at));
        }
    }
}
