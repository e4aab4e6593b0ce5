//! Who waits, and in which order: per agent a line per tenant, and the tenants by how much they have already.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use errand_core::{AgentId, RunId, RunnerId, SessionId, Tenant, Timestamp};

use super::Pool;
use super::want::{Fit, Place, Rank, Waiting, Want};

/// The turn of a tenant in an agent: the fewest sessions first, and of those with as many, the one that was served
/// longest ago.
pub(super) type Turn = (u32, u64);

/// Everything of one kind of runner.
#[derive(Debug, Default)]
pub(super) struct Agent {
    pub(super) lines: HashMap<Tenant, Line>,
    /// Tenants with a line that may have another session now, fairest first.
    pub(super) order: BTreeSet<(Turn, Tenant)>,
    /// Runners by whom they serve. The first serves everybody.
    pub(super) classes: Vec<Class>,
    /// Runners that have fewer warm sessions than they should, and room for one.
    pub(super) thirsty: BTreeSet<RunnerId>,
    /// Runs that wait, wherever they stand.
    pub(super) waiting: usize,
}

/// The runners that serve the same tenants, and what they have to give.
#[derive(Debug, Default)]
pub(super) struct Class {
    /// None: everybody.
    pub(super) tenants: Option<BTreeSet<Tenant>>,
    pub(super) runners: usize,
    /// Runners with room for a session, those with the most first.
    pub(super) free: BTreeSet<(Reverse<usize>, RunnerId)>,
    /// Sessions that are nobody's yet.
    pub(super) warm: BTreeSet<(Timestamp, SessionId)>,
    /// Tenants' idle sessions, longest idle first.
    pub(super) idle: BTreeSet<(Timestamp, SessionId)>,
}

impl Class {
    pub(super) fn has_something(&self) -> bool {
        !(self.free.is_empty() && self.warm.is_empty() && self.idle.is_empty())
    }
}

/// What one tenant wants of one agent, and has.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) queue: BTreeSet<Rank>,
    /// Of these, those that take a used session.
    reusing: HashMap<Fit, BTreeSet<Rank>>,
    /// Leases, and sessions under way for its runs.
    pub(super) held: u32,
    /// When it was served last.
    turn: u64,
    /// Where it stands in the agent's order.
    ordered: Option<Turn>,
    pub(super) idle: HashMap<Fit, Idle>,
}

impl Line {
    fn is_needed(&self) -> bool {
        !(self.queue.is_empty() && self.held == 0 && self.idle.is_empty())
    }

    /// The first that would take this idle session.
    pub(super) fn first_reusing(&self, fit: &Fit) -> Option<Rank> {
        self.reusing.get(fit)?.first().copied()
    }
}

/// A tenant's idle sessions that do for the same runs.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// Runs have executed there.
    pub(super) used: BTreeSet<(Timestamp, SessionId)>,
    /// None has: as good as fresh.
    pub(super) pristine: BTreeSet<(Timestamp, SessionId)>,
}

/// What one tenant has of all agents.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) held: u32,
    /// Agents in which it has a line.
    pub(super) lines: BTreeSet<AgentId>,
    /// Idle sessions that a run of its waits for by name, while the tenant is at its limit.
    pub(super) named: BTreeSet<SessionId>,
}

impl Agent {
    fn is_needed(&self) -> bool {
        self.waiting > 0 || !self.lines.is_empty() || self.classes.iter().any(|class| class.runners > 0)
    }

    pub(super) fn new() -> Self {
        Self { classes: vec![Class::default()], ..Self::default() }
    }

    /// The class of the runners that serve these.
    pub(super) fn class_of(&mut self, tenants: Option<BTreeSet<Tenant>>) -> usize {
        let known = self.classes.iter().position(|class| class.tenants == tenants);
        let vacant = || self.classes.iter().skip(1).position(|class| class.runners == 0).map(|at| at + 1);
        let at = known.or_else(vacant).unwrap_or_else(|| {
            self.classes.push(Class::default());
            self.classes.len() - 1
        });
        self.classes[at].tenants = tenants;
        at
    }

    /// The tenant whose turn it is, of those that this class serves.
    pub(super) fn fairest(&self, class: usize) -> Option<Tenant> {
        let Some(tenants) = &self.classes[class].tenants else {
            return self.order.first().map(|(_, tenant)| tenant.clone());
        };
        let turn = |tenant: &&Tenant| self.lines.get(*tenant).and_then(|line| line.ordered);
        tenants.iter().filter(|tenant| turn(tenant).is_some()).min_by_key(turn).cloned()
    }
}

