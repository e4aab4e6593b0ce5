//! `errand`: the command line. It speaks to a running stack over NATS; `errand dev` is a stack in one process.

mod args;
mod broker;
mod commands;
mod failure;
mod keep;
mod output;
mod postgres;
mod services;
mod stack;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use errand_client::{Client, Options};
use errand_kit::Telemetry;

use crate::args::{Cli, Command, Global};
use crate::output::Output;

/// How long to wait for a broker that is not there, and a service that nobody serves: a person is waiting.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    // These are this program started again to look after a child, or to read a file; they read their own arguments.
    match std::env::args().nth(1).as_deref() {
        Some(errand_exec::SUPERVISE) => return errand_exec::supervise_main(std::env::args_os().skip(2)),
        Some(errand_storage::EXTRACT) => return errand_storage::extract_main(std::env::args().nth(2)),
        Some(keep::KEEP) => return keep::keep_main(),
        _ => {}
    }
    if let Some(ended) = services::by_name() {
        return ended;
    }
    let cli = Cli::parse();
    let as_json = cli.global.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (ended, telemetry) = runtime.block_on(async {
        match start_telemetry(&cli) {
            Ok(telemetry) => (run(cli).await, telemetry),
            Err(error) => (Err(error), None),
        }
    });
    if let Some(telemetry) = telemetry {
        telemetry.stop();
    }
    // Something may still read from the terminal, which cannot be called off.
    runtime.shutdown_background();
    let Err(error) = ended else { return ExitCode::SUCCESS };
    let (text, code) = failure::report(&error, as_json);
    if let Some(text) = text {
        eprintln!("{text}");
    }
    ExitCode::from(code)
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { global, command } = cli;
    let out = Output::new(global.json);
    start_logging(&global)?;
    match command {
        Command::Dev(args) => commands::dev::run(args, &global, out).await,
        Command::Demo(args) => commands::demo::run(args, out).await,
        Command::Bench(args) => commands::bench::run(args, &global, out).await,
        Command::Completions(args) => commands::completions::run(&args),
        Command::NatsConfig(args) => commands::nats_config::run(&args, &global, out),
        Command::Health(args) => commands::health::run(&args).await,
        Command::Doctor(args) => commands::doctor::run(&args, &global, out).await,
        Command::Task(args) => commands::task::run(args, &connect(&global).await?, out).await,
        Command::Run(args) => commands::run::run(args, &connect(&global).await?, out).await,
        Command::Runs(args) => commands::runs::run(args, &connect(&global).await?, out).await,
        Command::Interact(args) => commands::interact::run(args, &connect(&global).await?, out).await,
        Command::Review(args) => commands::review::run(args, &connect(&global).await?, out).await,
        Command::Events(args) => commands::events::run(args, &connect(&global).await?, out).await,
        Command::Destinations(args) => commands::destinations::run(args, &connect(&global).await?, out).await,
        Command::Deliveries(args) => commands::deliveries::run(args, &connect(&global).await?, out).await,
        Command::Sources(args) => commands::sources::run(args, &connect(&global).await?, out).await,
        Command::Credentials(args) => commands::credentials::run(args, &connect(&global).await?, out).await,
        Command::Vault(args) => commands::vault::run(args, &connect(&global).await?, out).await,
        Command::Sessions(args) => commands::sessions::run(args, &connect(&global).await?, out).await,
        Command::Keys(args) => commands::keys::run(args, &connect(&global).await?, out).await,
        Command::Storage(args) => commands::storage::run(args, &connect(&global).await?, out).await,
        Command::Runners(args) => commands::runners::run(args, &connect(&global).await?, out).await,
        Command::Agents => commands::agents::run(&connect(&global).await?, out).await,
    }
}

async fn connect(global: &Global) -> anyhow::Result<Client> {
    let options = Options {
        url: global.nats_url.clone(),
        prefix: global.prefix.clone(),
        tenant: global.tenant.clone(),
        credentials: global.nats_credentials.clone(),
        ca: global.nats_ca.clone(),
        patience: PATIENCE,
    };
    Ok(Client::connect(options).await?)
}

/// Only where it goes somewhere: nobody asks a command for its metrics.
fn start_telemetry(cli: &Cli) -> anyhow::Result<Option<Telemetry>> {
    let telemetry = &cli.global.telemetry;
    if telemetry.endpoint().is_none() {
        return Ok(None);
    }
    let service = if matches!(cli.command, Command::Dev(_)) { "dev" } else { "cli" };
    Telemetry::start(telemetry, service).map(Some)
}

fn start_logging(global: &Global) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&global.log)
        .map_err(|error| failure::Usage(format!("--log {}: {error}", global.log)))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
