//! Server-sent events: what is missed is read from the store (of a run) or the event stream (of a tenant), then what
//! happens is heard from the hub. A stream ends when its run does, when its client is too slow, when its key is revoked,
//! and when the gateway stops; clients come back by themselves, with the id of the last event that they had.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use errand_bus::FollowFrom;
use errand_client::Timeline;
use errand_core::{Error, ErrorCode, EventId, RunId, Tenant, limits};
use errand_proto::v1;
use tokio::time::Instant;

use super::hub::{Heard, Listener, Topic, frame};
use crate::answer::{Failure, Result};
use crate::auth::Access;
use crate::service::Gateway;

/// Events that are read at once by those who catch up.
const PAGE: usize = 200;
/// How often an open stream looks whether its key is still good.
const CHECK: Duration = Duration::from_millis(400);
/// How long a silent run is taken to be silent before the store is asked.
const SILENCE: Duration = Duration::from_secs(5);
/// Clocks of whoever names events and of the broker may differ by so much.
const SKEW_MS: i64 = 60_000;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The id of the last event that the client has had.
///
/// # Errors
/// `request`/`input_invalid` where it is none.
pub fn last_event_id(headers: &HeaderMap) -> std::result::Result<Option<EventId>, Error> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let invalid = || ErrorCode::INPUT_INVALID.with("Last-Event-ID is not an event's id").at("Last-Event-ID");
    value.to_str().ok().and_then(|text| text.parse().ok()).map(Some).ok_or_else(invalid)
}

/// Where the frames of a stream come from.
pub(super) trait Source: Send + 'static {
    /// The next frames; none: it is over.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// A run's events from its first, or from behind the last that the client has had, to its final one.
///
/// # Errors
/// `request`/`task_run_not_found`; `api`/`unavailable`.
pub async fn run_events(gateway: &Arc<Gateway>, access: Access, run: RunId, headers: &HeaderMap) -> Result<Response> {
    let last = last_event_id(headers)?;
    let tenant = access.tenant.clone();
    let listener = gateway.hub.listen(Topic::Run(tenant.clone(), run)).await?;
    let request = v1::GetRunRequest {
        tenant: tenant.to_string(),
        run_id: run.to_string(),
        include_input: false,
        include_events: true,
    };
    let answer: v1::GetRunResponse = gateway.backend.dispatcher("get_run", &request).await?;
    let had = last.map(|id| id.to_string());
    let had = had.and_then(|id| answer.events.iter().find(|event| event.id == id));
    let mut timeline = had.map_or_else(Timeline::new, Timeline::after);
    if timeline.is_over() {
        // Tells a browser that there is nothing to come back for.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    answer.events.into_iter().for_each(|event| timeline.offer(event));
    let source =
        RunSource { gateway: Arc::clone(gateway), tenant, run, timeline, listener, look_at: Instant::now() + SILENCE };
    Ok(stream(gateway, access, source))
}

struct RunSource {
    gateway: Arc<Gateway>,
    tenant: Tenant,
    run: RunId,
    timeline: Timeline,
    listener: Listener,
    look_at: Instant,
}

impl Source for RunSource {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.timeline.pop() {
                return Some(frame(&event));
            }
            if self.timeline.is_over() {
                return None;
            }
            tokio::select! {
                heard = self.listener.next() => {
                    self.timeline.offer(heard?.event.clone());
                    self.look_at = Instant::now() + if self.timeline.has_gap() { Duration::ZERO } else { SILENCE };
                }
                () = tokio::time::sleep_until(self.look_at) => self.look().await,
            }
        }
    }
}

impl RunSource {
    /// Reads what the store has behind the last event given; what cannot be read now is looked for again.
    async fn look(&mut self) {
        let request = v1::ListEventsRequest {
            tenant: self.tenant.to_string(),
            object_id: self.run.to_string(),
            after_id: self.timeline.last_id().unwrap_or_default().to_owned(),
            limit: limits::MAX_PAGE,
        };
        let page: std::result::Result<v1::ListEventsResponse, Error> =
            self.gateway.backend.dispatcher("list_events", &request).await;
        let mut again = SILENCE;
        match page {
            Ok(page) => {
                let more = page.has_more;
                page.events.into_iter().for_each(|event| self.timeline.offer(event));
                if more || self.timeline.has_gap() {
                    again = Duration::from_millis(200);
                }
            }
            Err(error) => tracing::debug!(%error, run = %self.run, "a run's events cannot be read now"),
        }
        // Set at the end: a look that was cut off is made again at once.
        self.look_at = Instant::now() + again;
    }
}

