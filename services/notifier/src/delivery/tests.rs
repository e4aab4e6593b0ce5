use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use errand_core::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::channel::Failure;

const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn schedule() -> Schedule {
    Schedule { delays: [5, 300].map(Duration::from_secs).to_vec() }
}

fn failure(retry_after: Option<u64>, gone: bool) -> Failure {
    Failure { retry_after: retry_after.map(Duration::from_secs), gone, ..Failure::new("no") }
}

#[test]
fn what_becomes_of_a_failure() {
    let again = |millis: i64| Next::Again(NOW.plus_millis(millis));
    for (attempt, failure, jitter, next) in [
        (1, failure(None, false), 0.5, again(5_000)),
        (1, failure(None, false), 0.0, again(2_500)),
        (1, failure(None, false), 1.0, again(7_500)),
        (2, failure(None, false), 0.5, again(300_000)),
        (3, failure(None, false), 0.5, Next::Exhausted),
        (9, failure(None, false), 0.5, Next::Exhausted),
        // It is honoured where it is longer, and within limits.
        (1, failure(Some(60), false), 0.5, again(60_000)),
        (2, failure(Some(60), false), 0.5, again(300_000)),
        (1, failure(Some(1_000_000), false), 0.5, again(3_600_000)),
        (3, failure(Some(60), false), 0.5, Next::Exhausted),
        (1, failure(None, true), 0.5, Next::Gone),
        (3, failure(Some(5), true), 0.5, Next::Gone),
    ] {
        assert_eq!(schedule().after_failure(attempt, &failure, NOW, jitter), next, "{attempt} {failure:?} {jitter}");
    }
}

#[test]
fn a_destination_is_dead_when_nothing_was_taken_since_a_whole_schedule() {
    let later = NOW.plus_millis(1);
    for (since, dead) in [(None, false), (Some(NOW), true), (Some(later), false), (Some(Timestamp(0)), true)] {
        assert_eq!(exhausts(NOW, since), dead, "{since:?}");
    }
}

#[test]
fn health_remembers_the_first_failure_and_forgets_at_a_success() {
    let mut health = Health::default();
    assert!(!health.note(true, NOW, false));
    assert!(health.note(false, NOW.plus_millis(5), false));
    // One that began sooner has come back later.
    assert!(!health.note(false, NOW, true));
    assert_eq!(health, Health { failing_since: Some(NOW), streak: 2, probes: 1 });
    assert!(health.note(true, NOW, false) && health == Health::default());
}

#[test]
fn probes_come_ever_more_seldom() {
    let probing = Probing::default();
    let pause = |streak, probes| {
        let pause = probing.pause(&Health { failing_since: Some(NOW), streak, probes });
        pause.map(|pause| pause.as_secs())
    };
    assert_eq!((pause(9, 0), pause(10, 0)), (None, Some(1)));
    // Those that were under way when it began tell nothing new.
    assert_eq!(pause(42, 0), Some(1));
    let pauses: Vec<Option<u64>> = (1..8).map(|probes| pause(42, probes)).collect();
    assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60].map(Some));
    assert_eq!(pause(u32::MAX, u32::MAX), Some(60));
}

#[test]
fn an_id_holds_the_place() {
    for position in [0, 1, 255, 1 << 40, (1 << 62) - 1] {
        let id = delivery_id(position, NOW);
        assert_eq!(position_of(id.uuid()), position);
        assert_eq!((id.uuid().get_version_num(), id.uuid().get_variant()), (7, uuid::Variant::RFC4122));
    }
    assert!(delivery_id(9, NOW) < delivery_id(10, NOW) && delivery_id(10, NOW) < delivery_id(1, NOW.plus_millis(1)));
}

fn due(position: i64, object: i64, due_at: i64, before_due_at: Option<i64>) -> Due {
    Due {
        position,
        object,
        event: position,
        due_at,
        before_due_at,
        attempts: 0,
        base: 0,
        log: Vec::new(),
        message: None,
    }
}

#[test]
fn an_object_that_waits_holds_nobody_else_up() {
    let mut window = Window::new(true);
    let put_off = window.add(vec![due(1, 7, 0, None), due(2, 7, 0, Some(0)), due(3, 8, 0, None)]);
    assert!(put_off.is_empty());
    let first = window.take_next().unwrap();
    assert_eq!((first.position, window.take_next().unwrap().position), (1, 3));
    assert!(window.take_next().is_none(), "the second of an object waits for the first");
    window.failed(&first);
    assert_eq!((window.take_next().map(|due| due.position), window.waiting()), (None, 0));
    // Not written down yet: what the store says of the object is old.
    assert!(window.add(vec![due(1, 7, 0, None), due(2, 7, 0, Some(0))]).is_empty());
    assert!(window.take_next().is_none());
    window.settled(1, 7);
    // Now the store says when the first is due: whoever came in behind it since is put off.
    assert_eq!(window.add(vec![due(2, 7, 0, Some(50)), due(4, 7, 0, Some(0))]), [(2, 50), (4, 50)]);
}

