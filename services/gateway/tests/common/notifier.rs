//! What the gateway's tests need of a notifier: destinations and deliveries in memory. The notifier itself has tests of
//! its own; here it stands for a service that keeps tenants apart.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use errand_bus::{Bus, Service, ServiceBuilder};
use errand_core::{DeliveryId, DestinationId, Error, ErrorCode};
use errand_proto::v1;
use uuid::Uuid;

type Kept = Arc<Mutex<BTreeMap<(String, String), v1::Destination>>>;
type Deliveries = Arc<Mutex<BTreeMap<(String, String), v1::Delivery>>>;

fn missing(what: &str) -> Error {
    let code = if what == "event delivery" {
        ErrorCode::EVENT_DELIVERY_NOT_FOUND
    } else {
        ErrorCode::EVENT_DESTINATION_NOT_FOUND
    };
    code.with(format!("there is no such {what}"))
}

fn change(
    kept: &Kept,
    key: (String, String),
    change: impl FnOnce(&mut v1::Destination),
) -> Result<v1::DestinationResponse, Error> {
    let mut kept = kept.lock().unwrap();
    let destination = kept.get_mut(&key).ok_or_else(|| missing("event destination"))?;
    change(destination);
    let answer = v1::DestinationResponse { destination: Some(destination.clone()) };
    destination.secret.clear();
    Ok(answer)
}

fn made(request: v1::CreateDestinationRequest) -> Result<v1::Destination, Error> {
    let url: serde_json::Value = serde_json::from_slice(&request.config).unwrap_or_default();
    if request.r#type != "webhook" || !url["url"].is_string() {
        return Err(ErrorCode::INPUT_INVALID.with("this stand-in knows webhooks with a url").at("type"));
    }
    let id = if request.destination_id.is_empty() {
        DestinationId::from_uuid(Uuid::now_v7()).to_string()
    } else {
        request.destination_id
    };
    Ok(v1::Destination {
        id,
        tenant: request.tenant,
        name: request.name,
        r#type: request.r#type,
        config: request.config,
        events: request.events,
        filter: request.filter,
        ordered: request.ordered.unwrap_or(true),
        status: v1::DestinationStatus::Active.into(),
        secret: format!("whsec_{}", Uuid::now_v7().simple()),
        ..v1::Destination::default()
    })
}

/// A page's place must be an object's id, as with the notifier.
fn check_place<Id: std::str::FromStr<Err: std::fmt::Display>>(page: Option<&v1::Page>) -> Result<(), Error> {
    let page = errand_proto::page(page)?;
    errand_proto::optional_id::<Id>("cursor", &page.cursor)?;
    errand_proto::optional_id::<Id>("starting_after", &page.starting_after)?;
    errand_proto::optional_id::<Id>("ending_before", &page.ending_before)?;
    Ok(())
}

fn delivered(destination: &v1::Destination) -> v1::Delivery {
    v1::Delivery {
        id: DeliveryId::from_uuid(Uuid::now_v7()).to_string(),
        destination_id: destination.id.clone(),
        event_id: "evt_01h455vb4pex5vsknk084sn02q".into(),
        event_type: "event_destination.test".into(),
        object_id: destination.id.clone(),
        status: v1::DeliveryStatus::Delivered.into(),
        attempt_count: 1,
        origin: "test".into(),
        ..v1::Delivery::default()
    }
}

/// Adds methods over what is kept.
macro_rules! offer {
    ($bus:ident, $kept:ident, $deliveries:ident, $service:ident, $($method:literal ($request:ident: $kind:ty) $handle:expr;)*) => {$(
        let (all, sent) = (Arc::clone($kept), Arc::clone($deliveries));
        let subject = $bus.subjects().api("notifier", $method);
        $service = $service.endpoint($method, subject, 64, move |$request: $kind| {
            let (all, sent) = (Arc::clone(&all), Arc::clone(&sent));
            async move { ($handle)(&all, &sent) }
        });
    )*};
}

/// Serves.
pub(crate) async fn start(bus: &Bus) -> Service {
    let (kept, deliveries) = (Kept::default(), Deliveries::default());
    let service = Service::builder(bus, "notifier", "stands in for the notifier");
    let service = offer_destinations(service, bus, &kept, &deliveries);
    offer_deliveries(service, bus, &kept, &deliveries).start().await.unwrap()
}

