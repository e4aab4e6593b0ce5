//! Reports to the dispatcher: those of a run in order, batched by what waits, repeated until answered.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use errand_core::run::{LeaseToken, Question};
use errand_core::{Error, RunId, RunnerId, SessionId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::backoff::Backoff;
use crate::control::Execution;

/// Reports in one request.
const MAX_BATCH: usize = 256;
/// Requests under way at once: while one waits for its answer, what has ended since needs not.
const AT_ONCE: usize = 2;
/// What the reports of one request may hold together, unless one alone is larger: below the broker's `max_payload`.
const MAX_BATCH_BYTES: usize = 640 * 1024;

/// What a runner tells the dispatcher of a run.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) run_id: RunId,
    pub(crate) token: LeaseToken,
    pub(crate) session_id: SessionId,
    pub(crate) what: What,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    Asks(Question),
    Finished(Bytes),
    Failed(Vec<Error>),
    Stopped,
}

impl Report {
    pub(crate) fn of(execution: &Execution, what: What) -> Self {
        Self { run_id: execution.run_id, token: execution.token, session_id: execution.session_id, what }
    }

    /// Whether the run is over with it.
    pub(crate) fn is_last(&self) -> bool {
        !matches!(self.what, What::Asks(_))
    }

    /// About what it holds on the wire.
    fn size(&self) -> usize {
        const ENVELOPE: usize = 128;
        ENVELOPE
            + match &self.what {
                What::Finished(output) => output.len(),
                What::Failed(errors) => errors.iter().map(|error| ENVELOPE + error.message.len()).sum(),
                What::Asks(question) => {
                    let fields = question.fields.iter().map(|field| {
                        let options: usize = field.options.iter().map(|option| option.len() + 4).sum();
                        options + field.name.len() + field.label.len() + 32
                    });
                    question.message.len() + fields.sum::<usize>()
                }
                What::Stopped => 0,
            }
    }
}

/// Where reports are put. Unbounded, yet each execution has a bounded number of them, and gets no successor before
/// its last one is answered.
#[derive(Clone)]
pub(crate) struct Reports {
    sender: mpsc::UnboundedSender<Report>,
    unanswered: Arc<AtomicUsize>,
}

/// Reports that have not been answered.
pub(crate) struct Waiting {
    receiver: mpsc::UnboundedReceiver<Report>,
    unanswered: Arc<AtomicUsize>,
}

impl Reports {
    pub(crate) fn new() -> (Self, Waiting) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let unanswered = Arc::new(AtomicUsize::new(0));
        (Self { sender, unanswered: Arc::clone(&unanswered) }, Waiting { receiver, unanswered })
    }

    pub(crate) fn push(&self, report: Report) {
        self.unanswered.fetch_add(1, Ordering::AcqRel);
        // The receiver goes only when the runner has gone: the pool tells the dispatcher then.
        let _ = self.sender.send(report);
    }

    /// How many have no answer yet.
    pub(crate) fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Acquire)
    }
}

#[cfg(test)]
impl Waiting {
    pub(crate) fn try_next(&mut self) -> Option<Report> {
        self.receiver.try_recv().ok()
    }
}

/// Why a batch has no answers.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// It may have them later.
    NotNow(String),
    /// It never will: something in it is not understood.
    Refused(String),
}

/// Who sends reports and hears their answers.
pub(crate) trait Desk: Send + Sync {
    /// Sends a batch; the answers in its order: accepted or not.
    fn send(&self, batch: &[Report]) -> impl Future<Output = Result<Vec<bool>, Unsent>> + Send;
    /// Hears an answer.
    fn answered(&self, report: &Report, accepted: bool);
    /// Whether the report still matters: its lease has not been given up.
    fn matters(&self, report: &Report) -> bool;
}

