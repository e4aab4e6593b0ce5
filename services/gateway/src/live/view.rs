//! Pictures of a session's page: its runner sends them while somebody says that they watch.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use base64::Engine;
use bytes::Bytes;
use errand_bus::{Bus, RequestError};
use errand_core::session::SessionStatus;
use errand_core::{Error, ErrorCode, RunnerId, SessionId};
use errand_proto::{json, v1};
use futures::StreamExt;
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::hub::Seat;
use super::sse::{Source, stream};
use crate::answer::Result;
use crate::auth::Access;
use crate::backend::present;
use crate::service::Gateway;

/// How often the runner is told that somebody watches; it forgets after ten seconds.
const ASK: Duration = Duration::from_secs(3);
/// How soon again where it does not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// How long its answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A session's pictures from now on: the latest at once, others as the page changes.
///
/// # Errors
/// `request`/`session_not_found`; `request`/`session_not_available` where it has ended, or its runner shows nothing;
/// `api`/`unavailable`.
pub async fn session_frames(gateway: &Arc<Gateway>, access: Access, session: SessionId) -> Result<Response> {
    let request = v1::GetSessionRequest { tenant: access.tenant.to_string(), session_id: session.to_string() };
    let answer: v1::SessionResponse = gateway.backend.pool("get_session", &request).await?;
    let found = present(answer.session, "session")?;
    if SessionStatus::try_from(found.status()).is_ok_and(SessionStatus::is_final) {
        return Err(ErrorCode::SESSION_NOT_AVAILABLE.with("the session has ended").into());
    }
    let Ok(runner) = found.runner_id.parse() else {
        return Err(ErrorCode::SESSION_NOT_AVAILABLE.with("the session is on no runner yet").into());
    };
    let seat = gateway.hub.seat(&access.tenant)?;
    let shown = Shown { bus: gateway.backend.bus().clone(), runner, session };
    // Listens first: on one connection the broker hears of both in this order.
    let (frames, listening) = shown.listen().await?;
    let latest = shown.watch(0).await?;
    let source = FrameSource {
        shown,
        frames,
        latest,
        had_ms: 0,
        ask_at: Instant::now() + ASK,
        _listening: listening,
        _seat: seat,
    };
    Ok(stream(gateway, access, source))
}

/// A session that its runner may show.
struct Shown {
    bus: Bus,
    runner: RunnerId,
    session: SessionId,
}

impl Shown {
    /// The newest picture, always: one that comes takes the place of one that waits.
    async fn listen(&self) -> std::result::Result<(watch::Receiver<Option<Bytes>>, AbortOnDropHandle<()>), Error> {
        let subject = self.bus.subjects().live(self.runner, self.session, "frame");
        let mut incoming = self.bus.subscribe(subject).await.map_err(|error| {
            tracing::warn!(%error, "pictures cannot be listened to");
            ErrorCode::API_UNAVAILABLE.with("the broker is away; try again")
        })?;
        let (newest, frames) = watch::channel(None);
        let listening = tokio::spawn(async move {
            while let Some(frame) = incoming.next().await {
                newest.send_replace(Some(frame.payload));
            }
        });
        Ok((frames, AbortOnDropHandle::new(listening)))
    }

    /// Tells the runner that somebody watches who had this picture; the last one, where it is another.
    async fn watch(&self, had_ms: i64) -> std::result::Result<Option<v1::LiveFrame>, Error> {
        let subject = self.bus.subjects().live(self.runner, self.session, "watch");
        let request = v1::WatchSessionRequest { had_ms };
        let answer: std::result::Result<v1::WatchSessionResponse, _> =
            self.bus.request_within(subject, &request, PATIENCE).await;
        match answer {
            Ok(answer) => Ok(answer.latest),
            Err(RequestError::NobodyServes(_)) => {
                Err(ErrorCode::SESSION_NOT_AVAILABLE.with("the session's runner shows no pictures of it"))
            }
            Err(error) => {
                tracing::debug!(%error, session = %self.session, "the session's runner did not answer");
                Err(ErrorCode::API_UNAVAILABLE.with("the session's runner did not answer; try again"))
            }
        }
    }
}

struct FrameSource {
    shown: Shown,
    frames: watch::Receiver<Option<Bytes>>,
    /// To be sent.
    latest: Option<v1::LiveFrame>,
    /// When the one that was sent last was taken.
    had_ms: i64,
    ask_at: Instant,
    _listening: AbortOnDropHandle<()>,
    _seat: Seat,
}

impl Source for FrameSource {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(latest) = self.latest.take().filter(|latest| latest.taken_at_ms != self.had_ms) {
                self.had_ms = latest.taken_at_ms;
                return Some(event(&latest));
            }
            tokio::select! {
                changed = self.frames.changed() => {
                    changed.ok()?;
                    let newest = self.frames.borrow_and_update().clone();
                    self.latest = newest.and_then(|frame| v1::LiveFrame::decode(frame).ok());
                }
                () = tokio::time::sleep_until(self.ask_at) => match self.shown.watch(self.had_ms).await {
                    Ok(latest) => {
                        self.latest = latest;
                        self.ask_at = Instant::now() + ASK;
                    }
                    Err(error) if error.code == ErrorCode::API_UNAVAILABLE => self.ask_at = Instant::now() + AGAIN,
                    // The session has ended.
                    Err(_) => return None,
                },
            }
        }
    }
}

fn event(frame: &v1::LiveFrame) -> Bytes {
    let jpeg = base64::engine::general_purpose::STANDARD.encode(&frame.jpeg);
    let taken_at = json::time(frame.taken_at_ms);
    format!("event: frame\ndata: {{\"taken_at\":{taken_at},\"jpeg\":\"{jpeg}\"}}\n\n").into()
}
