//! What can be set.

/// Tells the dispatcher which deadlines of runs have passed.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "errand-timeout-watcher", version)]
pub struct Config {
    /// What all services take.
    #[command(flatten)]
    pub kit: errand_kit::Args,
    /// Loads what the dispatcher has armed anew after so many seconds, in case an event was missed.
    #[arg(long, env = "ERRAND_WATCHER_SNAPSHOT_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_seconds: u64,
    /// Requests to the dispatcher that are under way at once, of up to 500 expiries each.
    #[arg(long, env = "ERRAND_WATCHER_ASKS_IN_FLIGHT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub asks_in_flight: u16,
}
