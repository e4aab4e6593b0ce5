//! API keys of the gateway. A secret is made here and shown once; what travels and is kept is its hash.

use errand_core::{ApiKeyId, Error};
use errand_proto::v1;
use futures::Stream;
use rand::Rng;
use sha2::{Digest, Sha256};

use crate::call::{Repeat, present};
use crate::{Client, ClientError, pages};

/// What every secret begins with.
pub const SECRET_PREFIX: &str = "sk_";
/// Random characters of a secret: 238 bits.
const SECRET_LENGTH: usize = 40;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The secret of an API key: `sk_...`. Says nothing when it is printed for debugging.
#[derive(Clone)]
pub struct ApiSecret(String);

impl std::fmt::Debug for ApiSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiSecret")
    }
}

impl ApiSecret {
    /// A new one, from the operating system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        let mut random = rand::rng();
        let mut text = String::with_capacity(SECRET_PREFIX.len() + SECRET_LENGTH);
        text.push_str(SECRET_PREFIX);
        text.extend((0..SECRET_LENGTH).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])));
        Self(text)
    }

    /// One that was made before.
    ///
    /// # Errors
    /// `request`/`api_key_invalid` where it has not the form.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let is_one = text
            .strip_prefix(SECRET_PREFIX)
            .is_some_and(|rest| rest.len() == SECRET_LENGTH && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        if is_one {
            return Ok(Self(text.to_owned()));
        }
        Err(errand_core::ErrorCode::API_KEY_INVALID.with("an API key is sk_ and 40 letters and digits"))
    }

    /// The secret itself, to show it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Its SHA-256: enough for 238 random bits, which no dictionary has.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }

    fn hint(&self) -> String {
        self.0[self.0.len() - 4..].to_owned()
    }
}

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// What it is for.
    pub name: String,
    /// What it may do: `runs:read`, `sessions:*`, `admin`, ...
    pub scopes: Vec<String>,
    /// Until when, in milliseconds since the Unix epoch.
    pub expires_at_ms: Option<i64>,
}

impl Client {
    /// Makes a key with this secret; the same secret again gives the key that is there.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`input_invalid` at the field.
    pub async fn create_api_key(&self, key: NewApiKey, secret: &ApiSecret) -> Result<v1::ApiKey, ClientError> {
        let request = v1::CreateApiKeyRequest {
            tenant: self.tenant.to_string(),
            name: key.name,
            scopes: key.scopes,
            expires_at_ms: key.expires_at_ms,
            secret_hash: secret.hash().to_vec().into(),
            hint: secret.hint(),
        };
        let answer: v1::ApiKeyResponse = self.call("gateway", "create_key", &request, Repeat::Safe).await?;
        present(answer.key, "key")
    }

    /// The tenant's keys, newest first; those that are revoked too.
    pub fn api_keys(&self) -> impl Stream<Item = Result<v1::ApiKey, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let pages = pages::stream(move |cursor| {
            let client = client.clone();
            async move {
                let request = v1::ListApiKeysRequest { tenant: client.tenant.to_string(), page: pages::page(cursor) };
                let page: v1::ListApiKeysResponse = client.call("gateway", "list_keys", &request, Repeat::Safe).await?;
                Ok((page.keys, pages::following(page.page)))
            }
        });
        Box::pin(pages)
    }

    /// Ends a key: within a second no gateway takes it any more.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`api_key_not_found`.
    pub async fn revoke_api_key(&self, key: ApiKeyId) -> Result<v1::ApiKey, ClientError> {
        let request = v1::RevokeApiKeyRequest { tenant: self.tenant.to_string(), key_id: key.to_string() };
        let answer: v1::ApiKeyResponse = self.call("gateway", "revoke_key", &request, Repeat::Safe).await?;
        present(answer.key, "key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_its_form_and_is_not_told_by_accident() {
        let (one, other) = (ApiSecret::generate(), ApiSecret::generate());
        assert_ne!(one.expose(), other.expose());
        assert_eq!(ApiSecret::parse(one.expose()).unwrap().hash(), one.hash());
        assert_eq!(format!("{one:?}"), "ApiSecret");
        for wrong in ["", "sk_", "sk_short", "pk_0123456789012345678901234567890123456789", "sk_é"] {
            assert!(ApiSecret::parse(wrong).is_err(), "{wrong}");
        }
    }
}
