//! Tasks, and making runs of them.

use std::sync::Arc;

use axum::extract::State;
use errand_core::task::Definition;
use errand_core::{Error, ErrorCode, RunId, SessionId, TaskId};
use errand_proto::event::TaskRef;
use errand_proto::{json, v1};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::PathId;
use crate::answer::{Answer, Result};
use crate::auth::Access;
use crate::backend::present;
use crate::body::Body;
use crate::query::Query;
use crate::schema::{answers, requests};
use crate::service::Gateway;

/// How often a change is made again that came upon another one.
const TRIES: usize = 4;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list_tasks, create_task))
        .routes(routes!(get_task, update_task, delete_task))
        .routes(routes!(run_task))
}

/// `task_...`, or `name:<its name>`.
fn task_ref(id: &PathId) -> std::result::Result<String, Error> {
    if id.0.starts_with("name:") && TaskRef::parse("task_id", &id.0).is_ok() {
        return Ok(id.0.clone());
    }
    let id: TaskId = id.read(ErrorCode::TASK_NOT_FOUND, "task")?;
    Ok(id.to_string())
}

/// Lists tasks, newest first.
#[utoipa::path(
    get, path = "/v2/tasks", tag = "Tasks",
    params(
        ("agent_id" = Option<Vec<String>>, Query, description = "Of any of these agents"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page", body = answers::TaskList)),
)]
async fn list_tasks(State(gateway): State<Arc<Gateway>>, access: Access, mut query: Query) -> Result {
    let page = Some(query.page()?);
    let agent_id = query.many("agent_id")?;
    query.finish()?;
    let request = v1::ListTasksRequest { tenant: access.tenant.to_string(), page, agent_id };
    let answer: v1::ListTasksResponse = gateway.backend.dispatcher("list_tasks", &request).await?;
    Ok(Answer::list(answer.tasks.iter().map(json::task).collect(), answer.page))
}

/// Makes a task.
#[utoipa::path(
    post, path = "/v2/tasks", tag = "Tasks",
    request_body = requests::CreateTask,
    responses((status = 201, description = "The task", body = answers::Task)),
)]
async fn create_task(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    query: Query,
    Body(body): Body<requests::CreateTask>,
) -> Result {
    query.finish()?;
    let definition = Definition::try_from(body)?;
    let task = Some(v1::Task::from(&definition));
    let request = v1::CreateTaskRequest { tenant: access.tenant.to_string(), task, upsert: false };
    let answer: v1::TaskResponse = gateway.backend.dispatcher("create_task", &request).await?;
    Ok(Answer::created(json::task(&present(answer.task, "task")?)))
}

/// Shows a task: its newest version, or another.
#[utoipa::path(
    get, path = "/v2/tasks/{task_id}", tag = "Tasks",
    params(
        ("task_id" = String, Path, description = "The task"),
        ("version" = Option<u32>, Query, minimum = 1, description = "This version, not the newest"),
    ),
    responses((status = 200, description = "The task", body = answers::Task)),
)]
async fn get_task(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, mut query: Query) -> Result {
    let version: Option<u32> = query.parsed("version", "a number from 1 on")?;
    if version == Some(0) {
        return Err(ErrorCode::INPUT_INVALID.with("version must be a number from 1 on").at("version").into());
    }
    query.finish()?;
    let task = read(&gateway, &access, task_ref(&id)?, version.unwrap_or(0)).await?;
    Ok(Answer::ok(json::task(&task)))
}

async fn read(gateway: &Gateway, access: &Access, task_id: String, version: u32) -> Result<v1::Task> {
    let request = v1::GetTaskRequest { tenant: access.tenant.to_string(), task_id, version };
    let answer: v1::TaskResponse = gateway.backend.dispatcher("get_task", &request).await?;
    Ok(present(answer.task, "task")?)
}

