//! Who asks too often is told so: a runner that asks for one credential again and again is broken, or guesses.

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use errand_core::{Error, ErrorCode};
use lru::LruCache;

/// Askers that are remembered.
const ASKERS: NonZeroUsize = NonZeroUsize::new(50_000).expect("not zero");

/// So many in a window of time, for each asker.
#[derive(Debug)]
pub struct Limiter<K: Hash + Eq> {
    most: u32,
    window: Duration,
    seen: Mutex<LruCache<K, (Instant, u32)>>,
}

impl<K: Hash + Eq> Limiter<K> {
    /// At most so many in so long.
    #[must_use]
    pub fn new(most: u32, window: Duration) -> Self {
        Self { most, window, seen: Mutex::new(LruCache::new(ASKERS)) }
    }

    /// Counts one.
    ///
    /// # Errors
    /// `rate_limit`/`rate_limit_exceeded`.
    pub fn admit(&self, asker: K, now: Instant) -> Result<(), Error> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = seen.get_or_insert_mut(asker, || (now, 0));
        if now.saturating_duration_since(*since) >= self.window {
            (*since, *count) = (now, 0);
        }
        if *count >= self.most {
            let message = format!("at most {} of these are answered in {} s", self.most, self.window.as_secs());
            return Err(ErrorCode::RATE_LIMIT_EXCEEDED.with(message));
        }
        *count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_asker_has_so_many_in_a_window() {
        let (limiter, start) = (Limiter::new(2, Duration::from_secs(60)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(limiter.admit("a", at(0)).is_ok() && limiter.admit("a", at(59)).is_ok());
        assert_eq!(limiter.admit("a", at(59)).unwrap_err().code, ErrorCode::RATE_LIMIT_EXCEEDED);
        assert!(limiter.admit("b", at(59)).is_ok() && limiter.admit("a", at(60)).is_ok());
    }
}
