//! The arguments of every command.

pub(crate) mod destinations;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use errand_core::credential::{AuthMethod, CredentialStatus};
use errand_core::run::{Decision, RunResult, RunStatus};
use errand_core::session::SessionStatus;
use errand_core::source::SourceType;
use errand_core::{ApiKeyId, CredentialId, RunId, RunnerId, SessionId, SourceId, StorageId, Tenant};

/// Runs tasks on scarce compute, and tells everyone what happened.
#[derive(Debug, Parser)]
#[command(
    name = "errand",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 an error or a run that did not complete, 2 wrong usage."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// Where the NATS servers are, separated by commas
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "ERRAND_NATS_URL",
        hide_env_values = true,
        default_value = "nats://127.0.0.1:4222"
    )]
    pub(crate) nats_url: String,
    /// A NATS credentials file
    #[arg(long, global = true, value_name = "FILE", env = "ERRAND_NATS_CREDENTIALS", hide_env_values = true)]
    pub(crate) nats_credentials: Option<PathBuf>,
    /// The certificates, in PEM, by one of which the NATS servers' are signed: TLS, and nothing else
    #[arg(long, global = true, value_name = "FILE", env = "ERRAND_NATS_CA", hide_env_values = true)]
    pub(crate) nats_ca: Option<PathBuf>,
    /// What every subject starts with
    #[arg(long, global = true, env = "ERRAND_PREFIX", hide_env_values = true, default_value = "errand.v1")]
    pub(crate) prefix: String,
    /// Whose tasks and runs
    #[arg(long, global = true, env = "ERRAND_TENANT", hide_env_values = true, default_value = "default")]
    pub(crate) tenant: Tenant,
    /// Prints one JSON object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What is logged on stderr: `info`, `errand_dispatcher=debug`, ...
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "ERRAND_LOG",
        hide_env_values = true,
        default_value = "warn"
    )]
    pub(crate) log: String,
    #[command(flatten)]
    pub(crate) telemetry: errand_kit::TelemetryArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts everything in one process: NATS server, services, and a runner for programs
    Dev(DevArgs),
    /// Tasks: what can be run
    Task(TaskArgs),
    /// Runs a task
    Run(RunArgs),
    /// Task runs
    Runs(RunsArgs),
    /// Answers what a run asks its user
    Interact(InteractArgs),
    /// Approves or rejects the output of a run that waits for review
    Review(ReviewArgs),
    /// Events: what happened, and what happens
    Events(EventsArgs),
    /// Event destinations: where events are pushed
    Destinations(destinations::DestinationsArgs),
    /// Event deliveries: what became of each push
    Deliveries(destinations::DeliveriesArgs),
    /// Sources: the systems that runs work on
    Sources(SourcesArgs),
    /// Credentials: secrets for sources, which go in and never come out
    Credentials(CredentialsArgs),
    /// The vault that keeps them: for its operator
    Vault(VaultArgs),
    /// Sessions: where runs execute
    Sessions(SessionsArgs),
    /// Files and screenshots that runs have captured
    Storage(StorageArgs),
    /// API keys of the HTTP API
    Keys(KeysArgs),
    /// Runners: what hosts the sessions
    Runners(RunnersArgs),
    /// Agents: the kinds of runner that there are
    Agents,
    /// Checks broker, streams, services, store and clocks, and says how to mend what is wrong
    Doctor(DoctorArgs),
    /// Measures throughput and latency of the whole stack
    Bench(BenchArgs),
    /// Shows a stack at work on an example, from start to end
    Demo(DemoArgs),
    /// Writes users, permissions and keys for the NATS servers: one user for each part, with the least that it needs
    NatsConfig(NatsConfigArgs),
    /// Whether a service is ready, by its HTTP address: for health checks in images without other tools
    Health(HealthArgs),
    /// Prints a completion script for a shell
    Completions(CompletionsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NatsConfigArgs {
    /// Where to write; keys that are there are kept, so that it can be run again for more tenants and runners
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
    /// Tenants whose programs get a user, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "TENANT")]
    pub(crate) tenants: Vec<Tenant>,
    /// Runners that get a user of their own, by names of your choice: each is confined to its own subjects
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub(crate) runners: Vec<String>,
    /// Subjects outside of Errand's that the notifier may publish on, for destinations of type `nats` on this broker
    #[arg(long, value_delimiter = ',', value_name = "SUBJECT")]
    pub(crate) notifier_publishes: Vec<String>,
    /// The servers' certificate in PEM, as the servers find it: turns TLS on
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// What must answer 200
    #[arg(default_value = "http://127.0.0.1:9100/readyz")]
    pub(crate) url: String,
}

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Where NATS and the store keep their files
    #[arg(long, value_name = "FOLDER", env = "ERRAND_DATA", hide_env_values = true, default_value = "data")]
    pub(crate) data: PathBuf,
    /// The NATS server's port on 127.0.0.1; 0: any free one
    #[arg(long, default_value_t = 4222)]
    pub(crate) port: u16,
    /// Where runs are kept: sqlite://FOLDER or postgres://USER@HOST/DATABASE [default: sqlite in the data folder]
    #[arg(long, value_name = "URL", env = "ERRAND_STORE", hide_env_values = true)]
    pub(crate) store: Option<String>,
    /// The HTTP API's port on 127.0.0.1; 0: any free one
    #[arg(long, default_value_t = 8080)]
    pub(crate) http_port: u16,
    #[command(flatten)]
    pub(crate) nats_server: NatsServerArg,
    /// Sessions of the runner for programs, at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) capacity: u32,
    /// Starts a runner for browsers, too, with as many sessions: it needs Chromium. They reach this machine's own
    /// addresses
    #[arg(long)]
    pub(crate) browser: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NatsServerArg {
    /// The NATS server's program [default: .tools/bin/nats-server, else the one in PATH]
    #[arg(long = "nats-server", value_name = "FILE", env = "NATS_SERVER", hide_env_values = true)]
    pub(crate) nats_server: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    #[command(subcommand)]
    pub(crate) command: TaskCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Makes tasks be as they are written: new, a new version, or unchanged
    Apply {
        /// JSON files with a definition each, or a list of them; `-`: stdin
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Lists the tasks, newest first
    List {
        /// Only those of this agent
        #[arg(long, value_name = "AGENT")]
        agent: Vec<String>,
    },
    /// Shows a task
    Get {
        /// By id or name
        task: String,
        /// This version, not the newest
        #[arg(long, value_name = "N")]
        version: Option<u32>,
    },
    /// Deletes a task; its runs stay
    Delete {
        /// By id or name
        task: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The task, by id or name
    pub(crate) task: String,
    /// The input: JSON, @FILE, or @- for stdin
    #[arg(long, short, value_name = "JSON")]
    pub(crate) input: Option<String>,
    /// A note for its reader and for filters; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) metadata: Vec<(String, String)>,
    /// -100..100, higher first [default: the task's]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,
    /// Bounds the execution's whole time, in seconds [default: the task's]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
    /// Asks for review of the output
    #[arg(long)]
    pub(crate) review: bool,
    /// The session that it must execute in
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<SessionId>,
    /// The system that it works on
    #[arg(long, value_name = "ID")]
    pub(crate) source: Option<SourceId>,
    /// Secrets for the source
    #[arg(long, value_name = "ID")]
    pub(crate) credential: Option<CredentialId>,
    /// The run's id, chosen by you: asking twice makes one run
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<RunId>,
    /// Follows the run to its end, and asks you what it asks; the exit code tells whether it completed
    #[arg(long, short)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    #[command(subcommand)]
    pub(crate) command: RunsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunsCommand {
    /// Lists runs, newest first
    List(RunsListArgs),
    /// Shows a run
    Get {
        run: RunId,
        /// Adds its events
        #[arg(long)]
        events: bool,
    },
    /// Follows a run from its first event to its end
    Watch { run: RunId },
    /// Cancels runs
    Cancel {
        #[arg(required = true)]
        runs: Vec<RunId>,
    },
    /// Runs the same task with the same input again
    Retry {
        run: RunId,
        /// Follows the new run to its end
        #[arg(long, short)]
        watch: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunsListArgs {
    /// Only with this status; may be repeated
    #[arg(long, short, value_parser = statuses())]
    pub(crate) status: Vec<RunStatus>,
    /// Only with this result; may be repeated
    #[arg(long, value_parser = results())]
    pub(crate) result: Vec<RunResult>,
    /// Only of this task, by id or name; may be repeated
    #[arg(long, short, value_name = "TASK")]
    pub(crate) task: Vec<String>,
    /// Only for this agent; may be repeated
    #[arg(long, value_name = "AGENT")]
    pub(crate) agent: Vec<String>,
    /// Only in this session; may be repeated
    #[arg(long, value_name = "ID")]
    pub(crate) session: Vec<SessionId>,
    /// Only with this note; may be repeated, and all must be there
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) metadata: Vec<(String, String)>,
    /// Only those made after this time, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    pub(crate) after: Option<i64>,
    /// Only those made before this time, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    pub(crate) before: Option<i64>,
    /// At most so many; 0: all
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    pub(crate) limit: usize,
}

#[derive(Debug, Args)]
pub(crate) struct InteractArgs {
    pub(crate) run: RunId,
    /// The answer, field by field; without any, you are asked, or told what to give
    #[arg(value_name = "FIELD=VALUE", value_parser = key_value)]
    pub(crate) fields: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct ReviewArgs {
    pub(crate) run: RunId,
    pub(crate) decision: DecisionArg,
    /// Why
    #[arg(long, short, default_value = "", hide_default_value = true)]
    pub(crate) comment: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DecisionArg {
    /// The output stands: the run completes
    Approve,
    /// It does not: the run fails
    Reject,
}

impl From<DecisionArg> for Decision {
    fn from(decision: DecisionArg) -> Self {
        match decision {
            DecisionArg::Approve => Self::Approve,
            DecisionArg::Reject => Self::Reject,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    #[command(subcommand)]
    pub(crate) command: EventsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// Prints events as they happen
    Tail {
        /// Of this type only: task_run.completed, task_run.*, ...
        #[arg(long = "type", short = 't', value_name = "TYPE", default_value = "*")]
        event_type: String,
        /// Of this run only, from its first event; ends with its final one
        #[arg(long, value_name = "ID")]
        run: Option<RunId>,
        /// Ends after so many
        #[arg(long, short = 'n', value_name = "N")]
        limit: Option<usize>,
    },
    /// Lists the events of a run, a session or a task, oldest first
    List {
        /// trun_..., sess_... or task_...
        #[arg(value_name = "ID")]
        object: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SourcesArgs {
    #[command(subcommand)]
    pub(crate) command: SourcesCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SourcesCommand {
    /// Makes a source
    Create {
        /// For people
        name: String,
        /// Where it is; a source of type exec needs none
        #[arg(value_name = "URL", default_value = "", hide_default_value = true)]
        url: String,
        /// What kind of system it is
        #[arg(long = "type", short = 't', value_name = "TYPE", default_value = "website", value_parser = source_types())]
        kind: SourceType,
    },
    /// Lists sources, newest first
    List {
        /// Only of this type; may be repeated
        #[arg(long = "type", short = 't', value_name = "TYPE", value_parser = source_types())]
        kind: Vec<SourceType>,
        /// At most so many; 0: all
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Shows a source
    Get { source: SourceId },
    /// Changes a source
    Update {
        source: SourceId,
        /// Another name
        #[arg(long)]
        name: Option<String>,
        /// Another address
        #[arg(long)]
        url: Option<String>,
        /// Another type
        #[arg(long = "type", short = 't', value_name = "TYPE", value_parser = source_types())]
        kind: Option<SourceType>,
    },
    /// Deletes a source that no credential belongs to
    Delete { source: SourceId },
}

#[derive(Debug, Args)]
pub(crate) struct CredentialsArgs {
    #[command(subcommand)]
    pub(crate) command: CredentialsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CredentialsCommand {
    /// Makes a credential. Secrets are never arguments: everybody on the machine could read them
    Create {
        /// For people
        name: String,
        /// How it signs in
        #[arg(long, short, value_name = "METHOD", default_value = "username_password", value_parser = auth_methods())]
        method: AuthMethod,
        /// The source that it is for [default: any]
        #[arg(long, value_name = "ID")]
        source: Option<SourceId>,
        #[command(flatten)]
        secrets: SecretsArg,
    },
    /// Lists credentials, newest first
    List {
        /// Only with this status; may be repeated
        #[arg(long, short, value_parser = credential_statuses())]
        status: Vec<CredentialStatus>,
        /// Only for this source; may be repeated
        #[arg(long, value_name = "ID")]
        source: Vec<SourceId>,
        /// At most so many; 0: all
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Shows a credential, without its secrets
    Get { credential: CredentialId },
    /// Changes a credential; other secrets make it unverified
    Update {
        credential: CredentialId,
        /// Another name
        #[arg(long)]
        name: Option<String>,
        /// Another source
        #[arg(long, value_name = "ID", conflicts_with = "any_source")]
        source: Option<SourceId>,
        /// For any source
        #[arg(long)]
        any_source: bool,
        #[command(flatten)]
        secrets: SecretsArg,
    },
    /// Deletes a credential with its secrets
    Delete { credential: CredentialId },
}

#[derive(Debug, Args)]
pub(crate) struct SecretsArg {
    /// A file with the secrets, `-`: stdin. A JSON object of username, password, api_key and totp_secret, those that the
    /// method has [default: asked for at a terminal; nothing on update]
    #[arg(long = "secrets", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct VaultArgs {
    #[command(subcommand)]
    pub(crate) command: VaultCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VaultCommand {
    /// Seals with the newest master key what older ones have sealed. Give every vault the new key first, in front of
    /// the old one; take the old one away when this is done. Safe to break off and to repeat
    RotateKey,
}

#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    #[command(subcommand)]
    pub(crate) command: SessionsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// Lists sessions, newest first
    List {
        /// Only with this status; may be repeated
        #[arg(long, short, value_parser = session_statuses())]
        status: Vec<SessionStatus>,
        /// Only of this agent; may be repeated
        #[arg(long, value_name = "AGENT")]
        agent: Vec<String>,
        /// At most so many; 0: all
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Shows a session
    Get { session: SessionId },
    /// Ends a session; the run in it is canceled
    End { session: SessionId },
}

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) command: KeysCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Makes a key and shows its secret, once
    Create {
        /// What it is for
        name: String,
        /// What it may do: runs:read, runs:write, tasks:*, sessions:*, events:read, destinations:*, sources:*,
        /// credentials:*, or admin for everything and the runners of all; may be repeated [default: everything of the tenant]
        #[arg(long, value_name = "SCOPE")]
        scope: Vec<String>,
        /// Until when it is valid, RFC 3339 [default: for ever]
        #[arg(long, value_name = "TIME", value_parser = time_ms)]
        expires: Option<i64>,
    },
    /// Lists the keys, newest first; those that were revoked too
    List,
    /// Ends a key: within a second no gateway takes it any more
    Revoke { key: ApiKeyId },
}

#[derive(Debug, Args)]
pub(crate) struct StorageArgs {
    #[command(subcommand)]
    pub(crate) command: StorageCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StorageCommand {
    /// Lists what a run has captured, newest first
    List {
        run: RunId,
        /// At most so many; 0: all
        #[arg(long, short = 'n', value_name = "N", default_value_t = 0)]
        limit: usize,
    },
    /// Shows a file with its extracted data, or saves its content
    Get {
        artifact: StorageId,
        /// Where to save it; `-`: stdout
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Deletes a file
    Delete { artifact: StorageId },
}

#[derive(Debug, Args)]
pub(crate) struct RunnersArgs {
    #[command(subcommand)]
    pub(crate) command: RunnersCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunnersCommand {
    /// Lists the runners that are connected
    List {
        /// Only of this agent; may be repeated
        #[arg(long, value_name = "AGENT")]
        agent: Vec<String>,
    },
    /// Lets a runner finish what it has, and gives it nothing new
    Drain { runner: RunnerId },
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// How long to wait for the answers of the services, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500)]
    pub(crate) wait: u64,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,
    /// Runs of the loaded part
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20_000)]
    pub(crate) runs: usize,
    /// Runs in flight at once, in the loaded part
    #[arg(long, short = 'c', value_name = "N", default_value_t = 256)]
    pub(crate) concurrency: usize,
    /// Runs one after the other, in the unloaded part
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) unloaded: usize,
    /// Seconds at half of the loaded part's rate, behind it; 0: that part is left out
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) half_rate_seconds: u32,
    /// Measures so often, and tells the median of each figure
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) rounds: u8,
    /// Runs in one submit request of the loaded part
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = batch)]
    pub(crate) batch: usize,
    /// Spreads the runs over so many tenants
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) tenants: usize,
    /// Sessions of the no-op runner [default: the concurrency]
    #[arg(long, value_name = "N")]
    pub(crate) sessions: Option<u32>,
    /// `sqlite` or `postgres` (in a temporary folder), sqlite://FOLDER or postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "URL", default_value = "sqlite")]
    pub(crate) store: String,
    /// Completed runs that are in the store before anything is measured
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) stored: usize,
    /// Dispatchers that share the work
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) dispatchers: u8,
    /// Measures the stack that runs at --nats-url, with a no-op runner of its own
    #[arg(long, conflicts_with_all = ["store", "dispatchers"])]
    pub(crate) connect: bool,
    /// Compares with what is kept in FILE: lines that `errand bench --json` has printed before
    #[arg(long, value_name = "FILE")]
    pub(crate) baseline: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) nats_server: NatsServerArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measures the HTTP API: reading runs and making them, over a whole stack
    Http(BenchHttpArgs),
    /// Measures the notifier: webhooks to receivers in this process, alone and beside bad ones
    Notifier(BenchNotifierArgs),
    /// Measures the timeout-watcher: the memory of many deadlines, and how late they are told
    Watcher(BenchWatcherArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchWatcherArgs {
    /// Deadlines that are armed
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) deadlines: u64,
    /// Those of them that pass, one after the other
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) due: u64,
    /// Within so many seconds, a minute after the start
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,
    #[command(flatten)]
    pub(crate) nats_server: NatsServerArg,
}

#[derive(Debug, Args)]
pub(crate) struct BenchNotifierArgs {
    /// Events that are published at once
    #[arg(long, short = 'n', value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    pub(crate) events: u32,
    /// Events of each part that is paced
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    pub(crate) paced_events: u32,
    /// Events a second in the parts that are paced
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
    /// `sqlite` or `postgres` (in a temporary folder), sqlite://FOLDER or postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "URL", default_value = "sqlite")]
    pub(crate) store: String,
    #[command(flatten)]
    pub(crate) nats_server: NatsServerArg,
}

#[derive(Debug, Args)]
pub(crate) struct BenchHttpArgs {
    /// Requests of each kind
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20_000)]
    pub(crate) requests: usize,
    /// Connections, each with one request under way
    #[arg(long, short = 'c', value_name = "N", default_value_t = 128)]
    pub(crate) connections: usize,
    /// `sqlite` or `postgres` (in a temporary folder), sqlite://FOLDER or postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "URL", default_value = "sqlite")]
    pub(crate) store: String,
    #[command(flatten)]
    pub(crate) nats_server: NatsServerArg,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The folder of the portal
    #[arg(long, value_name = "FOLDER", default_value = "examples/portal")]
    pub(crate) portal: PathBuf,
    /// The receiver of webhooks
    #[arg(long, value_name = "FILE", default_value = "examples/webhooks/receiver.py")]
    pub(crate) receiver: PathBuf,
    /// Python 3, which the portal, its agent and the receiver are written in
    #[arg(long, value_name = "FILE", default_value = "python3")]
    pub(crate) python: PathBuf,
    /// Where runs are kept [default: sqlite in a temporary folder]
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    #[command(flatten)]
    pub(crate) nats_server: NatsServerArg,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    pub(crate) shell: clap_complete::Shell,
}

fn statuses() -> impl TypedValueParser<Value = RunStatus> {
    named(RunStatus::ALL.map(|status| (status.as_str(), status)))
}

fn results() -> impl TypedValueParser<Value = RunResult> {
    named([RunResult::Success, RunResult::Failure, RunResult::Unknown].map(|result| (result.as_str(), result)))
}

fn session_statuses() -> impl TypedValueParser<Value = SessionStatus> {
    named(SessionStatus::ALL.map(|status| (status.as_str(), status)))
}

fn source_types() -> impl TypedValueParser<Value = SourceType> {
    named(SourceType::ALL.map(|kind| (kind.as_str(), kind)))
}

fn auth_methods() -> impl TypedValueParser<Value = AuthMethod> {
    named(AuthMethod::ALL.map(|method| (method.as_str(), method)))
}

fn credential_statuses() -> impl TypedValueParser<Value = CredentialStatus> {
    named(CredentialStatus::ALL.map(|status| (status.as_str(), status)))
}

fn named<T: Copy + Send + Sync + 'static, const N: usize>(
    all: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.map(|(name, _)| name)).try_map(move |text| {
        let found = all.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.ok_or_else(|| format!("{text} is not among them"))
    })
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it must be KEY=VALUE".to_owned()),
    }
}

fn time_ms(text: &str) -> Result<i64, String> {
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        .map_err(|error| format!("it must be RFC 3339, like 2026-05-01T12:00:00Z: {error}"))
        .and_then(|at| i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(|error| error.to_string()))
}

fn batch(text: &str) -> Result<usize, String> {
    let most = errand_core::limits::MAX_SUBMIT_BATCH;
    text.parse().ok().filter(|count| (1..=most).contains(count)).ok_or_else(|| format!("it must be 1..{most}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// One snapshot for each command: what a person reads with `--help`.
    #[test]
    fn help() {
        fn visit(command: &mut clap::Command, path: &str) {
            let text = command.clone().bin_name(path).term_width(100).render_help().to_string();
            insta::assert_snapshot!(path.replace(' ', "_"), text);
            let names: Vec<String> =
                command.get_subcommands().map(|sub| sub.get_name().to_owned()).filter(|name| name != "help").collect();
            for name in names {
                if let Some(sub) = command.find_subcommand_mut(&name) {
                    visit(sub, &format!("{path} {name}"));
                }
            }
        }
        let mut command = Cli::command();
        command.build();
        visit(&mut command, "errand");
    }

    #[test]
    fn values_are_checked_where_they_are_given() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["errand"], args].concat()).map(|_| ());
        let text = |args: &[&str]| parse(args).unwrap_err().to_string().lines().next().unwrap_or_default().to_owned();
        let wrong: [&[&str]; 9] = [
            &["runs", "get", "trun_1"],
            &["runs", "list", "--status", "finished"],
            &["runs", "list", "--after", "yesterday"],
            &["run", "t", "--metadata", "novalue"],
            &["review", "trun_01h455vb4pex5vsknk084sn02q", "maybe"],
            &["bench", "--batch", "501"],
            &["agents", "--tenant", "A.B"],
            &["destinations", "get", "evtd_1"],
            &["deliveries", "list", "evtd_01h455vb4pex5vsknk084sn02q", "--status", "lost"],
        ];
        insta::assert_snapshot!("wrong_usage", wrong.iter().map(|args| text(args)).collect::<Vec<_>>().join("\n"));
        assert!(parse(&["runs", "list", "--status", "failed", "--after", "2026-05-01T00:00:00Z"]).is_ok());
        assert!(parse(&["run", "bills", "-i", "{}", "-m", "k=v=w", "--priority", "-5", "--watch"]).is_ok());
    }
}
