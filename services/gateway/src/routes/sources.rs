//! Sources.

use std::sync::Arc;

use axum::extract::State;
use errand_core::source::SourceType;
use errand_core::{Error, ErrorCode, SourceId};
use errand_proto::{json, v1};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::PathId;
use crate::answer::{Answer, Result};
use crate::auth::Access;
use crate::backend::present;
use crate::body::Body;
use crate::query::Query;
use crate::schema::{answers, requests};
use crate::service::Gateway;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(list_sources, create_source)).routes(routes!(
        get_source,
        update_source,
        delete_source
    ))
}

fn source_id(id: &PathId) -> std::result::Result<String, Error> {
    let id: SourceId = id.read(ErrorCode::SOURCE_NOT_FOUND, "source")?;
    Ok(id.to_string())
}

fn number(kind: SourceType) -> i32 {
    v1::SourceType::from(kind).into()
}

fn shown(answer: v1::SourceResponse) -> Result<serde_json::Value> {
    Ok(json::source(&present(answer.source, "source")?))
}

/// Lists sources, newest first.
#[utoipa::path(
    get, path = "/v2/sources", tag = "Sources",
    params(
        ("type" = Option<Vec<requests::SourceType>>, Query, description = "Of any of these types"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page", body = answers::SourceList)),
)]
async fn list_sources(State(gateway): State<Arc<Gateway>>, access: Access, mut query: Query) -> Result {
    let types = query.named("type", &SourceType::ALL.map(|kind| (kind.as_str(), kind)))?;
    let request = v1::ListSourcesRequest {
        tenant: access.tenant.to_string(),
        page: Some(query.page()?),
        r#type: types.into_iter().map(number).collect(),
    };
    query.finish()?;
    let answer: v1::ListSourcesResponse = gateway.backend.vault("list_sources", &request).await?;
    Ok(Answer::list(answer.sources.iter().map(json::source).collect(), answer.page))
}

/// Makes a source.
#[utoipa::path(
    post, path = "/v2/sources", tag = "Sources",
    request_body = requests::CreateSource,
    responses((status = 201, description = "The source", body = answers::Source)),
)]
async fn create_source(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    query: Query,
    Body(body): Body<requests::CreateSource>,
) -> Result {
    query.finish()?;
    let request = v1::CreateSourceRequest {
        tenant: access.tenant.to_string(),
        source_id: access.seed.map(|seed| SourceId::from_uuid(seed).to_string()).unwrap_or_default(),
        r#type: number(body.r#type.into()),
        name: body.name,
        url: body.url.unwrap_or_default(),
    };
    Ok(Answer::created(shown(gateway.backend.vault("create_source", &request).await?)?))
}

/// Shows a source.
#[utoipa::path(
    get, path = "/v2/sources/{source_id}", tag = "Sources",
    params(("source_id" = String, Path, description = "The source")),
    responses((status = 200, description = "The source", body = answers::Source)),
)]
async fn get_source(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let request = v1::GetSourceRequest { tenant: access.tenant.to_string(), source_id: source_id(&id)? };
    Ok(Answer::ok(shown(gateway.backend.vault("get_source", &request).await?)?))
}

/// Changes a source. What is absent stays as it is.
#[utoipa::path(
    patch, path = "/v2/sources/{source_id}", tag = "Sources",
    params(("source_id" = String, Path, description = "The source")),
    request_body = requests::UpdateSource,
    responses((status = 200, description = "The source", body = answers::Source)),
)]
async fn update_source(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    Body(body): Body<requests::UpdateSource>,
) -> Result {
    query.finish()?;
    let request = v1::UpdateSourceRequest {
        tenant: access.tenant.to_string(),
        source_id: source_id(&id)?,
        r#type: body.r#type.map(|kind| number(kind.into())),
        name: body.name,
        url: body.url,
    };
    Ok(Answer::ok(shown(gateway.backend.vault("update_source", &request).await?)?))
}

/// Deletes a source that no credential belongs to.
#[utoipa::path(
    delete, path = "/v2/sources/{source_id}", tag = "Sources",
    params(("source_id" = String, Path, description = "The source")),
    responses((status = 200, description = "It is deleted", body = answers::Deleted)),
)]
async fn delete_source(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let id = source_id(&id)?;
    let request = v1::DeleteSourceRequest { tenant: access.tenant.to_string(), source_id: id.clone() };
    let _: v1::SourceResponse = gateway.backend.vault("delete_source", &request).await?;
    Ok(Answer::ok(json!({"id": id, "object": "source", "deleted": true})))
}
