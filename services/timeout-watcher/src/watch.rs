//! What the tasks of the watcher share: the timers, what to do next, and what is told of it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use errand_core::{RunId, Timestamp};
use errand_kit::metrics;
use hdrhistogram::Histogram;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::timers::{ArmedRun, Expiry, Timers};

/// Expiries in one request.
pub const MAX_BATCH: usize = 500;

/// A sign of life does not travel for so long: what is further from now was stamped by a wrong clock.
const BELIEVABLE_MS: u64 = 60_000;

/// How long to let the dispatcher alone when it is away or fails, at first and at most.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// Longest sleep: the wall clock may have been set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Lateness beyond a day is counted as a day.
const MOST_LATE_MS: u64 = 24 * 3600 * 1000;

/// What time it is.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// How a request to the dispatcher ended.
#[derive(Debug)]
pub enum Answer {
    /// What is armed now, of the runs that did not move.
    Answered(Vec<ArmedRun>),
    /// Nobody was there.
    Away,
    /// It did not answer, or answered with an error.
    Failed,
}

/// What is told of the watcher.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Runs with a deadline armed.
    pub armed: usize,
    /// Of these: the dispatcher is being asked.
    pub asked: usize,
    /// When to look next.
    pub next: Option<Timestamp>,
    /// The counters.
    pub counts: Counts,
    /// From a deadline to the first time the dispatcher was asked: count, p50, p99, max in ms.
    pub lateness: [u64; 4],
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Expiries that the dispatcher answered.
    pub answered: u64,
    /// Of these: it did not see them as passed.
    pub disagreed: u64,
    /// Expiries asked in vain.
    pub unanswered: u64,
    /// Whole snapshots loaded.
    pub snapshots: u64,
    /// When the last one was.
    pub last_snapshot: Option<Timestamp>,
    /// What could not be read.
    pub unreadable: u64,
}

#[derive(Debug)]
struct Inner {
    timers: Timers,
    counts: Counts,
    lateness: Histogram<u64>,
    /// The dispatcher is let alone until then.
    pause_until: Instant,
    pause: Duration,
}

/// The state of a watcher. Every method is short: the lock is never held across an await.
#[derive(Debug)]
pub struct Watch<C = fn() -> Timestamp> {
    inner: Mutex<Inner>,
    clock: C,
    sooner: Notify,
    stale: Notify,
}

impl Watch {
    /// Nothing armed, by this machine's clock.
    ///
    /// # Errors
    /// None in fact: the histogram's bounds are constants.
    pub fn new() -> anyhow::Result<Self> {
        Self::with_clock(now)
    }
}

impl<C: Fn() -> Timestamp> Watch<C> {
    /// Nothing armed.
    ///
    /// # Errors
    /// None in fact: the histogram's bounds are constants.
    pub fn with_clock(clock: C) -> anyhow::Result<Self> {
        let inner = Inner {
            timers: Timers::default(),
            counts: Counts::default(),
            lateness: Histogram::new_with_bounds(1, MOST_LATE_MS, 2)?,
            pause_until: Instant::now(),
            pause: Duration::ZERO,
        };
        Ok(Self { inner: Mutex::new(inner), clock, sooner: Notify::new(), stale: Notify::new() })
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere ends the process; what it left is still a table of timers.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These runs have this armed.
    pub fn arm(&self, runs: &[ArmedRun]) {
        let mut inner = self.lock();
        let before = inner.timers.next();
        for run in runs {
            inner.timers.arm(run.run_id, run.version, &run.deadlines);
        }
        if inner.timers.next() < before || before.is_none() {
            self.sooner.notify_one();
        }
    }

    /// A sign of life of a run's agent, stamped by its runner.
    pub fn touch(&self, run_id: RunId, stamped: Timestamp, now: Timestamp) {
        let off = now.millis_since(stamped).max(stamped.millis_since(now));
        let at = if off > BELIEVABLE_MS { now } else { stamped.min(now) };
        self.lock().timers.touch(run_id, at);
    }

    /// Something may have been missed: a snapshot is needed.
    pub fn note_stale(&self) {
        self.stale.notify_one();
    }

    /// Waits until a snapshot is needed.
    pub async fn stale(&self) {
        self.stale.notified().await;
    }

    /// Something could not be read.
    pub fn note_unreadable(&self) {
        self.lock().counts.unreadable += 1;
    }

    /// A whole snapshot was loaded.
    pub fn note_snapshot(&self, now: Timestamp) {
        let counts = &mut self.lock().counts;
        counts.snapshots += 1;
        counts.last_snapshot = Some(now);
    }

    /// Waits until something may be due and the dispatcher may be asked.
    pub async fn wait(&self) {
        let sleep = {
            let inner = self.lock();
            let until_due =
                inner.timers.next().map_or(LONGEST_SLEEP, |at| Duration::from_millis(at.millis_since(self.now())));
            until_due.max(inner.pause_until.saturating_duration_since(Instant::now())).min(LONGEST_SLEEP)
        };
        if sleep.is_zero() {
            return;
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(sleep) => {}
            () = self.sooner.notified() => {}
        }
    }

    /// What is to be asked now, in requests: those that failed before go in smaller and smaller ones, so that one
    /// that the dispatcher cannot handle ends up alone.
    pub fn due(&self, now: Timestamp) -> Vec<Vec<Expiry>> {
        let mut inner = self.lock();
        if inner.pause_until > Instant::now() {
            return Vec::new();
        }
        let due = inner.timers.due(now, MAX_BATCH);
        for expiry in due.iter().filter(|expiry| !expiry.repeated) {
            let late = now.millis_since(expiry.at);
            inner.lateness.saturating_record(late);
            metrics().expired(Duration::from_millis(late));
        }
        drop(inner);
        let (fresh, mut failed): (Vec<_>, Vec<_>) = due.into_iter().partition(|expiry| expiry.failed == 0);
        failed.sort_by_key(|expiry| expiry.failed);
        let mut requests = Vec::new();
        if !fresh.is_empty() {
            requests.push(fresh);
        }
        while let Some(first) = failed.first() {
            let size = (MAX_BATCH >> (2 * u32::from(first.failed.min(4)))).clamp(1, failed.len());
            requests.push(failed.drain(..size).collect());
        }
        requests
    }

    /// How a request ended that was sent at `sent`.
    pub fn settle(&self, asked: &[Expiry], answer: Answer, sent: Instant, now: Timestamp) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        match answer {
            Answer::Answered(mut armed) => {
                armed.sort_unstable_by_key(|armed| armed.run_id);
                for expiry in asked {
                    let found = armed.binary_search_by_key(&expiry.run_id, |armed| armed.run_id);
                    let armed = found.ok().map(|place| &armed[place]);
                    inner.counts.disagreed += u64::from(armed.is_some());
                    inner.timers.settle(expiry, armed, now);
                }
                inner.counts.answered += asked.len() as u64;
                (inner.pause, inner.pause_until) = (Duration::ZERO, sent);
            }
            Answer::Away | Answer::Failed => {
                for expiry in asked {
                    match answer {
                        Answer::Away => inner.timers.put_back(expiry),
                        _ => inner.timers.postpone(expiry, now),
                    }
                }
                inner.counts.unanswered += asked.len() as u64;
                // Requests that were under way together fail together: that is one failure.
                if sent >= inner.pause_until {
                    inner.pause = (inner.pause * 2).clamp(PAUSE_FIRST, PAUSE_MOST);
                    inner.pause_until = Instant::now() + inner.pause;
                }
            }
        }
        drop(guard);
        self.sooner.notify_one();
    }

