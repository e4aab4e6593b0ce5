//! Which web pages of other origins may call: none, unless their origin was set.

use std::collections::HashSet;

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};

/// The origins.
#[derive(Debug, Clone, Default)]
pub struct Cors {
    any: bool,
    origins: HashSet<String>,
}

impl Cors {
    /// These origins; `*`: every one. Keys travel in a header, never in cookies, so that is no more than it says.
    #[must_use]
    pub fn new(origins: &[String]) -> Self {
        let any = origins.iter().any(|origin| origin == "*");
        Self { any, origins: origins.iter().map(|origin| origin.trim_end_matches('/').to_owned()).collect() }
    }

    /// The asking page's origin, where it may ask.
    #[must_use]
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if !self.any && self.origins.is_empty() {
            return None;
        }
        let origin = headers.get(ORIGIN)?;
        let known = self.any || origin.to_str().is_ok_and(|text| self.origins.contains(text));
        known.then(|| origin.clone())
    }

    /// The answer to a browser that asks whether it may ask.
    #[must_use]
    pub fn preflight(&self, method: &Method, headers: &HeaderMap, origin: Option<&HeaderValue>) -> Option<Response> {
        if *method != Method::OPTIONS || !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) || origin.is_none() {
            return None;
        }
        let mut response = StatusCode::NO_CONTENT.into_response();
        let answer = response.headers_mut();
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PATCH, DELETE"));
        let allowed = "authorization, content-type, idempotency-key, last-event-id";
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
        answer.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        Some(response)
    }

    /// Lets the page read the answer.
    pub fn add(&self, headers: &mut HeaderMap, origin: Option<HeaderValue>) {
        if self.any || !self.origins.is_empty() {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = origin else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed =
            "x-request-id, retry-after, idempotent-replayed, content-disposition, content-range, accept-ranges, etag";
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(exposed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(origin: &str) -> HeaderMap {
        HeaderMap::from_iter([(ORIGIN, HeaderValue::from_str(origin).unwrap())])
    }

    #[test]
    fn only_origins_that_were_set_may_ask() {
        assert!(Cors::new(&[]).allowed(&from("https://a.example")).is_none());
        let one = Cors::new(&["https://a.example/".into()]);
        assert!(one.allowed(&from("https://a.example")).is_some());
        assert!(one.allowed(&from("https://b.example")).is_none());
        assert!(Cors::new(&["*".into()]).allowed(&from("https://b.example")).is_some());
    }
}
