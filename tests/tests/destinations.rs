//! Events to destinations of which some fail, hang or are slow, with the notifier killed on the way: those that work get
//! every event, in order per run once repetitions are dropped.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use errand_bus::Bus;
use errand_client::{Client, NewDestination, RunId, v1};
use errand_core::EventId;
use errand_tests::{Role, Stack, StoreKind};
use futures::StreamExt;
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

const HEALTHY: usize = 14;
const FAILING: usize = 3;
const HANGING: usize = 2;
const SLOW: usize = 1;
const KILLS: usize = 10;
const EVENTS_OF_A_RUN: u64 = 4;
/// What a slow destination takes to answer.
const SLOWLY: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(420);

/// What one healthy destination has got.
#[derive(Default)]
struct Got {
    ids: HashSet<String>,
    /// The newest event of each run.
    newest: HashMap<String, u64>,
    repeated: usize,
    disorder: Option<String>,
}

impl Got {
    fn note(&mut self, event: &Value) -> bool {
        let (id, run) = (event["id"].as_str().unwrap_or_default(), event["data"]["id"].as_str().unwrap_or_default());
        if !self.ids.insert(id.to_owned()) {
            self.repeated += 1;
            return false;
        }
        let (seq, newest) = (event["seq"].as_u64().unwrap_or_default(), self.newest.entry(run.to_owned()).or_default());
        if seq != *newest + 1 {
            self.disorder.get_or_insert(format!("{run}: event {seq} came after {newest}"));
        }
        *newest = seq;
        true
    }
}

/// The receivers of all destinations.
struct Sink {
    got: Vec<Mutex<Got>>,
    count: AtomicUsize,
    more: Notify,
    failed: AtomicUsize,
}

impl Sink {
    /// Resolves when the healthy destinations together have got so many different events.
    async fn reaches(&self, wanted: usize) {
        loop {
            let more = self.more.notified();
            if self.count.load(Ordering::Acquire) >= wanted {
                return;
            }
            more.await;
        }
    }