impl Pool {
    pub(super) fn agent_mut(&mut self, id: &AgentId) -> &mut Agent {
        // Looked up twice rather than cloning the id each time.
        if !self.agents.contains_key(id) {
            self.agents.insert(id.clone(), Agent::new());
        }
        self.agents.get_mut(id).unwrap_or_else(|| unreachable!("it was just inserted"))
    }

    pub(super) fn line_mut(&mut self, agent: &AgentId, tenant: &Tenant) -> &mut Line {
        let turn = self.turn.saturating_sub(1);
        let lines = &mut self.agent_mut(agent).lines;
        if !lines.contains_key(tenant) {
            // Who comes anew stands behind those who wait already, and before the one that was served just now.
            lines.insert(tenant.clone(), Line { turn, ..Line::default() });
        }
        lines.get_mut(tenant).unwrap_or_else(|| unreachable!("it was just inserted"))
    }

    pub(super) fn account_mut(&mut self, tenant: &Tenant) -> &mut Account {
        if !self.accounts.contains_key(tenant) {
            self.accounts.insert(tenant.clone(), Account::default());
        }
        self.accounts.get_mut(tenant).unwrap_or_else(|| unreachable!("it was just inserted"))
    }

    /// Whether the tenant may have another session.
    pub(super) fn may_have_more(&self, tenant: &Tenant) -> bool {
        let limit = self.policy.limit_of(tenant);
        limit == 0 || self.accounts.get(tenant).map_or(0, |account| account.held) < limit
    }

    /// Puts the tenant where it belongs in the agent's order, and forgets what is not needed any more.
    pub(super) fn reorder(&mut self, agent_id: &AgentId, tenant: &Tenant) {
        let eligible = self.may_have_more(tenant);
        let Some(agent) = self.agents.get_mut(agent_id) else { return };
        if let Some(line) = agent.lines.get_mut(tenant) {
            let turn = (eligible && !line.queue.is_empty()).then_some((line.held, line.turn));
            if line.ordered != turn {
                if let Some(old) = line.ordered {
                    agent.order.remove(&(old, tenant.clone()));
                }
                if let Some(new) = turn {
                    agent.order.insert((new, tenant.clone()));
                }
                line.ordered = turn;
            }
            if !line.is_needed() {
                agent.lines.remove(tenant);
            }
        }
        if !agent.is_needed() {
            self.agents.remove(agent_id);
        }
        let account = self.accounts.get(tenant);
        if account.is_some_and(|account| account.held == 0 && account.lines.is_empty() && account.named.is_empty()) {
            self.accounts.remove(tenant);
        }
    }

    /// The tenant has one session more: a lease, or one under way for a run of its.
    pub(super) fn hold(&mut self, agent: &AgentId, tenant: &Tenant) {
        self.line_mut(agent, tenant).held += 1;
        self.account_mut(tenant).held += 1;
        self.eligibility_changed(agent, tenant);
    }

    /// One less.
    pub(super) fn unhold(&mut self, agent: &AgentId, tenant: &Tenant) {
        let line = self.line_mut(agent, tenant);
        debug_assert!(line.held > 0, "held never falls below 0");
        line.held = line.held.saturating_sub(1);
        let account = self.account_mut(tenant);
        account.held = account.held.saturating_sub(1);
        let named = std::mem::take(&mut account.named);
        self.dirty_named.extend(named);
        self.dirty.insert(agent.clone());
        self.eligibility_changed(agent, tenant);
    }

    fn eligibility_changed(&mut self, agent: &AgentId, tenant: &Tenant) {
        let limit = self.policy.limit_of(tenant);
        let account = self.account_mut(tenant);
        let at_the_border = limit != 0 && (account.held == limit || account.held + 1 == limit);
        if at_the_border {
            for other in account.lines.clone() {
                if other != *agent {
                    self.dirty.insert(other.clone());
                    self.reorder(&other, tenant);
                }
            }
        }
        self.reorder(agent, tenant);
    }

    /// The tenant was served.
    pub(super) fn take_turn(&mut self, agent: &AgentId, tenant: &Tenant) {
        self.turn += 2;
        let turn = self.turn;
        self.line_mut(agent, tenant).turn = turn;
        self.reorder(agent, tenant);
    }

    /// A want, into its line; `again` where it was there before.
    pub(super) fn admit(&mut self, want: Want, again: bool) {
        self.agent_mut(&want.agent_id).waiting += 1;
        let run_id = want.run_id;
        let waiting = Waiting { want, place: Place::Line, failures: 0, avoid: None, overtaken: 0, again };
        self.waiting.insert(run_id, waiting);
        self.stand(run_id);
    }

