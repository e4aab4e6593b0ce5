//! The live view: pictures of a session's page, for as long as somebody watches. They travel over the broker's core,
//! which keeps nothing, and are lost where nobody listens.

use std::time::{Duration, SystemTime};

use base64::Engine;
use bytes::Bytes;
use errand_bus::{Bus, Incoming};
use errand_core::{RunnerId, SessionId};
use errand_proto::v1;
use futures::{Stream, StreamExt};
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::browser::{Browser, Picture};
use crate::cdp::CdpError;

/// How long somebody counts as watching who has said so.
const LINGER: Duration = Duration::from_secs(10);
/// Chromium has two pictures under way until it hears that they were taken. It hears so this often.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the browser may take to begin or to end with pictures.
const PATIENCE: Duration = Duration::from_secs(3);
/// A picture: with all around it, a message stays below the broker's 1 MiB.
const MAX_BYTES: usize = 768 * 1024;
const QUALITY: u8 = 60;
/// Its size in pixels, at most.
const MAX_SIDE: u32 = 1280;

/// A session of a runner.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) runner: RunnerId,
    pub(crate) session: SessionId,
}

/// Shows a session's page to whoever watches. It ends with the browser or the broker's subscription, or is dropped.
pub(crate) async fn show(bus: &Bus, place: Place, browser: &Browser) {
    let subject = bus.subjects().live(place.runner, place.session, "watch");
    let watchers = match bus.subscribe(subject).await {
        Ok(watchers) => watchers,
        Err(error) => return tracing::warn!(session = %place.session, %error, "the session cannot be watched"),
    };
    let Some(pictures) = browser.pictures() else { return };
    let mut show =
        Show { bus, place, browser, watchers, pictures, latest: None, page: None, taken: Vec::new(), changed: false };
    while let Some(watcher) = show.watchers.next().await {
        show.answer(watcher).await;
        if let Err(error) = show.cast().await {
            return tracing::debug!(session = %place.session, %error, "the pictures have ended");
        }
    }
}

struct Show<'a, W> {
    bus: &'a Bus,
    place: Place,
    browser: &'a Browser,
    watchers: W,
    pictures: mpsc::Receiver<Picture>,
    latest: Option<v1::LiveFrame>,
    /// The CDP session of the page that sends pictures.
    page: Option<String>,
    /// Pictures of which Chromium has not heard yet that they were taken.
    taken: Vec<i64>,
    /// Whether one of them was another than the one before.
    changed: bool,
}

/// What has come to pass.
enum Turn {
    Asked(Incoming),
    Arrived(Picture),
    Rested,
    PageChanged,
    Over,
}

