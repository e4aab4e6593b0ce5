use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::interaction::Interaction;
use crate::error::Error;
use crate::id::{AgentId, CredentialId, RunId, RunnerId, SessionId, SourceId, TaskId, Tenant};
use crate::task::Settings;
use crate::time::Timestamp;

/// What the world sees of a run's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "CONTRACT section 2 has the table")]
pub enum RunStatus {
    Queued,
    Running,
    InteractionRequired,
    ReviewRequired,
    Completed,
    Failed,
    Canceling,
    Canceled,
}

impl RunStatus {
    /// Every status.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Running,
        Self::InteractionRequired,
        Self::ReviewRequired,
        Self::Completed,
        Self::Failed,
        Self::Canceling,
        Self::Canceled,
    ];

    /// The word in JSON, subjects and stores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::InteractionRequired => "interaction_required",
            Self::ReviewRequired => "review_required",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceling => "canceling",
            Self::Canceled => "canceled",
        }
    }

    /// Whether a run stays there.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }
}

/// How a final run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunResult {
    /// Completed.
    Success,
    /// Failed.
    Failure,
    /// Canceled: nobody can say.
    Unknown,
}

impl RunResult {
    /// The word in JSON and stores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Unknown => "unknown",
        }
    }
}

/// Fencing token: grows with each lease that the session-pool gives, and never shrinks.
pub type LeaseToken = u64;

/// The right of one run to one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The session.
    pub session_id: SessionId,
    /// Where it lives.
    pub runner_id: RunnerId,
    /// What tells it from any earlier lease.
    pub token: LeaseToken,
}

/// What a run was asked to be; fixed at submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The task, and the version that this run keeps.
    pub task_id: TaskId,
    /// 0 where the task was not found.
    pub task_version: u32,
    /// The kind of runner; none where the task was not found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// The system that it works on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_id: Option<SourceId>,
    /// Secrets for the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<CredentialId>,
    /// The session that it must be; none: any that fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted_session: Option<SessionId>,
    /// For its reader, and for filters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The task's settings, with what the run itself asked for in their place.
    pub settings: Settings,
    /// The run that this one repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RunId>,
    /// W3C trace context of the submitter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// The clock of an execution under a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Active {
    /// The lease that it runs under.
    pub lease: Lease,
    /// How long people took to answer so far, in milliseconds: the total deadline stands still meanwhile.
    pub paused_ms: u64,
    /// The question that was asked last: its report, delivered again after the answer, must not open it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_question: Option<String>,
}

/// The state, with what only this state has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum State {
    /// Waits for a session.
    Queued {
        /// Since when.
        since: Timestamp,
    },
    /// The agent is executing.
    Running(Active),
    /// The agent waits for an answer.
    InteractionRequired {
        /// The execution that waits.
        active: Active,
        /// The question.
        interaction: Interaction,
        /// Since when.
        since: Timestamp,
    },
    /// The output waits for a person's approval; the session is released.
    ReviewRequired {
        /// Since when.
        since: Timestamp,
    },
    /// The agent was asked to stop.
    Canceling {
        /// The execution that stops.
        active: Active,
        /// Since when.
        since: Timestamp,
    },
    /// Final.
    Completed,
    /// Final.
    Failed,
    /// Final.
    Canceled,
}

/// One execution of a task with one input. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The run.
    pub id: RunId,
    /// Its owner.
    pub tenant: Tenant,
    /// What it was asked to be.
    #[serde(with = "shared")]
    pub spec: Arc<Spec>,
    /// The number of its last event, and its version: each change adds 1 and emits one event.
    pub seq: u64,
    /// 1, 2, 3 ...
    pub attempt: u32,
    /// The state.
    pub state: State,
    /// The session that it has or had last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Error>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its first execution began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it became final.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// When its cancellation was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canceled_at: Option<Timestamp>,
    /// When it changed last.
    pub updated_at: Timestamp,
    /// Newest sign of life of the agent. Moves without a change of version.
    pub last_activity: Timestamp,
    /// JSON; empty: none was given. Kept beside the document in stores.
    #[serde(skip)]
    pub input: Bytes,
    /// JSON; none: there is none. Kept beside the document in stores.
    #[serde(skip)]
    pub output: Option<Bytes>,
}

impl Run {
    /// What the world sees of the state.
    #[must_use]
    pub const fn status(&self) -> RunStatus {
        match self.state {
            State::Queued { .. } => RunStatus::Queued,
            State::Running(_) => RunStatus::Running,
            State::InteractionRequired { .. } => RunStatus::InteractionRequired,
            State::ReviewRequired { .. } => RunStatus::ReviewRequired,
            State::Canceling { .. } => RunStatus::Canceling,
            State::Completed => RunStatus::Completed,
            State::Failed => RunStatus::Failed,
            State::Canceled => RunStatus::Canceled,
        }
    }

    /// How it ended; none while it has not.
    #[must_use]
    pub const fn result(&self) -> Option<RunResult> {
        match self.state {
            State::Completed => Some(RunResult::Success),
            State::Failed => Some(RunResult::Failure),
            State::Canceled => Some(RunResult::Unknown),
            State::Queued { .. }
            | State::Running(_)
            | State::InteractionRequired { .. }
            | State::ReviewRequired { .. }
            | State::Canceling { .. } => None,
        }
    }

    /// The execution under way.
    #[must_use]
    pub const fn active(&self) -> Option<&Active> {
        match &self.state {
            State::Running(active) | State::InteractionRequired { active, .. } | State::Canceling { active, .. } => {
                Some(active)
            }
            State::Queued { .. }
            | State::ReviewRequired { .. }
            | State::Completed
            | State::Failed
            | State::Canceled => None,
        }
    }

    /// The lease that it holds.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        self.active().map(|active| active.lease)
    }

    /// The open question.
    #[must_use]
    pub const fn interaction(&self) -> Option<&Interaction> {
        match &self.state {
            State::InteractionRequired { interaction, .. } => Some(interaction),
            _ => None,
        }
    }

    /// Milliseconds from the first execution's begin to the end; none before the end.
    #[must_use]
    pub fn runtime_ms(&self) -> Option<u64> {
        Some(self.finished_at?.millis_since(self.started_at?))
    }
}

/// Serde's own support for `Arc` is a feature that every crate of the build would get.
mod shared {
    use super::{Arc, Spec};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(spec: &Arc<Spec>, serializer: S) -> Result<S::Ok, S::Error> {
        Spec::serialize(spec, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Spec>, D::Error> {
        Spec::deserialize(deserializer).map(Arc::new)
    }
}
