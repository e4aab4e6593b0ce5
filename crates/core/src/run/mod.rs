//! The run state machine (DESIGN section 3): [`Run`] is what is stored, [`apply`] the only way to change it.

mod apply;
mod command;
mod deadline;
mod interaction;
mod invariant;
mod state;

pub use apply::{apply, implied, submit, touch};
pub use command::{Change, Command, Decision, Effect, Ignored, LostReason, Outcome, Output, StopReason};
pub use deadline::{Armed, Deadline, DeadlineKind, armed};
pub use interaction::{Interaction, InteractionField, Question, check_answer};
pub use invariant::{Broken, check, check_change};
pub use state::{Active, Lease, LeaseToken, Run, RunResult, RunStatus, Spec, State};

#[cfg(test)]
pub(crate) mod tests;
