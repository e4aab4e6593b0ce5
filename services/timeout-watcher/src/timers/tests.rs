use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn run(number: u8) -> RunId {
    RunId::from_uuid(Uuid::from_u128(u128::from(number)))
}

fn fixed(kind: DeadlineKind, at: i64) -> Deadline {
    Deadline { kind, at: Timestamp(at), window_ms: None }
}

fn inactivity(at: i64, window_ms: u32) -> Deadline {
    Deadline { kind: DeadlineKind::Inactivity, at: Timestamp(at), window_ms: Some(window_ms) }
}

fn kinds(expiries: &[Expiry]) -> Vec<(RunId, DeadlineKind, i64)> {
    expiries.iter().map(|expiry| (expiry.run_id, expiry.kind, expiry.at.0)).collect()
}

#[test]
fn what_is_due_comes_earliest_first_and_once() {
    let mut timers = Timers::default();
    for (number, at) in [(1, 300), (2, 100), (3, 200)] {
        timers.arm(run(number), 1, &[fixed(DeadlineKind::Queue, at)]);
    }
    assert_eq!(timers.next(), Some(Timestamp(100)));
    assert_eq!(timers.due(Timestamp(99), 10), []);
    let expected = [(run(2), DeadlineKind::Queue, 100), (run(3), DeadlineKind::Queue, 200)];
    assert_eq!(kinds(&timers.due(Timestamp(200), 10)), expected);
    assert_eq!(timers.due(Timestamp(200), 10), []);
    assert_eq!((timers.len(), timers.asked(), timers.next()), (3, 2, Some(Timestamp(300))));
}

#[test]
fn the_limit_leaves_the_rest_due() {
    let mut timers = Timers::default();
    for number in 0..10 {
        timers.arm(run(number), 1, &[fixed(DeadlineKind::Queue, i64::from(number))]);
    }
    let sizes = [4, 4, 4].map(|limit| timers.due(Timestamp(50), limit).len());
    assert_eq!(sizes, [4, 4, 2]);
}

#[test]
fn activity_moves_inactivity_and_nothing_else() {
    let mut timers = Timers::default();
    timers.arm(run(1), 2, &[inactivity(1_000, 1_000), fixed(DeadlineKind::Total, 5_000)]);
    timers.arm(run(2), 1, &[fixed(DeadlineKind::Queue, 1_000)]);
    assert!(timers.touch(run(1), Timestamp(3_500)));
    assert!(!timers.touch(run(1), Timestamp(3_000)), "older activity");
    assert!(!timers.touch(run(2), Timestamp(900)), "no inactivity is armed");
    assert!(!timers.touch(run(3), Timestamp(900)), "not known");
    assert_eq!(kinds(&timers.due(Timestamp(4_499), 10)), [(run(2), DeadlineKind::Queue, 1_000)]);
    let passed = timers.due(Timestamp(4_500), 10);
    assert_eq!(kinds(&passed), [(run(1), DeadlineKind::Inactivity, 4_500)]);
    assert_eq!(passed[0].last_activity, Some(Timestamp(3_500)));
    timers.put_back(&passed[0]);
    timers.touch(run(1), Timestamp(4_999));
    assert_eq!(kinds(&timers.due(Timestamp(5_000), 10)), [(run(1), DeadlineKind::Total, 5_000)]);
}

#[test]
fn a_newer_version_replaces_and_an_older_one_does_not() {
    let mut timers = Timers::default();
    timers.arm(run(1), 2, &[inactivity(1_000, 1_000)]);
    timers.arm(run(1), 1, &[fixed(DeadlineKind::Queue, 10)]);
    timers.arm(run(1), 1, &[]);
    assert_eq!(timers.next(), Some(Timestamp(1_000)));
    timers.arm(run(1), 3, &[fixed(DeadlineKind::Interaction, 500)]);
    assert_eq!(timers.next(), Some(Timestamp(500)));
    timers.arm(run(1), 4, &[]);
    assert!(timers.is_empty() && timers.next().is_none());
}

#[test]
fn a_snapshot_of_the_same_version_brings_newer_activity_and_loses_none() {
    let mut timers = Timers::default();
    timers.arm(run(1), 2, &[inactivity(1_000, 1_000)]);
    timers.touch(run(1), Timestamp(700));
    timers.arm(run(1), 2, &[inactivity(1_200, 1_000)]);
    assert_eq!(timers.due(Timestamp(1_699), 1), []);
    timers.arm(run(1), 2, &[inactivity(2_000, 1_000)]);
    assert_eq!(timers.due(Timestamp(1_999), 1), []);
    assert_eq!(timers.due(Timestamp(2_000), 1).len(), 1);
}

