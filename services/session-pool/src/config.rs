//! The session-pool's arguments.

use std::time::Duration;

use errand_core::Tenant;

use crate::pool::Policy;

/// The session-pool's arguments.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "errand-session-pool", version, about = "Owns sessions: registers runners, leases, reclaims")]
pub struct Config {
    /// What all services take.
    #[command(flatten)]
    pub kit: errand_kit::Args,
    /// Where sessions are kept: sqlite://FOLDER or postgres://USER@HOST/DATABASE.
    #[arg(long, env = "ERRAND_STORE", default_value = "sqlite://data")]
    pub store: String,
    /// How many days after its end a session is deleted; 0: never.
    #[arg(long, env = "ERRAND_KEEP_DAYS", default_value_t = 90)]
    pub keep_days: u32,
    /// Sessions that one tenant may have at the same time; 0: no limit.
    #[arg(long, env = "ERRAND_TENANT_SESSION_LIMIT", default_value_t = 0)]
    pub tenant_session_limit: u32,
    /// Another limit for one tenant: acme=5. May be given several times, or as a list with commas.
    #[arg(long, env = "ERRAND_TENANT_LIMIT", value_parser = tenant_limit, value_delimiter = ',')]
    pub tenant_limit: Vec<(Tenant, u32)>,
    /// Runs that may wait for a session.
    #[arg(long, env = "ERRAND_MAX_WAITING", default_value_t = 1_000_000)]
    pub max_waiting: usize,
    /// Runners that may be connected.
    #[arg(long, env = "ERRAND_MAX_RUNNERS", default_value_t = 10_000)]
    pub max_runners: usize,
    /// How long a session may be idle before it ends.
    #[arg(long, env = "ERRAND_SESSION_IDLE_SECONDS", default_value_t = 600)]
    pub session_idle_seconds: u32,
    /// How long a runner may take to make a session.
    #[arg(long, env = "ERRAND_SESSION_START_SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub session_start_seconds: u32,
    /// How often a runner shows that it lives.
    #[arg(long, env = "ERRAND_HEARTBEAT_SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=60))]
    pub heartbeat_seconds: u32,
    /// After how long without a sign of life a runner is lost.
    #[arg(long, env = "ERRAND_RUNNER_LOST_SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub runner_lost_seconds: u32,
}

fn tenant_limit(text: &str) -> Result<(Tenant, u32), String> {
    let (tenant, limit) = text.split_once('=').ok_or("must be TENANT=NUMBER")?;
    let tenant = tenant.parse().map_err(|error: errand_core::id::NameError| error.to_string())?;
    let limit = limit.parse().map_err(|_| format!("{limit:?} is no number of sessions"))?;
    Ok((tenant, limit))
}

impl Config {
    /// What of it the matching needs.
    ///
    /// # Errors
    /// Where a runner would be lost between two of its heartbeats.
    pub fn policy(&self) -> anyhow::Result<Policy> {
        anyhow::ensure!(
            self.runner_lost_seconds >= 2 * self.heartbeat_seconds,
            "--runner-lost-seconds {} must be at least twice --heartbeat-seconds {}",
            self.runner_lost_seconds,
            self.heartbeat_seconds
        );
        Ok(Policy {
            tenant_limit: self.tenant_session_limit,
            tenant_limits: self.tenant_limit.iter().cloned().collect(),
            max_waiting: self.max_waiting,
            max_runners: self.max_runners,
            idle_ms: u64::from(self.session_idle_seconds) * 1000,
            lost_ms: u64::from(self.runner_lost_seconds) * 1000,
        })
    }

    /// How long a runner may take to make a session.
    #[must_use]
    pub const fn start_timeout(&self) -> Duration {
        Duration::from_secs(self.session_start_seconds as u64)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn limits_of_tenants_are_read() {
        let config =
            Config::try_parse_from(["pool", "--tenant-limit", "acme=5,blue=0", "--tenant-limit", "cyan=1"]).unwrap();
        let policy = config.policy().unwrap();
        let limit = |name: &str| policy.limit_of(&name.parse().unwrap());
        assert_eq!((limit("acme"), limit("blue"), limit("cyan"), limit("other")), (5, 0, 1, 0));
        assert!(Config::try_parse_from(["pool", "--tenant-limit", "acme"]).is_err());
        assert!(Config::try_parse_from(["pool", "--tenant-limit", "A=1"]).is_err());
    }

    #[test]
    fn a_runner_is_not_lost_between_two_heartbeats() {
        let config = Config::try_parse_from(["pool", "--heartbeat-seconds", "10"]).unwrap();
        assert!(config.policy().unwrap_err().to_string().contains("--runner-lost-seconds 10"));
    }
}
