//! What the session-pool, runners and the timeout-watcher are answered, and what the submit stream and people are:
//! from a request to a command, and from what became of it to the answer. Speaks with no broker itself.

use std::time::Duration;

use errand_bus::Verdict;
use errand_core::run::{Command, Ignored, Lease, LostReason, Output, Run, RunStatus, State, armed, check_answer};
use errand_core::{Error, ErrorCode, RunId, Tenant, Timestamp, limits};
use errand_proto::{id, lease, named, v1};
use futures::future::join_all;

use crate::catalog::unavailable;
use crate::effects::Effects;
use crate::engine::{Done, Handle};
use crate::world::World;

/// The answer goes to the runner first and is never stored: once the runner has it, the run moves on (ADR 0005).
///
/// # Errors
/// `request`/`interaction_not_pending`, what does not fit the question's fields, or `api`/`unavailable`.
pub async fn interact<W: World>(
    world: &W,
    engine: &Handle,
    tenant: Tenant,
    run_id: RunId,
    input: bytes::Bytes,
) -> Result<Done, Error> {
    let run = world.runs(&[run_id]).await.map_err(unavailable)?.pop();
    let run = found(run, &tenant, run_id)?;
    let not_pending = || ErrorCode::INTERACTION_NOT_PENDING.with(format!("the run is {}", run.status().as_str()));
    let State::InteractionRequired { active, interaction, .. } = &run.state else { return Err(not_pending()) };
    let answer =
        serde_json::from_slice(&input).map_err(|_| ErrorCode::INPUT_INVALID.with("input is not JSON").at("input"))?;
    check_answer(&interaction.question, &answer)?;
    let request = v1::InputRequest {
        run_id: run_id.to_string(),
        lease_token: active.lease.token,
        interaction_id: interaction.question.id.clone(),
        input,
    };
    let taken = world.input(active.lease.runner_id, request).await.map_err(|error| {
        tracing::warn!(%error, run = %run_id, "the runner did not take an answer");
        ErrorCode::API_UNAVAILABLE.with("the runner does not answer; try again")
    })?;
    if !taken.taken {
        return Err(not_pending());
    }
    let command = Command::Answered { interaction_id: interaction.question.id.clone() };
    engine.apply(run_id, Some(tenant), command).await
}

/// The run, if it is the tenant's.
///
/// # Errors
/// `request`/`task_run_not_found`.
pub fn found(run: Option<Run>, tenant: &Tenant, run_id: RunId) -> Result<Run, Error> {
    run.filter(|run| run.tenant == *tenant)
        .ok_or_else(|| ErrorCode::TASK_RUN_NOT_FOUND.with(format!("there is no task run {run_id}")))
}

/// What becomes of a submission's message.
#[must_use]
pub fn verdict(submitted: &Result<Done, Error>) -> Verdict {
    match submitted {
        Ok(_) => Verdict::Ack,
        Err(_) if errand_core::mutated!(AckBeforeCommit) => Verdict::Ack,
        Err(error) if error.code.kind == "api" => Verdict::RetryAfter(Duration::from_secs(1)),
        Err(error) => Verdict::DeadLetter(error.to_string()),
    }
}

/// A session is leased to runs. Which of them took it.
///
/// # Errors
/// Where it is unknown: the pool asks again.
pub async fn grant<W: World>(
    engine: &Handle,
    effects: &Effects<W>,
    request: v1::GrantRequest,
) -> Result<v1::GrantResponse, Error> {
    effects.pool_epoch(&request.epoch);
    let each = request.grants.into_iter().map(|grant| async move {
        let (run_id, lease) = (id("run_id", &grant.run_id)?, lease(grant.lease.as_ref())?);
        let command = Command::Grant { lease, attempt: grant.attempt };
        let accepted = match engine.apply(run_id, None, command).await {
            Ok(done) => done.ignored.is_none_or(|reason| reason == Ignored::Repeated),
            Err(error) if error.code == ErrorCode::TASK_RUN_NOT_FOUND => false,
            // The pool asks again: what became of the grant is not known here.
            Err(error) => return Err(error),
        };
        Ok(v1::GrantAnswer { run_id: grant.run_id, accepted })
    });
    Ok(v1::GrantResponse { answers: join_all(each).await.into_iter().collect::<Result<_, Error>>()? })
}

/// Runs have lost their sessions.
///
/// # Errors
/// Where it is unknown whether they heard: the pool tells again.
pub async fn lost(engine: &Handle, request: v1::LostRequest) -> Result<v1::LostResponse, Error> {
    let each = request.losses.into_iter().map(|loss| async move {
        let (run_id, lease) = (id("run_id", &loss.run_id)?, lease(loss.lease.as_ref())?);
        let reason = named("reason", loss.reason, |reason: v1::LostReason| match reason {
            v1::LostReason::Unspecified => None,
            v1::LostReason::RunnerLost => Some(LostReason::RunnerLost),
            v1::LostReason::SessionFailed => Some(LostReason::SessionFailed),
            v1::LostReason::SessionEnded => Some(LostReason::SessionEnded),
        })?;
        known(engine.apply(run_id, None, Command::Lost { token: lease.token, reason, message: loss.message }).await)
    });
    join_all(each).await.into_iter().collect::<Result<Vec<_>, Error>>()?;
    Ok(v1::LostResponse {})
}

