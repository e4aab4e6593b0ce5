//! Sources: create, change, delete. They have no events of their own.

use errand_core::source::Source;
use errand_core::{Error, ErrorCode, SourceId, Tenant};

use crate::credentials::{busy, now, unavailable};
use crate::store::{Changed, Created, Store};

/// How often a change is tried again after another one came first.
const TRIES: usize = 5;

/// Changes sources.
#[derive(Debug)]
pub struct Sources {
    store: Store,
}

/// What its owner wants to be otherwise.
#[derive(Debug, Clone, Default)]
pub struct SourceChange {
    /// Another type.
    pub r#type: Option<errand_core::source::SourceType>,
    /// Another name.
    pub name: Option<String>,
    /// Another address.
    pub url: Option<String>,
}

/// What a user is told of a source that is not theirs.
#[must_use]
pub fn not_found(id: SourceId) -> Error {
    ErrorCode::SOURCE_NOT_FOUND.with(format!("there is no source {id}")).at("source_id")
}

impl Sources {
    /// Over this store.
    #[must_use]
    pub const fn new(store: Store) -> Self {
        Self { store }
    }

    /// A new source; the one that has its id, where that is the same tenant's.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn create(&self, source: Source) -> Result<Source, Error> {
        source.check()?;
        match self.store.create_source(&source).await.map_err(unavailable)? {
            Created::Done => Ok(source),
            Created::Full => Err(ErrorCode::INPUT_INVALID.with("the tenant has as many sources as it may have")),
            Created::Taken | Created::NoSource => {
                let found = self.store.source(&source.tenant, source.id).await.map_err(unavailable)?;
                found.ok_or_else(|| ErrorCode::INPUT_INVALID.with("this id is taken").at("source_id"))
            }
        }
    }

    /// One.
    ///
    /// # Errors
    /// `request`/`source_not_found`.
    pub async fn get(&self, tenant: &Tenant, id: SourceId) -> Result<Source, Error> {
        self.store.source(tenant, id).await.map_err(unavailable)?.ok_or_else(|| not_found(id))
    }

    /// Changes one.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn update(&self, tenant: &Tenant, id: SourceId, change: SourceChange) -> Result<Source, Error> {
        for _ in 0..TRIES {
            let before = self.get(tenant, id).await?;
            let SourceChange { r#type, name, url } = change.clone();
            let after = Source {
                r#type: r#type.unwrap_or(before.r#type),
                name: name.unwrap_or_else(|| before.name.clone()),
                url: url.unwrap_or_else(|| before.url.clone()),
                updated_at: now().max(before.updated_at),
                ..before.clone()
            };
            after.check()?;
            if self.store.change_source(&before, &after).await.map_err(unavailable)? == Changed::Done {
                return Ok(after);
            }
        }
        Err(busy())
    }

    /// Deletes one that no credential belongs to.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn delete(&self, tenant: &Tenant, id: SourceId) -> Result<Source, Error> {
        let source = self.get(tenant, id).await?;
        match self.store.delete_source(tenant, id).await.map_err(unavailable)? {
            Changed::Done => Ok(source),
            Changed::InUse => {
                let message = "credentials belong to this source: delete them, or move them, first";
                Err(ErrorCode::INPUT_INVALID.with(message).at("source_id"))
            }
            Changed::Conflict | Changed::NoSource => Err(not_found(id)),
        }
    }
}
