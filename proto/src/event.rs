//! Events: made from the object as it is after the change. Never input, output, secrets or artifacts.

use errand_core::credential::Credential;
use errand_core::run::{Run, RunStatus, armed};
use errand_core::session::Session;
use errand_core::task::Task;
use errand_core::{Error, ErrorCode, EventId, TaskId, Tenant, Timestamp, limits};

use crate::v1;
use crate::wire::id;

/// Every type of event there is: CONTRACT section 4.
pub const TYPES: &[&str] = &[
    "task_run.queued",
    "task_run.running",
    "task_run.interaction_required",
    "task_run.review_required",
    "task_run.completed",
    "task_run.failed",
    "task_run.canceling",
    "task_run.canceled",
    "session.queued",
    "session.running",
    "session.idle",
    "session.completing",
    "session.completed",
    "session.failed",
    "task.created",
    "task.updated",
    "task.deleted",
    "credential.created",
    "credential.unverified",
    "credential.verified",
    "credential.invalid",
    "credential.deleted",
    "storage.created",
    "event_destination.activated",
    "event_destination.deactivated",
];

/// How a request names a task: by id, or `name:<its name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TaskRef {
    /// By id.
    Id(TaskId),
    /// By name.
    Name(String),
}

impl TaskRef {
    /// Reads a field.
    ///
    /// # Errors
    /// `request`/`input_missing` or `request`/`input_invalid`; names the field.
    pub fn parse(field: &str, text: &str) -> Result<Self, Error> {
        match text.strip_prefix("name:") {
            Some(name) if (1..=limits::MAX_NAME).contains(&name.chars().count()) => Ok(Self::Name(name.to_owned())),
            Some(_) => {
                let message = format!("a task's name has 1..{} characters", limits::MAX_NAME);
                Err(ErrorCode::INPUT_INVALID.with(message).at(field))
            }
            None => id(field, text).map(Self::Id),
        }
    }
}

/// The event of a run's change, whose `seq` is the run's.
#[must_use]
pub fn of_run(event_id: EventId, run: &Run) -> v1::Event {
    let view = v1::Run::from(run);
    let summary = v1::RunSummary {
        id: view.id.clone(),
        status: view.status,
        result: view.result,
        task_id: view.task_id,
        task_version: view.task_version,
        session_id: view.session_id,
        agent_id: view.agent_id,
        source_id: view.source_id,
        credential_id: view.credential_id,
        attempt: view.attempt,
        errors: view.errors,
        interaction: view.interaction,
        metadata: view.metadata,
        created_at_ms: view.created_at_ms,
        started_at_ms: view.started_at_ms,
        finished_at_ms: view.finished_at_ms,
        runtime_ms: view.runtime_ms,
        deadlines: armed(run).deadlines().iter().map(Into::into).collect(),
        retry_of: view.retry_of,
    };
    v1::Event {
        id: event_id.to_string(),
        r#type: run_event_type(run.status()).to_owned(),
        tenant: view.tenant,
        object_id: view.id,
        seq: run.seq,
        created_at_ms: run.updated_at.0,
        traceparent: run.spec.traceparent.clone().unwrap_or_default(),
        data: Some(v1::event::Data::Run(summary)),
    }
}

const fn run_event_type(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Queued => "task_run.queued",
        RunStatus::Running => "task_run.running",
        RunStatus::InteractionRequired => "task_run.interaction_required",
        RunStatus::ReviewRequired => "task_run.review_required",
        RunStatus::Completed => "task_run.completed",
        RunStatus::Failed => "task_run.failed",
        RunStatus::Canceling => "task_run.canceling",
        RunStatus::Canceled => "task_run.canceled",
    }
}

/// The event of a session's change. A warm session that is nobody's yet is told to
/// [`Tenant::system`].
#[must_use]
pub fn of_session(event_id: EventId, session: &Session) -> v1::Event {
    let view = v1::Session::from(session);
    v1::Event {
        id: event_id.to_string(),
        r#type: format!("session.{}", session.status().as_str()),
        tenant: session.tenant.clone().unwrap_or_else(Tenant::system).to_string(),
        object_id: view.id.clone(),
        seq: session.seq,
        created_at_ms: session.updated_at.0,
        traceparent: String::new(),
        data: Some(v1::event::Data::Session(v1::SessionSummary {
            id: view.id,
            status: view.status,
            agent_id: view.agent_id,
            runner_id: view.runner_id,
            run_id: view.run_id,
            reason: view.reason,
            created_at_ms: view.created_at_ms,
        })),
    }
}
/// The event of a task's change: `action` is `created`, `updated` or `deleted`.
#[must_use]
pub fn of_task(event_id: EventId, task: &Task, action: &str, seq: u64, now: Timestamp) -> v1::Event {
    v1::Event {
        id: event_id.to_string(),
        r#type: format!("task.{action}"),
        tenant: task.tenant.to_string(),
        object_id: task.id.to_string(),
        seq,
        created_at_ms: now.0,
        traceparent: String::new(),
        data: Some(v1::event::Data::Task(v1::TaskSummary {
            id: task.id.to_string(),
            version: task.version,
            name: task.definition.name.clone(),
            agent_id: task.definition.agent_id.to_string(),
        })),
    }
}

/// The event of a new artifact, under the run's trace.
#[must_use]
pub fn of_artifact(event_id: EventId, artifact: &v1::Artifact, traceparent: String) -> v1::Event {
    crate::storage::created(event_id, artifact, traceparent)
}

/// The event of a destination's change: `action` is `activated` or `deactivated`.
#[must_use]
pub fn of_destination(
    event_id: EventId,
    destination: &v1::Destination,
    action: &str,
    seq: u64,
    now: Timestamp,
) -> v1::Event {
    v1::Event {
        id: event_id.to_string(),
        r#type: format!("event_destination.{action}"),
        tenant: destination.tenant.clone(),
        object_id: destination.id.clone(),
        seq,
        created_at_ms: now.0,
        traceparent: String::new(),
        data: Some(v1::event::Data::Destination(v1::DestinationSummary {
            id: destination.id.clone(),
            name: destination.name.clone(),
            r#type: destination.r#type.clone(),
            reason: destination.inactive_reason.clone(),
        })),
    }
}

/// The event of a credential's change: `action` is `created`, `deleted`, or its status.
#[must_use]
pub fn of_credential(event_id: EventId, credential: &Credential, action: &str) -> v1::Event {
    let view = v1::Credential::from(credential);
    v1::Event {
        id: event_id.to_string(),
        r#type: format!("credential.{action}"),
        tenant: view.tenant,
        object_id: view.id.clone(),
        seq: credential.seq,
        created_at_ms: credential.updated_at.0,
        traceparent: String::new(),
        data: Some(v1::event::Data::Credential(v1::CredentialSummary {
            id: view.id,
            name: view.name,
            auth_method: view.auth_method,
            source_id: view.source_id,
            status: view.status,
            failure: view.failure,
        })),
    }
}
