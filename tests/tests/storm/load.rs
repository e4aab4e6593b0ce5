//! Runs of every kind, at a rate, with a note of each that was accepted.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use errand_client::{Client, ClientError, ErrorCode, NewRun, RunId};
use errand_core::task::Definition;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};

/// Submissions that wait for their yes at once. Beyond, the rate falls.
const AT_ONCE: usize = 512;
/// A dispatcher takes what the broker keeps long before that, whatever is done to it here.
const TAKEN: Duration = Duration::from_secs(90);

/// What a run is to do, and its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Ends at once, or soon.
    Quick,
    /// A program.
    Exec,
    /// A program with children that do not want to go, until its time is over.
    Family,
    /// A question that nobody answers.
    Ask,
    /// Shows no sign of life.
    Stuck,
    /// For an agent that nobody offers.
    Nobody,
    /// Goes on until it is canceled.
    Cancel,
    /// Loses its session each time.
    Lose,
    Fail,
}

const KINDS: [(Kind, usize); 9] = [
    (Kind::Quick, 70),
    (Kind::Exec, 5),
    (Kind::Family, 2),
    (Kind::Ask, 6),
    (Kind::Stuck, 5),
    (Kind::Nobody, 3),
    (Kind::Cancel, 4),
    (Kind::Lose, 2),
    (Kind::Fail, 3),
];

/// The limit after which runs of these kinds fail, in milliseconds.
pub(crate) const LIMIT_MS: i64 = 1_000;

impl Kind {
    fn of(number: usize) -> Self {
        // Neighbours are of different kinds: 37 and 100 have no divisor in common.
        let mut place = number * 37 % 100;
        for (kind, share) in KINDS {
            if place < share {
                return kind;
            }
            place -= share;
        }
        Self::Quick
    }

    fn definition(self, notes: &Path) -> Value {
        let exec = |script: &str| {
            let command = json!(["/bin/sh", "-c", script.replace("NOTES", &notes.display().to_string())]);
            ("agt_exec", json!({"command": command}))
        };
        let (agent, program) = match self {
            Self::Exec => exec(r#"printf '%s\n' '{"type":"output","output":1}'"#),
            Self::Family => {
                exec("setsid sh -c 'exec sleep 600' & sh -c 'exec sleep 600' & trap '' TERM; while :; do sleep 1; done")
            }
            Self::Nobody => ("agt_nobody", json!({})),
            _ => ("agt_scripted", json!({})),
        };
        let settings = match self {
            Self::Ask => json!({"interaction_seconds": 1}),
            Self::Stuck => json!({"inactivity_seconds": 1}),
            Self::Nobody => json!({"queue_seconds": 1}),
            Self::Family => json!({"timeout_seconds": 1, "max_attempts": 3}),
            Self::Lose => json!({"max_attempts": 2}),
            _ => json!({"max_attempts": 10}),
        };
        let mut definition =
            json!({"name": format!("{self:?}").to_lowercase(), "agent_id": agent, "settings": settings});
        definition["settings"]["reuse_session"] = json!(true);
        if program["command"].is_array() {
            definition["program"] = program;
        }
        definition
    }

    fn input(self, number: usize) -> Value {
        let steps = match self {
            Self::Quick if number.is_multiple_of(10) => {
                json!([{"progress": "half"}, {"sleep_ms": 300}, {"output": number}])
            }
            Self::Quick => json!([{"sleep_ms": number % 40}, {"output": number}]),
            Self::Ask => json!([{"ask": "code"}]),
            Self::Stuck => json!(["stuck"]),
            Self::Cancel => json!([{"sleep_ms": 600_000}]),
            Self::Lose => json!([{"lose": "the machine is gone"}]),
            Self::Fail => json!([{"fail": "no luck"}]),
            Self::Exec | Self::Family | Self::Nobody => json!([]),
        };
        json!({"steps": steps})
    }
}

/// The load and what is known of it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Load {
    client: Client,
    tasks: Arc<Vec<(Kind, String)>>,
    /// What the broker said yes to lately.
    published: Arc<Mutex<VecDeque<(Instant, usize, RunId)>>>,
    pub(crate) published_again: Arc<AtomicUsize>,
}

impl Load {
    pub(crate) async fn new(client: Client, notes: &Path) -> anyhow::Result<Self> {
        let mut tasks = Vec::new();
        for (kind, _) in KINDS {
            let definition: Definition = serde_json::from_value(kind.definition(notes))?;
            tasks.push((kind, client.apply_task(&definition).await?.id));
        }
        Ok(Self { client, tasks: Arc::new(tasks), published: Arc::default(), published_again: Arc::default() })
    }

