//! The transitions, one function a command, each a match over every state.

use super::command::{Change, Command, Decision, Effect, Ignored, LostReason, Outcome, Output, StopReason};
use super::deadline::{DeadlineKind, armed};
use super::interaction::{Interaction, Question};
use super::state::{Active, Lease, LeaseToken, Run, RunStatus, State};
use crate::error::{Error, ErrorCode};
use crate::limits;
use crate::mutated;
use crate::task::RetryOn;
use crate::time::Timestamp;

/// A new run: `queued` where it is valid, else `failed` with the error. `run` is what the request describes, in
/// whatever state.
#[must_use]
pub fn submit(mut run: Run, validity: Result<(), Error>, now: Timestamp) -> Change {
    run.seq = 0;
    run.attempt = 1;
    run.created_at = now;
    run.updated_at = now;
    run.last_activity = now;
    match validity {
        Ok(()) => Draft::of(&run, now).to(State::Queued { since: now }, vec![Effect::Acquire]),
        Err(error) => Draft::of(&run, now).fail(vec![error], Vec::new()),
    }
}

/// Decides what `command` does to `run`. Pure: the only way a run changes.
#[must_use]
pub fn apply(run: &Run, command: Command, now: Timestamp) -> Outcome {
    match command {
        Command::Grant { lease, attempt } => grant(run, lease, attempt, now),
        Command::Ask { token, question } => ask(run, token, question, now),
        Command::Answered { interaction_id } => answered(run, &interaction_id, now),
        Command::Finish { token, output } => finish(run, token, output, now),
        Command::Fail { token, errors } => agent_failed(run, token, errors, now),
        Command::Stopped { token } => stopped(run, token, now),
        Command::Lost { token, reason, message } => lost(run, token, reason, message, now),
        Command::Cancel => cancel(run, now),
        Command::Review { decision, comment } => review(run, decision, comment, now),
        Command::Expire { kind, version, last_activity } => expire(run, kind, version, last_activity, now),
    }
}

/// Takes note of a sign of life of the agent. Tells whether it moved the inactivity deadline.
pub fn touch(run: &mut Run, token: LeaseToken, at: Timestamp) -> bool {
    let moves = matches!(&run.state, State::Running(active) if active.lease.token == token) && at > run.last_activity;
    if moves {
        run.last_activity = at;
    }
    moves
}

/// The next version of a run, on its way.
struct Draft {
    next: Run,
    now: Timestamp,
}

impl Draft {
    fn of(run: &Run, now: Timestamp) -> Self {
        let mut next = run.clone();
        next.seq += if mutated!(SkipASeq) && next.seq == 2 { 2 } else { 1 };
        // Clocks differ between dispatchers; a run's own times never run backwards.
        next.updated_at = now.max(run.updated_at);
        Self { next, now: next_time(run, now) }
    }

    fn to(mut self, state: State, effects: Vec<Effect>) -> Change {
        self.next.state = state;
        if self.next.status().is_final() {
            self.next.finished_at = Some(self.now);
        }
        Change { next: self.next, effects }
    }

    fn fail(mut self, mut errors: Vec<Error>, effects: Vec<Effect>) -> Change {
        errors.truncate(limits::MAX_ERRORS);
        self.next.errors = errors;
        self.to(State::Failed, effects)
    }

    /// Fails, and tears down the session: what is in it may be stuck.
    fn fail_and_discard(self, error: Error, lease: Lease) -> Outcome {
        changed(self.fail(vec![error], vec![Effect::Release { lease, discard: true }]))
    }
}

fn next_time(run: &Run, now: Timestamp) -> Timestamp {
    now.max(run.updated_at)
}

fn changed(change: Change) -> Outcome {
    Outcome::Changed(Box::new(change))
}

/// Whether a report under this token moves the run (invariant 5).
fn fence(active: &Active, token: LeaseToken) -> Result<(), Outcome> {
    if active.lease.token == token || mutated!(ForgetTheFence) {
        Ok(())
    } else {
        Err(Outcome::Ignored(Ignored::StaleLease))
    }
}

fn grant(run: &Run, lease: Lease, attempt: u32, now: Timestamp) -> Outcome {
    match &run.state {
        State::Queued { .. } if attempt != run.attempt && !mutated!(GrantOfAnyAttempt) => {
            Outcome::Ignored(Ignored::MovedOn)
        }
        State::Queued { .. } => {
            let mut draft = Draft::of(run, now);
            draft.next.session_id = Some(lease.session_id);
            draft.next.started_at.get_or_insert(draft.now);
            draft.next.last_activity = draft.now;
            let active = Active { lease, paused_ms: 0, last_question: None };
            changed(draft.to(State::Running(active), vec![Effect::Assign(lease)]))
        }
        State::Running(active) | State::InteractionRequired { active, .. } | State::Canceling { active, .. } => {
            Outcome::Ignored(if active.lease == lease { Ignored::Repeated } else { Ignored::MovedOn })
        }
        State::ReviewRequired { .. } => Outcome::Ignored(Ignored::MovedOn),
        State::Completed | State::Failed | State::Canceled => Outcome::Ignored(Ignored::Final),
    }
}

