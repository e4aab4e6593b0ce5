//! The only importer of the bus's services and of request types: decode, convert, handle, reply.

use std::sync::Arc;

use bytes::Bytes;
use errand_bus::{Bus, BusError, Service};
use errand_core::limits::MAX_SECONDS;
use errand_core::{Error, ErrorCode, RunId, StorageId, Tenant};
use errand_proto::{id, named, v1};
use errand_store::paging::{Page, Paging, within_a_message};
use uuid::Uuid;

use crate::artifact::{Artifact, Sha256, now};
use crate::blobs::Blobs;
use crate::keeper::unavailable;
use crate::retention;
use crate::signing::{self, LinkKey};
use crate::store::Store;
use crate::uploads::{Begin, Begun, Uploads};

/// Requests of one method that are handled at once. Chunks are large: what waits is in memory.
const IN_FLIGHT: usize = 256;
const CHUNKS_IN_FLIGHT: usize = 64;
/// What one chunk holds, at most half of what the broker takes.
const CHUNK_BYTES: usize = 512 * 1024;

/// What every handler reaches.
#[derive(Debug)]
pub struct Storage {
    /// The broker.
    pub bus: Bus,
    /// What there is.
    pub store: Store,
    /// Its bytes.
    pub blobs: Blobs,
    /// What arrives.
    pub uploads: Arc<Uploads>,
    /// What links are signed with.
    pub link_key: LinkKey,
    /// How long a link is good for.
    pub link_seconds: u32,
    /// This process, to those who send it chunks.
    pub instance: String,
}

type Shared = Arc<Storage>;

impl Storage {
    fn chunk_bytes(&self) -> usize {
        CHUNK_BYTES.min(self.bus.max_message_bytes() / 2)
    }

    fn token(&self, id: StorageId, seconds: u32) -> v1::ContentToken {
        let seconds = if seconds == 0 { self.link_seconds } else { seconds };
        let expires = now().0 / 1000 + i64::from(seconds);
        v1::ContentToken { expires, signature: signing::sign(&self.link_key, id, expires) }
    }
}

/// Offers all methods.
///
/// # Errors
/// [`BusError::Listen`].
pub async fn serve(shared: &Shared) -> Result<Service, BusError> {
    let subjects = shared.bus.subjects();
    let mut service =
        Service::builder(&shared.bus, "storage", "owns files: takes what runs capture, gives it to readers");
    macro_rules! offer {
        ($($method:literal at $subject:expr, $in_flight:ident => $handler:ident),* $(,)?) => {$(
            let handling = Arc::clone(shared);
            service = service.endpoint($method, $subject, $in_flight, move |request| {
                let shared = Arc::clone(&handling);
                async move { $handler(&shared, request).await }
            });
        )*};
    }
    offer! {
        "begin" at subjects.storage("begin"), IN_FLIGHT => begin,
        "put" at subjects.storage_instance(&shared.instance, "put"), CHUNKS_IN_FLIGHT => put,
        "finish" at subjects.storage_instance(&shared.instance, "finish"), IN_FLIGHT => finish,
        "list_artifacts" at subjects.api("storage", "list_artifacts"), IN_FLIGHT => list_artifacts,
        "get_artifact" at subjects.api("storage", "get_artifact"), IN_FLIGHT => get_artifact,
        "open_artifact" at subjects.api("storage", "open_artifact"), IN_FLIGHT => open_artifact,
        "read_artifact" at subjects.api("storage", "read_artifact"), CHUNKS_IN_FLIGHT => read_artifact,
        "delete_artifact" at subjects.api("storage", "delete_artifact"), IN_FLIGHT => delete_artifact,
    }
    service.start().await
}

/// A name for this process that no other has.
#[must_use]
pub fn instance() -> String {
    Uuid::now_v7().simple().to_string()
}

async fn begin(shared: &Storage, request: v1::BeginUploadRequest) -> Result<v1::BeginUploadResponse, Error> {
    let begin = Begin {
        id: id("artifact_id", &request.artifact_id)?,
        run_id: id("run_id", &request.run_id)?,
        token: request.lease_token,
        kind: named("kind", request.kind, |kind: v1::ArtifactKind| kind.try_into().ok())?,
        name: request.name,
        size: request.size_bytes,
        data: request.data,
    };
    let mut response = v1::BeginUploadResponse {
        instance: shared.instance.clone(),
        chunk_bytes: u32::try_from(shared.chunk_bytes()).unwrap_or(u32::MAX),
        ..v1::BeginUploadResponse::default()
    };
    match shared.uploads.begin(begin).await? {
        Begun::Done(artifact) => response.done = Some((&*artifact).into()),
        Begun::Ignored => response.ignored = true,
        Begun::Receiving(received) => response.received = received,
    }
    Ok(response)
}

async fn put(shared: &Storage, request: v1::PutChunkRequest) -> Result<v1::PutChunkResponse, Error> {
    let artifact: StorageId = id("artifact_id", &request.artifact_id)?;
    let received = shared.uploads.put(artifact, request.lease_token, request.offset, &request.data).await?;
    Ok(v1::PutChunkResponse { unknown: received.is_none(), received: received.unwrap_or_default() })
}

async fn finish(shared: &Storage, request: v1::FinishUploadRequest) -> Result<v1::FinishUploadResponse, Error> {
    let artifact: StorageId = id("artifact_id", &request.artifact_id)?;
    let sha256 = Sha256::try_from(&request.sha256[..])
        .map_err(|_| ErrorCode::INPUT_INVALID.with("sha256 must be 32 bytes").at("sha256"))?;
    let kept = shared.uploads.finish(artifact, request.lease_token, request.size_bytes, sha256).await?;
    Ok(v1::FinishUploadResponse { unknown: kept.is_none(), artifact: kept.as_ref().map(Into::into) })
}

