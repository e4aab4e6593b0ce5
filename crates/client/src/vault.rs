//! Sources and credentials. Secrets are sealed here for the vault, so that the broker never carries them in plain.

use errand_core::credential::{AuthMethod, CredentialStatus};
use errand_core::source::SourceType;
use errand_core::{CredentialId, ErrorCode, SourceId};
use errand_proto::v1;
use errand_secret::Secrets;
use errand_secret::handover::{PublicKey, Purpose, seal};
use futures::Stream;
use uuid::Uuid;

use crate::call::{Repeat, present};
use crate::{Client, ClientError, pages};

/// A source to be made.
#[derive(Debug, Clone)]
pub struct NewSource {
    /// What kind of system it is.
    pub r#type: SourceType,
    /// For people.
    pub name: String,
    /// Where it is.
    pub url: String,
}

/// What is to be otherwise with a source.
#[derive(Debug, Clone, Default)]
pub struct SourceChange {
    /// Another type.
    pub r#type: Option<SourceType>,
    /// Another name.
    pub name: Option<String>,
    /// Another address.
    pub url: Option<String>,
}

/// A credential to be made.
#[derive(Debug, Clone)]
pub struct NewCredential {
    /// For people.
    pub name: String,
    /// How it signs in.
    pub auth_method: AuthMethod,
    /// What it is for; none: for any source.
    pub source_id: Option<SourceId>,
    /// Those that the method has.
    pub secrets: Secrets,
}

/// What is to be otherwise with a credential.
#[derive(Debug, Clone, Default)]
pub struct CredentialChange {
    /// Another name.
    pub name: Option<String>,
    /// Another source, or none.
    pub source_id: Option<Option<SourceId>>,
    /// Other secrets: those that are named here; an empty text takes one away.
    pub secrets: Secrets,
}

/// Which credentials.
#[derive(Debug, Clone, Default)]
pub struct CredentialFilter {
    /// With one of these; empty: any.
    pub status: Vec<CredentialStatus>,
    /// For one of these; empty: any.
    pub source: Vec<SourceId>,
}

/// What a change of the master key has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotated {
    /// Credentials that were looked at.
    pub looked_at: u64,
    /// What was sealed again.
    pub sealed_again: u64,
}

impl Client {
    /// A new source.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`input_invalid` at the field.
    pub async fn create_source(&self, new: NewSource) -> Result<v1::Source, ClientError> {
        let request = v1::CreateSourceRequest {
            tenant: self.tenant.to_string(),
            // Chosen here, so that a repetition makes no second one.
            source_id: SourceId::from_uuid(Uuid::now_v7()).to_string(),
            r#type: v1::SourceType::from(new.r#type).into(),
            name: new.name,
            url: new.url,
        };
        let answer: v1::SourceResponse = self.vault("create_source", &request, Repeat::Safe).await?;
        present(answer.source, "source")
    }

    /// One source.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`source_not_found`.
    pub async fn get_source(&self, id: SourceId) -> Result<v1::Source, ClientError> {
        let request = v1::GetSourceRequest { tenant: self.tenant.to_string(), source_id: id.to_string() };
        let answer: v1::SourceResponse = self.vault("get_source", &request, Repeat::Safe).await?;
        present(answer.source, "source")
    }

