//! Download links: a signature over an artifact's id and a time. Pure.

use std::fmt;

use errand_core::StorageId;
use ring::hmac;

/// The least that a key holds.
pub const MIN_KEY_BYTES: usize = 32;

/// What links are signed with. Shows nothing of it.
#[derive(Clone)]
pub struct LinkKey(hmac::Key);

impl fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkKey")
    }
}

impl LinkKey {
    /// A key of at least [`MIN_KEY_BYTES`].
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= MIN_KEY_BYTES).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }
}

fn message(id: StorageId, expires: i64) -> String {
    // So that what is signed can be nothing else's signature.
    format!("errand/storage/content/v1\n{id}\n{expires}")
}

/// The signature of a link that is good until `expires`, in seconds since 1970: 64 hexadecimal digits.
#[must_use]
pub fn sign(key: &LinkKey, id: StorageId, expires: i64) -> String {
    let tag = hmac::sign(&key.0, message(id, expires).as_bytes());
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a signature is this link's, and the link still good. Takes as long whatever the signature is.
#[must_use]
pub fn verify(key: &LinkKey, id: StorageId, expires: i64, signature: &str, now: i64) -> bool {
    let tag = unhex(signature).unwrap_or([0; 32]);
    hmac::verify(&key.0, message(id, expires).as_bytes(), &tag).is_ok() && now < expires
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_link_is_one_artifacts_until_its_time() {
        let key = LinkKey::new(&[7; 32]).unwrap();
        let id = StorageId::from_uuid(Uuid::from_u128(1));
        let signature = sign(&key, id, 1000);
        assert_eq!(signature.len(), 64);
        assert!(verify(&key, id, 1000, &signature, 999));
        assert!(!verify(&key, id, 1000, &signature, 1000), "it has expired");
        assert!(!verify(&key, id, 1001, &signature, 999), "another time");
        assert!(!verify(&key, StorageId::from_uuid(Uuid::from_u128(2)), 1000, &signature, 999), "another artifact");
        assert!(!verify(&LinkKey::new(&[8; 32]).unwrap(), id, 1000, &signature, 999), "another key");
        for wrong in ["", "00", &"g".repeat(64), &"é".repeat(32), &signature[1..], &signature.replace(['0', '1'], "2")]
        {
            assert!(!verify(&key, id, 1000, wrong, 999), "{wrong}");
        }
        assert!(LinkKey::new(&[1; 31]).is_none());
    }

    /// Computed with Python's hmac: what another implementation must come to.
    #[test]
    fn the_signature_is_plain_hmac_sha256() {
        let key = LinkKey::new(b"0123456789abcdef0123456789abcdef").unwrap();
        let id = StorageId::from_uuid(Uuid::from_u128(1));
        assert_eq!(message(id, 7), "errand/storage/content/v1\nstor_00000000000000000000000001\n7");
        assert_eq!(sign(&key, id, 7), PYTHON);
    }

    const PYTHON: &str = "8543b94443e2ee0a89b9fb835c0e68eaad26da7dbe6a56091b22f6df21cea1d5";
}
