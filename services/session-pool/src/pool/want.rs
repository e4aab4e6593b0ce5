use std::cmp::Reverse;

use errand_core::session::Session;
use errand_core::{AgentId, CredentialId, RunId, RunnerId, SessionId, SourceId, Tenant, Timestamp};

/// A run that waits for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The run.
    pub run_id: RunId,
    /// Whose.
    pub tenant: Tenant,
    /// The kind of runner that it needs.
    pub agent_id: AgentId,
    /// What it works on.
    pub source_id: Option<SourceId>,
    /// With which secrets.
    pub credential_id: Option<CredentialId>,
    /// The session that it must be; none: any that fits.
    pub session_id: Option<SessionId>,
    /// It takes a session that served others of its kind, and leaves its own to them.
    pub reuse: bool,
    /// The higher, the sooner; within the tenant.
    pub priority: i32,
    /// First come, first served within a priority.
    pub queued_at: Timestamp,
    /// The run's attempt: a newer one takes the place of an older one.
    pub attempt: u32,
    /// The trace that the run belongs to.
    pub traceparent: Option<Box<str>>,
}

impl Want {
    pub(super) const fn rank(&self) -> Rank {
        Rank { priority: Reverse(self.priority), queued_at: self.queued_at, run_id: self.run_id }
    }

    pub(super) const fn fit(&self) -> Fit {
        Fit { source_id: self.source_id, credential_id: self.credential_id }
    }
}

/// The order of wants within a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) priority: Reverse<i32>,
    pub(super) queued_at: Timestamp,
    pub(super) run_id: RunId,
}

/// What must be the same for one run to take over another's session; agent and tenant must, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fit {
    pub(super) source_id: Option<SourceId>,
    pub(super) credential_id: Option<CredentialId>,
}

impl Fit {
    pub(super) const fn of(session: &Session) -> Self {
        Self { source_id: session.source_id, credential_id: session.credential_id }
    }
}

/// Where a want stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In its tenant's line.
    Line,
    /// In the line for the one session that it must be.
    Named(SessionId),
    /// Out of the line: this session is being made for it, or ended to make room for it.
    Promised(SessionId),
    /// Out of the line until then: its session could not be made.
    Later(Timestamp),
}

/// A want with what the pool remembers of it.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) want: Want,
    pub(super) place: Place,
    /// Sessions for it that could not be made.
    pub(super) failures: u32,
    /// The runner that failed last: others are tried first.
    pub(super) avoid: Option<RunnerId>,
    /// How often a later want of its tenant took an idle session that it could not use itself.
    pub(super) overtaken: u8,
    /// It waits again because its lease was gone before it was accepted. Such come on top of those that may wait: they
    /// were let in before, and are never more than there were leases.
    pub(super) again: bool,
}
