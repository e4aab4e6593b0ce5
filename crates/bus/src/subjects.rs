use std::fmt::Display;
use std::sync::Arc;

use errand_core::{RunId, RunnerId, SessionId, Tenant};

/// Every subject of DESIGN section 4. They start with the prefix, which is configuration, so that tests and
/// installations can share a broker.
#[derive(Debug, Clone)]
pub struct Subjects {
    prefix: Arc<str>,
}

impl Subjects {
    /// Subjects under this prefix, `errand.v1` as shipped.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The prefix.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What of a subject there are few of, for the names of spans: `api.dispatcher.get_run`, `submit`, `runner.assign`,
    /// without prefix, tenants and ids.
    pub(crate) fn endpoint<'a>(&self, subject: &'a str) -> &'a str {
        let rest = subject.strip_prefix(&*self.prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or(subject);
        let (first, others) = rest.split_once('.').unwrap_or((rest, ""));
        match first {
            "api" | "pool" | "run" | "dlq" => rest,
            "runner" => others.rsplit('.').next().unwrap_or(first),
            _ => first,
        }
    }

    fn under(&self, rest: impl Display) -> String {
        format!("{}.{rest}", self.prefix)
    }

    /// Where clients publish a tenant's run requests.
    #[must_use]
    pub fn submit(&self, tenant: &Tenant) -> String {
        self.under(format_args!("submit.{tenant}"))
    }

    /// All tenants' run requests.
    #[must_use]
    pub fn submit_all(&self) -> String {
        self.under("submit.*")
    }

    /// The tenant of a submit subject.
    #[must_use]
    pub fn tenant_of_submit(&self, subject: &str) -> Option<Tenant> {
        subject.strip_prefix(&*self.prefix)?.strip_prefix(".submit.")?.parse().ok()
    }

    /// Where an event is published.
    #[must_use]
    pub fn event(&self, tenant: &Tenant, object: &str, action: &str, id: &str) -> String {
        self.under(format_args!("event.{tenant}.{object}.{action}.{id}"))
    }

    /// The events of one tenant, or of all.
    #[must_use]
    pub fn events_of(&self, tenant: Option<&Tenant>) -> String {
        match tenant {
            Some(tenant) => self.under(format_args!("event.{tenant}.>")),
            None => self.under("event.>"),
        }
    }

    /// A service's method.
    #[must_use]
    pub fn api(&self, service: &str, method: &str) -> String {
        self.under(format_args!("api.{service}.{method}"))
    }

    /// What the session-pool is told: acquire, release, register, heartbeat, deregister, session_lost, hello.
    #[must_use]
    pub fn pool(&self, method: &str) -> String {
        self.under(format_args!("pool.{method}"))
    }

    /// What the dispatcher is told and asked of runs: grant, lost, report, expire, leases, lease_holder, holder.
    #[must_use]
    pub fn run(&self, method: &str) -> String {
        self.under(format_args!("run.{method}"))
    }

    /// What one runner is told and asked: start_session, tear_down_session, assign, stop, input, confirm_key.
    #[must_use]
    pub fn runner(&self, id: RunnerId, method: &str) -> String {
        self.under(format_args!("runner.{id}.{method}"))
    }

    /// What the storage is told by runners: begin.
    #[must_use]
    pub fn storage(&self, method: &str) -> String {
        self.under(format_args!("storage.{method}"))
    }

    /// What one instance of the storage is told by those whose upload it has begun: put, finish.
    #[must_use]
    pub fn storage_instance(&self, instance: &str, method: &str) -> String {
        self.under(format_args!("storage.{instance}.{method}"))
    }

    /// What any runner is told; a wildcard.
    #[must_use]
    pub fn runner_any(&self, method: &str) -> String {
        self.under(format_args!("runner.*.{method}"))
    }

    /// Signs of life of one run's agent.
    #[must_use]
    pub fn activity(&self, run: RunId) -> String {
        self.under(format_args!("activity.{run}"))
    }

    /// Signs of life of all agents.
    #[must_use]
    pub fn activity_all(&self) -> String {
        self.under("activity.*")
    }

    /// What goes between gateways and a session's runner while somebody watches it: watch, frame.
    #[must_use]
    pub fn live(&self, runner: RunnerId, session: SessionId, what: &str) -> String {
        self.under(format_args!("live.{runner}.{session}.{what}"))
    }

    /// The same of all sessions of a runner, or of all runners.
    #[must_use]
    pub fn live_of(&self, runner: Option<RunnerId>, what: &str) -> String {
        match runner {
            Some(runner) => self.under(format_args!("live.{runner}.*.{what}")),
            None => self.under(format_args!("live.*.*.{what}")),
        }
    }

    /// What gateways tell each other: keys.
    #[must_use]
    pub fn gateway(&self, what: &str) -> String {
        self.under(format_args!("gateway.{what}"))
    }

    /// What could not be decoded or handled.
    #[must_use]
    pub fn dead_letter(&self, what: &str) -> String {
        self.under(format_args!("dlq.{what}"))
    }

    /// All dead letters.
    #[must_use]
    pub fn dead_letter_all(&self) -> String {
        self.under("dlq.>")
    }

    /// What notifiers tell one another: `due`, `changed`. Hints for speed, which may be lost.
    #[must_use]
    pub fn notifier(&self, hint: &str) -> String {
        self.under(format_args!("notifier.{hint}"))
    }

    /// Where the notifier publishes an event as JSON.
    #[must_use]
    pub fn notify(&self, tenant: &str, object: &str, action: &str) -> String {
        self.under(format_args!("notify.{tenant}.{object}.{action}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_spans_are_few() {
        let subjects = Subjects::new("errand.v1");
        for (subject, name) in [
            ("errand.v1.api.dispatcher.get_run", "api.dispatcher.get_run"),
            ("errand.v1.submit.acme", "submit"),
            ("errand.v1.event.acme.task_run.queued.trun_1", "event"),
            ("errand.v1.runner.rnr_1.assign", "assign"),
            ("_INBOX.x", "_INBOX"),
        ] {
            assert_eq!(subjects.endpoint(subject), name);
        }
    }

    #[test]
    fn a_submit_subject_gives_its_tenant_back() {
        let subjects = Subjects::new("errand.v1");
        let tenant: Tenant = "acme".parse().unwrap();
        assert_eq!(subjects.tenant_of_submit(&subjects.submit(&tenant)), Some(tenant));
        assert_eq!(subjects.tenant_of_submit("errand.v1.submit._system"), None);
        assert_eq!(subjects.tenant_of_submit("other.submit.acme"), None);
    }
}
