use errand_core::run::{Lease, LeaseToken, LostReason};
use errand_core::session::Session;
use errand_core::{CredentialId, RunId, RunnerId, SessionId, SourceId, Tenant};

/// What came of the inputs since the last [`super::Pool::take`]: first commit, then do.
#[derive(Debug, Default)]
pub struct Decisions {
    /// To commit: every change of a session in order, each with one event. The last one of a session is its row.
    pub changes: Vec<Change>,
    /// To commit: losses that are to be told until they are answered.
    pub new_losses: Vec<Loss>,
    /// To commit: losses that were answered.
    pub told_losses: Vec<LeaseToken>,
    /// To commit: runners that drain (true), or no longer need to be remembered (false).
    pub drains: Vec<(RunnerId, bool)>,
    /// To commit, whether or not there is anything else: only a commit shows whether another pool has taken over.
    pub in_doubt: bool,
    /// To do: tell the dispatcher.
    pub grants: Vec<Grant>,
    /// To do: tell the dispatcher.
    pub losses: Vec<Loss>,
    /// To do: ask the dispatcher whether these are held still.
    pub checks: Vec<(RunId, Lease)>,
    /// To do: tell the runner.
    pub starts: Vec<Start>,
    /// To do: tell the runner.
    pub tear_downs: Vec<(RunnerId, SessionId)>,
}

impl Decisions {
    /// Whether there is anything to commit.
    #[must_use]
    pub fn changes_the_store(&self) -> bool {
        !(self.changes.is_empty()
            && self.new_losses.is_empty()
            && self.told_losses.is_empty()
            && self.drains.is_empty()
            && !self.in_doubt)
    }
}

/// A session as it is from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The session.
    pub session: Session,
    /// Beside it in the store: what its lease was given on.
    pub terms: Option<StoredTerms>,
}

/// What the pool must know of a lease after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoredTerms {
    /// The attempt of the run that it was granted to.
    pub attempt: u32,
    /// The session stays when the run is done.
    pub keep: bool,
}

/// A session is leased to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The run.
    pub run_id: RunId,
    /// Its lease.
    pub lease: Lease,
    /// The attempt that wanted it.
    pub attempt: u32,
}

/// A run has lost its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The run.
    pub run_id: RunId,
    /// The lease that it had.
    pub lease: Lease,
    /// How.
    pub reason: LostReason,
    /// For people.
    pub message: String,
}

/// A session is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Where.
    pub runner_id: RunnerId,
    /// The session.
    pub session_id: SessionId,
    /// Whose; none: kept warm for whoever comes.
    pub tenant: Option<Tenant>,
    /// What it is to work on.
    pub source_id: Option<SourceId>,
    /// With which secrets.
    pub credential_id: Option<CredentialId>,
}
