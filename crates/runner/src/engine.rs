//! The sessions of one runner and what executes in them. Knows neither bus nor wire types.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use errand_bus::trace;
use errand_core::credential::AuthFailure;
use errand_core::run::LeaseToken;
use errand_core::{Error, ErrorCode, RunId, RunnerId, SessionId, limits, mutated};
use errand_secret::handover::PublicKey;
use futures::FutureExt;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::activity::Activities;
use crate::control::{Abort, Control, Execution, Stop, StopReason, phase};
use crate::credential::{Safe, Vault};
use crate::host::{Assigned, Ending, Host, Lose, SessionHandle, SessionStart};
use crate::recent::Recent;
use crate::report::{Report, Reports, What};
use crate::transport::Shelf;

/// How long a host may take to make a session.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How long a host may take to end one before it is taken for ended.
const END_LIMIT: Duration = Duration::from_secs(60);
/// The longest grace that is granted, whatever a message says.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// A session that is wanted.
pub(crate) struct Wanted {
    pub(crate) id: SessionId,
    pub(crate) tenant: Option<errand_core::Tenant>,
    pub(crate) source_id: Option<errand_core::SourceId>,
    pub(crate) credential_id: Option<errand_core::CredentialId>,
}

/// A session that is here, as the pool is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) id: SessionId,
    /// The run that executes there, or whose end is not reported yet.
    pub(crate) lease: Option<(LeaseToken, RunId)>,
}

/// An assignment that is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) run_id: RunId,
    pub(crate) token: LeaseToken,
    pub(crate) message: &'static str,
}

/// A session that died here: the pool is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) id: SessionId,
    pub(crate) message: String,
}

/// What a session is, to those who wait for it. When it is gone, so is the channel that tells.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    /// It could not be made; it is being ended.
    Failed(Error),
    Ending,
}

struct Session {
    phase: watch::Sender<Phase>,
    /// The newest lease token that was assigned here: older ones are refused (invariant 5).
    fence: LeaseToken,
    lease: Option<(LeaseToken, RunId)>,
    executing: Option<Arc<Execution>>,
}

struct Table {
    sessions: HashMap<SessionId, Session>,
    executions: HashMap<(RunId, LeaseToken), Arc<Execution>>,
    /// So that a start which arrives after the session's end starts nothing.
    ended: Recent<SessionId>,
    /// So that a stop which overtakes its assignment is not forgotten.
    stopped_before: Recent<(RunId, LeaseToken)>,
    draining: bool,
    closed: bool,
}

/// Where what an engine has to say goes.
pub(crate) struct Outward {
    pub(crate) reports: Reports,
    pub(crate) activities: Activities,
    pub(crate) shelf: Shelf,
    pub(crate) losses: mpsc::UnboundedSender<Loss>,
    /// None where no run has a credential: in tests of what needs none.
    pub(crate) vault: Option<Arc<dyn Vault>>,
}

/// See the module.
pub(crate) struct Engine<H> {
    host: H,
    id: RunnerId,
    capacity: usize,
    table: Mutex<Table>,
    reports: Reports,
    activities: Activities,
    shelf: Shelf,
    losses: mpsc::UnboundedSender<Loss>,
    vault: Option<Arc<dyn Vault>>,
    tasks: TaskTracker,
}

impl<H: Host> Engine<H> {
    pub(crate) fn new(host: H, id: RunnerId, capacity: usize, outward: Outward) -> Arc<Self> {
        let Outward { reports, activities, shelf, losses, vault } = outward;
        let table = Table {
            sessions: HashMap::new(),
            executions: HashMap::new(),
            ended: Recent::new(),
            stopped_before: Recent::new(),
            draining: false,
            closed: false,
        };
        let (table, tasks) = (Mutex::new(table), TaskTracker::new());
        Arc::new(Self { host, id, capacity, table, reports, activities, shelf, losses, vault, tasks })
    }