#[test]
fn without_order_each_goes_by_itself() {
    let mut window = Window::new(false);
    assert!(window.add(vec![due(1, 7, 0, Some(50)), due(2, 7, 0, Some(0))]).is_empty());
    let (one, two) = (window.take_next().unwrap(), window.take_next().unwrap());
    window.failed(&one);
    window.finished(&two);
    assert_eq!(window.known(), 2, "neither is written down");
    window.settled(1, 7);
    window.settled(2, 7);
    assert_eq!(window.known(), 0);
}

/// A store of one destination as the queue sees it.
#[derive(Debug, Default)]
struct Queue {
    /// By place: object, due time, done.
    rows: BTreeMap<i64, (i64, i64, bool)>,
    time: i64,
}

impl Queue {
    fn due(&self, limit: usize) -> Vec<Due> {
        let open = |(position, (object, due_at, done)): (&i64, &(i64, i64, bool))| {
            (!done).then_some((*due_at, *position, *object))
        };
        let mut rows: Vec<(i64, i64, i64)> = self.rows.iter().filter_map(open).collect();
        rows.sort_unstable();
        let before = |position: i64, object: i64| {
            let behind = self.rows.range(..position).rev().find(|(_, row)| row.0 == object && !row.2);
            behind.map(|(_, row)| row.1)
        };
        let due_now = rows.into_iter().filter(|(due_at, ..)| *due_at <= self.time).take(limit);
        due_now.map(|(due_at, position, object)| due(position, object, due_at, before(position, object))).collect()
    }

    fn hold(&mut self, position: i64, due_at: i64) {
        let object = self.rows[&position].0;
        for (_, row) in self.rows.range_mut(position..).filter(|(_, row)| row.0 == object && !row.2) {
            row.1 = row.1.max(due_at);
        }
    }
}

proptest! {
    /// Rows come in, attempts end one way or the other in any order, outcomes are written down late, time jumps: each
    /// object's deliveries are finished in their order, none twice, and in the end all of them.
    #[test]
    fn an_objects_deliveries_keep_their_order(steps in prop::collection::vec((0u8..6, 0usize..8, 0i64..40), 1..400)) {
        let (mut queue, mut window) = (Queue::default(), Window::new(true));
        let mut at_work: Vec<Due> = Vec::new();
        let mut unwritten: Vec<(Due, Option<i64>)> = Vec::new();
        let mut finished: Vec<i64> = Vec::new();
        let (mut place, mut drain) = (0, 0);
        let mut steps = steps.into_iter();
        loop {
            let step = steps.next();
            // At the end nothing fails any more, and time runs.
            drain += u32::from(step.is_none());
            let (what, which, number) = step.unwrap_or((if drain % 2 == 0 { 1 } else { 4 }, 0, 1_000));
            match what {
                0 => {
                    place += 1;
                    queue.rows.insert(place, (number % 5, queue.time, false));
                }
                1 => {
                    for (position, due_at) in window.add(queue.due(4 + window.known())) {
                        let row = queue.rows.get_mut(&position).unwrap();
                        row.1 = row.1.max(due_at);
                    }
                }
                2 => {
                    if let Some(due) = window.take_next() {
                        prop_assert!(!queue.rows[&due.position].2);
                        at_work.push(due);
                    }
                }
                3 if !at_work.is_empty() => {
                    let due = at_work.swap_remove(which % at_work.len());
                    window.failed(&due);
                    unwritten.push((due, Some(queue.time + number)));
                }
                4 => {
                    queue.time += number;
                    at_work.extend(std::iter::from_fn(|| window.take_next()).take(if step.is_none() { 100 } else { 0 }));
                    let count = if step.is_none() { at_work.len() } else { at_work.len().min(1) };
                    for due in at_work.drain(..count) {
                        window.finished(&due);
                        finished.push(due.position);
                        unwritten.push((due, None));
                    }
                    if step.is_none() {
                        write_down(&mut queue, &mut window, &mut unwritten);
                    }
                }
                _ => write_down(&mut queue, &mut window, &mut unwritten),
            }
            if step.is_none() && (queue.rows.values().all(|row| row.2) || drain > 4_000) {
                break;
            }
        }
        prop_assert!(drain <= 4_000, "something waits for ever: {:?}", queue);
        prop_assert_eq!(finished.iter().collect::<HashSet<_>>().len(), queue.rows.len());
        let mut last: HashMap<i64, i64> = HashMap::new();
        for position in finished {
            let before = last.insert(queue.rows[&position].0, position);
            prop_assert!(before.is_none_or(|before| before < position), "{:?} before {}", before, position);
        }
    }
}

fn write_down(queue: &mut Queue, window: &mut Window, unwritten: &mut Vec<(Due, Option<i64>)>) {
    for (due, again) in unwritten.drain(..) {
        match again {
            Some(due_at) => queue.hold(due.position, due_at),
            None => queue.rows.get_mut(&due.position).unwrap().2 = true,
        }
        window.settled(due.position, due.object);
    }
}
