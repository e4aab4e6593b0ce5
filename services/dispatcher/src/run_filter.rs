//! Which runs of a tenant a list shows: several values in one field mean any of them, several fields mean all.

use errand_core::run::{Run, RunResult, RunStatus};
use errand_core::{AgentId, CredentialId, Error, ErrorCode, SessionId, SourceId, TaskId, Tenant, limits};
use errand_proto::{id, named, v1};

/// Values in one filter.
const MAX_VALUES: usize = 100;

/// See the module.
#[derive(Debug, Clone)]
pub struct RunFilter {
    /// Whose.
    pub tenant: Tenant,
    status: Vec<RunStatus>,
    result: Vec<RunResult>,
    task_id: Vec<TaskId>,
    agent_id: Vec<AgentId>,
    source_id: Vec<SourceId>,
    session_id: Vec<SessionId>,
    credential_id: Vec<CredentialId>,
    created_after_ms: Option<i64>,
    created_before_ms: Option<i64>,
    metadata: Vec<(String, String)>,
}

/// Several ids in one filter.
///
/// # Errors
/// `request`/`input_invalid` where one is none, or there are more than 100.
pub fn ids<I>(field: &str, values: &[String]) -> Result<Vec<I>, Error>
where
    I: std::str::FromStr,
    I::Err: std::fmt::Display,
{
    at_most(field, values.len(), MAX_VALUES)?;
    values.iter().map(|value| id(field, value)).collect()
}

fn at_most(field: &str, count: usize, limit: usize) -> Result<(), Error> {
    if count <= limit {
        return Ok(());
    }
    Err(ErrorCode::INPUT_INVALID.with(format!("{field} may have {limit} values, not {count}")).at(field))
}

fn any_of<T: PartialEq>(wanted: &[T], value: Option<&T>) -> bool {
    wanted.is_empty() || value.is_some_and(|value| wanted.contains(value))
}

impl TryFrom<v1::ListRunsRequest> for RunFilter {
    type Error = Error;

    fn try_from(request: v1::ListRunsRequest) -> Result<Self, Error> {
        at_most("status", request.status.len(), MAX_VALUES)?;
        at_most("result", request.result.len(), MAX_VALUES)?;
        at_most("metadata", request.metadata.len(), limits::MAX_METADATA_ENTRIES)?;
        let status = |number: &i32| named("status", *number, |status: v1::RunStatus| status.try_into().ok());
        let result = |number: &i32| named("result", *number, |result: v1::RunResult| result.try_into().ok());
        Ok(Self {
            tenant: id("tenant", &request.tenant)?,
            status: request.status.iter().map(status).collect::<Result<_, _>>()?,
            result: request.result.iter().map(result).collect::<Result<_, _>>()?,
            task_id: ids("task_id", &request.task_id)?,
            agent_id: ids("agent_id", &request.agent_id)?,
            source_id: ids("source_id", &request.source_id)?,
            session_id: ids("session_id", &request.session_id)?,
            credential_id: ids("credential_id", &request.credential_id)?,
            created_after_ms: request.created_after_ms,
            created_before_ms: request.created_before_ms,
            metadata: request.metadata.into_iter().collect(),
        })
    }
}

impl RunFilter {
    /// Whether only runs that are not final can fit: there is an index of those.
    #[must_use]
    pub fn only_open(&self) -> bool {
        !self.status.is_empty() && self.status.iter().all(|status| !status.is_final())
    }

    /// Whether a run in this status, of this task, may fit: cheaper than to read it.
    #[must_use]
    pub fn may_fit(&self, status: &str, task_id: TaskId) -> bool {
        (self.status.is_empty() || self.status.iter().any(|wanted| wanted.as_str() == status))
            && any_of(&self.task_id, Some(&task_id))
    }

    /// Whether a run fits.
    #[must_use]
    pub fn fits(&self, run: &Run) -> bool {
        let created = run.created_at.0;
        any_of(&self.status, Some(&run.status()))
            && any_of(&self.result, run.result().as_ref())
            && any_of(&self.task_id, Some(&run.spec.task_id))
            && any_of(&self.agent_id, run.spec.agent_id.as_ref())
            && any_of(&self.source_id, run.spec.source_id.as_ref())
            && any_of(&self.session_id, run.session_id.as_ref())
            && any_of(&self.credential_id, run.spec.credential_id.as_ref())
            && self.created_after_ms.is_none_or(|after| created > after)
            && self.created_before_ms.is_none_or(|before| created < before)
            && self.metadata.iter().all(|(key, value)| run.spec.metadata.get(key) == Some(value))
    }
}
