//! Task runs.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use errand_core::artifact::ArtifactKind;
use errand_core::run::{RunResult, RunStatus};
use errand_core::{Error, ErrorCode, RunId};
use errand_proto::{json, v1};
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{PathId, pages, storage};
use crate::answer::{Answer, Result};
use crate::auth::Access;
use crate::backend::present;
use crate::body::Body;
use crate::live;
use crate::query::Query;
use crate::schema::{answers, requests};
use crate::service::Gateway;

const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const MAX_WAIT: u64 = 300;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list_runs))
        .routes(routes!(get_run))
        .routes(routes!(cancel_run))
        .routes(routes!(answer_interaction))
        .routes(routes!(review_run))
        .routes(routes!(retry_run))
        .routes(routes!(wait_for_run))
        .routes(routes!(list_run_events))
}

pub(super) fn run_id(id: &PathId) -> std::result::Result<RunId, Error> {
    id.read(ErrorCode::TASK_RUN_NOT_FOUND, "task run")
}

fn by_name<T: Copy, const N: usize>(all: [T; N], name: impl Fn(T) -> &'static str) -> [(&'static str, T); N] {
    all.map(|one| (name(one), one))
}

/// Lists runs, newest first. Several values in one filter mean any of them; several filters mean all of them.
#[utoipa::path(
    get, path = "/v2/task-runs", tag = "Task runs",
    params(
        ("status" = Option<Vec<answers::TaskRunStatus>>, Query, description = "With any of these"),
        ("result" = Option<Vec<answers::TaskRunResult>>, Query, description = "With any of these"),
        ("task_id" = Option<Vec<String>>, Query, description = "Of any of these tasks"),
        ("agent_id" = Option<Vec<String>>, Query, description = "For any of these agents"),
        ("source_id" = Option<Vec<String>>, Query, description = "On any of these sources"),
        ("session_id" = Option<Vec<String>>, Query, description = "In any of these sessions"),
        ("credential_id" = Option<Vec<String>>, Query, description = "With any of these credentials"),
        ("created_after" = Option<String>, Query, format = DateTime, description = "RFC 3339"),
        ("created_before" = Option<String>, Query, format = DateTime, description = "RFC 3339"),
        ("metadata" = Option<std::collections::BTreeMap<String, String>>, Query, style = DeepObject, explode,
            description = "`metadata[key]=value`: with all of these notes"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page", body = answers::TaskRunList)),
)]
async fn list_runs(State(gateway): State<Arc<Gateway>>, access: Access, mut query: Query) -> Result {
    let statuses = query.named("status", &by_name(RunStatus::ALL, RunStatus::as_str))?;
    let all = [RunResult::Success, RunResult::Failure, RunResult::Unknown];
    let results = query.named("result", &by_name(all, RunResult::as_str))?;
    let request = v1::ListRunsRequest {
        tenant: access.tenant.to_string(),
        page: Some(query.page()?),
        status: statuses.into_iter().map(|status| v1::RunStatus::from(status).into()).collect(),
        result: results.into_iter().map(|result| v1::RunResult::from(result).into()).collect(),
        task_id: query.many("task_id")?,
        agent_id: query.many("agent_id")?,
        source_id: query.many("source_id")?,
        session_id: query.many("session_id")?,
        credential_id: query.many("credential_id")?,
        created_after_ms: query.time("created_after")?,
        created_before_ms: query.time("created_before")?,
        metadata: query.metadata()?,
    };
    query.finish()?;
    let answer: v1::ListRunsResponse = gateway.backend.dispatcher("list_runs", &request).await?;
    Ok(Answer::list(answer.runs.iter().map(json::run).collect(), answer.page))
}

/// What is asked for beside the core fields.
#[derive(Debug, Clone, Copy, Default)]
struct Include {
    input: bool,
    storage: bool,
    screenshots: bool,
    events: bool,
}