/// Sends what waits, a few requests at a time; all that waits at that moment goes with the next, so that the busier the
/// runner, the larger the batches. A run's reports keep their order: while one is under way, its next waits. Ends when
/// nobody can report any more and all is answered.
pub(crate) async fn send_all(mut waiting: Waiting, desk: &impl Desk, id: RunnerId) {
    let mut queue = Queue::default();
    let mut arrived = Vec::new();
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5), id.uuid().as_u128());
    let mut under_way = FuturesUnordered::new();
    // Reports that go one by one, to find the one that the dispatcher does not understand.
    let mut singly = 0usize;
    let mut open = true;
    loop {
        let (at_once, most) = if singly > 0 { (1, 1) } else { (AT_ONCE, MAX_BATCH) };
        while under_way.len() < at_once
            && let Some(batch) = queue.next_batch(most)
        {
            under_way.push(async move { (desk.send(&batch).await, batch) });
        }
        let (answer, batch) = tokio::select! {
            biased;
            Some(answered) = under_way.next() => answered,
            count = waiting.receiver.recv_many(&mut arrived, MAX_BATCH), if open => {
                open = count > 0;
                queue.waiting.extend(arrived.drain(..));
                continue;
            }
            else => return,
        };
        queue.back(&batch);
        match answer {
            Ok(answers) => {
                backoff.reset();
                singly = singly.saturating_sub(answers.len());
                waiting.settle(&batch, answers, desk);
            }
            Err(Unsent::Refused(error)) if batch.len() == 1 => {
                tracing::error!(run = %batch[0].run_id, error, "the dispatcher refuses this report; the run is dropped");
                singly = singly.saturating_sub(1);
                waiting.settle(&batch, vec![false], desk);
            }
            Err(Unsent::Refused(error)) => {
                tracing::warn!(reports = batch.len(), error, "the dispatcher refuses a batch; sending one by one");
                singly += batch.len();
                queue.again(batch);
            }
            Err(Unsent::NotNow(error)) => {
                queue.again(batch);
                tracing::warn!(reports = queue.waiting.len(), error, "the dispatcher has not answered; trying again");
                backoff.pause().await;
                let before = queue.waiting.len();
                queue.waiting.retain(|report| desk.matters(report) && !errand_core::mutated!(ReportOnce));
                waiting.unanswered.fetch_sub(before - queue.waiting.len(), Ordering::AcqRel);
            }
        }
    }
}

