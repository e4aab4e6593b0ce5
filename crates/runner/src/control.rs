//! What an execution has in its hand: questions to the user, progress, and the wish that it stop.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use errand_core::credential::AuthFailure;
use errand_core::run::{LeaseToken, Question};
use errand_core::{Error, ErrorCode, RunId, SessionId};
use serde_json::Value;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::activity::{Activities, Progress};
use crate::credential::{Credential, Safe, SecretFilter};
use crate::report::{Report, Reports, What};
use crate::transport::Shelf;

/// Questions that one execution may ask.
const MAX_QUESTIONS: usize = 1000;

/// Why an agent is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The user cancels.
    Canceled,
    /// A deadline has passed.
    Timeout,
    /// A user has ended the session.
    SessionEnded,
}

impl StopReason {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Canceled => "canceled",
            Self::Timeout => "timeout",
            Self::SessionEnded => "session_ended",
        }
    }

    /// What a dispatcher says. A word that only a newer one has still stops the agent.
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "timeout" => Self::Timeout,
            "session_ended" => Self::SessionEnded,
            _ => Self::Canceled,
        }
    }
}

/// The wish that an agent stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Why.
    pub reason: StopReason,
    /// How long the agent may take, all in all; then its execution is dropped and its session torn down.
    pub grace: Duration,
    /// When that is.
    pub deadline: Instant,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The agent is to stop.
    #[error("the run is to stop: {}", .0.reason.as_str())]
    Stopped(Stop),
    /// The agent has asked something else meanwhile, which gives up the open question.
    #[error("another question was asked")]
    Superseded,
    /// The question breaks a limit, or its id was used before in this run. It was not asked.
    #[error(transparent)]
    Invalid(Error),
}

/// Where an execution stands. Grows only.
pub(crate) mod phase {
    pub(crate) const RUNNING: u8 = 0;
    /// The agent was asked to stop.
    pub(crate) const STOPPING: u8 = 1;
    /// The execution is to be dropped.
    pub(crate) const ABORTING: u8 = 2;
    /// It has ended or was dropped.
    pub(crate) const DONE: u8 = 3;
}

/// Why an execution is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Abort {
    /// The agent has not stopped within its grace.
    GracePassed,
    /// The run, or the session, is no longer ours: there is nothing to report.
    Disowned,
}

/// One execution of a run under a lease, as engine and agent share it.
pub(crate) struct Execution {
    pub(crate) run_id: RunId,
    pub(crate) token: LeaseToken,
    pub(crate) session_id: SessionId,
    pub(crate) safe: Safe,
    phase: AtomicU8,
    moved: Notify,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: Option<Stop>,
    abort: Option<Abort>,
    /// The ids of all questions so far.
    asked: Vec<String>,
    answered: Vec<String>,
    open: Option<Open>,
    progress: Option<Progress>,
}

struct Open {
    id: String,
    answer: oneshot::Sender<Result<Value, Unanswered>>,
}

