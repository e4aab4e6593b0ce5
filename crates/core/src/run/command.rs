use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::deadline::DeadlineKind;
use super::interaction::Question;
use super::state::{Lease, LeaseToken, Run};
use crate::error::Error;
use crate::time::Timestamp;

/// What can be asked of a run that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The session-pool leases a session to it.
    Grant {
        /// The lease.
        lease: Lease,
        /// The attempt that the session was sought for.
        attempt: u32,
    },
    /// The agent asks the user.
    Ask {
        /// Under which lease.
        token: LeaseToken,
        /// What.
        question: Question,
    },
    /// The runner has taken the user's answer.
    Answered {
        /// To which question.
        interaction_id: String,
    },
    /// The agent has finished.
    Finish {
        /// Under which lease.
        token: LeaseToken,
        /// With what.
        output: Output,
    },
    /// The runner reports failure.
    Fail {
        /// Under which lease.
        token: LeaseToken,
        /// Why; at least one, at most [`crate::limits::MAX_ERRORS`].
        errors: Vec<Error>,
    },
    /// The agent has stopped because it was asked to.
    Stopped {
        /// Under which lease.
        token: LeaseToken,
    },
    /// The session is gone, or its runner does not have it.
    Lost {
        /// Under which lease.
        token: LeaseToken,
        /// How it was lost.
        reason: LostReason,
        /// For people.
        message: String,
    },
    /// The user cancels.
    Cancel,
    /// The user reviews.
    Review {
        /// How.
        decision: Decision,
        /// Why.
        comment: String,
    },
    /// A deadline is said to have passed.
    Expire {
        /// Which.
        kind: DeadlineKind,
        /// The run's `seq` when it was armed.
        version: u64,
        /// The newest activity that the timeout-watcher saw.
        last_activity: Timestamp,
    },
}

/// What an agent has produced, already checked against the task's output schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// JSON.
    pub json: Bytes,
    /// Where it does not fit, why.
    pub misfit: Option<String>,
}

/// Why a session is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LostReason {
    /// Its runner is gone.
    RunnerLost,
    /// It died while its runner lives, or the runner refused the run.
    SessionFailed,
    /// A user ended it: its runs are canceled.
    SessionEnded,
}

/// A reviewer's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The output stands.
    Approve,
    /// It does not.
    Reject,
}

/// What a change asks of others. Sent after the commit, and again by sweeps until its consequence is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Session-pool: this run waits for a session.
    Acquire,
    /// Session-pool: it no longer waits.
    Withdraw,
    /// Runner: execute it.
    Assign(Lease),
    /// Runner: stop its agent, then report.
    Stop(Lease, StopReason),
    /// Session-pool: it no longer needs its session.
    Release {
        /// The lease that ends.
        lease: Lease,
        /// Tear the session down, whatever the policy.
        discard: bool,
    },
}

/// Why an agent is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The user cancels.
    Canceled,
}

/// A change: commit it, then tell the event, then send the effects. Its one event is `task_run.<status of next>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The run as it is from now on.
    pub next: Run,
    /// What it asks of others.
    pub effects: Vec<Effect>,
}

/// Why a command changes nothing, although nobody erred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// It was done before.
    Repeated,
    /// A newer lease holds the run, or none.
    StaleLease,
    /// The run is final.
    Final,
    /// The run has moved on since.
    MovedOn,
    /// The deadline has not passed.
    NotYet,
}

/// What [`super::apply`] decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It changes the run.
    Changed(Box<Change>),
    /// It changes nothing, and that is right.
    Ignored(Ignored),
    /// The state does not admit it: the user is told.
    Rejected(Error),
}
