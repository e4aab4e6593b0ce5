//! Whose a run is, and whether a lease holds it: the dispatcher knows.

use errand_bus::{Bus, RequestError};
use errand_core::run::LeaseToken;
use errand_core::task::Storage;
use errand_core::{Error, ErrorCode, RunId, TaskId, Tenant};
use errand_proto::{id, v1};

/// A run as far as its files are concerned.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Its owner.
    pub tenant: Tenant,
    /// What it is a run of.
    pub task_id: TaskId,
    /// 1, 2, 3 ...
    pub attempt: u32,
    /// What its task says of files.
    pub storage: Storage,
    /// W3C trace context; empty where there is none.
    pub traceparent: String,
}

/// Asks whether this lease is the run's newest.
///
/// # Errors
/// `request`/`forbidden` where it is not; `api`/`unavailable` where the dispatcher does not answer.
pub async fn ask(bus: &Bus, run_id: RunId, token: LeaseToken) -> Result<Holder, Error> {
    let request = v1::GetHolderRequest { run_id: run_id.to_string(), lease_token: token };
    let answer: Result<v1::GetHolderResponse, RequestError> = bus.request(bus.subjects().run("holder"), &request).await;
    let answer = answer.map_err(|error| match error {
        RequestError::Service(error) => error,
        other => {
            tracing::warn!(error = %other, run = %run_id, "the dispatcher did not say who holds a run");
            ErrorCode::API_UNAVAILABLE.with("the dispatcher does not answer; try again")
        }
    })?;
    if !answer.holds {
        return Err(ErrorCode::FORBIDDEN
            .with(format!("the lease {token} does not hold {run_id} (any more)"))
            .at("lease_token"));
    }
    Ok(Holder {
        tenant: id("tenant", &answer.tenant)?,
        task_id: id("task_id", &answer.task_id)?,
        attempt: answer.attempt,
        storage: answer.storage.as_ref().map(Storage::try_from).transpose()?.unwrap_or_default(),
        traceparent: answer.traceparent,
    })
}
