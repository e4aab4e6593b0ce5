//! The streams, and all their limits.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType};

use crate::connection::{Bus, BusError};
use crate::delivery::milliseconds;

const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
pub(crate) const MAX_MESSAGE: i32 = 1024 * 1024;
/// What is refused, or leaves at the old end, beyond so many. The broker sets bytes aside at once, so on a small disk, or
/// one that many prefixes share, a stream gets fewer of them; messages it counts as they come.
const SUBMIT_LIMIT: (i64, i64) = ((4 << 30) - CRUMB, 5_000_000);
const EVENT_LIMIT: (i64, i64) = ((32 << 30) - CRUMB, 100_000_000);
const DEAD_LETTER_LIMIT: (i64, i64) = ((1 << 30) - CRUMB, 1_000_000);
/// Left over where sizes add up to the whole disk: a broker with no byte free takes no stream, not even one that sets
/// nothing aside.
const CRUMB: i64 = 1 << 20;
/// A stream that cannot have so few bytes is limited by its messages alone, and by the broker's disk.
const LEAST_BYTES: i64 = 64 << 20;

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

    /// How long a message id is remembered: of submissions, as long as their senders may repeat them until they are told
    /// yes. Of events, of which there are thousands a second, as long as it takes from a kill until what it left is
    /// published again; whoever reads them drops duplicates by id anyway.
    #[must_use]
    pub const fn duplicate_window(self) -> Duration {
        match self {
            Self::Submit | Self::DeadLetter => Duration::from_secs(120),
            Self::Event => Duration::from_secs(10),
        }
    }

    fn config(self, bus: &Bus) -> Config {
        let subjects = bus.subjects();
        let replicas = bus.replicas();
        let common = Config {
            name: self.name(subjects.prefix()),
            storage: StorageType::File,
            num_replicas: replicas,
            duplicate_window: self.duplicate_window(),
            max_message_size: MAX_MESSAGE,
            allow_direct: true,
            ..Config::default()
        };
        match self {
            Self::Submit => Config {
                subjects: vec![subjects.submit_all()],
                retention: RetentionPolicy::WorkQueue,
                discard: DiscardPolicy::New,
                max_bytes: SUBMIT_LIMIT.0,
                max_messages: SUBMIT_LIMIT.1,
                ..common
            },
            Self::Event => Config {
                subjects: vec![subjects.events_of(None)],
                retention: RetentionPolicy::Limits,
                max_age: MONTH,
                max_bytes: EVENT_LIMIT.0,
                max_messages: EVENT_LIMIT.1,
                // The server allows it for one replica only.
                persist_mode: (replicas == 1).then_some(PersistenceMode::Async),
                ..common
            },
            Self::DeadLetter => Config {
                subjects: vec![subjects.dead_letter_all()],
                retention: RetentionPolicy::Limits,
                max_age: MONTH,
                max_bytes: DEAD_LETTER_LIMIT.0,
                max_messages: DEAD_LETTER_LIMIT.1,
                ..common
            },
        }
    }
}

/// Whether the broker's disk, or the account's share of it, has no room for what the stream is to set aside.
fn lacks_room(error: &CreateStreamError) -> bool {
    let CreateStreamErrorKind::JetStream(error) = error.kind() else { return false };
    [
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::CLUSTER_NO_PEERS,
    ]
    .contains(&error.error_code())
}

/// Whether a stream of this name came to be while this one was made.
fn is_taken(error: &CreateStreamError) -> bool {
    matches!(error.kind(), CreateStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NAME_EXIST)
}

/// Whether the broker would say no again: a bad request or configuration stays one.
pub(crate) fn is_for_good(error: &async_nats::jetstream::Error) -> bool {
    error.code() == 400 || error.error_code() == ErrorCode::STREAM_INVALID_CONFIG
}

fn refused_or_not_now(name: String, error: &CreateStreamError) -> BusError {
    match error.kind() {
        // All else may pass: a cluster without a leader, a broker that is still starting, a full disk.
        CreateStreamErrorKind::JetStream(error) if is_for_good(&error) => {
            let what = format!("{error}. Set it as before, or delete the stream when nothing in it is needed");
            BusError::Refused { name, what }
        }
        kind => BusError::Stream { name, what: kind.to_string() },
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
            self.ensure_stream(kind.config(self)).await?;
        }
        Ok(())
    }

    /// As [`Self::ensure_streams`], trying again until `patience` is over: a cluster that is starting has no leader yet, or
    /// not enough servers for the replicas, and answers so, or not at all.
    ///
    /// # Errors
    /// [`BusError::Stream`], and at once [`BusError::Refused`].
    pub async fn await_streams(&self, patience: Duration) -> Result<(), BusError> {
        let started = tokio::time::Instant::now();
        let mut pause = Duration::from_millis(100);
        loop {
            match self.ensure_streams().await {
                Err(BusError::Stream { name, what }) if started.elapsed() < patience => {
                    tracing::info!(stream = name, what, "waiting for the broker to have its streams");
                    tokio::time::sleep(pause).await;
                }
                ended => return ended,
            }
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn ensure_stream(&self, mut config: Config) -> Result<(), BusError> {
        let wanted = config.max_bytes;
        let mut overtaken = 0;
        loop {
            let error = match self.jetstream().create_or_update_stream(config.clone()).await {
                Ok(_) => break,
                Err(error) => error,
            };
            // Another one has made it between the look and the making, perhaps smaller: it is there now.
            if is_taken(&error) && overtaken < 5 {
                overtaken += 1;
                continue;
            }
            if !lacks_room(&error) || config.max_bytes < 0 {
                return Err(refused_or_not_now(config.name, &error));
            }
            config.max_bytes = match self.jetstream().get_stream(&config.name).await {
                // It is there, and cannot grow now.
                Ok(stream) if config.max_bytes == wanted => stream.cached_info().config.max_bytes,
                _ if config.max_bytes / 4 >= LEAST_BYTES => config.max_bytes / 4 - CRUMB,
                _ => -1,
            };
        }
        if config.max_bytes != wanted {
            let (stream, bytes) = (config.name, config.max_bytes);
            tracing::info!(stream, wanted, bytes, "the broker has less room for this stream than it is to have");
        }
        Ok(())
    }

    /// How many messages a durable consumer has before it, those that it holds unacknowledged among them.
    ///
    /// # Errors
    /// [`BusError::Stream`].
    pub async fn consumer_pending(&self, kind: StreamKind, durable: &str) -> Result<u64, BusError> {
        let name = kind.name(self.subjects().prefix());
        let stream = self.stream(kind).await?;
        let info =
            stream.consumer_info(durable).await.map_err(|error| BusError::Stream { name, what: error.to_string() })?;
        Ok(info.num_pending + info.num_ack_pending as u64)
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

    #[test]
    fn a_full_disk_passes_and_a_wrong_configuration_does_not() {
        let for_good = |code: usize, err_code: u64| {
            let error =
                serde_json::json!({"code": code, "err_code": err_code, "description": "no space left on device"});
            is_for_good(&serde_json::from_value(error).unwrap())
        };
        assert!(for_good(500, 10052) && for_good(400, 10065));
        assert!(!for_good(500, 10069) && !for_good(503, 10008) && !for_good(500, 10049));
    }
}
