//! Sealing for a receiver's public key: HPKE (RFC 9180), base mode, X25519-HKDF-SHA256-ChaCha20Poly1305.
//!
//! Two ways are sealed like this (ADR 0012): a client's secrets into the vault, and a credential from the vault to the
//! runner that holds a lease. What is sealed for the one opens for nothing else: `info` names the way, and the
//! additional data what it belongs to.

use std::fmt;

use errand_core::run::LeaseToken;
use errand_core::{CredentialId, RunId, Tenant};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem, X25519HkdfSha256};
use hpke::{Deserializable, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal};
use zeroize::Zeroizing;

/// Bytes of a public key.
pub const PUBLIC_KEY_BYTES: usize = 32;

type Private = <X25519HkdfSha256 as Kem>::PrivateKey;
type Encapped = <X25519HkdfSha256 as Kem>::EncappedKey;

/// Why something cannot be sealed or opened. Holds no secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    /// It is no X25519 key, or one that gives no secrecy.
    #[error("it is no usable public key: X25519, {PUBLIC_KEY_BYTES} bytes")]
    Key,
    /// It was sealed for another key or purpose, or was changed.
    #[error("what was sealed is for another receiver, or was changed")]
    Forged,
}

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; PUBLIC_KEY_BYTES]);

impl PublicKey {
    /// Reads one.
    ///
    /// # Errors
    /// [`HandoverError::Key`] where it has another length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HandoverError> {
        bytes.try_into().map(Self).map_err(|_| HandoverError::Key)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.0
    }
}

/// The first bytes, which tell keys apart.
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// For what something is sealed. Opened for another purpose it is [`HandoverError::Forged`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    info: &'static [u8],
    bound: Vec<u8>,
}

impl Purpose {
    /// A client's secrets into the vault.
    #[must_use]
    pub fn into_vault(tenant: &Tenant, credential_id: CredentialId) -> Self {
        let bound = format!("{tenant}\0{credential_id}").into_bytes();
        Self { info: b"errand.v1 secrets into the vault", bound }
    }

    /// A credential for the runner that holds this lease of this run.
    #[must_use]
    pub fn to_holder(run_id: RunId, token: LeaseToken, credential_id: CredentialId) -> Self {
        let bound = format!("{run_id}\0{token}\0{credential_id}").into_bytes();
        Self { info: b"errand.v1 credential to the holder of a lease", bound }
    }
}

/// Seals for a receiver.
///
/// # Errors
/// [`HandoverError::Key`].
pub fn seal(receiver: &PublicKey, purpose: &Purpose, plain: &[u8]) -> Result<Vec<u8>, HandoverError> {
    let key = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&receiver.0).map_err(|_| HandoverError::Key)?;
    let Purpose { info, bound } = purpose;
    let sealed =
        single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(&OpModeS::Base, &key, info, plain, bound);
    let (encapped, cipher_text) = sealed.map_err(|_| HandoverError::Key)?;
    Ok([&encapped.to_bytes(), cipher_text.as_slice()].concat())
}

/// A receiver's keys.
pub struct KeyPair {
    // Wiped by its crate when it is dropped.
    private: Private,
    public: PublicKey,
}

/// Shows the public key.
impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyPair").field(&self.public).finish()
    }
}

impl KeyPair {
    /// New keys, from the system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        Self::of(X25519HkdfSha256::gen_keypair().0)
    }

    fn of(private: Private) -> Self {
        let public = PublicKey(X25519HkdfSha256::sk_to_pk(&private).to_bytes().into());
        Self { private, public }
    }

    /// The keys with this private one.
    ///
    /// # Errors
    /// [`HandoverError::Key`].
    pub fn from_private(bytes: &[u8]) -> Result<Self, HandoverError> {
        Private::from_bytes(bytes).map(Self::of).map_err(|_| HandoverError::Key)
    }

    /// The private key, to be sealed and kept.
    #[must_use]
    pub fn private(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = self.private.to_bytes();
        let kept = Zeroizing::new(bytes.as_slice().to_vec());
        zeroize::Zeroize::zeroize(bytes.as_mut_slice());
        kept
    }

    /// The public key, for whoever seals.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Opens what was sealed for this key and purpose.
    ///
    /// # Errors
    /// [`HandoverError::Forged`].
    pub fn open(&self, purpose: &Purpose, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, HandoverError> {
        let parts = sealed.split_at_checked(Encapped::size()).ok_or(HandoverError::Forged)?;
        let encapped = Encapped::from_bytes(parts.0).map_err(|_| HandoverError::Forged)?;
        let Purpose { info, bound } = purpose;
        let opened = single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &encapped,
            info,
            parts.1,
            bound,
        );
        opened.map(Zeroizing::new).map_err(|_| HandoverError::Forged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(number: u128) -> RunId {
        format!("trun_{number:026}").parse().unwrap()
    }

    fn credential(number: u128) -> CredentialId {
        format!("cred_{number:026}").parse().unwrap()
    }

    proptest! {
        #[test]
        fn it_opens_with_the_key_and_for_the_purpose_it_was_sealed_for(plain: Vec<u8>, token in 1u64..100, at: usize) {
            let (keys, other) = (KeyPair::generate(), KeyPair::generate());
            let purpose = Purpose::to_holder(run(1), token, credential(1));
            let mut sealed = seal(keys.public(), &purpose, &plain).unwrap();
            prop_assert_eq!(&*keys.open(&purpose, &sealed).unwrap(), &plain);
            prop_assert_eq!(other.open(&purpose, &sealed), Err(HandoverError::Forged));
            for elsewhere in [
                Purpose::to_holder(run(2), token, credential(1)),
                Purpose::to_holder(run(1), token + 1, credential(1)),
                Purpose::to_holder(run(1), token, credential(2)),
                Purpose::into_vault(&"acme".parse().unwrap(), credential(1)),
            ] {
                prop_assert_eq!(keys.open(&elsewhere, &sealed), Err(HandoverError::Forged));
            }
            let at = at % sealed.len();
            sealed[at] ^= 1;
            prop_assert!(keys.open(&purpose, &sealed).is_err());
        }

        #[test]
        fn nonsense_is_refused(bytes: Vec<u8>) {
            let purpose = Purpose::into_vault(&"acme".parse().unwrap(), credential(1));
            prop_assert!(KeyPair::generate().open(&purpose, &bytes).is_err());
        }
    }

    #[test]
    fn keys_are_kept_and_never_shown() {
        let keys = KeyPair::generate();
        let again = KeyPair::from_private(&keys.private()).unwrap();
        assert_eq!(again.public(), keys.public());
        assert!(format!("{keys:?}").len() < 40);
        assert!(KeyPair::from_private(b"short").is_err());
        assert_eq!(PublicKey::from_bytes(b"short"), Err(HandoverError::Key));
    }

    #[test]
    fn a_key_that_gives_no_secrecy_is_refused() {
        let purpose = Purpose::into_vault(&"acme".parse().unwrap(), credential(1));
        let zero = PublicKey::from_bytes(&[0; PUBLIC_KEY_BYTES]).unwrap();
        assert_eq!(seal(&zero, &purpose, b"x"), Err(HandoverError::Key));
    }
}