    /// Into the line: of its tenant, or for the session that it names.
    pub(super) fn stand(&mut self, run_id: RunId) {
        let Some(waiting) = self.waiting.get_mut(&run_id) else { return };
        let (rank, fit, reuse) = (waiting.want.rank(), waiting.want.fit(), waiting.want.reuse);
        let (agent, tenant) = (waiting.want.agent_id.clone(), waiting.want.tenant.clone());
        if let Some(session_id) = waiting.want.session_id {
            if !self.slots.get(&session_id).is_some_and(|slot| slot.may_serve()) {
                // In vain. The dispatcher hears of it when it asks again.
                waiting.place = Place::Line;
                self.forget(run_id);
                return;
            }
            waiting.place = Place::Named(session_id);
            // A session that runs wait for by name is nobody else's.
            self.unindex(session_id);
            self.named.entry(session_id).or_default().insert(rank);
            self.index(session_id);
            self.dirty_named.insert(session_id);
            return;
        }
        waiting.place = Place::Line;
        let line = self.line_mut(&agent, &tenant);
        line.queue.insert(rank);
        if reuse {
            line.reusing.entry(fit).or_default().insert(rank);
        }
        let account = self.account_mut(&tenant);
        if !account.lines.contains(&agent) {
            account.lines.insert(agent.clone());
        }
        self.reorder(&agent, &tenant);
        self.dirty.insert(agent);
    }

    /// Out of the line, to `place`.
    pub(super) fn step_out(&mut self, run_id: RunId, place: Place) {
        let Some(waiting) = self.waiting.get_mut(&run_id) else { return };
        let from = std::mem::replace(&mut waiting.place, place);
        let (rank, fit, reuse) = (waiting.want.rank(), waiting.want.fit(), waiting.want.reuse);
        let (agent, tenant) = (waiting.want.agent_id.clone(), waiting.want.tenant.clone());
        match from {
            Place::Line => {
                let line = self.line_mut(&agent, &tenant);
                line.queue.remove(&rank);
                if reuse
                    && let Some(ranks) = line.reusing.get_mut(&fit)
                    && ranks.remove(&rank)
                    && ranks.is_empty()
                {
                    line.reusing.remove(&fit);
                }
                if line.queue.is_empty() {
                    self.account_mut(&tenant).lines.remove(&agent);
                }
                self.reorder(&agent, &tenant);
            }
            Place::Named(session_id) => self.unname(session_id, rank, &tenant),
            Place::Promised(session_id) => {
                if let Some(slot) = self.slots.get_mut(&session_id) {
                    slot.promised = None;
                }
                self.unhold(&agent, &tenant);
            }
            Place::Later(at) => {
                self.timers.remove(&(at, super::Timer::Want(run_id)));
            }
        }
        match place {
            Place::Promised(session_id) => {
                if let Some(slot) = self.slots.get_mut(&session_id) {
                    slot.promised = Some(run_id);
                }
                self.hold(&agent, &tenant);
            }
            Place::Later(at) => {
                self.timers.insert((at, super::Timer::Want(run_id)));
            }
            Place::Line | Place::Named(_) => {}
        }
    }

    fn unname(&mut self, session_id: SessionId, rank: Rank, tenant: &Tenant) {
        let Some(ranks) = self.named.get_mut(&session_id) else { return };
        ranks.remove(&rank);
        if ranks.is_empty() {
            self.unindex(session_id);
            self.named.remove(&session_id);
            if let Some(account) = self.accounts.get_mut(tenant) {
                account.named.remove(&session_id);
            }
            self.index(session_id);
        }
    }

    /// Forgets a want; gives it back.
    pub(super) fn forget(&mut self, run_id: RunId) -> Option<Waiting> {
        self.waiting.get(&run_id)?;
        // Out of wherever it stands; it is not put into the line.
        self.step_out(run_id, Place::Line);
        let waiting = self.waiting.remove(&run_id)?;
        let agent_id = &waiting.want.agent_id;
        self.agent_mut(agent_id).waiting -= 1;
        self.reorder(agent_id, &waiting.want.tenant);
        Some(waiting)
    }

    /// Those who wait for a session by name wait in vain. The dispatcher hears of it when it asks again.
    pub(super) fn drop_named(&mut self, session_id: SessionId) {
        for rank in self.named.get(&session_id).cloned().unwrap_or_default() {
            self.forget(rank.run_id);
        }
    }

    /// How many runs wait, by agent.
    pub(super) fn waiting_by_agent(&self) -> BTreeMap<&AgentId, usize> {
        self.agents.iter().map(|(id, agent)| (id, agent.waiting)).collect()
    }
}