    pub(crate) fn id(&self) -> RunnerId {
        self.id
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a session, or waits for the one that starts already.
    pub(crate) async fn start_session(self: &Arc<Self>, wanted: Wanted) -> Result<(), Error> {
        let id = wanted.id;
        let mut seen = {
            let mut table = self.table();
            if let Some(session) = table.sessions.get(&id) {
                session.phase.subscribe()
            } else {
                if table.closed || table.draining {
                    return Err(ErrorCode::PROVISION_FAILED.with("the runner drains"));
                }
                if table.ended.contains(&id) {
                    return Err(ErrorCode::PROVISION_FAILED.with("the session has ended on this runner"));
                }
                if table.sessions.len() >= self.capacity {
                    return Err(ErrorCode::PROVISION_FAILED.with("the runner has no room for another session"));
                }
                let (phase, seen) = watch::channel(Phase::Starting);
                let session = Session { phase, fence: 0, lease: None, executing: None };
                table.sessions.insert(id, session);
                self.tasks.spawn(Arc::clone(self).make(wanted));
                seen
            }
        };
        let phase = seen.wait_for(|phase| *phase != Phase::Starting).await;
        match phase.as_deref() {
            Ok(Phase::Ready) => Ok(()),
            Ok(Phase::Failed(error)) => Err(error.clone()),
            _ => Err(ErrorCode::PROVISION_FAILED.with("the session was ended meanwhile")),
        }
    }

    async fn make(self: Arc<Self>, wanted: Wanted) {
        let id = wanted.id;
        let engine: Weak<dyn Lose> = Arc::downgrade(&(Arc::clone(&self) as Arc<dyn Lose>));
        let Wanted { tenant, source_id, credential_id, .. } = wanted;
        let handle = SessionHandle { id, engine };
        let start = SessionStart { id, runner_id: self.id, tenant, source_id, credential_id, handle };
        let Some(mut phase) = self.table().sessions.get(&id).map(|session| session.phase.subscribe()) else { return };
        let starting = AssertUnwindSafe(self.host.start_session(start)).catch_unwind();
        let made = tokio::select! {
            biased;
            made = timeout(START_LIMIT, starting) => match made {
                Ok(Ok(made)) => made,
                Ok(Err(_)) => Err(ErrorCode::PROVISION_FAILED.with("the runner's host panicked")),
                Err(_) => {
                    let message = format!("the session was not ready within {} s", START_LIMIT.as_secs());
                    Err(ErrorCode::PROVISION_FAILED.with(message))
                }
            },
            _ = phase.wait_for(|phase| *phase == Phase::Ending) => Err(ErrorCode::PROVISION_FAILED.with("ended")),
        };
        let next = match made {
            Ok(()) => Phase::Ready,
            Err(error) => Phase::Failed(error),
        };
        if !self.made(id, next) {
            self.close(id).await;
        }
    }

    /// Notes what came of a start; whether the session is ready. An end that was asked for meanwhile stands.
    fn made(&self, id: SessionId, next: Phase) -> bool {
        let table = self.table();
        let Some(session) = table.sessions.get(&id) else { return false };
        let ready = next == Phase::Ready;
        session.phase.send_if_modified(|phase| {
            let starting = *phase == Phase::Starting;
            if starting {
                *phase = next;
            }
            starting
        }) && ready
    }

    /// Ends a session and waits until it is gone. Harmless where there is none.
    pub(crate) async fn tear_down(self: &Arc<Self>, id: SessionId) {
        let Some(mut phase) = self.begin_end(id) else { return };
        while phase.changed().await.is_ok() {}
    }

    /// Has a session end, if it is here; the phase to wait for.
    fn begin_end(self: &Arc<Self>, id: SessionId) -> Option<watch::Receiver<Phase>> {
        let mut table = self.table();
        if !table.sessions.contains_key(&id) {
            // Its start may be on its way still, and must find that it comes too late.
            table.ended.insert(id);
        }
        let session = table.sessions.get(&id)?;
        let mut was_ready = false;
        session.phase.send_if_modified(|phase| {
            was_ready = *phase == Phase::Ready;
            let goes_on = was_ready || *phase == Phase::Starting;
            if goes_on {
                *phase = Phase::Ending;
            }
            goes_on
        });
        if let Some(execution) = &session.executing {
            execution.abort(Abort::Disowned);
        }
        // Otherwise whoever makes it, failed to, or ends it already sees to its end.
        if was_ready {
            self.tasks.spawn(Arc::clone(self).close(id));
        }
        Some(session.phase.subscribe())
    }

    /// Takes a session away, once nothing executes there.
    async fn close(self: Arc<Self>, id: SessionId) {
        let executing = self.table().sessions.get(&id).and_then(|session| session.executing.clone());
        if let Some(execution) = executing {
            execution.reached(phase::DONE).await;
        }
        let ending = AssertUnwindSafe(self.host.end_session(id)).catch_unwind();
        if !matches!(timeout(END_LIMIT, ending).await, Ok(Ok(()))) {
            tracing::error!(session = %id, "the host did not end the session; it is taken for ended");
        }
        let mut table = self.table();
        table.ended.insert(id);
        table.sessions.remove(&id);
    }

    /// Takes runs, or says why not.
    pub(crate) fn assign(self: &Arc<Self>, assignments: Vec<Assigned>) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let mut table = self.table();
        for assigned in assignments {
            let (run_id, token) = assigned.key();
            if let Err(message) = self.take(&mut table, assigned) {
                refusals.push(Refusal { run_id, token, message });
            }
        }
        refusals
    }

