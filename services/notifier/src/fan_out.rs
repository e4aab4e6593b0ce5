//! What becomes of an event: how it is told on, or why it cannot be. Pure.

use std::collections::{BTreeSet, HashMap};

use errand_core::EventId;
use errand_proto::{json, v1};
use prost::Message;

/// An event as it is told on.
#[derive(Debug, Clone, PartialEq)]
pub struct Telling {
    /// By which to drop duplicates.
    pub id: EventId,
    /// The event: its tenant and its type (`task_run.completed`) are parts of subjects.
    pub event: v1::Event,
}

impl Telling {
    /// The kind of object, and what happened to it.
    #[must_use]
    pub fn object_and_action(&self) -> (&str, &str) {
        self.event.r#type.split_once('.').unwrap_or_default()
    }

    /// The JSON form (CONTRACT section 4).
    #[must_use]
    pub fn json(&self) -> Vec<u8> {
        json::event_text(&self.event)
    }

    /// The trace that it belongs to.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        Some(self.event.traceparent.as_str()).filter(|text| !text.is_empty())
    }
}

/// How an event of the stream is told on.
///
/// # Errors
/// Why it cannot be: a reason for the dead letter.
pub fn telling(payload: &[u8]) -> Result<Telling, String> {
    let event = v1::Event::decode(payload).map_err(|error| format!("it is no event: {error}"))?;
    let id = event.id.parse().map_err(|error| format!("id: {error}"))?;
    // It becomes a part of a subject, so it must be one; warm sessions' events are the system's.
    if event.tenant != errand_core::Tenant::system().as_str() {
        event.tenant.parse::<errand_core::Tenant>().map_err(|error| format!("tenant: {error}"))?;
    }
    let (object, action) = event.r#type.split_once('.').unwrap_or_default();
    if !is_word(object) || !is_word(action) {
        return Err(format!("type: {:?} is not object.action", event.r#type.chars().take(80).collect::<String>()));
    }
    if event.data.is_none() {
        return Err("it says nothing of its object: data is missing, or of a kind not known here".into());
    }
    Ok(Telling { id, event })
}

fn is_word(text: &str) -> bool {
    (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// What of a batch is told first, to learn who listens.
#[derive(Debug)]
pub struct First {
    /// One event on each subject, by its place in the batch.
    pub asked: BTreeSet<usize>,
    /// These, and what comes before them of the same objects: each object's events keep their order.
    pub told: BTreeSet<usize>,
}

/// Chooses by the subjects and objects of a batch, in its order.
#[must_use]
pub fn first<'a>(events: impl Iterator<Item = (&'a str, &'a str)>) -> First {
    let mut before: Vec<Option<usize>> = Vec::new();
    let (mut last_of, mut on): (HashMap<&str, usize>, HashMap<&str, usize>) = Default::default();
    for (at, (subject, object)) in events.enumerate() {
        before.push(last_of.insert(object, at));
        let chosen = on.entry(subject).or_insert(at);
        // Best is one with nothing before it.
        if before[*chosen].is_some() && before[at].is_none() {
            *chosen = at;
        }
    }
    let asked: BTreeSet<usize> = on.into_values().collect();
    let chain = |at: &usize| std::iter::successors(Some(*at), |at| before[*at]);
    First { told: asked.iter().flat_map(chain).collect(), asked }
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