/// A tenant's events of some types, from now on or from behind the last that the client has had.
///
/// # Errors
/// `api`/`unavailable`.
pub async fn all_events(
    gateway: &Arc<Gateway>,
    access: Access,
    types: Vec<String>,
    filters: Vec<String>,
    headers: &HeaderMap,
) -> Result<Response> {
    let tenant = access.tenant.clone();
    let behind = match last_event_id(headers)? {
        None => None,
        Some(id) => Some(place_behind(gateway, &tenant, id).await?),
    };
    let listener = match behind {
        // Whoever catches up listens when it has: its queue would run over before.
        Some(_) => None,
        None => Some(gateway.hub.listen(Topic::Tenant(tenant.clone())).await?),
    };
    let from = behind.unwrap_or(0);
    let source = TenantSource {
        gateway: Arc::clone(gateway),
        tenant,
        types,
        filters,
        from,
        caught_up: behind.is_none(),
        listener,
        ready: VecDeque::new(),
    };
    Ok(stream(gateway, access, source))
}

/// The place in the stream behind an event. One that is not there any more is taken to have been where its time is: what
/// came since is sent, some of it perhaps again.
async fn place_behind(gateway: &Gateway, tenant: &Tenant, id: EventId) -> std::result::Result<u64, Error> {
    match find(gateway, tenant, id, SKEW_MS).await? {
        Ok(place) => Ok(place + 1),
        Err(Some(place)) => Ok(place),
        Err(None) => {
            let state = gateway.backend.bus().event_stream_state().await.map_err(|error| away(&error))?;
            Ok(state.last_sequence + 1)
        }
    }
}

/// Where a tenant's event stands in the stream, which is near the time that its id tells. Else the place of the first
/// event from about that time on.
///
/// # Errors
/// `api`/`unavailable` where the stream is not there.
pub async fn find(
    gateway: &Gateway,
    tenant: &Tenant,
    id: EventId,
    skew_ms: i64,
) -> std::result::Result<std::result::Result<u64, Option<u64>>, Error> {
    let bus = gateway.backend.bus();
    let wanted = id.to_string();
    // The first 48 bits of a UUIDv7 are milliseconds.
    let time = i64::try_from(id.uuid().as_u128() >> 80).unwrap_or(0);
    let filters = [bus.subjects().events_of(Some(tenant))];
    let mut from = FollowFrom::Time(time.saturating_sub(skew_ms));
    let mut first = None;
    loop {
        let slice = bus.events_from(&filters, from, 1000).await.map_err(|error| away(&error))?;
        let found = slice.deliveries.iter().find(|delivery| delivery.message_id.as_ref() == Some(&wanted));
        if let Some(found) = found {
            return Ok(Ok(found.stream_sequence));
        }
        let at_time = slice.deliveries.iter().find(|delivery| delivery.published_at_ms >= time - 1000);
        first = first.or(at_time.map(|delivery| delivery.stream_sequence));
        let Some(last) = slice.deliveries.last() else { return Ok(Err(first)) };
        if slice.more == 0 || last.published_at_ms > time.saturating_add(skew_ms) {
            return Ok(Err(first));
        }
        from = FollowFrom::Sequence(last.stream_sequence + 1);
    }
}

/// What a user is told where the event stream is not there.
pub(crate) fn away(error: &errand_bus::BusError) -> Error {
    tracing::warn!(%error, "the event stream did not answer");
    ErrorCode::API_UNAVAILABLE.with("the event stream is not there; try again")
}

struct TenantSource {
    gateway: Arc<Gateway>,
    tenant: Tenant,
    types: Vec<String>,
    filters: Vec<String>,
    /// The first place in the stream that was not sent.
    from: u64,
    caught_up: bool,
    listener: Option<Listener>,
    ready: VecDeque<Bytes>,
}

impl Source for TenantSource {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            if !self.caught_up {
                if let Err(error) = self.catch_up().await {
                    tracing::debug!(%error, "a live stream cannot catch up now");
                    return None;
                }
                continue;
            }
            let heard = self.listener.as_mut()?.next().await?;
            if heard.sequence >= self.from {
                self.from = heard.sequence + 1;
                if self.wants(&heard.event) {
                    return Some(heard.frame());
                }
            }
        }
    }
}

