//! Signing secrets, as Standard Webhooks has them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// How long the secret before a rotation is used beside the new one: 24 h.
pub const OLD_SECRET_SECONDS: u32 = 24 * 3600;
const SECRET_BYTES: usize = 32;

/// A new one: `whsec_` and random bytes in base64.
#[must_use]
pub fn new_secret() -> String {
    format!("whsec_{}", STANDARD.encode(rand::random::<[u8; SECRET_BYTES]>()))
}
