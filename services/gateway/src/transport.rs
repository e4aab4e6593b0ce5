//! What the gateway is asked over NATS: keys. And what gateways tell each other of them.

use std::sync::Arc;
use std::time::Duration;

use errand_bus::{Bus, BusError, Service};
use errand_core::{ApiKeyId, Error, ErrorCode, Tenant, limits};
use errand_proto::{id, optional_id, page, v1};
use futures::StreamExt;
use prost::Message;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::auth::{now_ms, unavailable};
use crate::scope::Scopes;
use crate::service::Gateway;
use crate::store::StoredKey;

const IN_FLIGHT: usize = 64;
const MAX_SCOPES: usize = 20;
/// The subject among `gateway.*` on which gateways hear that a key has changed.
const KEYS: &str = "keys";
const NOTE_USED: Duration = Duration::from_secs(5);

/// Offers all methods.
///
/// # Errors
/// [`BusError::Listen`].
pub async fn serve(bus: &Bus, gateway: &Arc<Gateway>) -> Result<Service, BusError> {
    let subject = |method: &str| bus.subjects().api("gateway", method);
    let [creating, listing, revoking] = std::array::from_fn(|_| Arc::clone(gateway));
    Service::builder(bus, "gateway", "owns HTTP and API keys")
        .endpoint("create_key", subject("create_key"), IN_FLIGHT, move |request| {
            let gateway = Arc::clone(&creating);
            async move { create_key(&gateway, request).await }
        })
        .endpoint("list_keys", subject("list_keys"), IN_FLIGHT, move |request| {
            let gateway = Arc::clone(&listing);
            async move { list_keys(&gateway, request).await }
        })
        .endpoint("revoke_key", subject("revoke_key"), IN_FLIGHT, move |request| {
            let gateway = Arc::clone(&revoking);
            async move { revoke_key(&gateway, request).await }
        })
        .start()
        .await
}

/// Hears of changed keys until shutdown.
///
/// # Errors
/// Where the subscription cannot be made, or ends.
pub async fn hear_of_keys(gateway: Arc<Gateway>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let bus = gateway.backend.bus();
    let mut changes = bus.subscribe(bus.subjects().gateway(KEYS)).await?;
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = shutdown.cancelled() => return Ok(()),
        };
        let Some(change) = change else { anyhow::bail!("the subscription to keys ended") };
        if let Ok(change) = v1::ApiKeyChanged::decode(change.payload) {
            gateway.keys.forget(&change.secret_hash);
        }
    }
}

/// Writes down which keys are used, until shutdown and once more.
///
/// # Errors
/// None: what cannot be written is logged.
pub async fn note_used(gateway: Arc<Gateway>, shutdown: CancellationToken) -> anyhow::Result<()> {
    loop {
        let ended = tokio::time::timeout(NOTE_USED, shutdown.cancelled()).await.is_ok();
        if let Err(error) = gateway.keys.note_used().await {
            tracing::warn!(%error, "when keys were used could not be written down");
        }
        if ended {
            return Ok(());
        }
    }
}

/// A hint: what is lost is made good by the short memory.
async fn tell(gateway: &Gateway, key: &StoredKey) {
    gateway.keys.forget(&key.hash);
    let bus = gateway.backend.bus();
    let change = v1::ApiKeyChanged { secret_hash: key.hash.clone().into() };
    if let Err(error) = bus.publish(bus.subjects().gateway(KEYS), &change).await {
        tracing::debug!(%error, "the other gateways were not told of a key");
    }
}

fn answered(key: &StoredKey) -> v1::ApiKeyResponse {
    v1::ApiKeyResponse { key: Some(key.into()) }
}

fn new_key(request: v1::CreateApiKeyRequest) -> Result<StoredKey, Error> {
    let invalid = |field: &str, what: String| Err(ErrorCode::INPUT_INVALID.with(format!("{field} {what}")).at(field));
    if request.name.is_empty() {
        return Err(ErrorCode::INPUT_MISSING.with("name is missing").at("name"));
    }
    if request.name.chars().count() > limits::MAX_NAME || request.name.chars().any(char::is_control) {
        return invalid("name", format!("must have 1..{} characters and no control characters", limits::MAX_NAME));
    }
    if request.scopes.len() > MAX_SCOPES {
        return invalid("scopes", format!("may be {MAX_SCOPES} at most"));
    }
    Scopes::parse(request.scopes.iter().map(String::as_str))?;
    if request.secret_hash.len() != 32 {
        return invalid("secret_hash", "must be a SHA-256".into());
    }
    if request.hint.len() > 8 {
        return invalid("hint", "is too long".into());
    }
    let now = now_ms();
    if request.expires_at_ms.is_some_and(|at| at <= now) {
        return invalid("expires_at", "lies in the past".into());
    }
    Ok(StoredKey {
        id: ApiKeyId::from_uuid(Uuid::now_v7()),
        tenant: id("tenant", &request.tenant)?,
        name: request.name,
        scopes: request.scopes.join(" "),
        hint: request.hint,
        hash: request.secret_hash.to_vec(),
        created_at: now,
        expires_at: request.expires_at_ms,
        revoked_at: None,
        last_used_at: None,
    })
}

async fn create_key(gateway: &Gateway, request: v1::CreateApiKeyRequest) -> Result<v1::ApiKeyResponse, Error> {
    let key = new_key(request)?;
    let kept = gateway.store.create_key(&key).await.map_err(unavailable)?;
    // One secret is one key: where it was made before, for the same tenant, this is a repetition.
    let kept = kept.filter(|kept| kept.tenant == key.tenant);
    let kept = kept.ok_or_else(|| ErrorCode::INPUT_INVALID.with("this secret cannot be used").at("secret_hash"))?;
    tell(gateway, &kept).await;
    Ok(answered(&kept))
}

async fn list_keys(gateway: &Gateway, request: v1::ListApiKeysRequest) -> Result<v1::ListApiKeysResponse, Error> {
    let tenant: Tenant = id("tenant", &request.tenant)?;
    let page = page(request.page.as_ref())?;
    let before = optional_id("cursor", &page.cursor)
        .map_err(|error| ErrorCode::CURSOR_INVALID.with(error.message).at("cursor"))?;
    let before = before.or(optional_id("starting_after", &page.starting_after)?);
    let mut keys = gateway.store.keys(&tenant, before, page.limit + 1).await.map_err(unavailable)?;
    let has_more = keys.len() > page.limit as usize;
    keys.truncate(page.limit as usize);
    let next_cursor = keys.last().filter(|_| has_more).map(|key| key.id.to_string()).unwrap_or_default();
    let keys = keys.iter().map(Into::into).collect();
    Ok(v1::ListApiKeysResponse { keys, page: Some(v1::PageInfo { has_more, next_cursor }) })
}

async fn revoke_key(gateway: &Gateway, request: v1::RevokeApiKeyRequest) -> Result<v1::ApiKeyResponse, Error> {
    let (tenant, key_id): (Tenant, ApiKeyId) = (id("tenant", &request.tenant)?, id("key_id", &request.key_id)?);
    let revoked = gateway.store.revoke_key(&tenant, key_id, now_ms()).await.map_err(unavailable)?;
    let key = revoked.ok_or_else(|| ErrorCode::API_KEY_NOT_FOUND.with(format!("there is no API key {key_id}")))?;
    tell(gateway, &key).await;
    Ok(answered(&key))
}
