//! What this notifier has done for each destination since its start.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Of one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Attempts made.
    pub attempts: u64,
    /// Of these: not taken.
    pub failed_attempts: u64,
    /// Deliveries taken.
    pub delivered: u64,
    /// Deliveries given up.
    pub failed: u64,
    /// From the event to the answer, of the newest delivery.
    pub lag_ms: u64,
}

/// Of all.
#[derive(Debug, Default)]
pub struct Figures {
    by_number: Mutex<HashMap<i64, Counts>>,
}

impl Figures {
    /// Counts.
    pub fn note(&self, destination: i64, change: impl FnOnce(&mut Counts)) {
        change(self.by_number.lock().unwrap_or_else(PoisonError::into_inner).entry(destination).or_default());
    }

    /// Of one destination.
    #[must_use]
    pub fn of(&self, destination: i64) -> Counts {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner).get(&destination).copied().unwrap_or_default()
    }

    /// Forgets those that are no more.
    pub fn keep(&self, there: impl Fn(i64) -> bool) {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner).retain(|number, _| there(*number));
    }
}
