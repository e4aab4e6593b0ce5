//! What the dispatcher says: who waits, who has enough, which grants stand.

use errand_core::run::{Lease, LeaseToken};
use errand_core::session::Command;
use errand_core::{Error, ErrorCode, RunId, SessionId, Timestamp, mutated};

use super::Pool;
use super::want::{Place, Want};

/// What a run gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// The run.
    pub run_id: RunId,
    /// What it had; none: it only waited.
    pub lease: Option<Lease>,
    /// The session may hold something half-done or stuck.
    pub discard: bool,
}

impl Pool {
    /// A run waits.
    ///
    /// # Errors
    /// `request`/`session_not_available` where it names a session that it cannot have, `api`/`unavailable` where as
    /// many wait as may.
    pub fn acquire(&mut self, want: Want, now: Timestamp) -> Result<(), Error> {
        if let Some(known) = self.waiting.get(&want.run_id) {
            if known.want.attempt >= want.attempt {
                return Ok(());
            }
            self.forget(want.run_id);
        }
        if let Some(id) = self.by_run.get(&want.run_id).copied()
            && self.grant_repeated(id, &want, now)
        {
            return Ok(());
        }
        if self.waiting.len() >= self.policy.max_waiting {
            let message = format!("{} runs wait already, as many as may", self.policy.max_waiting);
            return Err(ErrorCode::API_UNAVAILABLE.with(message).at("wants"));
        }
        if let Some(id) = want.session_id {
            self.check_named(id, &want)?;
        }
        self.admit(want, false);
        Ok(())
    }

    /// Where the run has a lease already, the grant is told again instead. False: the lease is an earlier attempt's.
    fn grant_repeated(&mut self, id: SessionId, want: &Want, now: Timestamp) -> bool {
        let Some(terms) = self.slots.get_mut(&id).and_then(|slot| slot.terms.as_mut()) else { return false };
        if terms.attempt < want.attempt {
            return false;
        }
        if !terms.accepted && terms.want.is_none() {
            // Known again after a restart of the pool.
            terms.want = Some(Box::new(want.clone()));
        }
        // What was told just now needs no repetition.
        if now.millis_since(terms.told_at) > 1_000 || terms.accepted {
            self.grant_again(id, now);
        }
        true
    }

    fn check_named(&self, id: SessionId, want: &Want) -> Result<(), Error> {
        let refused = |what: &str| {
            let message = format!("session {id} {what}");
            Err(ErrorCode::SESSION_NOT_AVAILABLE.with(message).at("session_id"))
        };
        let own = self.slots.get(&id).filter(|slot| slot.session.tenant.as_ref() == Some(&want.tenant));
        let Some(slot) = own else { return refused("has ended, or never was") };
        if slot.session.agent_id != want.agent_id {
            return refused("is another agent's");
        }
        if slot.may_serve() { Ok(()) } else { refused("has ended") }
    }

    /// A run no longer waits, or no longer needs its session. What is not its own (any more) is left alone.
    pub fn release(&mut self, release: Release, now: Timestamp) {
        let Some(lease) = release.lease else {
            self.forget(release.run_id);
            return;
        };
        let Some(slot) = self.slots.get(&lease.session_id).filter(|slot| slot.is_held_by(lease.token)) else {
            // It may be given back already. Or another pool has taken over and gave it, and this one has nothing to say.
            self.out.in_doubt = true;
            return;
        };
        let named = self.named.contains_key(&lease.session_id);
        let drains = self.runners.get(&slot.session.runner_id).is_none_or(|runner| runner.draining);
        let keep = named || slot.terms.as_ref().is_some_and(|terms| terms.keep);
        self.give_back(
            lease.session_id,
            lease.token,
            keep && (!release.discard || mutated!(IgnoreDiscard)) && !drains,
            true,
            now,
        );
    }

    fn give_back(&mut self, id: SessionId, token: LeaseToken, keep: bool, touched: bool, now: Timestamp) {
        if mutated!(KeepTheLease) {
            return;
        }
        if touched && let Some(slot) = self.slots.get_mut(&id) {
            slot.pristine = false;
        }
        if keep {
            self.change(id, Command::Release { token }, None, now);
        } else {
            self.end(id, "its run is over", now);
        }
    }

    /// The dispatcher's answer to a grant.
    pub fn granted(&mut self, id: SessionId, token: LeaseToken, accepted: bool, now: Timestamp) {
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.is_held_by(token)) else { return };
        let Some(terms) = slot.terms.as_mut() else { return };
        if accepted {
            terms.accepted = true;
            terms.want = None;
            slot.pristine = false;
            return;
        }
        // Nothing has executed there, unless the run had accepted before and is over since.
        let touched = terms.accepted || terms.uncertain;
        let drains = self.runners.get(&slot.session.runner_id).is_none_or(|runner| runner.draining);
        self.give_back(id, token, !touched && !drains, touched, now);
    }

    /// The dispatcher says that this lease is no longer held.
    pub fn not_held(&mut self, run_id: RunId, lease: Lease, now: Timestamp) {
        self.release(Release { run_id, lease: Some(lease), discard: true }, now);
    }

    /// The dispatcher knows of these losses. One whose lease may yet be accepted is told again for a while.
    pub fn losses_told(&mut self, tokens: &[LeaseToken], now: Timestamp) {
        for token in tokens {
            let is_over = self.losses.get(token).is_some_and(|telling| telling.until <= now);
            if is_over && self.losses.remove(token).is_some() {
                self.out.told_losses.push(*token);
            }
        }
    }

    /// A want whose session could not be made is tried again.
    pub(super) fn try_again(&mut self, run_id: RunId) {
        if self.waiting.get(&run_id).is_some_and(|waiting| matches!(waiting.place, Place::Later(_))) {
            self.step_out(run_id, Place::Line);
            self.stand(run_id);
        }
    }
}
