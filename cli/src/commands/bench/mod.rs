//! `errand bench`: how fast the whole stack is. Runs of a task that does nothing, in sessions that are reused: what is
//! left is Errand. A run counts when the client has seen its `task_run.completed` event.

mod baseline;
mod http;
mod load;
mod memory;
mod noop;
mod notifier;
mod report;
mod watcher;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use errand_bus::{Bus, BusConfig};
use errand_client::{Client, NewRun, RunFilter, run_status};
use errand_core::run::RunStatus;
use errand_core::task::{Definition, Settings, Storage};
use errand_core::{AgentId, Tenant};
use errand_runner::RunnerConfig;
use futures::TryStreamExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::{BenchArgs, BenchCommand, Global};
use crate::broker::{self, Broker, BrokerConfig};
use crate::commands::dev::{stop_signal, until_ready};
use crate::failure::Said;
use crate::output::Output;
use crate::postgres::Postgres;
use crate::stack::{Stack, StackConfig};

use baseline::Baseline;
use load::{Load, Seen};
use report::{Durability, Report, Round, Verified};

/// How long services may take to be there.
const PATIENCE: Duration = Duration::from_secs(30);
/// How the store is filled before anything is measured.
const FILL_BATCH: usize = 500;
const FILL_IN_FLIGHT: usize = 2_000;
/// A run has this many events: queued, running, completed.
const EVENTS: u64 = 3;

pub(crate) async fn run(args: BenchArgs, global: &Global, out: Output) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures say little (cargo build --release)");
    }
    let scratch = tempfile::tempdir()?;
    match &args.command {
        Some(BenchCommand::Http(http)) => return http::run(http, global, scratch.path(), out).await,
        Some(BenchCommand::Watcher(watcher)) => return watcher::run(watcher, global, scratch.path(), out).await,
        Some(BenchCommand::Notifier(notifier)) => return notifier::run(notifier, global, scratch.path(), out).await,
        None => {}
    }
    let baseline = args.baseline.as_deref().map(Baseline::read).transpose()?;
    let (rig, mut running) = Rig::start(&args, global, scratch.path()).await?;
    let measured = tokio::select! {
        measured = measure(&args, &rig, out) => measured,
        ended = running.ended() => ended.and_then(|()| Err(anyhow::anyhow!("the stack has ended"))),
        stopped = stop_signal() => stopped.and_then(|()| Err(anyhow::anyhow!("stopped"))),
    };
    let stopped = running.stop().await;
    let report = measured?;
    stopped?;
    report.print(baseline.as_ref(), out)?;
    if report.verified.ok { Ok(()) } else { Err(Said.into()) }
}

async fn measure(args: &BenchArgs, rig: &Rig, out: Output) -> anyhow::Result<Report> {
    let say = |text: String| {
        if !out.json {
            eprintln!("{text}");
        }
    };
    let clients = rig.clients(args.tenants)?;
    let mut tasks = Vec::new();
    for client in clients.iter() {
        tasks.push(client.apply_task(&rig.task()).await?.id);
    }
    let seen = Seen::start(&clients).await?;
    let load = Load { clients: &clients, tasks: &tasks, seen: &seen };
    say(format!("warming up: {} sessions", rig.sessions));
    // Each session is made once, and its making is not what is measured.
    let warm_up = (rig.sessions as usize * 2).max(200);
    load.closed_loop(warm_up, rig.sessions as usize, 1).await?;
    if args.stored > 0 {
        say(format!("filling the store: {} runs", args.stored));
        load.closed_loop(args.stored, FILL_IN_FLIGHT, FILL_BATCH).await?;
    }
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        rounds.push(round(args, load, say).await?);
    }
    let memory = memory::Peaks::now(rig.nats_pid);
    say("counting what is in the store".to_owned());
    let verified =
        verify(&clients, &tasks, &seen, warm_up + args.stored + rounds.iter().map(Round::runs).sum::<usize>()).await?;
    Ok(Report {
        rounds,
        memory,
        verified,
        durability: rig.durability.clone(),
        concurrency: args.concurrency,
        batch: args.batch,
        tenants: args.tenants,
        sessions: rig.sessions,
        stored: args.stored,
        dispatchers: args.dispatchers,
        broker: rig.bus.broker_version(),
    })
}

