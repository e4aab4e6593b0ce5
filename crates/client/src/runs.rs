//! Runs: asking for them, reading them, and what their owner may do to them.

use std::time::Duration;

use errand_bus::trace::{Kind, Span};
use errand_core::run::{Decision, RunResult, RunStatus};
use errand_core::{CredentialId, Error, ErrorCode, RunId, SessionId, SourceId, limits};
use errand_proto::event::TaskRef;
use errand_proto::{batches, v1};
use futures::{Stream, StreamExt};
use prost::Message;
use serde_json::Value;
use uuid::Uuid;

use crate::call::{Repeat, present};
use crate::{Client, ClientError, pages};

/// A run to be asked for. Its id is chosen here, so that asking twice makes one run.
#[derive(Debug, Clone)]
pub struct NewRun {
    id: RunId,
    wire: v1::RunRequest,
}

impl NewRun {
    /// A run of this task: `task_...`, `name:<name>`, or simply its name.
    ///
    /// # Errors
    /// `request`/`input_invalid` where it can be none of these.
    pub fn of_task(task: &str) -> Result<Self, Error> {
        let task_id = task_ref(task)?;
        let id = new_run_id();
        Ok(Self { id, wire: v1::RunRequest { run_id: id.to_string(), task_id, ..Default::default() } })
    }

    /// The run that it will be.
    #[must_use]
    pub const fn id(&self) -> RunId {
        self.id
    }

    /// Chooses the id, in place of a new one: by it, the run is made once.
    #[must_use]
    pub fn with_id(mut self, id: RunId) -> Self {
        self.id = id;
        self.wire.run_id = id.to_string();
        self
    }

    /// The input.
    #[must_use]
    pub fn input(mut self, input: &Value) -> Self {
        self.wire.input = input.to_string().into();
        self
    }

    /// A note for its reader, and for filters.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.wire.metadata.insert(key.into(), value.into());
        self
    }

    /// -100..100, higher first; in the task's place.
    #[must_use]
    pub const fn priority(mut self, priority: i32) -> Self {
        self.wire.priority = Some(priority);
        self
    }

    /// Bounds the execution's whole time; in the task's place.
    #[must_use]
    pub const fn timeout_seconds(mut self, seconds: u32) -> Self {
        self.wire.timeout_seconds = Some(seconds);
        self
    }

    /// Whether a person looks at the output before the run completes; in the task's place.
    #[must_use]
    pub const fn review(mut self, review: bool) -> Self {
        self.wire.review = Some(review);
        self
    }

    /// The session that it must execute in.
    #[must_use]
    pub fn in_session(mut self, session: SessionId) -> Self {
        self.wire.session_id = session.to_string();
        self
    }

    /// The system that it works on.
    #[must_use]
    pub fn on_source(mut self, source: SourceId) -> Self {
        self.wire.source_id = source.to_string();
        self
    }

    /// Secrets for the source.
    #[must_use]
    pub fn with_credential(mut self, credential: CredentialId) -> Self {
        self.wire.credential_id = credential.to_string();
        self
    }

    /// W3C trace context of the asker.
    #[must_use]
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.wire.traceparent = traceparent.into();
        self
    }

    /// As it travels.
    #[must_use]
    pub fn into_wire(self) -> v1::RunRequest {
        self.wire
    }
}

/// A task by id or name, as it travels.
pub(crate) fn task_ref(task: &str) -> Result<String, Error> {
    let text = match task.strip_prefix("name:") {
        Some(_) => task.to_owned(),
        None if TaskRef::parse("task", task).is_ok() => task.to_owned(),
        None => format!("name:{task}"),
    };
    TaskRef::parse("task", &text).map(|_| text)
}

fn new_run_id() -> RunId {
    RunId::from_uuid(Uuid::now_v7())
}

/// The broker keeps a run request.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// The run that it will be.
    pub run_id: RunId,
    /// The same had been published before.
    pub duplicate: bool,
}

/// Which runs. Several values in one field mean any of them; several fields mean all of them.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// By status.
    pub status: Vec<RunStatus>,
    /// By result.
    pub result: Vec<RunResult>,
    /// By task id.
    pub task_id: Vec<String>,
    /// By agent.
    pub agent_id: Vec<String>,
    /// By source.
    pub source_id: Vec<String>,
    /// By session.
    pub session_id: Vec<String>,
    /// By credential.
    pub credential_id: Vec<String>,
    /// Made after, in milliseconds since the Unix epoch.
    pub created_after_ms: Option<i64>,
    /// Made before, in milliseconds since the Unix epoch.
    pub created_before_ms: Option<i64>,
    /// All of these notes.
    pub metadata: Vec<(String, String)>,
}

/// What became of waiting for a run.
#[derive(Debug, Clone)]
pub enum Wait {
    /// It is final.
    Final(Box<v1::Run>),
    /// The time is over; the run as it stands.
    TimedOut(Box<v1::Run>),
}