/// A run that is not there cannot be moved, and asking again would not help.
fn known(done: Result<Done, Error>) -> Result<Option<Done>, Error> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.code == ErrorCode::TASK_RUN_NOT_FOUND => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a runner says of its runs. Which of it was taken: a run that a newer lease holds is no longer the runner's.
///
/// # Errors
/// Where it is unknown: the runner reports again.
pub async fn report(engine: &Handle, request: v1::ReportRequest) -> Result<v1::ReportResponse, Error> {
    let each = request.reports.into_iter().map(|report| async move {
        let run_id: RunId = id("run_id", &report.run_id)?;
        let done = known(engine.apply(run_id, None, command_of(report)?).await)?;
        let accepted = done.is_some_and(|done| done.ignored.is_none_or(|reason| reason == Ignored::Repeated));
        Ok(v1::ReportAnswer { run_id: run_id.to_string(), accepted })
    });
    Ok(v1::ReportResponse { answers: join_all(each).await.into_iter().collect::<Result<_, Error>>()? })
}

fn command_of(report: v1::Report) -> Result<Command, Error> {
    use v1::report::What;
    let token = report.lease_token;
    let what = report.what.ok_or_else(|| ErrorCode::INPUT_MISSING.with("what is missing").at("what"))?;
    Ok(match what {
        What::Interaction(interaction) => Command::Ask { token, question: interaction.into() },
        What::Finished(finished) if finished.output.len() > limits::MAX_VALUE_BYTES => {
            let message = format!("output is larger than {} bytes", limits::MAX_VALUE_BYTES);
            Command::Fail { token, errors: vec![ErrorCode::OUTPUT_INVALID.with(message).at("output")] }
        }
        What::Finished(finished) => {
            let json = if finished.output.is_empty() { "null".into() } else { finished.output };
            Command::Finish { token, output: Output { json, misfit: None } }
        }
        What::Failed(failed) => Command::Fail { token, errors: failed.errors.into_iter().map(Error::from).collect() },
        What::Stopped(v1::Stopped {}) => Command::Stopped { token },
    })
}

/// What a run has armed, as the timeout-watcher is told.
#[must_use]
pub fn armed_run(run: &Run) -> v1::ArmedRun {
    let deadlines = armed(run).deadlines().iter().map(Into::into).collect();
    v1::ArmedRun { run_id: run.id.to_string(), version: run.seq, deadlines }
}

/// Deadlines are said to have passed. What is armed now of the runs that did not move.
///
/// # Errors
/// Where it is unknown: the watcher asks again.
pub async fn expire(engine: &Handle, request: v1::ExpireRequest) -> Result<v1::ExpireResponse, Error> {
    let each = request.expiries.into_iter().map(|expiry| async move {
        let run_id: RunId = id("run_id", &expiry.run_id)?;
        let kind = named("kind", expiry.kind, |kind: v1::DeadlineKind| kind.try_into().ok())?;
        let last_activity = Timestamp(expiry.last_activity_ms);
        let command = Command::Expire { kind, version: expiry.version, last_activity };
        let done = known(engine.apply(run_id, None, command).await)?;
        let left = done.filter(|done| done.ignored.is_some()).map(|done| armed_run(&done.run));
        Ok(left.unwrap_or_else(|| v1::ArmedRun { run_id: run_id.to_string(), ..v1::ArmedRun::default() }))
    });
    let armed = join_all(each).await.into_iter().collect::<Result<Vec<_>, Error>>()?;
    Ok(v1::ExpireResponse { armed: armed.into_iter().filter(|run| run.version > 0).collect() })
}

/// What the pool asks about.
///
/// # Errors
/// Where the request names no run or lease.
pub fn leases_of(request: v1::CheckLeasesRequest) -> Result<Vec<(RunId, Lease)>, Error> {
    let each = request.checks.into_iter();
    each.map(|check| Ok((id("run_id", &check.run_id)?, lease(check.lease.as_ref())?))).collect()
}

/// Which of these leases are held no longer, as `runs` has it.
#[must_use]
pub fn released(asked: &[(RunId, Lease)], runs: &[Run]) -> v1::CheckLeasesResponse {
    let holds = |run_id: RunId, token: u64| {
        runs.iter().any(|run| {
            // A queued run may be about to take this very lease.
            run.id == run_id
                && (run.status() == RunStatus::Queued || run.lease().is_some_and(|lease| lease.token == token))
        })
    };
    let released = asked.iter().filter(|(run_id, lease)| !holds(*run_id, lease.token));
    v1::CheckLeasesResponse { released_tokens: released.map(|(_, lease)| lease.token).collect() }
}
