//! Events: what happened, and what happens.

use errand_bus::FollowFrom;
use errand_core::{Error, ErrorCode};
use errand_proto::v1;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use prost::Message;

use crate::call::Repeat;
use crate::{Client, ClientError, pages};

/// Which events to hear.
#[derive(Debug, Clone)]
pub struct EventFilter {
    object: String,
    action: String,
    object_id: String,
}

impl Default for EventFilter {
    fn default() -> Self {
        Self { object: "*".into(), action: "*".into(), object_id: "*".into() }
    }
}

impl EventFilter {
    /// Events of this type: `task_run.completed`, `task_run.*` or `*`.
    ///
    /// # Errors
    /// `request`/`input_invalid` at `type`.
    pub fn of_type(text: &str) -> Result<Self, Error> {
        let is_word = |word: &str| {
            word == "*" || (!word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        };
        let (object, action) = text.split_once('.').unwrap_or((text, "*"));
        if !is_word(object) || !is_word(action) || (!text.contains('.') && text != "*") {
            let message = format!("{text:?} is no type of events: task_run.completed, task_run.* or *");
            return Err(ErrorCode::INPUT_INVALID.with(message).at("type"));
        }
        Ok(Self { object: object.to_owned(), action: action.to_owned(), ..Self::default() })
    }

    /// Of these, only what is about this object.
    #[must_use]
    pub fn about(mut self, object_id: impl ToString) -> Self {
        self.object_id = object_id.to_string();
        self
    }

    /// Whether an event is one of these.
    #[must_use]
    pub fn matches(&self, event: &v1::Event) -> bool {
        let fits = |wanted: &str, found: &str| wanted == "*" || wanted == found;
        let (object, action) = event.r#type.split_once('.').unwrap_or((&event.r#type, ""));
        fits(&self.object, object) && fits(&self.action, action) && fits(&self.object_id, &event.object_id)
    }
}

impl Client {
    /// The events of one object, or of the tenant, that the store has: oldest first.
    pub fn events(
        &self,
        object_id: Option<String>,
    ) -> impl Stream<Item = Result<v1::Event, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let object_id = object_id.unwrap_or_default();
        let pages = pages::stream(move |after: Option<String>| {
            let (client, object_id) = (client.clone(), object_id.clone());
            async move {
                let request = v1::ListEventsRequest {
                    tenant: client.tenant.to_string(),
                    object_id,
                    after_id: after.unwrap_or_default(),
                    limit: errand_core::limits::MAX_PAGE,
                };
                let page: v1::ListEventsResponse = client.dispatcher("list_events", &request, Repeat::Safe).await?;
                let last = page.events.last().filter(|_| page.has_more).map(|event| event.id.clone());
                Ok((page.events, last))
            }
        });
        Box::pin(pages)
    }

    /// Events as they are published, from now on: what is published after this returns is heard, also when the broker
    /// goes and comes back. An event may come twice; drop repetitions by id.
    ///
    /// # Errors
    /// [`ClientError::Bus`], of the call where the broker is away, of the stream where it refuses for good.
    pub async fn follow_events(
        &self,
        filter: &EventFilter,
    ) -> Result<BoxStream<'static, Result<v1::Event, ClientError>>, ClientError> {
        let subject = self.bus.subjects().event(&self.tenant, &filter.object, &filter.action, &filter.object_id);
        let deliveries = errand_bus::follow(&self.bus, subject, FollowFrom::New).await?;
        let events = deliveries.filter_map(|delivery| {
            let event = match delivery {
                Err(error) => Some(Err(error.into())),
                Ok(delivery) => match v1::Event::decode(delivery.payload) {
                    Ok(event) => Some(Ok(event)),
                    Err(error) => {
                        tracing::warn!(%error, subject = delivery.subject, "an event cannot be read");
                        None
                    }
                },
            };
            futures::future::ready(event)
        });
        Ok(events.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_a_word_a_star_or_both() {
        for (text, expected) in [
            ("*", ("*", "*")),
            ("task_run.*", ("task_run", "*")),
            ("task_run.completed", ("task_run", "completed")),
            ("*.failed", ("*", "failed")),
        ] {
            let filter = EventFilter::of_type(text).unwrap();
            assert_eq!((filter.object.as_str(), filter.action.as_str()), expected);
            let failed = v1::Event { r#type: "task_run.failed".into(), object_id: "a".into(), ..Default::default() };
            assert_eq!(filter.matches(&failed), text != "task_run.completed");
            assert!(!filter.about("b").matches(&failed));
        }
        for text in ["", "task_run", "task_run.", ">", "task_run.>", "task_run.a.b", "Task.x"] {
            assert_eq!(EventFilter::of_type(text).unwrap_err().field.as_deref(), Some("type"), "{text}");
        }
    }
}
