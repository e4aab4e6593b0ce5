//! What a runner says of itself.

use std::time::Duration;

use errand_core::{AgentId, Tenant};

/// Sessions that one runner may host.
pub const MAX_CAPACITY: u32 = 10_000;

/// What a runner says of itself.
#[derive(Debug, Clone)]
pub struct RunnerConfig {
    /// The kind of runner that it is: tasks ask for it by this name.
    pub agent_id: AgentId,
    /// Sessions at the same time, 1..[`MAX_CAPACITY`].
    pub capacity: u32,
    /// Sessions that the pool keeps ready for the agent, 0..`capacity`.
    pub warm: u32,
    /// Whom it serves; empty: every tenant.
    pub tenants: Vec<Tenant>,
    /// The machine, for people.
    pub host: String,
    /// The runner's own version, for people.
    pub version: String,
    /// At shutdown: how long executing runs may take to end. What is not over then is tried again elsewhere.
    pub drain: Duration,
}

impl RunnerConfig {
    /// One session at a time, none kept warm, every tenant.
    #[must_use]
    pub fn new(agent_id: AgentId) -> Self {
        Self {
            agent_id,
            capacity: 1,
            warm: 0,
            tenants: Vec::new(),
            host: host_name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            drain: Duration::from_secs(10),
        }
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if !(1..=MAX_CAPACITY).contains(&self.capacity) {
            return Err(format!("capacity must be 1..{MAX_CAPACITY}, not {}", self.capacity));
        }
        if self.warm > self.capacity {
            return Err(format!("warm must be 0..{} (the capacity), not {}", self.capacity, self.warm));
        }
        Ok(())
    }
}

/// The machine's name as far as it can be found without asking the system's libraries.
fn host_name() -> String {
    let read = |path| std::fs::read_to_string(path).ok();
    std::env::var("HOSTNAME")
        .ok()
        .or_else(|| read("/proc/sys/kernel/hostname"))
        .or_else(|| read("/etc/hostname"))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}
