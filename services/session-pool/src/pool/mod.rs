//! The pool's picture and its decisions: which run gets which session. Pure: time and ids are arguments, and what is
//! decided is for others to commit and then to do.
//!
//! Inputs change the picture; [`Pool::settle`] matches; [`Pool::take`] gives what to commit, and what to do then.

mod check;
mod decisions;
mod queue;
mod runners;
mod runs;
mod settle;
mod slots;
#[cfg(test)]
mod tests;
mod want;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use errand_core::run::LeaseToken;
use errand_core::session::{Session, State};
use errand_core::{AgentId, RunId, RunnerId, SessionId, Tenant, Timestamp, mutated};

pub use decisions::{Change, Decisions, Grant, Loss, Start, StoredTerms};
pub use runners::{AgentView, Beat, Registration, RunnerView};
pub use runs::Release;
pub use want::Want;

use queue::{Account, Agent};
use runners::{Gone, Runner};
use slots::{Slot, Terms};
use want::{Rank, Waiting};

/// How often unanswered grants and losses are told again, and leases are checked.
const SWEEP_MS: u64 = 5_000;
/// Leases younger than this are not checked: their grants may be under way.
const CHECKED_FROM_MS: u64 = 10_000;
/// How long after it was sent a grant may still arrive at the dispatcher: it is sent a few times, and may wait there.
const LATE_GRANT_MS: i64 = 60_000;
/// A pause between ticks beyond which the pool itself was away, and nobody else is to blame for silence.
const STALL_MS: u64 = 2_000;

/// What is configured.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Sessions of one tenant at the same time; 0: no limit.
    pub tenant_limit: u32,
    /// Other limits than that.
    pub tenant_limits: HashMap<Tenant, u32>,
    /// Runs that may wait.
    pub max_waiting: usize,
    /// Runners that may be connected.
    pub max_runners: usize,
    /// How long a session may be idle.
    pub idle_ms: u64,
    /// How long a runner may be silent.
    pub lost_ms: u64,
}

impl Policy {
    /// The most sessions that the tenant may have; 0: no limit.
    #[must_use]
    pub fn limit_of(&self, tenant: &Tenant) -> u32 {
        // Most have none of their own: the common case needs no hash.
        if self.tenant_limits.is_empty() {
            return self.tenant_limit;
        }
        self.tenant_limits.get(tenant).copied().unwrap_or(self.tenant_limit)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            tenant_limit: 0,
            tenant_limits: HashMap::new(),
            max_waiting: 1_000_000,
            max_runners: 10_000,
            idle_ms: 600_000,
            lost_ms: 10_000,
        }
    }
}

/// What is to be done at a certain time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    TearDown(SessionId),
    Want(RunId),
    Penalty(RunnerId),
}

/// A loss that is being told.
#[derive(Debug)]
struct Telling {
    loss: Loss,
    /// When, the last time.
    told_at: Timestamp,
    /// Told again until then, answered or not: the grant of a lease that nobody has accepted may arrive behind its loss,
    /// and the run would take what is gone.
    until: Timestamp,
}

/// What the store holds of the pool.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Sessions that are not final.
    pub sessions: Vec<Change>,
    /// Losses that nobody has answered.
    pub losses: Vec<Loss>,
    /// Runners that drain.
    pub drains: Vec<RunnerId>,
    /// The greatest lease token so far.
    pub token: LeaseToken,
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    policy: Policy,
    slots: BTreeMap<SessionId, Slot>,
    /// The session that each run has.
    by_run: HashMap<RunId, SessionId>,
    runners: BTreeMap<RunnerId, Runner>,
    agents: BTreeMap<AgentId, Agent>,
    accounts: HashMap<Tenant, Account>,
    waiting: HashMap<RunId, Waiting>,
    /// Those who wait for one session.
    named: HashMap<SessionId, BTreeSet<Rank>>,
    gone: Gone,
    losses: BTreeMap<LeaseToken, Telling>,
    drains: BTreeSet<RunnerId>,
    timers: BTreeSet<(Timestamp, Timer)>,
    token: LeaseToken,
    turn: u64,
    dirty: BTreeSet<AgentId>,
    dirty_named: BTreeSet<SessionId>,
    ticked: Timestamp,
    swept: Timestamp,
    out: Decisions,
}

impl Pool {
    /// The picture as the store has it. The runners have their usual time to show up; until then their sessions are
    /// neither lost nor leased.
    #[must_use]
    pub fn restore(policy: Policy, stored: Stored, now: Timestamp) -> Self {
        let mut pool = Self {
            policy,
            slots: BTreeMap::new(),
            by_run: HashMap::new(),
            runners: BTreeMap::new(),
            agents: BTreeMap::new(),
            accounts: HashMap::new(),
            waiting: HashMap::new(),
            named: HashMap::new(),
            gone: Gone::default(),
            losses: BTreeMap::new(),
            drains: stored.drains.into_iter().collect(),
            timers: BTreeSet::new(),
            token: stored.token,
            turn: 0,
            dirty: BTreeSet::new(),
            dirty_named: BTreeSet::new(),
            ticked: now,
            swept: now,
            out: Decisions::default(),
        };
        for Change { session, terms } in stored.sessions {
            pool.restore_session(session, terms, now);
        }
        for loss in stored.losses {
            // Nobody knows whether its lease was ever accepted.
            let telling = Telling { loss: loss.clone(), told_at: now, until: now.plus_millis(LATE_GRANT_MS) };
            pool.losses.insert(loss.lease.token, telling);
            pool.out.losses.push(loss);
        }
        pool
    }

