//! The sessions that are not final, and every way in which one changes.

use errand_core::run::{Lease, LeaseToken, LostReason};
use errand_core::session::{Command, Outcome, Session, State, apply, check};
use errand_core::{Error, ErrorCode, RunId, RunnerId, SessionId, Tenant, Timestamp, mutated};

use super::want::{Fit, Place, Want};
use super::{Change, Grant, LATE_GRANT_MS, Loss, Pool, Start, StoredTerms, Telling, Timer};

/// A torn-down session that gets no answer is tried again after this, and then less often.
const TEAR_DOWN_AGAIN_MS: i64 = 1_000;
const TEAR_DOWN_AGAIN_MAX_MS: i64 = 30_000;

/// A session with what the pool remembers of it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) session: Session,
    pub(super) terms: Option<Terms>,
    /// No run has executed there.
    pub(super) pristine: bool,
    /// The run that it is made for, or ended to make room for.
    pub(super) promised: Option<RunId>,
    /// Since when its runner must list it.
    pub(super) ready_at: Timestamp,
    /// The runner's last message that listed it.
    pub(super) listed: u64,
    /// Messages in a row that did not.
    pub(super) missed: u32,
    /// Requests to tear it down that got no answer.
    pub(super) tear_downs: u32,
}

/// What a lease was given on.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) attempt: u32,
    pub(super) keep: bool,
    pub(super) granted_at: Timestamp,
    /// When the dispatcher was told last.
    pub(super) told_at: Timestamp,
    /// The dispatcher has said yes.
    pub(super) accepted: bool,
    /// The pool has restarted since: nobody knows whether the run has begun.
    pub(super) uncertain: bool,
    /// What the run wanted, until it has accepted: it wants it again if the session dies before.
    pub(super) want: Option<Box<Want>>,
}

impl Slot {
    pub(super) fn new(session: Session, now: Timestamp) -> Self {
        let pristine = session.runs_served == 0;
        Self { session, terms: None, pristine, promised: None, ready_at: now, listed: 0, missed: 0, tear_downs: 0 }
    }

    pub(super) fn lease(&self) -> Option<(RunId, Lease)> {
        let (run_id, token) = self.session.holder()?;
        Some((run_id, Lease { session_id: self.session.id, runner_id: self.session.runner_id, token }))
    }

    pub(super) fn is_held_by(&self, token: LeaseToken) -> bool {
        self.session.holder().is_some_and(|(_, held)| held == token)
    }

    /// Whether a run may still get it.
    pub(super) const fn may_serve(&self) -> bool {
        matches!(self.session.state, State::Queued | State::Running { .. } | State::Idle { .. })
    }

    /// Whether the run has said that it took the lease.
    fn is_accepted(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.accepted)
    }

    /// What the run wanted, where nobody knows whether it has accepted.
    fn unaccepted(&mut self) -> Option<Box<Want>> {
        self.terms.as_mut().filter(|terms| !terms.accepted).and_then(|terms| terms.want.take())
    }

    fn grant(&self) -> Option<Grant> {
        let (run_id, lease) = self.lease()?;
        Some(Grant { run_id, lease, attempt: self.terms.as_ref().map_or(0, |terms| terms.attempt) })
    }
}

/// Nobody's, and ready or being made.
const fn is_warm(session: &Session) -> bool {
    session.tenant.is_none() && matches!(session.state, State::Queued | State::Idle { .. })
}

impl Pool {
    /// Makes an idle session findable. Nothing else is; harmless for what is not there.
    pub(super) fn index(&mut self, id: SessionId) {
        self.place_idle(id, true);
    }

    /// Takes it out of where [`Pool::index`] put it. Both before any change to what they look at.
    pub(super) fn unindex(&mut self, id: SessionId) {
        self.place_idle(id, false);
    }

    fn place_idle(&mut self, id: SessionId, there: bool) {
        let Some(slot) = self.slots.get(&id) else { return };
        let State::Idle { since } = slot.session.state else { return };
        let Some(runner) = self.runners.get(&slot.session.runner_id) else { return };
        if !runner.takes_runs() {
            return;
        }
        if self.named.contains_key(&id) {
            if there {
                self.dirty_named.insert(id);
            }
            return;
        }
        let (class, pristine, fit) = (runner.class, slot.pristine, Fit::of(&slot.session));
        let (agent_id, tenant) = (slot.session.agent_id.clone(), slot.session.tenant.clone());
        let put = |set: &mut std::collections::BTreeSet<_>| {
            if there {
                set.insert((since, id))
            } else {
                set.remove(&(since, id))
            };
        };
        let agent = self.agent_mut(&agent_id);
        match &tenant {
            None => put(&mut agent.classes[class].warm),
            Some(tenant) => {
                put(&mut agent.classes[class].idle);
                let line = self.line_mut(&agent_id, tenant);
                let idle = line.idle.entry(fit).or_default();
                put(if pristine { &mut idle.pristine } else { &mut idle.used });
                if idle.pristine.is_empty() && idle.used.is_empty() {
                    line.idle.remove(&fit);
                }
                self.reorder(&agent_id, tenant);
            }
        }
        if there {
            self.dirty.insert(agent_id);
        }
    }