fn ask(run: &Run, token: LeaseToken, question: Question, now: Timestamp) -> Outcome {
    let active = match &run.state {
        State::Running(active) | State::InteractionRequired { active, .. } => active,
        State::Canceling { active, .. } => return Outcome::Ignored(stale_or(active, token, Ignored::MovedOn)),
        State::Queued { .. } | State::ReviewRequired { .. } => return Outcome::Ignored(Ignored::StaleLease),
        State::Completed | State::Failed | State::Canceled => return Outcome::Ignored(Ignored::Final),
    };
    if let Err(stale) = fence(active, token) {
        return stale;
    }
    if active.last_question.as_ref() == Some(&question.id) {
        return Outcome::Ignored(Ignored::Repeated);
    }
    if let Err(error) = question.check() {
        let draft = Draft::of(run, now);
        return draft.fail_and_discard(error, active.lease);
    }
    // An agent that asks anew while a question is open has given up the open one (ADR 0005).
    let draft = Draft::of(run, now);
    let expires_at = draft.now.plus_seconds(run.spec.settings.interaction_seconds);
    let last_question = Some(question.id.clone());
    let active = Active { lease: active.lease, paused_ms: paused_until(run, draft.now), last_question };
    let since = draft.now;
    let interaction = Interaction { question, expires_at };
    changed(draft.to(State::InteractionRequired { active, interaction, since }, Vec::new()))
}

/// What a command says without saying it: an agent that finishes, fails or asks something else while its question is
/// open has gone on, because it has its answer or needs none (ADR 0005). Apply this first, so that everybody who
/// follows the run sees it `running` again.
#[must_use]
pub fn implied(run: &Run, command: &Command) -> Option<Command> {
    let State::InteractionRequired { active, interaction, .. } = &run.state else { return None };
    let token = match command {
        Command::Ask { question, .. } if active.last_question.as_ref() == Some(&question.id) => return None,
        Command::Ask { token, .. }
        | Command::Finish { token, .. }
        | Command::Fail { token, .. }
        | Command::Stopped { token } => *token,
        Command::Grant { .. }
        | Command::Answered { .. }
        | Command::Cancel
        | Command::Review { .. }
        | Command::Lost { .. }
        | Command::Expire { .. } => return None,
    };
    (active.lease.token == token).then(|| Command::Answered { interaction_id: interaction.question.id.clone() })
}

/// How long people took to answer, with the question that is open now.
fn paused_until(run: &Run, now: Timestamp) -> u64 {
    let open = match &run.state {
        State::InteractionRequired { since, .. } => now.millis_since(*since),
        _ => 0,
    };
    run.active().map_or(0, |active| active.paused_ms).saturating_add(open)
}

fn stale_or(active: &Active, token: LeaseToken, reason: Ignored) -> Ignored {
    if active.lease.token == token { reason } else { Ignored::StaleLease }
}

fn answered(run: &Run, interaction_id: &str, now: Timestamp) -> Outcome {
    match &run.state {
        State::InteractionRequired { active, interaction, .. } if interaction.question.id == interaction_id => {
            let mut draft = Draft::of(run, now);
            draft.next.last_activity = draft.now;
            let active = Active { paused_ms: paused_until(run, draft.now), ..active.clone() };
            changed(draft.to(State::Running(active), Vec::new()))
        }
        // The agent was quicker than this commit, or asks something else by now: the answer was delivered all the same.
        State::InteractionRequired { .. }
        | State::Queued { .. }
        | State::Running(_)
        | State::ReviewRequired { .. }
        | State::Canceling { .. } => Outcome::Ignored(Ignored::MovedOn),
        State::Completed | State::Failed | State::Canceled => Outcome::Ignored(Ignored::Final),
    }
}

