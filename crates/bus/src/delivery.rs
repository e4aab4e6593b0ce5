//! A message of a stream, and what becomes of it.

use std::time::Duration;

use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use time::OffsetDateTime;

use crate::connection::Bus;
use crate::trace;

/// What becomes of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is done: committed, or was before.
    Ack,
    /// Not now: again after so long. Never a bare nak, which would come back at once.
    RetryAfter(Duration),
    /// Never: kept on the dead-letter subject, with the reason.
    DeadLetter(String),
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Where it was published.
    pub subject: String,
    /// What.
    pub payload: Bytes,
    /// Its place in the stream.
    pub stream_sequence: u64,
    /// When the stream took it, in milliseconds since the Unix epoch.
    pub published_at_ms: i64,
    /// 1 at first.
    pub delivery_count: i64,
    /// Its `Nats-Msg-Id`.
    pub message_id: Option<String>,
    /// Its W3C trace context.
    pub traceparent: Option<String>,
}

impl Delivery {
    pub(crate) fn of(message: &jetstream::Message) -> Option<Self> {
        Self::with_place(message).map(|(delivery, _)| delivery)
    }

    /// A delivery, and its place among the consumer's.
    pub(crate) fn with_place(message: &jetstream::Message) -> Option<(Self, u64)> {
        let info = match message.info() {
            Ok(info) => info,
            Err(error) => {
                tracing::error!(%error, "a delivery without a place in its stream");
                return None;
            }
        };
        let headers = message.headers.as_ref();
        let delivery = Self {
            subject: message.subject.to_string(),
            payload: message.payload.clone(),
            stream_sequence: info.stream_sequence,
            published_at_ms: milliseconds(info.published),
            delivery_count: info.delivered,
            message_id: headers.and_then(|headers| headers.get("Nats-Msg-Id")).map(|id| id.as_str().to_owned()),
            traceparent: trace::from_headers(headers).map(str::to_owned),
        };
        Some((delivery, info.consumer_sequence))
    }
}

pub(crate) fn milliseconds(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// How long until a dead letter that could not be kept is tried once more.
pub(crate) const LETTER_AGAIN: Duration = Duration::from_secs(5);
/// How soon what was not looked at goes to another instance.
const HAND_OVER: Duration = Duration::from_millis(50);

/// Tells the broker the verdict. It is not waited for: an ack that is lost means a redelivery, which every handler
/// takes as a repetition.
pub(crate) async fn settle(bus: &Bus, dead_letter: &str, message: &jetstream::Message, verdict: Verdict) {
    let ack = match verdict {
        Verdict::Ack => AckKind::Ack,
        Verdict::RetryAfter(delay) => AckKind::Nak(Some(delay.max(HAND_OVER))),
        Verdict::DeadLetter(reason) => {
            let letter = bus.dead_letter(dead_letter, &reason, &message.subject, message.payload.clone()).await;
            match letter {
                Ok(()) => AckKind::Term,
                Err(error) => {
                    tracing::error!(%error, reason, "a dead letter could not be kept; it will be tried again");
                    AckKind::Nak(Some(LETTER_AGAIN))
                }
            }
        }
    };
    if let Err(error) = message.ack_with(ack).await {
        tracing::debug!(%error, "an ack was lost");
    }
}

/// Gives back what was not looked at.
pub(crate) async fn hand_over(messages: impl IntoIterator<Item = jetstream::Message>) {
    for message in messages {
        if let Err(error) = message.ack_with(AckKind::Nak(Some(HAND_OVER))).await {
            tracing::debug!(%error, "a message could not be given back; it is delivered again in time");
        }
    }
}