    /// All sources, or those of these types, newest first.
    pub fn sources(
        &self,
        types: Vec<SourceType>,
    ) -> impl Stream<Item = Result<v1::Source, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let types: Vec<i32> = types.into_iter().map(|kind| v1::SourceType::from(kind).into()).collect();
        let pages = pages::stream(move |cursor| {
            let (client, r#type) = (client.clone(), types.clone());
            async move {
                let (tenant, page) = (client.tenant.to_string(), pages::page(cursor));
                let request = v1::ListSourcesRequest { tenant, page, r#type };
                let page: v1::ListSourcesResponse = client.vault("list_sources", &request, Repeat::Safe).await?;
                Ok((page.sources, pages::following(page.page)))
            }
        });
        Box::pin(pages)
    }

    /// Changes a source.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`source_not_found`, `request`/`input_invalid` at the field.
    pub async fn update_source(&self, id: SourceId, change: SourceChange) -> Result<v1::Source, ClientError> {
        let request = v1::UpdateSourceRequest {
            tenant: self.tenant.to_string(),
            source_id: id.to_string(),
            r#type: change.r#type.map(|kind| v1::SourceType::from(kind).into()),
            name: change.name,
            url: change.url,
        };
        let answer: v1::SourceResponse = self.vault("update_source", &request, Repeat::Safe).await?;
        present(answer.source, "source")
    }

    /// Deletes a source that no credential belongs to.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`source_not_found`, `request`/`input_invalid` while credentials belong to it.
    pub async fn delete_source(&self, id: SourceId) -> Result<v1::Source, ClientError> {
        let request = v1::DeleteSourceRequest { tenant: self.tenant.to_string(), source_id: id.to_string() };
        let answer: v1::SourceResponse = self.vault("delete_source", &request, Repeat::Unreceived).await?;
        present(answer.source, "source")
    }

    /// A new credential. Its secrets are checked here, and sealed before they are sent.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`input_missing`, `request`/`input_invalid` at the field, `request`/`source_not_found`.
    pub async fn create_credential(&self, new: NewCredential) -> Result<v1::Credential, ClientError> {
        new.secrets.check(new.auth_method)?;
        let id = CredentialId::from_uuid(Uuid::now_v7());
        let request = v1::CreateCredentialRequest {
            tenant: self.tenant.to_string(),
            credential_id: id.to_string(),
            name: new.name,
            auth_method: v1::AuthMethod::from(new.auth_method).into(),
            source_id: new.source_id.map(|id| id.to_string()).unwrap_or_default(),
            sealed: self.sealed(id, &new.secrets).await?.into(),
        };
        let answer: v1::CredentialResponse = self.vault("create_credential", &request, Repeat::Safe).await?;
        present(answer.credential, "credential")
    }

    /// One credential, without its secrets.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`credential_not_found`.
    pub async fn get_credential(&self, id: CredentialId) -> Result<v1::Credential, ClientError> {
        let request = v1::GetCredentialRequest { tenant: self.tenant.to_string(), credential_id: id.to_string() };
        let answer: v1::CredentialResponse = self.vault("get_credential", &request, Repeat::Safe).await?;
        present(answer.credential, "credential")
    }

    /// Credentials, newest first, without their secrets.
    pub fn credentials(
        &self,
        filter: CredentialFilter,
    ) -> impl Stream<Item = Result<v1::Credential, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let status: Vec<i32> = filter.status.iter().map(|one| v1::CredentialStatus::from(*one).into()).collect();
        let sources: Vec<String> = filter.source.iter().map(ToString::to_string).collect();
        let pages = pages::stream(move |cursor| {
            let (client, status, source_id) = (client.clone(), status.clone(), sources.clone());
            async move {
                let (tenant, page) = (client.tenant.to_string(), pages::page(cursor));
                let auth_method = Vec::new();
                let request = v1::ListCredentialsRequest { tenant, page, status, auth_method, source_id };
                let page: v1::ListCredentialsResponse =
                    client.vault("list_credentials", &request, Repeat::Safe).await?;
                Ok((page.credentials, pages::following(page.page)))
            }
        });
        Box::pin(pages)
    }

    /// Changes a credential. Other secrets, or another source, make it unverified.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`credential_not_found`, `request`/`input_invalid` at the field.
    pub async fn update_credential(
        &self,
        id: CredentialId,
        change: CredentialChange,
    ) -> Result<v1::Credential, ClientError> {
        let source_id = change.source_id.map(|id| id.map(|id| id.to_string()).unwrap_or_default());
        let request = v1::UpdateCredentialRequest {
            tenant: self.tenant.to_string(),
            credential_id: id.to_string(),
            name: change.name,
            source_id,
            sealed: self.sealed(id, &change.secrets).await?.into(),
        };
        let answer: v1::CredentialResponse = self.vault("update_credential", &request, Repeat::Safe).await?;
        present(answer.credential, "credential")
    }

    /// Deletes a credential with its secrets.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`credential_not_found`.
    pub async fn delete_credential(&self, id: CredentialId) -> Result<v1::Credential, ClientError> {
        let request = v1::DeleteCredentialRequest { tenant: self.tenant.to_string(), credential_id: id.to_string() };
        let answer: v1::CredentialResponse = self.vault("delete_credential", &request, Repeat::Unreceived).await?;
        present(answer.credential, "credential")
    }

    /// Has the vault seal again with its newest master key what older ones have sealed, of every tenant. Safe to break
    /// off and to repeat. `told` hears how far it is.
    ///
    /// # Errors
    /// [`ClientError`]; `api`/`api_error` where something was sealed with a key that the vault does not have.
    pub async fn rotate_key(&self, mut told: impl FnMut(Rotated)) -> Result<Rotated, ClientError> {
        let (mut rotated, mut after) = (Rotated::default(), String::new());
        loop {
            let request = v1::RotateKeyRequest { after };
            let piece: v1::RotateKeyResponse = self.vault("rotate_key", &request, Repeat::Safe).await?;
            rotated.looked_at += u64::from(piece.looked_at);
            rotated.sealed_again += u64::from(piece.sealed_again);
            told(rotated);
            if piece.next.is_empty() {
                return Ok(rotated);
            }
            after = piece.next;
        }
    }

    /// Secrets for the vault's eyes only; nothing where there are none.
    async fn sealed(&self, id: CredentialId, secrets: &Secrets) -> Result<Vec<u8>, ClientError> {
        if secrets.is_empty() {
            return Ok(Vec::new());
        }
        let answer: v1::GetSealingKeyResponse =
            self.vault("get_sealing_key", &v1::GetSealingKeyRequest {}, Repeat::Safe).await?;
        let unusable = |error: errand_secret::handover::HandoverError| {
            ErrorCode::API_ERROR.with(format!("the vault's key: {error}"))
        };
        let key = PublicKey::from_bytes(&answer.public_key).map_err(unusable)?;
        let sealed = seal(&key, &Purpose::into_vault(&self.tenant, id), &secrets.encode());
        Ok(sealed.map_err(unusable)?)
    }
}
