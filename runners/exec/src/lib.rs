//! A runner that executes any program, in any language, as an agent: one process per run, JSON lines over stdin and
//! stdout. docs/exec-agents.md is the protocol's reference.
//!
//! A binary that embeds this runner calls [`supervise_main`] before anything else when its first argument is
//! [`SUPERVISE`]: each program runs below such a process, which ends it when the runner dies.

mod config;
mod host;

use anyhow::Context;
use errand_kit::health;
use errand_process::{Settings, Work};
use errand_runner::RunnerConfig;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use errand_process::{SUPERVISE, supervise_main};

/// Runs an exec runner until shutdown.
///
/// # Errors
/// Where the broker or a folder is not there at start, or the runner fails for good.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let directory = config.directory.canonicalize();
    let directory = directory.with_context(|| format!("--directory {}", config.directory.display()))?;
    let supervisor = match config.supervisor {
        Some(path) => path,
        None => std::env::current_exe().context("this program's own file")?,
    };
    let root = config.work.unwrap_or_else(|| std::env::temp_dir().join("errand-exec"));
    let work = Work::claim(&root).with_context(|| format!("--work {}", root.display()))?;
    let Some(bus) = config.kit.connect("exec", &shutdown).await? else { return Ok(()) };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let capacity = config.capacity.unwrap_or_else(|| u32::try_from(cores).unwrap_or(1));
    let warm = config.warm;
    let runner = RunnerConfig { capacity, warm, tenants: config.tenants, ..RunnerConfig::new(config.agent) };
    let host = host::Exec::new(Settings { directory, supervisor }, work);
    let runner = errand_runner::run(bus.clone(), host, runner, shutdown.clone());
    health::beside(config.kit.health_listen, bus, shutdown, runner).await
}
