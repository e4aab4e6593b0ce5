//! The matching. After it, no run waits that may have a session while there is one that fits, or room for one.

use errand_core::session::{Session, State};
use errand_core::{AgentId, RunId, RunnerId, SessionId, Tenant, Timestamp, mutated};

use super::Pool;
use super::want::{Fit, Rank};

/// How often a want may see a later one of its tenant take an idle session that it cannot use, until that session's
/// room is its own.
const OVERTAKEN: u8 = 16;

impl Pool {
    /// Gives what there is to those who wait. `new_id` makes ids for sessions.
    pub fn settle(&mut self, now: Timestamp, new_id: &mut dyn FnMut() -> SessionId) {
        while let Some(id) = self.dirty_named.pop_first() {
            self.settle_named(id, now);
        }
        while let Some(agent) = self.dirty.pop_first() {
            self.settle_agent(&agent, now, new_id);
            self.refill(&agent, now, new_id);
            // Whom this released waits by name for what is idle now.
            while let Some(id) = self.dirty_named.pop_first() {
                self.settle_named(id, now);
            }
        }
    }

    fn settle_named(&mut self, id: SessionId, now: Timestamp) {
        let Some(first) = self.named.get(&id).and_then(|ranks| ranks.first().copied()) else { return };
        let Some(slot) = self.slots.get(&id) else { return };
        let ready = matches!(slot.session.state, State::Idle { .. })
            && self.runners.get(&slot.session.runner_id).is_some_and(super::runners::Runner::takes_runs);
        let (true, Some(tenant)) = (ready, slot.session.tenant.clone()) else { return };
        if self.may_have_more(&tenant) {
            self.lease(id, first.run_id, now);
        } else {
            self.account_mut(&tenant).named.insert(id);
        }
    }

    fn settle_agent(&mut self, agent_id: &AgentId, now: Timestamp, new_id: &mut dyn FnMut() -> SessionId) {
        // What serves only some goes to these first, and leaves the rest to the others.
        let classes = self.agents.get(agent_id).map_or(0, |agent| agent.classes.len());
        for class in (0..classes).rev() {
            while let Some(tenant) = self.next_served(agent_id, class) {
                if !self.serve(agent_id, class, &tenant, now, new_id) {
                    break;
                }
            }
        }
    }

    fn next_served(&self, agent_id: &AgentId, class: usize) -> Option<Tenant> {
        let agent = self.agents.get(agent_id)?;
        if agent.classes.get(class)?.has_something() { agent.fairest(class) } else { None }
    }

    /// Gives the tenant's first want what this class of runners has. Whether it had something.
    fn serve(
        &mut self,
        agent_id: &AgentId,
        class: usize,
        tenant: &Tenant,
        now: Timestamp,
        new_id: &mut dyn FnMut() -> SessionId,
    ) -> bool {
        let Some(agent) = self.agents.get(agent_id) else { return false };
        let Some(line) = agent.lines.get(tenant) else { return false };
        let Some(rank) = line.queue.first().copied() else { return false };
        let run_id = rank.run_id;
        let Some(waiting) = self.waiting.get(&run_id) else { return false };
        if let Some(idle) = line.idle.get(&waiting.want.fit()) {
            let pristine = idle.pristine.last();
            let fitting = if waiting.want.reuse { idle.used.last().or(pristine) } else { pristine };
            if let Some((_, id)) = fitting {
                self.lease(*id, run_id, now);
                return true;
            }
        }
        let class = &agent.classes[class];
        if mutated!(ReuseAcrossTenants)
            && let Some((_, id)) = class.idle.first()
        {
            self.lease(*id, run_id, now);
            return true;
        }
        if let Some((_, id)) = class.warm.first() {
            self.lease(*id, run_id, now);
        } else if let Some(runner) = first_but(class.free.iter().map(|(_, id)| *id), waiting.avoid) {
            self.provision(new_id(), runner, Some(run_id), now);
        } else if let Some((_, id)) = class.idle.first().copied() {
            match self.overtaker(tenant, id, rank) {
                Some(other) => {
                    self.lease(id, other, now);
                    if let Some(waiting) = self.waiting.get_mut(&run_id) {
                        waiting.overtaken += 1;
                    }
                }
                None => self.evict(id, run_id, now),
            }
        } else {
            return false;
        }
        true
    }

    /// A later want of the same tenant and priority that fits the idle session which would be ended for the first.
    fn overtaker(&self, tenant: &Tenant, id: SessionId, first: Rank) -> Option<RunId> {
        let session: &Session = &self.slots.get(&id)?.session;
        if session.tenant.as_ref() != Some(tenant) || self.waiting.get(&first.run_id)?.overtaken >= OVERTAKEN {
            return None;
        }
        let line = self.agents.get(&session.agent_id)?.lines.get(tenant)?;
        let other = line.first_reusing(&Fit::of(session))?;
        (other.priority == first.priority).then_some(other.run_id)
    }

    /// Keeps sessions ready where that is configured, with what nobody waits for.
    fn refill(&mut self, agent_id: &AgentId, now: Timestamp, new_id: &mut dyn FnMut() -> SessionId) {
        while let Some(runner) = self.agents.get(agent_id).and_then(|agent| agent.thirsty.first().copied()) {
            self.provision(new_id(), runner, None, now);
        }
    }
}

/// The first that is not the one to avoid, or that one where there is no other.
fn first_but(mut runners: impl Iterator<Item = RunnerId>, avoid: Option<RunnerId>) -> Option<RunnerId> {
    let first = runners.next()?;
    if Some(first) == avoid { runners.next().or(Some(first)) } else { Some(first) }
}
