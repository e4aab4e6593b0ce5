//! What metrics and traces say of commits and of the runs that they change.

use std::time::{Duration, Instant, SystemTime};

use errand_bus::trace::{Kind, Span};
use errand_core::Timestamp;
use errand_core::run::{Run, RunResult, RunStatus};
use errand_kit::metrics;

/// A commit under way.
#[derive(Debug)]
pub(crate) struct Commit {
    runs: usize,
    begun: (Instant, SystemTime),
}

impl Commit {
    /// Begins, with so many runs that change.
    pub(crate) fn begin(runs: usize) -> Self {
        Self { runs, begun: (Instant::now(), SystemTime::now()) }
    }

    /// It is done: each change, with its run as it is from then on.
    pub(crate) fn ended<'a>(self, changes: impl Iterator<Item = &'a Run>) {
        if self.runs == 0 {
            return;
        }
        metrics().committed(self.runs, self.begun.0.elapsed());
        for run in changes {
            count(run);
            self.trace(run);
        }
    }

    fn trace(&self, run: &Run) {
        let Some(traceparent) = run.spec.traceparent.as_deref() else { return };
        let mut span = Span::child_since(Some(traceparent), Kind::Internal, "commit", || self.begun.1);
        if span.is_recording() {
            span.set("errand.run.status", run.status().as_str());
            span.set("errand.run.id", run.id.to_string());
            span.set("errand.run.seq", i64::try_from(run.seq).unwrap_or(i64::MAX));
            span.set("errand.run.attempt", i64::from(run.attempt));
            span.set("errand.task.id", run.spec.task_id.to_string());
            span.set("messaging.batch.message_count", i64::try_from(self.runs).unwrap_or(i64::MAX));
            if let Some(error) = run.errors.last() {
                span.set("error.type", format!("{}/{}", error.code.kind, error.code.code));
            }
        }
    }
}

fn count(run: &Run) {
    let status = run.status();
    let agent = run.spec.agent_id.as_ref().map_or("none", |agent| agent.as_str());
    let result = run.result().map_or("", RunResult::as_str);
    let error = run.errors.last().filter(|_| status == RunStatus::Failed).map_or("", |error| error.code.kind);
    metrics().run_changed(agent, status.as_str(), result, error);
    if run.started_at == Some(run.updated_at) && !status.is_final() {
        metrics().run_started(agent, between(run.created_at, run.updated_at));
    }
    if let (true, Some(started), Some(finished)) = (status.is_final(), run.started_at, run.finished_at) {
        metrics().run_finished(agent, status.as_str(), between(started, finished));
    }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::from_millis(to.millis_since(from))
}
