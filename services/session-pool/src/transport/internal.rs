//! What the dispatcher and runners say to the pool: from a request to an input of the engine, and its answer back.

use errand_bus::trace;
use errand_core::{Error, ErrorCode, SessionId, Timestamp, limits};
use errand_proto::{id, lease, optional_id, v1};

use super::incoming::{MAX_CAPACITY, at_most};
use crate::engine::{Handle, Input};
use crate::pool::{Registration, Release, Want};

/// Wants, or releases, in one request.
const MAX_ITEMS: usize = 10_000;
/// Sessions that a runner may list: those that it should have, and as many that it should not.
const MAX_LISTED: usize = 2 * MAX_CAPACITY as usize;
const MAX_TENANTS: usize = 100;
const MAX_HOST: usize = 256;
const MAX_VERSION: usize = 64;

/// The line to the engine, and what is told to those who speak over it.
#[derive(Debug, Clone)]
pub struct Desk {
    /// The engine.
    pub engine: Handle,
    /// This pool's.
    pub epoch: String,
    /// What runners are told.
    pub heartbeat_seconds: u32,
}

fn short(field: &str, text: &str, limit: usize) -> Result<(), Error> {
    if text.chars().count() <= limit {
        return Ok(());
    }
    Err(ErrorCode::INPUT_INVALID.with(format!("{field} has at most {limit} characters")).at(field))
}

fn want(wire: &v1::Want) -> Result<Want, Error> {
    if wire.priority.unsigned_abs() > limits::MAX_PRIORITY.unsigned_abs() {
        let message = format!("priority must be -{0}..{0}", limits::MAX_PRIORITY);
        return Err(ErrorCode::INPUT_INVALID.with(message).at("priority"));
    }
    Ok(Want {
        run_id: id("run_id", &wire.run_id)?,
        tenant: id("tenant", &wire.tenant)?,
        agent_id: id("agent_id", &wire.agent_id)?,
        source_id: optional_id("source_id", &wire.source_id)?,
        credential_id: optional_id("credential_id", &wire.credential_id)?,
        session_id: optional_id("session_id", &wire.session_id)?,
        reuse: wire.reuse_session,
        priority: wire.priority,
        queued_at: Timestamp(wire.queued_at_ms),
        attempt: wire.attempt,
        // Of this size or not at all: it stays in memory for as long as the run waits.
        traceparent: trace::is_valid(&wire.traceparent).then(|| wire.traceparent.as_str().into()),
    })
}

/// Runs wait for sessions.
///
/// # Errors
/// What cannot be read, or `api`/`unavailable` where it is to be asked again.
pub async fn acquire(desk: &Desk, request: v1::AcquireRequest) -> Result<v1::AcquireResponse, Error> {
    at_most("wants", request.wants.len(), MAX_ITEMS)?;
    let mut refusals = Vec::new();
    let mut wants = Vec::with_capacity(request.wants.len());
    for wire in &request.wants {
        match want(wire) {
            Ok(want) => wants.push(want),
            // One that cannot be read must not hold up the others.
            Err(error) => {
                refusals.push(v1::WantRefusal { run_id: wire.run_id.clone(), error: Some((&error).into()) });
            }
        }
    }
    for (run_id, error) in desk.engine.ask(|reply| Input::Acquire(wants, reply)).await? {
        // Not refused for good: all of the request is to be sent again, and what was taken is known then.
        if error.code.kind == "api" {
            return Err(error);
        }
        refusals.push(v1::WantRefusal { run_id: run_id.to_string(), error: Some((&error).into()) });
    }
    Ok(v1::AcquireResponse { epoch: desk.epoch.clone(), refusals })
}

fn to_release(wire: &v1::Release) -> Result<Release, Error> {
    let run_id = id("run_id", &wire.run_id)?;
    let lease = wire.lease.as_ref().map(|held| lease(Some(held))).transpose()?;
    Ok(Release { run_id, lease, discard: wire.discard })
}

