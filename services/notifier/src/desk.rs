//! What owners ask of their destinations and deliveries.

use std::sync::Arc;

use errand_core::{DeliveryId, DestinationId, Error, ErrorCode, EventId, Tenant, Timestamp};
use errand_proto::event::{TYPES, of_destination};
use errand_proto::{optional_id, v1};
use errand_store::paging::{Page, Paging, within_a_message};
use prost::Message as _;
use uuid::Uuid;

use crate::channel::Message;
use crate::channels::{Channels, Checked};
use crate::clock::now;
use crate::delivery::{Status as Stands, delivery_id, position_of};
use crate::destination::{
    Definition, Destination, MAX_CONFIG_BYTES, MAX_DESTINATIONS, OLD_SECRET_SECONDS, Private, Status, VaultError,
    new_secret,
};
use crate::events::outgoing;
use crate::hints::Hints;
use crate::store::{Added, DeliveryFilter, Entry, Listed};
use crate::switching::TRIES;
use crate::worker::{Shared, attempt_view, send};

/// Replays of one destination that are under way at once.
const MAX_REPLAYS: i64 = 10;

/// See the module.
#[derive(Debug)]
pub struct Desk {
    /// What workers share.
    pub shared: Arc<Shared>,
    /// Tells workers.
    pub hints: Hints,
}

/// The store cannot say.
pub(crate) fn unavailable(error: impl std::fmt::Display) -> Error {
    tracing::warn!(%error, "the store failed");
    ErrorCode::API_UNAVAILABLE.with("the store does not answer; try again later")
}

pub(crate) fn not_found() -> Error {
    ErrorCode::EVENT_DESTINATION_NOT_FOUND.with("there is no such destination").at("destination_id")
}

fn no_delivery() -> Error {
    ErrorCode::EVENT_DELIVERY_NOT_FOUND.with("there is no such delivery").at("delivery_id")
}

/// The master key is another one, or the store was tampered with: the operator's to mend.
pub(crate) fn cannot_open(error: VaultError) -> Error {
    tracing::error!(%error, "what was sealed cannot be opened");
    ErrorCode::API_ERROR.with("the destination's secrets cannot be opened")
}

fn busy() -> Error {
    ErrorCode::API_UNAVAILABLE.with("the destination is changed by others all the time; try again")
}

impl Desk {
    fn channels(&self) -> &dyn Channels {
        self.shared.channels.as_ref()
    }

    /// A tenant's destination.
    ///
    /// # Errors
    /// `request`/`event_destination_not_found`.
    pub async fn find(&self, tenant: &Tenant, id: DestinationId) -> Result<Destination, Error> {
        let found = self.shared.store.destination(id).await.map_err(unavailable)?;
        found.filter(|destination| destination.tenant == *tenant).ok_or_else(not_found)
    }

    fn opened(&self, destination: &Destination) -> Result<Private, Error> {
        self.shared.vault.open(destination.id, &destination.sealed).map_err(cannot_open)
    }

    fn parsed(&self, private: &Private, kind: &str) -> Result<Checked, Error> {
        self.channels().parse(kind, private.config.as_bytes())
    }

    /// The wire form, with what the type needs and without secrets.
    ///
    /// # Errors
    /// `api`/`api_error` where its secrets cannot be opened.
    pub fn view(&self, destination: &Destination) -> Result<v1::Destination, Error> {
        let checked = self.parsed(&self.opened(destination)?, &destination.definition.kind)?;
        Ok(self.view_of(destination, &checked))
    }

    fn view_of(&self, destination: &Destination, checked: &Checked) -> v1::Destination {
        v1::Destination { config: checked.masked.to_string().into_bytes().into(), ..destination.view() }
    }

    fn sealed(&self, id: DestinationId, private: &Private) -> Result<Vec<u8>, Error> {
        self.shared.vault.seal(id, private).map_err(cannot_open)
    }

