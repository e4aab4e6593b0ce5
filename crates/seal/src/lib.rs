//! Secrets at rest: sealed with XChaCha20-Poly1305 under a master key, each bound to the object that it belongs to.
//!
//! What is sealed names the key that sealed it, so that a [`Keyring`] may hold several: the first seals, all open.
//! To change the master key, put the new one first, seal again what the old one sealed ([`Keyring::is_newest`]), and
//! take the old one away.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, AeadCore, KeyInit, OsRng, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of a master key.
pub const KEY_BYTES: usize = 32;
/// Keys in one keyring.
pub const MAX_KEYS: usize = 8;
/// The form of what is sealed: this byte, the key's id, the nonce, the ciphertext with its tag.
const FORM: u8 = 1;
const ID_BYTES: usize = 4;
const HEADER: usize = 1 + ID_BYTES;
const NONCE_BYTES: usize = 24;

/// Why something cannot be sealed or opened. Holds no secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It is no master key.
    #[error("a master key is the base64 of {KEY_BYTES} bytes; make one with `openssl rand -base64 32`")]
    Key,
    /// There is none, or there are too many.
    #[error("a keyring has 1..{MAX_KEYS} master keys")]
    Count,
    /// It is not what [`Keyring::seal`] makes.
    #[error("what is to be opened was not sealed by Errand")]
    Form,
    /// It was sealed with a key that is not here.
    #[error("it was sealed with another master key ({0})")]
    UnknownKey(String),
    /// It was changed, or belongs to another object.
    #[error("what was sealed was changed, or belongs elsewhere")]
    Forged,
    /// It is too large.
    #[error("it is too large to be sealed")]
    TooLarge,
}

struct Key {
    id: [u8; ID_BYTES],
    // Wiped by the crate when it is dropped.
    cipher: XChaCha20Poly1305,
}

/// Master keys: the first seals, all open.
pub struct Keyring {
    keys: Vec<Key>,
}

/// Shows the keys' ids, never the keys.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| hex(&key.id))).finish()
    }
}

impl Keyring {
    /// Reads master keys in base64, separated by commas or white space, the one that seals first.
    ///
    /// # Errors
    /// [`SealError::Key`], [`SealError::Count`].
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let texts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|text| !text.is_empty());
        let keys: Vec<Key> = texts.map(Key::parse).collect::<Result<_, _>>()?;
        if (1..=MAX_KEYS).contains(&keys.len()) { Ok(Self { keys }) } else { Err(SealError::Count) }
    }

    /// Seals for one object, which `of` names: opened for another one it is [`SealError::Forged`].
    ///
    /// # Errors
    /// [`SealError::TooLarge`].
    pub fn seal(&self, plain: &[u8], of: &[u8]) -> Result<Vec<u8>, SealError> {
        let key = self.keys.first().ok_or(SealError::Count)?;
        let nonce = XChaCha20Poly1305::generate_nonce(&mut OsRng);
        let mut sealed = Vec::with_capacity(HEADER + NONCE_BYTES + plain.len() + 16);
        sealed.push(FORM);
        sealed.extend_from_slice(&key.id);
        let aad = [&sealed, of].concat();
        let cipher_text = key.cipher.encrypt(&nonce, Payload { msg: plain, aad: &aad });
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&cipher_text.map_err(|_| SealError::TooLarge)?);
        Ok(sealed)
    }

    /// Opens what was sealed for this object. The bytes are wiped when they are dropped.
    ///
    /// # Errors
    /// [`SealError::Form`], [`SealError::UnknownKey`], [`SealError::Forged`].
    pub fn open(&self, sealed: &[u8], of: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (header, rest) = sealed.split_at_checked(HEADER).ok_or(SealError::Form)?;
        let (nonce, cipher_text) = rest.split_at_checked(NONCE_BYTES).ok_or(SealError::Form)?;
        let (FORM, id) = (header[0], &header[1..]) else { return Err(SealError::Form) };
        let key = self.keys.iter().find(|key| key.id == id).ok_or_else(|| SealError::UnknownKey(hex(id)))?;
        let aad = [header, of].concat();
        let opened = key.cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: cipher_text, aad: &aad });
        opened.map(Zeroizing::new).map_err(|_| SealError::Forged)
    }

    /// Whether the key that seals now has sealed it.
    #[must_use]
    pub fn is_newest(&self, sealed: &[u8]) -> bool {
        self.keys.first().is_some_and(|key| sealed.get(1..HEADER) == Some(&key.id))
    }
}

impl Key {
    fn parse(text: &str) -> Result<Self, SealError> {
        let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| SealError::Key)?);
        let cipher = XChaCha20Poly1305::new_from_slice(&bytes).map_err(|_| SealError::Key)?;
        let digest = Sha256::new().chain_update(b"errand master key").chain_update(&*bytes).finalize();
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&digest[..ID_BYTES]);
        Ok(Self { id, cipher })
    }
}

/// A new master key, as [`Keyring::parse`] reads it.
#[must_use]
pub fn new_key() -> Zeroizing<String> {
    let mut key = XChaCha20Poly1305::generate_key(&mut OsRng);
    let text = Zeroizing::new(STANDARD.encode(key));
    zeroize::Zeroize::zeroize(key.as_mut_slice());
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring() -> Keyring {
        Keyring::parse(&new_key()).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_for_its_object_only(plain: Vec<u8>, of: Vec<u8>, other: Vec<u8>) {
            let ring = ring();
            let sealed = ring.seal(&plain, &of).unwrap();
            prop_assert_eq!(&*ring.open(&sealed, &of).unwrap(), &plain);
            if of != other {
                prop_assert_eq!(ring.open(&sealed, &other).unwrap_err(), SealError::Forged);
            }
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0usize..69, bit in 0u8..8) {
            let ring = ring();
            let mut sealed = ring.seal(b"a secret of so many bytes", b"of").unwrap();
            let at = at % sealed.len();
            sealed[at] ^= 1 << bit;
            prop_assert!(ring.open(&sealed, b"of").is_err());
        }

        #[test]
        fn nonsense_is_refused(bytes: Vec<u8>) {
            prop_assert!(ring().open(&bytes, b"of").is_err());
        }
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let (old, new) = (new_key(), new_key());
        let before = Keyring::parse(&old).unwrap();
        let both = Keyring::parse(&format!("{}\n{},", *new, *old)).unwrap();
        let sealed = before.seal(b"x", b"of").unwrap();
        assert_eq!(*both.open(&sealed, b"of").unwrap(), b"x");
        assert!(!both.is_newest(&sealed) && both.is_newest(&both.seal(b"x", b"of").unwrap()));
        let after = Keyring::parse(&new).unwrap();
        assert!(matches!(after.open(&sealed, b"of"), Err(SealError::UnknownKey(_))));
    }

    #[test]
    fn what_is_no_key_is_refused_and_no_key_is_shown() {
        assert_eq!(Keyring::parse(" ,").unwrap_err(), SealError::Count);
        for text in ["x", "AAAA", "not base64 at all!", &"A".repeat(44)] {
            assert_eq!(Keyring::parse(text).unwrap_err(), SealError::Key, "{text}");
        }
        let key = new_key();
        let shown = format!("{:?}", Keyring::parse(&key).unwrap());
        assert!(!shown.contains(&*key) && shown.len() < 16, "{shown}");
    }

    #[test]
    fn the_same_is_never_sealed_twice_alike() {
        let ring = ring();
        assert_ne!(ring.seal(b"x", b"of").unwrap(), ring.seal(b"x", b"of").unwrap());
    }
}
