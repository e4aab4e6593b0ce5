//! Remembered answers that hold a secret (the signing secret of a new destination) are kept sealed. The key comes from
//! the asker's own API key and idempotency key, neither of which is kept, so the store alone opens nothing.

use errand_client::ApiSecret;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

fn key(secret: &ApiSecret, idempotency_key: &str) -> Option<LessSafeKey> {
    let by = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    let mut context = hmac::Context::with_key(&by);
    context.update(b"errand idempotency 1\0");
    context.update(idempotency_key.as_bytes());
    UnboundKey::new(&CHACHA20_POLY1305, context.sign().as_ref()).ok().map(LessSafeKey::new)
}

/// Seals.
#[must_use]
pub fn seal(secret: &ApiSecret, idempotency_key: &str, mut text: Vec<u8>) -> Option<Vec<u8>> {
    let mut nonce = [0u8; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).ok()?;
    let key = key(secret, idempotency_key)?;
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut text).ok()?;
    Some([nonce.as_slice(), &text].concat())
}

/// Opens what was sealed with the same two keys; nothing for others.
#[must_use]
pub fn open(secret: &ApiSecret, idempotency_key: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut text = rest.to_vec();
    let length = key(secret, idempotency_key)?.open_in_place(nonce, Aad::empty(), &mut text).ok()?.len();
    text.truncate(length);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_keys_open() {
        let (one, other) = (ApiSecret::generate(), ApiSecret::generate());
        let sealed = seal(&one, "order-1", b"whsec_".to_vec()).unwrap();
        assert_eq!(open(&one, "order-1", &sealed).unwrap(), b"whsec_");
        assert!(open(&other, "order-1", &sealed).is_none());
        assert!(open(&one, "order-2", &sealed).is_none());
        assert!(open(&one, "order-1", &sealed[..10]).is_none());
        assert!(!sealed.windows(6).any(|part| part == b"whsec_"));
    }
}
