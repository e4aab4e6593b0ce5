//! Every armed deadline, compact and pure: what time it is, is an argument.
//!
//! One [`Entry`] a run in a dense table, found by an index of slots, and in a binary heap by the time at which it is
//! to be looked at. The heap knows each entry's place and the entry knows its place in the heap, so a run that moves
//! on leaves nothing behind: a heap of stale nodes would hold every deadline of the last hour, not of the runs that
//! live. Activity only moves a number in the entry; the heap finds out when the old time comes (there is far more
//! activity than there are deadlines that pass).
//!
//! About 85 bytes a run: 56 of entry, 16 of heap, 5 to 12 of index.

use std::hash::{BuildHasher, RandomState};

use errand_core::run::{Deadline, DeadlineKind};
use errand_core::{RunId, Timestamp};
use hashbrown::HashTable;

/// How long to wait before the dispatcher is asked again about a deadline that it does not see as passed, at first
/// and at most. It happens where clocks differ, and where the dispatcher fails.
const AGAIN_FIRST_MS: i64 = 50;
const AGAIN_MOST_MS: i64 = 30_000;

/// No such deadline. No wall clock gets there.
const NEVER: Timestamp = Timestamp(i64::MAX);

/// Not in the heap: the dispatcher is being asked.
const ASKED: u32 = u32::MAX;

/// A deadline that has passed, as far as the watcher knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// Whose.
    pub run_id: RunId,
    /// What ran out.
    pub kind: DeadlineKind,
    /// The run's `seq` when it was armed.
    pub version: u64,
    /// When it passed.
    pub at: Timestamp,
    /// The newest sign of life that is known; of inactivity only.
    pub last_activity: Option<Timestamp>,
    /// How often in a row the dispatcher failed on it.
    pub failed: u8,
    /// Whether the dispatcher has been asked about it before.
    pub repeated: bool,
}

/// What a run has armed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArmedRun {
    /// Which.
    pub run_id: RunId,
    /// Its `seq`.
    pub version: u64,
    /// Empty where it is final, or waits without a limit.
    pub deadlines: Vec<Deadline>,
}

/// One run. Of the deadlines that stand still only the earliest is kept: when it passes, the run moves on, or the
/// dispatcher's answer tells all of them again.
#[derive(Debug, Clone, Copy)]
struct Entry {
    version: u64,
    /// When inactivity passes, by the newest activity seen; [`NEVER`] where it is not armed.
    inactive_at: Timestamp,
    /// The earliest of the others; [`NEVER`] where there is none.
    fixed_at: Timestamp,
    run_id: RunId,
    window_ms: u32,
    /// The entry's place in the heap, or [`ASKED`].
    node: u32,
    fixed_kind: DeadlineKind,
    /// How often in a row the dispatcher failed on it or did not see it as passed.
    again: u8,
    /// How often it failed.
    failed: u8,
    asked_before: bool,
}

impl Entry {
    fn new(run_id: RunId, version: u64, deadlines: &[Deadline]) -> Self {
        let mut entry = Self {
            version,
            inactive_at: NEVER,
            fixed_at: NEVER,
            run_id,
            window_ms: 0,
            node: ASKED,
            fixed_kind: DeadlineKind::Total,
            again: 0,
            failed: 0,
            asked_before: false,
        };
        for deadline in deadlines {
            match deadline.window_ms {
                Some(window_ms) => {
                    entry.inactive_at = deadline.at;
                    entry.window_ms = window_ms;
                }
                None if deadline.at < entry.fixed_at => {
                    entry.fixed_at = deadline.at;
                    entry.fixed_kind = deadline.kind;
                }
                None => {}
            }
        }
        entry
    }

    fn at(&self) -> Timestamp {
        self.inactive_at.min(self.fixed_at)
    }

