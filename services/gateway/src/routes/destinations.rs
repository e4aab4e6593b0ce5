//! Event destinations and deliveries.

use std::sync::Arc;

use axum::extract::State;
use errand_core::{DeliveryId, DestinationId, Error, ErrorCode};
use errand_proto::{json, v1};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::PathId;
use crate::answer::{Answer, Result};
use crate::auth::Access;
use crate::backend::present;
use crate::body::Body;
use crate::query::{Query, time_ms};
use crate::schema::{answers, requests};
use crate::service::Gateway;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new()
        .routes(routes!(list_destinations, create_destination))
        .routes(routes!(get_destination, update_destination, delete_destination))
        .routes(routes!(test_destination))
        .routes(routes!(rotate_secret))
        .routes(routes!(activate_destination))
        .routes(routes!(deactivate_destination))
        .routes(routes!(replay_events))
        .routes(routes!(list_deliveries))
        .routes(routes!(get_delivery))
        .routes(routes!(retry_delivery))
}

fn destination_id(id: &PathId) -> std::result::Result<String, Error> {
    let id: DestinationId = id.read(ErrorCode::EVENT_DESTINATION_NOT_FOUND, "event destination")?;
    Ok(id.to_string())
}

fn delivery_id(id: &PathId) -> std::result::Result<String, Error> {
    let id: DeliveryId = id.read(ErrorCode::EVENT_DELIVERY_NOT_FOUND, "event delivery")?;
    Ok(id.to_string())
}

fn filter(filter: requests::FilterInput) -> v1::DestinationFilter {
    v1::DestinationFilter {
        task_id: filter.task_id.unwrap_or_default(),
        agent_id: filter.agent_id.unwrap_or_default(),
        metadata: filter.metadata.unwrap_or_default(),
    }
}

fn shown(answer: v1::DestinationResponse) -> Result<serde_json::Value> {
    Ok(json::destination(&present(answer.destination, "destination")?))
}

fn delivered(answer: v1::DeliveryResponse) -> Result {
    Ok(Answer::ok(json::delivery(&present(answer.delivery, "delivery")?)))
}

/// Lists destinations, newest first.
#[utoipa::path(
    get, path = "/v2/event-destinations", tag = "Event destinations",
    params(
        ("type" = Option<Vec<String>>, Query, description = "Of any of these types"),
        ("status" = Option<Vec<String>>, Query, description = "active, inactive"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page", body = answers::EventDestinationList)),
)]
async fn list_destinations(State(gateway): State<Arc<Gateway>>, access: Access, mut query: Query) -> Result {
    let all = [("active", v1::DestinationStatus::Active), ("inactive", v1::DestinationStatus::Inactive)];
    let request = v1::ListDestinationsRequest {
        tenant: access.tenant.to_string(),
        page: Some(query.page()?),
        r#type: query.many("type")?,
        status: query.named("status", &all)?.into_iter().map(Into::into).collect(),
    };
    query.finish()?;
    let answer: v1::ListDestinationsResponse = gateway.backend.notifier("list_destinations", &request).await?;
    Ok(Answer::list(answer.destinations.iter().map(json::destination).collect(), answer.page))
}

/// Makes a destination. Its signing secret is in this answer and in no other.
#[utoipa::path(
    post, path = "/v2/event-destinations", tag = "Event destinations",
    request_body = requests::CreateDestination,
    responses((status = 201, description = "The destination", body = answers::EventDestination)),
)]
async fn create_destination(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    query: Query,
    Body(mut body): Body<requests::CreateDestination>,
) -> Result {
    query.finish()?;
    let config = body.configs().of(&body.r#type)?;
    let request = v1::CreateDestinationRequest {
        tenant: access.tenant.to_string(),
        destination_id: access.seed.map(|seed| DestinationId::from_uuid(seed).to_string()).unwrap_or_default(),
        name: body.name,
        r#type: body.r#type,
        config: config.map(|config| config.to_string().into()).unwrap_or_default(),
        events: body.events,
        filter: body.filter.map(filter),
        ordered: body.ordered,
    };
    Ok(Answer::created(shown(gateway.backend.notifier("create_destination", &request).await?)?))
}

/// Shows a destination.
#[utoipa::path(
    get, path = "/v2/event-destinations/{destination_id}", tag = "Event destinations",
    params(("destination_id" = String, Path, description = "The destination")),
    responses((status = 200, description = "The destination", body = answers::EventDestination)),
)]
async fn get_destination(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    Ok(Answer::ok(json::destination(&read(&gateway, &access, destination_id(&id)?).await?)))
}