    /// Takes a session into the picture: a new one, or one from the store.
    pub(super) fn add_slot(&mut self, slot: Slot) {
        let (id, runner_id) = (slot.session.id, slot.session.runner_id);
        if let Some((run_id, _)) = slot.session.holder() {
            self.by_run.insert(run_id, id);
            if let Some(tenant) = slot.session.tenant.clone() {
                self.hold(&slot.session.agent_id.clone(), &tenant);
            }
        }
        if let Some(runner) = self.runners.get_mut(&runner_id) {
            runner.sessions.insert(id);
            runner.warm_now += usize::from(is_warm(&slot.session));
        }
        self.slots.insert(id, slot);
        self.index(id);
        self.reshelve(runner_id);
    }

    fn record(&mut self, id: SessionId) {
        let Some(slot) = self.slots.get(&id) else { return };
        debug_assert!(check(&slot.session).is_ok(), "{:?}", check(&slot.session));
        let terms = slot.terms.as_ref().map(|terms| StoredTerms { attempt: terms.attempt, keep: terms.keep });
        self.out.changes.push(Change { session: slot.session.clone(), terms });
    }

    /// The one way in which a session changes. Whether it did.
    pub(super) fn change(&mut self, id: SessionId, command: Command, terms: Option<Terms>, now: Timestamp) -> bool {
        let Some(slot) = self.slots.get(&id) else { return false };
        let next = match apply(&slot.session, command, now) {
            Outcome::Changed(next) => *next,
            Outcome::Ignored(_) => return false,
        };
        self.unindex(id);
        let Some(slot) = self.slots.get_mut(&id) else { return false };
        if matches!(slot.session.state, State::Queued) {
            slot.ready_at = now;
        }
        let before = std::mem::replace(&mut slot.session, next);
        slot.terms = terms;
        let (after, agent) = (slot.session.holder(), slot.session.agent_id.clone());
        let (warm, is_final) = (is_warm(&slot.session), slot.session.status().is_final());
        let (runner_id, tenant) = (slot.session.runner_id, slot.session.tenant.clone());
        self.record(id);
        if let Some((run_id, _)) = before.holder() {
            // The run may have a newer lease elsewhere.
            if self.by_run.get(&run_id) == Some(&id) {
                self.by_run.remove(&run_id);
            }
            if let Some(tenant) = &before.tenant {
                self.unhold(&agent, tenant);
            }
        }
        if let (Some((run_id, _)), Some(tenant)) = (after, &tenant) {
            self.by_run.insert(run_id, id);
            self.hold(&agent, tenant);
        }
        if let Some(runner) = self.runners.get_mut(&runner_id) {
            runner.warm_now = runner.warm_now + usize::from(warm) - usize::from(is_warm(&before));
        }
        if is_final {
            self.remove(id, runner_id);
        } else {
            self.index(id);
        }
        self.reshelve(runner_id);
        true
    }

    fn remove(&mut self, id: SessionId, runner_id: RunnerId) {
        self.drop_named(id);
        let promised = self.slots.get(&id).and_then(|slot| slot.promised);
        self.slots.remove(&id);
        if let Some(run_id) = promised {
            self.step_out(run_id, Place::Line);
            self.stand(run_id);
        }
        if let Some(runner) = self.runners.get_mut(&runner_id) {
            runner.sessions.remove(&id);
        }
    }

    /// Has a session made on this runner: for this run, or to keep it warm.
    pub(super) fn provision(&mut self, id: SessionId, runner_id: RunnerId, run: Option<RunId>, now: Timestamp) {
        let Some(runner) = self.runners.get(&runner_id) else { return };
        let want = run.and_then(|run| self.waiting.get(&run)).map(|waiting| &waiting.want);
        let session = Session {
            id,
            tenant: want.map(|want| want.tenant.clone()),
            agent_id: runner.agent_id.clone(),
            runner_id,
            source_id: want.and_then(|want| want.source_id),
            credential_id: want.and_then(|want| want.credential_id),
            seq: 1,
            state: State::Queued,
            runs_served: 0,
            reason: None,
            created_at: now,
            updated_at: now,
            ended_at: None,
        };
        self.out.starts.push(start_of(&session));
        self.add_slot(Slot::new(session, now));
        self.record(id);
        if let Some(run_id) = run {
            self.step_out(run_id, Place::Promised(id));
        }
    }