fn finish(run: &Run, token: LeaseToken, output: Output, now: Timestamp) -> Outcome {
    match &run.state {
        // An agent may finish although its question is open: the user has approved on another device (ADR 0005).
        State::Running(active) | State::InteractionRequired { active, .. } => {
            if let Err(stale) = fence(active, token) {
                return stale;
            }
            let mut draft = Draft::of(run, now);
            draft.next.output = Some(output.json);
            let release = vec![Effect::Release { lease: active.lease, discard: false }];
            changed(match output.misfit {
                Some(misfit) => draft.fail(vec![ErrorCode::OUTPUT_INVALID.with(misfit).at("output")], release),
                None if run.spec.settings.review => {
                    let since = draft.now;
                    draft.to(State::ReviewRequired { since }, release)
                }
                None => draft.to(State::Completed, release),
            })
        }
        State::Canceling { active, .. } => end_canceling(run, active, token, now),
        State::Queued { .. } | State::ReviewRequired { .. } => Outcome::Ignored(Ignored::StaleLease),
        State::Completed | State::Failed | State::Canceled => Outcome::Ignored(Ignored::Final),
    }
}

fn agent_failed(run: &Run, token: LeaseToken, mut errors: Vec<Error>, now: Timestamp) -> Outcome {
    match &run.state {
        State::Running(active) | State::InteractionRequired { active, .. } => {
            if let Err(stale) = fence(active, token) {
                return stale;
            }
            if errors.is_empty() {
                errors.push(ErrorCode::AGENT_ERROR.with("the runner reported failure without an error"));
            }
            let release = Effect::Release { lease: active.lease, discard: false };
            changed(Draft::of(run, now).fail(errors, vec![release]))
        }
        State::Canceling { active, .. } => end_canceling(run, active, token, now),
        State::Queued { .. } | State::ReviewRequired { .. } => Outcome::Ignored(Ignored::StaleLease),
        State::Completed | State::Failed | State::Canceled => Outcome::Ignored(Ignored::Final),
    }
}

fn stopped(run: &Run, token: LeaseToken, now: Timestamp) -> Outcome {
    match &run.state {
        State::Canceling { active, .. } => end_canceling(run, active, token, now),
        // Nobody asked it to stop (any more): it ended without a result.
        State::Running(_) | State::InteractionRequired { .. } => {
            let error = ErrorCode::AGENT_ERROR.with("the agent stopped without being asked to");
            agent_failed(run, token, vec![error], now)
        }
        State::Queued { .. } | State::ReviewRequired { .. } => Outcome::Ignored(Ignored::StaleLease),
        State::Completed | State::Failed | State::Canceled => Outcome::Ignored(Ignored::Final),
    }
}

/// The agent has ended while its run was canceling: however it ended, the run is canceled.
fn end_canceling(run: &Run, active: &Active, token: LeaseToken, now: Timestamp) -> Outcome {
    if let Err(stale) = fence(active, token) {
        return stale;
    }
    let release = Effect::Release { lease: active.lease, discard: false };
    changed(Draft::of(run, now).to(State::Canceled, vec![release]))
}

fn lost(run: &Run, token: LeaseToken, reason: LostReason, message: String, now: Timestamp) -> Outcome {
    let (active, waits_for_user) = match &run.state {
        State::Running(active) => (active, false),
        State::InteractionRequired { active, .. } => (active, true),
        State::Canceling { active, .. } => {
            if let Err(stale) = fence(active, token) {
                return stale;
            }
            let release = Effect::Release { lease: active.lease, discard: true };
            return changed(Draft::of(run, now).to(State::Canceled, vec![release]));
        }
        State::Queued { .. } | State::ReviewRequired { .. } => return Outcome::Ignored(Ignored::StaleLease),
        State::Completed | State::Failed | State::Canceled => return Outcome::Ignored(Ignored::Final),
    };
    if let Err(stale) = fence(active, token) {
        return stale;
    }
    let release = Effect::Release { lease: active.lease, discard: true };
    let mut draft = Draft::of(run, now);
    if reason == LostReason::SessionEnded {
        draft.next.canceled_at = Some(draft.now);
        return changed(draft.to(State::Canceled, vec![release]));
    }
    let settings = &run.spec.settings;
    let allowed = settings.retry_on.contains(&RetryOn::SessionLost)
        && run.attempt < settings.max_attempts + u32::from(mutated!(OneAttemptTooMany));
    // What a person answered belongs to the lost session; asking the same again unasked would surprise them.
    if waits_for_user || !allowed {
        return changed(draft.fail(vec![ErrorCode::SESSION_LOST.with(message)], vec![release]));
    }
    draft.next.attempt += 1;
    let since = draft.now;
    changed(draft.to(State::Queued { since }, vec![release, Effect::Acquire]))
}

