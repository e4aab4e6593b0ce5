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
}
