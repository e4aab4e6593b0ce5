//! The forms in which an event goes out.

use bytes::Bytes;
use errand_core::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::json;
use time::format_description::well_known::Rfc3339;

use super::super::{Message, utc};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Format {
    /// As webhooks have it.
    #[default]
    Json,
    /// CloudEvents 1.0, structured mode.
    CloudEvents,
    /// `errand.v1.Event`.
    Protobuf,
}

impl Format {
    pub(super) const ALL: &[(&str, Self)] =
        &[("json", Self::Json), ("cloudevents", Self::CloudEvents), ("protobuf", Self::Protobuf)];

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::CloudEvents => "application/cloudevents+json",
            Self::Protobuf => "application/protobuf",
        }
    }

    pub(super) fn payload(self, message: &Message) -> Bytes {
        match self {
            Self::Json => message.json.clone(),
            Self::CloudEvents => cloud_event(message).into(),
            Self::Protobuf => message.protobuf.clone(),
        }
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, _) = Self::ALL.iter().find(|(_, format)| format == self).unwrap_or(&Self::ALL[0]);
        serializer.serialize_str(name)
    }
}

/// The envelope, around the event as all other destinations get it. `source` and `id` together are unique, as the
/// specification asks; `sequence` and `traceparent` are its extensions of those names.
fn cloud_event(message: &Message) -> Vec<u8> {
    let mut envelope = json!({
        "specversion": "1.0",
        "id": message.event_id.to_string(),
        "source": format!("/errand/{}", message.tenant),
        "type": message.event_type,
        "subject": message.object_id,
        "time": rfc3339(message.created_at),
        "datacontenttype": "application/json",
        "sequence": format!("{:020}", message.seq),
    });
    if let Some(traceparent) = message.traceparent() {
        envelope["traceparent"] = traceparent.into();
    }
    let mut text = envelope.to_string();
    // The event is JSON already: it is set in as it stands.
    text.truncate(text.len() - 1);
    text.push_str(",\"data\":");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(&message.json);
    bytes.push(b'}');
    bytes
}

fn rfc3339(at: Timestamp) -> String {
    utc(at).format(&Rfc3339).unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
}
