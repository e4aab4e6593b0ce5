//! The invariants of DESIGN section 5 that one run can show, as named predicates: for debug assertions, the
//! simulator and the chaos tests alike.

use super::deadline::{Armed, armed};
use super::state::{Run, RunStatus, State};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invariant {number} does not hold: {what}")]
pub struct Broken {
    /// Its number in DESIGN section 5.
    pub number: u8,
    /// What was seen.
    pub what: String,
}

fn hold(number: u8, holds: bool, what: &str) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { number, what: what.to_owned() }) }
}

/// What holds of a run at any time.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check(run: &Run) -> Result<(), Broken> {
    let status = run.status();
    hold(3, status.is_final() == run.finished_at.is_some(), "finished_at is set exactly while final")?;
    hold(3, status.is_final() == run.result().is_some(), "a result is set exactly while final")?;
    hold(4, run.seq >= 1, "seq begins with 1")?;
    let armed_or_reason = match armed(run) {
        Armed::Deadlines(deadlines) => !deadlines.is_empty() && !status.is_final(),
        Armed::Final => status.is_final(),
        Armed::ReviewWithoutLimit => matches!(run.state, State::ReviewRequired { .. }),
    };
    hold(6, armed_or_reason, "a run has a deadline armed, or a reason")?;
    hold(7, run.lease().is_none_or(|lease| run.session_id == Some(lease.session_id)), "session_id is the lease's")?;
    hold(3, (status == RunStatus::Failed) != run.errors.is_empty(), "errors are set exactly on a failed run")?;
    hold(9, run.attempt <= run.spec.settings.max_attempts, "attempts stay within the task's")
}

/// What holds between a run and its next version.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check_change(before: &Run, after: &Run) -> Result<(), Broken> {
    check(after)?;
    hold(3, !before.status().is_final(), "a final run stays as it is")?;
    hold(4, after.seq == before.seq + 1, "each change adds 1 to seq")?;
    hold(1, before.id == after.id && before.tenant == after.tenant, "a run keeps its id and owner")?;
    hold(1, before.spec == after.spec && before.input == after.input, "a run keeps its spec and input")?;
    let fenced = match (before.lease(), after.lease()) {
        (Some(before), Some(after)) => before == after,
        (None, Some(_)) => before.status() == RunStatus::Queued,
        (Some(_) | None, None) => true,
    };
    hold(5, fenced, "a lease changes only by a grant to a queued run")
}