impl Include {
    fn take(query: &mut Query) -> std::result::Result<Self, Error> {
        let mut include = Self::default();
        for value in query.many("include")? {
            match value.as_str() {
                "input" => include.input = true,
                "storage" => include.storage = true,
                "screenshots" => include.screenshots = true,
                "events" => include.events = true,
                other => {
                    let shown: String = other.chars().take(40).collect();
                    let message = format!("{shown:?} cannot be included: input, storage, screenshots, events can");
                    return Err(ErrorCode::INCLUDE_INVALID.with(message).at("include"));
                }
            }
        }
        Ok(include)
    }

    async fn read(self, gateway: &Gateway, access: &Access, run: RunId) -> Result<Value> {
        let request = v1::GetRunRequest {
            tenant: access.tenant.to_string(),
            run_id: run.to_string(),
            include_input: self.input,
            include_events: self.events,
        };
        let answer: v1::GetRunResponse = gateway.backend.dispatcher("get_run", &request).await?;
        let mut value = json::run(&present(answer.run, "run")?);
        if self.events {
            value["events"] = answer.events.iter().map(json::event).collect();
        }
        if self.storage {
            value["storage"] = storage::of_run(gateway, access, run, ArtifactKind::File).await?;
        }
        if self.screenshots {
            let screenshots = storage::of_run(gateway, access, run, ArtifactKind::Screenshot).await?;
            value["artifacts"] = json!({"screenshots": screenshots});
        }
        Ok(value)
    }
}

/// Shows a run.
#[utoipa::path(
    get, path = "/v2/task-runs/{run_id}", tag = "Task runs",
    params(
        ("run_id" = String, Path, description = "The run"),
        ("include" = Option<Vec<String>>, Query, description = "input, storage, screenshots, events"),
    ),
    responses((status = 200, description = "The run", body = answers::TaskRun)),
)]
async fn get_run(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, mut query: Query) -> Result {
    let include = Include::take(&mut query)?;
    query.finish()?;
    Ok(Answer::ok(include.read(&gateway, &access, run_id(&id)?).await?))
}

/// Cancels a run. Repeated: the same answer.
#[utoipa::path(
    post, path = "/v2/task-runs/{run_id}/cancel", tag = "Task runs",
    params(("run_id" = String, Path, description = "The run")),
    request_body = Option<requests::Empty>,
    responses((status = 200, description = "The run, canceled or canceling", body = answers::TaskRun)),
)]
async fn cancel_run(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    _: Body<requests::Empty>,
) -> Result {
    query.finish()?;
    let request = v1::CancelRunRequest { tenant: access.tenant.to_string(), run_id: run_id(&id)?.to_string() };
    answered(gateway.backend.dispatcher("cancel_run", &request).await?)
}

fn answered(answer: v1::RunResponse) -> Result {
    Ok(Answer::ok(json::run(&present(answer.run, "run")?)))
}

/// Answers what a run asks its user.
#[utoipa::path(
    post, path = "/v2/task-runs/{run_id}/interaction", tag = "Task runs",
    params(("run_id" = String, Path, description = "The run")),
    request_body = requests::AnswerInteraction,
    responses((status = 200, description = "The run, running again", body = answers::TaskRun)),
)]
async fn answer_interaction(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    Body(body): Body<requests::AnswerInteraction>,
) -> Result {
    query.finish()?;
    let input = body.input.get();
    if !input.starts_with('{') {
        let message = "input must be an object: field name -> value";
        return Err(ErrorCode::INPUT_INVALID.with(message).at("input").into());
    }
    let request = v1::InteractRequest {
        tenant: access.tenant.to_string(),
        run_id: run_id(&id)?.to_string(),
        input: input.to_owned().into(),
    };
    answered(gateway.backend.dispatcher("interact", &request).await?)
}

/// Approves or rejects the output of a run that waits for review.
#[utoipa::path(
    post, path = "/v2/task-runs/{run_id}/review", tag = "Task runs",
    params(("run_id" = String, Path, description = "The run")),
    request_body = requests::ReviewRun,
    responses((status = 200, description = "The run, completed or failed", body = answers::TaskRun)),
)]
async fn review_run(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    Body(body): Body<requests::ReviewRun>,
) -> Result {
    query.finish()?;
    let comment = body.comment.unwrap_or_default();
    if comment.chars().count() > 500 {
        return Err(ErrorCode::INPUT_INVALID.with("comment has at most 500 characters").at("comment").into());
    }
    let decision = match body.decision {
        requests::Decision::Approve => v1::ReviewDecision::Approve,
        requests::Decision::Reject => v1::ReviewDecision::Reject,
    };
    let request = v1::ReviewRequest {
        tenant: access.tenant.to_string(),
        run_id: run_id(&id)?.to_string(),
        decision: decision.into(),
        comment,
    };
    answered(gateway.backend.dispatcher("review_run", &request).await?)
}

