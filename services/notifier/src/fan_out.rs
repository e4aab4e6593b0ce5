//! What becomes of an event: how it is told on, or why it cannot be. Pure.

use errand_core::Timestamp;
use errand_proto::{json, v1};
use prost::Message;

/// An event as it is told on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// Whose.
    pub tenant: String,
    /// The kind of object: `task_run`.
    pub object: String,
    /// What happened to it: `completed`.
    pub action: String,
    /// By which to drop duplicates.
    pub event_id: String,
    /// The JSON form (CONTRACT section 4).
    pub json: Vec<u8>,
    /// When it happened.
    pub created_at: Timestamp,
    /// The trace that it belongs to.
    pub traceparent: Option<String>,
}

/// How an event of the stream is told on.
///
/// # Errors
/// Why it cannot be: a reason for the dead letter.
pub fn telling(payload: &[u8]) -> Result<Telling, String> {
    let event = v1::Event::decode(payload).map_err(|error| format!("it is no event: {error}"))?;
    event.id.parse::<errand_core::EventId>().map_err(|error| format!("id: {error}"))?;
    // It becomes a part of a subject, so it must be one; warm sessions' events are the system's.
    let tenant = event.tenant.clone();
    if tenant != errand_core::Tenant::system().as_str() {
        tenant.parse::<errand_core::Tenant>().map_err(|error| format!("tenant: {error}"))?;
    }
    let (object, action) = event.r#type.split_once('.').unwrap_or_default();
    if !is_word(object) || !is_word(action) {
        return Err(format!("type: {:?} is not object.action", event.r#type.chars().take(80).collect::<String>()));
    }
    if event.data.is_none() {
        return Err("it says nothing of its object: data is missing, or of a kind not known here".into());
    }
    let json = serde_json::to_vec(&json::event(&event)).map_err(|error| error.to_string())?;
    Ok(Telling {
        object: object.to_owned(),
        action: action.to_owned(),
        json,
        created_at: Timestamp(event.created_at_ms),
        tenant,
        event_id: event.id,
        traceparent: (!event.traceparent.is_empty()).then_some(event.traceparent),
    })
}

fn is_word(text: &str) -> bool {
    (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// What the notifier tells of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Events told on since the start; repetitions count.
    pub published: u64,
    /// Of these: delivered before.
    pub redelivered: u64,
    /// Events that went to the dead letters.
    pub dead_letters: u64,
    /// Up to which place of the stream all is told on.
    pub stream_sequence: u64,
    /// How old the newest event was when it was told on.
    pub lag_ms: u64,
}

#[cfg(test)]
mod tests;
