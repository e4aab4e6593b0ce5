//! Random histories, with a dispatcher and runners that lose answers, repeat themselves and die.

use std::collections::{BTreeMap, BTreeSet};

use errand_core::ErrorCode;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::pool::{Beat, Start};

#[derive(Debug, Clone)]
enum Op {
    Register { runner: u8, capacity: u8, warm: u8, only: bool },
    Heartbeat(u8),
    Kill(u8),
    Drain(u8),
    Acquire { run: u8, tenant: u8, source: u8, reuse: bool, priority: i8, agent: bool },
    AcquireNamed { run: u8, session: u8 },
    AcquireAgain(u8),
    Withdraw(u8),
    Release { which: u8, discard: bool },
    ReleaseStale(u8),
    StartAnswered { which: u8, ok: bool },
    TearDownAnswered { which: u8, ok: bool },
    GrantAnswered { which: u8, lost: bool },
    LossAnswered,
    SessionLost(u8),
    EndSession(u8),
    Pass(u16),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..4u8, 1..4u8, 0..2u8, any::<bool>())
            .prop_map(|(runner, capacity, warm, only)| Op::Register { runner, capacity, warm, only }),
        3 => (0..4u8).prop_map(Op::Heartbeat),
        1 => (0..4u8).prop_map(Op::Kill),
        1 => (0..4u8).prop_map(Op::Drain),
        9 => (0..40u8, 0..3u8, 0..2u8, any::<bool>(), -1..2i8, prop::bool::weighted(0.8)).prop_map(
            |(run, tenant, source, reuse, priority, agent)| Op::Acquire { run, tenant, source, reuse, priority, agent }
        ),
        1 => (0..40u8, any::<u8>()).prop_map(|(run, session)| Op::AcquireNamed { run, session }),
        1 => any::<u8>().prop_map(Op::AcquireAgain),
        1 => (0..40u8).prop_map(Op::Withdraw),
        5 => (any::<u8>(), any::<bool>()).prop_map(|(which, discard)| Op::Release { which, discard }),
        1 => any::<u8>().prop_map(Op::ReleaseStale),
        7 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(which, ok)| Op::StartAnswered { which, ok }),
        6 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(which, ok)| Op::TearDownAnswered { which, ok }),
        7 => (any::<u8>(), prop::bool::weighted(0.1)).prop_map(|(which, lost)| Op::GrantAnswered { which, lost }),
        1 => Just(Op::LossAnswered),
        1 => any::<u8>().prop_map(Op::SessionLost),
        1 => any::<u8>().prop_map(Op::EndSession),
        3 => (1..8_000u16).prop_map(Op::Pass),
        1 => Just(Op::Restart),
    ]
}

/// What the dispatcher knows of a run.
#[derive(Debug, Clone)]
enum Known {
    Queued(Want),
    Running(Grant, Want),
    Over,
}

struct Theatre {
    world: World,
    runs: BTreeMap<RunId, Known>,
    /// Sessions at each runner that lives.
    alive: BTreeMap<u8, (Registration, BTreeSet<SessionId>)>,
    starts: Vec<Start>,
    tear_downs: Vec<(RunnerId, SessionId)>,
    grants: Vec<Grant>,
    losses: Vec<Loss>,
    leases: Vec<Grant>,
}

fn pick<T>(list: &mut Vec<T>, which: u8) -> Option<T> {
    if list.is_empty() { None } else { Some(list.remove(which as usize % list.len())) }
}

const TENANTS: [&str; 3] = ["acme", "blue", "cyan"];

impl Theatre {
    fn new() -> Self {
        // One tenant has a limit.
        let policy = Policy { tenant_limits: [(tenant("cyan"), 2)].into(), ..Policy::default() };
        Self {
            world: World::new(policy),
            runs: BTreeMap::new(),
            alive: BTreeMap::new(),
            starts: Vec::new(),
            tear_downs: Vec::new(),
            grants: Vec::new(),
            losses: Vec::new(),
            leases: Vec::new(),
        }
    }

    fn take(&mut self, decisions: Decisions) {
        self.starts.extend(decisions.starts);
        self.tear_downs.extend(decisions.tear_downs);
        self.leases.extend(decisions.grants.iter().copied());
        self.grants.extend(decisions.grants);
        self.losses.extend(decisions.losses);
        for (run_id, lease) in decisions.checks {
            let held = matches!(self.runs.get(&run_id), Some(Known::Queued(_)))
                || matches!(self.runs.get(&run_id), Some(Known::Running(grant, _)) if grant.lease == lease);
            if !held {
                self.world.pool.not_held(run_id, lease, self.world.now);
            }
        }
    }

    fn settle(&mut self) {
        let decisions = self.world.step();
        self.take(decisions);
    }

    fn acquire(&mut self, want: Want) {
        if self.world.pool.acquire(want.clone(), self.world.now).is_ok() {
            self.runs.insert(want.run_id, Known::Queued(want));
        }
    }

