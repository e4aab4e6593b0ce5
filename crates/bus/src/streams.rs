//! The streams, and all their limits.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType};

use crate::connection::{Bus, BusError};
use crate::consume::milliseconds;

const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a message id is remembered.
const DEDUPE: Duration = Duration::from_secs(120);
const MAX_MESSAGE: i32 = 1024 * 1024;
const SUBMIT_BYTES: i64 = 4 << 30;
const EVENT_BYTES: i64 = 32 << 30;
const DEAD_LETTER_BYTES: i64 = 1 << 30;

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// Run requests, until a dispatcher has committed them. A full one refuses, so that nothing accepted is dropped.
    Submit,
    /// Events, for 30 days. Persisted asynchronously: the store can rebuild it (DESIGN section 5).
    Event,
    /// What could not be handled, for 30 days.
    DeadLetter,
}

impl StreamKind {
    /// Every stream.
    pub const ALL: [Self; 3] = [Self::Submit, Self::Event, Self::DeadLetter];

    /// The stream's name under a prefix: `ERRAND_V1_SUBMIT`.
    #[must_use]
    pub fn name(self, prefix: &str) -> String {
        let suffix = match self {
            Self::Submit => "SUBMIT",
            Self::Event => "EVENT",
            Self::DeadLetter => "DLQ",
        };
        let prefix: String =
            prefix.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
        format!("{prefix}_{suffix}")
    }

    fn config(self, bus: &Bus) -> Config {
        let subjects = bus.subjects();
        let replicas = bus.replicas();
        let common = Config {
            name: self.name(subjects.prefix()),
            storage: StorageType::File,
            num_replicas: replicas,
            duplicate_window: DEDUPE,
            max_message_size: MAX_MESSAGE,
            allow_direct: true,
            ..Config::default()
        };
        match self {
            Self::Submit => Config {
                subjects: vec![subjects.submit_all()],
                retention: RetentionPolicy::WorkQueue,
                discard: DiscardPolicy::New,
                max_bytes: SUBMIT_BYTES,
                ..common
            },
            Self::Event => Config {
                subjects: vec![subjects.events_of(None)],
                retention: RetentionPolicy::Limits,
                max_age: MONTH,
                max_bytes: EVENT_BYTES,
                // The server allows it for one replica only.
                persist_mode: (replicas == 1).then_some(PersistenceMode::Async),
                ..common
            },
            Self::DeadLetter => Config {
                subjects: vec![subjects.dead_letter_all()],
                retention: RetentionPolicy::Limits,
                max_age: MONTH,
                max_bytes: DEAD_LETTER_BYTES,
                ..common
            },
        }
    }
}

/// How far the event stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventStreamState {
    /// Sequence of the oldest message that it holds.
    pub first_sequence: u64,
    /// Sequence of the newest.
    pub last_sequence: u64,
    /// Messages that it holds.
    pub messages: u64,
    /// When it was created, in milliseconds since the Unix epoch: another time, another stream.
    pub created_at_ms: i64,
}

impl Bus {
    /// Creates the streams, or brings them up to date. Safe to repeat.
    ///
    /// # Errors
    /// [`BusError::Stream`], naming the stream.
    pub async fn ensure_streams(&self) -> Result<(), BusError> {
        for kind in StreamKind::ALL {
            let config = kind.config(self);
            let name = config.name.clone();
            self.jetstream()
                .create_or_update_stream(config)
                .await
                .map_err(|error| BusError::Stream { name, what: error.to_string() })?;
        }
        Ok(())
    }

    /// How far the event stream is.
    ///
    /// # Errors
    /// [`BusError::Stream`].
    pub async fn event_stream_state(&self) -> Result<EventStreamState, BusError> {
        let name = StreamKind::Event.name(self.subjects().prefix());
        let stream = self.stream(StreamKind::Event).await?;
        let info = stream.get_info().await.map_err(|error| BusError::Stream { name, what: error.to_string() })?;
        Ok(EventStreamState {
            first_sequence: info.state.first_sequence,
            last_sequence: info.state.last_sequence,
            messages: info.state.messages,
            created_at_ms: milliseconds(info.created),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_prefix() {
        assert_eq!(StreamKind::Submit.name("errand.v1"), "ERRAND_V1_SUBMIT");
        assert_eq!(StreamKind::DeadLetter.name("t-1.x"), "T_1_X_DLQ");
    }
}
