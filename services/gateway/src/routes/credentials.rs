//! Credentials. Their secrets are sealed here for the vault, so that the broker never carries them in plain (ADR 0012);
//! they come out nowhere.

use std::sync::Arc;

use axum::extract::State;
use errand_core::credential::{AuthMethod, CredentialStatus};
use errand_core::{CredentialId, Error, ErrorCode, Tenant};
use errand_proto::{json, v1};
use errand_secret::Secrets;
use errand_secret::handover::{HandoverError, PublicKey, Purpose, seal};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::PathId;
use crate::answer::{Answer, Result};
use crate::auth::Access;
use crate::backend::present;
use crate::body::Body;
use crate::query::Query;
use crate::schema::{answers, requests};
use crate::service::Gateway;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(list_credentials, create_credential)).routes(routes!(
        get_credential,
        update_credential,
        delete_credential
    ))
}

fn credential_id(id: &PathId) -> std::result::Result<CredentialId, Error> {
    id.read(ErrorCode::CREDENTIAL_NOT_FOUND, "credential")
}

fn shown(answer: v1::CredentialResponse) -> Result<serde_json::Value> {
    Ok(json::credential(&present(answer.credential, "credential")?))
}

/// For the vault's eyes only; nothing where there is nothing.
async fn sealed(
    gateway: &Gateway,
    tenant: &Tenant,
    id: CredentialId,
    secrets: &Secrets,
) -> std::result::Result<Vec<u8>, Error> {
    if secrets.is_empty() {
        return Ok(Vec::new());
    }
    let key: v1::GetSealingKeyResponse = gateway.backend.vault("get_sealing_key", &v1::GetSealingKeyRequest {}).await?;
    let unusable = |error: HandoverError| ErrorCode::API_ERROR.with(format!("the vault's key: {error}"));
    let key = PublicKey::from_bytes(&key.public_key).map_err(unusable)?;
    seal(&key, &Purpose::into_vault(tenant, id), &secrets.encode()).map_err(unusable)
}

/// Lists credentials, newest first.
#[utoipa::path(
    get, path = "/v2/credentials", tag = "Credentials",
    params(
        ("status" = Option<Vec<answers::CredentialStatus>>, Query, description = "With any of these"),
        ("auth_method" = Option<Vec<requests::AuthMethod>>, Query, description = "Of any of these"),
        ("source_id" = Option<Vec<String>>, Query, description = "For any of these sources"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page", body = answers::CredentialList)),
)]
async fn list_credentials(State(gateway): State<Arc<Gateway>>, access: Access, mut query: Query) -> Result {
    let status = query.named("status", &CredentialStatus::ALL.map(|status| (status.as_str(), status)))?;
    let methods = query.named("auth_method", &AuthMethod::ALL.map(|method| (method.as_str(), method)))?;
    let request = v1::ListCredentialsRequest {
        tenant: access.tenant.to_string(),
        page: Some(query.page()?),
        status: status.into_iter().map(|status| v1::CredentialStatus::from(status).into()).collect(),
        auth_method: methods.into_iter().map(|method| v1::AuthMethod::from(method).into()).collect(),
        source_id: query.many("source_id")?,
    };
    query.finish()?;
    let answer: v1::ListCredentialsResponse = gateway.backend.vault("list_credentials", &request).await?;
    Ok(Answer::list(answer.credentials.iter().map(json::credential).collect(), answer.page))
}

/// Makes a credential. Its secrets go in and never come out.
#[utoipa::path(
    post, path = "/v2/credentials", tag = "Credentials",
    request_body = requests::CreateCredential,
    responses((status = 201, description = "The credential, without its secrets", body = answers::Credential)),
)]
async fn create_credential(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    query: Query,
    Body(body): Body<requests::CreateCredential>,
) -> Result {
    query.finish()?;
    let id = CredentialId::from_uuid(access.seed.unwrap_or_else(Uuid::now_v7));
    let method = AuthMethod::from(body.auth_method);
    let secrets = Secrets {
        username: body.username,
        password: body.password,
        api_key: body.api_key,
        totp_secret: body.totp_secret,
    };
    secrets.check(method)?;
    let request = v1::CreateCredentialRequest {
        tenant: access.tenant.to_string(),
        credential_id: id.to_string(),
        name: body.name,
        auth_method: v1::AuthMethod::from(method).into(),
        source_id: body.source_id.unwrap_or_default(),
        sealed: sealed(&gateway, &access.tenant, id, &secrets).await?.into(),
    };
    Ok(Answer::created(shown(gateway.backend.vault("create_credential", &request).await?)?))
}

/// Shows a credential, without its secrets.
#[utoipa::path(
    get, path = "/v2/credentials/{credential_id}", tag = "Credentials",
    params(("credential_id" = String, Path, description = "The credential")),
    responses((status = 200, description = "The credential", body = answers::Credential)),
)]
async fn get_credential(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let (tenant, credential_id) = (access.tenant.to_string(), credential_id(&id)?.to_string());
    let request = v1::GetCredentialRequest { tenant, credential_id };
    Ok(Answer::ok(shown(gateway.backend.vault("get_credential", &request).await?)?))
}

/// Changes a credential. What is absent stays as it is; other secrets, or another source, make it unverified.
#[utoipa::path(
    patch, path = "/v2/credentials/{credential_id}", tag = "Credentials",
    params(("credential_id" = String, Path, description = "The credential")),
    request_body = requests::UpdateCredential,
    responses((status = 200, description = "The credential", body = answers::Credential)),
)]
async fn update_credential(
    State(gateway): State<Arc<Gateway>>,
    access: Access,
    id: PathId,
    query: Query,
    Body(body): Body<requests::UpdateCredential>,
) -> Result {
    query.finish()?;
    let id = credential_id(&id)?;
    let secrets = Secrets {
        username: body.username,
        password: body.password,
        api_key: body.api_key,
        // Over the wire an empty one takes it away.
        totp_secret: body.totp_secret.map(Option::unwrap_or_default),
    };
    let request = v1::UpdateCredentialRequest {
        tenant: access.tenant.to_string(),
        credential_id: id.to_string(),
        name: body.name,
        source_id: body.source_id.map(Option::unwrap_or_default),
        sealed: sealed(&gateway, &access.tenant, id, &secrets).await?.into(),
    };
    Ok(Answer::ok(shown(gateway.backend.vault("update_credential", &request).await?)?))
}

/// Deletes a credential with its secrets.
#[utoipa::path(
    delete, path = "/v2/credentials/{credential_id}", tag = "Credentials",
    params(("credential_id" = String, Path, description = "The credential")),
    responses((status = 200, description = "It is deleted", body = answers::Deleted)),
)]
async fn delete_credential(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let id = credential_id(&id)?.to_string();
    let request = v1::DeleteCredentialRequest { tenant: access.tenant.to_string(), credential_id: id.clone() };
    let _: v1::CredentialResponse = gateway.backend.vault("delete_credential", &request).await?;
    Ok(Answer::ok(json!({"id": id, "object": "credential", "deleted": true})))
}
