//! So many requests per tenant and time.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use errand_core::{ErrorCode, Tenant};
use governor::clock::Clock;
use governor::{DefaultDirectRateLimiter, Quota};
use lru::LruCache;

use crate::answer::Failure;

/// Tenants that are counted at the same time; the one that asked longest ago is forgotten first.
const TENANTS: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");

/// Counts requests.
#[derive(Debug)]
pub struct Rate {
    quota: Option<Quota>,
    message: String,
    tenants: Mutex<LruCache<Tenant, Arc<DefaultDirectRateLimiter>>>,
}

impl Rate {
    /// So many in a window, all at once or spread over it; 0: any number.
    #[must_use]
    pub fn new(limit: u32, window: Duration) -> Self {
        let quota = NonZeroU32::new(limit)
            .and_then(|limit| Quota::with_period(window / limit.get()).map(|quota| quota.allow_burst(limit)));
        let message = format!("more than {limit} requests in {} s", window.as_secs());
        Self { quota, message, tenants: Mutex::new(LruCache::new(TENANTS)) }
    }

    /// Counts one request.
    ///
    /// # Errors
    /// `rate_limit`/`rate_limit_exceeded`, with the time to wait.
    pub fn admit(&self, tenant: &Tenant) -> Result<(), Failure> {
        let Some(quota) = self.quota else { return Ok(()) };
        let limiter = {
            let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
            match tenants.get(tenant) {
                Some(limiter) => Arc::clone(limiter),
                None => {
                    let limiter = Arc::new(DefaultDirectRateLimiter::direct(quota));
                    tenants.put(tenant.clone(), Arc::clone(&limiter));
                    limiter
                }
            }
        };
        limiter.check().map_err(|until| {
            let wait = until.wait_time_from(limiter.clock().now());
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            let error = ErrorCode::RATE_LIMIT_EXCEEDED.with(self.message.clone());
            Failure::from(error).after(u64::try_from(seconds).unwrap_or(u64::MAX))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenant_has_its_own_count() {
        let rate = Rate::new(2, Duration::from_secs(3600));
        let (one, other): (Tenant, Tenant) = ("one".parse().unwrap(), "other".parse().unwrap());
        assert!(rate.admit(&one).is_ok() && rate.admit(&one).is_ok());
        assert_eq!(rate.admit(&one).unwrap_err().error().unwrap().code, ErrorCode::RATE_LIMIT_EXCEEDED);
        assert!(rate.admit(&other).is_ok());
        let unlimited = Rate::new(0, Duration::from_secs(10));
        assert!((0..1000).all(|_| unlimited.admit(&one).is_ok()));
    }
}