async fn round(args: &BenchArgs, load: Load<'_>, say: impl Fn(String)) -> anyhow::Result<Round> {
    say(format!("unloaded: {} runs, one after the other", args.unloaded));
    let unloaded = load.closed_loop(args.unloaded, 1, 1).await?;
    say(format!("loaded: {} runs, {} in flight", args.runs, args.concurrency));
    let loaded = load.closed_loop(args.runs, args.concurrency, args.batch).await?;
    let half_rate = half_rate(args, load, &loaded, say).await?;
    Ok(Round { unloaded, loaded, half_rate })
}

/// As many runs a second as half of what the loaded part made, one by one and whether or not those before are done.
async fn half_rate(
    args: &BenchArgs,
    load: Load<'_>,
    loaded: &load::Measured,
    say: impl Fn(String),
) -> anyhow::Result<Option<load::Measured>> {
    if args.half_rate_seconds == 0 {
        return Ok(None);
    }
    let rate = report::rate(loaded) / 2.0;
    say(format!("half of that: {rate:.0} runs a second for {} s", args.half_rate_seconds));
    load.open_loop(rate, Duration::from_secs(args.half_rate_seconds.into())).await.map(Some)
}

/// Whether the store has all runs, each completed by its three events, and nothing else.
async fn verify(clients: &[Client], tasks: &[String], seen: &Seen, submitted: usize) -> anyhow::Result<Verified> {
    let mut verified = Verified { submitted, repeated_events: seen.repeated(), ..Verified::default() };
    for (client, task) in clients.iter().zip(tasks) {
        let mut runs = client.runs(RunFilter { task_id: vec![task.clone()], ..RunFilter::default() });
        while let Some(run) = runs.try_next().await? {
            let completed = run_status(&run)? == RunStatus::Completed;
            let once = run.seq == EVENTS && run.attempt == 1 && seen.has(&run.id);
            *if completed && once { &mut verified.completed } else { &mut verified.others } += 1;
        }
    }
    verified.ok = verified.completed == submitted && verified.others == 0;
    Ok(verified)
}

/// The address of a store, which is started where it is to be our own.
async fn store_of(name: &str, scratch: &Path, postgres: &mut Option<Postgres>) -> anyhow::Result<String> {
    Ok(match name {
        "sqlite" => format!("sqlite://{}", scratch.join("store").display()),
        "postgres" => postgres.insert(Postgres::start().await?).url.clone(),
        other => other.to_owned(),
    })
}

/// What is measured.
struct Rig {
    bus: Bus,
    agent: AgentId,
    /// Tells this bench from others in the same store.
    name: String,
    sessions: u32,
    durability: Durability,
    nats_pid: Option<u32>,
}

/// A stack of our own in a temporary folder, unless one runs already, and a runner that does nothing.
struct Running {
    broker: Option<Broker>,
    postgres: Option<Postgres>,
    stack: Option<Stack>,
    runner: Option<(JoinHandle<Result<(), errand_runner::RunnerError>>, CancellationToken)>,
}

