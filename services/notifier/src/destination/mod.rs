//! An event destination: where a tenant's events are pushed, and which.

mod filter;
mod secret;
mod vault;

use errand_core::{DestinationId, Error, ErrorCode, Tenant, Timestamp, limits};
use errand_proto::v1;
use serde::{Deserialize, Serialize};

pub use filter::{Filter, Pattern};
pub use secret::{OLD_SECRET_SECONDS, new_secret};
pub use vault::{Private, Vault, VaultError};

/// Destinations of one tenant.
pub const MAX_DESTINATIONS: u32 = 100;
/// Patterns of one destination.
pub const MAX_PATTERNS: usize = 50;
/// The configuration of one destination, as JSON.
pub const MAX_CONFIG_BYTES: usize = 32 * 1024;

/// Whether it is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Active,
    /// What it is to get is kept.
    Inactive,
}

/// What its owner says of it; the configuration of its type apart, which holds secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// For people.
    pub name: String,
    /// `webhook`, ...
    pub kind: String,
    /// Which events.
    pub events: Vec<Pattern>,
    /// Of which objects.
    pub filter: Filter,
    /// Whether an object's events wait for one another.
    pub ordered: bool,
}

/// A destination as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// How the store's rows name it.
    pub number: i64,
    /// Its id.
    pub id: DestinationId,
    /// Whose.
    pub tenant: Tenant,
    /// Grows with each change: whoever changes it says which one it has read.
    pub version: i64,
    /// The number of its last event.
    pub seq: u64,
    /// What its owner says.
    pub definition: Definition,
    /// Whether it is sent to.
    pub status: Status,
    /// Why it is not.
    pub inactive_reason: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// How long the secret before the last rotation is used.
    pub old_secret_expires_at: Option<Timestamp>,
    /// Since when every attempt has failed.
    pub failing_since: Option<Timestamp>,
    /// [`Private`], sealed.
    pub sealed: Vec<u8>,
}

impl Definition {
    /// Checks what a request says; the type's own configuration apart.
    ///
    /// # Errors
    /// `request`/`input_missing`, `request`/`input_invalid`; names the field.
    pub fn new(
        name: String,
        kind: String,
        events: &[String],
        filter: Option<v1::DestinationFilter>,
        ordered: bool,
    ) -> Result<Self, Error> {
        check_name(&name)?;
        Ok(Self {
            name,
            kind,
            events: patterns(events)?,
            filter: Filter::try_from(filter.unwrap_or_default())?,
            ordered,
        })
    }

    /// Changes what a request sets; what is absent or empty stays.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn change(&mut self, request: &v1::UpdateDestinationRequest) -> Result<(), Error> {
        if !request.name.is_empty() {
            check_name(&request.name)?;
            self.name.clone_from(&request.name);
        }
        if !request.events.is_empty() {
            self.events = patterns(&request.events)?;
        }
        if let Some(filter) = &request.filter {
            self.filter = Filter::try_from(filter.clone())?;
        }
        self.ordered = request.ordered.unwrap_or(self.ordered);
        Ok(())
    }

    /// Whether it wants events of this type: all that can be said before an event is decoded.
    #[must_use]
    pub fn wants(&self, event_type: &str) -> bool {
        self.events.iter().any(|pattern| pattern.fits(event_type))
    }
}

impl Destination {
    /// The wire form, without what its type needs and without secrets.
    #[must_use]
    pub fn view(&self) -> v1::Destination {
        let definition = &self.definition;
        v1::Destination {
            id: self.id.to_string(),
            tenant: self.tenant.to_string(),
            name: definition.name.clone(),
            r#type: definition.kind.clone(),
            config: Vec::new().into(),
            events: definition.events.iter().map(ToString::to_string).collect(),
            filter: Some((&definition.filter).into()),
            ordered: definition.ordered,
            status: match self.status {
                Status::Active => v1::DestinationStatus::Active,
                Status::Inactive => v1::DestinationStatus::Inactive,
            }
            .into(),
            inactive_reason: self.inactive_reason.clone(),
            created_at_ms: self.created_at.0,
            updated_at_ms: self.updated_at.0,
            secret: String::new(),
            old_secret_expires_at_ms: self.old_secret_expires_at.map(|at| at.0),
            failing_since_ms: self.failing_since.map(|since| since.0),
        }
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(ErrorCode::INPUT_MISSING.with("name is missing").at("name"));
    }
    let fits = name.chars().count() <= limits::MAX_NAME && !name.chars().any(char::is_control);
    let message = || format!("name has 1..{} characters, none of them a control character", limits::MAX_NAME);
    fits.then_some(()).ok_or_else(|| ErrorCode::INPUT_INVALID.with(message()).at("name"))
}

fn patterns(events: &[String]) -> Result<Vec<Pattern>, Error> {
    if events.is_empty() {
        return Err(ErrorCode::INPUT_MISSING.with("events is missing: say `*` for all").at("events"));
    }
    if events.len() > MAX_PATTERNS {
        let message = format!("events may have {MAX_PATTERNS} entries, not {}", events.len());
        return Err(ErrorCode::INPUT_INVALID.with(message).at("events"));
    }
    let mut patterns: Vec<Pattern> = Vec::with_capacity(events.len());
    for text in events {
        let pattern = text.parse::<Pattern>().map_err(|reason| ErrorCode::INPUT_INVALID.with(reason).at("events"))?;
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    Ok(patterns)
}

#[cfg(test)]
mod tests;
