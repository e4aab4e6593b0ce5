use super::{Session, State};
use crate::id::{CredentialId, RunId, SourceId, Tenant};
use crate::limits::MAX_MESSAGE_BYTES;
use crate::run::{Broken, LeaseToken};
use crate::time::Timestamp;

/// What can be asked of a session that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The runner has it ready, and nobody waits for it.
    Ready,
    /// A run gets it: ready just now, or idle.
    Lease {
        /// Which run.
        run_id: RunId,
        /// Greater than any token before.
        token: LeaseToken,
        /// Whose run.
        tenant: Tenant,
        /// What the run works on.
        source_id: Option<SourceId>,
        /// With which secrets.
        credential_id: Option<CredentialId>,
    },
    /// The run that holds it is done; others may reuse it.
    Release {
        /// The lease that ends.
        token: LeaseToken,
    },
    /// Tear it down.
    End {
        /// Only where this lease holds it still; none: whoever holds it.
        token: Option<LeaseToken>,
        /// Why.
        reason: String,
    },
    /// The runner has torn it down, or never had it.
    Ended,
    /// It died, could not be made, or its runner is gone.
    Fail {
        /// Why.
        reason: String,
    },
}

/// Why a command changes nothing, although nobody erred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// It was done before, or does not matter any more.
    Repeated,
    /// Another lease holds it.
    StaleLease,
    /// It is final.
    Final,
    /// It is not in a state for that.
    NotNow,
}

/// What [`apply`] decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The session as it is from now on. Its one event is `session.<status>`.
    Changed(Box<Session>),
    /// Nothing changes.
    Ignored(Ignored),
}

/// Decides what `command` does to `session`. Pure: the only way a session changes.
#[must_use]
pub fn apply(session: &Session, command: Command, now: Timestamp) -> Outcome {
    match command {
        Command::Ready => ready(session, now),
        Command::Lease { run_id, token, tenant, source_id, credential_id } => {
            lease(session, Holder { run_id, token, tenant, source_id, credential_id }, now)
        }
        Command::Release { token } => release(session, token, now),
        Command::End { token, reason } => end(session, token, &reason, now),
        Command::Ended => ended(session, now),
        Command::Fail { reason } => fail(session, &reason, now),
    }
}

struct Holder {
    run_id: RunId,
    token: LeaseToken,
    tenant: Tenant,
    source_id: Option<SourceId>,
    credential_id: Option<CredentialId>,
}

fn draft(session: &Session, state: State, now: Timestamp) -> Session {
    let mut next = session.clone();
    next.seq += 1;
    next.updated_at = now.max(session.updated_at);
    next.state = state;
    if next.status().is_final() {
        next.ended_at = Some(next.updated_at);
    }
    next
}

fn changed(session: Session) -> Outcome {
    Outcome::Changed(Box::new(session))
}

fn short(reason: &str) -> Option<String> {
    Some(reason[..reason.floor_char_boundary(MAX_MESSAGE_BYTES)].to_owned())
}

fn ready(session: &Session, now: Timestamp) -> Outcome {
    match session.state {
        State::Queued => changed(draft(session, State::Idle { since: now }, now)),
        State::Running { .. } | State::Idle { .. } => Outcome::Ignored(Ignored::Repeated),
        State::Completing => Outcome::Ignored(Ignored::NotNow),
        State::Completed | State::Failed => Outcome::Ignored(Ignored::Final),
    }
}

fn lease(session: &Session, holder: Holder, now: Timestamp) -> Outcome {
    match session.state {
        State::Queued | State::Idle { .. } => {
            let state = State::Running { run_id: holder.run_id, token: holder.token, since: now };
            let mut next = draft(session, state, now);
            next.tenant = Some(holder.tenant);
            next.source_id = holder.source_id;
            next.credential_id = holder.credential_id;
            next.runs_served += 1;
            changed(next)
        }
        State::Running { token, .. } if token == holder.token => Outcome::Ignored(Ignored::Repeated),
        State::Running { .. } => Outcome::Ignored(Ignored::StaleLease),
        State::Completing => Outcome::Ignored(Ignored::NotNow),
        State::Completed | State::Failed => Outcome::Ignored(Ignored::Final),
    }
}

fn release(session: &Session, released: LeaseToken, now: Timestamp) -> Outcome {
    match session.state {
        State::Running { token, .. } if token == released => changed(draft(session, State::Idle { since: now }, now)),
        State::Running { .. } => Outcome::Ignored(Ignored::StaleLease),
        State::Queued | State::Idle { .. } | State::Completing => Outcome::Ignored(Ignored::Repeated),
        State::Completed | State::Failed => Outcome::Ignored(Ignored::Final),
    }
}

fn end(session: &Session, held: Option<LeaseToken>, reason: &str, now: Timestamp) -> Outcome {
    match session.state {
        State::Running { token, .. } if held.is_some_and(|held| held != token) => Outcome::Ignored(Ignored::StaleLease),
        State::Queued | State::Idle { .. } if held.is_some() => Outcome::Ignored(Ignored::Repeated),
        State::Queued | State::Running { .. } | State::Idle { .. } => {
            let mut next = draft(session, State::Completing, now);
            next.reason = short(reason);
            changed(next)
        }
        State::Completing => Outcome::Ignored(Ignored::Repeated),
        State::Completed | State::Failed => Outcome::Ignored(Ignored::Final),
    }
}

fn ended(session: &Session, now: Timestamp) -> Outcome {
    match session.state {
        State::Completing => changed(draft(session, State::Completed, now)),
        State::Queued | State::Running { .. } | State::Idle { .. } => {
            fail(session, "the runner no longer has the session", now)
        }
        State::Completed | State::Failed => Outcome::Ignored(Ignored::Final),
    }
}

fn fail(session: &Session, reason: &str, now: Timestamp) -> Outcome {
    match session.state {
        // It was to be torn down anyway, and gone is gone.
        State::Completing => changed(draft(session, State::Completed, now)),
        State::Queued | State::Running { .. } | State::Idle { .. } => {
            let mut next = draft(session, State::Failed, now);
            next.reason = short(reason);
            changed(next)
        }
        State::Completed | State::Failed => Outcome::Ignored(Ignored::Final),
    }
}

/// What holds of a session at any time (invariant 7: leased, idle or torn down, never lost).
///
/// # Errors
/// The invariant, where it does not hold.
pub fn check(session: &Session) -> Result<(), Broken> {
    let broken = |what: &str| Err(Broken { number: 7, what: what.to_owned() });
    if session.status().is_final() != session.ended_at.is_some() {
        return broken("ended_at is set exactly while final");
    }
    if session.holder().is_some() && session.tenant.is_none() {
        return broken("a leased session belongs to a tenant");
    }
    if session.seq == 0 {
        return broken("seq begins with 1");
    }
    Ok(())
}