    fn got(&self, at: usize) -> std::sync::MutexGuard<'_, Got> {
        self.got[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn healthy(State(sink): State<Arc<Sink>>, Path(at): Path<usize>, body: String) -> StatusCode {
    let Ok(event) = serde_json::from_str::<Value>(&body) else { return StatusCode::BAD_REQUEST };
    if sink.got(at).note(&event) {
        sink.count.fetch_add(1, Ordering::AcqRel);
        sink.more.notify_waiters();
    }
    StatusCode::NO_CONTENT
}

async fn failing(State(sink): State<Arc<Sink>>) -> StatusCode {
    sink.failed.fetch_add(1, Ordering::AcqRel);
    StatusCode::INTERNAL_SERVER_ERROR
}

async fn hanging() -> StatusCode {
    std::future::pending().await
}

async fn slow() -> StatusCode {
    tokio::time::sleep(SLOWLY).await;
    StatusCode::NO_CONTENT
}

async fn start_sink() -> anyhow::Result<(Arc<Sink>, String, AbortOnDropHandle<()>)> {
    let got = (0..HEALTHY).map(|_| Mutex::default()).collect();
    let sink = Arc::new(Sink { got, count: AtomicUsize::new(0), more: Notify::new(), failed: AtomicUsize::new(0) });
    let router = Router::new()
        .route("/healthy/{at}", post(healthy))
        .route("/failing/{at}", post(failing))
        .route("/hanging/{at}", post(hanging))
        .route("/slow/{at}", post(slow))
        .with_state(Arc::clone(&sink));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let serving = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
    Ok((sink, url, AbortOnDropHandle::new(serving)))
}

async fn make_destinations(client: &Client, url: &str) -> anyhow::Result<()> {
    for (kind, count) in [("healthy", HEALTHY), ("failing", FAILING), ("hanging", HANGING), ("slow", SLOW)] {
        for at in 0..count {
            let config = json!({"url": format!("{url}/{kind}/{at}")});
            let new = NewDestination::new(&format!("{kind} {at}"), "webhook", &config, &["task_run.*"]);
            client.create_destination(new).await.context("a destination")?;
        }
    }
    Ok(())
}

/// Publishes the events of runs as the dispatcher would: in order per run, many runs at once.
async fn publish(bus: &Bus, runs: &[RunId]) -> anyhow::Result<()> {
    let tenant = "acme".parse()?;
    let publishing = futures::stream::iter(runs).map(|run| {
        let subject = bus.subjects().event(&tenant, "task_run", "running", &run.to_string());
        async move {
            for seq in 1..=EVENTS_OF_A_RUN {
                let id = EventId::from_uuid(Uuid::now_v7()).to_string();
                let payload = event(*run, seq, &id).encode_to_vec();
                bus.publish_stream(subject.clone(), &id, None, payload.into()).await?.await?;
            }
            anyhow::Ok(())
        }
    });
    let published: Vec<anyhow::Result<()>> = publishing.buffer_unordered(256).collect().await;
    published.into_iter().collect()
}

fn event(run: RunId, seq: u64, id: &str) -> v1::Event {
    let status = v1::RunStatus::Running.into();
    let summary = v1::RunSummary { id: run.to_string(), status, ..v1::RunSummary::default() };
    v1::Event {
        id: id.to_owned(),
        r#type: "task_run.running".into(),
        tenant: "acme".into(),
        object_id: run.to_string(),
        seq,
        created_at_ms: 1_700_000_000_000,
        data: Some(v1::event::Data::Run(summary)),
        ..v1::Event::default()
    }
}

/// Kills the notifier each time that another share of the deliveries has arrived.
async fn kill_on_the_way(stack: &mut Stack, sink: &Sink, deliveries: usize) {
    for kill in 1..=KILLS {
        sink.reaches(kill * deliveries / (KILLS + 1)).await;
        tokio::task::block_in_place(|| stack.service(Role::Notifier).restart());
    }
}

async fn the_healthy_get_everything(kind: StoreKind, runs: usize) -> anyhow::Result<()> {
    let (sink, url, _serving) = start_sink().await?;
    let mut stack = Stack::new(kind);
    let short =
        ["--log", "warn", "--allow-network", "127.0.0.0/8", "--delivery-claim", "1s", "--delivery-timeout", "2s"];
    stack.start(Role::Notifier, &short);
    stack.ready().await;
    let bus = stack.bus().await;
    let client = Client::new(bus.clone(), "acme".parse()?);
    make_destinations(&client, &url).await?;
    let runs: Vec<RunId> = (0..runs).map(|_| RunId::from_uuid(Uuid::now_v7())).collect();
    let events = runs.len() * EVENTS_OF_A_RUN as usize;
    let deliveries = events * HEALTHY;
    let all = async {
        let (published, ()) = tokio::join!(publish(&bus, &runs), kill_on_the_way(&mut stack, &sink, deliveries));
        published?;
        sink.reaches(deliveries).await;
        anyhow::Ok(())
    };
    if tokio::time::timeout(PATIENCE, all).await.map(|done| done.context("publishing")).is_err() {
        panic!("{} of {deliveries} deliveries arrived", sink.count.load(Ordering::Acquire));
    }
    let mut repeated = 0;
    for at in 0..HEALTHY {
        let got = sink.got(at);
        ensure!(got.disorder.is_none(), "destination {at}: {:?}", got.disorder);
        ensure!(got.ids.len() == events && got.newest.len() == runs.len(), "destination {at} got {}", got.ids.len());
        repeated += got.repeated;
    }
    ensure!(sink.failed.load(Ordering::Acquire) > 0, "the failing ones were tried, too");
    println!("{kind:?}: {deliveries} deliveries, {repeated} came again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_events_reach_every_healthy_destination_on_sqlite() -> anyhow::Result<()> {
    the_healthy_get_everything(StoreKind::Sqlite, 2_500).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_events_reach_every_healthy_destination_on_postgres() -> anyhow::Result<()> {
    the_healthy_get_everything(StoreKind::Postgres, 500).await
}
