//! `errand dev`: everything in one process, and a NATS server beside it.

use std::fs::{File, TryLockError};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use errand_bus::{Bus, BusConfig};
use errand_client::{ApiSecret, Client};
use errand_core::SourceId;
use serde_json::json;
use uuid::Uuid;

use crate::args::{DevArgs, Global};
use crate::broker::{self, Broker, BrokerConfig};
use crate::commands::dev_key;
use crate::output::Output;
use crate::stack::{BrowserConfig, ExecConfig, HttpConfig, Stack, StackConfig};

/// How long everything may take to be there.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

pub(crate) async fn run(args: DevArgs, global: &Global, out: Output) -> anyhow::Result<()> {
    let started = Instant::now();
    if args.browser {
        // Said before anything starts.
        errand_browser::find_chromium(None).map_err(anyhow::Error::msg)?;
    }
    let config = DevConfig {
        nats_server: broker::find(args.nats_server.nats_server.as_deref())?,
        data: args.data,
        port: args.port,
        store: args.store,
        prefix: global.prefix.clone(),
        capacity: args.capacity,
        http_port: args.http_port,
        browsers: args.browser.then_some(args.capacity),
    };
    let mut dev = Dev::start(config).await?;
    let client = Client::new(dev.bus.clone(), global.tenant.clone());
    let ready = tokio::select! {
        ready = until_all_is_there(&mut dev, &client) => ready,
        stopped = stop_signal() => {
            stopped?;
            return dev.stop().await;
        }
    };
    let http = match ready {
        Ok(http) => http,
        Err(error) => {
            // What it says is less than what came before.
            drop(dev.stop().await);
            return Err(error);
        }
    };
    say_how_to_use(&dev, &http, started.elapsed(), out)?;
    let ended = tokio::select! {
        ended = dev.ended() => ended,
        stopped = stop_signal() => stopped,
    };
    if !out.json {
        eprintln!("stopping");
    }
    ended.and(dev.stop().await)
}

/// How to reach the HTTP API.
pub(crate) struct Http {
    pub(crate) url: String,
    pub(crate) key: ApiSecret,
}

pub(crate) async fn until_all_is_there(dev: &mut Dev, client: &Client) -> anyhow::Result<Http> {
    dev.until_ready(client).await?;
    let address = dev.stack.http().await?;
    let key = dev_key::of(&dev.config.data, client).await?;
    Ok(Http { url: format!("http://{address}"), key })
}

