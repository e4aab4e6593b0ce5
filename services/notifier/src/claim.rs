//! Until when this notifier may send: its claims in the store end, by the clock that no one can set.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The end of this process's claims. A worker looks at it before each attempt.
#[derive(Debug)]
pub struct ClaimEnd {
    zero: Instant,
    /// Milliseconds behind `zero`.
    end: AtomicU64,
}

impl Default for ClaimEnd {
    fn default() -> Self {
        Self { zero: Instant::now(), end: AtomicU64::new(0) }
    }
}

impl ClaimEnd {
    /// Claims that were asked for at `asked` last so long.
    pub fn extend(&self, asked: Instant, lasting: Duration) {
        let end = (asked + lasting).saturating_duration_since(self.zero).as_millis();
        self.end.store(u64::try_from(end).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Whether they last.
    #[must_use]
    pub fn lasts(&self) -> bool {
        self.zero.elapsed().as_millis() < u128::from(self.end.load(Ordering::Acquire))
    }
}
