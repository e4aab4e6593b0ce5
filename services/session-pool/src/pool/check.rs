//! What holds of the picture after every [`Pool::settle`]: for debug assertions, tests and the simulator.

use std::collections::BTreeMap;

use errand_core::session::{State, check};
use errand_core::{AgentId, RunId, SessionId, Tenant};

use super::Pool;
use super::want::Place;

impl Pool {
    /// Invariants 5, 7 and 9 of DESIGN, and that the indexes say what the sessions and wants say.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self) -> Result<(), String> {
        self.check_sessions()?;
        self.check_held()?;
        self.check_lines()?;
        self.check_rooms()
    }

    fn check_sessions(&self) -> Result<(), String> {
        let mut tokens = std::collections::BTreeSet::new();
        for (id, slot) in &self.slots {
            check(&slot.session).map_err(|broken| format!("{id}: {broken}"))?;
            if slot.session.status().is_final() {
                return Err(format!("{id} is final and still in the picture"));
            }
            if let Some((run_id, token)) = slot.session.holder() {
                hold(tokens.insert(token), || format!("token {token} was given twice"))?;
                hold(token <= self.token, || format!("token {token} is beyond {}", self.token))?;
                hold(slot.terms.is_some(), || format!("{id} is leased without terms"))?;
                // The newest lease of a run is found; an older one waits to be given back.
                let newest = self.by_run.get(&run_id).and_then(|id| self.slots.get(id)?.session.holder());
                let found = newest.is_none_or(|(_, newest)| newest >= token);
                hold(found, || format!("{run_id} has {id}, and an older lease is found"))?;
            }
            let runner = self.runners.get(&slot.session.runner_id);
            hold(runner.is_some_and(|runner| runner.sessions.contains(id)), || format!("{id} is no runner's"))?;
        }
        for (run_id, id) in &self.by_run {
            let holder = self.slots.get(id).and_then(|slot| slot.session.holder());
            hold(holder.is_some_and(|(run, _)| run == *run_id), || format!("{run_id} does not have {id}"))?;
        }
        let of_runners: usize = self.runners.values().map(|runner| runner.sessions.len()).sum();
        hold(of_runners == self.slots.len(), || "a runner has a session that is not there".into())
    }

    /// Leases and promises, counted anew.
    fn check_held(&self) -> Result<(), String> {
        let mut held: BTreeMap<(&AgentId, &Tenant), u32> = BTreeMap::new();
        for slot in self.slots.values() {
            if let (Some(_), Some(tenant)) = (slot.session.holder(), &slot.session.tenant) {
                *held.entry((&slot.session.agent_id, tenant)).or_default() += 1;
            }
        }
        for (run_id, waiting) in &self.waiting {
            if let Place::Promised(id) = waiting.place {
                let promised = self.slots.get(&id).and_then(|slot| slot.promised);
                hold(promised == Some(*run_id), || format!("{run_id} waits for {id}, which is not for it"))?;
                *held.entry((&waiting.want.agent_id, &waiting.want.tenant)).or_default() += 1;
            }
        }
        for (agent_id, agent) in &self.agents {
            for (tenant, line) in &agent.lines {
                let counted = held.remove(&(agent_id, tenant)).unwrap_or_default();
                hold(counted == line.held, || format!("{tenant} has {counted} of {agent_id}, not {}", line.held))?;
            }
        }
        hold(held.is_empty(), || format!("no line for {held:?}"))
    }

    fn check_lines(&self) -> Result<(), String> {
        let mut lined = 0;
        for (agent_id, agent) in &self.agents {
            for (tenant, line) in &agent.lines {
                lined += line.queue.len();
                let ordered = agent.order.iter().filter(|(_, other)| other == tenant).count();
                let should = usize::from(!line.queue.is_empty() && self.may_have_more(tenant));
                hold(ordered == should, || format!("{tenant} stands {ordered} times in the order of {agent_id}"))?;
            }
        }
        let places = |wanted: fn(&Place) -> bool| self.waiting.values().filter(|w| wanted(&w.place)).count();
        let in_line = places(|place| matches!(place, Place::Line));
        hold(lined == in_line, || format!("{in_line} wants stand in line, the lines have {lined}"))?;
        let named: usize = self.named.values().map(std::collections::BTreeSet::len).sum();
        let by_name = places(|place| matches!(place, Place::Named(_)));
        hold(named == by_name, || format!("{by_name} wants name a session, {named} are listed"))?;
        let counted: usize = self.agents.values().map(|agent| agent.waiting).sum();
        hold(counted == self.waiting.len(), || format!("{} wait, {counted} are counted", self.waiting.len()))?;
        let let_in = self.waiting.values().filter(|waiting| !waiting.again).count();
        hold(let_in <= self.policy.max_waiting, || "too many wait".into())
    }

    fn check_rooms(&self) -> Result<(), String> {
        for (id, runner) in &self.runners {
            let Some(registration) = &runner.registration else { continue };
            let agent = self.agents.get(&runner.agent_id).ok_or_else(|| format!("{id} has no agent"))?;
            let shelved = agent.classes[runner.class].free.contains(&(std::cmp::Reverse(runner.room()), *id));
            hold(shelved == (runner.room() > 0), || format!("{id} has room {} and is misplaced", runner.room()))?;
            let sessions = runner.sessions.len();
            hold(sessions <= registration.capacity.max(sessions), || format!("{id} is overfull"))?;
        }
        for agent in self.agents.values() {
            for class in &agent.classes {
                for (_, id) in class.idle.iter().chain(&class.warm) {
                    let idle = self.slots.get(id).is_some_and(|slot| matches!(slot.session.state, State::Idle { .. }));
                    hold(idle, || format!("{id} is listed as idle"))?;
                }
            }
        }
        Ok(())
    }

    /// A run that may have a session waits while there is one that fits, or room for one. Holds after
    /// [`Pool::settle`].
    ///
    /// # Errors
    /// The run, and what it could have.
    pub fn check_settled(&self) -> Result<(), String> {
        hold(self.dirty.is_empty() && self.dirty_named.is_empty(), || "not settled".into())?;
        for agent in self.agents.values() {
            for (at, class) in agent.classes.iter().enumerate() {
                let waits = class.has_something().then(|| agent.fairest(at)).flatten();
                hold(waits.is_none(), || format!("{waits:?} waits although there is room"))?;
            }
        }
        for (id, ranks) in &self.named {
            let Some(slot) = self.slots.get(id) else { return Err(format!("{id} is waited for and gone")) };
            let taken = !matches!(slot.session.state, State::Idle { .. });
            let away = self.runners.get(&slot.session.runner_id).is_none_or(|runner| !runner.takes_runs());
            let limited = slot.session.tenant.as_ref().is_some_and(|tenant| !self.may_have_more(tenant));
            hold(taken || away || limited, || format!("{ranks:?} wait for {id}, which is idle"))?;
        }
        Ok(())
    }

    /// Whether the pool knows that this run waits.
    #[must_use]
    pub fn waits(&self, run_id: RunId) -> bool {
        self.waiting.contains_key(&run_id)
    }

    /// The session that a run has.
    #[must_use]
    pub fn session_of(&self, run_id: RunId) -> Option<SessionId> {
        self.by_run.get(&run_id).copied()
    }
}

fn hold(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
