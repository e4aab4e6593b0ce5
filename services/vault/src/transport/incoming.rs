use std::sync::Arc;

use errand_bus::{Bus, BusError, Service};
use errand_core::credential::{AuthMethod, AuthReport, Credential, CredentialStatus, ReportMark};
use errand_core::source::{Source, SourceType};
use errand_core::{CredentialId, Error, ErrorCode, SourceId, Tenant};
use errand_proto::{id, named, optional_id, v1};
use errand_secret::handover::PublicKey;
use errand_store::paging::{Page, Paging, within_a_message};
use uuid::Uuid;

use super::Witnesses;
use crate::credentials::{CredentialChange, Credentials, NewCredential, now, unavailable};
use crate::handover::{Asker, Handover};
use crate::rotation::Rotation;
use crate::sources::{SourceChange, Sources};
use crate::store::Store;

/// Requests of one method that are handled at once.
const IN_FLIGHT: usize = 512;
/// Secrets of one request, sealed.
const MAX_SEALED: usize = 64 * 1024;
/// Values of one filter.
const MAX_FILTER: usize = 20;

/// What every handler reaches.
#[derive(Debug)]
pub struct Vault {
    /// The broker.
    pub bus: Bus,
    /// To read lists.
    pub store: Store,
    /// The systems that runs work on.
    pub sources: Sources,
    /// The one writer of credentials.
    pub credentials: Arc<Credentials>,
    /// To whom they go.
    pub handover: Handover<Witnesses>,
    /// Changing the master key.
    pub rotation: Rotation,
}

/// Offers all methods.
///
/// # Errors
/// [`BusError::Listen`].
pub async fn serve(shared: &Arc<Vault>) -> Result<Service, BusError> {
    let subjects = shared.bus.subjects();
    let mut service = Service::builder(&shared.bus, "vault", "owns sources and credentials");
    macro_rules! offer {
        ($($method:literal => $handler:ident),* $(,)?) => {$(
            let handling = Arc::clone(shared);
            service = service.endpoint($method, subjects.api("vault", $method), IN_FLIGHT, move |request| {
                let shared = Arc::clone(&handling);
                async move { $handler(&shared, request).await }
            });
        )*};
    }
    offer! {
        "create_source" => create_source,
        "get_source" => get_source,
        "list_sources" => list_sources,
        "update_source" => update_source,
        "delete_source" => delete_source,
        "get_sealing_key" => get_sealing_key,
        "create_credential" => create_credential,
        "get_credential" => get_credential,
        "list_credentials" => list_credentials,
        "update_credential" => update_credential,
        "delete_credential" => delete_credential,
        "check_references" => check_references,
        "open_credential" => open_credential,
        "report_auth" => report_auth,
        "rotate_key" => rotate_key,
    }
    service.start().await
}

fn tenant(text: &str) -> Result<Tenant, Error> {
    id("tenant", text)
}

fn source_response(source: &Source) -> v1::SourceResponse {
    v1::SourceResponse { source: Some(source.into()) }
}

fn credential_response(credential: &Credential) -> v1::CredentialResponse {
    v1::CredentialResponse { credential: Some(credential.into()) }
}

fn source_type(number: i32) -> Result<SourceType, Error> {
    named("type", number, |kind: v1::SourceType| kind.try_into().ok())
}

fn auth_method(number: i32) -> Result<AuthMethod, Error> {
    named("auth_method", number, |method: v1::AuthMethod| method.try_into().ok())
}

/// The values of one filter.
fn filter<W: Copy, T>(field: &str, values: &[W], read: impl Fn(W) -> Result<T, Error>) -> Result<Vec<T>, Error> {
    if values.len() > MAX_FILTER {
        return Err(ErrorCode::INPUT_INVALID.with(format!("{field} has more than {MAX_FILTER} values")).at(field));
    }
    values.iter().map(|value| read(*value)).collect()
}

async fn create_source(shared: &Vault, request: v1::CreateSourceRequest) -> Result<v1::SourceResponse, Error> {
    let at = now();
    let new = || SourceId::from_uuid(Uuid::now_v7());
    let source = Source {
        id: optional_id("source_id", &request.source_id)?.unwrap_or_else(new),
        tenant: tenant(&request.tenant)?,
        r#type: source_type(request.r#type)?,
        name: request.name,
        url: request.url,
        created_at: at,
        updated_at: at,
    };
    shared.sources.create(source).await.map(|source| source_response(&source))
}