fn not_found(id: StorageId) -> Error {
    ErrorCode::STORAGE_NOT_FOUND.with(format!("there is no artifact {id}"))
}

async fn artifact_of(shared: &Storage, tenant: &str, artifact: &str) -> Result<Artifact, Error> {
    let (tenant, artifact): (Tenant, StorageId) = (id("tenant", tenant)?, id("artifact_id", artifact)?);
    let found = shared.store.artifact(artifact).await.map_err(unavailable)?;
    found.filter(|found| found.tenant == tenant).ok_or_else(|| not_found(artifact))
}

async fn list_artifacts(
    shared: &Storage,
    request: v1::ListArtifactsRequest,
) -> Result<v1::ListArtifactsResponse, Error> {
    let mut paging = Paging::new(request.page.as_ref(), |id: StorageId| id.uuid())?;
    let (tenant, run): (Tenant, RunId) = (id("tenant", &request.tenant)?, id("run_id", &request.run_id)?);
    let kinds = request.kind.into_iter().map(|kind| named("kind", kind, |kind: v1::ArtifactKind| kind.try_into().ok()));
    let kinds = kinds.collect::<Result<Vec<_>, Error>>()?;
    while let Some(place) = paging.next_place() {
        paging.take(shared.store.scan(&tenant, run, &kinds, place).await.map_err(unavailable)?);
    }
    let Page { items, has_more, next } = paging.finish();
    let (artifacts, all) = within_a_message(items.iter().map(v1::Artifact::from).collect());
    let next_cursor = match artifacts.last() {
        Some(last) if !all => last.id.clone(),
        _ => next.map(|uuid| StorageId::from_uuid(uuid).to_string()).unwrap_or_default(),
    };
    let tokens = items.iter().take(artifacts.len()).map(|artifact| shared.token(artifact.id, 0)).collect();
    let page = Some(v1::PageInfo { has_more: has_more || !all, next_cursor });
    Ok(v1::ListArtifactsResponse { artifacts, page, tokens })
}

async fn get_artifact(shared: &Storage, request: v1::GetArtifactRequest) -> Result<v1::GetArtifactResponse, Error> {
    if request.token_seconds > MAX_SECONDS {
        let message = format!("token_seconds must be 0..{MAX_SECONDS}");
        return Err(ErrorCode::INPUT_INVALID.with(message).at("token_seconds"));
    }
    let artifact = artifact_of(shared, &request.tenant, &request.artifact_id).await?;
    let token = shared.token(artifact.id, request.token_seconds);
    Ok(v1::GetArtifactResponse { artifact: Some((&artifact).into()), token: Some(token) })
}

async fn open_artifact(shared: &Storage, request: v1::OpenArtifactRequest) -> Result<v1::OpenArtifactResponse, Error> {
    let artifact: StorageId = id("artifact_id", &request.artifact_id)?;
    let token = request.token.unwrap_or_default();
    let now = now().0 / 1000;
    // First of all: who has no right hears nothing of what there is.
    if !signing::verify(&shared.link_key, artifact, token.expires, &token.signature, now) {
        return Err(ErrorCode::FORBIDDEN.with("the link is wrong or has expired").at("signature"));
    }
    let found = shared.store.artifact(artifact).await.map_err(unavailable)?;
    let found = found.ok_or_else(|| not_found(artifact))?;
    Ok(v1::OpenArtifactResponse { artifact: Some((&found).into()) })
}

async fn read_artifact(shared: &Storage, request: v1::ReadArtifactRequest) -> Result<v1::ReadArtifactResponse, Error> {
    let (tenant, artifact): (Tenant, StorageId) =
        (id("tenant", &request.tenant)?, id("artifact_id", &request.artifact_id)?);
    let found = shared.store.blob_of(&tenant, artifact).await.map_err(unavailable)?;
    let (blob, size) = found.ok_or_else(|| not_found(artifact))?;
    let most = shared.chunk_bytes() as u64;
    let asked = if request.length == 0 { most } else { u64::from(request.length).min(most) };
    let length = asked.min(size.saturating_sub(request.offset));
    let mut data = Bytes::new();
    if length > 0 {
        let read = shared.blobs.read(blob, request.offset, length).await.map_err(|error| {
            tracing::error!(%error, %artifact, "bytes could not be read");
            ErrorCode::API_UNAVAILABLE.with("the file cannot be read at this time; try again")
        })?;
        // Deleted between the two looks.
        data = read.ok_or_else(|| not_found(artifact))?;
    }
    Ok(v1::ReadArtifactResponse { data, size_bytes: size })
}

async fn delete_artifact(
    shared: &Storage,
    request: v1::DeleteArtifactRequest,
) -> Result<v1::DeleteArtifactResponse, Error> {
    let artifact = artifact_of(shared, &request.tenant, &request.artifact_id).await?;
    let garbage = shared.store.delete(&[artifact.id], now()).await.map_err(unavailable)?;
    if let Err(error) = retention::burn(&shared.store, &shared.blobs, &garbage).await {
        tracing::warn!(error = format!("{error:#}"), "bytes that nobody needs are left to the next sweep");
    }
    Ok(v1::DeleteArtifactResponse { artifact: Some((&artifact).into()) })
}
