//! When a delivery is tried again, when it is given up, and when its destination is.

use std::time::Duration;

use errand_core::Timestamp;

use crate::channel::Failure;

/// A destination that wants to be left alone is, for so long at most.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// When attempts are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Between one attempt and the next: one attempt more than there are delays.
    pub delays: Vec<Duration>,
}

/// What becomes of a delivery whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is tried again then.
    Again(Timestamp),
    /// It is given up.
    Exhausted,
    /// The destination is gone: it waits until somebody says where it is now.
    Gone,
}

impl Schedule {
    /// What becomes of a delivery after the failure of its `attempt`-th attempt (1, 2 ...) of this schedule. `jitter`
    /// from 0 to 1 moves the delay from a half to one and a half of what the schedule says, so that what failed
    /// together does not come back together, and the schedule as a whole takes as long as it says.
    #[must_use]
    pub fn after_failure(&self, attempt: u32, failure: &Failure, now: Timestamp, jitter: f64) -> Next {
        if failure.gone {
            return Next::Gone;
        }
        let Some(delay) = self.delays.get((attempt as usize).saturating_sub(1)) else { return Next::Exhausted };
        let delay = delay.mul_f64(0.5 + jitter.clamp(0.0, 1.0));
        let delay = delay.max(left_alone(failure).unwrap_or_default());
        Next::Again(now.plus_millis(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// For how long the destination asks to be left alone, within limits.
pub(crate) fn left_alone(failure: &Failure) -> Option<Duration> {
    failure.retry_after.map(|wanted| wanted.min(MAX_RETRY_AFTER))
}

/// Whether a delivery that was given up means that its destination is dead: nothing was taken since its first attempt.
#[must_use]
pub fn exhausts(first_attempt: Timestamp, failing_since: Option<Timestamp>) -> bool {
    failing_since.is_some_and(|since| since <= first_attempt)
}

/// How a destination fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Since when every attempt has failed.
    pub failing_since: Option<Timestamp>,
    /// How many in a row.
    pub streak: u32,
    /// Of these: probes.
    pub probes: u32,
}

impl Health {
    /// After an attempt that began at `at`, perhaps as a probe. True where there is a `failing_since` now and was none,
    /// or the other way round.
    pub fn note(&mut self, taken: bool, at: Timestamp, probe: bool) -> bool {
        let before = self.failing_since;
        if taken {
            *self = Self::default();
        } else {
            self.streak = self.streak.saturating_add(1);
            self.probes = self.probes.saturating_add(u32::from(probe));
            self.failing_since = Some(before.map_or(at, |since| since.min(at)));
        }
        self.failing_since.is_some() != before.is_some()
    }
}

/// How a destination that fails is sought out, so that a dead one costs nearly nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probing {
    /// After so many failures in a row one attempt is made at a time.
    pub after: u32,
    /// The pause behind the first of these; it doubles.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Probing {
    fn default() -> Self {
        Self { after: 10, first_pause: Duration::from_secs(1), longest_pause: Duration::from_secs(60) }
    }
}

impl Probing {
    /// The pause before the next attempt; none where the destination is not being probed. It grows with failed probes
    /// only: what was under way together fails together, and says no more than one of it.
    #[must_use]
    pub fn pause(&self, health: &Health) -> Option<Duration> {
        let probed = health.streak >= self.after;
        probed.then(|| self.first_pause.saturating_mul(1 << health.probes.min(16)).min(self.longest_pause))
    }
}