async fn get_source(shared: &Vault, request: v1::GetSourceRequest) -> Result<v1::SourceResponse, Error> {
    let (tenant, id) = (tenant(&request.tenant)?, id("source_id", &request.source_id)?);
    shared.sources.get(&tenant, id).await.map(|source| source_response(&source))
}

async fn list_sources(shared: &Vault, request: v1::ListSourcesRequest) -> Result<v1::ListSourcesResponse, Error> {
    let mut paging = Paging::new(request.page.as_ref(), |id: SourceId| id.uuid())?;
    let tenant = tenant(&request.tenant)?;
    let types = filter("type", &request.r#type, source_type)?;
    let fits = |source: &Source| types.is_empty() || types.contains(&source.r#type);
    while let Some(place) = paging.next_place() {
        paging.take(shared.store.scan_sources(&tenant, fits, place).await.map_err(unavailable)?);
    }
    let Page { items, has_more, next } = paging.finish();
    let (sources, all) = within_a_message(items.iter().map(v1::Source::from).collect());
    let next_cursor = match sources.last() {
        Some(last) if !all => last.id.clone(),
        _ => next.map(|uuid| SourceId::from_uuid(uuid).to_string()).unwrap_or_default(),
    };
    Ok(v1::ListSourcesResponse { sources, page: Some(v1::PageInfo { has_more: has_more || !all, next_cursor }) })
}

async fn update_source(shared: &Vault, request: v1::UpdateSourceRequest) -> Result<v1::SourceResponse, Error> {
    let (tenant, id) = (tenant(&request.tenant)?, id("source_id", &request.source_id)?);
    let r#type = request.r#type.map(source_type).transpose()?;
    let change = SourceChange { r#type, name: request.name, url: request.url };
    shared.sources.update(&tenant, id, change).await.map(|source| source_response(&source))
}

async fn delete_source(shared: &Vault, request: v1::DeleteSourceRequest) -> Result<v1::SourceResponse, Error> {
    let (tenant, id) = (tenant(&request.tenant)?, id("source_id", &request.source_id)?);
    shared.sources.delete(&tenant, id).await.map(|source| source_response(&source))
}

async fn get_sealing_key(shared: &Vault, _: v1::GetSealingKeyRequest) -> Result<v1::GetSealingKeyResponse, Error> {
    Ok(v1::GetSealingKeyResponse { public_key: shared.credentials.sealing_key().into() })
}

fn sealed(sealed: &[u8]) -> Result<Vec<u8>, Error> {
    if sealed.len() > MAX_SEALED {
        return Err(ErrorCode::BODY_TOO_LARGE.with(format!("sealed is larger than {MAX_SEALED} bytes")).at("sealed"));
    }
    Ok(sealed.to_vec())
}

async fn create_credential(
    shared: &Vault,
    request: v1::CreateCredentialRequest,
) -> Result<v1::CredentialResponse, Error> {
    let tenant = tenant(&request.tenant)?;
    let new = NewCredential {
        id: id("credential_id", &request.credential_id)?,
        name: request.name,
        auth_method: auth_method(request.auth_method)?,
        source_id: optional_id("source_id", &request.source_id)?,
        sealed: sealed(&request.sealed)?,
    };
    shared.credentials.create(&tenant, new).await.map(|credential| credential_response(&credential))
}

async fn get_credential(shared: &Vault, request: v1::GetCredentialRequest) -> Result<v1::CredentialResponse, Error> {
    let (tenant, id) = (tenant(&request.tenant)?, id("credential_id", &request.credential_id)?);
    shared.credentials.get(&tenant, id).await.map(|credential| credential_response(&credential))
}

async fn list_credentials(
    shared: &Vault,
    request: v1::ListCredentialsRequest,
) -> Result<v1::ListCredentialsResponse, Error> {
    let mut paging = Paging::new(request.page.as_ref(), |id: CredentialId| id.uuid())?;
    let tenant = tenant(&request.tenant)?;
    let status: Vec<CredentialStatus> = filter("status", &request.status, |number| {
        named("status", number, |status: v1::CredentialStatus| status.try_into().ok())
    })?;
    let methods = filter("auth_method", &request.auth_method, auth_method)?;
    let sources: Vec<&String> = request.source_id.iter().collect();
    let sources: Vec<SourceId> = filter("source_id", &sources, |text| id("source_id", text))?;
    let fits = |credential: &Credential| {
        (status.is_empty() || status.contains(&credential.status))
            && (methods.is_empty() || methods.contains(&credential.auth_method))
            && (sources.is_empty() || credential.source_id.is_some_and(|id| sources.contains(&id)))
    };
    while let Some(place) = paging.next_place() {
        paging.take(shared.store.scan_credentials(&tenant, fits, place).await.map_err(unavailable)?);
    }
    let Page { items, has_more, next } = paging.finish();
    let (credentials, all) = within_a_message(items.iter().map(v1::Credential::from).collect());
    let next_cursor = match credentials.last() {
        Some(last) if !all => last.id.clone(),
        _ => next.map(|uuid| CredentialId::from_uuid(uuid).to_string()).unwrap_or_default(),
    };
    let page = Some(v1::PageInfo { has_more: has_more || !all, next_cursor });
    Ok(v1::ListCredentialsResponse { credentials, page })
}

async fn update_credential(
    shared: &Vault,
    request: v1::UpdateCredentialRequest,
) -> Result<v1::CredentialResponse, Error> {
    let (tenant, id) = (tenant(&request.tenant)?, id("credential_id", &request.credential_id)?);
    let source_id = request.source_id.map(|text| optional_id("source_id", &text)).transpose()?;
    let change = CredentialChange { name: request.name, source_id, sealed: sealed(&request.sealed)? };
    shared.credentials.update(&tenant, id, change).await.map(|credential| credential_response(&credential))
}

async fn delete_credential(
    shared: &Vault,
    request: v1::DeleteCredentialRequest,
) -> Result<v1::CredentialResponse, Error> {
    let (tenant, id) = (tenant(&request.tenant)?, id("credential_id", &request.credential_id)?);
    shared.credentials.delete(&tenant, id).await.map(|credential| credential_response(&credential))
}

async fn check_references(
    shared: &Vault,
    request: v1::CheckReferencesRequest,
) -> Result<v1::CheckReferencesResponse, Error> {
    let tenant = tenant(&request.tenant)?;
    let source_id = optional_id("source_id", &request.source_id)?;
    let credential_id = optional_id("credential_id", &request.credential_id)?;
    let checked = async {
        if let Some(id) = source_id {
            shared.sources.get(&tenant, id).await?;
        }
        let Some(id) = credential_id else { return Ok(()) };
        let own = shared.credentials.get(&tenant, id).await?.source_id;
        if own.is_some() && source_id.is_some() && own != source_id {
            let message = "the credential belongs to another source than the run's";
            return Err(ErrorCode::INPUT_INVALID.with(message).at("credential_id"));
        }
        Ok(())
    };
    match checked.await {
        Err(error) if error.code.kind == "api" => Err(error),
        checked => Ok(v1::CheckReferencesResponse { error: checked.as_ref().err().map(Into::into) }),
    }
}

fn asker(run_id: &str, token: u64, runner_id: &str, credential_id: &str) -> Result<Asker, Error> {
    Ok(Asker {
        run_id: id("run_id", run_id)?,
        token,
        runner_id: id("runner_id", runner_id)?,
        credential_id: id("credential_id", credential_id)?,
    })
}

async fn open_credential(
    shared: &Vault,
    request: v1::OpenCredentialRequest,
) -> Result<v1::OpenCredentialResponse, Error> {
    let v1::OpenCredentialRequest { run_id, lease_token, runner_id, credential_id, public_key } = request;
    let asker = asker(&run_id, lease_token, &runner_id, &credential_id)?;
    let key = PublicKey::from_bytes(&public_key)
        .map_err(|error| ErrorCode::INPUT_INVALID.with(error.to_string()).at("public_key"))?;
    let sealed = shared.handover.open(asker, &key).await?;
    Ok(v1::OpenCredentialResponse { sealed: sealed.into() })
}

async fn report_auth(shared: &Vault, request: v1::ReportAuthRequest) -> Result<v1::ReportAuthResponse, Error> {
    let v1::ReportAuthRequest { run_id, lease_token: token, runner_id, credential_id, generation, number, failure } =
        request;
    let asker = asker(&run_id, token, &runner_id, &credential_id)?;
    let mark = ReportMark { generation, token, number };
    let report = AuthReport { mark, verdict: errand_proto::verdict(&failure)? };
    Ok(v1::ReportAuthResponse { taken: shared.handover.report(asker, &report).await? })
}

async fn rotate_key(shared: &Vault, request: v1::RotateKeyRequest) -> Result<v1::RotateKeyResponse, Error> {
    let piece = shared.rotation.piece(optional_id("after", &request.after)?).await?;
    Ok(v1::RotateKeyResponse {
        looked_at: piece.looked_at,
        sealed_again: piece.sealed_again,
        next: piece.next.map(|id| id.to_string()).unwrap_or_default(),
    })
}