    fn expiry(&self) -> Expiry {
        let inactivity = self.inactive_at < self.fixed_at;
        Expiry {
            run_id: self.run_id,
            kind: if inactivity { DeadlineKind::Inactivity } else { self.fixed_kind },
            version: self.version,
            at: self.at(),
            last_activity: inactivity.then(|| self.inactive_at.plus_millis(-i64::from(self.window_ms))),
            failed: self.failed,
            repeated: self.asked_before,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Node {
    at: Timestamp,
    slot: u32,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Timers {
    entries: Vec<Entry>,
    index: HashTable<u32>,
    heap: Vec<Node>,
    // Run ids may be chosen by clients, so the order of the index must not be theirs to choose.
    hasher: RandomState,
}

impl Timers {
    /// How many runs have a deadline armed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many of them the dispatcher is being asked about.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.entries.len() - self.heap.len()
    }

    /// The run has this armed since `version`; no deadlines: it is final, or waits without a limit. What is older
    /// than what is known is left alone; the same version again can only tell of newer activity.
    pub fn arm(&mut self, run_id: RunId, version: u64, deadlines: &[Deadline]) {
        let mut new = Entry::new(run_id, version, deadlines);
        let Some(slot) = self.find(run_id) else {
            if new.at() < NEVER {
                self.insert(new);
            }
            return;
        };
        let known = &mut self.entries[slot as usize];
        if version < known.version {
            return;
        }
        if new.at() == NEVER {
            self.remove(slot);
        } else if version == known.version {
            if known.inactive_at < NEVER && new.inactive_at < NEVER {
                known.inactive_at = known.inactive_at.max(new.inactive_at);
            }
        } else {
            new.node = known.node;
            *known = new;
            self.schedule(slot, new.at());
        }
    }

    /// A sign of life of the run's agent. Tells whether it was known and moved the deadline.
    pub fn touch(&mut self, run_id: RunId, at: Timestamp) -> bool {
        let Some(slot) = self.find(run_id) else { return false };
        let entry = &mut self.entries[slot as usize];
        let inactive_at = at.plus_millis(i64::from(entry.window_ms));
        let moves = entry.inactive_at < NEVER && inactive_at > entry.inactive_at;
        if moves {
            entry.inactive_at = inactive_at;
        }
        moves
    }

    /// When to look next, at the latest: nothing passes before.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.heap.first().map(|node| node.at)
    }

    /// Up to `limit` deadlines that have passed, earliest first. Each is held until [`Timers::settle`],
    /// [`Timers::postpone`] or [`Timers::put_back`] gives it back, or the run moves on.
    pub fn due(&mut self, now: Timestamp, limit: usize) -> Vec<Expiry> {
        let mut expiries = Vec::new();
        while expiries.len() < limit {
            let Some(&Node { at, slot }) = self.heap.first() else { break };
            if at > now {
                break;
            }
            let entry = self.entries[slot as usize];
            if entry.at() > now {
                self.schedule(slot, entry.at());
            } else {
                self.unschedule(slot);
                expiries.push(entry.expiry());
                self.entries[slot as usize].asked_before = true;
            }
        }
        expiries
    }

    /// The dispatcher has answered: the run moved on, or has this armed. A deadline that it does not see as passed
    /// is asked again a little later.
    pub fn settle(&mut self, expiry: &Expiry, armed: Option<&ArmedRun>, now: Timestamp) {
        match armed {
            Some(armed) => {
                self.arm(expiry.run_id, armed.version, &armed.deadlines);
                self.later(expiry, now, false);
            }
            None => {
                if let Some(slot) = self.held(expiry) {
                    self.remove(slot);
                }
            }
        }
    }

    /// The dispatcher failed on this one: it is asked again, later each time.
    pub fn postpone(&mut self, expiry: &Expiry, now: Timestamp) {
        self.later(expiry, now, true);
    }

    fn later(&mut self, expiry: &Expiry, now: Timestamp, failed: bool) {
        let Some(slot) = self.held(expiry) else { return };
        let entry = &mut self.entries[slot as usize];
        let at = entry.at();
        entry.failed = if failed { entry.failed.saturating_add(1) } else { 0 };
        if at > now {
            (entry.again, entry.asked_before) = (0, false);
            self.schedule(slot, at);
        } else {
            let wait = AGAIN_MOST_MS.min(AGAIN_FIRST_MS << entry.again.min(16));
            entry.again = entry.again.saturating_add(1);
            self.schedule(slot, now.plus_millis(wait));
        }
    }

    /// Nobody was there to be asked: it is due as before.
    pub fn put_back(&mut self, expiry: &Expiry) {
        if let Some(slot) = self.held(expiry) {
            let at = self.entries[slot as usize].at();
            self.schedule(slot, at);
        }
    }

    fn find(&self, run_id: RunId) -> Option<u32> {
        let hash = self.hasher.hash_one(run_id);
        self.index.find(hash, |slot| self.entries[*slot as usize].run_id == run_id).copied()
    }

    /// The slot of an expiry that is still being asked about.
    fn held(&self, expiry: &Expiry) -> Option<u32> {
        self.find(expiry.run_id).filter(|slot| {
            let entry = &self.entries[*slot as usize];
            entry.node == ASKED && entry.version == expiry.version
        })
    }

    fn insert(&mut self, entry: Entry) {
        let Self { entries, index, hasher, .. } = self;
        let slot = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        entries.push(entry);
        let hash_of = |slot: &u32| hasher.hash_one(entries[*slot as usize].run_id);
        index.insert_unique(hasher.hash_one(entry.run_id), slot, hash_of);
        self.schedule(slot, entry.at());
    }

    /// The last entry takes the place of the one removed.
    fn remove(&mut self, slot: u32) {
        self.unschedule(slot);
        self.point(slot, None);
        let last = u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX);
        if slot != last {
            self.point(last, Some(slot));
            let node = self.entries[last as usize].node;
            if node != ASKED {
                self.heap[node as usize].slot = slot;
            }
        }
        self.entries.swap_remove(slot as usize);
    }

    /// Lets the index find the entry of `slot` at `to`, or nowhere.
    fn point(&mut self, slot: u32, to: Option<u32>) {
        let hash = self.hasher.hash_one(self.entries[slot as usize].run_id);
        if let Ok(mut place) = self.index.find_entry(hash, |known| *known == slot) {
            match to {
                Some(to) => *place.get_mut() = to,
                None => drop(place.remove()),
            }
        }
    }

    /// Looks at the entry at `at`, whenever it was to be before.
    fn schedule(&mut self, slot: u32, at: Timestamp) {
        let mut place = self.entries[slot as usize].node as usize;
        if place == ASKED as usize {
            place = self.heap.len();
            self.heap.push(Node { at, slot });
        } else {
            self.heap[place].at = at;
        }
        let place = self.sift_up(place);
        self.sift_down(place);
    }

    fn unschedule(&mut self, slot: u32) {
        let place = self.entries[slot as usize].node;
        if place == ASKED {
            return;
        }
        self.entries[slot as usize].node = ASKED;
        self.heap.swap_remove(place as usize);
        if (place as usize) < self.heap.len() {
            let place = self.sift_up(place as usize);
            self.sift_down(place);
        }
    }

    fn sift_up(&mut self, mut place: usize) -> usize {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.heap[parent].at <= self.heap[place].at {
                break;
            }
            self.heap.swap(parent, place);
            self.note(place);
            place = parent;
        }
        self.note(place);
        place
    }

