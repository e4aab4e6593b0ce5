//! `errand bench notifier`: how many webhooks a second, how soon, and what bad destinations cost the good ones. A
//! notifier of its own over a broker of its own; the receivers are in this process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use errand_bus::{Bus, BusConfig};
use errand_client::{Client, NewDestination, RunId, v1};
use errand_core::{EventId, Tenant};
use futures::StreamExt;
use hdrhistogram::Histogram;
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::args::{BenchNotifierArgs, Global};
use crate::broker::{self, Broker, BrokerConfig};
use crate::commands::bench::memory;
use crate::output::{Output, table};
use crate::stack::{Stack, StackConfig};

const HEALTHY: usize = 14;
/// The kinds of bad destination, and how many of each.
const BAD: [(&str, usize); 3] = [("failing", 3), ("hanging", 2), ("slow", 1)];
const SLOWLY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(120);
/// Publishes under way at once where they are not paced.
const AT_ONCE: usize = 256;

/// What has arrived at the healthy receivers.
struct Sink {
    published: Mutex<HashMap<String, Instant>>,
    lags: Mutex<Histogram<u64>>,
    arrived: AtomicUsize,
    more: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn take(State(sink): State<Arc<Sink>>, headers: HeaderMap) -> StatusCode {
    let now = Instant::now();
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    if !headers.contains_key("webhook-signature") {
        return StatusCode::UNAUTHORIZED;
    }
    if let Some(at) = lock(&sink.published).get(id).copied() {
        let micros = u64::try_from((now - at).as_micros()).unwrap_or(u64::MAX);
        if let Err(error) = lock(&sink.lags).record(micros) {
            eprintln!("a lag cannot be recorded: {error}");
        }
        sink.arrived.fetch_add(1, Ordering::AcqRel);
        sink.more.notify_waiters();
    }
    StatusCode::NO_CONTENT
}

async fn start_sink() -> anyhow::Result<(Arc<Sink>, String, AbortOnDropHandle<()>)> {
    let sink = Arc::new(Sink {
        published: Mutex::default(),
        lags: Mutex::new(Histogram::new(3)?),
        arrived: AtomicUsize::new(0),
        more: Notify::new(),
    });
    let router = Router::new()
        .route("/healthy/{at}", post(take))
        .route("/failing/{at}", post(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
        .route("/hanging/{at}", post(|| async { std::future::pending::<StatusCode>().await }))
        .route(
            "/slow/{at}",
            post(|| async {
                tokio::time::sleep(SLOWLY).await;
                StatusCode::NO_CONTENT
            }),
        )
        .with_state(Arc::clone(&sink));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let serving = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
    Ok((sink, url, AbortOnDropHandle::new(serving)))
}

/// One part of the measurement.
struct Measured {
    what: &'static str,
    events: usize,
    deliveries: usize,
    took: Duration,
    lags: Histogram<u64>,
}

struct Rig {
    bus: Bus,
    client: Client,
    sink: Arc<Sink>,
    url: String,
}

pub(super) async fn run(args: &BenchNotifierArgs, global: &Global, scratch: &Path, out: Output) -> anyhow::Result<()> {
    let program = broker::find(args.nats_server.nats_server.as_deref())?;
    let broker = Broker::start(&BrokerConfig { program, folder: scratch.join("nats"), port: 0 }).await?;
    let mut postgres = None;
    let store = super::store_of(&args.store, scratch, &mut postgres).await?;
    let master_key = Some(errand_seal::new_key().to_string());
    let config = StackConfig { master_key, ..StackConfig::new(&broker.url, &global.prefix, store) };
    let stack = Stack::start_notifier(&config)?;
    let measured = measure(args, &config).await;
    let memory = memory::Peaks::now(Some(broker.pid));
    stack.stop().await?;
    broker.stop().await?;
    if let Some(postgres) = postgres {
        postgres.stop().await?;
    }
    print(args, &measured?, &memory, out)
}

async fn measure(args: &BenchNotifierArgs, config: &StackConfig) -> anyhow::Result<Vec<Measured>> {
    let bus_config = BusConfig {
        url: config.nats_url.clone(),
        prefix: config.prefix.clone(),
        name: "errand-bench".into(),
        ..BusConfig::default()
    };
    let bus = Bus::connect(bus_config, PATIENCE).await?;
    let tenant: Tenant = "bench".parse()?;
    let client = Client::new(bus.clone(), tenant);
    let (sink, url, _serving) = start_sink().await?;
    let rig = Rig { bus, client, sink, url };
    for at in 0..HEALTHY {
        rig.add("healthy", at).await?;
    }
    let (events, paced) = (args.events as usize, args.paced_events as usize);
    rig.part("warm-up", events / 10, None).await?;
    let mut all = vec![rig.part("at once", events, None).await?];
    all.push(rig.part("paced", paced, Some(args.rate)).await?);
    for (kind, count) in BAD {
        for at in 0..count {
            rig.add(kind, at).await?;
        }
    }
    // Until the bad ones are known to be bad, as they would be in the field.
    rig.part("bad ones come", paced, Some(args.rate)).await?;
    all.push(rig.part("paced, beside bad ones", paced, Some(args.rate)).await?);
    Ok(all)
}

impl Rig {
    async fn add(&self, kind: &str, at: usize) -> anyhow::Result<()> {
        let config = json!({"url": format!("{}/{kind}/{at}", self.url)});
        let new = NewDestination::new(&format!("{kind} {at}"), "webhook", &config, &["*"]);
        self.client.create_destination(new).await.context("a destination")?;
        Ok(())
    }

    /// Publishes events, at once or so many a second, and waits until every healthy receiver has each.
    async fn part(&self, what: &'static str, events: usize, rate: Option<u32>) -> anyhow::Result<Measured> {
        lock(&self.sink.published).clear();
        lock(&self.sink.lags).reset();
        self.sink.arrived.store(0, Ordering::Release);
        let deliveries = events * HEALTHY;
        let started = Instant::now();
        let done = async {
            match rate {
                None => {
                    let publishing = futures::stream::iter(0..events).map(|_| self.publish());
                    let all: Vec<anyhow::Result<()>> = publishing.buffer_unordered(AT_ONCE).collect().await;
                    all.into_iter().collect::<anyhow::Result<()>>()?;
                }
                Some(rate) => {
                    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
                    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
                    for _ in 0..events {
                        tick.tick().await;
                        self.publish().await?;
                    }
                }
            }
            self.arrived(deliveries).await;
            anyhow::Ok(())
        };
        let in_time = tokio::time::timeout(PATIENCE, done).await;
        in_time.with_context(|| {
            format!("{what}: {} of {deliveries} arrived", self.sink.arrived.load(Ordering::Acquire))
        })??;
        let lags = lock(&self.sink.lags).clone();
        Ok(Measured { what, events, deliveries, took: started.elapsed(), lags })
    }

    async fn publish(&self) -> anyhow::Result<()> {
        let (id, run) = (EventId::from_uuid(Uuid::now_v7()).to_string(), RunId::from_uuid(Uuid::now_v7()));
        let status = v1::RunStatus::Completed.into();
        let summary = v1::RunSummary { id: run.to_string(), status, ..v1::RunSummary::default() };
        let event = v1::Event {
            id: id.clone(),
            r#type: "task_run.completed".into(),
            tenant: self.client.tenant().to_string(),
            object_id: run.to_string(),
            seq: 1,
            data: Some(v1::event::Data::Run(summary)),
            ..v1::Event::default()
        };
        let subject = self.bus.subjects().event(self.client.tenant(), "task_run", "completed", &event.object_id);
        lock(&self.sink.published).insert(id.clone(), Instant::now());
        self.bus.publish_stream(subject, &id, None, event.encode_to_vec().into()).await?.await?;
        Ok(())
    }

    async fn arrived(&self, wanted: usize) {
        loop {
            let more = self.sink.more.notified();
            if self.sink.arrived.load(Ordering::Acquire) >= wanted {
                return;
            }
            more.await;
        }
    }
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.deliveries as f64 / self.took.as_secs_f64()
    }

    fn ms(&self, quantile: f64) -> f64 {
        self.lags.value_at_quantile(quantile) as f64 / 1000.0
    }

    fn as_json(&self) -> Value {
        json!({
            "what": self.what,
            "events": self.events,
            "deliveries": self.deliveries,
            "seconds": self.took.as_secs_f64(),
            "deliveries_per_second": self.per_second(),
            "lag_p50_ms": self.ms(0.5),
            "lag_p99_ms": self.ms(0.99),
            "lag_max_ms": self.lags.max() as f64 / 1000.0,
        })
    }
}

fn print(args: &BenchNotifierArgs, parts: &[Measured], memory: &memory::Peaks, out: Output) -> anyhow::Result<()> {
    let ratio = match parts {
        [_, alone, beside] => beside.ms(0.99) / alone.ms(0.99),
        _ => f64::NAN,
    };
    if out.json {
        let value = json!({
            "object": "bench_notifier",
            "build": if cfg!(debug_assertions) { "debug" } else { "release" },
            "store": args.store,
            "healthy": HEALTHY,
            "bad": BAD.iter().map(|(kind, count)| json!({"kind": kind, "count": count})).collect::<Vec<_>>(),
            "rate": args.rate,
            "parts": parts.iter().map(Measured::as_json).collect::<Vec<_>>(),
            "p99_beside_bad_to_alone": ratio,
            "peak_memory_bytes": memory.stack,
        });
        return out.line(value.to_string());
    }
    let mut rows = table(["", "EVENTS", "DELIVERIES", "PER SECOND", "LAG P50 MS", "P99 MS"]);
    for part in parts {
        rows.add_row([
            part.what.to_owned(),
            part.events.to_string(),
            part.deliveries.to_string(),
            format!("{:.0}", part.per_second()),
            format!("{:.2}", part.ms(0.5)),
            format!("{:.2}", part.ms(0.99)),
        ]);
    }
    out.line(rows.trim_fmt())?;
    let bad: Vec<String> = BAD.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    out.line(format!(
        "\n{HEALTHY} healthy destinations; {} beside them make their p99 {ratio:.2} times as long.\n\
         lag: from publishing the event to the arrival of its webhook; store: {}",
        bad.join(", "),
        args.store
    ))
}