impl Rig {
    async fn start(args: &BenchArgs, global: &Global, scratch: &Path) -> anyhow::Result<(Self, Running)> {
        let broker = match args.connect {
            true => None,
            false => {
                let program = broker::find(args.nats_server.nats_server.as_deref())?;
                Some(Broker::start(&BrokerConfig { program, folder: scratch.join("nats"), port: 0 }).await?)
            }
        };
        let url = broker.as_ref().map_or(&global.nats_url, |broker| &broker.url).clone();
        let bus_config = BusConfig {
            url: url.clone(),
            prefix: global.prefix.clone(),
            name: "errand-bench".into(),
            credentials: global.nats_credentials.clone(),
            ca: global.nats_ca.clone(),
            request_timeout: Duration::from_secs(30),
            ..BusConfig::default()
        };
        let bus = Bus::connect(bus_config, PATIENCE).await?;
        let mut postgres = None;
        let (stack, durability) = if broker.is_none() {
            (None, Durability::unknown())
        } else {
            let store = store_of(&args.store, scratch, &mut postgres).await?;
            let durability = Durability::of_store(&store);
            // Our own Postgres ends with the bench, and its secrets too.
            let master_key = (args.store == "postgres").then(|| errand_seal::new_key().to_string());
            let services = StackConfig::new(&url, &global.prefix, store);
            let config = StackConfig { master_key, dispatchers: args.dispatchers, ..services };
            (Some(Stack::start(&config)?), durability)
        };
        // The end of a new id is as good as random.
        let id = NewRun::of_task("bench")?.id().to_string();
        let name = format!("bench-{}", &id[id.len() - 8..]);
        let agent: AgentId = format!("agt_{name}").parse()?;
        let concurrency = u32::try_from(args.concurrency).context("--concurrency")?;
        let sessions = args.sessions.unwrap_or(concurrency).clamp(1, errand_runner::MAX_CAPACITY);
        let nats_pid = broker.as_ref().map(|broker| broker.pid);
        let rig = Self { bus, agent, name, sessions, durability, nats_pid };
        let mut running = Running { broker, postgres, stack, runner: None };
        match rig.until_ready(&mut running).await {
            Ok(()) => Ok((rig, running)),
            Err(error) => {
                // What it says is less than what came before.
                drop(running.stop().await);
                Err(error)
            }
        }
    }

    /// Waits for the services, adds the runner, and waits until they know each other.
    async fn until_ready(&self, running: &mut Running) -> anyhow::Result<()> {
        let client = self.client(0)?;
        for agent in [None, Some(self.agent.as_str())] {
            if agent.is_some() {
                let config = RunnerConfig { capacity: self.sessions, ..RunnerConfig::new(self.agent.clone()) };
                let shutdown = CancellationToken::new();
                let runner = errand_runner::run(self.bus.clone(), noop::Noop, config, shutdown.clone());
                running.runner = Some((tokio::spawn(runner), shutdown));
            }
            tokio::select! {
                ready = until_ready(&client, agent) => ready?,
                ended = running.ended() => ended?,
            }
        }
        Ok(())
    }

    fn client(&self, number: usize) -> anyhow::Result<Client> {
        let tenant: Tenant = format!("{}-{number}", self.name).parse()?;
        Ok(Client::new(self.bus.clone(), tenant))
    }

    fn clients(&self, tenants: usize) -> anyhow::Result<Arc<[Client]>> {
        (0..tenants.max(1)).map(|number| self.client(number)).collect()
    }

    fn task(&self) -> Definition {
        Definition {
            name: self.name.clone(),
            agent_id: self.agent.clone(),
            prompt: String::new(),
            program: None,
            input_schema: None,
            output_schema: None,
            settings: Settings { reuse_session: true, ..Settings::default() },
            storage: Storage::default(),
        }
    }
}

impl Running {
    /// Resolves when a part has ended by itself, which is a failure.
    async fn ended(&mut self) -> anyhow::Result<()> {
        let stack = async {
            match &mut self.stack {
                Some(stack) => stack.ended().await,
                None => std::future::pending().await,
            }
        };
        let broker = async {
            match &mut self.broker {
                Some(broker) => broker.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = stack => ended.and_then(|()| Err(anyhow::anyhow!("a service has ended"))),
            ended = broker => ended,
        }
    }

    async fn stop(self) -> anyhow::Result<()> {
        let runner = match self.runner {
            Some((runner, shutdown)) => {
                shutdown.cancel();
                runner.await.map_err(anyhow::Error::from).and_then(|ended| Ok(ended?))
            }
            None => Ok(()),
        };
        let stack = match self.stack {
            Some(stack) => stack.stop().await,
            None => Ok(()),
        };
        let broker = match self.broker {
            Some(broker) => broker.stop().await,
            None => Ok(()),
        };
        let postgres = match self.postgres {
            Some(postgres) => postgres.stop().await,
            None => Ok(()),
        };
        runner.and(stack).and(broker).and(postgres)
    }
}
