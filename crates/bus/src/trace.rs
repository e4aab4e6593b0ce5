//! W3C trace context from message to message, and the spans around sending, consuming and handling one.
//!
//! A span is made only where its trace is sampled, which its `traceparent` says: a run that is not costs a look at one
//! character. A trace that began here and is not sampled is carried no further than its run's submission: nobody could
//! ever look for it. One that others began goes along, sampled or not. Where the spans go is decided by the process ([`enable`]): errand-kit sets an exporter up, and a client's
//! program may bring its own. Attributes follow OpenTelemetry's conventions for messaging.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use async_nats::HeaderMap;
use opentelemetry::global::{self, BoxedSpan};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer,
};
use opentelemetry::{Context, KeyValue};

/// The header, as W3C calls it.
pub const TRACEPARENT: &str = "traceparent";
/// Stands for a `traceparent` where a trace began here and is not sampled, so that it does not begin once more.
pub const UNTRACED: &str = "-";
/// Who makes spans here, in OpenTelemetry's words.
const SCOPE: &str = "errand";

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Makes spans from now on, through OpenTelemetry's global tracer provider. Set that first.
pub fn enable() {
    ENABLED.store(true, Ordering::Release);
}

/// What a span stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message is sent.
    Send,
    /// A message is taken and handled.
    Process,
    /// A request is sent, and its answer waited for.
    Request,
    /// A request is handled and answered.
    Handle,
    /// An HTTP request is served.
    Serve,
    /// Something within a process.
    Internal,
}

/// A span under way, or only the context to hand on where the trace is not sampled. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span {
    span: Option<BoxedSpan>,
    traceparent: Option<Arc<str>>,
}

impl Span {
    /// The first span of a trace, below what OpenTelemetry holds for this thread's current span. Whether it is
    /// sampled is decided here, and holds for all that follows.
    #[must_use]
    pub fn root(kind: Kind, what: &str) -> Self {
        if !ENABLED.load(Ordering::Acquire) {
            return Self::default();
        }
        let above = Context::current();
        let begins = !above.span().span_context().is_valid();
        let span = start(kind, what, SystemTime::now(), &above);
        if begins && !span.span_context().is_sampled() {
            return Self { span: None, traceparent: Some(Arc::from(UNTRACED)) };
        }
        let traceparent = text(span.span_context());
        let sampled = span.span_context().is_sampled();
        Self { span: sampled.then_some(span), traceparent }
    }

    /// A span below what a `traceparent` names; none where that is not sampled.
    #[must_use]
    pub fn child(parent: Option<&str>, kind: Kind, what: &str) -> Self {
        Self::child_since(parent, kind, what, SystemTime::now)
    }

    /// As [`Self::child`], of something that began before.
    #[must_use]
    pub fn child_since(parent: Option<&str>, kind: Kind, what: &str, since: impl FnOnce() -> SystemTime) -> Self {
        let Some(parent) = parent else { return Self::default() };
        let traceparent = || Some(Arc::from(parent));
        if !is_sampled(parent) || !ENABLED.load(Ordering::Acquire) {
            return Self { span: None, traceparent: traceparent() };
        }
        let Some(context) = parsed(parent) else { return Self::default() };
        let span = start(kind, what, since(), &Context::new().with_remote_span_context(context));
        let own = text(span.span_context());
        Self { span: Some(span), traceparent: own.or_else(traceparent) }
    }

    /// Whether there is anything to say things of.
    #[must_use]
    pub const fn is_recording(&self) -> bool {
        self.span.is_some()
    }

    /// What those below this span are given.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    /// Says something of it.
    pub fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new(key, value.into()));
        }
    }

    /// It failed. The reason must hold no secrets.
    pub fn fail(&mut self, reason: &str) {
        if let Some(span) = &mut self.span {
            span.set_status(Status::error(reason.to_owned()));
        }
    }
}

