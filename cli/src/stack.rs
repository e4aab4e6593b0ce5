//! All services in one process, as `errand dev`, `bench` and `demo` run them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use errand_kit::Tasks;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long runners may take to end, and then the services.
const DRAIN: Duration = Duration::from_secs(20);

/// Where the services find everything.
#[derive(Debug, Clone)]
pub(crate) struct StackConfig {
    pub(crate) nats_url: String,
    pub(crate) prefix: String,
    pub(crate) store: String,
    /// What seals secrets; none: as the environment says, or beside the SQLite files.
    pub(crate) master_key: Option<String>,
    /// Where files that runs capture are kept; none: nowhere.
    pub(crate) files: Option<PathBuf>,
    /// The gateway; none: none is started.
    pub(crate) http: Option<HttpConfig>,
    /// How many share the work.
    pub(crate) dispatchers: u8,
}

/// A gateway beside the services.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HttpConfig {
    pub(crate) listen: SocketAddr,
    /// Requests per tenant in ten seconds; none: as it is shipped, 0: any number.
    pub(crate) rate_limit: Option<u32>,
}

/// A runner for programs beside the services.
#[derive(Debug, Clone)]
pub(crate) struct ExecConfig {
    pub(crate) capacity: u32,
    /// Where its sessions, files and logs are.
    pub(crate) work: PathBuf,
}

/// A runner for browsers beside the services.
#[derive(Debug, Clone)]
pub(crate) struct BrowserConfig {
    pub(crate) capacity: u32,
    /// Where its sessions, profiles and files are.
    pub(crate) work: PathBuf,
}

/// Services, and a runner where there is one. They end in the reverse order of their start, so that a runner can say
/// its last words.
#[derive(Debug)]
pub(crate) struct Stack {
    parts: Vec<Part>,
    /// Tells where the gateway listens, once it does.
    http: Option<oneshot::Receiver<SocketAddr>>,
}

#[derive(Debug)]
struct Part {
    shutdown: CancellationToken,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Part {
    fn start(spawn: impl FnOnce(&mut Tasks, &CancellationToken)) -> Self {
        let shutdown = CancellationToken::new();
        let mut tasks = Tasks::new(shutdown.clone());
        spawn(&mut tasks, &shutdown);
        Self { shutdown, ended: tokio::spawn(tasks.join()) }
    }
}

impl Stack {
    /// Starts the services. That they are ready shows when they answer.
    pub(crate) fn start(config: &StackConfig) -> anyhow::Result<Self> {
        let with_store = config.arguments(true);
        let without = config.arguments(false);
        let mut dispatcher: errand_dispatcher::config::Config = parsed(&with_store)?;
        let mut pool: errand_session_pool::config::Config = parsed(&with_store)?;
        let mut vault: errand_vault::config::Config = parsed(&with_store)?;
        let mut watcher: errand_timeout_watcher::Config = parsed(&without)?;
        let notifier = config.notifier()?;
        if let Some(key) = &config.master_key {
            vault.master_key.give(key)?;
        }
        // One address cannot serve the health of many.
        let nowhere: Option<SocketAddr> = None;
        dispatcher.kit.health_listen = nowhere;
        pool.kit.health_listen = nowhere;
        vault.kit.health_listen = nowhere;
        watcher.kit.health_listen = nowhere;
        let storage = config.files.as_deref().map(|folder| storage(config, folder)).transpose()?;
        let mut parts = vec![Part::start(|tasks, shutdown| {
            for _ in 0..config.dispatchers {
                let (dispatcher, shutdown) = (dispatcher.clone(), shutdown.clone());
                tasks.spawn("dispatcher", apart(|| errand_dispatcher::service::run(dispatcher, shutdown)));
            }
            let [a, b, c, d] = std::array::from_fn(|_| shutdown.clone());
            tasks.spawn("session-pool", apart(|| errand_session_pool::service::run(pool, a)));
            tasks.spawn("timeout-watcher", apart(|| errand_timeout_watcher::run(watcher, b)));
            tasks.spawn("notifier", apart(|| errand_notifier::run(notifier, c)));
            tasks.spawn("vault", apart(|| errand_vault::service::run(vault, d)));
            if let Some(storage) = storage {
                let shutdown = shutdown.clone();
                tasks.spawn("storage", apart(|| errand_storage::service::run(storage, shutdown)));
            }
        })];
        let http = match config.http {
            None => None,
            Some(http) => {
                let (part, listens) = config.gateway(http)?;
                // Behind the services, so that it ends before them.
                parts.push(part);
                Some(listens)
            }
        };
        Ok(Self { parts, http })
    }

    /// Starts a notifier alone.
    pub(crate) fn start_notifier(config: &StackConfig) -> anyhow::Result<Self> {
        let notifier = config.notifier()?;
        let part = Part::start(|tasks, shutdown| {
            let shutdown = shutdown.clone();
            tasks.spawn("notifier", apart(|| errand_notifier::run(notifier, shutdown)));
        });
        Ok(Self { parts: vec![part], http: None })
    }

    /// Where the gateway listens, once it does.
    pub(crate) async fn http(&mut self) -> anyhow::Result<SocketAddr> {
        let listens = self.http.take().context("there is no gateway")?;
        // It says why itself where it ends first.
        listens.await.context("the gateway did not come up")
    }

