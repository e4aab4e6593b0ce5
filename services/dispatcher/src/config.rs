//! The dispatcher's arguments.

/// The dispatcher's arguments.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "errand-dispatcher", version, about = "Owns runs: accepts requests, persists them, publishes events")]
pub struct Config {
    /// What all services take.
    #[command(flatten)]
    pub kit: errand_kit::Args,
    /// Where runs are kept: sqlite://FOLDER or postgres://USER@HOST/DATABASE.
    #[arg(long, env = "ERRAND_STORE", default_value = "sqlite://data")]
    pub store: String,
    /// How many days after its end a run is deleted; 0: never.
    #[arg(long, env = "ERRAND_KEEP_DAYS", default_value_t = 90)]
    pub keep_days: u32,
}
