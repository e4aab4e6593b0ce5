//! What a destination's type needs, as its owner gave it.

use std::sync::Arc;

use errand_core::{Error, ErrorCode};
use serde_json::Value;

use super::Channel;

/// The checked configuration of one type of destination. Holds secrets: it is sealed before it is stored, and shown
/// [`Self::masked`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// Standard Webhooks.
    Webhook(super::webhook::Config),
}

impl Config {
    /// Reads what stands under the type's name (`{"url": ...}` of `webhook`).
    ///
    /// # Errors
    /// `request`/`input_invalid`, `input_missing` or `field_unknown`; names the field: `type`, `webhook.url`.
    pub fn parse(kind: &str, _json: &[u8]) -> Result<Self, Error> {
        Err(ErrorCode::INPUT_INVALID.with(format!("{kind:?} is no type of destination")).at("type"))
    }

    /// As [`Self::parse`] for a change: a masked secret means the one that `before` has.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_change(before: &Self, json: &[u8]) -> Result<Self, Error> {
        Self::parse(before.kind(), json)
    }

    /// The type's name: `webhook`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
        }
    }

    /// Whether it signs, so that it needs a `whsec_` secret.
    #[must_use]
    pub const fn signs(&self) -> bool {
        matches!(self, Self::Webhook(_))
    }

    /// As its owner may read it: secrets are `"***"`.
    #[must_use]
    pub fn masked(&self) -> Value {
        Value::Null
    }

    /// With its secrets, as [`Self::parse`] reads it: to be sealed.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Opens the way out. `secrets` are the `whsec_` secrets that sign, newest first. Connects to nothing yet.
    ///
    /// # Errors
    /// What its owner is told.
    pub fn open(&self, _secrets: &[String], _outside: &super::Outside) -> Result<Arc<dyn Channel>, Error> {
        Err(ErrorCode::API_UNAVAILABLE.with("not there yet"))
    }
}
