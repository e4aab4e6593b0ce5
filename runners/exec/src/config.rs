//! The exec runner's arguments.

use std::path::PathBuf;

use errand_core::{AgentId, Tenant};

/// The exec runner's arguments.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "errand-exec", version, about = "A runner that executes any program as an agent")]
pub struct Config {
    /// What all services take.
    #[command(flatten)]
    pub kit: errand_kit::Args,
    /// The agent that tasks ask for.
    #[arg(long, env = "ERRAND_EXEC_AGENT", default_value = "agt_exec")]
    pub agent: AgentId,
    /// Where programs are started.
    #[arg(long, env = "ERRAND_EXEC_DIRECTORY", default_value = ".")]
    pub directory: PathBuf,
    /// Where sessions, files and logs are kept; a folder for temporary files unless given.
    #[arg(long, env = "ERRAND_EXEC_WORK")]
    pub work: Option<PathBuf>,
    /// Runs at the same time; the number of processors unless given.
    #[arg(long, env = "ERRAND_EXEC_CAPACITY")]
    pub capacity: Option<u32>,
    /// Sessions that are kept ready.
    #[arg(long, env = "ERRAND_EXEC_WARM", default_value_t = 0)]
    pub warm: u32,
    /// Whom it serves, separated by commas; every tenant unless given.
    #[arg(long, env = "ERRAND_EXEC_TENANTS", value_delimiter = ',')]
    pub tenants: Vec<Tenant>,
    /// The binary that supervises programs: one whose main calls `supervise_main`; this one unless given.
    #[arg(skip)]
    pub supervisor: Option<PathBuf>,
}