impl Execution {
    pub(crate) fn new(run_id: RunId, token: LeaseToken, session_id: SessionId, safe: Safe) -> Self {
        let phase = AtomicU8::new(phase::RUNNING);
        Self { run_id, token, session_id, safe, phase, moved: Notify::new(), shared: Mutex::default() }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advance(&self, to: u8) {
        if self.phase.fetch_max(to, Ordering::AcqRel) < to {
            self.moved.notify_waiters();
        }
    }

    /// Waits until the execution has come to this phase.
    pub(crate) async fn reached(&self, wanted: u8) {
        loop {
            // Made before the look, so that no change between the two is missed.
            let moved = self.moved.notified();
            if self.phase.load(Ordering::Acquire) >= wanted {
                return;
            }
            moved.await;
        }
    }

    /// Asks the agent to stop. True the first time.
    pub(crate) fn ask_to_stop(&self, stop: Stop) -> bool {
        let mut shared = self.shared();
        if shared.stop.is_some() {
            return false;
        }
        shared.stop = Some(stop);
        if let Some(open) = shared.open.take() {
            let _ = open.answer.send(Err(Unanswered::Stopped(stop)));
        }
        drop(shared);
        self.advance(phase::STOPPING);
        true
    }

    /// Has the execution dropped. The first reason stays.
    pub(crate) fn abort(&self, why: Abort) {
        self.shared().abort.get_or_insert(why);
        self.advance(phase::ABORTING);
    }

    pub(crate) fn aborted(&self) -> Option<Abort> {
        self.shared().abort
    }

    pub(crate) fn done(&self) {
        self.advance(phase::DONE);
    }

    /// Hands the user's answer to the question that waits. The first answer wins; a repetition is answered as the
    /// first was.
    pub(crate) fn answer(&self, interaction_id: &str, value: Value) -> bool {
        let mut shared = self.shared();
        if shared.answered.iter().any(|id| id == interaction_id) {
            return true;
        }
        let Some(open) = shared.open.take_if(|open| open.id == interaction_id) else { return false };
        // An agent that no longer waits has taken nothing.
        let taken = open.answer.send(Ok(value)).is_ok();
        if taken {
            shared.answered.push(open.id);
        }
        taken
    }

    /// Opens a question; an open one is given up.
    fn open(&self, id: &str) -> Result<oneshot::Receiver<Result<Value, Unanswered>>, Unanswered> {
        let invalid = |what: &str| Unanswered::Invalid(ErrorCode::INTERACTION_INVALID.with(what).at("interaction.id"));
        let mut shared = self.shared();
        if let Some(stop) = shared.stop {
            return Err(Unanswered::Stopped(stop));
        }
        if shared.asked.iter().any(|asked| asked == id) {
            return Err(invalid("id was used before in this run"));
        }
        if shared.asked.len() == MAX_QUESTIONS {
            return Err(invalid(&format!("a run may ask {MAX_QUESTIONS} questions")));
        }
        shared.asked.push(id.to_owned());
        let (answer, receiver) = oneshot::channel();
        if let Some(superseded) = shared.open.replace(Open { id: id.to_owned(), answer }) {
            let _ = superseded.answer.send(Err(Unanswered::Superseded));
        }
        Ok(receiver)
    }

    /// Closes a question that was answered here.
    fn close(&self, id: &str) {
        self.shared().open.take_if(|open| open.id == id);
    }

    /// Keeps the newest progress. True where none was waiting to be told.
    fn keep(&self, newer: Progress) -> bool {
        match &mut self.shared().progress {
            Some(kept) => {
                kept.merge(newer);
                false
            }
            none => {
                *none = Some(newer);
                true
            }
        }
    }

    /// What is to be told now.
    pub(crate) fn take_progress(&self) -> Option<Progress> {
        self.shared().progress.take()
    }
}

/// An execution's line to Errand. Cheap to clone; without effect when the execution has ended.
#[derive(Clone)]
pub struct Control {
    pub(crate) execution: Arc<Execution>,
    pub(crate) reports: Reports,
    pub(crate) activities: Activities,
    pub(crate) shelf: Shelf,
}

impl Control {
    /// Asks the user and waits for the answer: an object of field name -> text. The run is `interaction_required`
    /// meanwhile, and fails where nobody answers in time. A question without an id gets one. One question is open at a
    /// time: a second one gives up the first.
    ///
    /// A question of type `mfa` with one field of type `code` is answered by the run's credential, where that makes
    /// codes: nobody is asked, and the run stays `running`. Where the source has refused three such codes a person is.
    ///
    /// # Errors
    /// Where the run is to stop, another question was asked, or this one is invalid.
    pub async fn ask(&self, mut question: Question) -> Result<Value, Unanswered> {
        if question.id.is_empty() {
            question.id = Uuid::now_v7().to_string();
        }
        question.check().map_err(Unanswered::Invalid)?;
        let mut answer = self.execution.open(&question.id)?;
        if self.execution.safe.may_answer(&question) {
            let code = tokio::select! {
                biased;
                ended = &mut answer => return ended.unwrap_or(Err(Unanswered::Superseded)),
                code = self.totp() => code,
            };
            if let (Ok(code), [field]) = (code, question.fields.as_slice()) {
                self.execution.close(&question.id);
                self.alive();
                let answer =
                    serde_json::Map::from_iter([(field.name.clone(), Value::String(code.as_str().to_owned()))]);
                return Ok(Value::Object(answer));
            }
        }
        self.reports.push(Report::of(&self.execution, What::Asks(self.without_secrets(question))));
        // The sender goes only with the execution, and this future with it.
        answer.await.unwrap_or(Err(Unanswered::Superseded))
    }

