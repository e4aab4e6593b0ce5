//! Runs: requests in, views and summaries out.

use std::collections::BTreeMap;

use errand_core::run::{
    Deadline, DeadlineKind, Decision, Interaction, InteractionField, Question, Run, RunResult, RunStatus,
};
use errand_core::task::{check_priority, check_seconds};
use errand_core::{CredentialId, Error, ErrorCode, RunId, SessionId, SourceId, Timestamp, limits};

use crate::v1;
use crate::wire::{id, named, optional_id};

macro_rules! same_names {
    ($domain:ty, $wire:ty, $($name:ident),*) => {
        impl From<$domain> for $wire {
            fn from(value: $domain) -> Self {
                match value { $(<$domain>::$name => <$wire>::$name),* }
            }
        }

        impl TryFrom<$wire> for $domain {
            type Error = ();

            fn try_from(value: $wire) -> Result<Self, ()> {
                match value { $(<$wire>::$name => Ok(<$domain>::$name),)* <$wire>::Unspecified => Err(()) }
            }
        }
    };
}
pub(crate) use same_names;

same_names!(
    RunStatus,
    v1::RunStatus,
    Queued,
    Running,
    InteractionRequired,
    ReviewRequired,
    Completed,
    Failed,
    Canceling,
    Canceled
);
same_names!(RunResult, v1::RunResult, Success, Failure, Unknown);
same_names!(DeadlineKind, v1::DeadlineKind, Queue, Inactivity, Total, Interaction, Review, StopGrace);
same_names!(Decision, v1::ReviewDecision, Approve, Reject);

/// A run request, its fields checked for form and limits; the task is not looked at.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Chosen by the client.
    pub run_id: Option<RunId>,
    /// Which task.
    pub task: crate::event::TaskRef,
    /// As it came: that it is JSON is checked where it is checked against the schema.
    pub input: bytes::Bytes,
    /// Secrets for the source.
    pub credential_id: Option<CredentialId>,
    /// What it works on.
    pub source_id: Option<SourceId>,
    /// The session that it must be.
    pub session_id: Option<SessionId>,
    /// In the task's place.
    pub priority: Option<i32>,
    /// In the task's place.
    pub timeout_seconds: Option<u32>,
    /// In the task's place.
    pub review: Option<bool>,
    /// For its reader.
    pub metadata: BTreeMap<String, String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// Checks a run request's fields for form and limits.
///
/// # Errors
/// `request`/`input_missing` or `request`/`input_invalid`, naming the field and the limit.
pub fn submission(request: v1::RunRequest) -> Result<Submission, Error> {
    if request.input.len() > limits::MAX_VALUE_BYTES {
        let message = format!("input is larger than {} bytes", limits::MAX_VALUE_BYTES);
        return Err(ErrorCode::BODY_TOO_LARGE.with(message).at("input"));
    }
    check_metadata(&request.metadata)?;
    if let Some(priority) = request.priority {
        check_priority("priority", priority)?;
    }
    if let Some(seconds) = request.timeout_seconds {
        check_seconds("timeout_seconds", seconds)?;
    }
    Ok(Submission {
        run_id: optional_id("run_id", &request.run_id)?,
        task: crate::event::TaskRef::parse("task_id", &request.task_id)?,
        input: request.input,
        credential_id: optional_id("credential_id", &request.credential_id)?,
        source_id: optional_id("source_id", &request.source_id)?,
        session_id: optional_id("session_id", &request.session_id)?,
        priority: request.priority,
        timeout_seconds: request.timeout_seconds,
        review: request.review,
        metadata: request.metadata,
        traceparent: matches!(request.traceparent.len(), 1 | 55).then_some(request.traceparent),
    })
}

fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), Error> {
    if metadata.len() > limits::MAX_METADATA_ENTRIES {
        let message = format!("metadata has more than {} entries", limits::MAX_METADATA_ENTRIES);
        return Err(ErrorCode::INPUT_INVALID.with(message).at("metadata"));
    }
    for (key, value) in metadata {
        if key.is_empty() || key.chars().count() > limits::MAX_METADATA_KEY {
            let message = format!("a metadata key must have 1..{} characters", limits::MAX_METADATA_KEY);
            return Err(ErrorCode::INPUT_INVALID.with(message).at("metadata"));
        }
        if value.chars().count() > limits::MAX_METADATA_VALUE {
            let message = format!("metadata.{key} has more than {} characters", limits::MAX_METADATA_VALUE);
            return Err(ErrorCode::INPUT_INVALID.with(message).at(format!("metadata.{key}")));
        }
    }
    Ok(())
}

