//! Event destinations, and what is delivered to them.

use errand_core::{DeliveryId, DestinationId, Timestamp};
use errand_proto::v1;
use futures::Stream;
use prost::Message;
use serde_json::Value;
use uuid::Uuid;

use crate::call::{Repeat, present};
use crate::{Client, ClientError, pages};

/// A destination to be made. Its id is chosen here, so that the call may be repeated.
#[derive(Debug, Clone)]
pub struct NewDestination {
    id: DestinationId,
    request: v1::CreateDestinationRequest,
}

impl NewDestination {
    /// A destination of a type (`webhook`), with what the type needs (`{"url": ...}`), for these events
    /// (`task_run.completed`, `task_run.*`, `*`).
    #[must_use]
    pub fn new(name: &str, kind: &str, config: &Value, events: &[&str]) -> Self {
        let request = v1::CreateDestinationRequest {
            name: name.to_owned(),
            r#type: kind.to_owned(),
            config: config.to_string().into_bytes().into(),
            events: events.iter().map(ToString::to_string).collect(),
            ..v1::CreateDestinationRequest::default()
        };
        Self { id: DestinationId::from_uuid(Uuid::now_v7()), request }
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> DestinationId {
        self.id
    }

    /// Only events of certain objects.
    #[must_use]
    pub fn filter(mut self, filter: v1::DestinationFilter) -> Self {
        self.request.filter = Some(filter);
        self
    }

    /// An object's events need not wait for one another.
    #[must_use]
    pub const fn unordered(mut self) -> Self {
        self.request.ordered = Some(false);
        self
    }
}

/// Which destinations; nothing set: all.
#[derive(Debug, Clone, Default)]
pub struct DestinationFilter {
    /// Of one of these types.
    pub types: Vec<String>,
    /// In one of these states.
    pub status: Vec<v1::DestinationStatus>,
}

/// Which deliveries of a destination; nothing set: all.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// In one of these states.
    pub status: Vec<v1::DeliveryStatus>,
    /// Of one of these types of events.
    pub event_types: Vec<String>,
}