async fn read(gateway: &Gateway, access: &Access, destination_id: String) -> Result<v1::Destination> {
    let request = v1::GetDestinationRequest { tenant: access.tenant.to_string(), destination_id };
    let answer: v1::DestinationResponse = gateway.backend.notifier("get_destination", &request).await?;
    Ok(present(answer.destination, "destination")?)
}

/// Changes a destination. What is absent stays as it is; the type never changes.
#[utoipa::path(
    patch, path = "/v2/event-destinations/{destination_id}", tag = "Event destinations",
    params(("destination_id" = String, Path, description = "The destination")),
    request_body = requests::UpdateDestination,
    responses((status = 200, description = "The destination", body = answers::EventDestination)),
)]
async fn update_destination(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    Body(mut body): Body<requests::UpdateDestination>,
) -> Result {
    query.finish()?;
    let destination_id = destination_id(&id)?;
    // Over the wire, empty means: as it is.
    for (field, empty) in [
        ("name", body.name.as_ref().is_some_and(String::is_empty)),
        ("events", body.events.as_ref().is_some_and(Vec::is_empty)),
    ] {
        if empty {
            return Err(ErrorCode::INPUT_INVALID.with(format!("{field} is empty")).at(field).into());
        }
    }
    let before = read(&gateway, &access, destination_id.clone()).await?;
    let config = body.configs().of(&before.r#type)?;
    let request = v1::UpdateDestinationRequest {
        tenant: access.tenant.to_string(),
        destination_id,
        name: body.name.unwrap_or_default(),
        config: config.map(|config| config.to_string().into()).unwrap_or_default(),
        events: body.events.unwrap_or_default(),
        filter: body.filter.map(filter),
        ordered: body.ordered,
    };
    Ok(Answer::ok(shown(gateway.backend.notifier("update_destination", &request).await?)?))
}

/// Deletes a destination; what waits for it is given up.
#[utoipa::path(
    delete, path = "/v2/event-destinations/{destination_id}", tag = "Event destinations",
    params(("destination_id" = String, Path, description = "The destination")),
    responses((status = 200, description = "It is deleted", body = answers::Deleted)),
)]
async fn delete_destination(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let id = destination_id(&id)?;
    let request = v1::DeleteDestinationRequest { tenant: access.tenant.to_string(), destination_id: id.clone() };
    let _: v1::DestinationResponse = gateway.backend.notifier("delete_destination", &request).await?;
    Ok(Answer::ok(json!({"id": id, "object": "event_destination", "deleted": true})))
}

/// Sends an event of type `event_destination.test` now, and answers what became of it.
#[utoipa::path(
    post, path = "/v2/event-destinations/{destination_id}/test", tag = "Event destinations",
    params(("destination_id" = String, Path, description = "The destination")),
    request_body = Option<requests::Empty>,
    responses((status = 200, description = "The delivery", body = answers::EventDelivery)),
)]
async fn test_destination(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    _: Body<requests::Empty>,
) -> Result {
    query.finish()?;
    let (tenant, destination_id) = (access.tenant.to_string(), destination_id(&id)?);
    let request = v1::TestDestinationRequest { tenant, destination_id };
    delivered(gateway.backend.notifier("test_destination", &request).await?)
}

/// Makes a new signing secret; the old one stays valid for 24 h.
#[utoipa::path(
    post, path = "/v2/event-destinations/{destination_id}/rotate-secret", tag = "Event destinations",
    params(("destination_id" = String, Path, description = "The destination")),
    request_body = Option<requests::Empty>,
    responses((status = 200, description = "The destination with its new secret", body = answers::EventDestination)),
)]
async fn rotate_secret(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    _: Body<requests::Empty>,
) -> Result {
    query.finish()?;
    let (tenant, destination_id) = (access.tenant.to_string(), destination_id(&id)?);
    let request = v1::RotateSecretRequest { tenant, destination_id };
    Ok(Answer::ok(shown(gateway.backend.notifier("rotate_secret", &request).await?)?))
}

/// Makes a destination active: what it missed is sent.
#[utoipa::path(
    post, path = "/v2/event-destinations/{destination_id}/activate", tag = "Event destinations",
    params(("destination_id" = String, Path, description = "The destination")),
    request_body = Option<requests::Empty>,
    responses((status = 200, description = "The destination", body = answers::EventDestination)),
)]
async fn activate_destination(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    _: Body<requests::Empty>,
) -> Result {
    query.finish()?;
    let (tenant, destination_id) = (access.tenant.to_string(), destination_id(&id)?);
    let request = v1::ActivateDestinationRequest { tenant, destination_id };
    Ok(Answer::ok(shown(gateway.backend.notifier("activate_destination", &request).await?)?))
}