fn offer_destinations(mut service: ServiceBuilder, bus: &Bus, kept: &Kept, deliveries: &Deliveries) -> ServiceBuilder {
    offer! { bus, kept, deliveries, service,
        "status" (_r: v1::NotifierStatusRequest) |_: &Kept, _: &Deliveries| {
            Ok::<_, Error>(v1::NotifierStatusResponse::default())
        };
        "create_destination" (r: v1::CreateDestinationRequest) |all: &Kept, _: &Deliveries| {
            let destination = made(r)?;
            let key = (destination.tenant.clone(), destination.id.clone());
            all.lock().unwrap().entry(key.clone()).or_insert(destination);
            change(all, key, |_| {})
        };
        "get_destination" (r: v1::GetDestinationRequest) |all: &Kept, _: &Deliveries| {
            change(all, (r.tenant, r.destination_id), |_| {})
        };
        "update_destination" (r: v1::UpdateDestinationRequest) |all: &Kept, _: &Deliveries| {
            change(all, (r.tenant, r.destination_id), |kept| {
                if !r.name.is_empty() { kept.name = r.name }
                if !r.events.is_empty() { kept.events = r.events }
            })
        };
        "delete_destination" (r: v1::DeleteDestinationRequest) |all: &Kept, _: &Deliveries| {
            let removed = all.lock().unwrap().remove(&(r.tenant, r.destination_id));
            removed.map(|kept| v1::DestinationResponse { destination: Some(kept) })
                .ok_or_else(|| missing("event destination"))
        };
        "rotate_secret" (r: v1::RotateSecretRequest) |all: &Kept, _: &Deliveries| {
            change(all, (r.tenant, r.destination_id), |kept| kept.secret = "whsec_new".into())
        };
        "activate_destination" (r: v1::ActivateDestinationRequest) |all: &Kept, _: &Deliveries| {
            change(all, (r.tenant, r.destination_id), |kept| kept.status = v1::DestinationStatus::Active.into())
        };
        "deactivate_destination" (r: v1::DeactivateDestinationRequest) |all: &Kept, _: &Deliveries| {
            change(all, (r.tenant, r.destination_id), |kept| kept.status = v1::DestinationStatus::Inactive.into())
        };
    }
    service
}

fn offer_deliveries(mut service: ServiceBuilder, bus: &Bus, kept: &Kept, deliveries: &Deliveries) -> ServiceBuilder {
    offer! { bus, kept, deliveries, service,
        "test_destination" (r: v1::TestDestinationRequest) |all: &Kept, sent: &Deliveries| {
            let found = change(all, (r.tenant.clone(), r.destination_id), |_| {})?;
            let delivery = delivered(&found.destination.unwrap());
            sent.lock().unwrap().insert((r.tenant, delivery.id.clone()), delivery.clone());
            Ok::<_, Error>(v1::DeliveryResponse { delivery: Some(delivery) })
        };
        "replay" (r: v1::ReplayRequest) |all: &Kept, _: &Deliveries| {
            change(all, (r.tenant, r.destination_id), |_| {})?;
            Ok::<_, Error>(v1::ReplayResponse { until_ms: r.since_ms + 1 })
        };
        "list_destinations" (r: v1::ListDestinationsRequest) |all: &Kept, _: &Deliveries| {
            check_place::<DestinationId>(r.page.as_ref())?;
            let all = all.lock().unwrap();
            let own = all.iter().filter(|((tenant, _), _)| *tenant == r.tenant).map(|(_, kept)| kept.clone());
            let destinations = own.take(r.page.unwrap_or_default().limit as usize).collect();
            Ok::<_, Error>(v1::ListDestinationsResponse { destinations, page: None })
        };
        "list_deliveries" (r: v1::ListDeliveriesRequest) |all: &Kept, sent: &Deliveries| {
            check_place::<DeliveryId>(r.page.as_ref())?;
            change(all, (r.tenant, r.destination_id.clone()), |_| {})?;
            let sent = sent.lock().unwrap();
            let own = sent.values().filter(|delivery| delivery.destination_id == r.destination_id).cloned();
            let deliveries = own.take(r.page.unwrap_or_default().limit as usize).collect();
            Ok::<_, Error>(v1::ListDeliveriesResponse { deliveries, page: None })
        };
        "get_delivery" (r: v1::GetDeliveryRequest) |_: &Kept, sent: &Deliveries| {
            let found = sent.lock().unwrap().get(&(r.tenant, r.delivery_id)).cloned();
            found.map(|delivery| v1::DeliveryResponse { delivery: Some(delivery) })
                .ok_or_else(|| missing("event delivery"))
        };
        "retry_delivery" (r: v1::RetryDeliveryRequest) |_: &Kept, sent: &Deliveries| {
            let found = sent.lock().unwrap().get(&(r.tenant, r.delivery_id)).cloned();
            found.map(|delivery| v1::DeliveryResponse { delivery: Some(delivery) })
                .ok_or_else(|| missing("event delivery"))
        };
    }
    service
}
