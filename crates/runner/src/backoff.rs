//! Pauses between attempts: exponential, with jitter, bounded.

use std::time::Duration;

/// How long to wait before the next attempt.
pub(crate) struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
    jitter: u64,
}

impl Backoff {
    /// The pauses of one runner (or run) are another's only by chance: its id is random enough.
    pub(crate) fn new(least: Duration, most: Duration, id: u128) -> Self {
        Self { least, most, next: least, jitter: (id >> 64) as u64 ^ id as u64 }
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.least;
    }

    /// Waits, and doubles the next wait.
    pub(crate) async fn pause(&mut self) {
        let pause = self.next.mul_f64(self.jitter());
        self.next = (self.next * 2).min(self.most);
        tokio::time::sleep(pause).await;
    }

    /// 0.5..1: so that runners which lost the same service do not return in step.
    fn jitter(&mut self) -> f64 {
        // A step of Knuth's generator: its upper bits are good enough.
        self.jitter = self.jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        0.5 + f64::from((self.jitter >> 56) as u8) / 512.0
    }
}
