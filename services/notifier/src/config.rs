//! What can be set.

/// Tells every event on as JSON.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "errand-notifier", version)]
pub struct Config {
    /// What all services take.
    #[command(flatten)]
    pub kit: errand_kit::Args,
    /// Events that are told on together, before they are acknowledged.
    #[arg(long, env = "ERRAND_NOTIFIER_BATCH", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    pub batch: u16,
}
