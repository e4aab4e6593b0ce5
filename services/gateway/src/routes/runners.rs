//! Runners and agents: what is connected. They belong to the installation, not to a tenant.

use std::sync::Arc;

use axum::extract::State;
use errand_core::{AgentId, Error, ErrorCode, RunnerId};
use errand_proto::{json, v1};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{PathId, pages};
use crate::answer::{Answer, Result};
use crate::auth::Access;
use crate::backend::present;
use crate::body::Body;
use crate::query::Query;
use crate::schema::{answers, requests};
use crate::service::Gateway;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list_runners))
        .routes(routes!(get_runner))
        .routes(routes!(drain_runner))
        .routes(routes!(list_agents))
        .routes(routes!(get_agent))
}

fn runner_id(id: &PathId) -> std::result::Result<RunnerId, Error> {
    id.read(ErrorCode::RUNNER_NOT_FOUND, "runner")
}

/// The runners that are connected, newest first. Needs the scope `admin`.
#[utoipa::path(
    get, path = "/v2/runners", tag = "Runners",
    params(
        ("agent_id" = Option<Vec<String>>, Query, description = "Of any of these agents"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page", body = answers::RunnerList)),
)]
async fn list_runners(State(gateway): State<Arc<Gateway>>, _: Access, mut query: Query) -> Result {
    let page = query.page()?;
    let agent_id = query.many("agent_id")?;
    query.finish()?;
    Ok(pages::of(runners(&gateway, agent_id).await?.iter().map(json::runner).collect(), &page)?)
}

async fn runners(gateway: &Gateway, agent_id: Vec<String>) -> Result<Vec<v1::Runner>> {
    let request = v1::ListRunnersRequest { agent_id };
    let answer: v1::ListRunnersResponse = gateway.backend.pool("list_runners", &request).await?;
    let mut runners = answer.runners;
    runners.sort_unstable_by(|one, other| other.id.cmp(&one.id));
    Ok(runners)
}

/// Shows a runner. Needs the scope `admin`.
#[utoipa::path(
    get, path = "/v2/runners/{runner_id}", tag = "Runners",
    params(("runner_id" = String, Path, description = "The runner")),
    responses((status = 200, description = "The runner", body = answers::Runner)),
)]
async fn get_runner(State(gateway): State<Arc<Gateway>>, _: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let wanted = runner_id(&id)?.to_string();
    let found = runners(&gateway, Vec::new()).await?.into_iter().find(|runner| runner.id == wanted);
    let found = found.ok_or_else(|| ErrorCode::RUNNER_NOT_FOUND.with(format!("there is no runner {wanted}")))?;
    Ok(Answer::ok(json::runner(&found)))
}

/// Lets a runner finish what it has, and gives it nothing new. Needs the scope `admin`.
#[utoipa::path(
    post, path = "/v2/runners/{runner_id}/drain", tag = "Runners",
    params(("runner_id" = String, Path, description = "The runner")),
    request_body = Option<requests::Empty>,
    responses((status = 200, description = "The runner, draining", body = answers::Runner)),
)]
async fn drain_runner(
    State(gateway): State<Arc<Gateway>>,
    _: Access,
    id: PathId,
    query: Query,
    _: Body<requests::Empty>,
) -> Result {
    query.finish()?;
    let request = v1::DrainRunnerRequest { runner_id: runner_id(&id)?.to_string() };
    let answer: v1::DrainRunnerResponse = gateway.backend.pool("drain_runner", &request).await?;
    Ok(Answer::ok(json::runner(&present(answer.runner, "runner")?)))
}

/// The agents that connected runners serve, or runs wait for, by name.
#[utoipa::path(
    get, path = "/v2/agents", tag = "Runners",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page", body = answers::AgentList)),
)]
async fn list_agents(State(gateway): State<Arc<Gateway>>, _: Access, mut query: Query) -> Result {
    let page = query.page()?;
    query.finish()?;
    Ok(pages::of(agents(&gateway).await?, &page)?)
}

async fn agents(gateway: &Gateway) -> Result<Vec<Value>> {
    let answer: v1::ListAgentsResponse = gateway.backend.pool("list_agents", &v1::ListAgentsRequest {}).await?;
    let mut agents = answer.agents;
    agents.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    Ok(agents.iter().map(json::agent).collect())
}

/// Shows an agent.
#[utoipa::path(
    get, path = "/v2/agents/{agent_id}", tag = "Runners",
    params(("agent_id" = String, Path, description = "The agent")),
    responses((status = 200, description = "The agent", body = answers::Agent)),
)]
async fn get_agent(State(gateway): State<Arc<Gateway>>, _: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let wanted: AgentId = id.read(ErrorCode::AGENT_NOT_FOUND, "agent")?;
    let found = agents(&gateway).await?.into_iter().find(|agent| agent["id"] == wanted.as_str());
    Ok(Answer::ok(found.ok_or_else(|| ErrorCode::AGENT_NOT_FOUND.with(format!("there is no agent {wanted}")))?))
}