fn cancel(run: &Run, now: Timestamp) -> Outcome {
    if mutated!(CancelTheFinal) && run.status().is_final() {
        return changed(Draft::of(run, now).to(State::Canceled, Vec::new()));
    }
    match &run.state {
        State::Queued { .. } => {
            let mut draft = Draft::of(run, now);
            draft.next.canceled_at = Some(draft.now);
            changed(draft.to(State::Canceled, vec![Effect::Withdraw]))
        }
        State::Running(active) | State::InteractionRequired { active, .. } => {
            let mut draft = Draft::of(run, now);
            draft.next.canceled_at = Some(draft.now);
            let (active, since) = (active.clone(), draft.now);
            let stop = Effect::Stop(active.lease, StopReason::Canceled);
            changed(draft.to(State::Canceling { active, since }, vec![stop]))
        }
        State::Canceling { .. } | State::Canceled => Outcome::Ignored(Ignored::Repeated),
        State::ReviewRequired { .. } | State::Completed | State::Failed => {
            let message = format!("the run is {}", run.status().as_str());
            Outcome::Rejected(ErrorCode::TASK_RUN_NOT_CANCELABLE.with(message))
        }
    }
}

fn review(run: &Run, decision: Decision, comment: String, now: Timestamp) -> Outcome {
    match &run.state {
        State::ReviewRequired { .. } => {
            let draft = Draft::of(run, now);
            changed(match decision {
                Decision::Approve => draft.to(State::Completed, Vec::new()),
                Decision::Reject => {
                    let message = if comment.is_empty() { "the review rejected the output".into() } else { comment };
                    draft.fail(vec![ErrorCode::REVIEW_REJECTED.with(message)], Vec::new())
                }
            })
        }
        State::Queued { .. }
        | State::Running(_)
        | State::InteractionRequired { .. }
        | State::Canceling { .. }
        | State::Completed
        | State::Failed
        | State::Canceled => {
            let message = format!("the run is {}", run.status().as_str());
            Outcome::Rejected(ErrorCode::REVIEW_NOT_PENDING.with(message))
        }
    }
}

fn expire(run: &Run, kind: DeadlineKind, version: u64, last_activity: Timestamp, now: Timestamp) -> Outcome {
    if run.status().is_final() {
        return Outcome::Ignored(Ignored::Final);
    }
    if version != run.seq {
        return Outcome::Ignored(Ignored::MovedOn);
    }
    let mut seen = run.clone();
    // What the watcher saw counts as well; a time from the future does not.
    seen.last_activity = run.last_activity.max(last_activity.min(now));
    match armed(&seen).deadlines().iter().find(|deadline| deadline.kind == kind) {
        None => return Outcome::Ignored(Ignored::MovedOn),
        Some(deadline) if deadline.at > now && !mutated!(BelieveTheWatcher) => {
            return Outcome::Ignored(Ignored::NotYet);
        }
        Some(_) => {}
    }
    expired(run, kind, now)
}

/// The deadline has passed: what follows from it.
fn expired(run: &Run, kind: DeadlineKind, now: Timestamp) -> Outcome {
    let settings = &run.spec.settings;
    let draft = Draft::of(run, now);
    match (&run.state, kind) {
        (State::Queued { .. }, _) => {
            let message = format!("no session was available within {} s", settings.queue_seconds);
            changed(draft.fail(vec![ErrorCode::SESSION_TIMEOUT.with(message)], vec![Effect::Withdraw]))
        }
        (State::Running(active), DeadlineKind::Total) => {
            let message = format!("the run took longer than {} s", settings.timeout_seconds.unwrap_or_default());
            draft.fail_and_discard(ErrorCode::TASK_TIMEOUT.with(message), active.lease)
        }
        (State::Running(active), _) => {
            let message = format!("the agent showed no activity for {} s", settings.inactivity_seconds);
            draft.fail_and_discard(ErrorCode::TASK_TIMEOUT.with(message), active.lease)
        }
        (State::InteractionRequired { active, .. }, _) => {
            let message = format!("nobody answered within {} s", settings.interaction_seconds);
            draft.fail_and_discard(ErrorCode::INTERACTION_TIMEOUT.with(message), active.lease)
        }
        (State::ReviewRequired { .. }, _) => {
            let message = format!("nobody reviewed within {} s", settings.review_seconds.unwrap_or_default());
            changed(draft.fail(vec![ErrorCode::REVIEW_TIMEOUT.with(message)], Vec::new()))
        }
        (State::Canceling { active, .. }, _) => {
            let release = Effect::Release { lease: active.lease, discard: true };
            changed(draft.to(State::Canceled, vec![release]))
        }
        (State::Completed | State::Failed | State::Canceled, _) => Outcome::Ignored(Ignored::Final),
    }
}

impl Change {
    /// The action of the change's event: `task_run.<action>`.
    #[must_use]
    pub fn action(&self) -> RunStatus {
        self.next.status()
    }
}