    /// Has a session that is being made asked for once more: after a restart nobody waits for the answer.
    pub(super) fn start_again(&mut self, id: SessionId) {
        let queued = self.slots.get(&id).filter(|slot| matches!(slot.session.state, State::Queued));
        self.out.starts.extend(queued.map(|slot| start_of(&slot.session)));
    }

    /// Gives a session to a run.
    pub(super) fn lease(&mut self, id: SessionId, run_id: RunId, now: Timestamp) {
        let Some(waiting) = self.forget(run_id) else { return };
        let want = waiting.want;
        self.token += u64::from(!(mutated!(RepeatToken) && self.token % 3 == 2));
        let command = Command::Lease {
            run_id,
            token: self.token,
            tenant: want.tenant.clone(),
            source_id: want.source_id,
            credential_id: want.credential_id,
        };
        let (agent, tenant) = (want.agent_id.clone(), want.tenant.clone());
        let terms = Terms {
            attempt: want.attempt,
            // A session that was asked for by name is one that somebody counts on.
            keep: want.reuse || want.session_id.is_some(),
            granted_at: now,
            told_at: now,
            accepted: false,
            uncertain: false,
            want: Some(Box::new(want)),
        };
        let leased = self.change(id, command, Some(terms), now);
        debug_assert!(leased, "only what is idle or just made is leased");
        self.take_turn(&agent, &tenant);
        self.out.grants.extend(self.slots.get(&id).and_then(Slot::grant));
        if mutated!(DoubleGrant)
            && let (Some(grant), Some(other)) = (self.slots.get(&id).and_then(Slot::grant), self.waiting.keys().min())
        {
            self.out.grants.push(Grant { run_id: *other, ..grant });
        }
    }

