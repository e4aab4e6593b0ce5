//! `errand bench watcher`: what a timeout-watcher that holds many deadlines takes of memory, and how late it is. The
//! watcher is a process of its own; the dispatcher, which lists what is armed and is told what has passed, is a stand-in
//! in this one.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use errand_bus::{Bus, BusConfig, Service};
use errand_core::{Error, RunId};
use errand_proto::v1;
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use uuid::Uuid;

use super::memory;
use crate::args::{BenchWatcherArgs, Global};
use crate::broker::{self, Broker, BrokerConfig};
use crate::output::Output;

const PATIENCE: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(100);
/// The first deadline passes so long after the start: until then all are to be armed.
const LEAD_MS: u64 = 60_000;
/// Those that are not to fire are this far away.
const FAR_MS: u64 = 24 * 3600 * 1000;

/// What is armed: run `n` of `deadlines`, of which the first `due` pass one after the other within a window.
#[derive(Debug)]
struct Armed {
    deadlines: u64,
    due: u64,
    first_ms: u64,
    window_ms: u64,
    told: AtomicU64,
}

impl Armed {
    fn run(&self, n: u64) -> v1::ArmedRun {
        let at = if n < self.due { self.first_ms + self.window_ms * n / self.due } else { self.first_ms + FAR_MS };
        let deadline = v1::Deadline {
            kind: v1::DeadlineKind::Queue.into(),
            at_ms: i64::try_from(at).unwrap_or(i64::MAX),
            window_ms: 0,
        };
        v1::ArmedRun { run_id: id(n).to_string(), version: 1, deadlines: vec![deadline] }
    }

    fn page(&self, request: &v1::ListDeadlinesRequest) -> v1::ListDeadlinesResponse {
        let after = request.after_run_id.parse::<RunId>().ok().map(number);
        let first = after.map_or(0, |after| after + 1);
        let end = (first + u64::from(request.limit)).min(self.deadlines);
        v1::ListDeadlinesResponse { runs: (first..end).map(|n| self.run(n)).collect(), has_more: end < self.deadlines }
    }
}

fn id(n: u64) -> RunId {
    RunId::from_uuid(Uuid::from_u128(u128::from(n) + 1))
}

fn number(id: RunId) -> u64 {
    u64::try_from(id.uuid().as_u128()).unwrap_or(1) - 1
}

pub(super) async fn run(args: &BenchWatcherArgs, global: &Global, scratch: &Path, out: Output) -> anyhow::Result<()> {
    let program = broker::find(args.nats_server.nats_server.as_deref())?;
    let broker = Broker::start(&BrokerConfig { program, folder: scratch.join("nats"), port: 0 }).await?;
    let config = BusConfig {
        url: broker.url.clone(),
        prefix: global.prefix.clone(),
        name: "errand-bench".into(),
        ..BusConfig::default()
    };
    let bus = Bus::connect(config, PATIENCE).await?;
    bus.ensure_streams().await?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let armed = Arc::new(Armed {
        deadlines: args.deadlines,
        due: args.due.min(args.deadlines).max(1),
        first_ms: u64::try_from(now.as_millis())? + LEAD_MS,
        window_ms: u64::from(args.seconds) * 1000,
        told: AtomicU64::new(0),
    });
    let dispatcher = stand_in(&bus, &armed).await?;
    let mut watcher = start_watcher(&broker.url, &global.prefix)?;
    let measured = measure(&bus, &armed, &mut watcher).await;
    watcher.kill().await?;
    dispatcher.stop(Duration::from_secs(1)).await;
    broker.stop().await?;
    print(&armed, &measured?, out)
}

/// Lists what is armed, and says to each expiry that the run has moved.
async fn stand_in(bus: &Bus, armed: &Arc<Armed>) -> anyhow::Result<Service> {
    let (lists, expires) = (Arc::clone(armed), Arc::clone(armed));
    let subjects = bus.subjects();
    let service = Service::builder(bus, "dispatcher", "stands in for the dispatcher")
        .endpoint("list_deadlines", subjects.api("dispatcher", "list_deadlines"), 8, move |request| {
            std::future::ready(Ok::<_, Error>(lists.page(&request)))
        })
        .endpoint("expire", subjects.run("expire"), 64, move |request: v1::ExpireRequest| {
            expires.told.fetch_add(request.expiries.len() as u64, Ordering::AcqRel);
            std::future::ready(Ok::<_, Error>(v1::ExpireResponse::default()))
        });
    Ok(service.start().await?)
}

/// This program, as the service of that name.
fn start_watcher(url: &str, prefix: &str) -> anyhow::Result<Child> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::arg0(&mut command, "errand-timeout-watcher");
    command.args(["--nats-url", url, "--prefix", prefix, "--log", "warn"]).stdout(Stdio::null());
    Command::from(command).kill_on_drop(true).spawn().context("the timeout-watcher cannot be started")
}

struct Measured {
    load: Duration,
    memory: Option<u64>,
    peak: Option<u64>,
    lateness: v1::Lateness,
}

async fn measure(bus: &Bus, armed: &Armed, watcher: &mut Child) -> anyhow::Result<Measured> {
    let started = Instant::now();
    let pid = watcher.id().context("the timeout-watcher has ended")?;
    let mut load = None;
    loop {
        if started.elapsed() > PATIENCE + Duration::from_millis(armed.window_ms) {
            bail!("{} of {} deadlines were told", armed.told.load(Ordering::Acquire), armed.due);
        }
        tokio::time::sleep(LOOK).await;
        if let Some(status) = watcher.try_wait()? {
            bail!("the timeout-watcher has ended: {status}");
        }
        let subject = bus.subjects().api("timeout-watcher", "status");
        let request = v1::WatcherStatusRequest {};
        let Ok(status) = bus.request::<_, v1::WatcherStatusResponse>(subject, &request).await else { continue };
        if load.is_none() && status.armed == armed.deadlines {
            load = Some((started.elapsed(), memory::resident(pid)));
        }
        let lateness = status.lateness.unwrap_or_default();
        if lateness.count >= armed.due {
            let (load, memory) = load.context("deadlines passed before all were armed")?;
            return Ok(Measured { load, memory, peak: memory::of(pid), lateness });
        }
    }
}

fn print(armed: &Armed, measured: &Measured, out: Output) -> anyhow::Result<()> {
    let Measured { load, memory, peak, lateness } = measured;
    if out.json {
        let value = json!({
            "object": "bench_watcher",
            "build": super::report::build(),
            "deadlines": armed.deadlines,
            "load_seconds": load.as_secs_f64(),
            "memory_bytes": memory,
            "peak_memory_bytes": peak,
            "fired": lateness.count,
            "within_seconds": armed.window_ms / 1000,
            "lateness_p50_ms": lateness.p50_ms,
            "lateness_p99_ms": lateness.p99_ms,
            "lateness_max_ms": lateness.max_ms,
        });
        return out.line(value.to_string());
    }
    let mebibytes = |bytes: &Option<u64>| bytes.map_or("?".to_owned(), |bytes| (bytes >> 20).to_string());
    out.line(format!(
        "{} deadlines were armed in {:.1} s and take {} MiB ({} MiB at most);\n\
         {} passed within {} s: {} ms late (p50), {} ms (p99), {} ms at most",
        armed.deadlines,
        load.as_secs_f64(),
        mebibytes(memory),
        mebibytes(peak),
        lateness.count,
        armed.window_ms / 1000,
        lateness.p50_ms,
        lateness.p99_ms,
        lateness.max_ms
    ))
}