    /// What people are asked is kept and told.
    fn without_secrets(&self, mut question: Question) -> Question {
        let filter = self.execution.safe.filter();
        question.message = filter.clean(&question.message);
        for field in &mut question.fields {
            field.label = filter.clean(&field.label);
            field.options.iter_mut().for_each(|option| *option = filter.clean(option));
        }
        question
    }

    /// The run's credential, for the source that it works on. The vault seals it for this lease alone.
    ///
    /// # Errors
    /// `auth`/`auth_unsupported` where the run names none; `request`/`credential_not_found` where it is gone;
    /// `request`/`forbidden` where the run is no longer this runner's; `api`/`unavailable` where the vault stays away. End
    /// the run with it.
    pub async fn credential(&self) -> Result<Credential, Error> {
        self.execution.safe.credential(self.execution.run_id, self.execution.token).await
    }

    /// A one-time code of the run's credential, never the same one twice: the second time it waits for the next, half
    /// a minute at most.
    ///
    /// # Errors
    /// `auth`/`auth_unsupported` where there is no credential that makes codes; else as [`Self::credential`].
    pub async fn totp(&self) -> Result<Zeroizing<String>, Error> {
        let credential = self.credential().await?;
        self.execution.safe.code(&credential).await
    }

    /// The source has taken the credential: it is verified. Sent in the background; the run's end waits for it.
    pub fn auth_ok(&self) {
        self.execution.safe.report(self.execution.run_id, self.execution.token, None);
    }

    /// The source has refused the credential: it is invalid. A run that fails with `auth`/`auth_invalid` or
    /// `auth`/`auth_locked` says so by itself.
    pub fn auth_failed(&self, failure: AuthFailure) {
        self.execution.safe.report(self.execution.run_id, self.execution.token, Some(failure));
    }

    /// Takes the secrets of this run out of what a program says, for logs and the like. What goes through this
    /// [`Control`] has gone through it.
    #[must_use]
    pub fn secret_filter(&self) -> SecretFilter {
        self.execution.safe.filter().clone()
    }

    /// Shows people where the run stands, and is a sign of life. Lossy: about ten a second are sent, always the
    /// newest. `message` at most 1 KiB, `step` at most 256 bytes, `percent` at most 100; beyond, they are cut.
    pub fn progress(&self, message: impl Into<String>, step: impl Into<String>, percent: Option<u8>) {
        let filter = self.execution.safe.filter();
        self.tell(Progress::new(filter.clean(&message.into()), filter.clean(&step.into()), percent));
    }

    /// A sign of life with nothing to show: it moves the run's inactivity deadline. For what the *agent* does, never
    /// on a timer: an agent that is stuck must time out.
    pub fn alive(&self) {
        self.tell(Progress::new(String::new(), String::new(), None));
    }

    fn tell(&self, progress: Progress) {
        if self.execution.keep(progress) {
            self.activities.push(Arc::clone(&self.execution));
        }
    }