    fn restore_session(&mut self, session: Session, terms: Option<StoredTerms>, now: Timestamp) {
        let id = session.id;
        self.expect_runner(session.runner_id, &session.agent_id, now);
        let mut slot = Slot::new(session, now);
        slot.ready_at = slot.session.updated_at;
        let state = slot.session.state.clone();
        if let (State::Running { since, .. }, Some(StoredTerms { attempt, keep })) = (&state, terms) {
            let granted_at = *since;
            let (accepted, uncertain) = (false, true);
            slot.terms = Some(Terms { attempt, keep, granted_at, told_at: now, accepted, uncertain, want: None });
        }
        self.add_slot(slot);
        match state {
            State::Queued => self.start_again(id),
            // Nobody knows whether the dispatcher has heard of it.
            State::Running { .. } => self.grant_again(id, now),
            State::Completing => self.tear_down_again(id),
            State::Idle { .. } | State::Completed | State::Failed => {}
        }
    }

    /// What came of all inputs since the last call.
    #[must_use]
    pub fn take(&mut self) -> Decisions {
        debug_assert!(self.slots.len() > 256 || self.check().is_ok(), "{:?}", self.check());
        std::mem::take(&mut self.out)
    }

    /// The greatest lease token so far. Committed with whatever is committed.
    #[must_use]
    pub const fn token(&self) -> LeaseToken {
        self.token
    }

    /// Time passes. `reachable` false: the broker is away, so nobody can be heard.
    pub fn tick(&mut self, now: Timestamp, reachable: bool) {
        let stalled = now.millis_since(self.ticked) > STALL_MS;
        self.ticked = now;
        for runner in self.runners.values_mut() {
            // A clock that jumped back must not keep the dead alive.
            if stalled || !reachable || runner.last_seen > now {
                runner.last_seen = now;
            }
        }
        self.run_timers(now);
        self.end_idle(now);
        self.lose_silent_runners(now);
        if now.millis_since(self.swept) >= SWEEP_MS || self.swept > now {
            self.swept = now;
            self.sweep(now);
        }
    }

    fn run_timers(&mut self, now: Timestamp) {
        while let Some((at, timer)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            match timer {
                Timer::TearDown(id) => self.tear_down_again(id),
                Timer::Want(run_id) => self.try_again(run_id),
                Timer::Penalty(id) => self.end_penalty(id),
            }
        }
    }

    fn end_idle(&mut self, now: Timestamp) {
        let idle_ms = self.policy.idle_ms;
        let mut due = Vec::new();
        for agent in self.agents.values() {
            for class in &agent.classes {
                let too_long = |(since, _): &&(Timestamp, SessionId)| now.millis_since(*since) >= idle_ms;
                due.extend(class.idle.iter().take_while(too_long).map(|(_, id)| *id));
            }
        }
        for id in due {
            self.end(id, "it was idle for too long", now);
        }
    }

    fn lose_silent_runners(&mut self, now: Timestamp) {
        if mutated!(TrustSilentRunners) {
            return;
        }
        let lost_ms = self.policy.lost_ms;
        let silent = |runner: &&Runner| now.millis_since(runner.last_seen) >= lost_ms;
        let lost: Vec<RunnerId> = self.runners.iter().filter(|(_, runner)| silent(runner)).map(|(id, _)| *id).collect();
        for id in lost {
            tracing::warn!(runner = %id, "a runner is silent; its sessions are lost");
            self.lose_runner(id, "its runner is silent", now);
        }
    }

    /// Level-triggered safety: whatever was not answered is said again, and leases are compared with the dispatcher's.
    fn sweep(&mut self, now: Timestamp) {
        for slot in self.slots.values_mut() {
            let Some((run_id, lease)) = slot.lease() else { continue };
            let Some(terms) = slot.terms.as_mut() else { continue };
            if !terms.accepted && !mutated!(TellAGrantOnce) && now.millis_since(terms.told_at) >= SWEEP_MS {
                terms.told_at = now;
                self.out.grants.push(Grant { run_id, lease, attempt: terms.attempt });
            } else if terms.accepted
                && !mutated!(SkipLeaseChecks)
                && now.millis_since(terms.granted_at) >= CHECKED_FROM_MS
            {
                self.out.checks.push((run_id, lease));
            }
        }
        for Telling { loss, told_at, .. } in self.losses.values_mut() {
            if now.millis_since(*told_at) >= SWEEP_MS && !mutated!(TellALossOnce) {
                *told_at = now;
                self.out.losses.push(loss.clone());
            }
        }
    }
}
