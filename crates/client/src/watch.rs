//! Following one run to its end.

use std::pin::Pin;
use std::time::Duration;

use errand_bus::Incoming;
use errand_core::{ErrorCode, RunId};
use errand_proto::v1;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::call::Repeat;
use crate::timeline::Timeline;
use crate::{Client, ClientError};

/// How long a silent run is taken to be silent, before the store is asked whether it is.
const SILENCE: Duration = Duration::from_secs(5);
/// How long after a look that did not help the store is looked at again.
const AGAIN: Duration = Duration::from_millis(250);

impl Client {
    /// The events of a run from its first to its final one, each once and in order; then the stream ends. The run need
    /// not exist yet: what is submitted after this call returns is seen from the beginning.
    ///
    /// Events are heard live, and read from the store at the beginning, after a reconnect, where one is missing and
    /// where the run is silent, so none is missed.
    ///
    /// # Errors
    /// [`ClientError`], both of the call and of the stream, where the store says no.
    pub async fn watch(
        &self,
        run: RunId,
    ) -> Result<impl Stream<Item = Result<v1::Event, ClientError>> + Send + use<>, ClientError> {
        // Listen first: what happens between a look at the store and a later subscription would be lost.
        let subject = self.bus.subjects().event(&self.tenant, "task_run", "*", &run.to_string());
        let live = self.bus.subscribe(subject).await?;
        let mut connections = self.bus.connections();
        connections.mark_unchanged();
        let watch = Watch {
            client: self.clone(),
            run,
            live: Box::pin(live),
            connections,
            timeline: Timeline::new(),
            look_at: Instant::now(),
        };
        Ok(futures::stream::try_unfold(watch, |mut watch| async move {
            Ok(watch.next().await?.map(|event| (event, watch)))
        }))
    }

    /// Signs of life of a run's agent, as they come; some may be lost.
    ///
    /// # Errors
    /// [`ClientError::Bus`].
    pub async fn follow_activity(
        &self,
        run: RunId,
    ) -> Result<impl Stream<Item = v1::Activity> + Send + Unpin + use<>, ClientError> {
        let live = self.bus.subscribe(self.bus.subjects().activity(run)).await?;
        Ok(live.filter_map(|incoming| futures::future::ready(v1::Activity::decode(incoming.payload).ok())))
    }
}

enum Heard {
    Event(Option<Incoming>),
    Reconnected,
    Nothing,
}

struct Watch {
    client: Client,
    run: RunId,
    live: Pin<Box<dyn Stream<Item = Incoming> + Send>>,
    connections: watch::Receiver<u64>,
    timeline: Timeline,
    look_at: Instant,
}

impl Watch {
    async fn next(&mut self) -> Result<Option<v1::Event>, ClientError> {
        loop {
            if let Some(event) = self.timeline.pop() {
                return Ok(Some(event));
            }
            if self.timeline.is_over() {
                return Ok(None);
            }
            let heard = tokio::select! {
                incoming = self.live.next() => Heard::Event(incoming),
                _ = self.connections.changed() => Heard::Reconnected,
                () = tokio::time::sleep_until(self.look_at) => Heard::Nothing,
            };
            match heard {
                Heard::Event(Some(incoming)) => self.hear(incoming),
                Heard::Event(None) => {
                    return Err(ErrorCode::API_UNAVAILABLE.with("the connection to the broker is closed").into());
                }
                // A connection that is new has missed what happened while there was none.
                Heard::Reconnected => self.look_at = Instant::now(),
                Heard::Nothing => self.look().await?,
            }
        }
    }

    fn hear(&mut self, incoming: Incoming) {
        match v1::Event::decode(incoming.payload) {
            Ok(event) => self.timeline.offer(event),
            Err(error) => {
                // The store has it in a form that can be read, or says why not.
                tracing::warn!(%error, subject = incoming.subject, "an event cannot be read");
                self.look_at = Instant::now();
                return;
            }
        }
        if self.timeline.has_gap() {
            self.look_at = self.look_at.min(Instant::now());
        } else {
            self.look_at = Instant::now() + SILENCE;
        }
    }

    /// Reads what the store has behind the last event given.
    async fn look(&mut self) -> Result<(), ClientError> {
        let mut after = self.timeline.last_id().unwrap_or_default().to_owned();
        loop {
            let request = v1::ListEventsRequest {
                tenant: self.client.tenant.to_string(),
                object_id: self.run.to_string(),
                after_id: after.clone(),
                limit: errand_core::limits::MAX_PAGE,
            };
            let answer = self.client.dispatcher("list_events", &request, Repeat::Safe).await;
            let page: v1::ListEventsResponse = match answer {
                Ok(page) => page,
                // It is not submitted yet, or the dispatcher is away: what comes is heard, and looked for again.
                Err(error) if error.is(ErrorCode::TASK_RUN_NOT_FOUND) || error.is_transient() => {
                    self.look_at = Instant::now() + AGAIN * 2;
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let Some(last) = page.events.last() else { break };
            after.clone_from(&last.id);
            page.events.into_iter().for_each(|event| self.timeline.offer(event));
            if !page.has_more {
                break;
            }
        }
        self.look_at = Instant::now() + if self.timeline.has_gap() { AGAIN } else { SILENCE };
        Ok(())
    }
}
