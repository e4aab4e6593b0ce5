//! Decodes, converts, asks the desk, replies.

use std::sync::{Arc, Mutex, PoisonError};

use errand_bus::{Bus, BusError, Service};
use errand_core::{DeliveryId, DestinationId, Error, ErrorCode, Tenant, Timestamp};
use errand_proto::{id, v1};

use super::last_sequence;
use crate::clock::now;
use crate::desk::{Desk, unavailable};
use crate::fan_out::Progress;

/// Requests of one method that are handled at once.
const IN_FLIGHT: usize = 256;
/// Tests wait for their destinations, so they are counted apart.
const TESTS: usize = 32;

/// What every handler reaches.
#[derive(Debug)]
pub(crate) struct Notifier {
    pub(crate) bus: Bus,
    pub(crate) progress: Arc<Mutex<Progress>>,
    pub(crate) desk: Desk,
}

/// Offers all methods.
pub(crate) async fn serve(shared: &Arc<Notifier>) -> Result<Service, BusError> {
    let subjects = shared.bus.subjects();
    let mut service = Service::builder(&shared.bus, "notifier", "tells events on, to everyone and to destinations");
    macro_rules! offer {
        ($($method:ident: $in_flight:expr),* $(,)?) => {$(
            let handling = Arc::clone(shared);
            let subject = subjects.api("notifier", stringify!($method));
            service = service.endpoint(stringify!($method), subject, $in_flight, move |request| {
                let shared = Arc::clone(&handling);
                async move { $method(&shared, request).await }
            });
        )*};
    }
    offer! {
        status: 16,
        create_destination: IN_FLIGHT,
        get_destination: IN_FLIGHT,
        list_destinations: IN_FLIGHT,
        update_destination: IN_FLIGHT,
        delete_destination: IN_FLIGHT,
        test_destination: TESTS,
        rotate_secret: IN_FLIGHT,
        activate_destination: IN_FLIGHT,
        deactivate_destination: IN_FLIGHT,
        list_deliveries: IN_FLIGHT,
        get_delivery: IN_FLIGHT,
        retry_delivery: IN_FLIGHT,
        replay: IN_FLIGHT,
    }
    service.start().await
}

fn whose(tenant: &str, destination: &str) -> Result<(Tenant, DestinationId), Error> {
    Ok((id("tenant", tenant)?, id("destination_id", destination)?))
}

fn answer(destination: v1::Destination) -> v1::DestinationResponse {
    v1::DestinationResponse { destination: Some(destination) }
}

fn delivered(delivery: v1::Delivery) -> v1::DeliveryResponse {
    v1::DeliveryResponse { delivery: Some(delivery) }
}

async fn status(shared: &Notifier, _: v1::NotifierStatusRequest) -> Result<v1::NotifierStatusResponse, Error> {
    let last = last_sequence(&shared.bus).await;
    let last = last.map_err(|error| ErrorCode::API_UNAVAILABLE.with(error.to_string()))?;
    let progress = *shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
    let workers = &shared.desk.shared;
    let (waiting, time) = (workers.store.waiting().await.map_err(unavailable)?, now());
    let destinations = waiting.into_iter().map(|waiting| {
        let counts = workers.figures.of(waiting.number);
        v1::DestinationFigures {
            destination_id: waiting.destination.to_string(),
            tenant: waiting.tenant,
            pending: waiting.pending,
            oldest_pending_ms: waiting.oldest.map_or(0, |oldest| time.millis_since(oldest)),
            attempts: counts.attempts,
            delivered: counts.delivered,
            failed_attempts: counts.failed_attempts,
            failed: counts.failed,
            lag_ms: counts.lag_ms,
        }
    });
    Ok(v1::NotifierStatusResponse {
        published: progress.published,
        redelivered: progress.redelivered,
        dead_letters: progress.dead_letters,
        stream_sequence: progress.stream_sequence,
        last_stream_sequence: last,
        lag_ms: progress.lag_ms,
        destinations: destinations.collect(),
    })
}