/// Changes a task: a new version. What is absent stays as it is.
#[utoipa::path(
    patch, path = "/v2/tasks/{task_id}", tag = "Tasks",
    params(("task_id" = String, Path, description = "The task")),
    request_body = requests::UpdateTask,
    responses((status = 200, description = "The new version", body = answers::Task)),
)]
async fn update_task(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    bytes: bytes::Bytes,
) -> Result {
    query.finish()?;
    let task_id = task_ref(&id)?;
    let mut tries = 0;
    loop {
        tries += 1;
        let before = read(&gateway, &access, task_id.clone(), 0).await?;
        let (id, version) = (before.id.clone(), before.version);
        let mut definition = Definition::try_from(before)?;
        let same = definition.clone();
        crate::body::parse::<requests::UpdateTask>(&bytes)?.apply(&mut definition)?;
        if definition == same {
            return Ok(Answer::ok(json::task(&read(&gateway, &access, id, version).await?)));
        }
        let task = Some(v1::Task { id, ..v1::Task::from(&definition) });
        let request = v1::UpdateTaskRequest { tenant: access.tenant.to_string(), task, if_version: version };
        match gateway.backend.dispatcher::<_, v1::TaskResponse>("update_task", &request).await {
            Ok(answer) => return Ok(Answer::ok(json::task(&present(answer.task, "task")?))),
            // Somebody else has changed it since: the change is made from what it is now.
            Err(error) if error.code == ErrorCode::API_UNAVAILABLE && tries < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Deletes a task. Its runs stay, and those under way go on.
#[utoipa::path(
    delete, path = "/v2/tasks/{task_id}", tag = "Tasks",
    params(("task_id" = String, Path, description = "The task")),
    responses((status = 200, description = "It is deleted", body = answers::Deleted)),
)]
async fn delete_task(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let request = v1::DeleteTaskRequest { tenant: access.tenant.to_string(), task_id: task_ref(&id)? };
    let answer: v1::TaskResponse = gateway.backend.dispatcher("delete_task", &request).await?;
    let task = present(answer.task, "task")?;
    Ok(Answer::ok(json!({"id": task.id, "object": "task", "deleted": true})))
}

/// Runs a task.
#[utoipa::path(
    post, path = "/v2/tasks/{task_id}/run", tag = "Task runs",
    params(("task_id" = String, Path, description = "The task")),
    request_body = requests::RunTask,
    responses((status = 201, description = "The run, queued", body = answers::TaskRun)),
)]
async fn run_task(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    Body(body): Body<requests::RunTask>,
) -> Result {
    query.finish()?;
    if let Some(session) = &body.session_id {
        check_session(&gateway, &access, session).await?;
    }
    let run_id = RunId::from_uuid(access.seed.unwrap_or_else(Uuid::now_v7));
    let request = v1::RunRequest {
        run_id: run_id.to_string(),
        task_id: task_ref(&id)?,
        input: body.input.map(|input| input.get().to_owned().into()).unwrap_or_default(),
        credential_id: given("credential_id", body.credential_id)?,
        source_id: given("source_id", body.source_id)?,
        session_id: given("session_id", body.session_id)?,
        priority: body.priority,
        metadata: body.metadata.unwrap_or_default(),
        timeout_seconds: body.timeout_seconds,
        review: None,
        traceparent: String::new(),
    };
    let request = v1::SubmitRunsRequest { tenant: access.tenant.to_string(), requests: vec![request] };
    let mut answer: v1::SubmitRunsResponse = gateway.backend.dispatcher("submit_runs", &request).await?;
    match present(answer.results.pop().and_then(|result| result.outcome), "result")? {
        v1::submit_run_result::Outcome::Run(run) => Ok(Answer::created(json::run(&run))),
        v1::submit_run_result::Outcome::Error(error) => Err(Error::from(error).into()),
    }
}

/// An id that is given is not empty: that would mean none.
fn given(field: &str, id: Option<String>) -> std::result::Result<String, Error> {
    match id {
        Some(id) if id.is_empty() => Err(ErrorCode::INPUT_INVALID.with(format!("{field} is empty")).at(field)),
        id => Ok(id.unwrap_or_default()),
    }
}

/// A run that must execute in a session cannot where that has ended; its asker is there to be told.
async fn check_session(gateway: &Gateway, access: &Access, session: &str) -> Result<()> {
    let id: SessionId = errand_proto::id("session_id", session)?;
    let request = v1::GetSessionRequest { tenant: access.tenant.to_string(), session_id: id.to_string() };
    let answer: v1::SessionResponse =
        gateway.backend.pool("get_session", &request).await.map_err(|error: Error| error.at("session_id"))?;
    let session = present(answer.session, "session")?;
    let ends = [v1::SessionStatus::Completing, v1::SessionStatus::Completed, v1::SessionStatus::Failed];
    if ends.contains(&session.status()) {
        let message = format!("the session {id} has ended");
        return Err(ErrorCode::SESSION_NOT_AVAILABLE.with(message).at("session_id").into());
    }
    Ok(())
}
