//! What each service's main needs: arguments, logs, shutdown, and tasks that end together.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use errand_bus::{Bus, BusConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub mod health;
pub mod logs;
pub mod master_key;
pub mod metrics;
mod otlp;
pub mod telemetry;

pub use metrics::metrics;
pub use telemetry::{Telemetry, TelemetryArgs};

/// Messages are allocated in one thread and freed in another all the time, which glibc's allocator pays for with a tenth of
/// the processor (docs/performance.md). SQLite allocates with it, too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long a service may take to drain.
const DRAIN: Duration = Duration::from_secs(20);
/// How long a service waits for its broker at start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The arguments that all services take.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where the NATS servers are, separated by commas.
    #[arg(long, env = "ERRAND_NATS_URL", default_value = "nats://127.0.0.1:4222")]
    pub nats_url: String,
    /// A NATS credentials file.
    #[arg(long, env = "ERRAND_NATS_CREDENTIALS")]
    pub nats_credentials: Option<PathBuf>,
    /// The certificates, in PEM, by one of which the NATS servers' are signed: TLS, and nothing else.
    #[arg(long, env = "ERRAND_NATS_CA")]
    pub nats_ca: Option<PathBuf>,
    /// What every subject starts with.
    #[arg(long, env = "ERRAND_PREFIX", default_value = "errand.v1")]
    pub prefix: String,
    /// Replicas of each stream: 1, or 3 in a cluster.
    #[arg(long, env = "ERRAND_REPLICAS", default_value_t = 1)]
    pub replicas: usize,
    /// Where /healthz, /readyz and /metrics are served; nowhere unless given.
    #[arg(long, env = "ERRAND_HEALTH_LISTEN")]
    pub health_listen: Option<SocketAddr>,
    /// What is logged: `info`, `errand_dispatcher=debug`, ...
    #[arg(long, env = "ERRAND_LOG", default_value = "info")]
    pub log: String,
    /// Logs as JSON lines.
    #[arg(long, env = "ERRAND_LOG_JSON")]
    pub log_json: bool,
    /// Where telemetry goes.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}

impl Args {
    /// Connects to the broker, waiting up to a minute for it; none where the shutdown comes first.
    ///
    /// # Errors
    /// What [`Bus::connect`] says.
    pub async fn connect(&self, service: &str, shutdown: &CancellationToken) -> anyhow::Result<Option<Bus>> {
        let config = BusConfig {
            url: self.nats_url.clone(),
            prefix: self.prefix.clone(),
            name: format!("errand-{service}"),
            credentials: self.nats_credentials.clone(),
            ca: self.nats_ca.clone(),
            replicas: self.replicas,
            ..BusConfig::default()
        };
        Ok(shutdown.run_until_cancelled(Bus::connect(config, PATIENCE)).await.transpose()?)
    }

    /// As [`Self::connect`], and sees to it that the streams are there, waiting up to a minute for that, too.
    ///
    /// # Errors
    /// What [`Bus::connect`] and [`Bus::await_streams`] say.
    pub async fn connect_with_streams(
        &self,
        service: &str,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Bus>> {
        let Some(bus) = self.connect(service, shutdown).await? else { return Ok(None) };
        let streams = shutdown.run_until_cancelled(bus.await_streams(PATIENCE)).await.transpose()?;
        Ok(streams.map(|()| bus))
    }
}

/// Runs a service until it ends, or until SIGINT or SIGTERM and then until it has drained. Any failure gives a code
/// other than 0.
pub fn main<F, Fut>(args: &Args, service: &'static str, run: F) -> ExitCode
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    match try_main(args, service, run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("errand-{service}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main<F, Fut>(args: &Args, service: &'static str, run: F) -> anyhow::Result<()>
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    logs::start(&args.log, args.log_json)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let telemetry = runtime.block_on(async { Telemetry::start(&args.telemetry, service) })?;
    let ended = runtime.block_on(until_the_end(service, run));
    telemetry.stop();
    ended
}

async fn until_the_end<F, Fut>(service: &'static str, run: F) -> anyhow::Result<()>
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let shutdown = CancellationToken::new();
    let service_ends = run(shutdown.clone());
    tokio::pin!(service_ends);
    tokio::select! {
        ended = &mut service_ends => return ended,
        signal = stop_signal() => signal?,
    }
    tracing::info!(service, "stopping");
    shutdown.cancel();
    tokio::time::timeout(DRAIN, service_ends).await.context("the service did not drain in time")?
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Tasks that end together: the first that fails, or ends before the shutdown, stops all.
#[derive(Debug)]
pub struct Tasks {
    shutdown: CancellationToken,
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Tasks {
    /// No tasks yet; `shutdown` ends them.
    #[must_use]
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { shutdown, set: JoinSet::new() }
    }

    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits for all.
    ///
    /// # Errors
    /// The first failure, naming the task.
    pub async fn join(mut self) -> anyhow::Result<()> {
        let mut first = Ok(());
        while let Some(ended) = self.set.join_next().await {
            let ended = match ended {
                Ok((name, Err(error))) => Err(error.context(name)),
                Ok((name, Ok(()))) if !self.shutdown.is_cancelled() => Err(anyhow::anyhow!("{name} ended by itself")),
                Ok((_, Ok(()))) => Ok(()),
                Err(error) => Err(anyhow::anyhow!("a task died: {error}")),
            };
            if ended.is_err() {
                self.shutdown.cancel();
                if first.is_ok() {
                    first = ended;
                }
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_task_that_fails_ends_all_and_names_itself() {
        let shutdown = CancellationToken::new();
        let mut tasks = Tasks::new(shutdown.clone());
        let waiting = shutdown.clone();
        tasks.spawn("waits", async move {
            waiting.cancelled().await;
            Ok(())
        });
        tasks.spawn("breaks", async { anyhow::bail!("why") });
        assert_eq!(format!("{:#}", tasks.join().await.unwrap_err()), "breaks: why");
        assert!(shutdown.is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_ends_early_is_a_failure() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("short", async { Ok(()) });
        assert!(tasks.join().await.unwrap_err().to_string().contains("short ended by itself"));
    }
}
