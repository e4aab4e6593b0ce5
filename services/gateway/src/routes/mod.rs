//! The routes of `/v2`, a file for each kind of object.

mod credentials;
mod destinations;
mod events;
mod pages;
mod runners;
mod runs;
mod sessions;
mod sources;
pub(crate) mod storage;
mod tasks;

use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use errand_core::{Error, ErrorCode};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::answer::Failure;
use crate::service::Gateway;

/// All routes, and their description.
pub fn all() -> (Router<Arc<Gateway>>, OpenApi) {
    OpenApiRouter::new()
        .merge(tasks::routes())
        .merge(runs::routes())
        .merge(storage::routes())
        .merge(sessions::routes())
        .merge(runners::routes())
        .merge(events::routes())
        .merge(destinations::routes())
        .merge(sources::routes())
        .merge(credentials::routes())
        .split_for_parts()
}

/// Every type of event.
pub fn event_types() -> impl Iterator<Item = &'static str> {
    events::TYPES.iter().map(|(name, _)| *name)
}

/// The id in a path, as it was written.
#[derive(Debug, Clone)]
pub(crate) struct PathId(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(ErrorCode::ROUTE_NOT_FOUND.with("the path cannot be read").into()),
        }
    }
}

impl PathId {
    /// The id, where it is one of its kind: what is none is the id of nothing.
    pub(crate) fn read<I: FromStr>(&self, code: ErrorCode, what: &str) -> Result<I, Error> {
        self.0.parse().map_err(|_| {
            let shown: String = self.0.chars().take(80).collect();
            code.with(format!("there is no {what} {shown}"))
        })
    }
}

impl axum::extract::FromRequestParts<Arc<Gateway>> for crate::auth::Access {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Gateway>) -> Result<Self, Failure> {
        // The guard has put it there; a route without the guard lets nobody in.
        let access = parts.extensions.get::<Self>().cloned();
        access.ok_or_else(|| ErrorCode::API_KEY_MISSING.with("an API key is missing").into())
    }
}
