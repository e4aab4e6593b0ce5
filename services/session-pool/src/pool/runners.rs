//! What is connected: registration, heartbeats, drain, and the loss of a runner.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};

use errand_core::run::LostReason;
use errand_core::session::State;
use errand_core::{AgentId, Error, ErrorCode, RunnerId, SessionId, Tenant, Timestamp, mutated};

use super::{Pool, Timer};

/// What became ready within this time may be missing from a message that was written before.
const FRESH_MS: u64 = 5_000;
/// Messages of a runner in a row that do not list a session, until it counts as gone.
const MISSED: u32 = 2;
/// Failures in a row after which a runner gets no sessions for a while.
const FAILURES: u32 = 3;
const PENALTY_MS: i64 = 1_000;
const PENALTY_MAX_MS: i64 = 30_000;
/// Sessions that are remembered to be gone.
const GONE: usize = 65_536;

/// A runner as it presents itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The runner.
    pub id: RunnerId,
    /// Its kind.
    pub agent_id: AgentId,
    /// Sessions at the same time.
    pub capacity: usize,
    /// Sessions that are kept ready there.
    pub warm: usize,
    /// Whom it serves; none: everybody.
    pub tenants: Option<BTreeSet<Tenant>>,
    /// For people.
    pub host: String,
    /// For people.
    pub version: String,
}

/// A runner as the pool sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beat {
    /// False: it is to register.
    pub known: bool,
    /// It is to drain.
    pub drain: bool,
    /// Sessions that it is to end.
    pub end_sessions: Vec<SessionId>,
}

/// A runner, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerView {
    /// What it said.
    pub registration: Registration,
    /// Its sessions that are not final.
    pub sessions: usize,
    /// Those that runs have.
    pub leases: usize,
    /// It gets no further sessions.
    pub draining: bool,
    /// Since when it is here.
    pub connected_at: Timestamp,
    /// When it was heard of last.
    pub last_seen: Timestamp,
}

/// A kind of runner, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    /// Which.
    pub id: AgentId,
    /// How many are here.
    pub runners: usize,
    /// All their room.
    pub capacity: usize,
    /// Their sessions that are not final.
    pub sessions: usize,
    /// Those that runs have.
    pub leases: usize,
    /// Runs that wait.
    pub waiting: usize,
}

#[derive(Debug)]
pub(super) struct Runner {
    /// None: sessions in the store are its, and it has not shown up since the pool has started.
    pub(super) registration: Option<Registration>,
    pub(super) agent_id: AgentId,
    pub(super) class: usize,
    pub(super) sessions: BTreeSet<SessionId>,
    /// Failed sessions that it may have still.
    pub(super) ghosts: BTreeSet<SessionId>,
    pub(super) warm_now: usize,
    pub(super) draining: bool,
    connected_at: Timestamp,
    pub(super) last_seen: Timestamp,
    messages: u64,
    failures: u32,
    penalty_until: Option<Timestamp>,
    /// Its place among those with room.
    shelved: Option<usize>,
}

impl Runner {
    fn new(agent_id: AgentId, now: Timestamp) -> Self {
        Self {
            registration: None,
            agent_id,
            class: 0,
            sessions: BTreeSet::new(),
            ghosts: BTreeSet::new(),
            warm_now: 0,
            draining: false,
            connected_at: now,
            last_seen: now,
            messages: 0,
            failures: 0,
            penalty_until: None,
            shelved: None,
        }
    }

    /// Whether its idle sessions may be leased.
    pub(super) fn takes_runs(&self) -> bool {
        self.registration.is_some() && !self.draining
    }

    /// Room for further sessions now.
    pub(super) fn room(&self) -> usize {
        match &self.registration {
            Some(registration) if !self.draining && self.penalty_until.is_none() => {
                registration.capacity.saturating_sub(self.sessions.len() + self.ghosts.len())
            }
            _ => 0,
        }
    }

    fn warm_wanted(&self) -> usize {
        self.registration.as_ref().map_or(0, |registration| registration.warm)
    }
}

/// Ids of the last sessions that runners have torn down.
#[derive(Debug, Default)]
pub(super) struct Gone {
    ids: HashMap<SessionId, Timestamp>,
    order: VecDeque<SessionId>,
}