impl Wait {
    /// The run, whatever became of it.
    #[must_use]
    pub fn into_run(self) -> v1::Run {
        match self {
            Self::Final(run) | Self::TimedOut(run) => *run,
        }
    }
}

/// A run's status.
///
/// # Errors
/// `api`/`api_error` for one that this client does not know.
pub fn run_status(run: &v1::Run) -> Result<RunStatus, Error> {
    RunStatus::try_from(run.status())
        .map_err(|()| ErrorCode::API_ERROR.with(format!("run {} has an unknown status {}", run.id, run.status)))
}

/// The span of a run's submission, where its trace begins here.
fn begin_trace(request: &mut v1::RunRequest) -> Span {
    if !request.traceparent.is_empty() {
        return Span::default();
    }
    let mut span = Span::root(Kind::Send, "submit");
    span.set("errand.run.id", request.run_id.clone());
    request.traceparent = span.traceparent().unwrap_or_default().to_owned();
    span
}

impl Client {
    /// Whether the dispatcher's store takes what is written; its kind, and how long a commit took.
    ///
    /// # Errors
    /// [`ClientError`]; `api`/`unavailable` with what the database says.
    pub async fn check_store(&self) -> Result<v1::CheckStoreResponse, ClientError> {
        self.dispatcher("check_store", &v1::CheckStoreRequest {}, Repeat::Unreceived).await
    }

    /// Asks for a run, and waits for the yes: it is committed in the store.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`input_invalid` and its like where the run is refused, which then was never made.
    pub async fn submit(&self, run: NewRun) -> Result<v1::Run, ClientError> {
        let mut outcomes = self.submit_many(vec![run]).await?;
        present(outcomes.pop(), "result")?.map_err(ClientError::Refused)
    }

    /// Asks for many runs: the outcomes are in order, each its own. More than 500 or than fit a message go in several
    /// requests.
    ///
    /// # Errors
    /// [`ClientError`] where a request has no answer; those before it may have been made, and repeating is safe.
    pub async fn submit_many(&self, runs: Vec<NewRun>) -> Result<Vec<Result<v1::Run, Error>>, ClientError> {
        let mut outcomes = Vec::with_capacity(runs.len());
        for mut requests in batches(runs.into_iter().map(NewRun::into_wire), limits::MAX_SUBMIT_BATCH) {
            let count = requests.len();
            let _until_answered: Vec<Span> = requests.iter_mut().map(begin_trace).collect();
            let request = v1::SubmitRunsRequest { tenant: self.tenant.to_string(), requests };
            let answer: v1::SubmitRunsResponse = self.dispatcher("submit_runs", &request, Repeat::Safe).await?;
            if answer.results.len() != count {
                let message = format!("{} answers to {count} run requests", answer.results.len());
                return Err(ErrorCode::API_ERROR.with(message).into());
            }
            for result in answer.results {
                outcomes.push(match present(result.outcome, "outcome")? {
                    v1::submit_run_result::Outcome::Run(run) => Ok(run),
                    v1::submit_run_result::Outcome::Error(error) => Err(error.into()),
                });
            }
        }
        Ok(outcomes)
    }

    /// Leaves a run request with the broker: when this returns, it is kept until a dispatcher has taken it, even if
    /// none runs now. A request that is refused becomes a failed run, or a dead letter.
    ///
    /// # Errors
    /// [`ClientError::Bus`] where the broker has not acknowledged it; repeating is safe.
    pub async fn publish_run(&self, run: NewRun) -> Result<Published, ClientError> {
        let run_id = run.id();
        let mut wire = run.into_wire();
        let _until_kept = begin_trace(&mut wire);
        let traceparent = (!wire.traceparent.is_empty()).then_some(wire.traceparent.as_str());
        let subject = self.bus.subjects().submit(&self.tenant);
        let payload = wire.encode_to_vec().into();
        let ack = self.bus.publish_stream(subject, &wire.run_id, traceparent, payload).await?;
        Ok(Published { run_id, duplicate: ack.await?.duplicate })
    }

    /// A run as it stands.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`task_run_not_found`.
    pub async fn get_run(&self, run: RunId) -> Result<v1::Run, ClientError> {
        let answer = self.read_run(run, false, false).await?;
        present(answer.run, "run")
    }

    /// A run with its input, and with its events where asked for.
    ///
    /// # Errors
    /// As [`Client::get_run`].
    pub async fn get_run_with(&self, run: RunId, events: bool) -> Result<(v1::Run, Vec<v1::Event>), ClientError> {
        let answer = self.read_run(run, true, events).await?;
        Ok((present(answer.run, "run")?, answer.events))
    }

    async fn read_run(&self, run: RunId, input: bool, events: bool) -> Result<v1::GetRunResponse, ClientError> {
        let request = v1::GetRunRequest {
            tenant: self.tenant.to_string(),
            run_id: run.to_string(),
            include_input: input,
            include_events: events,
        };
        self.dispatcher("get_run", &request, Repeat::Safe).await
    }