fn start(kind: Kind, what: &str, since: SystemTime, parent: &Context) -> BoxedSpan {
    let (verb, of_kind, operation) = match kind {
        Kind::Send => ("send ", SpanKind::Producer, Some("send")),
        Kind::Process => ("process ", SpanKind::Consumer, Some("process")),
        Kind::Request => ("request ", SpanKind::Client, Some("send")),
        Kind::Handle => ("handle ", SpanKind::Server, Some("process")),
        Kind::Serve => ("", SpanKind::Server, None),
        Kind::Internal => ("", SpanKind::Internal, None),
    };
    let mut attributes = Vec::new();
    if let Some(operation) = operation {
        attributes.push(KeyValue::new("messaging.system", "nats"));
        attributes.push(KeyValue::new("messaging.operation.type", operation));
        attributes.push(KeyValue::new("messaging.operation.name", verb.trim_end()));
        attributes.push(KeyValue::new("messaging.destination.name", what.to_owned()));
    }
    let builder = SpanBuilder::from_name(format!("{verb}{what}"))
        .with_kind(of_kind)
        .with_start_time(since)
        .with_attributes(attributes);
    global::tracer(SCOPE).build_with_context(builder, parent)
}

fn is_sampled(traceparent: &str) -> bool {
    // The lowest bit of the last digit.
    traceparent
        .bytes()
        .last()
        .is_some_and(|digit| matches!(digit, b'1' | b'3' | b'5' | b'7' | b'9' | b'b' | b'd' | b'f'))
}

fn parsed(traceparent: &str) -> Option<SpanContext> {
    if !is_valid(traceparent) {
        return None;
    }
    let trace = TraceId::from_hex(traceparent.get(3..35)?).ok()?;
    let span = SpanId::from_hex(traceparent.get(36..52)?).ok()?;
    Some(SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default()))
}

fn text(context: &SpanContext) -> Option<Arc<str>> {
    let flags = u8::from(context.is_sampled());
    context.is_valid().then(|| format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id()).into())
}

/// The trace's id in a `traceparent`.
#[must_use]
pub fn trace_id(traceparent: &str) -> Option<&str> {
    is_valid(traceparent).then(|| &traceparent[3..35])
}

tokio::task_local! {
    static CURRENT: Option<Arc<str>>;
}

/// The trace context that this task works under: set by a service for its handlers, or by [`scope`].
#[must_use]
pub fn current() -> Option<Arc<str>> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// Runs `work` under a trace context, or under [`UNTRACED`]: its requests carry it on. What is neither counts as none.
pub async fn scope<F: Future>(traceparent: Option<&str>, work: F) -> F::Output {
    let traceparent = traceparent.filter(|text| is_carried(text)).map(Arc::from);
    CURRENT.scope(traceparent, work).await
}

fn is_carried(text: &str) -> bool {
    text == UNTRACED || is_valid(text)
}

/// The trace context that a message carries, or [`UNTRACED`]. What is neither counts as none.
#[must_use]
pub fn from_headers(headers: Option<&HeaderMap>) -> Option<&str> {
    headers?.get(TRACEPARENT).map(async_nats::HeaderValue::as_str).filter(|text| is_carried(text))
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
    async fn what_is_not_sampled_neither_goes_along_nor_begins_once_more() {
        enable();
        // Nobody has set a provider: nothing is sampled.
        let root = Span::root(Kind::Send, "submit");
        assert_eq!((root.is_recording(), root.traceparent()), (false, Some(UNTRACED)));
        let headers = scope(root.traceparent(), async {
            let below = Span::child(current().as_deref(), Kind::Request, "api");
            assert_eq!((below.is_recording(), below.traceparent()), (false, Some(UNTRACED)));
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, UNTRACED);
            headers
        });
        assert_eq!(from_headers(Some(&headers.await)), Some(UNTRACED));
        let mut headers = HeaderMap::new();
        set(&mut headers, UNTRACED);
        assert!(headers.is_empty());
        // What others began and do not sample goes along.
        let others = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        assert_eq!(Span::child(Some(others), Kind::Send, "event").traceparent(), Some(others));
    }

    #[tokio::test]
    async fn a_scope_ends_with_its_work() {
        assert_eq!(current(), None);
        scope(Some(GOOD), async { assert_eq!(current().as_deref(), Some(GOOD)) }).await;
        scope(Some("not one"), async { assert_eq!(current(), None) }).await;
        assert_eq!(current(), None);
    }
}