    /// Of which kind a run is, by its task.
    pub(crate) fn kind_of(&self, task: &str) -> Option<Kind> {
        self.tasks.iter().find(|(_, id)| id == task).map(|(kind, _)| *kind)
    }

    fn request(&self, number: usize, run: RunId) -> NewRun {
        let kind = Kind::of(number);
        let (_, task) = self.tasks.iter().find(|(one, _)| *one == kind).expect("each kind has a task");
        NewRun::of_task(task).expect("it is one's id").with_id(run).input(&kind.input(number))
    }

    /// Submits `rate` runs a second for so long, and waits until each has been accepted. All of them.
    pub(crate) async fn run(&self, rate: u32, length: Duration) -> anyhow::Result<Vec<RunId>> {
        let (permits, (accepted, mut all)) = (Arc::new(Semaphore::new(AT_ONCE)), mpsc::unbounded_channel());
        let (started, mut ticks) = (Instant::now(), tokio::time::interval(Duration::from_secs(1) / rate));
        let mut number = 0;
        while started.elapsed() < length {
            ticks.tick().await;
            let permit = Arc::clone(&permits).acquire_owned().await?;
            tokio::spawn(self.clone().submit_one(number, permit, accepted.clone()));
            number += 1;
        }
        drop(accepted);
        let mut runs = Vec::with_capacity(number);
        while let Some(run) = all.recv().await {
            runs.push(run?);
        }
        ensure!(runs.len() == number, "{} of {number} runs were accepted", runs.len());
        Ok(runs)
    }

    async fn submit_one(
        self,
        number: usize,
        permit: OwnedSemaphorePermit,
        accepted: mpsc::UnboundedSender<anyhow::Result<RunId>>,
    ) {
        let run = RunId::from_uuid(uuid::Uuid::now_v7());
        let outcome = self.accepted(number, run).await;
        drop(permit);
        let _ = accepted.send(outcome.map(|()| run));
    }

    /// Asks until there is a yes, over the stream and over request/reply in turn, always under the same id; and cancels
    /// what would never end.
    async fn accepted(&self, number: usize, run: RunId) -> anyhow::Result<()> {
        if number.is_multiple_of(2) {
            insist(|| async move { self.client.publish_run(self.request(number, run)).await.map(Some) }).await?;
            self.note(number, run).await;
        } else {
            insist(|| async move { self.client.submit(self.request(number, run)).await.map(Some) }).await?;
        }
        if Kind::of(number) == Kind::Cancel {
            insist(|| async move {
                match self.client.cancel(run).await {
                    // The broker's yes may be ahead of the dispatcher's.
                    Err(ClientError::Refused(error)) if error.code == ErrorCode::TASK_RUN_NOT_FOUND => Ok(None),
                    // It has failed meanwhile.
                    Err(ClientError::Refused(error)) if error.code == ErrorCode::TASK_RUN_NOT_CANCELABLE => {
                        Ok(Some(()))
                    }
                    other => other.map(|_| Some(())),
                }
            })
            .await?;
        }
        Ok(())
    }

    async fn note(&self, number: usize, run: RunId) {
        let mut published = self.published.lock().await;
        let now = Instant::now();
        while published.front().is_some_and(|(at, ..)| now.duration_since(*at) > TAKEN) {
            published.pop_front();
        }
        published.push_back((now, number, run));
    }

    /// A broker has lost what it said yes to, which is no promise of Errand's: what no dispatcher had taken is submitted
    /// again.
    pub(crate) async fn submit_lost(&self) -> anyhow::Result<()> {
        let published: Vec<_> = self.published.lock().await.iter().copied().collect();
        let again = futures::stream::iter(published).map(|(_, number, run)| async move {
            let found = insist(|| async move {
                match self.client.get_run(run).await {
                    Err(ClientError::Refused(error)) if error.code == ErrorCode::TASK_RUN_NOT_FOUND => Ok(Some(false)),
                    other => other.map(|_| Some(true)),
                }
            });
            if !found.await? {
                self.published_again.fetch_add(1, Ordering::Relaxed);
                insist(|| async move { self.client.submit(self.request(number, run)).await.map(Some) }).await?;
            }
            anyhow::Ok(())
        });
        again.buffer_unordered(16).collect::<Vec<_>>().await.into_iter().collect()
    }
}

/// Asks until there is an answer that is one.
async fn insist<T, F: Future<Output = Result<Option<T>, ClientError>>>(ask: impl Fn() -> F) -> anyhow::Result<T> {
    loop {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