    /// The runs that fit, newest first.
    pub fn runs(&self, filter: RunFilter) -> impl Stream<Item = Result<v1::Run, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let pages = pages::stream(move |cursor| {
            let (client, request) = (client.clone(), filter.request(client.tenant.to_string(), cursor));
            async move {
                let page: v1::ListRunsResponse = client.dispatcher("list_runs", &request, Repeat::Safe).await?;
                Ok((page.runs, pages::following(page.page)))
            }
        });
        Box::pin(pages)
    }

    /// Cancels. A run that is executing is `canceling` until its agent has stopped. Repeated, the same answer.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`task_run_not_cancelable`.
    pub async fn cancel(&self, run: RunId) -> Result<v1::Run, ClientError> {
        let request = v1::CancelRunRequest { tenant: self.tenant.to_string(), run_id: run.to_string() };
        let answer: v1::RunResponse = self.dispatcher("cancel_run", &request, Repeat::Safe).await?;
        present(answer.run, "run")
    }

    /// Answers the run's open interaction: `{field: value}`. The values are stored nowhere.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`interaction_not_pending`, and `request`/`input_missing`, `field_unknown` or
    /// `input_invalid` at the field.
    pub async fn interact(&self, run: RunId, answer: &Value) -> Result<v1::Run, ClientError> {
        let (tenant, run_id) = (self.tenant.to_string(), run.to_string());
        let request = v1::InteractRequest { tenant, run_id, input: answer.to_string().into() };
        let answer: v1::RunResponse = self.dispatcher("interact", &request, Repeat::Unreceived).await?;
        present(answer.run, "run")
    }

    /// Approves or rejects the output of a run that waits for review.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`review_not_pending`.
    pub async fn review(&self, run: RunId, decision: Decision, comment: &str) -> Result<v1::Run, ClientError> {
        let request = v1::ReviewRequest {
            tenant: self.tenant.to_string(),
            run_id: run.to_string(),
            decision: v1::ReviewDecision::from(decision).into(),
            comment: comment.to_owned(),
        };
        let answer: v1::RunResponse = self.dispatcher("review_run", &request, Repeat::Unreceived).await?;
        present(answer.run, "run")
    }

    /// A new run with the same task and input.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`task_run_not_found`.
    pub async fn retry(&self, run: RunId) -> Result<v1::Run, ClientError> {
        let request = v1::RetryRunRequest {
            tenant: self.tenant.to_string(),
            run_id: run.to_string(),
            new_run_id: new_run_id().to_string(),
        };
        let answer: v1::RunResponse = self.dispatcher("retry_run", &request, Repeat::Safe).await?;
        present(answer.run, "run")
    }

    /// Waits until the run is final.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`task_run_not_found`.
    pub async fn wait(&self, run: RunId, timeout: Duration) -> Result<Wait, ClientError> {
        let ended = async {
            let mut events = std::pin::pin!(self.watch(run).await?);
            // It says which run is not there, where the events of such a one would be waited for.
            self.get_run(run).await?;
            while let Some(event) = events.next().await {
                event?;
            }
            Ok::<(), ClientError>(())
        };
        let in_time = tokio::time::timeout(timeout, ended).await;
        let is_final = in_time.is_ok();
        in_time.unwrap_or(Ok(()))?;
        let run = Box::new(self.get_run(run).await?);
        Ok(if is_final || run_status(&run)?.is_final() { Wait::Final(run) } else { Wait::TimedOut(run) })
    }
}

impl RunFilter {
    fn request(&self, tenant: String, cursor: Option<String>) -> v1::ListRunsRequest {
        v1::ListRunsRequest {
            tenant,
            page: pages::page(cursor),
            status: self.status.iter().map(|status| v1::RunStatus::from(*status).into()).collect(),
            result: self.result.iter().map(|result| v1::RunResult::from(*result).into()).collect(),
            task_id: self.task_id.clone(),
            agent_id: self.agent_id.clone(),
            source_id: self.source_id.clone(),
            session_id: self.session_id.clone(),
            credential_id: self.credential_id.clone(),
            created_after_ms: self.created_after_ms,
            created_before_ms: self.created_before_ms,
            metadata: self.metadata.iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_named_by_id_or_name() {
        let id = "task_01h455vb4pex5vsknk084sn02q";
        assert_eq!(task_ref(id), Ok(id.to_owned()));
        assert_eq!(task_ref("bills"), Ok("name:bills".to_owned()));
        assert_eq!(task_ref("name:bills"), Ok("name:bills".to_owned()));
        assert_eq!(task_ref("").unwrap_err().code, ErrorCode::INPUT_INVALID);
    }

    #[test]
    fn a_new_run_names_itself() {
        let run = NewRun::of_task("bills").unwrap().input(&serde_json::json!({"a": 1})).metadata("k", "v");
        let id = run.id().to_string();
        let wire = run.into_wire();
        assert_eq!((wire.run_id, wire.input), (id, bytes::Bytes::from_static(b"{\"a\":1}")));
    }
}