/// Runs need no session any more.
///
/// # Errors
/// What cannot be read, or `api`/`unavailable` where it is to be asked again.
pub async fn release(desk: &Desk, request: v1::ReleaseRequest) -> Result<v1::ReleaseResponse, Error> {
    at_most("releases", request.releases.len(), MAX_ITEMS)?;
    let mut refused = None;
    let mut releases = Vec::with_capacity(request.releases.len());
    for wire in &request.releases {
        match to_release(wire) {
            Ok(release) => releases.push(release),
            Err(error) => refused = Some(error),
        }
    }
    // What can be read is done, whatever stands beside it.
    desk.engine.ask(|reply| Input::Release(releases, reply)).await?;
    refused.map_or(Ok(v1::ReleaseResponse {}), Err)
}

fn registration(wire: v1::RegisterRequest) -> Result<Registration, Error> {
    let invalid = |field: &str, message: String| Err(ErrorCode::INPUT_INVALID.with(message).at(field));
    if !(1..=MAX_CAPACITY).contains(&wire.capacity) {
        return invalid("capacity", format!("capacity must be 1..{MAX_CAPACITY}, not {}", wire.capacity));
    }
    if wire.warm > wire.capacity {
        return invalid("warm", format!("warm must be 0..{} (the capacity), not {}", wire.capacity, wire.warm));
    }
    at_most("tenants", wire.tenants.len(), MAX_TENANTS)?;
    short("host", &wire.host, MAX_HOST)?;
    short("version", &wire.version, MAX_VERSION)?;
    let tenants = wire.tenants.iter().map(|tenant| id("tenants", tenant)).collect::<Result<_, _>>()?;
    Ok(Registration {
        id: id("runner_id", &wire.runner_id)?,
        agent_id: id("agent_id", &wire.agent_id)?,
        capacity: wire.capacity as usize,
        warm: wire.warm as usize,
        tenants: if wire.tenants.is_empty() { None } else { Some(tenants) },
        host: wire.host,
        version: wire.version,
    })
}

fn listed(sessions: &[v1::RunnerSession]) -> Result<Vec<SessionId>, Error> {
    at_most("sessions", sessions.len(), MAX_LISTED)?;
    sessions.iter().map(|session| id("sessions.session_id", &session.session_id)).collect()
}

fn texts(ids: &[SessionId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

/// A runner presents itself.
///
/// # Errors
/// What cannot be read, or `api`/`unavailable` where it is to be asked again.
pub async fn register(desk: &Desk, request: v1::RegisterRequest) -> Result<v1::RegisterResponse, Error> {
    let listed = listed(&request.sessions)?;
    let registration = registration(request)?;
    let ended = desk.engine.ask(|reply| Input::Register(registration, listed, reply)).await??;
    Ok(v1::RegisterResponse { heartbeat_seconds: desk.heartbeat_seconds, end_sessions: texts(&ended) })
}

/// A runner lives.
///
/// # Errors
/// What cannot be read, or `api`/`unavailable` where it is to be asked again.
pub async fn heartbeat(desk: &Desk, request: v1::HeartbeatRequest) -> Result<v1::HeartbeatResponse, Error> {
    let runner_id = id("runner_id", &request.runner_id)?;
    let listed = listed(&request.sessions)?;
    let beat = desk.engine.ask(|reply| Input::Heartbeat(runner_id, listed, request.draining, reply)).await?;
    Ok(v1::HeartbeatResponse { known: beat.known, drain: beat.drain, end_sessions: texts(&beat.end_sessions) })
}

/// A runner goes.
///
/// # Errors
/// What cannot be read, or `api`/`unavailable` where it is to be asked again.
pub async fn deregister(desk: &Desk, request: v1::DeregisterRequest) -> Result<v1::DeregisterResponse, Error> {
    let runner_id = id("runner_id", &request.runner_id)?;
    desk.engine.ask(|reply| Input::Deregister(runner_id, reply)).await?;
    Ok(v1::DeregisterResponse {})
}

/// A session died under its runner.
///
/// # Errors
/// What cannot be read, or `api`/`unavailable` where it is to be asked again.
pub async fn session_lost(desk: &Desk, request: v1::SessionLostRequest) -> Result<v1::SessionLostResponse, Error> {
    let (runner_id, session_id) = (id("runner_id", &request.runner_id)?, id("session_id", &request.session_id)?);
    let end = request.message.floor_char_boundary(limits::MAX_MESSAGE_BYTES);
    let message = request.message[..end].to_owned();
    desk.engine.ask(|reply| Input::SessionLost(runner_id, session_id, message, reply)).await?;
    Ok(v1::SessionLostResponse {})
}