    /// Tells the dispatcher once more.
    pub(super) fn grant_again(&mut self, id: SessionId, now: Timestamp) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if let Some(terms) = &mut slot.terms {
            terms.told_at = now;
        }
        self.out.grants.extend(slot.grant());
    }

    /// Has a session torn down. Whether anything changed.
    pub(super) fn end(&mut self, id: SessionId, reason: &str, now: Timestamp) -> bool {
        let Some(slot) = self.slots.get(&id) else { return false };
        // The run that it was being made for stands in the line again.
        let promised = slot.promised.filter(|_| matches!(slot.session.state, State::Queued));
        let runner_id = slot.session.runner_id;
        if !self.change(id, Command::End { token: None, reason: reason.to_owned() }, None, now) {
            return false;
        }
        if let Some(run_id) = promised {
            self.step_out(run_id, Place::Line);
            self.stand(run_id);
        }
        self.drop_named(id);
        if !mutated!(ReleaseWithoutTearDown) {
            self.out.tear_downs.push((runner_id, id));
        }
        true
    }

    /// Ends an idle session, so that its room can be this run's.
    pub(super) fn evict(&mut self, id: SessionId, run_id: RunId, now: Timestamp) {
        if self.end(id, "it was idle, and a run that it does not fit needs its room", now) {
            self.step_out(run_id, Place::Promised(id));
        }
    }

    /// A session is gone, unasked. Its run, if it has one, is told.
    pub(super) fn fail(&mut self, id: SessionId, message: &str, reason: LostReason, now: Timestamp) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let loss = slot.lease().map(|(run_id, lease)| Loss { run_id, lease, reason, message: message.to_owned() });
        let (accepted, want) = (slot.is_accepted(), slot.unaccepted());
        if !self.change(id, Command::Fail { reason: message.to_owned() }, None, now) {
            return;
        }
        self.lose(loss, accepted, now);
        self.admit_again(want);
    }

    /// A lease that was never accepted is gone: the dispatcher may not know of it, and takes the run for one that
    /// waits here.
    pub(super) fn admit_again(&mut self, want: Option<Box<Want>>) {
        if let Some(want) = want.filter(|want| !self.waiting.contains_key(&want.run_id)) {
            self.admit(*want, true);
        }
    }

    /// A run has lost its session: told until answered.
    pub(super) fn lose(&mut self, loss: Option<Loss>, accepted: bool, now: Timestamp) {
        let Some(loss) = loss else { return };
        let until = if accepted { now } else { now.plus_millis(LATE_GRANT_MS) };
        let telling = Telling { loss: loss.clone(), told_at: self.ticked, until };
        self.losses.insert(loss.lease.token, telling);
        self.out.new_losses.push(loss.clone());
        self.out.losses.push(loss);
    }

    /// What is left of a failed session takes room at its runner until the runner says that it is gone.
    pub(super) fn haunt(&mut self, runner_id: RunnerId, id: SessionId) {
        let Some(runner) = self.runners.get_mut(&runner_id) else { return };
        runner.ghosts.insert(id);
        self.out.tear_downs.push((runner_id, id));
        self.reshelve(runner_id);
    }

    /// The runner's answer to a start.
    pub fn started(&mut self, id: SessionId, result: Result<(), Error>, now: Timestamp) {
        let Some(slot) = self.slots.get(&id) else { return };
        let (runner_id, promised) = (slot.session.runner_id, slot.promised);
        if !matches!(slot.session.state, State::Queued) {
            return;
        }
        let error = match result {
            Ok(()) => {
                self.praise(runner_id);
                let Some(run_id) = promised else {
                    self.change(id, Command::Ready, None, now);
                    if self.runners.get(&runner_id).is_none_or(|runner| runner.draining) {
                        self.end(id, "its runner drains", now);
                    }
                    return;
                };
                return self.lease(id, run_id, now);
            }
            Err(error) => error,
        };
        tracing::warn!(session = %id, runner = %runner_id, %error, "a session could not be made");
        self.blame(runner_id, &error, now);
        if let Some(run_id) = promised {
            self.put_off(run_id, runner_id, now);
        }
        self.fail(id, &error.to_string(), LostReason::SessionFailed, now);
        self.haunt(runner_id, id);
    }

    fn put_off(&mut self, run_id: RunId, runner_id: RunnerId, now: Timestamp) {
        let Some(waiting) = self.waiting.get_mut(&run_id) else { return };
        waiting.failures += 1;
        waiting.avoid = Some(runner_id);
        // The first time at once, elsewhere.
        let delay = match waiting.failures {
            1 => 0,
            n => 500 << (n - 1).min(7),
        };
        if delay == 0 {
            self.step_out(run_id, Place::Line);
            self.stand(run_id);
        } else {
            self.step_out(run_id, Place::Later(now.plus_millis(delay)));
        }
    }

    /// The runner's answer to a tear-down; `done` false: it has given none.
    pub fn torn_down(&mut self, runner_id: RunnerId, id: SessionId, done: bool, now: Timestamp) {
        if done {
            // A message that it sent before may list the session still.
            self.gone.insert(id, now);
            if let Some(runner) = self.runners.get_mut(&runner_id)
                && runner.ghosts.remove(&id)
            {
                self.reshelve(runner_id);
            }
        }
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if !matches!(slot.session.state, State::Completing) {
            return;
        }
        if done {
            self.change(id, Command::Ended, None, now);
            return;
        }
        slot.tear_downs += 1;
        let delay = (TEAR_DOWN_AGAIN_MS << slot.tear_downs.min(5)).min(TEAR_DOWN_AGAIN_MAX_MS);
        self.timers.insert((now.plus_millis(delay), Timer::TearDown(id)));
    }

    /// Has a session torn down that ends already, once more.
    pub(super) fn tear_down_again(&mut self, id: SessionId) {
        let ending = self.slots.get(&id).filter(|slot| matches!(slot.session.state, State::Completing));
        self.out.tear_downs.extend(ending.map(|slot| (slot.session.runner_id, id)));
    }

    /// A user ends a session; its run is canceled.
    ///
    /// # Errors
    /// `request`/`session_not_found` where the tenant has no such session that has not ended.
    pub fn end_session(&mut self, id: SessionId, tenant: &Tenant, now: Timestamp) -> Result<Session, Error> {
        let missing = || ErrorCode::SESSION_NOT_FOUND.with(format!("there is no session {id}"));
        let own = self.slots.get_mut(&id).filter(|slot| slot.session.tenant.as_ref() == Some(tenant));
        let slot = own.ok_or_else(missing)?;
        let (reason, message) = (LostReason::SessionEnded, "a user has ended the session");
        let loss = slot.lease().map(|(run_id, lease)| Loss { run_id, lease, reason, message: message.to_owned() });
        let (accepted, want) = (slot.is_accepted(), slot.unaccepted());
        if self.end(id, message, now) {
            self.lose(loss, accepted, now);
            self.admit_again(want);
        }
        self.slots.get(&id).map(|slot| slot.session.clone()).ok_or_else(missing)
    }
}

fn start_of(session: &Session) -> Start {
    Start {
        runner_id: session.runner_id,
        session_id: session.id,
        tenant: session.tenant.clone(),
        source_id: session.source_id,
        credential_id: session.credential_id,
    }
}