impl<W: Stream<Item = Incoming> + Unpin> Show<'_, W> {
    /// Tells a watcher that there are pictures; and the last one, if the watcher does not have it. A page that does not
    /// change sends none, and one that was sent may have been lost.
    async fn answer(&self, watcher: Incoming) {
        let Some(reply) = watcher.reply else { return };
        let had = v1::WatchSessionRequest::decode(watcher.payload).map_or(0, |request| request.had_ms);
        let latest = self.latest.clone().filter(|latest| latest.taken_at_ms != had);
        if let Err(error) = self.bus.publish(reply, &v1::WatchSessionResponse { latest }).await {
            tracing::debug!(session = %self.place.session, %error, "a watcher was not answered");
        }
    }

    /// Sends pictures until nobody has said for a while that they watch.
    async fn cast(&mut self) -> Result<(), CdpError> {
        let (mut until, mut rested_at) = (Instant::now() + LINGER, Instant::now());
        tracing::debug!(session = %self.place.session, "somebody watches");
        loop {
            self.follow_page().await?;
            match self.turn(until, rested_at).await? {
                Turn::Asked(watcher) => {
                    until = Instant::now() + LINGER;
                    self.answer(watcher).await;
                }
                Turn::Arrived(picture) => {
                    if self.taken.is_empty() {
                        rested_at = Instant::now() + PAUSE;
                    }
                    self.take(&picture).await;
                }
                Turn::Rested => self.rest().await?,
                Turn::PageChanged => {}
                Turn::Over => break,
            }
        }
        tracing::debug!(session = %self.place.session, "nobody watches any more");
        self.latest = None;
        self.stop().await
    }

    async fn turn(&mut self, until: Instant, rested_at: Instant) -> Result<Turn, CdpError> {
        let moved = self.browser.until(|known| {
            let current = known.current().map(|page| page.session.as_str());
            (current != self.page.as_deref()).then_some(())
        });
        Ok(tokio::select! {
            watcher = self.watchers.next() => watcher.map_or(Turn::Over, Turn::Asked),
            picture = self.pictures.recv() => picture.map_or(Turn::Over, Turn::Arrived),
            () = sleep_until(rested_at), if !self.taken.is_empty() => Turn::Rested,
            moved = moved => moved.map(|()| Turn::PageChanged)?,
            () = sleep_until(until) => Turn::Over,
        })
    }

    /// Has the page send pictures that is worked on now.
    async fn follow_page(&mut self) -> Result<(), CdpError> {
        let current = self.browser.known().current().map(|page| page.session.clone());
        if current != self.page {
            self.stop().await?;
            self.page = current;
            self.begin().await?;
        }
        Ok(())
    }

    async fn begin(&self) -> Result<(), CdpError> {
        let how = json!({"format": "jpeg", "quality": QUALITY, "maxWidth": MAX_SIDE, "maxHeight": MAX_SIDE});
        self.tell("Page.startScreencast", how).await
    }

    async fn stop(&mut self) -> Result<(), CdpError> {
        self.taken.clear();
        self.tell("Page.stopScreencast", json!({})).await?;
        self.page = None;
        Ok(())
    }

    /// Sends a picture on, unless it is the same again.
    async fn take(&mut self, picture: &Picture) {
        if Some(&picture.page) != self.page.as_ref() {
            return;
        }
        self.taken.push(picture.number);
        let Some(jpeg) = jpeg(picture) else { return };
        let before = match &self.latest {
            Some(latest) if latest.jpeg == jpeg => return,
            Some(latest) => latest.taken_at_ms,
            None => 0,
        };
        self.changed = true;
        // Watchers tell pictures apart by it.
        let frame = v1::LiveFrame { taken_at_ms: now_ms().max(before + 1), jpeg };
        let subject = self.bus.subjects().live(self.place.runner, self.place.session, "frame");
        if let Err(error) = self.bus.publish(subject, &frame).await {
            tracing::debug!(session = %self.place.session, %error, "a picture was not sent");
        }
        self.latest = Some(frame);
    }

    /// Lets the page send more. What changed while it might not is in no picture, and maybe in none to come: so there
    /// is one more of it as it is.
    async fn rest(&mut self) -> Result<(), CdpError> {
        for number in std::mem::take(&mut self.taken) {
            self.tell("Page.screencastFrameAck", json!({"sessionId": number})).await?;
        }
        if std::mem::take(&mut self.changed) {
            self.tell("Page.stopScreencast", json!({})).await?;
            self.begin().await?;
        }
        Ok(())
    }

    /// Tells the page. Pages come and go; only a browser that has gone matters.
    async fn tell(&self, method: &str, params: Value) -> Result<(), CdpError> {
        let Some(page) = &self.page else { return Ok(()) };
        match timeout(PATIENCE, self.browser.cdp.call(page, method, params)).await {
            Ok(Err(CdpError::Closed)) => Err(CdpError::Closed),
            _ => Ok(()),
        }
    }
}

fn jpeg(picture: &Picture) -> Option<Bytes> {
    let jpeg = base64::engine::general_purpose::STANDARD.decode(&picture.jpeg).ok()?;
    if jpeg.len() > MAX_BYTES {
        tracing::debug!(bytes = jpeg.len(), "a picture is too large to be sent");
        return None;
    }
    Some(jpeg.into())
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
