//! What of a destination is secret: sealed in the store, bound to the destination's id.

use std::fmt;
use std::sync::Arc;

use errand_core::{DestinationId, Timestamp};
use errand_seal::{Keyring, SealError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// What is sealed. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// What the type needs, as JSON, with its secrets.
    pub config: String,
    /// Signs; none for types that do not.
    pub secret: Option<String>,
    /// Signs beside it, until the destination's `old_secret_expires_at`.
    pub old_secret: Option<String>,
}

impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Private(***)")
    }
}

impl Private {
    /// The secrets that sign, newest first.
    #[must_use]
    pub fn secrets(&self, old_expires_at: Option<Timestamp>, now: Timestamp) -> Vec<String> {
        let old = self.old_secret.iter().filter(|_| old_expires_at.is_some_and(|at| now < at));
        self.secret.iter().chain(old).cloned().collect()
    }
}

/// Seals and opens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Vault {
    keyring: Arc<Keyring>,
}

/// Why it cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Another master key, or not what was sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Opened, and not what was sealed.
    #[error("what was sealed cannot be read")]
    Unreadable,
}

impl Vault {
    /// Over these keys.
    #[must_use]
    pub fn new(keyring: Keyring) -> Self {
        Self { keyring: Arc::new(keyring) }
    }

    /// Seals for a destination.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn seal(&self, of: DestinationId, private: &Private) -> Result<Vec<u8>, VaultError> {
        let plain = Zeroizing::new(serde_json::to_vec(private).map_err(|_| VaultError::Unreadable)?);
        Ok(self.keyring.seal(&plain, of.uuid().as_bytes())?)
    }

    /// Opens what was sealed for a destination.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open(&self, of: DestinationId, sealed: &[u8]) -> Result<Private, VaultError> {
        let plain = self.keyring.open(sealed, of.uuid().as_bytes())?;
        serde_json::from_slice(&plain).map_err(|_| VaultError::Unreadable)
    }
}