    /// Makes a destination. Repeated with the same id and content, it gives the same answer until somebody changes it.
    ///
    /// # Errors
    /// `request`/`input_missing`, `input_invalid`, `field_unknown`; names the field.
    pub async fn create(
        &self,
        tenant: &Tenant,
        request: v1::CreateDestinationRequest,
    ) -> Result<v1::Destination, Error> {
        let id = optional_id("destination_id", &request.destination_id)?;
        let id = id.unwrap_or_else(|| DestinationId::from_uuid(Uuid::now_v7()));
        let (kind, ordered) = (request.r#type, request.ordered.unwrap_or(true));
        let definition = Definition::new(request.name, kind, &request.events, request.filter, ordered)?;
        check_config(&request.config)?;
        let checked = self.channels().parse(&definition.kind, &request.config)?;
        let config = text(checked.json.clone())?;
        let private = Private { config, secret: checked.signs.then(new_secret), old_secret: None };
        let time = now();
        let destination = Destination {
            number: 0,
            id,
            tenant: tenant.clone(),
            version: 1,
            seq: 0,
            sealed: self.sealed(id, &private)?,
            definition,
            status: Status::Active,
            inactive_reason: String::new(),
            created_at: time,
            updated_at: time,
            old_secret_expires_at: None,
            failing_since: None,
        };
        match self.shared.store.add_destination(&destination).await.map_err(unavailable)? {
            Added::Yes => {}
            Added::Taken => return self.created_before(&destination, &private, &checked).await,
            Added::TooMany => {
                let message = format!("a tenant may have {MAX_DESTINATIONS} destinations");
                return Err(ErrorCode::INPUT_INVALID.with(message));
            }
        }
        self.hints.changed().await;
        Ok(v1::Destination { secret: private.secret.unwrap_or_default(), ..self.view_of(&destination, &checked) })
    }

    async fn created_before(
        &self,
        wanted: &Destination,
        private: &Private,
        checked: &Checked,
    ) -> Result<v1::Destination, Error> {
        let taken = || ErrorCode::INPUT_INVALID.with("there is another destination of this id").at("destination_id");
        let there = self.find(&wanted.tenant, wanted.id).await.map_err(|_| taken())?;
        let opened = self.opened(&there)?;
        if there.definition != wanted.definition || there.version != 1 || opened.config != private.config {
            return Err(taken());
        }
        Ok(v1::Destination { secret: opened.secret.unwrap_or_default(), ..self.view_of(&there, checked) })
    }

    /// A tenant's destinations, newest first.
    ///
    /// # Errors
    /// `request`/`input_invalid`, `request`/`cursor_invalid`.
    pub async fn list(
        &self,
        tenant: &Tenant,
        request: v1::ListDestinationsRequest,
    ) -> Result<v1::ListDestinationsResponse, Error> {
        let mut paging = Paging::new(request.page.as_ref(), |id: DestinationId| id.uuid())?;
        let statuses = numbers("status", &request.status, |status: v1::DestinationStatus| {
            (status != v1::DestinationStatus::Unspecified).then_some(i32::from(status))
        })?;
        let all = self.shared.store.destinations_of(tenant).await.map_err(unavailable)?;
        while let Some(place) = paging.next_place() {
            use errand_store::paging::Place;
            let uuids = |one: &&Destination| match place {
                Place::Newest => true,
                Place::Before(id) => one.id.uuid() < id,
                Place::After(id) => one.id.uuid() > id,
            };
            let mut rows: Vec<&Destination> = all.iter().filter(uuids).collect();
            if matches!(place, Place::After(_)) {
                rows.reverse();
            }
            let fits = |one: &Destination| {
                (request.r#type.is_empty() || request.r#type.contains(&one.definition.kind))
                    && (statuses.is_empty() || statuses.contains(&one.view().status))
            };
            paging.take(rows.into_iter().map(|one| (one.id.uuid(), fits(one).then_some(one))).collect());
        }
        let Page { items, has_more, next } = paging.finish();
        let views = items.into_iter().map(|one| self.view(one)).collect::<Result<Vec<_>, Error>>()?;
        let (destinations, complete) = within_a_message(views);
        let next_cursor = match destinations.last() {
            Some(last) if !complete => last.id.clone(),
            _ => next.map(|uuid| DestinationId::from_uuid(uuid).to_string()).unwrap_or_default(),
        };
        let page = Some(v1::PageInfo { has_more: has_more || !complete, next_cursor });
        Ok(v1::ListDestinationsResponse { destinations, page })
    }

    /// Changes what the request sets.
    ///
    /// # Errors
    /// As [`Self::create`], and `request`/`event_destination_not_found`.
    pub async fn update(
        &self,
        tenant: &Tenant,
        id: DestinationId,
        request: &v1::UpdateDestinationRequest,
    ) -> Result<v1::Destination, Error> {
        check_config(&request.config)?;
        for _ in 0..TRIES {
            let mut changed = self.find(tenant, id).await?;
            let mut private = self.opened(&changed)?;
            let kind = changed.definition.kind.clone();
            changed.definition.change(request)?;
            if !request.config.is_empty() {
                let checked = self.channels().parse_change(&kind, private.config.as_bytes(), &request.config)?;
                private.config = text(checked.json)?;
            }
            let checked = self.parsed(&private, &kind)?;
            changed.sealed = self.sealed(id, &private)?;
            changed.updated_at = now();
            if self.shared.store.change_destination(&changed).await.map_err(unavailable)? {
                self.hints.changed().await;
                return Ok(self.view_of(&changed, &checked));
            }
        }
        Err(busy())
    }

    /// Deletes; what waits is given up.
    ///
    /// # Errors
    /// `request`/`event_destination_not_found`.
    pub async fn delete(&self, tenant: &Tenant, id: DestinationId) -> Result<v1::Destination, Error> {
        let destination = self.find(tenant, id).await?;
        let view = self.view(&destination).unwrap_or_else(|_| destination.view());
        self.shared.store.delete_destination(destination.number).await.map_err(unavailable)?;
        self.hints.changed().await;
        Ok(view)
    }

    /// Makes a new signing secret; the one before is used beside it for 24 h.
    ///
    /// # Errors
    /// `request`/`event_destination_not_found`, `request`/`input_invalid` for a type that does not sign.
    pub async fn rotate_secret(&self, tenant: &Tenant, id: DestinationId) -> Result<v1::Destination, Error> {
        for _ in 0..TRIES {
            let mut changed = self.find(tenant, id).await?;
            let mut private = self.opened(&changed)?;
            let checked = self.parsed(&private, &changed.definition.kind)?;
            if !checked.signs {
                let message = format!("a destination of type {} has no signing secret", changed.definition.kind);
                return Err(ErrorCode::INPUT_INVALID.with(message).at("destination_id"));
            }
            let secret = new_secret();
            private.old_secret = private.secret.replace(secret.clone());
            changed.updated_at = now();
            changed.old_secret_expires_at = Some(changed.updated_at.plus_seconds(OLD_SECRET_SECONDS));
            changed.sealed = self.sealed(id, &private)?;
            if self.shared.store.change_destination(&changed).await.map_err(unavailable)? {
                self.hints.changed().await;
                return Ok(v1::Destination { secret, ..self.view_of(&changed, &checked) });
            }
        }
        Err(busy())
    }

    /// Sends again, what was missed first.
    ///
    /// # Errors
    /// `request`/`event_destination_not_found`.
    pub async fn activate(&self, tenant: &Tenant, id: DestinationId) -> Result<v1::Destination, Error> {
        self.find(tenant, id).await?;
        self.view(&self.shared.switching.activate(id).await?)
    }

    /// Sends no more; what there is to be sent is kept.
    ///
    /// # Errors
    /// `request`/`event_destination_not_found`.
    pub async fn deactivate(&self, tenant: &Tenant, id: DestinationId) -> Result<v1::Destination, Error> {
        self.find(tenant, id).await?;
        self.view(&self.shared.switching.deactivate(id, "it was asked for").await?)
    }

    /// Sends a test event now, once, and keeps what became of it.
    ///
    /// # Errors
    /// `request`/`event_destination_not_found`. That it was not taken is no error, it is the answer.
    pub async fn test(&self, tenant: &Tenant, id: DestinationId) -> Result<v1::Delivery, Error> {
        let destination = self.find(tenant, id).await?;
        let private = self.opened(&destination)?;
        let at = now();
        let secrets = private.secrets(destination.old_secret_expires_at, at);
        let kind = &destination.definition.kind;
        let channel = self.channels().open(kind, private.config.as_bytes(), &secrets)?;
        let event_id = EventId::from_uuid(Uuid::now_v7());
        let event = of_destination(event_id, &destination.view(), "test", destination.seq, at);
        let message = Message { now: at, ..outgoing(event_id, &event, event.encode_to_vec().into()) };
        let started = tokio::time::Instant::now();
        let result = send(channel.as_ref(), &message, self.shared.settings.attempt_timeout).await;
        let attempts = vec![attempt_view(1, at, started.elapsed(), &result)];
        let log = v1::Delivery { attempts, ..v1::Delivery::default() }.encode_to_vec();
        let entry = Entry {
            id: event_id,
            event_type: message.event_type,
            object_id: message.object_id,
            payload: message.protobuf,
            destinations: Vec::new(),
        };
        let status = if result.is_ok() { Stands::Delivered } else { Stands::Failed };
        let store = &self.shared.store;
        let added = store.add_test(&entry, destination.number, status, now().0, &log).await;
        self.delivery_at(added.map_err(unavailable)?, &destination).await
    }

    async fn delivery_at(&self, position: i64, destination: &Destination) -> Result<v1::Delivery, Error> {
        let found = self.shared.store.delivery(position).await.map_err(unavailable)?.ok_or_else(no_delivery)?;
        Ok(v1::Delivery { destination_id: destination.id.to_string(), ..found.view })
    }

    /// A destination's deliveries, newest first.
    ///
    /// # Errors
    /// `request`/`event_destination_not_found`, `request`/`input_invalid`, `request`/`cursor_invalid`.
    pub async fn list_deliveries(
        &self,
        tenant: &Tenant,
        id: DestinationId,
        request: v1::ListDeliveriesRequest,
    ) -> Result<v1::ListDeliveriesResponse, Error> {
        let mut paging = Paging::<Listed>::new(request.page.as_ref(), |id: DeliveryId| id.uuid())?;
        let status = numbers("status", &request.status, |status: v1::DeliveryStatus| {
            (status != v1::DeliveryStatus::Unspecified).then_some(status)
        })?;
        let filter = DeliveryFilter { status, event_type: event_types(request.event_type)? };
        let destination = self.find(tenant, id).await?;
        while let Some(place) = paging.next_place() {
            let rows = self.shared.store.scan_deliveries(destination.number, &filter, place).await;
            paging.take(rows.map_err(unavailable)?);
        }
        let Page { items, has_more, next } = paging.finish();
        let views = items.into_iter().map(|listed| v1::Delivery {
            destination_id: destination.id.to_string(),
            attempts: Vec::new(),
            ..listed.view
        });
        let (deliveries, complete) = within_a_message(views.collect());
        let next_cursor = match deliveries.last() {
            Some(last) if !complete => last.id.clone(),
            _ => next.map(|uuid| DeliveryId::from_uuid(uuid).to_string()).unwrap_or_default(),
        };
        let page = Some(v1::PageInfo { has_more: has_more || !complete, next_cursor });
        Ok(v1::ListDeliveriesResponse { deliveries, page })
    }

    async fn find_delivery(&self, tenant: &Tenant, id: DeliveryId) -> Result<(Listed, Destination), Error> {
        let found = self.shared.store.delivery(position_of(id.uuid())).await.map_err(unavailable)?;
        let listed = found.ok_or_else(no_delivery)?;
        // The position alone could be guessed, or be another one's by now.
        if delivery_id(listed.position, Timestamp(listed.view.created_at_ms)) != id {
            return Err(no_delivery());
        }
        let all = self.shared.store.destinations_of(tenant).await.map_err(unavailable)?;
        let destination = all.into_iter().find(|one| one.number == listed.destination).ok_or_else(no_delivery)?;
        Ok((listed, destination))
    }

    /// One delivery with its attempts.
    ///
    /// # Errors
    /// `request`/`event_delivery_not_found`.
    pub async fn delivery(&self, tenant: &Tenant, id: DeliveryId) -> Result<v1::Delivery, Error> {
        let (listed, destination) = self.find_delivery(tenant, id).await?;
        Ok(v1::Delivery { destination_id: destination.id.to_string(), ..listed.view })
    }

    /// Makes a delivery due now, with its whole schedule before it.
    ///
    /// # Errors
    /// `request`/`event_delivery_not_found`.
    pub async fn retry(&self, tenant: &Tenant, id: DeliveryId) -> Result<v1::Delivery, Error> {
        let (listed, destination) = self.find_delivery(tenant, id).await?;
        self.shared.store.deliver_again(listed.position, now().0).await.map_err(unavailable)?;
        self.hints.due([destination.number].into()).await;
        self.delivery_at(listed.position, &destination).await
    }

    /// Sends what the event stream holds since a time once more.
    ///
    /// # Errors
    /// `request`/`event_destination_not_found`, `request`/`input_invalid`.
    pub async fn replay(
        &self,
        tenant: &Tenant,
        id: DestinationId,
        since: Timestamp,
    ) -> Result<v1::ReplayResponse, Error> {
        let until = now();
        if since.0 <= 0 || since > until {
            return Err(ErrorCode::INPUT_INVALID.with("since must be a time in the past").at("since_ms"));
        }
        let destination = self.find(tenant, id).await?;
        if self.shared.store.replays_of(destination.number).await.map_err(unavailable)? >= MAX_REPLAYS {
            let message = format!("{MAX_REPLAYS} replays of this destination are under way; wait for one to end");
            return Err(ErrorCode::RATE_LIMIT_EXCEEDED.with(message));
        }
        self.shared.store.add_replay(destination.number, since, until).await.map_err(unavailable)?;
        self.hints.replay();
        Ok(v1::ReplayResponse { until_ms: until.0 })
    }
}

fn check_config(config: &[u8]) -> Result<(), Error> {
    if config.len() <= MAX_CONFIG_BYTES {
        return Ok(());
    }
    Err(ErrorCode::INPUT_INVALID.with(format!("config is larger than {MAX_CONFIG_BYTES} bytes")).at("config"))
}

fn text(json: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(json).map_err(|_| ErrorCode::INPUT_INVALID.with("config is not UTF-8").at("config"))
}

/// Enum values of a filter.
fn numbers<W: TryFrom<i32>, T>(
    field: &str,
    values: &[i32],
    convert: impl Fn(W) -> Option<T> + Copy,
) -> Result<Vec<T>, Error> {
    values.iter().map(|value| errand_proto::named(field, *value, convert)).collect()
}

fn event_types(types: Vec<String>) -> Result<Vec<String>, Error> {
    let known = |one: &String| TYPES.contains(&one.as_str()) || one == "event_destination.test";
    match types.iter().find(|one| !known(one)) {
        None => Ok(types),
        Some(unknown) => {
            let shown: String = unknown.chars().take(80).collect();
            Err(ErrorCode::INPUT_INVALID.with(format!("{shown:?} is no type of event")).at("event_type"))
        }
    }
}