    /// Resolves when the agent is to stop. After [`Stop::grace`] the execution is dropped.
    pub async fn stop(&self) -> Stop {
        self.execution.reached(phase::STOPPING).await;
        match self.stopping() {
            Some(stop) => stop,
            // The execution ends without a wish to stop, and this future with it.
            None => std::future::pending().await,
        }
    }

    /// Whether, and why, the agent is to stop.
    #[must_use]
    pub fn stopping(&self) -> Option<Stop> {
        self.execution.shared().stop
    }

    /// The run.
    #[must_use]
    pub fn run_id(&self) -> RunId {
        self.execution.run_id
    }
}

#[cfg(test)]
mod tests {
    use errand_core::run::InteractionField;
    use serde_json::json;

    use super::*;

    fn question(id: &str) -> Question {
        let code =
            InteractionField { name: "code".into(), r#type: "code".into(), label: String::new(), options: vec![] };
        Question { id: id.into(), r#type: "mfa".into(), message: "The code?".into(), fields: vec![code] }
    }

    fn control() -> (Control, crate::report::Waiting) {
        let (reports, waiting) = Reports::new();
        let activities = Activities::new().0;
        let (run_id, session_id) = (RunId::from_uuid(Uuid::now_v7()), SessionId::from_uuid(Uuid::now_v7()));
        let execution = Arc::new(Execution::new(run_id, 1, session_id, Safe::new(None, None)));
        (Control { execution, reports, activities, shelf: Shelf::default() }, waiting)
    }

    #[tokio::test]
    async fn the_first_answer_wins_and_its_repetition_is_taken_too() {
        let (control, _waiting) = control();
        let asking = tokio::spawn({
            let control = control.clone();
            async move { control.ask(question("q1")).await }
        });
        while control.execution.shared().open.is_none() {
            tokio::task::yield_now().await;
        }
        assert!(!control.execution.answer("q2", json!({})), "no such question");
        assert!(control.execution.answer("q1", json!({"code": "1"})));
        assert!(control.execution.answer("q1", json!({"code": "2"})));
        assert_eq!(asking.await.unwrap(), Ok(json!({"code": "1"})));
        let again = control.ask(question("q1")).await;
        assert!(matches!(again, Err(Unanswered::Invalid(_))), "a late repetition must not answer a later question");
    }

    #[tokio::test]
    async fn a_question_ends_with_a_stop_or_with_the_next_question() {
        let (control, _waiting) = control();
        let mut first = Box::pin(control.ask(question("q1")));
        assert!(futures::poll!(&mut first).is_pending());
        let mut second = Box::pin(control.ask(question("")));
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(first.await, Err(Unanswered::Superseded));
        assert!(!control.execution.answer("q1", json!({})), "given up");
        let grace = Duration::from_secs(1);
        let stop = Stop { reason: StopReason::Canceled, grace, deadline: Instant::now() + grace };
        assert!(control.execution.ask_to_stop(stop));
        assert!(!control.execution.ask_to_stop(stop), "only once");
        assert_eq!(second.await, Err(Unanswered::Stopped(stop)));
        assert_eq!(control.ask(question("q3")).await, Err(Unanswered::Stopped(stop)));
        assert_eq!(control.stop().await, stop);
    }

    #[tokio::test]
    async fn an_answer_to_an_agent_that_no_longer_waits_is_not_taken() {
        let (control, _waiting) = control();
        let mut asking = Box::pin(control.ask(question("q1")));
        assert!(futures::poll!(&mut asking).is_pending());
        drop(asking);
        assert!(!control.execution.answer("q1", json!({})));
    }

    #[tokio::test]
    async fn an_invalid_question_is_not_asked() {
        let (control, mut waiting) = control();
        let mut invalid = question("q1");
        invalid.fields.clear();
        assert!(matches!(control.ask(invalid).await, Err(Unanswered::Invalid(_))));
        assert!(waiting.try_next().is_none());
    }
}
