//! Around every request: its id, its span, the body in its final form, security headers, CORS, and the count of it.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use errand_bus::trace;
use errand_core::{ErrorCode, RequestId};
use serde_json::Value;
use uuid::Uuid;

use crate::answer::{Failure, Payload};
use crate::service::Gateway;

/// Headers of one request. Bytes, and what is far beyond, are the server's to refuse.
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of the request under way.
#[derive(Debug, Clone)]
pub struct CurrentRequest(pub Arc<str>);

/// See the module.
pub async fn seal(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id: Arc<str> = RequestId::from_uuid(Uuid::now_v7()).to_string().into();
    request.extensions_mut().insert(CurrentRequest(Arc::clone(&id)));
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let mut span = served(&request, route);
    let origin = gateway.cors.allowed(request.headers());
    let mut response = match gateway.cors.preflight(&method, request.headers(), origin.as_ref()) {
        _ if too_large(request.headers()) => head_refused(),
        Some(preflight) => preflight,
        None => trace::scope(span.traceparent(), next.run(request)).await,
    };
    finish(&mut response, &id);
    harden(response.headers_mut(), gateway.serves_tls);
    gateway.cors.add(response.headers_mut(), origin);
    span.set("http.response.status_code", i64::from(response.status().as_u16()));
    if response.status().is_server_error() {
        span.fail("the request has failed");
        tracing::warn!(%method, route, status = response.status().as_u16(), request_id = %id, "a request has failed");
    }
    gateway.metrics.request(&method, route, response.status(), started.elapsed());
    response
}

/// The span of a request: below the client's, where it brings one. The path itself is left out, ids are in the spans
/// below.
fn served(request: &Request, route: &str) -> trace::Span {
    if !route.starts_with("/v2") {
        return trace::Span::default();
    }
    let name = format!("{} {route}", request.method());
    let asked = request.headers().get(trace::TRACEPARENT).and_then(|value| value.to_str().ok());
    let mut span = match asked.filter(|text| trace::is_valid(text)) {
        Some(parent) => trace::Span::child(Some(parent), trace::Kind::Serve, &name),
        None => trace::Span::root(trace::Kind::Serve, &name),
    };
    if span.is_recording() {
        span.set("http.request.method", request.method().as_str().to_owned());
        span.set("http.route", route.to_owned());
    }
    span
}

fn too_large(headers: &HeaderMap) -> bool {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES
}

fn head_refused() -> Response {
    let message = format!("a request may have {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together");
    Failure::from(ErrorCode::INPUT_INVALID.with(message)).into_response()
}

/// Writes the body, with the request's id in it; an answer that was given before keeps the id that it had.
fn finish(response: &mut Response, id: &str) {
    let payload = response.extensions_mut().remove::<Payload>();
    let Some(Payload(mut body)) = payload else {
        insert_id(response.headers_mut(), id);
        return;
    };
    let id = match body.get("request_id") {
        Some(Value::String(first)) => first.clone(),
        _ => {
            body.insert("request_id".to_owned(), id.into());
            id.to_owned()
        }
    };
    insert_id(response.headers_mut(), &id);
    let mut bytes = Vec::with_capacity(1024);
    if serde_json::to_writer(&mut bytes, &body).is_err() {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.body_mut() = Body::from(bytes);
}

fn insert_id(headers: &mut HeaderMap, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, value);
    }
}

/// What makes browsers careful with the answer. What a handler has set stays.
fn harden(headers: &mut HeaderMap, tls: bool) {
    let mut set = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    set(X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(X_FRAME_OPTIONS, "DENY");
    set(REFERRER_POLICY, "no-referrer");
    set(CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    set(CACHE_CONTROL, "no-store");
    if tls {
        set(STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
}

/// The answer where there is no route.
pub async fn no_route() -> Response {
    Failure::from(ErrorCode::ROUTE_NOT_FOUND.with("there is nothing at this path; /v2/openapi.json has what there is"))
        .into_response()
}

/// The answer where a route does not know the method.
pub async fn no_method(method: Method) -> Response {
    Failure::from(ErrorCode::METHOD_NOT_ALLOWED.with(format!("{method} is not allowed here; see the header Allow")))
        .into_response()
}
