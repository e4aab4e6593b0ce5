//! What handlers answer. The body stays a value until the envelope has put the request's id into it.

use axum::http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use errand_core::{Error, ErrorCode};
use errand_proto::v1;
use serde_json::{Map, Value, json};

/// The body of an answer on its way to the envelope.
#[derive(Debug, Clone)]
pub struct Payload(pub Map<String, Value>);

/// An answer that went well.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    body: Map<String, Value>,
}

impl Answer {
    /// 200 with an object.
    #[must_use]
    pub fn ok(body: Value) -> Self {
        Self::of(StatusCode::OK, body)
    }

    /// 201 with an object.
    #[must_use]
    pub fn created(body: Value) -> Self {
        Self::of(StatusCode::CREATED, body)
    }

    fn of(status: StatusCode, body: Value) -> Self {
        let body = match body {
            Value::Object(body) => body,
            other => Map::from_iter([("data".to_owned(), other)]),
        };
        Self { status, body }
    }

    /// A list's page.
    #[must_use]
    pub fn list(data: Vec<Value>, page: Option<v1::PageInfo>) -> Self {
        let page = page.unwrap_or_default();
        let next = if page.has_more && !page.next_cursor.is_empty() { Some(page.next_cursor) } else { None };
        Self::ok(json!({"data": data, "has_more": page.has_more, "next_cursor": next}))
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(Payload(self.body));
        response
    }
}

/// An answer that says no.
#[derive(Debug, Clone)]
pub struct Failure {
    errors: Vec<Error>,
    headers: HeaderMap,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut headers = HeaderMap::new();
        if error.code.http == 401 && error.code.kind == "request" {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(error.code, ErrorCode::API_UNAVAILABLE | ErrorCode::RATE_LIMIT_EXCEEDED) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Self { errors: vec![error], headers }
    }
}

impl Failure {
    /// The same, to be tried again after so many seconds.
    #[must_use]
    pub fn after(mut self, seconds: u64) -> Self {
        self.headers.insert(RETRY_AFTER, seconds.into());
        self
    }

    /// The first error.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        self.errors.first()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = self.errors.first().and_then(|error| StatusCode::from_u16(error.code.http).ok());
        let mut response = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        response.headers_mut().extend(self.headers);
        let errors = serde_json::to_value(&self.errors).unwrap_or_else(|_| json!([]));
        response.extensions_mut().insert(Payload(Map::from_iter([("errors".to_owned(), errors)])));
        response
    }
}

/// What a handler gives back.
pub type Result<T = Answer> = std::result::Result<T, Failure>;
