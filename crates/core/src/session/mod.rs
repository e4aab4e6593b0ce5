//! The session state machine: what the session-pool stores of a session, and the only way to change it.

mod apply;
#[cfg(test)]
pub(crate) mod tests;

use serde::{Deserialize, Serialize};

pub use apply::{Command, Ignored, Outcome, apply, check};

use crate::id::{AgentId, CredentialId, RunId, RunnerId, SessionId, SourceId, Tenant};
use crate::run::LeaseToken;
use crate::time::Timestamp;

/// What the world sees of a session's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// Being provisioned on its runner.
    Queued,
    /// Leased by a run.
    Running,
    /// Ready, nobody's.
    Idle,
    /// Being torn down.
    Completing,
    /// Ended.
    Completed,
    /// Died, or never came to life.
    Failed,
}

impl SessionStatus {
    /// Every status.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Idle, Self::Completing, Self::Completed, Self::Failed];

    /// The word in JSON, subjects and stores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Idle => "idle",
            Self::Completing => "completing",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// Whether a session stays there.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

/// The state, with what only this state has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum State {
    /// The runner is making it; the run that it is made for, if any, is the pool's soft state.
    Queued,
    /// One run executes in it (invariant 7).
    Running {
        /// Which.
        run_id: RunId,
        /// Under which lease.
        token: LeaseToken,
        /// Since when.
        since: Timestamp,
    },
    /// Ready.
    Idle {
        /// Since when.
        since: Timestamp,
    },
    /// The runner is ending it.
    Completing,
    /// Final.
    Completed,
    /// Final.
    Failed,
}

/// An isolated compute environment in which runs execute, one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The session.
    pub id: SessionId,
    /// Whose it is; none while it is warm and has served nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// The kind of its runner.
    pub agent_id: AgentId,
    /// Where it lives.
    pub runner_id: RunnerId,
    /// The source that its runs worked on; a reused session keeps to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_id: Option<SourceId>,
    /// The credential that its runs used; a reused session keeps to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<CredentialId>,
    /// The number of its last event, and its version.
    pub seq: u64,
    /// The state.
    pub state: State,
    /// How many runs were leased to it.
    pub runs_served: u32,
    /// Why it ended or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it changed last.
    pub updated_at: Timestamp,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

impl Session {
    /// What the world sees of the state.
    #[must_use]
    pub const fn status(&self) -> SessionStatus {
        match self.state {
            State::Queued => SessionStatus::Queued,
            State::Running { .. } => SessionStatus::Running,
            State::Idle { .. } => SessionStatus::Idle,
            State::Completing => SessionStatus::Completing,
            State::Completed => SessionStatus::Completed,
            State::Failed => SessionStatus::Failed,
        }
    }

    /// The run that holds it, and the token of its lease.
    #[must_use]
    pub const fn holder(&self) -> Option<(RunId, LeaseToken)> {
        match self.state {
            State::Running { run_id, token, .. } => Some((run_id, token)),
            _ => None,
        }
    }
}
