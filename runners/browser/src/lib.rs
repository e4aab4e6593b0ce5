//! A runner that drives a real Chromium: a browser of its own for each session, declarative programs
//! (docs/browser-programs.md), and programs from outside that attach to it (docs/browser-agents.md).
//!
//! A binary that embeds this runner calls [`supervise_main`] before anything else when its first argument is
//! [`SUPERVISE`]: each browser runs below such a process, which ends it when the runner dies.

mod browser;
mod captures;
mod cdp;
mod chromium;
mod config;
mod egress;
mod host;
mod live;
mod net;
mod page;
mod program;
mod run;

use anyhow::Context;
use errand_kit::health;
use errand_process::Work;
use errand_runner::RunnerConfig;
use tokio_util::sync::CancellationToken;

pub use chromium::find as find_chromium;
pub use config::{Config, Size};
pub use egress::Upstream;
pub use errand_process::{SUPERVISE, supervise_main};
pub use net::Network;

/// The JSON Schema of programs, as docs/browser-program.schema.json has it.
#[must_use]
pub fn schema() -> String {
    let schema = serde_json::to_string_pretty(&program::schema()).unwrap_or_default();
    schema + "\n"
}

/// Runs a browser runner until shutdown.
///
/// # Errors
/// Where Chromium, the broker or a folder is not there at start, or the runner fails for good.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let program = chromium::find(config.chromium.as_deref()).map_err(anyhow::Error::msg)?;
    let directory = config.directory.canonicalize();
    let directory = directory.with_context(|| format!("--directory {}", config.directory.display()))?;
    let supervisor = match config.supervisor {
        Some(path) => path,
        None => std::env::current_exe().context("this program's own file")?,
    };
    let root = config.work.unwrap_or_else(|| std::env::temp_dir().join("errand-browser"));
    let work = Work::claim(&root).with_context(|| format!("--work {}", root.display()))?;
    let is_root = nix::unistd::geteuid().is_root();
    if config.no_sandbox || is_root {
        tracing::warn!("browsers run without Chromium's sandbox: what breaks out of a page is this user");
    }
    let launch = chromium::Launch {
        program,
        headless: !config.headed,
        sandbox: !(config.no_sandbox || is_root),
        attachable: config.agents,
        viewport: config.viewport.0,
        locale: config.locale,
        time_zone: config.time_zone,
        user_agent: config.user_agent,
    };
    let Some(bus) = config.kit.connect("browser", &shutdown).await? else { return Ok(()) };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let capacity = config.capacity.unwrap_or_else(|| u32::try_from(cores * 2).unwrap_or(2));
    let runner =
        RunnerConfig { capacity, warm: config.warm, tenants: config.tenants, ..RunnerConfig::new(config.agent) };
    let rules = net::Rules { allowed: config.allow_network };
    let shows = config.live.then(|| bus.clone());
    let common = host::Common { launch, supervisor, directory, rules, proxy: config.proxy, shows };
    let host = host::Browsers::new(common, work);
    let runner = errand_runner::run(bus.clone(), host, runner, shutdown.clone());
    health::beside(config.kit.health_listen, bus, shutdown, runner).await
}
