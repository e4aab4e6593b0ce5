//! Signs of life: lossy and coalesced, so that a chatty agent costs no more than a quiet one.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use crate::control::Execution;

/// The least time between two activities of one run.
const PAUSE: Duration = Duration::from_millis(100);
/// A progress message.
const MAX_MESSAGE_BYTES: usize = 1024;
/// A step's name.
const MAX_STEP_BYTES: usize = 256;
/// Runs that are told of between two rests: bounds what one runner publishes.
const BATCH: usize = 1024;

/// What an agent shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) at_ms: i64,
    pub(crate) message: String,
    pub(crate) step: String,
    pub(crate) percent: Option<u8>,
}

impl Progress {
    pub(crate) fn new(message: String, step: String, percent: Option<u8>) -> Self {
        Self {
            at_ms: now_ms(),
            message: cut(message, MAX_MESSAGE_BYTES),
            step: cut(step, MAX_STEP_BYTES),
            percent: percent.map(|percent| percent.min(100)),
        }
    }

    /// Newer beats older, but a bare sign of life hides nothing that was to be shown.
    pub(crate) fn merge(&mut self, newer: Self) {
        if newer.message.is_empty() && newer.step.is_empty() && newer.percent.is_none() {
            self.at_ms = newer.at_ms;
        } else {
            *self = newer;
        }
    }
}

fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit - 3));
        text.push('…');
    }
    text
}

fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

/// Executions that have something to tell. Unbounded, yet each execution waits in it at most once.
#[derive(Clone)]
pub(crate) struct Activities(mpsc::UnboundedSender<Arc<Execution>>);

impl Activities {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Arc<Execution>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    pub(crate) fn push(&self, execution: Arc<Execution>) {
        // Nobody listens where the runner has gone: lossy.
        let _ = self.0.send(execution);
    }
}

/// Publishes what waits, then rests, so that no run tells more often than every [`PAUSE`]. Ends when nobody can
/// push any more.
pub(crate) async fn publish<F: Future<Output = ()>>(
    mut waiting: mpsc::UnboundedReceiver<Arc<Execution>>,
    send: impl Fn(Arc<Execution>, Progress) -> F,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        for execution in batch.drain(..) {
            if let Some(progress) = execution.take_progress() {
                send(execution, progress).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use errand_core::{RunId, SessionId};
    use uuid::Uuid;

    use super::*;
    use crate::control::Control;
    use crate::report::Reports;

    #[tokio::test(start_paused = true)]
    async fn many_become_ten_a_second_and_the_newest_is_sent() {
        let (activities, waiting) = Activities::new();
        let (run_id, session_id) = (RunId::from_uuid(Uuid::now_v7()), SessionId::from_uuid(Uuid::now_v7()));
        let execution = Arc::new(Execution::new(run_id, 1, session_id, crate::credential::Safe::new(None, None)));
        let control =
            Control { execution, reports: Reports::new().0, activities, shelf: crate::transport::Shelf::default() };
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&told);
        let publisher = tokio::spawn(publish(waiting, move |_, progress| {
            seen.lock().unwrap().push(progress.message);
            async {}
        }));
        for count in 0..1000 {
            control.progress(count.to_string(), "", None);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        control.alive();
        drop(control);
        publisher.await.unwrap();
        let told = told.lock().unwrap();
        assert!((9..=12).contains(&told.len()), "{told:?}");
        assert_eq!(told.last().unwrap(), "999", "a bare sign of life must not hide it");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let progress = Progress::new("é".repeat(2000), "s".repeat(300), Some(250));
        assert!(progress.message.len() <= MAX_MESSAGE_BYTES && progress.message.ends_with('…'));
        assert!(progress.step.len() <= MAX_STEP_BYTES);
        assert_eq!(progress.percent, Some(100));
    }
}
