//! The broker: the event stream with its sequences and ids, the submit stream with its deliveries, and the ways in
//! which it comes back with less than it had.

use std::collections::BTreeMap;

use errand_core::EventId;
use errand_core::run::Run;
use errand_store::{Extent, Stored};

/// How long a message id is remembered.
const DEDUPE_MS: i64 = 120_000;

/// What waits in the submit stream.
#[derive(Debug, Clone)]
pub(crate) struct Submission {
    pub(crate) run: Run,
    /// When it is delivered (again).
    pub(crate) due: i64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    /// Another number, other connections.
    pub(crate) number: u64,
    pub(crate) is_up: bool,
    events: BTreeMap<u64, Stored>,
    last: u64,
    ids: BTreeMap<EventId, (u64, i64)>,
    pub(crate) submissions: BTreeMap<u64, Submission>,
    next_submission: u64,
}

impl Broker {
    pub(crate) fn new() -> Self {
        Self { number: 1, is_up: true, ..Self::default() }
    }

    /// Takes an event; its place, and whether it is new to the stream.
    pub(crate) fn append(&mut self, event: &Stored, now: i64) -> (u64, bool) {
        if let Some((sequence, at)) = self.ids.get(&event.id)
            && now - at < DEDUPE_MS
        {
            return (*sequence, false);
        }
        self.last += 1;
        self.ids.insert(event.id, (self.last, now));
        self.events.insert(self.last, event.clone());
        (self.last, true)
    }

    pub(crate) fn extent(&self) -> Extent {
        Extent { first: self.events.first_key_value().map_or(1, |(first, _)| *first), last: self.last }
    }

    pub(crate) fn id_at(&self, sequence: u64) -> Option<String> {
        self.events.get(&sequence).map(|event| event.id.to_string())
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = &Stored> {
        self.events.values()
    }

    pub(crate) fn submit(&mut self, run: Run, now: i64) -> u64 {
        self.next_submission += 1;
        self.submissions.insert(self.next_submission, Submission { run, due: now });
        self.next_submission
    }

    /// Restarts with what it had.
    pub(crate) fn restart(&mut self) {
        self.number += 1;
    }

    /// Restarts without the last events that it had acknowledged: they were not on the disk yet.
    pub(crate) fn lose_the_end(&mut self, count: usize) {
        self.restart();
        for _ in 0..count {
            if let Some((_, event)) = self.events.pop_last() {
                self.ids.remove(&event.id);
            }
        }
        self.last = self.events.last_key_value().map_or(0, |(last, _)| *last);
    }

    /// Restarts with nothing at all.
    pub(crate) fn lose_everything(&mut self) {
        self.restart();
        self.events.clear();
        self.ids.clear();
        self.last = 0;
        self.submissions.clear();
    }
}
