//! The types of destinations as the rest of the service sees them: configurations in JSON go in, channels come out.
//! Tests put doubles here.

use std::fmt::Debug;
use std::sync::Arc;

use errand_core::Error;
use serde_json::Value;

use crate::channel::{Channel, Config, Outside};

/// A configuration that is in order. Its `Debug` shows no secrets.
#[derive(Clone)]
pub struct Checked {
    /// With its secrets, to be sealed.
    pub json: Vec<u8>,
    /// As its owner may read it.
    pub masked: Value,
    /// Whether the type signs, so that it needs a secret.
    pub signs: bool,
}

impl Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checked({})", self.masked)
    }
}

/// What can be done with a type's configuration.
pub trait Channels: Debug + Send + Sync {
    /// Checks what its owner says.
    ///
    /// # Errors
    /// What its owner is told; names the field.
    fn parse(&self, kind: &str, json: &[u8]) -> Result<Checked, Error>;

    /// As [`Self::parse`], for a change: a masked secret means the one of `before`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    fn parse_change(&self, kind: &str, before: &[u8], json: &[u8]) -> Result<Checked, Error>;

    /// Opens the way out; connects to nothing yet. `secrets` sign, newest first.
    ///
    /// # Errors
    /// What its owner is told.
    fn open(&self, kind: &str, json: &[u8], secrets: &[String]) -> Result<Arc<dyn Channel>, Error>;
}

/// The types that there are.
#[derive(Debug, Clone)]
pub struct AllChannels {
    outside: Outside,
}

impl AllChannels {
    /// With what they share.
    #[must_use]
    pub const fn new(outside: Outside) -> Self {
        Self { outside }
    }
}

fn checked(config: &Config) -> Checked {
    Checked { json: config.to_json(), masked: config.masked(), signs: config.signs() }
}

impl Channels for AllChannels {
    fn parse(&self, kind: &str, json: &[u8]) -> Result<Checked, Error> {
        Config::parse(kind, json).map(|config| checked(&config))
    }

    fn parse_change(&self, kind: &str, before: &[u8], json: &[u8]) -> Result<Checked, Error> {
        let before = Config::parse(kind, before)?;
        Config::parse_change(&before, json).map(|config| checked(&config))
    }

    fn open(&self, kind: &str, json: &[u8], secrets: &[String]) -> Result<Arc<dyn Channel>, Error> {
        Config::parse(kind, json)?.open(secrets, &self.outside)
    }
}
