//! How long runs wait for their leases, for metrics and traces.

use std::collections::{HashMap, HashSet};
use std::time::{Instant, SystemTime};

use errand_bus::trace::{Kind, Span};
use errand_core::{AgentId, RunId};
use errand_kit::metrics;

use crate::pool::{AgentView, Grant, Want};

/// Runs that wait. As many as the pool admits: what it refuses, the dispatcher releases.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    runs: HashMap<RunId, Wait>,
    /// Agents whose figures were shown.
    shown: HashSet<AgentId>,
}

#[derive(Debug)]
struct Wait {
    attempt: u32,
    since: Instant,
    /// Where the run is traced: its context, and when it began to wait.
    traced: Option<(Box<str>, SystemTime)>,
}

impl Waits {
    /// A run wants a session. The sweep says so again and again; the first time counts.
    pub(crate) fn begin(&mut self, want: &Want) {
        let attempt = want.attempt;
        if self.runs.get(&want.run_id).is_some_and(|wait| wait.attempt >= attempt) {
            return;
        }
        let traced = want.traceparent.clone().map(|traceparent| (traceparent, SystemTime::now()));
        self.runs.insert(want.run_id, Wait { attempt, since: Instant::now(), traced });
    }

    /// A run wants none any more.
    pub(crate) fn forget(&mut self, run_id: RunId) {
        self.runs.remove(&run_id);
    }

    /// A run has its lease. Told again, it says nothing.
    pub(crate) fn end(&mut self, grant: &Grant) {
        let Some(wait) = self.runs.remove(&grant.run_id) else { return };
        metrics().leased(wait.since.elapsed());
        let Some((traceparent, since)) = wait.traced else { return };
        let mut span = Span::child_since(Some(&traceparent), Kind::Internal, "lease", || since);
        if span.is_recording() {
            span.set("errand.run.id", grant.run_id.to_string());
            span.set("errand.session.id", grant.lease.session_id.to_string());
            span.set("errand.runner.id", grant.lease.runner_id.to_string());
            span.set("errand.run.attempt", i64::from(grant.attempt));
        }
    }

    /// Shows what there is of each agent; zeros of one that has gone.
    pub(crate) fn show(&mut self, agents: &[AgentView]) {
        for agent in agents {
            let [waiting, sessions, capacity] = [agent.waiting, agent.sessions, agent.capacity].map(|n| n as u64);
            metrics().pool(agent.id.as_str(), waiting, sessions, capacity);
        }
        let here: HashSet<AgentId> = agents.iter().map(|agent| agent.id.clone()).collect();
        for gone in self.shown.difference(&here) {
            metrics().pool(gone.as_str(), 0, 0, 0);
        }
        self.shown = here;
    }
}
