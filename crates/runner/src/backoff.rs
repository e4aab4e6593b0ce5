//! Pauses between attempts: exponential, with jitter, bounded.

use std::time::Duration;

use uuid::Uuid;

/// How long to wait before the next attempt.
pub(crate) struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, next: least }
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.least;
    }

    /// Waits, and doubles the next wait.
    pub(crate) async fn pause(&mut self) {
        let pause = self.next.mul_f64(jitter());
        self.next = (self.next * 2).min(self.most);
        tokio::time::sleep(pause).await;
    }
}

/// 0.5..1: so that runners which lost the same service do not return in step. A UUID's random part is at hand.
fn jitter() -> f64 {
    let [.., last] = Uuid::now_v7().into_bytes();
    0.5 + f64::from(last) / 512.0
}