    fn beat(&mut self, n: u8) {
        let Some((registration, sessions)) = self.alive.get(&n).cloned() else { return };
        let listed: Vec<SessionId> = sessions.into_iter().collect();
        let (id, now) = (runner(n.into()), self.world.now);
        let Beat { known, end_sessions, .. } = self.world.pool.heartbeat(id, &listed, false, now);
        let ended = if known { end_sessions } else { self.world.pool.register(registration, &listed, now).unwrap() };
        if let Some((_, sessions)) = self.alive.get_mut(&n) {
            sessions.retain(|session| !ended.contains(session));
        }
    }

    fn start_answered(&mut self, which: u8, ok: bool) {
        let Some(start) = pick(&mut self.starts, which) else { return };
        let home = self.alive.iter_mut().find(|(n, _)| runner(u128::from(**n)) == start.runner_id);
        let result = match home {
            Some((_, (_, sessions))) if ok => {
                sessions.insert(start.session_id);
                Ok(())
            }
            _ => Err(ErrorCode::PROVISION_FAILED.with("no")),
        };
        self.world.pool.started(start.session_id, result, self.world.now);
    }

    fn tear_down_answered(&mut self, which: u8, ok: bool) {
        let Some((runner_id, id)) = pick(&mut self.tear_downs, which) else { return };
        let home = self.alive.iter_mut().find(|(n, _)| runner(u128::from(**n)) == runner_id);
        let done = match home {
            Some((_, (_, sessions))) if ok => {
                sessions.remove(&id);
                true
            }
            _ => false,
        };
        self.world.pool.torn_down(runner_id, id, done, self.world.now);
    }

    fn grant_answered(&mut self, which: u8, lost: bool) {
        let Some(grant) = pick(&mut self.grants, which) else { return };
        let accepted = match self.runs.get(&grant.run_id).cloned() {
            Some(Known::Queued(want)) if want.attempt == grant.attempt => {
                self.runs.insert(grant.run_id, Known::Running(grant, want));
                true
            }
            Some(Known::Running(held, _)) => held.lease == grant.lease,
            _ => false,
        };
        if !lost {
            self.world.pool.granted(grant.lease.session_id, grant.lease.token, accepted, self.world.now);
        }
    }

    fn losses_answered(&mut self) {
        for loss in std::mem::take(&mut self.losses) {
            if let Some(Known::Running(grant, want)) = self.runs.get(&loss.run_id).cloned()
                && grant.lease == loss.lease
            {
                let again = Want { attempt: want.attempt + 1, session_id: None, ..want };
                self.acquire(again);
            }
            self.world.pool.losses_told(&[loss.lease.token], self.world.now);
        }
    }

    fn release(&mut self, which: u8, discard: bool) {
        let mut running: Vec<Grant> = self
            .runs
            .values()
            .filter_map(|known| if let Known::Running(grant, _) = known { Some(*grant) } else { None })
            .collect();
        let Some(grant) = pick(&mut running, which) else { return };
        self.runs.insert(grant.run_id, Known::Over);
        let release = Release { run_id: grant.run_id, lease: Some(grant.lease), discard };
        self.world.pool.release(release, self.world.now);
    }

    fn any_session(&self, which: u8) -> Option<Change> {
        let all: Vec<&Change> = self.world.sessions.values().collect();
        if all.is_empty() { None } else { Some(all[which as usize % all.len()].clone()) }
    }

    fn pass(&mut self, millis: i64) {
        let end = self.world.now.plus_millis(millis);
        while self.world.now < end {
            self.world.now = self.world.now.plus_millis(1_000).min(end);
            self.world.pool.tick(self.world.now, true);
            self.settle();
        }
    }

    /// The pool has restarted: the dispatcher tells it again who waits.
    fn restart(&mut self) {
        (self.starts, self.tear_downs, self.grants) = Default::default();
        let decisions = self.world.restart();
        self.take(decisions);
        for known in self.runs.clone().into_values() {
            if let Known::Queued(want) = known
                && self.world.pool.acquire(want.clone(), self.world.now).is_err()
            {
                self.runs.insert(want.run_id, Known::Over);
            }
        }
    }

    fn session_lost(&mut self, which: u8) {
        if let Some(change) = self.any_session(which) {
            let (runner_id, id) = (change.session.runner_id, change.session.id);
            self.world.pool.session_lost(runner_id, id, "died", self.world.now);
        }
    }

    fn end_session(&mut self, which: u8) {
        if let Some(change) = self.any_session(which)
            && let Some(of) = change.session.tenant
        {
            let _ = self.world.pool.end_session(change.session.id, &of, self.world.now);
        }
    }