#[test]
fn an_answer_ends_it_or_arms_what_the_dispatcher_knows() {
    let mut timers = Timers::default();
    timers.arm(run(1), 1, &[fixed(DeadlineKind::Queue, 100)]);
    let [asked] = timers.due(Timestamp(100), 1)[..] else { panic!("one is due") };
    let armed = ArmedRun { run_id: run(1), version: 2, deadlines: vec![inactivity(900, 500)] };
    timers.settle(&asked, Some(&armed), Timestamp(101));
    let [asked] = timers.due(Timestamp(900), 1)[..] else { panic!("one is due") };
    assert_eq!((asked.version, asked.kind), (2, DeadlineKind::Inactivity));
    timers.settle(&asked, None, Timestamp(901));
    assert!(timers.is_empty());
}

#[test]
fn an_answer_does_not_end_what_moved_on_meanwhile() {
    let mut timers = Timers::default();
    timers.arm(run(1), 1, &[fixed(DeadlineKind::Queue, 100)]);
    let [asked] = timers.due(Timestamp(100), 1)[..] else { panic!("one is due") };
    timers.arm(run(1), 2, &[inactivity(900, 500)]);
    timers.settle(&asked, None, Timestamp(101));
    timers.put_back(&asked);
    timers.postpone(&asked, Timestamp(101));
    assert_eq!((timers.len(), timers.next()), (1, Some(Timestamp(900))));
}

