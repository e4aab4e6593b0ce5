//! Load on a stack that runs elsewhere, and the ledger over it: `errand-tests-ledger --seconds 60 --rate 5`. It asks for
//! runs, half over the stream and half over request/reply, each until it is accepted, whatever is killed meanwhile; then
//! it waits for their ends and checks events and store, run by run. Exits with 0 only where everything holds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use errand_bus::{Bus, BusConfig, connect_options};
use errand_client::{Client, NewRun, RunId};
use errand_core::Tenant;
use errand_core::task::Definition;
use errand_tests::ledger;
use futures::{StreamExt, stream};
use serde_json::json;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, env = "ERRAND_NATS_URL")]
    nats_url: String,
    #[arg(long, env = "ERRAND_NATS_CREDENTIALS")]
    nats_credentials: Option<PathBuf>,
    #[arg(long, env = "ERRAND_PREFIX", default_value = "errand.v1")]
    prefix: String,
    /// One that nobody else uses: every run of it must be ours.
    #[arg(long)]
    tenant: Tenant,
    /// For how long runs are asked for.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Runs a second.
    #[arg(long, default_value_t = 5)]
    rate: u64,
    /// How long their ends may take after the last.
    #[arg(long, default_value_t = 300)]
    patience: u64,
    /// What each run executes.
    #[arg(long, value_delimiter = ' ', default_value = "python3 examples/hello/agent.py")]
    command: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let config = BusConfig {
        url: args.nats_url.clone(),
        prefix: args.prefix.clone(),
        name: "errand-tests-ledger".into(),
        credentials: args.nats_credentials.clone(),
        ..BusConfig::default()
    };
    let bus = Bus::connect(config.clone(), Duration::from_secs(30)).await?;
    let client = Client::new(bus, args.tenant.clone());
    let definition = json!({"name": "ledger", "agent_id": "agt_exec", "program": {"command": args.command},
        "settings": {"max_attempts": 10}});
    let definition: Definition = serde_json::from_value(definition)?;
    let task =
        until_taken(Instant::now() + Duration::from_secs(60), async || client.apply_task(&definition).await).await?.id;
    let accepted = load(&args, &client, &task).await?;
    eprintln!("accepted: {} runs", accepted.len());
    let nats = connect_options(&config).await?.connect(config.servers()).await?;
    let patience = Duration::from_secs(args.patience);
    let entries = ledger::read_events_over(nats, &client, &accepted, patience).await?;
    until_taken(Instant::now() + Duration::from_secs(60), async || {
        ledger::check_store(&client, &entries, &accepted).await
    })
    .await?;
    let outcomes: Vec<String> =
        ledger::outcomes(&entries).iter().map(|(status, count)| format!("{} {count}", status.as_str())).collect();
    let events: usize = entries.values().map(|entry| entry.statuses.len()).sum();
    let repeated: usize = entries.values().map(|entry| entry.repeated).sum();
    println!(
        "the ledger holds: {} accepted = {} final ({}); {events} events, each run's complete and in order, {repeated} repeated",
        accepted.len(),
        entries.len(),
        outcomes.join(", "),
    );
    Ok(())
}

/// Asks for runs at the rate, and for each again until it is accepted.
async fn load(args: &Args, client: &Client, task: &str) -> anyhow::Result<Vec<RunId>> {
    let mut clock = tokio::time::interval(Duration::from_micros(1_000_000 / args.rate.max(1)));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let count = usize::try_from(args.seconds * args.rate)?;
    let ticks = stream::unfold((clock, 0), |(mut clock, number)| async move {
        clock.tick().await;
        Some((number, (clock, number + 1)))
    });
    let asked = ticks.take(count).map(|number| async move {
        let run = NewRun::of_task(task)?.input(&json!({"name": format!("{number}")}));
        let id = run.id();
        until_taken(Instant::now() + Duration::from_secs(args.patience), async || {
            if number % 2 == 0 {
                client.publish_run(run.clone()).await.map(drop)
            } else {
                client.submit(run.clone()).await.map(drop)
            }
        })
        .await
        .with_context(|| id.to_string())?;
        Ok(id)
    });
    asked.buffer_unordered(1_000).collect::<Vec<anyhow::Result<RunId>>>().await.into_iter().collect()
}

async fn until_taken<T, E: std::fmt::Display + Into<anyhow::Error>>(
    until: Instant,
    ask: impl AsyncFn() -> Result<T, E>,
) -> anyhow::Result<T> {
    loop {
        match ask().await {
            Ok(taken) => return Ok(taken),
            Err(error) if Instant::now() >= until => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
