//! Arms a million runs in a watcher and tells what that takes: resident memory, and how late the dispatcher is asked.
//!
//! `cargo run --release -p errand-timeout-watcher --example million [RUNS] [PASSING] [SECONDS]`: of RUNS (1000000)
//! PASSING (100000) have a deadline that passes within SECONDS (20). The broker and the dispatcher, which only
//! counts, are processes of their own.

use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use errand_bus::{Bus, BusConfig, Service};
use errand_core::{Error, RunId, Timestamp};
use errand_proto::v1;
use errand_tests::Broker;
use errand_timeout_watcher::watch::now;
use errand_timeout_watcher::{Config, run};
use hdrhistogram::Histogram;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What is armed, as numbers: run `n` of `runs`, every `each`-th passes, from `start` on and within `spread_ms`.
#[derive(Debug, Clone, Copy)]
struct Plan {
    runs: u64,
    passing: u64,
    spread_ms: i64,
    start: Timestamp,
}

const FIRST: u128 = 0x0190_0000_0000_7000_8000_0000_0000_0000;
const WINDOW_MS: u32 = 1_800_000;

fn id_of(number: u64) -> RunId {
    RunId::from_uuid(Uuid::from_u128(FIRST + u128::from(number)))
}

fn number_of(id: &str) -> Option<u64> {
    u64::try_from(id.parse::<RunId>().ok()?.uuid().as_u128() - FIRST).ok()
}

impl Plan {
    fn inactive_at(&self, number: u64) -> Timestamp {
        let each = self.runs / self.passing.max(1);
        if number.is_multiple_of(each) && number / each < self.passing {
            // In an order that is not the runs' own.
            let turn = number / each * 7919 % self.passing;
            self.start.plus_millis(self.spread_ms * i64::try_from(turn).unwrap_or(0) / self.passing.cast_signed())
        } else {
            self.start.plus_millis(3_600_000 + i64::try_from(number % 1_000_000).unwrap_or(0))
        }
    }

    fn armed(&self, number: u64) -> v1::ArmedRun {
        let kinds = [v1::DeadlineKind::Inactivity, v1::DeadlineKind::Total];
        let at = [self.inactive_at(number), self.start.plus_millis(7_200_000)];
        let deadline = |place: usize| v1::Deadline {
            kind: kinds[place].into(),
            at_ms: at[place].0,
            window_ms: if place == 0 { WINDOW_MS } else { 0 },
        };
        v1::ArmedRun { run_id: id_of(number).to_string(), version: 2, deadlines: vec![deadline(0), deadline(1)] }
    }

    fn page(&self, request: &v1::ListDeadlinesRequest) -> v1::ListDeadlinesResponse {
        let from = number_of(&request.after_run_id).map_or(0, |number| number + 1);
        let to = self.runs.min(from + u64::from(request.limit));
        v1::ListDeadlinesResponse {
            runs: (from..to).map(|number| self.armed(number)).collect(),
            has_more: to < self.runs,
        }
    }
}

async fn connect(url: &str) -> anyhow::Result<Bus> {
    Ok(Bus::connect(BusConfig { url: url.into(), ..BusConfig::default() }, Duration::from_secs(10)).await?)
}

/// Counts until all that passes was asked about, then says how late it was.
async fn dispatcher(url: &str, plan: Plan) -> anyhow::Result<()> {
    let bus = connect(url).await?;
    let late = Arc::new(Mutex::new(Histogram::<u64>::new_with_bounds(1, 3_600_000, 3)?));
    let counted = Arc::clone(&late);
    let service = Service::builder(&bus, "dispatcher", "counts")
        .endpoint("list_deadlines", bus.subjects().api("dispatcher", "list_deadlines"), 8, move |request| {
            std::future::ready(Ok::<_, Error>(plan.page(&request)))
        })
        .endpoint("expire", bus.subjects().run("expire"), 64, move |request: v1::ExpireRequest| {
            let now = now();
            for expiry in &request.expiries {
                let at = plan.inactive_at(number_of(&expiry.run_id).unwrap_or(0));
                assert!(now >= at, "{} is early", expiry.run_id);
                if let Ok(mut late) = counted.lock() {
                    late.saturating_record(now.millis_since(at));
                }
            }
            std::future::ready(Ok::<_, Error>(v1::ExpireResponse::default()))
        })
        .start()
        .await?;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let late = late.lock().map_err(|error| anyhow::anyhow!("{error}"))?;
        if late.len() >= plan.passing {
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|quantile| late.value_at_quantile(quantile));
            println!(
                "asked {} times, late by p50 {p50} ms, p99 {p99} ms, p99.9 {p999} ms, max {} ms",
                late.len(),
                late.max()
            );
            break;
        }
    }
    service.stop(Duration::from_secs(1)).await;
    Ok(())
}

fn memory(field: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
    let kilobytes: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kilobytes / 1024.0)
}

async fn watcher(plan: Plan) -> anyhow::Result<()> {
    let broker = Broker::start();
    let bus = connect(&broker.url()).await?;
    let numbers =
        [plan.runs.to_string(), plan.passing.to_string(), plan.spread_ms.to_string(), plan.start.0.to_string()];
    let mut child = Command::new(std::env::current_exe()?);
    let mut child = child.args(["dispatcher", &broker.url()]).args(numbers).stdin(Stdio::null()).spawn()?;
    let before = memory("VmRSS")?;
    let shutdown = CancellationToken::new();
    let config = Config::parse_from(["million", "--nats-url", &broker.url()]);
    let began = now();
    let running = tokio::spawn(run(config, shutdown.clone()));
    let subject = || bus.subjects().api("timeout-watcher", "status");
    let status = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let status = bus.request::<_, v1::WatcherStatusResponse>(subject(), &v1::WatcherStatusRequest {}).await;
        if let Ok(status) = status {
            break status;
        }
    };
    let (loaded, rss) = (now(), memory("VmRSS")?);
    println!(
        "{} armed in {} ms; resident {rss:.0} MB, {before:.0} MB of it before",
        status.armed,
        loaded.millis_since(began)
    );
    println!("{:.0} bytes a run", (rss - before) * 1_048_576.0 / status.armed as f64);
    anyhow::ensure!(loaded < plan.start, "the first deadline passed before all were armed: give it a later start");
    anyhow::ensure!(child.wait()?.success(), "the dispatcher failed");
    let status: v1::WatcherStatusResponse = bus.request(subject(), &v1::WatcherStatusRequest {}).await?;
    let late = status.lateness.unwrap_or_default();
    println!("the watcher itself says p50 {} ms, p99 {} ms, max {} ms", late.p50_ms, late.p99_ms, late.max_ms);
    println!("at most {:.0} MB were resident", memory("VmHWM")?);
    shutdown.cancel();
    running.await?
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: u64| -> anyhow::Result<u64> {
        arguments.get(place).map_or(Ok(default), |text| text.parse().with_context(|| text.clone()))
    };
    if arguments.first().is_some_and(|first| first == "dispatcher") {
        let plan = Plan {
            runs: number(2, 0)?,
            passing: number(3, 0)?,
            spread_ms: number(4, 0)?.cast_signed(),
            start: Timestamp(number(5, 0)?.cast_signed()),
        };
        return dispatcher(&arguments[1], plan).await;
    }
    let plan = Plan {
        runs: number(0, 1_000_000)?,
        passing: number(1, 100_000)?,
        spread_ms: (number(2, 20)? * 1000).cast_signed(),
        start: now().plus_millis(15_000),
    };
    watcher(plan).await
}
