//! Sessions.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use errand_core::session::SessionStatus;
use errand_core::{Error, ErrorCode, SessionId};
use errand_proto::{json, v1};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::PathId;
use crate::answer::{Answer, Result};
use crate::auth::Access;
use crate::backend::present;
use crate::body::Body;
use crate::live;
use crate::query::Query;
use crate::schema::{answers, requests};
use crate::service::Gateway;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list_sessions))
        .routes(routes!(get_session))
        .routes(routes!(watch_session))
        .routes(routes!(end_session))
}

fn session_id(id: &PathId) -> std::result::Result<SessionId, Error> {
    id.read(ErrorCode::SESSION_NOT_FOUND, "session")
}

/// Lists sessions, newest first.
#[utoipa::path(
    get, path = "/v2/sessions", tag = "Sessions",
    params(
        ("status" = Option<Vec<answers::SessionStatus>>, Query, description = "With any of these"),
        ("agent_id" = Option<Vec<String>>, Query, description = "Of any of these agents"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page", body = answers::SessionList)),
)]
async fn list_sessions(State(gateway): State<Arc<Gateway>>, access: Access, mut query: Query) -> Result {
    let statuses = query.named("status", &SessionStatus::ALL.map(|status| (status.as_str(), status)))?;
    let request = v1::ListSessionsRequest {
        tenant: access.tenant.to_string(),
        page: Some(query.page()?),
        status: statuses.into_iter().map(|status| v1::SessionStatus::from(status).into()).collect(),
        agent_id: query.many("agent_id")?,
    };
    query.finish()?;
    let answer: v1::ListSessionsResponse = gateway.backend.pool("list_sessions", &request).await?;
    Ok(Answer::list(answer.sessions.iter().map(json::session).collect(), answer.page))
}

/// Shows a session.
#[utoipa::path(
    get, path = "/v2/sessions/{session_id}", tag = "Sessions",
    params(("session_id" = String, Path, description = "The session")),
    responses((status = 200, description = "The session", body = answers::Session)),
)]
async fn get_session(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let request = v1::GetSessionRequest { tenant: access.tenant.to_string(), session_id: session_id(&id)?.to_string() };
    let answer: v1::SessionResponse = gateway.backend.pool("get_session", &request).await?;
    Ok(Answer::ok(json::session(&present(answer.session, "session")?)))
}

/// Watches a session: server-sent events `frame` with `{"taken_at","jpeg"}`, a picture of its page in base64, the latest
/// at once and others as the page changes, a few a second at most. 409 `session_not_available` where its runner shows
/// none, or it has ended.
#[utoipa::path(
    get, path = "/v2/sessions/{session_id}/live", tag = "Sessions",
    params(("session_id" = String, Path, description = "The session")),
    responses((status = 200, description = "Pictures as they are taken", body = String,
        content_type = "text/event-stream")),
)]
async fn watch_session(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
) -> Result<Response> {
    query.finish()?;
    live::session_frames(&gateway, access, session_id(&id)?).await
}

/// Ends a session; the run in it is canceled.
#[utoipa::path(
    post, path = "/v2/sessions/{session_id}/end", tag = "Sessions",
    params(("session_id" = String, Path, description = "The session")),
    request_body = Option<requests::Empty>,
    responses((status = 200, description = "The session, ending", body = answers::Session)),
)]
async fn end_session(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    _: Body<requests::Empty>,
) -> Result {
    query.finish()?;
    let request = v1::EndSessionRequest { tenant: access.tenant.to_string(), session_id: session_id(&id)?.to_string() };
    let answer: v1::SessionResponse = gateway.backend.pool("end_session", &request).await?;
    Ok(Answer::ok(json::session(&present(answer.session, "session")?)))
}