impl Waiting {
    fn settle(&self, batch: &[Report], answers: Vec<bool>, desk: &impl Desk) {
        for (report, accepted) in batch.iter().zip(answers) {
            desk.answered(report, accepted);
            self.unanswered.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Reports that wait, and whose turn it is.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Report>,
    /// Runs with a report under way.
    under_way: HashSet<RunId>,
}

impl Queue {
    /// What goes in one request: the front of the queue, up to the first run that has a report under way, or the limits.
    fn next_batch(&mut self, most: usize) -> Option<Vec<Report>> {
        let mut bytes = 0;
        let fits = self.waiting.iter().take(most).take_while(|report| {
            bytes += report.size();
            bytes <= MAX_BATCH_BYTES && !self.under_way.contains(&report.run_id)
        });
        let mut count = fits.count();
        // One that is too large for any goes alone.
        if count == 0 && self.waiting.front().is_some_and(|report| !self.under_way.contains(&report.run_id)) {
            count = 1;
        }
        let batch: Vec<Report> = self.waiting.drain(..count).collect();
        self.under_way.extend(batch.iter().map(|report| report.run_id));
        (!batch.is_empty()).then_some(batch)
    }

    /// A batch is under way no more.
    fn back(&mut self, batch: &[Report]) {
        for report in batch {
            self.under_way.remove(&report.run_id);
        }
    }

    /// A batch has to be sent again: it goes before what came later.
    fn again(&mut self, batch: Vec<Report>) {
        batch.into_iter().rev().for_each(|report| self.waiting.push_front(report));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use uuid::Uuid;

    use super::*;

    #[derive(Default)]
    struct Fake {
        batches: Mutex<Vec<usize>>,
        answers: Mutex<Vec<(LeaseToken, bool)>>,
        failures: AtomicUsize,
        given_up: Option<LeaseToken>,
        poison: Option<LeaseToken>,
    }

    impl Desk for Fake {
        async fn send(&self, batch: &[Report]) -> Result<Vec<bool>, Unsent> {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if self.failures.load(Ordering::Relaxed) > 0 {
                self.failures.fetch_sub(1, Ordering::Relaxed);
                return Err(Unsent::NotNow("away".into()));
            }
            if batch.iter().any(|report| self.poison == Some(report.token)) {
                return Err(Unsent::Refused("what is that".into()));
            }
            self.batches.lock().unwrap().push(batch.len());
            Ok(batch.iter().map(|report| report.token % 2 == 0).collect())
        }

        fn answered(&self, report: &Report, accepted: bool) {
            self.answers.lock().unwrap().push((report.token, accepted));
        }

        fn matters(&self, report: &Report) -> bool {
            self.given_up != Some(report.token)
        }
    }

    fn report(token: LeaseToken, output: usize) -> Report {
        Report {
            run_id: RunId::from_uuid(Uuid::now_v7()),
            token,
            session_id: SessionId::from_uuid(Uuid::now_v7()),
            what: What::Finished(vec![b'1'; output].into()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_goes_together_and_until_answered() {
        let fake = Fake { failures: AtomicUsize::new(3), given_up: Some(7), ..Fake::default() };
        let (reports, waiting) = Reports::new();
        (0..600).for_each(|token| reports.push(report(token, 1)));
        let unanswered = Arc::clone(&reports.unanswered);
        assert_eq!(reports.unanswered(), 600);
        drop(reports);
        send_all(waiting, &fake, RunnerId::from_uuid(Uuid::nil())).await;
        assert_eq!(*fake.batches.lock().unwrap(), [256, 256, 87]);
        let expected: Vec<_> = (0..600).filter(|token| *token != 7).map(|token| (token, token % 2 == 0)).collect();
        // A batch that failed is answered behind the one that was under way beside it.
        let mut answers = std::mem::take(&mut *fake.answers.lock().unwrap());
        answers.sort_unstable();
        assert_eq!(answers, expected);
        assert_eq!(unanswered.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_runs_reports_keep_their_order() {
        let fake = Fake { failures: AtomicUsize::new(1), ..Fake::default() };
        let (reports, waiting) = Reports::new();
        let first = report(1, 1);
        let second = Report { token: 2, ..first.clone() };
        let sending = async {
            reports.push(first);
            tokio::time::sleep(Duration::from_millis(1)).await;
            reports.push(report(3, 1));
            reports.push(second);
            drop(reports);
        };
        tokio::join!(send_all(waiting, &fake, RunnerId::from_uuid(Uuid::nil())), sending);
        let answers = fake.answers.lock().unwrap().iter().map(|(token, _)| *token).collect::<Vec<_>>();
        assert_eq!(answers, [3, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_stays_below_the_brokers_limit() {
        let fake = Fake::default();
        let (reports, waiting) = Reports::new();
        for (token, size) in [(0, 500), (1, 500), (2, 1), (3, 900), (4, 1)] {
            reports.push(report(token, size * 1024));
        }
        drop(reports);
        send_all(waiting, &fake, RunnerId::from_uuid(Uuid::nil())).await;
        assert_eq!(*fake.batches.lock().unwrap(), [1, 2, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_refused_holds_up_none() {
        let fake = Fake { poison: Some(2), ..Fake::default() };
        let (reports, waiting) = Reports::new();
        (0..6).map(|half| half * 2).for_each(|token| reports.push(report(token, 1)));
        drop(reports);
        send_all(waiting, &fake, RunnerId::from_uuid(Uuid::nil())).await;
        let answers = fake.answers.lock().unwrap();
        assert_eq!(*answers, [(0, true), (2, false), (4, true), (6, true), (8, true), (10, true)]);
    }
}
