//! From a run request to a run: which task, which settings, does the input fit.

use std::sync::Arc;

use errand_bus::trace;
use errand_core::run::{Run, Spec, State};
use errand_core::task::Settings;
use errand_core::{Error, ErrorCode, RunId, TaskId, Tenant, Timestamp};
use errand_proto::event::TaskRef;
use errand_proto::{submission, v1};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::catalog::{Catalog, Compiled};
use crate::references::References;

/// A run that is ready to be submitted, and whether it may be.
#[derive(Debug)]
pub struct Prepared {
    /// The run as the request describes it.
    pub run: Run,
    /// Whether its input fits its task, and its source and credential are there.
    pub validity: Result<(), Error>,
}

/// Looks the task up, checks the input, and whether source and credential are there. `fallback_id` names the run where the client does not.
///
/// # Errors
/// Where there can be no run: a malformed request, or a task named by a name that no task has. A task that is not
/// found by id makes a run that has failed.
pub async fn prepare(
    catalog: &Catalog,
    references: &References,
    tenant: &Tenant,
    request: v1::RunRequest,
    retry_of: Option<RunId>,
    fallback_id: impl FnOnce() -> RunId,
) -> Result<Prepared, Error> {
    let request = submission(request)?;
    let task = catalog.newest(tenant, &request.task).await?;
    let id = request.run_id.unwrap_or_else(fallback_id);
    let (spec, validity) = match (task, &request.task) {
        (Some(task), _) => {
            let validity = match task.check_input(&request.input) {
                Ok(()) => references.check(tenant, request.source_id, request.credential_id).await,
                misfit => misfit,
            };
            (spec_of(&request, &task, retry_of), validity)
        }
        (None, TaskRef::Id(task_id)) => {
            let error = ErrorCode::TASK_NOT_FOUND.with(format!("there is no task {task_id}")).at("task_id");
            (spec_without_task(*task_id, retry_of), Err(error))
        }
        (None, TaskRef::Name(name)) => {
            return Err(ErrorCode::TASK_NOT_FOUND.with(format!("there is no task named {name}")).at("task_id"));
        }
    };
    let start = Timestamp::default();
    let run = Run {
        id,
        tenant: tenant.clone(),
        spec: Arc::new(spec),
        seq: 0,
        attempt: 1,
        state: State::Queued { since: start },
        session_id: None,
        errors: Vec::new(),
        created_at: start,
        started_at: None,
        finished_at: None,
        canceled_at: None,
        updated_at: start,
        last_activity: start,
        input: request.input,
        output: None,
    };
    Ok(Prepared { run, validity })
}

fn spec_of(request: &errand_proto::Submission, task: &Arc<Compiled>, retry_of: Option<RunId>) -> Spec {
    let definition = &task.task.definition;
    let mut settings = definition.settings.clone();
    settings.priority = request.priority.unwrap_or(settings.priority);
    settings.timeout_seconds = request.timeout_seconds.or(settings.timeout_seconds);
    settings.review = request.review.unwrap_or(settings.review);
    Spec {
        task_id: task.task.id,
        task_version: task.task.version,
        agent_id: Some(definition.agent_id.clone()),
        source_id: request.source_id,
        credential_id: request.credential_id,
        wanted_session: request.session_id,
        metadata: request.metadata.clone(),
        settings,
        retry_of,
        traceparent: trace_of(request.traceparent.clone()),
    }
}

/// The trace of a run: what it brings, else that of its request, else one that begins here. None where it is not kept.
fn trace_of(brought: Option<String>) -> Option<String> {
    let current = || trace::current().map(|current| current.to_string());
    let own = || trace::Span::root(trace::Kind::Internal, "submit").traceparent().map(str::to_owned);
    brought.or_else(current).or_else(own).filter(|text| trace::is_valid(text))
}

fn spec_without_task(task_id: TaskId, retry_of: Option<RunId>) -> Spec {
    Spec {
        task_id,
        task_version: 0,
        agent_id: None,
        source_id: None,
        credential_id: None,
        wanted_session: None,
        metadata: std::collections::BTreeMap::new(),
        settings: Settings::default(),
        retry_of,
        traceparent: trace_of(None),
    }
}

/// The id of a run whose request came without one over the stream: the same message gives the same id, however often
/// it is delivered.
#[must_use]
pub fn run_id_of_message(tenant: &Tenant, message_id: Option<&str>, sequence: u64, published_at_ms: i64) -> RunId {
    let mut hash = Sha256::new();
    hash.update(tenant.as_str());
    hash.update([0]);
    match message_id {
        Some(id) => hash.update(id),
        None => hash.update(sequence.to_be_bytes()),
    }
    let digest = hash.finalize();
    let mut random = [0u8; 10];
    random.copy_from_slice(&digest[..10]);
    let millis = u64::try_from(published_at_ms).unwrap_or(0);
    RunId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

/// A new id, of now.
#[must_use]
pub fn new_run_id() -> RunId {
    RunId::from_uuid(Uuid::now_v7())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_keeps_a_trace_that_somebody_can_look_for() {
        let brought = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let untraced = Some(trace::UNTRACED.to_owned());
        assert_eq!(trace_of(Some(brought.into())).as_deref(), Some(brought));
        assert_eq!(trace_of(untraced), None);
        assert_eq!(trace_of(Some("no traceparent".into())), None);
        assert_eq!(trace::scope(Some(brought), async { trace_of(None) }).await.as_deref(), Some(brought));
        assert_eq!(trace::scope(Some(trace::UNTRACED), async { trace_of(None) }).await, None);
    }

    #[test]
    fn the_same_message_gives_the_same_id() {
        let tenant: Tenant = "acme".parse().unwrap();
        let other: Tenant = "other".parse().unwrap();
        let id = run_id_of_message(&tenant, Some("order-1"), 7, 1_000);
        assert_eq!(id, run_id_of_message(&tenant, Some("order-1"), 8, 1_000));
        assert_ne!(id, run_id_of_message(&other, Some("order-1"), 7, 1_000));
        assert_ne!(run_id_of_message(&tenant, None, 7, 1_000), run_id_of_message(&tenant, None, 8, 1_000));
    }
}
