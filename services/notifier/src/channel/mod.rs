//! How an event goes out: one channel for each type of destination, behind one small trait.
//!
//! A channel sends one message and says what became of it. It knows no queue, no retry and no store; whoever calls it
//! bounds its time and how many are under way.

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "aws")]
pub mod aws_kinesis;
#[cfg(feature = "aws")]
pub mod aws_s3;
#[cfg(feature = "aws")]
pub mod aws_sqs;
#[cfg(feature = "azure")]
pub mod azure_servicebus;
mod config;
mod fields;
#[cfg(feature = "gcp")]
pub mod gcp_pubsub;
pub mod guard;
mod http;
pub mod nats;
mod outside;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
mod template;
mod tls;
pub mod webhook;

use std::time::Duration;

use bytes::Bytes;
use errand_core::{EventId, Timestamp};
use futures::future::BoxFuture;
use time::OffsetDateTime;

pub use config::Config;
pub use outside::{Outside, OutsideArgs, OutsideError};

/// An event as it goes out. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Message {
    /// By which a receiver drops duplicates; the same at each attempt and replay.
    pub event_id: EventId,
    /// `task_run.completed`.
    pub event_type: String,
    /// Whose.
    pub tenant: String,
    /// The object that it is about: what ordering goes by.
    pub object_id: String,
    /// The event's number among its object's.
    pub seq: u64,
    /// When it happened.
    pub created_at: Timestamp,
    /// The JSON form (CONTRACT section 4).
    pub json: Bytes,
    /// The wire form, `errand.v1.Event`.
    pub protobuf: Bytes,
    /// W3C trace context of the run.
    pub traceparent: Option<String>,
    /// When this attempt is made: signatures are over it.
    pub now: Timestamp,
}

impl Message {
    /// The object and the action of its type.
    fn kind(&self) -> (&str, &str) {
        self.event_type.split_once('.').unwrap_or((&self.event_type, ""))
    }

    /// The trace context, where it is one: it goes into headers.
    fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref().filter(|text| errand_bus::trace::is_valid(text))
    }

    /// The day on which it happened, in UTC: `2026-11-24`.
    fn date(&self) -> String {
        let day = utc(self.created_at).date();
        format!("{:04}-{:02}-{:02}", day.year(), u8::from(day.month()), day.day())
    }
}

/// A time that is out of the calendar's range counts as 1970.
fn utc(at: Timestamp) -> OffsetDateTime {
    let nanos = i128::from(at.0) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The destination has taken it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Of types that speak HTTP.
    pub status_code: Option<u16>,
    /// The beginning of what it answered, at most [`RESPONSE_BYTES`] read and [`EXCERPT_CHARS`] kept.
    pub response: String,
}

/// The destination has not taken it, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For people; holds no secrets.
    pub message: String,
    /// Of types that speak HTTP.
    pub status_code: Option<u16>,
    /// The beginning of what it answered.
    pub response: String,
    /// The destination asks to be left alone so long.
    pub retry_after: Option<Duration>,
    /// The destination says that it is gone for good (HTTP 410): deactivate it.
    pub gone: bool,
}

impl Failure {
    /// A failure without an answer.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), status_code: None, response: String::new(), retry_after: None, gone: false }
    }
}

/// What is read of an answer's body.
pub const RESPONSE_BYTES: usize = 16 * 1024;
/// What is kept of an answer's body.
pub const EXCERPT_CHARS: usize = 512;

/// A way out, opened for one destination.
pub trait Channel: std::fmt::Debug + Send + Sync {
    /// Sends one message. Resolves when the destination has taken it, durably where the type has such an answer.
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>>;
}