    /// What is told of the watcher.
    #[must_use]
    pub fn status(&self) -> Status {
        let inner = self.lock();
        let late = &inner.lateness;
        Status {
            armed: inner.timers.len(),
            asked: inner.timers.asked(),
            next: inner.timers.next(),
            counts: inner.counts,
            lateness: [late.len(), late.value_at_quantile(0.5), late.value_at_quantile(0.99), late.max()],
        }
    }
}

#[cfg(test)]
mod tests {
    use errand_core::run::{Deadline, DeadlineKind};
    use uuid::Uuid;

    use super::*;

    fn armed(number: u128, at: Timestamp) -> ArmedRun {
        let run_id = RunId::from_uuid(Uuid::from_u128(number));
        ArmedRun { run_id, version: 1, deadlines: vec![Deadline { kind: DeadlineKind::Queue, at, window_ms: None }] }
    }

    fn sizes(requests: &[Vec<Expiry>]) -> Vec<usize> {
        requests.iter().map(Vec::len).collect()
    }

    #[test]
    fn what_fails_goes_in_smaller_requests_until_it_is_alone() {
        let watch = Watch::new().unwrap();
        let mut now = now();
        watch.arm(&(0..1_000).map(|number| armed(number, now)).collect::<Vec<_>>());
        let mut seen = Vec::new();
        for _ in 0..6 {
            let requests = watch.due(now);
            seen.push(requests[0].len());
            let sent = Instant::now();
            for request in &requests {
                watch.settle(request, Answer::Failed, sent, now);
            }
            watch.lock().pause_until = sent;
            // All of the 1000 come to be due again, 500 at a time.
            for request in watch.due(now) {
                watch.settle(&request, Answer::Failed, sent, now);
            }
            watch.lock().pause_until = sent;
            now = now.plus_millis(60_000);
        }
        assert_eq!(seen, [500, 125, 31, 7, 1, 1]);
        assert_eq!(watch.status().armed, 1_000);
    }

    #[test]
    fn a_dispatcher_that_is_away_is_let_alone_for_a_while_and_nothing_is_lost() {
        let watch = Watch::new().unwrap();
        let now = now();
        watch.arm(&[armed(1, now), armed(2, now)]);
        let requests = watch.due(now);
        assert_eq!(sizes(&requests), [2]);
        watch.settle(&requests[0], Answer::Away, Instant::now(), now);
        assert_eq!(sizes(&watch.due(now)), [0; 0], "the pause");
        watch.lock().pause_until = Instant::now();
        let again = watch.due(now);
        assert_eq!(sizes(&again), [2]);
        watch.settle(&again[0], Answer::Answered(vec![armed(2, now.plus_millis(5))]), Instant::now(), now);
        let status = watch.status();
        assert_eq!((status.armed, status.counts.answered, status.counts.disagreed), (1, 2, 1));
        assert_eq!(status.lateness[0], 2, "counted when it was asked first");
    }

    #[test]
    fn a_wrong_clock_neither_kills_a_run_nor_keeps_it() {
        for stamped in [-3_600_000i64, 3_600_000, 20_000] {
            let watch = Watch::new().unwrap();
            let now = now();
            let run_id = RunId::from_uuid(Uuid::from_u128(1));
            let deadline = Deadline { kind: DeadlineKind::Inactivity, at: now.plus_millis(10), window_ms: Some(1_000) };
            watch.arm(&[ArmedRun { run_id, version: 1, deadlines: vec![deadline] }]);
            watch.touch(run_id, now.plus_millis(stamped), now);
            assert_eq!(sizes(&watch.due(now.plus_millis(999))), [0; 0]);
            assert_eq!(sizes(&watch.due(now.plus_millis(1_000))), [1], "stamped {stamped} ms from now");
        }
    }
}