    fn take(self: &Arc<Self>, table: &mut Table, assigned: Assigned) -> Result<(), &'static str> {
        let (run_id, token) = assigned.key();
        if assigned.lease.runner_id != self.id {
            return Err("the lease is another runner's");
        }
        let session = table.sessions.get_mut(&assigned.lease.session_id).ok_or("the session is not here")?;
        if *session.phase.borrow() != Phase::Ready {
            return Err("the session is not ready");
        }
        if token < session.fence && !mutated!(RunnerForgetsTheFence) {
            return Err("a newer lease holds the session");
        }
        if token == session.fence {
            // Taken before; what has ended since was reported.
            return Ok(());
        }
        if table.closed {
            return Err("the runner has drained");
        }
        session.fence = token;
        session.lease = Some((token, run_id));
        let safe = Safe::new(assigned.credential_id, self.vault.clone());
        let execution = Arc::new(Execution::new(run_id, token, assigned.lease.session_id, safe));
        if table.stopped_before.contains(&(run_id, token)) {
            self.reports.push(Report::of(&execution, What::Stopped));
            return Ok(());
        }
        let previous = session.executing.replace(Arc::clone(&execution));
        if let Some(previous) = &previous {
            previous.abort(Abort::Disowned);
        }
        table.executions.insert((run_id, token), Arc::clone(&execution));
        self.tasks.spawn(Arc::clone(self).drive(execution, previous, assigned));
        Ok(())
    }

    /// One execution, from assignment to report.
    async fn drive(self: Arc<Self>, execution: Arc<Execution>, previous: Option<Arc<Execution>>, assigned: Assigned) {
        if let Some(previous) = previous.filter(|_| !mutated!(TwoAgentsInASession)) {
            previous.reached(phase::DONE).await;
        }
        let control = Control {
            execution: Arc::clone(&execution),
            reports: self.reports.clone(),
            activities: self.activities.clone(),
            shelf: self.shelf.clone(),
        };
        let mut span = traced(&execution, &assigned);
        let assigned = Assigned { traceparent: span.traceparent().unwrap_or_default().to_owned(), ..assigned };
        let traceparent = span.traceparent().map(str::to_owned);
        let executing = trace::scope(traceparent.as_deref(), self.host.execute(assigned, control));
        let executing = AssertUnwindSafe(executing).catch_unwind();
        // An own block: what loses is dropped at its end, before anyone is told that the execution is over.
        let ending = {
            tokio::select! {
                biased;
                () = execution.reached(phase::ABORTING) => None,
                ending = async {
                    let ending = executing.await;
                    let ending = ending.unwrap_or_else(|_| Ending::SessionLost("the runner's host panicked".into()));
                    guarded(&execution, ending).await
                } => Some(ending),
            }
        };
        if !matches!(ending, Some(Ending::Finished(_))) {
            span.fail("not completed");
        }
        drop(span);
        execution.done();
        match ending {
            None => self.dropped(&execution).await,
            Some(ending) => self.ended(&execution, ending),
        }
    }

    /// Whether this lease's execution has made this key.
    pub(crate) fn made_key(&self, key: (RunId, LeaseToken), public: &PublicKey) -> bool {
        self.table().executions.get(&key).is_some_and(|execution| execution.safe.made(public))
    }

    /// Forgets an execution; whether its lease is still the session's.
    fn forget(&self, execution: &Arc<Execution>) -> bool {
        let mut table = self.table();
        table.executions.remove(&(execution.run_id, execution.token));
        let Some(session) = table.sessions.get_mut(&execution.session_id) else { return false };
        if session.executing.as_ref().is_some_and(|current| Arc::ptr_eq(current, execution)) {
            session.executing = None;
        }
        session.fence == execution.token && *session.phase.borrow() == Phase::Ready
    }

    fn ended(self: &Arc<Self>, execution: &Arc<Execution>, ending: Ending) {
        let what = match ending {
            Ending::Finished(output) if output.len() > limits::MAX_VALUE_BYTES => {
                let message = format!("the output is larger than {} bytes", limits::MAX_VALUE_BYTES);
                What::Failed(vec![ErrorCode::OUTPUT_INVALID.with(message).at("output")])
            }
            Ending::Finished(output) => What::Finished(output),
            Ending::Failed(mut errors) => {
                errors.truncate(limits::MAX_ERRORS);
                What::Failed(errors)
            }
            Ending::Stopped => What::Stopped,
            Ending::SessionLost(message) => {
                self.forget(execution);
                return Arc::clone(self).lose(execution.session_id, message);
            }
        };
        // The report is in the queue before the execution is forgotten: a drain that looks between the two waits.
        self.reports.push(Report::of(execution, what));
        self.forget(execution);
    }

    /// An execution was dropped before its end.
    async fn dropped(self: &Arc<Self>, execution: &Arc<Execution>) {
        let ours = self.forget(execution);
        if ours && execution.aborted() == Some(Abort::GracePassed) {
            tracing::warn!(run = %execution.run_id, "the agent did not stop in time; its session is torn down");
            self.tear_down(execution.session_id).await;
            self.reports.push(Report::of(execution, What::Stopped));
            self.lost(execution.session_id, "its agent did not stop in time".into());
        }
    }

    /// Asks the agent of this lease to stop; whether there is one.
    pub(crate) fn stop(self: &Arc<Self>, key: (RunId, LeaseToken), reason: StopReason, grace: Duration) -> bool {
        let grace = grace.min(MAX_GRACE);
        let execution = {
            let mut table = self.table();
            let found = table.executions.get(&key).cloned();
            if found.is_none() {
                table.stopped_before.insert(key);
            }
            found
        };
        let Some(execution) = execution else { return false };
        if execution.ask_to_stop(Stop { reason, grace, deadline: Instant::now() + grace }) {
            self.tasks.spawn(async move {
                if timeout(grace, execution.reached(phase::DONE)).await.is_err() {
                    execution.abort(Abort::GracePassed);
                }
            });
        }
        true
    }

    /// Hands over the user's answer; whether that question is (or was) open here.
    pub(crate) fn input(&self, key: (RunId, LeaseToken), interaction_id: &str, value: Value) -> bool {
        let execution = self.table().executions.get(&key).cloned();
        execution.is_some_and(|execution| execution.answer(interaction_id, value))
    }

    /// Hears what the dispatcher says to a report.
    pub(crate) fn answered(&self, report: &Report, accepted: bool) {
        let mut table = self.table();
        if !accepted && let Some(execution) = table.executions.get(&(report.run_id, report.token)) {
            tracing::info!(run = %report.run_id, "the run is no longer this runner's; its agent is dropped");
            execution.abort(Abort::Disowned);
        }
        if (report.is_last() || !accepted)
            && let Some(session) = table.sessions.get_mut(&report.session_id)
            && session.lease == Some((report.token, report.run_id))
        {
            session.lease = None;
        }
    }

    /// Whether no newer lease holds the report's session, as far as this runner knows. Where the session is gone,
    /// only the dispatcher can say.
    pub(crate) fn matters(&self, report: &Report) -> bool {
        self.table().sessions.get(&report.session_id).is_none_or(|session| session.fence <= report.token)
    }

    /// Every session that is here.
    pub(crate) fn sessions(&self) -> Vec<Held> {
        let table = self.table();
        let mut held: Vec<Held> =
            table.sessions.iter().map(|(id, session)| Held { id: *id, lease: session.lease }).collect();
        // In an order that a person, and a simulation, finds again.
        held.sort_unstable_by_key(|held| held.id);
        held
    }

    /// Takes no further sessions.
    pub(crate) fn drain(&self) {
        self.table().draining = true;
    }

    /// Whether it takes no further sessions.
    pub(crate) fn draining(&self) -> bool {
        self.table().draining
    }

    /// Whether nothing executes and nothing waits to be reported.
    pub(crate) fn is_idle(&self) -> bool {
        self.table().executions.is_empty() && self.reports.unanswered() == 0
    }

    /// Takes nothing any more, drops what executes, ends all sessions.
    pub(crate) async fn close_all(self: &Arc<Self>) {
        let sessions: Vec<SessionId> = {
            let mut table = self.table();
            (table.draining, table.closed) = (true, true);
            let mut sessions: Vec<SessionId> = table.sessions.keys().copied().collect();
            sessions.sort_unstable();
            sessions
        };
        for id in &sessions {
            self.begin_end(*id);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lost(&self, id: SessionId, message: String) {
        let _ = self.losses.send(Loss { id, message });
    }
}

/// An ending without secrets, when the vault has heard how the sign-in went: once the run is over it hears nobody.
async fn guarded(execution: &Execution, ending: Ending) -> Ending {
    let safe = &execution.safe;
    let ending = match ending {
        Ending::Failed(errors) => {
            let failure = errors.iter().find_map(|error| match error.code {
                ErrorCode::AUTH_INVALID => Some(AuthFailure::AuthInvalid),
                ErrorCode::AUTH_LOCKED => Some(AuthFailure::AuthLocked),
                _ => None,
            });
            if failure.is_some() {
                safe.report(execution.run_id, execution.token, failure);
            }
            let clean = |error: Error| Error { message: safe.filter().clean(&error.message), ..error };
            Ending::Failed(errors.into_iter().map(clean).collect())
        }
        Ending::Finished(output) if safe.stands_in(&output) => {
            let message = "the output holds a secret of the run's credential, so it is not kept";
            Ending::Failed(vec![ErrorCode::AGENT_ERROR.with(message)])
        }
        Ending::SessionLost(message) => Ending::SessionLost(safe.filter().clean(&message)),
        other @ (Ending::Finished(_) | Ending::Stopped) => other,
    };
    safe.reported().await;
    ending
}

impl<H: Host> Lose for Engine<H> {
    fn lose(self: Arc<Self>, id: SessionId, message: String) {
        // Only the first who says so is heard: what ends already needs no telling.
        let known = self
            .table()
            .sessions
            .get(&id)
            .is_some_and(|session| matches!(*session.phase.borrow(), Phase::Starting | Phase::Ready));
        if known && self.begin_end(id).is_some() {
            self.lost(id, message);
        }
    }
}

/// The span of an execution, where its run is traced.
fn traced(execution: &Execution, assigned: &Assigned) -> trace::Span {
    let parent = Some(assigned.traceparent.as_str()).filter(|text| trace::is_valid(text));
    let mut span = trace::Span::child(parent, trace::Kind::Process, "execution");
    if span.is_recording() {
        span.set("errand.run.id", execution.run_id.to_string());
        span.set("errand.session.id", execution.session_id.to_string());
        span.set("errand.runner.id", assigned.lease.runner_id.to_string());
        span.set("errand.run.attempt", i64::from(assigned.attempt));
    }
    span
}

#[cfg(test)]
mod tests;