/// Sends a destination nothing any more; what it is to get is kept.
#[utoipa::path(
    post, path = "/v2/event-destinations/{destination_id}/deactivate", tag = "Event destinations",
    params(("destination_id" = String, Path, description = "The destination")),
    request_body = Option<requests::Empty>,
    responses((status = 200, description = "The destination", body = answers::EventDestination)),
)]
async fn deactivate_destination(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    _: Body<requests::Empty>,
) -> Result {
    query.finish()?;
    let (tenant, destination_id) = (access.tenant.to_string(), destination_id(&id)?);
    let request = v1::DeactivateDestinationRequest { tenant, destination_id };
    Ok(Answer::ok(shown(gateway.backend.notifier("deactivate_destination", &request).await?)?))
}

/// Sends what happened since a time once more.
#[utoipa::path(
    post, path = "/v2/event-destinations/{destination_id}/replay", tag = "Event destinations",
    params(("destination_id" = String, Path, description = "The destination")),
    request_body = requests::Replay,
    responses((status = 200, description = "What will be sent", body = answers::EventReplay)),
)]
async fn replay_events(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    Body(body): Body<requests::Replay>,
) -> Result {
    query.finish()?;
    let id = destination_id(&id)?;
    let since_ms = time_ms("since", &body.since)?;
    let request = v1::ReplayRequest { tenant: access.tenant.to_string(), destination_id: id.clone(), since_ms };
    let answer: v1::ReplayResponse = gateway.backend.notifier("replay", &request).await?;
    Ok(Answer::ok(json!({
        "object": "event_replay",
        "destination_id": id,
        "since": json::time(since_ms),
        "until": json::time(answer.until_ms),
    })))
}

/// Lists a destination's deliveries, newest first.
#[utoipa::path(
    get, path = "/v2/event-destinations/{destination_id}/deliveries", tag = "Event destinations",
    params(
        ("destination_id" = String, Path, description = "The destination"),
        ("status" = Option<Vec<String>>, Query, description = "pending, delivered, failed"),
        ("event_type" = Option<Vec<String>>, Query, description = "Of any of these types of event"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page", body = answers::EventDeliveryList)),
)]
async fn list_deliveries(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, mut query: Query) -> Result {
    use v1::DeliveryStatus as Status;
    let all = [("pending", Status::Pending), ("delivered", Status::Delivered), ("failed", Status::Failed)];
    let request = v1::ListDeliveriesRequest {
        tenant: access.tenant.to_string(),
        destination_id: destination_id(&id)?,
        page: Some(query.page()?),
        status: query.named("status", &all)?.into_iter().map(Into::into).collect(),
        event_type: query.many("event_type")?,
    };
    query.finish()?;
    let answer: v1::ListDeliveriesResponse = gateway.backend.notifier("list_deliveries", &request).await?;
    Ok(Answer::list(answer.deliveries.iter().map(json::delivery).collect(), answer.page))
}

/// Shows a delivery with its attempts.
#[utoipa::path(
    get, path = "/v2/event-deliveries/{delivery_id}", tag = "Event destinations",
    params(("delivery_id" = String, Path, description = "The delivery")),
    responses((status = 200, description = "The delivery", body = answers::EventDelivery)),
)]
async fn get_delivery(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let (tenant, delivery_id) = (access.tenant.to_string(), delivery_id(&id)?);
    let request = v1::GetDeliveryRequest { tenant, delivery_id };
    delivered(gateway.backend.notifier("get_delivery", &request).await?)
}

/// Makes a delivery due now.
#[utoipa::path(
    post, path = "/v2/event-deliveries/{delivery_id}/retry", tag = "Event destinations",
    params(("delivery_id" = String, Path, description = "The delivery")),
    request_body = Option<requests::Empty>,
    responses((status = 200, description = "The delivery", body = answers::EventDelivery)),
)]
async fn retry_delivery(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    _: Body<requests::Empty>,
) -> Result {
    query.finish()?;
    let (tenant, delivery_id) = (access.tenant.to_string(), delivery_id(&id)?);
    let request = v1::RetryDeliveryRequest { tenant, delivery_id };
    delivered(gateway.backend.notifier("retry_delivery", &request).await?)
}
