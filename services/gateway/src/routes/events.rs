//! Events of a tenant, from the event stream: it has those of every service, of runs, sessions, tasks and destinations
//! alike, for 30 days (ADR 0009).

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use errand_bus::FollowFrom;
use errand_core::{Error, ErrorCode, EventId, Tenant};
use errand_proto::{json, v1};
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{Answer, Result};
use crate::auth::Access;
use crate::live;
use crate::query::Query;
use crate::schema::answers;
use crate::service::Gateway;

/// Types in one filter.
const MAX_TYPES: usize = 50;
/// Clocks of whoever names events and of the broker may differ by so much.
const SKEW_MS: i64 = 60_000;

/// Every type of event, and what it says: CONTRACT section 4.
pub(super) const TYPES: &[(&str, &str)] = &[
    ("task_run.queued", "A run waits for a session."),
    ("task_run.running", "A run's agent is at work."),
    ("task_run.interaction_required", "A run asks its user."),
    ("task_run.review_required", "A run's output waits for review."),
    ("task_run.completed", "A run has completed."),
    ("task_run.failed", "A run has failed."),
    ("task_run.canceling", "A run's agent is being stopped."),
    ("task_run.canceled", "A run was canceled."),
    ("session.queued", "A session is being provisioned."),
    ("session.running", "A session is leased by a run."),
    ("session.idle", "A session waits for its next run."),
    ("session.completing", "A session is being torn down."),
    ("session.completed", "A session has ended."),
    ("session.failed", "A session has failed."),
    ("task.created", "A task was made."),
    ("task.updated", "A task has a new version."),
    ("task.deleted", "A task was deleted."),
    ("credential.created", "A credential was made."),
    ("credential.unverified", "A credential is not verified any more."),
    ("credential.verified", "A credential was verified."),
    ("credential.invalid", "A credential does not work."),
    ("credential.deleted", "A credential was deleted."),
    ("storage.created", "A run has captured a file."),
    ("event_destination.activated", "A destination gets events."),
    ("event_destination.deactivated", "A destination gets no events any more."),
];

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(list_events)).routes(routes!(list_event_types))
}

/// Every type of event.
#[utoipa::path(
    get, path = "/v2/event-types", tag = "Events",
    responses((status = 200, description = "All types", body = answers::EventTypeList)),
)]
async fn list_event_types(_: Access, query: Query) -> Result {
    query.finish()?;
    let kinds = TYPES
        .iter()
        .map(|(name, description)| json!({"name": name, "object": "event_type", "description": description}));
    Ok(Answer::list(kinds.collect(), None))
}

/// Events, newest first; with `Accept: text/event-stream` live, resumable by `Last-Event-ID`.
#[utoipa::path(
    get, path = "/v2/events", tag = "Events",
    params(
        ("type" = Option<Vec<String>>, Query, description = "Of any of these: task_run.completed, task_run.*, *"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page, or live events", content(
        (answers::EventList = "application/json"), (String = "text/event-stream")))),
)]
async fn list_events(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    headers: HeaderMap,
    mut query: Query,
) -> Result<Response> {
    let types = query.many("type")?;
    let filters = filters(&gateway, &access.tenant, &types)?;
    if live::is_wanted(&headers) {
        query.finish()?;
        return live::all_events(&gateway, access, types, filters, &headers).await;
    }
    // It says nothing to a page, but a wrong one is wrong.
    live::last_event_id(&headers)?;
    let page = query.page()?;
    query.finish()?;
    Ok(self::page(&gateway, &access.tenant, &filters, &page).await?.into_response())
}

/// The subjects of some types of events; none: of all.
fn filters(gateway: &Gateway, tenant: &Tenant, types: &[String]) -> std::result::Result<Vec<String>, Error> {
    let subjects = gateway.backend.bus().subjects();
    if types.is_empty() || types.iter().any(|wanted| wanted == "*") {
        return Ok(vec![subjects.events_of(Some(tenant))]);
    }
    if types.len() > MAX_TYPES {
        return Err(ErrorCode::INPUT_INVALID.with(format!("type may have {MAX_TYPES} values")).at("type"));
    }
    let known = TYPES.iter().map(|(name, _)| *name).filter(|name| types.iter().any(|wanted| live::fits(wanted, name)));
    for wanted in types {
        let word_or_kind = wanted.strip_suffix(".*").map_or(wanted.contains('.'), |kind| !kind.contains(['*', '.']));
        if !word_or_kind || !TYPES.iter().any(|(name, _)| live::fits(wanted, name)) {
            let shown: String = wanted.chars().take(60).collect();
            let message = format!("{shown:?} is no type of events; GET /v2/event-types lists them");
            return Err(ErrorCode::INPUT_INVALID.with(message).at("type"));
        }
    }
    let subject = |name: &str| {
        let (object, action) = name.split_once('.').unwrap_or((name, "*"));
        subjects.event(tenant, object, action, "*")
    };
    Ok(known.map(subject).collect())
}

async fn page(gateway: &Gateway, tenant: &Tenant, filters: &[String], page: &v1::Page) -> Result {
    let bus = gateway.backend.bus();
    let limit = page.limit as usize;
    let after = first_given([
        ("cursor", &page.cursor, ErrorCode::CURSOR_INVALID),
        ("starting_after", &page.starting_after, ErrorCode::INPUT_INVALID),
    ]);
    let slice = if !page.ending_before.is_empty() {
        let place = place_of(gateway, tenant, "ending_before", &page.ending_before, ErrorCode::INPUT_INVALID).await?;
        let slice = bus.events_from(filters, FollowFrom::Sequence(place + 1), limit).await;
        let mut slice = slice.map_err(|error| live::away(&error))?;
        slice.deliveries.reverse();
        slice
    } else {
        let before = match after {
            Some((field, id, code)) => Some(place_of(gateway, tenant, field, id, code).await?),
            None => None,
        };
        bus.events_before(filters, before, limit).await.map_err(|error| live::away(&error))?
    };
    let events: Vec<v1::Event> =
        slice.deliveries.iter().filter_map(|delivery| live::Heard::of(delivery).map(|heard| heard.event)).collect();
    let has_more = slice.more > 0;
    let next_cursor = events.last().filter(|_| has_more).map(|event| event.id.clone()).unwrap_or_default();
    let data: Vec<Value> = events.iter().map(json::event).collect();
    Ok(Answer::list(data, Some(v1::PageInfo { has_more, next_cursor })))
}

fn first_given<'a, const N: usize>(
    positions: [(&'static str, &'a String, ErrorCode); N],
) -> Option<(&'static str, &'a str, ErrorCode)> {
    positions.into_iter().find(|(_, id, _)| !id.is_empty()).map(|(field, id, code)| (field, id.as_str(), code))
}

/// Where an event of the tenant stands in the stream: near the time that its id tells.
async fn place_of(
    gateway: &Gateway,
    tenant: &Tenant,
    field: &'static str,
    id: &str,
    code: ErrorCode,
) -> std::result::Result<u64, Error> {
    let event: EventId = id.parse().map_err(|_| code.with(format!("{field} is not an event's id")).at(field))?;
    let found = live::find(gateway, tenant, event, SKEW_MS).await?;
    found.map_err(|_| code.with(format!("{field} names no event that is kept")).at(field))
}