/// Runs the same task with the same input again.
#[utoipa::path(
    post, path = "/v2/task-runs/{run_id}/retry", tag = "Task runs",
    params(("run_id" = String, Path, description = "The run")),
    request_body = Option<requests::Empty>,
    responses((status = 201, description = "The new run, linked by retry_of", body = answers::TaskRun)),
)]
async fn retry_run(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    _: Body<requests::Empty>,
) -> Result {
    query.finish()?;
    let request = v1::RetryRunRequest {
        tenant: access.tenant.to_string(),
        run_id: run_id(&id)?.to_string(),
        new_run_id: access.seed.map(|seed| RunId::from_uuid(seed).to_string()).unwrap_or_default(),
    };
    let answer: v1::RunResponse = gateway.backend.dispatcher("retry_run", &request).await?;
    Ok(Answer::created(json::run(&present(answer.run, "run")?)))
}

/// Waits for a run's end: answers when it is final, or as it stands when the time is over.
#[utoipa::path(
    get, path = "/v2/task-runs/{run_id}/wait", tag = "Task runs",
    params(
        ("run_id" = String, Path, description = "The run"),
        ("timeout" = Option<u32>, Query, minimum = 0, maximum = 300, description = "Seconds; 30 unless given"),
        ("include" = Option<Vec<String>>, Query, description = "input, storage, screenshots, events"),
    ),
    responses((status = 200, description = "The run", body = answers::TaskRun)),
)]
async fn wait_for_run(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, mut query: Query) -> Result {
    let include = Include::take(&mut query)?;
    let what = format!("0..{MAX_WAIT} (seconds)");
    let timeout: Option<u64> = query.parsed("timeout", &what)?;
    if timeout.is_some_and(|seconds| seconds > MAX_WAIT) {
        return Err(ErrorCode::INPUT_INVALID.with(format!("timeout must be {what}")).at("timeout").into());
    }
    query.finish()?;
    let run = run_id(&id)?;
    let timeout = timeout.map_or(DEFAULT_WAIT, Duration::from_secs);
    let found = live::final_run(&gateway, &access.tenant, run, timeout).await?;
    if include.input || include.storage || include.screenshots || include.events {
        return Ok(Answer::ok(include.read(&gateway, &access, run).await?));
    }
    Ok(Answer::ok(json::run(&found)))
}

/// A run's events, newest first; with `Accept: text/event-stream` live from its first to its final one, resumable by
/// `Last-Event-ID`.
#[utoipa::path(
    get, path = "/v2/task-runs/{run_id}/events", tag = "Task runs",
    params(
        ("run_id" = String, Path, description = "The run"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses(
        (status = 200, description = "A page, or live events", content(
            (answers::EventList = "application/json"), (String = "text/event-stream"))),
        (status = 204, description = "Live: the last event of the run is the one that the client has had"),
    ),
)]
async fn list_run_events(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    headers: HeaderMap,
    mut query: Query,
) -> Result<Response> {
    let run = run_id(&id)?;
    if live::is_wanted(&headers) {
        query.finish()?;
        return live::run_events(&gateway, access, run, &headers).await;
    }
    // It says nothing to a page, but a wrong one is wrong.
    live::last_event_id(&headers)?;
    let page = query.page()?;
    query.finish()?;
    let request = v1::GetRunRequest {
        tenant: access.tenant.to_string(),
        run_id: run.to_string(),
        include_input: false,
        include_events: true,
    };
    let answer: v1::GetRunResponse = gateway.backend.dispatcher("get_run", &request).await?;
    let events = answer.events.iter().rev().map(json::event).collect();
    Ok(pages::of(events, &page)?.into_response())
}