    fn play(&mut self, op: Op) {
        let now = self.world.now;
        match op {
            Op::Register { runner: n, capacity, warm, only } => {
                let tenants = only.then(|| [tenant("acme"), tenant("cyan")].into());
                let (capacity, warm) = (capacity as usize, (warm as usize).min(capacity as usize));
                let registration = Registration { tenants, warm, ..registration(n.into(), capacity) };
                let sessions = self.alive.remove(&n).map(|(_, sessions)| sessions).unwrap_or_default();
                let listed: Vec<SessionId> = sessions.iter().copied().collect();
                let ended = self.world.register(registration.clone(), &listed);
                let left = sessions.into_iter().filter(|session| !ended.contains(session)).collect();
                self.alive.insert(n, (registration, left));
            }
            Op::Heartbeat(n) => self.beat(n),
            Op::Kill(n) => drop(self.alive.remove(&n)),
            Op::Drain(n) => drop(self.world.pool.drain_runner(runner(n.into()), now)),
            Op::Acquire { run: n, tenant: of, source, reuse, priority, agent: usual } => {
                if !self.runs.contains_key(&run(n.into())) {
                    let base = reusing(n.into(), TENANTS[of as usize], source.into());
                    let agent_id = agent(if usual { "exec" } else { "nobody" });
                    self.acquire(Want { reuse, priority: priority.into(), agent_id, ..base });
                }
            }
            Op::AcquireNamed { run: n, session } => {
                if let (false, Some(change)) = (self.runs.contains_key(&run(n.into())), self.any_session(session))
                    && let Some(of) = change.session.tenant
                {
                    self.acquire(Want { session_id: Some(change.session.id), ..want(n.into(), of.as_str()) });
                }
            }
            Op::AcquireAgain(which) => {
                let queued = |known: &Known| if let Known::Queued(want) = known { Some(want.clone()) } else { None };
                let mut wants: Vec<Want> = self.runs.values().filter_map(queued).collect();
                if let Some(want) = pick(&mut wants, which) {
                    let _ = self.world.pool.acquire(want, now);
                }
            }
            Op::Withdraw(n) => {
                if matches!(self.runs.get(&run(n.into())), Some(Known::Queued(_))) {
                    self.runs.insert(run(n.into()), Known::Over);
                    self.world.pool.release(Release { run_id: run(n.into()), lease: None, discard: false }, now);
                }
            }
            Op::Release { which, discard } => self.release(which, discard),
            Op::ReleaseStale(which) => {
                if let Some(grant) = self.leases.get(which as usize % self.leases.len().max(1)).copied()
                    && !matches!(self.runs.get(&grant.run_id), Some(Known::Running(held, _)) if held.lease == grant.lease)
                    && !matches!(self.runs.get(&grant.run_id), Some(Known::Queued(_)))
                {
                    let release = Release { run_id: grant.run_id, lease: Some(grant.lease), discard: false };
                    self.world.pool.release(release, now);
                }
            }
            Op::StartAnswered { which, ok } => self.start_answered(which, ok),
            Op::TearDownAnswered { which, ok } => self.tear_down_answered(which, ok),
            Op::GrantAnswered { which, lost } => self.grant_answered(which, lost),
            Op::LossAnswered => self.losses_answered(),
            Op::SessionLost(which) => self.session_lost(which),
            Op::EndSession(which) => self.end_session(which),
            Op::Pass(millis) => self.pass(millis.into()),
            Op::Restart => self.restart(),
        }
        self.settle();
        self.check();
    }

    /// Only the holder of a lease that the store has is running, and whoever waits is known to wait (or was leased).
    fn check(&self) {
        for (run_id, known) in &self.runs {
            if let Known::Queued(want) = known
                && want.session_id.is_none()
            {
                let pool = &self.world.pool;
                assert!(pool.waits(*run_id) || pool.session_of(*run_id).is_some(), "{run_id} is forgotten");
            }
        }
    }

    /// From now on all goes well: everybody who may have a session gets one, and nothing is left behind.
    fn recover(&mut self) {
        self.alive.insert(99, (registration(99, 4), BTreeSet::new()));
        let waits_for_ever = |known: &Known| match known {
            Known::Queued(want) => want.agent_id == agent("nobody") || want.session_id.is_some(),
            Known::Running(..) => false,
            Known::Over => true,
        };
        for _ in 0..400 {
            for n in self.alive.keys().copied().collect::<Vec<_>>() {
                self.beat(n);
            }
            for _ in 0..self.starts.len() {
                self.start_answered(0, true);
            }
            for _ in 0..self.tear_downs.len() {
                self.tear_down_answered(0, true);
            }
            for _ in 0..self.grants.len() {
                self.grant_answered(0, false);
            }
            self.losses_answered();
            for _ in 0..self.runs.len() {
                self.release(0, false);
            }
            self.pass(1_000);
            if self.runs.values().all(waits_for_ever) {
                break;
            }
        }
        let left: Vec<_> = self.runs.values().filter(|known| !waits_for_ever(known)).collect();
        assert!(left.is_empty(), "these wait although all goes well: {left:?}\n{:#?}", self.world.pool);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_lease_is_lost_and_nobody_waits_in_vain(history in vec(op(), 1..150)) {
        let mut theatre = Theatre::new();
        for op in history {
            theatre.play(op);
        }
        theatre.recover();
    }
}