fn text<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// What the owner reads; the input only where it was asked for.
impl From<&Run> for v1::Run {
    fn from(run: &Run) -> Self {
        let spec = &run.spec;
        Self {
            id: run.id.to_string(),
            tenant: run.tenant.to_string(),
            status: v1::RunStatus::from(run.status()).into(),
            result: run.result().map(|result| v1::RunResult::from(result).into()),
            task_id: spec.task_id.to_string(),
            task_version: spec.task_version,
            session_id: text(run.session_id),
            agent_id: text(spec.agent_id.as_ref()),
            source_id: text(spec.source_id),
            credential_id: text(spec.credential_id),
            attempt: run.attempt,
            runtime_ms: run.runtime_ms(),
            output: run.output.clone(),
            errors: run.errors.iter().map(Into::into).collect(),
            interaction: run.interaction().map(Into::into),
            metadata: spec.metadata.clone(),
            priority: spec.settings.priority,
            created_at_ms: run.created_at.0,
            started_at_ms: run.started_at.map(|at| at.0),
            finished_at_ms: run.finished_at.map(|at| at.0),
            canceled_at_ms: run.canceled_at.map(|at| at.0),
            updated_at_ms: run.updated_at.0,
            seq: run.seq,
            retry_of: text(spec.retry_of),
            input: None,
        }
    }
}

impl From<&Interaction> for v1::Interaction {
    fn from(interaction: &Interaction) -> Self {
        let question = &interaction.question;
        Self {
            id: question.id.clone(),
            r#type: question.r#type.clone(),
            message: question.message.clone(),
            fields: question
                .fields
                .iter()
                .map(|field| v1::InteractionField {
                    name: field.name.clone(),
                    r#type: field.r#type.clone(),
                    label: field.label.clone(),
                    options: field.options.clone(),
                })
                .collect(),
            expires_at_ms: interaction.expires_at.0,
        }
    }
}

/// What a runner reports; its limits are checked by the state machine.
impl From<v1::Interaction> for Question {
    fn from(interaction: v1::Interaction) -> Self {
        Self {
            id: interaction.id,
            r#type: interaction.r#type,
            message: interaction.message,
            fields: interaction
                .fields
                .into_iter()
                .map(|field| InteractionField {
                    name: field.name,
                    r#type: field.r#type,
                    label: field.label,
                    options: field.options,
                })
                .collect(),
        }
    }
}

impl From<&Deadline> for v1::Deadline {
    fn from(deadline: &Deadline) -> Self {
        Self {
            kind: v1::DeadlineKind::from(deadline.kind).into(),
            at_ms: deadline.at.0,
            window_ms: deadline.window_ms.unwrap_or_default(),
        }
    }
}

impl TryFrom<&v1::Deadline> for Deadline {
    type Error = Error;

    fn try_from(deadline: &v1::Deadline) -> Result<Self, Error> {
        let kind = named("kind", deadline.kind, |kind: v1::DeadlineKind| kind.try_into().ok())?;
        let window_ms = (deadline.window_ms > 0).then_some(deadline.window_ms);
        if (kind == DeadlineKind::Inactivity) != window_ms.is_some() {
            return Err(ErrorCode::INPUT_INVALID.with("window_ms belongs to inactivity").at("window_ms"));
        }
        Ok(Self { kind, at: Timestamp(deadline.at_ms), window_ms })
    }
}

impl v1::Want {
    /// What the session-pool is told of a run that waits; none of a run that does not.
    #[must_use]
    pub fn of(run: &Run) -> Option<Self> {
        let errand_core::run::State::Queued { since } = run.state else { return None };
        let spec = &run.spec;
        Some(Self {
            run_id: run.id.to_string(),
            tenant: run.tenant.to_string(),
            agent_id: text(spec.agent_id.as_ref()),
            source_id: text(spec.source_id),
            credential_id: text(spec.credential_id),
            session_id: text(spec.wanted_session),
            reuse_session: spec.settings.reuse_session,
            priority: spec.settings.priority,
            queued_at_ms: since.0,
            attempt: run.attempt,
            traceparent: spec.traceparent.clone().unwrap_or_default(),
        })
    }
}

/// Parses `run_id` of an internal message.
impl TryFrom<&v1::GrantAnswer> for RunId {
    type Error = Error;

    fn try_from(answer: &v1::GrantAnswer) -> Result<Self, Error> {
        id("run_id", &answer.run_id)
    }
}
