//! What the writer of a runner implements, and what it is handed.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use errand_core::run::{Lease, LeaseToken};
use errand_core::{CredentialId, Error, RunId, RunnerId, SessionId, SourceId, TaskId, Tenant};

use crate::control::Control;

/// A runner's own part: it makes sessions, executes runs in them, and takes sessions away.
///
/// Errand calls these from many tasks at once, for each session one after the other: `start_session`, then
/// `execute` for one run at a time, then `end_session`.
pub trait Host: Send + Sync + 'static {
    /// Makes a session ready. Where it fails, or takes too long and is dropped, `end_session` follows, so it may
    /// leave things half made.
    fn start_session(&self, session: SessionStart) -> impl Future<Output = Result<(), Error>> + Send;

    /// Kills whatever runs in a session and removes it. Idempotent: a session that is not there is no error.
    fn end_session(&self, id: SessionId) -> impl Future<Output = ()> + Send;

    /// Executes one run to its end. The future is dropped where the run is no longer this runner's (its lease was
    /// given up, its session is torn down, its agent did not stop in time): whatever it has started must end with it.
    fn execute(&self, run: Assigned, control: Control) -> impl Future<Output = Ending> + Send;
}

/// How an execution ended.
#[derive(Debug)]
pub enum Ending {
    /// With this output: JSON in UTF-8, empty for null. It is checked against the task's output schema elsewhere.
    Finished(Bytes),
    /// It failed. The errors should be of those that [`errand_core::ErrorCode::is_agents`] admits.
    Failed(Vec<Error>),
    /// The agent has stopped because it was asked to.
    Stopped,
    /// The session has died under the run, which is tried again elsewhere if its task allows it. The text is for
    /// people and must hold no secrets.
    SessionLost(String),
}

/// A session to be made.
#[derive(Debug, Clone)]
pub struct SessionStart {
    /// Its id.
    pub id: SessionId,
    /// The runner that it is on: this one.
    pub runner_id: RunnerId,
    /// Whom it will serve; none: a warm session that serves nobody yet.
    pub tenant: Option<Tenant>,
    /// What it will work on.
    pub source_id: Option<SourceId>,
    /// Secrets for the source.
    pub credential_id: Option<CredentialId>,
    /// For telling that it has died.
    pub handle: SessionHandle,
}

/// Tells Errand that a session has died when no run was executing that could have told. Cheap to clone.
#[derive(Clone)]
pub struct SessionHandle {
    pub(crate) id: SessionId,
    pub(crate) engine: Weak<dyn Lose>,
}

impl SessionHandle {
    /// The session is gone. `end_session` follows; a run that executes there is dropped, and tried again elsewhere if
    /// its task allows it. The text is for people and must hold no secrets.
    pub fn lost(&self, message: impl Into<String>) {
        if let Some(engine) = self.engine.upgrade() {
            engine.lose(self.id, message.into());
        }
    }
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SessionHandle").field(&self.id).finish()
    }
}

/// The engine, whatever its host's type.
pub(crate) trait Lose: Send + Sync {
    fn lose(self: Arc<Self>, id: SessionId, message: String);
}

/// A run to be executed under a lease.
#[derive(Clone)]
pub struct Assigned {
    /// The run.
    pub run_id: RunId,
    /// Its owner.
    pub tenant: Tenant,
    /// The session that it executes in, and the token.
    pub lease: Lease,
    /// What it is an execution of.
    pub task_id: TaskId,
    /// The task's version that it keeps.
    pub task_version: u32,
    /// 1, 2, 3 ...
    pub attempt: u32,
    /// For the agent; may be empty.
    pub prompt: String,
    /// JSON of the task's program; empty where there is none.
    pub program: Bytes,
    /// JSON of the run's input; empty where there is none.
    pub input: Bytes,
    /// For its reader.
    pub metadata: BTreeMap<String, String>,
    /// What it works on.
    pub source_id: Option<SourceId>,
    /// Secrets for the source.
    pub credential_id: Option<CredentialId>,
    /// W3C trace context; empty where there is none.
    pub traceparent: String,
}

impl Assigned {
    pub(crate) fn key(&self) -> (RunId, LeaseToken) {
        (self.run_id, self.lease.token)
    }
}

/// Shows neither prompt, program, input nor metadata: they may hold secrets.
impl fmt::Debug for Assigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assigned")
            .field("run_id", &self.run_id)
            .field("tenant", &self.tenant)
            .field("lease", &self.lease)
            .field("task_id", &self.task_id)
            .field("task_version", &self.task_version)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}