impl Gone {
    pub(super) fn insert(&mut self, id: SessionId, now: Timestamp) {
        if self.ids.insert(id, now).is_none() {
            self.order.push_back(id);
            if self.order.len() > GONE
                && let Some(oldest) = self.order.pop_front()
            {
                self.ids.remove(&oldest);
            }
        }
    }
}

impl Gone {
    /// Whether a message that was written before it was gone may list it still.
    fn is_fresh(&self, id: SessionId, now: Timestamp) -> bool {
        self.ids.get(&id).is_some_and(|gone_at| now.millis_since(*gone_at) <= FRESH_MS)
    }
}

impl Pool {
    /// The sessions of this runner are known, it is not.
    pub(super) fn expect_runner(&mut self, id: RunnerId, agent_id: &AgentId, now: Timestamp) {
        let draining = self.drains.contains(&id);
        let runner = self.runners.entry(id).or_insert_with(|| Runner::new(agent_id.clone(), now));
        runner.draining = draining;
    }

    /// Puts a runner where its room belongs.
    pub(super) fn reshelve(&mut self, id: RunnerId) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let room = runner.room();
        let shelved = (room > 0).then_some(room);
        let thirsty = room > 0 && runner.warm_now < runner.warm_wanted();
        let old = std::mem::replace(&mut runner.shelved, shelved);
        let (agent_id, class) = (runner.agent_id.clone(), runner.class);
        if old.is_none() && shelved.is_none() {
            return;
        }
        let agent = self.agent_mut(&agent_id);
        if old != shelved {
            let free = &mut agent.classes[class].free;
            if let Some(old) = old {
                free.remove(&(Reverse(old), id));
            }
            if let Some(room) = shelved {
                free.insert((Reverse(room), id));
            }
        }
        let was_thirsty = if thirsty { !agent.thirsty.insert(id) } else { agent.thirsty.remove(&id) };
        if shelved > old || (thirsty && !was_thirsty) {
            self.dirty.insert(agent_id);
        }
    }

    /// A runner presents itself, with the sessions that it has. Gives those that it is to end.
    ///
    /// # Errors
    /// Where it changes its kind, or there are too many runners.
    pub fn register(
        &mut self,
        registration: Registration,
        listed: &[SessionId],
        now: Timestamp,
    ) -> Result<Vec<SessionId>, Error> {
        let id = registration.id;
        match self.runners.get(&id) {
            Some(known) if known.agent_id != registration.agent_id => {
                let message = format!("runner {id} is one of agent {}; another agent needs another id", known.agent_id);
                return Err(ErrorCode::INPUT_INVALID.with(message).at("agent_id"));
            }
            None if self.runners.len() >= self.policy.max_runners => {
                let message = format!("there are {} runners already, as many as may be", self.policy.max_runners);
                return Err(ErrorCode::API_UNAVAILABLE.with(message).at("runner_id"));
            }
            _ => {}
        }
        self.expect_runner(id, &registration.agent_id, now);
        self.with_runner_unplaced(id, |pool| pool.take_registration(registration, now));
        Ok(self.compare(id, listed, MISSED, now))
    }

    fn take_registration(&mut self, registration: Registration, now: Timestamp) {
        let id = registration.id;
        let Some(runner) = self.runners.get(&id) else { return };
        let (agent_id, old_class, was_known) = (runner.agent_id.clone(), runner.class, runner.registration.is_some());
        let agent = self.agent_mut(&agent_id);
        if was_known {
            agent.classes[old_class].runners -= 1;
        }
        let class = agent.class_of(registration.tenants.clone());
        agent.classes[class].runners += 1;
        let Some(runner) = self.runners.get_mut(&id) else { return };
        runner.class = class;
        runner.last_seen = now;
        if !was_known {
            runner.connected_at = now;
        }
        runner.registration = Some(registration);
        tracing::info!(runner = %id, agent = %agent_id, "a runner has registered");
    }

    /// Does something to a runner that changes where it and its sessions are found.
    fn with_runner_unplaced(&mut self, id: RunnerId, change: impl FnOnce(&mut Self)) {
        let sessions = |pool: &Self| pool.runners.get(&id).map(|runner| runner.sessions.clone()).unwrap_or_default();
        for session in sessions(self) {
            self.unindex(session);
        }
        if let Some(runner) = self.runners.get_mut(&id) {
            let (class, agent_id) = (runner.class, runner.agent_id.clone());
            let shelved = runner.shelved.take();
            let agent = self.agent_mut(&agent_id);
            agent.thirsty.remove(&id);
            if let Some(room) = shelved {
                agent.classes[class].free.remove(&(Reverse(room), id));
            }
        }
        change(self);
        for session in sessions(self) {
            self.index(session);
        }
        self.reshelve(id);
    }

    /// A runner shows that it lives, and what it has.
    pub fn heartbeat(&mut self, id: RunnerId, listed: &[SessionId], draining: bool, now: Timestamp) -> Beat {
        let Some(runner) = self.runners.get_mut(&id) else { return Beat::default() };
        runner.last_seen = now;
        if runner.registration.is_none() {
            return Beat::default();
        }
        if draining && !runner.draining {
            self.drain(id, now);
        }
        let end_sessions = self.compare(id, listed, 1, now);
        let drain = self.runners.get(&id).is_some_and(|runner| runner.draining);
        Beat { known: true, drain, end_sessions }
    }

    /// Compares what a runner has with what it should have.
    fn compare(&mut self, id: RunnerId, listed: &[SessionId], missing: u32, now: Timestamp) -> Vec<SessionId> {
        let Some(runner) = self.runners.get_mut(&id) else { return Vec::new() };
        runner.messages += 1;
        let message = runner.messages;
        let mut ghosts = BTreeSet::new();
        let mut end_sessions = Vec::new();
        for session_id in listed {
            match self.slots.get_mut(session_id).filter(|slot| slot.session.runner_id == id) {
                Some(slot) => {
                    (slot.listed, slot.missed) = (message, 0);
                    let ending = matches!(slot.session.state, State::Completing);
                    if ending
                        && !mutated!(ReleaseWithoutTearDown)
                        && now.millis_since(slot.session.updated_at) > FRESH_MS
                    {
                        end_sessions.push(*session_id);
                    }
                }
                None if self.gone.is_fresh(*session_id, now) => {}
                None => {
                    ghosts.insert(*session_id);
                    end_sessions.push(*session_id);
                }
            }
        }
        let mut lost = Vec::new();
        for session_id in &runner.sessions {
            let Some(slot) = self.slots.get_mut(session_id) else { continue };
            if slot.listed == message {
                continue;
            }
            slot.missed += missing;
            match slot.session.state {
                State::Completing => lost.push(*session_id),
                State::Running { .. } | State::Idle { .. }
                    if slot.missed >= MISSED && now.millis_since(slot.ready_at) > FRESH_MS =>
                {
                    lost.push(*session_id);
                }
                _ => {}
            }
        }
        runner.ghosts = ghosts;
        for session_id in lost {
            self.fail(session_id, "the runner no longer has the session", LostReason::SessionFailed, now);
        }
        self.reshelve(id);
        end_sessions
    }

    /// A runner gets no further sessions, and its idle ones end.
    pub(super) fn drain(&mut self, id: RunnerId, now: Timestamp) {
        if self.drains.insert(id) {
            self.out.drains.push((id, true));
        }
        self.with_runner_unplaced(id, |pool| {
            if let Some(runner) = pool.runners.get_mut(&id) {
                runner.draining = true;
            }
        });
        let sessions = self.runners.get(&id).map(|runner| runner.sessions.clone()).unwrap_or_default();
        for session in sessions {
            if self.slots.get(&session).is_some_and(|slot| matches!(slot.session.state, State::Idle { .. })) {
                self.end(session, "its runner drains", now);
            }
        }
    }

    /// An operator drains a runner.
    ///
    /// # Errors
    /// `request`/`runner_not_found`.
    pub fn drain_runner(&mut self, id: RunnerId, now: Timestamp) -> Result<RunnerView, Error> {
        let missing = || ErrorCode::RUNNER_NOT_FOUND.with(format!("no runner {id} is connected"));
        if self.runners.get(&id).is_none_or(|runner| runner.registration.is_none()) {
            return Err(missing());
        }
        self.drain(id, now);
        self.view(id).ok_or_else(missing)
    }

    /// A runner goes. It should have ended all its sessions; what it has not is lost.
    pub fn deregister(&mut self, id: RunnerId, now: Timestamp) {
        self.lose_runner(id, "its runner has gone", now);
    }

    pub(super) fn lose_runner(&mut self, id: RunnerId, message: &str, now: Timestamp) {
        let Some(runner) = self.runners.get(&id) else { return };
        for session in runner.sessions.clone() {
            self.fail(session, message, LostReason::RunnerLost, now);
        }
        self.with_runner_unplaced(id, |pool| {
            let Some(runner) = pool.runners.remove(&id) else { return };
            if runner.registration.is_some() {
                pool.agent_mut(&runner.agent_id).classes[runner.class].runners -= 1;
            }
        });
        if self.drains.remove(&id) {
            self.out.drains.push((id, false));
        }
    }

    /// A session has died under its runner.
    pub fn session_lost(&mut self, runner_id: RunnerId, id: SessionId, message: &str, now: Timestamp) {
        if self.slots.get(&id).is_some_and(|slot| slot.session.runner_id == runner_id) {
            self.fail(id, message, LostReason::SessionFailed, now);
            self.haunt(runner_id, id);
        }
    }

    /// The runner has made a session.
    pub(super) fn praise(&mut self, id: RunnerId) {
        if let Some(runner) = self.runners.get_mut(&id) {
            runner.failures = 0;
        }
    }

    /// The runner could not make a session, and the source or credential is not to blame.
    pub(super) fn blame(&mut self, id: RunnerId, error: &Error, now: Timestamp) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        if !matches!(error.code.kind, "session" | "api") {
            return;
        }
        runner.failures += 1;
        if runner.failures >= FAILURES && runner.penalty_until.is_none() {
            let delay = (PENALTY_MS << (runner.failures - FAILURES).min(5)).min(PENALTY_MAX_MS);
            let until = now.plus_millis(delay);
            runner.penalty_until = Some(until);
            self.timers.insert((until, Timer::Penalty(id)));
            self.reshelve(id);
        }
    }

    pub(super) fn end_penalty(&mut self, id: RunnerId) {
        if let Some(runner) = self.runners.get_mut(&id) {
            runner.penalty_until = None;
            self.reshelve(id);
        }
    }

    fn view(&self, id: RunnerId) -> Option<RunnerView> {
        let runner = self.runners.get(&id)?;
        Some(RunnerView {
            registration: runner.registration.clone()?,
            sessions: runner.sessions.len(),
            leases: self.leases_of(runner),
            draining: runner.draining,
            connected_at: runner.connected_at,
            last_seen: runner.last_seen,
        })
    }

    fn leases_of(&self, runner: &Runner) -> usize {
        let leased = |id: &&SessionId| self.slots.get(id).is_some_and(|slot| slot.session.holder().is_some());
        runner.sessions.iter().filter(leased).count()
    }

    /// All runners that are connected, by id.
    #[must_use]
    pub fn runner_views(&self) -> Vec<RunnerView> {
        self.runners.keys().filter_map(|id| self.view(*id)).collect()
    }

    /// All agents that have runners or are waited for.
    #[must_use]
    pub fn agent_views(&self) -> Vec<AgentView> {
        let mut views: std::collections::BTreeMap<&AgentId, AgentView> = std::collections::BTreeMap::new();
        let empty =
            |id: &AgentId| AgentView { id: id.clone(), runners: 0, capacity: 0, sessions: 0, leases: 0, waiting: 0 };
        for (id, waiting) in self.waiting_by_agent() {
            views.insert(id, AgentView { waiting, ..empty(id) });
        }
        for runner in self.runners.values() {
            let Some(registration) = &runner.registration else { continue };
            let view = views.entry(&runner.agent_id).or_insert_with(|| empty(&runner.agent_id));
            view.runners += 1;
            view.capacity += registration.capacity;
            view.sessions += runner.sessions.len();
            view.leases += self.leases_of(runner);
        }
        views.into_values().filter(|view| view.runners > 0 || view.waiting > 0).collect()
    }
}