async fn create_destination(
    shared: &Notifier,
    request: v1::CreateDestinationRequest,
) -> Result<v1::DestinationResponse, Error> {
    let tenant: Tenant = id("tenant", &request.tenant)?;
    shared.desk.create(&tenant, request).await.map(answer)
}

async fn get_destination(
    shared: &Notifier,
    request: v1::GetDestinationRequest,
) -> Result<v1::DestinationResponse, Error> {
    let (tenant, id) = whose(&request.tenant, &request.destination_id)?;
    shared.desk.view(&shared.desk.find(&tenant, id).await?).map(answer)
}

async fn list_destinations(
    shared: &Notifier,
    request: v1::ListDestinationsRequest,
) -> Result<v1::ListDestinationsResponse, Error> {
    let tenant: Tenant = id("tenant", &request.tenant)?;
    shared.desk.list(&tenant, request).await
}

async fn update_destination(
    shared: &Notifier,
    request: v1::UpdateDestinationRequest,
) -> Result<v1::DestinationResponse, Error> {
    let (tenant, id) = whose(&request.tenant, &request.destination_id)?;
    shared.desk.update(&tenant, id, &request).await.map(answer)
}

async fn delete_destination(
    shared: &Notifier,
    request: v1::DeleteDestinationRequest,
) -> Result<v1::DestinationResponse, Error> {
    let (tenant, id) = whose(&request.tenant, &request.destination_id)?;
    shared.desk.delete(&tenant, id).await.map(answer)
}

async fn test_destination(
    shared: &Notifier,
    request: v1::TestDestinationRequest,
) -> Result<v1::DeliveryResponse, Error> {
    let (tenant, id) = whose(&request.tenant, &request.destination_id)?;
    shared.desk.test(&tenant, id).await.map(delivered)
}

async fn rotate_secret(shared: &Notifier, request: v1::RotateSecretRequest) -> Result<v1::DestinationResponse, Error> {
    let (tenant, id) = whose(&request.tenant, &request.destination_id)?;
    shared.desk.rotate_secret(&tenant, id).await.map(answer)
}

async fn activate_destination(
    shared: &Notifier,
    request: v1::ActivateDestinationRequest,
) -> Result<v1::DestinationResponse, Error> {
    let (tenant, id) = whose(&request.tenant, &request.destination_id)?;
    shared.desk.activate(&tenant, id).await.map(answer)
}

async fn deactivate_destination(
    shared: &Notifier,
    request: v1::DeactivateDestinationRequest,
) -> Result<v1::DestinationResponse, Error> {
    let (tenant, id) = whose(&request.tenant, &request.destination_id)?;
    shared.desk.deactivate(&tenant, id).await.map(answer)
}

async fn list_deliveries(
    shared: &Notifier,
    request: v1::ListDeliveriesRequest,
) -> Result<v1::ListDeliveriesResponse, Error> {
    let (tenant, id) = whose(&request.tenant, &request.destination_id)?;
    shared.desk.list_deliveries(&tenant, id, request).await
}

async fn get_delivery(shared: &Notifier, request: v1::GetDeliveryRequest) -> Result<v1::DeliveryResponse, Error> {
    let tenant: Tenant = id("tenant", &request.tenant)?;
    let delivery: DeliveryId = id("delivery_id", &request.delivery_id)?;
    shared.desk.delivery(&tenant, delivery).await.map(delivered)
}

async fn retry_delivery(shared: &Notifier, request: v1::RetryDeliveryRequest) -> Result<v1::DeliveryResponse, Error> {
    let tenant: Tenant = id("tenant", &request.tenant)?;
    let delivery: DeliveryId = id("delivery_id", &request.delivery_id)?;
    shared.desk.retry(&tenant, delivery).await.map(delivered)
}

async fn replay(shared: &Notifier, request: v1::ReplayRequest) -> Result<v1::ReplayResponse, Error> {
    let (tenant, id) = whose(&request.tenant, &request.destination_id)?;
    shared.desk.replay(&tenant, id, Timestamp(request.since_ms)).await
}
