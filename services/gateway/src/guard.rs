//! Before every route of the API: who asks, may they, not too often, and the body within its limits.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use errand_bus::trace;
use errand_core::ErrorCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::answer::{Failure, Payload};
use crate::auth::{Access, secret_of};
use crate::body::MAX_BYTES;
use crate::envelope::CurrentRequest;
use crate::idempotency::{self, Turn};
use crate::routes::storage;
use crate::scope::Scope;
use crate::service::Gateway;

/// See the module.
pub async fn check(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    match admit(&gateway, request, next).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

/// Whether it is a signed link's and comes without a key.
fn is_link(request: &Request) -> bool {
    let route = request.extensions().get::<MatchedPath>();
    let is_signed = request.uri().query().is_some_and(|query| query.contains("signature="));
    let has_key = request.headers().contains_key(axum::http::header::AUTHORIZATION);
    route.is_some_and(|route| route.as_str() == storage::CONTENT) && is_signed && !has_key
}

async fn admit(gateway: &Arc<Gateway>, mut request: Request, next: Next) -> Result<Response, Failure> {
    if is_link(&request) {
        // The storage checks its signature; there is nobody yet whom it could be counted against.
        return Ok(next.run(request).await);
    }
    let secret = secret_of(request.headers())?;
    let access = gateway.keys.access(&secret).await?;
    gateway.rate.admit(&access.tenant)?;
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    access.need(Scope::of_route(request.method(), path))?;
    let key = idempotency::key_of(request.method(), request.headers())?;
    let reads = request.method().is_safe();
    let holds_secrets = path.starts_with("/v2/credentials");
    if reads {
        request.extensions_mut().insert(access);
        return Ok(next.run(request).await);
    }
    let (parts, body) = request.into_parts();
    let body = read(gateway, body).await?;
    let Some(key) = key else {
        let mut request = Request::from_parts(parts, Body::from(body));
        request.extensions_mut().insert(access);
        return Ok(next.run(request).await);
    };
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let salt = if holds_secrets { secret.expose().as_bytes() } else { b"" };
    let hash = idempotency::request_hash(&parts.method, target, &body, salt);
    let request = Request::from_parts(parts, Body::from(body));
    match gateway.idempotency.turn(&access.tenant, key, &secret, hash).await? {
        Turn::Replay(response) => Ok(response),
        Turn::Do(keyed, seed) => {
            let access = Access { seed: Some(seed), ..access };
            carry_out(gateway, keyed, access, request, next).await
        }
    }
}

/// Does the request to its end even where its asker goes away: otherwise nobody would know what became of it.
async fn carry_out(
    gateway: &Arc<Gateway>,
    keyed: idempotency::Keyed,
    access: Access,
    mut request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let id = request.extensions().get::<CurrentRequest>().map(|id| Arc::clone(&id.0));
    request.extensions_mut().insert(access);
    let gateway = Arc::clone(gateway);
    let tracker = gateway.tracker.clone();
    let trace = trace::current();
    let done = tracker.spawn(async move {
        let response = trace::scope(trace.as_deref(), next.run(request)).await;
        let answer = (response.status(), response.extensions().get::<Payload>().cloned());
        gateway.idempotency.settle(keyed, answer, id.as_deref().unwrap_or_default()).await;
        response
    });
    done.await.map_err(|_| ErrorCode::API_ERROR.with("the gateway failed at this request").into())
}

async fn read(gateway: &Gateway, body: Body) -> Result<Bytes, Failure> {
    let reading = tokio::time::timeout(gateway.client_timeout, Limited::new(body, MAX_BYTES).collect()).await;
    let Ok(read) = reading else {
        let seconds = gateway.client_timeout.as_secs_f32();
        return Err(ErrorCode::BODY_INVALID.with(format!("the body did not come within {seconds} s")).into());
    };
    match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ErrorCode::BODY_TOO_LARGE.with(format!("the body is larger than {MAX_BYTES} bytes")).into())
        }
        Err(_) => Err(ErrorCode::BODY_INVALID.with("the body ended before its time").into()),
    }
}