#[test]
fn a_dispatcher_that_disagrees_is_asked_later_each_time() {
    let mut timers = Timers::default();
    let armed = ArmedRun { run_id: run(1), version: 1, deadlines: vec![fixed(DeadlineKind::Queue, 100)] };
    timers.arm(run(1), 1, &armed.deadlines);
    let mut now = Timestamp(100);
    let mut waits = Vec::new();
    for _ in 0..12 {
        let [asked] = timers.due(now, 1)[..] else { panic!("one is due") };
        timers.settle(&asked, Some(&armed), now);
        let next = timers.next().unwrap();
        waits.push(next.millis_since(now));
        now = next;
    }
    assert_eq!(waits, [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
}

/// What [`Timers`] does, said naively.
#[derive(Debug, Default)]
struct Model {
    runs: BTreeMap<RunId, Known>,
}

#[derive(Debug, Clone)]
struct Known {
    version: u64,
    inactivity: Option<(i64, u32)>,
    fixed: Option<(i64, DeadlineKind)>,
    /// Not before, as the dispatcher did not agree.
    not_before: i64,
    /// How often it did not, in a row.
    again: u32,
    asked: bool,
}

impl Known {
    fn at(&self) -> i64 {
        let inactive = self.inactivity.map_or(i64::MAX, |(at, _)| at);
        inactive.min(self.fixed.map_or(i64::MAX, |(at, _)| at))
    }
}

impl Model {
    fn arm(&mut self, id: RunId, version: u64, deadlines: &[Deadline]) {
        let known = self.runs.get(&id).map_or(0, |known| known.version);
        let fixed = deadlines.iter().filter(|d| d.window_ms.is_none()).map(|d| (d.at.0, d.kind)).min_by_key(|d| d.0);
        let inactivity = deadlines.iter().find_map(|d| d.window_ms.map(|window| (d.at.0, window)));
        if version >= known && deadlines.is_empty() {
            self.runs.remove(&id);
        } else if version > known {
            self.runs.insert(id, Known { version, inactivity, fixed, not_before: i64::MIN, again: 0, asked: false });
        } else if version == known
            && let Some((at, _)) = inactivity
            && let Some(known) = self.runs.get_mut(&id).and_then(|known| known.inactivity.as_mut())
        {
            known.0 = known.0.max(at);
        }
    }

    fn touch(&mut self, id: RunId, at: i64) {
        if let Some((known, window)) = self.runs.get_mut(&id).and_then(|known| known.inactivity.as_mut()) {
            *known = (*known).max(at + i64::from(*window));
        }
    }

    fn due(&self, now: i64) -> Vec<RunId> {
        let due = |known: &Known| !known.asked && known.at() <= now && known.not_before <= now;
        self.runs.iter().filter(|(_, known)| due(known)).map(|(id, _)| *id).collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Arm { run: u8, version: u64, deadlines: Vec<Deadline> },
    Touch { run: u8, at: i64 },
    Due { later: i64, limit: usize },
    Settle { which: usize, armed: Option<(u64, Vec<Deadline>)> },
    PutBack { which: usize },
    Postpone { which: usize },
}

fn deadlines() -> impl Strategy<Value = Vec<Deadline>> {
    let at = 0i64..2_000;
    prop_oneof![
        1 => Just(Vec::new()),
        3 => at.clone().prop_map(|at| vec![fixed(DeadlineKind::Queue, at)]),
        3 => (at.clone(), 1u32..500).prop_map(|(at, window)| vec![inactivity(at, window)]),
        3 => (at.clone(), 1u32..500, at.clone())
            .prop_map(|(at, window, total)| vec![inactivity(at, window), fixed(DeadlineKind::Total, total)]),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0usize..8;
    prop_oneof![
        6 => (0u8..12, 1u64..6, deadlines()).prop_map(|(run, version, deadlines)| Step::Arm { run, version, deadlines }),
        4 => (0u8..12, 0i64..2_000).prop_map(|(run, at)| Step::Touch { run, at }),
        4 => (-50i64..200, 1usize..6).prop_map(|(later, limit)| Step::Due { later, limit }),
        2 => (which.clone(), proptest::option::of((1u64..6, deadlines())))
            .prop_map(|(which, armed)| Step::Settle { which, armed }),
        1 => which.clone().prop_map(|which| Step::PutBack { which }),
        1 => which.prop_map(|which| Step::Postpone { which }),
    ]
}

/// Timers and model side by side.
struct Pair {
    timers: Timers,
    model: Model,
    asked: Vec<Expiry>,
    now: i64,
}

impl Pair {
    fn take(&mut self, which: usize) -> Option<Expiry> {
        (!self.asked.is_empty()).then(|| self.asked.swap_remove(which % self.asked.len()))
    }

    fn held(&mut self, expiry: &Expiry) -> Option<&mut Known> {
        self.model.runs.get_mut(&expiry.run_id).filter(|known| known.asked && known.version == expiry.version)
    }

    fn due(&mut self, limit: usize) {
        let expected = self.model.due(self.now);
        let next = self.timers.next().map_or(i64::MAX, |at| at.0);
        assert!(expected.is_empty() || next <= self.now, "it would sleep while {expected:?} are due");
        let got = self.timers.due(Timestamp(self.now), limit);
        assert_eq!(got.len(), expected.len().min(limit), "of {expected:?}");
        for expiry in got {
            let known = self.model.runs.get_mut(&expiry.run_id).expect("it is armed");
            assert!(expected.contains(&expiry.run_id));
            assert_eq!((expiry.version, expiry.at.0), (known.version, known.at()));
            let by_inactivity = known.inactivity.map(|(at, window)| (at, at - i64::from(window)));
            match expiry.last_activity {
                Some(seen) => assert_eq!(Some((expiry.at.0, seen.0)), by_inactivity),
                None => assert_eq!(Some((expiry.at.0, expiry.kind)), known.fixed),
            }
            known.asked = true;
            self.asked.push(expiry);
        }
    }

    fn postpone(&mut self, expiry: &Expiry) {
        let now = self.now;
        let Some(known) = self.held(expiry) else { return };
        known.asked = false;
        let late = known.at() <= now;
        known.not_before = if late { now + (50i64 << known.again).min(30_000) } else { known.at() };
        known.again = if late { known.again + 1 } else { 0 };
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Arm { run: number, version, deadlines } => {
                self.timers.arm(run(number), version, &deadlines);
                self.model.arm(run(number), version, &deadlines);
            }
            Step::Touch { run: number, at } => {
                self.timers.touch(run(number), Timestamp(at));
                self.model.touch(run(number), at);
            }
            Step::Due { later, limit } => {
                self.now += later;
                self.due(limit);
            }
            Step::Settle { which, armed } => {
                let Some(expiry) = self.take(which) else { return };
                let run_id = expiry.run_id;
                let armed = armed.map(|(version, deadlines)| ArmedRun { run_id, version, deadlines });
                self.timers.settle(&expiry, armed.as_ref(), Timestamp(self.now));
                if let Some(armed) = armed {
                    self.model.arm(run_id, armed.version, &armed.deadlines);
                    self.postpone(&expiry);
                } else if self.held(&expiry).is_some() {
                    self.model.runs.remove(&run_id);
                }
            }
            Step::PutBack { which } => {
                let Some(expiry) = self.take(which) else { return };
                self.timers.put_back(&expiry);
                if let Some(known) = self.held(&expiry) {
                    known.asked = false;
                    known.not_before = i64::MIN;
                }
            }
            Step::Postpone { which } => {
                let Some(expiry) = self.take(which) else { return };
                self.timers.postpone(&expiry, Timestamp(self.now));
                self.postpone(&expiry);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_fires_early_and_nothing_is_lost(steps in proptest::collection::vec(step(), 1..80)) {
        let mut pair = Pair { timers: Timers::default(), model: Model::default(), asked: Vec::new(), now: 0 };
        for step in steps {
            pair.step(step);
            pair.timers.check();
            prop_assert_eq!(pair.timers.len(), pair.model.runs.len());
        }
        // In the end everything that is armed and not being asked fires.
        pair.now += 100_000;
        pair.due(usize::MAX);
        prop_assert_eq!(pair.timers.asked(), pair.timers.len());
    }
}
