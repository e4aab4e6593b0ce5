//! Changing the master key: what older keys have sealed is sealed again with the newest, a bounded piece at a time.
//! Each piece commits by itself and says where the next begins; what is done already is passed over. So it may be
//! broken off anywhere, also by a SIGKILL, and begun anew.

use std::sync::Arc;

use errand_core::{CredentialId, Error, ErrorCode};
use errand_seal::{Keyring, SealError};
use errand_secret::handover::KeyPair;

use crate::credentials::unavailable;
use crate::envelope::reseal_key;
use crate::store::{Resealed, Store};

/// Credentials in one piece.
const PIECE: u32 = 500;
/// What the sealed private key is bound to.
const PRIVATE_KEY: &[u8] = b"the vault's private key";

/// Seals again.
#[derive(Debug)]
pub struct Rotation {
    store: Store,
    master: Arc<Keyring>,
}

/// What a piece came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Credentials that were looked at.
    pub looked_at: u32,
    /// Of these, and the vault's own key: what was sealed again.
    pub sealed_again: u32,
    /// Where the next piece begins; none: that was all.
    pub next: Option<CredentialId>,
}

impl Rotation {
    /// Over this store.
    #[must_use]
    pub const fn new(store: Store, master: Arc<Keyring>) -> Self {
        Self { store, master }
    }

    /// The keys that secrets come in under: those of all vaults over this store.
    ///
    /// # Errors
    /// Where the store fails, or the master key is another than the one that has sealed them.
    pub async fn keys(&self) -> anyhow::Result<KeyPair> {
        let new = KeyPair::generate();
        // It is short; to seal it does not fail.
        let sealed = self.master.seal(&new.private(), PRIVATE_KEY)?;
        let kept = self.store.private_key(|| sealed).await?;
        let private = self.master.open(&kept, PRIVATE_KEY).map_err(|error| match error {
            SealError::UnknownKey(_) | SealError::Forged => anyhow::anyhow!(
                "the master key is not the one that has sealed the secrets of this store ({error}); give that one as \
                 well, behind the new one"
            ),
            other => other.into(),
        })?;
        Ok(KeyPair::from_private(&private)?)
    }

    /// Seals one piece again.
    ///
    /// # Errors
    /// `api`/`unavailable` where the store fails, `api`/`api_error` where something was sealed with a key that is not
    /// in the ring: the piece is left as it is.
    pub async fn piece(&self, after: Option<CredentialId>) -> Result<Piece, Error> {
        let mut sealed_again = 0;
        if after.is_none() {
            sealed_again += u32::from(self.own_key().await?);
        }
        let keys = self.store.data_keys(after, PIECE).await.map_err(unavailable)?;
        let mut resealed = Vec::new();
        for (id, before) in &keys {
            let after = reseal_key(&self.master, *id, before).map_err(|error| stuck(*id, &error))?;
            if let Some(after) = after {
                resealed.push(Resealed { id: *id, before: before.clone(), after });
            }
        }
        let done = self.store.reseal(&resealed).await.map_err(unavailable)?;
        sealed_again += u32::try_from(done).unwrap_or(u32::MAX);
        let looked_at = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        let next = keys.last().map(|(id, _)| *id).filter(|_| looked_at == PIECE);
        Ok(Piece { looked_at, sealed_again, next })
    }

    /// The vault's own private key; whether it was sealed again.
    async fn own_key(&self) -> Result<bool, Error> {
        let before = self.store.private_key(Vec::new).await.map_err(unavailable)?;
        if self.master.is_newest(&before) {
            return Ok(false);
        }
        let cannot = |error: SealError| {
            tracing::error!(%error, "the vault's own key cannot be sealed again");
            ErrorCode::API_ERROR.with(format!("the vault's own key: {error}"))
        };
        let private = self.master.open(&before, PRIVATE_KEY).map_err(cannot)?;
        let after = self.master.seal(&private, PRIVATE_KEY).map_err(cannot)?;
        self.store.reseal_private_key(&before, &after).await.map_err(unavailable)
    }
}

fn stuck(id: CredentialId, error: &SealError) -> Error {
    tracing::error!(credential = %id, %error, "a credential cannot be sealed again");
    ErrorCode::API_ERROR.with(format!("{id}: {error}"))
}