impl Client {
    async fn notifier<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        repeat: Repeat,
    ) -> Result<A, ClientError> {
        self.call("notifier", method, request, repeat).await
    }

    async fn destination_call<Q: Message>(
        &self,
        method: &str,
        request: &Q,
        repeat: Repeat,
    ) -> Result<v1::Destination, ClientError> {
        let answer: v1::DestinationResponse = self.notifier(method, request, repeat).await?;
        present(answer.destination, "destination")
    }

    /// Makes a destination. The answer alone shows its signing secret.
    ///
    /// # Errors
    /// [`ClientError`]; names the field at fault.
    pub async fn create_destination(&self, new: NewDestination) -> Result<v1::Destination, ClientError> {
        let (tenant, destination_id) = (self.tenant.to_string(), new.id.to_string());
        let request = v1::CreateDestinationRequest { tenant, destination_id, ..new.request };
        self.destination_call("create_destination", &request, Repeat::Safe).await
    }

    /// One destination.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`event_destination_not_found`.
    pub async fn get_destination(&self, id: DestinationId) -> Result<v1::Destination, ClientError> {
        let request = v1::GetDestinationRequest { tenant: self.tenant.to_string(), destination_id: id.to_string() };
        self.destination_call("get_destination", &request, Repeat::Safe).await
    }

    /// The tenant's destinations, newest first.
    pub fn destinations(
        &self,
        filter: DestinationFilter,
    ) -> impl Stream<Item = Result<v1::Destination, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let status: Vec<i32> = filter.status.into_iter().map(Into::into).collect();
        let pages = pages::stream(move |cursor| {
            let (client, status, types) = (client.clone(), status.clone(), filter.types.clone());
            async move {
                let (tenant, page) = (client.tenant.to_string(), pages::page(cursor));
                let request = v1::ListDestinationsRequest { tenant, page, r#type: types, status };
                let page: v1::ListDestinationsResponse =
                    client.notifier("list_destinations", &request, Repeat::Safe).await?;
                Ok((page.destinations, pages::following(page.page)))
            }
        });
        Box::pin(pages)
    }

    /// Changes what the request sets; its tenant and destination are filled in here.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`event_destination_not_found`, or the field at fault.
    pub async fn update_destination(
        &self,
        id: DestinationId,
        change: v1::UpdateDestinationRequest,
    ) -> Result<v1::Destination, ClientError> {
        let (tenant, destination_id) = (self.tenant.to_string(), id.to_string());
        let request = v1::UpdateDestinationRequest { tenant, destination_id, ..change };
        self.destination_call("update_destination", &request, Repeat::Safe).await
    }

    /// Deletes a destination; what waits for it is given up.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`event_destination_not_found`.
    pub async fn delete_destination(&self, id: DestinationId) -> Result<v1::Destination, ClientError> {
        let request = v1::DeleteDestinationRequest { tenant: self.tenant.to_string(), destination_id: id.to_string() };
        self.destination_call("delete_destination", &request, Repeat::Unreceived).await
    }

    /// Sends a test event now. That it was not taken stands in the delivery, and is no error.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`event_destination_not_found`.
    pub async fn test_destination(&self, id: DestinationId) -> Result<v1::Delivery, ClientError> {
        let request = v1::TestDestinationRequest { tenant: self.tenant.to_string(), destination_id: id.to_string() };
        let answer: v1::DeliveryResponse = self.notifier("test_destination", &request, Repeat::Unreceived).await?;
        present(answer.delivery, "delivery")
    }

    /// Makes a new signing secret, which the answer alone shows; the one before is used beside it for 24 h.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`event_destination_not_found`, `request`/`input_invalid` where the type has none.
    pub async fn rotate_secret(&self, id: DestinationId) -> Result<v1::Destination, ClientError> {
        let request = v1::RotateSecretRequest { tenant: self.tenant.to_string(), destination_id: id.to_string() };
        // Done twice, the secret before would be gone too soon.
        self.destination_call("rotate_secret", &request, Repeat::Unreceived).await
    }

    /// Sends to it again, what it missed first.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`event_destination_not_found`.
    pub async fn activate_destination(&self, id: DestinationId) -> Result<v1::Destination, ClientError> {
        let (tenant, destination_id) = (self.tenant.to_string(), id.to_string());
        let request = v1::ActivateDestinationRequest { tenant, destination_id };
        self.destination_call("activate_destination", &request, Repeat::Safe).await
    }

    /// Sends no more to it; what it is to get is kept.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`event_destination_not_found`.
    pub async fn deactivate_destination(&self, id: DestinationId) -> Result<v1::Destination, ClientError> {
        let (tenant, destination_id) = (self.tenant.to_string(), id.to_string());
        let request = v1::DeactivateDestinationRequest { tenant, destination_id };
        self.destination_call("deactivate_destination", &request, Repeat::Safe).await
    }

    /// A destination's deliveries, newest first, without their attempts.
    pub fn deliveries(
        &self,
        id: DestinationId,
        filter: DeliveryFilter,
    ) -> impl Stream<Item = Result<v1::Delivery, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let status: Vec<i32> = filter.status.into_iter().map(Into::into).collect();
        let pages = pages::stream(move |cursor| {
            let (client, status, event_type) = (client.clone(), status.clone(), filter.event_types.clone());
            async move {
                let (tenant, page) = (client.tenant.to_string(), pages::page(cursor));
                let destination_id = id.to_string();
                let request = v1::ListDeliveriesRequest { tenant, destination_id, page, status, event_type };
                let page: v1::ListDeliveriesResponse =
                    client.notifier("list_deliveries", &request, Repeat::Safe).await?;
                Ok((page.deliveries, pages::following(page.page)))
            }
        });
        Box::pin(pages)
    }

    /// One delivery with its attempts.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`event_delivery_not_found`.
    pub async fn get_delivery(&self, id: DeliveryId) -> Result<v1::Delivery, ClientError> {
        let request = v1::GetDeliveryRequest { tenant: self.tenant.to_string(), delivery_id: id.to_string() };
        let answer: v1::DeliveryResponse = self.notifier("get_delivery", &request, Repeat::Safe).await?;
        present(answer.delivery, "delivery")
    }

    /// Makes a delivery due now, with its whole schedule before it.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`event_delivery_not_found`.
    pub async fn retry_delivery(&self, id: DeliveryId) -> Result<v1::Delivery, ClientError> {
        let request = v1::RetryDeliveryRequest { tenant: self.tenant.to_string(), delivery_id: id.to_string() };
        let answer: v1::DeliveryResponse = self.notifier("retry_delivery", &request, Repeat::Unreceived).await?;
        present(answer.delivery, "delivery")
    }

    /// Sends once more what was published since a time; up to when that is.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`event_destination_not_found`.
    pub async fn replay(&self, id: DestinationId, since: Timestamp) -> Result<Timestamp, ClientError> {
        let (tenant, destination_id) = (self.tenant.to_string(), id.to_string());
        let request = v1::ReplayRequest { tenant, destination_id, since_ms: since.0 };
        let answer: v1::ReplayResponse = self.notifier("replay", &request, Repeat::Unreceived).await?;
        Ok(Timestamp(answer.until_ms))
    }

    /// How a notifier fares; of several one answers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn notifier_status(&self) -> Result<v1::NotifierStatusResponse, ClientError> {
        self.notifier("status", &v1::NotifierStatusRequest {}, Repeat::Safe).await
    }
}
