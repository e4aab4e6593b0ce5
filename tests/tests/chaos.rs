//! `kill -9` of each service in turn, and of the broker, under a load of 2,000 runs; then the ledger. On both stores,
//! with two dispatchers, two timeout-watchers and two runners.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use errand_client::{Client, NewRun, RunId};
use errand_core::task::{Definition, Settings};
use errand_tests::{Role, Stack, StoreKind, eventually, ledger};
use futures::StreamExt;
use serde_json::json;
use tokio::sync::Notify;

const RUNS: usize = 2_000;
const PATIENCE: Duration = Duration::from_secs(180);

/// What is killed, in this order, each when another share of the runs has been accepted.
const VICTIMS: [Option<Role>; 8] = [
    Some(Role::Dispatcher),
    Some(Role::SessionPool),
    Some(Role::Scripted),
    Some(Role::TimeoutWatcher),
    // The broker.
    None,
    Some(Role::Notifier),
    Some(Role::Dispatcher),
    Some(Role::SessionPool),
];

/// How many runs were accepted, for those who wait for it.
#[derive(Default)]
struct Accepted {
    count: AtomicUsize,
    more: Notify,
}

impl Accepted {
    fn add_one(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.more.notify_waiters();
    }

    async fn reaches(&self, wanted: usize) {
        loop {
            let more = self.more.notified();
            if self.count.load(Ordering::Acquire) >= wanted {
                return;
            }
            more.await;
        }
    }
}

fn start(kind: StoreKind) -> Stack {
    let mut stack = Stack::new(kind);
    let quiet = ["--log", "warn"];
    for role in [Role::Dispatcher, Role::Dispatcher, Role::TimeoutWatcher, Role::TimeoutWatcher, Role::Notifier] {
        stack.start(role, &quiet);
    }
    stack.start(Role::SessionPool, &["--log", "warn", "--heartbeat-seconds", "1", "--runner-lost-seconds", "3"]);
    for _ in 0..2 {
        stack.start(Role::Scripted, &["--log", "warn", "--capacity", "16"]);
    }
    stack
}

/// Asks until there is a yes: over the stream and over request/reply in turn, always under the same id. None: it was
/// refused, which nothing here should be.
async fn accepted(client: &Client, task: &str, number: usize) -> anyhow::Result<RunId> {
    let run = RunId::from_uuid(uuid::Uuid::now_v7());
    let input = json!({"steps": [{"sleep_ms": number % 40}, {"output": number}]});
    loop {
        let request = NewRun::of_task(task)?.with_id(run).input(&input);
        let asked = match number % 2 {
            0 => client.publish_run(request).await.map(drop),
            _ => client.submit(request).await.map(drop),
        };
        match asked {
            Ok(()) => return Ok(run),
            Err(error) if error.is_transient() => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => return Err(error).context(run.to_string()),
        }
    }
}

fn kill(stack: &mut Stack, victim: Option<Role>, turn: usize) {
    match victim {
        None => {
            stack.broker.kill9();
            stack.broker.restart();
        }
        Some(role) => {
            let count = stack.services(role).count();
            let service = stack.services(role).nth(turn % count).expect("counted");
            // Starting it again kills the one that runs.
            service.restart();
        }
    }
}

async fn every_accepted_run_ends_once(kind: StoreKind) -> anyhow::Result<()> {
    let mut stack = start(kind);
    stack.ready().await;
    let (bus, url) = (stack.bus().await, stack.broker.url());
    let client = Client::new(bus, "acme".parse()?);
    let settings = Settings { reuse_session: true, max_attempts: 10, ..Settings::default() };
    let definition: Definition = serde_json::from_value(json!({"name": "scripted", "agent_id": "agt_scripted"}))?;
    let task = client.apply_task(&Definition { settings, ..definition }).await?.id;

    let progress = Arc::new(Accepted::default());
    let submitting = futures::stream::iter(0..RUNS)
        .map(|number| {
            let (client, task, progress) = (client.clone(), task.clone(), Arc::clone(&progress));
            async move {
                let run = accepted(&client, &task, number).await?;
                progress.add_one();
                anyhow::Ok(run)
            }
        })
        .buffer_unordered(32)
        .collect::<Vec<_>>();
    let killing = async {
        for (turn, victim) in VICTIMS.into_iter().enumerate() {
            progress.reaches((turn + 1) * RUNS / (VICTIMS.len() + 1)).await;
            tokio::task::block_in_place(|| kill(&mut stack, victim, turn));
        }
    };
    let (submitted, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(submitting, killing) }).await?;
    let runs: Vec<RunId> = submitted.into_iter().collect::<anyhow::Result<_>>()?;
    assert_eq!(runs.len(), RUNS);

    let entries = ledger::read_events(&client, &url, &runs, PATIENCE).await;
    // A panic shows the services' logs.
    let entries = entries.unwrap_or_else(|error| panic!("{error:?}"));
    ledger::check_store(&client, &entries, &runs).await?;
    let outcomes = ledger::outcomes(&entries);
    let repeated: usize = entries.values().map(|entry| entry.repeated).sum();
    println!("{kind:?}: {outcomes:?}, {repeated} events came twice");
    assert_eq!(outcomes.into_values().sum::<usize>(), RUNS);
    eventually("every session is idle or has ended", PATIENCE, async || {
        ledger::busy_sessions(&client).await.ok().filter(Vec::is_empty).map(drop)
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_run_ends_once_on_sqlite() -> anyhow::Result<()> {
    every_accepted_run_ends_once(StoreKind::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_run_ends_once_on_postgres() -> anyhow::Result<()> {
    every_accepted_run_ends_once(StoreKind::Postgres).await
}
