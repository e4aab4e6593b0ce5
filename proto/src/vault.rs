//! Sources and credentials out; the words of a report in.

use errand_core::credential::{AuthFailure, AuthMethod, Credential, CredentialStatus};
use errand_core::source::{Source, SourceType};
use errand_core::{Error, ErrorCode};

use crate::run::same_names;
use crate::v1;

same_names!(SourceType, v1::SourceType, Website, Desktop, Api, Exec);
same_names!(AuthMethod, v1::AuthMethod, UsernamePassword, ApiKey, Totp, None);
same_names!(CredentialStatus, v1::CredentialStatus, Unverified, Verified, Invalid);

impl From<&Source> for v1::Source {
    fn from(source: &Source) -> Self {
        Self {
            id: source.id.to_string(),
            tenant: source.tenant.to_string(),
            r#type: v1::SourceType::from(source.r#type).into(),
            name: source.name.clone(),
            url: source.url.clone(),
            created_at_ms: source.created_at.0,
            updated_at_ms: source.updated_at.0,
        }
    }
}

impl From<&Credential> for v1::Credential {
    fn from(credential: &Credential) -> Self {
        Self {
            id: credential.id.to_string(),
            tenant: credential.tenant.to_string(),
            name: credential.name.clone(),
            auth_method: v1::AuthMethod::from(credential.auth_method).into(),
            has_totp: credential.has_totp,
            source_id: credential.source_id.map(|id| id.to_string()).unwrap_or_default(),
            status: v1::CredentialStatus::from(credential.status).into(),
            failure: failure(credential.failure).to_owned(),
            checked_at_ms: credential.checked_at.map(|at| at.0),
            created_at_ms: credential.created_at.0,
            updated_at_ms: credential.updated_at.0,
            seq: credential.seq,
        }
    }
}

/// The word on the wire; empty: none.
#[must_use]
pub fn failure(failure: Option<AuthFailure>) -> &'static str {
    failure.map_or("", AuthFailure::as_str)
}

/// What a report says of a sign-in.
///
/// # Errors
/// `request`/`input_invalid` at `failure`.
pub fn verdict(failure: &str) -> Result<Result<(), AuthFailure>, Error> {
    match failure {
        "" => Ok(Ok(())),
        "auth_invalid" => Ok(Err(AuthFailure::AuthInvalid)),
        "auth_locked" => Ok(Err(AuthFailure::AuthLocked)),
        _ => Err(ErrorCode::INPUT_INVALID.with("failure may be auth_invalid or auth_locked").at("failure")),
    }
}
