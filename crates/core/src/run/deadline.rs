use serde::{Deserialize, Serialize};

use super::state::{Run, State};
use crate::limits::STOP_GRACE_SECONDS;
use crate::mutated;
use crate::time::Timestamp;

/// What can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DeadlineKind {
    /// Waiting for a session.
    Queue,
    /// Executing without a sign of life of the agent.
    Inactivity,
    /// Executing at all.
    Total,
    /// Waiting for the user's answer.
    Interaction,
    /// Waiting for the review.
    Review,
    /// Waiting for the agent to stop.
    StopGrace,
}

/// An armed deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// What runs out.
    pub kind: DeadlineKind,
    /// When.
    pub at: Timestamp,
    /// Of inactivity only: activity at `t` moves it to `t + window_ms`.
    pub window_ms: Option<u32>,
}

/// What a run has armed, or why nothing is (invariant 6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Armed {
    /// At least one deadline.
    Deadlines(Vec<Deadline>),
    /// It is final.
    Final,
    /// It waits for a review that its task lets take for ever.
    ReviewWithoutLimit,
}

impl Armed {
    /// The deadlines; none where there is a reason.
    #[must_use]
    pub fn deadlines(&self) -> &[Deadline] {
        match self {
            Self::Deadlines(deadlines) => deadlines,
            Self::Final | Self::ReviewWithoutLimit => &[],
        }
    }
}

/// What a run has armed. Nothing stores deadlines: they follow from the run.
#[must_use]
pub fn armed(run: &Run) -> Armed {
    let settings = &run.spec.settings;
    let one = |kind, at| Armed::Deadlines(vec![Deadline { kind, at, window_ms: None }]);
    match &run.state {
        State::Queued { since } => one(DeadlineKind::Queue, since.plus_seconds(settings.queue_seconds)),
        State::Running(active) => {
            let mut deadlines = vec![Deadline {
                kind: DeadlineKind::Inactivity,
                at: run.last_activity.plus_seconds(settings.inactivity_seconds),
                window_ms: Some(settings.inactivity_seconds * 1000),
            }];
            if let (Some(seconds), Some(started)) = (settings.timeout_seconds, run.started_at) {
                let paused = i64::try_from(active.paused_ms).unwrap_or(i64::MAX);
                let at = started.plus_seconds(seconds).plus_millis(paused);
                deadlines.push(Deadline { kind: DeadlineKind::Total, at, window_ms: None });
            }
            Armed::Deadlines(deadlines)
        }
        State::InteractionRequired { .. } if mutated!(WaitForEver) => Armed::Deadlines(Vec::new()),
        State::InteractionRequired { interaction, .. } => one(DeadlineKind::Interaction, interaction.expires_at),
        State::ReviewRequired { since } => match settings.review_seconds {
            Some(seconds) => one(DeadlineKind::Review, since.plus_seconds(seconds)),
            None => Armed::ReviewWithoutLimit,
        },
        State::Canceling { since, .. } => one(DeadlineKind::StopGrace, since.plus_seconds(STOP_GRACE_SECONDS)),
        State::Completed | State::Failed | State::Canceled => Armed::Final,
    }
}
