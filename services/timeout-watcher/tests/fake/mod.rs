//! A dispatcher that holds what the test arms and remembers what it was asked; and a watcher in this process.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is a failure")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use errand_bus::{Bus, BusConfig, Service};
use errand_core::run::{Deadline, DeadlineKind};
use errand_core::{Error, ErrorCode, EventId, RunId, Timestamp};
use errand_proto::v1;
use errand_timeout_watcher::watch::now;
use errand_timeout_watcher::{Config, run};
use prost::Message;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[derive(Default)]
struct State {
    runs: BTreeMap<RunId, v1::ArmedRun>,
    asked: Vec<(v1::Expiry, Timestamp)>,
    poison: Option<RunId>,
    keep: bool,
    page: usize,
}

/// The fake. Serves until the test ends.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    state: Arc<Mutex<State>>,
    _service: Arc<Service>,
}

fn list(state: &State, request: &v1::ListDeadlinesRequest) -> v1::ListDeadlinesResponse {
    let after = request.after_run_id.parse::<RunId>().ok();
    let mut rest = state.runs.iter().filter(|(id, _)| after.is_none_or(|after| **id > after)).map(|(_, run)| run);
    let runs = rest.by_ref().take(state.page.min(request.limit as usize)).cloned().collect();
    v1::ListDeadlinesResponse { runs, has_more: rest.next().is_some() }
}

fn expire(state: &mut State, request: v1::ExpireRequest) -> Result<v1::ExpireResponse, Error> {
    let ids: Vec<RunId> = request.expiries.iter().map(|expiry| expiry.run_id.parse().unwrap()).collect();
    if state.poison.is_some_and(|poison| ids.contains(&poison)) {
        return Err(ErrorCode::API_ERROR.with("poison"));
    }
    let when = now();
    state.asked.extend(request.expiries.into_iter().map(|expiry| (expiry, when)));
    if state.keep {
        return Ok(v1::ExpireResponse { armed: ids.iter().filter_map(|id| state.runs.get(id).cloned()).collect() });
    }
    for id in ids {
        state.runs.remove(&id);
    }
    Ok(v1::ExpireResponse { armed: Vec::new() })
}

impl Dispatcher {
    pub(crate) async fn start(bus: &Bus, page: usize) -> Self {
        let state = Arc::new(Mutex::new(State { page, ..State::default() }));
        let (listing, expiring) = (Arc::clone(&state), Arc::clone(&state));
        let service = Service::builder(bus, "dispatcher", "a fake")
            .endpoint("list_deadlines", bus.subjects().api("dispatcher", "list_deadlines"), 8, move |request| {
                std::future::ready(Ok::<_, Error>(list(&listing.lock().unwrap(), &request)))
            })
            .endpoint("expire", bus.subjects().run("expire"), 8, move |request| {
                std::future::ready(expire(&mut expiring.lock().unwrap(), request))
            })
            .start()
            .await
            .unwrap();
        Self { state, _service: Arc::new(service) }
    }

    /// The run has this armed, and nobody is told.
    pub(crate) fn arm(&self, id: RunId, version: u64, deadlines: Vec<Deadline>) {
        let armed = v1::ArmedRun { run_id: id.to_string(), version, deadlines: wire(&deadlines) };
        self.state.lock().unwrap().runs.insert(id, armed);
    }

    pub(crate) fn asked(&self) -> Vec<(v1::Expiry, Timestamp)> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Expiries do not move runs.
    pub(crate) fn keep(&self, keep: bool) {
        self.state.lock().unwrap().keep = keep;
    }

    /// Requests with this run fail.
    pub(crate) fn poison(&self, id: RunId) {
        self.state.lock().unwrap().poison = Some(id);
    }

    pub(crate) fn heal(&self) {
        self.state.lock().unwrap().poison = None;
    }
}

/// The service under test, in this process.
pub(crate) struct Watcher {
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Watcher {
    pub(crate) fn start(url: &str) -> Self {
        let config = Config::parse_from(["errand-timeout-watcher", "--nats-url", url]);
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(config, shutdown.clone()));
        Self { shutdown, running }
    }

    /// Waits until it serves: its snapshot is loaded.
    pub(crate) async fn ready(&self, bus: &Bus) {
        let subject = || bus.subjects().api("timeout-watcher", "status");
        let request = v1::WatcherStatusRequest {};
        eventually("the watcher serves", Duration::from_secs(10), async || {
            bus.request::<_, v1::WatcherStatusResponse>(subject(), &request).await.is_ok()
        })
        .await;
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }

    /// At once, with all that it knew.
    pub(crate) async fn kill(self) {
        self.running.abort();
        assert!(self.running.await.unwrap_err().is_cancelled());
    }
}

pub(crate) async fn connect(url: &str) -> Bus {
    let config = BusConfig { url: url.into(), ..BusConfig::default() };
    let bus = Bus::connect(config, Duration::from_secs(10)).await.unwrap();
    bus.ensure_streams().await.unwrap();
    bus
}

pub(crate) async fn status(bus: &Bus) -> v1::WatcherStatusResponse {
    let subject = bus.subjects().api("timeout-watcher", "status");
    bus.request(subject, &v1::WatcherStatusRequest {}).await.unwrap_or_else(|error| {
        // Not yet serving: nothing that a test waits for.
        eprintln!("no status: {error}");
        v1::WatcherStatusResponse { armed: u64::MAX, ..v1::WatcherStatusResponse::default() }
    })
}

/// What a condition may be: a plain function or an async one.
pub(crate) trait Condition<Marker> {
    fn holds(&mut self) -> impl Future<Output = bool>;
}

pub(crate) struct Plain;
pub(crate) struct Waits;

impl<F: FnMut() -> bool> Condition<Plain> for F {
    fn holds(&mut self) -> impl Future<Output = bool> {
        std::future::ready(self())
    }
}

impl<F: AsyncFnMut() -> bool> Condition<Waits> for F {
    fn holds(&mut self) -> impl Future<Output = bool> {
        self()
    }
}

pub(crate) async fn eventually<Marker>(what: &str, within: Duration, mut condition: impl Condition<Marker>) {
    let began = Instant::now();
    while !condition.holds().await {
        assert!(began.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn run_id(number: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number))
}

pub(crate) fn fixed(kind: DeadlineKind, at: Timestamp) -> Deadline {
    Deadline { kind, at, window_ms: None }
}

pub(crate) fn inactivity(at: Timestamp, window_ms: u32) -> Deadline {
    Deadline { kind: DeadlineKind::Inactivity, at, window_ms: Some(window_ms) }
}

fn wire(deadlines: &[Deadline]) -> Vec<v1::Deadline> {
    deadlines.iter().map(Into::into).collect()
}

pub(crate) async fn publish_event(bus: &Bus, id: RunId, seq: u64, deadlines: &[Deadline]) {
    let summary = v1::RunSummary { id: id.to_string(), deadlines: wire(deadlines), ..v1::RunSummary::default() };
    let event_id = EventId::from_uuid(Uuid::now_v7()).to_string();
    let event = v1::Event {
        id: event_id.clone(),
        r#type: "task_run.running".into(),
        tenant: "acme".into(),
        object_id: id.to_string(),
        seq,
        created_at_ms: now().0,
        data: Some(v1::event::Data::Run(summary)),
        traceparent: String::new(),
    };
    let subject = bus.subjects().event(&"acme".parse().unwrap(), "task_run", "running", &id.to_string());
    let ack = bus.publish_stream(subject, &event_id, None, event.encode_to_vec().into()).await.unwrap();
    ack.await.unwrap();
}
