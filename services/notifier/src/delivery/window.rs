//! What of a destination's queue is in memory: a bounded piece, which keeps the order of each object.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::channel::Message;

/// A delivery that is due, as it is read of the store.
#[derive(Debug, Clone)]
pub struct Due {
    /// Its place.
    pub position: i64,
    /// What keeps order with what: a number of the object.
    pub object: i64,
    /// The event's number.
    pub event: i64,
    /// When it is due.
    pub due_at: i64,
    /// When the one before it of the same object is due, where that one waits.
    pub before_due_at: Option<i64>,
    /// Attempts so far.
    pub attempts: u32,
    /// Of these, those of earlier schedules.
    pub base: u32,
    /// The attempts so far, as they are kept.
    pub log: Vec<u8>,
    /// The event, where it could be read.
    pub message: Option<Arc<Message>>,
}

/// What one object has in the window.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Due>,
    /// The one that is at work, or whose failure is not written down yet.
    head: Option<i64>,
    /// Its head failed: nothing of it goes out before that is written down.
    blocked: bool,
}

/// See the module. Rows go in by their due time and place, as the store gives them.
#[derive(Debug)]
pub struct Window {
    ordered: bool,
    lanes: HashMap<i64, Lane>,
    /// Lanes whose first may go out.
    ready: VecDeque<i64>,
    /// All that must not be taken of the store again: waiting, at work, or not yet written down.
    known: HashSet<i64>,
    waiting: usize,
}

impl Window {
    /// An empty window. Where the destination is not `ordered` each delivery goes by itself.
    #[must_use]
    pub fn new(ordered: bool) -> Self {
        Self { ordered, lanes: HashMap::new(), ready: VecDeque::new(), known: HashSet::new(), waiting: 0 }
    }

    /// Deliveries that wait in it.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Deliveries that it knows: those that wait, are at work, or are not written down.
    #[must_use]
    pub fn known(&self) -> usize {
        self.known.len()
    }

    /// Whether it knows a delivery.
    #[must_use]
    pub fn knows(&self, position: i64) -> bool {
        self.known.contains(&position)
    }

    fn lane_of(&self, due: &Due) -> i64 {
        if self.ordered { due.object } else { due.position }
    }

    /// Takes rows in. Gives back those that must wait in the store, each with the time at which the one before it is
    /// due; where there are any, the store is to be read again once that is written.
    pub fn add(&mut self, rows: Vec<Due>) -> Vec<(i64, i64)> {
        let mut put_off = Vec::new();
        // By lane: the first that was put off, and until when.
        let mut first_put_off: HashMap<i64, (i64, i64)> = HashMap::new();
        for row in rows {
            if self.known.contains(&row.position) {
                continue;
            }
            let key = self.lane_of(&row);
            if self.ordered {
                let ahead = first_put_off.get(&key).filter(|(position, _)| *position < row.position).map(|(_, at)| *at);
                if let Some(at) = ahead.max(row.before_due_at).filter(|at| *at > row.due_at) {
                    let first = first_put_off.entry(key).or_insert((row.position, at));
                    *first = (first.0.min(row.position), first.1.max(at));
                    put_off.push((row.position, at));
                    continue;
                }
                if ahead.is_some() {
                    // As late as the one ahead, which comes back with the next reading: so does this.
                    continue;
                }
            }
            let lane = self.lanes.entry(key).or_default();
            if lane.blocked {
                continue;
            }
            if lane.head.is_none() && lane.waiting.is_empty() {
                self.ready.push_back(key);
            }
            self.known.insert(row.position);
            self.waiting += 1;
            lane.waiting.push_back(row);
        }
        put_off
    }

    /// The next that may go out. It is at work until [`Self::finished`] or [`Self::failed`].
    pub fn take_next(&mut self) -> Option<Due> {
        let lane = self.lanes.get_mut(&self.ready.pop_front()?)?;
        let due = lane.waiting.pop_front()?;
        lane.head = Some(due.position);
        self.waiting -= 1;
        Some(due)
    }

    /// It is delivered, or given up: the next of its object may go.
    pub fn finished(&mut self, due: &Due) {
        let key = self.lane_of(due);
        let Entry::Occupied(mut lane) = self.lanes.entry(key) else { return };
        lane.get_mut().head = None;
        if lane.get().waiting.is_empty() {
            lane.remove();
        } else {
            self.ready.push_back(key);
        }
    }

    /// It is to be tried again: what waits behind it is let go, since the store puts it off with it.
    pub fn failed(&mut self, due: &Due) {
        let key = self.lane_of(due);
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.blocked = true;
        self.waiting -= lane.waiting.len();
        for behind in lane.waiting.drain(..) {
            self.known.remove(&behind.position);
        }
    }

    /// It is written down what became of it: the store may be believed of it again.
    pub fn settled(&mut self, position: i64, object: i64) {
        self.known.remove(&position);
        let key = if self.ordered { object } else { position };
        if self.lanes.get(&key).is_some_and(|lane| lane.blocked && lane.head == Some(position)) {
            self.lanes.remove(&key);
        }
    }

    /// Lets go of all that is not at work.
    pub fn clear(&mut self) {
        for lane in self.lanes.values_mut() {
            for due in lane.waiting.drain(..) {
                self.known.remove(&due.position);
            }
        }
        self.lanes.retain(|_, lane| lane.head.is_some());
        self.ready.clear();
        self.waiting = 0;
    }
}
