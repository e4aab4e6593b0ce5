//! W3C trace context: from message to message. What a trace is made of lives in errand-kit; here it is a header.

use std::future::Future;
use std::sync::Arc;

use async_nats::HeaderMap;

/// The header, as W3C calls it.
pub const TRACEPARENT: &str = "traceparent";

tokio::task_local! {
    static CURRENT: Option<Arc<str>>;
}

/// The trace context that this task works under: set by a service for its handlers, or by [`scope`].
#[must_use]
pub fn current() -> Option<Arc<str>> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// Runs `work` under a trace context: its requests carry it on. What is not a `traceparent` counts as none.
pub async fn scope<F: Future>(traceparent: Option<&str>, work: F) -> F::Output {
    let traceparent = traceparent.filter(|text| is_valid(text)).map(Arc::from);
    CURRENT.scope(traceparent, work).await
}

/// The trace context that a message carries. What is not a `traceparent` counts as none.
#[must_use]
pub fn from_headers(headers: Option<&HeaderMap>) -> Option<&str> {
    headers?.get(TRACEPARENT).map(async_nats::HeaderValue::as_str).filter(|text| is_valid(text))
}

/// Makes a message carry a trace context. What is not a `traceparent` is left out: it comes from outside, and a
/// line break in it would be a header of its own.
pub fn set(headers: &mut HeaderMap, traceparent: &str) {
    if is_valid(traceparent) {
        headers.insert(TRACEPARENT, traceparent);
    }
}

/// Whether this is a `traceparent` of version 00: `00-<32 hex>-<16 hex>-<2 hex>`, lower case, neither id all zero.
#[must_use]
pub fn is_valid(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let id = |part: &str, length: usize| hex(part, length) && part.bytes().any(|byte| byte != b'0');
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next(), parts.next(), parts.next(), parts.next());
    version == Some("00")
        && trace.is_some_and(|trace| id(trace, 32))
        && span.is_some_and(|span| id(span, 16))
        && flags.is_some_and(|flags| hex(flags, 2))
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_a_traceparent_is_carried() {
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0\n",
        ] {
            let mut headers = HeaderMap::new();
            set(&mut headers, bad);
            assert!(headers.is_empty(), "{bad:?}");
        }
        let mut headers = HeaderMap::new();
        set(&mut headers, GOOD);
        assert_eq!(from_headers(Some(&headers)), Some(GOOD));
    }

    #[tokio::test]
    async fn a_scope_ends_with_its_work() {
        assert_eq!(current(), None);
        scope(Some(GOOD), async { assert_eq!(current().as_deref(), Some(GOOD)) }).await;
        scope(Some("not one"), async { assert_eq!(current(), None) }).await;
        assert_eq!(current(), None);
    }
}