    /// Starts a runner for programs.
    pub(crate) fn add_runner(&mut self, config: &StackConfig, exec: &ExecConfig) -> anyhow::Result<()> {
        let mut runner: errand_exec::Config = parsed(&config.arguments(false))?;
        runner.kit.health_listen = None;
        runner.capacity = Some(exec.capacity);
        runner.work = Some(exec.work.clone());
        self.parts.push(Part::start(|tasks, shutdown| {
            let shutdown = shutdown.clone();
            tasks.spawn("runner", apart(|| errand_exec::run(runner, shutdown)));
        }));
        Ok(())
    }

    /// Starts a runner for browsers that reach this machine's own addresses, too: what is worked on here is here.
    pub(crate) fn add_browsers(&mut self, config: &StackConfig, browser: &BrowserConfig) -> anyhow::Result<()> {
        let mut runner: errand_browser::Config = parsed(&config.arguments(false))?;
        runner.kit.health_listen = None;
        runner.capacity = Some(browser.capacity);
        runner.work = Some(browser.work.clone());
        for loopback in ["127.0.0.0/8", "::1"] {
            runner.allow_network.push(loopback.parse().map_err(anyhow::Error::msg)?);
        }
        self.parts.push(Part::start(|tasks, shutdown| {
            let shutdown = shutdown.clone();
            tasks.spawn("browsers", apart(|| errand_browser::run(runner, shutdown)));
        }));
        Ok(())
    }

    /// Resolves when one of them has ended by itself, which is a failure.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<()> {
        let ends = self.parts.iter_mut().map(|part| &mut part.ended);
        let (ended, at, _) = futures::future::select_all(ends).await;
        self.parts.remove(at);
        ended?
    }

    /// Ends them one after the other.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let mut first = Ok(());
        while let Some(part) = self.parts.pop() {
            part.shutdown.cancel();
            let ended = tokio::time::timeout(DRAIN, part.ended).await.context("it did not drain in time");
            first = first.and(ended.and_then(|joined| joined?));
        }
        first
    }
}

/// The storage, with all its files in one folder.
fn storage(config: &StackConfig, folder: &Path) -> anyhow::Result<errand_storage::config::Config> {
    let mut arguments = config.arguments(true);
    arguments.extend(["--files".to_owned(), format!("file://{}", folder.join("blobs").display())]);
    let mut storage: errand_storage::config::Config = parsed(&arguments)?;
    storage.kit.health_listen = None;
    storage.link_key_file = folder.join("link.key");
    storage.staging = Some(folder.join("staging"));
    Ok(storage)
}

impl StackConfig {
    /// One of each service, without files and gateway, and with its secrets as the environment says.
    pub(crate) fn new(nats_url: &str, prefix: &str, store: String) -> Self {
        let (nats_url, prefix) = (nats_url.to_owned(), prefix.to_owned());
        Self { nats_url, prefix, store, master_key: None, files: None, http: None, dispatchers: 1 }
    }

    fn notifier(&self) -> anyhow::Result<errand_notifier::Config> {
        let mut notifier: errand_notifier::Config = parsed(&self.arguments(true))?;
        if let Some(key) = &self.master_key {
            notifier.master_key.give(key)?;
        }
        // Whoever runs all services in one process has what receives events on the same machine.
        for loopback in ["127.0.0.0/8", "::1/128"] {
            notifier.outside.allow_networks.push(loopback.parse()?);
        }
        notifier.kit.health_listen = None;
        Ok(notifier)
    }

    fn gateway(&self, http: HttpConfig) -> anyhow::Result<(Part, oneshot::Receiver<SocketAddr>)> {
        let mut gateway: errand_gateway::Config = parsed(&self.arguments(true))?;
        gateway.kit.health_listen = None;
        gateway.listen = http.listen;
        gateway.rate_limit = http.rate_limit.unwrap_or(gateway.rate_limit);
        let (told, listens) = oneshot::channel();
        let part = Part::start(|tasks, shutdown| {
            let shutdown = shutdown.clone();
            let tell = move |address| {
                // Whoever asked may have given up.
                told.send(address).ok();
            };
            tasks.spawn("gateway", apart(|| errand_gateway::run_telling(gateway, shutdown, Box::new(tell))));
        });
        Ok((part, listens))
    }

    fn arguments(&self, store: bool) -> Vec<String> {
        let mut arguments =
            ["errand", "--nats-url", &self.nats_url, "--prefix", &self.prefix].map(String::from).to_vec();
        if store {
            arguments.extend(["--store".to_owned(), self.store.clone()]);
        }
        arguments
    }
}

/// Runs a service's outermost future on a thread of its own, as its own process would: it need not be `Send`, which the
/// compiler cannot always see of one that borrows database connections. What it spawns runs with everything else.
async fn apart<F, Fut>(start: F) -> anyhow::Result<()>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(start())).await?
}

/// A service's configuration as its own command line would make it: with its own defaults, and the environment's.
fn parsed<C: Parser>(arguments: &[String]) -> anyhow::Result<C> {
    C::try_parse_from(arguments).map_err(|error| anyhow::anyhow!("a service's settings are wrong: {error}"))
}