fn say_how_to_use(dev: &Dev, http: &Http, took: Duration, out: Output) -> anyhow::Result<()> {
    let (url, data) = (&dev.broker.url, dev.config.data.display());
    let store = hide_password(&dev.services.store);
    if out.json {
        let object = json!({"object": "dev", "nats_url": url, "store": store, "data": dev.config.data,
            "http_url": http.url, "api_key": http.key.expose(),
            "prefix": dev.config.prefix, "pid": std::process::id(), "nats_pid": dev.broker.pid,
            "started_in_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX)});
        return out.line(object.to_string());
    }
    let browsers = match dev.config.browsers {
        Some(sessions) => {
            format!("\n  agent   agt_browser, {sessions} sessions: a real Chromium, docs/browser-programs.md")
        }
        None => String::new(),
    };
    let elsewhere = if url.ends_with(":4222") { String::new() } else { format!("\n  export ERRAND_NATS_URL={url}") };
    out.line(format!(
        "Errand is up, in {:.2} s.\n  \
           NATS    {url}  (files in {data})\n  \
           HTTP    {}  (to try at {}/docs/; the key is kept in {data}/api-key)\n  \
           store   {store}\n  \
           agent   agt_exec, {} sessions: runs any program, docs/exec-agents.md{browsers}\n\
         In another terminal:{elsewhere}\n  \
           errand task apply examples/hello/hello.task.json\n  \
           errand run hello --input '{{\"name\": \"Ada\"}}' --watch\n  \
           errand events tail\n  \
           errand doctor\n\
         Over HTTP:\n  \
           export ERRAND_URL={} ERRAND_API_KEY={}\n  \
           curl -H \"Authorization: Bearer $ERRAND_API_KEY\" $ERRAND_URL/v2/task-runs\n\
         Ctrl-C ends it; what was accepted goes on at the next start.",
        took.as_secs_f64(),
        http.url,
        http.url,
        dev.config.capacity,
        http.url,
        http.key.expose(),
    ))
}

/// `postgres://user:secret@host/db` without the secret.
fn hide_password(url: &str) -> String {
    let url = url.split('?').next().unwrap_or(url);
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.rsplit_once('@') {
        Some((who, place)) => format!("{scheme}://{}@{place}", who.split(':').next().unwrap_or_default()),
        None => url.to_owned(),
    }
}

/// What to start.
#[derive(Debug)]
pub(crate) struct DevConfig {
    pub(crate) nats_server: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) port: u16,
    pub(crate) store: Option<String>,
    pub(crate) prefix: String,
    /// Sessions of the runner for programs.
    pub(crate) capacity: u32,
    /// The gateway's, on 127.0.0.1; 0: any free one.
    pub(crate) http_port: u16,
    /// Sessions of the runner for browsers, where there is to be one.
    pub(crate) browsers: Option<u32>,
}

/// A NATS server, the services, and a runner.
#[derive(Debug)]
pub(crate) struct Dev {
    pub(crate) broker: Broker,
    pub(crate) bus: Bus,
    stack: Stack,
    services: StackConfig,
    config: DevConfig,
    /// Held for as long as we use the folder.
    _lock: File,
}

impl Dev {
    pub(crate) async fn start(config: DevConfig) -> anyhow::Result<Self> {
        let lock = lock(&config.data)?;
        let broker = Broker::start(&BrokerConfig {
            program: config.nats_server.clone(),
            folder: config.data.join("nats"),
            port: config.port,
        })
        .await?;
        let bus_config = BusConfig {
            url: broker.url.clone(),
            prefix: config.prefix.clone(),
            name: "errand-dev".into(),
            ..BusConfig::default()
        };
        let bus = Bus::connect(bus_config, PATIENCE).await?;
        let store = match &config.store {
            Some(store) => store.clone(),
            None => format!("sqlite://{}", config.data.join("store").display()),
        };
        let files = Some(config.data.join("files"));
        let listen = (Ipv4Addr::LOCALHOST, config.http_port).into();
        let http = Some(HttpConfig { listen, rate_limit: None });
        let services = StackConfig { files, http, ..StackConfig::new(&broker.url, &config.prefix, store) };
        let stack = Stack::start(&services)?;
        Ok(Self { broker, bus, stack, services, config, _lock: lock })
    }

    /// Waits for the services, adds the runner, and waits until they know each other.
    pub(crate) async fn until_ready(&mut self, client: &Client) -> anyhow::Result<()> {
        self.or_ended(until_ready(client, None)).await?;
        let exec = ExecConfig { capacity: self.config.capacity, work: self.config.data.join("exec") };
        self.stack.add_runner(&self.services, &exec)?;
        self.or_ended(until_ready(client, Some("agt_exec"))).await?;
        if let Some(capacity) = self.config.browsers {
            let browser = BrowserConfig { capacity, work: self.config.data.join("browser") };
            self.stack.add_browsers(&self.services, &browser)?;
            self.or_ended(until_ready(client, Some("agt_browser"))).await?;
        }
        Ok(())
    }

    async fn or_ended(&mut self, ready: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        tokio::select! {
            ready = ready => ready,
            ended = self.ended() => ended,
        }
    }

    /// Resolves when a part has ended by itself, which is a failure.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            ended = self.stack.ended() => ended.and_then(|()| bail!("a service has ended")),
            ended = self.broker.ended() => ended,
        }
    }

    /// Drains the runner, then the services, and stops the server at the end.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let drained = self.stack.stop().await;
        drained.and(self.broker.stop().await)
    }
}

/// One process at a time may use a data folder.
fn lock(data: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    let path = data.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("{} is in use by another `errand dev`; choose another folder with --data", data.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Waits until the services answer and a runner of this agent is connected.
pub(crate) async fn until_ready(client: &Client, agent: Option<&str>) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let error = match look(client, agent).await {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(error) => Some(error),
        };
        if started.elapsed() > PATIENCE {
            return Err(match error {
                Some(error) => anyhow::Error::from(error).context("the services do not come up"),
                None => anyhow::anyhow!("no runner has connected"),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(client: &Client, agent: Option<&str>) -> Result<bool, errand_client::ClientError> {
    use futures::TryStreamExt;
    client.tasks(Vec::new()).try_next().await?;
    if let Err(error) = client.get_source(SourceId::from_uuid(Uuid::nil())).await
        && error.is_transient()
    {
        return Err(error);
    }
    let Some(agent) = agent else { return client.runners(Vec::new()).await.map(|_| true) };
    Ok(client.runners(vec![agent.to_owned()]).await?.iter().any(|runner| !runner.draining))
}

/// Resolves at Ctrl-C or SIGTERM.
pub(crate) async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(hide_password("postgres://me:s3:cr@et@host/db"), "postgres://me@host/db");
        assert_eq!(hide_password("postgres://me@host/db?password=x"), "postgres://me@host/db");
        assert_eq!(hide_password("sqlite://data/store"), "sqlite://data/store");
    }

    #[test]
    fn a_data_folder_has_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        assert!(lock(folder.path()).unwrap_err().to_string().contains("--data"));
        drop(held);
        lock(folder.path()).unwrap();
    }
}