impl TenantSource {
    fn wants(&self, event: &v1::Event) -> bool {
        self.types.is_empty() || self.types.iter().any(|wanted| fits(wanted, &event.r#type))
    }

    /// Reads a page. At the stream's end it begins to listen, and reads once more what came before it did.
    async fn catch_up(&mut self) -> std::result::Result<(), Error> {
        let listening = self.listener.is_some();
        let from = FollowFrom::Sequence(self.from);
        let slice = self.gateway.backend.bus().events_from(&self.filters, from, PAGE).await;
        let slice = slice.map_err(|error| away(&error))?;
        for delivery in &slice.deliveries {
            self.from = delivery.stream_sequence + 1;
            self.ready.extend(Heard::of(delivery).map(|heard| heard.frame()));
        }
        if slice.more > 0 {
            return Ok(());
        }
        if listening {
            self.caught_up = true;
        } else {
            let topic = Topic::Tenant(self.tenant.clone());
            self.listener = Some(self.gateway.hub.listen(topic).await?);
        }
        Ok(())
    }
}

/// Whether a type of event is meant: `task_run.completed`, `task_run.*`, `*`.
#[must_use]
pub fn fits(wanted: &str, found: &str) -> bool {
    wanted == "*" || wanted == found || wanted.strip_suffix('*').is_some_and(|kind| found.starts_with(kind))
}

struct Open<S> {
    source: S,
    gateway: Arc<Gateway>,
    hash: [u8; 32],
    began: bool,
    silent_since: Instant,
}

/// A response that goes on for as long as its source.
pub(super) fn stream<S: Source>(gateway: &Arc<Gateway>, access: Access, source: S) -> Response {
    let open =
        Open { source, gateway: Arc::clone(gateway), hash: access.hash, began: false, silent_since: Instant::now() };
    let frames = futures::stream::unfold(Some(open), |open| async {
        let mut open = open?;
        let frame = open.next().await?;
        Some((Ok::<Bytes, Infallible>(frame), Some(open)))
    });
    let mut response = Body::from_stream(frames).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that buffer would make a live stream a dead one.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

impl<S: Source> Open<S> {
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.began, true) {
            return Some(Bytes::from_static(b"retry: 1000\n\n"));
        }
        let Self { source, gateway, hash, silent_since, .. } = self;
        let mut next = std::pin::pin!(source.next());
        loop {
            tokio::select! {
                frame = &mut next => {
                    *silent_since = Instant::now();
                    return frame;
                }
                () = tokio::time::sleep(CHECK) => {}
                () = gateway.draining.cancelled() => return None,
            }
            if gateway.keys.access_by_hash(*hash).await.is_err_and(|error| error.code.http == 401) {
                return None;
            }
            if silent_since.elapsed() >= gateway.keep_alive {
                *silent_since = Instant::now();
                return Some(Bytes::from_static(b": alive\n\n"));
            }
        }
    }
}

/// Whether a client asks for a live stream.
#[must_use]
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get(axum::http::header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|kind| kind.split(';').next().unwrap_or_default().trim() == "text/event-stream")
}

/// A failure of a stream that has not begun.
impl From<&errand_bus::BusError> for Failure {
    fn from(error: &errand_bus::BusError) -> Self {
        away(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_fit_by_name_kind_or_star() {
        for (wanted, found, expected) in [
            ("*", "task_run.failed", true),
            ("task_run.*", "task_run.failed", true),
            ("task_run.failed", "task_run.failed", true),
            ("task_run.*", "task.created", false),
            ("task.*", "task_run.failed", false),
        ] {
            assert_eq!(fits(wanted, found), expected, "{wanted} {found}");
        }
    }

    #[test]
    fn an_event_is_one_frame() {
        let event = v1::Event { id: "evt_1".into(), r#type: "task_run.failed".into(), ..v1::Event::default() };
        let text = String::from_utf8(frame(&event).to_vec()).unwrap();
        assert!(text.starts_with("id: evt_1\nevent: task_run.failed\ndata: {") && text.ends_with("}\n\n"), "{text}");
        assert_eq!(text.lines().count(), 4);
    }
}