    fn sift_down(&mut self, mut place: usize) {
        loop {
            let left = 2 * place + 1;
            let Some(first) = (left..(left + 2).min(self.heap.len())).min_by_key(|child| self.heap[*child].at) else {
                break;
            };
            if self.heap[place].at <= self.heap[first].at {
                break;
            }
            self.heap.swap(place, first);
            self.note(place);
            place = first;
        }
        self.note(place);
    }

    /// Tells the entry where its node is.
    fn note(&mut self, place: usize) {
        let slot = self.heap[place].slot as usize;
        self.entries[slot].node = u32::try_from(place).unwrap_or(ASKED);
    }

    #[cfg(test)]
    fn check(&self) {
        assert_eq!(self.index.len(), self.entries.len());
        for (slot, entry) in self.entries.iter().enumerate() {
            assert_eq!(self.find(entry.run_id), Some(slot as u32));
            if entry.node != ASKED {
                assert_eq!(self.heap[entry.node as usize].slot as usize, slot);
            }
        }
        for (place, node) in self.heap.iter().enumerate() {
            assert_eq!(self.entries[node.slot as usize].node as usize, place);
            assert!(place == 0 || self.heap[(place - 1) / 2].at <= node.at);
        }
    }
}

#[cfg(test)]
mod tests;
