//! A deterministic simulation of a whole installation (ADR 0013): dispatchers, session-pool, timeout-watchers, runners
//! and clients, each the real thing behind its ports, over simulated time, messages and broker, and stores in memory or
//! on SQLite. One seed says everything; the invariants of DESIGN section 5 are checked after each step.

mod broker;
mod checks;
mod faults;
mod host;
mod line;
#[cfg(feature = "mutations")]
pub mod mutations;
mod ports;
mod process;
mod rng;
mod shrink;
mod stores;
mod tasks;
mod trace;
mod world;

pub use shrink::{Failure, shrink};
pub use world::{Options, Outcome};

/// Of so many seeds, one is over SQLite.
pub const SQLITE_EVERY: u64 = 50;

/// Simulates one seed.
///
/// # Errors
/// Where SQLite cannot be opened.
pub fn simulate(options: Options) -> anyhow::Result<Outcome> {
    world::World::new(options).map(world::World::run)
}

/// What a seed means when nothing else is said.
#[must_use]
pub fn options_of(seed: u64) -> Options {
    Options { seed, sqlite: seed % SQLITE_EVERY == SQLITE_EVERY - 1, ..Options::default() }
}
